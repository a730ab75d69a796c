"""The store of plain files (STORAGE, first block): segments of lines, tree files, the head.

Reads go straight to the files; everything that changes one goes through ``Disk``. See ``store/__init__.py`` for the contract.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ..core.errors import Malformed, StoreError
from ..disk import DISK, Disk, close_quietly, file_mode, folder_mode
from . import Batch, Holder, Run, Segment
from .lock import FolderLock

_NAME = re.compile(r"([0-9]{20})\.jsonl", re.ASCII)
_CHUNK = 1 << 20
_LINE_MAX = 1 << 17  # a line without newline beyond this is no line; readers stop there
HEAD_BYTES_MAX = 4096
HASH = 32
RESERVE_BYTES = 64 * 1024


def segment_name(start: int) -> str:
    """``00000000000000018204.jsonl``."""
    return f"{start:020d}.jsonl"


class SegmentStore:
    """A log folder. Descriptors are opened when first needed and closed by ``close``."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder = folder
        self.broken = False
        self.lock = FolderLock(folder / "lock", folder / "segments", disk)
        self._disk = disk
        self._folder = os.fspath(folder)
        self._fd: int | None = None  # the growing segment
        self._start, self._end = -1, 0
        self._before = 0
        self._head_fd: int | None = None
        self._head_bytes = 0
        self._places: dict[str, tuple[str, int, int]] = {}  # what is open: path, device, inode
        self._tree: dict[int, int] = {}
        self._dirty: set[int] = set()

    # -- reading -----------------------------------------------------------------------------------------------------

    def head(self) -> bytes | None:
        """The bytes of ``checkpoint``; None if there is no such file. ``Malformed`` beyond 4 KiB."""
        try:
            fd = os.open(self.folder / "checkpoint", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            data = os.read(fd, HEAD_BYTES_MAX + 1)
        finally:
            os.close(fd)
        if len(data) > HEAD_BYTES_MAX:
            raise Malformed(f"checkpoint: more than {HEAD_BYTES_MAX} bytes")
        return data

    def segments(self) -> list[Segment]:
        """All segments by their names, ascending; other files in ``segments/`` are not looked at."""
        found = []
        with os.scandir(self.folder / "segments") as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    found.append(Segment(int(match[1]), entry.name, entry.stat().st_size))
        return sorted(found)

    def batches(self, segment: Segment, offset: int = 0, index: int | None = None) -> Iterator[Batch]:
        """Complete lines in batches of about 1 MiB. Stops before a line that is too long to be one."""
        at = segment.start if index is None else index
        with self._open_segment(segment.name) as fd:
            rest = b""
            while True:
                data = os.pread(fd, _CHUNK, offset + len(rest))
                if not data:
                    return
                data = rest + data
                *lines, rest = data.split(b"\n")
                if lines:
                    yield Batch(at, segment.start, offset, lines)
                    at += len(lines)
                    offset += len(data) - len(rest)
                elif len(rest) > _LINE_MAX:
                    return

    def runs(self, segment: Segment) -> Iterator[Run]:
        """About 1 MiB at a time. Stops before a line that is too long to be one."""
        offset, count = 0, _CHUNK
        with self._open_segment(segment.name) as fd:
            while data := os.pread(fd, count, offset):
                size = data.rfind(b"\n") + 1
                if size:
                    yield Run(offset, data, size)
                    offset, count = offset + size, _CHUNK
                elif len(data) > _LINE_MAX or len(data) < count:
                    return
                else:  # never, with chunks that are longer than a line may be
                    count *= 2

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of a segment."""
        return next(self.lines([(segment, offset, length)]))

    def lines(self, places: Iterable[tuple[int, int, int]]) -> Iterator[bytes]:
        """Many reads; the file stays open as long as the segment is the same."""
        home, fd = -1, None
        try:
            for segment, offset, length in places:
                if segment != home:
                    close_quietly(fd)
                    home, fd = -1, None
                    try:
                        fd = os.open(self.folder / "segments" / segment_name(segment), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    except FileNotFoundError:
                        raise StoreError(f"segments/{segment_name(segment)} is not here") from None
                    home = segment
                assert fd is not None
                data = os.pread(fd, length, offset)
                if len(data) != length:
                    raise StoreError(f"segments/{segment_name(segment)}: {length} bytes expected at {offset}, {len(data)} found; "
                                     "lines are missing: tally verify says which")
                yield data
        finally:
            close_quietly(fd)

    def tail(self, segment: Segment, offset: int) -> bytes:
        """Everything after ``offset``: what recovery looks at."""
        with self._open_segment(segment.name) as fd:
            size = os.fstat(fd).st_size
            return b"".join(os.pread(fd, _CHUNK, at) for at in range(offset, size, _CHUNK))

    def hashes(self, level: int, start: int, count: int) -> bytes:
        """``count`` hashes of ``tree/<level>``."""
        if count == 0:
            return b""
        try:
            fd = os.open(self.folder / "tree" / str(level), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise StoreError(f"tree/{level} is not here") from None
        try:
            data = os.pread(fd, count * HASH, start * HASH)
        finally:
            os.close(fd)
        if len(data) != count * HASH:
            raise StoreError(f"tree/{level} ends before hash {start + count}")
        return data

    def hash_count(self, level: int) -> int:
        """Whole hashes in ``tree/<level>``."""
        try:
            return (self.folder / "tree" / str(level)).stat().st_size // HASH
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def _open_segment(self, name: str) -> Iterator[int]:
        fd = os.open(self.folder / "segments" / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- writing -----------------------------------------------------------------------------------------------------

    def exclusive(self, wait_s: float) -> AbstractContextManager[None]:
        """The folder's lock."""
        return self.lock.held(wait_s)

    def untouched(self, head: bytes) -> bool:
        """Four reads of open descriptors. Whoever else held the lock wrote his token into it."""
        return (
            self._fd is not None and self._head_fd is not None and self.lock.is_ours()
            and os.pread(self._head_fd, HEAD_BYTES_MAX + 1, 0) == head and os.fstat(self._fd).st_size == self._end
        )  # fmt: skip

    def appended(self, limit: int) -> bytes | None:
        """Bytes behind the end of the open segment."""
        if self._fd is None:
            return None
        count = os.fstat(self._fd).st_size - self._end
        if not 0 <= count <= limit:
            return None
        data = os.pread(self._fd, count, self._end)
        return data if len(data) == count else None

    def continues(self, start: int) -> bool:
        """True if a segment begins at ``start`` that is not the one this handle has open: somebody sealed that one."""
        return start != self._start and os.path.exists(f"{self._folder}/segments/{segment_name(start)}")

    def head_now(self) -> bytes | None:
        """The head in the file that this handle writes; None before it wrote one."""
        return None if self._head_fd is None else os.pread(self._head_fd, HEAD_BYTES_MAX + 1, 0)

    def advance(self, count: int) -> None:
        """Another writer's lines were taken in."""
        self._end += count

    def note_holder(self, boot: str, *, clean: bool, durable: bool) -> None:
        """Write into the lock who holds it now (inside ``exclusive``)."""
        self.lock.note_holder(boot, clean=clean)
        if durable:
            assert self.lock.fd is not None
            self._sync(self.lock.fd)

    def last_holder(self) -> Holder | None:
        """What the lock file says."""
        return self.lock.last_holder()

    def forget_thread(self) -> None:
        """The thread that waits for the lock is the parent's."""
        self.lock.forget_thread()

    def moved(self) -> bool:
        """True if the open segment, the head or the lock is no longer the file at its path: the folder was replaced."""
        for path, device, inode in (*self._places.values(), *self.lock.place):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                return True
            if status.st_ino != inode or status.st_dev != device:
                return True
        return False

    def attach(self, segment: Segment, offset: int) -> None:
        """Go on writing ``segment`` at ``offset``, where its last known line ends."""
        if self._start != segment.start or self._fd is None:
            close_quietly(self._fd)
            self._fd = None
            self._fd = self._disk.open(self.folder / "segments" / segment.name, os.O_RDWR)
            self._start = segment.start
            self._remember("segment", f"{self._folder}/segments/{segment.name}", self._fd)
            if offset == 0:  # whoever made it may have died before its name was durable
                self._guard(lambda: self._disk.sync_folder(self.folder / "segments"))
        self._end = offset

    def _remember(self, what: str, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self._places[what] = (path, status.st_dev, status.st_ino)

    def append(self, start: int, data: bytes) -> int:
        """Write; the device may begin with it while the caller hashes and signs."""
        assert self._fd is not None and start >= self._start
        self._before = self._end
        self._disk.write_at(self._fd, data, self._end)
        self._end += len(data)
        self._disk.begin_sync(self._fd, self._before, len(data))
        return self._before

    def sync(self) -> None:
        """The one sync of a group without payloads."""
        assert self._fd is not None
        self._sync(self._fd)

    def rollback(self) -> None:
        """Cut back to where the last ``append`` began. If this fails the next holder recovers."""
        assert self._fd is not None
        self._disk.truncate(self._fd, self._before)
        self._sync(self._fd)
        self._end = self._before

    def roll(self, start: int) -> None:
        """A new growing segment. If we die after the file was made it is empty and the next writer goes on in it."""
        old = self._start
        path = self.folder / "segments" / segment_name(start)
        fd = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, file_mode(self.folder), like=self.folder)
        close_quietly(self._fd)
        self._fd, self._start, self._end = fd, start, 0
        self._remember("segment", f"{self._folder}/segments/{segment_name(start)}", fd)
        self._guard(lambda: self._disk.sync(fd))
        self._guard(lambda: self._disk.sync_folder(path.parent))
        if old >= 0:
            mode = 0o440 if file_mode(self.folder) == 0o640 else 0o400
            self._disk.chmod(self.folder / "segments" / segment_name(old), mode)

    def rewrite(self, segment: Segment, offset: int, data: bytes) -> None:
        """The same bytes at the same place, synced: what a dying process left in the page cache becomes durable."""
        self.attach(segment, offset)
        assert self._fd is not None
        self._disk.write_at(self._fd, data, offset)
        self._sync(self._fd)
        self._end = offset + len(data)

    def cut(self, segment: Segment, offset: int) -> tuple[str, int, str]:
        """Quarantine is named by place and content, so that dying in between and doing it again makes no second file."""
        data = self.tail(segment, offset)
        digest = hashlib.sha256(data).hexdigest()
        name = f"{segment.start:020d}-{offset}-{digest[:16]}.bin"
        folder = self.folder / "quarantine"
        if not folder.exists():
            self._disk.mkdir(folder, folder_mode(self.folder), like=self.folder)
        self._guard(lambda: self._disk.sync_folder(self.folder))
        # if this fails, on a full disk say, nothing was cut yet, and the next try writes a file of its own
        self._disk.write_file(folder / name, data, file_mode(self.folder), like=self.folder)
        # if we die here the bytes are in both places; the next recovery finds them again and writes the same file
        self.attach(segment, offset)
        fd = self._fd
        assert fd is not None
        self._disk.truncate(fd, offset)
        self._guard(lambda: self._disk.sync(fd))
        return name, len(data), digest

    def put_hashes(self, level: int, start: int, data: bytes) -> None:
        """In place, not yet durable."""
        if not data:
            return
        fd = self._tree.get(level)
        if fd is None:
            path = self.folder / "tree" / str(level)
            fd = self._disk.open(path, os.O_RDWR | os.O_CREAT, file_mode(self.folder), like=self.folder)
            self._tree[level] = fd
        self._disk.write_at(fd, data, start * HASH)
        self._dirty.add(fd)

    def put_head(self, note: bytes) -> None:
        """In place, not yet durable: one page, so that a reader sees the old or the new one or tries again."""
        if self._head_fd is None:
            path = self.folder / "checkpoint"
            self._head_fd = self._disk.open(path, os.O_RDWR | os.O_CREAT, file_mode(self.folder), like=self.folder)
            self._head_bytes = os.fstat(self._head_fd).st_size
            self._remember("head", f"{self._folder}/checkpoint", self._head_fd)
        self._disk.write_at(self._head_fd, note, 0)
        if self._head_bytes > len(note):
            self._disk.truncate(self._head_fd, len(note))
        self._head_bytes = len(note)
        self._dirty.add(self._head_fd)

    def make_reserve(self) -> None:
        """Keep room for the entry that says that the disk was full."""
        path = self.folder / "reserve"
        if path.exists():
            return
        fd = self._disk.open(path, os.O_RDWR | os.O_CREAT, file_mode(self.folder), like=self.folder)
        try:
            self._disk.write_at(fd, bytes(RESERVE_BYTES), 0)
        except OSError:
            self._disk.unlink(path)
            raise
        finally:
            close_quietly(fd)

    def release_reserve(self) -> bool:
        """Give the reserved room back to the file system; False if it was given up already."""
        try:
            self._disk.unlink(self.folder / "reserve")
        except OSError:
            return False
        return True

    def flush(self) -> None:
        """Sync tree and head, and the folder of the tree."""
        count = len(self._dirty)
        for _ in range(count):  # one that is written again meanwhile is put back by whoever does that
            self._sync(self._dirty.pop())
        if count:
            self._guard(lambda: self._disk.sync_folder(self.folder / "tree"))

    def flush_all(self) -> None:
        """Sync tree and head whoever wrote them: another process may have died before it could."""
        self._dirty.clear()
        paths = [self.folder / "checkpoint", *sorted((self.folder / "tree").iterdir())]
        for path in paths:
            if path.exists():
                fd = self._disk.open(path, os.O_RDWR)
                try:
                    self._sync(fd)
                finally:
                    close_quietly(fd)
        self._guard(lambda: self._disk.sync_folder(self.folder / "tree"))

    def drop(self, segment: Segment) -> None:
        """Remove a segment for good. If we die before the folder is synced it may come back: the caller drops it again."""
        if segment.start == self._start:
            self.detach()
        self._disk.unlink(self.folder / "segments" / segment.name)
        self._guard(lambda: self._disk.sync_folder(self.folder / "segments"))

    def detach(self) -> None:
        """Forget where the end is; the next ``attach`` says."""
        close_quietly(self._fd)
        self._fd, self._start, self._end = None, -1, 0
        self._places.pop("segment", None)
        self._head_bytes = os.fstat(self._head_fd).st_size if self._head_fd is not None else 0

    def close(self) -> None:
        """Release all descriptors."""
        self.detach()
        close_quietly(self._head_fd)
        self._head_fd = None
        self._places.clear()
        for fd in self._tree.values():
            close_quietly(fd)
        self._tree.clear()
        self._dirty.clear()
        self.lock.close()

    def _sync(self, fd: int) -> None:
        self._guard(lambda: self._disk.sync_data(fd))

    def _guard(self, action: object) -> None:
        """A sync that failed may have dropped the dirty pages: never try it again on this handle."""
        assert callable(action)
        try:
            action()
        except OSError:
            self.broken = True
            raise
