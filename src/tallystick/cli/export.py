"""``tally export``."""

from __future__ import annotations

import sys

import click

from .common import Damaged, find_log, note, open_log, parse_period, period_options, range_text


@click.command(
    name="export",
    epilog="""\b
Example:
  tally export > everything.jsonl
  tally export audit_log --period 2026-11 > november.jsonl""",
)
@click.argument("log", required=False)
@period_options
def command(log: str | None, on: str | None, since: str | None, until: str | None, period: str | None) -> None:
    """The stored lines as they are, one a line, the log's own included: the bytes that the checksums are of."""
    from ..core.entry import decode
    from ..core.times import parse_time

    out = sys.stdout.buffer
    with open_log(find_log(log)) as opened:
        start, end = parse_period(opened.zone, on, since, until, period)
        view = opened._handle.view
        size = view.head().size
        segments = view.store.segments()
        first = segments[0].start if segments else size
        count = 0
        for stored in view._scan(segments, first, size):
            count += 1
            if start is not None or end is not None:
                us = parse_time(decode(stored.line).timestamp)
                if (start is not None and us < start) or (end is not None and us > end):
                    continue
            out.write(stored.line + b"\n")
        out.flush()
    if first:
        note(f"{range_text(0, first)} are archived and not in this export")
    if count != size - first:
        raise Damaged(f"{size - first:,} entries were signed from #{first:,} on, {count:,} are there; tally verify says more")
