"""The log's side: what it hands over, what it believes of an answer, and what it says when a witness knows another history."""

import contextlib
import http.server
import json
import os
import socket
import threading

import pytest

from tallystick import AuditLogger
from tallystick.core.cosignature import CosignerKey, cosignatures
from tallystick.core.errors import Malformed, OutsideError, StoreError
from tallystick.core.note import split
from tallystick.core.policy import Policy
from tallystick.outside import HandedOut, Parties
from tallystick.publishing import Known, Publisher, change_policy, known_witnesses, publish, quorum_word, source_of, write_policy
from tallystick.witness import submit
from tallystick.witness.folder import add_log, create, read_vkeys
from tallystick.witness.submit import Url, WitnessClient

from .conftest import NAME, MadeLog, SetClock, serving


def fill(log, count):
    log.log_many([{"event_type": "data_access", "actor": "a", "actor_type": "user", "resource": "r", "action": f"read {n}"}
                  for n in range(count)])  # fmt: skip


@pytest.fixture
def audit(tmp_path):
    """A real log with 41 entries."""
    with AuditLogger(tmp_path / "audit_log") as log:
        fill(log, 40)
        yield log


@pytest.fixture
def made(tmp_path, audit):
    """The folder of a witness that knows it."""
    create(tmp_path / "w", NAME, ml_dsa=True)
    add_log(tmp_path / "w", audit._handle.genesis.vkey.format())
    return tmp_path / "w"


def configure(audit, *witnesses, quorum="all"):
    write_policy(audit.path, change_policy(None, audit._handle.genesis.vkey, list(witnesses), quorum))


def test_a_checkpoint_is_confirmed_and_the_cosignatures_lie_beside_it(audit, made):
    vkeys = read_vkeys(made)
    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, vkeys))
        for size in (41, 41, 141, 142):
            fill(audit, size - audit._handle.view.head().size) if size > audit._handle.view.head().size else None
            (outcome,) = publish(source_of(audit))
            assert (outcome.name, outcome.size, outcome.word, outcome.local, outcome.error) == ("kanzlei", size, "confirmed", True, "")
            note = HandedOut(audit.path).signed(size)
            assert [c.key.algorithm for c in cosignatures(note, vkeys)] == [4, 6]
            state = Parties(audit.path).get("kanzlei")
            assert (state.done_size, state.error, state.local) == (size, "", True)
            assert abs(state.done_us - state.tried_us) < 1000
    # only what the stable key signed went out
    assert audit._handle.genesis.vkey.key_id in {s.key_id for s in split(note)[1]}


def test_nothing_need_be_remembered(audit, made):
    """The folder ``outside`` was deleted: the size is learned from 409."""
    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, read_vkeys(made)))
        publish(source_of(audit))
        for path in (audit.path / "outside").iterdir():
            path.unlink()
        fill(audit, 5)
        assert publish(source_of(audit))[0].word == "confirmed"


def test_one_that_is_down_hinders_no_other(audit, made, tmp_path):
    with serving(made) as w:
        configure(audit, Known("down", "http://127.0.0.1:9/", (MadeKey(),)), Known("kanzlei", w.url, read_vkeys(made)))
        down, up = publish(source_of(audit))
        assert (down.word, down.contradiction) == ("pending", False)
        assert "refused" in down.error
        assert up.word == "confirmed"
        assert Parties(audit.path).get("down").error == down.error
    audit.log("data_access", "a", "user", "r", "goes on")


def MadeKey():
    from tallystick.core.cosignature import CosignerKey

    return CosignerKey("other.example/w", 4, os.urandom(32)).verifier


