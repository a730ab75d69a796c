"""After a break-in: which entries rest on what, and what is done about it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.verify import Confirmation
from tallystick.incident import INCIDENT, recorded_before, report_incident, what_stands
from tallystick.memory import Memory
from tallystick.verification import verify_log

from ..cli.conftest import tally  # noqa: F401
from ..faults.judge import event


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setenv("TALLY_STATE", str(tmp_path / "state"))
    return Memory(tmp_path / "state")


@pytest.fixture
def log(tmp_path: Path, memory: Memory):
    """Five entries under a closed epoch, two more, then (``moment``) two more."""
    with AuditLogger(tmp_path / "audit_log", memory=memory) as opened:
        for n in range(3):
            opened.log(**event(n))
        opened.rotate("end of the day")
        for n in range(2):
            opened.log(**event(n))
        opened.moment = time.time_ns() // 1000  # type: ignore[attr-defined]
        while time.time_ns() // 1000 == opened.moment:
            pass
        for n in range(2):
            opened.log(**event(n))
        yield opened


def test_the_ranges_and_what_is_done(log: AuditLogger, memory: Memory) -> None:
    found = report_incident(log, log.moment, reason="unknown login")
    assert [(r.start, r.end, r.on) for r in found.ranges] == [(0, 5, "sealed"), (5, 7, "this machine"), (7, 9, "nobody")]
    entry = log.entry(found.event_id)
    assert (entry.event_type, entry.details["recorded_before"]) == (INCIDENT, 7)
    assert entry.index == 9
    assert found.closed == 11
    assert len(log._handle.view.history(11).epochs) == 3
    assert found.note.split("\n")[1] == "11"
    assert verify_log(log.path, memory=memory).exit_code == 0


def test_what_others_confirmed_before_it_counts_and_what_they_confirmed_after_it_does_not(log: AuditLogger, memory: Memory) -> None:
    verdict = verify_log(log.path, memory=memory)
    verdict.confirmations = [
        Confirmation("kanzlei", "witness", 6, log.moment - 1), Confirmation("late", "witness", 9, log.moment + 1),
        Confirmation("nobody", "witness", 7, log.moment - 1, counts=False), Confirmation("undated", "folder", 7, 0),
    ]  # fmt: skip
    found = what_stands(log, verdict, log.moment, 7)
    assert [(r.start, r.end, r.on) for r in found] == [(0, 5, "confirmed"), (5, 6, "confirmed"), (6, 7, "this machine"), (7, 9, "nobody")]
    assert "kanzlei" in found[0].words
    assert "sealed" in found[0].words
    assert "sealed" not in found[1].words


def test_an_epoch_that_was_closed_after_it_seals_nothing(log: AuditLogger, memory: Memory) -> None:
    log.rotate("too late")
    found = report_incident(log, log.moment, reason="unknown login")
    assert found.ranges[0].end == 5
    assert found.ranges[-1].on == "nobody"


def test_a_clock_that_was_turned_back_makes_nothing_older(log: AuditLogger) -> None:
    at = log.entry(3).recorded_at_us
    assert recorded_before(log, at) == 3
    assert recorded_before(log, 0) == 0
    assert recorded_before(log, 2**52) == 9


def test_an_altered_log_is_not_written_to(log: AuditLogger, memory: Memory) -> None:
    segment = log.path / "segments" / f"{0:020d}.jsonl"
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b"crm/1", b"crm/2", 1))
    found = report_incident(log, log.moment, reason="x")
    assert (found.verdict.exit_code, found.event_id, found.closed) == (6, None, None)
    assert "nothing was written" in found.problem
    segment.write_bytes(data)
    assert log.entry_count() == 9


def test_the_command(tally, log: AuditLogger) -> None:  # noqa: F811
    ran = tally("incident", log.path, "--since", "2020-01-01", "--reason", "unknown login")
    assert ran.code == 0, ran.err
    assert "nobody independent" in ran.out
    assert "tally resume" in ran.out
    assert tally("incident", log.path, "--since", "2020-01-01", "--reason", "x", "--json").json["closed"]
    assert tally("incident", log.path, "--since", "2100-01-01", "--reason", "x").code == 2
    assert tally("incident", log.path, "--since", "2020-01-01").code == 2
    assert tally("incident", log.path, "--since", "2020-01-01", "--reason", "two\nlines").code == 2
