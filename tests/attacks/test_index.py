"""The index is derived: whatever it says that the lines do not is named; what it does not say is no finding."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import AuditError
from tallystick.index import SCHEMA

from .conftest import Case, put_back, the_one

ROW = 20


@contextmanager
def editing(case: Case) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(case.folder / "index.db", isolation_level=None)) as connection:
        yield connection


def _columns() -> list[tuple[str, str]]:
    """Names and types, from the schema itself."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in SCHEMA:
            connection.execute(statement)
        tables = [r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(f"{t}.{c[1]}", c[2]) for t in tables for c in connection.execute(f"PRAGMA table_info({t})")]


COLUMNS = _columns()


@pytest.mark.parametrize(("column", "kind"), COLUMNS, ids=[c for c, _ in COLUMNS])
def test_every_column(case: Case, column: str, kind: str) -> None:
    table, name = column.split(".")
    with editing(case) as connection:
        if name == "idx":  # the row stands at another index now: two places are wrong
            connection.execute(f"UPDATE {table} SET idx = 1000 WHERE idx = {ROW}")
        else:
            old = connection.execute(f"SELECT {name} FROM {table} WHERE idx = {ROW}").fetchone()[0]
            new = (old or 0) + 1 if kind == "INTEGER" else (old or "") + "x"
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE idx = {ROW}", (new,))
    found = the_one(case.check(6, ("index_mismatch", ROW)), "index_mismatch")
    assert found.file == "index.db"
    assert name in found.text or name == "idx"
    case.check(0, content=True)


def test_null_is_not_empty(case: Case) -> None:
    with editing(case) as connection:
        (index,) = connection.execute("SELECT min(idx) FROM entries WHERE session_id IS NULL").fetchone()
        connection.execute("UPDATE entries SET session_id = '' WHERE idx = ?", (index,))
    case.check(6, ("index_mismatch", index))


def test_a_row_deleted(case: Case) -> None:
    with editing(case) as connection:
        connection.execute(f"DELETE FROM entries WHERE idx = {ROW}")
    case.check(6, ("index_mismatch", ROW))
    case.check(0, content=True)


