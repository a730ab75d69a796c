"""Every command, what it prints and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tallystick.cli import COMMANDS
from tallystick.core.checkpoint import Checkpoint
from tallystick.core.cosignature import CosignerKey
from tallystick.core.note import SignerKey, split
from tallystick.core.proof import InclusionProof

from .conftest import events

EVENT = re.compile(r"evt_[0-9a-f]{32}")


def test_init_prints_the_key_and_makes_a_log_once(tally):
    ran = tally("init", "--origin", "acme/bot", "--retention-days", "30")
    assert ran.code == 0
    assert ran.out.startswith("acme/bot+")
    assert "tally record" in ran.err
    assert tally("key", "vkey").out == ran.out
    again = tally("init")
    assert (again.code, again.out) == (2, "")
    assert "already" in again.err


def test_init_json_is_one_document(tally):
    found = tally("init", "elsewhere", "--json").json
    assert found["path"].endswith("/elsewhere")
    assert found["retention_days"] == 365
    assert tally("key", "vkey", "elsewhere", "--json").json["vkey"] == found["vkey"]


@pytest.mark.parametrize("origin", ["Big", "a b", "ä", "x" * 121])
def test_init_refuses_an_origin_that_is_none(tally, origin):
    ran = tally("init", "--origin", origin)
    assert ran.code == 2
    assert not Path("audit_log").exists()
    assert "origin" in ran.err


def test_init_in_a_folder_with_other_things_changes_nothing(tally):
    Path("full").mkdir()
    Path("full/x").write_text("x")
    assert tally("init", "full").code == 2
    assert os.listdir("full") == ["x"]


def test_init_where_a_remembered_log_is_gone_says_so(tally, log):
    log.rename("moved")
    ran = tally("init")
    assert ran.code == 2
    assert "is gone" in ran.err
    assert tally("trust", "--forget", log).code == 0
    assert not (log / "log.vkey").exists()


@pytest.mark.parametrize("command", [
    ["query"], ["show", "#0"], ["export"], ["checkpoint"], ["prove", "#0"], ["report", "full"], ["archive"], ["status"], [],
    ["verify"], ["key", "vkey"], ["record", "--actor", "a", "--action", "b"], ["trust", "audit_log"],
])  # fmt: skip
def test_where_there_is_no_log_nothing_is_made_and_the_code_is_2(tally, command):
    ran = tally(*command)
    assert (ran.code, ran.out if command != ["verify"] else "") == (2, "")
    assert "no log" in ran.err + ran.out
    assert os.listdir(".") == []


def test_record_prints_an_id_that_show_knows(tally, log):
    event_id = tally("record", "--actor", "ana", "--action", "sign", "--case", "C-1", "--reason", "due", "--ip", "10.0.0.7",
                     "--session", "s1", "--subject", "S-1", "--on-behalf-of", "acme", "--timestamp", "2026-11-01T08:00",
                     "--type", "approval.decision", "--outcome", "partial", "--actor-type", "agent", "--service", "bot",
                     "--resource", "doc").out.strip()  # fmt: skip
    assert EVENT.fullmatch(event_id)
    row = tally("show", event_id, "--json").json
    assert row["timestamp"] == "2026-11-01T08:00:00.000000Z"
    assert [row[k] for k in ("correlation_id", "reason", "ip_address", "session_id", "subject", "on_behalf_of", "event_type", "outcome",
                             "actor_type", "service", "resource")] == [
        "C-1", "due", "10.0.0.7", "s1", "S-1", "acme", "approval.decision", "partial", "agent", "bot", "doc"]  # fmt: skip
    assert tally("log", "--actor", "ana", "--action", "x", "--json").json["recorded"] == 1
    child = tally("record", "--actor", "a", "--action", "b", "--parent", event_id, "--corrects", event_id).out.strip()
    assert tally("show", child, "--json").json["corrects"] == event_id


def test_record_with_the_same_event_id_is_recorded_once(tally, log):
    first = tally("record", "--actor", "a", "--action", "b", "--event-id", "my/own:1")
    assert tally("record", "--actor", "a", "--action", "b", "--event-id", "my/own:1") == first
    other = tally("record", "--actor", "a", "--action", "c", "--event-id", "my/own:1")
    assert (other.code, other.out) == (2, "")
    assert len(tally("export").out.splitlines()) == 5


@pytest.mark.parametrize(("flags", "code"), [
    (["--actor", "a"], 2), (["--action", "a"], 2), (["--details", "{}"], 2),
    (["--actor", "a", "--action", "b", "--details", "[1]"], 4), (["--actor", "a", "--action", "b", "--details", "{"], 4),
    (["--actor", "a", "--action", "b", "--details", '{"a":1,"a":2}'], 4), (["--actor", "a", "--action", "b", "--details", '{"a":NaN}'], 4),
    (["--actor", "a", "--action", "b", "--details", '{"a":' + "9" * 10_000 + "}"], 4),
    (["--actor", "a", "--action", "b", "--details", '{"a":' * 500 + "1" + "}" * 500], 4),
    (["--actor", "a", "--action", "b", "--details", '{"a":' * 100_000], 4),
    (["--actor", "a", "--action", "b", "--details", '{"a":"\\ud800"}'], 4),
    (["--actor", "", "--action", "b"], 4), (["--actor", "a", "--action", "b", "--type", "log.created"], 4),
    (["--actor", "a", "--action", "b", "--actor-type", "king"], 4), (["--actor", "a", "--action", "b", "--outcome", "maybe"], 4),
    (["--actor", "a", "--action", "b", "--timestamp", "soon"], 4), (["--actor", "a", "--action", "b", "--event-id", "-x"], 4),
    (["--actor", "a", "--action", "x" * 70_000], 4), (["--actor", "a", "--action", "b", "--nonsense"], 2),
])  # fmt: skip
def test_record_refuses_and_nothing_is_written(tally, log, flags, code):
    before = tally("export").out
    ran = tally("record", *flags)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("tally: ")
    assert tally("export").out == before
    assert tally("record", "--actor", "a", "--action", "next").code == 0


def test_query_table_says_what_is_not_shown_and_what_is_verified(tally, log):
    ran = tally("query", "--limit", "1")
    assert ran.code == 0
    assert "3 entries" in ran.out
    assert "not shown: 2 more" in ran.out
    assert "--after 1" in ran.out
    assert "1 entry of the log about itself" in ran.out
    assert "never verified" in ran.out
    assert re.search(r"\([+-]\d\d:\d\d\)", ran.out.splitlines()[0])
    assert max(map(len, ran.out.splitlines())) <= 100
    assert tally("verify").code == 0
    tally("record", "--actor", "z", "--action", "later")
    ran = tally("query")
    assert "verified up to #3 today" in ran.out
    assert "1 row above is newer" in ran.out


@pytest.mark.parametrize(("options", "indexes"), [
    ([], [1, 2, 3]), (["--actor", "ana"], [1, 3]), (["--actor", "ana", "--actor", "bob"], [1, 2, 3]), (["--resource", "erp/1"], [2]),
    (["--action", "log in"], [3]), (["--outcome", "denied"], []), (["--type", "user_action"], [1, 2, 3]), (["--type", "log.*"], [0]),
    (["--where", "details.amount>10"], [1, 2]), (["--where", "details.amount>10", "--where", "details.amount<100"], [1]),
    (["--where", "resource~*/*"], [1, 2]), (["--where", "actor!=ana", "--where", "actor!=zoe"], [2]),
    (["--where", "actor!=ana", "--where", "actor!=bob"], []), (["--actor", "ana", "--where", "actor=bob"], []),
    (["--where", "index=2"], [2]), (["--where", "correlation_id=null"], [1, 2, 3]),
    (["--newest-first"], [3, 2, 1]), (["--newest-first", "--after", "3"], [2, 1]), (["--after", "1"], [2, 3]),
    (["--on", "today"], [1, 2, 3]), (["--on", "yesterday"], []), (["--since", "1h"], [1, 2, 3]), (["--until", "yesterday"], []),
    (["--since", "2001-01-01", "--until", "now"], [1, 2, 3]), (["--period", "2001-02"], []), (["--limit", "0"], [1, 2, 3]),
])  # fmt: skip
def test_query_finds(tally, log, options, indexes):
    assert [row["index"] for row in tally("query", *options, "--json").json["entries"]] == indexes
    lines = tally("query", *options, "--jsonl").out.splitlines()
    assert [json.loads(line)["index"] for line in lines] == indexes
    assert tally("query", *options).code == 0


@pytest.mark.parametrize("options", [
    ["--on", "someday"], ["--on", "2026-11-24T08:00"], ["--on", "today", "--since", "7d"], ["--since", "today", "--until", "yesterday"],
    ["--period", "2026-13"], ["--where", "nonsense"], ["--where", "colour=red"], ["--where", "details.=1"], ["--limit", "-1"],
    ["--limit", "x"], ["--after", "x"], ["--json", "--jsonl"], ["--bogus"],
    ["--archives", "nowhere", "--bogus"],
])  # fmt: skip
def test_query_refuses_with_a_usage_error(tally, log, options):
    ran = tally("query", *options)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("tally: ")


def test_query_unknown_field_names_the_known_ones(tally, log):
    assert "correlation_id" in tally("query", "--where", "colour=red").err


def test_query_json_says_when_there_is_more(tally, log):
    found = tally("query", "--json", "--limit", "2").json
    assert (found["more"], found["after"], found["own_entries_left_out"], found["tree_size"]) == (True, 2, 1, 4)
    assert not tally("query", "--json", "--after", "2").json["more"]
    ran = tally("query", "--jsonl", "--limit", "2")
    assert len(ran.out.splitlines()) == 2
    assert "--after 2" in ran.err


def test_times_are_in_the_zone_of_the_log(tally, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    assert tally("init").code == 0
    tally("record", "--actor", "a", "--action", "b", "--timestamp", "2026-07-01T03:30:00Z")
    ran = tally("query", "--on", "2026-06-30")
    assert "Tue 30 Jun 2026, 00:00–24:00 America/New_York (-04:00)" in ran.out
    assert "23:30:00" in ran.out
    assert "2026-06-30 23:30:00" in tally("show", "#1").out


def test_the_heading_names_the_offset_of_the_rows_also_where_the_clocks_change(tally, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    tally("init")
    for time in ("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"):
        tally("record", "--actor", "a", "--action", "b", "--timestamp", time)
    ran = tally("query", "--on", "2026-10-25")
    assert "Sun 25 Oct 2026, 00:00–24:00 Europe/Berlin (+02:00, +01:00)" in ran.out
    assert "02:30:00 +0200" in ran.out
    assert "02:30:00 +0100" in ran.out
    assert "02:30:00  " in tally("query", "--since", "2026-10-24", "--limit", "1").out
    assert "Europe/Berlin (+02:00)" in tally("query", "--limit", "1").out
    assert "+0200" not in tally("query", "--limit", "1").out
    assert [r["index"] for r in tally("query", "--on", "2026-10-24", "--json").json["entries"]] == []


def test_show_raw_is_exactly_the_stored_line(tally, log, process):
    lines = (log / "segments/00000000000000000000.jsonl").read_bytes().split(b"\n")
    for index in range(4):
        assert process("show", log, f"#{index}", "--raw").stdout == lines[index]
    assert tally("show", "#0").code == 0
    assert "log.created" in tally("show", "#0").out
    assert tally("show", "#0", "--json").json["index"] == 0


@pytest.mark.parametrize(("args", "code"), [
    (["#4"], 2), (["#x"], 2), (["#"], 2), (["#-1"], 2), (["#99999999999999999999999999"], 2), (["evt_" + "0" * 32], 2), (["nothing"], 2),
    ([], 2), (["a", "b", "c"], 2), (["#1", "--raw", "--json"], 2), (["audit_log"], 2), (["1"], 2), (["nowhere", "#1"], 2),
])  # fmt: skip
def test_show_refuses(tally, log, args, code):
    ran = tally("show", *args)
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.err.splitlines()) == 1


def test_an_event_id_or_an_index_is_never_taken_for_a_path(tally, log):
    event_id = tally("show", "#1", "--json").json["event_id"]
    for name in (event_id, "#1"):
        Path(name).mkdir()
        assert tally("show", name, "--json").json["index"] == 1
        assert tally("prove", name, "-o", "-").code == 0
        for command in (["query"], ["verify"], ["status"], ["export"], ["checkpoint"], ["key", "vkey"], ["init"], ["archive"],
                        ["report", "full"], ["trust"], ["record"]):  # fmt: skip
            ran = tally(*command, name)
            assert ran.code == 2, command
            assert os.listdir(name) == []


def test_the_log_is_the_argument_else_the_environment_else_here(tally, log, monkeypatch):
    tally("init", "other", "--origin", "test/other")
    assert tally("key", "vkey", "other").out.startswith("test/other+")
    monkeypatch.setenv("TALLY_LOG", str(Path("other").absolute()))
    assert tally("key", "vkey").out.startswith("test/other+")
    assert tally("key", "vkey", "audit_log").out.startswith("test/log+")
    assert "test/log" in tally("audit_log").out
    assert "test/other" in tally().out


def test_a_file_as_log_is_refused(tally):
    Path("old.log").write_text("x")
    assert "is a file" in tally("query", "old.log").err


def test_checkpoint_is_a_note_by_the_log_key_and_verify_takes_it(tally, log, process):
    kept = process("checkpoint", log).stdout
    assert kept.startswith(b"test/log\n4\n")
    Path("kept").write_bytes(kept)
    assert tally("checkpoint", "--json").json["signed_by_log_key"] is True
    tally("record", "--actor", "a", "--action", "b")
    assert tally("verify", "--checkpoint", "kept").code == 0


def test_a_proof_under_a_policy(tally, log, process, tmp_path):
    """The verifier's quorum decides: reached, missed (cannot judge), of another log (altered), no policy at all (malformed)."""
    assert tally("prove", "#2", "-o", "p.tlog-proof", "--entry", "e.json").code == 0
    vkey = tally("key", "vkey").out.strip()
    witness, other = (CosignerKey(f"w.example/{n}", 4, bytes([n] * 32)) for n in (1, 2))
    proof = InclusionProof.parse(Path("p.tlog-proof").read_bytes())
    line = witness.cosign(Checkpoint.parse(split(proof.checkpoint)[0]), 1_700_000_000)
    cosigned = proof.checkpoint + f"{line.format()}\n".encode()
    Path("p.tlog-proof").write_bytes(InclusionProof(proof.index, proof.hashes, cosigned).format())
    here, nowhere = Path.cwd(), {"TALLY_STATE": str(tmp_path / "nothing")}
    for key, log_key, code in (
        (witness, vkey, 0), (other, vkey, 3), (witness, SignerKey.generate("test/log").verifier.format(), 6),
    ):  # fmt: skip
        Path("policy").write_text(f"log {log_key}\nwitness w {key.verifier.format()}\nquorum w\n")
        done = process("verify", here / "p.tlog-proof", "--entry", here / "e.json", "--policy", here / "policy", "--json", env=nowhere)
        assert done.returncode == code, done.stdout
    Path("policy").write_text("quorum\n")
    assert tally("verify", "p.tlog-proof", "--entry", "e.json", "--policy", "policy").code == 4
    assert "belongs to a log" in tally("verify", "p.tlog-proof", "--entry", "e.json", "--require", "sealed").err


