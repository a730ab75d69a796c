"""Asking the index: where lines lie that may answer a question. Always a superset of the answers, in order.

What is read here may have been written by anybody: a row that no filler of ours writes is ``sqlite3.DatabaseError``, and the caller
reads the lines instead.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..core.entry import LINE_BYTES_MAX
from ..core.query import Condition, Question
from .derive import BLOCK, CHUNK, CHUNK_BITS, FIELDS, OWN, USUAL_OUTCOME, Block, id_key, numbers, term_of

_PLACES = "SELECT first, segment, offset, earliest, latest, ends, x'' FROM blocks"  # where the counts are of no interest
_BLOCK = "SELECT first, segment, offset, earliest, latest, ends, counts FROM blocks"
_TERMS_MAX = 200
_MANY = 8  # entries of a chunk for which all its blocks are read at once
_INT_MAX = 2**63


class Hit(NamedTuple):
    """Where a line lies: index, first index of its segment, offset and length without newline."""

    index: int  # type: ignore[assignment]
    segment: int
    offset: int
    length: int


def size_of(connection: sqlite3.Connection) -> int:
    """One more than the highest index held."""
    last = last_block(connection)
    return 0 if last is None else last.first + last.size


def last_block(connection: sqlite3.Connection) -> Block | None:
    """The block of the last entry held."""
    row = connection.execute(f"{_BLOCK} ORDER BY first DESC LIMIT 1").fetchone()
    return None if row is None else checked(row)


def blocks(connection: sqlite3.Connection, start: int, stop: int, *, newest_first: bool = False) -> Iterator[Block]:
    """Blocks that begin in [start, stop), a page at a time."""
    order, page_size = "DESC" if newest_first else "ASC", 64
    while start < stop:
        page = connection.execute(f"{_BLOCK} WHERE first >= ? AND first < ? ORDER BY first {order} LIMIT {page_size}",
                                  (start, stop)).fetchall()  # fmt: skip
        for row in page:
            yield checked(row)
        if len(page) < page_size:
            return
        if newest_first:
            stop = page[-1][0]
        else:
            start = page[-1][0] + 1


def checked(row: Sequence[Any]) -> Block:
    """A row as a block; ``DatabaseError`` for one in which no lines can be."""
    block = Block(*row)
    if not all(type(v) is int for v in block[:5]) or type(block.ends) is not bytes or type(block.counts) is not bytes:
        raise sqlite3.DatabaseError("a block of other types")
    if (
        min(block.first, block.segment, block.offset) < 0 or block.segment > block.first or not block.ends
        or len(block.ends) % 4 or block.size > BLOCK or max(block.first, block.offset) > _INT_MAX >> 1
    ):  # fmt: skip
        raise sqlite3.DatabaseError(f"block {block.first} is none")
    return block


def hit_in(block: Block, index: int) -> Hit:
    """The place of an entry of a block; ``DatabaseError`` where no line can be."""
    return _Places(block).hit(index)


def place(connection: sqlite3.Connection, index: int) -> Hit | None:
    """Where the line of an index lies."""
    row = connection.execute(f"{_BLOCK} WHERE first <= ? ORDER BY first DESC LIMIT 1", (index,)).fetchone()
    if row is None:
        return None
    block = checked(row)
    return hit_in(block, index) if index < block.first + block.size else None


def find(connection: sqlite3.Connection, event_id: str, size: int) -> list[Hit]:
    """Where lines below ``size`` lie that may have this event id, ascending; the line decides."""
    rows = connection.execute("SELECT idx FROM ids WHERE id = ? AND idx < ? ORDER BY idx LIMIT 100", (id_key(event_id), size))
    places = [place(connection, row[0]) for row in rows.fetchall() if row[0] >= 0]
    return [hit for hit in places if hit is not None]


def own_lines(connection: sqlite3.Connection, start: int, stop: int) -> Iterator[Hit]:
    """Where the lines lie that the log wrote about itself, in [start, stop), ascending."""
    return _posted(connection, [(OWN, [0])], None, None, start, stop, newest_first=False)


def search(
    connection: sqlite3.Connection, question: Question, start: int, stop: int, *, newest_first: bool = False
) -> Iterator[Hit]:
    """Lines in ``start`` ≤ index < ``stop`` that may answer the question."""
    wanted = []
    for condition in question.conditions:
        if condition.field == "index":
            start, stop = _bounded(condition, start, stop)
        else:
            terms = _terms(condition)
            if terms is not None:
                wanted.append((FIELDS[condition.field], terms))
    if any(c.field == "event_id" and c.operator == "=" and isinstance(c.value, str) for c in question.conditions):
        ids = [h for c in question.conditions if c.field == "event_id" and c.operator == "=" for h in find(connection, c.value, stop)]
        return iter(sorted({h for h in ids if start <= h.index < stop}, reverse=newest_first))
    if wanted:
        return _posted(connection, wanted, question.start_us, question.end_us, start, stop, newest_first=newest_first)
    return _all(connection, question.start_us, question.end_us, start, stop, newest_first=newest_first)


def _terms(condition: Condition) -> list[int] | None:
    """The numbers of the values that a condition admits, None where it is left to the exact answer."""
    field, operator, value = condition
    values = (value,) if operator == "=" else value if operator == "in" else ()
    if field not in FIELDS or not values or len(values) > _TERMS_MAX or not all(isinstance(v, str) for v in values):
        return None
    if field == "outcome" and USUAL_OUTCOME in values:
        return None
    return sorted({term_of(v) for v in values})


def _bounded(condition: Condition, start: int, stop: int) -> tuple[int, int]:
    _, operator, value = condition
    if operator == "in":
        whole = [v for v in value if type(v) is int]
        if len(whole) == len(value) and whole:
            return max(start, min(whole)), min(stop, max(whole) + 1)
    if type(value) is not int:
        return start, stop
    low = {"=": value, ">=": value, ">": value + 1}.get(operator, start)
    high = {"=": value + 1, "<=": value + 1, "<": value}.get(operator, stop)
    return max(start, low), min(stop, high)


def _in_time(block: Block, start_us: int | None, end_us: int | None) -> bool:
    return (start_us is None or block.latest >= start_us) and (end_us is None or block.earliest <= end_us)


def _all(
    connection: sqlite3.Connection, start_us: int | None, end_us: int | None, start: int, stop: int, *, newest_first: bool
) -> Iterator[Hit]:
    for block in blocks(connection, max(0, start - BLOCK), stop, newest_first=newest_first):
        if _in_time(block, start_us, end_us):
            places = _Places(block)
            within = range(max(start, block.first), min(stop, places.end))
            for index in reversed(within) if newest_first else within:
                yield places.hit(index)


def _posted(
    connection: sqlite3.Connection, wanted: list[tuple[int, list[int]]], start_us: int | None, end_us: int | None,
    start: int, stop: int, *, newest_first: bool,
) -> Iterator[Hit]:  # fmt: skip
    if start_us is not None or end_us is not None:  # only where blocks lie in that time at all
        first, last = connection.execute(
            "SELECT min(first), max(first) FROM blocks WHERE latest >= ? AND earliest <= ?",
            (max(-_INT_MAX, min(start_us or 0, _INT_MAX - 1)), _INT_MAX - 1 if end_us is None else max(0, min(end_us, _INT_MAX - 1))),
        ).fetchone()
        if first is None:
            return
        start, stop = max(start, first), min(stop, last + BLOCK)
    if start >= stop:
        return
    chunks = range(start >> CHUNK_BITS, ((stop - 1) >> CHUNK_BITS) + 1)
    for chunk in reversed(chunks) if newest_first else chunks:
        base = chunk << CHUNK_BITS
        found = sorted(_candidates(connection, chunk, wanted), reverse=newest_first)
        known = _places_from(connection, base, newest_first) if len(found) > _MANY else iter(())
        places: _Places | None = None
        for at in found:
            index = base + at
            if not start <= index < stop:
                continue
            while places is None or not places.first <= index < places.end:
                places = next(known, None) or _places_at(connection, index)
            if _in_time(places.block, start_us, end_us):
                yield places.hit(index)


class _Places:
    """Where the lines of one block lie."""

    def __init__(self, block: Block) -> None:
        self.block, self.first, self.end = block, block.first, block.first + block.size
        self._ends = numbers("I", block.ends)

    def hit(self, index: int) -> Hit:
        """``DatabaseError`` where no line can be."""
        at = index - self.first
        begin = self._ends[at - 1] if at else 0
        length = self._ends[at] - begin - 1
        if not 0 <= length <= LINE_BYTES_MAX:
            raise sqlite3.DatabaseError(f"block {self.first} names a place where no line can be")
        return Hit(index, self.block.segment, self.block.offset + begin, length)


def _places_from(connection: sqlite3.Connection, base: int, newest_first: bool) -> Iterator[_Places]:
    """The blocks of a chunk, in the order in which they will be wanted."""
    order = "DESC" if newest_first else "ASC"
    sql = f"{_PLACES} WHERE first > ? AND first < ? ORDER BY first {order}"
    for row in connection.execute(sql, (base - BLOCK, base + CHUNK)).fetchall():
        yield _Places(checked(row))


def _places_at(connection: sqlite3.Connection, index: int) -> _Places:
    row = connection.execute(f"{_PLACES} WHERE first <= ? ORDER BY first DESC LIMIT 1", (index,)).fetchone()
    if row is not None:
        places = _Places(checked(row))
        if index < places.end:
            return places
    raise sqlite3.DatabaseError(f"entry {index} has no block")


def _candidates(connection: sqlite3.Connection, chunk: int, wanted: list[tuple[int, list[int]]]) -> set[int]:
    """Offsets within a chunk of entries that all conditions admit."""
    lists: list[list[bytes]] = []
    for field, terms in wanted:
        rows = connection.execute(
            f"SELECT list FROM postings WHERE chunk = ? AND field = ? AND term IN ({','.join('?' * len(terms))})",
            (chunk, field, *terms),
        ).fetchall()
        if not rows:
            return set()
        for (data,) in rows:
            if type(data) is not bytes or len(data) % 2 or len(data) > 2 * CHUNK:
                raise sqlite3.DatabaseError(f"a list of chunk {chunk} is none")
        lists.append([data for (data,) in rows])
    lists.sort(key=lambda parts: sum(map(len, parts)))
    found = {at for data in lists[0] for at in numbers("H", data)}
    for parts in lists[1:]:
        found = found.intersection(itertools.chain.from_iterable(numbers("H", data) for data in parts))
    return found
