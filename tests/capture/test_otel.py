"""Spans of the real instrumentations, four dialects, against a scripted server; and the spans nobody there makes, by hand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import subprocess
import sys
import time

import ollama
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from tallystick import AuditLogger, audit_context
from tallystick.capture.otel import AuditSpanProcessor
from tests.capture.server import ANSWER, ARGUMENTS, ModelServer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the instrumentations about each other's packages
DIALECTS = {
    "conventions": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
    "openllmetry": ("opentelemetry.instrumentation.openai", "OpenAIInstrumentor"),
    "older": ("opentelemetry.instrumentation.ollama", "OllamaInstrumentor"),
    "openinference": ("openinference.instrumentation.openai", "OpenAIInstrumentor"),
    "openinference ollama": ("openinference.instrumentation.ollama", "OllamaInstrumentor"),
}
SCOPES = {"conventions": "opentelemetry.instrumentation.genai.openai", "openllmetry": "opentelemetry.instrumentation.openai.v1",
          "older": "opentelemetry.instrumentation.ollama", "openinference": "openinference.instrumentation.openai",
          "openinference ollama": "openinference.instrumentation.ollama"}
OPENAI, OLLAMA = ["conventions", "openllmetry", "openinference"], ["older", "openinference ollama"]
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello, xyzzy"}]
PROMPT_CHARS = len("be briefhello, xyzzy")
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "the weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]
ARGUMENTS_CHARS = len('{"city":"Köln","days":2}')


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        yield logger


@pytest.fixture
def server():
    with ModelServer() as running:
        running.opened = []  # clients are in cycles with what instruments them, and would be collected some time
        yield running
        for client in running.opened:
            client.close()


@pytest.fixture
def provider(log):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(AuditSpanProcessor(log))
    yield provider
    provider.shutdown()


@pytest.fixture
def tracer(provider):
    return provider.get_tracer("made.by.hand", "1.0")


@pytest.fixture
def instrumented(provider, monkeypatch):
    """``instrumented(dialect)`` instruments; whatever it patched is put back, also where its own ``uninstrument`` does not."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    before = [(owner, dict(vars(owner))) for owner in _owners()]
    done = []

    def instrument(dialect):
        module, kind = DIALECTS[dialect]
        one = getattr(importlib.import_module(module), kind)()
        one.instrument(tracer_provider=provider)
        done.append(one)

    yield instrument
    for one in reversed(done):
        one.uninstrument()
    for owner, names in before:
        for name, value in names.items():
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)


def _owners():
    """What instrumentations patch: the modules and classes of both clients, loaded now, so that nothing of it is loaded patched."""
    names = ["ollama", "ollama._client", "openai", "openai._client", "openai._base_client"]
    names += [f"openai.resources.{n}" for n in ("chat.completions.completions", "completions", "embeddings", "responses.responses")]
    owners = []
    for module in map(importlib.import_module, names):
        owners.append(module)
        owners += [v for _, v in list(vars(module).items()) if isinstance(v, type) and v.__module__.split(".")[0] in ("openai", "ollama")]
    return owners


def to_openai(server):
    server.opened.append(client := openai.OpenAI(base_url=server.url + "/v1", api_key="sk-xyzzy-not-for-the-log", max_retries=0))
    return client


def chat(dialect, server, model="ok", **more):
    if dialect in OLLAMA:
        client = ollama.Client(server.url)
        server.opened.append(client._client)
        return client.chat(model, MESSAGES, **more)
    if more.get("stream"):
        more["stream_options"] = {"include_usage": True}
    return to_openai(server).chat.completions.create(model=model, messages=MESSAGES, **more)


def only(log, kind="ai_response"):
    log.flush()
    [row] = log.query({"event_type": kind})
    return row