def test_prove_and_verify_the_proof_elsewhere(tally, log, process, tmp_path, monkeypatch):
    ran = tally("prove", "#2", "-o", "p.tlog-proof", "--entry", "e.json")
    assert ran.code == 0
    assert "tally verify p.tlog-proof --entry e.json --vkey test/log+" in ran.out
    vkey = tally("key", "vkey").out.strip()
    here = Path.cwd()
    elsewhere = {"TALLY_STATE": str(tmp_path / "nothing")}
    assert process("verify", here / "p.tlog-proof", "--entry", here / "e.json", "--vkey", vkey, env=elsewhere).returncode == 0
    assert process("verify", here / "p.tlog-proof", "--entry", here / "e.json", env=elsewhere).returncode == 3
    assert process("verify", here / "p.tlog-proof", "--entry", "-", stdin=Path("e.json").read_bytes()).returncode == 0
    found = tally("verify", "p.tlog-proof", "--entry", "e.json", "--json").json
    assert (found["exit_code"], found["kind"], found["tree_size"]) == (0, "proof", 4)
    Path("e.json").write_bytes(Path("e.json").read_bytes().replace(b"bob", b"eve"))
    assert tally("verify", "p.tlog-proof", "--entry", "e.json").code == 6
    assert tally("verify", "p.tlog-proof").code == 2
    Path("p.tlog-proof").write_bytes(b"c2sp.org/tlog-proof@v1\nindex 02\n\n")
    assert tally("verify", "p.tlog-proof", "--entry", "e.json").code == 4


