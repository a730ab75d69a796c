"""A checkpoint by e-mail: the note survives; what is said of it is no more than was seen; no secret leaves."""

from __future__ import annotations

import email
import email.policy
import os
import traceback

import pytest

from tallystick.anchor.mail import Mail, MailSettings
from tallystick.anchor.saved_mail import find_note
from tallystick.core.errors import ConfigError, Malformed, OutsideError

from .servers import MailServer, authority, issue, note_of, sendmail

NOTE = note_of(18_267)
SECRET = "correct horse-9"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A server certificate with its key, and the CA."""
    folder = tmp_path_factory.mktemp("tls")
    authority(folder)
    issue(folder, "server", "ca", "subjectAltName=DNS:localhost\n")
    (folder / "chain.pem").write_text((folder / "server.pem").read_text() + (folder / "server.key").read_text())
    return folder


def _mail(tmp_path, **more):
    settings = MailSettings(**{"name": "auditor", "to": "auditor@kanzlei.example", **more})
    settings.check()
    return Mail(settings, tmp_path, tmp_path)


def _smtp(tmp_path, server, **more):
    return _mail(tmp_path, **{"smtp": server.where, "sender": "tally@srv2.example", "tls": "none", **more})


def test_sendmail_takes_a_mail_in_which_the_note_is_found_again(tmp_path):
    anchor = _mail(tmp_path, sendmail=str(sendmail(tmp_path)), to="a@kanzlei.example, b@kanzlei.example")
    assert anchor.hand_over(18_267, NOTE).word == "sent"
    data = (tmp_path / "mail").read_bytes()
    assert (tmp_path / "arguments").read_text() == "-i -t\n"
    assert find_note(data) == NOTE
    mail = email.message_from_bytes(data, policy=email.policy.default)
    assert mail["To"] == "a@kanzlei.example, b@kanzlei.example" and mail["Auto-Submitted"] == "auto-generated"
    assert mail["Subject"] == "Checkpoint of srv2/invoices/0f3a9c21b7de: 18,267 entries"
    assert NOTE.decode() in mail.get_content()
    assert find_note(mail.get_content().encode()) == NOTE
    assert data.isascii() and b"\r" not in data and max(map(len, data.split(b"\n"))) <= 998


def test_a_sendmail_that_fails_leaves_it_pending_with_its_words(tmp_path):
    with pytest.raises(OutsideError, match=r"sendmail ended with 75: queue file write error$"):
        _mail(tmp_path, sendmail=str(sendmail(tmp_path, 75, "queue file\n write error"))).hand_over(1, NOTE)
    with pytest.raises(OutsideError, match="is not there; install a mail system, or name a server"):
        _mail(tmp_path, sendmail="/nonexistent/sendmail").hand_over(1, NOTE)


def test_smtp_without_a_login(tmp_path):
    with MailServer() as server:
        assert _smtp(tmp_path, server).hand_over(18_267, NOTE).word == "sent"
    ((recipients, data),) = server.mails
    assert recipients == ["auditor@kanzlei.example"]
    assert find_note(data) == NOTE


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_smtp_over_tls_with_a_password_from_the_key_folder(tmp_path, chain, tls):
    (tmp_path / "mail.password").write_text(SECRET + "\n")
    os.chmod(tmp_path / "mail.password", 0o600)
    with MailServer(("tally", SECRET), chain=chain / "chain.pem", implicit=tls == "tls") as server:
        more = {"tls": tls, "user": "tally", "password_file": "mail.password"}
        anchor = _smtp(tmp_path, server, ca=str(chain / "ca.pem"), **more)
        assert anchor.hand_over(18_267, NOTE).word == "sent"
        with pytest.raises(OutsideError, match=r"is not who it says: .*certificate"):
            _smtp(tmp_path, server, **more).hand_over(18_267, NOTE)
    assert find_note(server.mails[0][1]) == NOTE and len(server.mails) == 1


def test_a_server_without_tls_gets_nothing_where_tls_was_asked_for(tmp_path):
    with MailServer() as server, pytest.raises(OutsideError, match="does not offer what is asked of it"):
        _smtp(tmp_path, server, tls="starttls").hand_over(1, NOTE)
    assert server.mails == []


def test_no_error_holds_the_password_though_the_server_repeats_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TALLY_TEST_PASSWORD", "wrong-Secret")
    with MailServer(("tally", SECRET)) as server, pytest.raises(OutsideError, match=r"did not take user and password \(535\)") as caught:
        _smtp(tmp_path, server, user="tally", password_env="TALLY_TEST_PASSWORD").hand_over(1, NOTE)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "wrong-Secret" not in shown
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_password_that_others_can_read_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "p").write_text(SECRET)
    os.chmod(tmp_path / "p", 0o640)
    with MailServer(("tally", SECRET)) as server:
        anchor = _smtp(tmp_path, server, user="tally", password_file="p")
        with pytest.raises(ConfigError, match=r"can be read by others \(mode 640\); run: chmod 600"):
            anchor.hand_over(1, NOTE)
        os.chmod(tmp_path / "p", 0o600)
        (tmp_path / "p").write_text("two\nlines\n")
        with pytest.raises(ConfigError, match="not one line") as caught:
            anchor.hand_over(1, NOTE)
        assert "two" not in str(caught.value)
        (tmp_path / "p").unlink()
        with pytest.raises(ConfigError, match="No such file"):
            anchor.hand_over(1, NOTE)
        with pytest.raises(ConfigError, match="TALLY_NO_SUCH is not set here"):
            _smtp(tmp_path, server, user="tally", password_env="TALLY_NO_SUCH").hand_over(1, NOTE)
    assert server.mails == []


def test_a_recipient_who_is_refused_is_named_and_it_stays_pending(tmp_path):
    with MailServer(refuse=["gone"]) as server:
        with pytest.raises(OutsideError, match=r"took it for 1 of 2 recipients: refused for gone@kanzlei.example"):
            _smtp(tmp_path, server, to="a@kanzlei.example,gone@kanzlei.example").hand_over(1, NOTE)
        with pytest.raises(OutsideError, match=r"refused every recipient \(550 5.1.1\)"):
            _smtp(tmp_path, server, to="gone@kanzlei.example").hand_over(1, NOTE)


def test_a_server_that_does_not_keep_it_or_is_not_there(tmp_path):
    with MailServer(answer=b"451 4.3.0 later, maybe\r\n") as server:
        with pytest.raises(OutsideError, match=r"answered 451 4.3.0$"):
            _smtp(tmp_path, server).hand_over(1, NOTE)
    with pytest.raises(OutsideError, match="was not reached: Connection refused"):
        _smtp(tmp_path, server).hand_over(1, NOTE)


@pytest.mark.parametrize(("values", "why"), [
    ({"to": ""}, "to is 1 to 20 mail addresses"), ({"to": "a@b\nBcc: c@d"}, "to is 1 to 20"), ({"to": "a b@c"}, "to is 1 to 20"),
    ({"to": "-oQ/tmp@x, "}, "to is 1 to 20"), ({"to": ",".join(["a@b"] * 21)}, "to is 1 to 20"),
    ({"sender": "a@b, c@d"}, "from is one"), ({"sendmail": "sendmail"}, "absolute"), ({"tls": "maybe"}, "tls is one of"),
    ({"smtp": "mail.example"}, "host:port"), ({"smtp": "mail.example:0", "sender": "a@b"}, "host:port"),
    ({"smtp": "mail.example:25"}, "needs from"), ({"user": "x"}, "belong to smtp"),
    ({"smtp": "m.example:587", "sender": "a@b", "user": "x"}, "goes with one of"),
    ({"smtp": "m.example:587", "sender": "a@b", "password_env": "x"}, "goes with one of"),
    ({"smtp": "m.example:587", "sender": "a@b", "user": "x", "password_file": "../p"}, "name of a file"),
    ({"smtp": "m.example:587", "sender": "a@b", "user": "x", "password_env": "P", "tls": "none"}, "without TLS"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path, values, why):
    with pytest.raises(Malformed, match=why):
        _mail(tmp_path, **values)
