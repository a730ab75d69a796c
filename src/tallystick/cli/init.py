"""``tally init``."""

from __future__ import annotations

import shlex

import click

from .common import find_log, note, print_json, user_memory


@click.command(
    name="init",
    epilog="""\b
Example:
  tally init audit_log --origin invoice-bot.acme.example --retention-days 365""",
)
@click.argument("log", required=False)
@click.option("--origin", metavar="NAME", help="The log's name for ever: a-z 0-9 . - /  (default: host/folder/random).")
@click.option("--retention-days", type=click.IntRange(0, 36_500), default=365, show_default=True,
              help="Entries older than this may be archived.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str | None, origin: str | None, retention_days: int, as_json: bool) -> None:
    """Make a new log: a folder, and beside it a folder with its private keys."""
    from ..config import keys_folder, read_settings
    from ..core.errors import StoreError
    from ..opening import is_log, open_or_create, read_genesis

    path = find_log(log)
    if is_log(path):
        raise StoreError(f"there is a log at {path} already; nothing was changed")
    try:
        open_or_create(path, user_memory(), create=True, retention_days=retention_days, origin=origin)
    except ValueError as e:
        raise click.UsageError(f"--origin: {e}") from None
    genesis = read_genesis(path)
    if as_json:
        print_json({"path": str(path), "origin": genesis.origin, "vkey": genesis.vkey.format(),
                    "keys": str(keys_folder(path, read_settings(path))), "retention_days": retention_days})  # fmt: skip
        return
    named = "" if log is None else f" {shlex.quote(log)}"
    note("next:")
    note(f'  tally record{named} --actor ana --action "read customer" --resource crm')
    note(f"  tally verify{named}")
    note(f"  tally key card{named} --pdf card.pdf      (no card was printed yet: give one to somebody who cannot log in here)")
    click.echo(genesis.vkey.format())
