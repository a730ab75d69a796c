"""Cosignatures: "as of this time, this is the largest consistent tree that I saw of this log" (C2SP tlog-cosignature).

A line on a checkpoint's note whose bytes after the key ID are ``u64 time || signature``. Two algorithms:

* 0x04, Ed25519, over ``cosignature/v1\\ntime <time>\\n`` and the checkpoint's whole text, extension lines included;
* 0x06, ML-DSA-44 (FIPS 204, empty context), over ``"subtree/v1\\n\\0" || u8 length || cosigner's name || u64 time || u8 length ||
  origin || u64 start || u64 end || root``. A cosignature of a checkpoint has start 0, end = size; extension lines are NOT covered.

Times are POSIX seconds, 1..2⁶³−1. Stricter than the specification: a checkpoint with extension lines is not cosigned with 0x06.

Not here: which witnesses count (``policy``), what a witness must have checked before it signs (``witness``), where keys are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .checkpoint import Checkpoint
from .errors import Malformed, VerificationError
from .merkle import SIZE_MAX
from .note import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, Signature, VerifierKey, decode_base64, encode_base64, split

ALGORITHMS = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)
_SEED_BYTES = 32  # of both algorithms
_SIGNATURE_BYTES = {COSIGNATURE_ED25519: 64, COSIGNATURE_ML_DSA_44: 2420}
_SUBTREE = b"subtree/v1\n\0"
_NAME_BYTES_MAX = 255  # its length is one byte of what 0x06 signs


class Cosignature(NamedTuple):
    """A cosignature that holds: whose, and the time that it states (POSIX seconds)."""

    key: VerifierKey
    time_s: int


def message(checkpoint: Checkpoint, key: VerifierKey, time_s: int) -> bytes:
    """The bytes that a cosignature of ``checkpoint`` by ``key`` at ``time_s`` signs. ``Malformed`` where there are none: another
    algorithm, a time out of range, a name too long or extension lines under 0x06."""
    if not 0 < time_s <= SIZE_MAX:
        raise Malformed("the time of a cosignature is a number of seconds in 1..2**63-1")
    if key.algorithm == COSIGNATURE_ED25519:
        return f"cosignature/v1\ntime {time_s}\n{checkpoint.format()}".encode()
    if key.algorithm != COSIGNATURE_ML_DSA_44:
        raise Malformed(f"keys of algorithm {key.algorithm:#04x} do not cosign")
    if checkpoint.extensions:
        raise Malformed("a checkpoint with extension lines is not cosigned with ML-DSA-44, which would not cover them")
    name, origin = key.name.encode(), checkpoint.origin.encode()
    if len(name) > _NAME_BYTES_MAX:
        raise Malformed("the cosigner's name is longer than 255 bytes")
    return b"".join((
        _SUBTREE, bytes([len(name)]), name, struct.pack(">Q", time_s), bytes([len(origin)]), origin,
        struct.pack(">QQ", 0, checkpoint.size), checkpoint.root,
    ))  # fmt: skip


def verify(checkpoint: Checkpoint, key: VerifierKey, signature: Signature) -> Cosignature:
    """The cosignature in a line that claims to be by ``key``. ``VerificationError`` unless it is, ``Malformed`` if it cannot be."""
    if (signature.name, signature.key_id) != (key.name, key.key_id):
        raise VerificationError("the cosignature is by another key than the one asked about")
    size = _SIGNATURE_BYTES.get(key.algorithm)
    if size is None or len(signature.signature) != 8 + size:
        raise Malformed("the line is not a cosignature of its key's algorithm")
    (time_s,) = struct.unpack(">Q", signature.signature[:8])
    signed = message(checkpoint, key, time_s)
    try:
        if key.algorithm == COSIGNATURE_ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature.signature[8:], signed)
        else:
            _ml_dsa().MLDSA44PublicKey.from_public_bytes(key.public).verify(signature.signature[8:], signed)
    except (InvalidSignature, ValueError):  # ValueError: not a point of the curve, not a key
        raise VerificationError(f"the cosignature by {key.name}+{key.key_id:08x} does not verify") from None
    return Cosignature(key, time_s)


def cosignatures(note: bytes, keys: Sequence[VerifierKey]) -> tuple[Cosignature, ...]:
    """Those of ``keys`` that cosigned the checkpoint in ``note``, in the order of its lines. Lines by others say nothing.

    The caller has opened the note under the log's key: whether the checkpoint is the log's is not looked at here. ``Malformed`` for
    the bytes, ``VerificationError`` where a line by a given key does not hold, whatever the others say.
    """
    text, signatures = split(note)
    checkpoint = Checkpoint.parse(text)
    known = {(k.name, k.key_id): k for k in keys}
    return tuple(verify(checkpoint, known[s.name, s.key_id], s) for s in signatures if (s.name, s.key_id) in known)


class CosignerKey:
    """A witness's private key, of either algorithm. Its ``repr`` names the key and never shows the secret."""

    __slots__ = ("_private", "name", "verifier")

    def __init__(self, name: str, algorithm: int, seed: bytes) -> None:
        if algorithm not in ALGORITHMS or len(seed) != _SEED_BYTES:
            raise Malformed("a cosigner key is Ed25519 (0x04) or ML-DSA-44 (0x06) with a seed of 32 bytes")
        self.name = name
        if algorithm == COSIGNATURE_ED25519:
            self._private = Ed25519PrivateKey.from_private_bytes(seed)
        else:
            self._private = _ml_dsa().MLDSA44PrivateKey.from_seed_bytes(seed)
        self.verifier = VerifierKey.of(name, self._private.public_key().public_bytes_raw(), algorithm=algorithm)

    def __repr__(self) -> str:
        return f"<CosignerKey {self.name}+{self.verifier.key_id:08x}>"

    @classmethod
    def parse(cls, text: str) -> CosignerKey:
        """Read what ``format`` writes; ``Malformed``, without a word of the text, for everything else."""
        parts = text.split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise Malformed("a cosigner key is PRIVATE+KEY+name+keyid+base64")
        raw = decode_base64(parts[4])
        if len(raw) != 1 + _SEED_BYTES:
            raise Malformed("a cosigner key holds an algorithm and a seed of 32 bytes")
        key = cls(parts[2], raw[0], raw[1:])
        if key.format() != text:
            raise Malformed("the cosigner key's key ID is not that of its key")
        return key

    def format(self) -> str:
        """``PRIVATE+KEY+<name>+<8 hex>+<base64(algorithm || seed)>``: the secret itself."""
        raw = bytes([self.verifier.algorithm]) + self._private.private_bytes_raw()
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id:08x}+{encode_base64(raw)}"

    def cosign(self, checkpoint: Checkpoint, time_s: int) -> Signature:
        """The line. The caller has checked that ``checkpoint`` extends the last one it cosigned. ``Malformed`` as in ``message``."""
        signed = self._private.sign(message(checkpoint, self.verifier, time_s))
        return Signature(self.name, self.verifier.key_id, struct.pack(">Q", time_s) + signed)


def has_ml_dsa() -> bool:
    """True where ``cryptography`` and the OpenSSL under it know ML-DSA-44."""
    try:
        _ml_dsa().MLDSA44PrivateKey.from_seed_bytes(bytes(_SEED_BYTES))
    except Malformed:
        return False
    except UnsupportedAlgorithm:
        return False
    return True


def _ml_dsa() -> Any:  # older versions of cryptography do not have the module
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa
    except ImportError:
        raise Malformed("ML-DSA-44 needs a newer version of cryptography") from None
    return mldsa
