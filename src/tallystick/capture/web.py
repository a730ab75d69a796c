"""Middleware for web applications: the audit context of one request, so that whatever is recorded while it is served says for whom.

``AuditASGIMiddleware`` (Starlette, FastAPI, Quart, Django's ASGI) and ``AuditWSGIMiddleware`` (Flask, Django, Bottle) record nothing
themselves and need no package. From the connection comes ``ip_address``, from a valid ``traceparent`` header ``trace_id``, from
``actor=`` who acts. The headers ``X-Audit-Session``, ``X-Audit-Case`` and ``X-Audit-Actor`` are what a stranger claims of himself,
and are read only with ``trust_headers=True``: behind a gateway that sets them, and removes those that came from outside.

Header values are taken as they are or not at all: one with a control character or another that does not print, a header sent twice,
and one longer than 200 characters are dropped. The address is that of whoever holds the connection: behind a proxy it is the
proxy's, unless the server was told to believe it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .audited import Inside
from .claims import FIELDS, TRACEPARENT, cleaned, read_claims, read_trace
from .context import audit_context

Actor = Callable[[Any], str | None]


class AuditASGIMiddleware:
    """The audit context of each HTTP request and each websocket of an ASGI application.

    ``actor``: called with the scope, says who acts (type ``user``), or None. It is called before the application: where a middleware
    of the application finds out who it is, this one belongs inside of that. What it raises is raised. ``trust_headers``: believe
    ``X-Audit-…``; what ``actor`` says counts before them. Tasks and threads that the application starts while it serves have the
    context if they copy it, as those of asyncio, anyio and Starlette do.
    """

    def __init__(self, app: Callable[..., Any], *, actor: Actor | None = None, trust_headers: bool = False) -> None:
        self.app, self.actor, self.trust_headers = app, actor, trust_headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one scope."""
        if scope["type"] not in ("http", "websocket"):  # lifespan: nobody asks for anything
            await self.app(scope, receive, send)
            return
        headers: dict[str, list[str]] = {}
        for name, value in scope.get("headers") or ():
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        client = scope.get("client")
        address = client[0] if client else None
        with audit_context(**_context(address, headers, self.trust_headers, self.actor, scope)):
            await self.app(scope, receive, send)


class AuditWSGIMiddleware:
    """The audit context of each request of a WSGI application, also while the server iterates the body of its response: each step on
    its own, so that nothing is left in the thread between two of them.

    ``actor``: called with the environ, says who acts (type ``user``), or None. ``trust_headers``: as in ``AuditASGIMiddleware``; a
    header that was sent twice is one here, joined by the server. Lists, tuples and the server's own ``wsgi.file_wrapper`` are handed
    on as they are: no code of the application runs in them.
    """

    def __init__(self, app: Callable[..., Any], *, actor: Actor | None = None, trust_headers: bool = False) -> None:
        self.app, self.actor, self.trust_headers = app, actor, trust_headers

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Serve one request."""
        names = (TRACEPARENT, *FIELDS)
        headers = {name: [value] for name in names if (value := environ.get("HTTP_" + name.upper().replace("-", "_"))) is not None}
        inside = Inside(_context(environ.get("REMOTE_ADDR"), headers, self.trust_headers, self.actor, environ))
        body = inside.run(self.app, environ, start_response)
        wrapper = environ.get("wsgi.file_wrapper")
        if type(body) in (list, tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            return body
        return _Body(body, inside)


class _Body:
    """The body of a response, each step inside the context of its request."""

    def __init__(self, body: Any, inside: Inside) -> None:
        self._body, self._inside = body, inside
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._inside.run(iter, self._body)
        return self._inside.run(next, self._iterator)

    def close(self) -> None:
        """The server is done with it."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._inside.run(close)


def _context(
    address: object, headers: Mapping[str, list[str]], trust_headers: bool, actor: Actor | None, request: Any
) -> dict[str, str]:  # fmt: skip
    found: dict[str, str | None] = {"ip_address": _address(address), "trace_id": read_trace(headers)}
    if trust_headers:
        found |= read_claims(headers)
    if actor is not None:
        said = actor(request)
        if said is not None and not isinstance(said, str):
            raise TypeError(f"actor= has to return text or None, not {type(said).__name__}")
        found["actor"] = cleaned(said) if said is not None else found.get("actor")
    if found.get("actor") is not None:
        found["actor_type"] = "user"
    return {name: value for name, value in found.items() if value is not None}


def _address(given: object) -> str | None:
    """An address of the internet; a socket of this machine, or whatever a test client calls itself, is none."""
    try:
        return str(ipaddress.ip_address(given)) if isinstance(given, str) else None
    except ValueError:
        return None
