"""The spool: events that could not be recorded, kept in order beside the keys until they can be.

One file for each process that needs one, ``<keys>/spool/<token>``, which its process keeps locked; what a dead process left is found
by the lock that nobody holds. The file is a run of frames::

    u32 length | u64 sequence | 12 nonce | AES-256-GCM(event as msgpack) with tag 16

under the key ``<keys>/spool.key`` (32 random bytes, 0600), with ``origin \\0 token \\0 sequence`` as associated data, so that frames
can be neither exchanged nor moved. Nothing is read behind a frame that is torn or altered: such a file is kept as
``<token>.damaged``, and the gap says that it could not be read whole. Every event has its id, and an id that the log has already
is answered by it: a spool that is drained twice leaves no duplicate.

Where the file cannot be written either (the same disk is full) events stay in memory, within bounds; what exceeds them is lost,
and counted.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..core.errors import AuditError, Malformed
from ..core.payload import Payload
from ..disk import DISK, Disk, close_quietly

MEMORY_EVENTS_MAX = 4096
MEMORY_BYTES_MAX = 16 << 20
_HEAD = 4 + 8 + 12
_FRAME_MAX = 80 << 20
_TOKEN = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Spooled(NamedTuple):
    """One event: the keywords of ``log``, its id, and when it happened in µs."""

    keywords: dict[str, Any]
    event_id: str
    moment_us: int


class Spool:
    """What one process could not record. Not safe for threads: its owner has a lock."""

    def __init__(self, keys: Path, origin: str, disk: Disk = DISK) -> None:
        self._keys, self._origin, self._disk = keys, origin, disk
        self._folder = keys / "spool"
        self._file: _File | None = None
        self._memory: collections.deque[bytes] = collections.deque()
        self._memory_bytes = 0
        self.unopened, self.trouble = 0, ""

    def __len__(self) -> int:
        return (self._file.count if self._file is not None else 0) + len(self._memory)

    def put(self, event: Spooled) -> bool:
        """Keep one event; False if there is no room for it anywhere, and it is lost."""
        data = _encode(event)
        if not self._memory:  # what comes later must not overtake what only memory holds
            try:
                if self._file is None:
                    self._file = _File.create(self._folder, self._key(), self._origin, self._disk)
                self._file.append(data)
                return True
            except (OSError, AuditError):
                pass
        if len(self._memory) >= MEMORY_EVENTS_MAX or self._memory_bytes + len(data) > MEMORY_BYTES_MAX:
            return False
        self._memory.append(data)
        self._memory_bytes += len(data)
        return True

    def drain(self, record: Callable[[Spooled], None]) -> None:
        """Hand the events over in order. What ``record`` raises ends it; the event and those behind it stay."""
        if self._file is not None and self._file.count:
            self._file.drain(record)
        while self._memory:
            record(_decode(self._memory[0]))
            self._memory_bytes -= len(self._memory.popleft())

    def orphans(self) -> Iterator[_File]:
        """The files of processes that are gone, locked while they are looked at. Without their key none can be opened: they stay, and
        ``unopened`` says how many there are, ``trouble`` why."""
        self.unopened, self.trouble = 0, ""
        try:
            names = [name for name in sorted(os.listdir(self._folder)) if _TOKEN.fullmatch(name)]
        except FileNotFoundError:
            return
        names = [name for name in names if self._file is None or name != self._file.token]
        if names:
            try:
                key = self._key()
            except (OSError, AuditError) as e:
                self.unopened, self.trouble = len(names), str(e)
                return
            for name in names:
                file = _File.adopt(self._folder / name, key, self._origin, self._disk)
                if file is not None:
                    try:
                        yield file
                    finally:
                        file.close()

    def _key(self) -> bytes:
        path = self._keys / "spool.key"
        if not path.exists():
            if self._folder.is_dir() and any(_TOKEN.fullmatch(name) for name in os.listdir(self._folder)):
                raise Malformed(f"{path} is gone, and spools are there that only it opens")
            fresh = self._keys / f".spool.key.{os.urandom(6).hex()}"
            self._disk.write_file(fresh, os.urandom(32), 0o600, like=self._keys)
            with contextlib.suppress(FileExistsError):  # another process was faster: its key counts
                os.link(fresh, path)
            self._disk.unlink(fresh)
            self._disk.sync_folder(self._keys)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            mode = os.fstat(fd).st_mode
            key = os.read(fd, 33)
        finally:
            os.close(fd)
        if len(key) != 32 or mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Malformed(f"{path} is not a key of this program that only its owner can read")
        return key

    def close(self) -> None:
        """Let go of the file; if events are in it the next process drains them."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def abandon(self) -> None:
        """In a forked child: file and memory are the parent's."""
        if self._file is not None:
            self._file.forget()
        self._file = None
        self._memory.clear()
        self._memory_bytes = 0


