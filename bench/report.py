"""The table: what is wanted, what was measured, whether it is reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

DURABLE = "durable, signed"


class Row(NamedTuple):
    """A target. ``of`` gives its value in each round, from what was seen; bigger is better unless ``less``."""

    what: str
    must: float
    aim: float
    unit: str
    mode: str
    of: Callable[[dict[str, list[float]]], Iterable[float]]
    less: bool = False


def ratio(a: str, b: str) -> Callable[[dict[str, list[float]]], Iterable[float]]:
    """Rate ``a`` over rate ``b``, round by round."""
    return lambda seen: [x / y for x, y in zip(seen[a], seen[b], strict=True)]


def value(name: str) -> Callable[[dict[str, list[float]]], Iterable[float]]:
    """As it was seen."""
    return lambda seen: seen[name]


def more(a: str, b: str) -> Callable[[dict[str, list[float]]], Iterable[float]]:
    """By how much ``a`` is more than ``b``, round by round."""
    return lambda seen: [x - y for x, y in zip(seen[a], seen[b], strict=True)]


def scans(page: str) -> Callable[[dict[str, list[float]]], Iterable[float]]:
    """The chapter's scan over a page of ours."""
    return lambda seen: [s * 1000 / ms for s, ms in zip(seen["chapter query of as many, s"], seen[page], strict=True)]


AS_IS = [
    Row("log_many(1024) / chapter append", 8, 15, "×", f"{DURABLE} / NOT durable", ratio("log_many(1024)", "chapter append")),
    Row("the same until the index has caught up", 4, 7, "×", f"{DURABLE} / NOT durable",
        ratio("log_many(1024), index caught up", "chapter append")),
    Row("log() / bare append + fdatasync", 0.4, 0.55, "×", f"{DURABLE} / durable", ratio("log()", "bare append + fdatasync")),
    Row("@audited / two bare appends + fdatasync", 0.4, 0.6, "×", f"{DURABLE} / durable",
        ratio("@audited", "two bare appends + fdatasync")),
    Row("16 processes / one process", 0.4, 1.0, "×", DURABLE, ratio("16 processes", "one process")),
    Row("16 processes: worst wait", 1.0, 0.4, "s", DURABLE, value("16 processes: worst wait, s"), less=True),
    Row("submit(): caller, p50", 15, 8, "µs", "on its way, NOT durable yet", value("submit p50, µs"), less=True),
    Row("submit(): caller, p99", 100, 40, "µs", "on its way, NOT durable yet", value("submit p99, µs"), less=True),
]  # fmt: skip
SLOWED = [
    Row("log() / bare append + fdatasync", 0.9, 0.96, "×", f"{DURABLE} / durable", ratio("log()", "bare append + fdatasync")),
    Row("@audited / two bare appends + fdatasync", 0.85, 0.95, "×", f"{DURABLE} / durable",
        ratio("@audited", "two bare appends + fdatasync")),
    Row("32 threads / bare append + fdatasync", 12, 20, "×", f"{DURABLE} / durable", ratio("32 threads", "bare append + fdatasync")),
    Row("32 threads: mean batch", 27, 31, "of 32", DURABLE, value("32 threads: mean batch")),
    Row("16 processes / one process", 0.85, 1.5, "×", DURABLE, ratio("16 processes", "one process")),
    Row("16 processes: worst wait", 1.0, 0.4, "s", DURABLE, value("16 processes: worst wait, s"), less=True),
]  # fmt: skip
READS = [
    Row("content verify, pure / hashlib limit", 0.65, 0.9, "×", "", ratio("content verify, pure", "hashlib limit")),
    Row("content verify, best / hashlib limit", 2, 5, "×", "", ratio("content verify", "hashlib limit")),
    Row("content verify, pure / chapter verify", 6, 8, "×", "", ratio("content verify, pure", "chapter verify")),
    Row("content verify, best / chapter verify", 25, 50, "×", "", ratio("content verify", "chapter verify")),
    Row("index verify", 60_000, 100_000, "/s", "", value("index verify")),
    Row("index rebuild", 60_000, 100_000, "/s", "", value("index rebuild")),
    *(Row(f"chapter's scan / page of 100, {fields}, {first} first", 5000, 15_000, "×", "",
          scans(f"page of 100, {fields}, {first} first, ms"))
      for fields in ("one field", "two fields") for first in ("newest", "oldest")),
    Row("full report", 2, 0.5, "s", "", value("full report, s"), less=True),
    Row("inclusion proof, p50", 1, 0.2, "ms", "", value("inclusion proof, p50, ms"), less=True),
    Row("open after a clean stop, and first append", 50, 10, "ms", DURABLE, value("open and first append, ms"), less=True),
]  # fmt: skip
_ALONE = "nothing is written"
CAPTURE = [
    *(Row(f"a call by {d}: CPU of capture without its appends, p50", 100, 50, "µs", _ALONE,
          more(f"{d} captured, no appends, CPU µs", f"{d} bare, CPU µs"), less=True) for d in ("ollama", "openai")),
    *(Row(f"a chunk by {d}: CPU of capture", 3, 1, "µs", _ALONE,
          more(f"{d} captured, CPU µs per chunk", f"{d} bare, CPU µs per chunk"), less=True)
      for d in ("ollama", "openai", "ollama async", "openai async")),
    Row("4 kB payload of one entry: CPU and write, no sync, p50", 60, 25, "µs", DURABLE,
        more("log() with 4 kB payload: without its syncs, wall µs", "log() without payload: without its syncs, wall µs"), less=True),
    Row("a call with a prompt of 4 kB, full / lengths: the same", 60, 25, "µs", DURABLE,
        more("4 kB, full: without its syncs, wall µs", "4 kB, lengths: without its syncs, wall µs"), less=True),
    *(Row(f"{way} over direct, {p}", must, aim, "ms", DURABLE, more(f"{way}: {p}, ms", f"direct: {p}, ms"), less=True)
      for way in ("proxy", "proxy, lengths") for p, must, aim in (("p50", 2, 1), ("p99", 8, 4))),
    *(Row(f"memory from a tenth of a long stream to its end, {way}", 4, 1, "MB", "",
          more(f"{way} at the end, MB", f"{way} at a tenth, MB"), less=True) for way in ("wrap", "proxy")),
    Row("acknowledged calls lost on kill -9", 0, 0, "calls", DURABLE, value("kill -9: lost"), less=True),
]  # fmt: skip
_KEPT = "SQLite, synchronous=FULL, before it answers"
WITNESS = [
    Row("add-checkpoint of 32 logs at once, tally / aics-witness", 2, 4, "×", f"both: {_KEPT}",
        ratio("tally witness, 32 logs at once", "aics-witness, 32 logs at once")),
    Row("the same: p99, aics-witness / tally", 2, 4, "×", f"both: {_KEPT}",
        ratio("aics-witness, 32 logs at once: p99, ms", "tally witness, 32 logs at once: p99, ms")),
    Row("one log alone: p50, aics-witness / tally", 1, 2, "×", f"both: {_KEPT}",
        ratio("aics-witness, one log: p50, ms", "tally witness, one log: p50, ms")),
    Row("log() with a witness over without, p50", 1.05, 1.0, "×", DURABLE,
        ratio("log() p50, with a witness, µs", "log() p50, no witness, µs"), less=True),
    Row("the same while a checkpoint is being witnessed, p50", 1.1, 1.0, "×", DURABLE,
        ratio("log() p50, while a checkpoint is witnessed, µs", "log() p50, no witness, µs"), less=True),
    Row("checkpoints that were witnessed meanwhile", 1, 1, "of 1", "", value("checkpoints witnessed in a round")),
]  # fmt: skip