def test_prove_writes_no_file_over_another(tally, log):
    Path("p.tlog-proof").write_text("mine")
    assert tally("prove", "#1", "-o", "p.tlog-proof").code == 2
    assert Path("p.tlog-proof").read_text() == "mine"
    assert tally("prove", "#1", "-o", "p.tlog-proof", "--force").code == 0
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert tally("prove", "#1", "-o", "pipe", "--force").code == 0
    assert os.read(reader, 100).startswith(b"c2sp.org/tlog-proof")
    os.close(reader)
    assert not Path("pipe").is_file()
    found = tally("prove", "#1", "--json").json
    assert Path(found["proof"]).name == f"{found['event_id']}.tlog-proof"
    assert tally("prove", "#99").code == 2
    assert tally("prove", "#1", "-o", "no/such/folder/p").code == 2
    assert sorted(p.name for p in Path.cwd().iterdir() if p.name.startswith(".")) == []


def test_verify_exit_codes(tally, log, process, tmp_path):
    ran = tally("verify")
    assert ran.code == 0
    assert "NOTHING ALTERED, NOTHING MISSING among 4 entries" in ran.out
    assert max(len(line) for line in ran.out.splitlines()[1:] if "tally " not in line) <= 100  # commands are never wrapped
    assert tally("verify", "--json").json["exit_code"] == 0
    assert tally("verify", "--new-only").code == 0
    assert tally("verify", "--content").code == 0
    assert tally("verify", "--vkey", "nonsense").code == 4
    Path("junk").write_bytes(b"junk")
    assert tally("verify", "--checkpoint", "junk").code == 4
    assert tally("verify", "--checkpoint", "nowhere").code == 2
    assert tally("verify", "--entry", "junk").code == 2
    assert tally("verify", "nowhere").code == 2
    stranger = process("verify", log, env={"TALLY_STATE": str(tmp_path / "other")})
    assert stranger.returncode == 3
    assert b"tally trust" in stranger.stdout


