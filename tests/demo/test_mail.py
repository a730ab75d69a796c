"""Mails are never quite right, and are read anyway."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tallystick.demo
from tallystick.demo.mail import list_inbox, read_mail
from tallystick.demo.triage import figures_in

INBOX = Path(tallystick.demo.__file__).with_name("inbox")
MAILS = {path.stem[:2]: path for path in list_inbox(INBOX)}


def test_there_are_ten_to_fourteen_and_their_names_are_their_order():
    assert 10 <= len(MAILS) <= 14
    assert list(MAILS) == sorted(MAILS)


@pytest.mark.parametrize("path", MAILS.values(), ids=lambda p: p.stem)
def test_each_shipped_mail_is_read_whole(path):
    mail = read_mail(path)
    assert mail.case == path.stem
    assert mail.subject and mail.text
    assert "�" not in mail.subject + mail.sender + mail.text


@pytest.mark.parametrize("path", MAILS.values(), ids=lambda p: p.stem)
def test_addresses_are_those_set_aside_for_examples(path):
    addresses = re.findall(rb"@([A-Za-z0-9.-]+)", path.read_bytes())
    assert all(re.search(rb"(^|\.)example\.(com|org)$", address) for address in addresses)


def test_an_unknown_character_set_and_raw_bytes_in_a_header():
    mail = read_mail(MAILS["09"])
    assert mail.subject == "Lieferung unvollständig"
    assert mail.sender.startswith("Schreinerei Köhler")
    assert "Jörg Köhler – Schreinerei" in mail.text


def test_base64_quoted_printable_latin_2_html_and_attachments():
    assert "Mahngebühr von 5,00 EUR" in read_mail(MAILS["11"]).text
    assert "eingedrückt, 14 von" in read_mail(MAILS["03"]).text
    assert "Biuro Słońce, Kraków" in read_mail(MAILS["10"]).text
    assert "<" not in read_mail(MAILS["05"]).text
    assert "Rechnungsbetrag EUR" in read_mail(MAILS["01"]).text


def test_other_attachments_are_named_but_not_read(tmp_path):
    path = tmp_path / "m.eml"
    path.write_bytes(
        b'Subject: s\nContent-Type: multipart/mixed; boundary="b"\n\n--b\n\nhello\n--b\nContent-Type: image/png; name="a.png"\n'
        b'Content-Disposition: attachment; filename="a.png"\n\nxxxx\n--b--\n'
    )
    assert read_mail(path).text == "hello\n\n[attachment a.png, not read]"


@given(st.binary(max_size=400), st.sampled_from(["", "Content-Type: text/html\n", "Content-Type: text/plain; charset=no-such\n",
                                                 'Content-Type: multipart/mixed; boundary="b"\n', "Subject: =?x?q?=F?=\n"]))  # fmt: skip
def test_no_content_of_a_mail_is_an_error(tmp_path_factory, content, head):
    path = tmp_path_factory.mktemp("m") / "m.eml"
    path.write_bytes(head.encode() + b"\n" + content)
    mail = read_mail(path)
    (mail.subject + mail.sender + mail.text).encode()


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("1.248,90 EUR", [1248.90]), ("1,248.90", [1248.90]), ("57.00", [57.0]), ("0,25", [0.25]), ("12 x 25.00  300.00", [25.0, 300.0]),
        ("vom 16.11.2026 bis 20.11.", []), ("am 01.10.2026", []), ("10-4420", []), ("850,000.00 US dollars", [850000.0]),
        ("insgesamt 417,30 EUR bis zum 16.11.2026.", [417.30]), ("5,00. Danke", [5.0]), ("1 248,90", [1248.90]), ("3.5 h", []),
    ],
)  # fmt: skip
def test_money_is_found_and_dates_are_not(text, figures):
    assert figures_in(text) == figures