def test_a_log_that_was_cut_is_told_by_its_witness(audit, made, tmp_path):
    """Rolled back together with its keys and all: here nothing contradicts, the witness does."""
    import shutil

    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, read_vkeys(made)))
        audit._handle.writer.make_durable()
        shutil.copytree(audit.path, tmp_path / "then" / "audit_log")
        shutil.copytree(tmp_path / "audit_log.keys", tmp_path / "then" / "audit_log.keys")
        fill(audit, 9)
        publish(source_of(audit))
        with AuditLogger(tmp_path / "then" / "audit_log", create=False) as old:
            (outcome,) = publish(source_of(old))
            assert outcome.contradiction
            assert "confirmed 50 entries of this log, and here are 41: entries are missing" in outcome.error
            fill(old, 20)  # and it goes on with another history
            (outcome,) = publish(source_of(old))
            assert outcome.contradiction
            assert "holds another history" in outcome.error
            assert "pending" == outcome.word


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers what the test put down."""

    answers: list = []
    seen: list = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(body)
        status, headers, answer = self.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("S", (Scripted,), {"answers": [], "seen": []}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


SIZE = {"Content-Type": "text/x.tlog.size"}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([(200, {}, b"")], "no cosignature"),
        ([(200, {}, b"nonsense\n")], "no cosignature"),
        ([(200, {}, "— other.example/w AAAAAAA=\n".encode())], "without a cosignature by"),
        ([(200, {}, b"x" * 70_000)], "longer than 64 KiB"),
        ([(302, {"Location": "http://127.0.0.1:1/"}, b"")], "redirects are not followed"),
        ([(409, {}, b"3\n")], "409 without a tree size"),
        ([(409, SIZE, b"x\n")], "is that a witness"),
        ([(409, SIZE, b"3\n"), (409, SIZE, b"4\n")], "at the same time"),
        ([(403, {}, b"")], "does not trust the key"),
        ([(404, {}, b"")], "does not know this log"),
        ([(503, {}, b"clock\nmore")], "503, clock"),
    ],
)
def test_what_is_not_believed_of_an_answer(scripted, answers, said):
    log = MadeLog()
    scripted.RequestHandlerClass.answers[:] = answers
    client = WitnessClient("x", scripted.url, (MadeKey(),), log.read, lambda: 20)
    with pytest.raises(OutsideError, match=said) as caught:
        client.hand_over(20, log.note(20))
    assert scripted.url in str(caught.value)
    assert scripted.RequestHandlerClass.answers == []


def test_a_cosignature_of_another_checkpoint_is_not_believed(scripted):
    from tallystick.core.cosignature import CosignerKey

    log, key = MadeLog(), CosignerKey("w.example", 4, os.urandom(32))
    wrong = key.cosign(log.checkpoint(19), 1_700_000_000).format() + "\n"
    scripted.RequestHandlerClass.answers[:] = [(200, {}, wrong.encode())]
    with pytest.raises(OutsideError, match="no cosignature of this checkpoint"):
        WitnessClient("x", scripted.url, (key.verifier,), log.read, lambda: 20).hand_over(20, log.note(20))


def test_a_witness_that_lost_what_it_knew_is_not_taken_for_a_new_one(scripted):
    log = MadeLog()
    scripted.RequestHandlerClass.answers[:] = [(409, SIZE, b"0\n")]
    with pytest.raises(OutsideError, match="had confirmed 12 entries and now knows of 0: it lost what it knew"):
        WitnessClient("x", scripted.url, (MadeKey(),), log.read, lambda: 20, 12).hand_over(20, log.note(20))


def test_what_the_log_key_did_not_sign_stays_here(audit, made):
    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, read_vkeys(made)))
        key = audit._handle.keys.path / "log.key"
        os.rename(key, key.with_name("elsewhere"))
        with pytest.raises(StoreError, match=r"log key .* is not readable by you"):
            publish(source_of(audit))
        assert "log key" in Parties(audit.path).get("kanzlei").error
        os.rename(key.with_name("elsewhere"), key)
        assert publish(source_of(audit))[0].word == "confirmed"


def test_urls():
    assert Url.parse("https://w.example/a/") == ("https", "w.example", 443, "/a")
    assert Url.parse("http://[::1]:7380").is_local()
    assert Url.parse("http://127.0.0.1:7380").is_local()
    assert not Url.parse("http://192.0.2.1:7380").is_local()
    for bad in ("", "w.example", "ftp://w.example", "http://u@w.example", "http://w.example/?a", "http://w.example/#a", "http://w.example:x", "http://a b"):
        with pytest.raises(Malformed):
            Url.parse(bad)


def test_policies_that_we_write_and_read_again(audit, made):
    vkey, vkeys = audit._handle.genesis.vkey, read_vkeys(made)
    a, b = Known("a", "http://a.example", vkeys), Known("b", "http://b.example", (MadeKey(),))
    for quorum in ("all", "any", "2"):
        policy = change_policy(None, vkey, [a, b], quorum)
        assert Policy.parse(policy.format()) == policy
        assert known_witnesses(policy) == [a, b]
        assert quorum_word(policy) == ("all" if quorum == "2" else quorum)
        assert policy.satisfied({"a.04", "b"})
        assert policy.satisfied({"a.04", "a.06"}) is (quorum == "any")  # two keys of one witness are one witness
        assert change_policy(policy, vkey, known_witnesses(policy), quorum_word(policy)) == policy
    for quorum in ("0", "3", "x", ""):
        with pytest.raises(Malformed):
            change_policy(None, vkey, [a, b], quorum)
    assert change_policy(policy, vkey, [], "all").quorum == "none"


# -- in the background -------------------------------------------------------------------------------------------------------


def background(audit):
    handle = audit._handle
    publisher = Publisher(handle.folder, handle.genesis, lambda: handle.keys)
    return publisher, source_of(audit)


def test_a_closed_epoch_goes_out_by_itself(audit, made):
    """The newest of ``checkpoints/`` is handed to whoever does not have it, and nothing else is."""
    from tallystick.proving import current_checkpoint

    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, read_vkeys(made)))
        publisher, source = background(audit)
        HandedOut(audit.path).put(41, current_checkpoint(audit))  # as the writer does at the end of an epoch
        fill(audit, 3)
        (outcome,) = publisher.look(source)
        assert (outcome.size, outcome.word) == (41, "confirmed")
        assert publisher.look(source) == []


def test_an_epoch_that_a_writer_ended_is_witnessed(audit, made):
    """Also where the writer could not sign with the log key: whoever hands out adds its line."""
    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, read_vkeys(made)))
        publisher, source = background(audit)
        key = audit._handle.keys.path / "log.key"
        for hidden in (False, True):
            if hidden:
                os.rename(key, key.with_name("elsewhere"))
            audit.rotate("test")
            size = HandedOut(audit.path).sizes()[-1]
            if hidden:
                (outcome,) = publisher.look(source)
                assert "log key" in outcome.error
                os.rename(key.with_name("elsewhere"), key)
                publisher._due.clear()
                (audit.path / "outside" / "kanzlei.json").unlink()  # as if half a minute were over
            (outcome,) = publisher.look(source)
            assert (outcome.size, outcome.word) == (size, "confirmed")
            assert cosignatures(HandedOut(audit.path).signed(size), read_vkeys(made))


def test_a_child_does_not_hold_the_lock_of_what_was_handed_out(audit):
    """A fork while the publisher changes ``checkpoints/`` must not stop the writer's next epoch."""
    read, write = os.pipe()
    handed = HandedOut(audit.path)
    with handed._alone():
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)  # lives until the parent is done
            os._exit(0)
    os.close(read)
    done = threading.Thread(target=audit.rotate, daemon=True)
    done.start()
    done.join(20)
    os.close(write)
    os.waitpid(pid, 0)
    assert not done.is_alive()


