"""Archiving: by age, on record, nothing lost, everything still provable."""

import json

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import AuditError
from tallystick.core.note import SignerKey
from tallystick.core.proof import InclusionProof
from tallystick.proving import prove
from tallystick.retention.archive import read_archive
from tallystick.verification import verify_archive

OLD = "2020-01-01T00:00:00Z"


def event(n, when=OLD):
    return {"event_type": "data_access", "actor": "ana", "actor_type": "user", "resource": "crm", "action": "read",
            "details": {"n": n}, "timestamp": when}  # fmt: skip


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        logger.log_many([event(n) for n in range(50)])
        yield logger


def test_old_entries_leave_and_are_read_back_from_the_archive(log, tmp_path):
    entry = log.entry(7)
    proof, line = prove(log, 7)
    log.verify_integrity()
    moved = log.archive_old_entries(tmp_path / "archive")
    assert moved["archived"] == 50
    assert moved["held_back"] == 0
    assert [f for f in moved["files"] if f.endswith("_0-51.jsonl.zst")]
    assert log.query(limit=None) == []
    rows = log.query(limit=None, archives=tmp_path / "archive")
    assert [r["details"]["n"] for r in rows] == list(range(50))
    status = log.verify_integrity()
    assert status["verified"]
    assert status["ranges"][0]["words"][:2] == ["hashes only", "archived"]
    assert InclusionProof.parse(proof).verify(line, [log._handle.genesis.vkey]).size == 51
    manifest, lines = read_archive(tmp_path / "archive" / moved["files"][0])
    assert lines[7] == line
    assert manifest.end == 51
    assert entry.details == {"n": 6}
    assert verify_archive(tmp_path / "archive" / moved["files"][0], memory=log.memory).exit_code == 0


def test_a_young_event_holds_its_segment_back(log, tmp_path):
    log.log(**event(99, None))
    moved = log.archive_old_entries(tmp_path / "archive")
    assert (moved["archived"], moved["held_back"]) == (0, 50)
    assert len(log.query(limit=None)) == 51


def test_the_earlier_of_claim_and_testimony_decides(log, tmp_path):
    log.retention_days = 0
    log.log(**event(1, "2999-01-01T00:00:00Z"))
    assert log.archive_old_entries(tmp_path / "archive")["held_back"] == 0


def test_a_second_call_and_a_reopened_log_go_on(log, tmp_path):
    log.archive_old_entries(tmp_path / "archive")
    log.log_many([event(n) for n in range(5)])
    log.retention_days = 0
    again = log.archive_old_entries(tmp_path / "archive")
    assert again["archived"] == 5
    log.close()
    with AuditLogger(log.path) as other:
        other.log(**event(3, None))
        assert len(other.query(limit=None, archives=tmp_path / "archive")) == 56
        assert other.verify_integrity()["verified"]


def test_what_died_after_the_record_is_finished_by_the_next_call(log, tmp_path, monkeypatch):
    from tallystick.retention import archive as module

    def die(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_drop", die)
    with pytest.raises(KeyboardInterrupt):
        log.archive_old_entries(tmp_path / "archive")
    monkeypatch.undo()
    assert log.verify_integrity()["verified"]
    assert log.archive_old_entries(tmp_path / "archive")["archived"] == 50
    assert log.verify_integrity()["verified"]


def test_altered_archives_are_refused(log, tmp_path):
    moved = log.archive_old_entries(tmp_path / "archive")
    path = tmp_path / "archive" / moved["files"][0]
    good = path.read_bytes()
    for at in (0, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(AuditError):
            read_archive(path)
        with pytest.raises(AuditError):
            log.query(limit=None, archives=tmp_path / "archive")
    path.write_bytes(good)
    manifest = path.with_name(path.name.removesuffix(".jsonl.zst") + ".json")
    text = json.loads(manifest.read_text())
    for key, value in (("end", 52), ("sha256", "0" * 64), ("root", "0" * 64), ("lines_bytes", 2**50), ("name", "../x")):
        manifest.write_text(json.dumps({**text, key: value}))
        with pytest.raises(AuditError):
            read_archive(path)


def test_a_first_segment_removed_without_a_record_is_missing(log):
    log._handle.writer.exclusively(lambda _append: log._handle.writer.roll())
    log.log(**event(1))
    (log.path / "segments" / f"{0:020d}.jsonl").unlink()
    status = log.verify_integrity()
    assert status["exit_code"] == 6
    assert status["issues"][0]["issue"] == "missing"
    assert (status["issues"][0]["index"], status["issues"][0]["end"]) == (0, 51)


def test_an_archive_is_not_proven_under_another_key(log, tmp_path):
    moved = log.archive_old_entries(tmp_path / "archive")
    path = tmp_path / "archive" / moved["files"][0]
    assert verify_archive(path, memory=log.memory, vkey=log.verifier_key()).exit_code == 0
    stranger = SignerKey.generate(log.origin).verifier.format()
    assert verify_archive(path, memory=log.memory, vkey=stranger).exit_code == 6
