"""The callback handler, with the real integrations for Ollama and OpenAI against a scripted server."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import warnings
from uuid import uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaLLM
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tallystick import AuditLogger, audit_context, event_id
from tallystick.capture.langchain import AuditCallbackHandler
from tallystick.core.errors import CallBlocked, StoreError
from tests.capture.server import ANSWER, ARGUMENTS, IMAGE, THOUGHT, ModelServer

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
MESSAGES = [SystemMessage("be brief"), HumanMessage("hello, xyzzy")]
PROMPT_CHARS = len("be briefhello, xyzzy")
MODELS = ["ollama", "openai"]


@tool
def weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@tool
def broken(city: str) -> str:
    """Raises."""
    raise ValueError("xyzzy")


class Trip(BaseModel):
    city: str
    days: int


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_behind():
    """The integrations leave closing to the collector, whose warnings would hit the tests of others."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            gc.collect()


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as logger:
        yield logger


@pytest.fixture
def server():
    with ModelServer() as running:
        yield running


@pytest.fixture
def chat(log, server):
    return lambda kind, script="ok", **more: model(server, kind, script, [AuditCallbackHandler(log)], **more)


def model(server, kind, script, callbacks, **more):
    if kind == "ollama":
        return ChatOllama(model=script, base_url=server.url, temperature=0.5, callbacks=callbacks, **more)
    return ChatOpenAI(model=script, base_url=server.url + "/v1", api_key="sk-xyzzy-not-for-the-log", max_retries=0, temperature=0.5,
                      callbacks=callbacks, **more)


def pair(log):
    """The one call: its request and its answer."""
    log.flush()
    [request] = log.query({"event_type": "ai_request"})
    [response] = log.query({"event_type": "ai_response"})
    assert response["parent_id"] == request["event_id"]
    return request, response


# -- calls -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_call_is_a_request_and_an_answer_and_the_message_bears_its_id(log, server, chat, kind):
    with audit_context(actor="ana", case="INV-7"):
        message = chat(kind).invoke(MESSAGES)
    assert message.content == ANSWER
    request, response = pair(log)
    assert event_id(message) == request["event_id"]
    assert (request["actor"], request["correlation_id"], request["resource"], request["action"]) == ("ana", "INV-7", "ok", "chat")
    asked, said = request["details"], response["details"]
    assert (asked["capture"], asked["provider"], asked["model_requested"], asked["prompt_chars"]) == ("langchain", kind, "ok", PROMPT_CHARS)
    assert (asked["parameters"], asked["messages"]) == ({"temperature": 0.5}, {"system": 1, "user": 1})
    assert asked["endpoint"] == server.url + ("/v1" if kind == "openai" else "")
    assert asked["client"].startswith("langchain-core/") and asked["client"].endswith("Chat" + {"ollama": "Ollama", "openai": "OpenAI"}[kind])
    assert "stream" not in asked
    assert (said["model"], said["response_chars"], said["finish_reason"], said["end"]) == ("ok", len(ANSWER), "stop", "ok")
    assert (said["input_tokens"], said["output_tokens"], said["stream"]) == (7, 5, kind == "ollama")
    assert (response["outcome"], said["latency_us"] > 0) == ("success", True)
    if kind == "ollama":
        assert said["server"]["total_us"] == 9000
        assert 0 < said["ttft_us"] <= said["latency_us"]


@pytest.mark.parametrize("kind", MODELS)
def test_the_request_is_on_record_before_anything_is_sent(log, server, kind):
    seen = []

    class Late(BaseCallbackHandler):
        run_inline = True

        def on_chat_model_start(self, *args, **keywords):
            seen.append((len(server.calls), len(log.query({"event_type": "ai_request"}))))

    model(server, kind, "ok", [AuditCallbackHandler(log), Late()]).invoke(MESSAGES)
    assert seen == [(0, 1)]


@pytest.mark.parametrize("kind", MODELS)
def test_no_content_is_in_an_entry_and_no_key(log, chat, kind):
    chat(kind).invoke(MESSAGES)
    for row in pair(log):
        line = log.stored(row["event_id"]).line
        assert b"xyzzy" not in line and "Grü".encode() not in line


