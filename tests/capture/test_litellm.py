"""The callback for LiteLLM, with the real package against a scripted server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import warnings
from datetime import datetime, timedelta

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a price list when it is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import litellm

    from tallystick.capture.litellm import AuditLiteLLM

from tallystick import AuditLogger, audit_context
from tallystick.core.errors import StoreError
from tests.capture.server import ANSWER, THOUGHT, ModelServer

pytestmark = pytest.mark.filterwarnings("ignore")
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello, xyzzy"}]
PROMPT_CHARS = len("be briefhello, xyzzy")
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "the weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]
PROVIDERS = ["ollama", "ollama_chat", "openai"]


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_behind():
    """LiteLLM leaves clients and loops to the collector, whose warnings would hit the tests of others."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        litellm.in_memory_llm_clients_cache.flush_cache()
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
def handler(log, monkeypatch):
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    handler = AuditLiteLLM(log)
    litellm.callbacks = [handler]
    yield handler
    litellm.logging_callback_manager._reset_all_callbacks()


@pytest.fixture
def complete(server, handler):
    return lambda provider, script="ok", **more: litellm.completion(**given(server, provider, script, **more))


def given(server, provider, script="ok", **more):
    base = server.url + ("/v1" if provider == "openai" else "")
    return {"model": f"{provider}/{script}", "messages": MESSAGES, "api_base": base, "api_key": "sk-xyzzy-not-for-the-log",
            "max_retries": 0, "num_retries": 0, **more}


def run(handler, make):
    """A coroutine, and then what LiteLLM has to say of it: by tasks of the same loop."""
    async def main():
        try:
            return await make()
        finally:
            assert await asyncio.get_running_loop().run_in_executor(None, handler.flush)

    return asyncio.run(main())


def pair(log, handler):
    """The one call: its request and its answer."""
    assert handler.flush()
    [request] = log.query({"event_type": "ai_request"})
    [response] = log.query({"event_type": "ai_response"})
    assert response["parent_id"] == request["event_id"]
    return request, response


# -- calls -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_call_is_a_request_and_an_answer(log, server, handler, complete, provider):
    with audit_context(actor="ana", case="INV-7"):
        answer = complete(provider, temperature=0.5)
    assert answer.choices[0].message.content == ANSWER
    request, response = pair(log, handler)
    assert handler.event_id(answer) == request["event_id"]
    assert (request["actor"], request["correlation_id"], request["resource"], request["action"]) == ("ana", "INV-7", "ok", "chat")
    assert (response["actor"], response["outcome"]) == ("ana", "success")
    asked, said = request["details"], response["details"]
    assert (asked["capture"], asked["provider"], asked["model_requested"]) == ("litellm", provider.split("_")[0], "ok")
    assert (asked["prompt_chars"], asked["messages"], asked["stream"]) == (PROMPT_CHARS, {"system": 1, "user": 1}, False)
    assert asked["parameters"]["temperature"] == 0.5
    assert asked["endpoint"].startswith(server.url)
    assert asked["client"].startswith("litellm/")
    assert (said["model"], said["response_chars"], said["finish_reason"], said["end"]) == ("ok", len(ANSWER), "stop", "ok")
    assert (said["input_tokens"], said["output_tokens"]) == (7, 5)
    assert 0 < said["latency_us"] < 60_000_000
    assert "server_id" not in said  # LiteLLM's, not the server's


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("way", ["completion", "stream", "acompletion", "astream"])
def test_the_request_is_on_record_before_anything_is_sent(log, server, handler, monkeypatch, provider, way):
    seen, begin = [], AuditLiteLLM.log_pre_api_call

    def look(self, *args, **keywords):
        begin(self, *args, **keywords)
        seen.append((len(server.calls), len(log.query({"event_type": "ai_request"}))))

    monkeypatch.setattr(AuditLiteLLM, "log_pre_api_call", look)
    call = given(server, provider, stream="stream" in way)
    if way.startswith("a"):
        async def make():
            answer = await litellm.acompletion(**call)
            return [chunk async for chunk in answer] if way == "astream" else answer

        run(handler, make)
    else:
        answer = litellm.completion(**call)
        list(answer) if way == "stream" else None
    assert seen == [(0, 1)]
    pair(log, handler)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_content_is_in_an_entry_and_no_key(log, handler, complete, provider):
    complete(provider)
    for row in pair(log, handler):
        line = log.stored(row["event_id"]).line
        assert b"xyzzy" not in line and "Grü".encode() not in line


