"""Every way in, every case of the suite: what is on record, and that the caller got what a bare client would have got."""

from __future__ import annotations

import contextlib
import logging

import pytest

import tallystick
from tallystick import AuditLogger, event_id

from . import conformance as suite
from .conformance import CASES, WAYS, Case, ProxyThread, Way
from .server import ModelServer

# the clients' own sockets and transports: a client that a case leaves open is collected when Python likes, perhaps in the next case
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def server():
    with ModelServer() as one:
        yield one


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    from tallystick.memory import default_memory

    return default_memory({"TALLY_STATE": str(tmp_path_factory.mktemp("memory"))})


@pytest.fixture(scope="module")
def log(tmp_path_factory, memory):
    with AuditLogger(tmp_path_factory.mktemp("conformance") / "log", service="suite", memory=memory) as one:
        yield one


def _pairs():
    for way in WAYS:
        for case in CASES:
            own = case.ollama if way.dialect == "ollama" else case.openai
            if own is None or (case.consume == "cancel" and not way.is_async):
                continue
            yield pytest.param(way, case, id=f"{way.name}: {case.name}")


@contextlib.contextmanager
def _audited(way: Way, log: AuditLogger, server: ModelServer, timeout: float | None):
    if way.capture == "proxy":
        with ProxyThread(log, server.url) as proxy:
            yield suite.new_client(way, proxy.url, timeout)
    elif way.capture == "wrap":
        yield log.wrap(suite.new_client(way, server.url, timeout))
    else:
        tallystick.instrument(log)
        try:
            yield suite.new_client(way, server.url, timeout)
        finally:
            tallystick.uninstrument()


def _expected(way: Way, case: Case) -> dict[str, object]:
    own = case.ollama if way.dialect == "ollama" else case.openai
    expected = {**case.expect, **(own or {})}
    if way.capture == "proxy":
        if expected["end"] == "not_sent":
            expected["end"] = None  # nothing came: there is nothing to be seen
        elif expected["end"] in ("closed", "abandoned", "cancelled", "timeout"):
            expected["end"] = "abandoned"  # all that is seen of them here: the client went away
        if case.model == "retry":
            expected.pop("attempts")  # here they are two requests
    return expected


@pytest.mark.parametrize(("way", "case"), list(_pairs()))
def test_the_call_is_on_record_and_its_caller_got_what_he_would_have_got(way, case, log, server):
    server._attempts.clear()
    bare = suite.run(way, suite.new_client(way, server.url, case.timeout), case)
    server._attempts.clear()
    before = log.entry_count()
    with _audited(way, log, server, case.timeout) as client:
        got = suite.run(way, client, case)
        del client
    log.flush()
    assert got.error == bare.error
    if case.consume != "never":
        assert got.values == bare.values
    entries = [e for e in log.entries({"event_type": ["ai_request", "ai_response"]}, after=before - 1)]
    expected = _expected(way, case)
    if expected["end"] is None:
        assert entries == []
        return
    answers = [e for e in entries if e.event_type == "ai_response"]
    if way.capture == "proxy" and case.model == "retry":
        assert [a.details["end"] for a in answers] == ["http_error", "ok"]
        answers = answers[1:]
    assert len(answers) == 1, entries
    answer = answers[0]
    found = {name: answer.details.get(name) for name in expected}
    if way.capture == "proxy" and case.name == "stream never iterated":  # how much had come when the client went is its own affair
        assert found["end"] in ("ok", "abandoned")
        return
    elif way.capture == "proxy" and case.consume in ("close", "drop"):
        assert answer.details["response_chars"] in (3, 6)
        found.pop("response_chars")
        expected.pop("response_chars")
    assert found == expected
    requests = [e for e in entries if e.event_type == "ai_request"]
    if expected["end"] == "not_sent":
        assert requests == []
        assert answer.parent_id is None
    else:
        assert answer.parent_id == requests[-1].event_id
        assert requests[-1].index < answer.index
        assert requests[-1].details["prompt_chars"] == answer.details["prompt_chars"]
        assert answer.details["latency_us"] > 0
    if not (way.capture == "proxy" and case.outcome != "success"):  # there some of it may have reached the client, or not
        assert answer.outcome == case.outcome
    assert (answer.actor, answer.actor_type, answer.details["unattributed"]) == ("suite", "service", True)
    assert answer.details["capture"] == way.capture
    assert answer.details["operation"] == {"chat": "chat", "embed": "embeddings", "generate": "text_completion"}[case.op]
    if case.op == "chat" and not case.more.get("images"):
        assert answer.details["prompt_chars"] == suite.PROMPT_CHARS


