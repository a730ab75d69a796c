"""One case from the first request to the last effect, as a tree: what followed from what, and what is unknown or missing.

Where to begin is an entry (event id or index), a case (``correlation_id``) or a reference (where an answer went: ``erp:4711``). An
entry with a case brings its whole case; others bring what is linked with them by ``parent_id``, up and down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from ..core.entry import AuditEntry
from .approvals import GIVEN, LATER, MISSING, REJECTED, SELF_REPORTED, Approval, Rule, approval_of

ENTRIES_MAX = 5_000


class Source(Protocol):
    """What is needed of a logger."""

    def entries(self, *args: Any, **keywords: Any) -> Iterable[AuditEntry]:
        """Matching entries."""

    def entry(self, wanted: str | int) -> AuditEntry:
        """One entry; ``KeyError``."""


class Node(NamedTuple):
    """An entry, what followed from it, and what is to be said about it."""

    entry: AuditEntry
    children: list[Node]
    remarks: list[str]
    approval: Approval | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        approval = self.approval
        return {
            "event": self.entry.row(), "remarks": self.remarks, "children": [child.as_dict() for child in self.children],
            **({"approval": {"state": approval.state, "by": approval.by, "known_by": approval.known_by, "index": approval.index}}
               if approval else {}),
        }  # fmt: skip


class Trace(NamedTuple):
    """Trees in the order of the log, how many entries they hold, and whether there are more than could be taken in."""

    case: str | None
    roots: list[Node]
    count: int  # type: ignore[assignment]
    cut: bool

    def remarks(self) -> list[tuple[AuditEntry, str]]:
        """Everything that is unknown or missing."""
        found: list[tuple[AuditEntry, str]] = []
        pending = list(reversed(self.roots))
        while pending:
            node = pending.pop()
            found += [(node.entry, remark) for remark in node.remarks]
            pending += reversed(node.children)
        return found


def trace(log: Source, wanted: str | int, rules: Sequence[Rule] = ()) -> Trace:
    """``KeyError`` if nothing on record is called that."""
    entries = _collect(log, wanted)
    cut = len(entries) > ENTRIES_MAX
    ordered = sorted(entries.values(), key=lambda e: e.order)[:ENTRIES_MAX]
    by_id = {entry.event_id: entry for entry in ordered}
    children: dict[str, list[AuditEntry]] = {}
    roots = []
    for entry in ordered:
        # in the log's order a parent stands before its child: whatever says otherwise hangs from nothing
        parent = by_id.get(entry.parent_id) if entry.parent_id else None
        if parent is not None and parent.event_type == "ai_request" and entry.event_type != "ai_response":
            answer = next((c for c in children.get(parent.event_id, ()) if c.event_type == "ai_response"), None)
            parent = answer or parent  # what names the call followed from its answer, where there was one by then
        if parent is not None and parent.order < entry.order:
            children.setdefault(parent.event_id, []).append(entry)
        else:
            roots.append(entry)
    cases = {entry.correlation_id for entry in ordered}
    nodes: dict[str, Node] = {}
    for entry in reversed(ordered):
        below = [nodes[child.event_id] for child in children.get(entry.event_id, ())]
        approval = approval_of(log, rules, entry) if rules else None
        nodes[entry.event_id] = Node(entry, below, _remarks(entry, below, by_id, approval), approval)
    return Trace(cases.pop() if len(cases) == 1 else None, [nodes[root.event_id] for root in roots], len(ordered), cut)


def _collect(log: Source, wanted: str | int) -> dict[str, AuditEntry]:
    start: list[AuditEntry] = []
    try:
        start = [log.entry(wanted)]
    except KeyError:
        if isinstance(wanted, str):
            start = _some(log, {"correlation_id": wanted}) or _some(log, {"event_type": "ai.outcome", "resource": wanted}) or _some(
                log, {"resource": wanted})  # fmt: skip
    if not start:
        raise KeyError(wanted)
    found: dict[str, AuditEntry] = {}
    cases: set[str] = set()
    pending = start
    while pending and len(found) <= ENTRIES_MAX:
        entry = pending.pop()
        if entry.event_id in found:
            continue
        found[entry.event_id] = entry
        if entry.correlation_id is not None and entry.correlation_id not in cases:
            cases.add(entry.correlation_id)
            pending += _some(log, {"correlation_id": entry.correlation_id})
        pending += _some(log, {"parent_id": entry.event_id})
        for other in (entry.parent_id, entry.corrects, entry.details.get("of"), entry.details.get("call")):
            if isinstance(other, str) and other not in found:
                try:
                    pending.append(log.entry(other))
                except KeyError:
                    continue
    return found


def _some(log: Source, filters: dict[str, Any]) -> list[AuditEntry]:
    return list(log.entries(filters, limit=ENTRIES_MAX + 1))


def _remarks(entry: AuditEntry, children: list[Node], by_id: dict[str, AuditEntry], approval: Approval | None) -> list[str]:
    found = []
    kinds = {child.entry.event_type for child in children}
    if entry.parent_id is not None and entry.parent_id not in by_id:
        found.append(f"what it followed from is not on record here: {entry.parent_id}")
    if entry.event_type == "ai_request" and not kinds & {"ai_response", "system_error"}:
        found.append("no end on record: the program may have died while the model answered")
    is_answer = entry.event_type == "ai_response" and entry.outcome == "success"
    if is_answer and "ai.outcome" not in kinds and not _used_from(entry, by_id):
        found.append("nobody said what became of this answer")
    if entry.details.get("orphan"):
        found.append("about a call that is not on record")
    bound = entry.details.get("leaf_hash")
    if isinstance(bound, str) and entry.parent_id in by_id and by_id[entry.parent_id].checksum != bound:
        found.append("bound to other bytes than those on record")
    if approval is not None and approval.state != GIVEN:
        rule = approval.rule.action + (f": {approval.rule.where}" if approval.rule.where else "")
        lacks = {MISSING: "missing", LATER: f"given only later, by {approval.by}", REJECTED: f"{approval.by} had rejected it",
                 SELF_REPORTED: f"self-reported: only the program says that {approval.by} gave it"}[approval.state]  # fmt: skip
        found.append(f"needs an approval ({rule}): {lacks}")
    return found


def _used_from(answer: AuditEntry, by_id: dict[str, AuditEntry]) -> bool:
    """An outcome that hangs from the request, or names the call."""
    return any(e.event_type == "ai.outcome" and e.details.get("call") in (answer.parent_id, answer.event_id) for e in by_id.values())
