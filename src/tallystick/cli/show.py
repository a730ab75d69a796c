"""``tally show``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .common import (
    Screen,
    clean,
    find_log,
    last_verified,
    local,
    log_and_event,
    open_log,
    print_bytes,
    print_json,
    stored_entry,
    wanted_entry,
    zone_text,
)  # fmt: skip

if TYPE_CHECKING:
    from ..core.entry import AuditEntry
    from ..logger import AuditLogger

PREVIEW_BYTES = 2000


@click.command(
    name="show",
    epilog="""\b
Example:
  tally show evt_…
  tally show '#17402'             in quotes: a shell takes # for a comment
  tally show audit_log '#17402' --raw > entry.json""",
)
@click.argument("args", nargs=-1, metavar="[LOG] EVENT")
@click.option("--raw", is_flag=True, help="The stored bytes, nothing else: what the checksum is of.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(args: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """One entry, by its id or '#index', with everything that is known of it."""
    if raw and as_json:
        raise click.UsageError("--raw and --json do not go together")
    named, event = log_and_event(args, "show")
    with open_log(find_log(named)) as log:
        stored = stored_entry(log, event)
        if raw:
            print_bytes(stored.line)
            return
        entry = log.entry(wanted_entry(event))
        if as_json:
            print_json(log._row(entry))
            return
        _show(log, entry, stored)


def _show(log: AuditLogger, entry: AuditEntry, stored: Any) -> None:
    screen = Screen()
    happened, recorded = local(entry.timestamp_us, log.zone), local(entry.recorded_at_us, log.zone)
    other = "" if recorded.utcoffset() == happened.utcoffset() else f" {recorded:%z}"
    screen.line(f"{entry.place}   {entry.event_id}   {entry.log}   {zone_text(happened)}", "bold")
    screen.blank()
    screen.pairs([
        ("happened", f"{happened:%Y-%m-%d %H:%M:%S.%f}  (said by the caller)"),
        ("recorded", f"{recorded:%Y-%m-%d %H:%M:%S.%f}{other}"),
        ("who", f"{entry.actor} ({entry.actor_type})"),
        ("what", entry.action),
        ("to what", entry.resource),
        ("type", entry.event_type),
        ("result", entry.outcome),
        ("case", entry.correlation_id),
        ("subject", entry.subject),
        ("on behalf of", entry.on_behalf_of),
        ("reason", entry.reason),
        ("session", entry.session_id),
        ("address", entry.ip_address),
        ("program", entry.service),
        ("part of", entry.parent_id),
        ("trace", entry.trace_id),
        ("corrects", entry.corrects),
    ], indent=2)  # fmt: skip
    if entry.details:
        screen.blank()
        screen.line("  details")
        for line in json.dumps(entry.row()["details"], ensure_ascii=False, indent=2).splitlines():
            screen.long(f"    {line}")
    _contents(screen, log, entry)
    screen.blank()
    place = stored.hit
    screen.pairs([
        ("checksum", entry.checksum),
        ("stored in", f"segments/{place.segment:020d}.jsonl, {place.length:,} bytes at {place.offset:,}"),
    ], indent=2)  # fmt: skip
    screen.blank()
    checked = last_verified(log)
    newer = bool(checked.size) and not entry.part and entry.index >= checked.size
    screen.line(checked.sentence + ("; this entry is newer" if newer else ""), "red" if checked.alarm else "")


def _contents(screen: Screen, log: AuditLogger, entry: AuditEntry) -> None:
    for name, ref in entry.payloads.items():
        screen.blank()
        screen.line(f"  content {name}: {ref.size:,} bytes, {ref.media_type}")
        for line in _content(log, entry, name).splitlines() or ["(empty)"]:
            screen.long(f"    {line}")


def _content(log: AuditLogger, entry: AuditEntry, name: str) -> str:
    """The content as text, cut, or why it cannot be opened."""
    from ..core.errors import AuditError

    try:
        data = log._open_payload(entry, name)
    except PermissionError:
        return "not readable by you; the entry holds its commitment"
    except (AuditError, OSError, KeyError) as e:
        return f"cannot be opened: {clean(e)}"
    is_text = not entry.payloads[name].media_type.startswith("application/octet-stream")
    text = data[:PREVIEW_BYTES].decode("utf-8", "backslashreplace") if is_text else data[:PREVIEW_BYTES].hex(" ", 4)
    return text + (f"\n… {len(data) - PREVIEW_BYTES:,} more bytes" if len(data) > PREVIEW_BYTES else "")
