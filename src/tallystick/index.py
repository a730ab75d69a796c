"""The index: SQLite, derived, finds entries (STORAGE rule 18).

It says where a line lies and narrows a question; what an entry says is always decoded from the line. Whatever it holds can be
deleted and comes back. ``verify`` compares every column of every row, the text of the schema and SQLite's own integrity
check, so that an index can neither alter nor hide an entry unseen.

Filled by whoever holds ``index.lock``; journal mode TRUNCATE, so that a reader without write rights needs no second file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .core.entry import LINE_BYTES_MAX, Fields
from .core.query import Condition, Question
from .core.times import parse_time
from .disk import DISK, Disk, close_quietly, file_mode

SCHEMA = (
    "CREATE TABLE entries (idx INTEGER PRIMARY KEY, event_id TEXT NOT NULL, timestamp INTEGER NOT NULL, "
    "recorded_at INTEGER NOT NULL, event_type TEXT NOT NULL, actor TEXT NOT NULL, actor_type TEXT NOT NULL, "
    "resource TEXT NOT NULL, action TEXT NOT NULL, outcome TEXT NOT NULL, session_id TEXT, ip_address TEXT, "
    "service TEXT, on_behalf_of TEXT, parent_id TEXT, correlation_id TEXT, trace_id TEXT, reason TEXT, corrects TEXT, "
    "subject TEXT, segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL) STRICT",
    "CREATE INDEX by_event_id ON entries (event_id)",
    "CREATE INDEX by_timestamp ON entries (timestamp)",
    "CREATE INDEX by_event_type ON entries (event_type)",
    "CREATE INDEX by_actor ON entries (actor)",
    "CREATE INDEX by_resource ON entries (resource)",
    "CREATE INDEX by_outcome ON entries (outcome) WHERE outcome <> 'success'",
    "CREATE INDEX by_session_id ON entries (session_id) WHERE session_id IS NOT NULL",
    "CREATE INDEX by_parent_id ON entries (parent_id) WHERE parent_id IS NOT NULL",
    "CREATE INDEX by_correlation_id ON entries (correlation_id) WHERE correlation_id IS NOT NULL",
    "CREATE INDEX by_subject ON entries (subject) WHERE subject IS NOT NULL",
)
_TEXT = (
    "event_type", "actor", "actor_type", "resource", "action", "outcome", "session_id", "ip_address", "service",
    "on_behalf_of", "parent_id", "correlation_id", "trace_id", "reason", "corrects", "subject",
)  # fmt: skip
COLUMNS = ("idx", "event_id", "timestamp", "recorded_at", *_TEXT, "segment", "offset", "length")
SEGMENT, OFFSET = COLUMNS.index("segment"), COLUMNS.index("offset")
_INSERT = f"INSERT INTO entries VALUES ({','.join('?' * len(COLUMNS))})"
_PAGE = 1000


class Hit(NamedTuple):
    """Where a line lies: index, first index of its segment, offset and length without newline."""

    index: int  # type: ignore[assignment]
    segment: int
    offset: int
    length: int


Row = tuple[Any, ...]


def hit_of(row: Sequence[int]) -> Hit:
    """A row's place; ``DatabaseError`` for one where no line can be, so that nobody reads that far."""
    hit = Hit(*row)
    if min(hit.segment, hit.offset, hit.length) < 0 or hit.length > LINE_BYTES_MAX:
        raise sqlite3.DatabaseError(f"row {hit.index} names a place where no line can be")
    return hit


def row_of(index: int, fields: Fields, segment: int, offset: int, length: int) -> Row:
    """The one row that the index may hold for a line."""
    return (
        index, fields.event_id, parse_time(fields.timestamp), parse_time(fields.recorded_at),
        *(getattr(fields, name) for name in _TEXT), segment, offset, length,
    )  # fmt: skip


