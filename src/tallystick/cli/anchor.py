"""``tally anchor``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import Screen, find_log, note, open_log, print_json, when_text

if TYPE_CHECKING:
    from ..anchor.configured import AnchorSettings
    from ..logger import AuditLogger

_LOG = click.option("--log", "log_path", metavar="LOG", help="The folder of the log.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group(
    name="anchor",
    epilog="""\b
Example:
  tally anchor add auditor --mail auditor@kanzlei.example
  tally anchor add nas --folder /mnt/nas/checkpoints
  tally anchor add stamp --timestamp http://tsa.example/tsr --certificate tsa-ca.pem
  tally anchor now""",
)
def command() -> None:
    """Where checkpoints go that is no witness. Nobody is contacted who was not added; what failed is pending and tried again."""


@command.command(
    name="add",
    epilog="""\b
Example:
  tally anchor add auditor --mail auditor@kanzlei.example --smtp mail.example:587 \\
      --from tally@srv2.example --user tally --password-file mail.password
  tally anchor add nas --folder /mnt/nas/checkpoints
  tally anchor add stamp --timestamp http://tsa.example/tsr --certificate tsa-ca.pem
\b
The password is one line in a file of the key folder (chmod 600) or in an environment variable.
Adding sends nothing. tally anchor test NAME does.""",
)
@click.argument("name")
@click.option("--mail", "to", metavar="TO", help="By e-mail to these addresses, joined by commas.")
@click.option("--sendmail", metavar="PATH", help="The program that sends it (default: /usr/sbin/sendmail).")
@click.option("--smtp", metavar="HOST:PORT", help="The server that sends it, instead of sendmail.")
@click.option("--from", "sender", metavar="ADDRESS", help="Who sends it.")
@click.option("--tls", type=click.Choice(["starttls", "tls", "none"]), help="How the server is spoken to (default: starttls).")
@click.option("--ca", metavar="PEM", help="The certificate of a private authority that the server's is of.")
@click.option("--user", metavar="USER", help="Who logs in to the server.")
@click.option("--password-file", metavar="FILE", help="The name of a file in the key folder.")
@click.option("--password-env", metavar="NAME", help="The name of an environment variable of whoever writes the log.")
@click.option("--folder", metavar="PATH", help="To a folder on another disk or share, which is there already.")
@click.option("--timestamp", "url", metavar="URL", help="To an authority of RFC 3161.")
@click.option("--certificate", metavar="PEM", help="Who is believed: the authority's CA certificate; copied into the log.")
@_LOG
def add_command(
    name: str, to: str | None, folder: str | None, url: str | None, certificate: str | None, log_path: str | None, **mail: str | None
) -> None:  # fmt: skip
    """Append an [[anchor]] table to log.toml."""
    from ..config import add_anchor
    from ..core.errors import Malformed
    from ..publishing import known_witnesses, read_policy

    if sum(value is not None for value in (to, folder, url)) != 1:
        raise click.UsageError("one of --mail, --folder and --timestamp")
    given = sorted(key for key, value in mail.items() if value is not None)
    if to is None and given:
        raise click.UsageError(f"--{given[0].replace('sender', 'from').replace('_', '-')} belongs to --mail")
    if (certificate is None) is not (url is None):
        raise click.UsageError("--timestamp and --certificate go together")
    path = find_log(log_path)
    with open_log(path):
        pass  # a log that may be opened
    try:
        settings = _settings(path, name, to, folder, url, {key: value for key, value in mail.items() if value is not None})
        if url is not None and certificate is not None:
            _check_certificate(Path(certificate))
        add_anchor(path, settings, [one.name for one in known_witnesses(read_policy(path))])
    except Malformed as e:
        raise click.UsageError(str(e)) from None
    if url is not None and certificate is not None:
        _copy(path, Path(certificate), f"{name}.pem")
    note(f"added to {path / 'log.toml'}; nothing was sent yet: tally anchor test {name}")


def _settings(path: Path, name: str, to: str | None, folder: str | None, url: str | None, mail: dict[str, str]) -> AnchorSettings:
    from ..anchor.folder import FolderSettings
    from ..anchor.mail import MailSettings
    from ..anchor.timestamp import TimestampSettings
    from ..outside import check_party_name

    check_party_name(name)
    if to is not None:
        if "ca" in mail:
            mail["ca"] = os.path.abspath(mail["ca"])
        return MailSettings(name, to, **mail)
    if folder is not None:
        where = os.path.abspath(folder)
        if not os.path.isdir(where):
            raise click.UsageError(f"--folder: {where} is not a folder that is there; mount or make it first")
        elsewhere = os.stat(where).st_dev != os.stat(path).st_dev
        if not elsewhere:
            note(f"{where} is on the same device as the log: it is accepted, and called not independent")
        return FolderSettings(name, where, elsewhere)
    return TimestampSettings(name, url or "", f"{name}.pem")


def _check_certificate(source: Path) -> None:
    from ..anchor.timestamp import read_roots
    from ..core.errors import ConfigError

    try:
        read_roots(source)
    except ConfigError as e:
        raise click.UsageError(f"--certificate: {e}") from None


def _copy(folder: Path, source: Path, name: str) -> None:
    from ..disk import DISK, file_mode

    DISK.write_file(folder / name, source.read_bytes(), file_mode(folder), like=folder)


@command.command(
    name="list",
    epilog="""\b