def table(rows: list[Row], seen: dict[str, list[float]]) -> list[str]:
    """One line a target: median (min – max), must, aim, verdict, durability."""
    found = []
    for row in rows:
        values = list(row.of(seen))
        three = statistics.median(values), min(values), max(values)
        found.append(line(row.what, *three, row.must, row.aim, row.unit, row.less, row.mode))
    return found


def line(
    what: str, median: float, low: float, high: float, must: float, aim: float, unit: str, less: bool, mode: str
) -> str:  # fmt: skip
    """One target."""
    def reached(target: float) -> bool:
        return median <= target if less else median >= target

    verdict = "aim reached" if reached(aim) else "must reached" if reached(must) else "NOT REACHED"
    numbers = f"{number(median)} {unit} ({number(low)} – {number(high)})"
    sign = "≤" if less else "≥"
    return f"{what:<58} {numbers:>36}   {sign} {number(must):>7} {number(aim):>8}   {verdict:<12} {mode}".rstrip()


def number(value_: float) -> str:
    """Three figures that mean something."""
    if value_ >= 1000:
        return f"{value_:,.0f}"
    return f"{value_:.1f}" if value_ >= 100 else f"{value_:.2f}" if value_ >= 1 else f"{value_:.3f}"


def rates(seen: dict[str, list[float]]) -> list[str]:
    """What the ratios are made of."""
    return [f"  {name:<52} {number(statistics.median(v)):>12}   ({number(min(v))} – {number(max(v))})" for name, v in seen.items()]


def resources(found: dict[str, Any]) -> list[str]:
    """Disk and memory of the large log."""
    beyond = found["bytes"]["tree"] + found["bytes"]["index"]
    lines = [line("disk beyond the entries' bytes (tree and index)", beyond, beyond, beyond, 200, 120, "B/entry", True, "")]
    for what, mb in found["rss_mb"].items():
        lines.append(line(f"peak memory of {what}", mb, mb, mb, 80, 80, "MB", True, ""))
    return lines