def test_verify_names_what_was_altered_and_says_what_to_do(tally, log):
    segment = log / "segments/00000000000000000000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"post invoice", b"lost invoice"))
    ran = tally("verify")
    assert ran.code == 6
    assert "#2" in ran.out
    assert "00000000000000000000.jsonl at byte" in ran.out
    assert "Copy first, repair nothing." in ran.out
    assert tally("verify", "--json").json["issues"][0]["index"] == 2
    assert tally("report", "full", "--verify").code == 6
    assert tally("verify", "audit_log", "nowhere", "--json").json["exit_code"] == 6


def test_a_known_log_that_is_gone_or_replaced_is_6(tally, log):
    os.rename("audit_log", "moved")
    os.rename("audit_log.keys", "moved.keys")
    assert tally("verify").code == 6
    assert "is gone" in tally("query").err
    tally("init", "fake", "--origin", "test/log")
    os.rename("fake", "audit_log")
    os.rename("fake.keys", "audit_log.keys")
    assert tally("verify").code == 6
    assert "NOT THE LOG" in tally("query").out
    assert "NOT THE LOG" in tally().out


def test_trust(tally, log, monkeypatch, tmp_path):
    vkey = tally("key", "vkey").out.strip()
    monkeypatch.setenv("TALLY_STATE", str(tmp_path / "new"))
    assert tally("verify").code == 3
    assert tally("trust", log, "--vkey", "nonsense").code == 4
    tally("init", "other")
    other = tally("key", "vkey", "other").out.strip()
    assert tally("trust", log, "--vkey", other).code == 6
    ran = tally("trust", log, "--vkey", vkey)
    assert ran.code == 0
    assert "trusted on this machine" in ran.out
    assert tally("verify").code == 0
    assert tally("trust", log, "--json").json["trusted"] is True
    assert tally("trust", "--forget", log).code == 0
    assert tally("trust", "--forget", log).code == 2
    assert tally("trust", "--forget", log, "--vkey", vkey).code == 2
    assert tally("trust").code == 2


