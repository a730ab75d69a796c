"""Archiving: sealed segments leave for compressed files, on record, and nothing is lost in between (STORAGE rule 20).

Order, and what the next call finds if we die after each step:

1. the growing segment is sealed if all its events are old enough → an empty growing segment
2. for each segment: file written, synced, read again, compared line by line with the tree; manifest → a file too many, written again
3. key lines kept, tree synced → nothing changed for readers
4. ``log.archived`` acknowledged: names the whole prefix from 0 and the file of each part → segments that are both here and there
5. each segment is compared with its file once more and removed → the next call goes on here

File names: ``audit_<UTC day>_<first>-<end>.jsonl.zst`` and the same with ``.json`` for the manifest. Not here: legal hold, purge.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..core import entry as ent
from ..core.epoch import ARCHIVED, KEY_TYPES
from ..core.errors import Malformed, StoreError, VerificationError
from ..core.merkle import leaf_hash, root_of
from ..core.times import parse_time
from ..disk import DISK, Disk, file_mode
from ..index.search import Hit
from ..log.view import LogView, Stored, parse_key_lines
from ..log.writer import Writer
from ..store import Segment, Store

_NAME = re.compile(r"audit_[0-9]{4}-[0-9]{2}-[0-9]{2}_(0|[1-9][0-9]{0,18})-([1-9][0-9]{0,18})\.jsonl\.zst", re.ASCII)
LINES_BYTES_MAX = 1 << 32  # an archive that unpacks to more is refused
LEVEL = 6


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive file is: range, digests of the compressed file and of the lines, root over its leaf hashes (hex)."""

    format: int
    origin: str
    name: str
    first: int
    end: int
    sha256: str
    lines_sha256: str
    lines_bytes: int
    root: str


class Part(NamedTuple):
    """One archived range and the name of its file."""

    first: int
    end: int
    name: str


def archive(
    writer: Writer, view: LogView, store: Store, folder: Path, *, older_than_us: int, disk: Disk = DISK
) -> dict[str, Any]:
    """Move the longest prefix of sealed segments all of whose events are older than ``older_than_us`` (by the earlier of
    ``timestamp`` and ``recorded_at``) into ``folder``. Returns archived, remaining, held_back, files.

    ``StoreError`` if a copy does not hold: then nothing was removed.
    """
    _make_folder(folder, disk)
    before = _events_in(store, store.segments())
    finished = _finish_earlier(writer, view, store, folder, disk)
    chosen, held_back = _choose(writer, store, older_than_us)
    parts = [_copy(view, store, segment, end, folder, disk) for segment, end in chosen]
    if parts:
        _keep_key_lines(store, chosen, disk)
        writer.exclusively(lambda append: _put_on_record(writer, append, _record(writer, view, parts)))
        # from here the record says that they left: what follows is finished by the next call if we die
        for (segment, _), part in zip(chosen, parts, strict=True):
            _drop(writer, store, segment, part, folder)
    remaining = _events_in(store, store.segments())
    return {
        "archived": max(0, before - remaining), "remaining": remaining,
        "held_back": held_back, "files": [p.name for p in [*finished, *parts]], "path": str(folder),
    }  # fmt: skip


