"""What is asked of the proxy itself: ``GET /audit/health``, ``POST /audit/outcomes``, ``POST /audit/approvals``.

A web page that a browser on this machine shows could send such requests too. So they have to be ``application/json``, which a browser
does not send elsewhere without asking first, and nobody here answers; and the Host has to be one that means this machine.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import h11

from ...core.errors import AuditError, EntryRefused
from ...core.outcomes import STATUSES
from ..approval import DECISIONS
from ..claims import read_claims
from .sides import Side

BODY_BYTES_MAX = 1 << 20
_OUTCOME = frozenset(["event_id", "status", "ref", "by", "kind", "reason"])
_APPROVAL = frozenset(["event_id", "decision", "by", "reason", "shown"])


class Log(Protocol):
    """What is needed of a logger."""

    @property
    def origin(self) -> str:
        """The log's origin."""

    @property
    def recorder(self) -> Any:
        """What calls are recorded through."""

    def entry_count(self) -> int:
        """Entries that are signed."""

    def outcome(self, *args: Any, **keywords: Any) -> str:
        """Record what became of an answer."""

    def approval(self, *args: Any, **keywords: Any) -> str:
        """Record who decided."""


class Own:
    """``tokens``: who may approve by which token; ``hosts``: names under which this proxy may be called beside addresses."""

    def __init__(self, log: Log, tokens: Mapping[str, str] | None = None, hosts: frozenset[str] = frozenset(["localhost"])) -> None:
        self._log, self._tokens, self._hosts = log, dict(tokens or {}), hosts

    async def answer(self, client: Side, request: h11.Request) -> None:
        """Read the request's body and answer it."""
        data = bytearray()
        while not isinstance(event := await client.event(), h11.EndOfMessage):
            if isinstance(event, h11.ConnectionClosed):
                return
            data += event.data
            if len(data) > BODY_BYTES_MAX:
                await _send(client, 413, {"error": "too large"})
                return
        headers = {bytes(n): bytes(v) for n, v in request.headers}
        status, said = await self._answer(request.method, request.target.partition(b"?")[0], headers, bytes(data))
        await _send(client, status, said, is_head=request.method == b"HEAD")

    async def _answer(
        self, method: bytes, target: bytes, headers: Mapping[bytes, bytes], data: bytes
    ) -> tuple[int, dict[str, Any]]:
        if not self._is_ours(headers.get(b"host", b"").decode("ascii", "replace")):
            return 403, {"error": "this host is not one of this proxy"}
        if target == b"/audit/health" and method in (b"GET", b"HEAD"):
            return await asyncio.to_thread(self._health)
        known: dict[bytes, tuple[frozenset[str], Callable[..., str]]] = {
            b"/audit/outcomes": (_OUTCOME, self._outcome), b"/audit/approvals": (_APPROVAL, self._approval)}  # fmt: skip
        if target not in known:
            return 404, {"error": "known are GET /audit/health, POST /audit/outcomes and POST /audit/approvals"}
        if method != b"POST":
            return 405, {"error": "POST"}
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            return 415, {"error": "content-type: application/json"}
        fields, record = known[target]
        try:
            given = json.loads(data, object_pairs_hook=_once)
            if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
                raise ValueError("a JSON object whose values are texts")
            unknown = sorted(set(given) - fields)
            if unknown:
                raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(fields))}")
            return 201, {"event_id": await asyncio.to_thread(record, given, headers)}
        except EntryRefused as e:
            return (404 if e.path == "parent_id" else 400), {"error": str(e)}
        except (ValueError, RecursionError) as e:
            return 400, {"error": str(e)}
        except PermissionError as e:
            return 403, {"error": str(e)}
        except AuditError as e:
            return 503, {"error": str(e)}

    def _health(self) -> tuple[int, dict[str, Any]]:
        """200 while calls are recorded as they come; 503 while something waits in the spool, or the log cannot be read."""
        waiting = self._log.recorder.waiting
        said: dict[str, Any] = {"log": self._log.origin, "waiting": waiting}
        try:
            said["size"] = self._log.entry_count()
        except (AuditError, OSError) as e:
            return 503, said | {"error": f"the log cannot be read ({type(e).__name__})"}
        return (503, said | {"error": "the log cannot be written: calls wait in the spool"}) if waiting else (200, said)

    def _outcome(self, given: dict[str, str], headers: Mapping[bytes, bytes]) -> str:
        event_id, status = _required(given, "event_id"), _required(given, "status")
        if status not in STATUSES:
            raise ValueError(f"status is one of {', '.join(STATUSES)}")
        by = given.get("by") or _actor(headers)
        kind, reason = given.get("kind", "code"), given.get("reason")
        return self._log.outcome(event_id, status, ref=given.get("ref"), by=by, kind=kind, reason=reason, evidence="http")

    def _approval(self, given: dict[str, str], headers: Mapping[bytes, bytes]) -> str:
        event_id, decision = _required(given, "event_id"), _required(given, "decision")
        if decision not in DECISIONS:
            raise ValueError(f"decision is one of {', '.join(DECISIONS)}")
        by, known_by = self._who(given, headers)
        return self._log.approval(event_id, decision, by=by, known_by=known_by, reason=given.get("reason"), shown=given.get("shown"))

    def _who(self, given: dict[str, str], headers: Mapping[bytes, bytes]) -> tuple[str, str]:
        """Who approves, and how he is known: by his token, by a header that somebody before us may have set, or not at all."""
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            for name, known in self._tokens.items():
                if hmac.compare_digest(token.strip(), known.encode()):
                    if given.get("by") not in (None, name):
                        raise PermissionError("this token is not that of whom by names")
                    return name, "token"
            raise PermissionError("unknown token")
        if self._tokens:
            raise PermissionError("this proxy knows who approves by a token: Authorization: Bearer …")
        actor = _actor(headers)
        if actor is not None and given.get("by") in (None, actor):
            return actor, "header"
        return _required(given, "by"), "none"

    def _is_ours(self, host: str) -> bool:
        """An address is; a name is only if we were told: a name can be made to lead here by whoever owns it."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") and host.count(":") != 0 else host
        name = name.strip("[]").lower()
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A member that is there twice means two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _actor(headers: Mapping[bytes, bytes]) -> str | None:
    said = headers.get(b"x-audit-actor")
    return None if said is None else read_claims({"x-audit-actor": [said.decode("latin-1")]}).get("actor")


def _required(given: Mapping[str, str], name: str) -> str:
    if not given.get(name):
        raise ValueError(f"{name} is missing")
    return given[name]


async def _send(client: Side, status: int, said: dict[str, Any], *, is_head: bool = False) -> None:
    body = json.dumps(said).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    if is_head:
        body = b""
    await client.send(h11.Response(status_code=status, headers=headers))
    if body and client.h11.their_state is not h11.ERROR:
        await client.send(h11.Data(data=body))
    await client.send(h11.EndOfMessage())
