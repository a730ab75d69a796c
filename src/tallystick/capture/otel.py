"""OpenTelemetry: ``AuditSpanProcessor`` records the model calls and tools that instrumentations of other people report as spans.

::

    provider = TracerProvider()
    provider.add_span_processor(AuditSpanProcessor(log))

Four dialects are read: the GenAI conventions (``gen_ai.*``), OpenLLMetry's use of them, its older form (``gen_ai.prompt.N``,
``llm.request.type``) and OpenInference (``openinference.span.kind``, ``llm.*``). Names of attributes are tried in order, so that
a span may mix them. All end up under the names that every other way in uses.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..clock import CLOCK
from ..core.errors import AuditError
from ..core.payload import Payload
from ..core.times import format_time
from . import ends
from .calls import clean_endpoint
from .content import SALT, Kept
from .context import NAMES
from .outcome import FINISHED
from .recorder import Recorder, interrupts_the_log
from .wire.answer import Answer, arguments_text, count
from .wire.asked import Asked, image, name, parameters, tool_names

try:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.trace import StatusCode
except ImportError as e:
    raise ImportError("tallystick.capture.otel needs the OpenTelemetry SDK: pip install tallystick[otel]") from e

if TYPE_CHECKING:
    from .recorder import Recording

SPAN, TOOL = "ai.span", "ai.tool"
CAPTURE = "otel"
_logger = logging.getLogger("tallystick")
_REMEMBERED = 4096
_HIDDEN = "__REDACTED__"  # OpenInference: there was something, and it was told to hide it
_MARKS = ("gen_ai.operation.name", "openinference.span.kind", "llm.request.type", "gen_ai.request.model", "gen_ai.system",
          "traceloop.span.kind", "gen_ai.tool.name")  # fmt: skip
_OPERATIONS = {"chat": "chat", "completion": "text_completion", "text_completion": "text_completion", "embedding": "embeddings",
               "embeddings": "embeddings", "generate_content": "generate_content"}  # fmt: skip
_PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed", "max_tokens": "max_tokens",
               "max_completion_tokens": "max_tokens", "num_predict": "max_tokens", "num_ctx": "num_ctx", "think": "think",
               "stop_sequences": "stop_sequences", "stop": "stop_sequences", "frequency_penalty": "frequency_penalty",
               "presence_penalty": "presence_penalty", "reasoning_effort": "reasoning_effort"}  # fmt: skip
_NUMBERED = re.compile(
    r"(gen_ai\.(?:prompt|completion)|embedding\.embeddings"
    r"|llm\.(?:input_messages|output_messages|prompts|choices|tools|request\.functions))\.(\d{1,6})\.(.+)", re.ASCII
)  # fmt: skip
_TOOL_CALL = re.compile(r"(?:message\.)?tool_calls\.(\d{1,4})\.(?:tool_call\.)?(?:function\.)?(name|id|arguments)", re.ASCII)
_CONTENT_PART = re.compile(r"message\.contents\.(\d{1,4})\.message_content\.(.+)", re.ASCII)
_STATUS = re.compile(r"(?:status code|Error code): (-?\d{1,3})\b", re.ASCII)
_FIRST_CHUNK = ("First Token Stream Event", "gen_ai.content.completion.chunk")
_ERRORS = {
    "timeout": ends.TIMEOUT, "Timeout": ends.TIMEOUT, "TimeoutError": ends.TIMEOUT, "ReadTimeout": ends.TIMEOUT,
    "ConnectTimeout": ends.TIMEOUT, "WriteTimeout": ends.TIMEOUT, "APITimeoutError": ends.TIMEOUT,
    "ConnectError": ends.REFUSED, "ConnectionRefusedError": ends.REFUSED, "ConnectionError": ends.REFUSED,
    "APIConnectionError": ends.REFUSED,
    "RemoteProtocolError": ends.CUT, "ReadError": ends.CUT, "ConnectionResetError": ends.CUT, "IncompleteRead": ends.CUT,
    "CancelledError": ends.CANCELLED, "KeyboardInterrupt": ends.CANCELLED, "GeneratorExit": ends.CLOSED,
    "APIError": ends.MID_STREAM_ERROR, "ResponseError": ends.MID_STREAM_ERROR,
    "APIStatusError": ends.HTTP_ERROR, "BadRequestError": ends.HTTP_ERROR, "AuthenticationError": ends.HTTP_ERROR,
    "PermissionDeniedError": ends.HTTP_ERROR, "NotFoundError": ends.HTTP_ERROR, "ConflictError": ends.HTTP_ERROR,
    "UnprocessableEntityError": ends.HTTP_ERROR, "RateLimitError": ends.HTTP_ERROR, "InternalServerError": ends.HTTP_ERROR,
}  # fmt: skip
_MORE_TOKENS = (
    ("cached_tokens", "gen_ai.usage.cache_read.input_tokens", "llm.token_count.prompt_details.cache_read"),
    ("reasoning_tokens", "gen_ai.usage.reasoning.output_tokens", "llm.token_count.completion_details.reasoning"),
)
Attributes = Mapping[str, Any]


class _Spans:
    """What was recorded of the spans of one log lately. Changed by single steps of a dict only: a span may end in a finaliser that
    interrupts another end in this very thread, so that a lock would wait for itself."""

    def __init__(self) -> None:
        # by trace id and span id
        self.recorded: dict[tuple[int, int], str] = {}  # a call or a tool → its event id
        self.counted: dict[tuple[int, int], str] = {}  # a call → the event id of the call that is counted: itself, or one inside
        self.within: dict[tuple[int, int], str] = {}  # a span that has not ended → the call inside it that is counted

    @staticmethod
    def remember(table: dict[tuple[int, int], str], key: tuple[int, int], event_id: str) -> str:
        """The event id that ``key`` had before, else this one."""
        found = table.setdefault(key, event_id)
        if len(table) > _REMEMBERED:
            try:
                table.pop(next(iter(table)), None)
            except (StopIteration, RuntimeError):  # another thread was at it: it makes room as well
                pass
        return found


_spans: weakref.WeakKeyDictionary[Recorder, _Spans] = weakref.WeakKeyDictionary()


class AuditSpanProcessor(SpanProcessor):
    """Records every span of a model call as one ``ai_response``, and every span of a tool as one ``ai.tool``, when it ends. A tool is
    linked (``asked_by``, ``parent_id``) to the call of this process that asked for it, where its span has the arguments.

    ``on_end`` records at once and in the caller's thread (a disk sync, some milliseconds; in a coroutine it blocks the loop for as
    long). It raises nothing: what happens when the log cannot be written is ``[ai] failure`` in ``log.toml``, except that
    ``block`` can block nothing here, since the call is over. ``force_flush`` waits for what comes late.

    *How sure it is.* ``capture`` is ``otel`` and ``completeness`` is ``best_effort``: there is no entry before the call (a crash in
    the middle leaves nothing), none for spans that were not sampled, and what an instrumentation loses is lost (OpenLLMetry for
    Ollama: tool calls, embeddings, all of a stream that was closed). ``scope`` names the instrumentation. ``timestamp`` is the span's
    start, ``latency_us`` its length in microseconds, ``trace_id`` the span's; ``span_id`` and ``parent_span_id`` are in the details.
    Numbers that a span does not have are not in the entry; zero tokens of the older OpenLLMetry form are what it writes for unknown,
    and count as such. ``content_missing`` names what the span had no content of, so that its lengths are unknown, not zero.

    *How it ended*, in the words of ``capture.ends``. Status is not enough: streams that broke are UNSET in some dialects and OK in
    others. So: a span with status ERROR, or ``error.type``, has the word for its error (``truncated`` where the error says nothing of
    how). Any other one is ``ok`` with a sign of a whole answer: a finish reason other than ``error``, output tokens, for embeddings
    their vectors, dimensions or input tokens, or status OK of an answer that was no stream. Without such a sign it is ``truncated``,
    which for a stream also means closed or dropped by its caller: spans do not tell one from the other.

    *Counted once.* Spans of calls nest where a framework and a provider, or two instrumentations, are both instrumented. The
    innermost is the call; the ones around it become ``ai.span`` entries with ``duplicate_of``, the event id of the call; what a
    tool asks is another call. A span that comes again is recorded once. Not seen: two spans of one call that are not one
    inside the other, and calls that tallystick records itself at the same time (``wrap``, ``instrument``, proxy); use one of both.
    """

    def __init__(self, log: Recording) -> None:
        self._recorder = log.recorder
        self._spans = _spans.setdefault(self._recorder, _Spans())
        self._said: set[str] = set()
        self._recorder.expect_late()

    def on_end(self, span: ReadableSpan) -> None:
        """Record it, if it is a model call or a tool. Never raises."""
        try:
            attributes = span.attributes or {}
            if any(mark in attributes for mark in _MARKS):
                kind = _kind(attributes)
                if kind is not None:
                    self._recognised(span, attributes, kind)
                    return
            if self._spans.within:
                self._enclosing(span, self._spans.within.pop(_key(span), None))
        except Exception as e:  # noqa: BLE001  # whatever a span is made of, the application goes on
            self._failed(e)

    def event_id(self, span: Any) -> str | None:
        """The event id of the entry of a span that ended; None if none was recorded (or 4,096 others since)."""
        context = span.get_span_context()
        return self._spans.recorded.get((context.trace_id, context.span_id))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True if everything that came late is recorded."""
        try:
            self._recorder.flush(timeout_millis / 1000)
        except TimeoutError:
            return False
        return True

    def _failed(self, error: Exception) -> None:
        if type(error).__name__ not in self._said:
            self._said.add(type(error).__name__)
            _logger.error("a span could not be recorded: %s (said once)", type(error).__name__)  # its text may be content

    def _recognised(self, span: ReadableSpan, attributes: Attributes, kind: str) -> None:
        event_id = CLOCK.event_id()
        if self._spans.remember(self._spans.recorded, _key(span), event_id) != event_id:
            return  # the processor is registered twice, or two providers share a span
        inside = self._spans.within.pop(_key(span), None)
        if kind == TOOL:
            self._do(self._tool, span, attributes, event_id)
            return
        if inside is None and span.parent is not None:
            inside = self._spans.counted.get((span.parent.trace_id, span.parent.span_id))  # that ended first, and is counted already
        _Spans.remember(self._spans.counted, _key(span), inside or event_id)
        self._enclosing(span, inside or event_id)
        self._do(self._call, span, attributes, event_id, kind, inside)

    def _enclosing(self, span: ReadableSpan, event_id: str | None) -> None:
        """Tell the span around this one that the call inside is counted."""
        if event_id is not None and span.parent is not None:
            _Spans.remember(self._spans.within, (span.parent.trace_id, span.parent.span_id), event_id)

    def _do(self, record: Any, *args: Any) -> None:
        """Now, or by the helper where this thread is inside the log (a finaliser ended the span)."""
        if _interrupts():
            context = contextvars.copy_context()
            self._recorder.later(lambda: context.run(record, *args))
        else:
            record(*args)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _call(self, span: ReadableSpan, attributes: Attributes, event_id: str, operation: str, duplicate_of: str | None) -> None:
        recorder = self._recorder
        who, named = recorder.who()
        asked = _asked(attributes, operation)
        kept = recorder.keep(asked.model, who, event_id)
        answer = Answer(kept.salt, kept.limit)
        numbered = _numbered(attributes)
        sees_prompt = _read_prompt(asked, attributes, numbered)
        sees_answer = _read_answer(answer, attributes, numbered)
        first_us = _first_us(span, attributes)
        end, status, said = _end(span, attributes, asked, answer, delivered=answer.bore or first_us is not None)
        details: dict[str, Any] = {**asked.details(), **_where(span, attributes, named=named), **answer.details()}
        if asked.stream is False and _stream(attributes) is None:
            details.pop("stream", None)  # not said
        content, payloads = _content(kept, asked, answer, sees_prompt=sees_prompt, sees_answer=sees_answer)
        details |= content
        if first_us is not None:
            details["ttft_us"] = first_us
        details["end"] = end
        if status is not None:
            details["status"] = status
        if said is not None and end != ends.OK:
            details["error"] = said
        if duplicate_of is not None:
            details["duplicate_of"] = duplicate_of
        outcome = ends.outcome_of(end, delivered=answer.bore or first_us is not None)
        event = _event(span, who, FINISHED if duplicate_of is None else SPAN, asked.model or "unknown", operation, outcome, details)
        session = name(_first(attributes, "gen_ai.conversation.id", "session.id"))
        if session is not None:
            event.setdefault("session_id", session)
        if payloads:
            event["payloads"] = payloads
        self._put(event, event_id)
        if duplicate_of is None:
            recorder.evidence.asked_again(asked)
            if end == ends.OK:
                recorder.evidence.finished(event_id, answer, None)

    def _put(self, event: dict[str, Any], event_id: str) -> None:
        try:
            self._recorder.put(event, event_id)
        except AuditError as e:  # ``block``: the call is over, and its caller has the answer
            self._failed(e)

    # -- tools ---------------------------------------------------------------------------------------------------------

    def _tool(self, span: ReadableSpan, attributes: Attributes, event_id: str) -> None:
        recorder = self._recorder
        who, named = recorder.who()
        tool = name(_first(attributes, "gen_ai.tool.name", "tool.name", "traceloop.entity.name")) or name(span.name) or "unknown"
        given = _first(attributes, "gen_ai.tool.call.arguments", "input.value", "traceloop.entity.input")
        result = _first(attributes, "gen_ai.tool.call.result", "output.value", "traceloop.entity.output")
        failed = _is_error(span, attributes)
        details: dict[str, Any] = {"tool": tool, **_where(span, attributes, named=named), "is_error": failed}
        call_id = name(_first(attributes, "gen_ai.tool.call.id", "tool.id", "tool_call.id"))
        if call_id is not None:
            details["tool_call_id"] = call_id
        policy = recorder.content.of(None, who["actor"], tool)
        details["content"] = policy
        if policy != "none":
            for word, value in (("arguments_chars", given), ("result_chars", result)):
                if value is not None and value != _HIDDEN:
                    details[word] = len(value) if isinstance(value, str) else len(arguments_text(value))
        if failed:
            details["error"] = _error(span, attributes)[0]
        event = _event(span, who, TOOL, f"tool:{tool}", tool, "failure" if failed else "success", details)
        arguments = _json(given)
        asker = recorder.evidence.asked_for(tool, dict(arguments)) if isinstance(arguments, Mapping) else None
        if asker is not None:
            event["parent_id"] = details["asked_by"] = asker
        self._put(event, event_id)
        if asker is not None and not failed:
            recorder.evidence.tool_ran(asker)


