"""The witness over HTTP: answers, headers, what is refused before it is read, and many who ask at once."""

import hashlib
import http.client
import random
import socket
import subprocess
import sys
import threading

import pytest

from tallystick.core.cosignature import cosignatures
from tallystick.witness import server
from tallystick.witness.folder import add_log
from tallystick.witness.server import BadRequest, parse_head

from .conftest import MadeLog, serving


def test_a_checkpoint_is_cosigned_and_shown(served, log):
    status, headers, body = served.ask("POST", "/add-checkpoint", log.body(0, 5))
    assert status == 200
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert len(cosignatures(log.note(5) + body, served.witness.vkeys)) == 1
    digest = hashlib.sha256(log.origin.encode()).hexdigest()
    status, _, note = served.ask("GET", f"/{digest}/checkpoint")
    assert (status, note) == (200, log.note(5) + body)
    assert served.ask("GET", f"/{'0' * 64}/checkpoint")[0] == 404
    assert served.ask("GET", "/healthz")[::2] == (200, b"ok\n")
    assert served.ask("GET", "/nothing")[0] == 404
    assert served.ask("GET", "/add-checkpoint")[0] == 405
    assert served.ask("PUT", "/healthz", b"x")[0] == 404
    assert served.ask("HEAD", "/healthz")[::2] == (200, b"")


def test_the_table_over_http(served, log):
    assert served.ask("POST", "/add-checkpoint", b"nonsense")[0] == 400
    assert served.ask("POST", "/add-checkpoint", MadeLog("log.example/unknown").body(0, 5))[0] == 404
    assert served.ask("POST", "/add-checkpoint", MadeLog().body(0, 5))[0] == 403
    assert served.ask("POST", "/add-checkpoint", log.body(0, 5))[0] == 200
    status, headers, body = served.ask("POST", "/add-checkpoint", log.body(0, 9))
    assert (status, headers["Content-Type"], body) == (409, "text/x.tlog.size", b"5\n")
    assert served.ask("POST", "/add-checkpoint", log.branch(2).body(5, 9))[0] == 422


def test_a_log_that_is_added_is_known_without_a_new_start(served):
    other = MadeLog("log.example/other")
    assert served.ask("POST", "/add-checkpoint", other.body(0, 5))[0] == 404
    add_log(served.folder, other.key.verifier.format())
    assert served.ask("POST", "/add-checkpoint", other.body(0, 5))[0] == 200


def test_a_list_of_logs_that_became_unreadable_changes_nothing(served, log):
    with (served.folder / "logs").open("ab") as file:
        file.write(b"nonsense\n")
    assert served.ask("POST", "/add-checkpoint", log.body(0, 5))[0] == 200


