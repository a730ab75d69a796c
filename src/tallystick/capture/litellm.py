"""LiteLLM: ``AuditLiteLLM`` records the calls of ``litellm.completion`` and its like, whichever of its providers they go to.

::

    handler = AuditLiteLLM(log)
    litellm.callbacks = [handler]
    answer = litellm.completion(model="ollama_chat/llama3.2", messages=[…])
    …
    handler.flush()  # LiteLLM tells of ends in threads of its own

Importing this module imports LiteLLM, which then fetches a price list, unless ``LITELLM_LOCAL_MODEL_COST_MAP=True`` is set.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..core.errors import AuditError
from . import ends
from .calls import Call
from .wire import openai as wire
from .wire.answer import Answer
from .wire.asked import Asked, name

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as e:
    raise ImportError("tallystick.capture.litellm needs litellm: pip install tallystick[litellm]") from e

if TYPE_CHECKING:
    from .recorder import Recording

CAPTURE = "litellm"
_logger = logging.getLogger("tallystick")
_REMEMBERED = 4096
_PATHS = {"completion": "/chat/completions", "text_completion": "/completions", "embedding": "/embeddings", "responses": "/responses"}
_PROVIDERS = {"ollama_chat": "ollama", "text-completion-openai": "openai"}
_TELLING = (ends.TIMEOUT, ends.REFUSED, ends.CUT, ends.TRUNCATED, ends.CANCELLED)
_WHOLE = ("complete_streaming_response", "async_complete_streaming_response")


class _Call(Call):
    """A call whose end is told late and elsewhere: its times are the ones that LiteLLM took."""

    __slots__ = ("call_id", "first_ns", "spent_ns", "unseen")

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.call_id = ""  # LiteLLM's
        self.spent_ns: int | None = None
        self.first_ns: int | None = None
        self.unseen = False  # there was an answer, and LiteLLM does not hand it over

    def _take(self, end: str, error: BaseException | None, status: int | None) -> tuple[dict[str, Any], str] | None:
        if self.spent_ns is not None:
            self._began_ns = time.perf_counter_ns() - self.spent_ns
            self._first_ns = None if self.first_ns is None else self._began_ns + self.first_ns
        taken = super()._take(end, error, status)
        if taken is not None:
            details = taken[0]["details"]
            if self.unseen:
                details.pop("response_chars", None)
                details["content_missing"] = ["answer"]
            if not self.is_sent and end != ends.NOT_SENT:
                details["unannounced"] = True
                if self.spent_ns is not None:
                    details["latency_us"] = self.spent_ns // 1000
        return taken


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: AuditLiteLLM, *args: Any, **keywords: Any) -> None:
        try:
            method(self, *args, **keywords)
        except Exception as e:  # noqa: BLE001  # LiteLLM would print it, with whatever its text says
            self._failed(e)

    return guarded


class AuditLiteLLM(CustomLogger):  # type: ignore[misc,unused-ignore]
    """Records chats, completions, embeddings and responses: ``ai_request`` before the bytes leave, and one ``ai_response`` for every
    call of which LiteLLM says how it ended, however often it says so. Images, audio and reranking are not recorded.

    *Late.* LiteLLM tells of a good end in a thread or a task of its own, after the caller has the answer; ``flush`` waits for that,
    up to a number of seconds, but not in the thread of a running loop. A process that ends earlier leaves requests without an end.
    ``latency_us`` and ``ttft_us`` are the times that LiteLLM took, in microseconds.

    *What stays open.* Of a stream that its caller closed or dropped, and of a task that was cancelled, LiteLLM says nothing: the
    request stays on record without an end, and that is what is known of it.

    *What is not seen.* What came of a stream before it broke (``content_missing``). Calls that LiteLLM makes without a word in
    advance (embeddings of Ollama) are one entry with ``unannounced``, written when they ended. Answers out of LiteLLM's cache
    are no calls, and not recorded. Retries of LiteLLM count as ``attempts`` of one call, those inside a client library are not
    seen. ``finish_reason`` is LiteLLM's, which says ``stop`` where a server said nothing. Tokens of a stream are only there where
    the server was asked for them (``stream_options={"include_usage": True}``) or is Ollama's: LiteLLM guesses them elsewhere, and
    also where an Ollama server does not say them. Statuses that LiteLLM makes up for errors of the connection are left out.

    *Refusing.* LiteLLM swallows what a callback raises: with ``[ai] failure = "block"`` a call that cannot be recorded is made all
    the same. Where that must not be, use ``tally proxy`` or a wrapped client.
    """

    def __init__(self, log: Recording) -> None:
        super().__init__()
        self._recorder = log.recorder
        self._open: dict[str, _Call] = {}
        self._ending: dict[str, _Call] = {}
        self._known: dict[str, str] = {}  # LiteLLM's id of a call → ours, of those that ended too
        self._ended = threading.Condition()  # re-entrant
        self._said: set[str] = set()

    def event_id(self, response: Any) -> str:
        """The event id of a response or a stream of LiteLLM. ``TypeError`` for anything that bears none, or not of the last 4,096."""
        hidden: Any = getattr(response, "_hidden_params", None) or {}
        call_id = hidden.get("litellm_call_id") if hasattr(hidden, "get") else None
        found = self._known.get(call_id) if isinstance(call_id, str) else None
        if found is None:
            raise TypeError(f"{type(response).__name__} bears no event id")
        return found

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until LiteLLM has told the end of every call that it began. False if it has not after ``timeout_s`` seconds: calls are
        running, or their streams were closed and it never will."""
        with self._ended:
            return self._ended.wait_for(lambda: not self._open and not self._ending, timeout_s)

    # -- what LiteLLM calls ----------------------------------------------------------------------------------------------

    @_guarded
    def log_pre_api_call(self, model: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        """A call is about to be made."""
        call_id = str(kwargs.get("litellm_call_id"))
        again = self._open.get(call_id)
        if again is not None:
            again.attempts += 1
            return
        call = self._call(kwargs, model, messages)
        if call is None:
            return
        self._recorder.expect_late()
        self._remember(call_id, call)
        try:
            call.begin()
        except AuditError:  # ``block``, which blocks nothing here; the recorder has said it
            return
        self._open[call_id] = call
        while len(self._open) > _REMEMBERED:  # of calls that LiteLLM never ends
            self._open.pop(next(iter(self._open)), None)

    @_guarded
    def log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call ended well."""
        call = self._succeeded(kwargs, response_obj, start_time, end_time)
        if call is not None:
            self._over(call, lambda: call.finish(call.source_ended()))

    async def async_log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call ended well."""
        try:
            call = self._succeeded(kwargs, response_obj, start_time, end_time)
            if call is not None:
                try:
                    await call.afinish(call.source_ended())
                finally:
                    self._over(call, lambda: None)
        except Exception as e:  # noqa: BLE001
            self._failed(e)

    @_guarded
    def log_failure_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:  # noqa: ARG002
        """A call ended badly."""
        call = self._end(kwargs, start_time, end_time)
        if call is None:
            return
        error = kwargs.get("exception")
        answered = call.asked.stream and kwargs.get("completion_start_time") is not None
        call.unseen, call.delivered = answered, int(answered)
        known = error if isinstance(error, BaseException) else None
        end, status = _end(known, sent=call.is_sent, answered=answered) if known is not None else (ends.CUT, None)
        self._over(call, lambda: call.finish(end, known, status))

    async def async_log_failure_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call ended badly."""
        self.log_failure_event(kwargs, response_obj, start_time, end_time)

    # -- how --------------------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._said:
            self._said.add(kind)
            _logger.error("what LiteLLM says of a call could not be recorded: %s (said once)", kind)  # its text may be content

    def _remember(self, call_id: str, call: _Call) -> None:
        call.call_id = call_id
        self._known[call_id] = call.event_id
        while len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)), None)

    def _call(self, kwargs: Mapping[str, Any], model: Any, messages: Any) -> _Call | None:
        asked = _asked(kwargs, model, messages)
        if asked is None:
            return None
        given = (kwargs.get("litellm_params") or {}).get("api_base") or (kwargs.get("additional_args") or {}).get("api_base")
        return _Call(self._recorder, asked, wire.read_answer, capture=CAPTURE, client=_version(),
                     endpoint=given if isinstance(given, str) else "")  # fmt: skip

    def _end(self, kwargs: Mapping[str, Any], start_time: Any, end_time: Any) -> _Call | None:
        """The call that ends, with its times; None if it was ended before, and for what is no call."""
        call_id = str(kwargs.get("litellm_call_id"))
        with self._ended:  # one of those that say so gets it
            call = self._open.pop(call_id, None)
            if call is None:
                call = None if call_id in self._known else self._call(kwargs, kwargs.get("model"), kwargs.get("messages"))
                if call is None:
                    return None
                self._remember(call_id, call)
            self._ending[call_id] = call
        began = kwargs.get("api_call_start_time") or start_time
        call.spent_ns = _ns(began, end_time)
        if call.asked.stream:
            call.first_ns = _ns(began, kwargs.get("completion_start_time"))
        return call

    def _succeeded(self, kwargs: Mapping[str, Any], response: Any, start_time: Any, end_time: Any) -> _Call | None:
        if kwargs.get("cache_hit") is True:
            return None
        whole = next((kwargs[word] for word in _WHOLE if kwargs.get(word) is not None), None)
        if kwargs.get("stream") is True and whole is None:
            return None  # a piece of a stream, in versions that tell of each
        call = self._end(kwargs, start_time, end_time)
        if call is None:
            return None
        _read(call, whole if whole is not None else response, kwargs)
        return call

    def _over(self, call: _Call, finish: Callable[[], None]) -> None:
        try:
            finish()
        finally:
            self._ending.pop(call.call_id, None)
            with self._ended:
                self._ended.notify_all()


@functools.cache
def _version() -> str:
    from importlib.metadata import version

    return f"litellm/{version('litellm')}"


def _ns(began: Any, ended: Any) -> int | None:
    if isinstance(began, datetime) and isinstance(ended, datetime) and (began.tzinfo is None) == (ended.tzinfo is None):
        return max(0, int((ended - began).total_seconds() * 1e9))
    return None


# -- what is asked and answered ----------------------------------------------------------------------------------------------


def _asked(kwargs: Mapping[str, Any], model: Any, messages: Any) -> Asked | None:
    """Read as the OpenAI-compatible request that it is, whatever LiteLLM makes of it for a provider."""
    kind = str(kwargs.get("call_type") or "completion")
    kind = kind[1:] if kind[1:] in _PATHS and kind.startswith("a") else kind
    path = _PATHS.get(kind)
    if path is None:
        return None
    body: dict[str, Any] = {**(kwargs.get("optional_params") or {}), **kwargs, "model": model, "messages": _plain(messages)}
    prompt = ((kwargs.get("additional_args") or {}).get("complete_input_dict") or {})
    if kind == "text_completion":
        if isinstance(prompt, Mapping) and prompt.get("prompt") is not None:
            body["prompt"] = prompt["prompt"]
        else:
            path = "/chat/completions"  # made of a chat, by providers that know nothing else
    elif kind == "completion":
        body.pop("input", None)
    asked = wire.read_request(path, body)
    if asked is None:
        return None
    provider = name(kwargs.get("custom_llm_provider")) or "unknown"
    asked.provider = _PROVIDERS.get(provider, provider)
    if kind == "text_completion":
        asked.operation = kind
    return asked


def _plain(messages: Any) -> list[Any]:
    found = [one.model_dump() if hasattr(one, "model_dump") else one for one in messages] if isinstance(messages, list) else []
    return [one for one in found if isinstance(one, Mapping)]


def _read(call: _Call, response: Any, kwargs: Mapping[str, Any]) -> None:
    """The whole answer, as LiteLLM made it of what came."""
    answer = call.answer
    if call.asked.operation == "embeddings":
        _read_vectors(answer, response)
    else:
        call.feed(response.model_dump() if hasattr(response, "model_dump") else response if isinstance(response, Mapping) else {})
    answer.server_id = None  # LiteLLM mints its own
    prefix = f"{kwargs.get('custom_llm_provider')}/"
    if answer.model is not None and answer.model.startswith(prefix):
        answer.model = answer.model[len(prefix):]
    if call.asked.stream:
        answer.chunks = 0  # how many there were is not known
        options = kwargs.get("stream_options") or (kwargs.get("optional_params") or {}).get("stream_options")
        if call.asked.provider != "ollama" and not (isinstance(options, Mapping) and options.get("include_usage") is True):
            answer.input_tokens = answer.output_tokens = None  # guessed
            answer.more.clear()
    answer.whole = True
    call.delivered = 1


def _read_vectors(answer: Answer, response: Any) -> None:
    """Counted without making a copy of them."""
    vectors = getattr(response, "data", None) or []
    first = vectors[0] if vectors else None
    vector = first.get("embedding") if isinstance(first, Mapping) else getattr(first, "embedding", None)
    answer.chunks, answer.bore, answer.vectors = 1, True, len(vectors)
    answer.dimensions = len(vector) if isinstance(vector, list) else None
    answer.model = name(getattr(response, "model", None))
    tokens = getattr(getattr(response, "usage", None), "prompt_tokens", None)
    answer.input_tokens = tokens if type(tokens) is int else None


# -- how it ended --------------------------------------------------------------------------------------------------------------


def _end(error: BaseException, *, sent: bool, answered: bool) -> tuple[str, int | None]:
    """The word for an error. LiteLLM makes errors with a status (500, 408) of errors that have none, so that what stands behind its
    own is asked, the nearest first: behind that may be whatever the application was handling when it called."""
    if "ended before a finish_reason" in str(error):
        return ends.TRUNCATED, None
    said = getattr(error, "status_code", None)
    chain: list[BaseException] = []
    while error not in chain and len(chain) < 16:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    for one in chain:
        if type(one).__module__.partition(".")[0] == "litellm":
            if any(kind.__name__ == "Timeout" for kind in type(one).__mro__):
                return ends.TIMEOUT, None
            continue
        status = getattr(getattr(one, "response", None), "status_code", None) or getattr(one, "status_code", None)
        if type(status) is int and status >= 400:
            return ends.HTTP_ERROR, status
        end, _ = ends.end_of(one, answered=answered)
        if end in _TELLING or type(one).__name__ == "APIError":
            return end, None
    if answered:
        return ends.MID_STREAM_ERROR, None
    return (ends.HTTP_ERROR, said) if sent and type(said) is int and said >= 400 else (ends.NOT_SENT, None)


__all__ = ["AuditLiteLLM"]
