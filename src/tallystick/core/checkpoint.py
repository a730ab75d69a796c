"""Checkpoints: the signed head of a log (C2SP tlog-checkpoint v1.0.0).

::

    example.com/log/testdata
    15
    6cfsPUuHCEJNvAfPRyCIm6yFoTmvGAEd6X2Zm2d8Pgs=

    — example.com/log/testdata …

Origin, tree size and root hash, one a line, then up to 16 extension lines, then the signatures of a note.
Every spelling but one is refused. Stricter than the specification: an origin has at most 255 bytes (what a
0x06 cosignature can carry), an extension line at most 1,024; neither has control characters, DEL or the line
separators U+0085, U+2028, U+2029; the empty root is the root of size 0 only.

Not here: whether one checkpoint extends another (``merkle.verify_consistency``), which keys are whose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import Malformed, VerificationError
from .merkle import EMPTY_ROOT, HASH_BYTES, SIZE_MAX
from .note import Note, SignerKey, VerifierKey, decode_base64, encode_base64, open_split, sign, split

EXTENSIONS_MAX = 16
EXTENSION_BYTES_MAX = 1024
ORIGIN_BYTES_MAX = 255

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_OWN_ORIGIN = re.compile(r"[a-z0-9./-]{1,120}", re.ASCII)


def check_origin(text: str) -> None:
    """The rule for logs that we make: 1 to 120 characters of ``[a-z0-9.-/]``. ``Malformed`` otherwise.

    Such an origin is a key name, a file name part and a URL without any escaping. Other logs may differ.
    """
    if not _OWN_ORIGIN.fullmatch(text):
        raise Malformed("an origin is 1 to 120 characters of a-z, 0-9, dot, hyphen and slash")


def parse_number(text: str) -> int:
    """An ASCII decimal without sign or leading zeros, 0..2⁶³−1. ``Malformed`` otherwise."""
    # not int() first: it takes "+1", " 1", "1_0" and the digits of every script
    if not _NUMBER.fullmatch(text) or int(text) > SIZE_MAX:
        raise Malformed("not a decimal number in 0..2**63-1")
    return int(text)


def _check_line(what: str, text: str, bytes_max: int) -> None:
    if not text or _UNPRINTABLE.search(text) or len(text.encode()) > bytes_max:
        raise Malformed(f"{what} is one line of 1 to {bytes_max} bytes without control characters")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log says: its first ``size`` entries have this ``root``. ``Malformed`` when no text says so."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_line("an origin", self.origin, ORIGIN_BYTES_MAX)
        if type(self.size) is not int or not 0 <= self.size <= SIZE_MAX:
            raise Malformed("a tree size is an integer in 0..2**63-1")
        if len(self.root) != HASH_BYTES:
            raise Malformed("a root hash has 32 bytes")
        if (self.size == 0) is not (self.root == EMPTY_ROOT):
            raise Malformed("the root of the empty tree belongs to size 0 and to no other size")
        if len(self.extensions) > EXTENSIONS_MAX:
            raise Malformed(f"a checkpoint has at most {EXTENSIONS_MAX} extension lines")
        for line in self.extensions:
            _check_line("an extension", line, EXTENSION_BYTES_MAX)

    def format(self) -> str:
        """The text that is signed; ends in a newline."""
        return "".join(f"{x}\n" for x in (self.origin, self.size, encode_base64(self.root), *self.extensions))

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text. ``Malformed`` unless it is, byte for byte, what ``format`` writes."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1]:
            raise Malformed("a checkpoint is origin, tree size and root hash, each ending in a newline")
        origin, size, root, *extensions = lines[:-1]
        checkpoint = cls(origin, parse_number(size), decode_base64(root), tuple(extensions))
        if checkpoint.format() != text:
            raise Malformed("not the one spelling of a checkpoint")
        return checkpoint


def sign_checkpoint(checkpoint: Checkpoint, *signers: SignerKey) -> bytes:
    """The note of a checkpoint. The caller has made sure that it extends the last one signed."""
    return sign(checkpoint.format(), *signers)


class HeadSigner:
    """Signs one head of a log after the other under one key. The same bytes as ``sign_checkpoint``, without reading each note back:
    all that changes between two heads is a number and 32 bytes. ``Malformed`` for an origin or key of which no note can be made.
    """

    __slots__ = ("_after", "_origin", "_prefix", "signer")

    def __init__(self, origin: str, signer: SignerKey) -> None:
        self.signer = signer
        self._origin = f"{origin}\n"
        self._after = f"\n— {signer.name} "
        self._prefix = signer.verifier.key_id.to_bytes(4, "big")
        sample = Checkpoint(origin, 1, bytes(HASH_BYTES))
        if self.sign(sample.size, sample.root) != sign_checkpoint(sample, signer):
            raise Malformed("no note can be made of this origin and key")

    @property
    def verifier(self) -> VerifierKey:
        """The public key."""
        return self.signer.verifier

    def sign(self, size: int, root: bytes) -> bytes:
        """The note of the head of ``size`` ≥ 1 entries with this ``root`` (32 bytes). The caller has made sure that it extends the
        last one signed."""
        if size < 1 or len(root) != HASH_BYTES:
            raise ValueError("a head has at least one entry and a root of 32 bytes")
        text = f"{self._origin}{size}\n{encode_base64(root)}\n"
        return f"{text}{self._after}{encode_base64(self._prefix + self.signer.sign(text.encode()))}\n".encode()


def open_checkpoint(note: bytes, keys: Sequence[VerifierKey], *, origin: str | None) -> Checkpoint:
    """The checkpoint in a note that one of ``keys`` signed.

    With ``origin`` the text must name that log, which is checked before any signature is believed. Without,
    one of the verified signatures must be by a key of the origin's name. ``Malformed``, ``VerificationError``
    (another log, a signature that does not hold) and ``UnknownSigner`` as in ``open_note``.
    """
    return open_signed(note, keys, origin=origin)[0]


def open_signed(note: bytes, keys: Sequence[VerifierKey], *, origin: str | None) -> tuple[Checkpoint, Note]:
    """The same, with the note: which lines were verified, and which are by others."""
    text, signatures = split(note)
    claimed = Checkpoint.parse(text)
    if origin is not None and claimed.origin != origin:
        raise VerificationError("the checkpoint is of another log than the one asked for")
    opened = open_split(text, signatures, keys)
    if origin is None and claimed.origin not in {s.name for s in opened.verified}:
        raise VerificationError("the checkpoint names another log than the key that signed it")
    return claimed, opened
