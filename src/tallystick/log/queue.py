"""``submit``: events that are on their way to the log while their caller goes on.

Bounded: a caller who is ahead by ``EVENTS_MAX`` events or ``BYTES_MAX`` bytes waits. What a dying process loses is counted: its
**tally**, a small file ``queued/<token>`` in the log folder that it keeps locked, says how many events were submitted, how many
of them are settled, and which id the group that is being written ends with. Who opens the log next finds it without its owner,
takes the difference for lost and puts it on record (``log.gap``), then removes the file.

The tally is memory that the kernel writes out (mmap): it survives the process, and a power loss as far as the keeper synced it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..core.errors import StoreError
from ..disk import Disk, close_quietly, file_mode, folder_mode
from .groups import Request

EVENTS_MAX = 8192
BYTES_MAX = 16 << 20
_TOKEN = re.compile(r"[0-9a-f]{16}", re.ASCII)
_MAGIC = b"TSQ1"
_COUNTS = struct.Struct("<QQQQ")  # submitted, settled, first and last time of submitting in µs
_NUMBER = struct.Struct("<Q")
_COUNTS_AT = 8
_GROUP_AT, _ID_BYTES = 64, 128  # the group being written: number of events, id of the last
_GROUP_SETTLED_AT = _GROUP_AT + 8 + _ID_BYTES  # and how many were settled when it began
_BYTES = 256


class Submitted:
    """An event on its way. ``event_id`` is final; the event is acknowledged once ``wait`` or ``AuditLogger.flush`` returned."""

    __slots__ = ("_queue", "_request", "event_id")

    def __init__(self, event_id: str, queue: Queue, request: Request) -> None:
        self.event_id = event_id
        self._queue, self._request = queue, request

    def wait(self, timeout_s: float | None = None) -> str:
        """Its id, once it is durable, in the tree and under a signed head. Raises what went wrong with it, ``TimeoutError`` if it
        is still on its way after ``timeout_s`` seconds."""
        self._queue.wait_for(self._request, timeout_s)
        return self.event_id

    @property
    def settled(self) -> bool:
        """True once it is recorded or refused."""
        return _is_settled(self._request)

    def __repr__(self) -> str:
        return f"<Submitted {self.event_id}{'' if self.settled else ', on its way'}>"


class Lost(NamedTuple):
    """What a process that died had submitted: how many were not settled, how many of these were in a group whose last event has the
    id ``group_end``, first and last time of submitting in µs, and the tally's token and file."""

    unsettled: int
    in_group: int
    group_end: str
    first_us: int
    last_us: int
    token: str
    path: Path


class _Entry(Request):
    """A request that remembers how much room it takes, and after how many calls of ``flush`` it failed unheard (-1: it did not)."""

    __slots__ = ("failed_after", "size")

    def __init__(self, content: object, size: int, done: Callable[[Request], None]) -> None:
        super().__init__([content], done, returns=False)
        self.size, self.failed_after = size, -1


class Queue:
    """The submitted events of one log in one process. ``commit`` hands a request over to the group commit."""

    def __init__(self, folder: Path, disk: Disk, commit: Callable[[Request], None]) -> None:
        self._folder, self._disk, self._commit = folder, disk, commit
        self._changed = threading.Condition()
        self._submitted = self._settled = self._bytes = 0
        self._unheard = 0  # failed since the last flush, and nobody was told
        self._flushes = 0
        self._first_error: BaseException | None = None
        self._tally: _Tally | None = None
        self._pid = os.getpid()

    def put(self, content: object, event_id: str, size: int, now_us: int) -> Submitted:
        """Submit one event that takes ``size`` bytes; waits while too much is on its way."""
        request = _Entry(content, size, self._done)
        with self._changed:
            while self._submitted - self._settled >= EVENTS_MAX or (self._bytes and self._bytes + size > BYTES_MAX):
                self._changed.wait()
            if self._tally is None:
                self._tally = _Tally(self._folder, self._disk)
            self._submitted += 1
            self._bytes += size
            self._tally.count(self._submitted, self._settled, now_us)
        self._commit(request)
        return Submitted(event_id, self, request)

    def writing(self, requests: list[Request]) -> None:
        """A group is about to be written: if the process dies in it, the id of its last event tells whether it was recorded."""
        mine = [r for r in requests if isinstance(r, _Entry) and not _is_settled(r)]
        if mine and self._tally is not None:
            self._tally.begin(len(mine), mine[-1].content[-1].draft.event_id)

    def _done(self, request: Request) -> None:
        assert isinstance(request, _Entry)
        with self._changed:
            self._settled += 1
            self._bytes -= request.size
            if self._tally is not None:
                self._tally.settle(self._settled)
            if request.error is not None:
                self._unheard += 1
                request.failed_after = self._flushes
                self._first_error = self._first_error or request.error
            self._changed.notify_all()

    def wait_for(self, request: Request, timeout_s: float | None) -> None:
        """Until this one is settled; its error is raised here and then not by ``flush``."""
        self._wait(lambda: _is_settled(request), timeout_s)
        if request.error is not None:
            with self._changed:  # told once: a second wait, or one after flush said it, must not hush up another's failure
                if isinstance(request, _Entry) and request.failed_after == self._flushes:
                    self._unheard, request.failed_after = self._unheard - 1, -1
            raise request.error

    def flush(self, timeout_s: float | None = None) -> None:
        """Until all that was submitted before this call is settled. ``StoreError`` if something of it was not recorded and nobody
        was told yet, ``TimeoutError`` if it takes longer than ``timeout_s`` seconds."""
        with self._changed:
            wanted = self._submitted
        self._wait(lambda: self._settled >= wanted, timeout_s)
        with self._changed:
            count, first = self._unheard, self._first_error
            self._unheard, self._first_error = 0, None
            self._flushes += 1
        if count and first is not None:
            raise StoreError(f"{count} submitted event(s) were not recorded; the first because: {first}") from first

    def _wait(self, reached: Callable[[], bool], timeout_s: float | None) -> None:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not reached():
                if self._pid != os.getpid():
                    raise StoreError("submitted by the process that this one was forked from; that one records it")
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("still on its way to the log")
                self._changed.wait(left)

    def make_durable(self) -> None:
        """What the tally says reaches the disk (called about once a second, like the mark)."""
        if self._tally is not None:
            self._tally.sync()

    def close(self) -> None:
        """The orderly end, after ``flush``: with nothing on its way the tally is removed."""
        if self._tally is not None:
            self._tally.close(remove=self._settled == self._submitted)
            self._tally = None

    def abandon(self) -> None:
        """In a forked child: everything here is the parent's."""
        if self._tally is not None:
            self._tally.close(remove=False)
            self._tally = None


