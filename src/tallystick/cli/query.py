"""``tally query``."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import (
    Period,
    Screen,
    archived_range,
    find_log,
    last_verified,
    local,
    note,
    open_log,
    parse_period,
    period_options,
    period_text,
    plural,
    print_json,
    range_text,
    size_text,
    write_whole,
)  # fmt: skip

if TYPE_CHECKING:
    from datetime import datetime

    from ..core.entry import AuditEntry
    from ..core.query import Condition, Question
    from ..logger import AuditLogger

COUNT_MAX = 10_000
_FIELDS = {"actor": "actor", "action": "action", "resource": "resource", "outcome": "outcome", "type": "event_type",
           "case": "correlation_id"}  # fmt: skip


def _place(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | str | None:
    from ..family import parse_place

    if text is None:
        return None
    try:
        part, index = parse_place(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None
    return index if part is None else f"{part}#{index}"


@click.command(
    name="query",
    epilog="""\b
Example:
  tally query --on "last tuesday" --actor invoice-bot
  tally query --since 7d --outcome denied --newest-first
  tally query --period 2026-11 --where 'details.amount>100' --where 'resource~crm/*' --jsonl
  tally query --actor invoice-bot --prove --with-lines -o answer.txt""",
)
@click.argument("log", required=False)
@period_options
@click.option("--actor", metavar="WHO", multiple=True, help="Repeat for any of several.")
@click.option("--action", metavar="WHAT", multiple=True)
@click.option("--resource", metavar="R", multiple=True)
@click.option("--outcome", metavar="O", multiple=True, help="success, failure, partial, denied.")
@click.option("--type", metavar="T", multiple=True, help="Event type; 'log.*' is what the log says about itself.")
@click.option("--case", metavar="ID", multiple=True, help="correlation_id.")
@click.option("--where", metavar="COND", multiple=True,
              help="field=value != > >= < <= or ~ (glob), any field or details.path; all must hold.")  # fmt: skip
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="0: all.")
@click.option("--newest-first", is_flag=True)
@click.option("--after", metavar="INDEX", callback=_place, help="Page on: what follows that index in the chosen order.")
@click.option("--before", type=click.IntRange(0), metavar="INDEX", help="Only entries below that index.")
@click.option("--prove", is_flag=True, help="Write an answer that others can check, with the range that was read: -o FILE.")
@click.option("--with-lines", is_flag=True, help="With --prove: all lines of the range; this alone shows that no other matches.")
@click.option("-o", "--output", metavar="FILE", help="With --prove: where to write it.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--archives", metavar="FOLDER", help="Read archived entries there as well.")
@click.option("--unapproved", is_flag=True, help="Only what needed an approval and had none of somebody who is known.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--jsonl", is_flag=True, help="One JSON object a line, as they are found.")
def command(
    log: str | None, on: str | None, since: str | None, until: str | None, period: str | None, where: tuple[str, ...],
    limit: int, newest_first: bool, after: int | str | None, before: int | None, prove: bool, with_lines: bool, output: str | None,
    force: bool, archives: str | None, unapproved: bool, as_json: bool, jsonl: bool, **fields: tuple[str, ...],
) -> None:  # fmt: skip
    """Find entries; oldest first. All conditions must hold."""
    if as_json and jsonl:
        raise click.UsageError("--json and --jsonl do not go together")
    if not prove and (with_lines or output is not None):
        raise click.UsageError("--with-lines and -o belong to --prove")
    if prove and (output is None or jsonl or archives is not None or unapproved or newest_first):
        raise click.UsageError("--prove needs -o FILE, and goes without --jsonl, --archives, --unapproved and --newest-first")
    filters, extra = _filters(fields, where)
    with open_log(find_log(log)) as opened:
        asked = parse_period(opened.zone, on, since, until, period)
        if prove:
            if isinstance(after, str):
                raise click.UsageError(f"--after {after} is of an older part; ask that part itself, by the name of its folder")
            place = _Range(after, before, with_lines, Path(str(output)), force)
            _prove(opened, filters, extra, asked, place, as_json=as_json)
            return
        if unapproved and not opened.approval_rules:
            raise click.UsageError(f"{opened.path}/log.toml has no [[approval]] that says what needs one")
        entries = Answers(opened, filters, extra, asked, newest_first, after, archives, unapproved=unapproved,
                          before=before)  # fmt: skip
        if jsonl:
            _print_lines(opened, entries, limit)
        elif as_json:
            _print_document(opened, entries, limit)
        else:
            _print_table(opened, entries, limit)


def _filters(fields: dict[str, tuple[str, ...]], where: tuple[str, ...]) -> tuple[dict[str, Any], Question]:
    """Options → the filters of ``entries`` and, where one field has the same operator twice, the rest as a question."""
    from ..core.query import Question, ask, parse_where

    filters: dict[str, dict[str, Any]] = {}
    extra: list[Condition] = []
    for name, values in fields.items():
        if values:
            globbed = name == "type" and len(values) == 1 and ("*" in values[0] or "?" in values[0])
            one = {"glob": values[0]} if globbed else {"=": values[0]}
            filters[_FIELDS[name]] = one if len(values) == 1 else {"in": list(values)}
    for text in where:
        try:
            condition = parse_where(text)
            ask({condition.field: {condition.operator: condition.value}})
        except (ValueError, TypeError) as e:
            raise click.UsageError(f"--where: {e}") from None
        known = filters.setdefault(condition.field, {})
        if condition.operator in known:
            extra.append(condition)
        else:
            known[condition.operator] = condition.value
    return dict(filters), Question(tuple(extra), lifecycle=True)


class Answers:
    """The question of a command line, and what is left out of its answer."""

    def __init__(
        self, log: AuditLogger, filters: dict[str, Any], extra: Question, period: Period, newest_first: bool, after: int | str | None,
        archives: str | None, *, unapproved: bool = False, before: int | None = None,
    ) -> None:  # fmt: skip
        self.log, self.filters, self.extra, self.period = log, filters, extra, period
        self.newest_first, self.after, self.before, self.archives = newest_first, after, before, archives
        self.rules, self.unapproved = log.approval_rules, unapproved

    def __iter__(self) -> Iterator[AuditEntry]:
        page: dict[str, Any] = {} if self.before is None else {"before": self.before}
        if self.after is not None:
            name = "before" if self.newest_first else "after"
            known = page.get(name)
            page[name] = min(self.after, known) if isinstance(known, int) and isinstance(self.after, int) else self.after
        found = self.log.entries(self.filters, self.period.start, self.period.end, newest_first=self.newest_first,
                                 archives=self.archives, **page)  # fmt: skip
        return (entry for entry in found if self.extra.matches(entry) and (not self.unapproved or self.lacks(entry)))

    def lacks(self, entry: AuditEntry) -> str | None:
        """What an entry lacks of the approval that it needs: ``missing``, ``later``, ``rejected`` or ``self-reported``."""
        from ..reports.approvals import GIVEN, approval_of

        found = approval_of(self.log, self.rules, entry) if self.rules else None
        return found.state if found is not None and found.state != GIVEN else None

    def own_left_out(self) -> int:
        """Entries about the log itself that the question would match, had it asked for them."""
        if "event_type" in self.filters or any(f in self.filters for f in ("index", "event_id", "checksum")):
            return 0
        own = self.log.entries({**self.filters, "event_type": {"glob": "log.*"}}, self.period.start, self.period.end)
        return sum(1 for entry in itertools.islice(own, COUNT_MAX) if self.extra.matches(entry))

    def archived(self) -> tuple[int, int] | None:
        """The range that has left this log and was not looked at."""
        if self.archives is not None:
            return None
        return archived_range(self.log)


class _Range(NamedTuple):
    """Which range is read for a proven answer, what of it is handed out, and where to."""

    after: int | None
    before: int | None
    with_lines: bool
    target: Path
    force: bool


def _prove(log: AuditLogger, filters: dict[str, Any], extra: Question, period: Period, place: _Range, *, as_json: bool) -> None:
    """Write the answer and say what it shows."""
    from ..answering import prove_answer
    from ..core.query import ask

    if place.target.is_file() and not place.force:
        raise click.ClickException(f"{place.target} is there already; name another with -o, or --force")
    question = ask(filters, start_us=period.start_us, end_us=period.end_us)
    question = question._replace(conditions=(*question.conditions, *extra.conditions))
    answer, proven = prove_answer(log, question, after=place.after, before=place.before, with_lines=place.with_lines)
    data = answer.format()
    write_whole(place.target, data)
    vkey = log._handle.genesis.vkey.format()
    if as_json:
        print_json({"answer": str(place.target), "bytes": len(data), "rows": [e.index for e in proven.rows], "start": answer.start,
                    "end": answer.end, "complete": proven.complete, "tree_size": proven.checkpoint.size, "vkey": vkey})  # fmt: skip
        return
    span = range_text(answer.start, answer.end) if answer.found else "an empty range"
    click.echo(f"{place.target}: {plural(len(proven.rows), 'row')} of {plural(len(answer.found), 'entry', 'entries')} read ({span}), "
               f"{size_text(len(data))}; checked before it was written")  # fmt: skip
    if proven.complete:
        click.echo("it shows that these are all: every line that was read is in it, in clear text")
    else:
        click.echo("it shows that the rows are in the log and nothing of the range was left out or moved; that no other entry "
                   "matches it does not show (--with-lines)")  # fmt: skip
    click.echo(f"\nto check it, anywhere, without the log:\n  tally verify {shlex.quote(str(place.target))} --vkey {vkey}")


def _limited(entries: Answers, limit: int) -> tuple[list[AuditEntry], Iterator[AuditEntry]]:
    rest = iter(entries)
    return (list(rest) if limit == 0 else list(itertools.islice(rest, limit))), rest


def _print_lines(log: AuditLogger, entries: Answers, limit: int) -> None:
    shown, last = 0, None
    for entry in entries:
        if limit and shown == limit:
            note(f"{shown:,} shown, more match: --after {last}, or --limit 0 for all")
            break
        print_json(log._row(entry), line=True)
        shown, last = shown + 1, _after(entry)
    _note_archived(entries)


def _note_archived(entries: Answers) -> None:
    for text in entries.log.family.not_here():
        note(f"not looked at: {text}")
    archived = entries.archived()
    if archived:
        note(f"{range_text(*archived)} are archived and were not looked at (--archives FOLDER)")


def _print_document(log: AuditLogger, entries: Answers, limit: int) -> None:
    shown, rest = _limited(entries, limit)
    more = next(rest, None) is not None
    archived = entries.archived()
    known = log.memory.get(log.path)
    print_json({
        "origin": log.origin, "tree_size": log._handle.view.head().size,
        "start": _iso(entries.period.start_us), "end": _iso(entries.period.end_us), "timezone": str(log.zone),
        "entries": [log._row(entry) for entry in shown], "more": more,
        "after": _after(shown[-1]) if shown and more else None,
        "archived_not_looked_at": None if archived is None else {"start": archived[0], "end": archived[1]},
        "older_parts_not_looked_at": log.family.not_here(),
        "own_entries_left_out": entries.own_left_out(),
        "verified_until": known.size if known and known.full_us and not last_verified(log).alarm else 0,
    })  # fmt: skip


def _after(entry: AuditEntry) -> int | str:
    """Where the next page begins: an index, or ``1#17`` in an older part."""
    return f"{entry.part}#{entry.index}" if entry.part else entry.index


