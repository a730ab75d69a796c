"""Payloads: content encrypted beside the log, its keys in slots beside the keys (STORAGE rule 6).

A payload segment is one file a UTC day, ``payloads/2026-11-24.seg``, of frames::

    b"TPL1" | u32 body length | body | u32 CRC-32 of all before
    body = u8 name length | name | u8 id length | event id | 12 nonce | AES-256-GCM(salt32 || content) with tag 16
    (both lengths and the CRC big-endian; associated data = origin \\0 event id \\0 name)

The data key of (subject or none, UTC day) is a slot of 64 bytes in ``payload-2026.slots``::

    b"TSL1" | u16 day of the year | u8 state (1 live, 0 destroyed) | 17 tag of the subject | 32 key | 8 checksum

A slot is made at first use and synced before the payload that needs it; destroying overwrites it in place. A writer
that finds a segment which does not end at a frame (a process died there) leaves it alone and opens the next part,
``2026-11-24.1.seg``: nothing in ``payloads/`` is ever cut. Orphan frames, written and never named by an entry, are
ciphertext without meaning.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import os
import re
import threading
import zlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .core.errors import Malformed, StoreError, VerificationError
from .core.payload import PAYLOAD_BYTES_MAX, open_commitment
from .disk import DISK, Disk, close_quietly, file_mode

_MAGIC, _SLOT_MAGIC, _SLOT_BYTES = b"TPL1", b"TSL1", 64
_NAME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:\.([1-9][0-9]{0,5}))?\.seg", re.ASCII)
_SALT = b"tallystick/salt/v1\0"
_BODY_MAX = PAYLOAD_BYTES_MAX + 1024


class Frame(NamedTuple):
    """Where a payload lies: file name, offset of its frame and length of the whole frame."""

    file: str
    offset: int
    length: int
    event_id: str
    name: str


class Place(NamedTuple):
    """What a payload belongs to: event, name within the event, subject (or None)."""

    event_id: str
    name: str
    subject: str | None


class Vault:
    """The payload segments of one log and the slots of their keys."""

    def __init__(self, folder: Path, keys: Path, origin: str, disk: Disk = DISK) -> None:
        self.folder, self._keys, self._origin, self._disk = folder, keys, origin, disk
        self._fd: int | None = None
        self._file, self._end = "", 0
        self._slots: dict[tuple[str, bytes], bytes] = {}
        self._dirty = False
        self.broken = False  # a sync failed: nothing more is acknowledged through this handle (STORAGE rule 11)
        self._seen: dict[str, dict[tuple[str, str], Frame]] = {}
        self._walked: dict[str, int] = {}
        self._lock = threading.Lock()  # readers walk while the writer puts

    # -- writing, under the log's lock -------------------------------------------------------------------------------

    def put(self, place: Place, salt: bytes, content: bytes, *, day: str) -> None:
        """Encrypt and write one payload. Durable only after ``sync``. ``StoreError`` if its key slot was destroyed."""
        key = self._key_for_writing(day, place.subject)
        nonce, bound = os.urandom(12), self._bound(place.event_id, place.name)
        body = _head(place.event_id, place.name) + nonce + AESGCM(key).encrypt(nonce, salt + content, bound)
        frame = _MAGIC + len(body).to_bytes(4, "big") + body
        frame += zlib.crc32(frame).to_bytes(4, "big")
        fd = self._open_day(day)
        self._dirty = True
        self._disk.write_at(fd, frame, self._end)
        self._end += len(frame)

    def salt(self, day: str, subject: str | None, event_id: str) -> bytes | None:
        """32 bytes that only the key of this day and subject gives, another for each event. None where this process has not used that
        key yet: no key is made for it outside of the lock."""
        key = self._slots.get((day, self._tag(subject)))
        return None if key is None else hmac.digest(key, _SALT + event_id.encode(), "sha256")

    def open_salt(self, day: str, subject: str | None, event_id: str) -> bytes:
        """The same for a reader. ``StoreError`` where the key is not there or was destroyed, ``PermissionError``."""
        found = _find_slot(self._slots_path(day), _day_number(day), self._tag(subject))
        if found is None or found[1] is None:
            raise StoreError("its key is not there" if found is None else "its key was destroyed")
        return hmac.digest(found[1], _SALT + event_id.encode(), "sha256")

    def sync(self) -> None:
        """All payloads put so far are on stable storage on return."""
        if self._dirty and self._fd is not None:
            self._sync(self._fd)
            self._dirty = False

    def close(self) -> None:
        """Release the descriptor and forget the keys in memory."""
        close_quietly(self._fd)
        self._fd, self._file, self._end, self._dirty = None, "", 0, False
        self._slots.clear()
        with self._lock:
            self._seen.clear()
            self._walked.clear()

    def _open_day(self, day: str) -> int:
        """The descriptor of the day's last part, at a frame's end; what other processes wrote is walked over."""
        if self._fd is not None and self._file.startswith(day):
            size = os.fstat(self._fd).st_size
            if size == self._end:
                return self._fd
            self._end = _walk_end(self.folder / self._file, self._end)
            if self._end == size:
                return self._fd
        close_quietly(self._fd)
        self._fd = None
        parts = sorted((part, name) for d, part, name in self._parts() if d == day)
        number = parts[-1][0] if parts else 0
        if parts:
            path = self.folder / parts[-1][1]
            self._end = _walk_end(path, 0)
            if self._end != path.stat().st_size:  # somebody died inside a frame: never write behind it
                number, parts = number + 1, []
        if not parts:
            self._end = 0
        self._file = f"{day}.seg" if number == 0 else f"{day}.{number}.seg"
        self._fd = self._disk.open(
            self.folder / self._file, os.O_RDWR | os.O_CREAT, file_mode(self.folder), like=self.folder
        )
        self._sync_folder(self.folder)  # whoever made the file may have died before its name was durable
        return self._fd

    def _key_for_writing(self, day: str, subject: str | None) -> bytes:
        tag = self._tag(subject)
        known = self._slots.get((day, tag))
        if known is not None:
            return known
        path = self._slots_path(day)
        found = _find_slot(path, _day_number(day), tag)
        if found is not None and found[1] is None:
            raise StoreError(f"the payload key of {day} for this subject was destroyed; nothing more is kept under it")
        if found is not None and found[1] is not None:
            key = found[1]
            self._sync_slots(path)  # whoever made the slot may have died before it was durable
        else:
            key = os.urandom(32)
            self._add_slot(path, _day_number(day), tag, key)
        self._slots[(day, tag)] = key
        return key

    def _add_slot(self, path: Path, number: int, tag: bytes, key: bytes) -> None:
        """Synced before it is used: a payload whose key was lost would be content that nobody can ever open."""
        fd = self._disk.open(path, os.O_RDWR | os.O_CREAT, 0o600, like=self._keys)
        try:
            end = os.fstat(fd).st_size // _SLOT_BYTES * _SLOT_BYTES  # a torn slot is overwritten
            self._disk.write_at(fd, _format_slot(number, tag, key), end)
        finally:
            close_quietly(fd)
        self._sync_slots(path)

    def _sync_slots(self, path: Path) -> None:
        fd = self._disk.open(path, os.O_RDWR)
        try:
            self._sync(fd)
        finally:
            close_quietly(fd)
        self._sync_folder(self._keys)

    def _sync(self, fd: int) -> None:
        try:
            self._disk.sync_data(fd)
        except OSError:
            self.broken = True
            raise

    def _sync_folder(self, path: Path) -> None:
        try:
            self._disk.sync_folder(path)
        except OSError:
            self.broken = True
            raise

    # -- reading -----------------------------------------------------------------------------------------------------

    def open(self, place: Place, commitment: str, size: int, *, day: str) -> bytes:
        """The content, if it is what the entry committed to. ``day`` is the UTC day of the entry's ``recorded_at``. Raises as
        ``open_salted``."""
        return open_commitment(self.open_salted(place, commitment, size, day=day), commitment, size)

    def open_salted(self, place: Place, commitment: str, size: int, *, day: str) -> bytes:
        """``salt || content``: what opens the commitment for a stranger, once it was seen to do so.

        ``PermissionError`` where this user may not read, ``StoreError`` where the payload or its key is not there or was
        destroyed, ``Malformed`` or ``VerificationError`` where the bytes are not what they were.
        """
        frame = self.find(place, day)
        if frame is None:
            raise StoreError(f"the payload {place.name!r} of {place.event_id} is not in payloads/")
        _, _, nonce, sealed = _read_frame(self.folder / frame.file, frame.offset)
        found = _find_slot(self._slots_path(day), _day_number(day), self._tag(place.subject))
        if found is None or found[1] is None:
            raise StoreError("its key is not there" if found is None else "its key was destroyed")
        try:
            opened = AESGCM(found[1]).decrypt(nonce, sealed, self._bound(place.event_id, place.name))
        except InvalidTag:
            raise VerificationError(f"payloads/{frame.file} at {frame.offset}: altered") from None
        open_commitment(opened, commitment, size)
        return opened

    def has_keys(self) -> bool:
        """Whether the folder of the keys is there at all; a copy of a log is made without."""
        return self._keys.is_dir()

    def find(self, place: Place, day: str) -> Frame | None:
        """Where a payload lies. The newest frame counts: after a crash an orphan may bear the same name."""
        frames = self._directory(day)
        return frames.get((place.event_id, place.name))

    def _directory(self, day: str) -> dict[tuple[str, str], Frame]:
        """The day's frames by event and name, walked once and then only as far as they grew."""
        with self._lock:
            known = self._seen.setdefault(day, {})
            for found_day, _, name in sorted(self._parts()):
                if found_day == day:
                    start = self._walked.get(name, 0)
                    for frame in _walk(self.folder / name, start, checked=False):
                        known[(frame.event_id, frame.name)] = frame
                        start = frame.offset + frame.length
                    self._walked[name] = start
            return known

    def after_fork(self) -> None:
        """In the child: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def frames(self, day: str | None = None) -> Iterator[Frame]:
        """All whole frames, of one day or of all, in the order of writing; a torn end ends its part silently."""
        for found_day, _, name in sorted(self._parts()):
            if day is None or found_day == day:
                yield from _walk(self.folder / name)

    def unframed(self) -> list[tuple[str, int, int]]:
        """Per part with bytes after its last whole frame: name, offset, number of bytes."""
        found = []
        for _, _, name in sorted(self._parts()):
            end, size = _walk_end(self.folder / name, 0), (self.folder / name).stat().st_size
            if end != size:
                found.append((name, end, size - end))
        return found

    def _parts(self) -> list[tuple[str, int, str]]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        matches = ((_NAME.fullmatch(name), name) for name in names)
        return [(m[1], int(m[2] or 0), name) for m, name in matches if m]

    def _slots_path(self, day: str) -> Path:
        return self._keys / f"payload-{day[:4]}.slots"

    def _tag(self, subject: str | None) -> bytes:
        if subject is None:
            return bytes(17)
        return b"\1" + hashlib.sha256(f"{self._origin}\0{subject}".encode()).digest()[:16]

    def _bound(self, event_id: str, name: str) -> bytes:
        return f"{self._origin}\0{event_id}\0{name}".encode()


def _head(event_id: str, name: str) -> bytes:
    n, e = name.encode(), event_id.encode()
    return bytes([len(n)]) + n + bytes([len(e)]) + e


def _day_number(day: str) -> int:
    return date.fromisoformat(day).timetuple().tm_yday


def _format_slot(number: int, tag: bytes, key: bytes, state: int = 1) -> bytes:
    body = _SLOT_MAGIC + number.to_bytes(2, "big") + bytes([state]) + tag + key
    return body + hashlib.sha256(body).digest()[:8]


def _find_slot(path: Path, number: int, tag: bytes) -> tuple[int, bytes | None] | None:
    """Offset and key of a slot (None if destroyed). A torn slot is no slot: nothing was encrypted under it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    want = _SLOT_MAGIC + number.to_bytes(2, "big")
    for at in range(0, len(data) - _SLOT_BYTES + 1, _SLOT_BYTES):
        slot = data[at : at + _SLOT_BYTES]
        if slot[:6] == want and slot[7:24] == tag and slot[56:] == hashlib.sha256(slot[:56]).digest()[:8]:
            return at, slot[24:56] if slot[6] == 1 else None
    return None


