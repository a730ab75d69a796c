"""The public conformance suite: what any way of recording calls to models has to get right.

``CASES`` are calls against the scripted server (``server.py``: the model's name is the script); each says how the answer is consumed and
what has to be on record. ``WAYS`` are the ways in. ``run`` performs a case with a client and says what its caller got, values and
exceptions, so that an audited client can be compared with a bare one.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any, NamedTuple

from .server import ANSWER, IMAGE, THOUGHT

PROMPT = "Was kostet die Bahn nach Köln? 🚆"
SYSTEM = "Answer briefly."
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
PROMPT_CHARS = len(SYSTEM) + len(PROMPT)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}  # fmt: skip


class Case(NamedTuple):
    """``consume``: all · close (after the first part) · drop (after the first) · never · cancel (async). ``ollama`` and ``openai`` are
    what only that dialect says; None there: the dialect has no such case."""

    name: str
    expect: dict[str, Any]
    model: str = "ok"
    op: str = "chat"
    stream: bool = False
    consume: str = "all"
    more: dict[str, Any] = {}
    outcome: str = "success"
    ollama: dict[str, Any] | None = {}
    openai: dict[str, Any] | None = {}
    timeout: float | None = None


_FULL = {"response_chars": len(ANSWER), "input_tokens": 7, "output_tokens": 5, "finish_reason": "stop"}
_UNCOUNTED = {"input_tokens": None, "output_tokens": None}
_S = {"stream": True}


def _case(name: str, end: str, **more: Any) -> Case:
    expect = {"end": end, **more.pop("expect", {})}
    outcome = more.pop("outcome", "success" if end == "ok" else "partial")
    return Case(name, expect, outcome=outcome, **more)


CASES = [
    _case("whole", "ok", expect=_FULL | {"chunks": 1}),
    _case("stream to the end", "ok", stream=True, expect={"response_chars": len(ANSWER), "finish_reason": "stop", "chunks": 5},
          ollama={"input_tokens": 7, "output_tokens": 5}, openai=_UNCOUNTED),
    _case("usage chunk when asked for", "ok", stream=True, more={"stream_options": {"include_usage": True}}, ollama=None,
          openai=_FULL | {"chunks": 6}),
    _case("stream closed early", "closed", model="slow", stream=True, consume="close", expect={"response_chars": 3, **_UNCOUNTED}),
    _case("stream dropped", "abandoned", model="slow", stream=True, consume="drop", expect={"response_chars": 3, **_UNCOUNTED}),
    _case("stream never iterated", "not_sent", stream=True, consume="never", outcome="failure", openai={"end": "abandoned"},
          expect={"response_chars": 0}),
    _case("cancelled", "cancelled", model="slow", stream=True, consume="cancel", expect={"response_chars": 6}),
    _case("tool calls", "ok", model="tools", expect={"response_chars": 0},
          ollama={"tool_calls": [{"name": "weather", "arguments_chars": 24}]},
          openai={"tool_calls": [{"name": "weather", "id": "call_1", "arguments_chars": 27}]}),
    _case("tool calls in a stream", "ok", model="tools", stream=True, expect={"response_chars": 0},
          ollama={"tool_calls": [{"name": "weather", "arguments_chars": 24}], "chunks": 2},
          openai={"tool_calls": [{"name": "weather", "id": "call_1", "arguments_chars": 27}], "chunks": 4}),
    _case("thinking", "ok", model="thinking", expect={"thinking_chars": len(THOUGHT), **_FULL}),
    _case("thinking in a stream", "ok", model="thinking", stream=True,
          expect={"thinking_chars": len(THOUGHT), "response_chars": len(ANSWER), "chunks": 7}),
    _case("images", "ok", more={"images": True}, expect={"images": [{"bytes": 70, "type": "image/png"}], "prompt_chars": len(PROMPT)}),
    _case("structured output", "ok", model="structured", more={"schema": True}, expect={"format": "json_schema", "format_valid": True}),
    _case("structured output that is not", "ok", model="unstructured", more={"schema": True}, expect={"format_valid": False}),
    _case("embeddings", "ok", op="embed", expect={"operation": "embeddings", "inputs": 2, "vectors": 2, "dimensions": 3, "input_tokens": 7,
          "prompt_chars": 7, "response_chars": None}),
    _case("completion", "ok", op="generate", expect={"operation": "text_completion", **_FULL, "prompt_chars": len(PROMPT)}),
    _case("completion in a stream", "ok", op="generate", stream=True, expect={"response_chars": len(ANSWER), "chunks": 5}),
    _case("error in the middle of a stream", "mid_stream_error", model="mid_error", stream=True, expect={"response_chars": 6, "chunks": 2}),
    _case("cut stream", "cut", model="cut", stream=True, expect={"response_chars": 6, "chunks": 2}),
    _case("cut answer", "cut", model="cut", outcome="failure", openai={"attempts": 1}),
    _case("stream without its end", "truncated", model="no_done", stream=True, expect={"response_chars": len(ANSWER), "chunks": 4}),
    _case("malformed JSON in a stream", "truncated", model="malformed", stream=True, expect={"response_chars": 6}),
    _case("malformed JSON", "truncated", model="malformed", outcome="failure", expect={"response_chars": 0}),
    _case("model not found", "http_error", model="404", outcome="failure", expect={"status": 404, "response_chars": 0}),
    _case("model not found, stream", "http_error", model="404", stream=True, outcome="failure", expect={"status": 404}),
    _case("server error", "http_error", model="500", outcome="failure", expect={"status": 500}),
    _case("server busy", "http_error", model="503", outcome="failure", expect={"status": 503}),
    _case("timeout", "timeout", model="silent", outcome="failure", timeout=0.2),
    _case("retry", "ok", model="retry", expect=_FULL, ollama=None, openai={"attempts": 2}),
    _case("gzip", "ok", model="gzip", expect=_FULL),
    _case("gzip in a stream", "ok", model="gzip", stream=True, expect={"response_chars": len(ANSWER), "chunks": 5}),
    _case("a byte at a time", "ok", model="split", expect=_FULL),
    _case("a byte at a time in a stream", "ok", model="split", stream=True, expect={"response_chars": len(ANSWER), "chunks": 5}),
    _case("CRLF", "ok", model="crlf", stream=True, expect={"response_chars": len(ANSWER), "chunks": 5}),
    _case("all in one segment", "ok", model="two", stream=True, expect={"response_chars": len(ANSWER), "chunks": 5}),
    _case("two choices", "ok", more={"n": 2}, ollama=None, expect={"response_chars": 2 * len(ANSWER), "choices": 2}),
    _case("two choices in a stream", "ok", stream=True, more={"n": 2}, ollama=None,
          expect={"response_chars": 2 * len(ANSWER), "choices": 2, "chunks": 10}),
    _case("sent off the machine", "ok", model="remote", openai=None,
          expect={"remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b"}),
    _case("tokens not counted", "ok", model="uncounted", openai=None, expect=_UNCOUNTED),
]  # fmt: skip


class Got(NamedTuple):
    """What a caller got."""

    values: list[Any]
    error: tuple[str, str] | None


class Way(NamedTuple):
    name: str
    dialect: str
    is_async: bool
    capture: str


WAYS = [Way(f"{capture} {dialect}{' async' if is_async else ''}", dialect, is_async, capture)
        for capture in ("wrap", "instrument", "proxy") for dialect in ("ollama", "openai") for is_async in (False, True)]  # fmt: skip


def new_client(way: Way, url: str, timeout: float | None = None) -> Any:
    """A bare client of the way's library, with as many retries as the case needs."""
    if way.dialect == "ollama":
        import ollama

        kind = ollama.AsyncClient if way.is_async else ollama.Client
        return kind(url, timeout=timeout)
    import openai

    cls = openai.AsyncOpenAI if way.is_async else openai.OpenAI
    return cls(base_url=f"{url}/v1", api_key="sk-test-0123456789abcdef0123", timeout=timeout or 60, max_retries=0)