# -- which span is what ----------------------------------------------------------------------------------------------------


def _key(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    return (context.trace_id, context.span_id) if context is not None else (0, 0)


def _kind(attributes: Attributes) -> str | None:
    """The operation of a model call, ``ai.tool``, or None for what is neither (chains, agents, workflows)."""
    said = attributes.get("openinference.span.kind")
    if isinstance(said, str):
        if said.upper() == "LLM":
            return "text_completion" if "llm.prompts.0.prompt.text" in attributes else "chat"
        return {"EMBEDDING": "embeddings", "TOOL": TOOL}.get(said.upper())
    operation = attributes.get("gen_ai.operation.name")
    if operation == "execute_tool" or (operation is None and "gen_ai.tool.name" in attributes):
        return TOOL
    if isinstance(operation, str):
        return _OPERATIONS.get(operation)
    role = attributes.get("traceloop.span.kind")
    if isinstance(role, str):
        return TOOL if role == "tool" else None
    request = attributes.get("llm.request.type")
    if isinstance(request, str):
        return _OPERATIONS.get(request)
    return "chat" if "gen_ai.request.model" in attributes else None


def _interrupts() -> bool:
    """True if a finaliser or a signal handler ended the span while this thread was inside the log or the evidence about it."""
    if interrupts_the_log():
        return True
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_globals.get("__name__") == "tallystick.capture.evidence":
            return True
        frame = frame.f_back
    return False


# -- facts -----------------------------------------------------------------------------------------------------------------


def _first(attributes: Attributes, *names: str) -> Any:
    for one in names:
        value = attributes.get(one)
        if value is not None and value != "":
            return value
    return None


def _json(value: Any) -> Any:
    """What an attribute says that is JSON as text, or that is no text already; None if it cannot be read."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def _stream(attributes: Attributes) -> bool | None:
    said = _first(attributes, "gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming")
    if said is None:
        given = _json(attributes.get("llm.invocation_parameters"))
        said = given.get("stream") if isinstance(given, Mapping) else None
    return said if isinstance(said, bool) else None


def _asked(attributes: Attributes, operation: str) -> Asked:
    provider = name(_first(attributes, "gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")) or "unknown"
    model = _first(attributes, "gen_ai.request.model", "llm.request.model_name", "llm.model_name", "embedding.model_name")
    asked = Asked(operation, provider.lower(), name(model), stream=_stream(attributes) is True)
    given = _json(_first(attributes, "llm.invocation_parameters", "embedding.invocation_parameters"))
    plain = {key[15:]: value for key, value in attributes.items() if key.startswith("gen_ai.request.")}
    asked.parameters = parameters(given, _PARAMETERS) | parameters(plain, _PARAMETERS)
    return asked


def _where(span: ReadableSpan, attributes: Attributes, *, named: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"capture": CAPTURE, "completeness": "best_effort"}
    scope = span.instrumentation_scope
    if scope is not None:
        said = {"name": name(scope.name), "version": name(scope.version), "schema_url": name(scope.schema_url)}
        found["scope"] = {key: value for key, value in said.items() if value is not None}
    context = span.get_span_context()
    if context is not None:
        found["span_id"] = f"{context.span_id:016x}"
    if span.parent is not None:
        found["parent_span_id"] = f"{span.parent.span_id:016x}"
    endpoint = clean_endpoint(str(_first(attributes, "gen_ai.openai.api_base", "url.full") or ""))
    address, port = name(attributes.get("server.address")), attributes.get("server.port")
    if not endpoint and address is not None:
        endpoint = f"{address}:{port}" if type(port) is int else address
    if endpoint:
        found["endpoint"] = endpoint
    if not named:
        found["unattributed"] = True
    if span.start_time is not None and span.end_time is not None:
        found["latency_us"] = max(0, span.end_time - span.start_time) // 1000
    return found


def _event(
    span: ReadableSpan, who: Mapping[str, Any], kind: str, resource: str, action: str, outcome: str, details: dict[str, Any]
) -> dict[str, Any]:
    event: dict[str, Any] = {key: value for key in NAMES if (value := who.get(key)) is not None}
    context = span.get_span_context()
    if context is not None:
        event["trace_id"] = f"{context.trace_id:032x}"
    if span.start_time is not None:
        event["timestamp"] = format_time(span.start_time // 1000)
    return event | {"event_type": kind, "resource": resource, "action": action, "outcome": outcome, "details": details}


def _first_us(span: ReadableSpan, attributes: Attributes) -> int | None:
    """Microseconds to the first piece of a stream."""
    said = attributes.get("gen_ai.response.time_to_first_chunk")  # in seconds
    if isinstance(said, int | float) and 0 <= said < 1e9:
        return int(said * 1_000_000)
    for event in span.events:
        if event.name in _FIRST_CHUNK and span.start_time is not None and _stream(attributes):
            return max(0, event.timestamp - span.start_time) // 1000
    return None


# -- how it ended ----------------------------------------------------------------------------------------------------------


def _end(
    span: ReadableSpan, attributes: Attributes, asked: Asked, answer: Answer, *, delivered: bool
) -> tuple[str, int | None, dict[str, Any] | None]:
    """The word, the status of the response, and what is said of the error. The rule stands in ``AuditSpanProcessor``."""
    if _is_error(span, attributes):
        error, text = _error(span, attributes)
        answer.error = text
        end, status = _word(str(error["type"]), text or "", attributes, delivered=delivered)
        return end, status, error
    signed = answer.finish_reason not in (None, "error") or bool(answer.output_tokens)
    if asked.operation == "embeddings":
        signed = signed or bool(answer.vectors) or bool(answer.dimensions) or bool(answer.input_tokens)
    if signed or (span.status.status_code is StatusCode.OK and not asked.stream):
        return ends.OK, None, None
    return ends.TRUNCATED, None, None


def _is_error(span: ReadableSpan, attributes: Attributes) -> bool:
    return span.status.status_code is StatusCode.ERROR or _first(attributes, "error.type") is not None


def _error(span: ReadableSpan, attributes: Attributes) -> tuple[dict[str, Any], str | None]:
    """The kind of the error and the length of its text; and the text, which is content."""
    kind, text = _first(attributes, "error.type"), span.status.description
    for event in span.events:
        if event.name == "exception" and event.attributes is not None:
            kind = kind or event.attributes.get("exception.type")
            said = event.attributes.get("exception.message")
            text = said if isinstance(said, str) else text
    found: dict[str, Any] = {"type": (name(kind) or "error").rpartition(".")[2] or "error"}
    if text:
        found["length"] = len(text)
    return found, text or None


def _word(kind: str, text: str, attributes: Attributes, *, delivered: bool) -> tuple[str, int | None]:
    status: Any = attributes.get("http.response.status_code")
    if kind.isascii() and kind.isdigit() and len(kind) == 3:
        status = int(kind)
    if type(status) is not int:
        found = _STATUS.search(text)
        status = int(found[1]) if found else None
    if status is not None and 400 <= status < 600:
        return ends.HTTP_ERROR, status
    word = _ERRORS.get(kind, ends.MID_STREAM_ERROR if delivered else ends.TRUNCATED)
    return (ends.CUT if word == ends.REFUSED and delivered else word), None


# -- content ---------------------------------------------------------------------------------------------------------------


def _content(
    kept: Kept, asked: Asked, answer: Answer, *, sees_prompt: bool, sees_answer: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Details and payloads: those of a request's and of an answer's entry in one."""
    details, payloads = kept.of_request(asked) if sees_prompt else ({"content": kept.policy}, {})
    more, others = kept.of_answer(answer)
    if not sees_answer or asked.operation == "embeddings":
        more.pop("response_chars", None)
    commitments = {**details.pop("commitments", {}), **more.pop("commitments", {})}
    cut_short = [*details.pop("cut_short", ()), *more.pop("cut_short", ())]
    details, payloads = {**details, **more}, {**payloads, **others}
    if commitments:
        details["commitments"] = commitments
    if cut_short:
        details["cut_short"] = cut_short
    if commitments and kept.salt is not None and SALT not in payloads:
        payloads[SALT] = Payload(kept.salt, "application/octet-stream")
    missing = [] if sees_prompt else ["prompt"]
    if not sees_answer and asked.operation != "embeddings":
        missing.append("answer")
    if missing:
        details["content_missing"] = missing
    return details, payloads


def _numbered(attributes: Attributes) -> dict[str, dict[int, dict[str, Any]]]:
    """``llm.input_messages.0.message.role`` and its like, as a table of tables."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, value in attributes.items():
        parts = _NUMBERED.fullmatch(key)
        if parts is not None:
            found.setdefault(parts[1], {}).setdefault(int(parts[2]), {})[parts[3]] = value
    return {group: dict(sorted(items.items())) for group, items in found.items()}


def _messages(attributes: Attributes, json_name: str, numbered: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of any dialect: ``role``, ``parts`` (kind, text or facts), ``tool_calls`` (name, id, arguments), ``finish_reason``,
    and ``answers`` (id, name) where it brings back the result of a tool."""
    given = _json(attributes.get(json_name))
    found = [_of_parts(message) for message in given if isinstance(message, Mapping)] if isinstance(given, list | tuple) else []
    return found or [_of_fields(fields) for fields in numbered.values()]


def _of_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.get("role"), "parts": [], "tool_calls": []}
    found["finish_reason"] = message.get("finish_reason")
    for part in message.get("parts") or ():
        if not isinstance(part, Mapping):
            continue
        kind = part.get("type")
        if kind == "tool_call":
            found["tool_calls"].append((part.get("name"), part.get("id"), part.get("arguments")))
        elif kind == "tool_call_response":
            found["answers"] = (name(part.get("id")), name(part.get("name")))
            found["parts"].append(("text", arguments_text(_first(part, "response", "result", "content"))))
        elif isinstance(part.get("content"), str) and kind in ("text", "reasoning", "thinking", None):
            found["parts"].append(("text" if kind in ("text", None) else "thinking", part["content"]))
        else:
            found["parts"].append(("hidden", {"type": name(kind) or "?"}))  # images, audio and files: never their bytes
    return found


