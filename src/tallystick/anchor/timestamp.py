"""The anchor of kind ``timestamp``: an authority says at what time it saw the hash of a checkpoint (RFC 3161).

What is stamped are the bytes of ``checkpoints/<size>`` (decision 16), so that stock tools check it::

    openssl ts -verify -data checkpoints/<size> -in checkpoints/<size>.<name>.tsr -CAfile <name>.pem -untrusted <name>.pem

The request is a POST of ``application/timestamp-query`` (RFC 3161 §3.4) with SHA-256, a nonce and certReq; no redirect is followed,
no proxy is used. The answer is verified, certificates as of the time that it states, before it is kept.

A PEM file says who is believed: at least one self-signed certificate (of the authority's CA, or of the authority itself), perhaps
those between, perhaps the authority's own, which then must be the signer. Needs ``rfc3161-client`` (extra ``timestamp``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from ..core.errors import ConfigError, Malformed, OutsideError, VerificationError
from ..core.times import to_us
from ..disk import DISK, Disk
from ..outside import RESPONSE_BYTES_MAX, HandedOut, deadline
from . import Handed

if TYPE_CHECKING:  # a program that asks for no timestamp loads none of it
    import http.client

    from cryptography import x509

TIMEOUT_S = 20
DEADLINE_S = 60
PEM_BYTES_MAX = 1 << 18
_SHA256 = "2.16.840.1.101.3.4.2.1"
_URL = re.compile(r"https?://[!-~]{1,2000}", re.ASCII)
_GRANTED = 0
_STATUS = {1: "granted with changes", 2: "rejected", 3: "waiting", 4: "revocation warning", 5: "revoked"}  # RFC 3161 §2.4.2


class TimestampSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="timestamp", tag_field="kind"):
    """``url``: ``http://`` or ``https://``; ``certificate``: a PEM file, relative to the log folder."""

    name: str
    url: str
    certificate: str

    def check(self) -> None:
        """``Malformed`` for values that cannot be."""
        try:
            parts = urlsplit(self.url)
            good = _URL.fullmatch(self.url) and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or parts.username is not None or parts.fragment:
            raise Malformed("url is http:// or https:// with a host, without user, password and fragment")
        if not self.certificate or "\0" in self.certificate:
            raise Malformed("certificate is the path of a PEM file")

    @property
    def target(self) -> str:
        return self.url


class Roots(NamedTuple):
    """Who is believed: self-signed certificates, those between, and the authority's own where it is pinned."""

    roots: tuple[x509.Certificate, ...]
    between: tuple[x509.Certificate, ...]
    own: tuple[x509.Certificate, ...]

    @classmethod
    def parse(cls, pem: bytes) -> Roots:
        """A PEM file. ``Malformed`` without a self-signed certificate: a chain has to end somewhere."""
        from cryptography import x509

        try:
            found = x509.load_pem_x509_certificates(pem)
        except ValueError as e:
            raise Malformed(f"not PEM certificates: {e}") from None
        roots = tuple(c for c in found if c.issuer == c.subject)
        rest = [c for c in found if c.issuer != c.subject]
        if not roots:
            raise Malformed("it has no self-signed certificate; add the one of the authority's CA, with which every chain ends")
        return cls(roots, tuple(c for c in rest if _is_ca(c)), tuple(c for c in rest if not _is_ca(c)))


