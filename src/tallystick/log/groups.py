"""Group commit: whoever waits together is synced together.

The first caller that finds nobody leading becomes the leader, takes everything that waits and commits it in one go. When
he is done the next waiting caller leads. Callers that were just acknowledged tend to come back at once; a leader who
started before them would make two half groups out of one. So he lingers until as many wait as were seen together last
time, or until nobody has come for half a millisecond, at most for as long as the last commit took. A single caller never waits
for anybody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

LINGER_S_MAX = 0.004
GAP_S = 0.0005


class Request:
    """One caller's share of a group: set to ``result`` or ``error`` exactly once, then ``done`` is called or the caller woken.

    ``returns``: its caller waits for it and may come back with the next one at once. ``counted``: if it cannot be written the log
    counts it as lost; else its caller does.
    """

    __slots__ = ("_wake", "content", "counted", "done", "error", "leads", "result", "returns")

    def __init__(
        self, content: Any, done: Callable[[Request], None] | None = None, *, returns: bool = True, counted: bool = True
    ) -> None:
        self.content = content
        self.counted = counted
        self.result: Any = None
        self.error: BaseException | None = None
        self.leads = False
        self.done = done
        self.returns = returns
        if done is None:
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
    meant for the leading thread alone (an interrupt), after it did so. Requests without a waiting thread are led by a helper."""

    def __init__(self, commit: Callable[[list[Request]], None]) -> None:
        self._commit = commit
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._quiet = threading.Condition(self._lock)
        self._called = threading.Condition(self._lock)
        self._pending: list[Request] = []
        self._returning = 0  # among the pending
        self._leading = False
        self._expected = 1
        self._last_s = 0.0
        self._helper: threading.Thread | None = None
        self._wanted = self._stopped = False
        self.groups = 0  # committed so far, for the bench

    def run(self, request: Request) -> None:
        """Commit one request together with whoever else waits; returns when it is finished."""
        with self._lock:
            leads = self._enqueue(request)
        if not leads:
            request.wait()
            if not request.leads:
                return
        self._lead()

    def submit(self, request: Request) -> None:
        """Like ``run``, without waiting: the helper leads where nobody else does; ``request.done`` is called."""
        with self._lock:
            if self._enqueue(request):
                self._call_helper()

    def stop(self) -> None:
        """End the helper once nothing is pending; a later ``submit`` starts another one."""
        with self._lock:
            helper, self._helper = self._helper, None
            self._stopped = True
            self._called.notify()
        if helper is not None:
            helper.join()
        self._stopped = False

    def _enqueue(self, request: Request) -> bool:
        """True if the caller is to see to it that somebody leads."""
        self._pending.append(request)
        self._returning += request.returns
        if self._leading:
            if self._returning >= self._expected:
                self._arrived.notify()
            return False
        self._leading = True
        return True

    def _call_helper(self) -> None:
        self._wanted = True
        if self._helper is None:
            self._helper = threading.Thread(target=self._help, name="tallystick-commit", daemon=True)
            self._helper.start()
        self._called.notify()

    def _help(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                while not self._wanted:
                    if self._stopped or self._helper is not me:
                        return
                    self._called.wait()
                self._wanted = False
            self._lead(helper=True)

    def _lead(self, *, helper: bool = False) -> None:
        while True:
            group = self._gather()
            started = time.monotonic()
            interrupt: BaseException | None = None
            try:
                self._commit(group)
            except BaseException as e:  # noqa: BLE001  # the group is told and the next one led before it goes on
                interrupt = e
            again = self._hand_over(group, time.monotonic() - started, helper=helper)
            for request in group:
                if not request.leads:
                    request.finish()
            if again:
                continue
            if interrupt is not None and not helper:
                raise interrupt
            return

    def _gather(self) -> list[Request]:
        with self._lock:
            if self._returning < self._expected:
                deadline = time.monotonic() + min(self._last_s, LINGER_S_MAX)
                while (seen := self._returning) < self._expected:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._arrived.wait(min(left, GAP_S))
                    if self._returning == seen:
                        break  # those who were to come back have come
            group, self._pending, self._returning = self._pending, [], 0
            return group

    def _hand_over(self, group: list[Request], seconds: float, *, helper: bool) -> bool:
        """Somebody else leads what is pending, or nobody; True if this is the helper's to go on with."""
        with self._lock:
            self.groups += 1
            self._expected = sum(r.returns for r in group) + self._returning
            self._last_s = seconds
            if not self._pending:
                self._leading = False
                self._quiet.notify_all()
                return False
            waiting = next((r for r in self._pending if r.done is None), None)
            if waiting is not None:
                waiting.lead()
            elif helper:
                return True
            else:
                self._call_helper()
            return False

    def hold(self) -> None:
        """Wait until no group is in flight and let none begin (before fork)."""
        self._lock.acquire()
        while self._leading:
            self._quiet.wait()

    def release(self) -> None:
        """End ``hold`` in the same process."""
        self._lock.release()
