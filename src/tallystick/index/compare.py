"""The index against the lines: every row is derived again and compared (``verify``)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from ..core.entry import Fields
from .derive import (
    BLOCK,
    CHUNK,
    CHUNK_BITS,
    FIELDS,
    OWN,
    Block,
    Lines,
    PostingsBuilder,
    block_of,
    block_start,
    decode_counts,
    id_key,
    numbers,
)
from .search import Hit, checked, hit_in, size_of

_NAMES = {number: name for name, number in FIELDS.items()} | {OWN: "log.*"}
_COLUMNS = Block._fields
_NAMED_MAX = 1000

Tell = Callable[[str, int | None, int | None], None]
"""``tell(text, index, end)``: a finding."""


class Comparison:
    """Is given the signed lines in ascending index and tells where the rows in [start, reach) are not theirs.

    ``start`` begins a block. Lines that are not the signed ones are not given: what the index says of them is not judged.
    ``sound(segment)`` says whether the places of a segment's lines can be; ``segment_stops``: first index of each segment that is
    here → first of the next, None for the last.
    """

    def __init__(
        self, connection: sqlite3.Connection, start: int, reach: int, tell: Tell, sound: Callable[[int], bool],
        segment_stops: dict[int, int | None],
    ) -> None:  # fmt: skip
        self._connection, self._start, self._reach, self._tell, self._sound = connection, start, reach, tell, sound
        self._segment_stops = segment_stops
        self._hits: list[Hit] = []  # of one block
        self._fields: list[Fields] = []
        self._postings, self._known = PostingsBuilder(), set[int]()
        self._chunk = start >> CHUNK_BITS
        self._block_stop = 0
        self._firsts: set[int] = set()

    def line(self, hit: Hit, fields: Fields) -> None:
        """The next one."""
        index = hit.index
        if index >= self._reach:
            return
        if self._hits and (index >= self._block_stop or hit.segment != self._hits[0].segment):
            self._end_block()
        if not self._hits:
            self._block_stop = block_start(index, hit.segment)
            self._block_stop += BLOCK - self._block_stop % BLOCK
        if index >> CHUNK_BITS != self._chunk:
            self._end_chunk(index >> CHUNK_BITS)
        self._hits.append(hit)
        self._fields.append(fields)

    def finish(self, *, whole: bool, gaps: bool) -> None:
        """After the last line. ``whole``: count also the rows of no entry. ``gaps``: lines are missing, so that rows may be of
        segments that are not here."""
        if self._hits:
            self._end_block()
        self._end_chunk(self._chunk + 1)
        self._missing_blocks(gaps)
        if whole:
            self._ids_of_nothing()

    def _end_block(self) -> None:
        hits, fields = self._hits, self._fields
        self._hits, self._fields = [], []
        segment, first = hits[0].segment, block_start(hits[0].index, hits[0].segment)
        indexes = [hit.index for hit in hits]
        self._postings.add(indexes, fields)
        self._known.update(index & (CHUNK - 1) for index in indexes)
        self._compare_ids([(id_key(f.event_id), index) for f, index in zip(fields, indexes, strict=True)])
        self._firsts.add(first)
        row = self._connection.execute(f"SELECT {','.join(_COLUMNS)} FROM blocks WHERE first = ?", (first,)).fetchone()
        if row is None:
            self._tell("its row is not there", first, indexes[-1] + 1)
            return
        stored, end = checked(row), self._end_of_block(first, segment)
        if first + stored.size > end or first + stored.size <= indexes[-1]:
            self._tell(f"the row ends at #{first + stored.size - 1:,}", min(first + stored.size, end), None)
            return
        given = Lines(first, segment, hits[0].offset, [hit.length for hit in hits], fields)
        if len(hits) == stored.size:
            self._compare_block(stored, block_of(given))
        elif hits[0].index == first and len(hits) == indexes[-1] + 1 - first == self._reach - first:
            self._compare_begun(stored, block_of(given))
        if len(hits) != stored.size and self._sound(segment):
            for hit in hits:
                if hit_in(stored, hit.index) != hit:
                    self._tell("differs from its line (ends)", hit.index, None)
                    break

    def _end_of_block(self, first: int, segment: int) -> int:
        """Where the block must end at the latest."""
        boundary, following = first - first % BLOCK + BLOCK, self._segment_stops.get(segment)
        return boundary if following is None else min(boundary, following)

    def _compare_block(self, stored: Block, wanted: Block) -> None:
        if not self._sound(wanted.segment):
            wanted = wanted._replace(offset=stored.offset, ends=stored.ends)
        different = [name for name, a, b in zip(_COLUMNS, stored, wanted, strict=True) if a != b]
        if different:
            at = wanted.first
            if different == ["ends"]:
                at += next((i for i in range(stored.size) if stored.ends[: 4 * i + 4] != wanted.ends[: 4 * i + 4]), 0)
            self._tell(f"differs from its lines ({', '.join(different)})", at, None)

    def _compare_begun(self, stored: Block, wanted: Block) -> None:
        """A block that goes on beyond the head, where nothing is judged: it may say more than its lines below the head, not less."""
        different = [] if stored.segment == wanted.segment else ["segment"]
        if stored.earliest > wanted.earliest:
            different.append("earliest")
        if stored.latest < wanted.latest:
            different.append("latest")
        try:
            counts, least = decode_counts(stored.counts), decode_counts(wanted.counts)
        except ValueError:
            different.append("counts")
        else:
            parts = ((counts.event_type, least.event_type), (counts.actor, least.actor), (counts.outcome, least.outcome))
            if not counts.holds_for(stored.size) or any(mine.get(name, 0) < n for mine, its in parts for name, n in its.items()):
                different.append("counts")
        if different:
            self._tell(f"differs from its lines ({', '.join(different)})", wanted.first, None)

    def _end_chunk(self, following: int) -> None:
        base = self._chunk << CHUNK_BITS
        rows = self._connection.execute("SELECT field, term, list FROM postings WHERE chunk = ?", (self._chunk,)).fetchall()
        stored = {(field, term): data for field, term, data in rows}
        wanted = self._postings.rows()
        if self._known and stored != wanted:
            self._name_postings(base, stored, wanted)
        self._postings, self._known, self._chunk = PostingsBuilder(), set(), following

    def _name_postings(self, base: int, stored: dict[tuple[int, int], bytes], wanted: dict[tuple[int, int], bytes]) -> None:
        wrong: dict[int, set[str]] = {}
        for key in stored.keys() | wanted.keys():
            data, right = stored.get(key, b""), wanted.get(key, b"")
            if data == right and key in wanted:
                continue
            if type(data) is not bytes or len(data) % 2:
                raise sqlite3.DatabaseError(f"a list of chunk {self._chunk} is none")
            there = list(numbers("H", data))
            mine = self._known.intersection(there)
            if not there and key not in wanted:
                wrong.setdefault(base, set()).add(f"an empty list of {_NAMES.get(key[0], f'field {key[0]}')}")
            for at in mine ^ set(numbers("H", right)):
                wrong.setdefault(base + at, set()).add(_NAMES.get(key[0], f"field {key[0]}"))
            if len(there) != len(set(there)) or max(there, default=0) >= CHUNK:
                wrong.setdefault(base + there[0], set()).add(_NAMES.get(key[0], f"field {key[0]}"))
        for index in sorted(wrong)[:_NAMED_MAX]:
            self._tell(f"differs from its line ({', '.join(sorted(wrong[index]))})", index, None)

    def _compare_ids(self, pairs: list[tuple[int, int]]) -> None:
        wanted = ",".join("?" * len(pairs))
        rows = self._connection.execute(f"SELECT id, idx FROM ids WHERE id IN ({wanted})", [key for key, _ in pairs]).fetchall()
        for _, index in sorted(set(pairs).difference(rows)):
            self._tell("differs from its line (event_id)", index, None)

    def _missing_blocks(self, gaps: bool) -> None:
        """Blocks of which no line was given, and rows that begin where no block does."""
        sql = "SELECT first, segment FROM blocks WHERE first >= ? AND first < ?"
        rows = self._connection.execute(sql, (self._start, self._reach)).fetchall()
        begun = {first for first, segment in rows if not gaps or segment in self._segment_stops}
        expected = set()
        for segment, following in self._segment_stops.items():
            stop = self._reach if following is None else following
            at = max(segment, self._start)  # which begins a block
            while at < min(stop, self._reach):
                expected.add(at)
                at += BLOCK - at % BLOCK
        for first in sorted(begun - expected)[:_NAMED_MAX]:
            self._tell("a row begins where no block does", first, None)
        for first in sorted((expected - begun) - self._firsts)[:_NAMED_MAX] if not gaps else ():
            self._tell("its row is not there", first, None)

    def _ids_of_nothing(self) -> None:
        first = min(self._start, self._reach)
        (count,) = self._connection.execute("SELECT count(*) FROM ids WHERE idx >= ? AND idx < ?", (first, self._reach)).fetchone()
        if count > self._reach - first:
            sql = "SELECT idx FROM ids WHERE idx >= ? AND idx < ? GROUP BY idx HAVING count(*) > 1 ORDER BY idx LIMIT 20"
            for (index,) in self._connection.execute(sql, (first, self._reach)).fetchall():
                self._tell("has more than one row (event_id)", index, None)


def of_no_entry(connection: sqlite3.Connection, *, whole: bool) -> list[int]:
    """Rows that can be of no entry, at most 20: below 0, or said to lie in a segment that begins after them. ``whole``: look at all
    event ids too."""
    sql = "SELECT first FROM blocks WHERE first < 0 OR segment > first UNION SELECT chunk FROM postings WHERE chunk < 0"
    if whole:
        sql += " UNION SELECT idx FROM ids WHERE idx < 0"
    return [row[0] for row in connection.execute(f"{sql} LIMIT 20").fetchall()]


def integrity(connection: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong, at most 20 findings."""
    rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
    return [str(row[0]) for row in rows if row[0] != "ok"]


__all__ = ["Comparison", "integrity", "of_no_entry", "size_of"]
