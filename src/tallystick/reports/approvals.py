"""What needs an approval by the log's own rules (``[[approval]]`` in ``log.toml``), and whether it has one.

An entry that a rule matches is approved if an ``approval.decision`` stands for it, for the answer it followed from or for the call
of that answer (its ``parent_id``, and on), and was there before it. One that came later is said as that; one that only the program
itself says somebody gave is self-reported. Nothing here judges whether the rules are the right ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from ..core.entry import AuditEntry
from ..core.query import Question, ask, parse_where

EVENT_TYPE = "approval.decision"
ANCESTORS_MAX = 16
MISSING, LATER, REJECTED, SELF_REPORTED, GIVEN = "missing", "later", "rejected", "self-reported", "given"
_AND = re.compile(r"\s+and\s+")


class Source(Protocol):
    """What is needed of a logger."""

    def entries(self, *args: Any, **keywords: Any) -> Iterable[AuditEntry]:
        """Matching entries."""

    def entry(self, wanted: str | int) -> AuditEntry:
        """One entry; ``KeyError``."""


class Rule(NamedTuple):
    """What needs an approval: a pattern of actions, and conditions that all hold."""

    action: str
    where: str
    question: Question

    @classmethod
    def parse(cls, action: str, where: str = "") -> Rule:
        """``where`` is ``field operator value``, joined by ``and``: ``details.amount > 50 and outcome = success``. ``ValueError``."""
        if not action:
            raise ValueError("an approval rule names an action")
        conditions = [parse_where(part) for part in _AND.split(where.strip())] if where.strip() else []
        for one in conditions:
            ask({one.field: {one.operator: one.value}})
            # a rule that means something else than it seems to would let through what it was written for
            if one.operator in (">", ">=", "<", "<=") and not isinstance(one.value, int | float):
                raise ValueError(f"{one.field} {one.operator} wants a number, not {one.value!r}")
            if isinstance(one.value, str) and (not one.value or re.search(r"\s(or|and)\s", one.value)):
                raise ValueError(f"{one.field} {one.operator} {one.value!r}: conditions are joined by 'and' alone; quote a text")
        return cls(action, where, Question(tuple(conditions)))

    def needs(self, entry: AuditEntry) -> bool:
        """Whether it is about this entry."""
        return entry.event_type != EVENT_TYPE and fnmatchcase(entry.action, self.action) and self.question.matches(entry)


class Approval(NamedTuple):
    """What is on record of the approval of one entry. ``state``: missing, later, rejected, self-reported or given."""

    state: str
    rule: Rule
    by: str | None = None
    known_by: str | None = None
    index: int | None = None  # type: ignore[assignment]


def approval_of(log: Source, rules: Sequence[Rule], entry: AuditEntry) -> Approval | None:
    """None where no rule is about the entry."""
    rule = next((rule for rule in rules if rule.needs(entry)), None)
    if rule is None:
        return None
    decisions = sorted((d for subject in _line(log, entry) for d in _decisions(log, subject)), key=lambda d: d.order)
    before = [d for d in decisions if d.order < entry.order]
    if not decisions:
        return Approval(MISSING, rule)
    last = before[-1] if before else decisions[-1]
    said, known_by = last.details.get("decision"), last.details.get("known_by")
    state = LATER if not before else REJECTED if said == "rejected" else SELF_REPORTED if last.details.get("self_reported") else GIVEN
    return Approval(state, rule, last.actor, known_by if isinstance(known_by, str) else None, last.index)


def lacking(log: Source, rules: Sequence[Rule], start: Any = None, end: Any = None, *, before: int | None = None
            ) -> Iterator[tuple[AuditEntry, Approval]]:  # fmt: skip
    """Entries of a period that need an approval and have none that was given before them by somebody who is known."""
    seen: set[str] = set()
    for rule in rules:
        pattern = rule.action if not re.search(r"[*?\[]", rule.action) else {"glob": rule.action}
        if isinstance(pattern, dict) and "[" in rule.action:
            pattern = {"glob": "*"}
        for entry in log.entries({"action": pattern}, start, end, before=before):
            if entry.event_id not in seen and rule.needs(entry):
                seen.add(entry.event_id)
                found = approval_of(log, [rule], entry)
                if found is not None and found.state != GIVEN:
                    yield entry, found


def _line(log: Source, entry: AuditEntry) -> Iterator[str]:
    """The entry's id and those it followed from."""
    wanted: str | None = entry.event_id
    for _ in range(ANCESTORS_MAX):
        if wanted is None:
            return
        yield wanted
        try:
            wanted = log.entry(wanted).parent_id
        except KeyError:
            return


def _decisions(log: Source, subject: str) -> Iterator[AuditEntry]:
    """Decisions about an entry. One about a call hangs from the answer that was decided about."""
    answers = list(log.entries({"event_type": "ai_response", "parent_id": subject}))
    try:
        decided_about = [log.entry(subject), *answers]
    except KeyError:
        return
    for about in decided_about:
        for decision in log.entries({"event_type": EVENT_TYPE, "parent_id": about.event_id}):
            # bound to other bytes, or given before there was an answer: no decision about what is on record
            is_bound = decision.details.get("leaf_hash") == about.checksum
            if is_bound and not (about.event_type == "ai_request" and any(a.order > decision.order for a in answers)):
                yield decision