class _Tally:
    """The file that speaks for a process that died. See the module's text."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another process was faster
                disk.mkdir(folder, folder_mode(folder.parent), like=folder.parent)
            disk.sync_folder(folder.parent)
        self._path, self._disk = folder / os.urandom(8).hex(), disk
        self._fd = disk.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, file_mode(folder.parent), like=folder.parent)
        try:
            # for as long as this process lives; whoever looks for lost ones just now holds it for a moment, and finds it empty
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            disk.write_at(self._fd, _MAGIC.ljust(_BYTES, b"\0"), 0)
            disk.sync(self._fd)
            disk.sync_folder(folder)
            self._map = mmap.mmap(self._fd, _BYTES)
        except OSError:
            with contextlib.suppress(OSError):
                disk.unlink(self._path)
            close_quietly(self._fd)
            raise
        self._first = 0

    def count(self, submitted: int, settled: int, now_us: int) -> None:
        self._first = self._first or now_us
        _COUNTS.pack_into(self._map, _COUNTS_AT, submitted, settled, self._first, now_us)

    def settle(self, settled: int) -> None:
        _NUMBER.pack_into(self._map, _COUNTS_AT + 8, settled)

    def begin(self, count: int, group_end: str) -> None:
        """If we die between these the count is 0 or the id whole."""
        _NUMBER.pack_into(self._map, _GROUP_AT, 0)
        self._map[_GROUP_AT + 8 : _GROUP_AT + 8 + _ID_BYTES] = group_end.encode().ljust(_ID_BYTES, b"\0")
        _NUMBER.pack_into(self._map, _GROUP_SETTLED_AT, _NUMBER.unpack_from(self._map, _COUNTS_AT + 8)[0])
        _NUMBER.pack_into(self._map, _GROUP_AT, count)

    def sync(self) -> None:
        self._map.flush()

    def close(self, *, remove: bool) -> None:
        self._map.close()
        if remove:
            with contextlib.suppress(OSError):  # it says "nothing lost" then, and the next open removes it
                self._disk.unlink(self._path)
        close_quietly(self._fd)


def _is_settled(request: Request) -> bool:
    return request.result is not None or request.error is not None


def find_lost(folder: Path) -> list[Lost]:
    """The tallies of processes that are gone, in ``folder`` (``queued/``); what cannot be read as one is left alone."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if _TOKEN.fullmatch(path.name):
                lost = _read(path)
                if lost is not None:
                    found.append(lost)
    return found


def _read(path: Path) -> Lost | None:
    """None while its owner lives, or if it is no tally."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        data = os.pread(fd, _BYTES + 1, 0)
    finally:
        os.close(fd)
    if len(data) != _BYTES or data[:4] != _MAGIC:
        return None
    submitted, settled, first, last = _COUNTS.unpack_from(data, _COUNTS_AT)
    (in_group,), (settled_then,) = _NUMBER.unpack_from(data, _GROUP_AT), _NUMBER.unpack_from(data, _GROUP_SETTLED_AT)
    group_end = data[_GROUP_AT + 8 : _GROUP_AT + 8 + _ID_BYTES].rstrip(b"\0").decode("ascii", "replace")
    # of the group some may have been settled already: what is left of it
    in_group = max(0, in_group - (settled - settled_then))
    if not settled <= submitted <= settled + EVENTS_MAX or max(first, last) >= 2**52:
        return None
    return Lost(submitted - settled, in_group, group_end, first, last, path.name, path)