@pytest.mark.parametrize("provider", PROVIDERS)
def test_with_full_content_prompt_and_answer_are_kept_beside_the_log(log, handler, complete, provider):
    log.recorder.content.default = "full"
    complete(provider)
    request, response = pair(log, handler)
    assert b"hello, xyzzy" in log.open_payload(request["event_id"], "prompt")
    assert log.open_payload(response["event_id"], "answer").decode() == ANSWER


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_coroutine(log, server, handler, provider):
    async def make():
        with audit_context(actor="bot"):
            return await litellm.acompletion(**given(server, provider))

    answer = run(handler, make)
    request, response = pair(log, handler)
    assert handler.event_id(answer) == request["event_id"]
    assert (request["actor"], response["actor"], response["details"]["end"]) == ("bot", "bot", "ok")
    assert response["details"]["response_chars"] == len(ANSWER)


def test_many_calls_at_once_are_kept_apart(log, server, handler):
    async def make():
        return await asyncio.gather(*(litellm.acompletion(**given(server, PROVIDERS[n % 3])) for n in range(9)))

    borne = {handler.event_id(answer) for answer in run(handler, make)}
    assert borne == {row["event_id"] for row in log.query({"event_type": "ai_request"})}
    assert borne == {row["parent_id"] for row in log.query({"event_type": "ai_response"})}
    assert len(borne) == 9


@pytest.mark.parametrize("provider", ["ollama_chat", "openai"])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_named_and_measured(log, handler, complete, provider, stream):
    answer = complete(provider, "tools", tools=TOOLS, stream=stream)
    list(answer) if stream else None
    request, response = pair(log, handler)
    assert request["details"]["tools"] == ["weather"]
    [call] = response["details"]["tool_calls"]
    assert (call["name"], call["arguments_chars"] in (27, 32)) == ("weather", True)  # as LiteLLM writes them
    assert response["details"]["response_chars"] == 0


def test_an_answer_that_asked_for_a_tool_counts_as_used_when_its_result_comes_back(log, handler, complete):
    message = complete("openai", "tools", tools=TOOLS).choices[0].message
    assert handler.flush()
    complete("openai", messages=[*MESSAGES, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}])
    assert handler.flush()
    log.flush()
    [outcome] = log.query({"event_type": "ai.outcome"})
    assert (outcome["details"]["call"], outcome["details"]["evidence"]) == (log.query({"event_type": "ai_request"})[0]["event_id"], "tool executed")


def test_thinking_is_measured_apart(log, handler, complete):
    complete("ollama_chat", "thinking")
    details = pair(log, handler)[1]["details"]
    assert (details["thinking_chars"], details["response_chars"]) == (len(THOUGHT), len(ANSWER))


def test_embeddings_are_counted_not_kept(log, server, handler):
    litellm.embedding(model="openai/ok", input=["xyzzy", "bc"], api_base=server.url + "/v1", api_key="x")
    request, response = pair(log, handler)
    assert (request["details"]["operation"], request["details"]["inputs"], request["details"]["prompt_chars"]) == ("embeddings", 2, 7)
    details = response["details"]
    assert (details["vectors"], details["dimensions"], details["input_tokens"], details["end"]) == (2, 3, 7, "ok")
    assert "output_tokens" not in details and "response_chars" not in details
    assert b"xyzzy" not in log.stored(request["event_id"]).line