@pytest.mark.parametrize("kind", MODELS)
def test_with_full_content_prompt_and_answer_are_kept_beside_the_log(log, chat, kind):
    log.recorder.content.default = "full"
    chat(kind).invoke(MESSAGES)
    request, response = pair(log)
    assert b"hello, xyzzy" in log.open_payload(request["event_id"], "prompt")
    assert log.open_payload(response["event_id"], "answer").decode() == ANSWER


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_coroutines(log, chat, kind, stream):
    async def main():
        with audit_context(actor="bot"):
            if stream:
                return [event_id(chunk) async for chunk in chat(kind).astream(MESSAGES) if chunk.chunk_position != "last"]
            return [event_id(await chat(kind).ainvoke(MESSAGES))]

    borne = asyncio.run(main())
    request, response = pair(log)
    assert set(borne) == {request["event_id"]}
    assert (request["actor"], response["actor"], response["details"]["end"]) == ("bot", "bot", "ok")
    assert response["details"]["response_chars"] == len(ANSWER)


def test_in_a_coroutine_it_runs_in_the_thread_that_makes_the_call(log, server, monkeypatch):
    threads, put = set(), type(log.recorder).put

    def note(self, *args):
        threads.add(threading.get_ident())
        put(self, *args)

    monkeypatch.setattr(type(log.recorder), "put", note)
    asyncio.run(model(server, "openai", "ok", [AuditCallbackHandler(log)]).ainvoke("x"))
    assert threads == {threading.get_ident()}


def test_many_calls_at_once_are_kept_apart(log, chat):
    async def main():
        return await asyncio.gather(*(chat("ollama" if n % 2 else "openai").ainvoke(f"number {n}") for n in range(8)))

    borne = {event_id(message) for message in asyncio.run(main())}
    log.flush()
    assert borne == {row["event_id"] for row in log.query({"event_type": "ai_request"})}
    assert borne == {row["parent_id"] for row in log.query({"event_type": "ai_response"})}
    assert len(borne) == 8


def test_batches_are_calls_of_their_own(log, chat):
    messages = chat("openai").batch(["a", "b", "c"])
    log.flush()
    assert {event_id(m) for m in messages} == {row["event_id"] for row in log.query({"event_type": "ai_request"})}
    assert len(log.query({"event_type": "ai_response"})) == 3


def test_a_text_model(log, server):
    OllamaLLM(model="ok", base_url=server.url, callbacks=[AuditCallbackHandler(log)]).invoke("hello")
    request, response = pair(log)
    assert (request["action"], request["details"]["prompt_chars"], request["details"]["provider"]) == ("text_completion", 5, "ollama")
    assert (response["details"]["response_chars"], response["details"]["output_tokens"], response["details"]["end"]) == (len(ANSWER), 5, "ok")


def test_thinking_is_measured_apart(log, chat):
    chat("ollama", "thinking", reasoning=True).invoke("x")
    details = pair(log)[1]["details"]
    assert (details["thinking_chars"], details["response_chars"]) == (len(THOUGHT), len(ANSWER))


@pytest.mark.parametrize("kind", MODELS)
def test_structured_output_is_checked_against_its_schema(log, chat, kind):
    assert chat(kind, "structured").with_structured_output(Trip, method="json_schema").invoke("x") == Trip(city="Köln", days=2)
    request, response = pair(log)
    assert (request["details"]["format"], response["details"]["format_valid"]) == ("json_schema", True)


def test_images_are_their_size_and_type(log, chat):
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
    chat("openai").invoke([HumanMessage([{"type": "text", "text": "what is it?"}, part])])
    request = pair(log)[0]
    assert request["details"]["images"] == [{"bytes": 70, "type": "image/png"}]
    assert request["details"]["prompt_chars"] == 11
    assert IMAGE[:20].encode() not in log.stored(request["event_id"]).line


def test_an_answer_that_is_repeated_later_counts_as_used(log, chat):
    first = chat("openai").invoke("hello")
    chat("ollama").invoke([HumanMessage("hello"), AIMessage(first.content), HumanMessage("and now?")])
    log.flush()
    [outcome] = log.query({"event_type": "ai.outcome"})
    assert (outcome["parent_id"] != event_id(first), outcome["details"]["call"], outcome["details"]["evidence"]) == (True, event_id(first), "repeated")


