"""A proof under a policy: leaf hash, origin and log key, the witnesses' quorum, inclusion."""

import dataclasses
import os

import pytest

from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.cosignature import CosignerKey, has_ml_dsa
from tallystick.core.errors import Malformed, UnknownSigner, VerificationError
from tallystick.core.note import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, SignerKey
from tallystick.core.policy import Policy
from tallystick.core.proof import InclusionProof, open_witnessed

from . import rfc6962

ORIGIN, SIZE = "srv2/invoices/0f3a9c21b7de", 13
LOG, OTHER = SignerKey.generate(ORIGIN), SignerKey.generate(ORIGIN)
CHECKPOINT = Checkpoint(ORIGIN, SIZE, rfc6962.mth(0, SIZE))
WITNESSES = [CosignerKey(f"w{i}.example", COSIGNATURE_ED25519, bytes([i]) * 32) for i in range(3)]


def note_of(*witnesses, checkpoint=CHECKPOINT, log=LOG, time_s=1_800_000_000):
    lines = "".join(w.cosign(checkpoint, time_s).format() + "\n" for w in witnesses)
    return sign_checkpoint(checkpoint, log) + lines.encode()


def policy_of(threshold, *witnesses, log=LOG):
    names = " ".join(f"n{i}" for i in range(len(witnesses)))
    lines = [f"log {log.verifier.format()}", *(f"witness n{i} {w.verifier.format()}" for i, w in enumerate(witnesses))]
    return Policy.parse("\n".join([*lines, f"group all-of-them {threshold} {names}", "quorum all-of-them", ""]).encode())


def proof_of(note, index=5):
    return InclusionProof(index, tuple(rfc6962.path(index, 0, SIZE)), note)


@pytest.mark.parametrize("threshold", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_quorum_decides(threshold, count):
    proof, policy = proof_of(note_of(*WITNESSES[:count])), policy_of(threshold, *WITNESSES)
    if count < threshold:
        with pytest.raises(VerificationError, match="quorum"):
            proof.verify_witnessed(rfc6962.line(5), policy)
        return
    found = proof.verify_witnessed(rfc6962.line(5), policy, origin=ORIGIN)
    assert found.checkpoint == CHECKPOINT
    assert [(c.key, c.time_s) for c in found.cosignatures] == [(w.verifier, 1_800_000_000) for w in WITNESSES[:count]]


def test_each_step_refuses_by_itself():
    policy, good = policy_of(2, *WITNESSES), proof_of(note_of(*WITNESSES))
    line = rfc6962.line(5)
    good.verify_witnessed(line, policy)
    with pytest.raises(UnknownSigner):
        proof_of(note_of(*WITNESSES, log=OTHER)).verify_witnessed(line, policy)
    with pytest.raises(VerificationError):
        good.verify_witnessed(line, policy, origin="srv2/other")
    with pytest.raises(VerificationError):
        good.verify_witnessed(rfc6962.line(4), policy)
    with pytest.raises(VerificationError):
        dataclasses.replace(good, hashes=good.hashes[:-1]).verify_witnessed(line, policy)
    one = note_of(*WITNESSES)
    lines = one.split(b"\n")
    stolen = [*lines[:-2], lines[-2][:-8] + b"AAAAAAA=", b""]  # the last witness's line does not hold: refused, though two others do
    with pytest.raises((VerificationError, Malformed)):
        proof_of(b"\n".join(stolen)).verify_witnessed(line, policy)


def test_a_witness_of_another_policy_counts_nothing():
    with pytest.raises(VerificationError, match="none of its witnesses"):
        open_witnessed(note_of(*WITNESSES[:2]), policy_of(1, WITNESSES[2]))


@pytest.mark.skipif(not os.environ.get("CI") and not has_ml_dsa(), reason="this cryptography has no ML-DSA-44")
def test_both_algorithms_count():
    witness = CosignerKey("pq.example", COSIGNATURE_ML_DSA_44, b"q" * 32)
    assert open_witnessed(note_of(witness, WITNESSES[0]), policy_of("all", witness, WITNESSES[0])).checkpoint == CHECKPOINT


def test_a_fingerprint_begins_with_the_key_id():
    for key in (LOG.verifier, WITNESSES[0].verifier):
        assert key.fingerprint.replace(" ", "").startswith(f"{key.key_id:08x}")
        assert len(key.fingerprint) == 39
