"""The proxy over real sockets: bytes unchanged and at once, who is claimed, what is asked of the proxy itself, and its refusals."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tallystick import AuditLogger

from .conformance import ProxyThread
from .server import ANSWER, ModelServer

BODY = {"model": "ok", "messages": [{"role": "user", "content": "hello"}], "stream": False}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    with ModelServer() as one:
        yield one


@pytest.fixture
def log(tmp_path):
    with AuditLogger(tmp_path / "log", service="proxy") as one:
        yield one


@pytest.fixture
def proxy(log, server):
    with ProxyThread(log, server.url, {"anna": "a-token-of-anna-0123"}) as one:
        yield one


@pytest.fixture
def http(proxy):
    with httpx.Client(base_url=proxy.url) as one:
        yield one


def answers(log):
    log.flush()
    return list(log.entries({"event_type": "ai_response"}))


def raw(url, data, *, shutdown=False):
    """Send bytes, read until the other end closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        found = b""
        with contextlib.suppress(ConnectionError, OSError):  # refused before all of it was read
            connection.sendall(data)
            if shutdown:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                found += piece
        return found


def test_an_answer_bears_the_id_of_its_call_and_claims_are_marked_as_claims(http, log, server):
    headers = {"X-Audit-Actor": "ana", "X-Audit-Case": "INV-1", "X-Audit-Session": "s-1",
               "traceparent": f"00-{'ab' * 16}-{'12' * 8}-01", "Authorization": "Bearer sk-live-0123456789abcdef"}  # fmt: skip
    response = http.post("/api/chat", json=BODY, headers=headers)
    assert response.json()["message"]["content"] == ANSWER
    [answer] = answers(log)
    assert response.headers["x-audit-event-id"] == answer.parent_id
    assert (answer.actor, answer.correlation_id, answer.session_id, answer.trace_id, answer.ip_address) == (
        "ana", "INV-1", "s-1", "ab" * 16, "127.0.0.1")  # fmt: skip
    assert answer.details["claimed"] == ["actor", "correlation_id", "session_id", "trace_id"]
    assert "unattributed" not in answer.details
    seen = server.calls[-1]
    assert seen.headers["authorization"] == headers["Authorization"], "the server gets what was meant for it"
    assert not [name for name in seen.headers if name.startswith("x-audit-")], "and not what was meant for the proxy"
    lines = b"".join(p.read_bytes() for p in (log.path / "segments").iterdir())
    assert b"sk-live" not in lines


