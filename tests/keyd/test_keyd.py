"""The epoch keys in another process: it signs one history only, forgets nothing it signed, and gives no key away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.cli import run
from tallystick.core.checkpoint import Checkpoint, open_checkpoint
from tallystick.core.errors import Malformed, StateUnknown, StoreError
from tallystick.core.merkle import Frontier, leaf_hash
from tallystick.core.note import SignerKey
from tallystick.disk import Disk
from tallystick.keyd.client import KeydCustody
from tallystick.keyd.frames import Answer, Request, encode, receive
from tallystick.keyd.server import Door, Keyd, take_over
from tallystick.keys import KeyFolder
from tallystick.store.segments import SegmentStore

ORIGIN = "test/keyd"
EVENT = {"event_type": "data_access", "actor": "ana", "actor_type": "user", "resource": "r", "action": "read"}


class Tree:
    """Leaves, and what a client reads of them."""

    def __init__(self, count, salt=b""):
        self.leaves = [leaf_hash(salt + str(n).encode()) for n in range(count)]

    def root(self, size):
        frontier = Frontier()
        for leaf in self.leaves[:size]:
            frontier.append(leaf)
        return frontier.root()

    def read(self, level, start, count):
        assert level == 0
        return b"".join(self.leaves[start : start + count])


def proof(tree, old, new):
    from tallystick.core.tiles import prove_consistency

    return tuple(prove_consistency(tree.read, old, new))


@pytest.fixture
def tree():
    return Tree(60)


@pytest.fixture
def home(tmp_path, tree):
    """A daemon's folder, whose last head has 5 entries in epoch 0."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keyd").mkdir(mode=0o700)
    keys = KeyFolder(tmp_path / "keys")
    keys.create(SignerKey.generate(ORIGIN), SignerKey.generate(ORIGIN))
    take_over(keys, tmp_path / "keyd", 0, Checkpoint(ORIGIN, 5, tree.root(5)), ())
    return tmp_path / "keyd"


def _sign(tree, size, number=0, old=5, **more):
    return Request(**{"op": "sign", "origin": ORIGIN, "number": number, "size": size, "root": tree.root(size),
                      "proof": proof(tree, old, size) if old <= size else (), **more})  # fmt: skip


def test_it_signs_what_extends_the_last_and_the_same_again(home, tree):
    with Keyd(home) as keyd:
        key = keyd.keys.signer(0).verifier
        first = keyd.answer(_sign(tree, 9))
        assert open_checkpoint(first.text.encode(), [key], origin=ORIGIN) == Checkpoint(ORIGIN, 9, tree.root(9))
        assert keyd.answer(_sign(tree, 9, old=9)) == first, "byte for byte"
    with Keyd(home) as keyd:
        assert keyd.answer(Request("head", ORIGIN)).size == 9
        assert keyd.answer(_sign(tree, 20, old=9)).size == 20


@pytest.mark.parametrize(("change", "why"), [
    ({"size": 4, "old": 4}, "goes back"), ({"size": 9, "tree": Tree(60, b"x")}, "does not extend"),
    ({"size": 5, "tree": Tree(60, b"x")}, "goes back"), ({"size": 9, "proof": ()}, "does not extend"),
    ({"size": 9, "proof": (bytes(32),) * 64}, "at most 63"), ({"size": 9, "root": b"x"}, "root of 32 bytes"),
    ({"size": 2**63, "root": bytes(32)}, "does not extend"), ({"size": 9, "origin": "other/log"}, "these are the keys of test/keyd"),
    ({"size": 9, "op": "export"}, "no such operation"), ({"size": 5, "number": 1}, "larger than the last"),
])  # fmt: skip
def test_nothing_else_is_signed(home, tree, change, why):
    change = dict(change)
    with Keyd(home) as keyd:
        request = _sign(change.pop("tree", tree), min(change["size"], 60), **({"old": change.pop("old")} if "old" in change else {}))
        request = Request(**{**{f: getattr(request, f) for f in request.__struct_fields__}, **change})
        answer = keyd.answer(request)
        assert why in answer.error and not answer.text
        assert keyd.answer(Request("head", ORIGIN)) == Answer(size=5, root=tree.root(5))


