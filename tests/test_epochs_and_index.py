"""An index that hides where an epoch ended makes nobody refuse a good log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.errors import VerificationError
from tallystick.core.note import SignerKey, split
from tallystick.memory import Memory


def _log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AuditLogger:
    log = AuditLogger(tmp_path / "audit_log", memory=Memory(tmp_path / "state"))
    for n in range(3):
        log.log("data_access", "ana", "user", f"crm/{n}", "read")
        log.rotate()
    log.query()
    capsys.readouterr()
    return log


@pytest.mark.parametrize("hide", ["DELETE FROM postings", "DELETE FROM postings WHERE term % 2 = 0"])
def test_lists_are_gone_and_answers_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], hide: str) -> None:
    log = _log(tmp_path, capsys)
    log.close()
    with closing(sqlite3.connect(tmp_path / "audit_log" / "index.db", isolation_level=None)) as connection:
        connection.execute(hide)
    with AuditLogger(tmp_path / "audit_log", memory=Memory(tmp_path / "state")) as again:
        assert again.entry_count() == 7
        again.log("data_access", "ana", "user", "crm/3", "read")
        assert again.entry_count() == 8


def test_a_head_under_a_foreign_key_stays_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = _log(tmp_path, capsys)
    head = tmp_path / "audit_log" / "checkpoint"
    checkpoint = Checkpoint.parse(split(head.read_bytes())[0])
    foreign = SignerKey.generate(log.origin)
    log.close()
    head.write_bytes(sign_checkpoint(checkpoint, foreign))
    with AuditLogger(tmp_path / "audit_log", memory=Memory(tmp_path / "state")) as again, pytest.raises(VerificationError):
        again._handle.view.head(0.0)
