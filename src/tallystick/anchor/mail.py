"""The anchor of kind ``mail``: a checkpoint by e-mail, by the machine's ``sendmail`` or by SMTP (RFC 5321, RFC 6409).

The body is plain text: what it is, in words; how to use it; the note as it is. Quoted-printable, since a note holds an em dash and
lines longer than a mail's 998 characters; ``saved_mail`` finds it again in whatever the receiver saved.

Handed to ``sendmail`` or accepted by a server is ``sent``: nothing says that it arrived, and whoever holds the mailbox can delete it.

The password comes from a file in the key folder or from an environment variable, never from ``log.toml``; no error holds it, nor what
a server said after it was told to it.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..clock import CLOCK, Clock
from ..core.checkpoint import Checkpoint
from ..core.errors import ConfigError, Malformed, OutsideError
from ..core.note import split
from ..core.times import format_time, to_datetime
from . import Handed

if TYPE_CHECKING:  # a program that never sends a mail loads neither TLS nor SMTP
    import smtplib
    import ssl
    from email.message import EmailMessage

SENDMAIL = "/usr/sbin/sendmail"
TLS = ("starttls", "tls", "none")
TIMEOUT_S = 30
RECIPIENTS_MAX = 20
_PASSWORD_BYTES_MAX = 1024
# a mail address, or a user of this machine
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}|[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_SERVER = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):([0-9]{1,5})", re.ASCII)
_STATUS = re.compile(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}")  # RFC 3463
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class MailSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="mail", tag_field="kind"):
    """``to``: addresses, joined by commas. By ``sendmail`` (a path) unless ``smtp`` (``host:port``) is given, which needs ``from``.
    ``tls``: ``starttls``, ``tls`` or ``none``; ``ca``: a PEM file of a private authority. With ``user``: the password is in
    ``password_file`` (a name in the key folder, 0600) or in the environment variable ``password_env``."""

    name: str
    to: str
    sender: str = msgspec.field(name="from", default="")
    sendmail: str = SENDMAIL
    smtp: str = ""
    tls: str = "starttls"
    ca: str = ""
    user: str = ""
    password_file: str = ""
    password_env: str = ""

    def check(self) -> None:
        """``Malformed`` for values that cannot be."""
        addresses = self.recipients
        if not addresses or len(addresses) > RECIPIENTS_MAX or not all(map(_ADDRESS.fullmatch, addresses)):
            raise Malformed(f"to is 1 to {RECIPIENTS_MAX} mail addresses, joined by commas")
        if self.sender and not _ADDRESS.fullmatch(self.sender):
            raise Malformed("from is one mail address")
        if not self.sendmail.startswith("/"):
            raise Malformed("sendmail is an absolute path")
        if self.tls not in TLS:
            raise Malformed(f"tls is one of {', '.join(TLS)}")
        if not self.smtp:
            if self.user or self.password_file or self.password_env or self.ca:
                raise Malformed("user, password and ca belong to smtp")
            return
        server = _SERVER.fullmatch(self.smtp)
        if server is None or not 0 < int(server[2]) < 65_536:
            raise Malformed("smtp is host:port, such as mail.example:587")
        if not self.sender:
            raise Malformed("smtp needs from, the address that it is sent by")
        if bool(self.user) is not bool(self.password_file or self.password_env) or (self.password_file and self.password_env):
            raise Malformed("user goes with one of password_file and password_env")
        if "/" in self.password_file or self.password_file in (".", ".."):
            raise Malformed("password_file is the name of a file in the key folder")
        if self.user and self.tls == "none" and server[1] not in _LOOPBACK:
            raise Malformed("a password does not go over the network without TLS")
        if not _is_ascii(self.user):
            raise Malformed("user is one line of ASCII")

    @property
    def recipients(self) -> list[str]:
        return [address.strip() for address in self.to.split(",")]

    @property
    def target(self) -> str:
        return self.to


class Mail:
    """Sends checkpoints. ``keys``: the key folder, where ``password_file`` is; ``log``: to which ``ca`` is relative."""

    kind = "mail"

    def __init__(self, settings: MailSettings, log: Path, keys: Path, clock: Clock = CLOCK) -> None:
        self.name, self.target = settings.name, settings.target
        self._settings, self._log, self._keys, self._clock = settings, log, keys, clock

    def hand_over(self, size: int, note: bytes) -> Handed:  # noqa: ARG002
        """``sent``: taken in by the mail system for every recipient."""
        import email.policy

        mail = compose(note, self._settings.recipients, self._settings.sender, self._clock.wall_us())
        if self._settings.smtp:
            self._submit(mail)
        else:
            self._pipe(mail.as_bytes(policy=email.policy.default))  # sendmail takes the local newline
        return Handed("sent")

    def _pipe(self, mail: bytes) -> None:
        """sendmail -i: a line with a single dot is no end; -t: the recipients are those of the header."""
        program = self._settings.sendmail
        try:
            done = subprocess.run([program, "-i", "-t"], input=mail, capture_output=True, check=False, timeout=2 * TIMEOUT_S)
        except FileNotFoundError:
            raise OutsideError(f"{program} is not there; install a mail system, or name a server: --smtp HOST:PORT") from None
        except OSError as e:
            raise OutsideError(f"{program}: {e.strerror}") from e
        except subprocess.TimeoutExpired:
            raise OutsideError(f"{program} did not end within {2 * TIMEOUT_S} s") from None
        if done.returncode:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
            raise OutsideError(f"{program} ended with {done.returncode}{': ' if said else ''}{said}")

    def _submit(self, mail: EmailMessage) -> None:
        password, problem = self._password(), ""
        context = None if self._settings.tls == "none" else self._context()
        try:
            refused = self._send(mail, password, context)
        except (OSError, ValueError) as e:  # smtplib's are OSError
            problem = self._problem(e)
        if problem:  # raised here and not there: a server may repeat what it was told, and no context carries that on
            raise OutsideError(problem)
        if refused:
            count = len(self._settings.recipients)
            raise OutsideError(f"{self._settings.smtp} took it for {count - len(refused)} of {count} recipients: refused for "
                               f"{', '.join(refused)}")  # fmt: skip

    def _send(self, mail: EmailMessage, password: str, context: ssl.SSLContext | None) -> dict[str, tuple[int, bytes]]:
        with self._connection(context) as server:
            if self._settings.user:
                server.login(self._settings.user, password)
            return server.send_message(mail)

    def _connection(self, context: ssl.SSLContext | None) -> smtplib.SMTP:
        import smtplib

        host, _, port = self._settings.smtp.rpartition(":")
        host = host.strip("[]")
        if context is None:
            return smtplib.SMTP(host, int(port), timeout=TIMEOUT_S)
        if self._settings.tls == "tls":
            return smtplib.SMTP_SSL(host, int(port), timeout=TIMEOUT_S, context=context)
        server = smtplib.SMTP(host, int(port), timeout=TIMEOUT_S)
        try:
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
        return server

    def _context(self) -> ssl.SSLContext:
        import ssl

        try:
            return ssl.create_default_context(cafile=str(self._log / self._settings.ca) if self._settings.ca else None)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"anchor {self.name}: ca = {self._settings.ca}: {e}") from None

    def _password(self) -> str:
        settings = self._settings
        if settings.password_env:
            password = os.environ.get(settings.password_env, "")
            if not password or not _is_ascii(password):
                raise ConfigError(f"anchor {self.name}: environment variable {settings.password_env} is not set here, or not ASCII")
            return password
        if not settings.password_file:
            return ""
        path = self._keys / settings.password_file
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                mode = os.fstat(fd).st_mode
                data = file.read(_PASSWORD_BYTES_MAX + 1)
        except OSError as e:
            raise ConfigError(f"anchor {self.name}: {path}: {e.strerror}") from None
        if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"anchor {self.name}: {path} can be read by others (mode {mode & 0o777:03o}); run: chmod 600 {path}")
        line = data.decode("latin-1").removesuffix("\n")
        if not 0 < len(line) < _PASSWORD_BYTES_MAX or not _is_ascii(line):
            raise ConfigError(f"anchor {self.name}: {path} is not one line of ASCII with a password")
        return line

    def _problem(self, error: Exception) -> str:
        """What went wrong, in words of ours: codes of the server's answer, never its text."""
        import smtplib
        import ssl

        where = self._settings.smtp
        if isinstance(error, smtplib.SMTPAuthenticationError):
            return f"{where} did not take user and password ({error.smtp_code})"
        if isinstance(error, smtplib.SMTPRecipientsRefused):
            return f"{where} refused every recipient ({', '.join(sorted({_reply(*r) for r in error.recipients.values()}))})"
        if isinstance(error, smtplib.SMTPResponseException):
            return f"{where} answered {_reply(error.smtp_code, error.smtp_error)}"
        if isinstance(error, smtplib.SMTPNotSupportedError):
            login = ", a login" if self._settings.user else ""
            return f"{where} does not offer what is asked of it (tls = \"{self._settings.tls}\"{login})"
        if isinstance(error, smtplib.SMTPException):
            return f"{where}: {type(error).__name__.removeprefix('SMTP')}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"{where} is not who it says: {error.verify_message}"
        return f"{where} was not reached: {getattr(error, 'strerror', None) or type(error).__name__}"


