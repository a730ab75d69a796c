"""One call, one end: signal handlers, finalisers, threads, forks, the end of the interpreter, kill -9. Real processes, real sockets."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import ollama
import pytest

import tallystick
from tallystick import AuditLogger, audit_context, event_id
from tallystick.capture.steps import WatchedGenerator
from tallystick.verification import verify_log

from .server import ModelServer

HELLO = [{"role": "user", "content": "hello"}]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    with ModelServer() as one:
        yield one


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "log", service="suite") as one:
        yield one


@pytest.fixture
def client(log, server):
    with log.wrap(ollama.Client(server.url)) as one:
        yield one


def ends(log):
    log.flush()
    return [e.details["end"] for e in log.entries({"event_type": "ai_response"})]


def test_a_signal_handler_that_closes_a_stream_while_the_log_is_written_does_not_wait_for_itself(log, client):
    """The handler runs in the very thread that holds the writer's lock."""
    stream = client.chat("slow", HELLO, stream=True)
    next(stream)
    handled = threading.Event()

    def handler(*_):
        stream.close()
        handled.set()

    before = signal.signal(signal.SIGUSR1, handler)
    append = log._handle.store.append
    try:
        def interrupted(*args):
            signal.raise_signal(signal.SIGUSR1)
            return append(*args)

        log._handle.store.append = interrupted
        log.log("data_access", "ana", "user", "crm", "read")
    finally:
        signal.signal(signal.SIGUSR1, before)
        log._handle.store.append = append
    assert handled.is_set()
    assert ends(log) == ["closed"]


def test_a_signal_handler_may_make_a_call_while_the_log_is_written(log, client):
    answers = []
    before = signal.signal(signal.SIGUSR1, lambda *_: answers.append(client.chat("ok", HELLO)))
    append = log._handle.store.append
    fired = []
    try:
        def interrupted(*args):
            if not fired:
                fired.append(True)
                signal.raise_signal(signal.SIGUSR1)
            return append(*args)

        log._handle.store.append = interrupted
        log.recorder.expect_late()
        log.log("data_access", "ana", "user", "crm", "read")
    finally:
        signal.signal(signal.SIGUSR1, before)
        log._handle.store.append = append
    assert answers[0].message.content
    assert ends(log) == ["ok"]
    assert len(list(log.entries({"event_type": "ai_request"}))) == 1


def test_a_finaliser_inside_the_log_only_leaves_a_note(log, client):
    """A stream in a cycle is collected while this thread is in the middle of an append."""
    stream = client.chat("slow", HELLO, stream=True)
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    append = log._handle.store.append
    try:
        def collects(*args):
            gc.collect()
            return append(*args)

        log._handle.store.append = collects
        log.log("data_access", "ana", "user", "crm", "read")
    finally:
        log._handle.store.append = append
    assert ends(log) == ["abandoned"]


