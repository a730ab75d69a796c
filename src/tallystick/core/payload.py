"""Payload commitments (STORAGE rule 6).

``commitment = SHA-256("tallystick/payload/v1\\0" || salt32 || u64 length || bytes)``, big-endian length. The salt is 32
random bytes of its own per payload, so that a short or guessable content cannot be found by trying; destroying the key
that encrypts ``salt || bytes`` therefore forgets the content while the commitment, and with it every proof, stands.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from .errors import Malformed, VerificationError

SALT_BYTES = 32
PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
_DOMAIN = b"tallystick/payload/v1\0"


class Payload(NamedTuple):
    """Content on its way into the log: bytes and their media type."""

    content: bytes
    media_type: str = "text/plain; charset=utf-8"


def commit(salt: bytes, content: bytes) -> str:
    """The commitment to ``content`` under a salt of 32 bytes, as 64 hex digits."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes, not {len(salt)}")
    return hashlib.sha256(_DOMAIN + salt + len(content).to_bytes(8, "big") + content).hexdigest()


def open_commitment(opened: bytes, commitment: str, size: int) -> bytes:
    """``salt || content`` → content, if it is what the entry committed to; ``VerificationError`` otherwise."""
    if len(opened) < SALT_BYTES:
        raise Malformed("an opened payload is shorter than its salt")
    salt, content = opened[:SALT_BYTES], opened[SALT_BYTES:]
    if len(content) != size or not hmac.compare_digest(commit(salt, content), commitment):
        raise VerificationError("this content is not what the entry committed to")
    return content
