"""``tally archive``."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Screen, find_log, is_event, open_log, plural, print_json


@click.command(
    name="archive",
    epilog="""\b
Example:
  tally archive audit_log /srv/archive
  tally archive --older-than 90""",
)
@click.argument("args", nargs=-1, metavar="[LOG] [DEST]")
@click.option("--older-than", type=click.IntRange(0, 36_500), metavar="DAYS", help="Instead of the log's own retention days.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(args: tuple[str, ...], older_than: int | None, as_json: bool) -> None:
    """Move entries that are old enough into compressed files in DEST (default: the folder archive in the log), on record."""
    path, dest = _places(args)
    with open_log(path, write=True, retention_days=older_than) as log:
        days = log.retention_days
        moved = log.archive_old_entries(dest)
    if as_json:
        print_json({**moved, "older_than_days": days})
        return
    screen = Screen()
    if moved["archived"]:
        screen.long(f"archived: {plural(moved['archived'], 'entry', 'entries')} to {dest}", "bold")
        for name in moved["files"]:
            screen.long(f"  {name}")
    else:
        screen.line(f"nothing to archive: no sealed run of entries from the first on is older than {plural(days, 'day')}")
    screen.line(f"remaining: {plural(moved['remaining'], 'entry', 'entries')}")
    if moved["held_back"]:
        screen.line(f"held back: {plural(moved['held_back'], 'entry', 'entries')} that {'is' if moved['held_back'] == 1 else 'are'} "
                    "old enough, beside or after younger ones")  # fmt: skip


def _places(args: tuple[str, ...]) -> tuple[Path, Path]:
    from ..opening import is_log, log_path

    if len(args) > 2:
        raise click.UsageError(f"archive takes [LOG] [DEST], not {len(args)} arguments")
    for arg in args:
        if is_event(arg) or not arg:
            raise click.UsageError(f"{arg!r} is not a folder")
    if len(args) == 2:
        path, dest = find_log(args[0]), Path(args[1])
    elif args and not is_log(log_path(args[0])):
        path, dest = find_log(None), Path(args[0])
    else:
        path = find_log(args[0] if args else None)
        dest = path / "archive"
    dest = Path(dest).expanduser().absolute()
    if dest.exists() and not dest.is_dir():
        raise click.UsageError(f"{dest} is not a folder")
    return path, dest
