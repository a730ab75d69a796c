"""What became of an answer: ``ai.outcome`` entries, bound to the call and to the very bytes of the entry that finished it.

An outcome is a later fact about an entry that stays as it is; the newest one counts, all stay. None means unknown, never "not used".
Whoever says it is the actor of the entry, and that is a claim. Binding to the leaf hash of the finishing entry makes it an outcome of
those bytes and no others.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol

from ..core.entry import AuditEntry
from ..core.errors import AuditError
from ..core.outcomes import STATUSES
from .bearer import borne_by

EVENT_TYPE = "ai.outcome"
FINISHED = "ai_response"
STARTED = "ai_request"
_RESULT = {"used": "success", "used_modified": "success", "rejected": "denied", "failed_validation": "failure",
           "failed_downstream": "failure", "superseded": "partial", "expired": "partial"}  # fmt: skip
_KINDS = {"human": "user", "code": "service", "model": "agent"}


class Recorder(Protocol):
    """What is needed of a logger."""

    def log(self, *args: Any, **keywords: Any) -> str:
        """Record one event."""

    def entry(self, wanted: str | int) -> AuditEntry:
        """One entry; ``KeyError``."""

    def entries(self, *args: Any, **keywords: Any) -> Iterable[AuditEntry]:
        """Matching entries."""


def event_id(answer: object) -> str:
    """The event id that an answer of a wrapped client (also a stream, an embedding), a handle of ``submit`` or a text stands for.
    ``TypeError`` for anything that bears none."""
    found = answer if isinstance(answer, str) else borne_by(answer) or getattr(answer, "event_id", None)
    if not isinstance(found, str) or not found:
        raise TypeError(f"{type(answer).__name__} bears no event id; pass the id of the call as text")
    return found


def outcome_event(
    log: Recorder, answer: object, status: str, *, ref: str | None, by: str | None, kind: str, reason: str | None, evidence: str,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The keywords of ``log`` for one outcome. ``ValueError`` for an unknown status or kind."""
    if status not in STATUSES:
        raise ValueError(f"{status!r} is no outcome; known are {', '.join(STATUSES)}")
    if kind not in _KINDS:
        raise ValueError(f"{kind!r} is no kind; known are {', '.join(_KINDS)}")
    wanted = event_id(answer)
    found = finishing_entry(log, wanted)
    said: dict[str, Any] = {"call": _call_of(found, wanted), "status": status, "evidence": evidence, **(details or {})}
    event: dict[str, Any] = {"event_type": EVENT_TYPE, "action": "use answer", "outcome": _RESULT[status], "details": said}
    if by is not None:
        event |= {"actor": by, "actor_type": _KINDS[kind]}
    if reason is not None:
        event["reason"] = reason
    if ref is not None:
        said["ref"] = ref
    if found is None:
        said["orphan"] = True  # kept: an outcome of a call that is not on record is itself worth knowing
        event["resource"] = ref or "unknown"
        return event
    said["leaf_hash"] = found.checksum
    return event | {"resource": ref or found.resource, **about(found)}


def about(found: AuditEntry) -> dict[str, Any]:
    """What an entry about another one takes over from it: its parent, and the case, session and principal that it belongs to."""
    same = {name: getattr(found, name) for name in ("correlation_id", "session_id", "on_behalf_of")}
    return {"parent_id": found.event_id, **{name: value for name, value in same.items() if value is not None}}


def finishing_entry(log: Recorder, wanted: str) -> AuditEntry | None:
    """The entry that an outcome is bound to: the answer of a call, else the entry itself. None if it is not on record."""
    try:
        entry = log.entry(wanted)
    except KeyError:
        return None
    if entry.event_type != STARTED:
        return entry
    answers = list(log.entries({"parent_id": entry.event_id, "event_type": FINISHED}))
    return answers[-1] if answers else entry


def _call_of(found: AuditEntry | None, wanted: str) -> str:
    return found.parent_id if found is not None and found.event_type == FINISHED and found.parent_id else wanted


class Use:
    """The block in which an answer is used; see ``AuditLogger.use``. Attributes of the answer are those of the block's value."""

    def __init__(self, record: Callable[..., str], answer: object, ref: str | None) -> None:
        self.answer = answer
        self._record, self._ref = record, ref
        self._said: dict[str, Any] | None = None
        self._where = _caller()

    def used(self, *, ref: str | None = None, modified: bool = False, reason: str | None = None) -> None:
        """The answer went to ``ref``; ``modified``: not as it was given. Recorded when the block ends without an error."""
        self._said = {"status": "used_modified" if modified else "used", "ref": ref or self._ref, "reason": reason}

    def rejected(self, reason: str | None = None) -> None:
        """The answer was looked at and not taken."""
        self._said = {"status": "rejected", "ref": self._ref, "reason": reason}

    def failed_validation(self, reason: str | None = None) -> None:
        """The answer was not what was asked for."""
        self._said = {"status": "failed_validation", "ref": self._ref, "reason": reason}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.answer, name)

    def __enter__(self) -> Use:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            failed = {"error": {"type": type(error).__name__, "length": len(str(error))}}
            try:
                self._record(self.answer, "failed_downstream", ref=self._ref, evidence="exception", details=failed)
            except AuditError as e:  # the error of the block is the one that its caller has to see
                error.add_note(f"what became of the answer could not be recorded: {e}")
            return
        if self._said is None and self._ref is not None:
            self._said = {"status": "used", "ref": self._ref, "reason": None}
        if self._said is None:
            warnings.warn(f"{self._where}: nothing was said of what became of the answer; it stays unknown. Give ref= to use(), or "
                          "call used(ref=…) in the block", stacklevel=2)  # fmt: skip
            return
        self._record(self.answer, self._said["status"], ref=self._said["ref"], reason=self._said["reason"], evidence="block ended")


def _caller() -> str:
    """File and line of the first frame outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tallystick."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