def test_the_first_row_deleted(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("DELETE FROM entries WHERE idx < 3")
    case.check(6, *[("index_mismatch", i) for i in range(3)])


def test_the_last_rows_deleted_is_merely_behind(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("DELETE FROM entries WHERE idx >= 40")
    case.check(0)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48
    case.check(0)


def test_rows_hidden_behind_one_that_is_far(case: Case) -> None:
    """A row beyond the end makes the index look whole: what is missing below it is named, and comes back."""
    with editing(case) as connection:
        connection.execute("CREATE TEMP TABLE t AS SELECT * FROM entries WHERE idx = 45")
        connection.execute("UPDATE t SET idx = 5000")
        connection.execute("DELETE FROM entries WHERE idx >= 40")
        connection.execute("INSERT INTO entries SELECT * FROM t")
    case.check(6, *[("index_mismatch", i) for i in range(40, case.size)])
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48
    case.check(0)


@pytest.mark.parametrize("index", [-1, -(2**63)])
def test_an_extra_row_below_the_first(case: Case, index: int) -> None:
    """It would answer ``find`` with an index that is none."""
    with editing(case) as connection:
        connection.execute("CREATE TEMP TABLE t AS SELECT * FROM entries WHERE idx = 45")
        connection.execute("UPDATE t SET idx = ?", (index,))
        connection.execute("INSERT INTO entries SELECT * FROM t")
        (event_id,) = connection.execute("SELECT event_id FROM t").fetchone()
    case.check(6, ("index_mismatch", index))
    case.check(0, content=True)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert log.entry(event_id).index == 45


def test_an_extra_row_beyond_the_head_is_ignored(case: Case) -> None:
    """STORAGE rule 18; nobody asks the index that far."""
    with editing(case) as connection:
        connection.execute("CREATE TEMP TABLE t AS SELECT * FROM entries WHERE idx = 45")
        connection.execute("UPDATE t SET idx = 5000, event_id = 'x'")
        connection.execute("INSERT INTO entries SELECT * FROM t")
    case.check(0)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48


SECONDARY = [s.split()[2] for s in SCHEMA if s.startswith("CREATE INDEX")]


@pytest.mark.parametrize("name", SECONDARY)
def test_a_secondary_index_dropped(case: Case, name: str) -> None:
    with editing(case) as connection:
        connection.execute(f"DROP INDEX {name}")
    case.check(6, ("index_mismatch", None))
    case.check(0, content=True)


@pytest.mark.parametrize("name", SECONDARY)
def test_a_row_hidden_by_a_secondary_index(case: Case, name: str) -> None:
    """The row is in the table, the index over a column does not lead to it: SQLite's own check says so."""
    create = next(s for s in SCHEMA if f" {name} " in s)
    column = create.partition("(")[2].partition(")")[0]
    condition = create.partition(" WHERE ")[2]
    with editing(case) as connection:
        where = f"WHERE {condition}" if condition else ""
        index, value = connection.execute(f"SELECT idx, {column} FROM entries {where} LIMIT 1").fetchone()
        hidden = f"CREATE INDEX {name} ON entries ({column}) WHERE idx <> {index}" + (f" AND {condition}" if condition else "")
        connection.execute("PRAGMA writable_schema = ON")
        (rowid,) = connection.execute("SELECT rowid FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        connection.execute(f"DROP INDEX {name}")
        connection.execute(hidden)
        connection.execute("UPDATE sqlite_master SET sql = ?, rowid = ? WHERE name = ?", (create, rowid, name))
    with editing(case) as connection:
        assert [r[0] for r in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid")] == list(SCHEMA)
        asked = f"SELECT count(*) FROM entries INDEXED BY {name} WHERE {column} = ? AND idx = ?"
        if condition:
            asked += f" AND {condition}"
        assert connection.execute(asked, (value, index)).fetchone() == (0,)
    case.check(6, ("index_mismatch", None))
    case.check(0, content=True)


@pytest.mark.parametrize("statement", [
    "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE idx = 3; END",
    "CREATE VIEW v AS SELECT * FROM entries",
    "CREATE TABLE more (a)",
    "ALTER TABLE entries ADD COLUMN more TEXT",
    "ALTER TABLE entries RENAME TO others",
    "DROP TABLE entries",
])  # fmt: skip
def test_another_schema(case: Case, statement: str) -> None:
    with editing(case) as connection:
        connection.execute(statement)
    case.check(6, ("index_mismatch", None))
    case.check(0, content=True)
    with AuditLogger(case.folder, memory=case.memory) as log:  # rebuilt
        assert len(log.query(limit=None)) == 48
    case.check(0)


def test_a_view_that_never_ends(case: Case) -> None:
    """``entries`` is a recursive view: it is never asked."""
    (case.folder / "index.db").unlink()
    with editing(case) as connection:
        connection.execute("CREATE VIEW entries AS WITH RECURSIVE n(idx) AS (SELECT 1 UNION ALL SELECT idx FROM n) "
                           "SELECT idx FROM n")  # fmt: skip
    case.check(6, ("index_mismatch", None))


def test_missing_is_no_finding(case: Case) -> None:
    (case.folder / "index.db").unlink()
    case.check(0)


@contextlib.contextmanager
def _as_the_owner(case: Case) -> Iterator[None]:
    """Root may read everything: he gives log, keys and memory to nobody and is nobody meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    mine = [case.folder, case.keys, case.memory.folder]
    for top in mine:
        for path in [top, *top.rglob("*")]:
            os.chown(path, 65534, 65534)
        for parent in top.parents:
            if os.stat(parent).st_uid == 0 and str(parent) not in ("/", "/tmp"):
                parent.chmod(parent.stat().st_mode | 0o711)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for top in mine:
            for path in [top, *top.rglob("*")]:
                os.chown(path, 0, 0)


def test_unreadable_is_no_finding(case: Case) -> None:
    (case.folder / "index.db").chmod(0)
    with _as_the_owner(case):
        assert any("index.db" in text for text in case.check(0).not_proven)
    (case.folder / "index.db").chmod(0o600)


@pytest.mark.parametrize("data", [b"", b"x", bytes(4096), b"SQLite format 3\0" + bytes(4080), bytes(range(7, 250)) * 37],
                         ids=["empty", "short", "zeros", "head only", "random"])  # fmt: skip
def test_no_database(case: Case, data: bytes) -> None:
    case.put("index.db", data)
    case.check(6, ("index_mismatch", None))
    case.check(0, content=True)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48
    case.check(0)


def test_a_folder_or_a_link_instead(case: Case, tmp_path: Path) -> None:
    (case.folder / "index.db").rename(tmp_path / "index.db")
    (case.folder / "index.db").mkdir()
    assert any("index.db" in text for text in case.check(0).not_proven)


@pytest.mark.parametrize("journal", [b"x" * 600, b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000)])
def test_a_hostile_journal(case: Case, journal: bytes) -> None:
    """What somebody left to be rolled back is not rolled back by a reader."""
    before = case.read("index.db")
    case.put("index.db-journal", journal)
    assert case.verify().exit_code in (0, 6)
    assert case.read("index.db") == before


def test_new_only_compares_the_rows_of_what_is_new(honest) -> None:
    case = put_back(honest)
    from .conftest import fill

    with AuditLogger(case.folder, memory=case.memory) as log:
        fill(log, 6, 1000)
    before = case.size - 6
    with editing(case) as connection:
        connection.execute("UPDATE entries SET actor = 'eve' WHERE idx = ?", (before + 2,))
        connection.execute("UPDATE entries SET actor = 'eve' WHERE idx = 4")
    case.check(6, ("index_mismatch", before + 2), new_only=True)
    case.check(6, ("index_mismatch", before + 2), ("index_mismatch", 4))


def test_three_columns_in_three_rows(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("UPDATE entries SET actor = 'eve' WHERE idx = 5")
        connection.execute("UPDATE entries SET timestamp = timestamp + 1 WHERE idx = 6")
        connection.execute("DELETE FROM entries WHERE idx = 7")
    case.check(6, *[("index_mismatch", i) for i in (5, 6, 7)])


@pytest.mark.parametrize("column", ["offset", "length", "segment"])
@pytest.mark.parametrize("value", [-1, 2**40, 2**63 - 1, -(2**63)])
def test_a_place_where_no_line_can_be(case: Case, column: str, value: int) -> None:
    """Named; and whoever asks gets the line or an error of ours, in bounded memory."""
    with editing(case) as connection:
        connection.execute(f"UPDATE entries SET {column} = ? WHERE idx = {ROW}", (value,))
        (event_id,) = connection.execute(f"SELECT event_id FROM entries WHERE idx = {ROW}").fetchone()
    case.check(6, ("index_mismatch", ROW))
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert log.entry(event_id).index == log.entry(ROW).index == ROW
        with contextlib.suppress(AuditError):
            log.query(limit=None)
