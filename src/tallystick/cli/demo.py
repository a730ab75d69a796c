"""``tally demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    name="demo",
    epilog="""\b
Example:
  tally demo
  tally demo my-demo --yes""",
)
@click.argument("folder", metavar="[DIR]", required=False, default="tally-demo", type=click.Path(file_okay=False))
@click.option("--yes", is_flag=True, help="Download what is missing without asking.")
@click.option("--host", metavar="URL", help="An Ollama server (default: $OLLAMA_HOST, else one on loopback, else one of its own).")
def command(folder: str, yes: bool, host: str | None) -> int:
    """Triage a folder of mails with a real model, on record; verify it; then let an attacker loose on copies."""
    from ..demo.run import run_demo
    from .common import Screen

    return int(run_demo(Path(folder).absolute(), yes=yes, host=host, console=Screen().console) or 0)
