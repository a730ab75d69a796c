"""``tally prove``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from .common import clean, find_log, log_and_event, open_log, print_bytes, print_json, stored_entry, wanted_entry, write_whole


@click.command(
    name="prove",
    epilog="""\b
Example:
  tally prove evt_… -o decision.tlog-proof --entry decision.json
  tally verify decision.tlog-proof --entry decision.json --vkey "$(cat kept-elsewhere.vkey)\"""",
)
@click.argument("args", nargs=-1, metavar="[LOG] EVENT")
@click.option("-o", "--output", metavar="FILE", help="Where to write the proof ('-': standard output; default: <event>.tlog-proof).")
@click.option("--entry", "entry_file", metavar="FILE", help="Write the entry's stored bytes there as well.")
@click.option("--current", is_flag=True, help="Against the newest checkpoint, even if an older one is confirmed by witnesses.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document about what was written.")
def command(args: tuple[str, ...], output: str | None, entry_file: str | None, current: bool, force: bool, as_json: bool) -> None:
    """Write a proof that an entry is in the log. It was checked before; others check it without the log.

    It is made against the newest checkpoint that witnesses cosigned and that covers the entry, where there is one.
    """
    from ..core.checkpoint import Checkpoint
    from ..core.note import split
    from ..core.proof import InclusionProof
    from ..proving import prove

    named, event = log_and_event(args, "prove")
    if output == "-" and as_json:
        raise click.UsageError("-o - and --json do not go together")
    path = find_log(named)
    with open_log(path) as log:
        index = stored_entry(log, event).hit.index
        older = log.older_part(wanted_entry(event))
        if older is not None:
            raise click.ClickException(f"{event} is in an older part of this log: tally prove {older} '#{index}'")
        proof, line = prove(log, index, current=current)
        event_id = log.entry(index).event_id
        vkey = log._handle.genesis.vkey.format()
    target = output or re.sub(r"[^A-Za-z0-9._-]", "_", event_id) + ".tlog-proof"
    files = [(Path(name), data) for name, data in ((target, proof), (entry_file, line)) if name and name != "-"]
    for file, _ in files:
        if file.is_file() and not force:
            raise click.ClickException(f"{file} is there already; name another with -o, or --force")
    for file, data in files:
        write_whole(file, data)
    if output == "-":
        print_bytes(proof)
        return
    checkpoint = InclusionProof.parse(proof).checkpoint
    size, others = Checkpoint.parse(split(checkpoint)[0]).size, sorted({s.name for s in split(checkpoint)[1]} - {vkey.split("+")[0]})
    if as_json:
        print_json({"proof": str(files[0][0]), "entry": entry_file, "event_id": event_id, "index": index, "tree_size": size,
                    "vkey": vkey, "cosigned_by": others})  # fmt: skip
        return
    beside = entry_file or re.sub(r"\.tlog-proof$", "", target) + ".json"
    click.echo(f"{target}: entry #{index:,} is in the log of {size:,} entries; checked before it was written")
    seen = f"its checkpoint has lines by {clean(', '.join(others))}"
    click.echo(seen if others else "no witness has cosigned a checkpoint that covers it")
    click.echo("\nto check it, anywhere, without the log:")
    if entry_file is None:
        log_word = "" if named is None else f" {shlex.quote(named)}"
        click.echo(f"  tally show{log_word} '#{index}' --raw > {shlex.quote(beside)}")
    click.echo(f"  tally verify {shlex.quote(target)} --entry {shlex.quote(beside)} --vkey {vkey}")
