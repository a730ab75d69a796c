"""Connections to SQLite that a ``fork`` cannot break."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Autocommit; ``mode`` is ``ro`` or ``rwc``. Nothing of a schema that is not ours is trusted."""
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with _GATE:
        connection = sqlite3.connect(f"file:{quoted}?mode={mode}", uri=True, timeout=10, isolation_level=None,
                                     check_same_thread=False, factory=_Connection)  # fmt: skip
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")
    return connection
