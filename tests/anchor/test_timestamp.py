"""RFC 3161: a real authority (OpenSSL's), judged by us and by ``openssl ts -verify``, which must agree."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from tallystick.anchor.timestamp import Timestamp, TimestampSettings, read_roots, verify_timestamp
from tallystick.core.errors import ConfigError, Malformed, OutsideError, VerificationError
from tallystick.outside import HandedOut

from .servers import TimestampServer, authority, issue, note_of, openssl

NOTE = note_of(18_267)


def _has_client():
    try:
        import rfc3161_client  # noqa: F401
    except ImportError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not (shutil.which("openssl") and _has_client()), reason="needs openssl and rfc3161-client"
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tsa")
    authority(folder)
    authority(folder, "other")
    issue(folder, "plain", "ca", "keyUsage=critical,digitalSignature\n")  # may not stamp
    return folder


@pytest.fixture
def tsa(certificates, tmp_path):
    folder = tmp_path / "tsa"
    shutil.copytree(certificates, folder)
    with TimestampServer(folder) as server:
        yield server


@pytest.fixture
def log(tmp_path, certificates):
    folder = tmp_path / "log"
    (folder / "checkpoints").mkdir(parents=True)
    HandedOut(folder).put(18_267, NOTE)
    shutil.copy(certificates / "ca.pem", folder / "tsa.pem")
    return folder


def _anchor(log, tsa):
    settings = TimestampSettings("stamp", tsa.url, "tsa.pem")
    settings.check()
    return Timestamp(settings, log)


def _openssl_agrees(folder, note, der, roots):
    """Whether ``openssl ts -verify`` takes it."""
    (folder / "data").write_bytes(note)
    (folder / "in.tsr").write_bytes(der)
    done = openssl("ts", "-verify", "-data", "data", "-in", "in.tsr", "-CAfile", roots, folder=folder, check=False)
    return done.returncode == 0 and "Verification: OK" in done.stdout


def _we_agree(note, der, roots):
    try:
        verify_timestamp(note, der, read_roots(roots))
    except (Malformed, VerificationError):
        return False
    return True


def test_a_checkpoint_is_stamped_and_kept(log, tsa):
    before = time.time() - 2
    assert _anchor(log, tsa).hand_over(18_267, NOTE).word == "confirmed"
    der = HandedOut(log).timestamp(18_267, "stamp")
    assert before * 1e6 <= verify_timestamp(NOTE, der, read_roots(log / "tsa.pem")) <= (time.time() + 1) * 1e6
    assert _openssl_agrees(tsa.folder, NOTE, der, log / "tsa.pem")
    done = openssl("ts", "-verify", "-data", "checkpoints/00000000000000018267", "-in", "checkpoints/00000000000000018267.stamp.tsr",
                   "-CAfile", "tsa.pem", folder=log)  # fmt: skip
    assert "Verification: OK" in done.stdout


def test_what_holds_is_not_asked_for_again_and_later_lines_do_not_matter(log, tsa):
    _anchor(log, tsa).hand_over(18_267, NOTE)
    _anchor(log, tsa).hand_over(18_267, NOTE + "— somebody else AAAAAAAA\n".encode())
    assert tsa.count == 1
    (log / "checkpoints" / "00000000000000018267.stamp.tsr").write_bytes(b"torn")
    _anchor(log, tsa).hand_over(18_267, NOTE)
    assert tsa.count == 2


@pytest.mark.parametrize("roots", ["ca", "ca+ca-tsa", "ca+other", "other+ca"])
def test_who_is_believed(log, tsa, roots):
    (log / "tsa.pem").write_text("".join((tsa.folder / f"{name}.pem").read_text() for name in roots.split("+")))
    assert _anchor(log, tsa).hand_over(18_267, NOTE).word == "confirmed"


@pytest.mark.parametrize("roots", ["other", "other+other-tsa", "ca+other-tsa"])
def test_who_is_not_believed(log, tsa, roots):
    (log / "tsa.pem").write_text("".join((tsa.folder / f"{name}.pem").read_text() for name in roots.split("+")))
    with pytest.raises(OutsideError, match="the timestamp does not hold"):
        _anchor(log, tsa).hand_over(18_267, NOTE)
    assert HandedOut(log).timestamp(18_267, "stamp") is None


def test_openssl_agrees_on_every_altered_byte(log, tsa, tmp_path):
    """One response, each byte of which is altered once (every third, so that it takes seconds): no verdict differs."""
    _anchor(log, tsa).hand_over(18_267, NOTE)
    der = HandedOut(log).timestamp(18_267, "stamp")
    (tsa.folder / "nota").write_bytes(b"")
    differ, good = [], 0
    for at in range(0, len(der), 29):
        altered = der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
        ours, theirs = _we_agree(NOTE, altered, log / "tsa.pem"), _openssl_agrees(tsa.folder, NOTE, altered, log / "tsa.pem")
        good += ours
        if ours and not theirs:
            differ.append(at)
    assert differ == []
    assert good < 3, "the signature covers nearly all of it"


def test_other_bytes_other_authorities_and_others_certificates(log, tsa):
    _anchor(log, tsa).hand_over(18_267, NOTE)
    der = HandedOut(log).timestamp(18_267, "stamp")
    for note, roots in ((NOTE, "ca"), (note_of(18_268), "ca"), (NOTE[:-1], "ca"), (NOTE, "other")):
        path = tsa.folder / f"{roots}.pem"
        assert _we_agree(note, der, path) is _openssl_agrees(tsa.folder, note, der, path) is (note == NOTE and roots == "ca")
    with pytest.raises(VerificationError, match="over other bytes"):
        verify_timestamp(NOTE[:-1], der, read_roots(log / "tsa.pem"))


def test_a_response_to_another_request_is_not_kept(log, tsa):
    first = []
    tsa.alter = lambda reply: (first.append(reply), first[0])[1]
    _anchor(log, tsa).hand_over(18_267, NOTE)
    (log / "checkpoints" / "00000000000000018267.stamp.tsr").unlink()
    with pytest.raises(OutsideError, match="Nonce mismatch"):
        _anchor(log, tsa).hand_over(18_267, NOTE)
    assert HandedOut(log).timestamps() == []


@pytest.mark.parametrize(("change", "why"), [
    (lambda t: setattr(t, "alter", lambda r: r[:-1]), "not a timestamp response"),
    (lambda t: setattr(t, "alter", lambda r: r + b"\0"), "not a timestamp response"),
    (lambda t: setattr(t, "alter", lambda r: b""), "not a timestamp response"),
    (lambda t: setattr(t, "alter", lambda r: bytes.fromhex("30053003020102")), "status 2 .rejected."),
    (lambda t: setattr(t, "alter", lambda r: bytes(1 << 17)), "was not reached: the answer is too long"),
    (lambda t: setattr(t, "status", 503), "answered 503"),
    (lambda t: setattr(t, "media", "text/html"), "answered 200 with text/html"),
])  # fmt: skip
def test_what_is_no_timestamp_leaves_it_pending(log, tsa, change, why):
    change(tsa)
    with pytest.raises(OutsideError, match=why):
        _anchor(log, tsa).hand_over(18_267, NOTE)
    assert HandedOut(log).timestamps() == []


def test_an_authority_that_is_not_there(log, certificates):
    gone = type("Gone", (), {"url": "http://127.0.0.1:1/"})
    with pytest.raises(OutsideError, match="was not reached: Connection refused"):
        _anchor(log, gone).hand_over(18_267, NOTE)
    (log / "tsa.pem").unlink()
    with pytest.raises(ConfigError, match=r"tsa.pem: No such file"):
        _anchor(log, gone).hand_over(18_267, NOTE)


def test_a_pem_file_needs_an_end_of_the_chain(log, certificates):
    (log / "tsa.pem").write_bytes((certificates / "ca-tsa.pem").read_bytes())
    with pytest.raises(ConfigError, match="no self-signed certificate"):
        read_roots(log / "tsa.pem")
    (log / "tsa.pem").write_bytes(b"hello")
    with pytest.raises(ConfigError, match="not PEM certificates"):
        read_roots(log / "tsa.pem")


@pytest.mark.parametrize("url", ["ftp://a/", "http://", "http://u:p@a/", "http://a/#x", "http://a b/", "http://a:99999/", "file:///etc/passwd", ""])
def test_urls_that_cannot_be(url):
    with pytest.raises(Malformed, match="url is http"):
        TimestampSettings("stamp", url, "tsa.pem").check()
