"""The index's file: who may fill it, its schema, what is done with one that is not ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..disk import DISK, Disk, close_quietly, file_mode
from .connection import connect

SCHEMA = (
    "CREATE TABLE blocks (first INTEGER PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL, "
    "earliest INTEGER NOT NULL, latest INTEGER NOT NULL, ends BLOB NOT NULL, counts BLOB NOT NULL) STRICT",
    "CREATE TABLE postings (chunk INTEGER NOT NULL, field INTEGER NOT NULL, term INTEGER NOT NULL, list BLOB NOT NULL, "
    "PRIMARY KEY (chunk, field, term)) STRICT, WITHOUT ROWID",
    "CREATE TABLE ids (id INTEGER NOT NULL, idx INTEGER NOT NULL, PRIMARY KEY (id, idx)) STRICT, WITHOUT ROWID",
)


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
        connection = connect(self.path, "rwc")
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
        connection = connect(self.path, "rwc")
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("BEGIN")  # if we die before COMMIT the schema is not ours and the next filler begins anew
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection to an index of this schema; ``sqlite3.Error`` otherwise."""
        if not self.path.is_file():
            raise sqlite3.OperationalError(f"{self.path} is not there")
        connection = connect(self.path, "ro")
        try:
            if schema_of(connection) != list(SCHEMA):
                raise sqlite3.DatabaseError("the schema is not the one this version makes")
            yield connection
        finally:
            connection.close()


def schema_of(connection: sqlite3.Connection) -> list[str]:
    """Every statement of the schema, in the order of making; anything that is not ours shows here."""
    try:
        rows = connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()
    except UnicodeDecodeError:
        raise sqlite3.DatabaseError("the schema is no text") from None
    return [row[0] for row in rows]
