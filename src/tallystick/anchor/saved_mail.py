"""A checkpoint out of whatever somebody saved: the mail as it came (.eml, .emlx, a mailbox file), a part of it, its text.

Understood: RFC 5322 and MIME with quoted-printable or base64, CRLF, ``From `` and ``>From `` of mailbox files, mails forwarded as
attachments or quoted with ``>``, signature lines that a client broke, and the text alone in UTF-8, UTF-16 or windows-1252. An HTML
part is looked at only where no other part has a checkpoint.

Nothing is believed here: whoever calls verifies the note under keys that he trusts. So reading may be lax about wrapping, and must
be strict about resources, since the file comes from outside: 8 MiB, 200 parts, 6 levels, 1,000 candidates, no expression whose time
grows faster than its text. Own code and not ``email.parser``, which recurses as deep as the mail says.
"""

from __future__ import annotations

import binascii
import html
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..core.checkpoint import EXTENSIONS_MAX, Checkpoint
from ..core.errors import Malformed
from ..core.note import NOTE_BYTES_MAX, SIGNATURES_MAX, Signature, split

SAVED_BYTES_MAX = 8 << 20
PARTS_MAX = 200
DEPTH_MAX = 6
CANDIDATES_MAX = 1000

_MARK = "— "
_BOM = b"\xef\xbb\xbf"
_HEADER = re.compile(rb"[!-9;-~]{1,100}[ \t]*:")  # RFC 5322 §2.2: printable ASCII but the colon
_HEADERS_BYTES_MAX = 1 << 18
_TYPE_CHARACTERS_MAX = 2048
_PARAMETER = re.compile(r""";\s*(boundary|charset)\s*=\s*("[^"]*"|[^\s;"]+)""", re.IGNORECASE)
_SIZE = re.compile(r"[0-9]{1,19}", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)
_QUOTED = re.compile(r"[ \t\xa0]*(?:>[ \t]?)*[ \t\xa0]*")
_BREAK = re.compile(r"<(?:br|/p|/div|/pre|/tr|/li|/h[1-6]|/style|/title|/?head|/?body)\b[^<>]{0,200}>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,2000}>")
_BLANK_MAX = 4
_BROKEN_MAX = 100  # pieces of one signature line: ML-DSA-44 has 3,300 characters
_PICTURES = ("image/", "audio/", "video/", "font/")
# what mail programs write; not every name that Python knows as a codec is one for text, or quick
_CHARSETS = frozenset({
    "utf-8", "utf-16", "utf-16le", "utf-16be", "iso-8859-1", "iso-8859-2", "iso-8859-15", "gb2312", "gbk", "gb18030", "big5",
    "shift_jis", "iso-2022-jp", "euc-jp", "euc-kr", "koi8-r", "koi8-u", *(f"windows-125{n}" for n in range(9)),
})  # fmt: skip


def find_note(data: bytes) -> bytes:
    """The one checkpoint's note in ``data``, with every signature line found on it; a bare note comes back as it is. Unverified.

    ``Malformed`` where there is none, or where there are checkpoints that differ; it says what was seen instead.
    """
    data = data.removeprefix(_BOM)  # else a valid note of an origin that begins with it
    if _is_note(data):
        return data
    notes, seen = _search(data)
    if not notes:
        raise Malformed(
            f"no checkpoint in it: {seen}. A checkpoint is a name, a number and a hash in three lines, an empty line, and lines that "
            "begin with an em dash (—). Save the mail itself (.eml), not a picture or print of it"
        )
    if len(notes) > 1:
        heads = sorted({(c.size, c.origin) for c in map(Checkpoint.parse, notes)})
        shown = ", ".join(f"{size:,} entries of {origin[:80]}" for size, origin in heads[:4])
        more = ", …" if len(heads) > 4 else ""
        raise Malformed(f"{len(notes)} different checkpoints in it ({shown}{more}): save the one that you mean")
    ((text, lines),) = notes.items()
    return _join(text, lines)


def find_notes(data: bytes) -> list[bytes]:
    """All checkpoints' notes in ``data`` (a folder of mails exported as one file), each text once. Unverified; ``Malformed`` only for
    what is too large or too many."""
    data = data.removeprefix(_BOM)
    if _is_note(data):
        return [data]
    return [_join(text, lines) for text, lines in _search(data)[0].items()]


def _join(text: str, lines: tuple[Signature, ...]) -> bytes:
    return (text + "\n" + "".join(s.format() + "\n" for s in lines)).encode()


def _is_note(data: bytes) -> bool:
    if len(data) > NOTE_BYTES_MAX:
        return False
    try:
        Checkpoint.parse(split(data)[0])
    except Malformed:
        return False
    return True


def _search(data: bytes) -> tuple[dict[str, tuple[Signature, ...]], str]:
    """Checkpoint texts with their signature lines, and, for an error, what else there is."""
    if len(data) > SAVED_BYTES_MAX:
        raise Malformed(f"more than {SAVED_BYTES_MAX:,} bytes; save the mail alone, without what is attached to others")
    found, parts = _Found(), _Parts()
    pages = []
    for message in _messages(data):
        for kind, text in parts.of(message, 0):
            if kind == "text/html":
                pages.append(text)
            else:
                found.look(text)
    if not found.notes:
        for page in pages:
            found.look(_plain(page))
    if not found.notes:
        found.look(_decode(data, ""))  # the text of a mail that was saved with lines that only look like MIME
    seen = f"{len(data):,} bytes" + (f", parts {', '.join(sorted(parts.kinds)[:6])}" if parts.kinds else ", no mail with headers")
    if found.why:
        seen += f"; something like one, but {found.why}"
    return found.notes, seen


# -- mails and their parts (RFC 5322, RFC 2045, RFC 2046) -----------------------------------------------------------------------


def _messages(data: bytes) -> Iterator[bytes]:
    """The mails of a mailbox file, or the one mail, or the text; lines end in LF."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = _decode(data, "utf-16").encode()
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").lstrip(b"\n")
    first = data[: data.find(b"\n") + 1]
    if first.strip().isdigit() and _HEADER.match(data, len(first)):  # .emlx begins with its length
        data = data[len(first) :]
    if not data.startswith(b"From "):
        yield data
        return
    for message in (b"\n\n" + data).split(b"\n\nFrom ")[1:]:
        yield message[message.find(b"\n") + 1 :]


@dataclass(slots=True)
class _Parts:
    """Walks the parts of mails; the number of parts is bounded over all of them."""

    count: int = 0
    kinds: set[str] = field(default_factory=set)

    def of(self, message: bytes, depth: int) -> Iterator[tuple[str, str]]:
        """(media type, text) of every leaf that may hold text."""
        self.count += 1
        if self.count > PARTS_MAX or depth > DEPTH_MAX:
            raise Malformed(f"a mail of more than {PARTS_MAX} parts or {DEPTH_MAX} levels; save the mail alone")
        headers, body = _headers(message) if _HEADER.match(message) or depth else ({}, message)
        kind, boundary, charset = _media_type(headers.get("content-type", ""))
        if headers:
            self.kinds.add(kind)
        if kind.startswith("multipart/") and boundary:
            for part in _split(body, boundary.encode()):
                yield from self.of(part, depth + 1)
            return
        if kind.startswith(_PICTURES):
            return
        raw = _transfer_decode(body, headers.get("content-transfer-encoding", "").strip().lower())
        if kind == "message/rfc822":
            yield from self.of(raw.replace(b"\r\n", b"\n").lstrip(b"\n"), depth + 1)
        else:
            yield kind, _decode(raw, charset)


def _headers(message: bytes) -> tuple[dict[str, str], bytes]:
    """Header fields by lower-case name, the first of each, unfolded; and what follows the empty line."""
    if message.startswith(b"\n"):
        return {}, message[1:]
    head, _, body = message.partition(b"\n\n")
    if len(head) > _HEADERS_BYTES_MAX:
        raise Malformed("a mail with more than 256 KiB of headers")
    found: dict[str, str] = {}
    for line in re.sub(r"\n[ \t]+", " ", head.decode("latin-1")).split("\n"):
        name, _, value = line.partition(":")
        found.setdefault(name.strip().lower(), value)
    return found, body


def _media_type(value: str) -> tuple[str, str, str]:
    """Media type, boundary and charset of a Content-Type (RFC 2045 §5.1)."""
    value = value[:_TYPE_CHARACTERS_MAX]
    kind = value.partition(";")[0].strip().lower() or "text/plain"
    known: dict[str, str] = {}
    for name, given in _PARAMETER.findall(value):
        known.setdefault(name.lower(), given.strip('"'))
    return kind[:60], known.get("boundary", "")[:70], known.get("charset", "").lower()  # RFC 2046 §5.1.1: 70 characters


def _split(body: bytes, boundary: bytes) -> list[bytes]:
    """The parts between the lines of a boundary; what stands before the first and after the last is not one."""
    lines = re.split(rb"^--" + re.escape(boundary) + rb"(--)?[ \t]*\n", body + b"\n", maxsplit=PARTS_MAX + 1, flags=re.MULTILINE)
    parts = []
    for end, part in zip(lines[1::2], lines[2::2], strict=True):
        if end:
            break
        parts.append(part)
    return parts


def _transfer_decode(body: bytes, encoding: str) -> bytes:
    """RFC 2045 §6. What is not the encoding that it says is looked at as it is."""
    if encoding == "quoted-printable":
        return quopri.decodestring(body)
    if encoding == "base64":
        try:
            return binascii.a2b_base64(body)
        except binascii.Error:
            return body
    return body


def _decode(raw: bytes, charset: str) -> str:
    """Text with LF. In UTF-8 unless the mail says otherwise and truly; last as windows-1252, which has the em dash at 0x97."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        charset = "utf-16"
    for name in (charset if charset in _CHARSETS else "utf-8", "utf-8"):
        try:
            text = raw.decode(name)
            break
        except UnicodeDecodeError:
            continue
    else:
        text = raw.decode("cp1252", "replace")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _plain(page: str) -> str:
    """The lines of an HTML part; no more is understood of it."""
    if "<pre" not in page.lower():
        page = page.replace("\n", " ")
    return html.unescape(_TAG.sub("", _BREAK.sub("\n", page)))


