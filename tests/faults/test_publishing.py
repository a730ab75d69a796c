"""Every change of the disk while a checkpoint is handed out fails once, or the process dies there: the log is what it was, and the next
hand-over ends well."""

from __future__ import annotations

import shutil

import pytest

from tallystick import AuditLogger
from tallystick.core.cosignature import cosignatures
from tallystick.outside import HandedOut, Parties
from tallystick.publishing import Known, change_policy, publish, source_of, write_policy
from tallystick.verification import verify_log
from tallystick.witness.folder import add_log, create

from ..witness.conftest import serving
from .disks import COLUMNS, Died, FaultDisk


@pytest.mark.parametrize("way", COLUMNS)
def test_handing_out_fails_at_each_change(tmp_path, way):
    with AuditLogger(tmp_path / "audit_log") as log:
        vkey = log._handle.genesis.vkey
        create(tmp_path / "w", "witness.example")
        add_log(tmp_path / "w", vkey.format())
        with serving(tmp_path / "w") as witness:
            write_policy(log.path, change_policy(None, vkey, [Known("w", witness.url, witness.witness.vkeys)], "all"))
            at, fired = 0, True
            while fired:
                at += 1
                shutil.rmtree(log.path / "outside", ignore_errors=True)
                log.log("data_access", "a", "user", "r", f"{at}")
                disk = FaultDisk(at, way)
                try:
                    publish(source_of(log)._replace(disk=disk))
                except (OSError, Died):
                    assert disk.fired
                fired = disk.fired
                (outcome,) = publish(source_of(log))
                assert (outcome.word, outcome.error) == ("confirmed", "")
                assert len(cosignatures(HandedOut(log.path).signed(outcome.size), witness.witness.vkeys)) == 1
                assert Parties(log.path).get("w").done_size == outcome.size
            assert at > 8
        assert verify_log(log.path, memory=log.memory).exit_code == 0
