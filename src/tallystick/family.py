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
from .config import LEFT, keys_folder, read_settings
from .core import entry as ent
from .core.checkpoint import check_origin
from .core.epoch import CREATED, is_own
from .core.errors import AuditError, Malformed, ReadOnly, StoreError, VerificationError
from .core.genesis import Genesis
from .core.merkle import HASH_BYTES, SIZE_MAX, leaf_hash
from .core.note import SignerKey, VerifierKey, encode_base64, open_note, sign
from .core.query import Question
from .core.tiles import root_at
from .core.verify import Finding, Verdict
from .index.derive import Counts
from .log.view import LogView, Stored, parse_key_lines
from .memory import Known, Memory
from .opening import indexes_of, read_genesis
from .store.segments import SegmentStore
from .vault import Vault

PARTS_MAX = 1000
NOTE_BYTES_MAX = 16_384
_HEAD = "tallystick/successor/v1"
_PLACE = re.compile(r"(?:([0-9]{1,4})#|#?)([0-9]{1,19})", re.ASCII)


class Named(NamedTuple):
    """What a successor's entry 0 says of its predecessor. ``lost``: the half-open range of the predecessor's entries that were signed
    and are not here; ``unsigned``: of lines behind its head that nobody signed; each empty where there are none."""

    part: int
    origin: str
    vkey: VerifierKey
    size: int
    root: bytes
    folder: str
    lost: tuple[int, int]
    unsigned: tuple[int, int]
    reason: str
    user: str

    @classmethod
    def parse(cls, details: Any) -> Named | None:
        """The details of a ``log.created`` entry; None for a log without a predecessor. ``Malformed`` where one is named badly."""
        told = details.get("predecessor")
        if told is None:
            return None
        try:
            none = {"first": told["size"], "end": told["size"]}
            lost, unsigned = told.get("lost") or none, told.get("unsigned") or none
            named = cls(told["part"], told["origin"], VerifierKey.parse(told["vkey"]), told["size"], bytes.fromhex(told["root"]),
                        told["folder"], (lost["first"], lost["end"]), (unsigned["first"], unsigned["end"]),
                        str(details.get("reason", "")), str(details.get("user", "")))  # fmt: skip
            check_origin(named.origin)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise Malformed(f"log.created names its predecessor in a way that cannot be read ({e!r:.120})") from None
        numbers = (named.part, named.size, *named.lost, *named.unsigned)
        if not (all(type(n) is int and 0 <= n <= SIZE_MAX for n in numbers) and 1 <= named.part < PARTS_MAX and named.size >= 1
                and named.size <= named.lost[0] <= named.lost[1] and named.size <= named.unsigned[0] <= named.unsigned[1]
                and len(named.root) == HASH_BYTES
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
    if b'"predecessor":' not in line:
        return None
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


def refuse_older_part(folder: Path) -> None:
    """``ReadOnly`` for a folder that is an older part of a log: nobody writes there any more."""
    home = is_left(folder)
    if home:
        raise ReadOnly(f"{folder} is an older part of a log and stays as it is; the log goes on at {home}")


def joined_counts(a: Counts, b: Counts) -> Counts:
    """The sum of both."""
    sums = [{name: x.get(name, 0) + y.get(name, 0) for name in (*x, *y)} for x, y in (
        (a.event_type, b.event_type), (a.actor, b.actor), (a.outcome, b.outcome))]  # fmt: skip
    return Counts(a.own + b.own, *sums)


def _entry_0(store: SegmentStore) -> bytes:
    with contextlib.suppress(FileNotFoundError), (store.folder / "segments" / f"{0:020d}.jsonl").open("rb") as file:
        line, newline, _ = file.read(ent.LINE_BYTES_MAX + 1).partition(b"\n")
        if newline:
            return line
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


class Older(NamedTuple):
    """What is wrong with older parts and links, and what holds and what is lost of them, in words."""

    findings: list[Finding]
    words: list[str]


def check_older(family: list[Part], verify: Callable[[Path, str], Verdict]) -> Older:
    """Older parts and links, for the verdict of the newest.

    ``verify(folder, vkey)`` is a verification of that folder alone under a given key. What it finds is told again with the number of
    the part. What entry 0 of the successor says of it, entries lost and lines that were unsigned when it was left, are words and no
    finding: they are on record. That this user has seen more than was left says ``follow``.
    """
    found, words = check_links(family), []
    for part in family[:-1]:
        named = part.named
        assert named is not None
        count = f"{named.size:,} {'entry' if named.size == 1 else 'entries'}"
        words.append(f"part {part.number}: {count}, {named.folder}, left by {named.user}: {named.reason}")
        for (first, end), what in ((named.lost, "lost on record"), (named.unsigned, "unsigned when it was left")):
            if first < end:
                words.append(f"{part.number}#{first:,} – {part.number}#{end - 1:,}: {what}")
        if not part.here:
            continue
        for finding in verify(part.folder, named.vkey.format()).findings:
            if not _on_record(finding, named):
                found.append(finding._replace(text=f"part {part.number}: {finding.text}", index=None, end=None,
                                              file=f"{named.folder}/{finding.file}" if finding.file else named.folder))  # fmt: skip
    return Older(found, words)


def _on_record(finding: Finding, named: Named) -> bool:
    """True for what the successor said when the part was left."""
    if finding.issue == "rolled_back" and finding.index is not None and finding.end is not None:
        return named.lost[0] <= finding.index and finding.end <= named.lost[1]
    return finding.code == 3 and finding.index == named.size and named.unsigned[0] < named.unsigned[1]


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
    part was left with, or others: whoever stole the key of the part can sign a link to anything, also from a part that he wrote anew.
    None where nothing says so: that is another log.
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
    other = _not_what_was_seen(family[at], known, own=own)
    if other is not None:
        return known, [other]
    first = genesis.open().root.hex()
    new = Known(genesis.origin, genesis.vkey.format(), first, 1, first, CLOCK.wall_us(), witnesses=known.witnesses)
    memory.put(folder.parent / named.folder, msgspec.structs.replace(known, successor=""))
    memory.put(folder, new)
    return new, []


def _not_what_was_seen(part: Part, known: Known, *, own: bool) -> Finding | None:
    """A finding unless the part begins with the entries that this user has seen of it. That its tree is that of its lines, and has
    the root that its successor names, is looked at by whoever verifies it. What was lost on record cannot be compared."""
    assert part.named is not None
    if known.size > part.named.size or (own and not part.here):
        return None
    try:
        if root_at(SegmentStore(part.folder).hashes, known.size).hex() == known.root:
            return None
        text = f"the first {known.size:,} entries of part {part.number} are not those that you have seen"
    except (StoreError, OSError) as e:
        text = f"part {part.number} cannot be compared with the {known.size:,} entries that you have seen ({e})"
    return Finding("replaced", text, file=part.named.folder)


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


class OlderLog:
    """An older part, open for reading, as far as its successor names it."""

    def __init__(self, part: Part) -> None:
        assert part.genesis is not None and part.named is not None
        settings = read_settings(part.folder)
        self.number, self.folder, self.origin, self.size = part.number, part.folder, part.genesis.origin, part.named.size
        self.vault = Vault(part.folder / "payloads", keys_folder(part.folder, settings), self.origin)
        self.view = LogView(SegmentStore(part.folder), part.genesis, indexes_of(part.folder, part.genesis))

    def entry(self, stored: Stored) -> ent.AuditEntry:
        """The entry with the number of its part."""
        return msgspec.structs.replace(stored.entry(), part=self.number)

    def entries(self, question: Question, *, start: int = 0, stop: int | None = None, newest_first: bool = False
                ) -> Iterator[ent.AuditEntry]:  # fmt: skip
        """Entries of [start, stop) that match."""
        self.view.fill(self.size)
        for stored in self.view.answers(question, self.size, start=start, stop=stop, newest_first=newest_first):
            entry = self.entry(stored)
            if question.matches(entry):
                yield entry


class Family:
    """The older parts of one log, for its readers; opened at the first look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._older: list[OlderLog] | None = None
        self.missing: list[str] = []

    def not_here(self) -> list[str]:
        """What cannot be read of the older parts, in words; answers are without it."""
        return self.missing if self.older or self.missing else []

    @property
    def older(self) -> list[OlderLog]:
        """Oldest first. What is not here, or cannot be opened, is named in ``missing`` and left out."""
        if self._older is None:
            self._older, self.missing = [], []
            with contextlib.suppress(AuditError, OSError):
                for part in parts(self._folder)[:-1]:
                    try:
                        if not part.here:
                            raise StoreError(part.why)
                        self._older.append(OlderLog(part))
                    except (AuditError, OSError) as e:
                        self.missing.append(f"part {part.number} ({part.folder.name}) cannot be read: {e}")
        return self._older

    def entries(
        self, question: Question, *, after: str | None = None, before: str | None = None, newest_first: bool = False
    ) -> Iterator[ent.AuditEntry]:  # fmt: skip
        """Of all older parts; ``after`` and ``before`` are places in one of them (``1#17``)."""
        low, high = (None if at is None else parse_place(at) for at in (after, before))
        for part in reversed(self.older) if newest_first else self.older:
            start, stop = 0, None
            if low is not None and low[0] is not None:
                if part.number < low[0]:
                    continue
                start = low[1] + 1 if part.number == low[0] else 0
            if high is not None and high[0] is not None:
                if part.number > high[0]:
                    continue
                stop = high[1] if part.number == high[0] else None
            yield from part.entries(question, start=start, stop=stop, newest_first=newest_first)

    def find(self, wanted: str) -> tuple[OlderLog, Stored] | None:
        """An event id or a place ``1#17`` in an older part; None if it is in none."""
        number, index = parse_place(wanted) if _PLACE.fullmatch(wanted) and "#" in wanted else (None, 0)
        for part in reversed(self.older):
            if number is None or number == part.number:
                found = part.view.find(wanted, part.size) if number is None else part.view.at(index, part.size)
                if found is not None:
                    return part, found
        return None

    def vault(self, entry: ent.AuditEntry) -> Vault | None:
        """Where the contents of an entry of an older part are; None for one of the log itself."""
        return next((part.vault for part in self.older if entry.log == part.origin), None)

    def counts(self, start_us: int | None, end_us: int | None, *, recount: bool) -> Iterator[tuple[Counts, int, int]]:
        """As ``LogView.counts``, of each older part."""
        for part in self.older:
            part.view.fill(part.size)
            yield part.view.counts(start_us, end_us, part.size, recount=recount)

    def close(self) -> None:
        """Release what was opened."""
        for part in self._older or ():
            part.view.close()
            part.vault.close()
