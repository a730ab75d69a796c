"""A backup that fails or dies at its k-th change: the next run completes it, and no copy is ever worse than it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tallystick.backup import back_up, copy_evidence
from tallystick.core.errors import AuditError
from tallystick.memory import Memory
from tallystick.opening import is_log
from tallystick.verification import verify_log

from .disks import FaultDisk, HalfWrite, attempt, tries
from .judge import event
from .lab import Lab


def code(folder: Path, log: Path) -> int:
    verdict = verify_log(folder, memory=Memory(None), vkey=(log / "log.vkey").read_text().split("\n")[0])
    if verdict.exit_code:
        print(verdict.issues)
    return verdict.exit_code


@pytest.mark.parametrize("make", [FaultDisk, HalfWrite])
@pytest.mark.parametrize("older", [False, True])
def test_backup(lab: Lab, older: bool, make: type[FaultDisk]) -> None:
    log = lab.open(segment_bytes=1500)
    for n in range(4):
        log.log(**event(n, payloads={"a": "x"}))
    dest, kept = lab.base / "copy", lab.base / "kept"
    if older:
        back_up(lab.folder, kept, memory=lab.memory, with_keys=True)
        for n in range(4):
            log.log(**event(n, payloads={"a": "y"}))
    log.close()
    for disk in tries(make):
        for path in (dest, dest.with_name("copy.keys"), dest.with_name(".copy.partial")):
            shutil.rmtree(path, ignore_errors=True)
        if older:
            shutil.copytree(kept, dest)
            shutil.copytree(lab.base / "kept.keys", lab.base / "copy.keys")
        attempt(lambda disk=disk: back_up(lab.folder, dest, memory=lab.memory, with_keys=True, disk=disk), AuditError)
        if is_log(dest):
            assert code(dest, lab.folder) in (0, 3), disk.seen
        else:
            assert not older
        back_up(lab.folder, dest, memory=lab.memory, with_keys=True)
        assert code(dest, lab.folder) == 0
        assert (dest / "checkpoint").read_bytes() == (lab.folder / "checkpoint").read_bytes()
        assert {p.name for p in lab.base.glob(".copy*")} == set()


def test_evidence(lab: Lab) -> None:
    usb = lab.base / "usb"
    for disk in tries():
        shutil.rmtree(usb, ignore_errors=True)
        usb.mkdir()
        attempt(lambda disk=disk: copy_evidence(lab.folder, usb, disk=disk), AuditError)
        copy_evidence(lab.folder, usb)
        assert not list(usb.glob(".*"))