def _request(way: Way, client: Any, case: Case) -> Any:
    """The call itself: a value, or a coroutine of it."""
    more = dict(case.more)
    images, schema = more.pop("images", False), more.pop("schema", False)
    if way.dialect == "ollama":
        if case.op == "embed":
            return client.embed(case.model, ["one", "zwei"])
        if case.op == "generate":
            return client.generate(case.model, PROMPT, stream=case.stream)
        messages = [{"role": "user", "content": PROMPT, "images": [IMAGE]}] if images else MESSAGES
        more |= {"format": SCHEMA} if schema else {}
        return client.chat(case.model, messages, stream=case.stream, tools=[TOOL] if case.model == "tools" else None, **more)
    if case.model == "retry":
        client = client.with_options(max_retries=2)
    if case.op == "embed":
        return client.embeddings.create(model=case.model, input=["one", "zwei"], encoding_format="float")
    if case.op == "generate":
        return client.completions.create(model=case.model, prompt=PROMPT, stream=case.stream)
    messages = MESSAGES
    if images:
        url = f"data:image/png;base64,{IMAGE}"
        messages = [{"role": "user", "content": [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": url}}]}]
    if schema:
        more["response_format"] = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    if case.model == "tools":
        more["tools"] = [TOOL]
    return client.chat.completions.create(model=case.model, messages=messages, stream=case.stream, **more)


def _plain(value: Any) -> Any:
    return value.model_dump(exclude={"created_at"}) if hasattr(value, "model_dump") else value


def run(way: Way, client: Any, case: Case) -> Got:
    """What the caller of ``case`` gets from ``client``."""
    if way.is_async:
        return asyncio.run(_arun(way, client, case))
    values: list[Any] = []
    try:
        answer = _request(way, client, case)
        if not case.stream:
            values.append(_plain(answer))
        elif case.consume == "never":
            del answer
        else:
            for part in answer:
                values.append(_plain(part))
                if case.consume == "close":
                    answer.close()
                    break
                if case.consume == "drop":
                    break
            answer = part = None
    except Exception as e:
        error = type(e).__name__, str(e)
        e.__traceback__ = None
        return Got(values, error)
    finally:
        if case.consume in ("drop", "never"):
            gc.collect()
        (client._client if way.dialect == "ollama" else client).close()
    return Got(values, None)


async def _arun(way: Way, client: Any, case: Case) -> Got:
    values: list[Any] = []
    error = None
    try:
        if case.consume == "cancel":
            await _cancelled(way, client, case, values)
        else:
            answer = await _request(way, client, case)
            if not case.stream:
                values.append(_plain(answer))
            elif case.consume != "never":
                async for part in answer:
                    values.append(_plain(part))
                    if case.consume == "close":
                        await (answer.aclose if hasattr(answer, "aclose") else answer.close)()
                        break
                    if case.consume == "drop":
                        break
            answer = part = None
    except (Exception, asyncio.CancelledError) as e:
        error = type(e).__name__, str(e)
        e.__traceback__ = None
    if case.consume in ("drop", "never"):
        gc.collect()
    await asyncio.sleep(0)
    await (client._client.aclose() if way.dialect == "ollama" else client.close())
    return Got(values, error)


async def _cancelled(way: Way, client: Any, case: Case, values: list[Any]) -> None:
    """Cancelled while it waits for a part that does not come."""
    waits = asyncio.Event()

    async def consume() -> None:
        async for part in await _request(way, client, case):
            values.append(_plain(part))
            if len(values) == 2:
                waits.set()

    task = asyncio.ensure_future(consume())
    await waits.wait()
    task.cancel()
    await task


class ProxyThread:
    """The proxy, in a thread of this process: ``with ProxyThread(log, upstream) as url``."""

    def __init__(self, log: Any, upstream: str, tokens: dict[str, str] | None = None) -> None:
        self.log, self.upstream, self.tokens = log, upstream, tokens
        self.url = ""

    def __enter__(self) -> ProxyThread:
        ready = threading.Event()

        def serve() -> None:
            from tallystick.capture.proxy.own import Own
            from tallystick.capture.proxy.serve import Proxy, run
            from tallystick.capture.proxy.sides import Address

            async def main() -> None:
                self.loop, self.until = asyncio.get_running_loop(), asyncio.Event()
                proxy = Proxy(self.log.recorder, Address.parse(self.upstream), Own(self.log, self.tokens))

                def say(host: str, port: int) -> None:
                    self.url = f"http://{host}:{port}"
                    ready.set()

                await run(proxy, "127.0.0.1", 0, say, self.until)

            asyncio.run(main())

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        assert ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.until.set)
        self.thread.join()
