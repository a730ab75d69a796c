"""Vectors that we did not make: transparency-dev/merkle, a tessera log, single notes."""

import base64
import hashlib
import json

import pytest

from tallystick.core import merkle
from tallystick.core.checkpoint import open_checkpoint
from tallystick.core.errors import AuditError, VerificationError
from tallystick.core.note import VerifierKey, open_note

from .vectors import need


def _b64(text):
    return base64.b64decode(text or "")


def test_every_probe_of_transparency_dev_merkle_gets_the_verdict_that_it_names():
    probes = sorted(need("transparency-dev-merkle-testdata").rglob("*.json"))
    assert len(probes) > 100
    for path in probes:
        probe = json.loads(path.read_text())
        proof = [_b64(h) for h in probe["proof"] or []]
        try:
            if "leafIdx" in probe:
                merkle.verify_inclusion(probe["leafIdx"], probe["treeSize"], _b64(probe["leafHash"]), proof, _b64(probe["root"]))
            else:
                merkle.verify_consistency(probe["size1"], probe["size2"], _b64(probe["root1"]), _b64(probe["root2"]), proof)
        except VerificationError:
            assert probe["wantErr"], path.name
        else:
            assert not probe["wantErr"], path.name


def test_a_real_tessera_log_opens_at_every_size_and_gives_the_signed_roots():
    folder = need("tessera-testdata-log")
    key = VerifierKey.parse("example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx")
    last = (folder / "tile/entries/000.p/15").read_bytes()
    entries, at = [], 0
    while at < len(last):
        length = int.from_bytes(last[at : at + 2], "big")
        entries.append(last[at + 2 : at + 2 + length])
        at += 2 + length
    leaves = [merkle.leaf_hash(e) for e in entries]
    for size in range(16):
        checkpoint = open_checkpoint((folder / f"checkpoint.{size}").read_bytes(), [key], origin=None)
        assert (checkpoint.size, checkpoint.root) == (size, merkle.root_of(leaves[:size]))
        if size:
            assert (folder / f"tile/0/000.p/{size}").read_bytes() == b"".join(leaves[:size])


def test_notes_of_other_implementations_open_and_bad_keys_are_refused():
    notes = json.loads(need("notes.json").read_text())
    opened = 0
    for one in notes:
        if one.get("valid"):
            assert open_note(one["note"].encode(), [VerifierKey.parse(one["vkey"])]).verified
            opened += 1
        for bad in one.get("bad_vkeys", ()):
            with pytest.raises(AuditError):
                VerifierKey.parse(bad)
    assert opened == 3
    good = notes[1]["vkey"]
    for cut in range(len(good)):
        with pytest.raises(AuditError):
            VerifierKey.parse(good[:cut])


def test_the_constants_of_rfc_6962():
    constants = next(one for one in json.loads(need("notes.json").read_text()) if "empty_root" in one)
    assert merkle.EMPTY_ROOT.hex() == constants["empty_root"]
    assert merkle.leaf_hash(b"").hex() == constants["leaf_empty"]
    assert merkle.leaf_hash(b"L123456").hex() == constants["leaf_L123456"]
    assert merkle.node_hash(b"N123", b"N456").hex() == constants["node_N123_N456"]
    assert hashlib.sha256(b"").digest() == merkle.EMPTY_ROOT
