"""Whatever a person saved of the mail with a checkpoint is understood; what is hostile costs little and is refused."""

from __future__ import annotations

import base64
import email.policy
import quopri
import time
from email.message import EmailMessage

import pytest

from tallystick.anchor.saved_mail import CANDIDATES_MAX, SAVED_BYTES_MAX, find_note, find_notes
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.cosignature import CosignerKey
from tallystick.core.errors import Malformed
from tallystick.core.note import COSIGNATURE_ML_DSA_44, SignerKey, split

ORIGIN = "srv2/invoices/0f3a9c21b7de"
LOG, EPOCH = SignerKey.generate(ORIGIN), SignerKey.generate(ORIGIN)
NOTE = sign_checkpoint(Checkpoint(ORIGIN, 18_267, bytes(range(32))), EPOCH, LOG)
OTHER = sign_checkpoint(Checkpoint(ORIGIN, 18_300, bytes(range(1, 33))), EPOCH, LOG)
TEXT = NOTE.decode()
BODY = f"Dear auditor,\n\nthis is the checkpoint — keep it.\n\n{TEXT}\n-- \nsent by a machine\n"


def _mail(body=BODY, cte="quoted-printable", charset="utf-8", **more):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "tally@srv2.example", "auditor@kanzlei.example", "checkpoint 18267 of srv2"
    mail.set_content(body, cte=cte, charset=charset, **more)
    return mail


def _bytes(mail, newline="\r\n"):
    return mail.as_bytes(policy=email.policy.SMTP if newline == "\r\n" else email.policy.default)


def _forwarded():
    outer = _mail("see below\n")
    outer.add_attachment(_mail())
    return _bytes(outer)


def _alternative():
    mail = _mail()
    mail.add_alternative(f"<html><body><pre>{TEXT}</pre></body></html>", subtype="html")
    mail.add_attachment(bytes(5000), maintype="image", subtype="png", filename="logo.png")
    return _bytes(mail)


def _html_only(lines="".join(f"<div>{line or '<br>'}</div>\n" for line in TEXT.split("\n"))):
    mail = EmailMessage()
    mail["From"] = "a@b.example"
    mail.set_content(f"<html><head><style>p {{}}</style></head><body>\n{lines}</body></html>", subtype="html")
    return _bytes(mail)


def _attached(cte="base64"):
    mail = _mail("in the file\n")
    mail.add_attachment(NOTE, maintype="application", subtype="octet-stream", filename="18267.checkpoint", cte=cte)
    return _bytes(mail)


def _wrapped(width):
    lines = []
    for line in TEXT.split("\n"):
        if line.startswith("— "):
            name, _, signature = line[2:].partition(" ")
            lines += [f"— {name}", *(signature[at : at + width] for at in range(0, len(signature), width))]
        else:
            lines.append(line)
    return "\n".join(lines)


def _quoted(mark):
    return "\n".join(mark + line for line in TEXT.split("\n"))


