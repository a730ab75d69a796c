"""``tally key card``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import Screen, day_text, find_log, local, open_log, print_json, user_memory, when_text, write_whole

if TYPE_CHECKING:
    from ..card import Card


@click.command(
    name="card",
    epilog="""\b
Example:
  tally key card audit_log                       on the terminal, with a QR code
  tally key card audit_log --pdf card.pdf        one page to print
  tally key card audit_log --svg code.svg        the QR code alone""",
)
@click.argument("log", required=False)
@click.option("--pdf", metavar="FILE", help="The card as one A4 page.")
@click.option("--svg", metavar="FILE", help="The QR code alone, as SVG.")
@click.option("--png", metavar="FILE", help="The QR code alone, as PNG.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def card(log: str | None, pdf: str | None, svg: str | None, png: str | None, force: bool, as_json: bool) -> None:
    """One page with the log's name, key and first checkpoint, for somebody who cannot log in here.

    Nothing on it is secret. Without such a copy nobody can tell this log from another one in its place."""
    from .. import card as cards

    memory = user_memory()
    made = _read(find_log(log))
    wanted = {name: render for name, render in ((pdf, cards.pdf_page), (svg, cards.svg_code), (png, cards.png_code)) if name}
    for name in wanted:
        if os.path.lexists(name) and not force:
            raise click.ClickException(f"{name} is there already; name another, or --force")
    for name, render in wanted.items():
        write_whole(Path(name), render(made))
    cards.note_made(memory, made.vkey, time.time_ns() // 1000)
    if as_json:
        print_json({**made.as_dict(), "files": list(wanted)})
    elif wanted:
        for name in wanted:
            click.echo(name)
        click.echo(f"{cards.ADVICE}", err=True)
    else:
        _show(made)


def _read(path: Path) -> Card:
    from .. import __version__
    from ..card import build_card
    from ..core.errors import AuditError

    with open_log(path) as log:
        first = "its first entry is not here"
        try:
            begun = log.entry(0)
        except (AuditError, KeyError):
            pass
        else:
            named = begun.details.get("predecessor")
            part = f", part {named['part'] + 1}: it goes on after {named['origin']}" if isinstance(named, dict) else ""
            first = f"begun {when_text(begun.recorded_at_us, log.zone, now_us=0)} {log.zone}{part}"
        today = day_text(local(time.time_ns() // 1000, log.zone))
        return build_card(log._handle.genesis, first=first, made=today, version=__version__)


def _show(made: Card) -> None:
    from ..card import ADVICE, terminal_code

    screen = Screen()
    screen.line("KEY CARD", "bold")
    screen.long(made.origin, "bold")
    screen.line(f"{made.first}; card made {made.made}", "dim")
    screen.blank()
    screen.pairs([("fingerprint", "   ".join(made.fingerprint_rows)), ("key", made.vkey.split("+")[0]), ("", "")])
    for row in (made.key_id, *made.key_rows):
        screen.line(f"                {row}")
    screen.line("                (three parts joined by +: name, eight digits, the rest)", "dim")
    screen.blank()
    for row in made.note.splitlines():
        screen.long(f"  {row}" if row else "")
    screen.blank()
    for row in terminal_code(made):
        screen.long(row)
    screen.line(ADVICE, "bold")
    for row in made.use:
        screen.line(f"- {row}")
    for row in made.commands:
        screen.long(f"  {row}")