def _of_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """OpenInference's ``message.role``, and ``role`` of the older form."""
    calls: dict[int, dict[str, Any]] = {}
    parts: dict[int, dict[str, Any]] = {}
    for key, value in fields.items():
        if in_call := _TOOL_CALL.fullmatch(key):
            calls.setdefault(int(in_call[1]), {})[in_call[2]] = value
        elif in_part := _CONTENT_PART.fullmatch(key):
            parts.setdefault(int(in_part[1]), {})[in_part[2]] = value
    role = _first(fields, "message.role", "role")
    found: dict[str, Any] = {"role": role, "parts": [], "finish_reason": fields.get("finish_reason")}
    found["tool_calls"] = [(call.get("name"), call.get("id"), call.get("arguments")) for _, call in sorted(calls.items())]
    if role == "tool":
        tool = _first(fields, "message.name", "name")
        found["answers"] = (name(_first(fields, "message.tool_call_id", "tool_call_id")), name(tool))
    text = _first(fields, "message.content", "content", "prompt.text", "completion.text", "embedding.text")
    if isinstance(text, str):
        found["parts"].append(("text", text))
    for _, part in sorted(parts.items()):
        if isinstance(part.get("text"), str):
            found["parts"].append(("thinking" if part.get("type") in ("reasoning", "thinking") else "text", part["text"]))
        elif isinstance(part.get("image.image.url"), str):
            found["parts"].append(("image", _image(part["image.image.url"])))
    return found


