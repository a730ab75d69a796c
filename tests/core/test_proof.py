"""Proofs that travel alone: opened with a key and a line, and nothing else."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.errors import Malformed, UnknownSigner, VerificationError
from tallystick.core.merkle import SIZE_MAX
from tallystick.core.note import SignerKey, add_signature, sign
from tallystick.core.proof import HASHES_MAX, PROOF_BYTES_MAX, InclusionProof

from . import rfc6962

ORIGIN = "srv2/invoices/0f3a9c21b7de"
LOG, OTHER = SignerKey.generate(ORIGIN), SignerKey.generate(ORIGIN)
SIZE = 13
NOTE = sign_checkpoint(Checkpoint(ORIGIN, SIZE, rfc6962.mth(0, SIZE)), LOG)


def proof_of(index, extra=None):
    return InclusionProof(index, tuple(rfc6962.path(index, 0, SIZE)), NOTE, extra)


PROOF = proof_of(5, b"salt")
BYTES = PROOF.format()


def test_a_proof_file_reads_as_the_specification_has_it():
    lines = BYTES.decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra c2FsdA==", "index 5"]
    assert lines[7:9] == ["", ORIGIN]
    assert BYTES.endswith(b"\n\n" + NOTE)
    assert InclusionProof.parse(BYTES) == PROOF


@pytest.mark.parametrize("index", range(SIZE))
def test_every_entry_can_be_proven_from_its_file(index):
    for extra in (None, b"x"):
        proof = InclusionProof.parse(proof_of(index, extra).format())
        for origin in (None, ORIGIN):
            checkpoint = proof.verify(rfc6962.line(index), [LOG.verifier], origin=origin)
            assert (checkpoint.origin, checkpoint.size) == (ORIGIN, SIZE)


def test_a_proof_is_of_its_own_line_index_log_and_key():
    line, keys = rfc6962.line(5), [LOG.verifier]
    for bad in (rfc6962.line(4), line + b"\n", b"", line[:-1]):
        with pytest.raises(VerificationError):
            PROOF.verify(bad, keys)
    for index in (*range(5), *range(6, 20), SIZE_MAX):
        with pytest.raises(VerificationError):
            dataclasses.replace(PROOF, index=index).verify(line, keys)
    for hashes in (PROOF.hashes[:-1], PROOF.hashes[1:], PROOF.hashes[::-1], (*PROOF.hashes, PROOF.hashes[0]), ()):
        with pytest.raises(VerificationError):
            dataclasses.replace(PROOF, hashes=hashes).verify(line, keys)
    with pytest.raises(VerificationError):
        PROOF.verify(line, keys, origin="srv2/other")
    with pytest.raises(UnknownSigner):
        PROOF.verify(line, [OTHER.verifier])
    later = sign_checkpoint(Checkpoint(ORIGIN, SIZE + 1, rfc6962.mth(0, SIZE + 1)), LOG)
    with pytest.raises(VerificationError):
        dataclasses.replace(PROOF, checkpoint=later).verify(line, keys)


def test_no_bit_can_be_flipped_except_in_what_nobody_signed():
    extra = range(BYTES.index(b"c2FsdA"), BYTES.index(b"\nindex"))
    survivors = set()
    for i in range(8 * len(BYTES)):
        changed = bytearray(BYTES)
        changed[i // 8] ^= 1 << i % 8
        try:
            InclusionProof.parse(bytes(changed)).verify(rfc6962.line(5), [LOG.verifier], origin=ORIGIN)
        except (Malformed, VerificationError):
            continue
        survivors.add(i // 8)
    assert survivors
    assert survivors <= set(extra)


def test_cosignatures_travel_along():
    cosigned = dataclasses.replace(PROOF, checkpoint=add_signature(NOTE, OTHER))
    assert InclusionProof.parse(cosigned.format()) == cosigned
    cosigned.verify(rfc6962.line(5), [LOG.verifier])
    cosigned.verify(rfc6962.line(5), [LOG.verifier, OTHER.verifier])


def change(old, new):
    assert old in BYTES
    return BYTES.replace(old, new, 1)


@pytest.mark.parametrize(
    "proof",
    [
        b"",
        BYTES[:-1],
        BYTES + b"\n",
        BYTES + b"x",
        b"\n" + BYTES,
        change(b"proof@v1", b"proof@v2"),
        change(b"proof@v1\n", b"proof@v1\r\n"),
        change(b"extra c2FsdA==", b"extra c2FsdB=="),
        change(b"extra c2FsdA==", b"extra "),
        change(b"extra c2FsdA==", b"extra"),
        change(b"extra c2FsdA==", b"extra c2FsdA==\nextra c2FsdA=="),
        change(b"extra c2FsdA==", b"Extra c2FsdA=="),
        change(b"extra c2FsdA==\nindex 5", b"index 5\nextra c2FsdA=="),
        *(change(b"index 5", b"index " + n) for n in (b"", b"05", b"+5", b" 5", b"5 ", b"-5", b"9223372036854775808", b"\xd9\xa3")),
        change(b"index 5\n", b""),
        change(b"index 5\n", b"index 5\n\n"),
        change(b"index 5\n", b"index 5\nAAAA\n"),
        change(b"index 5\n", b"index 5\n" + b"A" * 43 + b"=\n" * 1 + (b"A" * 43 + b"=\n") * 63),
        change(b"=\n\n", b"=\n"),
        change(b"\n7\n" if b"\n7\n" in BYTES else b"\n13\n", b"\n013\n"),
        change(NOTE, b""),
        change(NOTE, b"not a checkpoint\n"),
        change(NOTE, sign("not a checkpoint\n", LOG)),
    ],
)
def test_other_spellings_are_refused(proof):
    with pytest.raises(Malformed):
        InclusionProof.parse(proof)


@pytest.mark.parametrize(
    "fields",
    [
        {"index": -1},
        {"index": SIZE_MAX + 1},
        {"index": True},
        {"hashes": (b"x" * 31,)},
        {"hashes": (b"x" * 32,) * (HASHES_MAX + 1)},
        {"extra": b""},
        {"checkpoint": b""},
        {"checkpoint": NOTE[:-1]},
    ],
)
def test_a_proof_that_has_no_file_cannot_be_made(fields):
    with pytest.raises(Malformed):
        dataclasses.replace(PROOF, **fields)


def test_the_size_of_a_file_is_bounded():
    with pytest.raises(Malformed):
        dataclasses.replace(PROOF, extra=b"x" * PROOF_BYTES_MAX).format()
    with pytest.raises(Malformed):
        InclusionProof.parse(BYTES + b"x" * PROOF_BYTES_MAX)


@given(
    st.integers(0, SIZE_MAX),
    st.lists(st.binary(min_size=32, max_size=32), max_size=HASHES_MAX),
    st.none() | st.binary(min_size=1, max_size=50),
)
def test_proofs_go_and_come_back(index, hashes, extra):
    proof = InclusionProof(index, tuple(hashes), NOTE, extra)
    assert InclusionProof.parse(proof.format()) == proof


@settings(deadline=None)
@given(st.binary(max_size=30), st.integers(0, len(BYTES)), st.integers(0, len(BYTES)))
def test_bytes_that_are_accepted_are_the_one_spelling(noise, start, stop):
    changed = BYTES[:start] + noise + BYTES[stop:]
    try:
        proof = InclusionProof.parse(changed)
    except Malformed:
        return
    assert proof.format() == changed