def test_nothing_that_was_recorded_holds_content_or_a_secret(log, server):
    """Of all that the cases above left: no text of a prompt or an answer, no key, no image stands in a line."""
    lines = b"".join(path.read_bytes() for path in sorted((log.path / "segments").iterdir()))
    assert lines.count(b'"ai_response"') > 10
    for hidden in ("Bahn nach", "Answer briefly", "from 🎉", "let me see", "sk-test", "iVBORw0KGgo", "Köln", "rather", "an error was"):
        assert hidden.encode() not in lines, hidden


def test_the_log_of_all_cases_verifies(log):
    assert log.verify_integrity()["verified"]


_EQUAL = ("operation", "provider", "model_requested", "stream", "messages", "tools", "images", "format", "inputs", "parameters", "model",
          "finish_reason", "input_tokens", "output_tokens", "tool_calls", "prompt_chars", "response_chars", "thinking_chars", "chunks",
          "end", "vectors", "dimensions", "choices", "server", "content", "format_valid", "remote_host", "fingerprint")  # fmt: skip


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_every_way_gives_the_same_numbers_for_the_same_call(dialect, tmp_path, server):
    cases = [c for c in CASES if c.consume == "all" and c.timeout is None and c.model != "retry"
             and (c.ollama if dialect == "ollama" else c.openai) is not None]  # fmt: skip
    found = {}
    for way in [w for w in WAYS if w.dialect == dialect]:
        with AuditLogger(tmp_path / way.name.replace(" ", "-")) as log:
            for case in cases:
                with _audited(way, log, server, None) as client:
                    suite.run(way, client, case)
            log.flush()
            rows = [e.details for e in log.entries({"event_type": "ai_response"})]
            found[way.name] = [{n: d[n] for n in _EQUAL if n in d} | {"case": c.name} for d, c in zip(rows, cases, strict=True)]
    first, *others = found
    for other in others:
        assert found[other] == found[first]


@pytest.mark.parametrize("way", [w for w in WAYS if w.capture == "wrap"], ids=lambda w: w.name)
def test_every_answer_stream_and_embedding_bears_the_id_of_its_call(way, tmp_path, server):
    import asyncio

    with AuditLogger(tmp_path / "log") as log:
        client = log.wrap(suite.new_client(way, server.url))
        assert isinstance(client, type(suite.new_client(way, server.url)))
        seen = []
        cases = [c for c in CASES if c.name in ("whole", "stream to the end", "embeddings", "completion")]

        async def ask_all():
            for case in cases:
                answer = await suite._request(way, client, case)
                seen.append(event_id(answer))
                if case.stream:
                    [part async for part in answer]

        if way.is_async:
            asyncio.run(ask_all())
        for case in cases if not way.is_async else ():
            answer = suite._request(way, client, case)
            seen.append(event_id(answer))
            if case.stream:
                list(answer)
        log.flush()
        assert seen == [e.event_id for e in log.entries({"event_type": "ai_request"})]
        assert len(set(seen)) == 4


@pytest.mark.parametrize("way", [w for w in WAYS if w.capture != "proxy"], ids=lambda w: w.name)
def test_a_refused_connection_is_a_failure_and_the_callers_exception_is_unchanged(way, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    case = CASES[0]
    bare = suite.run(way, suite.new_client(way, url), case)
    with AuditLogger(tmp_path / "log") as log:
        if way.capture == "instrument":
            tallystick.instrument(log)
        try:
            client = suite.new_client(way, url)
            got = suite.run(way, log.wrap(client) if way.capture == "wrap" else client, case)
        finally:
            tallystick.uninstrument()
        assert got == bare
        [answer] = log.entries({"event_type": "ai_response"})
        assert (answer.details["end"], answer.outcome) == ("refused", "failure")


def test_requests_that_are_no_calls_are_not_recorded(tmp_path, server, caplog):
    """tags, ps, show, version, load and unload; and what changes a model is a change of configuration, once."""
    import ollama

    with AuditLogger(tmp_path / "log") as log:
        client = log.wrap(ollama.Client(server.url))
        client.list()
        client.generate("ok", "")  # loads
        client.chat("ok", [])
        client.pull("llama3.2")
        list(client.pull("llama3.2", stream=True))
        client.copy("a", "b")
        client.delete("b")
        with pytest.raises(ollama.ResponseError):
            client.pull("404")
        log.flush()
        entries = list(log.entries())
        assert [(e.event_type, e.action, e.resource, e.outcome) for e in entries] == [
            ("configuration_change", "pull model", "llama3.2", "success"),
            ("configuration_change", "pull model", "llama3.2", "success"),
            ("configuration_change", "copy model", "a", "success"),
            ("configuration_change", "delete model", "b", "success"),
            ("configuration_change", "pull model", "404", "failure"),
        ]
    assert not [r for r in caplog.records if r.name == "tallystick" and r.levelno >= logging.ERROR]