@pytest.mark.parametrize("value", ["a\tb", "\x07bell", "", "  "])
def test_a_claim_that_cannot_be_printed_is_dropped(value, proxy, log):
    body = json.dumps(BODY).encode()
    raw(proxy.url, b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Audit-Actor: " + value.encode()
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
    assert [a.actor for a in answers(log)] in (["proxy"], [])


def test_the_body_goes_through_as_it_came(http, log, server):
    """Odd spacing, an unknown member, gzip, chunked: the server gets those bytes."""
    odd = b'{ "model":"ok",\n "messages":[{"role":"user","content":"h\\u00e9llo"}] ,"stream":false, "new":1 }'
    for data, headers in (
        (odd, {}), (gzip.compress(odd, mtime=0), {"content-encoding": "gzip"}), (iter([odd[:7], odd[7:]]), {})):  # fmt: skip
        assert http.post("/api/chat", content=data, headers={"content-type": "application/json", **headers}).status_code == 200
        assert server.calls[-1].body == odd
    assert [a.details["prompt_chars"] for a in answers(log)] == [5, 5, 5]


def test_what_is_no_call_passes_untouched_and_unrecorded(http, log, server):
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200
    assert http.get("/api/version").json() == {"version": "0.99.0"}
    assert http.options("/api/chat").headers["access-control-allow-origin"] == "*"
    assert http.get("/nope").status_code == 404
    log.flush()
    assert log.entry_count() <= 1


@pytest.mark.parametrize(("path", "data", "more"), [
    ("/api/chat", b"not json", {}), ("/api/chat", b"[]", {}), ("/v1/chat/completions", b"\xff", {}), ("/v1/messages", b'{"model":"ok"}', {}),
    ("/api/chat", b'{"model":"ok","x":' + b"[" * 3000 + b"]" * 3000 + b"}", {}), ("/completion", b'{"prompt":"x"}', {}),
    ("/api/chat", b"\x00", {"content-encoding": "br"}), ("/api/chat", gzip.compress(b"\0" * (257 << 20), 1), {"content-encoding": "GZIP"}),
], ids=range(8))  # fmt: skip
def test_what_may_be_a_call_and_cannot_be_read_is_one_all_the_same(path, data, more, http, log):
    """A server may read more than JSON allows; nobody chooses not to be recorded."""
    with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
        http.post(path, content=data, headers={"content-type": "application/json", **more})
    log.flush()
    [request] = log.entries({"event_type": "ai_request"})
    assert request.details["unread_request"] is True
    assert len(answers(log)) == 1


@pytest.mark.parametrize("body", [
    b'{"Model":"ok","Messages":[{"Role":"user","Content":"hello"}],"stream":false}',
    b'{"model":"ok","messages":[{"role":"user","content":"hel\xfflo"}],"stream":false}',
    b'{"model":"ok","messages":[{"role":"user","content":"hello"}],"stream":false} "x"',
    b'{"model":"ok","stream":false,"messages":[' + b",".join(b'{"role":"%d%s","content":"x"}' % (n, b"y" * 150) for n in range(400)) + b"]}",
], ids=range(4))  # fmt: skip
def test_a_request_that_a_server_reads_is_read_here_too(body, http, log):
    with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
        http.post("/api/chat", content=body, headers={"content-type": "application/json"})
    log.flush()
    [request] = log.entries({"event_type": "ai_request"})
    assert request.details["prompt_chars"] in (5, 6, 400)
    assert request.details["model_requested"] == "ok"


@pytest.mark.parametrize("path", ["/api/ch%61t", "//api/chat", "/v1/../api/chat", "/api/./chat"])
def test_a_path_that_hides_what_it_is_is_refused(path, proxy, server):
    seen = len(server.seen)
    found = raw(proxy.url, f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert b" 400 " in found.split(b"\r\n")[0]
    assert len(server.seen) == seen


def test_what_a_server_sends_behind_its_answer_is_nobodys(log):
    """A connection with more on it than its answer is not used again."""
    import threading

    answer = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}'
    evil = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\nEVIL'
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer + evil)
                        connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with ProxyThread(log, f"http://127.0.0.1:{listener.getsockname()[1]}") as proxy, httpx.Client(base_url=proxy.url) as http:
            log.recorder.look_up = False
            assert [http.post("/api/chat", json=BODY).text for _ in range(3)] == ["{}"] * 3
        listener.shutdown(socket.SHUT_RDWR)


def test_an_answer_comes_as_it_is_made_and_a_client_that_leaves_stops_the_model(http, log, server):
    server.aborted.clear()
    with http.stream("POST", "/api/chat", json={**BODY, "model": "slow", "stream": True}) as response:
        first = next(response.iter_lines())
        assert json.loads(first)["message"]["content"] == "Grü", "the first part is here while the server still waits"
    assert server.aborted.wait(20)
    while not (found := answers(log)):
        pass
    assert (found[0].details["end"], found[0].outcome) == ("abandoned", "partial")


def test_a_client_that_leaves_before_the_answer_stops_the_model_too(proxy, log, server):
    server.aborted.clear()
    body = json.dumps({**BODY, "model": "silent"}).encode()
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while not [s for s in server.seen if b"silent" in s.body]:
            pass
    assert server.aborted.wait(20)
    while not (found := answers(log)):
        pass
    assert (found[0].details["end"], found[0].outcome) == ("abandoned", "failure")


