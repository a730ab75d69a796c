"""Everything that changes a file goes through here.

One class with a dozen methods is the seam at which the tests fail the k-th operation, let the process die there, or
keep only a part of what was not yet synced. Reading needs no seam and happens where it is needed.

Errors: ``OSError`` as the system raised it. What it means is decided where the order of things is known (``log``).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import cast

_WRITE = 2  # SYNC_FILE_RANGE_WRITE, sync_file_range(2)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux has it; elsewhere the device begins when it is told to finish."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint), ctypes.c_int
    return cast("Callable[[int, int, int, int], int]", function)


_sync_file_range = _find_sync_file_range()


class Disk:
    """The file system. Paths are absolute; modes follow the log's folder; files made by root take its owner."""

    def open(self, path: Path, flags: int, mode: int = 0o600, *, like: Path | None = None) -> int:
        """Open (``O_CLOEXEC`` always). A file that this call makes gets exactly ``mode`` and the owner of ``like``."""
        made = bool(flags & os.O_CREAT) and not path.exists()
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        if made:
            try:
                os.fchmod(fd, mode)
                if like is not None:
                    give_to_owner_of(like, fd)
            except OSError:  # a file system without modes
                os.close(fd)
                raise
        return fd

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of ``data``; a short write is continued."""
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend a file."""
        os.ftruncate(fd, size)

    def sync_data(self, fd: int) -> None:
        """Data, and the size where it changed, are on stable storage on return. Never retried after an error."""
        os.fdatasync(fd)

    def begin_sync(self, fd: int, offset: int, count: int) -> None:
        """Let the device begin to write a range, without waiting and without any promise: ``sync_data`` gives that."""
        if _sync_file_range is not None:
            _sync_file_range(fd, offset, count, _WRITE)

    def sync(self, fd: int) -> None:
        """Data and all metadata are on stable storage on return."""
        os.fsync(fd)

    def sync_folder(self, path: Path) -> None:
        """Names that were made, renamed or removed in ``path`` are on stable storage on return."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic within one file system."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700, *, like: Path | None = None) -> None:
        """Make one folder with exactly ``mode``."""
        os.mkdir(path, mode)
        os.chmod(path, mode)
        if like is not None:
            give_to_owner_of(like, path)

    def chmod(self, path: Path, mode: int) -> None:
        """Change permission bits."""
        os.chmod(path, mode)

    def write_file(self, path: Path, data: bytes, mode: int = 0o600, *, like: Path | None = None) -> None:
        """A whole file, durable on return, never seen half: temporary name, sync, rename, sync of the folder.

        If we die before the rename a ``.tmp`` file is left, which nothing reads and the next call overwrites.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, like=like)
        try:
            self.write_at(fd, data, 0)
            self.sync(fd)
        finally:
            os.close(fd)
        self.rename(temporary, path)
        self.sync_folder(path.parent)


DISK = Disk()


def give_to_owner_of(folder: Path, target: Path | int) -> None:
    """Root makes files for the folder's owner, not for himself; for anybody else this does nothing."""
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    if owner.st_uid != 0:
        os.chown(target, owner.st_uid, owner.st_gid)


def file_mode(folder: Path) -> int:
    """0600, or 0640 where the folder was given to a group (0750)."""
    return 0o640 if os.stat(folder).st_mode & stat.S_IRGRP else 0o600


def folder_mode(folder: Path) -> int:
    """0700, or 0750 where the folder was given to a group."""
    return 0o750 if os.stat(folder).st_mode & stat.S_IRGRP else 0o700


_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "ncpfs", "virtiofs"})


def remote_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system under ``path`` if flock and sync cannot be trusted on it (network, FUSE), else None.

    Reads ``/proc/self/mountinfo`` (proc(5)); where that is absent (macOS) the answer is None, which the README says.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts.split("\n"):
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = fields[4].replace("\\040", " ")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, right.split(" ", 1)[0]
    return kind if kind in _REMOTE or kind.startswith("fuse") else None


def close_quietly(fd: int | None) -> None:
    """Close a descriptor whose content was synced or never matters."""
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)


def is_full(error: OSError) -> bool:
    """True where the device, or this user's share of it, has no space left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