class Index:
    """One index file. Methods raise ``sqlite3.Error`` when it cannot be used; callers then read the lines instead."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path = path
        self._disk = disk

    @contextlib.contextmanager
    def filling(self) -> Iterator[sqlite3.Connection | None]:
        """The one filler: yields a connection, or None while somebody else fills. Rebuilds what is not this schema.

        ``OSError`` where this user may not write here.
        """
        lock = self._disk.open(
            self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, file_mode(self.path.parent), like=self.path.parent
        )
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            connection = self._open_for_filling()
            try:
                yield connection
            finally:
                connection.close()
                fcntl.flock(lock, fcntl.LOCK_UN)  # a child forked meanwhile has this descriptor too
        finally:
            close_quietly(lock)

    def _open_for_filling(self) -> sqlite3.Connection:
        made = not self.path.exists()
        connection = _connect(self.path, "rwc")
        try:
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            if not made and schema_of(connection) == list(SCHEMA):
                return connection
        except sqlite3.DatabaseError:
            pass
        connection.close()
        for name in (self.path, self.path.with_name(self.path.name + "-journal")):
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(name)
        os.close(self._disk.open(self.path, os.O_RDWR | os.O_CREAT, file_mode(self.path.parent), like=self.path.parent))
        connection = _connect(self.path, "rwc")
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("BEGIN")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection to an index of this schema; ``sqlite3.Error`` otherwise."""
        if not self.path.is_file():
            raise sqlite3.OperationalError(f"{self.path} is not there")
        connection = _connect(self.path, "ro")
        try:
            if schema_of(connection) != list(SCHEMA):
                raise sqlite3.DatabaseError("the schema is not the one this version makes")
            yield connection
        finally:
            connection.close()


class _ForkGate:
    """No ``fork`` while a thread is inside SQLite: its mutexes would stay locked in the child, whose first query would never
    return, with the log's lock in its hands. Entered around each call, so that nobody who only holds a cursor is waited for.
    """

    def __init__(self) -> None:
        # reentrant, and counted: the garbage collector may close a forgotten connection in the middle of anything below
        self._changed = threading.Condition(threading.RLock())
        self._inside: dict[int, int] = {}
        self._closing = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._closing and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
            if self._closing:
                self._changed.notify_all()

    def close(self) -> None:
        """Before fork. A signal handler may fork in the middle of a call of its own thread: that one is not waited for."""
        self._changed.acquire()
        self._closing = True
        while set(self._inside) - {threading.get_ident()}:
            self._changed.wait()

    def open(self) -> None:
        """After fork, in the parent."""
        self._closing = False
        self._changed.notify_all()
        self._changed.release()


_GATE = _ForkGate()
os.register_at_fork(before=_GATE.close, after_in_parent=_GATE.open, after_in_child=_GATE.__init__)  # type: ignore[misc]


class _Cursor(sqlite3.Cursor):
    """Each step through the gate."""

    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:
        with _GATE:
            super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> _Cursor:
        with _GATE:
            super().executemany(sql, parameters)
        return self

    def fetchone(self) -> Any:
        with _GATE:
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with _GATE:
            return super().fetchall()

    def __next__(self) -> Any:
        with _GATE:
            return super().__next__()


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def close(self) -> None:
        with _GATE:
            super().close()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with _GATE:
        connection = sqlite3.connect(f"file:{quoted}?mode={mode}", uri=True, timeout=10, isolation_level=None,
                                     check_same_thread=False, factory=_Connection)  # fmt: skip
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")
    return connection


def schema_of(connection: sqlite3.Connection) -> list[str]:
    """Every statement of the schema, in the order of making; anything that is not ours shows here."""
    rows = connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()
    return [row[0] for row in rows]


def size_of(connection: sqlite3.Connection) -> int:
    """One more than the highest index held."""
    row = connection.execute("SELECT max(idx) FROM entries").fetchone()
    return 0 if row[0] is None else int(row[0]) + 1


