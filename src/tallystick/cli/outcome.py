"""``tally outcome``."""

from __future__ import annotations

import click

from .common import find_log, is_event, open_log, print_json, wanted_entry


@click.command(
    name="outcome",
    epilog="""\b
Example:
  tally outcome evt_019a… used --ref erp:4711
  tally outcome audit_log '#17' rejected --by anna --reason "wrong customer\"""",
)
@click.argument("args", nargs=-1, metavar="[LOG] EVENT STATUS")
@click.option("--ref", metavar="WHERE", help="Where the answer went: erp:4711, mail:77.")
@click.option("--by", metavar="WHO", help="Who says so (default: you, as the system knows you).")
@click.option("--kind", type=click.Choice(["human", "code", "model"]), default="human", show_default=True, help="What says so.")
@click.option("--reason", metavar="TEXT", help="Why.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(args: tuple[str, ...], ref: str | None, by: str | None, kind: str, reason: str | None, as_json: bool) -> None:
    """Say what became of an answer: used, used_modified, rejected, failed_validation, failed_downstream, superseded, expired."""
    from ..clock import system_user
    from ..core.outcomes import STATUSES

    if len(args) not in (2, 3):
        raise click.UsageError("outcome takes [LOG] EVENT STATUS, for instance: tally outcome '#17' used --ref erp:4711")
    named, (event, status) = (args[0] if len(args) == 3 else None), args[-2:]
    if status not in STATUSES:
        raise click.UsageError(f"{status!r} is no outcome; known are {', '.join(STATUSES)}")
    with open_log(find_log(named), write=True) as log:
        call = event
        if is_event(event):
            try:
                call = log.entry(wanted_entry(event)).event_id
            except KeyError:
                if event.startswith("#"):
                    raise click.UsageError(f"there is no entry {event} in {log.path}") from None
        made = log.outcome(call, status, ref=ref, by=by or system_user(), kind=kind, reason=reason, evidence="command line")
        found = log.entry(made)
    if as_json:
        print_json(found.row())
        return
    click.echo(found.event_id)
    if found.details.get("orphan"):
        click.echo(f"{call} is not on record here: kept, and marked as an orphan", err=True)