def _post(body: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST /add-checkpoint HTTP/" + version, *fields, b"", b""]) + body


def test_requests_that_two_readers_could_understand_differently_are_refused(served, log):
    body = log.body(0, 5)
    length = b"Content-Length: %d" % len(body)
    for request, status in [
        (_post(body, b"Host: x", length, b"Content-Length: 3"), 400),
        (_post(body, b"Host: x", b"Content-Length: +5"), 400),
        (_post(body, b"Host: x", b"Content-Length: 5, 5"), 400),
        (_post(body, b"Host: x", length, b"Transfer-Encoding: chunked"), 411),
        (_post(body, b"Host: x", b"Transfer-Encoding: chunked"), 411),
        (_post(body, length), 400),
        (_post(body, b"Host: x", b"Host: y", length), 400),
        (_post(body, b"Host: x", b" folded: y", length), 400),
        (_post(body, b"Host : x", length), 400),
        (_post(body, b"Host: x", length).replace(b"\r\n", b"\n"), None),
        (_post(body, b"Host: x\nContent-Length: 3", length), 400),
        (_post(body, b"Host: x", length, version=b"2.0"), 400),
        (_post(body, b"Host: x", b"Content-Length: 300000"), 413),
        (_post(body, b"Host: x", b"X: " + b"y" * 20_000, length), 431),
        (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    ]:
        got = served.raw(request)
        if status is None:
            assert got == b""
        else:
            assert got.startswith(b"HTTP/1.1 %d " % status), (request[:200], got[:200])
            assert b"Connection: close" in got
            assert got.count(b"HTTP/1.1") == 1
    assert served.ask("GET", f"/{hashlib.sha256(log.origin.encode()).hexdigest()}/checkpoint")[0] == 404  # none of it was taken


def test_head_of_a_request():
    head = parse_head(b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nExpect: 100-continue")
    assert head == (b"POST", b"/add-checkpoint", 12, True, True)
    assert parse_head(b"GET / HTTP/1.0").keep is False
    assert parse_head(b"GET / HTTP/1.0\r\nConnection: keep-alive").keep is True
    assert parse_head(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Close").keep is False
    for bad in (b"", b"GET  / HTTP/1.1\r\nHost: x", b"get / HTTP/1.1\r\nHost: x", b"GET / HTTP/1.1\r\nHost: x\r\n"):
        with pytest.raises(BadRequest):
            parse_head(bad)


def test_many_requests_on_one_connection_are_answered_in_their_order(served, log):
    sizes = list(range(1, 41))  # more than may wait at once
    requests = b"".join(_post(body, b"Host: x", b"Content-Length: %d" % len(body))
                        for body in (log.body(size - 1, size) for size in sizes))  # fmt: skip
    got = served.raw(requests + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    parts = got.split(b"HTTP/1.1 ")[1:]
    assert len(parts) == 41
    for size, part in zip(sizes, parts, strict=False):
        assert part.startswith(b"200")
        assert cosignatures(log.note(size) + part.partition(b"\r\n\r\n")[2], served.witness.vkeys)
    assert parts[-1].endswith(b"ok\n")


def test_a_request_in_single_bytes_and_one_that_asks_before_it_sends(served, log):
    body = log.body(0, 5)
    with socket.create_connection((served.host, served.port), timeout=10) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in _post(body, b"Host: x", b"Content-Length: %d" % len(body)):
            s.sendall(bytes([byte]))
        assert s.recv(65536).startswith(b"HTTP/1.1 200 ")
        body = log.body(5, 9)
        s.sendall(_post(b"", b"Host: x", b"Content-Length: %d" % len(body), b"Expect: 100-continue"))
        assert s.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(body)
        assert s.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_many_logs_at_once_share_syncs(folder):
    logs = [MadeLog(f"log.example/{n}", 12) for n in range(24)]
    for log in logs:
        add_log(folder, log.key.verifier.format())
    with serving(folder) as served:
        failed = []

        def grow(log):
            for size in range(1, 11):
                if served.ask("POST", "/add-checkpoint", log.body(size - 1, size))[0] != 200:
                    failed.append((log.origin, size))

        threads = [threading.Thread(target=grow, args=(log,)) for log in logs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert served.witness._sequence < 240  # syncs for 240 requests


def test_a_client_that_goes_away_stops_nobody(served, log):
    body = log.body(0, 5)
    with socket.create_connection((served.host, served.port)) as s:
        s.sendall(_post(body, b"Host: x", b"Content-Length: %d" % len(body)))
    while served.ask("POST", "/add-checkpoint", log.body(0, 9))[2] != b"5\n":  # it was cosigned, though nobody heard it
        pass
    assert served.ask("POST", "/add-checkpoint", log.body(5, 9))[0] == 200


def test_slow_clients_and_too_many_are_closed(served, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_S", -1.0)
    with socket.create_connection((served.host, served.port), timeout=10) as s:
        s.sendall(b"POST /add-ch")
        assert s.recv(10) == b""
    monkeypatch.setattr(server, "REQUEST_S", 10.0)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
    with socket.create_connection((served.host, served.port), timeout=10) as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert s.recv(1000).startswith(b"HTTP/1.1 200")
        with socket.create_connection((served.host, served.port), timeout=10) as t:
            assert t.recv(1000).startswith(b"HTTP/1.1 503")


def test_when_it_cannot_keep_it_says_so_everywhere(served, log):
    served.witness.broken = "database or disk is full"
    assert served.ask("GET", "/healthz")[::2] == (503, b"database or disk is full\n")
    status, _, body = served.ask("POST", "/add-checkpoint", log.body(0, 5))
    assert status == 503
    assert "—" not in body.decode()


def test_any_bytes_are_answered_or_closed_and_the_next_is_served(served, log):
    chance = random.Random(7)
    whole = _post(log.body(0, 5), b"Host: x", b"Content-Length: %d" % len(log.body(0, 5)), b"Connection: close")
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.choice((b"", b"\r\n", b"\n", b"\0", b":", b" ", b"POST", bytes([chance.randrange(256)])))
        got = served.raw(bytes(data))
        assert got == b"" or got.startswith(b"HTTP/1.1 ")
    assert served.ask("GET", "/healthz")[0] == 200
    assert served.witness.broken == ""


def test_what_was_answered_survives_kill_9_under_load(folder):
    """A process serves many logs at once and is killed; what any client was told is known to the next start."""
    logs = [MadeLog(f"log.example/{n}", 120) for n in range(8)]
    for log in logs:
        add_log(folder, log.key.verifier.format())
    process = subprocess.Popen([sys.executable, "-m", "tallystick", "witness", "serve", folder, "--listen", "127.0.0.1:0"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    port = int(process.stderr.readline().rstrip().rpartition(":")[2])
    told, enough = {log.origin: 0 for log in logs}, threading.Event()

    def grow(log):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            for size in range(1, 120):
                connection.request("POST", "/add-checkpoint", log.body(size - 1, size))
                answer = connection.getresponse()
                if answer.status != 200 or not answer.read().startswith("— ".encode()):
                    return
                told[log.origin] = size
                if sum(told.values()) > 200:
                    enough.set()
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    threads = [threading.Thread(target=grow, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    process.kill()
    process.wait()
    process.stderr.close()
    for thread in threads:
        thread.join()
    with serving(folder) as again:
        for log in logs:
            known = int(again.ask("POST", "/add-checkpoint", log.body(119, 120))[2])
            assert told[log.origin] <= known <= told[log.origin] + 1
            assert again.ask("POST", "/add-checkpoint", log.body(known, 120))[0] == 200


def test_a_failure_that_nobody_foresaw_is_answered_and_stops_it(served, log, monkeypatch):
    def fail(asked):
        raise ZeroDivisionError("what nobody foresaw")

    monkeypatch.setattr(served.witness, "settle", fail)
    assert served.ask("POST", "/add-checkpoint", log.body(0, 5))[0] == 503
    assert served.ask("GET", "/healthz")[0] == 503


def test_who_does_not_read_its_answers_gets_no_more_of_them(served):
    """They would be kept here, without end: answers are larger than requests."""
    asked = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with socket.create_connection(("127.0.0.1", served.port)) as rude:
        rude.settimeout(1.0)
        with pytest.raises(TimeoutError):
            for _ in range(1000):  # some 70 MB
                rude.sendall(asked)
        assert served.ask("GET", "/healthz")[0] == 200  # the others do not wait for it
        rude.settimeout(10.0)
        assert rude.recv(1 << 16).startswith(b"HTTP/1.1 404")  # it reads after all: it is answered further