def _iso(us: int | None) -> str | None:
    from ..core.times import format_time

    try:
        return None if us is None else format_time(us)
    except ValueError:
        return None


def _print_table(log: AuditLogger, entries: Answers, limit: int) -> None:
    shown, rest = _limited(entries, limit)
    more = sum(1 for _ in itertools.islice(rest, COUNT_MAX))
    screen = Screen()
    moments = [local(entry.timestamp_us, log.zone) for entry in shown]
    heading = period_text(entries.period, log.zone, moments)
    screen.line(f"{heading}   {plural(len(shown) + more, 'entry', 'entries')}"
                f"{' or more' if more == COUNT_MAX else ''}", "bold")  # fmt: skip
    screen.line(log.origin, "dim")
    screen.blank()
    if shown:
        _rows(screen, entries, shown, moments, offsets="," in heading.rpartition("(")[2])
        screen.blank()
    _left_out(screen, entries, shown, more, limit)
    checked = last_verified(log)
    above = sum(1 for entry in shown if not entry.part and entry.index >= checked.size)
    newer = f"; {plural(above, 'row')} above {'is' if above == 1 else 'are'} newer" if above and checked.size else ""
    screen.line(checked.sentence + newer, "red" if checked.alarm else "")


def _rows(screen: Screen, entries: Answers, shown: list[AuditEntry], moments: list[datetime], *, offsets: bool) -> None:
    days = {m.date() for m in moments}
    pattern = ("" if len(days) == 1 else "%d %b " if len({d.year for d in days}) == 1 else "%Y-%m-%d ") + "%H:%M:%S"
    pattern += " %z" if offsets else ""
    cases = any(entry.correlation_id for entry in shown)
    lacks = [entries.lacks(entry) for entry in shown]
    heads = ["time", "who", *(["case"] if cases else []), "what", "to what", "result", *(["approval"] if any(lacks) else []), "#"]
    rows = []
    for moment, entry, lack in zip(moments, shown, lacks, strict=True):
        middle = [entry.correlation_id or "–"] if cases else []
        rows.append([moment.strftime(pattern), entry.actor, *middle, entry.action, entry.resource, entry.outcome,
                     *([lack or ""] if any(lacks) else []), entry.place if entry.part else f"{entry.index:,}"])  # fmt: skip
    if len(days) == 1:
        screen.line(moments[0].strftime("%Y-%m-%d"))
    whole = [2] if cases and max(len(row[2]) for row in rows) <= 16 else []
    screen.table(heads, rows, right=[len(heads) - 1],
                 cut=[at for at in range(1, 4 + cases) if at not in whole])  # fmt: skip


def _left_out(screen: Screen, entries: Answers, shown: list[AuditEntry], more: int, limit: int) -> None:
    if not shown:
        screen.line("no entry matches")
    if more:
        count = f"more than {COUNT_MAX:,}" if more == COUNT_MAX else f"{more:,}"
        on = f" · the next page: --after {_after(shown[-1])}" if shown else ""
        screen.line(f"not shown: {count} more{on} · all: --limit 0" if limit else f"{count} more")
    for text in entries.log.family.not_here():
        screen.line(f"not looked at: {text}", "yellow")
    archived = entries.archived()
    if archived:
        screen.line(f"not looked at: {range_text(*archived)}, archived (--archives FOLDER)")
    own = entries.own_left_out()
    if own:
        screen.line(f"left out: {plural(own, 'entry', 'entries')} of the log about itself (--type 'log.*')")
