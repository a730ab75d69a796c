"""A model server that answers at once; ``python -m bench.capture_server`` prints its port and serves until it is ended.

Whole answers of both dialects; a stream for Ollama, as many pieces as the model's name says after ``long:``.
"""

from __future__ import annotations

import asyncio
import sys

from .capture_local import last, piece, server_facts, whole

_AT_ONCE = 64  # pieces of a stream in one write


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


_WHOLE = {b"/api/": _response(whole("ollama")), b"/v1/c": _response(whole("openai"))}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection: requests with a content-length, one after the other."""

    def __init__(self) -> None:
        self._data = b""
        self._streaming: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            body, self._data = self._data[end + 4 : end + 4 + length], self._data[end + 4 + length :]
            self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        at = body.find(b'"long:')
        if path in (b"/api/tags", b"/api/version"):
            self.transport.write(_response(server_facts(path.decode())))
        elif at >= 0:
            self._streaming = asyncio.get_running_loop().create_task(self._stream(int(body[at + 6 :].split(b'"', 1)[0])))
        else:
            self.transport.write(_WHOLE[path[:5]])

    async def _stream(self, count: int) -> None:
        self.transport.write(_HEAD)
        some = _chunk(piece("ollama"))
        for left in range(count, 0, -_AT_ONCE):
            await self._writable.wait()
            self.transport.write(some * min(left, _AT_ONCE))
            await asyncio.sleep(0)
        self.transport.write(b"".join(map(_chunk, last("ollama"))) + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main() -> None:
    """Serve."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started it goes away
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