def test_who_failed_is_asked_later_and_later(audit, made, monkeypatch):
    from tallystick import publishing
    from tallystick.proving import current_checkpoint

    now = [1000.0]
    monkeypatch.setattr(publishing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(publishing, "CLOCK", SetClock())
    monkeypatch.setattr(publishing.CLOCK, "wall_us", lambda: int(1.7e15 + now[0] * 1e6))
    configure(audit, Known("down", "http://127.0.0.1:9/", (MadeKey(),)))
    HandedOut(audit.path).put(41, current_checkpoint(audit))
    publisher, source = background(audit)
    waits = []
    for _ in range(10):
        assert publisher.look(source)[0].error
        assert publisher.look(source) == []
        other, _ = background(audit)
        assert other.look(source) == []  # nor does another process at once
        waits.append(publisher._due["down"] - now[0])
        now[0] = publisher._due["down"]
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert waits[-1] == 3600.0


def test_every_so_many_minutes_where_that_is_asked_for(audit, made):
    with serving(made) as w:
        configure(audit, Known("kanzlei", w.url, read_vkeys(made)))
        publisher, source = background(audit)
        assert publisher.look(source) == []
        toml = audit.path / "log.toml"
        toml.write_text(toml.read_text() + "\n[publish]\nminutes = 1\n")
        assert [o.size for o in publisher.look(source)] == [41]
        fill(audit, 1)
        assert publisher.look(source) == []  # the minute is not over
        state = Parties(audit.path).get("kanzlei")
        import msgspec

        Parties(audit.path).put("kanzlei", msgspec.structs.replace(state, done_us=state.done_us - 61_000_000))
        assert [o.size for o in publisher.look(source)] == [audit._handle.view.head().size]


def test_the_thread_hands_out_while_appends_go_on_and_ends_with_the_log(tmp_path, made, audit):
    """The real thread, started by an append; the witness does not answer until the append has returned."""
    from tallystick.proving import current_checkpoint

    release, asked = threading.Event(), threading.Event()

    class Held(Scripted):
        def do_POST(self):
            asked.set()
            assert release.wait(20)
            super().do_POST()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Held)
    Held.answers = [(404, {}, b"")] * 5
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        configure(audit, Known("slow", f"http://127.0.0.1:{server.server_address[1]}", (MadeKey(),)))
        HandedOut(audit.path).put(41, current_checkpoint(audit))
        audit._handle.publisher._look_at = 0.0
        audit.log("data_access", "a", "user", "r", "starts it")
        assert asked.wait(20)
        for n in range(20):
            audit.log("data_access", "a", "user", "r", f"while the witness is silent {n}")
        assert not release.is_set()
    finally:
        release.set()
        for _ in range(2000):
            state = Parties(audit.path).get("slow")
            if state is not None:
                break
            threading.Event().wait(0.01)
        audit.close()
        server.shutdown()
        thread.join()
        server.server_close()
    assert "does not know this log" in state.error
    assert not any(t.name == "tallystick-publisher" for t in threading.enumerate())


