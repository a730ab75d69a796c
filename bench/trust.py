"""Trust beyond the machine: what epochs cost. ``python -m bench.trust ROUNDS SCALE``.

Two logs with the same number of entries, one with an epoch every few of them, are verified in turn: the difference, divided by
the number of epochs, is what one epoch costs. Ending an epoch is measured in CPU time of the thread (user and system) outside its
seven syncs, which are the disk's.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tallystick import AuditLogger
from tallystick.disk import Disk
from tallystick.memory import Memory
from tallystick.verification import verify_log

from .events import events
from .report import Row, value
from .seen import Cases

ROWS = [
    Row("ending an epoch: CPU, p50 of 50", 1.0, 0.7, "ms", "durable, seven syncs not counted", value("rotate CPU, ms"), less=True),
    Row("verify: one epoch more", 0.4, 0.25, "ms", "reading", value("verify per epoch, ms"), less=True),
]  # fmt: skip
EPOCHS, EACH = 365, 25


def main() -> None:
    """Run and print."""
    rounds, scale = int(sys.argv[1]), float(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as folder:
        print(json.dumps({"seen": _Trust(Path(folder).resolve(), max(20, int(EPOCHS * scale))).run(rounds)}))


class _Trust(Cases):
    def __init__(self, folder: Path, epochs: int) -> None:
        super().__init__()
        self.folder, self.epochs = folder, epochs
        self.memory = Memory(folder / "state")
        sys.stderr.write(f"  building logs with and without {epochs} epochs\n")
        some = events(EACH + 1)
        with AuditLogger(folder / "with", memory=self.memory) as log, AuditLogger(folder / "without", memory=self.memory) as plain:
            for _ in range(epochs):
                log.log_many(some[:EACH])
                log.rotate()
                plain.log_many(some)

    def run(self, rounds: int) -> dict[str, Any]:
        for number in range(rounds):
            sys.stderr.write(f"    round {number + 1} of {rounds}\n")
            self.rotate()
            self.verify()
        return self.seen

    def rotate(self) -> None:
        """In a new log each round."""
        seen, syncs = [], _Syncs()
        with AuditLogger(self.folder / f"rotating-{os.urandom(3).hex()}", memory=self.memory) as log:
            log.log_many(events(2))  # the lock is ours
            for _ in range(50):
                before, count, inside = time.thread_time(), syncs.count, syncs.cpu_s
                log.rotate()
                seen.append((time.thread_time() - before - (syncs.cpu_s - inside)) * 1000)
                assert syncs.count - count == 7, f"{syncs.count - count} syncs"
        syncs.restore()
        self.note("rotate CPU, ms", statistics.median(seen))

    def verify(self) -> None:
        """Everything; the index and the lines of both logs are in the page cache."""
        took = {}
        for name in ("with", "without"):
            started = time.perf_counter()
            assert verify_log(self.folder / name, memory=self.memory).exit_code == 0
            took[name] = time.perf_counter() - started
        self.note("verify per epoch, ms", (took["with"] - took["without"]) / self.epochs * 1000)


class _Syncs:
    """How often the main thread asks the disk to finish, and the CPU time that the system spends in there."""

    def __init__(self) -> None:
        self.count, self.cpu_s = 0, 0.0
        self._real = {name: getattr(Disk, name) for name in ("sync", "sync_data")}
        for name, real in self._real.items():
            setattr(Disk, name, self._counted(real))

    def _counted(self, real: Any) -> Any:
        def counted(disk: Disk, fd: int) -> None:
            if threading.current_thread() is not threading.main_thread():
                real(disk, fd)
                return
            before = time.thread_time()
            real(disk, fd)
            self.count += 1
            self.cpu_s += time.thread_time() - before

        return counted

    def restore(self) -> None:
        for name, real in self._real.items():
            setattr(Disk, name, real)


if __name__ == "__main__":
    main()
