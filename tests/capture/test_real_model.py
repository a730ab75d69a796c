"""The same with a real model: SmolLM2 on llama.cpp, the newest clients, every way in. Nothing is canned."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

import tallystick
from tallystick import AuditLogger, audit_context, event_id
from tallystick.demo.install import MODEL_SHA256, DemoError, apply_install, plan_install
from tallystick.demo.model import start_server
from tallystick.reports.ai import calls

from . import conformance as suite
from .conformance import WAYS, ProxyThread

SCHEMA = {"type": "object", "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}}, "required": ["colour"]}
MESSAGES = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def real():
    previous = os.environ.pop("OLLAMA_HOST", None)
    try:
        apply_install(plan_install(), print)
    except DemoError as e:
        if "could not fetch" not in str(e) or os.environ.get("CI") == "true":  # there, what can be installed must be
            raise
        pytest.skip(f"no registry: {str(e).splitlines()[0]}")
    finally:
        if previous is not None:
            os.environ["OLLAMA_HOST"] = previous
    plan = plan_install()
    with start_server(plan.cache, plan, print) as server:
        yield server


@contextlib.contextmanager
def audited(way, log, real):
    if way.capture == "proxy":
        with ProxyThread(log, real.host) as proxy:
            yield suite.new_client(way, proxy.url, 120)
    elif way.capture == "wrap":
        yield log.wrap(suite.new_client(way, real.host, 120))
    else:
        tallystick.instrument(log)
        try:
            yield suite.new_client(way, real.host, 120)
        finally:
            tallystick.uninstrument()


def ask(way, client, model, *, stream=False, schema=False):
    """The call: a value, or a coroutine of it."""
    if way.dialect == "ollama":
        return client.chat(model, MESSAGES, stream=stream, format=SCHEMA if schema else None,
                           options={"temperature": 0, "seed": 1, "num_predict": 24})  # fmt: skip
    more = {"stream_options": {"include_usage": True}} if stream else {}
    if schema:
        more["response_format"] = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
    return client.chat.completions.create(model=model, messages=MESSAGES, stream=stream, temperature=0, seed=1, max_tokens=24, **more)


def text_of(way, part):
    if way.dialect == "ollama":
        return part.message.content or ""
    if not part.choices:
        return ""
    choice = part.choices[0]
    return (choice.delta.content if hasattr(choice, "delta") else choice.message.content) or ""


async def aask(way, client, model, **more):
    answer = await ask(way, client, model, **more)
    if not more.get("stream"):
        return text_of(way, answer), answer
    return "".join([text_of(way, part) async for part in answer]), answer


def said(way, client, model, **more):
    """The text that the caller got, and the answer or the stream."""
    if way.is_async:
        async def one():
            try:
                return await aask(way, client, model, **more)
            finally:
                await (client._client.aclose() if way.dialect == "ollama" else client.close())

        return asyncio.run(one())
    answer = ask(way, client, model, **more)
    return ("".join(text_of(way, part) for part in answer) if more.get("stream") else text_of(way, answer)), answer


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.name)
def test_a_real_model_is_on_record_by_every_way_in(way, real, tmp_path):
    texts = []
    with AuditLogger(tmp_path / "log", service="real") as log, audit_context(actor="ana", case="real"):
        for more in ({}, {"stream": True}, {"schema": True}):
            with audited(way, log, real) as client:
                text, answer = said(way, client, real.model, **more)
                texts.append(text)
                if way.capture != "proxy":
                    assert log.entry(event_id(answer)).event_type == "ai_request"
        with audited(way, log, real) as client, pytest.raises(Exception, match="not found"):
            said(way, client, "no-such-model")
        log.flush()
        rows = calls(log)
        answers = [e.details for e in log.entries({"event_type": "ai_response"})]
        assert [d["end"] for d in answers] == ["ok", "ok", "ok", "http_error"]
        assert [row["response_chars"] for row in rows[:3]] == [len(t) for t in texts]
        assert all(t.strip() for t in texts)
        assert [d["stream"] for d in answers] == [False, True, False, False]
        assert answers[2]["format_valid"] is True
        assert answers[1]["chunks"] > 1 and 0 < answers[1]["ttft_us"] <= answers[1]["latency_us"]
        for details in answers[:3]:
            assert details["input_tokens"] > 0 and details["output_tokens"] > 0
            assert details["model"] == real.model
            assert details["prompt_chars"] == len(MESSAGES[0]["content"])
            if way.dialect == "ollama":
                assert details["model_digest"] == MODEL_SHA256
        if way.capture != "proxy":  # a thread of the proxy has no context of ours
            assert {row["actor"] for row in rows} == {"ana"}
        assert log.verify_integrity()["verified"]


def test_a_client_that_leaves_stops_a_real_model(real, tmp_path):
    """One answer at a time: the next call is answered at once only if the first one was stopped."""
    import ollama

    with AuditLogger(tmp_path / "log") as log, ProxyThread(log, real.host) as proxy, ollama.Client(proxy.url) as client:
        stream = client.chat(real.model, [{"role": "user", "content": "Count to one thousand."}], stream=True, options={"num_predict": 400})
        next(stream)
        stream.close()
        client.chat(real.model, MESSAGES, options={"num_predict": 1})
        log.flush()
        found = [e.details for e in log.entries({"event_type": "ai_response"})]
        assert [d["end"] for d in found] == ["abandoned", "ok"]
        assert found[0].get("output_tokens") is None