def test_whoever_ends_a_call_first_ends_it_alone(log, client):
    """Sixteen threads close, drop and read one stream at the same moment."""
    for _ in range(20):
        stream = client.chat("ok", HELLO, stream=True)
        next(stream)
        gate = threading.Barrier(8)

        def end(stream=stream, gate=gate):
            gate.wait()
            try:
                stream.close()
            except ValueError:  # it is being closed by another thread
                pass

        threads = [threading.Thread(target=end) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del stream
    assert ends(log) == ["closed"] * 20


def test_a_forked_child_ends_nothing_that_its_parent_began(log, client):
    stream = client.chat("slow", HELLO, stream=True)
    next(stream)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stream._over = False
            stream._watcher.dropped()
            stream._watcher.closed(began=True)
            log.recorder.flush(5)
            status = 0 if not list(log.recorder.open_calls) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ends(log) == []
    stream.close()
    assert ends(log) == ["closed"]


def test_a_forked_child_records_its_own_calls(log, server):
    with log.wrap(ollama.Client(server.url)) as client:
        client.chat("ok", HELLO)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with log.wrap(ollama.Client(server.url)) as mine:
                for part in mine.chat("slow", HELLO, stream=True):
                    break
                mine.chat("ok", HELLO)
            del part
            log.flush(10)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(ends(log)) == ["abandoned", "ok", "ok"]
    assert verify_log(log.path, memory=log.memory).exit_code == 0


_SCRIPT = """
import sys, ollama
from tallystick import AuditLogger, event_id
log = AuditLogger(sys.argv[1])
client = log.wrap(ollama.Client(sys.argv[2]))
hello = [{"role": "user", "content": "hello"}]
"""


def _run(script, tmp_path, server, **more):
    return subprocess.run([sys.executable, "-c", _SCRIPT + script, str(tmp_path / "log"), server.url], capture_output=True, text=True,
                          cwd=ROOT, timeout=60, check=False, **more)  # fmt: skip


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise RuntimeError('bug')"])
def test_a_stream_that_is_still_open_when_the_interpreter_ends_is_abandoned(ending, tmp_path, server):
    done = _run(f"stream = client.chat('slow', hello, stream=True)\nnext(stream)\nother = client.chat('ok', hello, stream=True)\n{ending}",
                tmp_path, server)  # fmt: skip
    assert "tallystick" not in done.stderr.replace("tallystick made a new log", ""), done.stderr
    with AuditLogger(tmp_path / "log", create=False) as log:
        assert sorted(ends(log)) == ["abandoned", "not_sent"]


def test_no_acknowledged_call_is_lost_on_kill_9(tmp_path, server):
    """Each id that was printed after its call returned has its request and its answer on record; at most one call has only begun."""
    script = """
while True:
    print(event_id(client.chat("ok", hello)), flush=True)
    for part in (stream := client.chat("ok", hello, stream=True)): pass
    print(event_id(stream), flush=True)
"""
    choose, printed = random.Random(7), []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", _SCRIPT + script, str(tmp_path / "log"), server.url], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True, cwd=ROOT)  # fmt: skip
        for _ in range(choose.randrange(1, 60)):
            printed.append(process.stdout.readline().strip())
        process.kill()
        printed += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.stdout.close()
        process.wait()
    printed = [line.strip() for line in printed]
    with AuditLogger(tmp_path / "log", create=False) as log:
        requests = {e.event_id for e in log.entries({"event_type": "ai_request"})}
        answered = {e.parent_id for e in log.entries({"event_type": "ai_response"})}
        assert len(printed) > 20
        assert not set(printed) - requests
        assert not set(printed) - answered
        assert len(requests - answered) <= 5
        assert log.verify_integrity()["verified"]


def test_the_context_is_read_when_the_call_begins(log, client):
    with audit_context(actor="ana", case="INV-1", session_id="s-1"):
        stream = client.chat("ok", HELLO, stream=True)
    with audit_context(actor="ben", case="INV-2", on_behalf_of="sales"):
        list(stream)
    for entry in log.entries({"event_type": ["ai_request", "ai_response"]}):
        assert (entry.actor, entry.actor_type, entry.correlation_id, entry.session_id, entry.on_behalf_of) == (
            "ana", "user", "INV-1", "s-1", None)  # fmt: skip
        assert "unattributed" not in entry.details


def test_instrument_twice_records_once_and_uninstrument_leaves_no_trace(log, server):
    before = (ollama.Client._request, ollama.Client._request_raw, ollama.AsyncClient._request)
    assert "ollama" in tallystick.instrument(log)
    tallystick.instrument(log)
    try:
        chat = ollama.Client(server.url).chat  # a bound method that somebody imported long ago
        chat("ok", HELLO)
        with log.wrap(ollama.Client(server.url)) as wrapped:
            wrapped.chat("ok", HELLO)
    finally:
        tallystick.uninstrument()
        tallystick.uninstrument()
    with ollama.Client(server.url) as bare:
        bare.chat("ok", HELLO)
    chat.__self__.close()
    assert ends(log) == ["ok", "ok"]
    assert [e.details["capture"] for e in log.entries({"event_type": "ai_response"})] == ["instrument", "wrap"]
    assert (ollama.Client._request, ollama.Client._request_raw, ollama.AsyncClient._request) == before


def test_no_credential_of_a_client_is_recorded(log, server):
    import openai

    secret = "sk-live-0123456789abcdefghijkl"
    host = server.url.replace("http://", "http://ada:hunter2@")
    with log.wrap(ollama.Client(host, headers={"Authorization": f"Bearer {secret}"})) as one:
        one.chat("ok", HELLO)
        with pytest.raises(ollama.ResponseError):
            one.chat("404", HELLO)
    with log.wrap(openai.OpenAI(base_url=f"{host}/v1?key={secret}", api_key=secret, max_retries=0)) as two:
        with pytest.raises(openai.APIStatusError):
            two.chat.completions.create(model="404", messages=HELLO)
    lines = b"".join(p.read_bytes() for p in (log.path / "segments").iterdir())
    assert lines.count(b"ai_response") == 3
    assert secret.encode() not in lines and b"hunter2" not in lines


def test_memory_is_flat_in_the_length_of_a_stream(tmp_path, server):
    done = _run("""
import tracemalloc
for count in (100, 40_000, 80_000):
    tracemalloc.start()
    for _ in client.chat(f"long:{count}", hello, stream=True): pass
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
""", tmp_path, server)  # fmt: skip
    _, small, large = map(int, done.stdout.split())
    assert large < small + 100_000, (small, large)
    with AuditLogger(tmp_path / "log", create=False) as log:
        assert [e.details["chunks"] for e in log.entries({"event_type": "ai_response"})] == [101, 40_001, 80_001]


def test_the_format_of_an_answer_is_evidence_that_never_outranks_what_was_said(log, client):
    from tallystick.reports.ai import calls

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    bad = client.chat("unstructured", HELLO, format=schema)
    good = client.chat("structured", HELLO, format=schema)
    log.flush()
    rows = {row["event_id"]: row for row in calls(log)}
    assert (rows[event_id(bad)]["used"], rows[event_id(bad)]["evidence"]) == ("failed_validation", "invalid")
    assert rows[event_id(good)]["used"] is None and rows[event_id(good)]["format_valid"] is True
    log.outcome(good, "rejected", reason="too long")
    client.chat("ok", [*HELLO, {"role": "assistant", "content": good.message.content}, {"role": "user", "content": "and then?"}])
    log.flush()
    rows = {row["event_id"]: row for row in calls(log)}
    assert (rows[event_id(good)]["used"], rows[event_id(good)]["evidence"]) == ("rejected", "explicit")
    seen = [e.details["evidence"] for e in log.entries({"event_type": "ai.outcome"})]
    assert seen == ["invalid", "explicit", "repeated"]


def test_the_result_of_a_tool_in_the_next_request_says_that_the_answer_was_used(log, client):
    from tallystick.reports.ai import calls

    asked = client.chat("tools", HELLO)
    client.chat("ok", [*HELLO, asked.message, {"role": "tool", "tool_name": "weather", "content": "sunny"}])
    log.flush()
    [first, second] = calls(log)
    assert (first["used"], first["evidence"]) == ("used", "tool executed")
    assert second["used"] is None


def test_a_digest_that_moves_under_a_name_is_on_record(log, client, server, monkeypatch):
    from tallystick.capture import servers

    client.chat("ok", HELLO)
    monkeypatch.setattr(servers, "_FRESH_S", -1.0)
    log.recorder.servers._known.clear()
    client.chat("ok", HELLO)
    was, server.digest = server.digest, "sha256:" + "cd" * 32
    try:
        client.chat("ok", HELLO)
    finally:
        server.digest = was
    [moved] = log.entries({"event_type": "configuration_change"})
    assert (moved.action, moved.resource) == ("model digest changed", "ok")
    assert moved.details["before"].endswith("abab") and moved.details["after"].endswith("cdcd")
    last = list(log.entries({"event_type": "ai_response"}))[-1]
    assert last.details["model_digest"].endswith("cdcd") and last.details["server_version"] == "0.99.0"


def test_a_generator_that_is_entered_again_while_it_runs_ends_nothing():
    told = []

    class Watcher:
        def began(self):
            told.append("began")

        def item(self):
            told.append("item")

        def ended(self):
            told.append("ended")

        def failed(self, error):
            told.append(repr(error))

        def closed(self, *, began):
            told.append("closed")

        def dropped(self):
            told.append("dropped")

    def inner():
        with pytest.raises(ValueError, match="already executing"):
            next(watched)
        yield 1
        yield 2

    watched = WatchedGenerator(inner(), Watcher())
    assert list(watched) == [1, 2]
    assert told == ["began", "item", "item", "ended"]


def test_a_salt_is_derived_once_the_key_of_the_day_is_there_and_goes_with_that_key(log, client):
    """The first call of a day draws one and keeps it; the others store nothing for it. Destroying the key forgets both."""
    from tallystick.capture.wire.answer import commitment
    from tallystick.core.errors import StoreError

    calls = [client.chat("ok", HELLO) for _ in range(3)]
    requests = [log.entry(event_id(call)) for call in calls]
    assert ["salt" in r.payloads for r in requests] == [True, False, False]
    assert ["salt_day" in r.details for r in requests] == [False, True, True]
    salts = [log.salt(r.event_id) for r in requests]
    assert len(set(salts)) == 3 and {len(salt) for salt in salts} == {32}
    for call, salt in zip(calls, salts, strict=True):
        [answer] = log.entries({"parent_id": event_id(call), "event_type": "ai_response"})
        assert log.salt(answer.event_id) == salt
        assert answer.details["commitments"]["answer"] == commitment(salt, "answer", call.message.content.encode())
    with AuditLogger(log.path) as other:  # what another reader derives
        assert [other.salt(r.event_id) for r in requests] == salts
    [slots] = log._handle.keys.path.glob("payload-*.slots")
    slots.write_bytes(bytes(slots.stat().st_size))
    for request in requests:
        with pytest.raises(StoreError, match="key"):
            log.salt(request.event_id)
    with pytest.raises(KeyError):
        log.salt(log.log("data_access", "ana", "user", "crm", "read"))


def test_instrument_reaches_a_class_that_another_instrumentation_gave_a_method_of_its_own(log, server):
    import openai

    def theirs(self, *args, **keywords):
        return super(openai.OpenAI, self).request(*args, **keywords)

    openai.OpenAI.request = theirs
    try:
        tallystick.instrument(log)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            client.chat.completions.create(model="ok", messages=HELLO)
        tallystick.uninstrument()
        assert openai.OpenAI.request is theirs
    finally:
        tallystick.uninstrument()
        del openai.OpenAI.request
    assert ends(log) == ["ok"]