def test_an_epoch_that_ended_signs_no_more(home, tree):
    with Keyd(home) as keyd:
        assert keyd.answer(Request("destroy", ORIGIN, 0)).error.startswith("the key of the running epoch goes when the next one is there")
        assert "cannot be" in keyd.answer(Request("prepare", ORIGIN, 0)).error
        assert "cannot be" in keyd.answer(Request("prepare", ORIGIN, 5)).error
        keyd.answer(Request("prepare", ORIGIN, 1))
        again = keyd.answer(Request("prepare", ORIGIN, 1)).text  # the first was named by no entry
        assert keyd.answer(Request("key", ORIGIN, 1)).text == again
        assert keyd.answer(_sign(tree, 9)).text
        assert keyd.answer(_sign(tree, 10, number=1, old=9)).text
        assert "goes back" in keyd.answer(_sign(tree, 11, number=0, old=10)).error
        assert not keyd.answer(Request("destroy", ORIGIN, 0)).error
        assert keyd.answer(Request("numbers", ORIGIN)).numbers == (1,)
        assert keyd.answer(Request("key", ORIGIN, 0)).missing and keyd.answer(_sign(tree, 11, number=7, old=10)).missing
        assert keyd.answer(Request("head", ORIGIN)).size == 10


def test_what_it_signed_is_on_the_disk_before_it_answers(home, tree):
    """The disk fails at the sync of the mark: nothing is answered; what was signed before is still known."""

    class Failing(Disk):
        def sync_data(self, fd):
            raise OSError(5, "Input/output error")

    with Keyd(home, Failing()) as keyd, pytest.raises(OSError, match="Input/output"):
        keyd.answer(_sign(tree, 9))
    with Keyd(home) as keyd:
        last = keyd.answer(Request("head", ORIGIN)).size
        assert last in (5, 9)
        assert keyd.answer(_sign(tree, 9, old=last)).text


def test_it_does_not_start_without_knowing_what_it_signed(home):
    with Keyd(home), pytest.raises(StoreError, match="another tally keyd serves it"):
        Keyd(home)
    (home / "mark").write_bytes(b"x" * 9000)
    with pytest.raises(StateUnknown, match="what was signed last is not known"):
        Keyd(home)
    (home / "mark").unlink()
    with pytest.raises(StateUnknown):
        Keyd(home)
    with pytest.raises(StoreError, match="tally keyd init makes it"):
        Keyd(home.parent)


# -- over the socket -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(keyd, path):
    """In a thread, for what needs no second process."""
    stop, said = threading.Event(), []
    with Door(path) as door:
        thread = threading.Thread(target=door.serve, args=(keyd,), kwargs={"stop": stop.is_set, "say": said.append})
        thread.start()
        try:
            yield said
        finally:
            stop.set()
            thread.join()


def _raw(path, data, *, end=True):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(path))
        s.sendall(data)
        if end:
            s.shutdown(socket.SHUT_WR)
        return receive(s, Answer, 10)


def test_the_client_is_a_custody(home, tree, tmp_path):
    with Keyd(home) as keyd, served(keyd, tmp_path / "s"):
        custody = KeydCustody(tmp_path / "s", ORIGIN, tree.read)
        signer = custody.signer(0)
        for size in (6, 7, 30):
            assert open_checkpoint(signer.sign(size, tree.root(size)), [signer.verifier], origin=ORIGIN).size == size
        other = KeydCustody(tmp_path / "s", ORIGIN, tree.read).signer(0)
        other.sign(40, tree.root(40))
        signer.sign(41, tree.root(41))  # its knowledge of the last head is old
        with pytest.raises(StateUnknown, match="goes back"):
            signer.sign(30, tree.root(30))
        assert custody.prepare(1, ORIGIN) == custody.signer(1).verifier
        assert custody.numbers() == [0, 1]
        custody.destroy(0)
        with pytest.raises(FileNotFoundError):
            custody.signer(0)
        assert custody.last_size() == 41
    with pytest.raises(ConnectionRefusedError, match="tally keyd is not running"):
        custody.signer(1)


