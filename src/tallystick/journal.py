"""What capture may ask of a log: the ``Journal`` of ``capture.recorder``, on an ``AuditLogger``."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clock import CLOCK
from .core.errors import StoreError
from .core.times import format_time
from .log.groups import Request
from .log.writer import Writer

if TYPE_CHECKING:
    from .logger import AuditLogger


class LogJournal:
    """One logger, as the recorder sees it. Events are built outside of any audit context: the recorder read it when the call
    began."""

    def __init__(self, log: AuditLogger) -> None:
        self._log = log

    @property
    def origin(self) -> str:
        """The log's origin."""
        return self._log.origin

    @property
    def service(self) -> str | None:
        """The program's name."""
        return self._log.service

    @property
    def keys(self) -> Path:
        """The folder of the keys."""
        return self._log._handle.keys.path

    def put(self, keywords: dict[str, Any], event_id: str) -> None:
        """Record one event under a minted id; durable on return."""
        event = Context().run(self._log._events.event, keywords, event_id)
        self._writer().append([event], counted=False)

    def _writer(self) -> Writer:
        try:
            return self._log._writer()
        except RuntimeError as e:  # no thread can be had for the keeper: a reason not to record, none to fail the caller's call
            raise StoreError(f"the log cannot be kept: {e}") from e

    async def aput(self, keywords: dict[str, Any], event_id: str) -> None:
        """The same, waiting in the loop."""
        event = Context().run(self._log._events.event, keywords, event_id)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish(request: Request) -> None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(settle, done, request.error)

        self._writer().groups.submit(Request([event], finish, counted=False))
        await asyncio.shield(done)

    def again(self, keywords: dict[str, Any], event_id: str) -> None:
        """Record one event unless it is on record already under its id."""
        event = Context().run(self._log._events.event, {**keywords, "event_id": event_id})
        self._writer().append([event], counted=False)

    def owe(self, count: int, first_us: int, last_us: int, cause: str, *, kept: int = 0, is_full: bool = False) -> None:
        """The next entry comes after a ``log.gap`` that says this."""
        self._log._handle.writer.owe(count, first_us, last_us, cause, kept=kept, is_full=is_full)

    def salt(self, event_id: str, subject: str | None) -> tuple[str, bytes] | None:
        """A salt that can be derived again as long as the payload key of its day is there."""
        day = format_time(CLOCK.wall_us())[:10]
        found = self._log._handle.vault.salt(day, subject, event_id)
        return None if found is None else (day, found)

    def outcome(self, call: str, status: str, **more: Any) -> str:
        """Record what became of an answer."""
        return self._log.outcome(call, status, **more)


def settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    """The result of a request, for whoever awaits it."""
    if not done.done():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
