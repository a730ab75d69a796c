"""The disk: its sync as it is, and slowed by a library that is compiled here and checked before anything is measured under it."""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SLOWED_US = 2000


class Refused(Exception):
    """The slowed run cannot be made honestly here."""


def slowed_environment(folder: Path) -> dict[str, str]:
    """The environment in which every sync takes 2 ms longer. ``Refused`` without a compiler."""
    library = folder / "slowsync.so"
    source = Path(__file__).with_name("slowsync.c")
    try:
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Refused("no C compiler (cc), so no library that slows every sync") from None
    if made.returncode:
        raise Refused(f"bench/slowsync.c does not compile: {made.stderr.strip()[:300]}")
    return {**os.environ, "LD_PRELOAD": str(library), "SLOWSYNC_US": str(SLOWED_US)}


def check_slowed() -> None:
    """In the slowed process: each way that anybody here takes to sync must have become slower. ``Refused`` otherwise."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        path = Path(name)
        fd = os.open(path / "x", os.O_RDWR | os.O_CREAT, 0o600)
        connection = sqlite3.connect(path / "x.db", isolation_level=None)
        connection.execute("CREATE TABLE t (a)")
        ways = {"os.fsync": lambda: os.fsync(fd), "os.fdatasync": lambda: os.fdatasync(fd), "os.sync": os.sync,
                "a commit of SQLite": lambda: connection.execute("INSERT INTO t VALUES (1)")}  # fmt: skip
        for what, way in ways.items():
            os.write(fd, b"x")
            started = time.perf_counter()
            way()
            if time.perf_counter() - started < SLOWED_US / 1e6:
                raise Refused(f"{what} is not slowed by {SLOWED_US} µs in this process")
        connection.close()
        os.close(fd)


def bare_append(path: Path, lines: list[bytes]) -> list[float]:
    """The floor: one line, one fdatasync; seconds of each."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    taken = []
    for line in lines:
        started = time.perf_counter()
        os.write(fd, line)
        os.fdatasync(fd)
        taken.append(time.perf_counter() - started)
    os.close(fd)
    return taken


def median_us(seconds: list[float]) -> float:
    """The median in microseconds."""
    return statistics.median(seconds) * 1e6


def file_system(path: Path) -> str:
    """The type of the file system under a path."""
    best, kind = "", "unknown"
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else ():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4]
        if str(path.resolve()).startswith(point) and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind
