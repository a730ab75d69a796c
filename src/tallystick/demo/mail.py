"""What comes in: ``.eml`` files (RFC 5322, read with the standard library) and plain text, for example scanned post.

Mails from outside are never quite right: unknown character sets, HTML only, raw bytes in headers. Reading does its
best and never fails over content; a mail that cannot be read as a file is an ``OSError`` and the caller's business.
"""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

MAIL_BYTES_MAX = 5_000_000


class Mail(NamedTuple):
    """One mail as the automation sees it. ``case`` names it everywhere: in the log, in ``out/``, in the ledger."""

    case: str
    path: Path
    sender: str
    subject: str
    text: str


def list_inbox(folder: Path) -> list[Path]:
    """The mails of a folder in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix in (".eml", ".txt") and p.is_file())


def read_mail(path: Path) -> Mail:
    """Parse one file. Attached text belongs to the text; other attachments are only named."""
    with path.open("rb") as file:
        content = file.read(MAIL_BYTES_MAX)
    if path.suffix == ".txt":
        text = _decoded(content)
        return Mail(path.stem, path, "", " ".join(text.strip().partition("\n")[0].split()), text)
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return Mail(path.stem, path, _header(message, "From"), _header(message, "Subject"), _text_of(message))


def _header(message: EmailMessage, name: str) -> str:
    raw = next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")
    if any("\udc80" <= char <= "\udcff" for char in raw):  # bytes that no header may hold, and many do
        return _decoded(raw.encode("utf-8", "surrogateescape")).strip()
    return _whole(str(message.get(name, ""))).strip()


def _text_of(message: EmailMessage) -> str:
    body = message.get_body(preferencelist=("plain", "html"))
    texts = [_part_text(body)] if isinstance(body, EmailMessage) else []
    for part in message.iter_attachments():
        name = part.get_filename() or "without a name"
        if isinstance(part, EmailMessage) and part.get_content_maintype() == "text":
            texts.append(f"[attachment {name}]\n{_part_text(part)}")
        else:
            texts.append(f"[attachment {name}, not read]")
    return "\n\n".join(text.strip() for text in texts)


def _part_text(part: EmailMessage) -> str:
    try:
        text = part.get_content()
    except (LookupError, UnicodeError):  # a character set that nobody knows, or not the one that was declared
        text = part.get_payload(decode=True)
    if isinstance(text, bytes):
        text = _decoded(text)
    text = _whole(str(text))
    return _without_tags(text) if part.get_content_subtype() == "html" else text


def _decoded(content: bytes) -> str:
    """UTF-8 if it is, else what most mails are that are not."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _whole(text: str) -> str:
    """Without lone surrogates, in which the parser keeps bytes that it could not decode."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _without_tags(html: str) -> str:
    parser = _Words()
    parser.feed(html)
    parser.close()
    return "".join(parser.words)
