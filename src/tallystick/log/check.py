"""Verifying a log: every stored line against the signed tree, and everything derived against the lines (STORAGE 17, 21).

Nothing here raises for what is wrong with a log: each break becomes a finding with index, file and byte offset. The key is given
by the caller, who knows what is trusted (``verification``). No network, no clock beyond the second that a head may be in flight.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..anchor.configured import AnchorSettings
from ..core import entry as ent
from ..core.checkpoint import Checkpoint, open_signed
from ..core.epoch import CONFIG, CREATED, History, is_own
from ..core.errors import AuditError, Malformed, StoreError, VerificationError
from ..core.merkle import HASH_BYTES, Frontier, cut, leaf_hash, verify_consistency
from ..core.note import split
from ..core.tiles import frontier_at, prove_consistency, root_at
from ..core.times import parse_time
from ..core.verify import Alignment, Confirmation, Finding, Span, Verdict, align, merge, minute_text
from ..index.compare import Comparison, integrity, of_no_entry
from ..index.derive import block_start
from ..index.file import Index
from ..index.search import Hit, size_of
from ..keys import Mark
from ..outside import HandedOut, Parties
from ..store import Segment, Store
from ..vault import Place, Vault
from .anchored import Returned, returned
from .confirmed import NOBODY, Kept, Outside, Trusted
from .content import Agreed, prove_content
from .view import Head, LogView, Stored

FINDINGS_MAX = 1000
_OWN = b'"event_type":"log.'
IN_FLIGHT_S = 1.0  # lines that were just written are signed within this time (STORAGE rule 17)
TAIL_MAX = 65_536  # so many lines beyond the expected ones are looked at
SILENCES_MAX = 50
SAME_MAX = 20_000  # beyond so many lines that disagree in one segment they are named as a range


class Reference(NamedTuple):
    """A size and root that are known from elsewhere: memory, mark, a checkpoint kept, and how to call it."""

    size: int
    root: bytes
    source: str


class Checker:
    """One verification of one store."""

    quick = True  # False: only the way that looks at everything line by line; the tests compare both

    def __init__(
        self, store: Store, view: LogView, vault: Vault, index: Index | None,
        progress: Callable[[str, int], None] | None = None, *, handed: HandedOut | None = None, parties: Parties | None = None,
        trusted: Trusted = NOBODY, beat_us: int = 0,
    ) -> None:  # fmt: skip
        self._progress = progress or (lambda _what, _done: None)
        self._outside = None if handed is None or parties is None else Outside(handed, parties, trusted, self._tell)
        self._trusted, self._beat_us = trusted, beat_us
        self._last: tuple[int, int] | None = None  # index and time of the entry looked at last
        self._store, self._view, self._vault, self._index = store, view, vault, index
        self.verdict = Verdict(origin=view.genesis.origin)
        self._history: History | None = None
        self._roots: dict[int, bytes] = {}
        self._bad: dict[int, str] = {}  # altered or missing
        self._start = 0  # entries below were proven before, and not looked at now
        self._where: dict[int, list[int | None]] = {}  # broken segments: the index of each line that is as signed
        self._strangers: list[_Stranger] = []
        self._tree_holds = False
        self._agreed: Agreed | None = None
        self._head_error = ""
        self._keyless = 0  # payloads that lie here while no key folder does
        self._config: str | None = None
        self.holding: list[Kept] = []  # those of checkpoints/ that are of this history
        self._kept: list[Kept] = []  # all of them
        self._brought: list[Kept] = []  # by whoever verifies, and of this history
        self.notes_against: list[bytes] = []  # checkpoints of this log, from elsewhere, that are not of this history
        self.contradicting: list[str] = []  # files with checkpoints of this log that are not of this history
        self._epochs: list[tuple[int, str]] = []  # ascending: entries below this size, if no earlier one says so, and what holds

    # -- steps -------------------------------------------------------------------------------------------------------

    def head(self, *, everything: bool = False) -> Checkpoint | None:
        """Genesis, entry 0, head. None if there is no head that could be believed; the findings say why. ``everything``: all lines
        will be looked at; then they are looked at here, once, for they hold the keys under which the head must be signed."""
        try:
            genesis = self._view.genesis.open().root
        except AuditError as e:
            self._find("bad_signature", f"log.vkey: {e}", file="log.vkey")
            return None
        try:
            head = (self._first_pass() if everything and self.quick else None) or self._view.head()
        except AuditError as e:
            return self._bad_head(e, genesis)
        self._history = self._view.history(head.size)
        self.verdict.tree_size, self.verdict.root = head.size, head.checkpoint.root.hex()
        return head.checkpoint

    def _first_pass(self) -> Head | None:
        """The head, where all lines give its root and it is signed under the keys that they name; None otherwise."""
        with contextlib.suppress(AuditError):
            note = self._store.head()
            claimed = Checkpoint.parse(split(note or b"")[0])
            segments = self._store.segments()
            agreed = prove_content(self._store, claimed, 0, self._progress) if segments and claimed.size else None
            if agreed is not None:
                self._view.adopt(agreed.own, segments[0].start, claimed.size)
                head = self._view.open_head(note)
                self._agreed = agreed
                return head
        self._view.forget()
        return None

    def _bad_head(self, error: AuditError, genesis: bytes) -> Checkpoint | None:
        """Say what is wrong; what the head claims still tells which lines to look at, though nobody signed it."""
        try:
            note = self._store.head()
        except AuditError as e:
            self._find("bad_signature", f"the head is not signed by this log ({e})", file="checkpoint")
            return None
        if note is None:
            self._find("missing", "there is no checkpoint: nothing says how long this log is", file="checkpoint")
            return None
        self._history = History((), (), ())
        segments = self._store.segments()
        first = next(_batches(self._store, 1), None) if segments and segments[0].start == 0 else None
        nameless = first is None and not (self._store.folder / "keylines.jsonl").exists()
        altered = first is not None and leaf_hash(first[0]) != genesis
        self._head_error = f"the head is not signed by this log ({error})"
        claimed = None
        with contextlib.suppress(AuditError):
            claimed = Checkpoint.parse(note.decode("utf-8", "replace").rpartition("\n\n")[0] + "\n")
        if claimed is None or not (nameless or altered):
            self._find("bad_signature", self._head_error, file="checkpoint")
        if claimed is None:
            return None
        self.verdict.tree_size, self.verdict.root = claimed.size, claimed.root.hex()
        return claimed

    def lines(self, head: Checkpoint, start: int = 0) -> None:
        """Every stored line below the head (from ``start``, whose root is known to hold): leaf, tree, root."""
        self._start = start
        segments = self._store.segments()
        first = segments[0].start if segments else head.size
        self._gone(first)
        if self.quick and self._agreed is None and not self._head_error:
            self._agreed = prove_content(self._store, head, start, self._progress)
        if self._agreed is not None:
            self._tree_holds = True
            self._entry_0(True)
            self._after(head, segments[-1], self._agreed.end)
            return
        frontier = self._base(max(first, start), head)
        if frontier is None:
            return
        tree_holds = self._tree_holds = self._tree_gives(head)
        agree = last_agrees = True
        for at, segment in enumerate(segments):
            stop = min(segments[at + 1].start if at + 1 < len(segments) else head.size, head.size)
            if segment.start >= head.size:
                break
            if stop > frontier.size:
                last_agrees = self._segment(segment, stop, frontier, tree_holds, last=at + 1 == len(segments))
                agree = agree and last_agrees
        if not segments and head.size > first:
            self._find("missing", "there are no segments", index=first, end=head.size)
        elif agree and frontier.size == head.size and frontier.root() != head.root:
            self._find("checksum_mismatch", f"the {head.size:,} lines do not give the signed root, and the tree files were "
                       "changed with them: which lines cannot be told", index=first, end=head.size)  # fmt: skip
        elif not tree_holds and agree and frontier.root() == head.root:
            self._tree_differs(head)
        elif agree and frontier.size < head.size:
            self._find("missing", f"#{frontier.size:,}–#{head.size - 1:,} are not here", index=frontier.size, end=head.size)
        self._name_strangers()
        self._head_again(head)
        self._entry_0(agree and frontier.size == head.size and frontier.root() == head.root)
        if last_agrees:
            self._beyond(head, segments)

    def _head_again(self, head: Checkpoint) -> None:
        """Lines that are not in their place named the wrong keys, so that no head could be opened: with those that are, it may be."""
        if not self._head_error or not self._tree_holds:
            return
        own = [(stored.hit.index, stored.line) for stored in self._in_place(0, head.size) if _OWN in stored.line]
        segments = self._store.segments()
        with contextlib.suppress(AuditError):
            self._view.adopt(own, segments[0].start if segments else head.size, head.size)
            opened = self._view.open_head(self._store.head())
            if opened.checkpoint == head:
                self._history = self._view.history(head.size)
                self.verdict.findings = [f for f in self.verdict.findings if f.text != self._head_error]
                self._head_error = ""
                return
        self._view.forget()

    def _entry_0(self, root_holds: bool) -> None:
        """The genesis checkpoint names entry 0: another one is another log, or a line that was altered."""
        genesis = self._view.genesis.open().root
        first = next(_batches(self._store, 1), None)
        leaf = leaf_hash(first[0]) if first else None
        with contextlib.suppress(StoreError):
            if self._tree_holds or leaf is None:
                leaf = self._store.hashes(0, 0, 1)
        if leaf is None or leaf == genesis:
            return
        if self._tree_holds or root_holds:
            self._find("replaced", "entry #0 is not the one that the genesis checkpoint names", index=0)
        elif 0 not in self._where:
            self._find("checksum_mismatch", "entry #0 is not the one that the genesis checkpoint names", index=0, offset=0,
                       file=f"segments/{0:020d}.jsonl")  # fmt: skip

    def _gone(self, first: int) -> None:
        """The prefix that is not here must be archived on record."""
        assert self._history is not None
        archived = self._history.archived_until()
        if first > archived:
            self._find("missing", f"entries #{archived:,}–#{first - 1:,} are not here and no entry says where they went",
                       index=archived, end=first)  # fmt: skip
        if archived and first:
            self.verdict.not_proven.append(
                f"content of #0–#{min(archived, first) - 1:,}: archived on record; hashes only (tally verify ARCHIVE)"
            )

    def _base(self, start: int, head: Checkpoint) -> Frontier | None:
        if start == 0:
            return Frontier()
        try:
            if self._store.hash_count(0) < min(start, head.size):
                raise StoreError("tree/0 ends before it")
            return frontier_at(self._store.hashes, min(start, head.size))
        except StoreError as e:
            self._find("missing", f"the tree below #{start:,} cannot be read ({e})", file="tree", index=0, end=start)
            return None

    def _tree_gives(self, head: Checkpoint) -> bool:
        """True if the leaf hashes in ``tree/0`` give the signed root: then they tell which line is wrong."""
        frontier = Frontier()
        try:
            for at in range(0, head.size, 1 << 16):
                count = min(1 << 16, head.size - at)
                frontier.extend(cut(self._store.hashes(0, at, count)))
        except StoreError:
            return False
        return frontier.root() == head.root

    def _segment(self, segment: Segment, stop: int, frontier: Frontier, tree_holds: bool, *, last: bool) -> bool:
        """Lines of one segment that should be [frontier.size, stop). True if they agree (or nothing can be said)."""
        if segment.start > frontier.size:
            self._find("missing", f"#{frontier.size:,}–#{segment.start - 1:,} are not here", index=frontier.size,
                       end=segment.start)  # fmt: skip
            _jump(frontier, segment.start, self._expected(frontier.size, segment.start))
        skip, base = frontier.size - segment.start, frontier.size
        expected = self._expected(base, stop) if tree_holds else None
        wanted, ok, at, end = stop - base, True, 0, 0
        room = wanted + TAIL_MAX
        leaves: list[bytes] = []
        for batch in self._store.batches(segment):
            lines = batch.lines[max(0, skip - at) :][: room - len(leaves)]
            at += len(batch.lines)
            end = batch.offset + sum(map(len, batch.lines)) + len(batch.lines)
            leaves.extend([leaf_hash(line) for line in lines])
            self._progress("lines", frontier.size + len(leaves))
            if len(leaves) >= room:
                break
        if not last and len(leaves) < room and end < segment.size:
            self._find("checksum_mismatch", f"{segment.size - end:,} bytes in segments/{segment.name} are no line",
                       index=base + len(leaves), file=f"segments/{segment.name}", offset=end)  # fmt: skip
            ok = False
        if last and (expected is None or leaves[:wanted] == expected):
            leaves = leaves[:wanted]
        if expected is not None and leaves != expected:
            self._name_breaks(segment, base, skip, expected, leaves, last=last)
            leaves, ok = expected, False
        elif expected is None and len(leaves) != wanted:
            self._where[segment.start] = [None] * len(leaves)
            self._wrong_number(segment, base + len(leaves), stop, len(leaves) - wanted)
            ok = False
        _jump(frontier, stop, leaves)
        return ok

    def _expected(self, start: int, stop: int) -> list[bytes] | None:
        try:
            if stop > self._store.hash_count(0):
                return None
            return cut(self._store.hashes(0, start, stop - start))
        except StoreError:
            return None

    def _wrong_number(self, segment: Segment, reached: int, stop: int, surplus: int) -> None:
        if surplus < 0:
            self._find("missing", f"{-surplus:,} lines are missing in segments/{segment.name}", index=reached, end=stop,
                       file=f"segments/{segment.name}")  # fmt: skip
        else:
            self._find("duplicate", f"{surplus:,} lines too many in segments/{segment.name}", index=stop,
                       file=f"segments/{segment.name}")  # fmt: skip

    def _name_breaks(
        self, segment: Segment, base: int, skip: int, expected: list[bytes], found: list[bytes], *, last: bool
    ) -> None:
        file = f"segments/{segment.name}"
        broken = align(expected, found)
        ahead: list[int | None] = [None] * skip
        self._where[segment.start] = ahead + _in_place(broken, base, len(expected), len(found))
        if last:  # what follows everything that was signed is a tail
            tail = [at for i, at in broken.inserted if i == len(expected)]
            broken = broken._replace(inserted=[pair for pair in broken.inserted if pair[0] < len(expected)])
            self._tail(segment, base + len(expected), skip + len(found) - len(tail))
        places = self._places(segment, skip, {at for pairs in (broken.altered, broken.duplicate, broken.moved,
                                                               broken.inserted) for _, at in pairs})  # fmt: skip
        for i, at in broken.altered:
            offset, fields = places.get(at, (None, None))
            self._find("checksum_mismatch", f"entry #{base + i:,} is not the bytes that were signed", index=base + i,
                       file=file, offset=offset, fields=fields)  # fmt: skip
        for start, end in _runs(broken.missing):
            text = f"#{base + start:,}" + ("" if end == start + 1 else f"–#{base + end - 1:,}")
            self._find("missing", f"{text} not there", index=base + start, end=base + end, file=file)
        for i, at in broken.duplicate:
            offset, fields = places.get(at, (None, None))
            self._find("duplicate", f"entry #{base + i:,} is there once more", index=base + i, file=file, offset=offset,
                       fields=fields)  # fmt: skip
        for i, at in broken.moved:
            offset, fields = places.get(at, (None, None))
            self._find("order", f"entry #{base + i:,} is not in its place", index=base + i, file=file, offset=offset,
                       fields=fields)  # fmt: skip
        for i, at in broken.inserted:
            offset, fields = places.get(at, (None, None))
            self._strangers.append(_Stranger(found[at], base + i, file, offset, fields))

    def _name_strangers(self) -> None:
        """Lines too many that are not of their segment: of another one, or never signed."""
        leaves, homes, at = {s.leaf for s in self._strangers}, dict[bytes, int](), 0
        with contextlib.suppress(StoreError):
            while leaves and at < self.verdict.tree_size:
                row = cut(self._store.hashes(0, at, min(1 << 16, self.verdict.tree_size - at)))
                homes.update((h, i) for i, h in enumerate(row, at) if h in leaves)
                at += len(row)
        for one in self._strangers:
            home = homes.get(one.leaf)
            if home is None:
                self._find("checksum_mismatch", f"a line that was never signed stands before #{one.before:,}",
                           index=one.before, file=one.file, offset=one.offset, fields=one.fields)  # fmt: skip
            else:
                moved = home in self._bad
                self._find("order" if moved else "duplicate", f"entry #{home:,} is "
                           + ("not in its place" if moved else "there once more") + f": it stands before #{one.before:,}",
                           index=home, file=one.file, offset=one.offset, fields=one.fields)  # fmt: skip

    def _tail(self, segment: Segment, size: int, lines: int) -> None:
        """Bytes after the first ``lines`` lines of the growing segment, where something before them is broken."""
        at, offset = 0, 0
        for batch in self._store.batches(segment):
            kept = batch.lines[: lines - at]
            at += len(kept)
            offset = batch.offset + sum(map(len, kept)) + len(kept)
            if at == lines:
                break
        if offset < segment.size:
            self._unsigned(segment, size, offset)

    def _places(self, segment: Segment, skip: int, wanted: set[int]) -> dict[int, tuple[int, ent.Fields | None]]:
        """Byte offset and, where the line can still be read, its fields."""
        found: dict[int, tuple[int, ent.Fields | None]] = {}
        for batch in self._store.batches(segment):
            offset = batch.offset
            for number, line in enumerate(batch.lines, batch.index - segment.start - skip):
                if number in wanted:
                    fields = None
                    with contextlib.suppress(Malformed):
                        fields = ent.decode(line)
                    found[number] = (offset, fields)
                offset += len(line) + 1
        return found

    def _tree_differs(self, head: Checkpoint) -> None:
        """The lines give the signed root, the tree files do not: name the leaf hashes that differ."""
        at = 0
        for batch in _batches(self._store, head.size):
            leaves = [leaf_hash(line) for line in batch]
            stored = self._expected(at, at + len(leaves))
            if stored is None:
                self.verdict.not_proven.append("tree/0 is shorter than the log; it is derived and comes back by itself")
                return
            for i, (a, b) in enumerate(zip(leaves, stored, strict=True), at):
                if a != b:
                    self._find("checksum_mismatch", f"tree/0 has another hash for entry #{i:,}; the line is as signed",
                               index=i, file="tree/0", offset=i * HASH_BYTES)  # fmt: skip
            at += len(leaves)

    def upper_tree(self, head: Checkpoint) -> None:
        """Rows above the leaf hashes, recomputed from the row below."""
        if self._agreed is not None:
            return  # compared on the way
        level, width = 0, head.size
        while width >= 256:
            level, width = level + 1, width // 256
            have = min(width, self._store.hash_count(level))
            if have < width:
                self.verdict.not_proven.append(f"tree/{level} is shorter than the log; it is derived and comes back")
            for i in range(have):
                frontier = Frontier()
                with contextlib.suppress(StoreError):
                    frontier.extend(cut(self._store.hashes(level - 1, i * 256, 256)))
                    if frontier.root() != self._store.hashes(level, i, 1):
                        self._find("checksum_mismatch", f"tree/{level}: hash {i} is not that of the row below it",
                                   index=i * 256**level, file=f"tree/{level}", offset=i * HASH_BYTES)  # fmt: skip

    def _beyond(self, head: Checkpoint, segments: list[Segment]) -> None:
        """Lines after the head: in flight if a head read now covers them, else an unsigned tail."""
        if not segments:
            return
        if segments[-1].start > head.size:
            self._segments_beyond(head, segments)
            return
        last, reached, offset = segments[-1], segments[-1].start, 0
        for batch in self._store.batches(last):
            lines = batch.lines[: head.size - reached]
            reached += len(lines)
            offset = batch.offset + sum(map(len, lines)) + len(lines)
            if reached >= head.size:
                break
        if reached < head.size:
            return
        self._after(head, last, 0 if head.size == last.start else offset)

    def _segments_beyond(self, head: Checkpoint, segments: list[Segment]) -> None:
        """Whole segments after the head: a backup, or a recovery, that died before it wrote the head. They must follow each other."""
        home = [s for s in segments if s.start <= head.size][-1:] + [s for s in segments if s.start > head.size]
        for segment, following in zip(home, home[1:], strict=False):
            if segment.start + sum(run.lines for run in self._store.runs(segment)) != following.start:
                self._find("checksum_mismatch", f"segments/{following.name} begins after the end of the log",
                           index=head.size, file=f"segments/{following.name}")  # fmt: skip
                return
        if home[0].start > head.size:
            self._find("checksum_mismatch", f"segments/{home[0].name} begins after the end of the log", index=head.size,
                       file=f"segments/{home[0].name}")  # fmt: skip
            return
        offset = 0
        for batch in self._store.batches(home[0]):
            lines = batch.lines[: max(0, head.size - batch.index)]
            offset = batch.offset + sum(map(len, lines)) + len(lines)
            if len(lines) < len(batch.lines):
                break
        self._after(head, home[0]._replace(size=sum(s.size for s in home)), offset)

    def _after(self, head: Checkpoint, last: Segment, offset: int) -> None:
        """What follows the last signed line, at ``offset`` of the last segment."""
        if last.size <= offset:
            return
        if self._went_on(head, head.size + 1, wait_s=IN_FLIGHT_S if self._is_fresh(last) else 0.0):
            return
        self._unsigned(last, head.size, offset)

    def _is_fresh(self, segment: Segment) -> bool:
        """True where a writer may still be about to sign what it just wrote."""
        with contextlib.suppress(OSError):
            return time.time() - os.stat(self._store.folder / "segments" / segment.name).st_mtime < 2 * IN_FLIGHT_S
        return False

    def _went_on(self, head: Checkpoint, size: int, *, wait_s: float = 0.0) -> bool:
        """True where the log grew to at least ``size`` entries while it was looked at: whatever was read after the head may know
        more than it. The head that is there now is signed and extends ours; what it adds is for the next verification."""
        until = time.monotonic() + wait_s
        while True:
            with contextlib.suppress(AuditError):
                now = self._view.head().checkpoint
                if now.size >= size:
                    proof = prove_consistency(self._store.hashes, head.size, now.size)
                    verify_consistency(head.size, now.size, head.root, now.root, proof)
                    return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)

    def _unsigned(self, segment: Segment, size: int, offset: int) -> None:
        self.verdict.findings.append(
            Finding("missing", f"{segment.size - offset:,} bytes after entry #{size - 1:,} are not signed (a writer that died, "
                    "or lines added by hand); the next append takes them in and names them", 3, size,
                    file=f"segments/{segment.name}", offset=offset)  # fmt: skip
        )
        self.verdict.not_proven.append(f"unsigned tail from #{size:,}")

    # -- what is known from elsewhere --------------------------------------------------------------------------------

    def references(self, head: Checkpoint, known: list[Reference]) -> None:
        """Sizes and roots from outside the folder: a smaller head is rolled back, another root another history."""
        roots = {} if self._agreed else self._roots_at(sorted({r.size for r in known if 0 < r.size <= head.size}))
        for one in known:
            if one.size > head.size:
                self._find("rolled_back", f"{one.source} knows {one.size:,} entries, this log ends at {head.size:,}",
                           index=head.size, end=one.size)  # fmt: skip
            elif self._agreed is not None:
                self._extends(head, one)
            elif one.size and one.size not in roots:
                self._not_comparable(one)
            elif one.size and roots[one.size] != one.root:
                self._find("replaced", f"the first {one.size:,} entries are not those that {one.source} knows",
                           index=0, end=one.size)  # fmt: skip

    def _extends(self, head: Checkpoint, one: Reference) -> None:
        """A proof of consistency needs no trust in the tree that it was read from (RFC 9162 §2.1.4.2)."""
        if not one.size:
            return
        if one.size < 0:
            self._not_comparable(one)
            return
        try:
            proof = prove_consistency(self._store.hashes, one.size, head.size)
            verify_consistency(one.size, head.size, one.root, head.root, proof)
        except StoreError:
            self._not_comparable(one)
        except VerificationError:
            self._find("replaced", f"the first {one.size:,} entries are not those that {one.source} knows", index=0, end=one.size)

    def _not_comparable(self, one: Reference) -> None:
        self.verdict.not_proven.append(f"{one.source} ({one.size:,} entries): the tree cannot be read so far")
        if not any(f.code == 6 for f in self.verdict.findings):
            self._find("missing", f"nothing is left to compare with {one.source}", index=0, end=one.size)

    def _roots_at(self, sizes: list[int]) -> dict[int, bytes]:
        """Roots from ``tree/0`` where it gives the signed root, else from the lines."""
        found: dict[int, bytes] = {}
        first = next(iter(self._store.segments()), None)
        if not self._tree_holds and first is not None and first.start == 0:
            frontier, at = Frontier(), 0
            for batch in _batches(self._store, max(sizes, default=0)):
                for size in [*(s for s in sizes if at < s < at + len(batch)), at + len(batch)]:
                    frontier.extend([leaf_hash(line) for line in batch[frontier.size - at : size - at]])
                    found[size] = frontier.root()
                at += len(batch)
            return found
        with contextlib.suppress(StoreError):
            frontier = Frontier()
            for size in sizes:
                while frontier.size < size:
                    count = min(1 << 16, size - frontier.size)
                    frontier.extend(cut(self._store.hashes(0, frontier.size, count)))
                found[size] = frontier.root()
        return found

    # -- derived and encrypted things --------------------------------------------------------------------------------

    def entries(self, head: Checkpoint, *, start: int, content: bool) -> None:
        """Grammar of each line, index rows, payloads: whatever is decoded."""
        if content and self._agreed is not None:
            self.verdict.lifecycle_entries = sum(
                is_own(fields) for _, line in self._agreed.own if (fields := _decoded(line)) is not None)  # fmt: skip
            return
        if content:
            self.verdict.lifecycle_entries = sum(
                is_own(fields) for batch in _batches(self._store, head.size) for line in batch
                if _OWN in line and (fields := _decoded(line)) is not None
            )  # fmt: skip
            return
        unreadable = 0
        with contextlib.ExitStack() as stack:
            rows, begin = self._comparison(head, start, stack)
            for stored in self._in_place(begin, head.size):
                try:
                    fields = ent.decode(stored.line)
                except Malformed as e:
                    self._find("checksum_mismatch", f"entry #{stored.hit.index:,}: {e}", index=stored.hit.index,
                               file=f"segments/{stored.hit.segment:020d}.jsonl", offset=stored.hit.offset)  # fmt: skip
                    continue
                if rows is not None:
                    rows = self._guarded(rows, stored.hit, fields)
                if stored.hit.index < start:
                    continue  # only to know the whole block
                self._silence(stored.hit.index, fields)
                if is_own(fields):
                    self.verdict.lifecycle_entries += 1
                    self._note_config(stored.hit.index, fields)
                if fields.payloads:
                    unreadable += self._payloads(stored.hit.index, fields)
            if rows is not None:
                self._end_comparison(rows, whole=start == 0)
        if unreadable:
            self.verdict.not_proven.append(f"{unreadable:,} payloads: not readable by you")
        if self._keyless:
            self.verdict.not_proven.append(f"{self._keyless:,} payloads: there, but the folder of their keys is not here (a copy?)")

    def _silence(self, index: int, fields: ent.Fields) -> None:
        """Two neighbours further apart than two signs of life: what was seen, and no break."""
        if not self._beat_us:
            return
        now, before = parse_time(fields.recorded_at), self._last
        self._last = (index, now)
        if before is None or before[0] + 1 != index or now - before[1] <= 2 * self._beat_us:
            return
        if len(self.verdict.seen) < SILENCES_MAX:
            self.verdict.seen.append(f"silent from {minute_text(before[1])} to {minute_text(now)}, between #{before[0]:,} and "
                                     f"#{index:,}")  # fmt: skip

    def _payloads(self, index: int, fields: ent.Fields) -> int:
        """Each payload opened and compared with its commitment; the number of those that this user may not read."""
        unreadable = 0
        for name, ref in fields.payloads.items():
            place = Place(fields.event_id, name, fields.subject)
            try:
                self._vault.open(place, ref.commitment, ref.size, day=fields.recorded_at[:10])
            except PermissionError:
                unreadable += 1
            except StoreError as e:
                if not self._vault.has_keys() and self._vault.find(place, fields.recorded_at[:10]) is not None:
                    self._keyless += 1
                elif not self._was_lost(fields, name):
                    self._find("missing", f"entry #{index:,}, payload {name!r}: {e}", index=index, file="payloads", fields=fields)
            except (Malformed, VerificationError, OSError) as e:
                self._find("checksum_mismatch", f"entry #{index:,}, payload {name!r}: {e}", index=index, file="payloads",
                           fields=fields)  # fmt: skip
        return unreadable

    def _in_place(self, start: int, size: int) -> Iterator[Stored]:
        """The stored lines of [start, size) that are the signed ones, each with its index."""
        segments = self._store.segments()
        for at, segment in enumerate(segments):
            stop = min(segments[at + 1].start if at + 1 < len(segments) else size, size)
            if stop <= start:
                continue
            where, number = self._where.get(segment.start), 0
            for batch in self._store.batches(segment):
                offset = batch.offset
                self._progress("index and payloads", batch.index)
                for line in batch.lines:
                    index: int | None = segment.start + number
                    if where is not None:
                        index = where[number] if number < len(where) else None
                    if index is not None and start <= index < stop:
                        yield Stored(Hit(index, segment.start, offset, len(line)), line)
                    offset += len(line) + 1
                    number += 1
                if where is None and segment.start + number >= stop:
                    break

    def _note_config(self, index: int, fields: ent.Fields) -> None:
        assert self._history is not None
        if fields.event_type in (CONFIG, CREATED) and not self._history.is_recovered(index):
            said = fields.details.get("sha256", fields.details.get("config_sha256"))
            self._config = said if isinstance(said, str) else self._config

    def config(self, text: bytes) -> None:
        """``log.toml`` is no evidence and may be changed; a change that no entry names yet is said."""
        if self._config is not None and self._config != hashlib.sha256(text).hexdigest():
            self.verdict.not_proven.append("log.toml is not the one that is on record (its change becomes an entry at the "
                                           "next append)")  # fmt: skip

    def _was_lost(self, fields: ent.Fields, name: str) -> bool:
        """A payload that recovery named as missing."""
        wanted = f"{fields.event_id}/{name}"
        return any(wanted in _listed(f.details.get("missing_payloads")) for f in self._view.key_lines().values())

    def _comparison(self, head: Checkpoint, start: int, stack: contextlib.ExitStack) -> tuple[Comparison | None, int]:
        """The index's rows below the head, after its schema and SQLite's own check, None where it says nothing; and the entry with
        which to begin, so that the first block is whole."""
        if self._index is None or not self._index.path.exists():
            return None, start
        segments = self._store.segments()
        first = min(min((s.start for s in segments), default=0), head.size)
        try:
            connection = stack.enter_context(self._index.reading())
            wrong = integrity(connection) if start == 0 else []
            reach = min(size_of(connection), head.size)
            astray = of_no_entry(connection, whole=start == 0)
        except sqlite3.OperationalError as e:
            self.verdict.not_proven.append(f"index.db cannot be opened by you ({e})")
            return None, start
        except sqlite3.DatabaseError as e:
            self._find("index_mismatch", f"index.db: {e}", file="index.db")
            return None, start
        for text in wrong:
            self._find("index_mismatch", f"index.db: {text[:200]}", file="index.db")
        for index in astray:
            self._find("index_mismatch", f"index.db: row {index} is of no entry", index=index, file="index.db")
        home = max((s.start for s in segments if s.start <= start), default=first)
        begin = max(first, block_start(start, home)) if start else first

        def tell(text: str, index: int | None, end: int | None) -> None:
            name = "" if index is None else f"entry #{index:,} " if end is None else f"entries #{index:,}–#{end - 1:,}: "
            self._find("index_mismatch", f"index.db: {name}{text}; the lines count", index=index, end=end, file="index.db")

        if wrong:
            return None, begin
        starts = [s.start for s in segments]
        stops: dict[int, int | None] = dict(zip(starts, [*starts[1:], None], strict=False))
        return Comparison(connection, begin, reach, tell, lambda home: home not in self._where, stops), begin

    def _guarded(self, rows: Comparison, hit: Hit, fields: ent.Fields) -> Comparison | None:
        try:
            rows.line(hit, fields)
        except sqlite3.Error as e:
            self._find("index_mismatch", f"index.db: {e}", file="index.db")
            return None
        return rows

    def _end_comparison(self, rows: Comparison, *, whole: bool) -> None:
        try:
            gaps = any(f.code == 6 and f.issue != "index_mismatch" for f in self.verdict.findings)
            rows.finish(whole=whole, gaps=gaps)
        except sqlite3.Error as e:
            self._find("index_mismatch", f"index.db: {e}", file="index.db")

    def handed_out(self, head: Checkpoint) -> None:
        """Checkpoints that were handed out and kept, and who else signed them (decision 25)."""
        if self._outside is None:
            return
        assert self._history is not None
        kept = self._outside.read(self._view.genesis, self._history, lambda n: n > head.size and self._went_on(head, n))
        seen = self._outside.witnesses(kept)
        by: dict[str, list[str]] = {}
        for witness in seen:
            by.setdefault(witness.kept.file, []).append(f"{witness.name} (at {minute_text(witness.time_us)})")
        holding = [one for one in kept if one.checkpoint.size <= head.size]
        self.contradicting += [one.file for one in kept[len(holding) :]]
        for one in kept[len(holding) :]:
            self._beyond_the_end(head, one.checkpoint, one.file, by.get(one.file, []))
        good, comparable = self._same_history(head, [one.checkpoint for one in holding])
        if not comparable:
            one = holding[len(good)]
            self._not_comparable(Reference(one.checkpoint.size, one.checkpoint.root, one.file))
        elif len(good) < len(holding):
            self.contradicting += [one.file for one in holding[len(good) :]]
            first, last_good = holding[len(good)], holding[len(good) - 1].checkpoint.size if good else 0
            later = len(holding) - len(good) - 1
            self._find("replaced", self._said_by(first.file, by.get(first.file, [])) + f" is of other entries: something below "
                       f"#{first.checkpoint.size:,} is not what was signed then" + (f" ({later:,} later ones too)" if later else ""),
                       index=last_good, end=first.checkpoint.size)  # fmt: skip
        seen += self._outside.witnesses(self._brought, lambda _issue, text, _file: self.verdict.findings.append(
            Finding("malformed", text, 4)))  # fmt: skip
        self.verdict.confirmations += self._outside.confirmations([*holding[: len(good)], *self._brought], seen)
        self.holding = holding[: len(good)]
        self._kept = kept

    def anchored(self, head: Checkpoint, anchors: Sequence[AnchorSettings], pins: Mapping[str, str] | None) -> None:
        """What came back from anchors. One that knows another history is a break, whoever pinned it: the log's key signed both.
        That one knows more is none for a copy that is known to be older: a backup keeps the table of its anchors (as ``mark``)."""
        assert self._history is not None
        older_copy = any(f.issue == "older_copy" for f in self.verdict.findings)
        for one in returned(anchors, self._store.folder, self._view.genesis, self._history, self.holding, pins):
            by = f"{one.kind} {one.name}"
            if one.checkpoint is None:
                self.verdict.pending.append(f"{by}: {one.problem}")
                continue
            kept = one.checkpoint
            self._older_in_folder(head, by, one)
            if kept.size > head.size and older_copy:
                self.verdict.seen.append(f"{by} keeps {kept.size:,} entries, this copy ends at {head.size:,}")
                continue
            if kept.size > head.size and self._went_on(head, kept.size):
                continue
            if kept.size > head.size:
                self._find("rolled_back", f"{by} keeps {kept.size:,} entries, this log ends at {head.size:,}", index=head.size,
                           end=kept.size)  # fmt: skip
            elif self._same_history(head, [kept]) != ([kept], True):
                self._find("replaced", f"{by} keeps other entries below #{kept.size:,} than this log", index=0, end=kept.size)
            else:
                self.verdict.confirmations.append(Confirmation(by, one.kind, kept.size, one.time_us, not one.remark, one.remark))
                continue
            self.notes_against.append(one.note)

    def _older_in_folder(self, head: Checkpoint, by: str, found: Returned) -> None:
        """A log that was put back and went on hands out again: what it handed out before lies beside that, and says so. Signatures
        are looked at only where the entries are others."""
        older = {one.note: Checkpoint.parse(split(one.note)[0]) for one in found.older}
        left = sorted(older.items(), key=lambda item: item[1].size)
        while left:
            good, comparable = self._same_history(head, [c for _, c in left if c.size <= head.size])
            left = left[len(good) :]
            if not left or not comparable:
                return
            note, other = left.pop(0)
            with contextlib.suppress(VerificationError, Malformed):
                open_signed(note, [self._view.genesis.vkey], origin=self._view.genesis.origin)
                self._find("replaced", f"{by} keeps other entries below #{other.size:,} than this log", index=0, end=other.size)
                self.notes_against.append(note)
                return

    def _seal(self, head: Checkpoint) -> None:
        """What closed epochs say. Every close below the head must have left its closing checkpoint, because nothing is appended
        before that is kept: one that is not there was removed, or other entries were signed since. Where the head itself is the
        closing checkpoint its own signature counts.

        They seal only where entry 0 is known from outside, which names the first of their keys. Who got the log's key alone cannot
        tell: its holder can sign another genesis checkpoint, and make up epochs as he likes.
        """
        assert self._history is not None
        signed = {one.checkpoint.size: one.signed_by for one in self.holding}
        if not self._head_error:
            signed[head.size] = (*signed.get(head.size, ()), self._history.key_at(head.size))
        seals = self._history.seals(signed)
        self._taken_away(seals.missing)
        if seals.broken:
            self.verdict.broken_at = seals.sealed_to
        closed_to = max(self._history.closes(), default=0)
        broken = sorted([*((size, f"seal broken at {size:,}, re-certified") for _, size in seals.broken),
                         *((size, f"seal missing at {size:,}") for _, size in seals.missing)])  # fmt: skip
        word = broken[0][1] if broken else "epoch open"
        if not self._trusted.pinned or not (self._trusted.first or any(c.counts for c in self.verdict.confirmations)):
            what = "entry 0" if self._trusted.pinned else "its key"
            self._epochs = [(closed_to, f"epoch closed, {what} not pinned")] if closed_to else []
            return
        self.verdict.sealed_to = seals.sealed_to
        self._epochs = [(seals.sealed_to, "sealed"), (closed_to, word)]

    def _taken_away(self, missing: tuple[tuple[int, int], ...]) -> None:
        """A writer appends nothing before it has kept the checkpoint that closed the epoch (``log.epochs``): where entries follow, a
        death did not cost it. One of another history is named already."""
        assert self._history is not None
        for number, size in missing:
            closer = self._history.epochs[number].closer
            there = any(one.checkpoint.size == size and closer in one.signed_by for one in self._kept)
            if size < self.verdict.tree_size and not there:
                file = f"checkpoints/{size:020d}"
                self._find("missing", f"{file}, the checkpoint that closed epoch {number}, is not there under that epoch's key: "
                           "it was taken away or lost, and entries before it may not be those that were signed then", file=file)

    def unpinned_witnesses(self) -> list[tuple[str, str]]:
        """Name and vkey of witnesses that the log asks and whose keys the verifier did not bring along."""
        return [] if self._outside is None else self._outside.unpinned()

    @staticmethod
    def _said_by(file: str, names: list[str]) -> str:
        return f"what witness {' and '.join(names)} confirmed ({file})" if names else file

    def _beyond_the_end(self, head: Checkpoint, kept: Checkpoint, file: str, names: list[str]) -> None:
        who = f"witness {' and '.join(names)} confirmed" if names else f"{file} knows"
        self._find("rolled_back", f"{who} {kept.size:,} entries, this log ends at {head.size:,}", index=head.size, end=kept.size)

    def _same_history(self, head: Checkpoint, ascending: list[Checkpoint]) -> tuple[list[Checkpoint], bool]:
        """The longest run from the smallest on of those that this log begins with. After the first that is of another history none
        can be of this one: each contains what differs. False: the tree cannot be read so far."""
        below = [c for c in ascending if c.size < self._start]
        roots = self._quick_roots(ascending[len(below) :]) if self._agreed is not None else (
            self._roots_at([c.size for c in ascending]))  # fmt: skip
        for at, one in enumerate(ascending):
            if self._agreed is not None and one.size < self._start:
                holds = self._consistent(head, one)
            else:
                if one.size not in roots:
                    return ascending[:at], False
                holds = roots[one.size] == one.root
            if not holds:
                return ascending[:at], True
        return ascending, True

    def _quick_roots(self, wanted: list[Checkpoint]) -> dict[int, bytes]:
        """From the tree files, which were compared with the lines from ``start`` on."""
        return {c.size: root_at(self._store.hashes, c.size) for c in wanted}

    def _consistent(self, head: Checkpoint, one: Checkpoint) -> bool:
        try:
            proof = prove_consistency(self._store.hashes, one.size, head.size)
            verify_consistency(one.size, head.size, one.root, head.root, proof)
        except (StoreError, VerificationError):
            return False
        return True

    def given(self, head: Checkpoint, brought: Kept) -> bool:
        """A checkpoint that whoever verifies brought along: it confirms what it is of, and so do the witnesses that cosigned it; or
        False."""
        checkpoint, before = brought.checkpoint, len(self.verdict.findings)
        self.references(head, [Reference(checkpoint.size, checkpoint.root, "the checkpoint that you kept")])
        if len(self.verdict.findings) > before:
            return False
        self.verdict.confirmations.append(Confirmation("the checkpoint that you gave", "given", checkpoint.size))
        self._brought = [brought]
        return True

    def mark(self, head: Checkpoint, mark: Mark | None, *, older_copy: bool = False) -> None:
        """What was last signed here, where it can be read. A copy known to be older may lie beside the keys of the newer."""
        if mark is None:
            if head.size > 1:
                self.verdict.not_proven.append("there is no mark beside the keys: what was last signed is not known")
            return
        if mark.origin != head.origin:
            self._find("replaced", f"the mark beside the keys is of {mark.origin}", file="mark")
            return
        if mark.size > head.size and (older_copy or self._went_on(head, mark.size)):
            return
        self.references(head, [Reference(mark.size, mark.root, "the mark beside the keys")])

    # -- result ------------------------------------------------------------------------------------------------------

    def finish(self, head: Checkpoint, start: int) -> Verdict:
        """Ranges with their words."""
        assert self._history is not None
        if self._head_error and not any(f.code == 6 for f in self.verdict.findings):
            self._find("bad_signature", self._head_error, file="checkpoint")
        elif self._head_error:
            self.verdict.not_proven.append("the signature of the head")
        self._conclude(head)
        if self._outside is not None:
            self._seal(head)
        segments = self._store.segments()
        first = segments[0].start if segments else head.size
        outside = [c for c in self.verdict.confirmations if c.counts]
        marks = sorted({0, min(first, head.size), head.size, min(max(start, first), head.size),
                        *(b for r in self._history.recovered for b in r), *(c.size for c in outside),
                        *(end for end, _ in self._epochs), *(i for b in self._bad for i in (b, b + 1))})  # fmt: skip
        for a, b in zip(marks, marks[1:], strict=False):
            words = ("hashes only", "archived") if a < first else ("content proven",) if a >= start else ("proven before",)
            if a in self._bad:
                words = (self._bad[a],)
            signed = "unsigned when found" if self._history.is_recovered(a) else "signed"
            self.verdict.spans.append(Span(a, b, words, signed, self._epoch_word(a), tuple(c.by for c in outside if a < c.size)))
        self.verdict.spans = merge(self.verdict.spans)
        self.verdict.proven_from = start
        self.verdict.gone_to = min(self._history.archived_until(), first)
        if not self.verdict.findings:
            self._note_times()
        return self.verdict

    def _conclude(self, head: Checkpoint) -> None:
        """How far, from 0, each kind of party confirms it."""
        said = [c for c in self.verdict.confirmations if c.counts]
        if self._outside is not None:
            self.verdict.witnessed_to = self._outside.witnessed_to(said)
        self.verdict.anchored_to = max((c.size for c in said if c.kind != "witness"), default=0)
        self.verdict.confirmed_to = min(head.size, max(self.verdict.witnessed_to, self.verdict.anchored_to))

    def _epoch_word(self, index: int) -> str:
        return next((word for end, word in self._epochs if index < end), "epoch open")

    def _note_times(self) -> None:
        """When the first and the last line that are here were recorded."""
        segments = [s for s in self._store.segments() if s.size]
        if self._agreed is None or not segments:
            return
        last, end = segments[-1], self._agreed.end if segments[-1] == self._store.segments()[-1] else segments[-1].size
        begin = max(0, end - ent.LINE_BYTES_MAX - 1)
        with contextlib.suppress(AuditError, OSError):
            newest = self._store.read(last.start, begin, end - begin).removesuffix(b"\n").rpartition(b"\n")[2]
            oldest = self._store.read(segments[0].start, 0, min(segments[0].size, ent.LINE_BYTES_MAX + 1)).partition(b"\n")[0]
            self.verdict.times = ent.decode(oldest).recorded_at, ent.decode(newest).recorded_at

    def recorded_until(self, cutoff_us: int, size: int) -> tuple[int, int]:
        """The number of entries up to the last of those recorded at or before ``cutoff_us``, and when the newest was, found from
        the end on. Lines that cannot be read have no time."""
        segments, newest = self._store.segments(), 0
        for at in range(len(segments) - 1, -1, -1):
            lines: list[tuple[int, bytes]] = []
            for batch in self._store.batches(segments[at]):
                lines += [(index, line) for index, line in enumerate(batch.lines, batch.index) if index < size]
            for index, line in reversed(lines):
                fields = _decoded(line)
                if fields is None:
                    continue
                recorded = parse_time(fields.recorded_at)
                newest = newest or recorded
                if recorded <= cutoff_us:
                    return index + 1, newest
        return (segments[0].start if segments else size), newest

    def _tell(self, issue: str, text: str, file: str) -> None:
        self._find(issue, text, file=file)

    def _find(
        self, issue: str, text: str, *, index: int | None = None, end: int | None = None, file: str | None = None,
        offset: int | None = None, fields: ent.Fields | None = None,
    ) -> None:  # fmt: skip
        if any(f.issue == issue and f.index == index and f.file == file for f in self.verdict.findings[-50:]) and index == 0:
            return  # entry 0 is looked at twice
        if index is not None and issue != "index_mismatch" and (file is None or file.startswith("segments")):
            word = "missing" if issue in ("missing", "rolled_back") else "altered"
            for bad in range(index, min(end if end is not None else index + 1, index + SAME_MAX)):
                self._bad.setdefault(bad, word)
        if len(self.verdict.findings) == FINDINGS_MAX:
            self.verdict.not_proven.append(f"more than {FINDINGS_MAX:,} findings; the rest is not listed")
        if len(self.verdict.findings) >= FINDINGS_MAX:
            return
        self.verdict.findings.append(
            Finding(issue, text, 6, index, end, file, offset, fields.event_id if fields else None,
                    fields.timestamp if fields else None)  # fmt: skip
        )


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _decoded(line: bytes) -> ent.Fields | None:
    try:
        return ent.decode(line)
    except Malformed:
        return None


class _Stranger(NamedTuple):
    """A line too many: its leaf hash, the index before which it stands, its place, its fields."""

    leaf: bytes
    before: int
    file: str
    offset: int | None
    fields: ent.Fields | None


def _in_place(broken: Alignment, base: int, expected: int, found: int) -> list[int | None]:
    """For each found line the index that it is the line of, None for those that are not in their place."""
    gone = {i for i, _ in broken.altered} | {i for i, _ in broken.moved} | set(broken.missing)
    wrong = {at for pairs in (broken.altered, broken.duplicate, broken.moved, broken.inserted) for _, at in pairs}
    right = iter([base + i for i in range(expected) if i not in gone])
    return [None if at in wrong else next(right) for at in range(found)]


def _jump(frontier: Frontier, size: int, leaves: list[bytes] | None) -> None:
    """Go on to ``size``: with the leaves if they are as many, else without (the root is lost then)."""
    if leaves is not None and len(leaves) == size - frontier.size:
        frontier.extend(leaves)
    else:
        frontier.size, frontier.hashes = size, [bytes(HASH_BYTES)] * size.bit_count()


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers → half-open runs."""
    start = last = None
    for n in numbers:
        if start is None or last is None:
            start = last = n
        elif n == last + 1:
            last = n
        else:
            yield start, last + 1
            start = last = n
    if start is not None and last is not None:
        yield start, last + 1


def _batches(store: Store, size: int) -> Iterator[list[bytes]]:
    for segment in store.segments():
        for batch in store.batches(segment):
            if batch.index < size:
                yield batch.lines[: size - batch.index]
