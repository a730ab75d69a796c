"""The Python interface as the issue fixes it: record, query, get, ids, groups, paths."""

import asyncio
import os
import re
import stat
import subprocess
import sys
import threading
from datetime import UTC, date, datetime

import pytest

from tallystick import AuditEntry, AuditEventType, AuditLogger
from tallystick.core.errors import ConfigError, Conflict, EntryRefused, LogMissing, StoreError

TWELVE = {"event_id", "timestamp", "event_type", "actor", "actor_type", "resource", "action", "outcome", "details", "session_id",
          "ip_address", "checksum"}  # fmt: skip


def event(**changes):
    return {"event_type": "data_access", "actor": "ana", "actor_type": "user", "resource": "crm", "action": "read", **changes}


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        yield logger


def test_the_chapters_call_gives_an_id_and_its_twelve_keys(log):
    event_id = log.log(AuditEventType.DATA_ACCESS, "ana", "user", "crm", "read customer", "success", {"id": 42}, "s1", "10.0.0.7")
    [row] = log.query({"actor": "ana"})
    assert set(row) >= TWELVE
    assert row["event_id"] == event_id
    assert row["details"] == {"id": 42}
    assert log.get(event_id) == row
    assert isinstance(log.entry(1), AuditEntry)
    assert log.entry(1).index == 1


def test_lifecycle_entries_only_when_asked_for(log):
    log.log(**event())
    assert len(log.query()) == 1
    assert log.query({"event_type": "log.created"})[0]["actor"] == "tallystick"
    assert len(log.query({"event_type": {"glob": "log.*"}})) == 1
    assert log.verify_integrity()["total_entries"] == 1


def test_filters(log):
    log.log_many([event(actor=a, details={"amount": n, "deep": {"x": n % 3}}, session_id=s) for n, (a, s) in
                  enumerate([("ana", None), ("bo", "s1"), ("ana", "s2"), ("cy", "s1")])])  # fmt: skip
    def found(q):
        return [r["details"]["amount"] for r in log.query(q)]

    assert found({"actor": "ana"}) == [0, 2]
    assert found({"actor": ["bo", "cy"]}) == [1, 3]
    assert found({"session_id": None}) == [0]
    assert found({"details.amount": {">": 0, "<=": 2}}) == [1, 2]
    assert found({"details.deep.x": 0}) == [0, 3]
    assert found({"session_id": {"glob": "s*"}, "actor": {"!=": "bo"}}) == [2, 3]
    assert found({"event_type": AuditEventType.DATA_ACCESS, "index": {">=": 3}}) == [2, 3]
    assert [r["details"]["amount"] for r in log.query(newest_first=True, limit=2)] == [3, 2]
    assert [r["index"] for r in log.query(after=2)] == [3, 4]
    with pytest.raises(ValueError, match="known are event_id"):
        log.query({"colour": "red"})
    with pytest.raises(ValueError, match="unknown operator"):
        log.query({"actor": {"~~": "red"}})


def test_times(log):
    for t in ("2026-11-01T00:00:00Z", "2026-11-30T23:59:59.999999Z", "2026-12-01T00:00:00Z"):
        log.log(**event(timestamp=t))
    zone = str(log.zone)
    if zone == "UTC":
        assert len(log.query(start_time="2026-11-01", end_time="2026-11-30")) == 2
    assert len(log.query(start_time=datetime(2026, 11, 30, tzinfo=UTC))) == 2
    assert len(log.query(start_time=date(2026, 11, 20), end_time=date(2027, 1, 1))) >= 2
    with pytest.raises(ValueError, match="is not a time"):
        log.query(start_time="tomorrowish")


def test_a_retry_with_the_same_id_is_answered_and_other_content_refused(log):
    first = log.log(**event(event_id="inv-1", details={"a": 1.0}, payloads={"p": "text"}))
    assert log.log(**event(event_id="inv-1", details={"a": 1}, payloads={"p": "text"})) == first == "inv-1"
    for other in ({"details": {"a": 2}}, {"actor": "bo"}, {"payloads": {"p": "texT"}}, {"payloads": {}}):
        with pytest.raises(Conflict, match="inv-1"):
            log.log(**event(**{"event_id": "inv-1", "details": {"a": 1}, "payloads": {"p": "text"}, **other}))
    assert len(log.query()) == 1


def test_log_many_is_all_or_nothing_and_names_the_position(log):
    with pytest.raises(EntryRefused, match="event 2") as caught:
        log.log_many([event(), event(), event(outcome="fine"), event()])
    assert caught.value.position == 2
    assert log.query() == []
    ids = log.log_many([event(details={"n": n}) for n in range(2000)])
    assert len(set(ids)) == 2000
    assert [r["details"]["n"] for r in log.query(limit=None)] == list(range(2000))
    assert log.log_many([]) == []