EIGHT_BIT = _bytes(_mail(cte="8bit"))
FORMS = {
    "the note itself": NOTE,
    "the note with CRLF": NOTE.replace(b"\n", b"\r\n"),
    "the note with a byte order mark": b"\xef\xbb\xbf" + NOTE,
    "the note as Notepad's Unicode": TEXT.encode("utf-16"),
    "the note in windows-1252": TEXT.encode("cp1252"),
    "the body as text": BODY.encode(),
    "the body as text, CRLF": BODY.replace("\n", "\r\n").encode(),
    "headers that a client prints, and the body": b"Betreff: Pr\xc3\xbcfpunkt\nVon: tally\n\n" + BODY.encode(),
    "quoted-printable": _bytes(_mail()),
    "quoted-printable with LF": _bytes(_mail(), "\n"),
    "quoted-printable in windows-1252": _bytes(_mail(charset="windows-1252")),
    "base64": _bytes(_mail(cte="base64")),
    "8bit": EIGHT_BIT,
    "8bit, said to be us-ascii": EIGHT_BIT.replace(b'charset="utf-8"', b"charset=us-ascii"),
    "utf-16": b"Content-Type: text/plain; charset=UTF-16\nContent-Transfer-Encoding: base64\n\n" + base64.encodebytes(BODY.encode("utf-16")),
    "a mailbox": b"From tally@srv2 Tue Nov 24 02:00:00 2026\n" + _bytes(_mail(), "\n") + b"\n",
    "a mailbox of two mails": b"From a Tue\n" + _bytes(_mail("nothing here\n"), "\n") + b"\nFrom b Tue\n" + _bytes(_mail(), "\n"),
    "emlx": b"%d      \n" % len(_bytes(_mail(), "\n")) + _bytes(_mail(), "\n") + b'<?xml version="1.0"?>\n<plist></plist>\n',
    "text and HTML": _alternative(),
    "HTML only, as a client composes it": _html_only(),
    "HTML only, preformatted": _html_only(f"<pre>{TEXT}</pre>"),
    "HTML only, with breaks": _html_only("<p>" + TEXT.replace("\n", "<br/>\n") + "</p>"),
    "forwarded as an attachment": _forwarded(),
    "attached as a file": _attached(),
    "quoted in an answer": f"On Tuesday, tally wrote:\n{_quoted('> ')}\nthanks\n".encode(),
    "quoted without spaces": _quoted(">").encode(),
    "quoted twice": _quoted("> > ").encode(),
    "quoted right under who wrote it": f"On Tuesday, tally wrote:\n{_quoted('> ')}".encode(),
    "indented": _quoted("    ").encode(),
    "signatures broken at 76": _wrapped(76).encode(),
    "signatures broken at 40, quoted": "\n".join("> " + line for line in _wrapped(40).split("\n")).encode(),
    "format=flowed with spaces at the ends": _bytes(_mail(BODY.replace("\n", " \n"))),
    "no newline at the end": NOTE.removesuffix(b"\n"),
    "an empty line too many": TEXT.replace("\n\n", "\n\n\n").encode(),
    "with a transfer encoding that is a lie": EIGHT_BIT.replace(b"Encoding: 8bit", b"Encoding: base64"),
    "a boundary that is not there": b'Content-Type: multipart/mixed; boundary="x"\n\n' + BODY.encode(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_mail_is_understood(form):
    assert find_note(FORMS[form]) == NOTE
    assert find_notes(FORMS[form]) == [NOTE]


def test_each_form_is_another_text():
    assert len(set(FORMS.values())) == len(FORMS)


def test_a_cosignature_of_3300_characters_survives_quoted_printable_and_wrapping():
    key = CosignerKey("witness.example/w1", COSIGNATURE_ML_DSA_44, bytes(32))
    line = key.cosign(Checkpoint.parse(split(NOTE)[0]), 1_800_000_000).format()
    whole = NOTE + line.encode() + b"\n"
    assert len(line) > 3200
    assert find_note(_bytes(_mail(whole.decode()))) == whole
    assert find_note((TEXT + "\n".join(line[at : at + 72] for at in range(0, len(line), 72))).encode()) == whole


def test_the_same_checkpoint_twice_is_one_with_all_lines():
    text, (first, second) = split(NOTE)
    one, two = (f"{text}\n{s.format()}\n" for s in (first, second))
    assert find_note(f"first\n\n{one}\nand\n\n{two}".encode()) == NOTE


def test_a_foreign_origin_that_looks_like_a_header():
    note = sign_checkpoint(Checkpoint("Log: of somebody", 5, bytes(range(32))), LOG)
    assert find_note(b"\n" + note.replace(b"\n", b"\r\n")) == note


def test_different_checkpoints_are_refused_with_what_they_are():
    with pytest.raises(Malformed, match=r"2 different checkpoints in it \(18,267 entries of srv2/invoices/0f3a9c21b7de, 18,300"):
        find_note(BODY.encode() + OTHER)
    assert find_notes(BODY.encode() + OTHER) == [NOTE, OTHER]


@pytest.mark.parametrize(("data", "why"), [
    (b"", "0 bytes, no mail with headers"),
    (b"hello\n", "no checkpoint in it"),
    (_bytes(_mail("nothing\n")), "parts text/plain"),
    (b"\x89PNG\r\n\x1a\n" + bytes(1000), "no checkpoint in it"),
    (TEXT.replace("\n\n—", "\n\n-").replace("\n—", "\n-").encode(), "no checkpoint in it"),
    (TEXT.replace("18267", "018267").encode(), "something like one, but not a decimal number"),
    (TEXT.replace("ID", "").replace("AAECAwQF", "AAECAwQ!").encode(), "something like one, but not base64"),
    (TEXT[: TEXT.index("\n— ")].encode(), "no checkpoint in it"),
    (TEXT.replace("—", "â€”").encode(), "no checkpoint in it"),
])  # fmt: skip
def test_what_is_none_is_refused_with_what_was_seen(data, why):
    assert data != NOTE
    with pytest.raises(Malformed, match=why):
        find_note(data)


def test_every_altered_byte_gives_another_note_or_none():
    """Reading is lax about wrapping, never about what is signed: it does not repair."""
    for at in range(len(NOTE)):
        altered = NOTE[:at] + bytes([NOTE[at] ^ 1]) + NOTE[at + 1 :]
        try:
            found = find_note(altered)
        except Malformed:
            continue
        text, lines = split(found)
        assert (text, set(lines)) != (split(NOTE)[0], set(split(NOTE)[1]))


def _nested(levels):
    data = BODY.encode()
    for number in range(levels):
        data = b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (number, number) + data + b"\n--b%d--\n" % number
    return data


def _messages_in_messages(levels):
    return b"Content-Type: message/rfc822\n\n" * levels + BODY.encode()


MEGABYTE = 1 << 20
HOSTILE = {
    "multiparts 5,000 deep": _nested(5000),
    "messages 50,000 deep": _messages_in_messages(50_000),
    "100,000 parts": b'Content-Type: multipart/mixed; boundary="x"\n\n' + b"--x\n\n\n" * 100_000,
    "100,000 mails": b"From a\nX: y\n\nz\n\n" * 100_000,
    "headers without end": b"A: b\n" * MEGABYTE,
    "one header of 8 MiB": b"Content-Type: " + b'; boundary="' * 600_000,
    "200,000 dashes": "\n\n— ".encode() * 200_000,
    "200,000 near checkpoints": ("x\n1\n" + "A" * 44 + "\n\n— \n").encode() * 100_000,
    "a signature line of 8 MiB in pieces": ("x\n1\n" + "A" * 43 + "=\n\n— x\n").encode() + b"AAA=\n" * 1_500_000,
    "brackets": b"Content-Type: text/html\n\n" + "—".encode() + b"<" * (7 * MEGABYTE),
    "brackets and letters": b"Content-Type: text/html\n\n" + "—".encode() + b"<aaaaaaaa" * (MEGABYTE // 2),
    "breaks": b"Content-Type: text/html\n\n" + "—".encode() + b"<br" * (2 * MEGABYTE),
    "quotes": "—\n".encode() + b"> " * (3 * MEGABYTE),
    "blank lines": "—\n".encode() + b"\n" * (7 * MEGABYTE),
    "dashes of a boundary": b'Content-Type: multipart/mixed; boundary="-"\n\n' + b"-" * (7 * MEGABYTE),
    "spaces after a boundary": b'Content-Type: multipart/mixed; boundary="x"\n\n--x' + b" " * (7 * MEGABYTE) + b"y",
    "a codec that is none for text": b"Content-Type: text/plain; charset=unicode_escape\n\n" + b"\\x" * (3 * MEGABYTE),
    "numbers": ("—\n" + "9" * (7 * MEGABYTE)).encode(),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_hostile_is_refused_in_bounded_time(what):
    began = time.process_time()
    with pytest.raises(Malformed):
        find_note(HOSTILE[what])
    assert time.process_time() - began < 8, "on a slow machine one second"


def test_more_than_8_mib_is_not_looked_at():
    with pytest.raises(Malformed, match="more than 8,388,608 bytes"):
        find_note(bytes(SAVED_BYTES_MAX + 1))


def test_more_candidates_than_a_mail_has_are_refused():
    with pytest.raises(Malformed, match="more than 1,000 things"):
        find_note((TEXT + "\nx\n") .encode() * (CANDIDATES_MAX + 1))


def test_transfer_encodings_are_decoded_not_guessed():
    assert find_note(b"Content-Transfer-Encoding: quoted-printable\n\n" + quopri.encodestring(NOTE)) == NOTE
    assert find_note(b"content-transfer-encoding:   BASE64\n\n" + base64.encodebytes(NOTE)) == NOTE
