"""Calls to models as rows, and what became of their answers: the list of ``tally ai`` and the ``ai_usage`` report.

One call is an ``ai_request`` with the ``ai_response`` (or ``system_error``) whose ``parent_id`` it is; an ``ai_response`` without a
request on record is a call too. The newest ``ai.outcome`` of a call says what became of the answer; without one it is unknown, which
is not "not used". What is not recorded is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..core.entry import AuditEntry
from ..core.outcomes import AUTOMATIC
from .approvals import ANCESTORS_MAX, Rule, lacking

_TYPES = ("ai_request", "ai_response", "system_error", "ai.outcome")
USED = ("used", "used_modified")


class Source(Protocol):
    """What is needed of a logger."""

    def entries(self, *args: Any, **keywords: Any) -> Iterable[AuditEntry]:
        """Matching entries."""


def calls(log: Source, start: Any = None, end: Any = None, *, before: int | None = None) -> list[dict[str, Any]]:
    """The calls that began in the period, oldest first, below index ``before``; outcomes count whenever they were recorded.

    Keys: ``event_id`` of the call, ``timestamp``, ``model``, ``prompt_chars``, ``response_chars``, ``latency_us``, ``outcome``
    (``None`` while no end is on record), ``used`` (the status of the newest outcome or None), ``ref``, ``index``, ``actor``, and what
    else the report needs: ``model_requested``, ``end``, ``input_tokens``, ``output_tokens``, ``ttft_us``, ``remote``.
    """
    found: dict[str, dict[str, Any]] = {}
    of_answer: dict[str, str] = {}
    for entry in log.entries({"event_type": list(_TYPES)}, start, None, before=before):
        if entry.event_type == "ai.outcome":
            call = entry.details.get("call", entry.parent_id)
            row = found.get(str(call)) or found.get(of_answer.get(str(entry.parent_id), ""))
            if row is not None:
                _fate(row, entry.details)
        elif entry.event_type == "ai_request":
            found[entry.event_id] = _row(entry)
        elif entry.parent_id in found:
            _finish(found[entry.parent_id], entry)
            of_answer[entry.event_id] = entry.parent_id
        elif entry.event_type == "ai_response" and not _began_before(log, entry):
            found[entry.event_id] = _row(entry)
            _finish(found[entry.event_id], entry)
    rows = list(found.values())
    if end is None:
        return rows
    last = {entry.event_id for entry in log.entries({"event_type": ["ai_request", "ai_response"]}, start, end, before=before)}
    return [row for row in rows if row["event_id"] in last]


def _began_before(log: Source, entry: AuditEntry) -> bool:
    """The answer of a call that began before the period: not one of its calls."""
    if entry.parent_id is None:
        return False
    return any(e.event_type == "ai_request" for e in log.entries({"event_id": entry.parent_id}))


def _row(entry: AuditEntry) -> dict[str, Any]:
    said = entry.details
    model = _text(said.get("model")) or _text(said.get("model_requested")) or entry.resource
    return {
        "event_id": entry.event_id, "timestamp": entry.timestamp, "model": model,
        "prompt_chars": _count(said.get("prompt_chars")), "response_chars": None, "latency_us": None, "outcome": None,
        "used": None, "ref": None, "evidence": None, "index": entry.index, "actor": entry.actor,
        "model_requested": _text(said.get("model_requested")), "end": None, "input_tokens": None, "output_tokens": None,
        "ttft_us": None, "remote": None, "capture": _text(said.get("capture")), "unattributed": said.get("unattributed") is True,
        "format_valid": None,
    }  # fmt: skip


def _fate(row: dict[str, Any], said: Mapping[str, Any]) -> None:
    """The newest outcome counts; what was only seen never before what was said."""
    status, evidence = _text(said.get("status")), _text(said.get("evidence"))
    is_automatic = evidence in AUTOMATIC
    if is_automatic and row["used"] is not None and row["evidence"] not in AUTOMATIC:
        return
    row["used"], row["ref"], row["evidence"] = status, said.get("ref"), evidence


def _finish(row: dict[str, Any], entry: AuditEntry) -> None:
    said = entry.details
    row["outcome"] = entry.outcome
    row["model"] = _text(said.get("model")) or row["model"]
    row["end"], row["remote"] = _text(said.get("end")), _text(said.get("remote_host"))
    row["capture"] = _text(said.get("capture")) or row["capture"]
    row["format_valid"] = said.get("format_valid") if isinstance(said.get("format_valid"), bool) else None
    for name in ("prompt_chars", "response_chars", "latency_us", "input_tokens", "output_tokens", "ttft_us"):
        value = _count(said.get(name))
        if value is not None:
            row[name] = value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def usage(rows: list[dict[str, Any]], unapproved: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The ``ai_usage`` report: per model and in all, counts, lengths, latencies and what became of the answers. ``unapproved``: how
    many entries that followed from the answer of a call (by its id) needed an approval and had none of somebody who is known."""
    models: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)
    known = unapproved or {}
    by_model = {name: _of(models[name], known) for name in sorted(models)}
    return {"total_calls": len(rows), "all": _of(rows, known), "by_model": by_model}


