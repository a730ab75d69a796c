"""``tally key``."""

from __future__ import annotations

import click

from .card import card
from .common import find_log, open_log, plural, print_json


@click.group(name="key")
def command() -> None:
    """The log's keys: the one to hand out, and those that sign for one epoch."""


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


@command.command(
    epilog="""\b
Example:
  tally key rotate audit_log --reason "somebody left" > kept-elsewhere.checkpoint"""
)
@click.argument("log", required=False)
@click.option("--reason", default="asked for", show_default=True, help="Why; it is on record.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def rotate(log: str | None, reason: str, as_json: bool) -> None:
    """End the running epoch: a new key signs from now on, the old one is destroyed.

    Nobody who breaks in later can change an entry before. Prints the closing checkpoint: keep it elsewhere. Happens by itself every
    day (epochs in log.toml)."""
    with open_log(find_log(log)) as opened:
        found = opened.rotate(reason)
    _closed(found, as_json, f"epoch {found['epoch']} is closed over {plural(found['size'], 'entry', 'entries')}; its key is "
            "destroyed")  # fmt: skip


@command.command(
    epilog="""\b
Example:
  tally key recover audit_log --reason "key folder lost with the disk\""""
)
@click.argument("log", required=False)
@click.option("--reason", required=True, help="How it was lost; it is on record.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def recover(log: str | None, reason: str, as_json: bool) -> None:
    """Go on after the key of the running epoch was lost: the log key puts that on record and names a new one.

    Every verdict will say that the seal is broken there. Where the log key is lost too: tally resume."""
    with open_log(find_log(log)) as opened:
        found = opened.recover_epoch(reason)
    _closed(found, as_json, f"epoch {found['epoch']} went on under a new key after {plural(found['size'], 'entry', 'entries')}; the "
            "loss is on record")  # fmt: skip


def _closed(found: dict[str, object], as_json: bool, said: str) -> None:
    from .common import note

    if as_json:
        print_json(found)
    else:
        note(said)
        click.echo(str(found["note"]), nl=False)


command.add_command(card)
