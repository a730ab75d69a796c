"""Reading a log: head, history, entries. Needs read rights only, takes no lock, writes nothing (STORAGE rules 17, 18).

The head is read first and decides how far anything else is looked at. A question goes to the index as far as that reaches and
can be used, to the lines for the rest; in both cases the answer is decoded from the stored bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ..core import entry as ent
from ..core.checkpoint import Checkpoint, open_checkpoint
from ..core.entry import AuditEntry, Fields
from ..core.epoch import CONFIG, KEY_TYPES, History, own_lines, read_history
from ..core.errors import AuditError, Malformed, StoreError, VerificationError
from ..core.genesis import Genesis
from ..core.merkle import leaf_hash
from ..core.note import split
from ..core.query import Question
from ..core.times import parse_time
from ..index import search as idx
from ..index.derive import Block, Counts, Lines, decode_counts, summary_of
from ..index.file import Index
from ..index.fill import add, clear, joined_runs
from ..store import Segment, Store

HEAD_WAIT_S = 1.0
_OWN = b'"event_type":"log.'
_PAGE_MIN, _PAGE_MAX = 128, 1024  # places are looked up, and lines read, so many at a time
_KEY_LINES_BYTES_MAX = 64 * 1024 * 1024


class Head(NamedTuple):
    """A verified head and the bytes it was read from."""

    checkpoint: Checkpoint
    note: bytes

    @property
    def size(self) -> int:
        """The tree size."""
        return self.checkpoint.size


class Stored(NamedTuple):
    """A line as it lies: index, place and bytes."""

    hit: idx.Hit
    line: bytes

    def entry(self) -> AuditEntry:
        """Decoded, strictly."""
        return ent.decode_entry(self.line, self.hit.index, leaf_hash(self.line).hex())


class LogView:
    """What anybody who may read a log can do with it. ``indexes`` are tried in order."""

    def __init__(self, store: Store, genesis: Genesis, indexes: list[Index]) -> None:
        self.store, self.genesis = store, genesis
        self._indexes = indexes
        self._key_lines: dict[int, Fields] = {}
        self._key_lines_upto = 0
        self._history: tuple[int, History] | None = None
        self._filled = 0  # an index of ours was seen to reach so far
        self._doubted: bytes | None = None  # a head that did not verify under the history that the index gave
        self._last: Head | None = None  # verified; the same bytes need not be verified twice
        self._lock = threading.RLock()  # writer, keeper and readers of one process share a view

    # -- head and history --------------------------------------------------------------------------------------------

    def head(self, wait_s: float = HEAD_WAIT_S, *, sleep: Callable[[float], None] = time.sleep) -> Head:
        """The stored head under the key of its epoch; read again for up to a second before it is called bad.

        ``StoreError`` if there is none, ``Malformed`` or ``VerificationError`` if it stays bad.
        """
        until = time.monotonic() + wait_s
        while True:
            try:
                return self.open_head(self.store.head())
            except AuditError:
                if time.monotonic() >= until:
                    raise
            sleep(0.01)

    def open_head(self, note: bytes | None) -> Head:
        """Bytes of a head → the head, verified. Same errors as ``head``."""
        if note is None:
            raise StoreError("there is no checkpoint in this log")
        last = self._last
        if last is not None and last.note == note:
            return last
        text, _ = split(note)
        claimed = Checkpoint.parse(text)
        if claimed.size < 1:
            raise VerificationError("a head of size 0 signs nothing")
        try:
            key = self.history(claimed.size).key_at(claimed.size)
            checkpoint = open_checkpoint(note, [key], origin=self.genesis.origin)
        except (Malformed, VerificationError):
            if not self._indexes or self._doubted == note:
                raise
            self._doubted = note  # once for the same bytes: it reads all lines
            key = self.reread(claimed.size).key_at(claimed.size)  # an index that hides an epoch's end says nothing about the head
            checkpoint = open_checkpoint(note, [key], origin=self.genesis.origin)
        self._last = Head(checkpoint, note)
        return self._last

    def history(self, size: int) -> History:
        """What the lifecycle entries below ``size`` say, kept between calls and extended as the log grows."""
        with self._lock:
            if self._history is not None and self._history[0] == size:
                return self._history[1]
            if size > self._key_lines_upto:
                self._extend_key_lines(size)
            known = self._extended(size)
            if known is None:
                known = read_history(sorted((i, f) for i, f in self._key_lines.items() if i < size))
            self._history = (size, known)
            return known

    def _extended(self, size: int) -> History | None:
        """What is known and what came after it: those lines are the last that were noted."""
        if self._history is None or self._history[0] > size:
            return None
        before, history = self._history
        fresh = []
        for index in reversed(self._key_lines):
            if index < before:
                break
            if index < size:
                fresh.append((index, self._key_lines[index]))
        return history.extended(reversed(fresh))

    def reread(self, size: int) -> History:
        """The same from the stored lines alone, whatever the index says: before anything is done that cannot be undone."""
        with self._lock:
            self.forget()
            segments = self.store.segments()
            self._read_kept_key_lines(segments)
            self._scan_key_lines(segments, self._key_lines_upto, size)
            self._key_lines_upto = size
            return self.history(size)

    def adopt(self, own: list[tuple[int, bytes]], first: int, size: int) -> None:
        """The lines that may be the log's about itself in [first, size), found by somebody who read all."""
        with self._lock:
            self.forget()
            segments = self.store.segments()
            if first:
                self._read_kept_key_lines(segments)
            for index, line in own:
                self._keep_key_line(index, line)
            self._key_lines_upto = size

    def key_lines(self) -> dict[int, Fields]:
        """The lifecycle lines that the history was read from, by index."""
        with self._lock:
            return dict(self._key_lines)

    def forget(self) -> None:
        """Read the history again from the files."""
        with self._lock:
            self._key_lines, self._key_lines_upto, self._history, self._last = {}, 0, None, None

    def after_fork(self) -> None:
        """In the child: the lock may be held by a thread that is not there."""
        self._lock = threading.RLock()
        for index in self._indexes:
            index.after_fork()

    def close(self) -> None:
        """Release what is kept open between questions."""
        for index in self._indexes:
            index.close()

    def note_lines(self, start: int, count: int, own: Iterable[tuple[int, bytes]]) -> None:
        """The writer tells what it just appended, or took in, at ``start``: ``count`` lines, and those among them, with their index,
        that may be the log's about itself. So nobody has to read them back."""
        with self._lock:
            if start != self._key_lines_upto:
                return
            known = len(self._key_lines)
            for index, line in own:
                self._keep_key_line(index, line)
            self._key_lines_upto = start + count
            if self._history is not None and self._history[0] == start and len(self._key_lines) == known:
                self._history = (self._key_lines_upto, self._history[1])

    def _extend_key_lines(self, size: int) -> None:
        segments = self.store.segments()
        if self._key_lines_upto == 0:
            self._read_kept_key_lines(segments)
        start = self._key_lines_upto
        if start == 0 and segments and segments[0].start == 0:  # entry 0 is needed even where the index is not
            self._key_lines_upto = start = self._scan_key_lines(segments, 0, 1)
        with contextlib.suppress(sqlite3.Error, OSError):
            start = self._find_key_lines(start, size)
        self._scan_key_lines(segments, start, size)
        self._key_lines_upto = size

    def _read_kept_key_lines(self, segments: list[Segment]) -> None:
        """``keylines.jsonl``: lines of segments that left, each with its index; checked against their leaf hashes."""
        path = self.store.folder / "keylines.jsonl"
        first = segments[0].start if segments else 0
        if first == 0 or not path.exists():
            return
        if path.stat().st_size > _KEY_LINES_BYTES_MAX:
            raise Malformed(f"keylines.jsonl: more than {_KEY_LINES_BYTES_MAX:,} bytes")
        for index, line in parse_key_lines(path.read_bytes()):
            if index < first:
                if self.store.hashes(0, index, 1) != leaf_hash(line):
                    raise VerificationError(f"keylines.jsonl: entry {index} is not the line that was signed")
                self._key_lines[index] = ent.decode(line)
        self._key_lines_upto = first

    def _find_key_lines(self, start: int, size: int) -> int:
        """Through the index, as far as it reaches; each candidate is read and decoded from its line. From the first one on that the
        tree does not confirm (a power loss may have taken the hash) the lines are read."""
        for index in self._indexes:
            with contextlib.suppress(sqlite3.Error, OSError), index.reading() as connection:
                reach = min(idx.size_of(connection), size)
                for hit in idx.own_lines(connection, start, reach):
                    try:
                        if not self._is_line(hit, hit.index):
                            return max(start, hit.index)
                        self._keep_key_line(hit.index, self.store.read(hit.segment, hit.offset, hit.length))
                    except StoreError:
                        return max(start, hit.index)
                return max(start, reach)
        return start

    def _scan_key_lines(self, segments: list[Segment], start: int, size: int) -> int:
        for segment, following in zip(segments, [*(s.start for s in segments[1:]), size], strict=False):
            at = segment.start
            if min(following, size) <= start:
                continue
            for run in self.store.runs(segment):
                for number, line in own_lines(run.data, run.size):
                    if start <= at + number < min(following, size):
                        self._keep_key_line(at + number, line)
                at += run.lines
                if at >= size:
                    return size
        return size

    def _keep_key_line(self, index: int, line: bytes) -> None:
        """A line that cannot be decoded says nothing here; ``verify`` names it, and a head under a key that it named
        fails by itself."""
        if _OWN in line:
            with contextlib.suppress(Malformed):
                fields = ent.decode(line)
                if fields.event_type in KEY_TYPES or fields.event_type == CONFIG:
                    self._key_lines[index] = fields

    # -- entries -----------------------------------------------------------------------------------------------------

    def answers(
        self, question: Question, size: int, *, start: int = 0, stop: int | None = None, newest_first: bool = False,
        expect: int | None = None,
    ) -> Iterator[Stored]:  # fmt: skip
        """Lines in [start, stop) that may answer, oldest (or newest) first. Callers decide with ``question.matches``, and say how
        many they ``expect`` to want.

        An index that contradicts the lines is left aside for this answer; ``verify`` will name it.
        """
        stop = size if stop is None else min(stop, size)
        segments = self.store.segments()
        start = max(start, segments[0].start if segments else size)
        with contextlib.ExitStack() as stack:
            connection, reach = self._open_index(stack, size)
            rest = (max(start, reach), stop)
            if newest_first:
                yield from self._scan_back(segments, *rest)
            if connection is not None and start < min(stop, reach):
                yield from self._indexed(connection, question, (start, min(stop, reach)), newest_first, segments, expect)
            if not newest_first:
                yield from self._scan(segments, *rest)

    def _open_index(self, stack: contextlib.ExitStack, size: int) -> tuple[sqlite3.Connection | None, int]:
        """The first index that can be read, and how far it reaches."""
        for index in self._indexes:
            with contextlib.suppress(sqlite3.Error, OSError):
                connection = stack.enter_context(index.reading())
                return connection, min(idx.size_of(connection), size)
        return None, 0

    def _indexed(
        self, connection: sqlite3.Connection, question: Question, span: tuple[int, int], newest_first: bool,
        segments: list[Segment], expect: int | None,
    ) -> Iterator[Stored]:  # fmt: skip
        """Through the index; where it cannot be read any further the lines are."""
        start, stop = span
        found, size = idx.search(connection, question, start, stop, newest_first=newest_first), min(expect or _PAGE_MIN, _PAGE_MAX)
        try:
            while hits := list(itertools.islice(found, size)):
                for hit, line in zip(hits, list(self.store.lines(hit[1:] for hit in hits)), strict=True):
                    if line[:1] != b"{" or line[-1:] != b"}" or b"\n" in line:
                        raise sqlite3.DatabaseError(f"the place of entry {hit.index} is not that of a line")
                    yield Stored(hit, line)
                    start, stop = (start, hit.index) if newest_first else (hit.index + 1, stop)
                size = min(4 * size, _PAGE_MAX)
        except (sqlite3.Error, OSError):
            yield from (self._scan_back if newest_first else self._scan)(segments, start, stop)

    def _scan(self, segments: list[Segment], start: int, stop: int) -> Iterator[Stored]:
        """Straight from the lines."""
        for at, segment in enumerate(segments):
            following = segments[at + 1].start if at + 1 < len(segments) else stop
            if start >= stop or following <= start or segment.start >= stop:
                continue
            for batch in self.store.batches(segment):
                if batch.index >= stop:
                    break
                if batch.index + len(batch.lines) <= start:
                    continue
                offset = batch.offset
                for number, line in enumerate(batch.lines, batch.index):
                    if start <= number < stop:
                        yield Stored(idx.Hit(number, segment.start, offset, len(line)), line)
                    offset += len(line) + 1

    def _scan_back(self, segments: list[Segment], start: int, stop: int) -> Iterator[Stored]:
        """The same, newest first, with the lines of one segment in memory."""
        for at in range(len(segments) - 1, -1, -1):
            end = min(segments[at + 1].start, stop) if at + 1 < len(segments) else stop
            yield from list(self._scan([segments[at]], max(start, segments[at].start), end))[::-1]

    def lines(self, start: int, stop: int) -> Iterator[Stored]:
        """The lines [start, stop) that are here, straight from the segments, whatever an index says."""
        return self._scan(self.store.segments(), start, stop)

    def find(self, event_id: str, size: int) -> Stored | None:
        """The entry of an event id below ``size``; None if there is none among the lines that are here."""
        segments, reach = self.store.segments(), 0
        for index in self._indexes:
            with contextlib.suppress(sqlite3.Error, OSError), index.reading() as connection:
                upto = min(idx.size_of(connection), size)
                hits = idx.find(connection, event_id, upto)
                for hit in hits:
                    with contextlib.suppress(StoreError, Malformed):
                        stored = Stored(hit, self.store.read(hit.segment, hit.offset, hit.length))
                        if ent.decode(stored.line).event_id == event_id and self._is_line(hit, hit.index):
                            return stored
                if not hits:
                    reach = upto
                break  # else this index may not say the truth; look at the lines
        needle = f'"event_id":"{event_id}"'.encode()
        for stored in self._scan(segments, max(reach, segments[0].start if segments else 0), size):
            if needle in stored.line and ent.decode(stored.line).event_id == event_id:
                return stored
        return None

    def at(self, index: int, size: int) -> Stored | None:
        """The line of an index below ``size``; None where its segment has left."""
        if not 0 <= index < size:
            return None
        for one in self._indexes:
            with contextlib.suppress(sqlite3.Error, OSError, StoreError), one.reading() as connection:
                hit = idx.place(connection, index)
                if hit is not None:
                    line = self.store.read(hit.segment, hit.offset, hit.length)
                    if b"\n" not in line and self._is_line(hit, index):
                        return Stored(hit, line)
                break
        return next(self._scan(self.store.segments(), index, index + 1), None)

    def end_of(self, size: int) -> tuple[int, int] | None:
        """First index of the segment and offset where the line of index ``size`` − 1 ends, if the index knows it and the line is the
        one in the tree."""
        for one in self._indexes:
            with contextlib.suppress(sqlite3.Error, OSError, StoreError), one.reading() as connection:
                hit = idx.place(connection, size - 1)
                if hit is not None and self._is_line(hit, size - 1):
                    return hit.segment, hit.offset + hit.length + 1
            break
        return None

    def _is_line(self, hit: idx.Hit, index: int) -> bool:
        """An index row is believed for ``show`` only if the line's leaf hash stands at that index of the tree."""
        with contextlib.suppress(StoreError):
            line = self.store.read(hit.segment, hit.offset, hit.length)
            return index >= 0 and self.store.hashes(0, index, 1) == leaf_hash(line)
        return False

    # -- counts ------------------------------------------------------------------------------------------------------

    def counts(
        self, start_us: int | None, end_us: int | None, size: int, *, recount: bool = False
    ) -> tuple[Counts, int, int]:
        """How many entries below ``size`` with a ``timestamp`` in the inclusive period there are by type, actor and outcome, and of
        how many entries that was read from the index and from the lines.

        Whole blocks of the period are taken from the counts that the index holds of them and that ``verify`` derives again; the rest,
        or with ``recount`` everything, is counted from the lines that are here.
        """
        total, derived, lines = Counts(0, {}, {}, {}), 0, 0
        segments = self.store.segments()
        at = segments[0].start if segments else size
        spans: list[tuple[int, int]] = []
        if not recount:
            for block, counts in self._counted_blocks(at, size):
                stop = block.first + block.size
                if block.first > at:
                    spans.append((at, block.first))
                elif block.first < at:
                    continue
                at = stop
                if (start_us is None or block.earliest >= start_us) and (end_us is None or block.latest <= end_us):
                    _add(total, counts)
                    derived += block.size
                elif (start_us is None or block.latest >= start_us) and (end_us is None or block.earliest <= end_us):
                    spans.append((block.first, stop))
        spans.append((at, size))
        for start, stop in spans:
            for stored in self._from_block(segments, start, stop):
                fields = ent.decode(stored.line)
                lines += 1
                moment = parse_time(fields.timestamp)
                if (start_us is None or moment >= start_us) and (end_us is None or moment <= end_us):
                    if fields.event_type.startswith("log."):
                        total.own += 1
                    else:
                        _add(total, Counts(0, {fields.event_type: 1}, {fields.actor: 1}, {fields.outcome: 1}))
        return total, derived, lines

    def _counted_blocks(self, start: int, size: int) -> Iterator[tuple[Block, Counts]]:
        """Blocks wholly in [start, size) with counts that add up, ascending, as far as the index can be read."""
        for index in self._indexes:
            try:
                with index.reading() as connection:
                    for block in idx.blocks(connection, start, size):
                        counts = decode_counts(block.counts)
                        if block.first + block.size <= size and counts.holds_for(block.size):
                            yield block, counts
                return
            except (sqlite3.Error, OSError, ValueError):
                return

    def _from_block(self, segments: list[Segment], start: int, stop: int) -> Iterator[Stored]:
        """Lines of [start, stop), going straight to the first where the index knows its place."""
        known = None
        for index in self._indexes:
            with contextlib.suppress(sqlite3.Error, OSError, StoreError), index.reading() as connection:
                hit = idx.place(connection, start) if start < stop else None
                if hit is not None:
                    line = self.store.read(hit.segment, hit.offset, hit.length)
                    if b"\n" not in line and self._is_line(hit, start):
                        known = (hit.segment, hit.offset)
            break
        yield from self._scan_from(segments, start, stop, known)

    # -- the index ---------------------------------------------------------------------------------------------------

    def fill(self, size: int | None = None, *, wait_s: float = HEAD_WAIT_S) -> bool:
        """Bring the first index that this user may fill up to the head (or ``size``, which the caller knows to be
        signed). False if none could be."""
        if size is not None and size <= self._filled:
            return True  # or it was lost since: then lines are read where it does not reach
        for index in self._indexes:
            try:
                with index.filling() as connection:
                    if connection is None:
                        return False
                    wanted = self.head(wait_s).size if size is None else size
                    self._fill(connection, wanted)
                    self._filled = wanted
                    return True
            except (sqlite3.Error, OSError):
                continue
        return False

    def _fill(self, connection: sqlite3.Connection, size: int) -> None:
        segments = self.store.segments()
        first = segments[0].start if segments else size
        done = self._sound(connection, first)
        if done > size:
            if done <= self.head().size:
                return  # somebody filled it further, meanwhile
            clear(connection)
            done = 0
        start, known = max(done, first), None
        last = idx.place(connection, done - 1) if done > first else None
        if last is not None:
            known = (last.segment, last.offset + last.length + 1)
        for run in joined_runs(self._lines_from(segments, start, size, known)):
            add(connection, run)

    def _lines_from(
        self, segments: list[Segment], start: int, stop: int, known: tuple[int, int] | None
    ) -> Iterator[Lines]:  # fmt: skip
        """Entries [start, stop) as they are indexed; ``known``: segment and offset where the line of ``start`` begins."""
        for at, segment in enumerate(segments):
            following = min(segments[at + 1].start if at + 1 < len(segments) else stop, stop)
            if following <= start:
                continue
            home = known is not None and known[0] == segment.start
            for batch in self.store.batches(segment, known[1], start) if home and known else self.store.batches(segment):
                lines = batch.lines[: following - batch.index]
                skip = max(0, start - batch.index)
                if skip < len(lines):
                    offset = batch.offset + sum(map(len, lines[:skip])) + skip
                    lines = lines[skip:]
                    start = batch.index + skip + len(lines)
                    yield Lines(start - len(lines), segment.start, offset, list(map(len, lines)), list(map(summary_of, lines)))
                if start >= following:
                    break

    def _sound(self, connection: sqlite3.Connection, first: int) -> int:
        """How far it reaches; emptied where its last block is none, or lies where no block of this log can."""
        try:
            last = idx.last_block(connection)
            if last is None:
                return 0
            size = last.first + last.size
            decode_counts(last.counts)
            if size <= first or any(last.segment == s.start for s in self.store.segments()):
                idx.hit_in(last, size - 1)
                return size
        except (sqlite3.DatabaseError, ValueError):
            pass
        clear(connection)
        return 0

    def _scan_from(
        self, segments: list[Segment], start: int, stop: int, known: tuple[int, int] | None
    ) -> Iterator[Stored]:
        """Like ``_scan``, but goes straight to a known offset in the segment where ``start`` lies."""
        if known is None:
            yield from self._scan(segments, start, stop)
            return
        home = next((s for s in segments if s.start == known[0]), None)
        if home is not None:
            for batch in self.store.batches(home, known[1], start):
                offset = batch.offset
                for number, line in enumerate(batch.lines, batch.index):
                    if number >= stop:
                        return
                    yield Stored(idx.Hit(number, home.start, offset, len(line)), line)
                    offset += len(line) + 1
                    start = number + 1
        yield from self._scan([s for s in segments if s.start >= start], start, stop)


def _add(total: Counts, more: Counts) -> None:
    total.own += more.own
    for mine, its in ((total.event_type, more.event_type), (total.actor, more.actor), (total.outcome, more.outcome)):
        for name, count in its.items():
            mine[name] = mine.get(name, 0) + count


def parse_key_lines(data: bytes) -> list[tuple[int, bytes]]:
    """``keylines.jsonl``: each line ``<index> <the stored line>``, ascending. ``Malformed`` otherwise."""
    found: list[tuple[int, bytes]] = []
    for text in data.split(b"\n")[:-1]:
        number, space, line = text.partition(b" ")
        if not space or not number.isdigit() or len(number) > 19 or str(int(number)).encode() != number:
            raise Malformed("keylines.jsonl: a line without its index")
        if found and int(number) <= found[-1][0]:
            raise Malformed("keylines.jsonl: not in ascending order")
        found.append((int(number), line))
    if data and not data.endswith(b"\n"):
        raise Malformed("keylines.jsonl: the last line is torn")
    return found
