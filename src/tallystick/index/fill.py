"""Putting rows into the index. A transaction holds whole entries, so that a crash leaves a shorter index, never a wrong one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator

from .derive import BLOCK, CHUNK_BITS, Lines, block_of, block_start, id_key, joined, postings_of
from .search import last_block

_LINES = 1 << 13  # per transaction, about


def add(connection: sqlite3.Connection, lines: Lines) -> None:
    """Add entries that follow the last one that is indexed."""
    stop = lines.first + len(lines.fields)
    connection.execute("BEGIN IMMEDIATE")
    try:
        _put_blocks(connection, lines, stop)
        for chunk in range(lines.first >> CHUNK_BITS, ((stop - 1) >> CHUNK_BITS) + 1):
            part = lines.part(max(lines.first, chunk << CHUNK_BITS), min(stop, (chunk + 1) << CHUNK_BITS))
            rows = sorted((chunk, field, term, data) for (field, term), data in postings_of(part).items())
            connection.executemany("INSERT INTO postings VALUES (?,?,?,?) "
                                   "ON CONFLICT DO UPDATE SET list = CAST(list || excluded.list AS BLOB)", rows)  # fmt: skip
        ids = [id_key(fields.event_id) for fields in lines.fields]
        connection.executemany("INSERT INTO ids VALUES (?,?)", sorted(zip(ids, range(lines.first, stop), strict=True)))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def joined_runs(runs: Iterable[Lines]) -> Iterator[Lines]:
    """Runs of lines put together where they follow each other in one segment, until they are worth a transaction."""
    whole: Lines | None = None
    for run in runs:
        if whole is not None and (run.segment != whole.segment or len(whole.fields) >= _LINES):
            yield whole
            whole = None
        whole = run if whole is None else whole._replace(lengths=whole.lengths + run.lengths, fields=[*whole.fields, *run.fields])
    if whole is not None:
        yield whole


def _put_blocks(connection: sqlite3.Connection, lines: Lines, stop: int) -> None:
    """A block that was begun is completed."""
    last = last_block(connection)
    at = lines.first
    while at < stop:
        first = block_start(at, lines.segment)
        end = min(stop, first - first % BLOCK + BLOCK)
        part = lines.part(at, end)
        block = block_of(part)
        if last is not None and last.first == first and last.segment == lines.segment:
            block = joined(last, block)
        connection.execute("INSERT OR REPLACE INTO blocks VALUES (?,?,?,?,?,?,?)", tuple(block))
        at = end


def clear(connection: sqlite3.Connection) -> None:
    """Empty it: it was of a history that is not this one."""
    connection.execute("BEGIN IMMEDIATE")
    for table in ("blocks", "postings", "ids"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("COMMIT")
