"""The keeper: a thread that makes head, tree and mark durable at most a second after they were written (STORAGE rule 10), and fills
the index when writing pauses, or every two seconds. Off the acknowledged path: what it does can be computed again from the lines."""

from __future__ import annotations

import contextlib
import threading

from ..core.errors import AuditError
from .heartbeat import Heartbeat
from .view import LogView
from .writer import Writer

PERIOD_S = 0.5
IDLE_S = 30.0  # so long it sleeps where nobody writes; then it looks whether the day is over
FILL_EVERY = 4  # rounds of those who write on: an index that lags costs readers a few lines, filling it costs writers syncs


class Keeper:
    """Runs while its writer writes; started by the first append."""

    def __init__(self, writer: Writer, view: LogView, heartbeat: Heartbeat | None = None) -> None:
        self._writer, self._view, self._heartbeat = writer, view, heartbeat
        self._stop, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._running = False

    def start(self) -> None:
        """Start the thread if it is not running."""
        if not self._running:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            self._running = True
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="tallystick-keeper", daemon=True)
            self._thread.start()
            if self._heartbeat is not None:
                self._heartbeat.start()

    def stop(self) -> None:
        """Stop and wait; what is not yet durable is left to ``Writer.close``."""
        if self._thread is not None:
            self._stop.set()
            self._writer.written.set()
            self._thread.join()
            self._thread, self._running = None, False

    def after_fork(self) -> None:
        """In the child: the thread is the parent's."""
        self._thread, self._running, self._starting = None, False, threading.Lock()

    def _run(self, stop: threading.Event) -> None:
        unfilled = 0  # rounds
        while not stop.is_set():
            if not self._writer.written.wait(PERIOD_S if unfilled else IDLE_S):
                if unfilled:
                    unfilled = self._fill()  # nobody writes any more
                else:
                    self._end_day()
                continue
            if stop.wait(PERIOD_S):
                return
            self._writer.written.clear()
            self._writer.make_durable()
            unfilled += 1
            if unfilled >= FILL_EVERY:
                unfilled = self._fill()

    def _end_day(self) -> None:
        """An epoch ends with its day although nobody appends. What hinders it is said by the next append."""
        with contextlib.suppress(AuditError, OSError):
            self._writer.end_day()

    def tend(self) -> None:
        """One round with everything. A failed sync is never tried again by this handle; the next append says so."""
        self._writer.make_durable()
        self._fill()

    def _fill(self) -> int:
        with contextlib.suppress(AuditError, OSError):
            self._view.fill()
        return 0
