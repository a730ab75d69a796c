"""What stands behind the name of a model: its digest, and the version of the server. A tag such as ``llama3.2:latest`` can be
moved to other weights; the digest says to which.

Asked of the server itself, by the connection of the call, once for each model and every five minutes; never by anybody's finaliser. A
digest that is another one than before is a ``configuration_change``. ``look_up = false`` in ``log.toml`` leaves it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ..clock import CLOCK
from .wire.asked import name

if TYPE_CHECKING:
    from .calls import Call
    from .recorder import Recorder

LOOK_UP_S = 2.0
_FRESH_S = 300.0
_MODELS_MAX = 256


class _Known(NamedTuple):
    digest: str | None
    version: str | None
    until_s: float


class Servers:
    """What this process knows about the servers that it calls."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._known: dict[tuple[str, str], _Known] = {}

    def is_due(self, call: Call) -> bool:
        """Whether the server is to be asked, now that this call was answered."""
        if not self._recorder.look_up or call.asked.admin or not call.answer.whole or call.asked.provider != "ollama":
            return False
        known = self._known.get(_key(call))
        return known is None or time.monotonic() > known.until_s

    def learn(self, call: Call, tags: Any, version: Any) -> None:
        """What ``/api/tags`` and ``/api/version`` said; None where they did not. Never raises: no answer is late or lost for it."""
        try:
            self._learn(call, tags, version)
        except Exception:  # noqa: BLE001
            return

    def _learn(self, call: Call, tags: Any, version: Any) -> None:
        key = _key(call)
        before = self._known.get(key)
        digest = _digest(tags, key[1])
        said = name(version.get("version")) if isinstance(version, dict) else None
        if len(self._known) >= _MODELS_MAX:
            self._known.clear()
        self._known[key] = _Known(digest, said, time.monotonic() + _FRESH_S)
        if before is not None and before.digest and digest and before.digest != digest:
            self._changed(call, before.digest, digest)

    def tell(self, call: Call) -> None:
        """What is known goes into the call's entry."""
        known = self._known.get(_key(call))
        if known is not None:
            call.digest = known.digest
            call.server_version = known.version

    def _changed(self, call: Call, before: str, after: str) -> None:
        who, _ = self._recorder.who(call.claims)
        self._recorder.put(
            {"event_type": "configuration_change", "actor": who["actor"], "actor_type": who["actor_type"], "resource": _key(call)[1],
             "action": "model digest changed", "outcome": "success",
             "details": {"before": before, "after": after, "endpoint": call.endpoint, "capture": call.capture}},
            CLOCK.event_id(),
        )  # fmt: skip


def _key(call: Call) -> tuple[str, str]:
    return call.endpoint.partition("/api/")[0], call.answer.model or call.asked.model or ""


def _digest(tags: Any, model: str) -> str | None:
    names = {model, f"{model}:latest"}
    for one in tags.get("models") or () if isinstance(tags, dict) else ():
        if isinstance(one, dict) and (one.get("name") in names or one.get("model") in names):
            return name(one.get("digest"))
    return None
