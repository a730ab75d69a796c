"""The family of a log: the parts that ``tally resume`` left behind and the log that goes on, read as one (decision 21).

A successor's entry 0 names its predecessor under ``predecessor``: part number (1 is the oldest), origin, verifier key, size and
root, the name of its folder (beside the successor's), the newest checkpoint known elsewhere, and the half-open range that is lost.
Where the predecessor's log key could be read there is a note ``predecessor`` in the successor's folder, signed by that key (C2SP
signed-note)::

    tallystick/successor/v1
    <origin of the predecessor>
    <its size>
    <base64 of its root>
    <verifier key of the successor>
    <base64 of the successor's genesis root>

No checkpoint reads like it: where a checkpoint has its size, this has an origin and then a number, never a root of 32 bytes.

Entries of older parts are written ``1#17`` on screens, part and index; plain ``#17`` is of the newest part. Nothing here believes a
predecessor that the verified entry 0 of the successor does not name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .clock import CLOCK
from .config import LEFT
from .core import entry as ent
from .core.checkpoint import check_origin
from .core.epoch import CREATED, is_own
from .core.errors import AuditError, Malformed, StoreError, VerificationError
from .core.genesis import Genesis
from .core.merkle import HASH_BYTES, SIZE_MAX, leaf_hash
from .core.note import SignerKey, VerifierKey, encode_base64, open_note, sign
from .core.tiles import root_at
from .core.verify import Finding, Verdict
from .log.view import parse_key_lines
from .memory import Known, Memory
from .opening import read_genesis
from .store.segments import SegmentStore

PARTS_MAX = 1000
NOTE_BYTES_MAX = 16_384
_HEAD = "tallystick/successor/v1"
_PLACE = re.compile(r"(?:([0-9]{1,4})#|#?)([0-9]{1,19})", re.ASCII)


class Named(NamedTuple):
    """What a successor's entry 0 says of its predecessor. ``lost``: the half-open range of the predecessor's entries that were signed
    and are not here, empty where none is known to be lost."""

    part: int
    origin: str
    vkey: VerifierKey
    size: int
    root: bytes
    folder: str
    lost: tuple[int, int]
    reason: str
    user: str

    @classmethod
    def parse(cls, details: Any) -> Named | None:
        """The details of a ``log.created`` entry; None for a log without a predecessor. ``Malformed`` where one is named badly."""
        told = details.get("predecessor")
        if told is None:
            return None
        try:
            lost = told.get("lost") or {"first": told["size"], "end": told["size"]}
            named = cls(told["part"], told["origin"], VerifierKey.parse(told["vkey"]), told["size"], bytes.fromhex(told["root"]),
                        told["folder"], (lost["first"], lost["end"]), str(details.get("reason", "")),
                        str(details.get("user", "")))  # fmt: skip
            check_origin(named.origin)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise Malformed(f"log.created names its predecessor in a way that cannot be read ({e!r:.120})") from None
        numbers = (named.part, named.size, *named.lost)
        if not (all(type(n) is int and 0 <= n <= SIZE_MAX for n in numbers) and 1 <= named.part < PARTS_MAX and named.size >= 1
                and named.size <= named.lost[0] <= named.lost[1] and len(named.root) == HASH_BYTES
                and isinstance(named.folder, str) and LEFT.search(named.folder) and "/" not in named.folder
                and "\0" not in named.folder and named.vkey.name == named.origin):  # fmt: skip
            raise Malformed("log.created names its predecessor in a way that cannot be")
        return named


class Part(NamedTuple):
    """One log of a family. ``named`` is what the part after it says of it (None: this is the newest). ``genesis`` is None where the
    part is not at its place or cannot be opened; ``why`` says which."""

    number: int
    folder: Path
    genesis: Genesis | None
    named: Named | None
    why: str = ""

    @property
    def here(self) -> bool:
        """Whether it can be read."""
        return self.genesis is not None


# -- which parts there are -------------------------------------------------------------------------------------------------


def predecessor(folder: Path, genesis: Genesis) -> Named | None:
    """What entry 0 of a log says of its predecessor; None if there is none. Entry 0 must be the one that the genesis checkpoint
    names: ``VerificationError`` otherwise, ``Malformed``, ``StoreError`` and ``OSError`` where it cannot be read."""
    line = _entry_0(SegmentStore(folder))
    if leaf_hash(line) != genesis.open().root:
        raise VerificationError("entry #0 is not the one that the genesis checkpoint names")
    fields = ent.decode(line)
    return Named.parse(fields.details) if fields.event_type == CREATED and is_own(fields) else None


def parts(folder: Path) -> list[Part]:
    """The parts of the log at ``folder``, oldest first; the last one is that log. What is wrong with an older one is said in ``why``,
    and the parts before it are not known then. Errors as in ``predecessor`` only for the newest."""
    genesis = read_genesis(folder)
    named = predecessor(folder, genesis)
    found = [Part((named.part if named else 0) + 1, folder, genesis, None)]
    while named is not None:
        place, part = folder.parent / named.folder, named.part
        older: Genesis | None = None
        why, before = "", None
        try:
            older = read_genesis(place)
            if older.vkey != named.vkey:
                raise VerificationError(f"it has the key {older.vkey.format()}, not the one that part {part + 1} names")
            before = predecessor(place, older)
            if (before.part if before else 0) != part - 1:
                raise VerificationError("its number is not the one that the part after it names")
        except (AuditError, OSError) as e:
            older, why = None, e.strerror or "cannot be read" if isinstance(e, OSError) else str(e)
        found.append(Part(part, place, older, named, why))
        named = before if older is not None else None
    return found[::-1]


def is_left(folder: Path) -> str:
    """The name of the log that goes on where this folder is an older part of it; empty if it is none."""
    left = LEFT.search(folder.name)
    if left is None:
        return ""
    home = folder.with_name(folder.name[: left.start()])
    with contextlib.suppress(AuditError, OSError):
        if any(part.folder.name == folder.name for part in parts(home)[:-1]):
            return str(home)
    return ""


def _entry_0(store: SegmentStore) -> bytes:
    segments = store.segments()
    if segments and segments[0].start == 0:
        first = next(store.batches(segments[0]), None)
        if first is not None and first.lines:
            return first.lines[0]
    with contextlib.suppress(FileNotFoundError):
        for index, line in parse_key_lines((store.folder / "keylines.jsonl").read_bytes()):
            if index == 0:
                return line
    raise StoreError(f"{store.folder}: entry #0 is not here")


# -- the links between them --------------------------------------------------------------------------------------------------


def check_links(family: list[Part]) -> list[Finding]:
    """What is wrong between the parts (code 6): one that is missing, with its range, or that has not the root that its successor
    names at the size that it names. The parts themselves are verified by whoever calls this. Empty if everything holds."""
    found = []
    for part in family[:-1]:
        named = part.named
        assert named is not None
        span = f"{part.number}#0 – {part.number}#{named.size - 1:,}"
        if not part.here:
            found.append(Finding("missing", f"part {part.number} of this log ({span}) should be at {named.folder} beside it: "
                                 f"{part.why}", file=named.folder))  # fmt: skip
            if part.number > 1:
                found.append(Finding("missing", f"parts 1 to {part.number - 1} cannot be looked for without it", file=named.folder))
            continue
        try:
            root = root_at(SegmentStore(part.folder).hashes, named.size)
        except (StoreError, OSError) as e:
            found.append(Finding("missing", f"part {part.number} ({span}): {e}", file=named.folder))
            continue
        if root != named.root:
            found.append(Finding("replaced", f"part {part.number} ({span}) does not have the root that the part after it names",
                                 file=named.folder))  # fmt: skip
    return found


def check_older(family: list[Part], verify: Callable[[Path, str], Verdict]) -> tuple[list[Finding], list[str], int]:
    """Older parts and links, for the verdict of the newest: findings, what is lost or open in words, how many entries are proven.

    ``verify(folder, vkey)`` is a verification under a given key. What it finds is told again with the number of the part. Entries
    lost on record are words, not a finding; that this user has seen more than was left says ``follow``.
    """
    found, words, proven = check_links(family), [], 0
    for part in family[:-1]:
        named = part.named
        assert named is not None
        first, end = named.lost
        if first < end:
            words.append(f"{part.number}#{first:,} – {part.number}#{end - 1:,}: lost on record ({named.reason}; said by "
                         f"{named.user})")  # fmt: skip
        if not part.here:
            continue
        verdict = verify(part.folder, named.vkey.format())
        proven += min(verdict.tree_size, named.size)
        found += [finding._replace(text=f"part {part.number}: {finding.text}", index=None, end=None,
                                   file=f"{named.folder}/{finding.file}" if finding.file else named.folder)
                  for finding in verdict.findings]  # fmt: skip
        if verdict.tree_size < named.size and verdict.tree_size and not verdict.findings:
            found.append(Finding("missing", f"part {part.number} has {verdict.tree_size:,} entries, the part after it names "
                                 f"{named.size:,}", file=named.folder))  # fmt: skip
    return found, words, proven


# -- whom memory may follow (STORAGE rule 22) ----------------------------------------------------------------------------------


def successor_text(genesis: Genesis) -> str:
    """How ``Known.successor`` names a log."""
    return f"{genesis.vkey.format()} {genesis.open().root.hex()}"


def sign_successor(signer: SignerKey, size: int, root: bytes, genesis: Genesis) -> bytes:
    """The note ``predecessor``: the predecessor's log key says who goes on after it."""
    return sign(_successor(signer.name, size, root, genesis), signer)


