"""``tally verify`` on what was handed out, and ``tally query --prove``."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tallystick import AuditLogger
from tallystick.answering import prove_answer
from tallystick.cli import cli
from tallystick.core.answer import Answer
from tallystick.core.errors import StoreError
from tallystick.core.note import SignerKey
from tallystick.core.packfile import format_pack, parse_pack
from tallystick.core.query import ask
from tallystick.evidence import build_pack
from tallystick.index.derive import FIELDS

from .conftest import CASE, PEOPLE


@pytest.fixture
def tally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args, state=None):
        env = {} if state is None else {"TALLY_STATE": str(state)}
        done = CliRunner().invoke(cli, [str(a) for a in args], env=env)
        assert "Traceback" not in done.output
        assert done.exit_code != 1
        return done

    return run


@pytest.fixture
def log(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "audit_log")
    shutil.copytree(made.folder.with_name("audit_log.keys"), tmp_path / "audit_log.keys")
    return tmp_path / "audit_log"


def test_a_pack_is_verified(made, tally, tmp_path):
    for name, data in (("e.zip", made.data), ("kept", made.kept), ("policy", made.policy), ("vkey", made.members["log.vkey"])):
        (tmp_path / name).write_bytes(data)
    other = SignerKey.generate(made.vkey.split("+")[0]).verifier.format()
    for args, code, said in (
        ([], 3, "nothing pinned"),
        (["--vkey", made.vkey], 0, "ALL 3 ENTRIES ARE IN THE LOG"),
        (["--vkey", other], 6, "not the one that you gave"),
        (["--checkpoint", "kept"], 0, "the checkpoint that you gave"),
        (["--checkpoint", "vkey"], 0, "ALL 3 ENTRIES"),
        (["--policy", "policy"], 0, "witness w.example/1"),
    ):
        done = tally("verify", "e.zip", *args)
        assert done.exit_code == code, done.output
        assert said in " ".join(done.output.split())
        assert max(map(len, done.output.split("\n"))) <= 100 or "tally " in done.output or made.vkey in done.output
    document = json.loads(tally("verify", "e.zip", "--vkey", made.vkey, "--json").stdout)
    assert (document["kind"], document["verified"], document["exit_code"]) == ("pack", True, 0)


def test_what_is_known_here_pins_a_pack(made, log, tally, tmp_path):
    """The memory of this user knows the log: made here, or verified."""
    (tmp_path / "e.zip").write_bytes(made.data)
    assert tally("trust", "audit_log", "--vkey", made.vkey).exit_code in (0, 3)
    assert tally("verify", "e.zip").exit_code == 0


def test_a_pack_that_is_none(made, tally, tmp_path):
    for what, data, code in (("deflated", made.data[:-1], 4), ("empty", b"", 4),
                             ("altered", format_pack({**made.members, "entries/00000000000000000001.json": b"{}"}), 6)):  # fmt: skip
        (tmp_path / f"{what}.zip").write_bytes(data)
        assert tally("verify", f"{what}.zip", "--vkey", made.vkey).exit_code == code, what
    assert tally("verify", "nowhere.zip").exit_code == 2
    foreign = format_pack({**made.members, "verify.py": b"print('all is well')\n"})
    (tmp_path / "foreign.zip").write_bytes(foreign)
    done = tally("verify", "foreign.zip", "--vkey", made.vkey)
    assert done.exit_code == 0
    assert "it is another than the one of this version" in " ".join(done.output.split())
    assert build_pack({n: d for n, d in parse_pack(foreign).items() if n not in PEOPLE}) == made.data


def test_an_answer_goes_out_and_is_checked(made, log, tally, tmp_path):
    done = tally("query", "--case", CASE, "--prove", "-o", "a.txt")
    assert done.exit_code == 0, done.output
    assert "3 rows of 16 entries read (#0 – #15)" in done.output and "--with-lines" in done.output
    done = tally("verify", "a.txt", "--vkey", made.vkey)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "THE 3 ROWS ARE IN THE LOG" in text and "that no other of these entries matches: 13 of them" in text
    assert 'asked: correlation_id = "INV-2026-1182"' in text
    done = tally("query", "--case", CASE, "--prove", "--with-lines", "-o", "b.txt", "--json")
    found = json.loads(done.stdout)
    assert (found["rows"], found["start"], found["end"], found["complete"]) == (made.chosen, 0, 16, True)
    done = tally("verify", "b.txt", "--vkey", made.vkey)
    assert "THE ANSWER IS COMPLETE: of the 16 entries #0 – #15" in done.output
    assert "exactly 3 match" in " ".join(done.output.split())
    assert tally("verify", "b.txt", state=tmp_path / "empty").exit_code == 3  # no key
    assert tally("verify", "b.txt", "--vkey", SignerKey.generate(made.vkey.split("+")[0]).verifier.format()).exit_code == 6
    (tmp_path / "policy").write_bytes(made.policy)
    assert tally("verify", "b.txt", "--policy", "policy").exit_code == 3  # of the newest state, which no witness has seen
    assert tally("query", "--case", CASE, "--prove", "--before", 15, "-o", "c.txt").exit_code == 0
    assert tally("verify", "c.txt", "--policy", "policy").exit_code == 0


def test_an_answer_that_was_altered(made, log, tally, tmp_path):
    """Dropped, added, reordered, another question, another range: each is refused by the command."""
    assert tally("query", "--case", CASE, "--prove", "--with-lines", "-o", "b.txt").exit_code == 0
    assert tally("query", "--case", CASE, "--prove", "-o", "a.txt").exit_code == 0
    for name in ("a.txt", "b.txt"):
        whole = Path(name).read_bytes()
        rows = re.findall(rb"^= .*\n", whole, re.MULTILINE)
        cases = {
            "dropped": whole.replace(rows[1], b"", 1), "doubled": whole.replace(rows[1], rows[1] * 2, 1), "cut": whole[:-1], "grown": whole + b"x",
            "reordered": whole.replace(rows[0], b"~MARK~", 1).replace(rows[1], rows[0], 1).replace(b"~MARK~", rows[1], 1),
            "another range": whole.replace(b"range 0 16", b"range 1 17", 1), "shorter": whole.replace(b"range 0 16", b"range 0 15", 1),
        }  # fmt: skip
        if name == "a.txt":
            cases["another question"] = whole.replace(CASE.encode(), b"INV-2026-1183", 1)
        for what, data in cases.items():
            assert data != whole
            (tmp_path / "bad.txt").write_bytes(data)
            assert tally("verify", "bad.txt", "--vkey", made.vkey).exit_code in (4, 6), (name, what)


def test_ranges_of_answers(made, log):
    with AuditLogger(log) as opened:
        everything = ask({"event_type": {"glob": "*"}}, start_us=None)._replace(lifecycle=True)
        for after, before, span in ((None, None, (0, 16)), (3, 9, (4, 9)), (3, 4, (4, 4)), (15, None, (16, 16)), (2, 99, (3, 16)), (None, 0, (0, 0))):
            answer, proven = prove_answer(opened, everything, after=after, before=before, with_lines=True)
            assert (answer.start, answer.end) == span
            assert [e.index for e in proven.rows] == list(range(*span))
            assert Answer.parse(answer.format()) == answer
        with pytest.raises(StoreError):
            prove_answer(opened, everything, after=16)


def test_an_index_that_hides_a_row_hides_it_from_no_proven_answer(made, log, tally):
    import sqlite3

    with AuditLogger(log) as opened:
        list(opened.entries({"correlation_id": CASE}))  # fills the index
    connection = sqlite3.connect(log / "index.db")
    connection.execute("DELETE FROM postings WHERE field = ?", (FIELDS["correlation_id"],))
    connection.commit()
    connection.close()
    done = tally("query", "--case", CASE, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["entries"] == []  # what verify calls index_mismatch
    assert json.loads(tally("query", "--case", CASE, "--prove", "-o", "a.txt", "--json").stdout)["rows"] == made.chosen


def test_options_that_do_not_go_together(log, tally):
    for args in (["--prove"], ["-o", "x"], ["--with-lines"], ["--prove", "-o", "x", "--jsonl"], ["--prove", "-o", "x", "--newest-first"],
                 ["--prove", "-o", "x", "--archives", "."], ["--prove", "-o", "audit_log/log.vkey"]):  # fmt: skip
        assert tally("query", *args).exit_code == 2, args
    assert [e["index"] for e in json.loads(tally("query", "--before", 12, "--after", 5, "--json").stdout)["entries"]] == [6, 7, 8, 9, 10, 11]
    newest = json.loads(tally("query", "--before", 12, "--newest-first", "--limit", 2, "--json").stdout)["entries"]
    assert [e["index"] for e in newest] == [11, 10]


def test_a_pack_is_of_one_part_of_a_log_that_was_resumed(made, log, tally):
    """Each part has a key and a tree of its own; what is in an older one is said, never proven against the wrong tree."""
    with AuditLogger(log) as opened:
        (old,) = [e.event_id for e in opened.entries({"actor": "eva"})]
    done = tally("resume", "audit_log", "--new-keys", "--reason", "a test")
    assert done.exit_code == 0, done.output
    assert tally("record", "--actor", "ana", "--action", "go on", "--resource", "r", "--case", CASE).exit_code == 0
    done = tally("pack", "--case", CASE, "-o", "e.zip")
    assert done.exit_code == 0, done.output
    assert "3 entries of the case" in done.output and "older parts" in done.output
    vkey = tally("key", "vkey").stdout.strip()
    assert vkey != made.vkey
    assert tally("verify", "e.zip", "--vkey", vkey).exit_code == 0
    for wanted in (old, "1#14"):
        done = tally("pack", wanted, "-o", "f.zip")
        assert done.exit_code == 2 and "older part" in done.output
    assert json.loads(tally("query", "--case", CASE, "--prove", "-o", "a.txt", "--json").stdout)["complete"] is False
    assert tally("verify", "a.txt", "--vkey", vkey).exit_code == 0
