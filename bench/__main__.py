"""``python -m bench [--rounds N] [--size N] [--quick] [--capture] [--trust] [--witness] [--peers] [--large] [--keep FOLDER]
[--markdown FILE]``

Ratios of this machine, measured in one run: every case in turn, round after round; medians with minimum and maximum. The cases that
write run twice: on the disk as it is, and with every sync 2 ms slower. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import capture, report, trust
from .disk import SLOWED_US, Refused, file_system, slowed_environment


def main() -> None:
    """Run and print."""
    asked = _arguments()
    started, load = time.time(), os.getloadavg()[0]
    if load > (os.cpu_count() or 1):
        sys.stderr.write(f"WARNING: load {load:.1f} on {os.cpu_count()} CPUs before anything began: these figures say little\n")
    own = Path(tempfile.mkdtemp(prefix=".bench-", dir="."))
    try:
        lines = _run(asked, own)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    when, minutes = time.strftime("%Y-%m-%d %H:%M", time.localtime(started)), (time.time() - started) / 60
    lines.insert(1, f"{when}, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {minutes:.0f} minutes")
    print("\n".join(lines))
    if asked.markdown:
        asked.markdown.write_text("```text\n" + "\n".join(lines) + "\n```\n", encoding="utf-8")


def _run(asked: argparse.Namespace, own: Path) -> list[str]:
    scale = "0.1" if asked.quick else "1"
    lines = [_machine()]
    if asked.capture:
        return [*lines, "", *_capture(asked.rounds, scale)]
    if asked.trust:
        return [*lines, "", *_trust(asked.rounds, scale)]
    if asked.witness:
        return [*lines, "", *_witness(asked.rounds, scale)]
    plain = _child("bench.writes", str(asked.rounds), scale, "as-is")
    lines += ["", f"WRITES, the disk as it is: fdatasync p50 {plain['fdatasync_p50_us']:.0f} µs, {asked.rounds} rounds", _head()]
    lines += report.table(report.AS_IS, plain["seen"])
    try:
        slowed = _child("bench.writes", str(asked.rounds), scale, "slowed", environment=slowed_environment(own.resolve()))
        lines += ["", f"WRITES, every sync {SLOWED_US / 1000:.0f} ms slower: fdatasync p50 {slowed['fdatasync_p50_us']:.0f} µs, "
                      f"{asked.rounds} rounds", _head()]  # fmt: skip
        lines += report.table(report.SLOWED, slowed["seen"])
    except Refused as e:
        slowed = None
        lines += ["", f"WRITES with slower syncs: REFUSED, {e}"]
    folder = asked.keep or own / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    reads = _child("bench.reads", str(asked.rounds), str(asked.size), str(folder.resolve()))
    lines += ["", f"READS of {reads['size']:,} entries of {reads['bytes']['entries']:.0f} bytes, {asked.rounds} rounds; "
                  f"hashing by default: {reads['hashing']}", _head()]  # fmt: skip
    lines += report.table(report.READS, reads["seen"]) + report.resources(reads)
    if asked.large:
        lines += _large(folder, asked.size)
    lines += ["", "What they are made of: events or entries per second unless it says otherwise, median (min – max)"]
    lines += ["as it is", *report.rates(plain["seen"])]
    if slowed is not None:
        lines += [f"+{SLOWED_US / 1000:.0f} ms per sync", *report.rates(slowed["seen"])]
    lines += ["reads", *report.rates(reads["seen"]),
              "  bytes per entry: " + ", ".join(f"{k} {v:.1f}" for k, v in reads["bytes"].items())]  # fmt: skip
    lines += ["", *_capture(asked.rounds, scale), "", *_trust(asked.rounds, scale), "", *_witness(asked.rounds, scale)]
    if asked.peers:
        from . import peers

        lines += ["", *peers.compare(own.resolve(), 2000 if asked.quick else 10_000)]
    return lines


def _capture(rounds: int, scale: str) -> list[str]:
    return capture.lines(_child("bench.capture", str(rounds), scale), _head())


def _trust(rounds: int, scale: str) -> list[str]:
    found = _child("bench.trust", str(rounds), scale)
    return [f"TRUST BEYOND THE MACHINE, {rounds} rounds", _head(), *report.table(trust.ROWS, found["seen"])]


def _witness(rounds: int, scale: str) -> list[str]:
    seen = _child("bench.witness", str(rounds), scale)["seen"]
    return [f"WITNESS, {rounds} rounds", _head(), *report.table(report.WITNESS, seen), *report.rates(seen)]


def _large(folder: Path, size: int) -> list[str]:
    seen = _child("bench.reads", "large", str(folder.resolve()), str(size), str(10 * size))
    lines = ["", f"THE SAME FIGURES at {10 * size:,} as at {size:,}: medians of 7 rounds, ratio of the medians (must ≤ 1.2, aim 1.0)"]
    for name in sorted({key.rpartition(" at ")[0] for key in seen}):
        small, large = (statistics.median(seen[f"{name} at {n}"]) for n in (size, 10 * size))
        verdict = "aim reached" if large <= small else "must reached" if large <= 1.2 * small else "NOT REACHED"
        lines.append(f"{name:<58} {large / small:>6.2f}   {report.number(small)} → {report.number(large)}   {verdict}")
    return lines


def _child(module: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Each set of cases in a process of its own."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        if environment is not None:
            raise Refused(f"the slowed run ended with {done.returncode}; what it said stands above")
        raise SystemExit(f"{module} failed with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _head() -> str:
    return f"{'':<58} {'median (min – max)':>36}   {'must':>9} {'aim':>8}"


def _machine() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("msgspec", "cryptography"))
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    openssl = " ".join(ssl.OPENSSL_VERSION.split()[:2])
    return (f"{model}, {os.cpu_count()} CPUs, {file_system(Path())}, {platform.system()} {platform.release()}, "
            f"Python {platform.python_version()}, {versions}, SQLite {sqlite3.sqlite_version}, {openssl}")  # fmt: skip


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=1_000_000, help="entries of the log that is read")
    parser.add_argument("--quick", action="store_true", help="2 rounds, 20,000 entries: only to see that it runs")
    parser.add_argument("--capture", action="store_true", help="only the capture of calls to models")
    parser.add_argument("--trust", action="store_true", help="only epochs")
    parser.add_argument("--witness", action="store_true", help="only witnesses: ours and aics-witness")
    parser.add_argument("--peers", action="store_true", help="also five peers from PyPI, in an environment of their own")
    parser.add_argument("--large", action="store_true", help="also a log ten times the size: disk and minutes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the logs there and use those that are there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.size = 2, 20_000
    return asked


if __name__ == "__main__":
    main()
