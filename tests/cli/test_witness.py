"""``tally witness`` and ``tally publish``: one is made, knows a log, serves; the log has it and says how far it is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tallystick.core.note import VerifierKey
from tallystick.core.policy import Policy
from tallystick.memory import default_memory


@pytest.fixture
def served(tally, log):
    """A witness in a process of its own that knows the log: (folder, URL, its vkeys)."""
    ran = tally("witness", "init", "w", "--name", "witness.example/w1", "--ml-dsa")
    assert ran.code == 0, ran.err
    vkeys = ran.out.split()
    assert tally("witness", "add-log", "w", tally("key", "vkey").out.strip()).code == 0
    process = subprocess.Popen([sys.executable, "-m", "tallystick", "witness", "serve", "w", "--listen", "127.0.0.1:0"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    first = process.stderr.readline()
    yield Path("w"), first.split()[-1], vkeys
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_log_gets_a_witness(tally, log, served):
    _, url, vkeys = served
    assert "outside nobody yet" in " ".join(tally().out.split())
    ran = tally("witness", "add", "kanzlei", *vkeys, url)
    assert ran.code == 0, ran.err
    assert ran.out == "witness kanzlei: confirmed 4 entries (not independent: on this machine)\n"
    policy = Policy.parse(Path("audit_log/policy").read_bytes())
    assert [(w.name, w.key.format()) for w in policy.witnesses] == [("kanzlei.04", vkeys[0]), ("kanzlei.06", vkeys[1])]
    assert policy.satisfied({"kanzlei.06"})

    assert tally("record", "--actor", "ana", "--action", "x", "--resource", "r").code == 0
    ran = tally("publish", "--json")
    assert ran.code == 0
    assert [(o["name"], o["word"], o["local"], o["error"]) for o in ran.json] == [("kanzlei", "confirmed", True, "")]
    size = ran.json[0]["size"]
    assert tally("witness", "submit").code == 0

    status = tally("status", "--json").json
    assert [(o["name"], o["size"], o["local"], o["error"]) for o in status["confirmed_outside"]] == [("kanzlei", size, True, "")]
    screen = " ".join(tally().out.split())
    assert "witness kanzlei: today" in screen and f"({size} entries, just now), not independent: same machine" in screen
    assert "nobody outside this machine confirms it yet" in screen  # a witness here does not count

    shown = tally("witness", "show")
    assert all(vkey in shown.out for vkey in vkeys) and "quorum: all" in shown.out
    assert tally("witness", "show", "--json").json["witnesses"][0]["done_size"] == size
    seen = tally("witness", "status", "w")
    assert seen.code == 0 and "test/log" in seen.out and f"{size}" in seen.out
    assert tally("witness", "status", "w", "--json").json["logs"][0]["size"] == size

    memory = default_memory(os.environ)
    assert set(memory.get(log).witnesses.values()) == set(vkeys)  # pinned
    assert tally("witness", "remove", "kanzlei").out == "removed: the witness kanzlei; left: none\n"
    assert tally("witness", "submit").code == 2
    assert memory.get(log).witnesses == {}


def test_a_witness_that_is_down_is_pending_and_said_everywhere(tally, log):
    vkey = VerifierKey.of("w.example", bytes(31) + b"\7", algorithm=4).format()
    ran = tally("witness", "add", "kanzlei", vkey, "http://127.0.0.1:9")
    assert ran.code == 0
    assert "witness kanzlei: pending: http://127.0.0.1:9: Connection refused" in " ".join(ran.out.split())
    assert tally("witness", "submit").code == 2
    assert tally("publish").code == 2
    screen = " ".join(tally().out.split())
    assert "witness kanzlei: nothing yet; PENDING: http://127.0.0.1:9: Connection refused" in screen
    assert f"tally witness submit {Path.cwd() / 'audit_log'}" in screen
    assert tally("record", "--actor", "ana", "--action", "x", "--resource", "r").code == 0


def test_what_contradicts_is_exit_6_on_both_sides(tally, log, served, tmp_path):
    import shutil

    _, url, vkeys = served
    shutil.copytree("audit_log", tmp_path / "then" / "audit_log")
    shutil.copytree("audit_log.keys", tmp_path / "then" / "audit_log.keys")
    assert tally("record", "--actor", "ana", "--action", "x", "--resource", "r").code == 0
    assert tally("witness", "add", "kanzlei", *vkeys, url).code == 0
    old = tmp_path / "then" / "audit_log"
    ran = tally("witness", "add", "kanzlei", *vkeys, url, "--log", old)
    assert ran.code == 6
    assert "CONTRADICTS: it has confirmed 5 entries of this log, and here are 4: entries are missing" in " ".join(ran.out.split())
    assert tally("record", old, "--actor", "bob", "--action", "y", "--resource", "r").code == 0
    assert tally("publish", old).code == 6
    ran = tally("witness", "status", "w")
    assert ran.code == 3 and "signed, and not shown to extend what was cosigned: 6 entries" in ran.out
    for path in ("audit_log", old):
        assert tally("record", path, "--actor", "ana", "--action", "z", "--resource", "r").code == 0
    assert [tally("publish", path).code for path in ("audit_log", old)] == [0, 6]
    ran = tally("witness", "status", "w", "--evidence", "out")
    assert ran.code == 6
    assert "TWO HISTORIES: another root was signed for 7 entries" in " ".join(ran.out.split())
    texts = [path.read_text().split("\n\n")[0] for path in sorted(Path("out").glob("*-7-*"))]
    assert len(texts) == 2 and texts[0] != texts[1]


def test_a_policy_that_was_written_by_hand_is_not_rewritten(tally, log):
    keys = [VerifierKey.of(f"w{n}.example", bytes(31) + bytes([n]), algorithm=4).format() for n in (7, 8)]
    by_hand = f"# by hand\nwitness a {keys[0]} http://127.0.0.1:9\ngroup g any a\nquorum g\n"
    Path("audit_log/policy").write_text(by_hand)
    ran = tally("witness", "add", "b", keys[1], "http://127.0.0.1:9")
    assert ran.code == 2 and "was written by hand" in ran.err
    assert Path("audit_log/policy").read_text() == by_hand


def test_errors_name_the_remedy(tally, log):
    assert "tally witness init" in tally("witness", "serve", "nothing-here").err
    assert tally("witness", "init", "w2", "--name", "has space").code == 2
    assert tally("witness", "add", "UPPER", "x", "http://a").code == 4
    assert tally("witness", "add", "a", "x", "http://a").code == 4
    assert tally("witness", "add", "a", "http://a").code == 2
    assert "tally witness add" in tally("witness", "submit").err
    assert "nobody is configured" in tally("publish").err
    vkey = tally("key", "vkey").out.strip()
    assert tally("witness", "add", "a", vkey, "http://a").code == 4  # a log's key does not cosign
    assert tally("witness", "init", "w").code == 2
    assert tally("witness", "init", "w", "--name", "w.example").code == 0
    own = Path("w/witness.vkey").read_text().strip()
    assert "own key" in tally("witness", "add-log", "w", own).err
    assert tally("witness", "forget-time", "w", "x").code == 2
    Path("w/state.db").unlink()
    ran = tally("witness", "serve", "w")
    assert ran.code == 2 and "must not go on under the same key" in ran.err