def _image(url: str) -> dict[str, Any]:
    if url.startswith("data:"):
        head, _, data = url[5:].partition(",")
        return image(data, head.split(";")[0])
    return {"url": True}  # somewhere else: the address may carry a signature, and is content


def _read_prompt(asked: Asked, attributes: Attributes, numbered: Mapping[str, dict[int, dict[str, Any]]]) -> bool:
    """What was sent, as far as it is in the span; whether anything of it is."""
    sees, kept = False, []
    fields = {**numbered.get("gen_ai.prompt", {}), **numbered.get("llm.input_messages", {}), **numbered.get("llm.prompts", {}),
              **numbered.get("embedding.embeddings", {})}  # fmt: skip
    messages = list(_messages(attributes, "gen_ai.input.messages", fields))
    system = _json(attributes.get("gen_ai.system_instructions"))
    if isinstance(system, list | tuple):
        messages.insert(0, _of_parts({"role": "system", "parts": system}))
    plain = _plain(attributes, "input")
    if not messages and plain is not None:
        messages = [{"role": "user", "parts": [("text", plain)], "tool_calls": []}]
    for message in messages:
        role, texts = name(message["role"]), []
        if role is not None:
            asked.roles[role] = asked.roles.get(role, 0) + 1
        for kind, value in message["parts"]:
            if value == _HIDDEN:
                continue
            sees = True
            if kind in ("image", "hidden"):
                asked.images += [value] if kind == "image" else []
                continue
            texts.append(value)
            asked.prompt_chars += len(value)
        sees = sees or bool(message["tool_calls"])
        if role == "assistant" and texts:
            asked.spoken.append("".join(texts))
        if "answers" in message:
            asked.results.append(message["answers"])
        calls = [{"name": tool, "id": call_id, "arguments": arguments_text(given)} for tool, call_id, given in message["tool_calls"]]
        kept.append({"role": role, "parts": [list(part) for part in message["parts"]], "tool_calls": calls})
    asked.content["messages"] = kept
    if asked.operation == "embeddings":
        asked.roles, asked.inputs = {}, len(messages) or None
    _read_tools(asked, attributes, numbered)
    return sees


