"""``log.vkey``: who this log is (STORAGE rule 5).

The verifier key of the log on the first line, then the genesis checkpoint (size 1) as a signed note. Two small texts that
an owner keeps elsewhere, and that bind the key to the first entry for ever::

    srv2/invoices/0f3a9c21b7de+1b2c3d4e+AfG…=
    srv2/invoices/0f3a9c21b7de
    1
    9T0…=

    — srv2/invoices/0f3a9c21b7de Gyw9…=
"""

from __future__ import annotations

from typing import NamedTuple

from .checkpoint import Checkpoint, open_checkpoint
from .errors import Malformed, VerificationError
from .note import VerifierKey

BYTES_MAX = 8192


class Genesis(NamedTuple):
    """The log's verifier key and its genesis note, as stored."""

    vkey: VerifierKey
    note: bytes

    @property
    def origin(self) -> str:
        """The log's origin, which is its key's name."""
        return self.vkey.name

    def format(self) -> bytes:
        """The bytes of ``log.vkey``."""
        return self.vkey.format().encode() + b"\n" + self.note

    @classmethod
    def parse(cls, data: bytes) -> Genesis:
        """Strict: re-formats to the same bytes, or ``Malformed``. Does not verify."""
        if len(data) > BYTES_MAX:
            raise Malformed(f"log.vkey: more than {BYTES_MAX} bytes")
        first, newline, note = data.partition(b"\n")
        try:
            genesis = cls(VerifierKey.parse(first.decode("ascii")), note)
        except UnicodeDecodeError as e:
            raise Malformed("log.vkey: the first line is not a verifier key") from e
        if not newline or genesis.format() != data:
            raise Malformed("log.vkey: not the one spelling of its key")
        return genesis

    def open(self) -> Checkpoint:
        """The genesis checkpoint, verified under the key. ``VerificationError`` if it is not one."""
        checkpoint = open_checkpoint(self.note, [self.vkey], origin=self.origin)
        if checkpoint.size != 1:
            raise VerificationError(f"log.vkey: the genesis checkpoint has size {checkpoint.size}, not 1")
        return checkpoint