def test_bytes_that_are_no_request_are_refused_and_cost_nothing(home, tmp_path):
    good = encode(Request("head", ORIGIN))
    with Keyd(home) as keyd, served(keyd, tmp_path / "s"):
        for data in (struct.pack(">I", 1 << 20), struct.pack(">I", 0), struct.pack(">I", 2) + b"{}", struct.pack(">I", 3) + b"\xff{}",
                     struct.pack(">I", len(good) - 3) + b" " + good[4:], struct.pack(">I", 60000) + b"[" * 60000,
                     struct.pack(">I", 30) + b'{"op":"head","origin":"x","y":1}'):  # fmt: skip
            assert _raw(tmp_path / "s", data, end=False).error
        with socket.socket(socket.AF_UNIX) as half:
            half.connect(str(tmp_path / "s"))
            half.sendall(good[:7])
            half.close()
        assert _raw(tmp_path / "s", good).size == 5


def test_no_answer_holds_a_private_key(home, tmp_path, tree):
    secret = (home / "epoch-0.key").read_text().strip().rsplit("+", 1)[1]
    with Keyd(home) as keyd:
        answers = [keyd.answer(Request(op, ORIGIN, n)) for op in ("head", "key", "numbers", "prepare", "x", "destroy") for n in (0, 1)]
        answers.append(keyd.answer(_sign(tree, 9)))
        said = b"".join(encode(a) for a in answers) + repr(answers).encode() + repr(keyd).encode()
    assert secret.encode() not in said and b"PRIVATE" not in said


# -- with a log, and a process of its own ----------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    assert run(["init", str(tmp_path / "audit_log"), "--origin", ORIGIN]) == 0
    with AuditLogger(tmp_path / "audit_log") as opened:
        opened.log(**EVENT)
    return tmp_path / "audit_log"