# -- streams ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_stream_that_is_read_to_its_end(log, chat, kind):
    chunks = list(chat(kind).stream(MESSAGES))
    request, response = pair(log)
    assert {event_id(c) for c in chunks if c.chunk_position != "last" or c.content} <= {request["event_id"]}
    details = response["details"]
    assert (details["end"], details["stream"], details["response_chars"]) == ("ok", True, len(ANSWER))
    assert 0 < details["ttft_us"] <= details["latency_us"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dropped", [False, True])
def test_a_stream_that_is_closed_early(log, chat, kind, dropped):
    stream = chat(kind).stream(MESSAGES)
    next(stream)
    if not dropped:
        stream.close()
    del stream
    gc.collect()
    response = pair(log)[1]
    assert (response["outcome"], response["details"]["end"], response["details"]["response_chars"]) == ("partial", "closed", 3)


@pytest.mark.parametrize("kind", MODELS)
def test_a_stream_in_a_coroutine_that_is_closed_early(log, chat, kind):
    async def main():
        stream = chat(kind).astream(MESSAGES)
        await anext(stream)
        await stream.aclose()

    asyncio.run(main())
    assert pair(log)[1]["details"]["end"] == "closed"


def test_a_task_that_is_cancelled(log, server, chat):
    async def main():
        stream = chat("ollama", "slow").astream(MESSAGES)
        await anext(stream)
        await anext(stream)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert pair(log)[1]["details"]["end"] == "cancelled"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("script", "end"), [("cut", "cut"), ("mid_error", "mid_stream_error")])
def test_a_stream_that_breaks(log, chat, kind, script, end):
    with pytest.raises(Exception):
        list(chat(kind, script).stream(MESSAGES))
    response = pair(log)[1]
    assert (response["outcome"], response["details"]["end"]) == ("partial", end)
    assert response["details"]["response_chars"] == len("Grüße ")


@pytest.mark.parametrize("kind", MODELS)
def test_a_stream_that_never_says_it_is_done(log, chat, kind):
    list(chat(kind, "no_done").stream(MESSAGES))
    assert pair(log)[1]["details"]["end"] == "truncated"


def test_a_stream_that_is_never_read_is_no_call(log, server, chat):
    chat("ollama").stream(MESSAGES).close()
    log.flush()
    assert log.query({"event_type": "ai_request"}) == [] and server.calls == []


# -- errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("status", [404, 500])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_status(log, chat, kind, status, stream):
    with pytest.raises(Exception) as caught:
        list(chat(kind, str(status)).stream(MESSAGES)) if stream else chat(kind, str(status)).invoke(MESSAGES)
    assert not getattr(caught.value, "__notes__", None)
    response = pair(log)[1]
    assert (response["outcome"], response["details"]["end"], response["details"]["status"]) == ("failure", "http_error", status)
    assert b"boom" not in log.stored(response["event_id"]).line


@pytest.mark.parametrize("kind", MODELS)
def test_no_connection(log, chat, server, kind):
    server.url = "http://127.0.0.1:9"
    with pytest.raises(Exception):
        chat(kind).invoke("x")
    assert pair(log)[1]["details"]["end"] == "refused"


def test_each_attempt_of_a_retry_is_a_call(log, server, chat):
    answer = chat("openai", "retry").with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("x")
    assert answer.content == ANSWER
    log.flush()
    assert [row["details"]["end"] for row in log.query({"event_type": "ai_response"})] == ["http_error", "ok"]


# -- tools -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_linked_to_the_call_that_asked_for_it(log, chat, kind, stream):
    bound = chat(kind, "tools").bind_tools([weather])
    if stream:
        whole = None
        for chunk in bound.stream("the weather?"):
            whole = chunk if whole is None else whole + chunk
    else:
        whole = bound.invoke("the weather?")
    request, response = pair(log)
    [call] = response["details"]["tool_calls"]
    assert (call["name"], call["arguments_chars"], response["details"]["response_chars"]) == ("weather", 24, 0)
    assert request["details"]["tools"] == ["weather"]
    [asked] = whole.tool_calls
    assert asked["args"] == ARGUMENTS
    result = weather.invoke(asked, config={"callbacks": [AuditCallbackHandler(log)]})
    assert isinstance(result, ToolMessage)
    [row] = log.query({"event_type": "ai.tool"})
    assert (row["action"], row["outcome"], row["parent_id"]) == ("weather", "success", request["event_id"])
    details = row["details"]
    assert (details["tool"], details["is_error"], details["asked_by"], details["capture"]) == ("weather", False, request["event_id"], "langchain")
    assert [(a["name"], a["type"]) for a in details["arguments"]] == [("city", "str"), ("days", "int")]
    assert (details["result"]["length"], details["tool_call_id"]) == (len("sunny in Köln"), asked["id"])
    assert "Köln".encode() not in log.stored(row["event_id"]).line
    log.flush()
    [outcome] = log.query({"event_type": "ai.outcome"})
    assert (outcome["details"]["call"], outcome["details"]["evidence"]) == (request["event_id"], "tool executed")


def test_a_tool_that_raises(log):
    with pytest.raises(ValueError):
        broken.invoke({"city": "x"}, config={"callbacks": [AuditCallbackHandler(log)]})
    [row] = log.query({"event_type": "ai.tool"})
    assert (row["outcome"], row["details"]["is_error"], row["details"]["error"]) == ("failure", True, {"type": "ValueError", "length": 5})
    assert b"xyzzy" not in log.stored(row["event_id"]).line


