"""What left the machine and what came back: ``checkpoints/`` and ``outside/`` of a log folder (decision 16).

::

    checkpoints/<size, 20 digits>               a checkpoint that closed an epoch or was handed out, as first signed; for ever
    checkpoints/<size>.signatures               further signature lines on the same text: the log key's, witnesses' cosignatures
    checkpoints/<size>.<name>.tsr               an RFC 3161 response of the party ``name`` over the bytes of the file ``<size>``
    outside/<name>.json                         how far the party ``name`` got, when, and what went wrong last

``cat <size> <size>.signatures`` is a C2SP note. Nothing here is believed by being here: whoever reads verifies every line under keys
that he trusts. ``outside/`` is a convenience for the status and can be deleted: what was confirmed stands in ``checkpoints/``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .core.errors import Malformed, StoreError
from .core.note import SIGNATURES_MAX, Signature, split
from .disk import DISK, Disk, file_mode, folder_mode

NOTE_BYTES_MAX = 1 << 20
RESPONSE_BYTES_MAX = 1 << 16
_NOTE = re.compile(r"[0-9]{20}", re.ASCII)
_PARTY = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}", re.ASCII)


@contextlib.contextmanager
def deadline(sock: socket.socket, seconds: float) -> Iterator[None]:
    """The exchange over ``sock`` ends after so many seconds: the timeout of a socket is that of one read, and who sends a byte now
    and then would be waited for without end. ``TimeoutError`` then, whatever came of it."""
    over = threading.Event()

    def cut() -> None:
        over.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of TCP, also under TLS

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} seconds")


def check_party_name(name: str) -> None:
    """Names of witnesses and anchors in one log: 1 to 40 characters of ``[a-z0-9.-]``. ``Malformed`` otherwise."""
    if not _PARTY.fullmatch(name):
        raise Malformed("a name is 1 to 40 characters of a-z, 0-9, dot and hyphen, the first a letter or digit")


class HandedOut:
    """The folder ``checkpoints/`` of one log. Reading needs read rights only; a file that cannot be read is ``OSError``."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder = folder / "checkpoints"
        self._disk = disk

    def sizes(self) -> list[int]:
        """Sizes of the checkpoints that are kept, ascending."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if _NOTE.fullmatch(name))

    def note(self, size: int) -> bytes | None:
        """The note as it was signed first, None if there is none. Unverified."""
        return _read(self._path(size), NOTE_BYTES_MAX)

    def signed(self, size: int) -> bytes | None:
        """The note with all further lines. Unverified; ``Malformed`` if the two files together are no note."""
        note = self.note(size)
        if note is None:
            return None
        whole = note + (_read(self._path(size, ".signatures"), NOTE_BYTES_MAX) or b"")
        split(whole)
        return whole

    def put(self, size: int, note: bytes) -> None:
        """Keep a note, durable on return (file and folder). One that is there already stays: the lines that it lacks are added.
        ``StoreError`` if the one that is there has another text: two histories."""
        with self._alone():
            self._put(size, note)

    def _put(self, size: int, note: bytes) -> None:
        known = self.note(size)
        if known is None:
            self._disk.write_file(self._path(size), note, file_mode(self.folder), like=self.folder)
            return
        text, signatures = split(note)
        if split(known)[0] != text:
            raise StoreError(f"{self._path(size)} is a checkpoint of another history; keep both files: they prove it")
        self._add(size, signatures)

    def add(self, size: int, signatures: tuple[Signature, ...]) -> None:
        """Add signature lines to the note of ``size``, durable on return; of one key only the first stays. ``StoreError`` without a
        note, ``Malformed`` where it would have too many lines."""
        with self._alone():
            self._add(size, signatures)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process or thread at a time changes these files; readers need no lock, because files are replaced as a whole."""
        if not self.folder.is_dir():
            self._disk.mkdir(self.folder, folder_mode(self.folder.parent), like=self.folder.parent)
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # not only closed: a child that was forked meanwhile has a copy of it
            os.close(fd)

    def _add(self, size: int, signatures: tuple[Signature, ...]) -> None:
        whole = self.signed(size)
        if whole is None:
            raise StoreError(f"{self._path(size)} is not there")
        there = split(whole)[1]
        fresh = [s for s in signatures if (s.name, s.key_id) not in {(t.name, t.key_id) for t in there}]
        if len(there) + len(fresh) > SIGNATURES_MAX:
            raise Malformed(f"checkpoints/{size:020d} would have more than {SIGNATURES_MAX} signatures")
        if fresh:
            known = _read(self._path(size, ".signatures"), NOTE_BYTES_MAX) or b""
            lines = "".join(s.format() + "\n" for s in fresh).encode()
            self._disk.write_file(self._path(size, ".signatures"), known + lines, file_mode(self.folder), like=self.folder)

    def make_durable(self, size: int) -> None:
        """Sync what is kept of ``size`` and its name: whoever wrote it may have died before he did."""
        for suffix in ("", ".signatures"):
            with contextlib.suppress(FileNotFoundError):
                fd = self._disk.open(self._path(size, suffix), os.O_RDONLY)
                try:
                    self._disk.sync(fd)
                finally:
                    os.close(fd)
        self._disk.sync_folder(self.folder)

    def timestamp(self, size: int, party: str) -> bytes | None:
        """The RFC 3161 response (DER) of a party over the note of ``size``. Unverified."""
        return _read(self._path(size, f".{party}.tsr"), RESPONSE_BYTES_MAX)

    def put_timestamp(self, size: int, party: str, response: bytes) -> None:
        """Keep it, durable on return."""
        check_party_name(party)
        self._disk.write_file(self._path(size, f".{party}.tsr"), response, file_mode(self.folder), like=self.folder)

    def timestamps(self) -> list[tuple[int, str]]:
        """(size, party) of all responses that are kept, ascending."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        found = (name.removesuffix(".tsr").split(".", 1) for name in names if name.endswith(".tsr"))
        return sorted((int(parts[0]), parts[1]) for parts in found if len(parts) == 2 and _NOTE.fullmatch(parts[0]))

    def _path(self, size: int, suffix: str = "") -> Path:
        return self.folder / f"{size:020d}{suffix}"


class PartyState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far one party got. ``done_size`` and ``done_us``: what it last confirmed (witness, timestamp) or took in (mail, folder),
    and when (microseconds since 1970); ``tried_us``: the last attempt; ``error``: why that one failed, empty if it did not;
    ``local``: it was seen to be on this machine, so that it is not independent of it."""

    kind: str
    target: str
    done_size: int = 0
    done_us: int = 0
    tried_us: int = 0
    error: str = ""
    local: bool = False


class Parties:
    """The folder ``outside/`` of one log: one small file a party, replaced as a whole."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder = folder / "outside"
        self._log, self._disk = folder, disk

    def all(self) -> dict[str, PartyState]:
        """By name. A file that says nothing readable is left out: it is a convenience."""
        try:
            names = sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for name in names:
            state = self.get(name.removesuffix(".json")) if name.endswith(".json") else None
            if state is not None:
                found[name.removesuffix(".json")] = state
        return found

    def get(self, name: str) -> PartyState | None:
        """What is known of one party, None if nothing."""
        data = _read(self.folder / f"{name}.json", RESPONSE_BYTES_MAX)
        try:
            return None if data is None else msgspec.json.decode(data, type=PartyState)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            return None

    def put(self, name: str, state: PartyState) -> None:
        """Remember; never half-written."""
        check_party_name(name)
        if not self.folder.is_dir():
            self._disk.mkdir(self.folder, folder_mode(self._log), like=self._log)
        self._disk.write_file(self.folder / f"{name}.json", msgspec.json.encode(state) + b"\n", file_mode(self._log), like=self._log)


def _read(path: Path, bytes_max: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise Malformed(f"{path}: more than {bytes_max:,} bytes")
    return data
