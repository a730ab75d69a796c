"""``tally publish``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from .common import Screen, find_log, note, open_log, plural, print_json

if TYPE_CHECKING:
    from ..logger import AuditLogger
    from ..publishing import Outcome


@click.command(
    name="publish",
    epilog="""\b
Example:
  tally publish audit_log
  0 * * * *  tally publish /var/lib/acme/audit_log    # cron
\b
Exit codes: 0 everybody has it, 2 somebody does not yet (pending, tried again next time),
6 a witness or an anchor knows another history.""",
)
@click.argument("log", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str | None, as_json: bool) -> int:
    """Hand the current checkpoint to every witness and anchor now."""
    with open_log(find_log(log)) as opened:
        outcomes = hand_out(opened)
        if not outcomes and not as_json:
            note(f"nobody is configured: tally witness add or tally anchor add, with --log {opened.path}")
        return show(outcomes, as_json)


def hand_out(log: AuditLogger, only: Collection[str] | None = None) -> list[Outcome]:
    """Now, to everybody or to those named."""
    from ..publishing import publish, source_of

    return publish(source_of(log), log._handle.settings, only=only)


def show(outcomes: Sequence[Outcome], as_json: bool) -> int:
    """What became of it, and the exit code."""
    if as_json:
        print_json([one._asdict() for one in outcomes])
    else:
        screen = Screen()
        for one in outcomes:
            screen.line(sentence(one), "red" if one.error else "", hang=2)
    if any(one.contradiction for one in outcomes):
        return 6
    return 2 if any(one.error for one in outcomes) else 0


def sentence(one: Outcome) -> str:
    """``witness kanzlei: confirmed 18,204 entries``."""
    if one.error:
        word = "CONTRADICTS" if one.contradiction else "pending"
        return f"{one.kind} {one.name}: {word}: {one.error}"
    here = " (not independent: on this machine)" if one.local else ""
    return f"{one.kind} {one.name}: {one.word} {plural(one.size, 'entry', 'entries')}{here}"