def test_reports(tally, log):
    tally("record", "--actor", "eve", "--action", "login", "--outcome", "denied")
    full = tally("report", "full", "--json").json
    assert full["total_events"] == 4
    assert full["by_actor"] == {"ana": 2, "bob": 1, "eve": 1}
    assert full["archived_not_counted"] is None
    ran = tally("report", "full")
    assert ran.code == 0
    assert "4 events" in ran.out
    assert "never verified" in ran.out
    assert max(len(line) for line in ran.out.splitlines() if "audit_log" not in line) <= 100
    security = tally("report", "security", "--json").json
    assert len(security["failed_authentication_attempts"]) == 1
    assert "eve" in tally("report", "security", "audit_log").out
    assert tally("report", "audit_log", "data_access", "--on", "today").code == 0
    assert tally("report", "full", "2001-01", "--json").json["total_events"] == 0
    assert tally("report", "full", "--at", "2", "--json").json["total_events"] == 1
    assert tally("report", "full", "--verify", "--json").json["integrity_check"]["verified"] is True


@pytest.mark.parametrize("args", [
    [], ["fuller"], ["full", "full"], ["full", "--at", "0"], ["full", "--at", "99"], ["full", "2026-11", "--period", "2026-11"],
    ["full", "a", "b"], ["full", "--since", "never"], ["full", "nowhere"],
])  # fmt: skip
def test_report_refuses(tally, log, args):
    ran = tally("report", *args)
    assert (ran.code, ran.out) == (2, "")


def test_archive_and_what_the_others_say_then(tally, log):
    ran = tally("archive")
    assert ran.code == 0
    assert "nothing to archive" in ran.out
    found = tally("archive", "--older-than", "0", "--json").json
    assert (found["archived"], found["older_than_days"]) == (3, 0)
    assert tally("verify").code == 0
    assert tally("verify", log / "archive").code == 0
    assert tally("verify", "audit_log", *(log / "archive").glob("*.zst")).code == 0
    assert "archived" in tally("query").out
    assert "archived" in tally("show", "#1").err
    assert [r["index"] for r in tally("query", "--archives", log / "archive", "--json").json["entries"]] == [0, 1, 2, 3][1:]
    assert "NOT COUNTED" in tally("report", "full").out
    assert "archived" in tally().out
    assert "archived" in tally("export").err
    assert tally("query", "--archives", "nowhere").code == 2
    [file] = (log / "archive").glob("*.zst")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert tally("verify", file).code == 6
    assert tally("query", "--archives", log / "archive").code == 6
    file.rename("x.zst")
    assert tally("verify", "x.zst").code == 4
    assert tally("verify", "y/x.zst").code in (2, 4)


@pytest.mark.parametrize("args", [["a", "b", "c"], ["audit_log", ""], ["--older-than", "-1"], ["--older-than", "x"]])
def test_archive_refuses(tally, log, args):
    assert tally("archive", *args).code == 2


def test_archive_into_a_file_is_refused(tally, log):
    Path("file").write_text("x")
    assert tally("archive", "audit_log", "file").code == 2


def test_archive_with_one_argument_that_is_no_log_is_the_destination(tally, log):
    assert tally("archive", "out", "--older-than", "0").code == 0
    assert list(Path("out").glob("*.zst"))


def test_export_is_the_stored_bytes(tally, log, process):
    stored = (log / "segments/00000000000000000000.jsonl").read_bytes()
    assert process("export", log).stdout == stored
    assert process("export", log, "--on", "today").stdout == stored
    assert process("export", log, "--until", "yesterday").stdout == b""


def test_export_of_a_log_without_its_tail_is_6(tally, log):
    segment = log / "segments/00000000000000000000.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:3]))
    ran = tally("export")
    assert ran.code == 6
    assert "4 entries were signed" in ran.err


def test_status(tally, log):
    ran = tally()
    assert ran.code == 0
    for words in (str(log), "test/log", "4 entries", "#3 today", "nobody yet", "never verified", "needs you", "tally checkpoint", "365 d"):
        assert words in ran.out, words
    found = tally("status", "--json").json
    assert (found["entries"], found["confirmed_outside"], found["verified_until"]) == (4, [], 0)
    assert tally("verify").code == 0
    assert tally("status", "--json").json["verified_until"] == 4


def test_reading_an_altered_head_is_6_and_names_verify(tally, log):
    (log / "checkpoint").write_bytes(b"nonsense")
    for command in (["query"], ["show", "#1"], [], ["report", "full"], ["export"], ["checkpoint"], ["prove", "#1"]):
        ran = tally(*command)
        assert ran.code == 6, command
        assert "tally verify" in ran.err