def unapproved_by_call(
    log: Any, rules: Sequence[Rule], start: Any = None, end: Any = None, *, before: int | None = None
) -> dict[str, int]:
    """Of the entries of a period that lack an approval, how many followed from the answer of which call."""
    found: dict[str, int] = {}
    for entry, _ in lacking(log, rules, start, end, before=before):
        wanted = entry.parent_id
        for _ in range(ANCESTORS_MAX):
            if wanted is None:
                break
            try:
                above = log.entry(wanted)
            except KeyError:
                break
            if above.event_type == "ai_request" or (above.event_type == "ai_response" and above.parent_id is None):
                found[above.event_id] = found.get(above.event_id, 0) + 1
                break
            wanted = above.parent_id
    return found


def _of(rows: list[dict[str, Any]], unapproved: Mapping[str, int]) -> dict[str, Any]:
    ended = [row for row in rows if row["outcome"] is not None]
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row["used"] or "unknown"] = statuses.get(row["used"] or "unknown", 0) + 1
    answered = [row for row in ended if row["outcome"] == "success"]
    used = sum(row["used"] == "used" for row in answered)
    modified, rejected = (sum(row["used"] == word for row in answered) for word in ("used_modified", "rejected"))
    unknown = sum(row["used"] is None for row in answered)
    return {
        "calls": len(rows), "without_end": len(rows) - len(ended), "failed": sum(row["outcome"] == "failure" for row in rows),
        "by_end": _counted(row["end"] for row in ended), "other_model_answered": sum(
            row["model_requested"] is not None and row["model"] != row["model_requested"] for row in ended),
        "left_the_machine": sum(row["remote"] is not None for row in rows),
        "prompt_chars": _sum(rows, "prompt_chars"), "response_chars": _sum(rows, "response_chars"),
        "input_tokens": _sum(rows, "input_tokens"), "output_tokens": _sum(rows, "output_tokens"),
        "latency_us": _percentiles(rows, "latency_us"), "ttft_us": _percentiles(rows, "ttft_us"),
        "answers": dict(sorted(statuses.items())),
        "rates": {word: round(number / len(answered), 4) if answered else None for word, number in
                  (("used", used), ("used_modified", modified), ("rejected", rejected), ("unknown", unknown))},
        "only_seen": sum(row["evidence"] in AUTOMATIC for row in rows),
        "not_of_the_format": sum(row["format_valid"] is False for row in rows),
        "unattributed": sum(row["unattributed"] for row in rows), "by_capture": _counted(row["capture"] for row in rows),
        "approvals_missing": sum(unapproved.get(row["event_id"], 0) for row in rows),
    }  # fmt: skip


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        if value is not None:
            found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items()))


def _sum(rows: list[dict[str, Any]], name: str) -> int | None:
    """None where no call says it."""
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) if known else None


def _percentiles(rows: list[dict[str, Any]], name: str) -> dict[str, int] | None:
    """Nearest rank; None where no call says it."""
    known = sorted(row[name] for row in rows if row[name] is not None)
    if not known:
        return None
    return {f"p{p}": known[max(0, -(-len(known) * p // 100) - 1)] for p in (50, 95, 99)}