class _File:
    """One spool file, open and locked."""

    def __init__(self, path: Path, fd: int, key: bytes, origin: str, disk: Disk) -> None:
        self.path, self._fd, self._disk = path, fd, disk
        self.token = path.name
        self._cipher, self._origin = AESGCM(key), origin
        self.count = self._sequence = 0
        self._end = 0
        self.is_damaged = False  # something in it cannot be read: kept, never written over
        self.first_us = self.last_us = 0

    @classmethod
    def create(cls, folder: Path, key: bytes, origin: str, disk: Disk) -> _File:
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                disk.mkdir(folder, 0o700, like=folder.parent)
            disk.sync_folder(folder.parent)
        while True:
            path = folder / os.urandom(8).hex()
            fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, like=folder)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink == 0:  # somebody took it for a dead one's between the two lines
                    close_quietly(fd)
                    continue
                disk.sync_folder(folder)
            except OSError:
                close_quietly(fd)
                raise
            return cls(path, fd, key, origin, disk)

    @classmethod
    def adopt(cls, path: Path, key: bytes, origin: str, disk: Disk) -> _File | None:
        """A dead process's file, locked; None while its owner lives, or if it is no file of ours."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Malformed("not a regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = cls(path, fd, key, origin, disk)
            for event, end in file.frames():
                file.count, file._end = file.count + 1, end
                file.first_us, file.last_us = file.first_us or event.moment_us, event.moment_us
        except (OSError, AuditError):
            close_quietly(fd)
            return None
        return file

    def append(self, data: bytes) -> None:
        """One frame, durable on return. What was written of it and could not be finished is cut off."""
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(nonce, data, self._bound(self._sequence))
        frame = len(sealed).to_bytes(4, "big") + self._sequence.to_bytes(8, "big") + nonce + sealed
        try:
            self._disk.write_at(self._fd, frame, self._end)
            self._disk.sync_data(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(frame)
        self._sequence += 1
        self.count += 1

    def drain(self, record: Callable[[Spooled], None]) -> None:
        """All frames in order, then an empty file. If we die in between, the ids of what is recorded answer for it."""
        for event, _ in list(self.frames()):
            record(event)
        if self.is_damaged:  # for whoever wants to know what else was in it
            with contextlib.suppress(OSError):
                os.rename(self.path, self.path.with_suffix(".damaged"))
        else:
            os.ftruncate(self._fd, 0)
        self._end = self.count = 0

    def frames(self) -> Iterator[tuple[Spooled, int]]:
        """Frames and where each ends, up to the first that is torn, altered or not the next one; ``is_damaged`` says if there is one.
        One that is torn is what its process had not finished: that event is lost, and counted like the others."""
        at, size, expected = 0, os.fstat(self._fd).st_size, -1
        self.is_damaged = size > 0
        while at < size:
            head = os.pread(self._fd, _HEAD, at)
            length, sequence = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:12], "big")
            end = at + _HEAD + length
            if len(head) < _HEAD or not 16 <= length <= _FRAME_MAX or end > size or expected not in (-1, sequence):
                return
            sealed = os.pread(self._fd, length, at + _HEAD)
            try:
                event = _decode(self._cipher.decrypt(head[12:], sealed, self._bound(sequence)))
            except (InvalidTag, Malformed):
                return
            at, expected = end, sequence + 1
            self.is_damaged = at != size
            yield event, at

    def remove(self) -> None:
        """Everything in it is recorded."""
        with contextlib.suppress(OSError):
            self._disk.unlink(self.path)

    def close(self) -> None:
        if self.count == 0 and self._fd >= 0 and not self.is_damaged:
            self.remove()
        close_quietly(self._fd)
        self._fd = -1

    def forget(self) -> None:
        """Close the descriptor that a fork gave us; the lock stays with the parent."""
        close_quietly(self._fd)
        self._fd = -1

    def _bound(self, sequence: int) -> bytes:
        return f"{self._origin}\0{self.token}\0{sequence}".encode()


def _encode(event: Spooled) -> bytes:
    keywords = dict(event.keywords)
    payloads = keywords.get("payloads")
    if payloads:
        keywords["payloads"] = {name: [p.content, p.media_type] for name, p in payloads.items()}
    return msgspec.msgpack.encode([keywords, event.event_id, event.moment_us])


def _decode(data: bytes) -> Spooled:
    try:
        keywords, event_id, moment = msgspec.msgpack.decode(data, type=tuple[dict[str, Any], str, int])
        if "payloads" in keywords:
            keywords["payloads"] = {name: Payload(content, kind) for name, (content, kind) in keywords["payloads"].items()}
    except (msgspec.DecodeError, TypeError, ValueError) as e:
        raise Malformed("not an event of a spool") from e
    return Spooled(keywords, event_id, moment)
