"""A witness over HTTP (C2SP tlog-witness v1.0.0; RFC 9112).

::

    POST /add-checkpoint                          cosignature lines, or 400, 403, 404, 409, 422, 503
    GET  /<hex SHA-256 of the origin>/checkpoint  the newest cosigned checkpoint, with the log's signatures and ours
    GET  /healthz                                 ok, or 503 when nothing can be kept any more

One thread reads requests, parses them and verifies signatures; another decides and keeps them: whatever became ready while it waited
for the disk is its next batch, so that many requests share one sync and a lone one waits for nothing.

The reader of requests knows HTTP/1.1 and 1.0 with ``Content-Length``, and refuses every spelling that two readers could understand
differently (bare LF, folded or doubled headers, ``Transfer-Encoding``: 411). Limits: 16 KiB of head, 256 KiB of body,
``CONNECTIONS_MAX`` connections, 10 seconds for a request to arrive, 60 seconds between two. No TLS: a reverse proxy does that.
Nothing of who asked is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import NamedTuple

from ..core.errors import StoreError
from ..core.tlog_witness import REQUEST_BYTES_MAX
from .folder import Logs, read_logs
from .state import Answer, Authentic, Witness

HEAD_BYTES_MAX = 16_384
CONNECTIONS_MAX = 512
REQUEST_S, IDLE_S = 10.0, 60.0
_PENDING_MAX = 16  # requests of one connection that may wait for their answers

_START = re.compile(rb"(GET|HEAD|POST|[A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"[0-9]{1,9}")
_MONITORED = re.compile(rb"/([0-9a-f]{64})/checkpoint")


class Head(NamedTuple):
    """The head of a request: method, target, body's length, and whether the connection stays open after the answer."""

    method: bytes
    target: bytes
    length: int
    keep: bool
    wants_continue: bool


