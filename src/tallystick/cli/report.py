"""``tally report``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    Period,
    Screen,
    archived_range,
    find_log,
    is_event,
    open_log,
    parse_period,
    period_options,
    period_text,
    plural,
    print_json,
    range_text,
    when_text,
)  # fmt: skip

if TYPE_CHECKING:
    from ..logger import AuditLogger

KINDS = ("full", "security", "data_access", "ai_usage")
ROWS_MAX = 50
_PERIOD = re.compile(r"[0-9]{4}-[0-9]{2}(-[0-9]{2})?", re.ASCII)


@click.command(
    name="report",
    epilog="""\b
Example:
  tally report full --period 2026-11
  tally report full --period 2026-11 --recount
  tally report security audit_log --since 30d --verify
  tally report data_access --period 2026-11 --at 18267 --json""",
)
@click.argument("args", nargs=-1, metavar="full|security|data_access|ai_usage [LOG] [PERIOD]")
@period_options
@click.option("--at", type=click.IntRange(1), metavar="SIZE", help="Made from the log as it was at that size: the same answer again.")
@click.option("--verify", is_flag=True, help="Verify the whole log first.")
@click.option("--recount", is_flag=True, help="Count from the stored lines, not from counts that the index keeps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(
    args: tuple[str, ...], on: str | None, since: str | None, until: str | None, period: str | None, at: int | None, verify: bool,
    recount: bool, as_json: bool,
) -> int:  # fmt: skip
    """A report over all events of a period. It counts what is recorded and gives no opinion."""
    from ..reports.compliance import ComplianceReporter

    kind, named, positional = _arguments(args)
    if positional is not None:
        if period is not None:
            raise click.UsageError("the period is there twice")
        period = positional
    path = find_log(named)
    with open_log(path) as log:
        asked = parse_period(log.zone, on, since, until, period)
        try:
            found = ComplianceReporter(log).generate_report(asked.start, asked.end, kind, at=at, verify=verify,
                                                                 recount=recount)  # fmt: skip
        except ValueError as e:
            if isinstance(e, click.ClickException) or type(e) is not ValueError:
                raise
            raise click.UsageError(str(e)) from None
        gone = archived_range(log)
        if as_json:
            print_json({**found, "archived_not_counted": gone and {"start": gone[0], "end": gone[1]}})
        else:
            _show(log, path, found, asked)
    return 6 if found.get("integrity_check", {}).get("verdict") == "altered" else 0


def _arguments(args: tuple[str, ...]) -> tuple[str, str | None, str | None]:
    """Kind, log and period, in any order: a kind is one of three words, a period looks like one, a log is the rest."""
    rest, kind, period = list(args), None, None
    for arg in args:
        if kind is None and arg in KINDS:
            kind = arg
        elif period is None and _PERIOD.fullmatch(arg) and not os.path.isdir(arg):
            period = arg
        else:
            continue
        rest.remove(arg)
    if kind is None:
        unknown = [a for a in rest if not os.path.isdir(a)]
        raise click.UsageError(f"{f'unknown report {unknown[0]!r}' if unknown else 'which report?'} Known are {', '.join(KINDS)}")
    if len(rest) > 1:
        raise click.UsageError(f"{rest[1]!r} is one argument too many")
    if rest and is_event(rest[0]):
        raise click.UsageError(f"{rest[0]} is an entry, not a folder")
    return kind, rest[0] if rest else None, period


def _show(log: AuditLogger, path: Path, report: dict[str, Any], asked: Period) -> None:
    screen = Screen()
    kind = report["report_type"]
    title = {"full": "RECORD OF ACTIVITY", "security": "SECURITY EVENTS", "data_access": "DATA ACCESS",
             "ai_usage": "USE OF MODELS"}[kind]  # fmt: skip
    screen.line(f"{title}   what was recorded; no opinion on compliance", "bold")
    basis = report["checkpoint"]
    screen.pairs([
        ("Log", f"{log.origin}   {path}"),
        ("Period", period_text(asked, log.zone)),
        ("In UTC", f"{report['report_period']['start'] or 'the beginning'}  –  {report['report_period']['end'] or 'the end'}"),
        ("Made from", f"{plural(basis['size'], 'entry', 'entries')}, root {basis['root'][:16]}…   again: --at {basis['size']}"),
    ])  # fmt: skip
    gone = archived_range(log)
    if gone:
        screen.line(f"NOT COUNTED: {range_text(*gone)}, archived; what of the period lies there is not in this report", "yellow")
    screen.blank()
    {"full": _full, "security": _security, "data_access": _data_access, "ai_usage": _ai_usage}[kind](screen, log, report)
    screen.blank()
    _integrity(screen, log, report["integrity_check"], path)


def _integrity(screen: Screen, log: AuditLogger, check: dict[str, Any], path: Path) -> None:
    from ..core.times import parse_time

    screen.line(f"INTEGRITY   {check.get('sentence') or check.get('verdict')}", "red" if check.get("verdict") == "altered" else "")
    last = check.get("last_full_verification")
    if last and last.get("until"):
        screen.line(f"            last verified in full {when_text(parse_time(last['when']), log.zone)}, {last['until']:,} entries; "
                    f"now up to {check.get('checked_until', 0):,}")  # fmt: skip
    elif check.get("verdict") != "never verified":
        screen.line("            never verified in full by you")
    if check.get("verdict") not in ("intact", "never verified"):
        screen.long(f"            next: tally verify {path}")


def _full(screen: Screen, log: AuditLogger, report: dict[str, Any]) -> None:
    del log
    screen.line(f"{plural(report['total_events'], 'event')} in the period")
    for title, name in (("type", "by_event_type"), ("who", "by_actor"), ("result", "by_outcome")):
        counted = sorted(report[name].items(), key=lambda pair: (-pair[1], pair[0]))
        if counted:
            screen.blank()
            screen.table([title, "events"], [(key, f"{n:,}") for key, n in counted[:ROWS_MAX]], right=[1])
        if len(counted) > ROWS_MAX:
            screen.line(f"  … {len(counted) - ROWS_MAX:,} more: --json")
    screen.blank()
    derived, lines = report["counted_from"]["derived"], report["counted_from"]["lines"]
    if derived:
        rest = f", {lines:,} from the stored lines" if lines else ""
        screen.line(f"COUNTED     {plural(derived, 'entry', 'entries')} from the index's counts (verify derives them again){rest}")
        screen.line("            all from the stored lines: --recount")
    else:
        screen.line(f"COUNTED     {plural(lines, 'entry', 'entries')} from the stored lines")


def _security(screen: Screen, log: AuditLogger, report: dict[str, Any]) -> None:
    from ..core.times import parse_time
    from .common import local

    screen.line(f"{plural(report['total_security_events'], 'event')} in the period, each counted once")
    for title, name in (
        ("failed authentication", "failed_authentication_attempts"), ("configuration changes", "configuration_changes"),
        ("security events", "security_events"),
    ):  # fmt: skip
        rows = report[name]
        screen.blank()
        screen.line(f"{title}: {len(rows):,}")
        if rows:
            screen.table(
                ["time", "who", "what", "to what", "result", "#"],
                [[f"{local(parse_time(r['timestamp']), log.zone):%Y-%m-%d %H:%M:%S}", r["actor"], r["action"], r["resource"],
                  r["outcome"], f"{r['index']:,}"] for r in rows[:ROWS_MAX]], right=[5], cut=[1, 2, 3],
            )  # fmt: skip
        if len(rows) > ROWS_MAX:
            screen.line(f"  … {len(rows) - ROWS_MAX:,} more: --json")


def _data_access(screen: Screen, log: AuditLogger, report: dict[str, Any]) -> None:
    del log
    screen.pairs([
        ("data events", f"{report['total_data_events']:,}"), ("read", f"{report['read_operations']:,}"),
        ("written", f"{report['write_operations']:,}"),
    ])  # fmt: skip
    for title, name in (("resources", "resources_accessed"), ("who", "actors")):
        values = report[name]
        screen.blank()
        screen.line(f"{title}: {len(values):,}")
        for value in values[:ROWS_MAX]:
            screen.line(f"  {value}")
        if len(values) > ROWS_MAX:
            screen.line(f"  … {len(values) - ROWS_MAX:,} more: --json")


def _ai_usage(screen: Screen, log: AuditLogger, report: dict[str, Any]) -> None:
    del log
    screen.line(f"{plural(report['total_calls'], 'call')} to models in the period")
    rows = []
    for name, said in [*report["by_model"].items(), ("all", report["all"])]:
        took, answers = said["latency_us"], said["answers"]
        used = sum(answers.get(status, 0) for status in ("used", "used_modified"))
        rows.append([name, f"{said['calls']:,}", f"{said['failed']:,}", f"{said['without_end']:,}",
                     *(f"{took[p] / 1e6:,.2f}" if took else "-" for p in ("p50", "p95")),
                     f"{used:,}", f"{answers.get('rejected', 0):,}",
                     f"{answers.get('failed_validation', 0) + answers.get('failed_downstream', 0):,}",
                     f"{answers.get('superseded', 0) + answers.get('expired', 0):,}",
                     f"{answers.get('unknown', 0):,}"])  # fmt: skip
    screen.blank()
    screen.table(["model", "calls", "failed", "no end", "p50 s", "p95 s", "used", "rejected", "failed after", "other", "unknown"],
                 rows, right=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], cut=[0])  # fmt: skip
    said = report["all"]
    screen.blank()
    ends = ", ".join(f"{count:,} {end.replace('_', ' ')}" for end, count in said["by_end"].items() if end != "ok")
    first = f"; first token after {said['ttft_us']['p50'] / 1e6:,.2f} s (p50)" if said["ttft_us"] else ""
    screen.line(f"ends: {said['by_end'].get('ok', 0):,} ok{', ' + ends if ends else ''}{first}")
    rates = said["rates"]
    if rates["used"] is not None:
        shares = [f"{rates[word]:.0%} {word.replace('_', ' ')}" for word in ("used", "used_modified", "rejected", "unknown")]
        seen = f"; of {said['only_seen']:,} it was only seen, not said" if said["only_seen"] else ""
        screen.line(f"answers: {', '.join(shares)}{seen}")
    for key, words in (("left_the_machine", "left the machine"),
                       ("other_model_answered", "answered by another model than was asked for"),
                       ("not_of_the_format", "gave an answer that is not of the format asked for"),
                       ("unattributed", "without anybody named who acted")):  # fmt: skip
        if said[key]:
            screen.line(f"{plural(said[key], 'call')} {words}", "yellow")
    if said["approvals_missing"]:
        missing = plural(said["approvals_missing"], "effect")
        screen.line(f"{missing} needed an approval and had none of somebody who is known: tally query --unapproved", "yellow")
