"""``tally keyd``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import find_log, note, open_log, print_json

if TYPE_CHECKING:
    from ..logger import AuditLogger

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group(
    name="keyd",
    epilog="""\b
Example, as root, with the writers of the log stopped:
  useradd --system tallykeyd
  tally keyd init /var/lib/tallykeyd --log /srv/app/audit_log --socket /run/tallykeyd.sock --user tallykeyd
and as a service of that user:
  tally keyd serve /var/lib/tallykeyd --socket /run/tallykeyd.sock --group app
then, as the user of the log, a key that was never in a file of his:
  tally key rotate /srv/app/audit_log""",
)
def command() -> None:
    """The epoch keys in a process of another user, which signs only heads that extend the last one that it signed."""


@command.command(
    name="init",
    epilog="""\b
Example:
  tally keyd init /var/lib/tallykeyd --log audit_log --socket /run/tallykeyd.sock --user tallykeyd
\b
Stop the writers of the log first: one that is running goes on with the key that it has in memory.""",
)
@_FOLDER
@click.option("--log", "log_path", metavar="LOG", help="The folder of the log.")
@click.option("--socket", "socket_path", required=True, metavar="PATH", help="Where the daemon will listen; it goes into log.toml.")
@click.option("--user", metavar="NAME", help="Who will run the daemon (needs root); without it, you.")
@click.option("--allow", "uids", type=int, multiple=True, metavar="UID", help="Who may ask beside him and the log's owner.")
def init_command(folder: Path, log_path: str | None, socket_path: str, user: str | None, uids: tuple[int, ...]) -> None:
    """Move the key of the running epoch into DIR, and name the socket in log.toml."""
    path, where = folder.absolute(), os.path.abspath(socket_path)
    owner = None if user is None else _user(user)
    with open_log(find_log(log_path)) as log:
        settings = log._handle.settings
        if settings.keyd.socket and Path(settings.keyd.socket) != Path(where):
            raise click.ClickException(f"{log.path / 'log.toml'} names another keyd already: {settings.keyd.socket}")
        allowed = tuple(sorted({os.stat(log.path).st_uid, *uids}))
        log._handle.writer.exclusively(lambda _append: _move(log, path, where, allowed, owner))
    note(f"the key of the running epoch is in {path} now, and only there; log.toml names {where}")
    note(f"next:  tally keyd serve {path} --socket {where}     as {user or 'you'}")
    note(f"then:  tally key rotate {log.path}     so that a key signs that was never in a file of this user")


def _move(log: AuditLogger, path: Path, where: str, allowed: tuple[int, ...], owner: tuple[int, int] | None) -> None:
    """If we die before log.toml was written, nothing has changed: remove DIR. After it, the same command destroys what is left."""
    from ..config import set_keyd
    from ..disk import DISK
    from ..keyd.server import take_over

    handle = log._handle
    head = handle.view.head().checkpoint
    number = handle.view.history(head.size).epochs[-1].number
    if not handle.settings.keyd.socket:
        if not path.is_dir():
            DISK.mkdir(path, 0o700)
        take_over(handle.keys, path, number, head, allowed)
        if owner is not None:
            for one in (*path.iterdir(), path):
                os.chown(one, *owner)
        set_keyd(log.path, where)
    handle.keys.destroy(number)


def _user(name: str) -> tuple[int, int]:
    import pwd

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise click.UsageError(f"--user: there is no user {name}") from None
    if os.geteuid() != 0:
        raise click.UsageError("--user needs root")
    return found.pw_uid, found.pw_gid


@command.command(
    name="serve",
    epilog="""\b
Example:
  tally keyd serve /var/lib/tallykeyd --socket /run/tallykeyd.sock --group app""",
)
@_FOLDER
@click.option("--socket", "socket_path", required=True, metavar="PATH", help="Where it listens: a Unix socket.")
@click.option("--mode", default="660", show_default=True, metavar="OCTAL", help="Permissions of the socket.")
@click.option("--group", metavar="NAME", help="The group of the socket.")
def serve_command(folder: Path, socket_path: str, mode: str, group: str | None) -> None:
    """Serve until told to stop. Who asks is taken from the kernel; what was refused is said on standard error."""
    from ..keyd.server import Door, Keyd

    if len(mode) != 3 or not all(c in "0246" for c in mode):
        raise click.UsageError("--mode: three octal digits of read and write, such as 660")
    stopping: list[int] = []
    with Keyd(folder.absolute()) as keyd, Door(Path(os.path.abspath(socket_path)), mode=int(mode, 8), group=group) as door:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda number, _frame: stopping.append(number))
        note(f"tally keyd: {keyd.settings.origin} at {door.path}")
        door.serve(keyd, stop=lambda: bool(stopping), say=note)


@command.command(
    name="status",
    epilog="""\b
Example:
  tally keyd status audit_log""",
)
@click.argument("log", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status_command(log: str | None, as_json: bool) -> int:
    """Whether the daemon of a log answers, and which keys it has."""
    with open_log(find_log(log)) as opened:
        handle = opened._handle
        custody = handle._custody()
        if custody is None:
            raise click.ClickException(f"{opened.path / 'log.toml'} names no keyd: the epoch keys are files in {handle.keys.path}")
        epochs, size = custody.numbers(), custody.last_size()
        if as_json:
            print_json({"socket": str(custody.path), "epochs": epochs, "signed_until": size, "size": handle.view.head().size})
        else:
            held = ", ".join(map(str, epochs)) or "none"
            click.echo(f"keyd at {custody.path}: signed {size:,} entries, holds the key of epoch {held}")
    return 0
