"""``@audited``: a function whose calls are on record. Functions, coroutine functions, and generator functions of both kinds.

The entry holds names, types and lengths of arguments and result; their values (500 characters each, redacted) are payloads,
encrypted beside the log and committed to in the entry. ``build`` gets the default logger from the composition root.

A generator is one entry when it has no more, is closed, fails, or is dropped. Between its steps nothing is held: no lock, and no
token of a context that the next step might come without.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import Context
from typing import Any, Protocol

from ..core.entry import AuditEventType
from ..core.errors import AuditError
from . import ends
from .context import audit_context, current_context
from .recorder import interrupts_the_log
from .redact import preview
from .steps import WatchedAsyncGenerator, WatchedGenerator

ARGUMENTS_MAX = 64  # that an entry names; what is over it is counted
_PREVIEWS_MAX = 30
_logger = logging.getLogger("tallystick")
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

        A generator is recorded when it ends, under the audit context that it was made in: ``details.items`` is how many items it
        gave, ``details.end`` is ``ok``, ``closed`` (early) or ``abandoned`` (nobody held it any more), the last two with the outcome
        ``partial``; the latency counts from the first step, the caller's own time between steps included. One of which no step was
        asked ran nothing and is not recorded; neither is, in a forked child, one that its parent began. What the decorated function
        returns is a ``collections.abc.Generator`` (``AsyncGenerator``) with all its methods, but no longer a generator function for
        ``inspect``: ``inspect.unwrap`` gives the function itself.
        """
        kind = event_type if event_type is not None else default_type(operation)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            call = _Call(function, operation, resource, kind, default)
            if inspect.isgeneratorfunction(function):
                wrapper = call.generator()
            elif inspect.isasyncgenfunction(function):
                wrapper = call.async_generator()
            else:
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
        self.signature = signature_of(function)

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
        async def wrapper(*args: Any, audit_logger: Recorder | None = None, audit_context: Any = None, **keywords: Any) -> Any:
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

    def generator(self) -> Callable[..., Any]:
        def wrapper(*args: Any, audit_logger: Recorder | None = None, audit_context: Any = None, **keywords: Any) -> Any:
            log, context = audit_logger or self.default(), check_context(audit_context)
            inner = self.function(*args, **keywords)
            run = _Run(self, log, context, args, keywords)
            return WatchedGenerator(_Steps(inner, run), _Watcher(run))

        return wrapper

    def async_generator(self) -> Callable[..., Any]:
        def wrapper(*args: Any, audit_logger: Recorder | None = None, audit_context: Any = None, **keywords: Any) -> Any:
            log, context = audit_logger or self.default(), check_context(audit_context)
            inner = self.function(*args, **keywords)
            run = _Run(self, log, context, args, keywords)
            return WatchedAsyncGenerator(_AsyncSteps(inner, run), _AsyncWatcher(run))

        return wrapper

    def event(
        self, log: Recorder, context: Mapping[str, Any], args: tuple[Any, ...], keywords: dict[str, Any], started: int, *,
        result: Any = None, error: BaseException | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The keywords of ``log`` for one finished call."""
        spent = time.perf_counter_ns() - started
        details, payloads = self.asked(log, args, keywords)
        details["latency_us"] = spent // 1000
        gave(log, details, payloads, result, error)
        return self.said({**current_context(), **context}, details, payloads, "success" if error is None else "failure")

    def asked(
        self, log: Recorder, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
        """Details and payloads that say what was called with what."""
        named = bound(self.signature, args, keywords)
        details = {"function": f"{self.function.__module__}.{self.function.__qualname__}"}
        return details | arguments(named), previews(log, named)

    def said(
        self, known: Mapping[str, Any], details: dict[str, Any], payloads: dict[str, str], outcome: str
    ) -> dict[str, Any]:  # fmt: skip
        """The keywords of ``log``; ``known`` is who acts, for what."""
        fields = {name: value for name, value in known.items() if name != "case"}
        if known.get("case"):
            fields["correlation_id"] = known["case"]
        return fields | {
            "event_type": self.kind if "error" not in details else AuditEventType.SYSTEM_ERROR,
            "actor": known.get("actor") or known.get("service") or "unknown",
            "actor_type": known.get("actor_type") or "system", "resource": self.resource, "action": self.operation,
            "outcome": outcome, "details": details, "payloads": payloads,
        }  # fmt: skip


class _Run:
    """One run of a generator: recorded once, however it ends."""

    def __init__(
        self, call: _Call, log: Recorder, context: dict[str, Any], args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:  # fmt: skip
        self.call, self.log = call, log
        self.inside = Inside(context)
        # read once: its steps and its end may come in any context and any thread
        self._known = {**current_context(), **context}
        self._given = (args, keywords)
        self._details: dict[str, Any] = {}
        self._payloads: dict[str, str] = {}
        self._began_ns: int | None = None
        self._pid = os.getpid()
        self._left = [True]  # taken by whoever ends it; list.pop is one step for all threads
        self.items = 0
        self.returned: Any = None
        self.error: BaseException | None = None  # of a body that failed while it was closed
        self.recorder: Any = getattr(log, "recorder", None)
        if self.recorder is not None:
            self.recorder.expect_late()
            self.recorder.open_calls.add(self)

    def began(self) -> None:
        args, keywords = self._given
        self._given = ((), {})
        self._details, self._payloads = self.call.asked(self.log, args, keywords)
        self._began_ns = time.perf_counter_ns()

    def take(self, end: str, error: BaseException | None = None) -> dict[str, Any] | None:
        """The entry, once; None for whoever comes second, in a forked child, and where nothing ran."""
        if self._began_ns is None or self._pid != os.getpid():
            return None
        try:
            self._left.pop()
        except IndexError:
            return None
        if self.recorder is not None:
            self.recorder.open_calls.discard(self)
        details, payloads = self._details, self._payloads
        details["latency_us"] = (time.perf_counter_ns() - self._began_ns) // 1000
        details["items"] = self.items
        if error is None:
            details["end"] = end
        if error is not None or end == ends.OK:
            gave(self.log, details, payloads, self.returned, error)
        outcome = "failure" if error is not None else "success" if end == ends.OK else "partial"
        return self.call.said(self._known, details, payloads, outcome)

    def write(self, event: dict[str, Any] | None) -> None:
        """Record it. Outside of any context: the one that it ends in may be another's."""
        if event is None:
            return
        if self.recorder is not None and interrupts_the_log():
            self.recorder.later(lambda: Context().run(self.log.log, **event))
        else:
            Context().run(self.log.log, **event)

    def abandon(self) -> None:
        """Dropped, perhaps in a finaliser: only a note is left here, the recorder's helper writes."""
        event = self.take(ends.ABANDONED)
        if event is None:
            return
        if self.recorder is not None:
            self.recorder.later(lambda: Context().run(self.log.log, **event))
            return
        try:  # a log of somebody's own has nobody who does it later
            self.write(event)
        except AuditError as e:
            _logger.error("a generator that was dropped could not be recorded: %s", e)


class _Watcher:
    """Tells a run what becomes of its generator."""

    __slots__ = ("run",)

    def __init__(self, run: _Run) -> None:
        self.run = run

    def began(self) -> None:
        self.run.began()

    def item(self) -> None:
        self.run.items += 1

    def ended(self) -> None:
        try:
            self.run.write(self.run.take(ends.OK))
        except AuditError as e:
            e.result = self.run.returned
            raise

    def failed(self, error: BaseException) -> None:
        # GeneratorExit is thrown in by its holder, or by the end of a task that waited in a step
        own = None if isinstance(error, GeneratorExit) else error
        try:
            self.run.write(self.run.take(ends.CLOSED, own))
        except AuditError as failed:
            error.add_note(f"this call could not be recorded in the audit log: {failed}")

    def closed(self, *, began: bool) -> None:  # noqa: ARG002  # a run knows it itself
        if self.run.error is not None:
            self.failed(self.run.error)
        else:
            self.run.write(self.run.take(ends.CLOSED))

    def dropped(self) -> None:
        self.run.abandon()


class _AsyncWatcher(_Watcher):
    __slots__ = ()

    async def began(self) -> None:  # type: ignore[override]
        self.run.began()

    async def ended(self) -> None:  # type: ignore[override]
        event = self.run.take(ends.OK)
        if event is None:
            return
        if current_context():
            await asyncio.get_running_loop().create_task(self.run.log.alog(**event), context=Context())  # as in ``write``
        else:
            await self.run.log.alog(**event)


class Inside:
    """The audit context of something that runs in steps: set before each of them and taken back after it, never across two."""

    __slots__ = ("_context", "_own")

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = dict(context)
        self._own: dict[str, Any] = {}  # what the body itself has set and not yet taken back, in an ``audit_context`` around a yield

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """One step."""
        if not self._context:
            return function(*args)
        with audit_context(**(self._own or self._context)):
            given = current_context()
            try:
                return function(*args)
            finally:
                self._keep(given)

    async def arun(self, function: Callable[..., Any], *args: Any) -> Any:
        """One step, awaited."""
        if not self._context:
            return await function(*args)
        with audit_context(**(self._own or self._context)):
            given = current_context()
            try:
                return await function(*args)
            finally:
                self._keep(given)

    def _keep(self, given: Mapping[str, Any]) -> None:
        if current_context() is not given:
            self._own = dict(current_context())


class _Steps(Generator[Any, Any, Any]):
    """The generator itself, each step inside its context; remembers what it returned, and what failed when it was closed."""

    __slots__ = ("_inner", "_run")

    def __init__(self, inner: Generator[Any, Any, Any], run: _Run) -> None:
        self._inner, self._run = inner, run

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:  # noqa: ARG002  # always one exception
        return self._step(self._inner.throw, kind)

    def close(self) -> None:
        try:
            self._run.inside.run(self._inner.close)
        except BaseException as e:
            self._run.error = e
            raise

    def _step(self, function: Callable[..., Any], value: Any) -> Any:
        try:
            return self._run.inside.run(function, value)
        except StopIteration as e:
            self._run.returned = e.value
            raise


class _AsyncSteps(AsyncGenerator[Any, Any]):
    """The same for an asynchronous generator, which returns nothing."""

    __slots__ = ("_inner", "_run")

    def __init__(self, inner: AsyncGenerator[Any, Any], run: _Run) -> None:
        self._inner, self._run = inner, run

    async def asend(self, value: Any) -> Any:
        return await self._run.inside.arun(self._inner.asend, value)

    async def athrow(self, kind: Any, value: Any = None, trace: Any = None) -> Any:  # noqa: ARG002
        return await self._run.inside.arun(self._inner.athrow, kind)

    async def aclose(self) -> None:
        try:
            await self._run.inside.arun(self._inner.aclose)
        except BaseException as e:
            self._run.error = e
            raise


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


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature, if there is one to be had."""
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


def bound(signature: inspect.Signature | None, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments by name."""
    if signature is not None:
        try:
            return list(signature.bind(*args, **keywords).arguments.items())
        except TypeError:
            pass  # the call itself failed with the same words
    return [*((f"argument {i}", a) for i, a in enumerate(args)), *keywords.items()]


def arguments(named: list[tuple[str, Any]]) -> dict[str, Any]:
    """The part of the details that says which arguments there were: names, types, lengths."""
    found: dict[str, Any] = {"arguments": [described(name, value) for name, value in named[:ARGUMENTS_MAX]]}
    if len(named) > ARGUMENTS_MAX:
        found["arguments_left_off"] = len(named) - ARGUMENTS_MAX
    return found


def previews(log: Any, named: list[tuple[str, Any]]) -> dict[str, str]:
    """Payloads: the values of the first 30 arguments, redacted, if the log keeps previews."""
    if not getattr(log, "keeps_previews", True):
        return {}
    return {f"arg.{i}": as_text(preview(value, name=name)) for i, (name, value) in enumerate(named[:_PREVIEWS_MAX])}


def gave(log: Any, details: dict[str, Any], payloads: dict[str, str], result: Any, error: BaseException | None) -> None:
    """Add what came of it: the result, or the error."""
    keep = getattr(log, "keeps_previews", True)
    if error is None:
        details["result"] = described("", result)
        if keep:
            payloads["result"] = as_text(preview(result))
        return
    text = error_text(error)
    details["error"] = {"type": type(error).__name__, "length": len(text)}
    if keep:
        payloads["error"] = as_text(preview(text))


def error_text(error: BaseException) -> str:
    """What an exception says; nothing where saying it fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # somebody's __str__ must not replace the exception that is on its way
        return ""


def described(name: str, value: Any) -> dict[str, Any]:
    """Type, and length where there is one, of a value; never the value."""
    found: dict[str, Any] = {"name": as_text(name[:100])} if name else {}
    found["type"] = type(value).__name__
    if isinstance(value, str | bytes | bytearray | list | tuple | dict | set | frozenset):
        found["length"] = len(value)
    return found


def as_text(text: str) -> str:
    """Text that has a spelling in UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _inside(context: dict[str, Any]) -> Any:
    return audit_context(**context)