# -- the four dialects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_of_any_dialect_is_one_entry_under_our_names(log, server, instrumented, dialect):
    instrumented(dialect)
    before = time.time_ns() // 1000
    with audit_context(actor="ana", case="INV-7"):
        chat(dialect, server)
    assert log.query({"event_type": "ai_request"}) == []
    row = only(log)
    details = row["details"]
    assert (row["actor"], row["correlation_id"], row["resource"], row["action"], row["outcome"]) == ("ana", "INV-7", "ok", "chat", "success")
    assert (details["operation"], details["model_requested"], details["model"], details["end"]) == ("chat", "ok", "ok", "ok")
    assert details["provider"] == ("ollama" if dialect in OLLAMA else "openai")
    assert (details["capture"], details["completeness"], details["content"]) == ("otel", "best_effort", "commitment")
    assert (details["prompt_chars"], details["response_chars"]) == (PROMPT_CHARS, len(ANSWER))
    assert (details["input_tokens"], details["output_tokens"]) == (7, 5)
    assert details["messages"] == {"system": 1, "user": 1}
    assert details.get("finish_reason") == (None if dialect == "older" else "stop")
    assert details["scope"]["name"] == SCOPES[dialect] and details["scope"]["version"]
    assert (details["scope"].get("schema_url") is not None) == (dialect == "conventions")
    assert 0 < details["latency_us"] < 60_000_000
    assert len(row["trace_id"]) == 32 and len(details["span_id"]) == 16 and "parent_span_id" not in details
    entry = log.entry(row["event_id"])
    assert before <= entry.timestamp_us <= time.time_ns() // 1000 - details["latency_us"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_content_is_never_in_an_entry_and_kept_beside_it_only_by_the_policy(tmp_path, server, instrumented, provider, dialect):
    instrumented(dialect)
    with AuditLogger(tmp_path / "full") as log:
        log.recorder.content.default = "full"
        provider.add_span_processor(AuditSpanProcessor(log))
        chat(dialect, server)
        row = only(log)
        line = log.stored(row["event_id"]).line
        assert b"xyzzy" not in line and b"from" not in line.replace(b'"from"', b"")
        assert log.open_payload(row["event_id"], "answer").decode() == ANSWER
        assert b"hello, xyzzy" in log.open_payload(row["event_id"], "prompt")
        assert set(row["details"]["commitments"]) == {"prompt", "answer"}
        log.recorder.content.default = "none"
        chat(dialect, server)
        none = log.query({"event_type": "ai_response"})[1]
        assert not {"prompt_chars", "response_chars", "commitments"} & set(none["details"])
        assert "payloads" not in none


@pytest.mark.parametrize("dialect", ["conventions", "openllmetry", "openinference", "openinference ollama"])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_named_and_measured(log, server, instrumented, dialect, stream):
    instrumented(dialect)
    answer = chat(dialect, server, "tools", tools=TOOLS, stream=stream)
    if stream:
        list(answer)
    details = only(log)["details"]
    [call] = details["tool_calls"]
    assert call["name"] == "weather"
    assert call["arguments_chars"] in (ARGUMENTS_CHARS, ARGUMENTS_CHARS + 3)  # as it was written, or compact
    assert call.get("id") == (None if "ollama" in dialect else "call_1")
    if not stream and dialect != "openllmetry":
        assert details["tools"] == ["weather"]
    if "ollama" not in dialect:
        assert details["finish_reason"] == "tool_calls"


