"""Disks that fail: at the k-th change, by a process that dies there, by a power loss."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tallystick.disk import Disk


class Died(BaseException):
    """The process is no more. Nothing that runs afterwards may reach the disk."""


FAILED, DONE, DIED_BEFORE, DIED_AFTER = "failed", "done but reported failed", "died before", "died after"
COLUMNS = (FAILED, DONE, DIED_BEFORE, DIED_AFTER)


class FaultDisk(Disk):
    """Counts what changes the disk; at number ``at`` it fails in the given way, once (a dead process stays dead).

    ``error`` is the errno of the failure. Syncs are counted and left out: nothing here outlives the machine.
    """

    def __init__(self, at: int = 0, way: str = FAILED, *, error: int = errno.EIO) -> None:
        self.at, self.way, self.error = at, way, error
        self.count = 0
        self.fired = self.dead = False
        self.seen: list[str] = []

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        if self.dead:
            raise Died(name)
        self.count += 1
        self.seen.append(name)
        now = self.count == self.at
        self.fired = self.fired or now
        if now and self.way in (DIED_BEFORE, DIED_AFTER):
            self.dead = True
        if now and self.way == DIED_BEFORE:
            raise Died(name)
        if now and self.way == FAILED:
            raise OSError(self.error, os.strerror(self.error), name)
        yield
        if now and self.way == DONE:
            raise OSError(self.error, os.strerror(self.error), name)
        if now and self.way == DIED_AFTER:
            raise Died(name)

    def open(self, path: Path, flags: int, mode: int = 0o600, *, like: Path | None = None) -> int:
        if not flags & os.O_CREAT:
            return super().open(path, flags, mode, like=like)
        fd = -1
        try:
            with self._step(f"open {path.name}"):
                fd = super().open(path, flags, mode, like=like)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        with self._step("write"):
            super().write_at(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        with self._step("truncate"):
            super().truncate(fd, size)

    def sync_data(self, fd: int) -> None:
        with self._step("sync_data"):
            os.fstat(fd)

    def sync(self, fd: int) -> None:
        with self._step("sync"):
            os.fstat(fd)

    def sync_folder(self, path: Path) -> None:
        with self._step(f"sync_folder {path.name}"):
            assert path.is_dir()

    def rename(self, source: Path, target: Path) -> None:
        with self._step(f"rename {target.name}"):
            super().rename(source, target)

    def unlink(self, path: Path) -> None:
        with self._step(f"unlink {path.name}"):
            super().unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700, *, like: Path | None = None) -> None:
        with self._step(f"mkdir {path.name}"):
            super().mkdir(path, mode, like=like)

    def chmod(self, path: Path, mode: int) -> None:
        with self._step(f"chmod {path.name}"):
            super().chmod(path, mode)


class HalfWrite(FaultDisk):
    """Of the k-th write only the first half reaches the file before the failure or the death."""

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        if self.count + 1 == self.at and not self.dead:
            os.pwrite(fd, data[: len(data) // 2], offset)
        super().write_at(fd, data, offset)


def tries(make: Callable[[int, str], FaultDisk] = FaultDisk, ways: tuple[str, ...] = COLUMNS) -> Iterator[FaultDisk]:
    """Disks with the fault at 1, 2, 3, … in each way, until one of them has none left to meet."""
    for way in ways:
        for at in range(1, 1000):
            disk = make(at, way)
            yield disk
            if not disk.fired:
                break
        else:
            raise AssertionError("a script without an end")


def attempt(action: Callable[[], Any], *expected: type[BaseException]) -> Any:
    """The result, or None where one of the expected errors came. ``Died`` is always expected."""
    try:
        return action()
    except (Died, *expected):
        return None