# -- checkpoints in text -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """Checkpoints by their text; ``why`` is what is wrong with the first that looked like one."""

    notes: dict[str, tuple[Signature, ...]] = field(default_factory=dict)
    why: str = ""
    candidates: int = 0

    def look(self, text: str) -> None:
        """Take up every note in a text."""
        if _MARK.strip() not in text:
            return
        lines = text.split("\n")
        done = 0
        for at, line in enumerate(lines):
            if at < done or _MARK not in line or not _unquoted(line).startswith(_MARK):
                continue
            self.candidates += 1
            if self.candidates > CANDIDATES_MAX:
                raise Malformed(f"more than {CANDIDATES_MAX:,} things that look like a checkpoint; save the mail alone")
            signatures, done = _signature_lines(lines, at)
            self._take(_paragraph(lines, at), signatures)

    def _take(self, paragraph: list[str], lines: list[str]) -> None:
        try:
            checkpoint = _checkpoint(paragraph)
            if checkpoint is None:
                return
            text = checkpoint.format()
            fresh = split((text + "\n" + "".join(f"{line}\n" for line in lines)).encode("utf-8", "replace"))[1]
        except Malformed as e:
            self.why = self.why or str(e)
            return
        known = self.notes.get(text, ())
        ids = {(s.name, s.key_id) for s in known}
        self.notes[text] = known + tuple(s for s in fresh if (s.name, s.key_id) not in ids)


def _unquoted(line: str) -> str:
    """Without what clients put before and after a line."""
    quoted = _QUOTED.match(line)
    return line[quoted.end() if quoted else 0 :].rstrip(" \t\xa0")


def _paragraph(lines: list[str], end: int) -> list[str]:
    """The lines above the empty ones that end before ``end``: no more than a checkpoint can have and one. Empty if none are empty."""
    found: list[str] = []
    blank = 0
    for line in map(_unquoted, reversed(lines[max(0, end - _BLANK_MAX - EXTENSIONS_MAX - 4) : end])):
        if line:
            if not blank:
                return []
            found.append(line)
        elif found or blank == _BLANK_MAX:
            break
        else:
            blank += 1
    return found[::-1]


def _checkpoint(paragraph: list[str]) -> Checkpoint | None:
    """The checkpoint that ends a paragraph; above it may stand who is quoted. None if nothing there looks like one."""
    for start in range(len(paragraph) - 2):
        if _SIZE.fullmatch(paragraph[start + 1]) and len(paragraph[start + 2]) == 44:
            return Checkpoint.parse("".join(f"{line}\n" for line in paragraph[start:]))
    return None


def _signature_lines(lines: list[str], at: int) -> tuple[list[str], int]:
    """The signature lines from ``at`` on, those that a client broke put together again; and where they end."""
    found: list[str] = []
    while at < len(lines) and (line := _unquoted(lines[at])).startswith(_MARK) and len(found) <= SIGNATURES_MAX:
        pieces = [line + (" " if line.count(" ") == 1 else "")]  # it broke between name and signature
        at += 1
        while at < len(lines) and len(pieces) < _BROKEN_MAX and _BASE64.fullmatch(piece := _unquoted(lines[at])):
            pieces.append(piece)
            at += 1
        found.append("".join(pieces))
    return found, at
