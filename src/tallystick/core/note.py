"""Signed notes: text, and who signed it (C2SP signed-note v1.0.0).

::

    This is an example message.

    — example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72I…

    vkey  example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k

The text ends in a newline; the last empty line divides it from the signature lines ``— <name> base64(key ID
|| sig)``. The key ID is SHA-256(name || 0x0A || algorithm || public key)[:4], big-endian; a vkey is name, key
ID in hex and base64(algorithm || public key), joined by ``+``.

``open_note`` is the only door to a text that may be believed. Limits: a note has at most 1 MiB and 64
signatures; the same name and key ID may sign once. Signed and verified here is Ed25519 (0x01, RFC 8032);
lines of other algorithms are carried along unverified. Not here: what the text says (``checkpoint``), where
keys are kept, cosignatures with time.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import Malformed, UnknownSigner, VerificationError

NOTE_BYTES_MAX = 1 << 20
SIGNATURES_MAX = 64

ED25519 = 0x01
COSIGNATURE_ED25519 = 0x04  # C2SP tlog-cosignature: parsed for policies, not verified here
COSIGNATURE_ML_DSA_44 = 0x06
_PUBLIC_BYTES = {ED25519: 32, COSIGNATURE_ED25519: 32, COSIGNATURE_ML_DSA_44: 1312}

_NOT_IN_NAME = re.compile("[\\s\x00-\x1f+\ud800-\udfff]")  # \s of a str is what isspace() says
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_SIGNATURE_START = "— "  # U+2014, U+0020

# The y coordinates of the eight points of small order (curve of RFC 8032 §5.1): 1, −1, 0, ±y of order 8.
# A key with one of them "verifies" signatures that nobody made.
_P = 2**255 - 19
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


def encode_base64(raw: bytes) -> str:
    """RFC 4648 §4: standard alphabet, padded."""
    return b64encode(raw).decode("ascii")


def decode_base64(text: str) -> bytes:
    """RFC 4648 §4, one spelling only: ``Malformed`` when the bytes encoded again are not this very text."""
    try:
        raw = b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise Malformed("not base64") from None
    if encode_base64(raw) != text:  # b64decode takes AB== for AA==
        raise Malformed("not canonical base64")
    return raw


def _check_name(name: str) -> None:
    """Key names: not empty, no Unicode space, no plus, nothing below U+0020 (signed-note, "Format")."""
    if not name or _NOT_IN_NAME.search(name):
        raise Malformed("a key name is not empty and has no space, plus or control character")


def _key_id(name: str, algorithm: int, public: bytes) -> int:
    """signed-note, "Signatures": SHA-256(name || 0x0A || algorithm || public key)[:4]."""
    digest = sha256(name.encode() + b"\n" + bytes([algorithm]) + public).digest()
    return int.from_bytes(digest[:4], "big")


def _check_public(algorithm: int, public: bytes) -> None:
    if len(public) != _PUBLIC_BYTES[algorithm]:
        raise Malformed(f"a public key of algorithm {algorithm:#04x} has {_PUBLIC_BYTES[algorithm]} bytes")
    if algorithm == COSIGNATURE_ML_DSA_44:
        return
    y = int.from_bytes(public, "little") & (2**255 - 1)
    if y >= _P:
        raise Malformed("the Ed25519 public key is not canonical")  # RFC 8032 §5.1.3 step 1
    if y in _SMALL_ORDER_Y:
        raise Malformed("the Ed25519 public key is of small order")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """Who may have signed: name, key ID, algorithm byte, public key. Made by ``of`` or ``parse``."""

    name: str
    key_id: int
    algorithm: int
    public: bytes

    @classmethod
    def of(cls, name: str, public: bytes, *, algorithm: int = ED25519) -> VerifierKey:
        """The key with its ID. ``Malformed``: bad name or length, weak or non-canonical Ed25519 key."""
        if algorithm not in _PUBLIC_BYTES:
            raise Malformed(f"algorithm {algorithm:#04x} is not known here")
        _check_name(name)
        _check_public(algorithm, public)
        return cls(name, _key_id(name, algorithm, public), algorithm, public)

    @classmethod
    def parse(cls, text: str, *, algorithms: Collection[int] = (ED25519,)) -> VerifierKey:
        """Read a vkey (signed-note, "Verifier keys") of one of ``algorithms``.

        ``Malformed`` unless it is, byte for byte, what ``format`` writes; so the key ID equals its formula.
        """
        parts = text.split("+", 2)  # base64 has plus signs of its own
        if len(parts) != 3:
            raise Malformed("a vkey is name+keyid+base64")
        name, _, encoded = parts
        raw = decode_base64(encoded)
        if not raw or raw[0] not in algorithms:
            raise Malformed("the vkey's algorithm is not one that is wanted here")
        key = cls.of(name, raw[1:], algorithm=raw[0])
        if key.format() != text:
            raise Malformed("the vkey's key ID is not that of its key")
        return key

    def format(self) -> str:
        """``<name>+<8 hex>+<base64(algorithm || public key)>``."""
        return f"{self.name}+{self.key_id:08x}+{encode_base64(bytes([self.algorithm]) + self.public)}"

    @property
    def fingerprint(self) -> str:
        """What a person compares: the key ID's own hash, 128 bits of it, as eight groups of four hex digits; the first two groups are
        the key ID. 32 bits alone can be imitated: a key with a given key ID is found by trying."""
        digest = sha256(self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public).hexdigest()
        return " ".join(digest[at : at + 4] for at in range(0, 32, 4))

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raise ``VerificationError`` unless this key made ``signature`` (64 bytes) over ``message``.

        ``ValueError`` for a key that is not Ed25519 (0x01): its signatures are not over the text alone.
        """
        if self.algorithm != ED25519:
            raise ValueError(f"signatures of algorithm {self.algorithm:#04x} are not verified here")
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):  # ValueError: not a point of the curve
            signer = f"{self.name}+{self.key_id:08x}"
            raise VerificationError(f"the signature by {signer} does not verify") from None


