"""One log with everything that a pack can carry, and three judges of its packs: our core, verify.py, evidence.html."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tallystick import AuditLogger
from tallystick.core.checkpoint import Checkpoint
from tallystick.core.cosignature import CosignerKey
from tallystick.core.errors import Malformed
from tallystick.core.evidence import Trust, check_pack, read_pack
from tallystick.core.note import COSIGNATURE_ED25519, VerifierKey, split
from tallystick.core.packfile import parse_pack
from tallystick.core.policy import Policy
from tallystick.evidence import page
from tallystick.outside import HandedOut
from tallystick.packing import pack
from tallystick.proving import current_checkpoint

WITNESS = CosignerKey("w.example/1", COSIGNATURE_ED25519, b"w" * 32)
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp.exe\u2028\u2029\u0000\x1b[31m"
CASE = "INV-2026-1182"
PEOPLE = ("README.txt", "evidence.html", "verify.py")


class Made(NamedTuple):
    """A log, its pack, and what somebody kept elsewhere."""

    folder: Path
    data: bytes
    members: dict[str, bytes]
    vkey: str
    genesis: bytes  # the note of size 1: what a card shows
    kept: bytes  # a checkpoint handed out before the newest
    policy: bytes
    chosen: list[int]


def make(folder: Path) -> Made:
    with AuditLogger(folder) as log:
        log.log("user_action", "ana", "user", "crm/7", "read customer", correlation_id=CASE, details={"amount": 42, "rate": 1.5, "big": 2**63})
        log.rotate("first")
        log.log("ai_request", HOSTILE[:200], "agent", "llama", "ask", correlation_id=CASE, details={"text": HOSTILE, "10": 1, "2": 2},
                payloads={"prompt": HOSTILE, "empty": b"", "binary": bytes(range(256))})  # fmt: skip
        for i in range(9):
            log.log("user_action", "bob", "user", f"r/{i}", "do")
        log.rotate("second")
        handed = HandedOut(folder)
        kept = current_checkpoint(log)
        handed.put(Checkpoint.parse(split(kept)[0]).size, kept)
        log.log("user_action", "eva", "user", "erp:4711", "post", outcome="partial", correlation_id=CASE)
        policy = f"log {log.verifier_key()}\nwitness w {WITNESS.verifier.format()}\nquorum w\n".encode()
        (folder / "policy").write_bytes(policy)
        newest = current_checkpoint(log)
        checkpoint = Checkpoint.parse(split(newest)[0])
        handed.put(checkpoint.size, newest)
        handed.add(checkpoint.size, (WITNESS.cosign(checkpoint, 1_800_000_000),))
        log.log("user_action", "zoe", "user", "later", "do")  # not below the cosigned checkpoint
        chosen = [entry.index for entry in log.entries({"correlation_id": CASE})]
        data = pack(log, chosen, opened=[(chosen[1], name) for name in ("prompt", "empty", "binary")])
        genesis = log._handle.genesis.note
        vkey = log.verifier_key()
    return Made(folder, data, parse_pack(data), vkey, genesis, kept, policy, chosen)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    os.environ["TALLY_STATE"] = str(tmp_path_factory.mktemp("state"))
    return make(tmp_path_factory.mktemp("evidence") / "audit_log")


def ours(members, vkey=None, checkpoint=None, policy=None):
    """The exit code of our own verdict over members."""
    try:
        found = read_pack(members)
    except Malformed:
        return 4
    trust = Trust(None if vkey is None else VerifierKey.parse(vkey), checkpoint, None if policy is None else Policy.parse(policy))
    return check_pack(found, trust).exit_code


def theirs(members, vkey=None, checkpoint=None, policy=None):
    """The exit code of verify.py over the same, in this process."""
    from tallystick.evidence import verify

    check = verify.Check(dict(members))
    check.run(vkey, checkpoint, policy)
    return check.code


def run_verify(where, *args, python=sys.executable, cwd=None):
    """verify.py as people run it: a process of its own, isolated from this package."""
    done = subprocess.run([python, "-I", *map(str, where), *map(str, args)], capture_output=True, text=True, cwd=cwd, check=False,
                          env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def repacked(members):
    """The pack of altered members, with a page that carries them: what an attacker would hand out."""
    inner = {name: data for name, data in members.items() if name not in PEOPLE}
    return {**members, "evidence.html": page(inner)}