def test_without_a_party_there_is_no_thread(audit):
    fill(audit, 1)
    assert audit._handle.publisher._thread is None


def test_a_child_has_no_publisher_of_its_parent(audit, made):
    configure(audit, Known("down", "http://127.0.0.1:9/", (MadeKey(),)))
    audit._handle.publisher._look_at = 0.0
    fill(audit, 1)
    assert audit._handle.publisher._thread is not None
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        audit.log("data_access", "child", "user", "r", "from the child")
        thread = audit._handle.publisher._thread
        os.write(write, json.dumps([thread is not None and thread.is_alive(), audit._handle.view.head().size]).encode())
        audit.close()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        assert json.loads(file.read()) == [True, audit._handle.view.head().size]
    assert os.waitpid(pid, 0)[1] == 0


def test_a_change_of_the_policy_is_on_record(tmp_path):
    from tallystick.verification import verify_log

    with AuditLogger(tmp_path / "audit_log") as log:
        configure(log, Known("down", "http://127.0.0.1:9/", (MadeKey(),)))
    with AuditLogger(tmp_path / "audit_log") as log:
        fill(log, 1)
        assert [e["event_type"] for e in log.query(filters={"event_type": "log.config"})] == ["log.config"]
        assert not any("on record" in n for n in verify_log(log.path, memory=log.memory).not_proven)
    (tmp_path / "audit_log" / "policy").unlink()
    assert any("on record" in n for n in verify_log(log.path, memory=log.memory).not_proven)


def test_a_witness_that_sends_a_byte_now_and_then_is_not_waited_for(audit, monkeypatch):
    """Everybody else would wait with it: one process hands out at a time. The timeout of the socket is that of one read."""
    monkeypatch.setattr(submit, "DEADLINE_S", 0.3)
    over = threading.Event()

    def drip(listening):
        taken, _ = listening.accept()
        with taken, contextlib.suppress(OSError):
            taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            while not over.wait(0.05):
                taken.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=drip, args=(listening,), daemon=True).start()
        key = CosignerKey(NAME, 4, bytes(32)).verifier
        configure(audit, Known("slow", f"http://127.0.0.1:{listening.getsockname()[1]}", (key,)))
        try:
            (outcome,) = publish(source_of(audit))
        finally:
            over.set()
    assert outcome.word == "pending" and "no whole answer in time" in outcome.error