Example:
  tally anchor list""",
)
@_LOG
@_JSON
def list_command(log_path: str | None, as_json: bool) -> None:
    """The anchors of a log, and how far each got."""
    from ..outside import Parties, PartyState

    with open_log(find_log(log_path)) as log:
        states = Parties(log.path).all()
        head = log._handle.view.head().size
        rows = []
        for one in log._handle.settings.anchor:
            state = states.get(one.name)
            if state is None or state.target != one.target:
                state = PartyState(_kind(one), one.target)
            rows.append((one.name, state))
        if as_json:
            print_json([{"name": name, "kind": s.kind, "target": s.target, "done_size": s.done_size, "done_us": s.done_us or None,
                         "tried_us": s.tried_us or None, "error": s.error, "local": s.local} for name, s in rows])  # fmt: skip
            return
        if not rows:
            note(f"no anchors: tally anchor add NAME --mail TO, --folder PATH or --timestamp URL, with --log {log.path}")
            return
        screen = Screen()
        screen.table(["name", "kind", "where", "how far"], [(n, s.kind, s.target, _how_far(log, s, head)) for n, s in rows], indent=0)


def _kind(settings: AnchorSettings) -> str:
    import msgspec

    return str(msgspec.structs.fields(settings) and type(settings).__struct_config__.tag)


def _how_far(log: AuditLogger, state: object, head: int) -> str:
    from ..outside import PartyState

    assert isinstance(state, PartyState)
    word = {"mail": "sent", "folder": "kept"}.get(state.kind, "confirmed")
    text = "nothing yet"
    if state.done_size:
        text = f"{word} {state.done_size:,} of {head:,} entries {when_text(state.done_us, log.zone)}"
    if state.local:
        text += "; not independent: on this machine"
    if state.error:
        text += f"; PENDING, last tried {when_text(state.tried_us, log.zone)}: {state.error}"
    return text


@command.command(
    name="remove",
    epilog="""\b
Example:
  tally anchor remove nas""",
)
@click.argument("name")
@_LOG
def remove_command(name: str, log_path: str | None) -> None:
    """Take an anchor out of log.toml. What it has, and the timestamps that it gave, stay where they are."""
    from ..config import remove_anchor

    path = find_log(log_path)
    with open_log(path):
        pass
    remove_anchor(path, name)
    note(f"removed from {path / 'log.toml'}; what {name} has stays there")


@command.command(
    name="test",
    epilog="""\b
Example:
  tally anchor test auditor
\b
Exit codes: 0 done, 2 not done (the reason is said), 6 it has another history of this log.""",
)
@click.argument("name")
@_LOG
@_JSON
def test_command(name: str, log_path: str | None, as_json: bool) -> int:
    """Hand the current checkpoint to one anchor and say what became of it."""
    from ..core.errors import ConfigError

    with open_log(find_log(log_path)) as log:
        if name not in {one.name for one in log._handle.settings.anchor}:
            raise ConfigError(f"{log.path / 'log.toml'}: there is no anchor {name}")
    return _hand_out(log_path, {name}, as_json)


@command.command(
    name="now",
    epilog="""\b
Example:
  tally anchor now
\b
Exit codes: 0 done, 2 some are pending, 6 one has another history of this log.""",
)
@_LOG
@_JSON
def now_command(log_path: str | None, as_json: bool) -> int:
    """Hand the current checkpoint to every anchor now (tally publish: and to the witnesses)."""
    return _hand_out(log_path, None, as_json)


def _hand_out(log_path: str | None, names: set[str] | None, as_json: bool) -> int:
    from .publish import hand_out, show

    with open_log(find_log(log_path)) as log:
        wanted = {one.name for one in log._handle.settings.anchor} if names is None else names
        if not wanted:
            raise click.ClickException(f"{log.path} has no anchors; tally anchor add --help shows how to have some")
        return show(hand_out(log, wanted), as_json)
