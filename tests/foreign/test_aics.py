"""aics-tlog and aics-witness: another implementation of the same specifications, as verifier of what we emit, as the witness of our log,
and as the log that our witness cosigns. One verdict on every case; where we are stricter a test says so."""

from __future__ import annotations

import http.client
import importlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick import AuditLogger
from tallystick.core.checkpoint import Checkpoint, open_checkpoint
from tallystick.core.cosignature import CosignerKey, verify
from tallystick.core.errors import Malformed, VerificationError
from tallystick.core.merkle import verify_consistency, verify_inclusion
from tallystick.core.note import Signature, VerifierKey, encode_base64, sign, split
from tallystick.core.tiles import prove_consistency, prove_inclusion
from tallystick.core.tlog_witness import parse_request
from tallystick.outside import HandedOut
from tallystick.publishing import Known, change_policy, publish, source_of, write_policy
from tallystick.witness.folder import add_log, create

from ..witness.conftest import MadeLog, serving
from .packages import AICS, need, wheels

NAME = "witness.example/w1"


@pytest.fixture(scope="module")
def site():
    return need(wheels, *AICS)


@pytest.fixture(scope="module")
def aics(site):
    """The package aics_tlog, imported from where it was unpacked."""
    sys.path.insert(0, str(site))
    try:
        yield importlib.import_module("aics_tlog")
    finally:
        sys.path.remove(str(site))


class Foreign:
    """aics-witness in a process of its own."""

    def __init__(self, site, folder, *vkeys):
        folder.mkdir()
        self.env = {**os.environ, "PYTHONPATH": str(site), "AICS_WITNESS_CONFIG": str(folder / "witness.json")}
        self.run("init", "--name", NAME)
        for vkey in vkeys:
            self.run("add-log", "--origin", VerifierKey.parse(vkey).name, "--vkey", vkey)
        said = folder / "said"
        with said.open("wb") as file:  # not a pipe: nobody reads it while the witness talks
            self.process = subprocess.Popen([sys.executable, "-m", "aics_witness", "serve", "--listen", "127.0.0.1:0"], env=self.env,
                                            cwd=folder, stderr=file, stdout=file)  # fmt: skip
        until = time.monotonic() + 20
        while (found := re.search(rb"127\.0\.0\.1:(\d+)", said.read_bytes())) is None:
            assert time.monotonic() < until and self.process.poll() is None, said.read_text()
            time.sleep(0.02)
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.vkey = VerifierKey.parse(next(w for w in self.run("status").split() if w.startswith(NAME + "+")), algorithms=(4,))

    def run(self, *args):
        done = subprocess.run([sys.executable, "-m", "aics_witness", *args], env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, body):
        return ask(self.port, body)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=20)


def ask(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/add-checkpoint", body)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type"), answer.read()
    finally:
        connection.close()


# -- their verifier, our log -------------------------------------------------------------------------------------------------


