"""The audit context: who acts, for which case, inside a ``with``. Values are claims of the program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

NAMES = ("actor", "actor_type", "session_id", "ip_address", "service", "on_behalf_of", "parent_id", "correlation_id",
         "trace_id", "reason", "subject")  # fmt: skip
_EMPTY: Mapping[str, Any] = {}
_context: ContextVar[Mapping[str, Any]] = ContextVar("tallystick_context", default=_EMPTY)


def current_context() -> Mapping[str, Any]:
    """What is set here."""
    return _context.get()


@contextlib.contextmanager
def audit_context(*, case: str | None = None, **values: str | None) -> Iterator[None]:
    """Set fields for everything recorded inside; inner contexts win. ``case`` is ``correlation_id``.

    ``with audit_context(actor="ana", case="INV-2026-1180", on_behalf_of="accounting"): …``
    """
    unknown = set(values) - set(NAMES)
    if unknown:
        raise TypeError(f"audit_context has no {sorted(unknown)[0]}; it has case, {', '.join(NAMES)}")
    if case is not None:
        values["correlation_id"] = case
    token = _context.set({**_context.get(), **{k: v for k, v in values.items() if v is not None}})
    try:
        yield
    finally:
        try:
            _context.reset(token)
        except ValueError:  # a coroutine that was never resumed, collected in another context: nothing of ours is set there
            pass
