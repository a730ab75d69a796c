"""LangChain: ``AuditCallbackHandler`` records calls to models and runs of tools, whichever integration makes them.

::

    model = ChatOllama(model="llama3.2", callbacks=[AuditCallbackHandler(log)])
    answer = model.invoke("…")
    log.outcome(answer, "used", ref="erp:4711")
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from ..clock import CLOCK
from ..core.errors import AuditError
from .bearer import bear
from .calls import Call
from .tools import Run
from .wire import ollama as wire_ollama
from .wire import openai as wire_openai
from .wire.answer import Answer, count
from .wire.asked import Asked, chars, name

try:
    import langchain_core
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import BaseMessage, convert_to_openai_messages
    from langchain_core.outputs import LLMResult
except ImportError as e:
    raise ImportError("tallystick.capture.langchain needs langchain-core: pip install tallystick[langchain]") from e

if TYPE_CHECKING:
    from .tools import Logger

CAPTURE = "langchain"
_logger = logging.getLogger("tallystick")
_OPEN_MAX = 4096
_SAYS_WHY = ("ollama", "openai")  # their answers say why they ended; of other integrations it is not known
_BASE_URL = re.compile(r"base_url='([^']{1,500})'")
_KEEP_OUT = ("message", "response", "thinking", "context")
_Method = TypeVar("_Method", bound=Callable[..., None])


def _guarded(method: _Method) -> _Method:
    """Nothing of ours reaches the application, except an ``AuditError`` (only with ``block``, where it is meant to)."""

    @functools.wraps(method)
    def guarded(self: AuditCallbackHandler, *args: Any, **keywords: Any) -> None:
        try:
            method(self, *args, **keywords)
        except AuditError:
            raise
        except Exception as e:  # noqa: BLE001  # whatever an integration hands over
            self._failed(e)

    return guarded  # type: ignore[return-value]


class _Asked(Asked):
    """At the beginning of a call it is not known whether it streams: then that is not said, and not ``false``."""

    is_over: bool = False

    def details(self) -> dict[str, Any]:
        found = super().details()
        if not self.stream and not self.is_over:
            found.pop("stream", None)
        return found


class AuditCallbackHandler(BaseCallbackHandler):
    """Records every call to a chat model or text model: ``ai_request`` before it is made, one ``ai_response`` however it ends.
    Runs of
    tools are ``ai.tool`` entries, linked (``asked_by``, ``parent_id``) to the call of this process whose answer asked for them.

    Give it as ``callbacks=[…]`` to a model, or in the ``config`` of a chain to have what is inside it too, not both. It is the same
    for ``invoke``, ``ainvoke``, ``stream``, ``astream`` and ``batch``: it runs inline, in the thread or task that makes the call,
    so that the audit context is right and the entry is there before the call is; in a coroutine that blocks the loop for the sync
    of the disk (milliseconds). ``tallystick.event_id(message)`` is the id of the call, for the message that ``invoke`` returned and
    for each chunk of a stream (a sum of chunks is a new object, and bears none).

    What happens when the log cannot be written is ``[ai] failure`` in ``log.toml``. With ``block`` a call that cannot be recorded is
    refused (``CallBlocked`` from ``invoke``, nothing is sent); an answer that cannot be recorded raises it too, with LangChain's
    result in ``.result``. With ``spool`` and ``warn`` nothing reaches the application.

    ``stream`` in the details says that the answer came in pieces (``ChatOllama`` streams also for ``invoke``); ``ttft_us`` is then
    the time to the first piece in microseconds, ``chunks`` counts the pieces that LangChain made. An answer of Ollama or an
    OpenAI-compatible server without a finish reason is ``truncated``. A stream that was closed is ``closed``, also where it was
    only dropped. With langchain-core before 1.0 nobody says that a stream was closed: such a request stays without an end until the
    log is closed, and is ``abandoned`` then.

    *Not seen*: embeddings (LangChain has no callbacks for them), the status of a good response, retries inside a client library, a
    server's own numbers that an integration drops. An answer out of LangChain's cache looks like one of the model.
    """

    run_inline = True

    def __init__(self, log: Logger) -> None:
        self._log, self._recorder = log, log.recorder
        self.raise_error = self._recorder.failure == "block"
        self._calls: dict[UUID, Call] = {}
        self._runs: dict[UUID, Run] = {}
        self._said: set[str] = set()

    def _failed(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._said:
            self._said.add(kind)
            _logger.error("a callback of LangChain could not be read: %s (said once)", kind)  # the text of an error may be content

    # -- calls ---------------------------------------------------------------------------------------------------------

    @_guarded
    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **keywords: Any
    ) -> None:  # fmt: skip
        """A chat model is about to be called."""
        self._begin(_asked_chat(messages[0] if messages else [], keywords), serialized, run_id)

    @_guarded
    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **keywords: Any) -> None:
        """A text model is about to be called."""
        asked = Asked("text_completion", *_names(keywords), prompt_chars=sum(map(chars, prompts)), content={"prompt": list(prompts)})
        self._begin(asked, serialized, run_id)

    def _begin(self, asked: Asked, serialized: Mapping[str, Any] | None, run_id: UUID) -> None:
        recorder = self._recorder
        recorder.expect_late()
        asked = _Asked(**{field: getattr(asked, field) for field in Asked.__struct_fields__})
        client = f"langchain-core/{langchain_core.__version__} {(serialized or {}).get('name') or ''}".rstrip()
        call = Call(recorder, asked, _read, capture=CAPTURE, endpoint=_endpoint(serialized or {}), client=client)
        call.begin()
        while len(self._calls) >= _OPEN_MAX:  # of runs that nobody ended
            self._calls.pop(next(iter(self._calls))).abandon()
        self._calls[run_id] = call
        recorder.open_calls.add(call)

    @_guarded
    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **keywords: Any) -> None:  # noqa: ARG002
        """A piece of an answer."""
        call = self._calls.get(run_id)
        if call is None:
            return
        call.asked.stream = True
        call.delivered += 1
        message = getattr(chunk, "message", None)
        call.feed({"piece": token if message is None else message})
        if message is not None:
            bear(message, call.event_id)

    @_guarded
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **keywords: Any) -> None:  # noqa: ARG002
        """A call ended, and LangChain has its answer."""
        call = self._calls.pop(run_id, None)
        if call is None:
            return
        call.feed({"result": response})
        call.answer.whole = call.answer.finish_reason is not None or call.asked.provider not in _SAYS_WHY
        call.delivered += 1
        for generation in _generations(response):
            message = getattr(generation, "message", None)
            if message is not None:
                bear(message, call.event_id)
        _is_over(call)
        try:
            call.finish(call.source_ended())
        except AuditError as e:
            e.result = response
            raise

    @_guarded
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **keywords: Any) -> None:  # noqa: ARG002
        """A call ended with an exception; also where its stream was closed (``GeneratorExit``) or its task cancelled."""
        call = self._calls.pop(run_id, None)
        if call is not None:
            _is_over(call)
            call.failed(_reason(error))

    # -- tools ---------------------------------------------------------------------------------------------------------

    @_guarded
    def on_tool_start(
        self, serialized: dict[str, Any] | None, input_str: str, *, run_id: UUID, inputs: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:  # fmt: skip
        """A tool is about to run."""
        tool = name((serialized or {}).get("name")) or name(keywords.get("name")) or "unknown"
        given = inputs if inputs is not None else {"input": input_str}
        more: dict[str, Any] = {"capture": CAPTURE}
        call_id = name(keywords.get("tool_call_id"))
        if call_id is not None:
            more["tool_call_id"] = call_id
        while len(self._runs) >= _OPEN_MAX:
            self._runs.pop(next(iter(self._runs)))
        asked_by = self._recorder.evidence.asked_for(tool, given) if _is_plain(given) else None
        self._runs[run_id] = Run(self._log, tool, list(given.items()), asked_by=asked_by, more=more)

    @_guarded
    def on_tool_end(self, output: Any, *, run_id: UUID, **keywords: Any) -> None:  # noqa: ARG002
        """A tool ended. A message whose status is ``error`` is a failure that the model is told."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        failed = getattr(output, "status", None) == "error"
        event = run.event(getattr(output, "content", output))
        event["details"]["is_error"] = failed
        event["outcome"] = "failure" if failed else "success"
        self._recorder.put(event, CLOCK.event_id())
        run.told()

    @_guarded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **keywords: Any) -> None:  # noqa: ARG002
        """A tool raised."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            event = run.event(error=error)
            event["details"]["is_error"] = True
            self._recorder.put(event, CLOCK.event_id())
            run.told()


def _reason(error: BaseException) -> BaseException:
    """What a wrapped error of a connection was, where an integration made it an error of its own."""
    while error.__cause__ is not None and any(kind.__name__ == "APIConnectionError" for kind in type(error).__mro__):
        error = error.__cause__
    return error


def _is_over(call: Call) -> None:
    if isinstance(call.asked, _Asked):
        call.asked.is_over = True


# -- what is asked ---------------------------------------------------------------------------------------------------------


def _names(keywords: Mapping[str, Any]) -> tuple[str, str | None]:
    """Provider and model."""
    metadata, params = keywords.get("metadata") or {}, keywords.get("invocation_params") or {}
    provider = name(metadata.get("ls_provider")) or name(params.get("_type")) or "unknown"
    return provider, name(metadata.get("ls_model_name") or params.get("model") or params.get("model_name"))


def _asked_chat(messages: Sequence[BaseMessage], keywords: Mapping[str, Any]) -> Asked:
    """Read as an OpenAI-compatible request, which LangChain can make of any messages of its own."""
    metadata, params = keywords.get("metadata") or {}, keywords.get("invocation_params") or {}
    provider, model = _names(keywords)
    body = {"temperature": metadata.get("ls_temperature"), "max_tokens": metadata.get("ls_max_tokens"), **params}
    asked = wire_openai.read_request("/chat/completions", {**body, "model": model, "stream": False, "messages": _messages(messages)})
    if asked is None:  # the path is one that it knows
        asked = Asked("chat", provider, model)
    asked.provider = provider
    given = params.get("format")  # of Ollama
    schema = _schema(keywords.get("options"))
    if asked.format is None and (given or schema):
        asked.format = "json_schema" if schema or isinstance(given, Mapping) else "json"
        asked.schema = given if isinstance(given, Mapping) else schema
        asked.content["format"] = asked.schema or given
    return asked


def _messages(messages: Sequence[BaseMessage]) -> list[Any]:
    try:
        found = convert_to_openai_messages(messages)
        return found if isinstance(found, list) else [found]
    except Exception:  # noqa: BLE001  # a kind of content that it has no word for
        return [{"role": message.type, "content": "".join(_texts(message.content))} for message in messages]


def _schema(options: Any) -> Any:
    """The schema that an answer has to be of, where it is the text that has to; not where it is said by the arguments of a tool."""
    said = options.get("ls_structured_output_format") if isinstance(options, Mapping) else None
    if not isinstance(said, Mapping) or (said.get("kwargs") or {}).get("method") != "json_schema":
        return None
    return said.get("schema") if isinstance(said.get("schema"), Mapping) else None


def _endpoint(serialized: Mapping[str, Any]) -> str:
    given = serialized.get("kwargs")
    if isinstance(given, Mapping):
        for word in ("openai_api_base", "base_url"):
            if isinstance(given.get(word), str):
                return str(given[word])
    found = _BASE_URL.search(str(serialized.get("repr") or ""))  # of integrations that cannot be serialised, ChatOllama is one
    return found[1] if found else ""


def _is_plain(given: Any) -> bool:
    """Of the kinds that JSON has: anything else has a ``__str__`` of its own, which is not asked for a link."""
    try:
        json.dumps(given)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


# -- what is answered ------------------------------------------------------------------------------------------------------


def _texts(content: Any) -> list[str]:
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    found = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | Mapping)]
    return [text for text in found if isinstance(text, str)]


def _say(answer: Answer, message: Any, choice: int = 0) -> None:
    """The text and the thinking of a message or of a piece of one."""
    content = getattr(message, "content", message)
    for text in _texts(content):
        answer.say(text, choice)
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") in ("reasoning", "thinking"):
            answer.think(part.get("reasoning") or part.get("thinking"))
    more = getattr(message, "additional_kwargs", None)
    if isinstance(more, Mapping):
        answer.think(more.get("reasoning_content"))
    if getattr(message, "tool_call_chunks", None):
        answer.bore = True


def _read(answer: Answer, part: Mapping[str, Any]) -> None:
    """A piece that LangChain made of an answer, or its result."""
    if "piece" in part:
        answer.chunks += 1
        _say(answer, part["piece"])
        return
    response, came_in_pieces = part["result"], answer.chunks > 0
    facts: dict[str, Any] = dict(response.llm_output or {})
    for choice, generation in enumerate(_generations(response)):
        message = getattr(generation, "message", None)
        if not came_in_pieces:
            _say(answer, generation.text if message is None else message, choice)
        facts |= {**(generation.generation_info or {}), **(getattr(message, "response_metadata", None) or {})}
        calls = [*(getattr(message, "tool_calls", None) or ()), *(getattr(message, "invalid_tool_calls", None) or ())]
        for number, call in enumerate(calls):
            answer.ask_tool((choice, number), call.get("name"), call.get("id"), call.get("args"))
        _usage(answer, getattr(message, "usage_metadata", None))
    _facts(answer, facts)
    if not came_in_pieces:
        answer.chunks = 1


def _generations(response: Any) -> list[Any]:
    generations = response.generations
    return list(generations[0]) if generations else []


def _facts(answer: Answer, facts: Mapping[str, Any]) -> None:
    before = answer.chunks, answer.input_tokens, answer.output_tokens
    if facts.get("done") is True:  # the last line of Ollama, with its durations
        wire_ollama.read_answer(answer, {key: value for key, value in facts.items() if key not in _KEEP_OUT})
        answer.chunks = before[0]
        answer.input_tokens = answer.input_tokens if before[1] is None else before[1]
        answer.output_tokens = answer.output_tokens if before[2] is None else before[2]
    answer.model = name(facts.get("model_name") or facts.get("model")) or answer.model
    answer.finish_reason = name(facts.get("finish_reason") or facts.get("done_reason") or facts.get("stop_reason"))
    answer.server_id, answer.fingerprint = name(facts.get("id")), name(facts.get("system_fingerprint"))
    usage = facts.get("token_usage")
    if isinstance(usage, Mapping) and answer.input_tokens is None and answer.output_tokens is None:
        answer.input_tokens, answer.output_tokens = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))


def _usage(answer: Answer, usage: Any) -> None:
    if not isinstance(usage, Mapping):
        return
    answer.input_tokens, answer.output_tokens = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    for group, member, word in (("input_token_details", "cache_read", "cached_tokens"),
                                ("output_token_details", "reasoning", "reasoning_tokens")):  # fmt: skip
        found = count((usage.get(group) or {}).get(member))
        if found:
            answer.more[word] = found


__all__ = ["AuditCallbackHandler"]
