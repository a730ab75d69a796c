"""The key folder: ``log.key``, ``epoch-<n>.key`` and ``mark``. 0700, files 0600, beside the log but never in it.

Epoch keys live for one epoch: ``prepare`` makes the next one durable before any entry names it, ``destroy`` overwrites, syncs and
unlinks one whose epoch was closed. On an SSD, in snapshots, backups of this folder and swap a copy may outlive that; a process
that has the log open keeps the old key in memory until it appends once more.

The mark (STORAGE rule 16) is what was last signed: origin, size, root, epoch. Two slots, 4 KiB apart, are written in
turn, each one line with a sequence number and a checksum::

    7 srv2/invoices/0f3a9c21b7de 18267 9T0…= 0 <sha256 of the text before, hex>\\n

A slot is read only if it re-formats to the same bytes; the readable slot with the higher sequence counts. If we die
while writing one, the other still holds.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from .core.checkpoint import HeadSigner
from .core.errors import AuditError, Malformed, StoreError
from .core.note import SignerKey, VerifierKey
from .disk import DISK, Disk, close_quietly

SLOT_BYTES = 4096
SLOT_USED = 512
KEY_BYTES_MAX = 4096


_EPOCH_FILE = re.compile(r"epoch-(0|[1-9][0-9]{0,18})\.key", re.ASCII)
_TEMPORARY = re.compile(r"\.epoch-[0-9]{1,19}\.key\.tmp", re.ASCII)


class SignsHeads(Protocol):
    """What signs the heads of one epoch."""

    @property
    def verifier(self) -> VerifierKey:
        """The public key."""

    def sign(self, size: int, root: bytes) -> bytes:
        """The note of the head of ``size`` ≥ 1 entries. The caller has made sure that it extends the last one signed."""


class Custody(Protocol):
    """Where the private keys of epochs are: files of the key folder, or another process (``tally keyd``)."""

    def signer(self, number: int) -> SignsHeads:
        """What signs heads of epoch ``number``. ``FileNotFoundError`` if its key is not there."""

    def prepare(self, number: int, origin: str) -> VerifierKey:
        """Make the key of epoch ``number``, durable on return; one that is there and that no entry names is destroyed first."""

    def numbers(self) -> list[int]:
        """The epochs whose keys are there, ascending."""

    def destroy(self, number: int) -> None:
        """Destroy the key of epoch ``number``, durable on return; nothing happens if it is not there."""


class Mark(NamedTuple):
    """What was last signed."""

    sequence: int
    origin: str
    size: int
    root: bytes
    epoch: int

    def format(self) -> bytes:
        """One line with its checksum."""
        root = base64.b64encode(self.root).decode()
        text = f"{self.sequence} {self.origin} {self.size} {root} {self.epoch}"
        return f"{text} {hashlib.sha256(text.encode()).hexdigest()}\n".encode()

    @classmethod
    def parse(cls, slot: bytes) -> Mark:
        """A slot's bytes → the mark: one line, then only NUL. ``Malformed`` for anything that would not format back."""
        line = slot[: slot.find(b"\n") + 1]
        try:
            sequence, origin, size, root, epoch, _ = line.decode("ascii").split(" ")
            mark = cls(int(sequence), origin, int(size), base64.b64decode(root, validate=True), int(epoch))
            if mark.format() == line and not slot[len(line) :].strip(b"\0") and len(mark.root) == 32 and mark.size >= 1:
                return mark
        except (UnicodeDecodeError, ValueError, binascii.Error):
            pass
        raise Malformed("not a slot of a mark")


