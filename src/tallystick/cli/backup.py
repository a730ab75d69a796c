"""``tally backup``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import Screen, busy, find_log, plural, print_json, size_text, user_memory

if TYPE_CHECKING:
    from ..backup import Copied, Evidence


@click.command(
    name="backup",
    epilog="""\b
Example:
  tally backup /mnt/usb/audit_log                  again later: only what is new
  tally backup /mnt/usb/audit_log --log audit_log --json
  tally backup --as-evidence /mnt/usb              after an alarm: everything, byte for byte
\b
The copy is a log: tally verify /mnt/usb/audit_log. To go on from it: tally resume.""",
)
@click.argument("dest")
@click.option("--log", "named", metavar="LOG", help="The log to copy (default: $TALLY_LOG, else ./audit_log).")
@click.option("--with-keys", is_flag=True, help="Private keys and keys of payloads too, into DEST.keys.")
@click.option("--as-evidence", is_flag=True, help="Copy all files into a new folder in DEST as they are, judging nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(dest: str, named: str | None, with_keys: bool, as_evidence: bool, as_json: bool) -> int:
    """Copy a log to DEST while it is written to; the copy is read again and verified."""
    from .. import backup

    if not dest:
        raise click.UsageError("the name of DEST is empty")
    log, target = _log(named, as_evidence), Path(os.path.abspath(os.path.expanduser(dest)))
    with busy(f"copying {log}", quiet=as_json, said=_done) as progress:
        if as_evidence:
            evidence = backup.copy_evidence(log, target, with_keys=with_keys, progress=progress)
        else:
            done = backup.back_up(log, target, memory=user_memory(), with_keys=with_keys, progress=progress)
    if as_evidence:
        _show_evidence(evidence, with_keys, as_json)
        return 2 if any("not followed" not in m and "not opened" not in m for m in evidence.not_copied) else 0
    if as_json:
        print_json({"log": str(log), "copies": [copied._asdict() for copied in done]})
    else:
        _show(done)
    return 0


def _log(named: str | None, as_evidence: bool) -> Path:
    """A damaged log may be a folder of anything; then only its path counts."""
    if as_evidence and named:
        return Path(os.path.abspath(os.path.expanduser(named)))
    return find_log(named)


def _show(done: list[Copied]) -> None:
    screen = Screen()
    for copied in done:
        new = copied.entries - copied.had
        what = f"{plural(copied.entries, 'entry', 'entries')}" + (f", {new:,} of them new" if copied.had else "")
        screen.line(f"copied and verified: {what}, {size_text(copied.bytes)} written", "bold")
        screen.long(f"  {copied.path}")
        screen.line(f"  {copied.origin}", "dim")
        for name in copied.left_out:
            screen.line(f"  left out, not a file: {name}", "yellow")
    screen.blank()
    if done[-1].keys:
        screen.line("PRIVATE KEYS ARE IN THIS BACKUP. Who has it can write entries in the name of this log and read its contents.",
                    "bold red")  # fmt: skip
        for copied in done:
            screen.long(f"  {copied.keys}")
    else:
        screen.line("Without keys: entries can be read and verified, contents (prompts, values) cannot be opened from this copy.")
    screen.long(f"verify it:   tally verify {done[-1].path}")


def _show_evidence(found: Evidence, with_keys: bool, as_json: bool) -> None:
    if as_json:
        print_json(found._asdict())
        return
    screen = Screen()
    screen.line(f"copied as it is: {plural(found.files, 'file')}, {size_text(found.bytes)}; nothing was judged or repaired", "bold")
    screen.long(f"  {found.path}")
    for name in found.not_copied:
        screen.line(f"not copied: {name}", "yellow", indent=2, hang=12)
    if with_keys:
        screen.line("  PRIVATE KEYS ARE IN IT.", "bold red")
    screen.blank()
    screen.line("Write this down elsewhere; with it anybody can see later that the copy was not changed:")
    screen.long(f"  SHA-256 of SHA256SUMS   {found.sums_sha256}")
    screen.long(f"  check:  cd {found.path} && sha256sum -c SHA256SUMS")


def _done(what: str, done: int) -> str:
    return f"#{done:,}" if what.startswith("verifying") else size_text(done)
