"""Putting rows into the index. A transaction holds whole entries, so that a crash leaves a shorter index, never a wrong one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby

from .derive import BLOCK, CHUNK_BITS, Line, block_of, block_start, id_key, joined, postings_of
from .search import last_block

_LINES = 1 << 13  # per transaction, about


def add(connection: sqlite3.Connection, segment: int, offset: int, lines: list[Line]) -> None:
    """Add consecutive entries of one segment, the first of which begins at ``offset`` and follows the last one that is indexed."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        _put_blocks(connection, segment, offset, lines)
        for chunk, part in groupby(lines, key=lambda line: line.index >> CHUNK_BITS):
            rows = sorted((chunk, field, term, data) for (field, term), data in postings_of(part).items())
            connection.executemany(
                "INSERT INTO postings VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET list = CAST(list || excluded.list AS BLOB)", rows)
        connection.executemany("INSERT INTO ids VALUES (?,?)", sorted((id_key(line.fields.event_id), line.index) for line in lines))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def batched(lines: Iterable[tuple[int, int, Line]]) -> Iterator[tuple[int, int, list[Line]]]:
    """(segment, offset, line) → runs of one segment that are worth a transaction: (segment, offset of the first, lines)."""
    segment, start, run = -1, 0, list[Line]()
    for home, offset, line in lines:
        if run and (home != segment or (len(run) >= _LINES and line.index % BLOCK == 0)):
            yield segment, start, run
            run = []
        if not run:
            segment, start = home, offset
        run.append(line)
    if run:
        yield segment, start, run


def _put_blocks(connection: sqlite3.Connection, segment: int, offset: int, lines: list[Line]) -> None:
    """A block that was begun is completed. Its parts are derived from lines, never read back from what lies here."""
    last = last_block(connection)
    for first, part in groupby(lines, key=lambda line: block_start(line.index, segment)):
        block = block_of(segment, offset, list(part))
        offset += int.from_bytes(block.ends[-4:], "little")
        if last is not None and last.first == first and last.segment == segment:
            block = joined(last, block)
        connection.execute("INSERT OR REPLACE INTO blocks VALUES (?,?,?,?,?,?,?)", tuple(block))


def clear(connection: sqlite3.Connection) -> None:
    """Empty it: it was of a history that is not this one."""
    connection.execute("BEGIN IMMEDIATE")
    for table in ("blocks", "postings", "ids"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("COMMIT")
