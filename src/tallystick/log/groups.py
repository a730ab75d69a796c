"""Group commit: whoever waits together is synced together.

The first caller that finds nobody leading becomes the leader, takes everything that waits and commits it in one go. When
he is done the next waiting caller leads. Callers that were just acknowledged tend to come back at once; a leader who
started before them would make two half groups out of one. So he lingers until as many wait as were seen together last
time, or for a part of what the last commit took, whichever is first. A single caller never waits for anybody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

LINGER_PART = 0.5
LINGER_S_MAX = 0.004


class Request:
    """One caller's share of a group: set to ``result`` or ``error`` exactly once, then ``done`` is called."""

    __slots__ = ("_wake", "content", "done", "error", "leads", "result")

    def __init__(self, content: Any, done: Callable[[Request], None] | None = None) -> None:
        self.content = content
        self.result: Any = None
        self.error: BaseException | None = None
        self.leads = False
        self.done = done
        self._wake = threading.Lock()
        self._wake.acquire()

    def finish(self) -> None:
        """Wake the caller."""
        if self.done is not None:
            self.done(self)
        else:
            self._wake.release()

    def lead(self) -> None:
        """Wake the caller to lead."""
        self.leads = True
        self._wake.release()

    def wait(self) -> None:
        """Until finished or told to lead."""
        self._wake.acquire()


class GroupCommit:
    """Serialises ``commit(requests)`` among threads. ``commit`` sets result or error of each request; it raises only what is
    meant for the leading thread alone (an interrupt), after it did so."""

    def __init__(self, commit: Callable[[list[Request]], None]) -> None:
        self._commit = commit
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._pending: list[Request] = []
        self._leading = False
        self._expected = 1
        self._last_s = 0.0
        self._helper: threading.Thread | None = None
        self._quiet = threading.Condition(self._lock)

    def run(self, request: Request) -> None:
        """Commit one request together with whoever else waits; returns when it is finished."""
        if not self._enqueue(request):
            request.wait()
            if not request.leads:
                return
        self._lead()

    def submit(self, request: Request) -> None:
        """Like ``run``, without waiting: a helper thread leads where nobody else does; ``request.done`` is called."""
        if self._enqueue(request):
            threading.Thread(target=self._lead, name="tallystick-commit", daemon=True).start()

    def _enqueue(self, request: Request) -> bool:
        with self._lock:
            self._pending.append(request)
            if self._leading:
                if len(self._pending) >= self._expected:
                    self._arrived.notify()
                return False
            self._leading = True
            return True

    def _lead(self) -> None:
        while True:
            group = self._gather()
            started = time.monotonic()
            interrupt: BaseException | None = None
            try:
                self._commit(group)
            except BaseException as e:  # noqa: BLE001  # the group is told and the next one led before it goes on
                interrupt = e
            successor = self._hand_over(len(group), time.monotonic() - started)
            for request in group:
                if not request.leads:
                    request.finish()
                elif request.done is not None:  # a leader without a thread of his own
                    request.done(request)
            if successor is not None and interrupt is not None and successor.done is not None:
                threading.Thread(target=self._lead, name="tallystick-commit", daemon=True).start()
            elif successor is not None and successor.done is None:
                successor.lead()
            elif successor is not None:
                successor.leads = True  # this thread goes on in his place
                continue
            if interrupt is not None:
                raise interrupt
            return

    def _gather(self) -> list[Request]:
        with self._lock:
            if len(self._pending) < self._expected:
                deadline = time.monotonic() + min(self._last_s * LINGER_PART, LINGER_S_MAX)
                while len(self._pending) < self._expected:
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._arrived.wait(left):
                        break
            group, self._pending = self._pending, []
            return group

    def _hand_over(self, size: int, seconds: float) -> Request | None:
        with self._lock:
            self._expected = size + len(self._pending)
            self._last_s = seconds
            if self._pending:
                return self._pending[0]
            self._leading = False
            self._quiet.notify_all()
            return None

    def hold(self) -> None:
        """Wait until no group is in flight and let none begin (before fork)."""
        self._lock.acquire()
        while self._leading:
            self._quiet.wait()

    def release(self) -> None:
        """End ``hold`` in the same process."""
        self._lock.release()