@contextlib.contextmanager
def daemon(folder, path):
    """``tally keyd serve`` as people run it."""
    process = subprocess.Popen([sys.executable, "-m", "tallystick", "keyd", "serve", str(folder), "--socket", str(path)],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert process.stderr.readline().startswith("tally keyd: test/keyd at ")
        yield process
    finally:
        process.terminate()
        assert process.wait(10) in (0, -signal.SIGKILL)
        process.stderr.close()


def _init(log, tmp_path):
    assert run(["keyd", "init", str(tmp_path / "d"), "--log", str(log), "--socket", str(tmp_path / "s")]) == 0
    return tmp_path / "d", tmp_path / "s"


def _epoch_files(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("epoch-"))


def test_a_log_whose_keys_another_process_has(log, tmp_path, capsys):
    folder, path = _init(log, tmp_path)
    assert _epoch_files(f"{log}.keys") == [] and _epoch_files(folder) == ["epoch-0.key"]
    assert 'socket = ' in (log / "log.toml").read_text()
    with daemon(folder, path):
        assert os.stat(path).st_mode & 0o777 == 0o660
        with AuditLogger(log) as opened:
            for _ in range(3):
                opened.log(**EVENT)
            opened.rotate("keyd")
            opened.log(**EVENT)
            opened.rotate("again")
            opened.log_many([EVENT] * 5)
        assert _epoch_files(f"{log}.keys") == [] and _epoch_files(folder) == ["epoch-2.key"]
        capsys.readouterr()
        assert run(["keyd", "status", str(log), "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert status["signed_until"] == status["size"] and status["epochs"] == [2]
    assert run(["verify", str(log)]) == 0


def test_a_daemon_that_is_gone_costs_no_entry_and_comes_back(log, tmp_path):
    folder, path = _init(log, tmp_path)
    with daemon(folder, path) as process, AuditLogger(log) as opened:
        first = opened.log(**EVENT)
        process.kill()
        process.wait()
        with pytest.raises(StoreError, match="keyd"):
            opened.log(**EVENT)
        with daemon(folder, path):
            second = opened.log(**EVENT)
            assert opened.get(first) and opened.get(second)
            assert len(opened.query()) == 3
            assert run(["verify", str(log)]) == 0


class Deaf(Keyd):
    """Signs, and lets the first ``losses`` answers be lost."""

    losses = 0

    def answer(self, request):
        answer = super().answer(request)
        if request.op == "sign" and self.losses:
            self.losses -= 1
            raise ConnectionResetError
        return answer


def test_an_answer_that_was_lost_is_asked_for_again(log, tmp_path):
    folder, path = _init(log, tmp_path)
    with Deaf(folder) as keyd, served(keyd, path), AuditLogger(log) as opened:
        keyd.losses = 2
        opened.log(**EVENT)
        assert len(opened.query()) == 2
        assert run(["verify", str(log)]) == 0


def test_where_nobody_knows_whether_it_was_signed_the_lines_stay(log, tmp_path, monkeypatch):
    monkeypatch.setattr("tallystick.keyd.client._AGAIN_S", (0.0, 0.0))
    folder, path = _init(log, tmp_path)
    with Deaf(folder) as keyd, served(keyd, path), AuditLogger(log) as opened:
        keyd.losses = 3
        with pytest.raises(StoreError, match="whether it signed is not known"):
            opened.log(**EVENT)
        opened.log(**EVENT)
        assert len(opened.query()) == 3, "what was signed and never seen is on record"
        assert run(["verify", str(log)]) in (0, 3)
        opened.log(**EVENT)


def test_log_and_mark_set_back_together_are_not_signed_on(log, tmp_path):
    """What no mark beside the log can see: a snapshot of the whole machine but the daemon."""
    folder, path = _init(log, tmp_path)
    with daemon(folder, path):
        with AuditLogger(log) as opened:
            opened.log(**EVENT)
        for name in ("audit_log", "audit_log.keys"):
            shutil.copytree(tmp_path / name, tmp_path / "before" / name)
        with AuditLogger(log) as opened:
            opened.log(**EVENT)
        for name in ("audit_log", "audit_log.keys"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / "before" / name, tmp_path / name)
        with AuditLogger(log) as opened:
            for _ in range(2):
                with pytest.raises(StateUnknown, match=r"does not sign: .*tally resume"):
                    opened.log(**{**EVENT, "action": "another history"})


def test_lines_are_synced_before_they_are_signed(log, tmp_path, monkeypatch):
    """What the daemon signed cannot be taken back with its lines; with key files it is the other way round, which is faster."""
    folder, path = _init(log, tmp_path)
    done = []
    sync, answer = SegmentStore.sync, Keyd.answer
    monkeypatch.setattr(SegmentStore, "sync", lambda self: (done.append("sync"), sync(self))[1])
    monkeypatch.setattr(Keyd, "answer", lambda self, request: (done.append(request.op), answer(self, request))[1])
    with Keyd(folder) as keyd, served(keyd, path), AuditLogger(log) as opened:
        opened.log(**EVENT)
        done.clear()
        opened.log(**EVENT)
        assert done == ["sync", "sign"]


def test_where_the_daemon_lost_everything_the_log_goes_on_on_record(log, tmp_path, capsys):
    folder, path = _init(log, tmp_path)
    with daemon(folder, path), AuditLogger(log) as opened:
        opened.log(**EVENT)
        opened.rotate("keyd")
    shutil.rmtree(folder)
    text = (log / "log.toml").read_text()
    (log / "log.toml").write_text(text[: text.index("[keyd]")])
    assert run(["record", str(log), "--actor", "a", "--action", "b", "--resource", "c"]) == 2
    assert run(["key", "recover", str(log), "--reason", "the disk of keyd died"]) == 0
    assert run(["record", str(log), "--actor", "a", "--action", "b", "--resource", "c"]) == 0
    assert _epoch_files(f"{log}.keys") == ["epoch-2.key"]
    assert run(["verify", str(log)]) == 0


def test_init_twice_and_elsewhere(log, tmp_path, capsys):
    folder, _ = _init(log, tmp_path)
    assert run(["keyd", "init", str(tmp_path / "e"), "--log", str(log), "--socket", str(tmp_path / "t")]) == 2
    assert "names another keyd already" in capsys.readouterr().err
    assert _epoch_files(folder) == ["epoch-0.key"] and not (tmp_path / "e").exists()


# -- another user ------------------------------------------------------------------------------------------------------------

NOBODY = 65534
SERVE = """
import os, sys
import grp
from pathlib import Path
from tallystick.keyd.server import Door, Keyd
from tallystick.keys import KeyFolder
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
with Keyd(Path({folder!r})) as keyd, Door(Path({path!r}), mode=0o666) as door:
    print("ready", flush=True)
    door.serve(keyd, stop=lambda: False, say=lambda text: print(text, flush=True))
"""
ASK = """
import os, sys
from pathlib import Path
from tallystick.core.errors import AuditError
from tallystick.keyd.client import KeydCustody
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
try:
    print(KeydCustody(Path({path!r}), "test/keyd", None).numbers())
except (AuditError, OSError) as e:
    print("refused", e)
for name in ({folder!r}, {folder!r} + "/epoch-0.key"):
    try:
        open(name) if name.endswith("key") else os.listdir(name)
        print("read", name)
    except OSError as e:
        print("kept out")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_the_daemon_is_another_user_and_answers_only_whom_it_may(tree):
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        place.chmod(0o755)
        (place / "keys").mkdir()
        (place / "d").mkdir(mode=0o700)
        (place / "run").mkdir()
        keys = KeyFolder(place / "keys")
        keys.create(SignerKey.generate(ORIGIN), SignerKey.generate(ORIGIN))
        take_over(keys, place / "d", 0, Checkpoint(ORIGIN, 5, tree.root(5)), (1000,))
        for one in (*(place / "d").iterdir(), place / "d", place / "run"):
            os.chown(one, NOBODY, NOBODY)
        words = {"folder": str(place / "d"), "path": str(place / "run" / "s")}
        process = subprocess.Popen([sys.executable, "-c", SERVE.format(uid=NOBODY, **words)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            asked = {uid: subprocess.run([sys.executable, "-c", ASK.format(uid=uid, **words)], capture_output=True, text=True, check=True).stdout
                     for uid in (1000, 1001)}  # fmt: skip
            assert asked[1000] == "[0]\nkept out\nkept out\n"
            assert asked[1001].startswith("refused") and "user 1001 may not ask here" in asked[1001]
            assert "kept out\nkept out\n" in asked[1001]
            assert "user 1001 (process" in process.stdout.readline()
            with pytest.raises(StateUnknown, match="user 0 may not ask here"):
                KeydCustody(place / "run" / "s", ORIGIN, tree.read).numbers()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_who_asks_often_waits(home, tmp_path, monkeypatch):
    monkeypatch.setattr("tallystick.keyd.server.REQUESTS_PER_S", 100.0)
    monkeypatch.setattr("tallystick.keyd.server._BURST", 5.0)
    with Keyd(home) as keyd, served(keyd, tmp_path / "s"):
        began = time.monotonic()
        for _ in range(25):
            _raw(tmp_path / "s", encode(Request("head", ORIGIN)))
        assert time.monotonic() - began > 0.15


def test_a_message_that_is_too_large_is_not_sent():
    with pytest.raises(Malformed):
        encode(Request("x" * 70_000, ORIGIN))
