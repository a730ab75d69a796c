"""A scripted model server on a real socket. The name of the model is the script; the path says which dialect it speaks.

It speaks HTTP by hand, because what it has to send no library would: half answers, errors in the middle, a byte at a time.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from typing import Any, NamedTuple

TOKENS = ["Grü", "ße ", "from 🎉 ", "the model"]
ANSWER = "".join(TOKENS)
THOUGHT = "let me see"
ARGUMENTS = {"city": "Köln", "days": 2}
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Seen(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ModelServer:
    """``with ModelServer() as server: server.url``. ``seen`` are the requests, in order."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.aborted = threading.Event()  # a client went away while an answer was on its way
        self.digest = "sha256:" + "ab" * 32
        self._attempts: dict[str, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def __enter__(self) -> ModelServer:
        self._accept_thread = threading.Thread(target=self._accept, daemon=True)
        self._accept_thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accept_thread.join()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)

    @property
    def calls(self) -> list[Seen]:
        """Requests that are calls to a model."""
        return [s for s in self.seen if s.method == "POST"]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        try:
            while True:
                request = _read_request(file)
                if request is None:
                    return
                self.seen.append(request)
                if not _Reply(self, connection, request).send():
                    return
        except OSError:
            self.aborted.set()
        finally:
            file.close()
            connection.close()
            self._connections.discard(connection)


def _read_request(file: Any) -> Seen | None:
    line = file.readline()
    if not line.strip():
        return None
    method, path, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := file.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(file.readline().split(b";")[0], 16):
            body += file.read(size)
            file.readline()
        file.readline()
    elif "content-length" in headers:
        body = file.read(int(headers["content-length"]))
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return Seen(method, path, headers, body)


