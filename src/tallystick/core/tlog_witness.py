"""Asking a witness, and what it must answer (C2SP tlog-witness v1.0.0, ``add-checkpoint``).

::

    old 20852014
    PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
    jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=

    example.com/behind-the-sofa
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+…

The size of the last checkpoint that the witness cosigned, the consistency proof from there (RFC 6962 §2.1.2, at most 63 hashes), an
empty line, the checkpoint. ``authenticate`` and ``decide`` are the checks of the specification in its order; both say what to answer
by raising ``Refused``. Limits of a request: 256 KiB, and those of notes and checkpoints (64 signatures, one of each key, 16 extension
lines, sizes up to 2⁶³−1, a final newline).

Not here: keeping what was cosigned, the clock, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from . import cosignature
from .checkpoint import Checkpoint, parse_number
from .errors import Malformed, VerificationError
from .merkle import EMPTY_ROOT, HASH_BYTES, verify_consistency
from .note import ED25519, Signature, VerifierKey, decode_base64, encode_base64, split

REQUEST_BYTES_MAX = 1 << 18
PROOF_LINES_MAX = 63
LOG_ALGORITHMS = (ED25519, *cosignature.ALGORITHMS)
"""Keys of logs: 0x01, and 0x04 or 0x06 where a log signs its own checkpoints as cosigner (tlog-checkpoint, "Signatures")."""

SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"


class Refused(VerificationError):
    """The witness does not cosign. ``status`` is the HTTP status; ``size`` is set for 409: that of the last cosigned checkpoint.

    ``contradicts``: the checkpoint is validly signed and has another root than the one known for its size (``split``), or its proof
    does not hold from what was cosigned (``unproven``): worth keeping.
    """

    def __init__(self, status: int, reason: str, *, size: int | None = None, contradicts: str = "") -> None:
        super().__init__(reason)
        self.status, self.size, self.contradicts = status, size, contradicts

    @property
    def body(self) -> bytes:
        """What the answer says: the size for 409, else the reason in one line."""
        return f"{self.args[0] if self.size is None else self.size}\n".encode()

    @property
    def content_type(self) -> str:
        """The media type of ``body``."""
        return TEXT_TYPE if self.size is None else SIZE_TYPE


class Request(NamedTuple):
    """A well-formed request. NOTHING is verified. ``checkpoint`` is None where its size is 0 and its root is not that of the empty
    tree: no checkpoint, but the specification wants the signature looked at first."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes
    text: str
    signatures: tuple[Signature, ...]
    origin: str
    size: int
    checkpoint: Checkpoint | None


class Known(NamedTuple):
    """The last checkpoint of an origin that was cosigned."""

    size: int
    root: bytes


def parse_request(body: bytes) -> Request:
    """Read the body of an ``add-checkpoint`` request. ``Malformed`` (status 400) unless ``format_request`` writes these very
    bytes."""
    if len(body) > REQUEST_BYTES_MAX:
        raise Malformed("the request is larger than 256 KiB")
    head, gap, note = body.partition(b"\n\n")
    if not gap:
        raise Malformed("a request is an old size, proof lines, an empty line and a checkpoint")
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Malformed("old size and proof lines are ASCII") from None
    word, _, number = first.partition(" ")
    if word != "old":
        raise Malformed("the first line of a request is: old <size>")
    old_size = parse_number(number)
    if len(lines) > PROOF_LINES_MAX:
        raise Malformed(f"a consistency proof has at most {PROOF_LINES_MAX} hashes")
    proof = tuple(decode_base64(line) for line in lines)
    if any(len(h) != HASH_BYTES for h in proof):
        raise Malformed("a proof hash has 32 bytes")
    text, signatures = split(note)
    origin, size, checkpoint = _read_checkpoint(text)
    return Request(old_size, proof, note, text, signatures, origin, size, checkpoint)


def _read_checkpoint(text: str) -> tuple[str, int, Checkpoint | None]:
    lines = text.split("\n")
    if len(lines) > 3 and lines[1] == "0" and lines[2] != _EMPTY:
        if len(decode_base64(lines[2])) != HASH_BYTES:
            raise Malformed("a root hash has 32 bytes")
        Checkpoint.parse("\n".join([lines[0], "0", _EMPTY, *lines[3:]]))  # all else of it must be right
        return lines[0], 0, None
    checkpoint = Checkpoint.parse(text)
    return checkpoint.origin, checkpoint.size, checkpoint


_EMPTY = encode_base64(EMPTY_ROOT)


def format_request(old_size: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """The body that asks for a cosignature on ``note``. ``Malformed`` where no witness could read it."""
    lines = "".join(encode_base64(h) + "\n" for h in proof)
    body = f"old {old_size}\n{lines}\n".encode() + note
    parse_request(body)
    return body


def parse_size(body: bytes) -> int:
    """The body of a 409. ``Malformed`` unless it is one decimal number and a newline."""
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("a tree size is ASCII") from None
    if not text.endswith("\n"):
        raise Malformed("a tree size ends in a newline")
    return parse_number(text[:-1])


def authenticate(request: Request, keys: Sequence[VerifierKey]) -> tuple[Signature, ...]:
    """The lines by ``keys``, those of the request's origin, all of which hold. ``Refused``: 404 without keys (the origin is unknown),
    403 without a line by one of them or with one that does not hold. Lines by other keys are ignored."""
    if not keys:
        raise Refused(404, "unknown log origin")
    known = {(k.name, k.key_id): k for k in keys}
    trusted = tuple(s for s in request.signatures if (s.name, s.key_id) in known)
    for line in trusted:
        key = known[line.name, line.key_id]
        try:
            if key.algorithm == ED25519:
                key.verify(request.text.encode(), line.signature)
            elif request.checkpoint is not None:
                cosignature.verify(request.checkpoint, key, line)
            else:
                raise Refused(403, "a cosignature of something that is no checkpoint")
        except (VerificationError, Malformed):
            raise Refused(403, "invalid signature by a trusted key of the log") from None
    if not trusted:
        raise Refused(403, "no signature by a trusted key of the log")
    return trusted


def decide(request: Request, known: Known | None) -> Checkpoint:
    """The checkpoint to cosign, where the request is authentic and extends ``known``. ``Refused``: 400 old size above the
    checkpoint's, 409 old size not that of ``known`` (0 without), 422 a size of 0 without the empty root, a proof with old size 0,
    another root for the same size, a proof that does not hold."""
    if request.old_size > request.size:
        raise Refused(400, "the old size is larger than the checkpoint's")
    stored = Known(0, EMPTY_ROOT) if known is None else known
    checkpoint = request.checkpoint
    split_view = checkpoint is not None and checkpoint.size == stored.size and checkpoint.root != stored.root
    if request.old_size != stored.size:
        raise Refused(409, "the old size is not that of the last cosigned checkpoint", size=stored.size,
                      contradicts="split" if split_view else "")  # fmt: skip
    if checkpoint is None:
        raise Refused(422, "the root of a tree of size 0 is that of the empty tree")
    if split_view:
        raise Refused(422, "another root was cosigned for this size", contradicts="split")
    if request.old_size == 0 and request.proof:
        raise Refused(422, "there is no consistency proof from size 0")
    try:
        verify_consistency(stored.size, checkpoint.size, stored.root, checkpoint.root, request.proof)
    except VerificationError as e:
        raise Refused(422, f"the consistency proof does not hold: {e}", contradicts="unproven") from None
    return checkpoint