class BadRequest(Exception):
    """Bytes that are no request that is understood here; ``status`` is the answer, after which the connection is closed."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def parse_head(head: bytes) -> Head:
    """Request line and fields, without the empty line (RFC 9112 §3, §5, §6.3). ``BadRequest`` for what is not plainly one."""
    first, *lines = head.split(b"\r\n")
    start = _START.fullmatch(first)
    if start is None:
        raise BadRequest(400, "not a request line")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadRequest(400, "not a header field")
        name = field[1].lower()
        if name in fields and name in (b"content-length", b"host", b"transfer-encoding", b"connection"):
            raise BadRequest(400, "a header field is there twice")
        fields[name] = field[2].strip(b" \t")
    modern = start[3] == b"1"
    if modern and b"host" not in fields:
        raise BadRequest(400, "no Host")
    if b"transfer-encoding" in fields:
        raise BadRequest(411, "a request here has a Content-Length")
    length = fields.get(b"content-length", b"0")
    if not _LENGTH.fullmatch(length):
        raise BadRequest(400, "not a Content-Length")
    if int(length) > REQUEST_BYTES_MAX:
        raise BadRequest(413, "the request is larger than 256 KiB")
    options = {option.strip().lower() for option in fields.get(b"connection", b"").split(b",")}
    keep = b"close" not in options and (modern or b"keep-alive" in options)
    return Head(start[1], start[2], int(length), keep, fields.get(b"expect", b"").lower() == b"100-continue")


def format_answer(answer: Answer, keep: bool, *, body: bool = True) -> bytes:
    """An answer as it goes out; without its body for HEAD."""
    more = b"" if not answer.retry_s else b"Retry-After: %d\r\n" % answer.retry_s
    end = b"" if keep else b"Connection: close\r\n"
    kind, phrase = answer.content_type.encode(), HTTPStatus(answer.status).phrase.encode()
    head = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\n%s%s\r\n" % (
        answer.status, phrase, kind, len(answer.body), more, end,
    )  # fmt: skip
    return head + answer.body if body else head


class Service:
    """What all connections share: the witness, the logs that it knows, the batch that is being collected."""

    def __init__(self, witness: Witness, say: Callable[[str], None] = lambda _: None) -> None:
        self.witness, self._say = witness, say
        self._path = witness.folder / "logs"
        self._stamp: tuple[int, int, int] | None = None
        self._waiting: list[tuple[Authentic, Callable[[Answer], None]]] = []
        self._keeping = self._closing = False
        self._thread = ThreadPoolExecutor(1, "tallystick-witness")
        self.connections: set[Connection] = set()
        self._logs: Logs = read_logs(witness.folder)

    def read_logs(self) -> bool:
        """Read the file of known logs again where it changed; whether it did. One that cannot be read changes nothing, and is
        said."""
        try:
            found = os.stat(self._path)
            stamp = found.st_mtime_ns, found.st_size, found.st_ino
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            self._logs = read_logs(self._path.parent)
        except (StoreError, OSError) as e:
            self._say(f"the logs known before stay in use: {e}")
            return False
        return True

    def add_checkpoint(self, body: bytes, deliver: Callable[[Answer], None]) -> None:
        """Answer a request, now or when it is kept. Called in the thread of the loop, and so is ``deliver``."""
        if self._closing:
            deliver(Answer(503, b"the witness is being stopped\n", retry_s=5))
            return
        found = self.witness.authenticate(body, self._logs)
        if isinstance(found, Answer) and found.status in (403, 404) and self.read_logs():
            found = self.witness.authenticate(body, self._logs)  # the log, or a key of it, was added just now
        if isinstance(found, Authentic):
            self._waiting.append((found, deliver))
            if not self._keeping:
                # not at once: what else has arrived is read first and shares the sync
                self._keeping = True
                asyncio.get_running_loop().call_soon(self._keep)
        else:
            deliver(found)

    def _keep(self) -> None:
        batch, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._thread, self.witness.settle, [asked for asked, _ in batch])

        def answered(future: asyncio.Future[list[Answer]]) -> None:
            if self._waiting:
                self._keep()  # the disk first: answers are written while it works
            else:
                self._keeping = False
            error = future.exception()
            if error is not None:  # not one that ``settle`` knows: nothing is certain any more
                self.witness.broken = f"{type(error).__name__}: {error}"
            answers = [Answer(503, b"the witness failed; nothing was cosigned\n")] * len(batch) if error else future.result()
            for (_, deliver), answer in zip(batch, answers, strict=True):
                deliver(answer)

        done.add_done_callback(answered)

    def read(self, target: bytes) -> Answer:
        """A GET."""
        if target == b"/healthz":
            broken = self.witness.broken
            return Answer(503, f"{broken}\n".encode()) if broken else Answer(200, b"ok\n")
        asked = _MONITORED.fullmatch(target)
        last = self.witness.by_hash(asked[1].decode()) if asked else None
        return Answer(404, b"not found\n") if last is None else Answer(200, last.note)

    async def tend(self) -> None:
        """Once a second: connections that are too slow are closed, changed logs are read, ``served`` is synced."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.close_if_slow(now)
            self.read_logs()
            await loop.run_in_executor(self._thread, self.witness.make_durable)

    async def close(self) -> None:
        """Take nothing more, and answer what is being kept."""
        self._closing = True
        while self._keeping:
            await asyncio.sleep(0.005)
        self._thread.shutdown()


