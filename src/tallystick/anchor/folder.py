"""The anchor of kind ``folder``: checkpoints in a folder on another disk or share.

::

    <folder>/<origin, "/" as "_">/<size, 20 digits>.checkpoint
    <folder>/<origin, "/" as "_">/<size>.<16 hex of SHA-256 of the text>.checkpoint      another history of the same size

A file that is there is never written again. What lies there under the same size with another text is evidence of two histories: both
are kept. The folder itself is never made: where it is missing, the share is not mounted. It may be on a file system without modes,
owners or syncing of folders (exFAT, CIFS): so what was written is read back before it counts.

It proves as much as the folder is out of reach: whoever may write there may replace what lies there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..core.checkpoint import Checkpoint
from ..core.errors import Malformed, OutsideError, VerificationError
from ..core.note import NOTE_BYTES_MAX, split
from ..disk import DISK, Disk, close_quietly, remote_file_system
from . import Handed

FILES_MAX = 10_000
_SUFFIX = ".checkpoint"
_NO_SUCH_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


class FolderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="folder", tag_field="kind"):
    """``folder``: absolute. ``elsewhere``: it was on another device than the log when it was added; on the log's device it then
    counts as not mounted."""

    name: str
    folder: str
    elsewhere: bool = False

    def check(self) -> None:
        """``Malformed`` for values that cannot be."""
        if not self.folder.startswith("/") or "\0" in self.folder:
            raise Malformed("folder is an absolute path")

    @property
    def target(self) -> str:
        return self.folder


class Kept(NamedTuple):
    """A checkpoint that was found in a folder. Unverified."""

    size: int
    path: Path
    note: bytes


class Folder:
    """Hands checkpoints to a folder. ``log`` is the log's folder, of which only the device is looked at."""

    kind = "folder"

    def __init__(self, settings: FolderSettings, origin: str, log: Path, disk: Disk = DISK) -> None:
        self.name, self.target = settings.name, settings.target
        self._settings, self._origin, self._log, self._disk = settings, origin, log, disk

    def hand_over(self, size: int, note: bytes) -> Handed:
        """Durable and read back on return. ``VerificationError`` where another history lies there, which then stays beside it."""
        try:
            local = self._on_this_machine()
            self._keep(size, note)
            return Handed("kept", local)
        except OSError as e:
            raise OutsideError(f"{e.filename or self.target}: {e.strerror}") from e

    def _on_this_machine(self) -> bool:
        """A disk that is attached here, also another one, is changed by whoever is root here; a network share is not only his."""
        try:
            found = os.stat(self.target)
        except FileNotFoundError:
            raise OutsideError(f"{self.target} is not there; is it mounted? The folder is not made here") from None
        if not stat.S_ISDIR(found.st_mode):
            raise OutsideError(f"{self.target} is not a folder")
        same = found.st_dev == os.stat(self._log).st_dev
        if same and self._settings.elsewhere:
            raise OutsideError(f"{self.target} is on the device of the log, which it was not when it was added; is it mounted?")
        return same or remote_file_system(Path(self.target)) is None

    def _keep(self, size: int, note: bytes) -> None:
        home = Path(self.target) / folder_name(self._origin)
        if not home.is_dir():
            self._disk.mkdir(home, 0o755)
            self._sync(home.parent)
        text = split(note)[0]
        path = home / f"{size:020d}{_SUFFIX}"
        known = _read(path)
        if known is None:
            self._write(path, note)
            return
        if _text_of(known) == text:
            return
        beside = home / f"{size:020d}.{hashlib.sha256(text.encode()).hexdigest()[:16]}{_SUFFIX}"
        if _read(beside) != note:
            self._write(beside, note)
        raise VerificationError(
            f"{path} is a checkpoint of the same size with another text: two histories of {self._origin}. "
            f"Keep both files, they prove it; ours is {beside.name} beside it"
        )

    def _write(self, path: Path, note: bytes) -> None:
        """If we die before the rename, a ``.tmp`` file is left, which nobody reads."""
        temporary = path.with_name(f".{path.name}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            fd = self._disk.open(temporary, flags, 0o644)
        except PermissionError:  # exFAT and CIFS refuse fchmod; the file is there then, and open refuses nothing
            fd = self._disk.open(temporary, flags, 0o644)
        try:
            self._disk.write_at(fd, note, 0)
            self._disk.sync(fd)
        finally:
            close_quietly(fd)
        self._disk.rename(temporary, path)
        self._sync(path.parent)
        if _read(path) != note:
            raise OutsideError(f"{path} reads back as something else than was written")

    def _sync(self, folder: Path) -> None:
        try:
            self._disk.sync_folder(folder)
        except OSError as e:  # the file itself was synced; there is no more to be had here
            if e.errno not in _NO_SUCH_SYNC:
                raise


def folder_name(origin: str) -> str:
    """The folder of a log's checkpoints: its origin as one path segment that is neither hidden nor ``..``."""
    flat = origin.replace("/", "_")
    return f"={flat}" if flat.startswith(".") else flat


def kept(folder: Path, origin: str) -> list[Kept]:
    """Every checkpoint of ``origin`` in ``folder``, ascending by size; of one size there may be several. Unverified: with the
    log all must be consistent. ``OutsideError`` where the folder is not there or cannot be read, ``Malformed`` naming a file that
    is no checkpoint of this log, or where there are more than 10,000."""
    home = folder / folder_name(origin)
    try:
        if not folder.is_dir():
            raise OutsideError(f"{folder} is not there; is it mounted?")
        names = sorted(n for n in os.listdir(home) if n.endswith(_SUFFIX) and not n.startswith("."))
        if len(names) > FILES_MAX:
            raise Malformed(f"{home} holds more than {FILES_MAX:,} checkpoints")
        found = []
        for name in names:
            note = _read(home / name)
            if note is not None:
                found.append(Kept(_checkpoint(home / name, note, origin).size, home / name, note))
        return sorted(found)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise OutsideError(f"{e.filename or home}: {e.strerror}") from e


def newest(folder: Path, origin: str) -> bytes | None:
    """The note of the largest checkpoint in ``folder``, None if there is none. Errors as ``kept``."""
    found = kept(folder, origin)
    return found[-1].note if found else None


def _checkpoint(path: Path, note: bytes, origin: str) -> Checkpoint:
    try:
        checkpoint = Checkpoint.parse(split(note)[0])
    except Malformed as e:
        raise Malformed(f"{path}: {e}") from None
    if checkpoint.origin != origin:
        raise Malformed(f"{path} is a checkpoint of {checkpoint.origin}, not of {origin}")
    return checkpoint


def _text_of(note: bytes) -> str | None:
    try:
        return split(note)[0]
    except Malformed:
        return None


def _read(path: Path) -> bytes | None:
    """A file's bytes, None if there is none; ``OutsideError`` for what is not a file or too large for a note."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OutsideError(f"{path} is not a file")
        data = file.read(NOTE_BYTES_MAX + 1)
    if len(data) > NOTE_BYTES_MAX:
        raise OutsideError(f"{path} is larger than a checkpoint can be")
    return data
