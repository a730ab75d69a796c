"""``tally checkpoint``."""

from __future__ import annotations

import click

from .common import find_log, note, open_log, print_bytes, print_json


@click.command(
    name="checkpoint",
    epilog="""\b
Example:
  tally checkpoint > kept-elsewhere.checkpoint
  tally verify --checkpoint kept-elsewhere.checkpoint""",
)
@click.argument("log", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str | None, as_json: bool) -> None:
    """Print the current signed head of the log: whoever keeps it elsewhere can later prove that nothing before it changed."""
    from ..core.checkpoint import Checkpoint
    from ..core.note import split
    from ..proving import current_checkpoint

    with open_log(find_log(log)) as opened:
        data = current_checkpoint(opened)
        text, signatures = split(data)
        vkey = opened._handle.genesis.vkey
        by_log_key = any((s.name, s.key_id) == (vkey.name, vkey.key_id) for s in signatures)
    if not by_log_key:
        note("the log key is not readable by you: the checkpoint is signed by the key of its epoch only")
    if as_json:
        head = Checkpoint.parse(text)
        print_json({"origin": head.origin, "tree_size": head.size, "root": head.root.hex(), "signed_by_log_key": by_log_key,
                    "note": data.decode()})  # fmt: skip
    else:
        print_bytes(data)
