"""``tally heartbeat``."""

from __future__ import annotations

import click

from .common import find_log, note, open_log, print_json


@click.command(
    name="heartbeat",
    epilog="""\b
Example:
  tally heartbeat audit_log
  0 * * * *  tally heartbeat /var/lib/acme/audit_log    # cron
\b
With [heartbeat] every = "1h" in log.toml programs that record do it themselves, tally verify names silences,
and tally verify --require alive is 5 where the newest entry is older than two of them.""",
)
@click.argument("log", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str | None, as_json: bool) -> None:
    """Record one sign of life, so that silence can be told from nothing to record."""
    with open_log(find_log(log), write=True) as opened:
        opened._handle.heartbeat.beat()
        size = opened._handle.view.head().size
        every = opened._handle.settings.heartbeat.every
        if as_json:
            print_json({"index": size - 1, "every": every or None})
            return
        click.echo(f"#{size - 1:,}")
        if not every:
            note('nobody looks for silences yet: [heartbeat] every = "1h" in log.toml')