def test_their_verifier_and_ours_say_the_same_of_proofs(aics):
    log, chance = MadeLog(), random.Random(4)
    judged = {True: 0, False: 0}

    def both(theirs, ours):
        try:
            ours()
        except (VerificationError, Malformed):
            mine = False
        else:
            mine = True
        try:
            other = bool(theirs())
        except ValueError:
            other = False
        assert mine is other
        judged[mine] += 1

    for size in (1, 2, 3, 7, 8, 9, 64, 100, 255, 256, 257, 300):
        root = log.checkpoint(size).root
        for index in {0, size // 2, size - 1, chance.randrange(size)}:
            proof = prove_inclusion(log.read, index, size)
            for changed in (proof, proof[1:], [*proof, bytes(32)], proof[::-1], [os.urandom(32), *proof[1:]], [p[:31] for p in proof]):
                leaf = log.leaves[index]
                both(lambda: aics.verify_inclusion(leaf, index, size, changed, root),
                     lambda: verify_inclusion(index, size, leaf, changed, root))  # fmt: skip
        for old in {0, 1, size // 2, size - 1, size}:
            proof, before = prove_consistency(log.read, old, size), log.checkpoint(old).root
            for changed in (proof, proof[1:], [*proof, bytes(32)], proof[::-1], [os.urandom(32), *proof[1:]]):
                for old_root in (before, os.urandom(32)):
                    both(lambda: aics.verify_consistency(old, size, old_root, root, changed),
                         lambda: verify_consistency(old, size, old_root, root, changed))  # fmt: skip
    assert min(judged.values()) > 100


def test_their_verifier_opens_a_real_log_of_ours_with_its_witnesses(aics, tmp_path):
    """Checkpoint, the log key's line, the cosignature, and the quorum of it, all by their code."""
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log_many([{"event_type": "data_access", "actor": "a", "actor_type": "user", "resource": "r", "action": f"{n}"} for n in range(20)])
        vkey = log._handle.genesis.vkey
        create(tmp_path / "w", NAME)
        add_log(tmp_path / "w", vkey.format())
        with serving(tmp_path / "w") as w:
            write_policy(log.path, change_policy(None, vkey, [Known("w", w.url, w.witness.vkeys)], "all"))
            assert publish(source_of(log))[0].word == "confirmed"
            keys = w.witness.vkeys
        whole = HandedOut(log.path).signed(21)
    found = aics.verify_checkpoint(aics.parse_note(whole), aics.parse_vkey(vkey.format()), [aics.parse_vkey(k.format()) for k in keys], 1,
                                   expected_origin=vkey.name, max_age_seconds=600)  # fmt: skip
    assert found.ok, found
    parsed = aics.parse_checkpoint(aics.parse_note(whole).text)
    assert (parsed.size, parsed.root) == (21, open_checkpoint(whole, [vkey], origin=vkey.name).root)
    broken = whole.replace(b"\n21\n", b"\n20\n")
    assert not aics.verify_checkpoint(aics.parse_note(broken), aics.parse_vkey(vkey.format()), [], 0).ok


def test_cosignatures_both_ways(aics):
    seed = os.urandom(32)
    ours, theirs = CosignerKey(NAME, 4, seed), Ed25519PrivateKey.from_private_bytes(seed)
    assert aics.format_vkey(aics.cosignature_vkey(NAME, theirs.public_key())) == ours.verifier.format()
    for size, extensions in ((0, ()), (1, ()), (300, ("an extension", "ünicode"))):
        made = Checkpoint("log.example/one", size, MadeLog().checkpoint(size).root, extensions)
        line = ours.cosign(made, 1_700_000_000)
        assert aics.verify_cosignature(line.signature, NAME, theirs.public_key(), made.origin, size, made.root, extensions)
        assert not aics.verify_cosignature(line.signature, NAME, theirs.public_key(), made.origin, size + 1, made.root, extensions)
        _, other = aics.sign_cosignature(theirs, NAME, 1_700_000_001, made.origin, size, made.root, extensions)
        assert verify(made, ours.verifier, Signature(NAME, int.from_bytes(other.key_id, "big"), other.signature)).time_s == 1_700_000_001
        with pytest.raises(VerificationError):
            verify(Checkpoint("log.example/two", size, made.root, extensions), ours.verifier,
                   Signature(NAME, ours.verifier.key_id, other.signature))  # fmt: skip


def _lax():
    log = MadeLog()
    good, root = log.note(5), log.checkpoint(5).root
    text = log.checkpoint(5).format()
    return log, [
        ("no final newline", good[:-1]),
        ("size 2**64", sign(text.replace("\n5\n", f"\n{2**64}\n"), log.key)),
        ("size 0 with another root", sign(text.replace("\n5\n", "\n0\n"), log.key)),
        ("DEL in an extension", sign(text + "a\x7fb\n", log.key)),
        ("U+2028 in an extension", sign(text + "a\u2028b\n", log.key)),
        ("10 MB of extension", b"".join([text.encode(), b"x" * 10_000_000, b"\n\n", good.partition(b"\n\n")[2]])),
        ("17 extensions", sign(text + "x\n" * 17, log.key)),
        ("65 signatures", good + "".join(f"— a{n} AAAAAAA=\n" for n in range(64)).encode()),
    ], root


def test_we_are_stricter_where_they_are_lax(aics):
    log, cases, _ = _lax()
    assert open_checkpoint(log.note(5), [log.key.verifier], origin=log.origin).size == 5
    accepted = set()
    for what, note in cases:
        with pytest.raises(Malformed):
            open_checkpoint(note, [log.key.verifier], origin=log.origin)
        try:
            parsed = aics.parse_note(note)
            aics.parse_checkpoint(parsed.text)
            accepted.add(what)
        except ValueError:
            pass
    assert {"no final newline", "size 2**64", "size 0 with another root", "DEL in an extension", "U+2028 in an extension"} <= accepted


# -- their witness, our log --------------------------------------------------------------------------------------------------


def test_their_witness_confirms_our_log_and_tells_when_it_was_cut(site, tmp_path):
    import shutil

    with AuditLogger(tmp_path / "audit_log") as log:
        vkey = log._handle.genesis.vkey
        witness = Foreign(site, tmp_path / "theirs", vkey.format())
        try:
            write_policy(log.path, change_policy(None, vkey, [Known("theirs", witness.url, (witness.vkey,))], "all"))
            events = [{"event_type": "data_access", "actor": "a", "actor_type": "user", "resource": "r", "action": "x"}]
            for count in (1, 1, 70, 200):
                log.log_many(events * count)
                (outcome,) = publish(source_of(log))
                assert (outcome.word, outcome.error) == ("confirmed", "")
                if count == 70:
                    log._handle.writer.make_durable()
                    for name in ("audit_log", "audit_log.keys"):
                        shutil.copytree(tmp_path / name, tmp_path / "then" / name)
            with AuditLogger(tmp_path / "then" / "audit_log", create=False) as old:
                (outcome,) = publish(source_of(old))
                assert outcome.contradiction and "entries are missing" in outcome.error
                old.log_many(events * 300)
                (outcome,) = publish(source_of(old))
                assert outcome.contradiction and "holds another history" in outcome.error
            assert publish(source_of(log))[0].word == "confirmed"
        finally:
            witness.stop()


# -- both witnesses, the same requests ---------------------------------------------------------------------------------------


def test_both_witnesses_answer_every_request_alike(aics, site, tmp_path):
    """Thousands of cuts and changes are in the tests of the pure parts; here whole answers: status, type and body of a 409."""
    log, forger = MadeLog("log.example/one"), MadeLog("log.example/one")
    theirs = Foreign(site, tmp_path / "theirs", log.key.verifier.format())
    create(tmp_path / "ours", NAME)
    add_log(tmp_path / "ours", log.key.verifier.format())
    chance, seen = random.Random(5), {}
    try:
        with serving(tmp_path / "ours") as ours:
            for what, body in itertools.chain(_table(log, forger), _random(log, forger, chance)):
                body = body() if callable(body) else body
                mine, other = ask(ours.port, body), theirs.ask(body)
                if (mine[0], other[0]) == (404, 400) and b" origin " in other[2].replace(b"'", b" "):
                    continue  # an origin with a blank or plus: "go.sum database tree" is one, and only unknown to us
                assert mine[0] == other[0], (what, mine, other, body)
                if mine[0] == 409:
                    assert mine == other
                seen[mine[0]] = seen.get(mine[0], 0) + 1
    finally:
        theirs.stop()
    assert set(seen) == {200, 400, 403, 404, 409, 422}
    assert sum(seen.values()) > 150


def _table(log, forger):
    """One after the other, as both remember what came before."""
    good, branch = log.body(0, 5), log.branch(3)
    yield "an unknown log", MadeLog("log.example/two").body(0, 5)
    yield "an unknown key", forger.body(0, 5)
    yield "nothing", b""
    yield "old of somebody else", log.body(3, 9)
    yield "size 0 with another root", b"old 0\n\n" + sign(f"{log.origin}\n0\n{encode_base64(bytes(31) + b'1')}\n", log.key)
    yield "the empty tree", log.body(0, 0)
    yield "the first", good
    yield "again", good
    yield "again with its size", log.body(5, 5)
    yield "old above size", b"old 9\n\n" + log.note(5)
    yield "the same size, another history", branch.body(5, 5)
    yield "the same with another old", branch.body(0, 5)
    yield "growing, another history", branch.body(5, 9)
    yield "a proof from nothing", log.body(5, 9).replace(b"old 5", b"old 0")
    yield "without the proof", b"old 5\n\n" + log.note(9)
    yield "growing", log.body(5, 9)
    yield "back", log.body(5, 7)
    yield "as if for the first time", log.body(0, 9)
    for what, change in (
        ("CRLF", lambda b: b.replace(b"\n", b"\r\n")), ("leading zero", lambda b: b.replace(b"old 9", b"old 09")),
        ("sign", lambda b: b.replace(b"old 9", b"old +9")), ("blank", lambda b: b.replace(b"old 9", b"old 9 ")),
        ("2**63", lambda b: b.replace(b"old 9", b"old %d" % 2**63)), ("no newline", lambda b: b[:-1]),
        ("64 hashes", lambda b: b.replace(b"old 9\n", b"old 9\n" + (encode_base64(bytes(32)) + "\n").encode() * 64)),
        ("short hash", lambda b: b.replace(b"old 9\n", b"old 9\n" + (encode_base64(bytes(31)) + "\n").encode())),
        ("no gap", lambda b: b.replace(b"\n\n", b"\n", 1)), ("NUL", lambda b: b.replace(b"old 9", b"old 9\0")),
    ):  # fmt: skip
        yield what, change(log.body(9, 12))


def _random(log, forger, chance):
    known = 9
    for number in range(160):
        size = min(300, known + chance.choice((0, 1, 1, 2, 5)))
        source = chance.choice((log, log, log, log.branch(chance.randrange(1, 300)), forger))
        old = chance.choice((known, known, known, 0, max(0, known - 1), min(size, known + 1)))
        body = bytearray(source.body(old, size))
        if chance.random() < 0.3:
            at = chance.randrange(len(body))
            body[at] = chance.choice(b"09AZaz+/=\n -\x00\xff")
        body = bytes(body)
        yield f"random {number}", body
        try:
            request = parse_request(body)
        except Malformed:
            continue
        honest = split(log.note(size))[0] == request.text and request.signatures[0].signature == split(log.note(size))[1][0].signature
        if honest and request.old_size == known and list(request.proof) == prove_consistency(log.read, known, size):
            known = size


# -- their log, our witness --------------------------------------------------------------------------------------------------


def test_our_witness_cosigns_a_log_that_their_code_made(aics, tmp_path):
    private, origin = Ed25519PrivateKey.generate(), "log.example/theirs"
    vkey = aics.vkey_from_ed25519(origin, private.public_key())
    tree = aics.MerkleTree(b"%d" % n for n in range(130))
    create(tmp_path / "w", NAME)
    add_log(tmp_path / "w", aics.format_vkey(vkey))
    with serving(tmp_path / "w") as w:
        key = aics.parse_vkey(w.witness.vkeys[0].format())
        old = 0
        for size in (1, 2, 2, 63, 64, 65, 130):
            made = aics.sign_checkpoint(aics.Checkpoint(origin, size, tree.root(size)), private, origin)
            text = made.serialise().encode()
            proof = "".join(encode_base64(h) + "\n" for h in (tree.consistency_proof(old, size) if 0 < old < size else ()))
            status, _, answer = ask(w.port, f"old {old}\n{proof}\n".encode() + text)
            assert status == 200, answer
            found = aics.verify_checkpoint(aics.parse_note(text + answer), vkey, [key], 1, expected_origin=origin, max_age_seconds=600)
            assert found.ok, found
            old = size