@pytest.mark.parametrize("command", [*COMMANDS, "log", "key vkey"])
def test_help_has_an_example(tally, command):
    ran = tally(*command.split(), "--help")
    assert ran.code == 0
    assert "Example" in ran.out or command == "key"
    assert tally(*command.split(), "-h").out == ran.out


def test_piped_lines_with_a_bad_one_in_the_middle(tally, log):
    lines = events("one", "two").splitlines()
    bad = ["nonsense", '{"event_type":"data_access"}', "[1]", '{"a":1,"a":2}', '{"a":NaN}', "{" + '"a":{' * 2000,
           lines[0].replace("service", "king"), lines[0].replace('"resource"', '"resauce"'),
           lines[0][:-1] + ', "color": 1}', lines[0][:-1] + ', "details": {"x": "\\ud800"}}', lines[0][:-1] + ', "details": 7}',
           lines[0].replace('"r"', "7")]  # fmt: skip
    text = "\n".join([lines[0], *bad, "", "   ", lines[1]]) + "\n"
    ran = tally("record", stdin=text)
    assert ran.code == 4
    ids = ran.out.splitlines()
    assert len(ids) == 2
    assert all(EVENT.fullmatch(i) for i in ids)
    named = [int(m[1]) for m in re.finditer(r"^line (\d+): ", ran.err, re.MULTILINE)]
    assert sorted(named) == list(range(2, 2 + len(bad)))
    assert tally("show", ids[1], "--json").json["action"] == "two"
    assert tally("verify").code == 0
    found = tally("record", "--json", stdin=text)
    assert found.code == 4
    assert (found.json["recorded"], len(found.json["refused"])) == (2, len(bad))


def test_piped_not_utf8_bom_crlf_and_no_last_newline(tally, log):
    one, two = events("one", "two").encode().splitlines()
    ran = tally("record", stdin=b"\xef\xbb\xbf" + one + b"\r\n\xff\xfe\n" + two)
    assert ran.code == 4
    assert len(ran.out.splitlines()) == 2
    assert "line 2: not UTF-8" in ran.err


def test_piped_ids_that_are_taken_are_named_and_the_rest_goes_on(tally, log):
    def line(action):
        return events(action).rstrip()[:-1] + ', "event_id": "mine"}\n'

    ran = tally("record", stdin=line("one") + events("between") + line("other") + line("one") + events("last"))
    assert ran.code == 4
    assert "line 3" in ran.err
    assert [json.loads(x)["action"] for x in tally("export").out.splitlines()[4:]] == ["one", "between", "last"]


def test_piped_nothing(tally, log):
    ran = tally("record", stdin=b"")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing was recorded" in ran.err


def test_piped_more_than_a_batch(tally, log):
    many = events(*(f"a{i}" for i in range(700)))
    ran = tally("record", stdin=many)
    assert ran.code == 0
    assert len(set(ran.out.splitlines())) == 700
    exported = tally("export").out.splitlines()[4:]
    assert [json.loads(x)["action"] for x in exported] == [f"a{i}" for i in range(700)]
    assert tally("query", "--json", "--limit", "0").json["entries"][-1]["index"] == 703


def test_what_was_exported_and_is_not_of_record_is_refused(tally, log):
    ran = tally("record", stdin=tally("export").out)
    assert ran.code == 4
    assert ran.out == ""


def test_demo_hands_over_and_keeps_its_exit_code(tally, monkeypatch):
    import sys
    import types

    called = {}

    def run_demo(folder, *, yes, host, console):
        console.print("told")
        called.update(folder=folder, yes=yes, host=host)
        return 3

    monkeypatch.setitem(sys.modules, "tallystick.demo.run", types.SimpleNamespace(run_demo=run_demo))
    ran = tally("demo", "there", "--yes", "--host", "http://127.0.0.1:1")
    assert (ran.code, ran.out) == (3, "told\n")
    assert called == {"folder": Path("there").absolute(), "yes": True, "host": "http://127.0.0.1:1"}
    assert tally("demo", "a", "b").code == 2


def test_ai_and_outcome(tally):
    from tallystick import AuditLogger

    tally("init")
    assert "no calls to models" in tally("ai").out
    with AuditLogger("audit_log") as log:
        call = log.log("ai_request", "bot", "agent", "llama3.2", "ask model", details={"prompt_chars": 1234})
        log.log("ai_response", "bot", "agent", "llama3.2", "answer", parent_id=call,
                details={"model": "llama3.2", "response_chars": 56, "latency_us": 1_500_000})  # fmt: skip
    shown = tally("ai").out
    assert "1,234" in shown
    assert "1.50 s" in shown
    assert "1 unknown" in shown
    assert "nobody said" in shown
    made = tally("outcome", "#2", "used", "--ref", "erp:4711", "--json").json
    assert made["details"]["call"] == call
    assert made["details"]["ref"] == "erp:4711"
    assert "unknown" not in tally("ai").out
    assert "what became of the answer" in tally("ai", "--unresolved").out
    found = tally("ai", "--json").json
    assert [(c["event_id"], c["used"]) for c in found["calls"]] == [(call, "used")]
    assert tally("outcome", call, "rejected", "--by", "anna", "--reason", "wrong").code == 0
    assert "rejected" in tally("ai").out
    report = tally("report", "ai_usage", "--json").json
    assert report["all"]["answers"] == {"rejected": 1}
    assert "llama3.2" in tally("report", "ai_usage").out
    for wrong in (["outcome"], ["outcome", call], ["outcome", call, "fine"], ["outcome", "#99", "used"], ["outcome", "a", "b", "c", "d"]):
        assert tally(*wrong).code == 2, wrong
    orphan = tally("outcome", "evt_" + "0" * 32, "used")
    assert orphan.code == 0
    assert "orphan" in orphan.err
    assert tally("verify").code == 0


