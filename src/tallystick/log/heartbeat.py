"""Signs of life, so that silence is visible (decision 26): off unless ``log.toml`` says how often, ``[heartbeat] every = "1h"``.

A process that records puts ``log.started`` before its first entries, ``log.heartbeat`` whenever it has written nothing for that
long, and ``log.stopped`` at its orderly end; all three carry the same ``run``. So two neighbouring entries are never much further
apart than ``every`` while somebody lives, and whoever verifies names the gaps that are longer than twice that. A gap says that nobody
wrote: a machine that was off, a program that was stopped, or one that was kept from writing. Which one cannot be told from it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading

from ..clock import Clock, host_name
from ..core.epoch import HEARTBEAT, STOPPED
from ..core.errors import AuditError
from .writer import Writer


class Heartbeat:
    """The signs of life of one handle. ``every_us`` 0: none. Its thread lives from the first append to the end."""

    def __init__(self, writer: Writer, every_us: int, clock: Clock) -> None:
        self._writer, self._every_us, self._clock = writer, every_us, clock
        self._stop, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        self._run = secrets.token_hex(8)
        self._writer.announce = self._details() if self._every_us else None

    def _details(self) -> dict[str, object]:
        found: dict[str, object] = {"run": self._run, "pid": os.getpid(), "host": host_name()}
        if self._every_us:
            found["every_s"] = self._every_us // 1_000_000
        return found

    def start(self) -> None:
        """Start the thread if there is one to be started."""
        if self._thread is not None or not self._every_us:
            return
        with self._starting:
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._live, args=(self._stop,), name="tallystick-heartbeat", daemon=True)
                self._thread.start()

    def _live(self, stop: threading.Event) -> None:
        while not stop.wait(self.due_in_us() / 1_000_000):
            if self.due_in_us() <= 0:
                with contextlib.suppress(AuditError, OSError):  # the next append says what is wrong
                    self._say(HEARTBEAT, "alive")
                    continue
                stop.wait(1.0)  # it could not be said now

    def due_in_us(self) -> int:
        """Until this handle has been silent for too long; at most ``every``, whatever the clock does."""
        last = self._writer.last_us
        return self._every_us if last is None else min(self._every_us, last + self._every_us - self._clock.wall_us())

    def beat(self) -> None:
        """One sign of life now, whatever is configured. A handle that recorded nothing yet says nothing else of itself."""
        self._writer.announce = None
        self._say(HEARTBEAT, "alive")

    def stop(self) -> None:
        """The orderly end: the thread ends, and who said that he began says that he stopped."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            if self._writer.announce is None:
                with contextlib.suppress(AuditError, OSError):
                    self._say(STOPPED, "stopped recording")

    def after_fork(self) -> None:
        """In the child: the thread is the parent's, and it is a run of its own."""
        self._thread, self._starting = None, threading.Lock()
        self._begin()

    def _say(self, event_type: str, action: str) -> None:
        self._writer.exclusively(lambda append: append([self._writer.own(event_type, action, self._details())]))