class SignerKey:
    """An Ed25519 private key with its name. Its ``repr`` names the key and never shows the secret."""

    __slots__ = ("_private", "name", "verifier")

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self.name = name
        self._private = private
        self.verifier = VerifierKey.of(name, private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<SignerKey {self.name}+{self.verifier.key_id:08x}>"

    @classmethod
    def generate(cls, name: str) -> SignerKey:
        """A new key from the operating system's randomness."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """Read what ``format`` writes; ``Malformed``, without a word of the text, for everything else."""
        parts = text.split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise Malformed("a signer key is PRIVATE+KEY+name+keyid+base64")
        raw = decode_base64(parts[4])
        if len(raw) != 33 or raw[0] != ED25519:
            raise Malformed("a signer key holds 0x01 and a seed of 32 bytes")
        key = cls(parts[2], Ed25519PrivateKey.from_private_bytes(raw[1:]))
        if key.format() != text:
            raise Malformed("the signer key's key ID is not that of its key")
        return key

    def format(self) -> str:
        """``PRIVATE+KEY+<name>+<8 hex>+<base64(0x01 || seed)>``: the secret itself."""
        raw = bytes([ED25519]) + self._private.private_bytes_raw()
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id:08x}+{encode_base64(raw)}"

    def sign(self, text: bytes) -> bytes:
        """The 64 bytes of RFC 8032 over ``text``."""
        return self._private.sign(text)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: the name and key ID that it claims, and the bytes after the key ID."""

    name: str
    key_id: int
    signature: bytes

    @classmethod
    def parse(cls, line: str) -> Signature:
        """Read a line without its newline. ``Malformed`` unless it is what ``format`` writes."""
        if not line.startswith(_SIGNATURE_START):
            raise Malformed("a signature line starts with an em dash and a space")
        name, _, encoded = line[len(_SIGNATURE_START) :].partition(" ")
        _check_name(name)
        raw = decode_base64(encoded)
        if len(raw) < 5:
            raise Malformed("a signature line has a key ID and a signature")
        return cls(name, int.from_bytes(raw[:4], "big"), raw[4:])

    def format(self) -> str:
        """The line without its newline."""
        raw = self.key_id.to_bytes(4, "big") + self.signature
        return f"{_SIGNATURE_START}{self.name} {encode_base64(raw)}"


@dataclass(frozen=True, slots=True)
class Note:
    """An opened note: its text (ends in a newline), the signatures that hold, and those by keys not given."""

    text: str
    verified: tuple[Signature, ...]
    unverified: tuple[Signature, ...]


def split(note: bytes) -> tuple[str, tuple[Signature, ...]]:
    """Text and signature lines of a note. NOTHING is verified: anybody can have written both.

    For finding out which key would be needed, and for adding a signature. ``Malformed`` for whatever
    signed-note forbids and for the limits of this module.
    """
    if len(note) > NOTE_BYTES_MAX:
        raise Malformed("the note is larger than 1 MiB")
    if _CONTROL.search(note):
        raise Malformed("the note has a control character other than newline")
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the note is not UTF-8") from None
    text, gap, tail = whole.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise Malformed("a note is a text, an empty line and signature lines that end in a newline")
    lines = tail[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise Malformed(f"the note has more than {SIGNATURES_MAX} signatures")
    signatures = tuple(Signature.parse(line) for line in lines)
    if len({(s.name, s.key_id) for s in signatures}) != len(signatures):
        raise Malformed("two signatures of the note are by the same key")
    return text + "\n", signatures


def open_note(note: bytes, keys: Sequence[VerifierKey]) -> Note:
    """The text of a note that at least one of ``keys`` signed, and no given key signed wrongly.

    ``Malformed`` for the bytes, ``UnknownSigner`` when no line is by a given key, ``VerificationError`` when
    a given key's line does not hold, whatever the others say. ``ValueError`` when a key is not Ed25519
    (0x01), or when two different keys share name and key ID.
    """
    return open_split(*split(note), keys)


def open_split(text: str, signatures: Sequence[Signature], keys: Sequence[VerifierKey]) -> Note:
    """The same for a note that ``split`` has divided already. Same errors, but ``Malformed``."""
    known = {(k.name, k.key_id): k for k in keys}
    if any(known[k.name, k.key_id] != k or k.algorithm != ED25519 for k in keys):
        raise ValueError("keys are Ed25519 and no two share name and key ID")
    message = text.encode()
    verified, unverified = [], []
    for signature in signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            unverified.append(signature)
            continue
        key.verify(message, signature.signature)
        verified.append(signature)
    if not verified:
        raise UnknownSigner("the note has no signature by a key that was given")
    return Note(text, tuple(verified), tuple(unverified))


def sign(text: str, *signers: SignerKey) -> bytes:
    """The note of ``text`` (which ends in a newline) with one line per signer, in their order.

    ``Malformed`` when the text or the number of signers is not a note's, ``ValueError`` without a signer.
    """
    if not signers:
        raise ValueError("a note has at least one signature")
    return _join(text, [_sign_line(text, signer) for signer in signers])


def add_signature(note: bytes, signer: SignerKey) -> bytes:
    """The same note with one more line at its end. The signer vouches for a text that is NOT verified here.

    ``Malformed`` when the note is, or when this key has a line on it already.
    """
    text, signatures = split(note)
    return _join(text, [*signatures, _sign_line(text, signer)])


def _sign_line(text: str, signer: SignerKey) -> Signature:
    return Signature(signer.name, signer.verifier.key_id, signer.sign(_encode(text)))


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed("the text has a lone surrogate") from None


def _join(text: str, signatures: Sequence[Signature]) -> bytes:
    lines = "".join(s.format() + "\n" for s in signatures)
    note = _encode(f"{text}\n{lines}")
    # what leaves here is read back first: a text without final newline or with control bytes ends here
    if split(note) != (text, tuple(signatures)):
        raise Malformed("the text does not end in a newline")
    return note
