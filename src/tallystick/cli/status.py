"""Bare ``tally`` and ``tally status``: how the log is doing and what needs a person."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..core.errors import AuditError
from .common import Screen, archived_range, find_log, last_verified, open_log, plural, print_json, size_text, user_memory, when_text

if TYPE_CHECKING:
    from datetime import tzinfo

    from ..logger import AuditLogger
    from ..outside import PartyState

_YEAR_US = 365 * 86_400_000_000
_HOUR_US = 3_600_000_000
_STALE_US = 48 * _HOUR_US


@click.command(
    name="status",
    epilog="""\b
Example:
  tally
  tally audit_log
  tally status --json""",
)
@click.argument("log", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(log: str | None = None, as_json: bool = False) -> int:
    """How the log is doing: size, newest entry, last verified, what needs you."""
    from ..opening import is_log

    path = find_log(log)
    if not is_log(path) and user_memory().get(path) is None and not as_json:
        named = "" if log is None else f" {shlex.quote(log)}"
        click.echo(
            f"There is no log at {path} yet.\n\n"
            f"  tally init{named}   makes one\n  tally demo   shows what it is for, on a real model\n  tally --help", err=True,
        )  # fmt: skip
        return 2
    with open_log(path) as opened:
        found = _look(opened)
        if as_json:
            print_json(found._asdict())
        else:
            _show(opened, found)
    return 0


class Status(NamedTuple):
    """What the screen and the document say."""

    path: str
    origin: str
    entries: int
    bytes_on_disk: int
    bytes_per_year: int | None
    disk_free: int
    newest_index: int
    newest_us: int
    verified: str
    verified_until: int
    confirmed_outside: list[dict[str, Any]]
    epoch: dict[str, Any]
    retention_days: int
    keeps: str
    archived: int
    needs_you: list[dict[str, str]]


def _look(log: AuditLogger) -> Status:
    view = log._handle.view
    size = view.head().size
    newest_us = _newest_us(log, size)
    segments = view.store.segments()
    first = segments[0].start if segments else size
    lines_bytes = sum(s.size for s in segments)
    per_year = _growth(log, first, newest_us, lines_bytes)
    on_disk = _bytes_on_disk(log.path)
    if per_year is not None and lines_bytes:
        per_year = int(per_year * on_disk / lines_bytes)
    checked = last_verified(log)
    needs = [{"what": what, "command": how} for what, how in _needs(log, checked)]
    keep = log._handle.settings.content.keep
    return Status(
        str(log.path), log.origin, size, on_disk, per_year, shutil.disk_usage(log.path).free, size - 1, newest_us,
        checked.sentence, checked.size if checked.full_us else 0, _outside(log), _epoch(log, size), log.retention_days, keep,
        (archived_range(log) or (0, 0))[1], needs,
    )  # fmt: skip


def _newest_us(log: AuditLogger, size: int) -> int:
    """When the newest entry was recorded; 0 where its line is not here, which is said as what needs somebody."""
    try:
        return log.entry(size - 1).recorded_at_us
    except (KeyError, AuditError):
        return 0


def _growth(log: AuditLogger, first: int, newest_us: int, lines_bytes: int) -> int | None:
    """Bytes of lines a year, from the entries that are here; None for less than an hour of them."""
    try:
        span = newest_us - log.entry(first).recorded_at_us
    except KeyError:
        return None
    return None if span < _HOUR_US or not newest_us else int(lines_bytes * _YEAR_US / span)


def _bytes_on_disk(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder, onerror=lambda _e: None):
        for name in names:
            try:
                found = os.lstat(os.path.join(where, name))
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                total += found.st_blocks * 512
    return total


def _needs(log: AuditLogger, checked: Any) -> list[tuple[str, str]]:
    from ..card import made_us

    path = shlex.quote(str(log.path))
    found = []
    size = log._handle.view.head().size
    if not _newest_us(log, size):
        found.append((f"ENTRIES ARE MISSING: {size:,} were signed, the newest line is not here; copy first, repair nothing",
                      f"tally verify {path}"))  # fmt: skip
    if checked.alarm:
        found.append((checked.sentence.partition(":")[0], f"tally verify {path}"))
    elif not checked.full_us:
        found.append(("this log was never verified by you", f"tally verify {path}"))
    found += _outside_needs(log, path) + _epoch_needs(log, path)
    if log.memory.folder is not None and made_us(log.memory, log.verifier_key()) is None:
        found.append(("no key card was printed: nobody else could tell this log from another in its place",
                      f"tally key card {path} --pdf card.pdf"))  # fmt: skip
    found += [(what, f"tally verify {path}") for what in log.family.not_here()]
    unapproved = _unapproved(log)
    if unapproved:
        found.append((f"{plural(unapproved, 'entry', 'entries')} of the last 30 days needed an approval and had none "
                      "of somebody who is known", f"tally query {path} --unapproved --since 30d"))  # fmt: skip
    waiting = _waiting(log)
    if waiting:
        found.append((f"{plural(waiting, 'spool')} of calls that could not be recorded yet; the next program that records does it",
                      f"tally query {path} --type log.gap"))  # fmt: skip
    quarantine = log.path / "quarantine"
    try:
        count = len(os.listdir(quarantine))
    except OSError:
        count = 0
    if count:
        cut = f"{plural(count, 'piece')} cut off after a crash: read what happened"
        found.append((cut, f"tally query {path} --type log.recovered"))
    keys = log._handle.keys.path
    try:
        if stat.S_IMODE(os.stat(keys).st_mode) & 0o077:
            found.append(("the folder of its keys is open to others", f"chmod 700 {shlex.quote(str(keys))}"))
    except PermissionError:
        pass
    except FileNotFoundError:
        found.append((f"the folder of its keys is gone: {keys}; nothing can be recorded. Restore it; only if it is lost for good:",
                      f'tally resume {path} --reason "key folder lost"'))  # fmt: skip
    epoch = log._handle.view.history(size).epochs[-1].number
    here = os.access(keys, os.X_OK) and not log._handle.settings.keyd.socket
    if here and (keys / "log.key").exists() and not (keys / f"epoch-{epoch}.key").exists():
        found.append((f"the key of the running epoch {epoch} is not in {keys}; nothing can be recorded. Restore it; only if it is "
                      "lost for good:", f'tally key recover {path} --reason "epoch key lost"'))  # fmt: skip
    disk = shutil.disk_usage(log.path)
    if disk.free < max(64 << 20, disk.total // 50):
        found.append((f"the disk is nearly full, {size_text(disk.free)} left", "make room"))
    return found


def _parties(log: AuditLogger) -> dict[str, PartyState]:
    """Everybody who is configured, also who was never reached; a policy that cannot be read is told by those who use it."""
    from ..core.errors import AuditError
    from ..outside import Parties, PartyState
    from ..publishing import parties_of, source_of

    try:
        configured = parties_of(source_of(log), log._handle.settings)
    except AuditError:
        configured = []
    known = Parties(log.path).all()
    return {p.name: known.get(p.name) or PartyState(p.kind, p.target) for p in configured}


def _epoch(log: AuditLogger, size: int) -> dict[str, Any]:
    """The running epoch: its number, where it begins, since when its key signs."""
    epoch = log._handle.view.history(size).epochs[-1]
    return {"number": epoch.number, "first": epoch.after, "opened": epoch.opened}


def _epoch_text(log: AuditLogger, epoch: dict[str, Any]) -> str:
    from ..core.times import parse_time

    closed = f"entries below #{epoch['first']:,} are closed" if epoch["number"] else "none was closed yet"
    return f"epoch {epoch['number']}, its key signs since {when_text(parse_time(epoch['opened']), log.zone)}; {closed}"


def _epoch_needs(log: AuditLogger, path: str) -> list[tuple[str, str]]:
    """An epoch that should have ended with its day: somebody records who may not make keys."""
    from ..clock import CLOCK
    from ..core.times import DAY_US, parse_time

    opened = parse_time(_epoch(log, log._handle.view.head().size)["opened"])
    if log._handle.settings.epochs.close != "daily" or CLOCK.wall_us() - opened < 2 * DAY_US:
        return []
    return [("the signing key was not changed for more than a day: nothing was recorded since, or who records may not write where "
             "the keys are", f"tally key rotate {path}")]  # fmt: skip


def _outside(log: AuditLogger) -> list[dict[str, Any]]:
    return [{"name": name, "kind": s.kind, "target": s.target, "size": s.done_size, "at_us": s.done_us, "local": s.local,
             "error": s.error} for name, s in _parties(log).items()]  # fmt: skip


def party_text(name: str, state: PartyState, zone: tzinfo) -> str:
    """``witness kanzlei: today 02:00 (18,204 entries, 3 h ago)``."""
    from ..clock import CLOCK

    if not state.done_us:
        text = f"{state.kind} {name}: nothing yet"
    else:
        age = age_text(CLOCK.wall_us() - state.done_us)
        text = f"{state.kind} {name}: {when_text(state.done_us, zone)} ({plural(state.done_size, 'entry', 'entries')}, {age})"
    if state.local:
        text += ", not independent: same machine"
    return text + (f"; PENDING: {state.error}" if state.error else "")


def age_text(us: int) -> str:
    """``3 h ago``."""
    for size, unit in ((86_400_000_000, "days"), (3_600_000_000, "h"), (60_000_000, "min")):
        if us >= 2 * size or (us >= size and unit != "days"):
            return f"{us // size:,} {unit} ago"
    return "just now"


def _outside_texts(log: AuditLogger) -> list[str]:
    return [party_text(name, state, log.zone) for name, state in _parties(log).items()] or ["nobody yet"]


def _outside_needs(log: AuditLogger, path: str) -> list[tuple[str, str]]:
    from ..clock import CLOCK
    from ..core.errors import AuditError
    from ..publishing import parties_of, source_of

    found, parties, head = [], _parties(log), log._handle.view.head().size
    try:
        parties_of(source_of(log), log._handle.settings)
    except AuditError as e:
        found.append((f"nobody is asked: {e}", "correct that file"))
    for name, state in parties.items():
        command = f"tally {'witness submit' if state.kind == 'witness' else 'publish'} {path}"
        if state.error:
            found.append((f"{state.kind} {name}: {state.error}", command))
        elif state.done_us and state.done_size < head and CLOCK.wall_us() - state.done_us > _STALE_US:
            found.append((f"{state.kind} {name} confirmed nothing since {when_text(state.done_us, log.zone)}", command))
    if not any(state.done_us and not state.local for state in parties.values()):
        found.append(("nobody outside this machine confirms it yet; keep its head elsewhere", f"tally checkpoint {path} > FILE"))
    return found


def _waiting(log: AuditLogger) -> int:
    """Files in the spool that hold something; 0 where this user may not look."""
    try:
        return sum(1 for file in (log._handle.keys.path / "spool").iterdir() if file.stat().st_size)
    except OSError:
        return 0


def _unapproved(log: AuditLogger) -> int:
    """Entries of the last 30 days that lack what the rules of this log ask for."""
    from ..clock import CLOCK
    from ..core.times import format_time
    from ..reports.approvals import lacking

    rules = log.approval_rules
    if not rules:
        return 0
    return sum(1 for _ in lacking(log, rules, format_time(CLOCK.wall_us() - _YEAR_US * 30 // 365)))


def _show(log: AuditLogger, found: Status) -> None:
    screen = Screen()
    year = "grows: too young to say" if found.bytes_per_year is None else f"{size_text(found.bytes_per_year)} a year"
    lasts = ""
    if found.bytes_per_year:
        years = found.disk_free / found.bytes_per_year
        lasts = ", disk lasts > 5 years" if years > 5 else f", disk lasts {years * 365:,.0f} days"
    screen.long(found.path, "bold")
    screen.line(f"  {found.origin}", "dim")
    screen.blank()
    left = f", {found.archived:,} of them archived" if found.archived else ""
    keeps = {"previews": "values of audited functions 500 characters each, encrypted",
             "none": "values of audited functions not kept (commitment)"}  # fmt: skip
    ai = log._handle.settings.ai
    content = {"none": "nothing", "lengths": "lengths", "commitment": "lengths and commitments",
               "redacted": "redacted texts, encrypted", "full": "texts, encrypted"}[ai.content]  # fmt: skip
    rules = f" (and {plural(len(ai.rules), 'rule')})" if ai.rules else ""
    screen.pairs([
        ("size", f"{plural(found.entries, 'entry', 'entries')}{left} · {size_text(found.bytes_on_disk)} · {year}{lasts}"),
        ("older parts", " · ".join(f"part {p.number}: {plural(p.size, 'entry', 'entries')}" for p in log.family.older)),
        ("newest", f"#{found.newest_index:,} {when_text(found.newest_us, log.zone)}  {log.zone}" if found.newest_us else
         f"#{found.newest_index:,} IS NOT HERE, and it was signed"),
        ("checked", found.verified),
        *(("outside" if at == 0 else "", text) for at, text in enumerate(_outside_texts(log))),
        ("sealing", _epoch_text(log, found.epoch)),
        ("keeps", f"entries {found.retention_days:,} d, then to be archived · {keeps[found.keeps]}"),
        ("models", f"of prompts and answers: {content}{rules} · when the log cannot be written: {ai.failure}"),
    ], indent=2)  # fmt: skip
    screen.blank()
    alarm = last_verified(log).alarm
    for at, need in enumerate(found.needs_you):
        screen.line(f"{'needs you' if at == 0 else '':<11}{need['what']}", "red" if alarm and at == 0 else "", indent=2, hang=11)
        screen.long(f"  {'':<11}  {need['command']}")
