"""``tally resume``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import Screen, busy, find_log, plural, print_json, user_memory

if TYPE_CHECKING:
    from ..resume import Resumed

CHECKPOINT_BYTES_MAX = 2 << 20


@click.command(
    name="resume",
    epilog="""\b
Example:
  tally resume audit_log --reason "disk failed, restored the backup of 23 November"
  tally resume /srv/audit_log --from /mnt/usb/audit_log --reason "new machine"
  tally resume audit_log --new-keys --reason "the keys may have been copied"
\b
The old log stays as it is under LOG.until-<size>; nothing in it is changed. Stop what writes first.""",
)
@click.argument("log")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is recorded for ever.")
@click.option("--from", "source", metavar="OLD", help="A copy elsewhere that becomes the old part; it is copied, not moved.")
@click.option("--checkpoint", "checkpoint_file", metavar="FILE", help="A checkpoint of the old log that was kept elsewhere.")
@click.option("--new-keys", is_flag=True, help="Also where the log is fine: leave its keys and go on under new ones.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str, reason: str, source: str | None, checkpoint_file: str | None, new_keys: bool, as_json: bool) -> int:
    """Go on after a restored backup or lost keys: a successor that names the old log and what is lost."""
    from ..resume import resume

    path = find_log(log)
    checkpoint = None if checkpoint_file is None else _note(checkpoint_file)
    old = None if source is None else Path(os.path.abspath(os.path.expanduser(source)))
    with busy(f"resuming {path}", quiet=as_json) as progress:
        done = resume(path, reason=reason, memory=user_memory(), source=old, checkpoint=checkpoint, new_keys=new_keys,
                      progress=progress)  # fmt: skip
    if as_json:
        print_json(done._asdict())
    else:
        _show(done)
    return 0


def _note(name: str) -> bytes:
    from ..anchor.saved_mail import find_note

    with open(name, "rb") as file:
        return find_note(file.read(CHECKPOINT_BYTES_MAX))


def _show(done: Resumed) -> None:
    screen = Screen()
    screen.line(f"resumed: {done.path} goes on as part {done.part}, with new keys", "bold")
    screen.line(f"  {done.origin}", "dim")
    screen.blank()
    first, end = done.lost
    lost = "nothing after its end that is known of" if first == end else (
        f"#{first:,} – #{end - 1:,}, {plural(end - first, 'entry', 'entries')}")  # fmt: skip
    known = done.known_elsewhere
    screen.pairs([
        ("old part", f"{done.left}  ({plural(done.left_size, 'entry', 'entries')}, read only from now on)"),
        ("its keys", done.left_keys if os.path.isdir(done.left_keys) else "not here: contents of the old part cannot be opened"),
        ("known elsewhere", f"{plural(known['size'], 'entry', 'entries')} ({known['from']})" if known else "nothing"),
        ("lost", lost),
        *([("not whole", f"{done.found} That stays so, and is on record.")] if done.found else []),
        ("reason", done.reason),
        ("signed", "by the old key: whoever knows it can follow" if done.signed else
         "no, the old key is not here: others must be told the new key, and run tally trust"),
    ], indent=2)  # fmt: skip
    screen.blank()
    path = shlex.quote(done.path)
    screen.line("next:  tell whoever has the old key, and hand out the new one; add witnesses and anchors again")
    screen.long(f"       tally verify {path}")
    screen.long(f"       tally key vkey {path}")
