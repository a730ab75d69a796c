"""The one recorder that every way in writes through: what happens when the log cannot be written, and who writes what comes late.

*When the log cannot be written*, by ``failure`` in ``log.toml``: ``block`` refuses the call (``CallBlocked``, nothing is sent),
``spool`` keeps the events in order beside the keys and records them later, ``warn`` counts them. Whichever it is, the next
entry that can be recorded comes after a ``log.gap`` with count, first, last and cause.

*Late* is what a finaliser, a signal handler or a dropped stream has to say: they may run while this very thread is inside the log,
so that they only leave a note (``SimpleQueue.put`` is re-entrant) and a helper thread records it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..clock import CLOCK
from ..core.errors import AuditError, CallBlocked, Conflict, DiskFull, EntryRefused, StoreError
from ..core.times import format_time
from .content import ContentPolicy, Kept
from .context import current_context
from .evidence import Evidence
from .servers import Servers
from .spool import Spool, Spooled

FAILURES = ("block", "spool", "warn")
_logger = logging.getLogger("tallystick")
_RETRY_S = 1.0
_CALLS = frozenset(["ai_request", "ai_response", "configuration_change"])
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Journal(Protocol):
    """What is needed of a log."""

    @property
    def origin(self) -> str:
        """The log's origin."""

    @property
    def service(self) -> str | None:
        """The program's name."""

    @property
    def keys(self) -> Path:
        """The folder of the keys."""

    def put(self, keywords: dict[str, Any], event_id: str) -> None:
        """Record one event under an id that was minted for it. A failure is not counted as a gap: that is ours to do."""

    async def aput(self, keywords: dict[str, Any], event_id: str) -> None:
        """The same without blocking the loop."""

    def again(self, keywords: dict[str, Any], event_id: str) -> None:
        """Record one event that may be on record already under its id."""

    def owe(self, count: int, first_us: int, last_us: int, cause: str, *, kept: int = 0, is_full: bool = False) -> None:
        """The next entry comes after a ``log.gap`` that says this; ``kept`` of them will follow."""

    def salt(self, event_id: str, subject: str | None) -> tuple[str, bytes] | None:
        """A salt of 32 bytes for one call that can be derived again, and the day whose key it takes; None if it is not at hand."""

    def outcome(self, call: str, status: str, **more: Any) -> str:
        """Record what became of an answer."""


class Recording(Protocol):
    """What a handler or a processor is given: a logger."""

    @property
    def recorder(self) -> Recorder:
        """What it records through."""