class _Reply:
    def __init__(self, server: ModelServer, connection: socket.socket, request: Seen) -> None:
        self.server, self.connection, self.request = server, connection, request

    def send(self) -> bool:
        """True if the connection goes on."""
        path = self.request.path.split("?")[0]
        if self.request.method in ("GET", "HEAD"):
            return self._get(path)
        if self.request.method == "OPTIONS":
            return self._whole(204, b"", extra={"access-control-allow-origin": "*"})
        try:
            body = self.request.json if self.request.body else {}
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return self._whole(400, b'{"error":"invalid character"}')
        script = body.get("model") or body.get("source") or body.get("name") or ""
        stream = body.get("stream", path.startswith("/api/") and path not in ("/api/embed", "/api/embeddings", "/api/delete", "/api/copy"))
        openai = path.startswith("/v1/")
        if script.isdigit():
            message = {404: f"model '{script}' not found", 503: "server busy, please try again.  maximum pending requests exceeded"}.get(int(script), "boom")
            error: Any = {"message": message, "type": "api_error"} if openai else message
            return self._whole(int(script), json.dumps({"error": error}).encode())
        if script == "retry":
            attempts = self.server._attempts[script] = self.server._attempts.get(script, 0) + 1
            if attempts == 1:
                return self._whole(503, b'{"error":{"message":"busy","type":"api_error"}}', extra={"retry-after-ms": "1"})
        if script == "silent":
            self._until_gone()
            return False
        if script == "hangup":
            return False
        if path in ("/api/delete", "/api/copy"):
            return self._whole(200, b"", kind="text/plain")
        if path in ("/api/pull", "/api/create", "/api/push"):
            parts: list[Any] = [{"status": "pulling manifest"}, {"status": "success"}]
            return self._stream(script, parts, openai=False) if stream else self._whole(200, json.dumps(parts[-1]).encode())
        if "embed" in path:
            return self._whole(200, json.dumps(_embeddings(path, body, script)).encode())
        parts = _openai_parts(path, body, script) if openai else _ollama_parts(path, body, script)
        if stream:
            return self._stream(script, parts, openai=openai)
        if script == "malformed":
            return self._whole(200, b'{"model": "malformed", "mess')
        whole = _openai_whole(path, body, script) if openai else _ollama_whole(path, body, script)
        data = json.dumps(whole, ensure_ascii=False).encode()
        if script == "cut":
            self.connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n" + data)
            return False
        if script == "gzip":
            return self._whole(200, gzip.compress(data), extra={"content-encoding": "gzip"})
        return self._whole(200, data, byte_by_byte=script == "split")

    def _get(self, path: str) -> bool:
        if path == "/api/tags":
            names = ["ok", "tools"]
            return self._whole(200, json.dumps({"models": [{"name": f"{n}:latest", "model": f"{n}:latest", "digest": self.server.digest} for n in names]}).encode())
        if path == "/api/version":
            return self._whole(200, b'{"version":"0.99.0"}')
        if path == "/":
            return self._whole(200, b"Ollama is running", kind="text/plain")
        if path == "/v1/models":
            return self._whole(200, b'{"object":"list","data":[]}')
        return self._whole(404, b"404 page not found", kind="text/plain")

    def _whole(self, status: int, data: bytes, *, kind: str = "application/json", extra: dict[str, str] | None = None,
               byte_by_byte: bool = False) -> bool:
        headers = {"content-type": kind, "content-length": str(len(data)), **(extra or {})}
        head = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n"
        if self.request.method == "HEAD":
            data = b""
        if byte_by_byte:
            self.connection.sendall(head.encode())
            for i in range(len(data)):
                self.connection.sendall(data[i : i + 1])
        else:
            self.connection.sendall(head.encode() + data)
        return True

    def _stream(self, script: str, parts: list[Any], *, openai: bool) -> bool:
        kind = "text/event-stream" if openai else "application/x-ndjson"
        packed = gzip.GzipFile(fileobj=(sink := _Sink()), mode="wb") if script == "gzip" else None
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n"
        self.connection.sendall((head + ("content-encoding: gzip\r\n" if packed else "") + "\r\n").encode())
        pieces = [_sse(part, script) if openai else _line(part, script) for part in parts]
        if script == "two":
            pieces = ["".join(pieces)]
        for number, piece in enumerate(pieces):
            data = piece.encode() if isinstance(piece, str) else piece
            if packed:
                packed.write(data)
                packed.flush()
                data = sink.take()
            if script == "split":
                for i in range(len(data)):
                    self._chunk(data[i : i + 1])
            else:
                self._chunk(data)
            if script == "slow" and number == 1:
                self._until_gone()
                return False
            if script == "cut" and number == 1:
                self._chunk(b'{"model":"cut","mess') if not openai else self._chunk(b'data: {"id":"chatc')
                return False
        if packed:
            packed.close()
            self._chunk(sink.take())
        self.connection.sendall(b"0\r\n\r\n")
        return True

    def _chunk(self, data: bytes) -> None:
        if data:
            self.connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _until_gone(self) -> None:
        """Until the client goes away. What it would send now nobody reads."""
        self.connection.settimeout(60)
        try:
            while self.connection.recv(4096):
                pass
        except OSError:
            pass
        if not self.server._closing:
            self.server.aborted.set()


class _Sink:
    def __init__(self) -> None:
        self._data = b""

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data, self._data = self._data, b""
        return data


def _line(part: Any, script: str) -> str | bytes:
    end = "\r\n" if script == "crlf" else "\n"
    return part if isinstance(part, bytes) else json.dumps(part, ensure_ascii=False) + end


def _sse(part: Any, script: str) -> str | bytes:
    if isinstance(part, bytes | str):
        return part
    end = "\r\n" if script == "crlf" else "\n"
    text = json.dumps(part, ensure_ascii=False)
    return f": keep-alive{end}data: {text}{end}{end}"


# -- Ollama ----------------------------------------------------------------------------------------------------------------


def _texts(body: Any, script: str) -> list[str]:
    if script == "structured":
        return ['{"city": ', '"Köln", "days": 2}']
    if script == "unstructured":
        return ["I would rather ", "not."]
    if script.startswith("long:"):
        return ["x "] * int(script[5:])
    return TOKENS


def _ollama_part(path: str, script: str, text: str, **more: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"model": script, "created_at": "2026-11-24T08:00:00Z", "done": False}
    if path == "/api/chat":
        return part | {"message": {"role": "assistant", "content": text, **more}}
    return part | {"response": text, **more}


def _ollama_last(path: str, script: str, text: str = "", **more: Any) -> dict[str, Any]:
    last = _ollama_part(path, script, text, **more) | {
        "done": True, "done_reason": "stop", "total_duration": 9_000_000, "load_duration": 1_000_000, "prompt_eval_count": 7,
        "prompt_eval_duration": 2_000_000, "eval_count": 5, "eval_duration": 3_000_000}  # fmt: skip
    if script == "remote":
        last |= {"remote_model": "gpt-oss:120b", "remote_host": "https://ollama.com:443"}
    if script == "uncounted":
        del last["prompt_eval_count"], last["eval_count"]
    return last