def _is_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable()  # RFC 4616 would take UTF-8; smtplib does not


def _reply(code: int, text: bytes | str) -> str:
    status = _STATUS.search(text.encode() if isinstance(text, str) else text)
    return f"{code} {status[0].decode()}" if status else str(code)


def compose(note: bytes, to: list[str], sender: str, now_us: int) -> EmailMessage:
    """The mail with one note. ``Malformed`` for what is no checkpoint."""
    from email.message import EmailMessage
    from email.utils import format_datetime, make_msgid

    checkpoint = Checkpoint.parse(split(note)[0])
    when = format_time(now_us)[:16].replace("T", " ")
    mail = EmailMessage()
    mail["To"] = ", ".join(to)
    if sender:
        mail["From"] = sender
    mail["Subject"] = f"Checkpoint of {checkpoint.origin}: {checkpoint.size:,} entries"
    mail["Date"] = format_datetime(to_datetime(now_us))
    mail["Message-ID"] = make_msgid("tallystick", sender.partition("@")[2] or "tallystick.invalid")
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday notes in answer
    mail.set_content(
        f"The audit log {checkpoint.origin} had {checkpoint.size:,} entries at {when} UTC.\n"
        "Keep this mail where whoever runs that machine cannot delete it: with it, a log that was cut or rewritten is found out.\n"
        f"To check: save it as a file, then  tally verify LOG --checkpoint FILE\n\n{note.decode()}",
        cte="quoted-printable", charset="utf-8",
    )  # fmt: skip
    return mail