def test_approve(tally, tmp_path):
    from tallystick import AuditLogger

    tally("init")
    with AuditLogger("audit_log") as log:
        call = log.log("ai_request", "bot", "agent", "llama3.2", "ask model")
        answer = log.log("ai_response", "bot", "agent", "llama3.2", "answer", parent_id=call)
    Path("draft.txt").write_text("Dear customer")
    found = tally("approve", call, "--reason", "fine", "--shown", "draft.txt", "--json").json
    assert found["parent_id"] == answer
    assert found["details"]["decision"] == "approved"
    assert found["details"]["known_by"] == "operating system"
    assert "self_reported" not in found["details"]
    assert "Dear" not in json.dumps(found)
    told = tally("approve", "audit_log", "#2", "rejected", "--by", "somebody else", "--json").json
    assert (told["outcome"], told["details"]["known_by"], told["details"]["self_reported"]) == ("denied", "none", True)
    for wrong in (["approve"], ["approve", "#99"], ["approve", call, "fine"], ["approve", "a", "b", "c", "approved"]):
        assert tally(*wrong).code == 2, wrong
    assert tally("approve", call, "--shown", "nothing.txt").code == 2
    assert tally("verify").code == 0


def test_a_proof_is_made_against_the_newest_checkpoint_that_witnesses_cosigned(tally, log):
    from tallystick.core.checkpoint import Checkpoint
    from tallystick.core.cosignature import CosignerKey
    from tallystick.core.note import COSIGNATURE_ED25519, split
    from tallystick.core.policy import Policy
    from tallystick.core.proof import InclusionProof
    from tallystick.outside import HandedOut

    witness = CosignerKey("w.example", COSIGNATURE_ED25519, b"w" * 32)
    other = CosignerKey("x.example", COSIGNATURE_ED25519, b"x" * 32)
    vkey = tally("key", "vkey").out.strip()
    handed, sizes = HandedOut(log), []
    for by in ([witness], [other], []):
        note = tally("checkpoint").out.encode()
        checkpoint = Checkpoint.parse(split(note)[0])
        handed.put(checkpoint.size, note)
        handed.add(checkpoint.size, tuple(w.cosign(checkpoint, 1_800_000_000) for w in by))
        sizes.append(checkpoint.size)
        tally("record", "--actor", "eve", "--action", "later", "--resource", "r")
    policy = f"log {vkey}\nwitness w {witness.verifier.format()}\nquorum w\n".encode()

    def size_of(*args):
        found = tally("prove", *args, "-o", "p.tlog-proof", "--entry", "e.json", "--force", "--json").json
        proof = InclusionProof.parse(Path("p.tlog-proof").read_bytes())
        proof.verify(Path("e.json").read_bytes(), [Policy.parse(policy).logs[0].key])
        return found["tree_size"], found["cosigned_by"]

    assert size_of("#1") == (sizes[1], ["x.example"])  # no policy: any cosignature is more than none
    (log / "policy").write_bytes(policy)
    assert size_of("#1") == (sizes[0], ["w.example"])  # the quorum of the log's own policy comes first
    proof = InclusionProof.parse(Path("p.tlog-proof").read_bytes())
    assert proof.verify_witnessed(Path("e.json").read_bytes(), Policy.parse(policy)).cosignatures[0].key == witness.verifier
    assert size_of("#1", "--current")[0] == sizes[2] + 1
    assert size_of(f"#{sizes[2]}")[0] == sizes[2] + 1  # nothing cosigned covers it


# -- verdicts ----------------------------------------------------------------------------------------------------------------


def test_requirements_are_a_usage_error_before_anything_is_read(tally, log):
    for words in ("witnesed", "max-age=1w", ""):
        assert tally("verify", "nowhere", "--require", words).code == 2
    assert tally("verify", "--require", "sealed,content").code == 0  # nothing is older than 25 h
    ran = tally("verify", "--require", "max-age=1d")
    assert ran.code == 3 and "NOTHING ALTERED, NOTHING MISSING" in ran.out and "NOT AS ASKED FOR" in ran.out
    assert "tally witness add" in ran.out