def test_tool_calls_that_an_instrumentation_loses_are_said_to_be_missing(log, server, instrumented):
    instrumented("older")
    chat("older", server, "tools", tools=TOOLS)
    details = only(log)["details"]
    assert details["content_missing"] == ["answer"]
    assert "tool_calls" not in details and "response_chars" not in details
    assert (details["tools"], details["end"]) == (["weather"], "ok")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_was_read_to_its_end_is_ok_whatever_its_status(log, server, instrumented, dialect):
    instrumented(dialect)
    list(chat(dialect, server, stream=True))
    details = only(log)["details"]
    assert (details["end"], details["stream"], details["response_chars"]) == ("ok", True, len(ANSWER))
    if dialect in ("conventions", "openllmetry", "openinference"):
        assert 0 < details["ttft_us"] <= details["latency_us"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_was_closed_early_is_not_ok_whatever_its_status(log, server, instrumented, dialect):
    instrumented(dialect)
    stream = chat(dialect, server, stream=True)
    next(iter(stream))
    stream.close()
    del stream
    gc.collect()
    row = only(log)
    assert row["details"]["end"] == "truncated"
    assert row["outcome"] == ("failure" if dialect == "older" else "partial")  # of the older form nothing is left
    assert "output_tokens" not in row["details"]
    if dialect == "older":
        assert row["details"]["content_missing"] == ["answer"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_never_said_it_is_done_is_not_ok(log, server, instrumented, dialect):
    instrumented(dialect)
    list(chat(dialect, server, "no_done", stream=True))
    details = only(log)["details"]
    assert (details["end"], details["response_chars"]) == ("truncated", len(ANSWER))
    assert "output_tokens" not in details and "input_tokens" not in details  # also where the span has zeros for them


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("script", "end"), [("cut", "cut"), ("mid_error", "mid_stream_error")],
)
def test_a_stream_that_broke(log, server, instrumented, dialect, script, end):
    instrumented(dialect)
    with pytest.raises(Exception):
        list(chat(dialect, server, script, stream=True))
    gc.collect()
    row = only(log)
    # OpenLLMetry for openai ends these spans with status OK and without a word about an error
    assert row["details"]["end"] == ("truncated" if dialect == "openllmetry" else end)
    assert row["outcome"] == ("failure" if dialect == "older" else "partial")
    if dialect != "openllmetry":
        assert row["details"]["error"]["type"] in ("APIConnectionError", "APIError", "RemoteProtocolError", "ResponseError")
    assert b"an error was encountered" not in log.stored(row["event_id"]).line


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("status", [404, 500])
def test_an_error_status(log, server, instrumented, dialect, status):
    instrumented(dialect)
    with pytest.raises(Exception):
        chat(dialect, server, str(status))
    row = only(log)
    assert (row["outcome"], row["details"]["end"]) == ("failure", "http_error")
    if dialect != "conventions":  # which says the class of the error only
        assert row["details"]["status"] == status
    assert "response_chars" not in row["details"]


@pytest.mark.parametrize("dialect", OPENAI)
def test_embeddings_are_counted_not_kept(log, server, instrumented, dialect):
    instrumented(dialect)
    to_openai(server).embeddings.create(model="ok", input=["xyzzy", "bc"])
    row = only(log)
    details = row["details"]
    assert (details["operation"], details["end"], details["input_tokens"]) == ("embeddings", "ok", 7)
    assert "response_chars" not in details and "output_tokens" not in details
    if dialect != "conventions":
        assert (details["inputs"], details["prompt_chars"]) == (2, 7)
    assert details.get("dimensions") == (None if dialect == "openllmetry" else 3)
    assert b"xyzzy" not in log.stored(row["event_id"]).line and b"0.125" not in log.stored(row["event_id"]).line


@pytest.mark.parametrize("dialect", ["openllmetry", "openinference"])
def test_a_completion_that_is_no_chat(log, server, instrumented, dialect):
    instrumented(dialect)
    to_openai(server).completions.create(model="ok", prompt="xyzzy")
    details = only(log)["details"]
    assert (details["operation"], details["prompt_chars"], details["response_chars"]) == ("text_completion", 5, len(ANSWER))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_in_a_coroutine(log, server, instrumented, dialect):
    instrumented(dialect)

    async def main():
        if dialect in OLLAMA:
            client = ollama.AsyncClient(server.url)
            async for _ in await client.chat("ok", MESSAGES, stream=True):
                pass
            await client._client.aclose()
        else:
            async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
                await client.chat.completions.create(model="ok", messages=MESSAGES)

    asyncio.run(main())
    assert only(log)["details"]["end"] == "ok"


def test_what_is_hidden_or_off_is_missing_and_not_zero(log, server, instrumented, monkeypatch):
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    monkeypatch.setenv("OPENINFERENCE_HIDE_OUTPUTS", "true")
    instrumented("openinference ollama")
    chat("openinference ollama", server)
    details = only(log)["details"]
    assert details["content_missing"] == ["prompt", "answer"]
    assert not {"prompt_chars", "response_chars", "commitments"} & set(details)
    assert (details["end"], details["output_tokens"]) == ("ok", 5)


# -- counted once ----------------------------------------------------------------------------------------------------------


def test_two_instrumentations_of_one_call_are_counted_once(log, server, instrumented):
    instrumented("openllmetry")
    instrumented("conventions")
    chat("conventions", server)
    call, around = only(log), only(log, "ai.span")
    assert around["details"]["duplicate_of"] == call["event_id"]
    assert around["trace_id"] == call["trace_id"]
    assert call["details"]["parent_span_id"] == around["details"]["span_id"]
    assert {call["details"]["scope"]["name"], around["details"]["scope"]["name"]} == {SCOPES["conventions"], SCOPES["openllmetry"]}


CALL = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
        "gen_ai.response.finish_reasons": ("stop",)}


