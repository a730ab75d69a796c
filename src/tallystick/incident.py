"""After a break-in: what of a log still stands, and on what (``tally incident``).

Whoever had this machine from a moment ``since`` on could read its keys and write with them. What he cannot have changed is what
somebody else confirmed before that moment, and what an epoch sealed whose key had been destroyed by then. Everything else is said to
rest on nobody independent, however well it verifies.

Order: the log is verified and the ranges are computed from what is there; then an entry says that an incident was reported; the epoch
is closed over it, so that the key that may have been copied signs nothing any more; the closing checkpoint is handed out. A log that
is altered is not written to.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .clock import CLOCK, host_name, system_user
from .core.epoch import EPOCH_CLOSE
from .core.errors import AuditError
from .core.times import format_time, parse_time
from .core.verify import Verdict
from .logger import AuditLogger
from .publishing import publish, source_of
from .verification import verify_log

INCIDENT = "log.incident"
_RECORDED = re.compile(rb'"recorded_at":"([0-9TZ:.-]{27})"')


class Stands(NamedTuple):
    """A half-open range and what it rests on: ``sealed``, ``confirmed``, ``this machine`` (before the moment), ``nobody`` (after)."""

    start: int
    end: int
    on: str
    words: str


class Incident(NamedTuple):
    """What was found and done. ``before``: how many entries were recorded before the moment; ``closed``: size of the closing
    checkpoint, None where it could not be closed (``problem`` says why); ``note``: that checkpoint."""

    since: str
    verdict: Verdict
    before: int
    ranges: tuple[Stands, ...]
    event_id: str | None
    closed: int | None
    note: str | None
    handed_out: tuple[dict[str, Any], ...]
    problem: str


def report_incident(log: AuditLogger, since_us: int, *, reason: str) -> Incident:
    """See the module's text. Raises what writing to a log raises; a log that does not verify is not written to."""
    verdict = verify_log(log.path, memory=log.memory)
    since = format_time(since_us)
    before = recorded_before(log, since_us)
    ranges = what_stands(log, verdict, since_us, before)
    if verdict.exit_code in (2, 6):
        return Incident(since, verdict, before, ranges, None, None, None, (), "the log does not verify: nothing was written to it")
    event_id = _record(log, since, before, ranges, reason)
    closed, note, handed, problem = None, None, [], ""
    try:
        made = log.rotate(f"incident: {reason}")
        closed, note = made["size"], made["note"]
    except AuditError as e:
        problem = f"the epoch could not be closed: {e}"
    try:
        handed = [outcome._asdict() for outcome in publish(source_of(log), size=closed)]
    except AuditError as e:
        problem = "; ".join(filter(None, (problem, f"the checkpoint could not be handed out: {e}")))
    return Incident(since, verdict, before, ranges, event_id, closed, note, tuple(handed), problem)


def recorded_before(log: AuditLogger, since_us: int) -> int:
    """The index of the first entry with a ``recorded_at`` at or after the moment, the tree size if there is none. A clock that was
    turned back does not make an entry older: what follows the first such entry counts as after it."""
    view = log._handle.view
    size = view.head().size
    limit = format_time(since_us).encode()  # fixed width, so that bytes order as times do
    for segment in view.store.segments():
        for batch in view.store.batches(segment):
            for index, line in enumerate(batch.lines, batch.index):
                if index >= size:
                    return size
                found = _RECORDED.findall(line)
                if any(moment >= limit for moment in found[:1]):
                    return index
    return size


def what_stands(log: AuditLogger, verdict: Verdict, since_us: int, before: int) -> tuple[Stands, ...]:
    """The log in ranges, by the strongest thing that each rests on."""
    size = log.entry_count()
    sealed = min(_sealed_before(log, since_us), before)
    confirmed: dict[int, list[str]] = {}
    for one in verdict.confirmations:
        if one.counts and one.time_us and one.time_us < since_us:
            when = format_time(one.time_us)[:16].replace("T", " ")
            confirmed.setdefault(min(one.size, before), []).append(f"{one.by} ({when} UTC)")
    found = []
    edges = sorted({0, sealed, *confirmed, before, size})
    for start, end in zip(edges, edges[1:], strict=False):
        by = sorted({name for reach, names in confirmed.items() if reach >= end for name in names})
        if by:
            also = ", and sealed by an epoch that had been closed" if end <= sealed else ""
            found.append(Stands(start, end, "confirmed", f"confirmed before it by {', '.join(by)}{also}"))
        elif end <= sealed:
            found.append(Stands(start, end, "sealed", "sealed: the key of its epoch had been destroyed before it"))
        elif end <= before:
            found.append(Stands(start, end, "this machine", "written before it, but only this machine says so"))
        else:
            found.append(Stands(start, end, "nobody", "written after it: nobody independent, keys may have been in other hands"))
    return tuple(found)


def _sealed_before(log: AuditLogger, since_us: int) -> int:
    """The size just after the last close of an epoch that was recorded before the moment."""
    view = log._handle.view
    history = view.history(view.head().size)
    closes = [(index, fields) for index, fields in view.key_lines().items()
              if fields.event_type == EPOCH_CLOSE and not history.is_recovered(index)]  # fmt: skip
    return max((index + 1 for index, fields in closes if parse_time(fields.recorded_at) < since_us), default=0)


def _record(log: AuditLogger, since: str, before: int, ranges: tuple[Stands, ...], reason: str) -> str:
    """The entry about it, before the epoch is closed over it."""
    writer = log._writer()
    event = writer.own(INCIDENT, "reported an incident", {
        "since": since, "reason": reason, "user": system_user(), "host": host_name(), "reported_at": format_time(CLOCK.wall_us()),
        "recorded_before": before, "ranges": [{"first": r.start, "end": r.end, "on": r.on} for r in ranges],
    })  # fmt: skip
    writer.append([event])
    return event.draft.event_id
