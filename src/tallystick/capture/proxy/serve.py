"""The listener: one task for each client connection, one exchange after the other on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import h11

from ...core.errors import AuditError
from ..recorder import Recorder
from .exchange import Exchange, refuse
from .own import Own
from .sides import Address, Gone, Side, Upstream

DRAIN_S = 5.0
_logger = logging.getLogger("tallystick")


class Proxy:
    """``recorder`` records, ``own`` answers ``/audit/…``. ``start`` returns the address that it listens on; ``stop`` lets
    exchanges that are on their way end for five seconds, and ends the others as cancelled."""

    def __init__(self, recorder: Recorder, upstream: Address, own: Own) -> None:
        self._recorder, self._own = recorder, own
        self._upstream = Upstream(upstream)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[Side] = set()
        self._is_stopping = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; port 0 takes a free one. ``OSError``."""
        loop = asyncio.get_running_loop()
        self._recorder.expect_late()
        with contextlib.suppress(AuditError):  # the next call says so
            await asyncio.to_thread(self._recorder.take_over)
        self._server = await loop.create_server(lambda: Side(h11.SERVER, self._arrived), host, port, backlog=1024)
        found = self._server.sockets[0].getsockname()
        return found[0], found[1]

    async def stop(self) -> None:
        """The orderly end."""
        self._is_stopping = True
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):  # idle connections have nothing on its way
            side = getattr(task, "side", None)
            if side is None or side not in self._busy:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._upstream.close()

    def _arrived(self, side: Side) -> None:
        task = asyncio.get_running_loop().create_task(self._connection(side))
        task.side = side  # type: ignore[attr-defined]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, client: Side) -> None:
        try:
            while await self._one(client):
                pass
        except Gone:
            pass
        except h11.RemoteProtocolError as e:
            with contextlib.suppress(Gone, h11.LocalProtocolError):
                await refuse(client, e.error_status_hint or 400, "not a request of HTTP/1.1")
        except Exception:
            _logger.exception("an exchange through the proxy failed")
            client.abort()
        finally:
            self._busy.discard(client)
            client.close()

    async def _one(self, client: Side) -> bool:
        """One exchange; False at the end of the connection."""
        request = await client.event()
        if not isinstance(request, h11.Request):
            return False
        self._busy.add(client)
        client.method = request.method
        try:
            if request.target.startswith(b"/audit/"):
                await self._own.answer(client, request)
            else:
                await Exchange(self._recorder, self._upstream, client, request, lambda: len(self._busy) == 1).run()
        finally:
            self._busy.discard(client)
            client.on_gone = None
        if client.h11.our_state is not h11.DONE or client.h11.their_state is not h11.DONE:
            return False
        client.h11.start_next_cycle()
        return not client.is_gone and not self._is_stopping


async def run(proxy: Proxy, host: str, port: int, ready: Callable[[str, int], None], until: asyncio.Event) -> None:
    """Serve until ``until`` is set."""
    ready(*await proxy.start(host, port))
    try:
        await until.wait()
    finally:
        await proxy.stop()
