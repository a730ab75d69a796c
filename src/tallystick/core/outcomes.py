"""The words of ``ai.outcome``: what may become of an answer, and what was only seen of it.

None of them means unknown, never "not used".
"""

from __future__ import annotations

STATUSES = ("used", "used_modified", "rejected", "failed_validation", "failed_downstream", "superseded", "expired")
TOOL_EXECUTED, REPEATED, INVALID = "tool executed", "repeated", "invalid"
AUTOMATIC = frozenset([TOOL_EXECUTED, REPEATED, INVALID])  # evidence that nobody said: weaker, whenever it was recorded
