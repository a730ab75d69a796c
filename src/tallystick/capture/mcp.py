"""Middleware for FastMCP servers: each tool that a client calls, resource that it reads and prompt that it gets is one entry.

``server.add_middleware(AuditMiddleware(log))``, as the outermost one: what a middleware before it answers is not seen. Nor is what a
client lists, and what servers do that are not made with FastMCP. If a mounted server has the middleware too, its calls are two
entries, each with the name of its server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..core.entry import AuditEventType
from ..core.errors import AuditError
from .audited import as_text
from .claims import cleaned, trace_id
from .redact import redact_text
from .tools import Logger, Run
from .wire.asked import name as clean_name

try:
    from fastmcp.server.middleware import Middleware
except ImportError as e:
    raise ImportError("AuditMiddleware is for FastMCP, which is not installed: pip install tallystick[mcp]") from e

_STATELESS = "2026-07-28"  # from this version of the protocol on every request is a session of its own, which says nothing
_URI_CHARS_MAX = 1000


class AuditMiddleware(Middleware):
    """Records into ``log`` what is called; an answer leaves only when its entry is durable, else ``AuditError`` is raised, with it in
    ``.result``, and the client gets an error.

    Calls of tools are ``ai.tool`` entries like those of ``log.tool``, without a link to a call of a model, which was made elsewhere;
    reading a resource and getting a prompt are ``data_access``. Details: ``server`` (its name), ``method``, ``request``, ``session``
    where the protocol has sessions, ``client`` (name and version, which it claims), names, types and lengths of arguments,
    ``latency_us``, ``is_error``, ``result`` (type, characters of text, number of blocks) or ``error`` (type, length), and of an error
    the type of its ``cause``. ``input_required``: the tool asked its client for something first; the outcome is ``partial``. Values
    are payloads, 500 characters, redacted, where the log keeps previews. A valid ``traceparent`` in ``_meta`` is the ``trace_id``.

    ``actor``: called with the middleware's context, says who acts (type ``user``), or None: then it is the audit context, else the
    service. What it raises is raised, before anything runs.
    """

    def __init__(self, log: Logger, *, actor: Callable[[Any], str | None] | None = None) -> None:
        self._log, self._actor = log, actor

    async def on_call_tool(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """A tool."""
        name = clean_name(context.message.name) or "unknown"
        return await self._through(context, call_next, name, context.message.arguments)

    async def on_read_resource(self, context: Any, call_next: Any) -> Any:
        """A resource."""

        async def read(context: Any) -> Any:
            return await super(AuditMiddleware, self).on_read_resource(context, call_next)  # which may refuse it

        uri = as_text(redact_text(str(context.message.uri))[:_URI_CHARS_MAX]) or "unknown"
        what = {"event_type": AuditEventType.DATA_ACCESS, "resource": uri, "action": "read resource"}
        return await self._through(context, read, uri, None, what)

    async def on_get_prompt(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """A prompt."""
        name = clean_name(context.message.name) or "unknown"
        what = {"event_type": AuditEventType.DATA_ACCESS, "resource": f"prompt:{name}", "action": "get prompt"}
        return await self._through(context, call_next, name, context.message.arguments, what)

    async def _through(
        self, context: Any, call_next: Callable[[Any], Awaitable[Any]], name: str, given: Any, what: Mapping[str, Any] | None = None
    ) -> Any:
        claims, more = _asked(context)
        actor = self._actor(context) if self._actor is not None else None
        if actor is not None and cleaned(actor) is not None:
            claims |= {"actor": cleaned(actor), "actor_type": "user"}
        named = [(str(key), value) for key, value in given.items()] if isinstance(given, Mapping) else []
        run = Run(self._log, name, named, claims=claims, more=more, what=what)
        try:
            result = await call_next(context)
        except BaseException as e:
            run.more["is_error"] = True
            if e.__cause__ is not None:
                run.more["cause"] = type(e.__cause__).__name__
            run.failed(e)
            raise
        texts = _texts(result)
        run.more["is_error"] = bool(getattr(result, "is_error", False))
        event = run.event("\n".join(texts))
        event["details"]["result"] = {"type": type(result).__name__, "length": sum(map(len, texts)), "blocks": len(texts)}
        if run.more["is_error"]:
            event["outcome"] = "failure"
        elif hasattr(result, "input_required"):
            event["outcome"], event["details"]["input_required"] = "partial", True
        try:
            await self._log.alog(**event)
        except AuditError as failed:
            failed.result = result
            raise
        return result


def _asked(context: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the request says: fields of the entry, and details. Versions of FastMCP differ in where it stands."""
    here = context.fastmcp_context
    more: dict[str, Any] = {"method": context.method}
    if here is None:
        return {}, more
    more["server"] = clean_name(here.fastmcp.name)
    request = here.request_context
    if request is None:  # called by the program itself
        return {}, more
    more["request"] = clean_name(str(request.request_id))
    version = getattr(request, "protocol_version", None)
    if version is None or version < _STATELESS:
        more["session"] = clean_name(here.session_id)
    client = _get(request.session, "client_params")
    who = _get(client, "client_info") or _get(client, "clientInfo")
    if who is not None:
        more["client"] = clean_name(f"{_get(who, 'name')}/{_get(who, 'version')}")
    trace = trace_id(_get(request.meta, "traceparent"))
    return ({"trace_id": trace} if trace else {}), more


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _texts(result: Any) -> list[str]:
    """The text of each block of an answer; the kind of those that have none."""
    blocks = _get(result, "content") or _get(result, "contents") or _get(result, "messages") or ()
    return [_text(block) for block in blocks] if isinstance(blocks, list | tuple) else []


def _text(block: Any) -> str:
    inner = _get(block, "content")
    if isinstance(inner, str | bytes):
        return inner if isinstance(inner, str) else ""
    text = _get(inner if inner is not None else block, "text")
    return text if isinstance(text, str) else ""
