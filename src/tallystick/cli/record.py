"""``tally record`` (alias ``log``)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import clean, find_log, note, open_log, plural, print_json

if TYPE_CHECKING:
    from ..logger import AuditLogger

LINES_MAX = 256
LINE_BYTES_MAX = 64 * 1024 * 1024  # payloads travel in the line; nothing longer is held in memory
_CHUNK = 1 << 16
_FLAGS = {
    "actor": "actor", "actor_type": "actor_type", "action": "action", "resource": "resource", "type": "event_type",
    "outcome": "outcome", "session": "session_id", "ip": "ip_address", "case": "correlation_id", "reason": "reason",
    "subject": "subject", "on_behalf_of": "on_behalf_of", "event_id": "event_id", "timestamp": "timestamp",
    "parent": "parent_id", "corrects": "corrects", "service": "service",
}  # fmt: skip
_DEFAULTS = {"actor_type": "user", "resource": "-", "event_type": "user_action", "outcome": "success"}


@click.command(
    name="record",
    epilog="""\b
Example:
  tally record --actor ana --action "read customer" --resource crm --details '{"id": 42}'
  tally record audit_log < events.jsonl
\b
A piped line is a JSON object with the keywords of log():
  {"event_type": "data_access", "actor": "ana", "actor_type": "user",
   "resource": "crm", "action": "read customer"}
A bad line is named on standard error, the others are recorded, the exit code is 4.""",
)
@click.argument("log", required=False)
@click.option("--actor", metavar="WHO", help="Who did it.")
@click.option("--action", metavar="WHAT", help="What was done.")
@click.option("--actor-type", metavar="T", help="user (default), system, service, agent.")
@click.option("--resource", metavar="R", help="To what (default: -).")
@click.option("--type", metavar="T", help="Event type (default: user_action).")
@click.option("--outcome", metavar="O", help="success (default), failure, partial, denied.")
@click.option("--details", metavar="JSON", help="A JSON object.")
@click.option("--session", metavar="ID", help="session_id.")
@click.option("--ip", metavar="ADDRESS", help="ip_address.")
@click.option("--case", metavar="ID", help="The case it belongs to (correlation_id).")
@click.option("--reason", metavar="TEXT", help="Why.")
@click.option("--subject", metavar="ID", help="Whom it is about; use a pseudonym.")
@click.option("--on-behalf-of", metavar="WHO", help="For whom.")
@click.option("--event-id", metavar="ID", help="Your own id: the same id with the same content is recorded once.")
@click.option("--timestamp", metavar="T", help="When it happened, if not now (UTC without offset).")
@click.option("--parent", metavar="ID", help="The event this is a part of (parent_id).")
@click.option("--corrects", metavar="ID", help="The event that this one corrects.")
@click.option("--service", metavar="NAME", help="The program.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, /, log: str | None, details: str | None, as_json: bool, **flags: str | None) -> int:
    """Record one event from flags, or many from piped JSON lines. Prints each id when it is durable."""
    given = {_FLAGS[name]: value for name, value in flags.items() if value is not None}
    if given or details is not None:
        for name in ("actor", "action"):
            if name not in given:
                raise click.UsageError(f"--{name} is missing")
        event: dict[str, Any] = {**_DEFAULTS, **given}
        if details is not None:
            event["details"] = _details(details)
        return _record_one(log, event, as_json)
    if _on_terminal():
        click.echo(ctx.get_help())
        return 2
    return _record_lines(log, as_json)


def _on_terminal() -> bool:
    try:
        return sys.stdin is None or sys.stdin.isatty()
    except ValueError:  # closed
        return True


def _details(text: str) -> dict[str, Any]:
    from ..core.errors import Malformed

    try:
        value = parse(text)
    except ValueError as e:
        raise Malformed(f"--details: {e}") from None
    if not isinstance(value, dict):
        raise Malformed(f"--details is a JSON object such as '{{\"id\": 42}}', not {_kind(value)}")
    return value


def _record_one(log: str | None, event: dict[str, Any], as_json: bool) -> int:
    with open_log(find_log(log), write=True) as opened:
        event_id = opened.log(**event)
    if as_json:
        print_json({"recorded": 1, "ids": [event_id], "refused": []})
    else:
        click.echo(event_id)
    return 0


# -- many ----------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A piped line: its number, and its bytes or None where it was too long."""

    number: int
    data: bytes | None


