"""``@audited``: a function whose calls are on record. Sync and async functions (generators come later).

The entry holds names, types and lengths of arguments and result; their values (500 characters each, redacted) are payloads,
encrypted beside the log and committed to in the entry. ``build`` gets the default logger from the composition root.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..core.entry import AuditEventType
from ..core.errors import AuditError
from .context import audit_context, current_context
from .redact import preview

READ_WORDS = frozenset(["read", "get", "list", "fetch", "view", "show", "search", "query", "find", "download", "export", "count"])
_CONTEXT = ("actor", "actor_type", "session_id", "ip_address", "service", "on_behalf_of", "parent_id", "correlation_id",
            "trace_id", "reason", "subject", "case")  # fmt: skip


class Recorder(Protocol):
    """What is needed of a logger."""

    @property
    def keeps_previews(self) -> bool:
        """Whether values of arguments and results are kept as payloads."""

    def log(self, *args: Any, **keywords: Any) -> str:
        """Record one event."""

    async def alog(self, *args: Any, **keywords: Any) -> str:
        """Record one event without blocking the loop."""


def build(default: Callable[[], Recorder]) -> Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """The decorator, with ``default()`` as the logger of calls that name none."""

    def audited(
        operation: str, resource: str, event_type: AuditEventType | str | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Record every call: ``operation`` (its first word tells reading from changing) on ``resource``.

        The keywords ``audit_logger`` and ``audit_context`` (actor, actor_type, session_id, ip_address, …) never reach the
        function. An exception is recorded as system_error and raised unchanged. If recording fails after the function
        returned, ``AuditError`` is raised with the result in ``.result``.
        """
        kind = event_type if event_type is not None else default_type(operation)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise TypeError(f"@audited: {function.__qualname__} is a generator, which is not supported yet")
            call = _Call(function, operation, resource, kind, default)
            wrapper = call.asynchronous() if inspect.iscoroutinefunction(function) else call.synchronous()
            return functools.wraps(function)(wrapper)

        return decorate

    return audited


def default_type(operation: str) -> AuditEventType:
    """data_access if the first word reads, else data_modification."""
    words = operation.split()
    reads = bool(words) and words[0].lower().strip(":,.") in READ_WORDS
    return AuditEventType.DATA_ACCESS if reads else AuditEventType.DATA_MODIFICATION


class _Call:
    """One decorated function."""

    def __init__(
        self, function: Callable[..., Any], operation: str, resource: str, kind: AuditEventType | str,
        default: Callable[[], Recorder],
    ) -> None:  # fmt: skip
        self.function, self.operation, self.resource, self.kind, self.default = function, operation, resource, kind, default
        try:
            self.signature: inspect.Signature | None = inspect.signature(function)
        except (ValueError, TypeError):
            self.signature = None

    def synchronous(self) -> Callable[..., Any]:
        def wrapper(*args: Any, audit_logger: Recorder | None = None, audit_context: Any = None, **keywords: Any) -> Any:
            log, context = audit_logger or self.default(), check_context(audit_context)
            started = time.perf_counter_ns()
            try:
                with _inside(context):
                    result = self.function(*args, **keywords)
            except BaseException as e:
                try:
                    log.log(**self.event(log, context, args, keywords, started, error=e))
                except AuditError as failed:
                    e.add_note(f"this call could not be recorded in the audit log: {failed}")
                raise
            try:
                log.log(**self.event(log, context, args, keywords, started, result=result))
            except AuditError as failed:
                failed.result = result
                raise
            return result

        return wrapper

    def asynchronous(self) -> Callable[..., Any]:
        async def wrapper(
            *args: Any, audit_logger: Recorder | None = None, audit_context: Any = None, **keywords: Any
        ) -> Any:
            log, context = audit_logger or self.default(), check_context(audit_context)
            started = time.perf_counter_ns()
            try:
                with _inside(context):
                    result = await self.function(*args, **keywords)
            except BaseException as e:
                try:  # not awaited: a cancelled task may not get another turn of the loop
                    log.log(**self.event(log, context, args, keywords, started, error=e))
                except AuditError as failed:
                    e.add_note(f"this call could not be recorded in the audit log: {failed}")
                raise
            try:
                await log.alog(**self.event(log, context, args, keywords, started, result=result))
            except AuditError as failed:
                failed.result = result
                raise
            return result

        return wrapper

    def event(
        self, log: Recorder, context: Mapping[str, Any], args: tuple[Any, ...], keywords: dict[str, Any], started: int, *,
        result: Any = None, error: BaseException | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The keywords of ``log`` for one finished call."""
        named = self._bind(args, keywords)
        keep = getattr(log, "keeps_previews", True)
        details: dict[str, Any] = {
            "function": f"{self.function.__module__}.{self.function.__qualname__}",
            "arguments": [_described(name, value) for name, value in named],
            "latency_us": (time.perf_counter_ns() - started) // 1000,
        }
        payloads = {f"arg.{i}": preview(value, name=name) for i, (name, value) in enumerate(named[:30])} if keep else {}
        if error is None:
            details["result"] = _described("", result)
            if keep:
                payloads["result"] = preview(result)
        else:
            details["error"] = {"type": type(error).__name__, "length": len(str(error))}
            if keep:
                payloads["error"] = preview(str(error))
        known = {**current_context(), **context}
        return {
            "event_type": self.kind if error is None else AuditEventType.SYSTEM_ERROR,
            "actor": known.get("actor") or known.get("service") or "unknown",
            "actor_type": known.get("actor_type") or "system", "resource": self.resource, "action": self.operation,
            "outcome": "success" if error is None else "failure", "details": details,
            "payloads": {n: _text(p) for n, p in payloads.items()},
            **{k: v for k, v in context.items() if k not in ("actor", "actor_type", "case")},
            **({"correlation_id": context["case"]} if context.get("case") else {}),
        }  # fmt: skip

    def _bind(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> list[tuple[str, Any]]:
        if self.signature is not None:
            try:
                return list(self.signature.bind(*args, **keywords).arguments.items())
            except TypeError:
                pass  # the call itself failed with the same words
        return [*((f"argument {i}", a) for i, a in enumerate(args)), *keywords.items()]


def check_context(given: Any) -> dict[str, Any]:
    """``audit_context=``: a dict with known names; ``TypeError`` otherwise, before the function runs."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError("audit_context is a dict such as {'actor': 'ana', 'actor_type': 'user'}")
    unknown = set(given) - set(_CONTEXT)
    if unknown:
        raise TypeError(f"audit_context has no {sorted(map(str, unknown))[0]!r}; it has {', '.join(_CONTEXT)}")
    return {k: v for k, v in given.items() if v is not None}


def _inside(context: dict[str, Any]) -> Any:
    return audit_context(**context)


def _described(name: str, value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name[:100]} if name else {}
    found["type"] = type(value).__name__
    if isinstance(value, str | bytes | bytearray | list | tuple | dict | set | frozenset):
        found["length"] = len(value)
    return found


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
