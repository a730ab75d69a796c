"""The card of a log: one page with its name, its key and its first checkpoint, to be kept by somebody who cannot log in here.

A log cannot vouch for itself: whoever can write its folder can put another log with another key there. The card is the half of the
tally stick that is handed out. Its QR code holds exactly the bytes of ``log.vkey`` (``core.genesis``): the scanned text, saved to a
file, is what ``tally verify LOG --vkey "$(head -1 FILE)" --checkpoint FILE`` takes. Everything on it is public.

Whether a card was made is remembered for this user (``cards.json`` in his state folder), so that ``tally`` can say so; it proves
nothing.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .core.errors import StoreError
from .core.genesis import Genesis
from .disk import DISK, Disk
from .memory import Memory

ADVICE = "Give one copy to somebody who cannot log in to this machine, and keep one yourself."
_TYPST = """
#let d = json(bytes(sys.inputs.card))
#set document(title: "Key card of " + d.origin, date: none)
#set page(paper: "a4", margin: (x: 22mm, y: 20mm))
#set text(font: "Libertinus Serif", size: 10.5pt)
#let mono(t, size: 9.5pt) = text(font: "DejaVu Sans Mono", size: size, t)
#let small(t) = text(size: 9pt, fill: luma(80), t)
#small[KEY CARD OF AN AUDIT LOG #h(1fr) tallystick #d.version]
#v(-4pt) #line(length: 100%, stroke: 0.6pt) #v(4pt)
#text(size: 17pt, weight: "bold", d.origin)
#v(2pt)
#d.first \\
#small[Card made #d.made]
#v(8pt)
#grid(columns: (1fr, 62mm), gutter: 10mm,
  [
    #small[Fingerprint of the key: compare all of it]
    #v(-4pt)
    #for row in d.fingerprint { mono(size: 14pt, row); linebreak() }
    #v(6pt)
    #small[The key, to be typed: three parts joined by +]
    #v(-4pt)
    #mono(d.origin) \\
    #mono(d.key_id) \\
    #for row in d.key_rows { mono(row); linebreak() }
    #v(6pt)
    #small[The first checkpoint]
    #v(-4pt)
    #block(width: 100%, for row in d.note { mono(size: 7.2pt, row); linebreak() })
  ],
  [#image(bytes(sys.inputs.qr), format: "svg", width: 62mm) #align(center, small[the key and the first checkpoint])],
)
#v(6pt) #line(length: 100%, stroke: 0.6pt) #v(2pt)
#text(size: 12pt, weight: "bold", d.advice)
#v(2pt)
#for row in d.use { [- #row] }
#v(4pt)
#for row in d.commands { mono(size: 9pt, row); linebreak() }
#v(4pt)
#small[Nothing on this card is secret. Who has it can check the log; nobody can write in its name with it.]
"""


class Card(NamedTuple):
    """What stands on it. ``text``: the bytes of ``log.vkey``, which the QR code holds; ``first``: a line about the beginning."""

    origin: str
    vkey: str
    fingerprint: str
    note: str
    first: str
    made: str
    text: bytes
    version: str

    @property
    def key_id(self) -> str:
        """Eight hex digits, the first two groups of the fingerprint."""
        return self.vkey.split("+", 2)[1]

    @property
    def key_rows(self) -> list[str]:
        """The base64 of the key in groups of four, four groups a row, to be typed."""
        groups = textwrap.wrap(self.vkey.split("+", 2)[2], 4)
        return [" ".join(groups[at : at + 4]) for at in range(0, len(groups), 4)]

    @property
    def fingerprint_rows(self) -> list[str]:
        """Two rows of four groups."""
        groups = self.fingerprint.split(" ")
        return [" ".join(groups[at : at + 4]) for at in range(0, len(groups), 4)]

    @property
    def use(self) -> list[str]:
        """What to do with it."""
        return ["Whoever hands you the log or a proof: compare the fingerprint with the one on your card.",
                "On a computer: scan the code, save the text as card.txt, run the command below.",
                "Another key under this name is another log, unless its owner told you why (tally resume)."]  # fmt: skip

    @property
    def commands(self) -> list[str]:
        """How to check a log with the scanned text."""
        return ['tally verify LOG --vkey "$(head -1 card.txt)" --checkpoint card.txt']

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"origin": self.origin, "vkey": self.vkey, "fingerprint": self.fingerprint, "genesis": self.note, "made": self.made,
                "text": self.text.decode()}  # fmt: skip


def build_card(genesis: Genesis, *, first: str, made: str, version: str) -> Card:
    """The card of a log; the genesis checkpoint is verified under the key before. ``VerificationError``."""
    genesis.open()
    return Card(genesis.origin, genesis.vkey.format(), genesis.vkey.fingerprint, genesis.note.decode(), first, made,
                genesis.format(), version)  # fmt: skip


def _code(card: Card) -> Any:
    try:
        import segno
    except ImportError as e:
        raise StoreError("a QR code needs the package segno: pip install 'tallystick[card]'") from e
    return segno.make(card.text, micro=False, error="l", boost_error=False)


def terminal_code(card: Card) -> list[str]:
    """The QR code in half blocks, light on dark as terminals are, a quiet zone of two: at most 81 columns."""
    rows = [list(row) for row in _code(card).matrix_iter(border=2)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    # light modules are drawn: most terminals are dark, and a code must be dark on light
    blocks = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}
    return ["".join(blocks[bool(a), bool(b)] for a, b in zip(top, low, strict=True))
            for top, low in zip(rows[::2], rows[1::2], strict=True)]  # fmt: skip


def svg_code(card: Card) -> bytes:
    """The QR code alone as SVG."""
    out = io.BytesIO()
    _code(card).save(out, kind="svg", border=4, scale=4, xmldecl=False)
    return out.getvalue()


def png_code(card: Card) -> bytes:
    """The QR code alone as PNG."""
    out = io.BytesIO()
    _code(card).save(out, kind="png", border=4, scale=6)
    return out.getvalue()


def pdf_page(card: Card) -> bytes:
    """The whole card, one A4 page."""
    try:
        import typst
    except ImportError as e:
        raise StoreError("a PDF needs the package typst: pip install 'tallystick[card]'; without it: --svg, or the terminal") from e
    told = {"origin": _breakable(card.origin), "fingerprint": card.fingerprint_rows, "key_id": card.key_id, "key_rows": card.key_rows,
            "note": [part for row in card.note.splitlines() for part in textwrap.wrap(row, 62, break_on_hyphens=False) or [""]],
            "first": card.first, "made": card.made, "version": card.version, "advice": ADVICE,
            "use": card.use, "commands": card.commands}  # fmt: skip
    inputs = {"card": msgspec.json.encode(told).decode(), "qr": svg_code(card).decode()}
    made: bytes = typst.compile(_TYPST.encode(), format="pdf", sys_inputs=inputs)
    return made


def _breakable(name: str) -> str:
    """A name that may end a line after each slash, dot and hyphen, and after 30 characters of anything else."""
    return "".join(c + ("\u200b" if c in "/.-" or n % 30 == 29 else "") for n, c in enumerate(name))


# -- whether one was made ------------------------------------------------------------------------------------------------------


def note_made(memory: Memory, vkey: str, us: int, disk: Disk = DISK) -> None:
    """Remember, for this user, that a card of this key was made. Does nothing for a user without a state folder."""
    if memory.folder is not None:
        memory.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.write_file(_path(memory.folder), msgspec.json.encode({**_made(memory), vkey: us}) + b"\n", 0o600)


def made_us(memory: Memory, vkey: str) -> int | None:
    """When this user last made a card of this key; None if never, or if nothing is remembered."""
    return _made(memory).get(vkey)


def _path(folder: Path) -> Path:
    return folder / "cards.json"


def _made(memory: Memory) -> dict[str, int]:
    if memory.folder is None:
        return {}
    try:
        return msgspec.json.decode(_path(memory.folder).read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return {}  # a convenience: nothing rests on it
