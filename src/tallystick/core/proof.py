"""Inclusion proofs that travel alone: ``.tlog-proof`` files (C2SP tlog-proof v1).

::

    c2sp.org/tlog-proof@v1
    extra YWdlLXYxLjIuMQ==
    index 5
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
    B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=

    example.com/log
    7
    sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

    — example.com/log hI2DJw…

The ``extra`` line is optional and covered by NO signature. The hashes start with the leaf's sibling; the
checkpoint follows verbatim, with all its signatures. Limits: 63 hashes, 1 MiB. Not here: how the proof is made
(``tiles``), which keys to believe (the verifier's own policy file).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .checkpoint import Checkpoint, open_checkpoint, parse_number
from .cosignature import Cosignature, cosignatures
from .errors import Malformed, QuorumMissed
from .merkle import HASH_BYTES, SIZE_MAX, leaf_hash, verify_inclusion
from .note import ED25519, VerifierKey, decode_base64, encode_base64, split
from .policy import Policy

HASHES_MAX = 63  # a tree of 2**63-1 leaves is 63 levels high
PROOF_BYTES_MAX = 1 << 20
_HEADER = "c2sp.org/tlog-proof@v1"


class Witnessed(NamedTuple):
    """A checkpoint that satisfies a policy: under which log key, and who cosigned it when."""

    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]


def open_witnessed(note: bytes, policy: Policy, *, origin: str | None = None) -> Witnessed:
    """The checkpoint in ``note``, if a log of ``policy`` signed it and the witnesses' quorum cosigned it.

    ``origin`` narrows it to one log. ``Malformed``; ``UnknownSigner`` where no log of the policy signed; ``VerificationError``
    where a line by a log or witness of the policy does not hold, or the quorum is not reached. Log keys of algorithm 0x06 are
    not looked at.
    """
    keys = [log.key for log in policy.logs if log.key.algorithm == ED25519]
    checkpoint = open_checkpoint(note, keys, origin=origin)
    found = cosignatures(note, [witness.key for witness in policy.witnesses])
    names = {witness.name for witness in policy.witnesses if any(c.key == witness.key for c in found)}
    if not policy.satisfied(names):
        seen = ", ".join(sorted(names)) or "none of its witnesses"
        raise QuorumMissed(f"the quorum {policy.quorum!r} of the policy is not reached: cosigned by {seen}")
    return Witnessed(checkpoint, found)


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Entry ``index`` is in the tree of the checkpoint, if ``verify`` says so. ``extra`` is authenticated by
    nobody.

    ``Malformed`` when the parts cannot be written. Until ``verify`` has returned, every field is a claim.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def __post_init__(self) -> None:
        if type(self.index) is not int or not 0 <= self.index <= SIZE_MAX:
            raise Malformed("an index is an integer in 0..2**63-1")
        if len(self.hashes) > HASHES_MAX or any(len(h) != HASH_BYTES for h in self.hashes):
            raise Malformed(f"an inclusion proof is at most {HASHES_MAX} hashes of 32 bytes")
        if self.extra == b"":
            raise Malformed("extra data that is empty is left out")
        Checkpoint.parse(split(self.checkpoint)[0])

    def format(self) -> bytes:
        """The bytes of the file. ``Malformed`` when they are more than 1 MiB."""
        lines = [_HEADER]
        if self.extra is not None:
            lines.append(f"extra {encode_base64(self.extra)}")
        lines += [f"index {self.index}", *map(encode_base64, self.hashes), "", ""]
        whole = "\n".join(lines).encode("ascii") + self.checkpoint
        if len(whole) > PROOF_BYTES_MAX:
            raise Malformed("the proof is larger than 1 MiB")
        return whole

    @classmethod
    def parse(cls, proof: bytes) -> InclusionProof:
        """Read a file. ``Malformed`` unless it is, byte for byte, what ``format`` writes."""
        if len(proof) > PROOF_BYTES_MAX:
            raise Malformed("the proof is larger than 1 MiB")
        head, _, checkpoint = proof.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise Malformed("the proof is not ASCII before its checkpoint") from None
        if first != _HEADER:
            raise Malformed(f"a proof starts with {_HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise Malformed("a proof has its index after the first line or the extra line")
        index = parse_number(lines.pop(0).removeprefix("index "))
        if len(lines) > HASHES_MAX:
            raise Malformed(f"an inclusion proof is at most {HASHES_MAX} hashes")
        parsed = cls(index, tuple(map(decode_base64, lines)), checkpoint, extra)
        if parsed.format() != proof:
            raise Malformed("not the one spelling of a proof")
        return parsed

    def verify(self, line: bytes, keys: Sequence[VerifierKey], *, origin: str | None = None) -> Checkpoint:
        """The checkpoint whose tree holds ``line`` (an entry's stored bytes) at ``index``.

        In the order of tlog-proof: leaf hash, origin and log key, inclusion; the witnesses' quorum is the
        caller's. ``Malformed``, ``UnknownSigner`` and ``VerificationError`` as in ``open_checkpoint``,
        ``verify_inclusion``.
        """
        checkpoint = open_checkpoint(self.checkpoint, keys, origin=origin)
        verify_inclusion(self.index, checkpoint.size, leaf_hash(line), self.hashes, checkpoint.root)
        return checkpoint

    def verify_witnessed(self, line: bytes, policy: Policy, *, origin: str | None = None) -> Witnessed:
        """``verify`` under a policy file, in the order of tlog-proof: leaf hash, origin and log key, witnesses' quorum, inclusion."""
        leaf = leaf_hash(line)
        witnessed = open_witnessed(self.checkpoint, policy, origin=origin)
        checkpoint = witnessed.checkpoint
        verify_inclusion(self.index, checkpoint.size, leaf, self.hashes, checkpoint.root)
        return witnessed