def test_threads_and_tasks(log):
    ids = []

    def work(k):
        ids.extend(log.log(**event(actor=f"t{k}", details={"n": n})) for n in range(20))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    [t.start() for t in threads]

    async def main():
        return await asyncio.gather(*(log.alog(**event(actor="task")) for _ in range(100)))

    ids += asyncio.run(main())
    [t.join() for t in threads]
    assert len(set(ids)) == 260
    assert {r["event_id"] for r in log.query(limit=None)} == set(ids)
    for k in range(8):
        assert [r["details"]["n"] for r in log.query({"actor": f"t{k}"})] == list(range(20))
    assert log.verify_integrity()["verified"]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "old.jsonl"
    file.write_text("{}\n")
    with pytest.raises(StoreError, match="is a file"):
        AuditLogger(file)
    with pytest.raises(LogMissing, match="tally init"):
        AuditLogger(create=False)
    with AuditLogger("new.jsonl") as log:
        assert log.path == tmp_path / "new.jsonl"
        assert log.path.is_dir()
    monkeypatch.setenv("TALLY_LOG", str(tmp_path / "by_env"))
    with AuditLogger() as log:
        assert log.path.name == "by_env"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(StoreError, match="other things"):
        AuditLogger(tmp_path / "full")


def test_a_log_that_was_here_is_never_made_anew(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**event())
        log.verify_integrity()
    os.rename(tmp_path / "audit_log", tmp_path / "elsewhere")
    with pytest.raises(LogMissing, match="2 entries, last seen here"):
        AuditLogger(tmp_path / "audit_log")
    os.environ["TALLY_STATE"] = str(tmp_path / "another state")
    with pytest.raises(LogMissing, match="keys of a log of 2 entries"):
        AuditLogger(tmp_path / "audit_log")


def test_two_loggers_of_one_path_share_one_writer(tmp_path):
    a, b = AuditLogger(tmp_path / "audit_log"), AuditLogger(tmp_path / "audit_log")
    assert a._handle is b._handle
    a.close()
    b.log(**event())
    b.close()
    with pytest.raises(StoreError, match="closed"):
        b.log(**event())


def test_modes_and_the_message_of_whoever_makes_a_log(tmp_path, capsys):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**event(payloads={"p": "x"}))
        told = capsys.readouterr().err
    for word in (str(tmp_path / "audit_log"), log.origin, log._handle.genesis.vkey.format(), "audit_log.keys", "365"):
        assert word in told
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o700
    keys = tmp_path / "audit_log.keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in keys.iterdir()} == {0o600}
    assert not any(b"PRIVATE+KEY" in p.read_bytes() for p in log.path.rglob("*") if p.is_file())
    with AuditLogger(tmp_path / "audit_log"):
        assert capsys.readouterr().err == ""


def test_it_closes_at_exit_in_another_process_and_import_is_quick(tmp_path):
    code = ("from tallystick import AuditLogger; log = AuditLogger('audit_log', service='bot');"
            "print(log.log('data_access','ana','user','crm','read'))")  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    with AuditLogger(tmp_path / "audit_log") as log:
        assert log.get(out)["service"] == "bot"
        assert log._handle.store.lock.last_holder().clean
    heavy = "import sys, tallystick; print([m for m in ('cryptography', 'sqlite3', 'asyncio', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_one_id_twice_in_one_group(log):
    with pytest.raises(Conflict):
        log.log_many([event(event_id="mine", action="one"), event(event_id="mine", action="other")])
    assert log.query() == []
    assert log.log_many([event(event_id="mine"), event(event_id="mine")]) == ["mine", "mine"]
    assert len(log.query()) == 1


def test_a_time_zone_that_this_machine_does_not_know_says_nothing_about_the_log(log):
    log.log(**event())
    log.verify_integrity()
    log.close()
    toml = log.path / "log.toml"
    toml.write_text(re.sub(r'timezone = "[^"]*"', 'timezone = "Mars/Olympus"', toml.read_text()))
    with AuditLogger(log.path) as other:
        assert other.log(**event())
        status = other.verify_integrity()
        assert (status["exit_code"], status["issues"]) == (0, [])
        with pytest.raises(ConfigError, match="Mars/Olympus"):
            other.query(start_time="2026-11-01")


def test_verify_says_how_far_it_is(log):
    log.log_many([event()] * 3000)
    told = []
    log.verify_integrity(progress=lambda what, done: told.append((what, done)))
    assert {what for what, _ in told} == {"lines", "index and payloads"}
    assert max(done for _, done in told) == 3001