class KeyFolder:
    """The keys of one log. Reading a key that this user may not read is ``PermissionError``; secrets are never shown."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path = path
        self._disk = disk
        self._mark_fd: int | None = None
        self._sequence = -1

    def create(self, log_key: SignerKey, epoch_key: SignerKey) -> None:
        """Write both private keys, each durable on return. The folder must exist."""
        for name, key in (("log.key", log_key), ("epoch-0.key", epoch_key)):
            self._disk.write_file(self.path / name, (key.format() + "\n").encode(), 0o600, like=self.path)

    def log_key(self) -> SignerKey:
        """The stable key, which signs only what leaves the machine."""
        return self._load("log.key")

    def epoch_key(self, number: int) -> SignerKey:
        """The private key of the running epoch."""
        return self._load(f"epoch-{number}.key")

    # -- epochs (``Custody``) ------------------------------------------------------------------------------------------

    def signer(self, number: int) -> HeadSigner:
        """What signs heads of epoch ``number``. ``FileNotFoundError`` if its key is not there."""
        key = self.epoch_key(number)
        return HeadSigner(key.name, key)

    def prepare(self, number: int, origin: str) -> VerifierKey:
        """Make the key of epoch ``number``: file and folder are durable on return. If we die here, or before an entry names the key,
        the next writer destroys it."""
        self.destroy(number)
        key = SignerKey.generate(origin)
        self._disk.write_file(self._epoch_file(number), (key.format() + "\n").encode(), 0o600, like=self.path)
        return key.verifier

    def numbers(self) -> list[int]:
        """The epochs whose keys are there, ascending."""
        found = (_EPOCH_FILE.fullmatch(name) for name in os.listdir(self.path))
        return sorted(int(match[1]) for match in found if match)

    def destroy(self, number: int) -> None:
        """Overwrite, sync, unlink, sync the folder. If we die between any two of them the next call does it again: nobody reads a
        key file that was half overwritten, because its epoch is closed."""
        if self._overwrite(self._epoch_file(number)):
            self._disk.sync_folder(self.path)

    def sweep(self) -> None:
        """Destroy what a death inside ``prepare`` left: a key under a temporary name."""
        left = [name for name in os.listdir(self.path) if _TEMPORARY.fullmatch(name)]
        for name in left:
            self._overwrite(self.path / name)
        if left:
            self._disk.sync_folder(self.path)

    def _overwrite(self, path: Path) -> bool:
        try:
            fd = self._disk.open(path, os.O_WRONLY)
        except FileNotFoundError:
            return False
        try:
            self._disk.write_at(fd, bytes(max(os.fstat(fd).st_size, 1)), 0)
            self._disk.sync(fd)
        finally:
            os.close(fd)
        self._disk.unlink(path)
        return True

    def _epoch_file(self, number: int) -> Path:
        return self.path / f"epoch-{number}.key"

    def _load(self, name: str) -> SignerKey:
        path = self.path / name
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            mode = os.fstat(fd).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StoreError(f"{path} can be read by others (mode {mode & 0o777:03o}); run: chmod 600 {path}")
            text = os.read(fd, KEY_BYTES_MAX)
        finally:
            os.close(fd)
        try:
            return SignerKey.parse(text.decode("ascii").removesuffix("\n"))
        except (AuditError, UnicodeDecodeError) as e:
            raise StoreError(f"{path} is not a private key of this format") from e.__cause__

    def read_mark(self) -> Mark | None:
        """The mark, or None if no slot can be read as one. ``PermissionError`` if this user may not look."""
        try:
            fd = os.open(self.path / "mark", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if self.path.is_dir():
                os.scandir(self.path).close()  # a folder that may not be searched says "not found" too
            return None
        try:
            slots = [os.pread(fd, 1024, 0), os.pread(fd, 1024, SLOT_BYTES)]
        finally:
            os.close(fd)
        marks = []
        for slot in slots:
            with contextlib.suppress(Malformed):
                marks.append(Mark.parse(slot))
        return max(marks, default=None)

    def newest_mark(self) -> Mark | None:
        """The same for a writer, in one read of the open file and with one slot parsed; None also where that cannot be done."""
        if self._mark_fd is None:
            return None
        data = os.pread(self._mark_fd, SLOT_BYTES + SLOT_USED, 0)
        found = []
        for slot in (data[:SLOT_USED], data[SLOT_BYTES:]):
            sequence = slot[: slot.find(b" ")]
            found.append((int(sequence) if sequence.isdigit() and len(sequence) < 19 else -1, slot))
        with contextlib.suppress(Malformed):
            mark = Mark.parse(max(found)[1])
            self._sequence = mark.sequence  # the next one follows it
            return mark
        return None

    def put_mark(self, origin: str, size: int, root: bytes, epoch: int) -> None:
        """Write the next slot. Not durable until ``sync``; if we die here the other slot, one group older, holds."""
        if self._mark_fd is None:
            self._mark_fd = self._disk.open(self.path / "mark", os.O_RDWR | os.O_CREAT, 0o600, like=self.path)
        if self._sequence < 0:
            known = self.read_mark()
            self._sequence = known.sequence if known else -1
        self._sequence += 1
        mark = Mark(self._sequence, origin, size, root, epoch)
        # always the same length: a slot that grew could outlive the new size of the file, and be cut, in a power loss
        self._disk.write_at(self._mark_fd, mark.format().ljust(SLOT_USED, b"\0"), (mark.sequence % 2) * SLOT_BYTES)

    def forget_sequence(self) -> None:
        """Another process wrote the mark: read its sequence before writing the next."""
        self._sequence = -1

    def sync(self) -> None:
        """Make the mark durable, if this handle wrote it."""
        if self._mark_fd is not None:
            self._disk.sync_data(self._mark_fd)

    def sync_all(self) -> None:
        """Make the mark durable whoever wrote it."""
        if self._mark_fd is None:
            self._mark_fd = self._disk.open(self.path / "mark", os.O_RDWR)
        self.sync()

    def close(self) -> None:
        """Release the descriptor without syncing."""
        close_quietly(self._mark_fd)
        self._mark_fd, self._sequence = None, -1