def _ollama_parts(path: str, body: Any, script: str) -> list[Any]:
    parts: list[Any] = []
    if script == "thinking":
        parts += [_ollama_part(path, script, "", thinking=t) for t in ("let me ", "see")]
    if script == "tools":
        parts.append(_ollama_part(path, script, "", tool_calls=[{"function": {"name": "weather", "arguments": ARGUMENTS}}]))
    else:
        parts += [_ollama_part(path, script, text) for text in _texts(body, script)]
    if script == "mid_error":
        return [*parts[:2], {"error": "an error was encountered while running the model"}]
    if script == "malformed":
        return [*parts[:2], b'{"model": "malformed", "mess\n']
    if script == "no_done":
        return parts
    return [*parts, _ollama_last(path, script)]


def _ollama_whole(path: str, body: Any, script: str) -> Any:
    if script == "tools":
        return _ollama_last(path, script, tool_calls=[{"function": {"name": "weather", "arguments": ARGUMENTS}}])
    more = {"thinking": THOUGHT} if script == "thinking" else {}
    if script == "no_done":
        return _ollama_part(path, script, ANSWER)
    return _ollama_last(path, script, "".join(_texts(body, script)), **more)


def _embeddings(path: str, body: Any, script: str) -> Any:
    given = body.get("input", body.get("prompt"))
    count = len(given) if isinstance(given, list) else 1
    vector = [0.125, -0.5, 0.25]
    if path == "/v1/embeddings":
        return {"object": "list", "model": script, "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(count)],
                "usage": {"prompt_tokens": 7, "total_tokens": 7}}  # fmt: skip
    if path == "/api/embeddings":
        return {"embedding": vector}
    return {"model": script, "embeddings": [vector] * count, "total_duration": 9_000_000, "load_duration": 1_000_000, "prompt_eval_count": 7}


# -- OpenAI ----------------------------------------------------------------------------------------------------------------

_HEAD = {"id": "chatcmpl-7", "created": 1, "system_fingerprint": "fp_ollama"}
_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _openai_parts(path: str, body: Any, script: str) -> list[Any]:
    chat = path == "/v1/chat/completions"
    head = {**_HEAD, "object": "chat.completion.chunk" if chat else "text_completion", "model": script}

    def part(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason}
        choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
        return {**head, "choices": [choice]}

    parts: list[Any] = []
    if script == "thinking":
        parts += [part(0, {"reasoning_content": t}) for t in ("let me ", "see")]
    if script == "tools":
        text = json.dumps(ARGUMENTS, ensure_ascii=False)
        parts.append(part(0, {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]}))
        parts += [part(0, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in (text[:9], text[9:])]
    else:
        for text in _texts(body, script):
            parts += [part(index, {"content": text}) for index in range(body.get("n") or 1)]
    if script == "mid_error":
        return [*parts[:2], {"error": {"message": "an error was encountered while running the model", "type": "api_error"}}]
    if script == "malformed":
        return [*parts[:2], 'data: {"id": "chatc\n\n']
    if script == "no_done":
        return parts
    parts += [part(index, {}, "tool_calls" if script == "tools" else "stop") for index in range(body.get("n") or 1)]
    if (body.get("stream_options") or {}).get("include_usage"):
        parts.append({**head, "choices": [], "usage": _USAGE})
    return [*parts, "data: [DONE]\n\n"]


def _openai_whole(path: str, body: Any, script: str) -> Any:
    chat = path == "/v1/chat/completions"
    choices = []
    for index in range(body.get("n") or 1):
        message: dict[str, Any] = {"role": "assistant", "content": "".join(_texts(body, script))}
        if script == "thinking":
            message["reasoning_content"] = THOUGHT
        if script == "tools":
            message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {
                "name": "weather", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}}]}  # fmt: skip
        reason = "tool_calls" if script == "tools" else "stop"
        choices.append({"index": index, "finish_reason": reason, **({"message": message} if chat else {"text": message["content"]})})
    return {**_HEAD, "object": "chat.completion" if chat else "text_completion", "model": script, "choices": choices, "usage": _USAGE}
