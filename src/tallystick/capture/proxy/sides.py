"""One side of an exchange: a connection with h11 on it, read when asked, written at once, with back pressure both ways."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import h11

READ_AHEAD_BYTES = 256 * 1024
HEAD_BYTES_MAX = 128 * 1024
IDLE_MAX = 64


class Gone(Exception):
    """The other end of a connection went away."""


class Side(asyncio.Protocol):
    """A connection. ``on_gone`` is called when its other end goes away, also while nobody reads."""

    def __init__(self, role: Any, arrived: Callable[[Side], None] | None = None) -> None:
        self.role, self._arrived = role, arrived
        self.h11 = h11.Connection(our_role=role, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self.method = b""  # of the request that is being answered
        self.on_gone: Callable[[], None] | None = None
        self.is_gone = False
        self.is_idle = False  # kept for the next exchange: nothing may come
        self._data = bytearray()
        self._waiting: asyncio.Future[None] | None = None
        self._paused: asyncio.Future[None] | None = None
        self._is_held = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._arrived is not None:
            self._arrived(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self.is_idle:
            self.transport.abort()
            return
        if len(self._data) > READ_AHEAD_BYTES and not self._is_held:
            self._is_held = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._go()
        return True  # what is on its way to it may still be written; who owns the exchange closes

    def connection_lost(self, _: Exception | None) -> None:
        self._go()
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)

    def pause_writing(self) -> None:
        self._paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None

    def _go(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._wake()
            if self.on_gone is not None:
                self.on_gone()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # -- reading and writing

    def event_now(self) -> Any:
        """The next event, if it is here already; else None."""
        event = self.h11.next_event()
        if event is h11.NEED_DATA and self._data:
            self._take_in()
            event = self.h11.next_event()
        return None if event is h11.NEED_DATA else event

    def _take_in(self) -> None:
        self.h11.receive_data(bytes(self._data))
        self._data.clear()
        if self._is_held:
            self._is_held = False
            self.transport.resume_reading()

    async def event(self) -> Any:
        """The next event of the message that comes in; ``Gone`` in the middle of one, ``h11.RemoteProtocolError`` for nonsense."""
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            if not self._data:
                if self.is_gone:
                    if self.h11.their_state is h11.IDLE:
                        return h11.ConnectionClosed()
                    self.h11.receive_data(b"")
                    try:
                        event = self.h11.next_event()  # a body that ends with the connection
                    except h11.RemoteProtocolError:
                        raise Gone from None
                    if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                        raise Gone
                    return event
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
                continue
            self._take_in()

    async def send(self, *events: Any) -> None:
        """Write events in one go, and wait while the other end does not keep up."""
        if self.transport.is_closing():
            raise Gone
        data = b"".join(self.h11.send(event) or b"" for event in events)
        if data:
            self.transport.write(data)
        if self._paused is not None:
            await self._paused
            if self.is_gone:
                raise Gone

    def abort(self) -> None:
        """Break the connection off, so that the other end sees that something is missing."""
        self.transport.abort()

    def close(self) -> None:
        """End the connection once what is on its way was written."""
        self.transport.close()


class Address(NamedTuple):
    """Where the model server is. ``is_here``: on this machine, by a name or number that means nothing else."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """``http://127.0.0.1:11434`` or ``https://…``; ``ValueError`` for anything else, and for user info in it."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        more = parts.username or parts.password or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or more:
            raise ValueError(f"{parts.scheme}://{parts.hostname or ''} is no address of a model server such as http://127.0.0.1:11434")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/"))

    @property
    def is_here(self) -> bool:
        """Whether it is the loopback."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def authority(self) -> str:
        """Host and port for a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"{self.scheme}://{self.authority}{self.path}"


class Upstream:
    """Connections to the model server, kept while they are idle."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Side] = []
        self._tls = ssl.create_default_context() if address.scheme == "https" else None

    async def connect(self, *, fresh: bool = False) -> tuple[Side, bool]:
        """A connection, and whether it was used before. ``OSError``."""
        while self._idle and not fresh:
            side = self._idle.pop()
            side.is_idle = False
            if not side.is_gone and not side.transport.is_closing() and not side._data:
                return side, True
            side.close()
        loop = asyncio.get_running_loop()
        _, side = await loop.create_connection(lambda: Side(h11.CLIENT), self.address.host, self.address.port, ssl=self._tls)
        return side, False

    def give_back(self, side: Side) -> None:
        """Keep a connection whose message is over, if it can be used again."""
        side.on_gone = None
        if side._data or side.h11.trailing_data[0]:  # more than its answer: it would be taken for the next one
            side.abort()
            return
        try:
            side.h11.start_next_cycle()
        except h11.ProtocolError:
            side.close()
            return
        if side.is_gone or len(self._idle) >= IDLE_MAX:
            side.close()
        else:
            side.is_idle = True
            self._idle.append(side)

    def close(self) -> None:
        """Close what is idle."""
        for side in self._idle:
            side.close()
        self._idle.clear()
