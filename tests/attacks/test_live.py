"""A log that is verified while it is written to: whatever was read after the head may know more than it, and is no finding."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tallystick import AuditLogger
from tallystick.log import check
from tallystick.log.check import Checker
from tallystick.log.view import HEAD_WAIT_S, LogView
from tallystick.outside import HandedOut

from .conftest import Case, fill


@pytest.mark.parametrize("step", ["lines", "references", "handed_out", "mark"])
def test_it_went_on_after_the_head_was_read(case: Case, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries, and an epoch that ends, just before one step of the verification."""
    honest, went_on = getattr(Checker, step), []

    def late(self: Checker, *args: Any, **options: Any) -> Any:
        if not went_on:
            with AuditLogger(case.folder, memory=case.memory) as log:
                fill(log, 2, 1000)
                log.rotate()
                fill(log, 2, 2000)
            went_on.append(case.size)
        return honest(self, *args, **options)

    before = case.size
    monkeypatch.setattr(Checker, step, late)
    verdict = check_once(case)
    assert (verdict.exit_code, verdict.tree_size) == (0, before), verdict.issues
    assert went_on == [before + 5]
    assert case.check(0).tree_size == before + 5


def test_what_was_cut_off_did_not_go_on(case: Case, tmp_path: Path) -> None:
    """The mark knows more, and the head that is there now does not: the same file, read twice."""
    case.check(0)
    older = case.snapshot(tmp_path / "older")
    with AuditLogger(case.folder, memory=case.memory) as log:
        fill(log, 2, 1000)
        log.rotate()
    mark = (case.keys / "mark").read_bytes()
    size = case.size
    case.replace_with(older)
    (case.keys / "mark").write_bytes(mark)
    case.check(6, ("rolled_back", size - 3))
    assert not HandedOut(case.folder).sizes()


def check_once(case: Case) -> Any:
    from tallystick.verification import verify_log

    return verify_log(case.folder, memory=case.memory)


def test_no_false_alarm_while_another_process_writes_and_ends_epochs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogView.head, "__defaults__", (HEAD_WAIT_S,))
    monkeypatch.setattr(check, "IN_FLIGHT_S", 1.0)
    program = """
import sys
from pathlib import Path
from tallystick import AuditLogger
from tallystick.memory import Memory
with AuditLogger(sys.argv[1], memory=Memory(Path(sys.argv[2])), create=False) as log:
    for n in range(200):
        log.log("data_access", "p", "user", "r", "read")
        if n % 9 == 5:
            log.rotate("in between")
"""
    found: Counter[int] = Counter()
    with subprocess.Popen([sys.executable, "-c", program, str(case.folder), str(case.memory.folder)]) as writer:
        while writer.poll() is None:
            verdict = check_once(case)
            found[verdict.exit_code] += 1
            assert verdict.exit_code == 0, verdict.issues
    assert writer.returncode == 0
    assert found[0] > 5
