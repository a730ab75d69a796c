"""The index is derived: whatever it says that the lines do not is named; what it does not say is no finding."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import AuditError
from tallystick.index.derive import FIELDS, little, numbers
from tallystick.index.file import SCHEMA

from .conftest import Case, put_back

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


def found_in(case: Case, **options) -> dict[int | None, str]:
    """Verify: altered, and nothing but the index. What was found: index → text."""
    verdict = case.verify(**options)
    assert verdict.exit_code == 6, verdict.issues
    assert {(f.issue, f.file) for f in verdict.findings} == {("index_mismatch", "index.db")}, verdict.issues
    return {f.index: f.text for f in verdict.findings}


def block_of_row(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(first) FROM blocks WHERE first <= ?", (ROW,)).fetchone()[0])


def list_with(connection: sqlite3.Connection, field: str, index: int = ROW) -> tuple[int, list[int]]:
    """The term and the list of a field in which an entry stands."""
    for term, data in connection.execute("SELECT term, list FROM postings WHERE field = ?", (FIELDS[field],)).fetchall():
        if index in numbers("H", data):
            return term, list(numbers("H", data))
    raise AssertionError(f"entry {index} has no {field} in the index")


def put_list(connection: sqlite3.Connection, field: str, term: int, offsets: list[int]) -> None:
    connection.execute("INSERT OR REPLACE INTO postings VALUES (0, ?, ?, ?)",
                       (FIELDS[field], term, little(array("H", offsets))))  # fmt: skip


@pytest.mark.parametrize(("column", "kind"), COLUMNS, ids=[c for c, _ in COLUMNS])
def test_every_column(case: Case, column: str, kind: str) -> None:
    table, name = column.split(".")
    with editing(case) as connection:
        where = {"blocks": f"first = {block_of_row(connection)}", "ids": f"idx = {ROW}"}.get(table)
        if where is None:
            where = f"field = {FIELDS['actor']} AND term = {list_with(connection, 'actor')[0]}"
        old = connection.execute(f"SELECT {name} FROM {table} WHERE {where}").fetchone()[0]
        new = old + 1 if kind == "INTEGER" else bytes([old[0] ^ 1]) + old[1:]
        connection.execute(f"UPDATE {table} SET {name} = ? WHERE {where}", (new,))
    texts = found_in(case)
    assert any(name in text for text in texts.values()) or name in ("first", "idx", "id", "chunk", "field", "term", "list", "segment")
    case.check(0, content=True)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_an_entry_taken_out_of_a_list(case: Case, field: str) -> None:
    with editing(case) as connection:
        rows = connection.execute("SELECT term, list FROM postings WHERE field = ?", (FIELDS[field],)).fetchall()
        assert rows, "no entry of this log has it"
        term, offsets = rows[0][0], list(numbers("H", rows[0][1]))
        put_list(connection, field, term, offsets[1:])
    assert {i: field in t for i, t in found_in(case).items()} == {offsets[0]: True}
    case.check(0, content=True)


def test_an_entry_put_into_a_list(case: Case) -> None:
    with editing(case) as connection:
        term, offsets = list_with(connection, "actor")
        other = next(i for i in range(48) if i not in offsets)
        put_list(connection, "actor", term, sorted([*offsets, other]))
    assert list(found_in(case)) == [other]


def test_an_entry_twice_in_a_list(case: Case) -> None:
    with editing(case) as connection:
        term, offsets = list_with(connection, "actor")
        put_list(connection, "actor", term, [*offsets, offsets[0]])
    assert found_in(case)


def test_a_list_under_a_name_that_nobody_has(case: Case) -> None:
    with editing(case) as connection:
        put_list(connection, "actor", 12345, [ROW])
        connection.execute("INSERT INTO postings VALUES (0, 99, 1, ?)", (little(array("H", [ROW + 1])),))
    assert set(found_in(case)) == {ROW, ROW + 1}


def test_a_list_removed_hides_nothing_unseen(case: Case) -> None:
    with editing(case) as connection:
        term, offsets = list_with(connection, "event_type")
        connection.execute("DELETE FROM postings WHERE field = ? AND term = ?", (FIELDS["event_type"], term))
    assert set(found_in(case)) == set(offsets)


def test_lists_exchanged(case: Case) -> None:
    with editing(case) as connection:
        rows = connection.execute("SELECT term, list FROM postings WHERE field = ? LIMIT 2", (FIELDS["actor"],)).fetchall()
        (a, one), (b, two) = rows
        assert one != two
        connection.execute("UPDATE postings SET list = ? WHERE field = ? AND term = ?", (two, FIELDS["actor"], a))
        connection.execute("UPDATE postings SET list = ? WHERE field = ? AND term = ?", (one, FIELDS["actor"], b))
    assert set(found_in(case)) == set(numbers("H", one)) | set(numbers("H", two))


@pytest.mark.parametrize("data", [b"x", b"", b"\xff" * (1 << 20)])
def test_a_list_that_is_none(case: Case, data: bytes) -> None:
    with editing(case) as connection:
        term, _ = list_with(connection, "actor")
        connection.execute("UPDATE postings SET list = ? WHERE field = ? AND term = ?", (data, FIELDS["actor"], term))
    assert found_in(case)
    with AuditLogger(case.folder, memory=case.memory) as log:
        actor = log.entry(ROW).actor
        with contextlib.suppress(AuditError):
            log.query({"actor": actor})


def test_an_event_id_taken_out(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("DELETE FROM ids WHERE idx = ?", (ROW,))
    assert {i: "event_id" in t for i, t in found_in(case).items()} == {ROW: True}


def test_an_event_id_of_another_entry(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("INSERT INTO ids SELECT id + 7, idx FROM ids WHERE idx = ?", (ROW,))
    assert {i: "event_id" in t for i, t in found_in(case).items()} == {ROW: True}


def test_a_block_deleted(case: Case) -> None:
    with editing(case) as connection:
        first = block_of_row(connection)
        connection.execute("DELETE FROM blocks WHERE first = ?", (first,))
    assert list(found_in(case)) == [first]
    case.check(0, content=True)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert log.entry(ROW).index == ROW


def test_the_first_block_deleted(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("DELETE FROM blocks WHERE first = 0")
    assert list(found_in(case)) == [0]


def test_a_block_more(case: Case) -> None:
    """It would say of the entries behind its beginning that they lie elsewhere."""
    with editing(case) as connection:
        first = block_of_row(connection)
        connection.execute("INSERT INTO blocks SELECT first + 1, segment, offset, earliest, latest, ends, counts FROM blocks "
                           "WHERE first = ?", (first,))  # fmt: skip
    assert first + 1 in found_in(case)
    with AuditLogger(case.folder, memory=case.memory) as log:
        for index in range(case.size):
            assert log.entry(index).index == index


def grow(connection: sqlite3.Connection, first: int, **columns: object) -> None:
    """A row that claims one entry more, and with it whatever else."""
    (ends,) = connection.execute("SELECT ends FROM blocks WHERE first = ?", (first,)).fetchone()
    ends += (int.from_bytes(ends[-4:], "little") + 50).to_bytes(4, "little")
    for name, value in {"ends": ends, **columns}.items():
        connection.execute(f"UPDATE blocks SET {name} = ? WHERE first = ?", (value, first))


def forged_counts(connection: sqlite3.Connection, first: int) -> bytes:
    counts, size = connection.execute("SELECT counts, length(ends) / 4 + 1 FROM blocks WHERE first = ?", (first,)).fetchone()
    found = json.loads(counts)
    rest = size - found["own"]
    return json.dumps({"actor": {"eve": rest}, "event_type": {"user_action": rest}, "outcome": {"success": rest}, "own": found["own"]},
                      separators=(",", ":")).encode()  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("what", ["times", "counts"])
def test_a_block_that_claims_more_than_its_lines(case: Case, number: int, what: str) -> None:
    """What is said of an entry that is not there must not keep what is said of the others from being compared."""
    with editing(case) as connection:
        firsts = [row[0] for row in connection.execute("SELECT first FROM blocks ORDER BY first")]
        first = firsts[number]
        if what == "times":
            grow(connection, first, earliest=2**61, latest=2**61)
        else:
            grow(connection, first, counts=forged_counts(connection, first))
    assert found_in(case)
    case.check(0, content=True)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_reader_of_an_index_that_fails_in_the_middle_reads_the_lines(case: Case, number: int) -> None:
    with editing(case) as connection:
        firsts = [row[0] for row in connection.execute("SELECT first FROM blocks ORDER BY first")]
        (ends,) = connection.execute("SELECT ends FROM blocks WHERE first = ?", (firsts[number],)).fetchone()
        connection.execute("UPDATE blocks SET ends = ? WHERE first = ?", (bytes(4) + ends[4:], firsts[number]))
    with AuditLogger(case.folder, memory=case.memory) as log:
        log._handle.view.fill = lambda *_a, **_k: True  # one who may not repair it
        for newest in (False, True):
            found = [e.index for e in log.entries(newest_first=newest)]
            assert len(found) == len(set(found)) == 48
            assert found == sorted(found, reverse=newest)


def test_an_empty_list(case: Case) -> None:
    with editing(case) as connection:
        put_list(connection, "actor", 12345, [])
    assert found_in(case)


def test_the_last_blocks_deleted_is_merely_behind(case: Case) -> None:
    with editing(case) as connection:
        connection.execute("DELETE FROM blocks WHERE first >= 30")
    case.check(0)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48


def test_blocks_hidden_behind_one_that_is_far(case: Case) -> None:
    """A block beyond the end makes the index look whole: what is missing below it is named, and comes back."""
    with editing(case) as connection:
        (last,) = connection.execute("SELECT max(first) FROM blocks").fetchone()
        connection.execute("UPDATE blocks SET first = 5000 WHERE first = ?", (last,))
    assert list(found_in(case)) == [last]
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48
    case.check(0)


@pytest.mark.parametrize("table", ["blocks", "postings", "ids"])
@pytest.mark.parametrize("index", [-1, -(2**63)])
def test_a_row_below_the_first(case: Case, table: str, index: int) -> None:
    with editing(case) as connection:
        column = {"blocks": "first", "postings": "chunk", "ids": "idx"}[table]
        connection.execute(f"CREATE TEMP TABLE t AS SELECT * FROM {table} LIMIT 1")
        connection.execute(f"UPDATE t SET {column} = ?", (index,))
        connection.execute(f"INSERT INTO {table} SELECT * FROM t")
    assert index in found_in(case)
    case.check(0, content=True)
    with AuditLogger(case.folder, memory=case.memory) as log:
        for number in range(case.size):
            assert log.entry(log.entry(number).event_id).index == number


def test_rows_beyond_the_head_are_ignored(case: Case) -> None:
    """STORAGE rule 18; nobody asks the index that far."""
    with editing(case) as connection:
        connection.execute("INSERT INTO ids VALUES (5, 5000)")
        connection.execute("INSERT INTO postings VALUES (3, 1, 1, x'0100')")
        term, offsets = list_with(connection, "actor")
        put_list(connection, "actor", term, [*offsets, 5000])
    case.check(0)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48
        assert len(log.query({"actor": log.entry(ROW).actor})) == len(offsets)


def test_counts_that_were_changed_are_named_and_those_that_do_not_add_up_are_not_believed(case: Case) -> None:
    from tallystick.index.derive import decode_counts
    from tallystick.reports.compliance import ComplianceReporter

    with AuditLogger(case.folder, memory=case.memory) as log:
        right = ComplianceReporter(log).generate_report("2000-01-01", "2100-01-01", "full", recount=True)
        assert right["counted_from"]["derived"] == 0
    with editing(case) as connection:
        first = block_of_row(connection)
        (data,) = connection.execute("SELECT counts FROM blocks WHERE first = ?", (first,)).fetchone()
        counts = decode_counts(data)
        actor = next(iter(counts.actor))
        connection.execute("UPDATE blocks SET counts = ? WHERE first = ?", (
            data.replace(f'"{actor}":{counts.actor[actor]}'.encode(), f'"{actor}":{counts.actor[actor] + 1}'.encode()), first))
    assert {i: "counts" in t for i, t in found_in(case).items()} == {first: True}
    with AuditLogger(case.folder, memory=case.memory) as log:
        again = ComplianceReporter(log).generate_report("2000-01-01", "2100-01-01", "full")
        assert again["counted_from"]["lines"] > 0
        for key in ("total_events", "by_actor", "by_event_type", "by_outcome"):
            assert again[key] == right[key]


@pytest.mark.parametrize("statement", [
    "CREATE TRIGGER t AFTER INSERT ON blocks BEGIN DELETE FROM postings; END",
    "CREATE VIEW v AS SELECT * FROM postings",
    "CREATE INDEX i ON postings (term) WHERE term > 0",
    "CREATE TABLE more (a)",
    "ALTER TABLE blocks ADD COLUMN more TEXT",
    "ALTER TABLE blocks RENAME TO others",
    "DROP TABLE ids",
])  # fmt: skip
def test_another_schema(case: Case, statement: str) -> None:
    with editing(case) as connection:
        connection.execute(statement)
    case.check(6, ("index_mismatch", None))
    case.check(0, content=True)
    with AuditLogger(case.folder, memory=case.memory) as log:  # rebuilt
        assert len(log.query(limit=None)) == 48
    case.check(0)


EARLIER = (
    'CREATE TABLE entries (idx INTEGER PRIMARY KEY, event_id TEXT NOT NULL, timestamp INTEGER NOT NULL, recorded_at INTEGER NOT NULL, event_type TEXT NOT NULL, actor TEXT NOT NULL, actor_type TEXT NOT NULL, resource TEXT NOT NULL, action TEXT NOT NULL, outcome TEXT NOT NULL, session_id TEXT, ip_address TEXT, service TEXT, on_behalf_of TEXT, parent_id TEXT, correlation_id TEXT, trace_id TEXT, reason TEXT, corrects TEXT, subject TEXT, segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL) STRICT',
    'CREATE INDEX by_event_id ON entries (event_id)',
    'CREATE INDEX by_timestamp ON entries (timestamp)',
    'CREATE INDEX by_event_type ON entries (event_type)',
    'CREATE INDEX by_actor ON entries (actor)',
    'CREATE INDEX by_resource ON entries (resource)',
    "CREATE INDEX by_outcome ON entries (outcome) WHERE outcome <> 'success'",
    'CREATE INDEX by_session_id ON entries (session_id) WHERE session_id IS NOT NULL',
    'CREATE INDEX by_parent_id ON entries (parent_id) WHERE parent_id IS NOT NULL',
    'CREATE INDEX by_correlation_id ON entries (correlation_id) WHERE correlation_id IS NOT NULL',
    'CREATE INDEX by_subject ON entries (subject) WHERE subject IS NOT NULL',
)


def test_an_index_of_an_earlier_version_is_no_finding_and_comes_back(case: Case) -> None:
    (case.folder / "index.db").unlink()
    with editing(case) as connection:
        for statement in EARLIER:
            connection.execute(statement)
    assert any("earlier version" in text for text in case.check(0).not_proven)
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert len(log.query(limit=None)) == 48
    assert not any("earlier version" in text for text in case.check(0).not_proven)
    with editing(case) as connection:  # one column more is somebody else's
        connection.execute("DROP TABLE ids")
    case.check(6, ("index_mismatch", None))


def test_a_view_that_never_ends(case: Case) -> None:
    """``blocks`` is a recursive view: it is never asked."""
    (case.folder / "index.db").unlink()
    with editing(case) as connection:
        connection.execute("CREATE VIEW blocks AS WITH RECURSIVE n(first) AS (SELECT 1 UNION ALL SELECT first FROM n) "
                           "SELECT first FROM n")  # fmt: skip
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
        for index in (before + 2, 4):
            term, offsets = list_with(connection, "actor", index)
            put_list(connection, "actor", term, [at for at in offsets if at != index])
    assert list(found_in(case, new_only=True)) == [before + 2]
    assert set(found_in(case)) == {before + 2, 4}


@pytest.mark.parametrize("column", ["offset", "segment", "ends"])
@pytest.mark.parametrize("value", [-1, 2**40, 2**63 - 1, -(2**63)])
def test_a_place_where_no_line_can_be(case: Case, column: str, value: int) -> None:
    """Named; and whoever asks gets the line or an error of ours, in bounded memory."""
    with editing(case) as connection:
        new = value if column != "ends" else b"".join((abs(value) * n % 2**32).to_bytes(4, "little") for n in range(40))
        connection.execute(f"UPDATE blocks SET {column} = ? WHERE first = ?", (new, block_of_row(connection)))
    assert found_in(case)
    with AuditLogger(case.folder, memory=case.memory) as log:
        event_id = log.entry(ROW).event_id
        assert log.entry(event_id).index == log.entry(ROW).index == ROW
        with contextlib.suppress(AuditError):
            log.query(limit=None)
