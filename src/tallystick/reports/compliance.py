"""The three reports of the chapter and one on the use of models, over **all** events of a period, each made from one checkpoint.

They count what is recorded and give no opinion. Events of the period are those whose ``timestamp`` lies in it, both ends
inclusive; what the log says about itself is counted apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ..core.entry import AuditEntry
from ..core.times import format_time
from .ai import calls, unapproved_by_call, usage
from .approvals import Rule

KINDS = ("full", "security", "data_access", "ai_usage")
_AUTH_WORDS = frozenset({"auth", "authenticate", "authentication", "authenticated", "login", "logon", "signin", "mfa"})
_WORDS = re.compile(r"[a-z0-9]+")
_LISTED_MAX = 10_000


class Source(Protocol):
    """What is needed of a logger."""

    @property
    def approval_rules(self) -> Sequence[Rule]:
        """What needs an approval."""

    def entries(self, *args: Any, **keywords: Any) -> Iterable[AuditEntry]:
        """Matching entries."""

    def report_basis(self, *, at: int | None, verify: bool) -> dict[str, Any]:
        """The checkpoint that a report is made from, and what is known of its integrity."""

    def counts(self, start: Any, end: Any, *, before: int, recount: bool) -> dict[str, Any]:
        """Numbers of events by type, actor and outcome, and where they come from."""

    def bounds(self, start: Any, end: Any) -> tuple[int | None, int | None]:
        """Asked-for times as inclusive microseconds."""


class ComplianceReporter:
    """Reports over one log."""

    def __init__(self, logger: Source) -> None:
        self._log = logger

    def generate_report(
        self, start_date: Any = None, end_date: Any = None, report_type: str = "full", *, at: int | None = None,
        verify: bool = False, recount: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """``full``, ``security``, ``data_access`` or ``ai_usage`` as a dict. ``at`` fixes the tree size it is made from, so that the
        same call gives the same answer later; ``verify`` verifies the whole log first. ``full`` takes the counts of whole blocks
        from the index, which ``verify`` derives again, and says so in ``counted_from``; ``recount`` counts everything from the
        stored lines. The others always read the lines. ``ValueError`` for an unknown type."""
        if report_type not in KINDS:
            raise ValueError(f"unknown report type {report_type!r}; known are {', '.join(KINDS)}")
        basis = self._log.report_basis(at=at, verify=verify)
        size = basis["checkpoint"]["size"]
        start_us, end_us = self._log.bounds(start_date, end_date)
        period = {
            "start": None if start_us is None else format_time(start_us),
            "end": None if end_us is None else format_time(end_us),
        }
        if start_us is not None and end_us is not None and start_us > end_us:
            raise ValueError("the period ends before it begins")
        if report_type == "full":
            body = self._log.counts(start_date, end_date, before=size, recount=recount)
        elif report_type == "ai_usage":
            rules = self._log.approval_rules
            lacks = unapproved_by_call(self._log, rules, start_date, None, before=size) if rules else {}
            body = usage(calls(self._log, start_date, end_date, before=size), lacks)
        else:
            entries = self._log.entries(None, start_date, end_date, before=size)
            body = {"security": _security, "data_access": _data_access}[report_type](entries)
        return {"report_type": report_type, "report_period": period, **body, **basis}


def _security(entries: Iterable[AuditEntry]) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    total = 0
    for entry in entries:
        is_failed = failed_authentication(entry)
        is_change = entry.event_type == "configuration_change"
        if entry.event_type == "security_event" or is_failed or is_change:
            total += 1
            for wanted, into in ((is_failed, failed), (is_change, changes), (entry.event_type == "security_event", events)):
                if wanted and len(into) < _LISTED_MAX:
                    into.append(entry.row())
    return {
        "total_security_events": total, "failed_authentication_attempts": failed, "configuration_changes": changes,
        "security_events": events,
    }  # fmt: skip


def _data_access(entries: Iterable[AuditEntry]) -> dict[str, Any]:
    reads = writes = 0
    resources, actors = set(), set()
    for entry in entries:
        if entry.event_type in ("data_access", "data_modification"):
            reads += entry.event_type == "data_access"
            writes += entry.event_type == "data_modification"
            resources.add(entry.resource)
            actors.add(entry.actor)
    return {
        "total_data_events": reads + writes, "read_operations": reads, "write_operations": writes,
        "resources_accessed": sorted(resources), "actors": sorted(actors),
    }  # fmt: skip


def failed_authentication(entry: AuditEntry) -> bool:
    """Failure or denied, and the action's words speak of authentication or the type starts with ``auth.``."""
    if entry.outcome not in ("failure", "denied"):
        return False
    words = _WORDS.findall(entry.action.lower())
    pairs = {a + b for a, b in zip(words, words[1:], strict=False)}  # "log in", "sign-in"
    return entry.event_type.startswith("auth.") or bool(_AUTH_WORDS & {*words, *pairs})