def test_the_screen_has_no_words_of_cryptography_without_details(tally, log):
    tally("key", "rotate")
    out = tally("verify").out
    rest = out.replace(str(log.absolute()), "").replace("tally checkpoint", "").replace("epoch closed", "")
    for word in ("root", "checkpoint", "cosignature", "epoch", "tree", "hash", "Merkle", "signature"):
        assert word not in rest, out
    details = tally("verify", "--details").out
    assert "root hash" in details and "log key" in details


def test_two_checkpoints_are_one_history_or_evidence(tally, log, process, tmp_path):
    from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
    from tallystick.keys import KeyFolder

    Path("a").write_text(tally("checkpoint").out)
    tally("record", "--actor", "a", "--action", "b")
    Path("b").write_text(tally("checkpoint").out)
    assert tally("verify", "a", "a").code == 0
    ran = tally("verify", "a", "b")
    assert ran.code == 3 and "tally verify a b --log LOG" in ran.out
    assert tally("verify", "b", "a", "--log", "audit_log").code == 0
    assert tally("verify", "a", "audit_log").code == 0
    assert tally("verify", "a").code == 2
    assert tally("verify", "audit_log", "--log", "audit_log").code == 2
    key = KeyFolder(Path("audit_log.keys")).log_key()
    size = int(Path("b").read_text().split("\n")[1])
    Path("c").write_bytes(sign_checkpoint(Checkpoint("test/log", size, b"c" * 32), key))
    found = tally("verify", "b", "c", "--json").json
    assert (found["exit_code"], found["issues"][0]["issue"]) == (6, "split_view")
    kept = {Path(p).read_bytes() for p in found["evidence"]}
    assert kept == {Path("b").read_bytes(), Path("c").read_bytes()}
    assert tally("verify", "a", "c").code == 3
    found = tally("verify", "a", "c", "--log", "audit_log", "--json").json
    assert found["exit_code"] == 6 and "the log here agrees with a" in found["issues"][0]["text"]
    found = tally("verify", "c", "audit_log", "--json").json
    assert found["exit_code"] == 6 and Path("c").read_bytes() in {Path(p).read_bytes() for p in found["evidence"]}
    stranger = process("verify", Path("a").absolute(), Path("b").absolute(), env={"TALLY_STATE": str(tmp_path / "other")})
    assert stranger.returncode == 3


def test_what_a_mail_program_saved_is_taken_as_it_is(tally, log):
    note = tally("checkpoint").out
    Path("saved.eml").write_text(f"From: log@example.com\nSubject: checkpoint\n\nKeep this.\n\n{note}")
    ran = tally("verify", "--checkpoint", "saved.eml")
    assert ran.code == 0 and "All of them are also confirmed outside this machine" in ran.out


def test_status_says_what_is_gone_and_the_command_for_it(tally, tmp_path):
    assert tally("init", "audit_log", "--origin", "shop.example").code == 0
    for n in range(3):
        assert tally("record", "audit_log", "--actor", "ana", "--action", "post", "--resource", f"erp/{n}").code == 0
    assert tally("verify", "audit_log").code == 0
    here, keys = tmp_path / "here", tmp_path / "here" / "audit_log.keys"
    keys.joinpath("epoch-0.key").rename(here / "epoch")
    assert "tally key recover" in " ".join(n["command"] for n in tally("status", "audit_log", "--json").json["needs_you"])
    (here / "epoch").rename(keys / "epoch-0.key")
    keys.rename(here / "elsewhere")
    assert any(n["command"].startswith("tally resume ") for n in tally("status", "audit_log", "--json").json["needs_you"])
    (here / "elsewhere").rename(keys)
    assert not any("recover" in n["command"] or "resume" in n["command"] for n in tally("status", "audit_log", "--json").json["needs_you"])
    (segment,) = (here / "audit_log" / "segments").iterdir()
    lines = segment.read_bytes()
    segment.write_bytes(b"".join(lines.splitlines(keepends=True)[:2]))
    cut = tally("status", "audit_log")
    assert cut.code == 0 and "IS NOT HERE" in cut.out and "ENTRIES ARE MISSING: 4 were signed" in " ".join(cut.out.split())
    assert tally("status", "audit_log", "--json").json["newest_us"] == 0
    assert tally("verify", "audit_log").code == 6
    assert "ALTERED OR INCOMPLETE" in tally("status", "audit_log").out  # what it said before is not said any more
    report = tally("report", "full", "audit_log", "--since", "2d")
    assert report.code == 6 and "NOTHING ALTERED" not in report.out
    segment.write_bytes(lines)
    assert tally("verify", "audit_log").code == 0
    assert "nothing altered" in tally("status", "audit_log").out


def test_a_log_that_is_gone_names_how_it_comes_back(tally, tmp_path):
    assert tally("init", "audit_log", "--origin", "shop.example").code == 0
    assert tally("verify", "audit_log").code == 0
    (tmp_path / "here" / "audit_log").rename(tmp_path / "moved")
    gone = tally("verify", "audit_log")
    assert gone.code == 6 and "--from BACKUP" in gone.out and "tally init" not in gone.out and "--as-evidence" not in gone.out
    refused = tally("record", "audit_log", "--actor", "a", "--action", "b", "--resource", "c")
    assert refused.code == 2 and "--from BACKUP" in refused.err
