"""``tally witness``: to be one, and to have some."""

from __future__ import annotations

import asyncio
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Screen, find_log, note, open_log, plural, print_json, user_memory

if TYPE_CHECKING:
    from ..publishing import Known


@click.group(
    name="witness",
    epilog="""\b
Example, on another machine, by somebody else:
  tally witness init w --name witness.kanzlei.example
  tally witness add-log w VKEY-OF-THE-LOG
  tally witness serve w --listen 0.0.0.0:7380
and on the machine of the log:
  tally witness add kanzlei VKEY-OF-THE-WITNESS http://witness.kanzlei.example:7380""",
)
def command() -> None:
    """A witness remembers how far a log was and signs only what extends it: be one for others, or have some for a log."""


# -- being one ---------------------------------------------------------------------------------------------------------------

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@command.command(
    name="init",
    epilog="""\b
Example:
  tally witness init w --name witness.kanzlei.example""",
)
@_FOLDER
@click.option("--name", required=True, metavar="NAME", help="Its name for ever, as a URL without scheme: w.example.org")
@click.option("--ml-dsa", is_flag=True, help="Also a key of ML-DSA-44, whose signatures a quantum computer cannot forge.")
@_JSON
def init_command(folder: Path, name: str, ml_dsa: bool, as_json: bool) -> None:
    """Make a witness; prints its verifier keys, which the owners of logs need."""
    from ..core.errors import Malformed
    from ..witness.folder import create

    path = folder.absolute()
    try:
        vkeys = create(path, name, ml_dsa=ml_dsa)
    except Malformed as e:
        raise click.UsageError(str(e)) from None
    if as_json:
        print_json({"path": str(path), "vkeys": [key.format() for key in vkeys]})
        return
    for key in vkeys:
        click.echo(key.format())
    quoted = shlex.quote(str(folder))
    note("next:")
    note(f"  tally witness add-log {quoted} VKEY      the owner of a log gets that from: tally key vkey")
    note(f"  tally witness serve {quoted} --listen 127.0.0.1:7380")
    note("the owner of the log gets the lines above and runs: tally witness add NAME VKEY… URL")


@command.command(
    name="add-log",
    epilog="""\b
Example:
  tally witness add-log w srv2/invoices/0f3a9c21b7de+1b2c3d4e+AfG…""",
)
@_FOLDER
@click.argument("vkey")
@click.option("--origin", metavar="TEXT", help="The first line of its checkpoints, where that is not the name of the key.")
@_JSON
def add_log_command(folder: Path, vkey: str, origin: str | None, as_json: bool) -> None:
    """Cosign a log from now on, also while the witness serves. A log may have several keys."""
    from ..witness.folder import add_log

    named, new = add_log(folder.absolute(), vkey, origin)
    if as_json:
        print_json({"origin": named, "added": new})
    else:
        click.echo(f"{'known from now on' if new else 'known already'}: {named}")