class Recorder:
    """Records calls, tools and whatever else is captured, into one log. Safe for threads, forks, finalisers and signal handlers."""

    def __init__(self, journal: Journal, content: ContentPolicy, failure: str = "spool", *, look_up: bool = True) -> None:
        if failure not in FAILURES:
            raise ValueError(f"{failure!r} is no failure policy; known are {', '.join(FAILURES)}")
        self.journal, self.content, self.failure, self.look_up = journal, content, failure, look_up
        self._start()
        if not _recorders:  # whoever registers last is called first: before the logs are closed
            atexit.unregister(_end_all)
            atexit.register(_end_all)
        _recorders.add(self)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of the spool and of the counts
        self._starting = threading.RLock()  # of the helper: a signal handler may want it too
        self._to_say: list[str] = []  # said when the lock is free: a handler of the program may record, too
        self._owed: set[str] = set()  # spools of dead processes, and events, whose gap is owed
        self.evidence, self.servers = Evidence(self), Servers(self)  # with locks that no fork has taken
        self._spool = Spool(self.journal.keys, self.journal.origin)
        self._adopted = False
        self._waiting = False  # something is in the spool
        self._late: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._helper: threading.Thread | None = None
        self._said: set[str] = set()
        self.open_calls: weakref.WeakSet[Any] = weakref.WeakSet()

    # -- recording -----------------------------------------------------------------------------------------------------

    def put(self, keywords: dict[str, Any], event_id: str) -> None:
        """Record one event now, or do what the failure policy says. ``CallBlocked`` with ``block``."""
        if self._is_ready(keywords, event_id):
            try:
                self.journal.put(keywords, event_id)
            except AuditError as e:
                self._failed(keywords, event_id, e)

    async def aput(self, keywords: dict[str, Any], event_id: str) -> None:
        """``put`` without blocking the loop."""
        if self._adopted and not self._waiting:
            try:
                await self.journal.aput(keywords, event_id)
            except AuditError as e:  # a matter of locks and files: not in the loop
                await asyncio.shield(asyncio.to_thread(self._failed, keywords, event_id, e))
        else:  # something is to be drained first, in order: rare, and a matter of files too; a cancelled task does not end it
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.put, keywords, event_id))

    def _is_ready(self, keywords: dict[str, Any], event_id: str) -> bool:
        """True if nothing waits before this event; else it was put behind what waits."""
        if self._adopted and not self._waiting:
            return True
        with self._lock:
            try:
                self._drain()
            except AuditError as e:
                error: AuditError | None = e
                self._keep(keywords, event_id, e)
            else:
                error = None
        self._say()
        if error is not None and self.failure == "block":
            raise _blocked(error) from error
        return error is None

    def _failed(self, keywords: dict[str, Any], event_id: str, error: AuditError) -> None:
        if isinstance(error, EntryRefused) and keywords.get("event_type") in _CALLS and self._put_reduced(keywords, event_id, error):
            return
        with self._lock:
            self._keep(keywords, event_id, error)
        self._say()
        if self.failure == "block":
            raise _blocked(error) from error

    def _put_reduced(self, keywords: dict[str, Any], event_id: str, error: EntryRefused) -> bool:
        """An event that no log would take: recorded all the same, with what cannot be wrong. Whoever makes a call may not choose that
        it is not recorded by making it odd or large."""
        said = keywords.get("details")
        said = said if isinstance(said, dict) else {}
        few = {n: said[n] for n in ("operation", "provider", "capture", "end", "stream") if isinstance(said.get(n), str | bool)}
        reduced: dict[str, Any] = {
            n: keywords[n] for n in ("event_type", "actor_type", "action", "outcome", "parent_id") if n in keywords}  # fmt: skip
        for name in ("actor", "resource"):
            reduced[name] = str(keywords.get(name) or "unknown").encode("utf-8", "replace").decode()[:100] or "unknown"
        reduced["details"] = {**few, "reduced": error.path[:100] or "too large"}
        try:
            self.journal.put(reduced, event_id)
        except AuditError:
            return False
        return True

    def _say(self) -> None:
        while self._to_say:
            _logger.error(self._to_say.pop(0))

    def _keep(self, keywords: dict[str, Any], event_id: str, error: AuditError) -> None:
        """Under the lock: into the spool, or only counted."""
        now = CLOCK.wall_us()
        if self.journal.service is not None:  # whoever records it later is perhaps another program
            keywords = {"service": self.journal.service, **keywords}
        kept = False
        if self.failure == "spool" and not isinstance(error, EntryRefused):
            try:
                kept = self._spool.put(Spooled(keywords, event_id, now))
            except (TypeError, ValueError, AttributeError) as e:  # values that no log could hold either
                error = EntryRefused(f"an event that cannot be kept: {type(e).__name__}")
        with contextlib.suppress(AuditError):
            self.journal.owe(1, now, now, _cause(error), kept=int(kept), is_full=isinstance(error, DiskFull))
        if kept:
            self._waiting = True
            self._call_helper()
            self._late.put(_nothing)  # it may be waiting for notes alone: from now on it also tries again
        word = f"{type(error).__name__}:{kept}"
        if word not in self._said:
            self._said.add(word)
            then = "kept in the spool, and recorded as soon as it can be" if kept else "NOT recorded; it is counted"
            self._to_say.append(f"the audit log cannot be written: {error}. An event is {then} (said once)")

    def _drain(self) -> None:
        """Under the lock: what waits goes first, that of dead processes before ours. ``AuditError`` says why it cannot."""
        try:
            self._drain_all()
        except OSError as e:  # of the spool's own file: its events stay where they are
            raise StoreError(f"the spool: {e.strerror}") from e

    def _drain_all(self) -> None:
        if not self._adopted:
            for file in self._spool.orphans():
                if file.token not in self._owed and (file.count or file.is_damaged):
                    self._owed.add(file.token)
                    cause = "kept in the spool of a process that ended" + (", which cannot be read whole" if file.is_damaged else "")
                    lost = int(file.is_damaged)  # at least
                    now = CLOCK.wall_us()
                    self.journal.owe(file.count + lost, file.first_us or now, file.last_us or now, cause, kept=file.count)
                file.drain(self._again)
            if self._spool.unopened:
                count, now = self._spool.unopened, CLOCK.wall_us()
                self.journal.owe(count, now, now, "spools of processes that ended cannot be opened (at least)")
                self._to_say.append(f"{count} spool(s) of processes that ended cannot be opened: {self._spool.trouble}")
            self._adopted = True
        if self._waiting:
            self._spool.drain(self._again)
            self._waiting = False
            self._said.clear()

    def _again(self, event: Spooled) -> None:
        try:
            self.journal.again({"timestamp": format_time(event.moment_us), **event.keywords}, event.event_id)
        except Conflict:
            return  # it is there under its id: the group that it failed in was taken in after all
        except EntryRefused as e:  # it will never be recorded, and must not keep others back
            if event.event_id not in self._owed:
                self._owed.add(event.event_id)
                self.journal.owe(1, event.moment_us, event.moment_us, _cause(e))
                self._to_say.append(f"an event in the spool cannot be recorded: {e}")

    # -- who acts ----------------------------------------------------------------------------------------------------

    def who(self, claims: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], bool]:
        """The fields of an entry that the audit context gives, read once; and whether anybody is named in it."""
        context = {**current_context(), **(claims or {})}
        named = bool(context.get("actor"))
        if not named:
            context["actor"] = context.get("service") or self.journal.service or "unknown"
            context["actor_type"] = "service"
        else:
            context.setdefault("actor_type", "user")
        return context, named

    def keep(self, model: str | None, who: Mapping[str, Any], event_id: str) -> Kept:
        """What is kept of the content of one call."""
        policy = self.content.of(model, who["actor"], model or "unknown")
        return Kept(policy, self.journal.salt(event_id, who.get("subject")) if policy not in ("none", "lengths") else None)

    # -- what comes late ---------------------------------------------------------------------------------------------

    def later(self, job: Callable[[], None]) -> None:
        """Have the helper do something. Allowed anywhere, also where this thread is inside the log."""
        self._late.put(job)

    def expect_late(self) -> None:
        """Something may come late: have the helper there. Not allowed in a finaliser, where no thread can be started."""
        if self._pid != os.getpid():
            self._start()
        if self._helper is None:
            self._call_helper()

    def _call_helper(self) -> None:
        with self._starting:
            if self._helper is None:
                helper = threading.Thread(target=self._help, args=(self._late,), name="tallystick-late", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread can be had: flush() and close() do what is left
                    helper.start()
                    self._helper = helper

    def _help(self, late: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while True:
            try:
                job = late.get(timeout=_RETRY_S if self._waiting else None)
            except queue.Empty:
                _do(self._try_again)
                continue
            if job is None:
                return
            _do(job)

    def _try_again(self) -> None:
        with self._lock, contextlib.suppress(AuditError):
            self._drain()
        self._say()

    @property
    def waiting(self) -> int:
        """How many events this process keeps in its spool."""
        return len(self._spool)

    def take_over(self) -> None:
        """Record what processes that are gone left in their spools. Any event does so; this is for programs that wait for the first
        one. ``AuditError`` if it cannot be."""
        with self._lock:
            self._drain()

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything that came late before this call is recorded. ``TimeoutError``."""
        if self._pid != os.getpid():
            self._start()
        if self._helper is None and self._late.empty():
            return
        if self._helper is threading.current_thread():
            return
        done = threading.Event()
        self._late.put(done.set)
        self.expect_late()
        if self._helper is None:
            self._do_all()
        if not done.wait(timeout_s):
            raise TimeoutError("what came late is still on its way to the log")
        if self._waiting:
            self._try_again()

    def close(self) -> None:
        """End: calls that are still open are abandoned, what came late is recorded, the spool is left to the next process."""
        if self._pid != os.getpid():
            self._start()
        for call in list(self.open_calls):
            _do(call.abandon)
        helper, self._helper = self._helper, None
        if helper is not None and helper.is_alive():
            self._late.put(None)
            helper.join()
        self._do_all()
        if self._waiting:
            self._try_again()
        with self._lock:
            self._spool.close()

    def _do_all(self) -> None:
        while True:
            try:
                job = self._late.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                _do(job)

    def after_fork(self) -> None:
        """In the child: helper, queue, spool and open calls are the parent's."""
        self._spool.abandon()
        self._start()


def interrupts_the_log() -> bool:
    """True if this code interrupts the log in this very thread (a signal handler or a finaliser ran in the middle of it): recording
    now would wait for a lock that this thread holds."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("tallystick.") and not module.startswith(("tallystick.capture", "tallystick.cli", "tallystick.demo")):
            return True
        if module == "tallystick.capture.recorder" and frame.f_code.co_name not in ("interrupts_the_log", "_help", "close", "flush"):
            return True
        frame = frame.f_back
    return False


def _nothing() -> None:
    """A note that only wakes the helper."""


def _do(job: Callable[[], None]) -> None:
    """Whatever happens to one note, the next ones are read."""
    try:
        job()
    except AuditError as e:  # with ``block`` nobody is there to be told
        _logger.error("what came late could not be recorded: %s", e)
    except Exception:
        _logger.exception("what came late could not be recorded")


def _blocked(error: AuditError) -> CallBlocked:
    return CallBlocked(f"the audit log cannot be written ({error}), and [ai] failure = \"block\" in its log.toml")


def _cause(error: AuditError) -> str:
    """In words, without paths or content."""
    return {"DiskFull": "no space left", "LogBusy": "another process held the lock", "LogMissing": "the log was gone",
            "ReadOnly": "no permission to write", "StateUnknown": "the state of the log is not known",
            "EntryRefused": "the event was refused"}.get(type(error).__name__, "the log could not be written")  # fmt: skip


def _end_all() -> None:
    """The interpreter ends: streams that nobody ended are abandoned, and what is still to be written is."""
    for recorder in list(_recorders):
        recorder.close()


def _forked() -> None:
    for recorder in list(_recorders):
        recorder.after_fork()


os.register_at_fork(after_in_child=_forked)
