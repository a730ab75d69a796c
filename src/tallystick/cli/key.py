"""``tally key vkey``."""

from __future__ import annotations

import click

from .common import find_log, print_json


@click.group(name="key")
def command() -> None:
    """The log's verifier key."""


@command.command(
    epilog="""\b
Example:
  tally key vkey audit_log > kept-elsewhere.vkey"""
)
@click.argument("log", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def vkey(log: str | None, as_json: bool) -> None:
    """Print the verifier key: one line, public, to be kept elsewhere and given to whoever checks."""
    from ..opening import read_genesis

    path = find_log(log)
    key = read_genesis(path).vkey
    if as_json:
        print_json({"path": str(path), "origin": key.name, "vkey": key.format()})
    else:
        click.echo(key.format())