def _read_frame(path: Path, offset: int) -> tuple[str, str, bytes, bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "big")
        if head[:4] != _MAGIC or not 48 <= length <= _BODY_MAX:
            raise Malformed(f"payloads/{path.name} at {offset}: no frame begins here")
        body, crc = file.read(length), file.read(4)
    if len(body) != length or zlib.crc32(head + body).to_bytes(4, "big") != crc:
        raise Malformed(f"payloads/{path.name} at {offset}: the frame is torn or altered")
    try:
        name = body[1 : 1 + body[0]].decode("ascii")
        rest = body[1 + body[0] :]
        event_id, sealed = rest[1 : 1 + rest[0]].decode("ascii"), rest[1 + rest[0] :]
    except (UnicodeDecodeError, IndexError) as e:
        raise Malformed(f"payloads/{path.name} at {offset}: the frame has no name") from e
    if len(sealed) < 28:  # nonce and tag
        raise Malformed(f"payloads/{path.name} at {offset}: the frame has no content")
    return event_id, name, sealed[:12], sealed[12:]


def _walk(path: Path, start: int = 0, *, checked: bool = True) -> Iterator[Frame]:
    """Whole frames from ``start``; stops at the first byte that is not one. ``checked`` reads all and compares CRCs."""
    size = path.stat().st_size
    if size <= start:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
        at = start
        while at + 12 <= size and view[at : at + 4] == _MAGIC:
            length = int.from_bytes(view[at + 4 : at + 8], "big")
            end = at + 12 + length
            if not 48 <= length <= _BODY_MAX or end > size:
                return
            if checked and zlib.crc32(view[at : end - 4]).to_bytes(4, "big") != view[end - 4 : end]:
                return
            n = view[at + 8]
            e = view[at + 9 + n] if at + 9 + n < end else end
            if at + 10 + n + e > end - 4:
                return  # the names do not fit: written by nobody of ours
            try:
                name = view[at + 9 : at + 9 + n].decode("ascii")
                event_id = view[at + 10 + n : at + 10 + n + e].decode("ascii")
            except UnicodeDecodeError:
                return
            yield Frame(path.name, at, end - at, event_id, name)
            at = end


def _walk_end(path: Path, start: int) -> int:
    end = start
    for frame in _walk(path, start):
        end = frame.offset + frame.length
    return end


def end_of_frames(path: Path, start: int = 0) -> int:
    """The offset after the last whole frame of a payload segment, from ``start``, where a frame begins or the file ends. What follows
    is being written, or was torn by a crash. ``OSError`` if it cannot be read."""
    return _walk_end(path, start)
