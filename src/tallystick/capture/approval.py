"""Approvals: ``approval.decision`` entries, bound to the bytes of the entry that was approved and to what the person was shown.

Who approved is a claim like every actor; beside it stands how it is known. Where only the program that writes it says so it is
self-reported, and marked as that.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import EntryRefused
from .outcome import Recorder, about, event_id, finishing_entry

DECISIONS = ("approved", "rejected", "changed")
KNOWN_BY = ("operating system", "token", "header", "none")
EVENT_TYPE = "approval.decision"
_RESULT = {"approved": "success", "changed": "partial", "rejected": "denied"}


def approval_event(
    log: Recorder, subject: object, decision: str, *, by: str, known_by: str, reason: str | None, shown: str | bytes | None
) -> dict[str, Any]:
    """The keywords of ``log`` for one approval. ``ValueError`` for an unknown word, ``EntryRefused`` for something that is not on
    record: nobody can approve what is not there."""
    if decision not in DECISIONS:
        raise ValueError(f"{decision!r} is no decision; known are {', '.join(DECISIONS)}")
    if known_by not in KNOWN_BY:
        raise ValueError(f"{known_by!r} is no way to know somebody; known are {', '.join(KNOWN_BY)}")
    wanted = event_id(subject)
    found = finishing_entry(log, wanted)
    if found is None:
        raise EntryRefused(f"{wanted} is not on record here: nobody can approve what is not there", path="parent_id")
    details: dict[str, Any] = {"of": wanted, "leaf_hash": found.checksum, "decision": decision, "known_by": known_by}
    if known_by == "none":
        details["self_reported"] = True  # nothing but the program's own word says that a person decided
    event: dict[str, Any] = {
        "event_type": EVENT_TYPE, "actor": by, "actor_type": "user", "resource": found.resource, "action": "approve",
        "outcome": _RESULT[decision], "details": details, **about(found),
    }  # fmt: skip
    if reason is not None:
        event["reason"] = reason
    if shown is not None:
        event["payloads"] = {"shown": shown}
    return event