def test_a_call_that_is_made_without_a_word_in_advance_is_one_entry(log, server, handler):
    answer = litellm.embedding(model="ollama/ok", input=["a", "bc"], api_base=server.url)
    while not (rows := log.query({"event_type": "ai_response"})):  # LiteLLM tells of it in a thread of its own, and nobody can wait for that
        handler.flush()
        log.flush()
    assert log.query({"event_type": "ai_request"}) == []
    [row] = rows
    assert (row["event_id"], row["details"]["unannounced"], row["details"]["end"]) == (handler.event_id(answer), True, "ok")
    assert row["details"]["latency_us"] > 0


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_a_text_completion(log, server, handler, provider):
    litellm.text_completion(model=f"{provider}/ok", prompt="xyzzy", api_base=given(server, provider)["api_base"], api_key="x")
    request, response = pair(log, handler)
    assert (request["action"], request["details"]["prompt_chars"], request["details"]["provider"]) == ("text_completion", 5, provider)
    assert (response["details"]["response_chars"], response["details"]["end"]) == (len(ANSWER), "ok")


# -- streams ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_that_is_read_to_its_end(log, server, handler, provider, asynchronous):
    call = given(server, provider, stream=True, stream_options={"include_usage": True})
    if asynchronous:
        async def make():
            stream = await litellm.acompletion(**call)
            return stream, [chunk async for chunk in stream]

        stream, _ = run(handler, make)
    else:
        stream = litellm.completion(**call)
        list(stream)
    request, response = pair(log, handler)
    assert handler.event_id(stream) == request["event_id"]
    details = response["details"]
    assert (details["end"], details["stream"], details["response_chars"]) == ("ok", True, len(ANSWER))
    assert (details["input_tokens"], details["output_tokens"]) == (7, 5)
    assert 0 < details["ttft_us"] <= details["latency_us"]


def test_tokens_that_litellm_guesses_are_not_taken_over(log, handler, complete):
    list(complete("openai", stream=True))
    details = pair(log, handler)[1]["details"]
    assert "input_tokens" not in details and "output_tokens" not in details


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_of_a_stream_that_is_closed_early_only_the_request_is_known(log, server, handler, provider, asynchronous):
    call = given(server, provider, stream=True)
    if asynchronous:
        async def main():
            stream = await litellm.acompletion(**call)
            await anext(stream)
            await stream.aclose()

        asyncio.run(main())
    else:
        stream = litellm.completion(**call)
        next(iter(stream))
        del stream
    assert handler.flush(0.2) is False
    [row] = log.query({"event_type": ["ai_request", "ai_response"]})
    assert row["event_type"] == "ai_request"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("script", "end"), [("cut", "cut"), ("mid_error", "mid_stream_error"), ("no_done", "truncated")])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_that_breaks(log, server, handler, provider, script, end, asynchronous):
    call = given(server, provider, script, stream=True)

    async def make():
        return [chunk async for chunk in await litellm.acompletion(**call)]

    with pytest.raises(Exception):
        run(handler, make) if asynchronous else list(litellm.completion(**call))
    response = pair(log, handler)[1]
    assert (response["outcome"], response["details"]["end"]) == ("partial", end)
    assert response["details"]["content_missing"] == ["answer"]
    assert "response_chars" not in response["details"] and "status" not in response["details"]


# -- errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [404, 500])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_status(log, server, handler, provider, status, asynchronous):
    call = given(server, provider, str(status))
    with pytest.raises(Exception):
        run(handler, lambda: litellm.acompletion(**call)) if asynchronous else litellm.completion(**call)
    response = pair(log, handler)[1]
    assert (response["outcome"], response["details"]["end"], response["details"]["status"]) == ("failure", "http_error", status)
    assert b"boom" not in log.stored(response["event_id"]).line


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("script", "end"), [("hangup", "cut"), ("malformed", "truncated"), ("silent", "timeout"), ("refused", "refused")])
def test_a_status_that_litellm_makes_up_is_not_taken_over(log, server, handler, complete, provider, script, end):
    more = {"silent": {"timeout": 0.2}, "refused": {"api_base": "http://127.0.0.1:9"}}.get(script, {})
    with pytest.raises(Exception):
        try:
            raise ConnectionResetError("of the application's own, while it calls")
        except ConnectionResetError:
            complete(provider, script, **more)
    response = pair(log, handler)[1]
    assert (response["outcome"], response["details"]["end"]) == ("failure", end)
    assert "status" not in response["details"]