def test_a_tool_in_a_coroutine(log):
    async def main():
        with audit_context(actor="bot"):
            await weather.ainvoke({"city": "Bonn"}, config={"callbacks": [AuditCallbackHandler(log)]})

    asyncio.run(main())
    [row] = log.query({"event_type": "ai.tool"})
    assert (row["actor"], row["outcome"], "parent_id" in row) == ("bot", "success", False)


def test_a_tool_that_tells_the_model_that_it_failed(log):
    handler, run = AuditCallbackHandler(log), uuid4()
    handler.on_tool_start({"name": "weather"}, "{}", run_id=run, inputs={"city": object()})
    handler.on_tool_end(ToolMessage("no such city", tool_call_id="1", status="error"), run_id=run)
    [row] = log.query({"event_type": "ai.tool"})
    assert (row["outcome"], row["details"]["is_error"]) == ("failure", True)


# -- when the log cannot be written, and what nobody should send -------------------------------------------------------------


def unwritable(log, monkeypatch):
    def fail(*args, **keywords):
        raise StoreError("no")

    monkeypatch.setattr(type(log.recorder.journal), "put", fail)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_with_block_a_call_that_cannot_be_recorded_is_not_made(log, server, monkeypatch, way):
    log.recorder.failure = "block"
    chat = model(server, "ollama", "ok", [AuditCallbackHandler(log)])
    unwritable(log, monkeypatch)
    with pytest.raises(CallBlocked):
        if way == "ainvoke":
            asyncio.run(chat.ainvoke(MESSAGES))
        else:
            list(getattr(chat, way)(MESSAGES))
    assert server.calls == []
    monkeypatch.undo()


def test_with_block_an_answer_that_cannot_be_recorded_is_in_the_error(log, server, monkeypatch):
    log.recorder.failure = "block"
    chat = model(server, "openai", "ok", [AuditCallbackHandler(log)])
    put = type(log.recorder.journal).put

    def fail(self, keywords, minted):
        if keywords["event_type"] == "ai_response":
            raise StoreError("no")
        put(self, keywords, minted)

    monkeypatch.setattr(type(log.recorder.journal), "put", fail)
    with pytest.raises(CallBlocked) as caught:
        chat.invoke(MESSAGES)
    assert caught.value.result.generations[0][0].message.content == ANSWER
    monkeypatch.undo()


@pytest.mark.parametrize("failure", ["spool", "warn"])
def test_otherwise_the_call_is_made_and_nothing_is_raised(log, server, monkeypatch, failure):
    log.recorder.failure = failure
    chat = model(server, "ollama", "ok", [AuditCallbackHandler(log)])
    unwritable(log, monkeypatch)
    assert chat.invoke(MESSAGES).content == ANSWER
    monkeypatch.undo()


def test_what_cannot_be_read_is_noted_and_does_no_harm(log, caplog):
    handler, run = AuditCallbackHandler(log), uuid4()
    with caplog.at_level(logging.ERROR, logger="tallystick"):
        for _ in range(2):
            handler.on_chat_model_start({}, 7, run_id=run)
        handler.on_llm_new_token("x", run_id=run)
        handler.on_llm_end(None, run_id=run)
        handler.on_llm_error(ValueError(), run_id=run)
        handler.on_tool_end("x", run_id=run)
        handler.on_tool_error(ValueError(), run_id=run)
        handler.on_chat_model_start({"repr": "base_url='http://u:xyzzy@h/v1?key=xyzzy'"}, [[HumanMessage([{"type": "odd"}])]], run_id=run)
        handler.on_llm_end("no result", run_id=run)
    assert caplog.records[0].getMessage().endswith("TypeError (said once)")
    log.flush()
    [row] = log.query({"event_type": "ai_request"})
    assert row["details"]["endpoint"] == "http://h/v1"


def test_a_run_that_nobody_ends_is_abandoned_when_the_log_is_closed(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        handler = AuditCallbackHandler(log)
        handler.on_llm_start({}, ["x"], run_id=uuid4(), invocation_params={"_type": "odd", "model": "m"})
    with AuditLogger(tmp_path / "audit_log") as log:
        assert pair(log)[1]["details"]["end"] == "abandoned"


def test_without_langchain_the_import_says_what_to_install():
    code = "import sys; sys.modules['langchain_core'] = None\nimport tallystick.capture.langchain"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install tallystick[langchain]" in found.stderr