def test_a_framework_around_a_provider_with_other_spans_between_is_counted_once(log, tracer):
    with tracer.start_as_current_span("agent", attributes={"gen_ai.operation.name": "invoke_agent"}):
        with tracer.start_as_current_span("framework", attributes={"openinference.span.kind": "LLM", "llm.model_name": "m"}):
            with tracer.start_as_current_span("retry"), tracer.start_as_current_span("provider", attributes=CALL):
                pass
        with tracer.start_as_current_span("alone", attributes=CALL):
            pass
    calls = log.query({"event_type": "ai_response"})
    assert len(calls) == 2
    assert only(log, "ai.span")["details"]["duplicate_of"] == calls[0]["event_id"]


def test_a_provider_span_that_ends_after_the_framework_is_the_duplicate_then(log, tracer):
    outer = tracer.start_span("framework", attributes=CALL)
    inner = tracer.start_span("provider", attributes=CALL, context=set_span_in_context(outer))
    outer.end()
    inner.end()
    assert only(log, "ai.span")["details"]["duplicate_of"] == only(log)["event_id"]


def test_what_a_tool_asks_is_another_call(log, tracer):
    with tracer.start_as_current_span("loop", attributes=CALL):
        with tracer.start_as_current_span("t", attributes={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ask"}):
            with tracer.start_as_current_span("inner", attributes=CALL):
                pass
    assert len(log.query({"event_type": "ai_response"})) == 2
    assert log.query({"event_type": "ai.span"}) == []


def test_a_span_that_comes_twice_is_recorded_once(log, provider, tracer):
    provider.add_span_processor(AuditSpanProcessor(log))
    with tracer.start_as_current_span("chat", attributes=CALL):
        pass
    assert len(log.query({"event_type": ["ai_request", "ai_response", "ai.span"]})) == 1


def test_the_event_id_of_a_span_is_known_and_outcomes_are_bound_to_it(log, provider):
    processor = AuditSpanProcessor(log)
    provider.add_span_processor(processor)
    with provider.get_tracer("x").start_as_current_span("chat", attributes=CALL) as span:
        assert processor.event_id(span) is None
    assert processor.event_id(span) == only(log)["event_id"]
    log.outcome(processor.event_id(span), "used", ref="erp:1")
    assert only(log, "ai.outcome")["parent_id"] == processor.event_id(span)


# -- tools -----------------------------------------------------------------------------------------------------------------

TOOL_DIALECTS = {
    "conventions": {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather", "gen_ai.tool.call.id": "call_1",
                    "gen_ai.tool.call.arguments": '{"city":"Köln","days":2}', "gen_ai.tool.call.result": "xyzzy"},
    "openllmetry": {"traceloop.span.kind": "tool", "traceloop.entity.name": "weather", "traceloop.entity.input": '{"city":"Köln","days":2}',
                    "traceloop.entity.output": "xyzzy"},
    "openinference": {"openinference.span.kind": "TOOL", "tool.name": "weather", "input.value": '{"city":"Köln","days":2}',
                      "input.mime_type": "application/json", "output.value": "xyzzy"},
}


@pytest.mark.parametrize("dialect", TOOL_DIALECTS)
def test_a_tool_is_an_entry_that_points_to_the_call_that_asked_for_it(log, server, tracer, instrumented, dialect):
    instrumented("openinference")
    chat("openinference", server, "tools", tools=TOOLS)
    with tracer.start_as_current_span("run", attributes=TOOL_DIALECTS[dialect]):
        pass
    row, call = only(log, "ai.tool"), only(log)
    assert (row["action"], row["resource"], row["outcome"], row["parent_id"]) == ("weather", "tool:weather", "success", call["event_id"])
    details = row["details"]
    assert (details["tool"], details["is_error"], details["arguments_chars"], details["result_chars"]) == ("weather", False, 24, 5)
    assert details["latency_us"] >= 0
    assert b"xyzzy" not in log.stored(row["event_id"]).line and "Köln".encode() not in log.stored(row["event_id"]).line
    assert only(log, "ai.outcome")["details"]["evidence"] == "tool executed"
    assert ARGUMENTS["city"] == "Köln"


def test_a_tool_that_raised(log, tracer):
    with contextlib.suppress(ValueError):
        with tracer.start_as_current_span("run", attributes=TOOL_DIALECTS["conventions"]):
            raise ValueError("xyzzy")
    row = only(log, "ai.tool")
    assert (row["outcome"], row["details"]["is_error"]) == ("failure", True)
    assert row["details"]["error"] == {"type": "ValueError", "length": 5}
    assert b"xyzzy" not in log.stored(row["event_id"]).line


# -- spans that are not ours, and hostile ones ------------------------------------------------------------------------------


def test_spans_without_a_model_are_not_recorded(log, tracer):
    before = log.entry_count()
    with tracer.start_as_current_span("GET /", attributes={"http.request.method": "GET"}):
        with tracer.start_as_current_span("chain", attributes={"openinference.span.kind": "CHAIN", "input.value": "xyzzy"}):
            pass
        with tracer.start_as_current_span("flow", attributes={"traceloop.span.kind": "workflow", "gen_ai.system": "x"}):
            pass
    assert log.entry_count() == before


@pytest.mark.parametrize("attributes", [
    {"gen_ai.input.messages": "{not json"}, {"gen_ai.input.messages": '[1, {"parts": [2, {"type": "text"}]}, null]'},
    {"gen_ai.output.messages": "[" * 5000}, {"gen_ai.usage.output_tokens": -1, "gen_ai.usage.input_tokens": 1.5},
    {"gen_ai.request.model": "m" * 5000}, {"gen_ai.response.finish_reasons": ()}, {"gen_ai.prompt.0.tool_calls.0.name": 7},
    {"gen_ai.request.model": "\ud800"}, {"llm.invocation_parameters": "[]"}, {"gen_ai.openai.api_base": "http://u:xyzzy@[::"},
    {"gen_ai.completion.0.content": "\udfff xyzzy"}, {"error.type": ""}, {"server.address": "h", "server.port": "no"},
])  # fmt: skip
def test_odd_attributes_are_read_as_far_as_they_go(log, tracer, attributes):
    with tracer.start_as_current_span("chat", attributes={**CALL, **attributes}):
        pass
    assert b"xyzzy" not in log.stored(only(log)["event_id"]).line


def test_nothing_reaches_the_application_when_the_log_cannot_be_written(log, tracer, monkeypatch, caplog):
    def fail(*args, **keywords):
        raise RuntimeError("xyzzy")

    monkeypatch.setattr(log.recorder, "put", fail)
    with caplog.at_level(logging.ERROR, logger="tallystick"):
        for _ in range(2):
            with tracer.start_as_current_span("chat", attributes=CALL):
                pass
    assert [r.getMessage() for r in caplog.records] == ["a span could not be recorded: RuntimeError (said once)"]


def test_with_block_the_application_goes_on_since_its_call_is_over(tmp_path, caplog):
    log = AuditLogger(tmp_path / "audit_log")
    log.recorder.failure = "block"
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(AuditSpanProcessor(log))
    log.close()
    with caplog.at_level(logging.ERROR, logger="tallystick"):
        with provider.get_tracer("x").start_as_current_span("chat", attributes=CALL):
            pass
    assert "NOT recorded" in caplog.text


def test_a_span_that_ends_in_a_finaliser_inside_the_log_is_recorded_late(log, tracer, monkeypatch):
    from tallystick.capture.evidence import Evidence

    span = tracer.start_span("chat", attributes=CALL)
    real = Evidence.finished

    def interrupted(self, *args):
        monkeypatch.setattr(Evidence, "finished", real)
        exec(compile("with lock:\n  end()", "evidence.py", "exec"),
             {"__name__": "tallystick.capture.evidence", "lock": self._lock, "end": span.end})  # what a collection may do here

    monkeypatch.setattr(Evidence, "finished", interrupted)
    with audit_context(actor="ana"):
        tracer.start_span("chat", attributes=CALL).end()
    log.flush()
    assert [row["actor"] for row in log.query({"event_type": "ai_response"})] == ["ana", "ana"]


def test_status_ok_of_an_answer_that_was_no_stream_is_a_sign_of_its_end(log, tracer):
    bare = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    for more, status in (({}, StatusCode.OK), ({}, StatusCode.UNSET), ({"gen_ai.request.stream": True}, StatusCode.OK)):
        with tracer.start_as_current_span("chat", attributes={**bare, **more}) as span:
            span.set_status(Status(status))
    assert [row["details"]["end"] for row in log.query({"event_type": "ai_response"})] == ["ok", "truncated", "truncated"]


def test_a_span_of_a_tracer_that_does_not_sample_leaves_nothing(log):
    with trace.NoOpTracerProvider().get_tracer("x").start_as_current_span("chat", attributes=CALL):
        pass
    assert log.query({"event_type": "ai_response"}) == []


def test_without_the_sdk_the_import_says_what_to_install():
    code = "import sys; sys.modules['opentelemetry.sdk.trace'] = None\nimport tallystick.capture.otel"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install tallystick[otel]" in found.stderr