def _make_folder(folder: Path, disk: Disk) -> None:
    """Its name, and those above it that were made, are durable before anything is said to be in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in made[::-1]:
        disk.mkdir(path, 0o700, like=path.parent)
    for path in {folder, *made}:
        with contextlib.suppress(PermissionError):  # a folder above that this user may not read was not made by him
            disk.sync_folder(path.parent)


def _choose(writer: Writer, store: Store, older_than_us: int) -> tuple[list[tuple[Segment, int]], int]:
    """Segments to leave with their ends, and how many old events stay because of younger ones before or beside them."""

    def seal(_append: object) -> tuple[int, list[Segment]]:
        segments = store.segments()
        ages = _ages(store, segments[-1], writer.state.size)
        if ages and max(ages) < older_than_us:
            writer.roll()
        return writer.state.size, store.segments()

    size, segments = writer.exclusively(seal)
    chosen: list[tuple[Segment, int]] = []
    held_back, stopped = 0, False
    for at, segment in enumerate(segments):
        end = segments[at + 1].start if at + 1 < len(segments) else size
        ages = _ages(store, segment, end)
        if not stopped and at + 1 < len(segments) and all(a < older_than_us for a in ages):
            chosen.append((segment, end))
        else:
            stopped = True
            held_back += sum(a < older_than_us for a in ages)
    return chosen, held_back


def _ages(store: Store, segment: Segment, end: int) -> list[int]:
    """Of each event, the earlier of when it is said to have happened and when it was recorded: the later would let a claim
    delay it. What the log says about itself holds nothing back; what verification needs of it is kept."""
    found = []
    for batch in store.batches(segment):
        for line in batch.lines[: end - batch.index]:
            if not _is_lifecycle(line):
                fields = ent.decode(line)
                found.append(min(parse_time(fields.timestamp), parse_time(fields.recorded_at)))
    return found


def _is_lifecycle(line: bytes) -> bool:
    return b'"event_type":"log.' in line and ent.decode(line).event_type.startswith("log.")


def _events_in(store: Store, segments: list[Segment]) -> int:
    return sum(not _is_lifecycle(line) for s in segments for batch in store.batches(s) for line in batch.lines)


def _copy(view: LogView, store: Store, segment: Segment, end: int, folder: Path, disk: Disk) -> Part:
    lines = _lines(store, segment, end)
    _compare(store, segment.start, lines)
    data = b"".join(line + b"\n" for line in lines)
    day = ent.decode(lines[0]).recorded_at[:10]
    name = f"audit_{day}_{segment.start}-{end}.jsonl.zst"
    packed = _compress(data)
    manifest = Manifest(1, view.genesis.origin, name, segment.start, end, hashlib.sha256(packed).hexdigest(),
                        hashlib.sha256(data).hexdigest(), len(data), root_of([leaf_hash(x) for x in lines]).hex())  # fmt: skip
    mode = file_mode(store.folder)
    disk.write_file(folder / name, packed, mode, like=folder)
    text = json.dumps(msgspec.to_builtins(manifest), indent=1).encode() + b"\n"
    disk.write_file(_manifest_path(folder / name), text, mode, like=folder)
    if read_archive(folder / name)[1] != lines:
        raise StoreError(f"{folder / name} does not read back as it was written; nothing was removed")
    return Part(segment.start, end, name)


def _lines(store: Store, segment: Segment, end: int) -> list[bytes]:
    lines = [line for batch in store.batches(segment) for line in batch.lines]
    if len(lines) != end - segment.start:
        raise StoreError(f"segments/{segment.name} has {len(lines):,} lines, not {end - segment.start:,}; tally verify says "
                         "more; nothing was removed")  # fmt: skip
    return lines


def _compare(store: Store, start: int, lines: list[bytes]) -> None:
    if store.hashes(0, start, len(lines)) != b"".join(leaf_hash(line) for line in lines):
        raise StoreError(f"entries from #{start:,} are not the ones in the tree; tally verify says which; nothing was removed")


def _keep_key_lines(store: Store, chosen: list[tuple[Segment, int]], disk: Disk) -> None:
    """``keylines.jsonl`` gets the lifecycle lines that verification needs, each with its index."""
    path = store.folder / "keylines.jsonl"
    kept = dict(parse_key_lines(path.read_bytes())) if path.exists() else {}
    for segment, end in chosen:
        for number, line in enumerate(_lines(store, segment, end), segment.start):
            if b'"event_type":"log.' in line and ent.decode(line).event_type in KEY_TYPES:
                kept[number] = line
    data = b"".join(b"%d %b\n" % (number, line) for number, line in sorted(kept.items()))
    disk.write_file(path, data, file_mode(store.folder), like=store.folder)
    store.flush()


def _record(writer: Writer, view: LogView, parts: list[Part]) -> Any:
    earlier = [{"first": a, "end": b, "name": n} for a, b, n in view.history(writer.state.size).archived]
    now = [p._asdict() for p in parts]
    reached = 0
    for part in [*earlier, *now]:
        if part["first"] != reached:
            raise StoreError("what left earlier is not on record without a gap; tally verify says more; nothing was removed")
        reached = part["end"]
    return writer.own(ARCHIVED, "archived sealed segments", {"first": parts[0].first, "end": parts[-1].end,
                                                            "parts": [*earlier, *now]})  # fmt: skip


def _put_on_record(writer: Writer, append: Any, record: Any) -> None:
    """Signed, and the signature synced: a record whose head a power loss took would be unsigned when found, and say nothing."""
    append([record])
    writer.sync_derived(of_all=True)


def _drop(writer: Writer, store: Store, segment: Segment, part: Part, folder: Path) -> None:
    """Only what was read back from the file, and only while it is still the same here."""
    lines = read_archive(folder / part.name)[1]
    if lines != _lines(store, segment, part.end):
        raise StoreError(f"{folder / part.name} is not what segments/{segment.name} holds; it stays")
    writer.exclusively(lambda _append: store.drop(segment))


def _finish_earlier(writer: Writer, view: LogView, store: Store, folder: Path, disk: Disk) -> list[Part]:
    """Segments that are on record as archived and still here: a call that died after step 4."""

    def size_signed_durably(_append: object) -> int:
        writer.sync_derived(of_all=True)  # the call that died may have gone before the signature of its record was synced
        return writer.state.size

    size = writer.exclusively(size_signed_durably)
    parts = {p[0]: Part(*p) for p in view.history(size).archived}
    done = []
    for segment in store.segments()[:-1]:
        part = parts.get(segment.start)
        if part is not None:
            if not (folder / part.name).exists():  # that call had another folder, or a power loss took the file's name
                _copy(view, store, segment, part.end, folder, disk)
            _drop(writer, store, segment, part, folder)
            done.append(part)
    return done


# -- reading archives --------------------------------------------------------------------------------------------------


def read_archive(path: Path) -> tuple[Manifest, list[bytes]]:
    """An archive file → its manifest and lines; digests and root compared. Hostile input: bounded, no paths followed.

    ``Malformed`` where file or manifest are not what they should be, ``VerificationError`` where they disagree.
    """
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise Malformed(f"{path.name} is not the name of an archive (audit_<day>_<first>-<end>.jsonl.zst)")
    try:
        with _manifest_path(path).open("rb") as file:
            manifest = msgspec.json.decode(file.read(65_536), type=Manifest)
    except FileNotFoundError:
        raise Malformed(f"{_manifest_path(path).name} is not beside {path.name}") from None
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as e:
        raise Malformed(f"{_manifest_path(path).name}: {e}") from e
    if (manifest.name, manifest.first, manifest.end) != (path.name, int(found[1]), int(found[2])):
        raise VerificationError(f"{_manifest_path(path).name} is about {manifest.name[:80]}")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != manifest.sha256:
        raise VerificationError(f"{path.name} is not the file that its manifest names (SHA-256)")
    data = _decompress(packed, manifest.lines_bytes)
    lines = data.split(b"\n")[:-1]
    if hashlib.sha256(data).hexdigest() != manifest.lines_sha256 or len(lines) != manifest.end - manifest.first:
        raise VerificationError(f"{path.name} does not unpack to the lines that its manifest names")
    if root_of([leaf_hash(line) for line in lines]).hex() != manifest.root:
        raise VerificationError(f"{path.name}: the lines do not give the root in the manifest")
    return manifest, lines


def read_archives(folder: Path, view: LogView, size: int, start: int, stop: int | None) -> Iterator[Stored]:
    """Archived lines on record in [start, stop), each compared with its leaf hash in the log's tree."""
    here = view.store.segments()
    first_here = here[0].start if here else size
    for first, end, name in view.history(size).archived:
        if end <= start or (stop is not None and first >= stop) or first >= first_here:
            continue
        if not (folder / name).exists():
            raise StoreError(f"{folder / name} is not there: entries #{first:,}–#{end - 1:,} cannot be read")
        lines = read_archive(folder / name)[1]
        _compare_archived(view, first, lines, name)
        for number, line in enumerate(lines, first):
            if number >= start and (stop is None or number < stop) and number < first_here:
                yield Stored(Hit(number, first, 0, len(line)), line)


def _compare_archived(view: LogView, first: int, lines: list[bytes], name: str) -> None:
    if view.store.hashes(0, first, len(lines)) != b"".join(leaf_hash(line) for line in lines):
        raise VerificationError(f"{name}: its lines are not the ones that were signed")


def _manifest_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".jsonl.zst") + ".json")


def _compress(data: bytes) -> bytes:
    from backports import zstd

    return bytes(zstd.compress(data, LEVEL))


def _decompress(packed: bytes, size: int) -> bytes:
    from backports import zstd

    if not 0 <= size <= LINES_BYTES_MAX:
        raise Malformed("an archive that claims to unpack to too much")
    try:
        with zstd.ZstdFile(io.BytesIO(packed)) as file:
            data = bytes(file.read(size + 1))
    except (zstd.ZstdError, EOFError) as e:
        raise Malformed(f"not a zstd file: {e}") from e
    if len(data) != size:
        raise VerificationError("an archive does not unpack to the size in its manifest")
    return data




__all__ = ["Manifest", "Part", "archive", "read_archive", "read_archives"]