def test_what_is_refused_before_anything_is_sent(log, server, handler, complete):
    with pytest.raises(litellm.UnsupportedParamsError):
        complete("ollama_chat", logit_bias={"1": 2})
    assert handler.flush()
    [row] = log.query({"event_type": ["ai_request", "ai_response"]})
    assert (row["event_type"], row["outcome"], row["details"]["end"]) == ("ai_response", "failure", "not_sent")
    assert row["details"]["error"]["type"] == "UnsupportedParamsError"
    assert server.calls == []


def test_retries_are_attempts_of_one_call(log, handler, complete):
    complete("ollama", "retry", num_retries=1)
    assert pair(log, handler)[1]["details"]["attempts"] == 2


# -- however often, and whatever, it is told -----------------------------------------------------------------------------------


def told(call_id="c-1", **more):
    now = datetime.now()
    return {"litellm_call_id": call_id, "call_type": "completion", "model": "m", "messages": MESSAGES, "stream": False,
            "custom_llm_provider": "openai", "api_call_start_time": now - timedelta(milliseconds=5), **more}, now


def response_of(text):
    return litellm.ModelResponse(model="m", choices=[{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}])


def test_an_end_that_is_told_many_times_is_recorded_once(log, handler):
    kwargs, now = told()
    handler.log_pre_api_call("m", MESSAGES, kwargs)
    threads = [threading.Thread(target=handler.log_success_event, args=(kwargs, response_of("abc"), now, now)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.log_failure_event({**kwargs, "exception": ValueError()}, None, now, now)
    asyncio.run(handler.async_log_success_event(kwargs, response_of("abc"), now, now))
    details = pair(log, handler)[1]["details"]
    assert (details["end"], details["response_chars"]) == ("ok", 3)


def test_pieces_that_are_told_as_ends_and_answers_out_of_a_cache_are_no_ends(log, handler):
    kwargs, now = told(stream=True)
    handler.log_pre_api_call("m", MESSAGES, kwargs)
    handler.log_success_event(kwargs, response_of("a"), now, now)
    handler.log_success_event(told("c-2", cache_hit=True)[0], response_of("a"), now, now)
    assert log.query({"event_type": "ai_response"}) == []
    handler.log_success_event({**kwargs, "complete_streaming_response": response_of("abc")}, None, now, now)
    assert pair(log, handler)[1]["details"]["response_chars"] == 3


def test_images_and_the_like_are_not_recorded(log, handler):
    kwargs, now = told(call_type="image_generation")
    before = log.entry_count()
    handler.log_pre_api_call("m", MESSAGES, kwargs)
    handler.log_success_event(kwargs, None, now, now)
    assert log.entry_count() == before


def test_what_cannot_be_read_does_no_harm(log, handler, caplog):
    now = datetime.now()
    with caplog.at_level(logging.ERROR, logger="tallystick"):
        for odd in ({}, {"litellm_params": 7}, {"messages": 7, "litellm_call_id": "x"}):
            handler.log_pre_api_call(None, None, odd)
            handler.log_success_event(odd, object(), None, now)
            handler.log_failure_event(odd, None, None, None)
    log.flush()
    assert all("AttributeError" in r.getMessage() for r in caplog.records)


def test_when_the_log_cannot_be_written_the_call_is_made_whatever_the_policy(log, server, handler, complete, monkeypatch):
    log.recorder.failure = "block"

    def fail(*args, **keywords):
        raise StoreError("no")

    monkeypatch.setattr(type(log.recorder.journal), "put", fail)
    assert complete("openai").choices[0].message.content == ANSWER
    assert handler.flush()
    monkeypatch.undo()


def test_only_what_bears_an_id_has_one(handler):
    for thing in (object(), "x", response_of("a")):
        with pytest.raises(TypeError), contextlib.suppress(AttributeError):
            handler.event_id(thing)


def test_without_litellm_the_import_says_what_to_install():
    code = "import sys; sys.modules['litellm'] = None\nimport tallystick.capture.litellm"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install tallystick[litellm]" in found.stderr