def _successor(origin: str, size: int, root: bytes, genesis: Genesis) -> str:
    return f"{_HEAD}\n{origin}\n{size}\n{encode_base64(root)}\n{genesis.vkey.format()}\n{encode_base64(genesis.open().root)}\n"


def is_signed_link(part: Part, following: Part) -> bool:
    """True if the log key of ``part`` signed that ``following`` goes on after it, with the size and root that it names."""
    named, genesis = part.named, following.genesis
    if named is None or genesis is None:
        return False
    try:
        with (following.folder / "predecessor").open("rb") as file:
            note = file.read(NOTE_BYTES_MAX)
        text = open_note(note, [named.vkey]).text
        return text == _successor(named.origin, named.size, named.root, genesis)
    except (AuditError, OSError):
        return False


def follow(folder: Path, genesis: Genesis, known: Known, memory: Memory) -> tuple[Known, list[Finding]] | None:
    """What this user knew at ``folder`` was an older part: may his memory go on to the log that is there now (rule 22)?

    Yes if ``tally resume`` of this user wrote it, or if the key that he knows signed the link, over any number of parts. Then the
    new ``Known`` (remembered, as is the older part at its place) and no finding, or a finding where he has seen more entries than the
    part was left with. None where nothing says so: that is another log.
    """
    try:
        family = parts(folder)
    except (AuditError, OSError):
        return None
    own = known.successor == successor_text(genesis)
    at = next((n for n, part in enumerate(family[:-1]) if part.named and part.named.vkey.format() == known.vkey), None)
    if at is None or not (own or all(is_signed_link(a, b) for a, b in zip(family[at:], family[at + 1 :], strict=False))):
        return None
    named = family[at].named
    assert named is not None
    if not own and known.size > named.size:
        return known, [Finding("rolled_back", f"you have seen {known.size:,} entries of {named.origin}; the log that goes on "
                               f"after it names {named.size:,} and says that the rest is lost ({named.reason}). If you accept "
                               f"that: tally trust --forget {folder}, then tally trust {folder}", file=named.folder)]  # fmt: skip
    first = genesis.open().root.hex()
    new = Known(genesis.origin, genesis.vkey.format(), first, 1, first, CLOCK.wall_us(), witnesses=known.witnesses)
    memory.put(folder.parent / named.folder, msgspec.structs.replace(known, successor=""))
    memory.put(folder, new)
    return new, []


# -- reading as one ------------------------------------------------------------------------------------------------------------


def parse_place(text: str) -> tuple[int | None, int]:
    """``1#17`` → part 1, index 17; ``#17`` and ``17`` → (None, 17), the newest part. ``ValueError`` for anything else."""
    match = _PLACE.fullmatch(text.replace(",", "").replace("_", ""))
    if match is None:
        raise ValueError(f"{text!r} is not a place in a log: #17, or 1#17 for part 1")
    return (int(match[1]) if match[1] else None), int(match[2])


def older_folders(folder: Path) -> Iterator[Path]:
    """The folders of the older parts that are here."""
    with contextlib.suppress(AuditError, OSError):
        yield from (part.folder for part in parts(folder)[:-1] if os.path.isdir(part.folder))
