"""``@log.tool``: a function that a model may ask for. Each run is one ``ai.tool`` entry, linked to the call that asked for it.

The link is by what was seen in this process: a call whose answer was read to its end asked for a tool of this name (with these
arguments, where one did). A tool that is run while the answer still streams, in another process, or by code that nobody asked, is
recorded without a link. As in ``audited``, the entry names arguments, types and lengths; values are payloads.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..core.errors import AuditError
from .audited import arguments, bound, gave, previews, signature_of
from .context import NAMES
from .wire.asked import name as clean_name

EVENT_TYPE = "ai.tool"
_DEPTH_MAX = 32


class Logger(Protocol):
    """What is needed of a logger."""

    @property
    def keeps_previews(self) -> bool:
        """Whether values of arguments and results are kept as payloads."""

    @property
    def recorder(self) -> Any:
        """Its recorder: who acts, and what the calls of this process asked for."""

    def log(self, *args: Any, **keywords: Any) -> str:
        """Record one event."""

    async def alog(self, *args: Any, **keywords: Any) -> str:
        """Record one event without blocking the loop."""


def build_tool(log: Logger, function: Callable[..., Any] | None = None, name: str | None = None) -> Any:
    """``@log.tool`` and ``@log.tool(name=…)``: record every run of a function or coroutine function that a model may ask for.

    The entry is of type ``ai.tool``: the action is the tool's name (``name``, else the function's; up to 200 characters), the
    resource ``tool:`` and that name, the outcome ``success`` or ``failure``. Details: ``tool``, ``latency_us``, ``arguments`` (names,
    types, lengths; the first 64), ``result`` or ``error`` (type, length), and ``asked_by``, the id of the call to a model that asked
    for it, which is the entry's ``parent_id`` too; that call's answer then counts as used (``tool executed``).

    The function keeps name, docstring, annotations and signature, so that it can be given to a model as before; with ``name`` that
    is its ``__name__``, which is what the model is told. No keyword is taken out of its arguments: they come from a model, and must
    not say who acts. An exception is raised unchanged. If recording fails after the function returned, ``AuditError`` is raised with
    the result in ``.result``. Generator functions are a ``TypeError``: use ``@audited``.
    """
    if function is None:
        return functools.partial(build_tool, log, name=name)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"log.tool: {function!r} is a generator; a tool gives one result. For generators there is @audited")
    if not callable(function):
        raise TypeError(f"log.tool is for functions, not for {type(function).__name__}; its name is given as name=…")
    tool = _Tool(log, function, name)
    wrapper = functools.wraps(function)(tool.asynchronous() if inspect.iscoroutinefunction(function) else tool.synchronous())
    if name is not None:
        wrapper.__name__ = name
    return wrapper


class Run:
    """One run of a tool, begun now: who acts and who asked are read before it runs. ``what``: type, resource and action of the entry
    where it is something else than a tool; ``more``: further details."""

    def __init__(
        self, log: Logger, name: str, named: list[tuple[str, Any]], *, asked_by: str | None = None,
        claims: Mapping[str, Any] | None = None, more: Mapping[str, Any] | None = None, what: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.log, self.named, self.asked_by = log, named, asked_by
        self.what = dict(what or {"event_type": EVENT_TYPE, "resource": f"tool:{name}", "action": name})
        self.more = {**({} if what else {"tool": name}), **(more or {})}
        self.who, self.is_named = log.recorder.who(claims)
        self._began_ns = time.perf_counter_ns()

    def event(self, result: Any = None, error: BaseException | None = None) -> dict[str, Any]:
        """The keywords of ``log`` for its end."""
        spent = time.perf_counter_ns() - self._began_ns
        details: dict[str, Any] = {**self.more, "latency_us": spent // 1000, **arguments(self.named)}
        payloads = previews(self.log, self.named)
        gave(self.log, details, payloads, result, error)
        event = {name: value for name, value in self.who.items() if name in NAMES and value is not None}
        if not self.is_named:
            details["unattributed"] = True
        if self.asked_by is not None:
            details["asked_by"] = event["parent_id"] = self.asked_by
        outcome = "success" if error is None else "failure"
        return event | self.what | {"outcome": outcome, "details": details, "payloads": payloads}

    def failed(self, error: BaseException) -> None:
        """Record that it raised. Not awaited: a cancelled task may not get another turn. Never raises; the error is on its way."""
        try:
            self.log.log(**self.event(error=error))
        except AuditError as failed:
            error.add_note(f"this run of a tool could not be recorded in the audit log: {failed}")
        else:
            self.told()

    def told(self) -> None:
        """It is on record: the answer that asked for it was used."""
        if self.asked_by is not None:
            self.log.recorder.evidence.tool_ran(self.asked_by)


class _Tool:
    """One decorated function."""

    def __init__(self, log: Logger, function: Callable[..., Any], name: str | None) -> None:
        self.log, self.function = log, function
        self.name = clean_name(name or getattr(function, "__name__", type(function).__name__)) or "unknown"
        self.signature = signature_of(function)

    def begin(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Run:
        asked_by = self.log.recorder.evidence.asked_for(self.name, self.spoken(args, keywords))
        return Run(self.log, self.name, bound(self.signature, args, keywords), asked_by=asked_by)

    def synchronous(self) -> Callable[..., Any]:
        def wrapper(*args: Any, **keywords: Any) -> Any:
            run = self.begin(args, keywords)
            try:
                result = self.function(*args, **keywords)
            except BaseException as e:
                run.failed(e)
                raise
            try:
                self.log.log(**run.event(result))
            except AuditError as failed:
                failed.result = result
                raise
            run.told()
            return result

        return wrapper

    def asynchronous(self) -> Callable[..., Any]:
        async def wrapper(*args: Any, **keywords: Any) -> Any:
            run = self.begin(args, keywords)
            try:
                result = await self.function(*args, **keywords)
            except BaseException as e:
                run.failed(e)
                raise
            try:
                await self.log.alog(**run.event(result))
            except AuditError as failed:
                failed.result = result
                raise
            run.told()
            return result

        return wrapper

    def spoken(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        """The arguments as a model would have said them: plain values by name, without what it cannot have said."""
        found = dict(keywords)
        if self.signature is not None and args:
            names = [p.name for p in self.signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            found |= dict(zip(names, args, strict=False))
        found.pop("self", None)
        return found if _is_spoken(found) else {}


def _is_spoken(value: Any, depth: int = 0) -> bool:
    """Of the kinds that JSON has: anything else has a ``__str__`` of somebody's own, which is not asked for a link."""
    if depth > _DEPTH_MAX:  # or it contains itself
        return False
    if isinstance(value, dict):
        return all(type(key) is str and _is_spoken(item, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_spoken(item, depth + 1) for item in value)
    return value is None or isinstance(value, str | int | float)