def add(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Add rows in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(_INSERT, rows)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def cut_at(connection: sqlite3.Connection, size: int) -> None:
    """Remove rows at or above ``size``: they are of a history that is not this one."""
    connection.execute("DELETE FROM entries WHERE idx >= ?", (size,))


def find(connection: sqlite3.Connection, event_id: str, size: int) -> Hit | None:
    """The line of an event id below ``size``."""
    row = connection.execute(
        "SELECT idx, segment, offset, length FROM entries WHERE event_id = ? AND idx < ? ORDER BY idx LIMIT 1",
        (event_id, size),
    ).fetchone()
    return None if row is None else hit_of(row)


def place(connection: sqlite3.Connection, index: int) -> Hit | None:
    """The line of an index."""
    row = connection.execute("SELECT idx, segment, offset, length FROM entries WHERE idx = ?", (index,)).fetchone()
    return None if row is None else hit_of(row)


def search(
    connection: sqlite3.Connection, question: Question, start: int, stop: int, *, newest_first: bool = False
) -> Iterator[Hit]:
    """Lines in ``start`` ≤ index < ``stop`` that may answer the question, in pages: a superset of the answers."""
    where, values = _narrow(question)
    while start < stop:
        order = "DESC" if newest_first else "ASC"
        sql = (
            f"SELECT idx, segment, offset, length FROM entries WHERE idx >= ? AND idx < ?{where} "
            f"ORDER BY idx {order} LIMIT {_PAGE}"
        )
        page = [hit_of(row) for row in connection.execute(sql, (start, stop, *values))]
        yield from page
        if len(page) < _PAGE:
            return
        if newest_first:
            stop = page[-1].index
        else:
            start = page[-1].index + 1


def _narrow(question: Question) -> tuple[str, list[Any]]:
    """SQL that never excludes an answer. Column names come from our own list, values are bound."""
    parts: list[str] = []
    values: list[Any] = []
    if question.start_us is not None:
        parts.append("timestamp >= ?")
        values.append(question.start_us)
    if question.end_us is not None:
        parts.append("timestamp <= ?")
        values.append(question.end_us)
    if not question.lifecycle:
        parts.append("event_type NOT GLOB 'log.*'")
    for condition in question.conditions:
        sql, bound = _condition(condition)
        if sql:
            parts.append(sql)
            values.extend(bound)
    return "".join(f" AND {part}" for part in parts), values


def _condition(condition: Condition) -> tuple[str, Sequence[Any]]:
    field, operator, value = condition
    column = {"index": "idx"}.get(field, field)
    if column not in {"idx", "event_id", *_TEXT}:
        return "", ()
    wanted = int if column == "idx" else str
    if operator == "=" and value is None:
        return f"{column} IS NULL", ()
    if operator in ("=", ">", ">=", "<", "<=") and type(value) is wanted and _fits(value):
        return f"{column} {operator} ?", (value,)
    if operator == "in" and value and len(value) <= 500 and all(type(v) is wanted and _fits(v) for v in value):
        return f"{column} IN ({','.join('?' * len(value))})", value
    return "", ()  # left to the exact answer


def _fits(value: Any) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def integrity(connection: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong, at most 20 findings: also rows that a secondary index hides."""
    rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
    return [str(row[0]) for row in rows if row[0] != "ok"]


def rows(connection: sqlite3.Connection, start: int, stop: int) -> Iterator[Row]:
    """Stored rows in ascending index."""
    while True:
        page = connection.execute(
            f"SELECT {','.join(COLUMNS)} FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx LIMIT {_PAGE}", (start, stop)
        ).fetchall()
        yield from page
        if len(page) < _PAGE:
            return
        start = page[-1][0] + 1


def astray(connection: sqlite3.Connection, first: int) -> list[int]:
    """Rows that can be of no entry, at most 20: below 0, or below the first stored line and yet said to lie there."""
    found = connection.execute("SELECT idx FROM entries WHERE idx < 0 OR (idx < ? AND segment >= ?) ORDER BY idx LIMIT 20",
                               (first, first))  # fmt: skip
    return [row[0] for row in found]