def _is_ca(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def read_roots(path: Path) -> Roots:
    """The PEM file at ``path``. ``ConfigError`` names it."""
    try:
        with path.open("rb") as file:
            data = file.read(PEM_BYTES_MAX + 1)
        if len(data) > PEM_BYTES_MAX:
            raise Malformed(f"more than {PEM_BYTES_MAX:,} bytes")
        return Roots.parse(data)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except Malformed as e:
        raise ConfigError(f"{path}: {e}") from None


def verify_timestamp(note: bytes, der: bytes, roots: Roots, *, nonce: int | None = None) -> int:
    """The time (microseconds since 1970) at which an authority that ``roots`` vouch for says that it had seen ``note``, the bytes of
    ``checkpoints/<size>``. Certificates are judged as of that time. Whose checkpoint it is is not looked at here.

    ``Malformed`` for what is no response that was granted, ``VerificationError`` where it does not hold, ``ConfigError`` where
    ``rfc3161-client`` is not installed.
    """
    client = _client()
    response = _parse(client, der)
    imprint = response.tst_info.message_imprint
    if imprint.hash_algorithm.dotted_string != _SHA256 or imprint.message != hashlib.sha256(note).digest():
        raise VerificationError("the timestamp is over other bytes than those of the checkpoint")
    problem = ""
    for own in roots.own or (None,):
        try:
            client.VerifierBuilder(
                roots=list(roots.roots), intermediates=list(roots.between), tsa_certificate=own, nonce=nonce
            ).build().verify_message(response, note)  # fmt: skip
            return to_us(response.tst_info.gen_time)
        except (client.VerificationError, ValueError) as e:
            problem = problem or _first_words(e)
    raise VerificationError(f"the timestamp does not hold: {problem}")


def _parse(client: Any, der: bytes) -> Any:
    if len(der) > RESPONSE_BYTES_MAX:
        raise Malformed(f"a timestamp response of more than {RESPONSE_BYTES_MAX:,} bytes")
    try:
        response = client.decode_timestamp_response(der)
        if response.status != _GRANTED:
            word = _STATUS.get(response.status, "unknown")
            raise Malformed(f"not a timestamp: the authority answered with status {response.status} ({word})")
        if response.as_bytes() != der:
            raise Malformed("not the one spelling of a timestamp response")
        _ = response.tst_info.gen_time, response.signed_data
    except (ValueError, OverflowError) as e:  # whatever the parser says of bytes from outside
        raise Malformed(f"not a timestamp response: {_first_words(e)}") from None
    return response


def _first_words(error: Exception) -> str:
    text = str(error)
    reason = re.search(r'Verify error: ?([^"]+)"', text)
    return (reason[1] if reason else text)[:200]


def _client() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise ConfigError("timestamps need rfc3161-client: pip install 'tallystick[timestamp]'") from None
    return rfc3161_client


class Timestamp:
    """Has checkpoints stamped and keeps the responses in ``checkpoints/``."""

    kind = "timestamp"

    def __init__(self, settings: TimestampSettings, log: Path, disk: Disk = DISK) -> None:
        self.name, self.target = settings.name, settings.target
        self._settings, self._log, self._handed = settings, log, HandedOut(log, disk)

    def hand_over(self, size: int, note: bytes) -> Handed:
        """``confirmed``: verified, and durable in ``checkpoints/``. One that is there and holds is not asked for again.

        ``note`` may have further lines; what is stamped is the file ``checkpoints/<size>``, which is never rewritten."""
        roots = read_roots(self._log / self._settings.certificate)
        data = self._handed.note(size) or note
        known = self._handed.timestamp(size, self.name)
        if known is None or not _holds(data, known, roots):
            self._handed.put_timestamp(size, self.name, self._ask(data, roots))
        return Handed("confirmed")

    def _ask(self, data: bytes, roots: Roots) -> bytes:
        client = _client()
        request = client.TimestampRequestBuilder().data(data).hash_algorithm(client.HashAlgorithm.SHA256)
        request = request.nonce(nonce=True).cert_request(cert_request=True).build()
        answer = self._post(request.as_bytes())
        try:
            verify_timestamp(data, answer, roots, nonce=request.nonce)
        except (Malformed, VerificationError) as e:  # nothing is kept; no contradiction of this log, so only pending
            raise OutsideError(f"{self.target}: {e}") from None
        return answer

    def _post(self, body: bytes) -> bytes:
        import http.client
        import ssl

        url = urlsplit(self.target)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=TIMEOUT_S)
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.connect()
            with deadline(connection.sock, DEADLINE_S):
                connection.request("POST", path, body, {"Content-Type": "application/timestamp-query", "Connection": "close"})
                response = connection.getresponse()
                answer = _read_bounded(response)
        except ssl.SSLCertVerificationError as e:
            raise OutsideError(f"{self.target} is not who it says: {e.verify_message}") from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise OutsideError(f"{self.target} was not reached: {getattr(e, 'strerror', None) or type(e).__name__}") from None
        finally:
            connection.close()
        media = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        if response.status != 200 or media != "application/timestamp-reply":
            raise OutsideError(f"{self.target} answered {response.status} with {media[:60] or 'no media type'}, not with a timestamp")
        return answer


def _holds(data: bytes, der: bytes, roots: Roots) -> bool:
    try:
        verify_timestamp(data, der, roots)
    except (Malformed, VerificationError):
        return False
    return True


def _read_bounded(response: http.client.HTTPResponse) -> bytes:
    """At most 64 KiB."""
    parts, count = [], 0
    while part := response.read1(RESPONSE_BYTES_MAX):
        parts.append(part)
        count += len(part)
        if count > RESPONSE_BYTES_MAX:
            raise OSError(0, "the answer is too long")
    return b"".join(parts)


def certificates(settings: Sequence[object], log: Path) -> dict[str, Roots]:
    """Whom the log's configuration believes, by the name of the timestamp anchor. What cannot be read is left out."""
    found = {}
    for one in settings:
        if isinstance(one, TimestampSettings):
            try:
                found[one.name] = read_roots(log / one.certificate)
            except ConfigError:
                continue
    return found
