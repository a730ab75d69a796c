"""The one advisory lock of writers (STORAGE rule 12): ``flock`` on ``lock``, fair among processes.

Plain flock lets the process that just released it take it again before the one that was woken runs, so that a busy
writer starves the others. Here whoever waits stands in a turnstile first (``flock`` on the folder ``segments``): only its
holder waits for the lock itself, and he leaves the turnstile when he has it. A writer that comes back queues behind.

``flock`` knows no time limit, so a contended wait happens in a thread of its own; a wait that is given up is released by
that thread as soon as it is granted. The file holds, padded to 120 bytes, ``pid boot-id state token``: state is ``open`` from
the first append of a handle (synced, so that a power loss cannot leave ``clean`` behind) and ``clean`` after an orderly close;
the token is the handle's own, so that it sees in one read whether anybody else held the lock since.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import LogBusy
from ..disk import Disk, close_quietly
from . import Holder

_BYTES = 120


class FolderLock:
    """The lock of one log folder for one handle. ``held`` yields with the lock; not reentrant."""

    def __init__(self, path: Path, turnstile: Path, disk: Disk) -> None:
        self._path, self._turnstile_path, self._disk = path, turnstile, disk
        self._fd: int | None = None
        self._turnstile: int | None = None
        self._jobs: queue.SimpleQueue[_Wait] | None = None
        self._token = os.urandom(4).hex()
        self._noted: bytes | None = None
        self.place: tuple[tuple[str, int, int], ...] = ()  # of the open lock: path, device, inode

    @property
    def fd(self) -> int | None:
        """The open descriptor of the lock file, if any."""
        return self._fd

    @contextlib.contextmanager
    def held(self, wait_s: float) -> Iterator[None]:
        """Hold the lock; ``LogBusy`` after ``wait_s`` seconds."""
        self._open()
        assert self._fd is not None and self._turnstile is not None
        if not (_try(self._turnstile) and self._try_main()):
            self._wait(wait_s)
        try:
            yield
        finally:
            if self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def last_holder(self) -> Holder | None:
        """What the file says; None if nobody ever held it or it says nothing readable."""
        if self._fd is not None:
            data = os.pread(self._fd, _BYTES, 0)
        else:
            try:
                fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return None
            try:
                data = os.pread(fd, _BYTES, 0)
            finally:
                os.close(fd)
        words = data.decode("ascii", "replace").split()
        if len(words) not in (3, 4) or not words[0].isascii() or not words[0].isdigit():
            return None
        return Holder(int(words[0]), words[1], words[2] == "clean")

    def note_holder(self, boot: str, *, clean: bool) -> None:
        """Write who holds it now (inside ``held``), not yet durable."""
        assert self._fd is not None
        text = f"{os.getpid()} {boot} {'clean' if clean else 'open'} {self._token}".ljust(_BYTES - 1) + "\n"
        self._noted = None
        self._disk.write_at(self._fd, text.encode("ascii"), 0)
        self._noted = text.encode("ascii")

    def is_ours(self) -> bool:
        """True if nobody noted himself since this handle did (inside ``held``)."""
        return self._fd is not None and self._noted is not None and os.pread(self._fd, _BYTES + 1, 0) == self._noted

    def close(self) -> None:
        """Close the descriptors (this releases nothing that a parent process holds)."""
        close_quietly(self._fd)
        close_quietly(self._turnstile)
        self._fd = self._turnstile = self._noted = None
        self.place = ()
        if self._jobs is not None:
            self._jobs.put(_Wait(None, None))
            self._jobs = None

    def forget_thread(self) -> None:
        """After fork: the waiting thread and the token are the parent's."""
        self._jobs, self._noted, self._token = None, None, os.urandom(4).hex()

    def _open(self) -> None:
        if self._fd is None:
            self._fd = self._disk.open(self._path, os.O_RDWR | os.O_CREAT, 0o600, like=self._path.parent)
            status = os.fstat(self._fd)
            self.place = ((os.fspath(self._path), status.st_dev, status.st_ino),)
        if self._turnstile is None:
            self._turnstile = os.open(self._turnstile_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _try_main(self) -> bool:
        assert self._fd is not None and self._turnstile is not None
        got = _try(self._fd)
        fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        return got

    def _wait(self, wait_s: float) -> None:
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._jobs,), name="tallystick-lock", daemon=True).start()
        wait = _Wait(self._fd, self._turnstile)
        self._jobs.put(wait)
        try:
            granted = wait.finish(wait_s)
        except BaseException:  # interrupted: nobody may be left holding the lock
            self._leave(wait)
            raise
        if not granted:
            self._leave(wait)
            holder = self.last_holder()
            who = f"process {holder.pid}" if holder else "another process"
            raise LogBusy(f"{self._path}: {who} has held the lock for {wait_s:.0f} s; nothing was recorded")

    def _leave(self, wait: _Wait) -> None:
        """The thread goes on waiting in the kernel, where it cannot be called back. It keeps the descriptors: had we tried
        again on them, its late grant would be ours, and its release too."""
        wait.give_up()
        if self._jobs is not None:
            self._jobs.put(_Wait(None, None))
        self._fd = self._turnstile = self._jobs = self._noted = None
        self.place = ()


class _Wait:
    """One wait: granted or given up, decided once."""

    def __init__(self, fd: int | None, turnstile: int | None) -> None:
        self.fd, self.turnstile = fd, turnstile
        self._lock, self._wake = threading.Lock(), threading.Lock()
        self._wake.acquire()
        self._settled = self._given_up = False
        self._error: OSError | None = None

    def run(self) -> None:
        """In the waiting thread: block, and hand over or release."""
        assert self.fd is not None and self.turnstile is not None
        try:
            fcntl.flock(self.turnstile, fcntl.LOCK_EX)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        except OSError as e:  # the handle was closed meanwhile
            self._error = e
        with self._lock:
            self._settled = True
            if self._given_up:
                self._close()
                return
            self._wake.release()
        with contextlib.suppress(OSError):  # the next one may wait for the lock itself
            fcntl.flock(self.turnstile, fcntl.LOCK_UN)

    def finish(self, wait_s: float) -> bool:
        """Wait for the grant; False if it did not come."""
        if not self._wake.acquire(timeout=wait_s):
            return False
        if self._error is not None:
            raise self._error
        return True

    def give_up(self) -> None:
        """For good: the descriptors are closed, now or when the grant comes."""
        with self._lock:
            if self._settled:
                self._close()
            self._given_up = True

    def _close(self) -> None:
        close_quietly(self.fd)
        close_quietly(self.turnstile)


def _serve(jobs: queue.SimpleQueue[_Wait]) -> None:
    while (job := jobs.get()).fd is not None:
        job.run()


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