class Result:
    """Ids are printed as they become durable; with ``--json`` they wait for the end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.ids: list[str] = []
        self.count = 0
        self.refused: list[dict[str, Any]] = []

    def recorded(self, ids: list[str]) -> None:
        """These are durable."""
        self.count += len(ids)
        if self.as_json:
            self.ids += ids
        elif ids:
            click.echo("\n".join(ids))
            sys.stdout.flush()

    def refuse(self, number: int, why: object) -> None:
        """This line was not recorded."""
        text = clean(str(why))[:1000]
        self.refused.append({"line": number, "error": text} if len(self.refused) < 10_000 else {})
        note(f"line {number}: {text}")


def _record_lines(log: str | None, as_json: bool) -> int:
    from ..core.errors import StoreError

    result, last = Result(as_json), 0
    with open_log(find_log(log), write=True) as opened:
        for batch in batches(sys.stdin.buffer):
            try:
                _record_batch(opened, batch, result)
            except (StoreError, OSError) as e:
                note(f"stopped at lines {batch[0].number} to {batch[-1].number}: {plural(result.count, 'event')} recorded before; "
                     "what has no id above is not known to be recorded")  # fmt: skip
                raise e from None
            last = batch[-1].number
    if as_json:
        print_json({"recorded": result.count, "ids": result.ids, "refused": [r for r in result.refused if r]})
    if last == 0:
        note("nothing was recorded: there was no line on standard input")
    if result.refused:
        note(f"{plural(result.count, 'event')} recorded, {plural(len(result.refused), 'line')} refused")
        return 4
    return 0


def _record_batch(log: AuditLogger, batch: list[Line], result: Result) -> None:
    ready: list[tuple[int, dict[str, Any]]] = []
    for line in batch:
        try:
            ready.append((line.number, _event(line)))
        except ValueError as e:
            result.refuse(line.number, e)
    for group in _groups(ready):
        _record_group(log, group, result)


def _groups(ready: list[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """No group has one event id twice: the second is a retry of the first, or a conflict that must be named."""
    group: list[tuple[int, dict[str, Any]]] = []
    ids: set[str] = set()
    for number, event in ready:
        event_id = event.get("event_id")
        if isinstance(event_id, str):
            if event_id in ids:
                yield group
                group, ids = [], set()
            ids.add(event_id)
        group.append((number, event))
    yield group


def _record_group(log: AuditLogger, ready: list[tuple[int, dict[str, Any]]], result: Result) -> None:
    from ..core.errors import Conflict, EntryRefused

    while ready:
        try:
            result.recorded(log.log_many([event for _, event in ready]))
            return
        except EntryRefused as e:
            if e.position is None or not 0 <= e.position < len(ready):
                break
            number, _ = ready.pop(e.position)
            result.refuse(number, str(e).removeprefix(f"event {e.position}: "))
        except Conflict:
            break
    for number, event in ready:  # one of them cannot be recorded; nothing of the group was: one by one
        try:
            result.recorded([log.log(**event)])
        except (EntryRefused, Conflict) as e:
            result.refuse(number, e)


def _event(line: Line) -> dict[str, Any]:
    if line.data is None:
        raise ValueError(f"longer than {LINE_BYTES_MAX:,} bytes")
    try:
        text = line.data.decode("utf-8-sig" if line.number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 at byte {e.start}") from None
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"a line is a JSON object with the keywords of log(), not {_kind(value)}")
    missing = [n for n in ("event_type", "actor", "actor_type", "resource", "action") if n not in value]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    return value


def parse(text: str) -> Any:
    """JSON with one meaning: no duplicate keys, no NaN. ``ValueError`` says what and where."""
    try:
        return json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON at character {e.pos + 1}: {e.msg}") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} is there twice")
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    kinds = {"list": "a list", "str": "text", "int": "a number", "float": "a number", "bool": "true or false", "NoneType": "null"}
    return kinds.get(type(value).__name__, "something else")


def batches(stream: Any) -> Iterator[list[Line]]:
    """Lines as they arrive, at most 256 at a time; a live stream is not kept waiting. Empty lines count and are skipped."""
    number, rest, skipping = 0, bytearray(), False
    while True:
        data = _read(stream)
        *whole, tail = data.split(b"\n") if data else [b""]
        found: list[Line] = []
        if not data and rest:
            whole, tail = [b""], b""
        for piece in whole:
            rest += piece
            number += 1
            line = Line(number, None if skipping or len(rest) > LINE_BYTES_MAX else bytes(rest).rstrip(b"\r"))
            rest, skipping = bytearray(), False
            if line.data is None or line.data.strip():
                found.append(line)
        rest += tail
        if len(rest) > LINE_BYTES_MAX:
            rest, skipping = bytearray(b"."), True
        for at in range(0, len(found), LINES_MAX):
            yield found[at : at + LINES_MAX]
        if not data:
            return


def _read(stream: Any) -> bytes:
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return bytes(stream.read(_CHUNK))
    return os.read(fd, _CHUNK)
