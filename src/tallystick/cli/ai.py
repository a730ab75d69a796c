"""``tally ai``."""

from __future__ import annotations

from typing import Any

import click

from .common import Screen, find_log, local, open_log, parse_period, period_options, plural, print_json

ROWS_MAX = 100


@click.command(
    name="ai",
    epilog="""\b
Example:
  tally ai --on yesterday
  tally ai audit_log --unresolved --older-than 1d""",
)
@click.argument("log_path", required=False, metavar="[LOG]")
@period_options
@click.option("--unresolved", is_flag=True, help="Only calls that did not fail, and of which nobody said what became of the answer.")
@click.option("--older-than", "older_than", metavar="1d", help="Only calls that began before that (1h, 1d, 2w).")
@click.option("--limit", type=click.IntRange(1), default=ROWS_MAX, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(
    log_path: str | None, on: str | None, since: str | None, until: str | None, period: str | None, unresolved: bool,
    older_than: str | None, limit: int, as_json: bool,
) -> None:  # fmt: skip
    """Calls to models: which model, how long the prompt and the answer were, how long it took, and what became of the answer."""
    from ..reports.ai import calls, usage

    if older_than is not None:
        if until is not None:
            raise click.UsageError("--older-than and --until do not go together")
        until = older_than
    with open_log(find_log(log_path)) as log:
        asked = parse_period(log.zone, on, since, until, period)
        rows = calls(log, asked.start, asked.end)
        summary = usage(rows)["all"]
        shown = [row for row in rows if row["used"] is None and row["outcome"] != "failure"] if unresolved else rows
        if as_json:
            print_json({"calls": shown[-limit:], "summary": summary, "not_shown": max(0, len(shown) - limit)})
            return
        _show(log, shown, limit, summary)


def _show(log: Any, rows: list[dict[str, Any]], limit: int, summary: dict[str, Any]) -> None:
    from ..core.times import parse_time

    screen = Screen()
    if not rows:
        screen.line("no calls to models are on record in this period" if not summary["calls"] else "of every call it is on record "
                    "what became of the answer")  # fmt: skip
        return
    moments = [local(parse_time(r["timestamp"]), log.zone) for r in rows[-limit:]]
    is_one_day = len({moment.date() for moment in moments}) == 1
    if is_one_day:
        screen.line(f"{moments[0]:%Y-%m-%d}")
    screen.table(
        ["time", "model", "prompt", "answer", "took", "result", "used", "#"],
        [[f"{moment:%H:%M:%S}" if is_one_day else f"{moment:%Y-%m-%d %H:%M:%S}", r["model"], _number(r["prompt_chars"]),
          _number(r["response_chars"]), _took(r["latency_us"]), _result(r), _used(r),
          f"{r['index']:,}"]
         for r, moment in zip(rows[-limit:], moments, strict=True)], right=[2, 3, 4, 7], cut=[1],
    )  # fmt: skip
    if len(rows) > limit:
        screen.line(f"… {len(rows) - limit:,} older: --limit, --json")
    screen.blank()
    answers = ", ".join(f"{count:,} {status}" for status, count in summary["answers"].items())
    ends = f"{summary['failed']:,} failed, {summary['without_end']:,} without an end"
    screen.line(f"{plural(summary['calls'], 'call')}: {answers}; {ends}")
    if set(summary["answers"]) == {"unknown"}:
        screen.line("nobody said what became of the answers; say it with log.use(answer, ref=…), log.outcome(id, …) or tally outcome")


def _result(row: dict[str, Any]) -> str:
    if row["outcome"] is None:
        return "no end"
    return str(row["outcome"]) if row["outcome"] == "success" or not row["end"] else str(row["end"]).replace("_", " ")


def _used(row: dict[str, Any]) -> str:
    from ..core.outcomes import AUTOMATIC

    if row["used"] is None:
        return "unknown"
    said = row["used"].replace("_", " ")
    return f"{said} (seen)" if row["evidence"] in AUTOMATIC else said


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _took(us: int | None) -> str:
    return "-" if us is None else f"{us / 1e6:,.2f} s" if us >= 100_000 else f"{us / 1000:,.1f} ms"