def _plain(attributes: Attributes, side: str) -> str | None:
    """OpenInference's ``input.value`` or ``output.value`` where it is the text itself, and no JSON around it."""
    value = attributes.get(f"{side}.value")
    return value if isinstance(value, str) and value != _HIDDEN and "json" not in str(attributes.get(f"{side}.mime_type")) else None


def _read_tools(asked: Asked, attributes: Attributes, numbered: Mapping[str, dict[int, dict[str, Any]]]) -> None:
    """The tools that were offered."""
    defined = _json(attributes.get("gen_ai.tool.definitions"))
    tools = list(defined) if isinstance(defined, list | tuple) else []
    tools += [_json(fields.get("tool.json_schema")) for fields in numbered.get("llm.tools", {}).values()]
    tools += list(numbered.get("llm.request.functions", {}).values())
    if tools:
        asked.tools = tool_names(tools)
        asked.content["tools"] = tools


def _read_answer(answer: Answer, attributes: Attributes, numbered: Mapping[str, dict[int, dict[str, Any]]]) -> bool:
    """What came back, as far as it is in the span; whether anything of it is."""
    answer.model = name(_first(attributes, "gen_ai.response.model", "llm.response.model_name"))
    if answer.model is None and "openinference.span.kind" in attributes and "output.value" in attributes:
        answer.model = name(_first(attributes, "llm.model_name", "embedding.model_name"))  # one name for both
    answer.server_id = name(attributes.get("gen_ai.response.id"))
    answer.fingerprint = name(_first(attributes, "openai.response.system_fingerprint", "gen_ai.openai.response.system_fingerprint",
                                     "gen_ai.response.system_fingerprint"))  # fmt: skip
    answer.input_tokens = _tokens(attributes, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
    answer.output_tokens = _tokens(attributes, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens",
                                   "llm.token_count.completion")  # fmt: skip
    for word, *names in _MORE_TOKENS:
        number = _tokens(attributes, *names)
        if number:
            answer.more[word] = number
    reasons = attributes.get("gen_ai.response.finish_reasons")
    reason = reasons[0] if isinstance(reasons, list | tuple) and reasons else _first(attributes, "llm.finish_reason")
    fields = {**numbered.get("gen_ai.completion", {}), **numbered.get("llm.output_messages", {}), **numbered.get("llm.choices", {})}
    hidden = False
    for choice, message in enumerate(_messages(attributes, "gen_ai.output.messages", fields)):
        reason = reason or message["finish_reason"]
        for kind, value in message["parts"]:
            hidden = hidden or value == _HIDDEN
            if kind == "text" and value != _HIDDEN:
                answer.say(value, choice)
            elif kind == "thinking" and value != _HIDDEN:
                answer.think(value)
        for tool, call_id, arguments in message["tool_calls"]:
            answer.ask_tool(len(answer.tool_calls), tool, call_id, None if arguments == _HIDDEN else arguments)
    if not fields and not answer.bore:
        answer.say(_plain(attributes, "output"))
    answer.finish_reason = {"tool_call": "tool_calls"}.get(str(reason), name(reason))
    vectors = [f["embedding.vector"] for f in numbered.get("embedding.embeddings", {}).values() if "embedding.vector" in f]
    if vectors:
        answer.vectors, answer.bore = len(vectors), True
        answer.dimensions = len(vectors[0]) if isinstance(vectors[0], list | tuple) else None
    answer.dimensions = answer.dimensions or count(attributes.get("gen_ai.embeddings.dimension.count"))
    return answer.bore and not hidden


def _tokens(attributes: Attributes, *names: str) -> int | None:
    found = count(_first(attributes, *names))
    if found == 0 and "llm.request.type" in attributes:
        return None  # the older OpenLLMetry form adds up what the server did not say to zero
    return found


__all__ = ["AuditSpanProcessor"]
