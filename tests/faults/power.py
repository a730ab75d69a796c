"""A disk that loses its power. Of what was not synced any part survives: single 4 KiB pages in any version they had, sizes,
names; a page that did not survive where the size did reads as zeros. What was synced survives whole.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tallystick.disk import Disk

from .disks import Died

PAGE = 4096


class File:
    """One inode: what is durable, what it is now, and every version in between."""

    def __init__(self, data: bytes = b"") -> None:
        self.now = bytearray(data)
        self.durable = bytes(data)
        self.pages: dict[int, list[bytes]] = {}
        self.sizes: list[int] = []

    def write(self, data: bytes, offset: int) -> None:
        if len(self.now) < offset + len(data):
            self.now.extend(bytes(offset + len(data) - len(self.now)))
            self.sizes.append(len(self.now))
        self.now[offset : offset + len(data)] = data
        for page in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
            self.pages.setdefault(page, []).append(bytes(self.now[page * PAGE : (page + 1) * PAGE]))

    def resize(self, size: int) -> None:
        self.now = self.now[:size] + bytes(max(0, size - len(self.now)))
        self.sizes.append(size)

    def sync(self) -> None:
        self.durable = bytes(self.now)
        self.pages, self.sizes = {}, []

    def survives(self, choose: random.Random) -> bytes:
        size = choose.choice([len(self.durable), *self.sizes])
        data = bytearray(self.durable[:size])
        for page, versions in self.pages.items():
            version = choose.choice([None, *versions])
            if version is not None and page * PAGE < size:
                data.extend(bytes(max(0, page * PAGE - len(data))))
                data[page * PAGE : page * PAGE + len(version)] = version
        return bytes(data[:size]) + bytes(max(0, size - len(data)))


    def without(self, pages: set[int]) -> bytes:
        """Everything survives but these pages."""
        data = bytearray(self.now)
        for page in pages & set(self.pages):
            old = self.durable[page * PAGE : (page + 1) * PAGE]
            here = len(data[page * PAGE : (page + 1) * PAGE])
            data[page * PAGE : page * PAGE + here] = old[:here].ljust(here, b"\0")
        return bytes(data)


class Change(NamedTuple):
    """A change of names in one folder, which survives as a whole or not at all. ``None``: a folder was made."""

    folder: Path
    removed: Path | None
    added: Path | None
    file: File | None


class PowerDisk(Disk):
    """Does everything for real below ``base`` and knows what a power loss may take. Dies at its ``at``-th change."""

    def __init__(self, base: Path, at: int = 0) -> None:
        self.base, self.at, self.count = base, at, 0
        self._names: dict[Path, File | None] = {}  # durable
        self._now: dict[Path, File | None] = {}
        self._changes: list[Change] = []
        self._open: dict[int, File] = {}
        for path in sorted(base.rglob("*")):
            self._names[path] = None if path.is_dir() else File(path.read_bytes())
        self._now = dict(self._names)

    def _step(self) -> None:
        if self.at and self.count >= self.at:
            raise Died("no power")
        self.count += 1

    def open(self, path: Path, flags: int, mode: int = 0o600, *, like: Path | None = None) -> int:
        self._step()
        known = self._now.get(path)
        fd = super().open(path, flags, mode, like=like)
        if known is None:
            known = File()
            self._change(Change(path.parent, None, path, known))
        elif flags & os.O_TRUNC:
            known.resize(0)
        self._open[fd] = known
        return fd

    def _change(self, change: Change) -> None:
        self._changes.append(change)
        _apply(self._now, change)

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        self._step()
        super().write_at(fd, data, offset)
        if data:
            self._open[fd].write(data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._step()
        super().truncate(fd, size)
        self._open[fd].resize(size)

    def sync_data(self, fd: int) -> None:
        self._step()
        self._open[fd].sync()

    def sync(self, fd: int) -> None:
        self._step()
        self._open[fd].sync()

    def sync_folder(self, path: Path) -> None:
        self._step()
        for change in [c for c in self._changes if c.folder == path]:
            self._changes.remove(change)
            _apply(self._names, change)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)
        inside = [p for p in self._now if source in p.parents]
        self._change(Change(target.parent, source, target, self._now[source]))
        for names in (self._names, self._now):  # a folder takes along what is in it, and what is pending there
            for path in inside:
                if path in names:
                    names[target / path.relative_to(source)] = names.pop(path)
        self._changes = [_moved(c, source, target) for c in self._changes]

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        self._change(Change(path.parent, path, None, None))

    def mkdir(self, path: Path, mode: int = 0o700, *, like: Path | None = None) -> None:
        self._step()
        super().mkdir(path, mode, like=like)
        self._change(Change(path.parent, None, path, None))

    def lose(self, seed: int, keep: Callable[[Path], bool] = lambda _: False) -> None:
        """What is left below ``base``. Files that never came through here (SQLite looks after its own) stay where ``keep``
        says so."""
        choose = random.Random(seed)
        names = dict(self._names)
        chance = choose.choice((0.0, 0.5, 1.0))
        for change in self._changes:
            if choose.random() < chance:
                _apply(names, change)
        kept = {p: p.read_bytes() for p in self.base.rglob("*") if p.is_file() and p not in self._now and keep(p)}
        data = {path: file if file is None else file.survives(choose) for path, file in sorted(names.items())}
        for path in self.base.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, content in data.items():
            if path.parent.is_dir():
                path.mkdir(0o700) if content is None else path.write_bytes(content)
                path.chmod(0o700 if content is None else 0o600)
        for path, content in kept.items():
            if path.parent.is_dir():
                path.write_bytes(content)


class Mortal(Disk):
    """One process on a disk that goes on: it dies at its ``at``-th change, before or after it."""

    def __init__(self, disk: PowerDisk, at: int, *, after: bool) -> None:
        self._disk, self._left, self._after = disk, at, after
        self.dead = False

    def _do(self, name: str, *args: Any, **keywords: Any) -> Any:
        if not self.dead:
            self._left -= 1
            self.dead = self._left <= 0
            if not self.dead:
                return getattr(self._disk, name)(*args, **keywords)
            if self._after:
                done = getattr(self._disk, name)(*args, **keywords)
                if name == "open":
                    os.close(done)
        raise Died(name)

    def open(self, *args: Any, **keywords: Any) -> int:
        return int(self._do("open", *args, **keywords))

    def write_at(self, *args: Any) -> None:
        self._do("write_at", *args)

    def truncate(self, *args: Any) -> None:
        self._do("truncate", *args)

    def sync_data(self, *args: Any) -> None:
        self._do("sync_data", *args)

    def sync(self, *args: Any) -> None:
        self._do("sync", *args)

    def sync_folder(self, *args: Any) -> None:
        self._do("sync_folder", *args)

    def rename(self, *args: Any) -> None:
        self._do("rename", *args)

    def unlink(self, *args: Any) -> None:
        self._do("unlink", *args)

    def mkdir(self, *args: Any, **keywords: Any) -> None:
        self._do("mkdir", *args, **keywords)

    def chmod(self, *args: Any) -> None:
        self._do("chmod", *args)


def _apply(names: dict[Path, File | None], change: Change) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None:
        names[change.added] = change.file


def lose_pages(disk: PowerDisk, lost: dict[Path, set[int]]) -> None:
    """All names and everything else survives, these unsynced pages do not."""
    for path, file in disk._now.items():
        if file is not None:
            path.write_bytes(file.without(lost.get(path, set())))


def _moved(change: Change, source: Path, target: Path) -> Change:
    def place(path: Path | None) -> Path | None:
        return target / path.relative_to(source) if path is not None and source in path.parents else path

    folder = target if change.folder == source else place(change.folder)
    assert folder is not None
    return change._replace(folder=folder, removed=place(change.removed), added=place(change.added))
