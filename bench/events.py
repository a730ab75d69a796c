"""The events of every case: varied, the same in every run, about 400 bytes as a stored line."""

from __future__ import annotations

import random
from typing import Any

_TYPES = ("data_access", "data_access", "data_modification", "ai_request", "ai_response", "user_action", "approval.decision")
_ACTIONS = ("read customer", "update customer", "classify mail", "draft answer", "post invoice", "approve invoice", "export list")
_WORDS = ("invoice", "reminder", "order", "complaint", "offer", "contract", "delivery", "payment", "question", "return")


def events(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Keywords of ``AuditLogger.log``."""
    draw = random.Random(seed)
    made = []
    for n in range(count):
        made.append({
            "event_type": draw.choice(_TYPES), "actor": f"bot-{draw.randrange(40)}", "actor_type": "service",
            "resource": f"crm/customers/{draw.randrange(20_000)}", "action": draw.choice(_ACTIONS),
            "outcome": "failure" if draw.random() < 0.05 else "success", "session_id": f"s-{(n + draw.randrange(3)) // 50}",
            "details": {"id": draw.randrange(10**6), "fields": ["name", "iban"], "amount": draw.randrange(1, 10**6) / 100,
                        "note": " ".join(draw.choices(_WORDS, k=draw.randrange(2, 9)))},
        })  # fmt: skip
    return made
