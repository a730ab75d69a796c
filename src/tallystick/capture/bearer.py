"""Which call an object stands for: answers, streams and embeddings bear the id of their call without being changed.

A table beside the objects, keyed by identity and held weakly: nothing is added to them, so that they compare, print and serialise as
they always did.
"""

from __future__ import annotations

import weakref
from typing import Any

_borne: dict[int, tuple[weakref.ref[Any], str]] = {}


def bear(answer: object, event_id: str) -> None:
    """From now on ``answer`` stands for the call with this id. Objects that cannot be referred to weakly stand for nothing."""
    key = id(answer)

    def forget(_: object, table: dict[int, tuple[weakref.ref[Any], str]] = _borne) -> None:
        table.pop(key, None)

    try:
        _borne[key] = (weakref.ref(answer, forget), event_id)
    except TypeError:
        return


def borne_by(answer: object) -> str | None:
    """The id of the call that ``answer`` stands for."""
    found = _borne.get(id(answer))
    return found[1] if found is not None and found[0]() is answer else None
