"""``tally trust``."""

from __future__ import annotations

from pathlib import Path

import click

from .common import find_log, print_json, user_memory


@click.command(
    name="trust",
    epilog="""\b
Example:
  tally trust audit_log --vkey "$(cat kept-elsewhere.vkey)"
  tally trust --forget audit_log""",
)
@click.argument("log")
@click.option("--vkey", metavar="V", help="The key that its owner gave you; it must be the log's.")
@click.option("--forget", is_flag=True, help="Forget what you know of the log at this path.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str, vkey: str | None, forget: bool, as_json: bool) -> int:
    """Trust the key of a log on this machine from now on, after verifying everything else about it."""
    if forget and vkey is not None:
        raise click.UsageError("--forget and --vkey do not go together")
    path = find_log(log)
    return _forget(path, as_json) if forget else _trust(path, vkey, as_json)


def _forget(path: Path, as_json: bool) -> int:
    memory = user_memory()
    known = memory.get(path)
    if known is None:
        raise click.ClickException(f"you know of no log at {path}; nothing was changed")
    memory.forget(path)
    if as_json:
        print_json({"path": str(path), "forgotten": True, "origin": known.origin, "vkey": known.vkey, "size": known.size})
    else:
        click.echo(f"forgotten: {known.origin} at {path}, {known.size:,} entries when last seen")
    return 0


def _trust(path: Path, vkey: str | None, as_json: bool) -> int:
    from ..verification import trust
    from .verify import show_verdict

    memory = user_memory()
    before = memory.get(path)
    verdict = trust(path, memory, vkey)
    after = memory.get(path)
    if as_json:
        print_json({**verdict.as_dict(), "path": str(path), "trusted": after is not None, "vkey": after.vkey if after else None})
        return int(verdict.exit_code)
    show_verdict(verdict, path)
    if after is None:
        click.echo("\nnot trusted: what was found above comes first")
    else:
        click.echo(f"\n{'trusted on this machine from now on' if before is None else 'trusted already'}: {after.vkey}")
    return int(verdict.exit_code)
