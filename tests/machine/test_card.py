"""The key card: what stands on it, and that an independent program reads its code from the rendered page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.genesis import Genesis
from tallystick.core.note import VerifierKey

from ..cli.conftest import log, tally  # noqa: F401


def needs(*modules: str) -> None:
    for name in modules:
        if os.environ.get("CI"):
            __import__(name)
        pytest.importorskip(name)


def scan(picture: Path) -> bytes:
    """Read by zxing-cpp, which knows nothing of segno."""
    needs("zxingcpp", "PIL")
    import zxingcpp
    from PIL import Image

    with Image.open(picture) as image:
        found = zxingcpp.read_barcodes(image.convert("L"))
    assert len(found) == 1
    return bytes(found[0].bytes)


def test_the_page_and_the_pictures_carry_log_vkey(tally, log: Path, tmp_path: Path) -> None:  # noqa: F811
    needs("segno", "typst")
    pdf, png = tmp_path / "card.pdf", tmp_path / "code.png"
    assert tally("key", "card", log, "--pdf", pdf, "--png", png, "--svg", tmp_path / "code.svg").code == 0
    data = (log / "log.vkey").read_bytes()
    assert scan(png) == data
    if not shutil.which("pdftoppm"):
        pytest.skip("no pdftoppm (apt-get install poppler-utils)")
    subprocess.run(["pdftoppm", "-r", "150", "-png", pdf, tmp_path / "page"], check=True)
    assert [p.name for p in tmp_path.glob("page*.png")] == ["page-1.png"]
    assert scan(tmp_path / "page-1.png") == data
    text = subprocess.run(["pdftotext", "-layout", pdf, "-"], check=True, capture_output=True, text=True).stdout
    key = Genesis.parse(data).vkey
    assert key.fingerprint[:19] in text
    assert "Give one copy to somebody who cannot log in to this machine" in " ".join(text.split())


def test_a_long_origin_stays_on_the_page(tally, tmp_path: Path) -> None:  # noqa: F811
    needs("segno", "typst")
    origin = "a" * 60 + "/" + "b" * 59
    tally("init", "long", "--origin", origin)
    tally("key", "card", "long", "--pdf", tmp_path / "card.pdf")
    box = subprocess.run(["pdftotext", "-bbox", tmp_path / "card.pdf", "-"], check=True, capture_output=True, text=True).stdout
    right = [float(part.split('"')[1]) for part in box.split() if part.startswith("xMax=")]
    assert right
    assert max(right) <= 595
    subprocess.run(["pdftoppm", "-r", "200", "-png", tmp_path / "card.pdf", tmp_path / "page"], check=True)
    assert [p.name for p in tmp_path.glob("page*.png")] == ["page-1.png"]
    assert scan(tmp_path / "page-1.png") == Path("long/log.vkey").read_bytes()


def test_the_terminal_code_is_read_from_its_blocks(tally, log: Path, tmp_path: Path) -> None:  # noqa: F811
    needs("segno", "PIL")
    from PIL import Image

    shown = tally("key", "card", log).out
    assert max(map(len, shown.splitlines())) <= 130  # the signature of the checkpoint is one line that people copy
    blocks = [row for row in shown.splitlines() if row and set(row) <= set("█▀▄ ") and len(row) > 40]
    assert max(map(len, blocks)) <= 100
    pixels = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    width = max(map(len, blocks))
    image = Image.new("L", (width + 8, 2 * len(blocks) + 8), 255)
    for y, row in enumerate(blocks):
        for x, block in enumerate(row.ljust(width)):
            for half in (0, 1):
                image.putpixel((x + 4, 2 * y + half + 4), pixels[block][half])
    image.resize((image.width * 5, image.height * 5), Image.Resampling.NEAREST).save(tmp_path / "terminal.png")
    assert scan(tmp_path / "terminal.png") == (log / "log.vkey").read_bytes()


def test_the_scanned_text_is_what_verify_takes(tally, log: Path, tmp_path: Path) -> None:  # noqa: F811
    text = tally("key", "card", log, "--json").json["text"]
    (tmp_path / "card.txt").write_text(text)
    assert tally("verify", log, "--vkey", text.split("\n")[0], "--checkpoint", tmp_path / "card.txt").code == 0
    with AuditLogger(tmp_path / "other") as other:
        other.log("data_access", "a", "user", "r", "x")
    ran = tally("verify", tmp_path / "other", "--vkey", text.split("\n")[0], "--checkpoint", tmp_path / "card.txt")
    assert ran.code == 6


def test_the_key_can_be_typed_from_the_card(tally, log: Path) -> None:  # noqa: F811
    shown = tally("key", "card", log).out.splitlines()
    at = next(n for n, row in enumerate(shown) if row.startswith("key "))
    name, parts = shown[at].split()[1], [row.strip().replace(" ", "") for row in shown[at + 1 : at + 6]]
    typed = f"{name}+{parts[0]}+{''.join(parts[1 : next(n for n, p in enumerate(parts) if p.startswith('('))])}"
    assert VerifierKey.parse(typed).format() == (log / "log.vkey").read_text().split("\n")[0]


def test_init_status_and_verify_say_whether_it_was_ever_printed(tally, log: Path) -> None:  # noqa: F811
    assert "no card was printed yet" in tally("init", "second").err
    assert "no key card was printed" in tally("status", log).out
    assert "card printed: no" in tally("verify", log).out
    assert tally("key", "card", log).code == 0
    assert "no key card was printed" not in tally("status", log).out
    assert "card printed: yes" in tally("verify", log).out
    assert "no key card was printed" in json.dumps(tally("status", "second", "--json").json)


def test_files_are_not_replaced(tally, log: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "a.svg").write_text("mine")
    assert tally("key", "card", log, "--svg", tmp_path / "a.svg").code == 2
    assert (tmp_path / "a.svg").read_text() == "mine"
    assert tally("key", "card", log, "--svg", tmp_path / "a.svg", "--force").code == 0