class Connection(asyncio.Protocol):
    """One client. Its answers come in the order of its requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._head: Head | None = None
        self._since = time.monotonic()  # the first byte of what is being read, or the last answer
        self._answers: list[bytes | None] = []  # None: not there yet
        self._first = 0  # number of the first of them
        self._ended = self._unread = False  # unread: it does not take the answers that it has

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._service.connections) >= CONNECTIONS_MAX:
            transport.write(format_answer(Answer(503, b"too many connections\n", retry_s=1), keep=False))
            transport.close()
            self._ended = True
            return
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Gone; what it asked is kept nevertheless."""
        self._service.connections.discard(self)
        self._transport, self._ended = None, True

    def pause_writing(self) -> None:
        """Who does not read answers gets no more of them: they would be kept here."""
        self._unread, self._since = True, time.monotonic()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It has read."""
        self._unread = False
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Some bytes of requests."""
        if self._ended:
            return
        if not self._data:
            self._since = time.monotonic()
        self._data += data
        try:
            while not self._ended and not self._unread and len(self._answers) < _PENDING_MAX and self._read_one():
                pass
        except BadRequest as e:
            self._answers.append(format_answer(Answer(e.status, f"{e}\n".encode()), keep=False))
            self._ended = True
            self._flush()
        if self._transport is not None and (len(self._answers) >= _PENDING_MAX or self._ended):
            self._transport.pause_reading()

    def _read_one(self) -> bool:
        """Take one request from what has arrived; False if it is not whole."""
        if self._head is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0 or end > HEAD_BYTES_MAX:
                if len(self._data) > HEAD_BYTES_MAX:
                    raise BadRequest(431, "the head of the request is too large")
                return False
            self._head = parse_head(bytes(self._data[:end]))
            del self._data[: end + 4]
            if self._head.wants_continue and len(self._data) < self._head.length and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = self._head
        if len(self._data) < head.length:
            return False
        body = bytes(self._data[: head.length])
        del self._data[: head.length]
        self._head, self._since = None, time.monotonic()
        self._ended = not head.keep
        self._answer(head, body)
        return True

    def _answer(self, head: Head, body: bytes) -> None:
        number = self._first + len(self._answers)
        self._answers.append(None)

        def deliver(answer: Answer) -> None:
            self._answers[number - self._first] = format_answer(answer, head.keep, body=head.method != b"HEAD")
            self._flush()

        if head.target == b"/add-checkpoint":
            if head.method == b"POST":
                self._service.add_checkpoint(body, deliver)
            else:
                deliver(Answer(405, b"add-checkpoint is asked with POST\n"))
        elif head.method in (b"GET", b"HEAD"):
            deliver(self._service.read(head.target))
        else:
            deliver(Answer(404, b"not found\n"))

    def _flush(self) -> None:
        """Write the answers that are there, in order."""
        count = next((at for at, answer in enumerate(self._answers) if answer is None), len(self._answers))
        ready = self._answers[:count]
        del self._answers[:count]
        self._first += count
        if self._transport is None:
            return
        if ready:
            self._since = time.monotonic()
            self._transport.write(b"".join(answer for answer in ready if answer is not None))
        if self._ended and not self._answers:
            self._transport.close()
        elif count:
            self._go_on()

    def _go_on(self) -> None:
        if self._transport is None or self._ended or self._unread:
            return
        self._transport.resume_reading()
        if self._data:
            asyncio.get_running_loop().call_soon(self.data_received, b"")

    def close(self) -> None:
        """Close it once what was answered is written."""
        if self._transport is not None:
            self._transport.close()

    def close_if_slow(self, now: float) -> None:
        """Close what has begun a request and does not finish it, does not read its answers, or is idle for too long."""
        if self._transport is not None and self._unread and now - self._since > IDLE_S:
            self._transport.abort()  # to close it would wait until it has read
        if self._answers or self._transport is None:
            return
        if now - self._since > (REQUEST_S if self._data or self._head is not None else IDLE_S):
            self._transport.close()


async def serve(
    witness: Witness, host: str, port: int, *, ready: Callable[[str, int], None], until: asyncio.Event,
    say: Callable[[str], None] = lambda _: None,
) -> None:  # fmt: skip
    """Serve until ``until`` is set; port 0 takes a free one, which ``ready`` is told. What was asked by then is answered."""
    service = Service(witness, say)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service), host, port)
    tending = asyncio.create_task(service.tend())
    try:
        found = server.sockets[0].getsockname()
        ready(found[0], found[1])
        await until.wait()
    finally:
        server.close()
        tending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tending
        await service.close()
        for connection in list(service.connections):
            connection.close()
        await server.wait_closed()
