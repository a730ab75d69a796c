"""Asking a witness: the log's side of C2SP tlog-witness v1.0.0, against any witness that speaks it.

The witness is told the size that it is believed to have cosigned last, and the consistency proof from there. If it says 409 with
another size, the proof is made from that one and it is asked once more; so nothing need be remembered, and a witness that is
asked for the first time is found at 0. Every cosignature is verified before it is believed.

What a witness may say of a log that was cut or rewritten is ``VerificationError``, with both sizes: it knows more entries than
there are here, or the entries that it knows are not a beginning of these. All else that goes wrong is ``OutsideError``: pending,
later again.

Only what the verifier key of the log signed is handed over. Limits: 10 seconds to connect and for each answer, 64 KiB of answer, no
redirects, no credentials in URLs; https with the certificates that this machine trusts; no proxies of the environment.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from ..core import cosignature
from ..core.checkpoint import Checkpoint
from ..core.cosignature import Cosignature
from ..core.errors import AuditError, Malformed, OutsideError, VerificationError
from ..core.note import Signature, VerifierKey, split
from ..core.tiles import Read, prove_consistency
from ..core.tlog_witness import SIZE_TYPE, format_request, parse_size
from ..outside import deadline

TIMEOUT_S = 10.0  # of one read
DEADLINE_S = 20.0  # of all of it
ANSWER_BYTES_MAX = 1 << 16
_PHRASES = {400: "it calls the request malformed", 403: "it does not trust the key of this log", 404: "it does not know this log"}


class Url(NamedTuple):
    """Where a witness is: its submission prefix."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """``http://host[:port][/path]`` or https. ``Malformed`` for anything else, also for a user, a query or a fragment."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise Malformed("not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query or parts.fragment:
            raise Malformed("the URL of a witness is http://HOST[:PORT][/PATH], or https")
        if any(not "!" <= c <= "~" for c in text):
            raise Malformed("a URL has no blanks and only ASCII characters")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, default if port is None else port, parts.path.rstrip("/"))

    def is_local(self) -> bool:
        """True where the host is this machine: one of its own addresses, loopback included. A name that is not found is not."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return any(_is_own(str(address[0]), family) for family, _, _, _, address in found)


def _is_own(address: str, family: int) -> bool:
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return True
    try:  # the kernel binds to what is an address of this machine, and to nothing else
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class Handed(NamedTuple):
    """What a witness did. ``lines``: its cosignatures, verified, to be kept beside the checkpoint; ``cosignatures``: whose and when;
    ``local``: it is on this machine."""

    lines: tuple[Signature, ...]
    cosignatures: tuple[Cosignature, ...]
    local: bool
    word: str = "confirmed"


class WitnessClient:
    """A witness as the owner of a log knows it: a name, where it is, its keys (of which at least one must answer)."""

    kind = "witness"

    def __init__(self, name: str, url: str, keys: Sequence[VerifierKey], read: Read, head_size: Callable[[], int],
                 done_size: int = 0) -> None:  # fmt: skip
        """``read``: the hashes of the log's tree; ``head_size``: how many entries it has by now; ``done_size``: how many the
        witness is believed to have confirmed, 0 where nothing is known."""
        self.name, self.target = name, url
        self._url, self._keys = Url.parse(url), tuple(keys)
        self._read, self._head_size, self._done_size = read, head_size, done_size

    def hand_over(self, size: int, note: bytes) -> Handed:
        """Have the checkpoint of ``size`` cosigned, whose ``note`` the log's key signed. See the module's text."""
        try:
            answered = self._ask(size, note)
        except (OSError, http.client.HTTPException) as e:
            raise OutsideError(f"{self.target}: {_reason(e)}") from None
        lines, found = self._open(note, answered)
        return Handed(lines, found, self._url.is_local())

    def _ask(self, size: int, note: bytes) -> bytes:
        old = min(self._done_size, size)
        status, body = self._post(format_request(old, prove_consistency(self._read, old, size), note))
        if status == 409:
            old = self._known_to_witness(body, size)
            status, body = self._post(format_request(old, prove_consistency(self._read, old, size), note))
            if status == 409:
                raise OutsideError(f"{self.target}: somebody else has a checkpoint of this log cosigned at the same time")
        if status == 422:
            raise VerificationError(
                f"it holds another history: what it cosigned up to {old:,} entries is not the beginning of the "
                f"{size:,} that are here"
            )
        if status != 200:
            said = body[:200].decode("utf-8", "replace").strip().partition("\n")[0]
            words = _PHRASES.get(status, "redirects are not followed" if 300 <= status < 400 else said)
            raise OutsideError(f"{self.target}: status {status}, {words}")
        return body

    def _known_to_witness(self, body: bytes, size: int) -> int:
        """The size in a 409, where a proof from it can help."""
        try:
            known = parse_size(body)
        except Malformed as e:
            raise OutsideError(f"{self.target}: 409, but {e}; is that a witness?") from None
        if known > size:
            head = self._head_size()
            if known > head:
                raise VerificationError(
                    f"it has confirmed {known:,} entries of this log, and here are {head:,}: entries are missing"
                )
            raise OutsideError(f"{self.target}: it has cosigned a later checkpoint already, of {known:,} entries")
        if known < self._done_size <= size:
            raise OutsideError(
                f"{self.target}: it had confirmed {self._done_size:,} entries and now knows of {known:,}: it lost what it knew, and "
                "should not go on under its key. Ask who runs it; to begin anew with it, remove and add it"
            )
        return known

    def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body, at most ``ANSWER_BYTES_MAX``. ``Malformed`` for a 409 that is none of tlog-witness."""
        url = self._url
        if url.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.host, url.port, timeout=TIMEOUT_S, context=ssl.create_default_context())  # fmt: skip
        else:
            connection = http.client.HTTPConnection(url.host, url.port, timeout=TIMEOUT_S)
        try:
            connection.connect()
            with deadline(connection.sock, DEADLINE_S):
                connection.request("POST", f"{url.path}/add-checkpoint", body, {"User-Agent": "tallystick", "Connection": "close"})
                with connection.getresponse() as answer:
                    data = answer.read(ANSWER_BYTES_MAX + 1)
                    status, kind = answer.status, answer.headers.get("Content-Type", "")
        finally:
            connection.close()
        if len(data) > ANSWER_BYTES_MAX:
            raise OutsideError(f"{self.target}: its answer is longer than 64 KiB")
        if status == 409 and kind.partition(";")[0].strip().lower() != SIZE_TYPE:
            raise OutsideError(f"{self.target}: 409 without a tree size; is that a witness?")
        return status, data

    def _open(self, note: bytes, answered: bytes) -> tuple[tuple[Signature, ...], tuple[Cosignature, ...]]:
        """The lines of an answer that are by the keys of this witness, each verified. Others are ignored."""
        mine = {(k.name, k.key_id): k for k in self._keys}
        try:
            checkpoint = Checkpoint.parse(split(note)[0])
            text = answered.decode("utf-8")
            if not text.endswith("\n"):
                raise Malformed("the answer does not end in a newline")
            lines = tuple(s for s in map(Signature.parse, text[:-1].split("\n")) if (s.name, s.key_id) in mine)
            found = tuple(cosignature.verify(checkpoint, mine[s.name, s.key_id], s) for s in lines)
        except (AuditError, UnicodeDecodeError) as e:
            raise OutsideError(f"{self.target}: what it answered is no cosignature of this checkpoint: {e}") from None
        if not found:
            keys = ", ".join(f"{k.name}+{k.key_id:08x}" for k in self._keys)
            raise OutsideError(f"{self.target}: it answered without a cosignature by {keys}; was its key changed?")
        return lines, found


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no whole answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here: {error.verify_message}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"not HTTP: {type(error).__name__}"