def test_a_server_that_cannot_be_reached_is_a_502_and_on_record(log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with ProxyThread(log, url) as proxy:
        response = httpx.post(f"{proxy.url}/api/chat", json=BODY)
        assert response.status_code == 502
        assert "cannot be reached" in response.json()["error"]
    [answer] = answers(log)
    assert response.headers["x-audit-event-id"] == answer.parent_id
    assert (answer.details["end"], answer.outcome) == ("refused", "failure")


def test_an_idle_connection_that_the_server_has_closed_is_replaced_unseen(http, log):
    for _ in range(3):
        assert http.post("/api/chat", json=BODY).status_code == 200
        assert http.post("/api/chat", json={**BODY, "model": "hangup"}).status_code == 502
    assert [a.details["end"] for a in answers(log)] == ["ok", "cut"] * 3


def test_with_block_nothing_is_forwarded_when_it_cannot_be_recorded(log, server, monkeypatch):
    from tallystick.core.errors import DiskFull

    log.recorder.failure = "block"
    with ProxyThread(log, server.url) as proxy:
        httpx.post(f"{proxy.url}/api/chat", json=BODY).raise_for_status()
        seen = len(server.calls)

        async def full(*_):
            raise DiskFull("no space left")

        def full_now(*_):
            raise DiskFull("no space left")

        monkeypatch.setattr(log.recorder.journal, "aput", full)
        monkeypatch.setattr(log.recorder.journal, "put", full_now)
        response = httpx.post(f"{proxy.url}/api/chat", json=BODY)
        assert response.status_code == 503
        assert "nothing was sent" in response.json()["error"]
        assert len(server.calls) == seen
        monkeypatch.undo()
        httpx.post(f"{proxy.url}/api/chat", json=BODY).raise_for_status()
    [gap] = log.entries({"event_type": "log.gap"})
    assert gap.details["count"] == 1


# -- what is asked of the proxy itself ------------------------------------------------------------------------------------


def test_what_became_of_an_answer_can_be_said_over_http(http, log):
    call = http.post("/api/chat", json=BODY).headers["x-audit-event-id"]
    said = http.post("/audit/outcomes", json={"event_id": call, "status": "used", "ref": "erp:1", "by": "ana", "kind": "human"})
    assert said.status_code == 201
    [outcome] = log.entries({"event_type": "ai.outcome"})
    assert said.json() == {"event_id": outcome.event_id}
    assert (outcome.actor, outcome.details["call"], outcome.details["ref"], outcome.details["evidence"]) == ("ana", call, "erp:1", "http")
    assert outcome.details["leaf_hash"] == answers(log)[0].checksum
    lost = http.post("/audit/outcomes", json={"event_id": "evt_" + "0" * 32, "status": "rejected"})
    assert lost.status_code == 201
    assert list(log.entries({"event_type": "ai.outcome"}))[-1].details["orphan"] is True


@pytest.mark.parametrize(("headers", "given", "expected"), [
    ({"Authorization": "Bearer a-token-of-anna-0123"}, {}, ("anna", "token", None)),
    ({"Authorization": "Bearer a-token-of-anna-0123"}, {"by": "anna"}, ("anna", "token", None)),
    ({"X-Audit-Actor": "ben"}, {}, ("ben", "header", None)),
    ({}, {"by": "carl"}, ("carl", "none", True)),
    ({"X-Audit-Actor": "ben"}, {"by": "carl"}, ("carl", "none", True)),
])  # fmt: skip
def test_an_approval_says_how_it_is_known_who_gave_it(headers, given, expected, log, server):
    tokens = {"anna": "a-token-of-anna-0123"} if "Authorization" in headers else None
    with ProxyThread(log, server.url, tokens) as proxy, httpx.Client(base_url=proxy.url) as http:
        call = http.post("/api/chat", json=BODY).headers["x-audit-event-id"]
        response = http.post("/audit/approvals", json={"event_id": call, "decision": "approved", "shown": "the draft", **given}, headers=headers)
        assert response.status_code == 201, response.text
        [decision] = log.entries({"event_type": "approval.decision"})
        assert (decision.actor, decision.details["known_by"], decision.details.get("self_reported")) == expected
        assert decision.details["leaf_hash"] == answers(log)[0].checksum
        assert log.open_payload(decision.event_id, "shown") == b"the draft"


@pytest.mark.parametrize(("path", "more", "status"), [
    ("/audit/approvals", {"json": {"event_id": "evt_" + "0" * 32, "decision": "approved"},
                          "headers": {"Authorization": "Bearer a-token-of-anna-0123"}}, 404),
    ("/audit/approvals", {"json": {"event_id": "evt_1", "decision": "approved", "by": "x"}}, 403),
    ("/audit/approvals", {"json": {"event_id": "evt_1", "decision": "approved"}, "headers": {"X-Audit-Actor": "anna"}}, 403),
    ("/audit/approvals", {"json": {"event_id": "evt_1", "decision": "perhaps", "by": "x"}}, 400),
    ("/audit/approvals", {"json": {"event_id": "e", "decision": "approved"}, "headers": {"Authorization": "Bearer wrong"}}, 403),
    ("/audit/approvals", {"json": {"event_id": "e", "decision": "approved", "by": "ben"},
                          "headers": {"Authorization": "Bearer a-token-of-anna-0123"}}, 403),
    ("/audit/outcomes", {"json": {"event_id": "evt_1", "status": "fine"}}, 400),
    ("/audit/outcomes", {"json": {"event_id": "evt_1", "status": "used", "more": "x"}}, 400),
    ("/audit/outcomes", {"json": {"event_id": 1, "status": "used"}}, 400),
    ("/audit/outcomes", {"json": []}, 400),
    ("/audit/outcomes", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
    ("/audit/outcomes", {"content": b'{"event_id":"evt_1","status":"used"}', "headers": {"content-type": "text/plain"}}, 415),
    ("/audit/outcomes", {"json": {"event_id": "evt_1", "status": "used"}, "headers": {"Host": "evil.example:11435"}}, 403),
    ("/audit/nothing", {"json": {}}, 404),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_and_nothing_is_recorded(path, more, status, http, log):
    response = http.post(path, **more)
    assert response.status_code == status
    assert response.json()["error"]
    assert "a-token-of-anna" not in response.text
    log.flush()
    assert not list(log.entries())


def test_health_says_which_log_and_how_many_entries(http, log):
    assert http.get("/audit/health").json() == {"log": log.origin, "size": log.entry_count(), "waiting": 0}
    assert http.get("/audit/outcomes").status_code == 405


def test_health_is_ill_while_calls_wait_in_the_spool(http, log, monkeypatch):
    from tallystick.core.errors import DiskFull

    def full(*_):
        raise DiskFull("no space left")

    async def afull(*_):
        full()

    for name, fails in (("put", full), ("aput", afull), ("again", full)):
        monkeypatch.setattr(log.recorder.journal, name, fails)
    assert http.post("/api/chat", json=BODY).status_code == 200
    sick = http.get("/audit/health")
    assert (sick.status_code, sick.json()["waiting"]) == (503, 2)
    monkeypatch.undo()
    log.flush()
    assert http.get("/audit/health").status_code == 200
    assert len(answers(log)) == 1


# -- hostile and half-dead peers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET " + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
])  # fmt: skip
def test_what_is_no_clear_request_is_refused_and_not_forwarded(data, proxy, server):
    seen = len(server.seen)
    answer = raw(proxy.url, data, shutdown=True)
    assert answer == b"" or answer.split(b" ")[1][:1] == b"4"
    assert len(server.seen) == seen


def test_two_requests_at_once_are_answered_in_order(proxy, log):
    body = json.dumps(BODY).encode()
    one = b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % len(body)
    found = raw(proxy.url, one + b"\r\n" + body + one + b"Connection: close\r\n\r\n" + body)
    assert found.count(b"HTTP/1.1 200") == 2
    assert [a.details["end"] for a in answers(log)] == ["ok", "ok"]


def test_a_client_that_waits_for_100_continue_gets_it(proxy, log):
    host, port = proxy.url.removeprefix("http://").split(":")
    body = json.dumps(BODY).encode()
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    assert b"HTTP/1.1 200" in found
    assert len(answers(log)) == 1


def test_a_client_of_http_1_0_is_answered(proxy):
    found = raw(proxy.url, b"GET / HTTP/1.0\r\n\r\n")
    assert found.split(b"\r\n")[0].endswith(b"200 Whatever") and found.endswith(b"Ollama is running")


# -- as a program -------------------------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_stop(tmp_path, server):
    log_path = tmp_path / "log"
    AuditLogger(log_path).close()
    process = subprocess.Popen(
        [sys.executable, "-m", "tallystick", "proxy", str(log_path), "--upstream", server.url, "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    try:
        said = process.stderr.readline()
        url = said.split()[2]
        assert server.url in said
        with httpx.Client(base_url=url) as http:
            call = http.post("/api/chat", json=BODY).headers["x-audit-event-id"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    with AuditLogger(log_path, create=False) as log:
        assert [a.parent_id for a in answers(log)] == [call]
        assert answers(log)[0].actor == "tally-proxy"


@pytest.mark.parametrize(("options", "said"), [
    (["--upstream", "ftp://x"], "--upstream"), (["--upstream", "http://u:secret-word@x"], "--upstream"),
    (["--listen", "nowhere"], "--listen"), (["--tokens", "{tokens}"], "line 2"),
])  # fmt: skip
def test_options_that_make_no_sense_are_named_and_secrets_are_not_repeated(options, said, tmp_path, capsys):
    from tallystick.cli import run

    tokens = tmp_path / "tokens"
    tokens.write_text("anna a-token-of-anna-0123\nben secret-word\n")
    tokens.chmod(0o600)
    AuditLogger(tmp_path / "log").close()
    capsys.readouterr()
    assert run(["proxy", str(tmp_path / "log"), *(o.format(tokens=tokens) for o in options)]) == 2
    error = capsys.readouterr().err
    assert said in error and "secret-word" not in error


def test_tokens_that_others_can_read_are_refused(tmp_path, capsys):
    from tallystick.cli import run

    tokens = tmp_path / "tokens"
    tokens.write_text("anna a-token-of-anna-0123\n")
    os.chmod(tokens, 0o644)
    AuditLogger(tmp_path / "log").close()
    assert run(["proxy", str(tmp_path / "log"), "--tokens", str(tokens)]) == 2
    assert "chmod 600" in capsys.readouterr().err
