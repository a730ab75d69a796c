"""Clients of both libraries on a transport in this process: the library's own work, no socket and no server."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

DIALECTS = ("ollama", "openai")
MODEL = "llama3.2"
SYSTEM = "Answer from the order alone, in one paragraph, and name the number of the invoice. " * 2
PROMPT = "The customer writes that the delivery of the third of May came without the two cables that he had ordered. " * 8
TEXT = "The invoice 4711 of the third of May lists two cables, which were sent on the following day in a second parcel. " * 8
PIECE = " parcel"
_SPENT = {"total_duration": 900_000_000, "load_duration": 10_000_000, "prompt_eval_count": 230, "prompt_eval_duration": 200_000_000,
          "eval_count": 190, "eval_duration": 690_000_000}  # fmt: skip


def messages(prompt: str = PROMPT) -> list[dict[str, str]]:
    """What is asked: about 1 kB."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]


def new_client(dialect: str, pieces: int = 1, *, is_async: bool = False) -> Any:
    """A client whose server is a function here. A stream has ``pieces`` pieces with text, and its end."""
    if dialect == "ollama":
        import httpx
        import ollama

        transport = httpx.MockTransport(_handler(httpx, dialect, pieces, is_async=is_async))
        return (ollama.AsyncClient if is_async else ollama.Client)("http://127.0.0.1:11434", transport=transport)
    import openai

    try:
        import httpx2 as web
    except ImportError:  # before openai 3
        import httpx as web
    transport = web.MockTransport(_handler(web, dialect, pieces, is_async=is_async))
    http = (web.AsyncClient if is_async else web.Client)(transport=transport)
    kind = openai.AsyncOpenAI if is_async else openai.OpenAI
    return kind(base_url="http://127.0.0.1:8080/v1", api_key="none", http_client=http, max_retries=0)


def ask(dialect: str, client: Any, *, stream: bool = False, prompt: str = PROMPT) -> Any:
    """One call: its answer, its stream, or a coroutine of either."""
    if dialect == "ollama":
        return client.chat(MODEL, messages(prompt), stream=stream)
    return client.chat.completions.create(model=MODEL, messages=messages(prompt), stream=stream)


def whole(dialect: str) -> bytes:
    """The body of an answer in one piece."""
    if dialect == "ollama":
        return _ollama(TEXT, done=True, done_reason="stop", **_SPENT)
    usage = {"prompt_tokens": 230, "completion_tokens": 190, "total_tokens": 420}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}
    return json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def piece(dialect: str) -> bytes:
    """One piece of a stream."""
    return _ollama(PIECE, done=False) + b"\n" if dialect == "ollama" else _sse({"content": PIECE})


def last(dialect: str) -> list[bytes]:
    """How a stream ends."""
    if dialect == "ollama":
        return [_ollama("", done=True, done_reason="stop", **_SPENT) + b"\n"]
    return [_sse({}, "stop"), b"data: [DONE]\n\n"]


def server_facts(path: str) -> bytes:
    """What Ollama says about itself."""
    if path == "/api/tags":
        return json.dumps({"models": [{"name": MODEL, "model": f"{MODEL}:latest", "digest": "sha256:" + "ab" * 32}]}).encode()
    return b'{"version":"0.12.0"}'


_HEAD = {"id": "chatcmpl-7", "created": 1, "model": MODEL, "system_fingerprint": "fp"}


def _ollama(text: str, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": MODEL, "created_at": "2026-11-24T08:00:00.000000Z", "message": message, **more}).encode()


def _sse(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def _handler(web: Any, dialect: str, pieces: int, *, is_async: bool) -> Any:
    body, stream = whole(dialect), _stream_kind(web)
    kind = "application/x-ndjson" if dialect == "ollama" else "text/event-stream"

    def handle(request: Any) -> Any:
        if request.method == "GET":
            return web.Response(200, headers={"content-type": "application/json"}, content=server_facts(request.url.path))
        if b'"stream":true' in request.content:
            return web.Response(200, headers={"content-type": kind}, stream=stream(dialect, pieces))
        return web.Response(200, headers={"content-type": "application/json"}, content=body)

    async def ahandle(request: Any) -> Any:
        return handle(request)

    return ahandle if is_async else handle


@functools.cache
def _stream_kind(web: Any) -> Any:
    class Pieces(web.SyncByteStream, web.AsyncByteStream):
        """Made as they are read: a million of them take no memory."""

        def __init__(self, dialect: str, count: int) -> None:
            self._dialect, self._count = dialect, count

        def __iter__(self) -> Iterator[bytes]:
            return itertools.chain(itertools.repeat(piece(self._dialect), self._count), last(self._dialect))

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for data in iter(self):
                yield data

        def close(self) -> None:
            pass

        async def aclose(self) -> None:
            pass

    return Pieces


def close(client: Any) -> None:
    """Its connections, which are none."""
    with contextlib.suppress(AttributeError):
        client.close()