@command.command(
    name="serve",
    epilog="""\b
Example:
  tally witness serve w --listen 127.0.0.1:7380
  curl http://127.0.0.1:7380/healthz""",
)
@_FOLDER
@click.option("--listen", default="127.0.0.1:7380", show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one.")
def serve_command(folder: Path, listen: str) -> int | None:
    """Serve until told to stop. Plain HTTP: where others listen in between, a reverse proxy adds TLS."""
    from ..witness.folder import read_keys
    from ..witness.server import serve
    from ..witness.state import Witness

    host, port = _listen(listen)
    path = folder.absolute()
    with Witness(path, read_keys(path)) as witness:
        def ready(host: str, port: int) -> None:
            where = f"[{host}]" if ":" in host else host
            note(f"tally witness: {witness.keys[0].name} at http://{where}:{port}")

        async def run() -> None:
            until = asyncio.Event()
            for name in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(name, until.set)
            await serve(witness, host, port, ready=ready, until=until, say=note)

        asyncio.run(run())
        if witness.broken:
            raise click.ClickException(f"nothing could be kept any more: {witness.broken}")
    return None


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise click.UsageError(f"--listen: {text!r} is not HOST:PORT, for instance 127.0.0.1:7380")
    return host.strip("[]") or "127.0.0.1", int(port)


@command.command(
    name="status",
    epilog="""\b
Example:
  tally witness status w
  tally witness status w --json""",
)
@_FOLDER
@click.option("--evidence", type=click.Path(path_type=Path, file_okay=False), metavar="OUT",
              help="Write what contradicts into this folder: two notes each.")  # fmt: skip
@_JSON
def status_command(folder: Path, evidence: Path | None, as_json: bool) -> int:
    """How far each log was cosigned, and what contradicts (exit 6, or 3 where that is not proven). Also while the witness serves."""
    from ..core.times import format_time
    from ..witness.folder import read_logs, read_vkeys
    from ..witness.state import contradictions, cosigned_logs

    path = folder.absolute()
    vkeys, logs = read_vkeys(path), read_logs(path)
    seen, found = cosigned_logs(path), contradictions(path)
    if evidence is not None:
        _write_evidence(evidence.absolute(), found)
    if as_json:
        print_json({
            "path": str(path), "vkeys": [k.format() for k in vkeys],
            "logs": [{"origin": o, "keys": [k.format() for k in logs.get(o, ())], "size": seen[o].size if o in seen else None,
                      "time_s": seen[o].time_s if o in seen else None} for o in sorted({*logs, *seen})],
            "contradictions": [{"origin": c.origin, "size": c.size, "kind": c.kind, "time_s": c.time_s, "request": c.request.decode(),
                                "known": c.known.decode()} for c in found],
        })  # fmt: skip
        return _judge(found)
    screen = Screen()
    for key in vkeys:
        screen.long(key.format())
    screen.blank()
    rows: list[tuple[object, ...]] = []
    for origin in sorted({*logs, *seen}):
        last = seen.get(origin)
        time_s = 0 if last is None else last.time_s
        when = format_time(time_s * 1_000_000)[:16] if time_s else "never" if last is None else "time forgotten"
        rows.append((origin, "" if last is None else f"{last.size:,}", when.replace("T", " "),
                     "" if origin in logs else "no longer known"))  # fmt: skip
    if rows:
        screen.table(("log", "entries", "cosigned (UTC)", ""), rows, right=(1,), cut=(0,))
    else:
        screen.line(f"no log yet: tally witness add-log {shlex.quote(str(folder))} VKEY")
    for one in found:
        what = ("TWO HISTORIES: another root was signed for" if one.kind == "split" else
                "signed, and not shown to extend what was cosigned:")  # fmt: skip
        screen.line(f"{one.origin}: {what} {plural(one.size, 'entry', 'entries')}, "
                    f"{format_time(one.time_s * 1_000_000)[:16].replace('T', ' ')}", "red", hang=2)  # fmt: skip
    if found and evidence is None:
        screen.line(f"to hand it on: tally witness status {shlex.quote(str(folder))} --evidence OUT")
    return _judge(found)


def _judge(found: list[Any]) -> int:
    return 6 if any(c.kind == "split" for c in found) else 3 if found else 0


def _write_evidence(out: Path, found: list[Any]) -> None:
    from ..disk import DISK

    if not out.is_dir():
        DISK.mkdir(out)
    for number, one in enumerate(found, 1):
        for word, data in (("signed", one.request), ("cosigned", one.known)):
            DISK.write_file(out / f"{number:03d}-{one.size}-{word}.checkpoint", data)


@command.command(
    name="forget-time",
    epilog="""\b
Example:
  tally witness forget-time w srv2/invoices/0f3a9c21b7de""",
)
@_FOLDER
@click.argument("origin")
def forget_time_command(folder: Path, origin: str) -> None:
    """For a clock that ran ahead: cosign a log again although its last cosignature bears a later time. Stop the witness first."""
    from ..witness.folder import read_keys
    from ..witness.state import Witness

    path = folder.absolute()
    with Witness(path, read_keys(path)) as witness:
        try:
            witness.forget_time(origin)
        except KeyError:
            raise click.ClickException(f"{origin} was never cosigned here") from None
    click.echo(f"the next cosignature of {origin} states what the clock says then")


# -- having some -------------------------------------------------------------------------------------------------------------

_LOG = click.option("--log", "log_path", metavar="LOG", help="The folder of the log.")


@command.command(
    name="add",
    epilog="""\b
Example:
  tally witness add kanzlei 'witness.kanzlei.example+5e3b…+BP…' https://witness.kanzlei.example
  tally witness add kanzlei VKEY VKEY-OF-ML-DSA URL --quorum 2""",
)
@click.argument("name")
@click.argument("words", nargs=-1, required=True, metavar="VKEY… URL")
@click.option("--quorum", metavar="all|any|N", help="How many witnesses must confirm a checkpoint (default: all, or as it was).")
@_LOG
@_JSON
def add_command(name: str, words: tuple[str, ...], quorum: str | None, log_path: str | None, as_json: bool) -> int:
    """Have a log's checkpoints confirmed by a witness from now on, and by this command at once.

    What confirms is pinned for you: its key counts in your verdicts. Several VKEYs are keys of the same witness.
    """
    from ..outside import Parties, check_party_name
    from ..publishing import Known, change_policy, known_witnesses, quorum_word, write_policy
    from ..witness.submit import Url
    from .publish import hand_out, show

    *texts, url = words
    check_party_name(name)
    Url.parse(url)
    one = Known(name, url, _keys(texts))
    with open_log(find_log(log_path)) as log:
        policy = _own_policy(log)
        others = [w for w in known_witnesses(policy) if w.name != name]
        word = quorum or (quorum_word(policy) if policy is not None and others else "all")
        changed = change_policy(policy, log._handle.genesis.vkey, [*others, one], word)
        _pin(log, [w for w in changed.witnesses if w.key in one.keys])
        before = Parties(log.path).get(name)
        if before is not None and before.target != url:
            _forget(log, name)
        write_policy(log.path, changed)
        if not as_json:
            note(f"added to {log.path / 'policy'}: the witness {name}; quorum {word}")
        code = show(hand_out(log, {name}), as_json)
    return code if code == 6 else 0


def _keys(texts: list[str]) -> tuple[Any, ...]:
    from ..core.cosignature import ALGORITHMS
    from ..core.errors import Malformed
    from ..core.note import VerifierKey

    if not texts:
        raise click.UsageError("a witness is added with NAME VKEY URL")
    try:
        keys = tuple(VerifierKey.parse(text, algorithms=ALGORITHMS) for text in texts)
    except Malformed as e:
        raise Malformed(f"VKEY: {e}; what a witness prints begins with its name") from None
    if len({key.algorithm for key in keys}) != len(keys):
        raise click.UsageError("the keys of one witness are of different kinds, one Ed25519 and one ML-DSA-44")
    return keys


def _own_policy(log: Any) -> Any:
    """The log's policy, if it is one of ours: one that was written by hand is not rewritten."""
    from ..core.errors import ConfigError
    from ..publishing import change_policy, known_witnesses, quorum_word, read_policy

    policy = read_policy(log.path)
    if policy is None:
        return None
    if change_policy(policy, log._handle.genesis.vkey, known_witnesses(policy), quorum_word(policy)) != policy:
        raise ConfigError(f"{log.path / 'policy'} was written by hand; change it by hand, this command would lose what it says")
    return policy


def _pin(log: Any, witnesses: list[Any]) -> None:
    from ..core.errors import ConfigError
    from ..memory import pin_witness

    for witness in witnesses:
        try:
            pin_witness(user_memory(), log.path, witness.name, witness.key.format())
        except ConfigError as e:
            note(f"not pinned for you: {e}")


def _forget(log: Any, name: str) -> None:
    from ..disk import DISK

    path = log.path / "outside" / f"{name}.json"
    if path.exists():
        DISK.unlink(path)


@command.command(
    name="remove",
    epilog="""\b
Example:
  tally witness remove kanzlei""",
)
@click.argument("name")
@click.option("--quorum", metavar="all|any|N", help="How many of those that are left must confirm (default: all, or any as it was).")
@_LOG
def remove_command(name: str, quorum: str | None, log_path: str | None) -> None:
    """Ask a witness no longer. What it confirmed stays with the log; for you its key counts no longer."""
    from ..publishing import change_policy, known_witnesses, quorum_word, write_policy

    with open_log(find_log(log_path)) as log:
        policy = _own_policy(log)
        left = [w for w in known_witnesses(policy) if w.name != name]
        gone = next((w for w in known_witnesses(policy) if w.name == name), None)
        if policy is None or gone is None:
            raise click.ClickException(f"there is no witness {name} in {log.path / 'policy'}")
        word = quorum or quorum_word(policy)
        if quorum is None and word not in ("all", "any"):
            word = str(min(int(word), max(1, len(left))))
        changed = change_policy(policy, log._handle.genesis.vkey, left, word)
        memory = user_memory()
        for witness in policy.witnesses:
            if witness.key in gone.keys and memory.folder is not None:
                memory.unpin_witness(log.path, witness.name)
        write_policy(log.path, changed)
        _forget(log, name)
        click.echo(f"removed: the witness {name}; left: {', '.join(w.name for w in left) or 'none'}")


@command.command(
    name="submit",
    epilog="""\b
Example:
  tally witness submit
  */15 * * * *  tally witness submit /var/lib/acme/audit_log    # cron""",
)
@click.argument("log", required=False)
@_JSON
def submit_command(log: str | None, as_json: bool) -> int:
    """Hand the current checkpoint to the witnesses now (exit 2: somebody was not reached, 6: one knows another history)."""
    from ..publishing import known_witnesses, read_policy
    from .publish import hand_out, show

    with open_log(find_log(log)) as opened:
        names = {w.name for w in known_witnesses(read_policy(opened.path))}
        if not names:
            raise click.ClickException(f"{opened.path} has no witness: tally witness add NAME VKEY URL --log {opened.path}")
        return show(hand_out(opened, names), as_json)


@command.command(
    name="show",
    epilog="""\b
Example:
  tally witness show""",
)
@click.argument("log", required=False)
@_JSON
def show_command(log: str | None, as_json: bool) -> None:
    """The witnesses of a log, and how far each confirmed it. Nobody is asked."""
    from ..outside import Parties, PartyState
    from ..publishing import known_witnesses, quorum_word, read_policy
    from .status import party_text

    with open_log(find_log(log)) as opened:
        policy = read_policy(opened.path)
        states = Parties(opened.path)
        rows: list[tuple[Known, PartyState]] = [
            (w, states.get(w.name) or PartyState("witness", w.url)) for w in known_witnesses(policy)
        ]  # fmt: skip
        word = quorum_word(policy) if policy is not None and rows else "none"
        if as_json:
            print_json({"quorum": word, "witnesses": [
                {"name": w.name, "url": w.url, "vkeys": [k.format() for k in w.keys], "done_size": s.done_size, "done_us": s.done_us,
                 "tried_us": s.tried_us, "error": s.error, "local": s.local} for w, s in rows]})  # fmt: skip
            return
        screen = Screen()
        for w, s in rows:
            screen.line(party_text(w.name, s, opened.zone), "red" if s.error else "", hang=2)
            screen.long(f"  {w.url}")
            for key in w.keys:
                screen.long(f"  {key.format()}")
        screen.line(f"quorum: {word}" if rows else f"no witness: tally witness add NAME VKEY URL --log {opened.path}")
