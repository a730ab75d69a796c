"""Cases on a log of a million entries (``--size``): verify, query, report, prove, open. ``python -m bench.reads ROUNDS SIZE FOLDER``.

Rates of whole-log operations are entries per second of that log; those of the index are measured on a fifth of it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tallystick import AuditLogger, ComplianceReporter
from tallystick.core.merkle import leaf_hash, node_hash

from . import baseline
from .events import events
from .product import fill, hashing, prove, sizes, verify_content, verify_everything
from .seen import Cases

ONE = {"actor": "bot-7"}
TWO = {"actor": "bot-7", "event_type": "ai_request"}
_FILE = 100_000  # entries of the chapter's file


def main() -> None:
    """Run and print."""
    rounds, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ["TALLY_STATE"] = str(folder / "state")
    print(json.dumps(_Reads(folder, size).run(rounds)))


def build(folder: Path, size: int) -> None:
    """A log of ``size`` entries, closed."""
    if (folder / "log.toml").exists():
        return
    log, some = AuditLogger(folder), events(102_400)
    for at in range(0, size, 1024):
        log.log_many(some[at % 102_400 : at % 102_400 + 1024][: size - at])
        if at % (1 << 17) == 0:
            sys.stderr.write(f"    {folder.name}: {at:,} of {size:,}\n")
    log.close()


class _Reads(Cases):
    def __init__(self, folder: Path, size: int) -> None:
        super().__init__()
        self.folder, self.size = folder, size
        sys.stderr.write(f"  building a log of {size:,} entries\n")
        build(folder / "big", size)
        build(folder / "fifth", size // 5)
        self.file = folder / "chapter.jsonl"
        for event in events(min(_FILE, size)) if not self.file.exists() else ():
            baseline.append(self.file, event)
        self.in_file = min(_FILE, size)
        self.big, self.fifth = AuditLogger(folder / "big"), AuditLogger(folder / "fifth")
        self.sample = [self.big.stored(n).line for n in range(1, min(200_000, size))]

    def run(self, rounds: int) -> dict[str, Any]:
        cases: list[Callable[[], None]] = [self.limit, self.content_pure, self.content, self.chapter_verify, self.index, self.pages,
                                           self.report, self.proofs, self.opening]  # fmt: skip
        for number in range(rounds):
            sys.stderr.write(f"    round {number + 1} of {rounds}\n")
            for case in cases:
                case()
        found = sizes(self.folder / "big")
        self.big.close()
        self.fifth.close()
        return {
            "seen": self.seen, "bytes": {k: v / self.size for k, v in found.items()}, "hashing": hashing(),
            "rss_mb": self.memory(), "size": self.size, "load": os.getloadavg()[0],
        }  # fmt: skip

    def limit(self) -> None:
        """Leaf and node hashes with hashlib, the lines in memory already, nothing else."""
        def hashes() -> None:
            row = [leaf_hash(line) for line in self.sample]
            while len(row) > 1:
                row = [node_hash(a, b) for a, b in zip(row[::2], row[1::2], strict=False)]

        self.rate("hashlib limit", len(self.sample), hashes)

    def content_pure(self) -> None:
        self.rate("content verify, pure", self.size, lambda: verify_content(self.big, pure=True))

    def content(self) -> None:
        self.rate("content verify", self.size, lambda: verify_content(self.big))

    def chapter_verify(self) -> None:
        self.rate("chapter verify", self.in_file, lambda: baseline.verify(self.file))
        started = time.perf_counter()
        baseline.query(self.file, ONE)
        self.note("chapter query of as many, s", (time.perf_counter() - started) * self.size / self.in_file)

    def index(self) -> None:
        """Verify of the index: what a full verification takes longer than one of the content alone."""
        def taken(action: Callable[[], Any]) -> float:
            started = time.perf_counter()
            action()
            return time.perf_counter() - started

        count = self.size // 5
        content, full = taken(lambda: verify_content(self.fifth)), taken(lambda: verify_everything(self.fifth))
        self.note("index verify", count / (full - content))
        self.note("full verify", count / full)
        self.fifth.close()
        (self.folder / "fifth" / "index.db").unlink()
        self.fifth = AuditLogger(self.folder / "fifth")
        self.note("index rebuild", count / taken(lambda: fill(self.fifth)))

    def pages(self) -> None:
        for name, where in (("one field", ONE), ("two fields", TWO)):
            for newest in (True, False):
                taken = []
                for _ in range(5):
                    started = time.perf_counter()
                    found = list(self.big.entries(where, limit=100, newest_first=newest))
                    taken.append(time.perf_counter() - started)
                    assert len(found) == min(100, len(found))
                self.note(f"page of 100, {name}, {'newest' if newest else 'oldest'} first, ms", sorted(taken)[2] * 1000)

    def report(self) -> None:
        started = time.perf_counter()
        ComplianceReporter(self.big).generate_report("2000-01-01", "2100-01-01", "full")
        self.note("full report, s", time.perf_counter() - started)

    def proofs(self) -> None:
        taken, size = [], self.big.entry_count()
        for n in range(200):
            started = time.perf_counter()
            prove(self.big, (n * 7919 + 13) % size, size)
            taken.append(time.perf_counter() - started)
        self.note("inclusion proof, p50, ms", sorted(taken)[100] * 1000)

    def opening(self) -> None:
        """A fresh handle on a log that was closed: read its head; then the first append besides."""
        self.big.close()
        started = time.perf_counter()
        self.big = AuditLogger(self.folder / "big")
        self.big.entry_count()
        opened = time.perf_counter()
        self.big.log(**events(1)[0])
        self.note("open, ms", (opened - started) * 1000)
        self.note("open and first append, ms", (time.perf_counter() - started) * 1000)

    def memory(self) -> dict[str, float]:
        """Peak resident memory of a process of its own for each."""
        found = {}
        for what in ("append", "verify", "query"):
            command = [sys.executable, "-m", "bench.reads", "memory", what, str(self.folder / "big")]
            found[what] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return found


def memory() -> None:
    """One of those processes."""
    log = AuditLogger(sys.argv[3])
    if sys.argv[2] == "append":
        some = events(1024)
        for _ in range(10):
            log.log_many(some)
    elif sys.argv[2] == "verify":
        verify_everything(log)
    else:
        for where in (ONE, TWO):
            for _ in log.entries(where, limit=5000):
                pass
    log.close()
    status = Path("/proc/self/status")  # not ru_maxrss, which begins with that of the parent
    if status.exists():
        print(next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def large() -> None:
    """The figures that must not depend on the size, on two logs in one run: ``python -m bench.reads large FOLDER SMALL LARGE``."""
    folder = Path(sys.argv[2])
    os.environ["TALLY_STATE"] = str(folder / "state")
    seen: dict[str, list[float]] = {}
    logs = []
    for size in map(int, sys.argv[3:5]):
        sys.stderr.write(f"  building a log of {size:,} entries\n")
        build(folder / f"log-{size}", size)
        logs.append((size, AuditLogger(folder / f"log-{size}")))
        verify_everything(logs[-1][1])
    some = events(1024)
    for number in range(7):
        sys.stderr.write(f"    round {number + 1} of 7\n")
        for size, log in logs:
            def note(name: str, action: Callable[[], Any], size: int = size) -> None:
                started = time.perf_counter()
                action()
                seen.setdefault(f"{name} at {size}", []).append((time.perf_counter() - started) * 1000)

            count = log.entry_count()
            note("append of 1,024, ms", lambda log=log: log.log_many(some))
            fill(log)
            note("100 proofs, ms", lambda log=log, count=count: [prove(log, (n * 7919) % count, count) for n in range(100)])
            note("page of 100, ms", lambda log=log: list(log.entries(ONE, limit=100, newest_first=True)))
            note("incremental verify of 1,024, ms", lambda log=log: verify_everything(log, new_only=True))
    for _, log in logs:
        log.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    {"memory": memory, "large": large}.get(sys.argv[1], main)()
