"""The index's file: who may fill it, its schema, what is done with one that is not ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator
from hashlib import sha256
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


# SHA-256 of the statements, one a line, of schemas that earlier versions made: an index of those is not altered, only of no use
EARLIER = frozenset({"6f692a9136c0d7bb78c6218a65667593e76c60906ea1e1f1f0b09af06fbab57e"})  # rows and ten indexes


class Index:
    """One index file. Methods raise ``sqlite3.Error`` when it cannot be used; callers then read the lines instead."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path = path
        self._disk = disk
        self._idle: list[tuple[tuple[int, int], sqlite3.Connection, int]] = []  # at most one; list operations are atomic

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
        """A read-only connection to an index of this schema; ``sqlite3.Error`` otherwise. One is kept for the next."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            raise sqlite3.OperationalError(f"{self.path} is not there") from None
        if not stat.S_ISREG(status.st_mode):
            raise sqlite3.OperationalError(f"{self.path} is no file")
        place = (status.st_dev, status.st_ino)
        connection = self._kept(place) or self._checked()
        try:
            yield connection
        except sqlite3.Error:
            connection.close()
            raise
        except BaseException:
            self._keep(connection, place)
            raise
        self._keep(connection, place)

    def _checked(self) -> sqlite3.Connection:
        connection = connect(self.path, "ro")
        try:
            found = schema_of(connection)
            if sha256("\n".join(found).encode("utf-8", "surrogatepass")).hexdigest() in EARLIER:
                raise sqlite3.OperationalError("made by an earlier version; whoever may write makes it anew")
            if found != list(SCHEMA):
                raise sqlite3.DatabaseError("the schema is not the one this version makes")
        except BaseException:
            connection.close()
            raise
        return connection

    def _kept(self, place: tuple[int, int]) -> sqlite3.Connection | None:
        """The kept connection if it is to the file that lies there now, with the schema that it had."""
        try:
            known, connection, version = self._idle.pop()
        except IndexError:
            return None
        with contextlib.suppress(sqlite3.Error):
            if known == place and connection.execute("PRAGMA schema_version").fetchone()[0] == version:
                return connection
        connection.close()
        return None

    def _keep(self, connection: sqlite3.Connection, place: tuple[int, int]) -> None:
        if self._idle:
            connection.close()
            return
        try:
            self._idle.append((place, connection, connection.execute("PRAGMA schema_version").fetchone()[0]))
        except sqlite3.Error:
            connection.close()

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop()[1].close()

    def after_fork(self) -> None:
        """In the child: a connection of the parent is neither used nor closed (sqlite.org/howtocorrupt.html §2.6)."""
        _of_parents.extend(self._idle)
        self._idle = []


_of_parents: list[object] = []


def schema_of(connection: sqlite3.Connection) -> list[str]:
    """Every statement of the schema, in the order of making; anything that is not ours shows here."""
    try:
        rows = connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()
    except UnicodeDecodeError:
        raise sqlite3.DatabaseError("the schema is no text") from None
    return [str(row[0]) for row in rows]
