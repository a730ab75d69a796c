"""``tally approve``."""

from __future__ import annotations

from pathlib import Path

import click

from .common import find_log, is_event, open_log, print_json, wanted_entry


@click.command(
    name="approve",
    epilog="""\b
Example:
  tally approve evt_019a… --reason "amount checked"
  tally approve audit_log '#17' rejected --shown draft.txt""",
)
@click.argument("args", nargs=-1, metavar="[LOG] EVENT [approved|rejected|changed]")
@click.option("--by", metavar="WHO", help="Who decided, if it is not you: then it is self-reported.")
@click.option("--reason", metavar="TEXT", help="Why.")
@click.option("--shown", type=click.Path(path_type=Path), metavar="FILE", help="What was seen when it was decided; kept encrypted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(args: tuple[str, ...], by: str | None, reason: str | None, shown: Path | None, as_json: bool) -> None:
    """Record a decision about an entry. You are known by the operating system."""
    from ..capture.approval import DECISIONS
    from ..clock import system_user

    rest = list(args)
    decision = rest.pop() if len(rest) > 1 and rest[-1] in DECISIONS else "approved"
    if not 1 <= len(rest) <= 2:
        raise click.UsageError("approve takes [LOG] EVENT [approved|rejected|changed], for instance: tally approve '#17'")
    named, event = (rest[0] if len(rest) == 2 else None), rest[-1]
    if not is_event(event) and len(rest) == 2 and not is_event(rest[0]):
        raise click.UsageError(f"{event!r} is neither an entry nor one of {', '.join(DECISIONS)}")
    seen = shown.read_bytes() if shown is not None else None
    known_by = "operating system" if by is None or by == system_user() else "none"
    with open_log(find_log(named), write=True) as log:
        try:
            of = log.entry(wanted_entry(event)).event_id
        except KeyError:
            raise click.UsageError(f"there is no entry {event} in {log.path}") from None
        made = log.approval(of, decision, by=by or system_user(), known_by=known_by, reason=reason, shown=seen)
        found = log.entry(made)
    if as_json:
        print_json(found.row())
    else:
        click.echo(found.event_id)
