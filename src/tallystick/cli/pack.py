"""``tally pack``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import clean, find_log, is_event, note, open_log, plural, print_json, size_text, wanted_entry, write_whole

if TYPE_CHECKING:
    from ..logger import AuditLogger


@click.command(
    name="pack",
    epilog="""\b
Example:
  tally pack evt_… -o evidence.zip
  tally pack --case INV-2026-1182 --open '#17:prompt' --open '#17:salt'
  tally pack --case INV-2026-1182 --since the-auditors.checkpoint
  tally verify evidence.zip --vkey "$(cat kept-elsewhere.vkey)\"""",
)
@click.argument("args", nargs=-1, metavar="[LOG] [EVENT]...")
@click.option("--case", "cases", metavar="ID", multiple=True, help="All entries of a case (correlation_id).")
@click.option("--open", "opened", metavar="EVENT:NAME", multiple=True,
              help="Open a payload of an entry to whoever gets the pack; NAME 'salt': the commitments of a call.")  # fmt: skip
@click.option("--since", metavar="FILE", help="A checkpoint that the reader has kept: proves that the log extends it.")
@click.option("--current", is_flag=True, help="Against the newest checkpoint, even if an older one is confirmed by witnesses.")
@click.option("-o", "--output", metavar="FILE", help="Where to write it (default: <case or event>.zip).")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about what was written.")
def command(
    args: tuple[str, ...], cases: tuple[str, ...], opened: tuple[str, ...], since: str | None, current: bool, output: str | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make an evidence file that a stranger can check without this program: entries, proofs, keys, a checker.

    It holds the chosen entries in clear text, and of payloads only what is opened with --open.
    """
    from ..core.packfile import parse_pack
    from ..packing import pack

    named, events = _log_and_events(args)
    if not events and not cases:
        raise click.UsageError("pack needs entries: tally pack evt_…  or  tally pack --case ID")
    path = find_log(named)
    chosen = [_opening(text) for text in opened]
    kept = None if since is None else _read(since)
    target = Path(output or re.sub(r"[^A-Za-z0-9._-]", "_", (cases or events)[0]).lstrip("_.-") + ".zip")
    if target.is_file() and not force:
        raise click.ClickException(f"{target} is there already; name another with -o, or --force")
    with open_log(path) as log:
        wanted: list[str | int] = [wanted_entry(event) for event in events]
        for case in cases:
            wanted += _of_case(log, case)
        try:
            data = pack(log, wanted, opened=chosen, current=current, since=kept)
        except KeyError as e:
            raise click.ClickException(str(e.args[0])) from None
        vkey = log._handle.genesis.vkey
    write_whole(target, data)
    members = parse_pack(data)
    indexes = sorted(int(name[8:28]) for name in members if name.startswith("entries/") and name.endswith(".json"))
    openings = sum(name.startswith("salts/") or re.fullmatch("openings/.*[.]salt", name) is not None for name in members)
    if as_json:
        print_json({"pack": str(target), "bytes": len(data), "entries": indexes, "openings": openings, "vkey": vkey.format(),
                    "fingerprint": vkey.fingerprint})  # fmt: skip
        return
    what = f"{plural(len(indexes), 'entry', 'entries')}, {openings} of their contents opened" if openings else plural(
        len(indexes), "entry", "entries") + ", no content opened"  # fmt: skip
    click.echo(f"{target}: {what}, {size_text(len(data))}; checked before it was written")
    click.echo("give the key on another way than the file (a card, a call, a mail from somebody else):")
    click.echo(f"  {vkey.format()}\n  fingerprint {vkey.fingerprint}")
    click.echo("\nto check it, anywhere, without the log:")
    click.echo(f"  tally verify {shlex.quote(str(target))} --vkey {vkey.format()}")
    click.echo(f"  unzip {shlex.quote(str(target))}; python3 verify.py --vkey …, or open evidence.html in a browser")


def _log_and_events(args: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The first argument is the log if it is a folder."""
    if args and not is_event(args[0]) and Path(args[0]).is_dir():
        return args[0], args[1:]
    return None, args


def _opening(text: str) -> tuple[str | int, str]:
    event, colon, name = text.rpartition(":")
    if not colon or not event or not name:
        raise click.UsageError(f"--open {clean(text)}: write it like evt_…:prompt or '#17:prompt'")
    return wanted_entry(event), name


def _of_case(log: AuditLogger, case: str) -> list[str | int]:
    entries = list(log.entries({"correlation_id": case}))
    found: list[str | int] = [entry.index for entry in entries if entry.log == log.origin]
    if not found:
        raise click.ClickException(f"no entry of the case {clean(case)} is in {log.path}")
    if len(found) < len(entries):
        note(f"{plural(len(entries) - len(found), 'entry', 'entries')} of the case {clean(case)} are in older parts of this log, "
             "each with a key of its own: make a pack of each part as well")  # fmt: skip
    return found


def _read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read(1 << 20)
