"""Cases that write, in turn, round after round; ``python -m bench.writes ROUNDS SCALE as-is|slowed`` prints what it saw as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tallystick import AuditLogger, audited

from . import baseline
from .disk import bare_append, check_slowed, median_us
from .events import events
from .product import fill, groups, settle
from .seen import Cases

BATCH, THREADS, PROCESSES = 1024, 32, 16


def main() -> None:
    """Run and print."""
    rounds, scale, mode = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    if mode == "slowed":
        check_slowed()
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-writes-") as name:
        os.environ["TALLY_STATE"] = f"{name}/state"
        sys.stderr.write(f"  writes, {mode}\n")
        print(json.dumps(_Writes(Path(name).resolve(), scale, slowed=mode == "slowed").run(rounds)))


class _Writes(Cases):
    def __init__(self, folder: Path, scale: float, *, slowed: bool) -> None:
        super().__init__()
        self.folder, self.slowed = folder, slowed
        part = 0.25 if slowed else 1.0
        self.singles = max(20, int(300 * scale * part))
        self.seconds = max(0.3, 1.5 * scale)
        self.events = events(BATCH * 4)
        self.one, self.many = (AuditLogger(folder / name) for name in ("one", "many"))
        self.one.log_many(self.events[:200])
        self.lines = [self.one.stored(n).line + b"\n" for n in range(1, 201)]
        self.syncs: list[float] = []

        @audited(operation="read customer", resource="crm")
        def call(customer: str) -> str:
            return customer

        self.call = call

    def run(self, rounds: int) -> dict[str, Any]:
        cases: list[Callable[[], None]] = [self.bare, self.two, self.single, self.audited_call, self.threads, self.processes]
        if not self.slowed:
            cases += [self.chapter, self.log_many, self.log_many_indexed, self.submit]
        for number in range(rounds):
            sys.stderr.write(f"    round {number + 1} of {rounds}\n")
            for case in cases:
                settle(self.one)
                settle(self.many)
                case()
        self.one.close()
        self.many.close()
        return {"seen": self.seen, "fdatasync_p50_us": median_us(self.syncs), "load": os.getloadavg()[0]}

    # each: events per second, unless it says otherwise

    def chapter(self) -> None:
        path, some = self.folder / "chapter.jsonl", self.events[:2000]
        self.rate("chapter append", len(some), lambda: [baseline.append(path, event) for event in some])

    def bare(self) -> None:
        lines = [self.lines[n % len(self.lines)] for n in range(self.singles)]
        self.rate("bare append + fdatasync", len(lines), lambda: self.syncs.extend(bare_append(self.folder / "bare", lines)))

    def two(self) -> None:
        """A pair of bare appends to two files."""
        a, b = (os.open(self.folder / n, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for n in ("bare-a", "bare-b"))

        def pairs() -> None:
            for n in range(self.singles):
                for fd in (a, b):
                    os.write(fd, self.lines[n % len(self.lines)])
                    os.fdatasync(fd)

        self.rate("two bare appends + fdatasync", self.singles, pairs)
        os.close(a)
        os.close(b)

    def log_many(self) -> None:
        batches = [self.events[at : at + BATCH] for at in range(0, len(self.events), BATCH)]
        self.rate("log_many(1024)", len(self.events), lambda: [self.many.log_many(batch) for batch in batches])

    def log_many_indexed(self) -> None:
        batches = [self.events[at : at + BATCH] for at in range(0, len(self.events), BATCH)]

        def both() -> None:
            for batch in batches:
                self.many.log_many(batch)
            fill(self.many)

        self.rate("log_many(1024), index caught up", len(self.events), both)

    def single(self) -> None:
        self.rate("log()", self.singles, lambda: [self.one.log(**event) for event in self.events[: self.singles]])

    def audited_call(self) -> None:
        context = {"actor": "bot", "actor_type": "agent"}
        self.rate("@audited", self.singles, lambda: [
            self.call(event["resource"], audit_logger=self.one, audit_context=context) for event in self.events[: self.singles]])

    def threads(self) -> None:
        each = max(8, self.singles // 4 if self.slowed else self.singles // 10)
        before = groups(self.one)

        def work(n: int) -> None:
            for event in self.events[n * each : (n + 1) * each]:
                self.one.log(**event)

        def all_of_them() -> None:
            pool = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()

        self.rate("32 threads", THREADS * each, all_of_them)
        self.note("32 threads: mean batch", THREADS * each / (groups(self.one) - before))

    def processes(self) -> None:
        for count, name in ((1, "one process"), (PROCESSES, "16 processes")):
            found = self.spawn(count)
            self.note(name, sum(len(one) for one in found) / self.seconds)
            self.note(f"{name}: worst wait, s", max(max(one) for one in found))

    def spawn(self, count: int) -> list[list[float]]:
        """Each writes one event at a time; all begin together; seconds that each event took."""
        command = [sys.executable, "-m", "bench.writes", "worker", str(self.folder / "shared"), str(self.seconds)]
        if not (self.folder / "shared").exists():
            AuditLogger(self.folder / "shared").close()
        running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        for one in running:
            assert one.stdout is not None
            one.stdout.readline()
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        return [json.loads(one.communicate()[0]) for one in running]

    def submit(self) -> None:
        """Microseconds of the caller, in a burst that fits the bound."""
        taken = []
        for event in self.events[:4000]:
            started = time.perf_counter_ns()
            self.many.submit(**event)
            taken.append(time.perf_counter_ns() - started)
        self.many.flush()
        taken.sort()
        self.note("submit p50, µs", taken[len(taken) // 2] / 1000)
        self.note("submit p99, µs", taken[len(taken) * 99 // 100] / 1000)


def worker() -> None:
    """One of the processes."""
    log, some, seconds = AuditLogger(sys.argv[2]), events(64, os.getpid()), float(sys.argv[3])
    log.log(**some[0])
    print("ready", flush=True)
    sys.stdin.readline()
    taken, until, n = [], time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        started = time.perf_counter()
        log.log(**some[n % 64])
        taken.append(time.perf_counter() - started)
        n += 1
    print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    worker() if sys.argv[1] == "worker" else main()
