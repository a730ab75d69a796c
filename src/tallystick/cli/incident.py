"""``tally incident``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from .common import Screen, find_log, open_log, parse_period, print_json, range_text

if TYPE_CHECKING:
    from pathlib import Path

    from ..incident import Incident


@click.command(
    name="incident",
    epilog="""\b
Example:
  tally incident --since "2026-11-23 22:00" --reason "unknown login from outside" audit_log
\b
Exit codes: 0 done, 2 usage or I/O, 6 the log is altered (then nothing is written to it).""",
)
@click.argument("log", required=False)
@click.option("--since", required=True, metavar="T", help="From when on somebody else may have had this machine.")
@click.option("--reason", required=True, metavar="TEXT", help="What was seen; it is on record.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str | None, since: str, reason: str, as_json: bool) -> int:
    """After a break-in: close the epoch, hand out a checkpoint, and say which entries rest on what."""
    from ..clock import CLOCK
    from ..incident import report_incident

    if not reason.strip() or len(reason) > 1000 or not reason.isprintable():
        raise click.UsageError("--reason is one line of 1 to 1,000 characters")
    path = find_log(log)
    with open_log(path, write=True) as opened:
        moment = parse_period(opened.zone, None, since, None, None).start_us
        if moment is None or moment > CLOCK.wall_us():
            raise click.UsageError(f"--since {since} is not in the past")
        found = report_incident(opened, moment, reason=reason)
        missing = opened.family.not_here()
    if as_json:
        print_json({**found._asdict(), "verdict": found.verdict.as_dict(), "ranges": [r._asdict() for r in found.ranges]})
    else:
        _show(found, path, missing)
    return found.verdict.exit_code if found.verdict.exit_code in (2, 6) else 0


def _show(found: Incident, path: Path, missing: list[str]) -> None:
    screen = Screen()
    bad = found.verdict.exit_code in (2, 6)
    screen.line(found.verdict.sentence, "bold red" if bad else "bold")
    screen.line(f"That says that the stored entries are the signed ones. Who signed after {found.since[:16].replace('T', ' ')} UTC "
                "it cannot say." if not bad else "Copy first, repair nothing.")  # fmt: skip
    screen.blank()
    rows = [[range_text(r.start, r.end), f"{r.end - r.start:,}", r.words] for r in found.ranges]
    screen.table(["entries", "count", "rests on"], rows, right=[1], red=[n for n, r in enumerate(found.ranges) if r.on == "nobody"])
    if any(r.on == "sealed" for r in found.ranges):
        screen.line("sealed holds for whoever compares the key with a card or checkpoint that was elsewhere before it", indent=2)
    for text in missing:
        screen.line(text, "yellow")
    screen.blank()
    if found.event_id:
        screen.line(f"recorded     {found.event_id}")
    if found.closed is not None:
        screen.line(f"epoch        closed over {found.closed:,} entries; the key that signed until now signs no more", hang=13)
    for one in found.handed_out:
        what = f"not reached: {one['error']}" if one["error"] else f"has the checkpoint of {one['size']:,} entries"
        screen.line(f"{one['name']:<13}{what}", "yellow" if one["error"] else "", hang=13)
    if not found.handed_out and not bad:
        screen.line("outside      nobody is configured: send the checkpoint below to somebody else yourself", hang=13)
    if found.problem:
        screen.line(f"problem      {found.problem}", "red", hang=13)
    if found.note:
        screen.blank()
        for row in found.note.rstrip("\n").split("\n"):
            screen.long(f"  {row}" if row else "")
    screen.blank()
    _next(screen, shlex.quote(str(path)), found.since[:16])


def _next(screen: Screen, path: str, since: str) -> None:
    screen.line("next, in this order:", "bold")
    for what, how in (
        ("copy everything before anybody repairs anything", f"tally backup --as-evidence /mnt/usb --log {path}"),
        ("compare with what others kept before it: mails, witnesses, cards, backups", f"tally verify {path} --checkpoint FILE"),
        ("look through what was written after it", f"tally query {path} --since {shlex.quote(since)}"),
        ("on a machine that is clean again: leave these keys, the log key may have been copied too",
         f"tally resume {path} --new-keys --reason …"),
        ("hand out the new key", f"tally key card {path}"),
    ):  # fmt: skip
        screen.line(f"  {what}")
        screen.long(f"      {how}")
