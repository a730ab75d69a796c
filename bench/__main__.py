"""Ratios of this machine, in one run: every case in turn, round after round; median with min and max.

``python -m bench [ROUNDS]``. The durability mode stands beside every figure. No figure here is a test.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tallystick import AuditLogger, audited
from tallystick.verification import verify_log

from . import baseline

EVENT = {"event_type": "data_access", "actor": "invoice-bot", "actor_type": "service", "resource": "crm/customers/4711",
         "action": "read customer", "outcome": "success",
         "details": {"id": 4711, "fields": ["name", "iban"], "amount": 88.10, "note": "x" * 60}}  # fmt: skip
N_SINGLE, N_MANY, N_THREADS = 200, 4, 32


def timed(action: Callable[[], int]) -> float:
    """Events per second."""
    started = time.perf_counter()
    count = action()
    return count / (time.perf_counter() - started)


def bare_append(path: Path, line: bytes, count: int) -> int:
    """The floor: one line, one fdatasync."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(count):
        os.write(fd, line)
        os.fdatasync(fd)
    os.close(fd)
    return count


def main() -> None:
    """Run and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    root = Path(tempfile.mkdtemp(prefix="bench-", dir="."))
    os.environ["TALLY_STATE"] = str(root / "state")
    log = AuditLogger(root / "audit_log")
    log.log(**EVENT)
    line = log.stored(1).line + b"\n"
    batch = [EVENT] * 1024

    @audited(operation="read customer", resource="crm")
    def call(n: int) -> int:
        return n

    def threads() -> int:
        def work() -> None:
            for _ in range(8):
                log.log(**EVENT)

        pool = [threading.Thread(target=work) for _ in range(N_THREADS)]
        for t in pool:
            t.start()
        for t in pool:
            t.join()
        return 8 * N_THREADS

    def many() -> int:
        for _ in range(N_MANY):
            log.log_many(batch)
        return N_MANY * len(batch)

    def single() -> int:
        for _ in range(N_SINGLE):
            log.log(**EVENT)
        return N_SINGLE

    def base() -> int:
        for _ in range(2000):
            baseline.append(root / "chapter.jsonl", EVENT)
        return 2000

    def calls() -> int:
        for i in range(N_SINGLE):
            call(i, audit_logger=log, audit_context={"actor": "bot", "actor_type": "agent"})
        return N_SINGLE

    cases: dict[str, Callable[[], int]] = {
        "chapter append (NOT durable)": base,
        "bare append + fdatasync (durable)": lambda: bare_append(root / "bare", line, N_SINGLE),
        "log_many(1024) (durable, signed)": many,
        "log() (durable, signed)": single,
        "@audited call (durable, signed, with payloads)": calls,
        "32 threads log() (durable, signed)": threads,
        "chapter verify (half of the fields)": lambda: baseline.verify(root / "chapter.jsonl"),
        "verify --content (every byte)": lambda: verify_log(log.path, memory=log.memory, content=True).tree_size,
        "verify (every byte, index, payloads)": lambda: verify_log(log.path, memory=log.memory).tree_size,
    }
    seen: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seen[name].append(timed(case))
    report(seen, rounds, root)
    log.close()


def report(seen: dict[str, list[float]], rounds: int, root: Path) -> None:
    """Medians, and the ratios that the targets name."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
          f"Python {platform.python_version()}, {rounds} rounds, on {root.resolve().anchor}")  # fmt: skip
    for name, values in seen.items():
        m = statistics.median(values)
        print(f"  {name:<50} {m:>11,.0f} /s   ({min(values):,.0f} – {max(values):,.0f})")
    pairs: list[tuple[str, Any, Any]] = [
        ("log_many / chapter append", "log_many(1024) (durable, signed)", "chapter append (NOT durable)"),
        ("log() / bare append + fdatasync", "log() (durable, signed)", "bare append + fdatasync (durable)"),
        ("@audited / bare append + fdatasync", "@audited call (durable, signed, with payloads)", "bare append + fdatasync (durable)"),
        ("32 threads / bare append + fdatasync", "32 threads log() (durable, signed)", "bare append + fdatasync (durable)"),
        ("verify --content / chapter verify", "verify --content (every byte)", "chapter verify (half of the fields)"),
        ("verify / chapter verify", "verify (every byte, index, payloads)", "chapter verify (half of the fields)"),
    ]
    print("ratios, median (min – max) of the rounds")
    for name, a, b in pairs:
        ratios = [x / y for x, y in zip(seen[a], seen[b], strict=True)]
        print(f"  {name:<50} {statistics.median(ratios):>8.2f}   ({min(ratios):.2f} – {max(ratios):.2f})")


main()
