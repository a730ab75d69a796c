"""Query, show, trace and reports read all parts of a log that was resumed as one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core import entry as ent
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.errors import Malformed
from tallystick.core.merkle import Frontier, leaf_hash
from tallystick.family import parse_place
from tallystick.keys import KeyFolder
from tallystick.memory import Memory
from tallystick.resume import resume
from tallystick.verification import verify_log

from ..cli.conftest import tally  # noqa: F401
from ..faults.judge import event


@pytest.fixture(autouse=True)
def _writable_again(tmp_path: Path):
    yield
    subprocess.run(["chmod", "-R", "u+w", tmp_path], check=True)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setenv("TALLY_STATE", str(tmp_path / "state"))
    return Memory(tmp_path / "state")


@pytest.fixture
def log(tmp_path: Path, memory: Memory) -> Path:
    """Three parts with 4, 3 and 2 events; n of the details counts through."""
    path, n = tmp_path / "audit_log", 0
    for count in (4, 3, 2):
        if n:
            resume(path, reason="stolen", memory=memory, new_keys=True)
        with AuditLogger(path, memory=memory) as opened:
            for _ in range(count):
                opened.log(**event(n, payloads={"a": f"text {n}"}, correlation_id="case 1"))
                n += 1
    return path


def test_entries_of_all_parts_in_order(log: Path, memory: Memory) -> None:
    with AuditLogger(log, memory=memory) as opened:
        found = list(opened.entries())
        assert [e.details["n"] for e in found] == list(range(9))
        assert [e.place for e in found] == ["1#1", "1#2", "1#3", "1#4", "2#1", "2#2", "2#3", "#1", "#2"]
        assert sorted(found, key=lambda e: e.order) == found
        assert [e.details["n"] for e in opened.entries(newest_first=True)] == list(range(8, -1, -1))
        assert [e.details["n"] for e in opened.entries(newest_first=True, limit=4)] == [8, 7, 6, 5]
        assert [row["details"]["n"] for row in opened.query({"resource": "crm/2"})] == [2]
        assert [e.place for e in opened.entries({"event_type": "log.created"})] == ["1#0", "2#0", "#0"]
        assert [opened.query(limit=2)[0].get("part"), opened.query(newest_first=True, limit=1)[0].get("part")] == [1, None]


@pytest.mark.parametrize("newest_first", [False, True])
def test_paging_goes_through_all_parts(log: Path, memory: Memory, newest_first: bool) -> None:
    with AuditLogger(log, memory=memory) as opened:
        seen, at = [], None
        while True:
            page = list(opened.entries(limit=2, newest_first=newest_first, **{"before" if newest_first else "after": at}))
            if not page:
                break
            seen += [e.details["n"] for e in page]
            last = page[-1]
            at = f"{last.part}#{last.index}" if last.part else last.index
        assert seen == sorted(range(9), reverse=newest_first)


def test_one_entry_by_id_and_by_place_with_its_contents(log: Path, memory: Memory) -> None:
    with AuditLogger(log, memory=memory) as opened:
        for one in list(opened.entries()):
            assert opened.get(one.event_id)["details"] == {"n": one.details["n"]}
            assert opened.open_payload(one.event_id, "a") == f"text {one.details['n']}".encode()
            assert opened.entry(one.place if one.part else one.index).event_id == one.event_id
        for unknown in ("1#99", "7#1", "evt_" + "0" * 32):
            with pytest.raises(KeyError):
                opened.entry(unknown)


def test_counts_and_reports_count_all_parts(log: Path, memory: Memory) -> None:
    from tallystick.reports.compliance import ComplianceReporter

    with AuditLogger(log, memory=memory) as opened:
        for recount in (False, True):
            assert opened.counts(recount=recount)["by_actor"] == {"ana": 9}
        report = ComplianceReporter(opened).generate_report("2020-01-01", "2100-01-01", "full")
        assert report["total_events"] == 9


def test_a_part_that_is_away_is_left_out_and_named(log: Path, memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "audit_log.until-4").rename(tmp_path / "away")
    with AuditLogger(log, memory=memory) as opened:
        assert [e.details["n"] for e in opened.entries()] == [7, 8]
        assert opened.family.missing
        assert "part 2" in opened.family.missing[0]
        assert "part 2" in opened.report_basis()["older_parts_not_counted"][0]


def test_a_part_that_is_away_is_on_the_screen(tally, log: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "audit_log.until-4").rename(tmp_path / "away")
    for command in ("query", "status"):
        assert "part 2" in " ".join(tally(command, log).out.split())
    assert "part 2" in tally("query", log, "--json").json["older_parts_not_looked_at"][0]
    assert tally("verify", log).code == 6


def test_a_line_cannot_say_that_it_is_of_another_part(log: Path) -> None:
    line = (log / "segments" / f"{0:020d}.jsonl").read_bytes().split(b"\n")[0]
    forged = line[:-1] + b',"part":7}'
    with pytest.raises(Malformed):
        ent.decode_entry(forged, 0, leaf_hash(forged).hex())


@pytest.mark.parametrize(("text", "place"), [("#17", (None, 17)), ("17", (None, 17)), ("1#17", (1, 17)), ("2#1,204", (2, 1204))])
def test_places(text: str, place: tuple[int | None, int]) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "#", "x#1", "1#", "1##2", "-1", "1#-2", "99999#1"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="not a place"):
        parse_place(text)


def test_the_commands(tally, log: Path) -> None:  # noqa: F811
    assert os.environ["TALLY_STATE"]
    shown = tally("query", log)
    assert "9 entries" in shown.out
    assert "1#1" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    page = tally("query", log, "--limit", "5", "--json").json
    assert page["after"] == "2#1"
    assert [e["details"]["n"] for e in tally("query", log, "--json", "--after", page["after"]).json["entries"]] == [5, 6, 7, 8]
    one = tally("show", log, "1#2")
    assert one.out.startswith("1#2 ")
    assert "text 1" in one.out
    assert tally("show", log, "9#2").code == 2
    refused = tally("prove", log, "1#2")
    assert (refused.code, "audit_log.until-5 '#2'" in refused.err) == (2, True)
    traced = tally("trace", log, "case 1")
    assert traced.code == 0
    assert traced.out.index("1#1") < traced.out.index("2#1") < traced.out.index(" #1")
    assert tally("query", log, "--after", "x").code == 2


def test_a_link_that_a_thief_signed_does_not_carry_memory_over_a_part_that_he_wrote_anew(tmp_path: Path, memory: Memory) -> None:
    """He has the log key and the key of the epoch, edits an entry that the user has proven, signs it all, and resumes."""
    path = tmp_path / "stolen"
    with AuditLogger(path, memory=memory) as log:
        for n in range(4):
            log.log(**event(n))
    assert verify_log(path, memory=memory).exit_code == 0
    segment = path / f"segments/{0:020d}.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"crm/2", b"crm/9"))
    leaves = [leaf_hash(line) for line in segment.read_bytes().split(b"\n")[:-1]]
    frontier = Frontier()
    frontier.extend(leaves)
    (path / "tree/0").write_bytes(b"".join(leaves))
    keys = KeyFolder(path.with_name("stolen.keys"))
    made = Checkpoint(keys.log_key().verifier.name, frontier.size, frontier.root())
    (path / "checkpoint").write_bytes(sign_checkpoint(made, keys.epoch_key(0)))
    (keys.path / "mark").unlink()
    (path / "index.db").unlink()
    resume(path, reason="moved", memory=Memory(tmp_path / "thief"), new_keys=True)
    for _ in range(2):  # and it stays so: nothing of it is remembered
        verdict = verify_log(path, memory=memory)
        assert verdict.exit_code == 6 and "are not those that you have seen" in verdict.findings[0].text
    left = next(tmp_path.glob("stolen.until-*"))
    left.rename(tmp_path / "elsewhere")  # not here: then neither
    for _ in range(2):
        assert any(f.issue == "replaced" for f in verify_log(path, memory=memory).findings)
