"""Processes killed at random, and whatever a crash or a person may leave behind the signed end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.clock import CLOCK
from tallystick.core import entry as ent
from tallystick.core.entry import Fields
from tallystick.core.epoch import read_history
from tallystick.core.note import SignerKey
from tallystick.core.times import format_time
from tallystick.memory import Memory
from tallystick.store.segments import SegmentStore

from .judge import all_lines, event, judge, judge_as_it_is
from .lab import Lab

ROOT = Path(__file__).parents[2]


def start(lab: Lab, module: str = "tests.faults.writing") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", module, str(lab.folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                            env={**os.environ, "TALLY_STATE": str(lab.base / "state")})  # fmt: skip


def test_kill_9_at_any_moment(lab: Lab) -> None:
    """Several writers, killed one after the other in the middle of their work, in several rounds on one log."""
    config = lab.folder / "log.toml"
    config.write_bytes(config.read_bytes().replace(b"bytes = 67108864", b"bytes = 20000"))
    choose = random.Random(9)
    acknowledged: list[str] = []
    for _ in range(5):
        running = [start(lab) for _ in range(3)]
        for process in running:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(choose.randrange(1, 60))]
        for process in choose.sample(running, 3):
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
            process.stdout.close()
            process.wait()
        judge(lab.folder, lab.memory, acknowledged)
    assert len(acknowledged) > 200


@pytest.fixture
def written(lab: Lab) -> tuple[Lab, list[str]]:
    log = lab.open()
    acknowledged = [log.log(**event(n)) for n in range(5)]
    log.close()
    return lab, acknowledged


def a_line(lab: Lab, n: int = 77, **more: object) -> bytes:
    """What a writer would have written."""
    now = format_time(CLOCK.wall_us())
    fields = Fields(
        v=ent.VERSION, log=origin_of(lab), event_id=CLOCK.event_id(), timestamp=now, recorded_at=now,
        **{"event_type": "data_access", "actor": "ana", "actor_type": "user", "resource": "crm", "action": f"read {n}",
           "outcome": "success", **more},
    )  # fmt: skip
    return ent.encode(fields)


def origin_of(lab: Lab) -> str:
    return (lab.folder / "checkpoint").read_text().split("\n")[0]


@pytest.mark.parametrize("tail", [
    b"{", b'{"v":1,"log":"', b"\0" * 5000, b"\n", b"\n\n\n", b"\xff\xfe\n", b"x" * 200_000, b"{}\n", b"null\n",
    b"\0" * 4096 + b'{"v":1}\n',
])  # fmt: skip
def test_a_tail_that_is_no_line_is_moved_away_and_named(written: tuple[Lab, list[str]], tail: bytes) -> None:
    lab, acknowledged = written
    with lab.segment().open("ab") as file:
        file.write(tail)
    found = judge(lab.folder, lab.memory, acknowledged)
    (recovered,) = found.of_type("log.recovered")
    (cut,) = recovered.details["cut"]
    assert (lab.folder / cut["file"]).read_bytes() == tail
    assert cut["bytes"] == len(tail)


def test_complete_lines_are_taken_in_and_named_as_unsigned(written: tuple[Lab, list[str]]) -> None:
    lab, acknowledged = written
    lines = [a_line(lab, n) for n in range(3)]
    with lab.segment().open("ab") as file:
        file.write(b"\n".join(lines) + b"\n" + lines[0][:40])
    ids = [ent.decode(line).event_id for line in lines]
    found = judge(lab.folder, lab.memory, [*acknowledged, *ids])
    (recovered,) = found.of_type("log.recovered")
    assert (recovered.details["first"], recovered.details["end"]) == (6, 9)
    assert [(s.start, s.end) for s in found.verdict.spans if "unsigned when found" in s.words] == [(6, 9)]


def test_a_missing_payload_of_an_unsigned_line_is_named(written: tuple[Lab, list[str]]) -> None:
    lab, acknowledged = written
    log = lab.open()
    checkpoint, mark = (lab.folder / "checkpoint").read_bytes(), (lab.keys / "mark").read_bytes()
    late = log.log(**event(6, payloads={"a": "gone"}))
    log.vanish()
    (lab.folder / "checkpoint").write_bytes(checkpoint)
    (lab.keys / "mark").write_bytes(mark)
    for path in (lab.folder / "payloads").iterdir():
        path.unlink()
    found = judge(lab.folder, lab.memory, acknowledged)
    (recovered,) = found.of_type("log.recovered")
    assert recovered.details["missing_payloads"] == [f"{late}/a"]


def own(event_type: str, **details: object) -> dict[str, object]:
    return {"event_type": event_type, "actor": ent.OWN_ACTOR, "actor_type": "system", "resource": "log", "details": details}


@pytest.mark.parametrize("by", ["restart", "a process that runs"])
def test_what_the_log_never_said_has_no_effect(written: tuple[Lab, list[str]], by: str) -> None:
    """Hand-appended lifecycle lines are kept, named as unsigned, and change nothing for ever."""
    lab, acknowledged = written
    origin = origin_of(lab)
    thief = SignerKey.generate(origin).verifier.format()
    forged = [
        own("log.epoch_close", next_key=thief), own("log.purged", first=0, end=4),
        own("log.archived", first=0, end=5, parts=[{"first": 0, "end": 5, "name": "audit_2020-01-01_0-5.jsonl.zst"}]),
        own("log.recovered", first=1, end=6), own("log.recovered", first="x"),
        own("log.recovered", first=1, end=6, cut=[{"x" * 60_000: 1}]), own("log.recovered", first=1, end=6, cut=[{"y" * 60_000: 1}]),
        own("log.created", epoch_key=thief), own("log.gap", count=5), own("log.config", sha256="00"),
    ]  # fmt: skip
    before = history(lab)
    log = lab.open()
    if by != "restart":
        acknowledged += [log.log(**event(50))]
        before = history(lab)
    with lab.segment().open("ab") as file:
        file.write(b"".join(a_line(lab, **one) + b"\n" for one in forged))
    if by != "restart":
        acknowledged += [log.log(**event(51))]
    log.vanish()
    for _ in range(3):
        found = judge(lab.folder, lab.memory, acknowledged)
        now = history(lab)
        assert now.epochs == before.epochs
        assert now.archived == before.archived == ()
        assert len(now.recovered) == 1
        first, end = now.recovered[0]
        assert end - first == len(forged)
        assert found.lines[end].fields.event_type == "log.recovered"
    assert AuditLogger(lab.folder, memory=lab.memory).verify_integrity()["verified"]


def history(lab: Lab) -> object:
    return read_history((s.index, s.fields) for s in all_lines(lab.folder) if s.fields.event_type.startswith("log."))


def test_a_clean_stop_leaves_nothing_to_repair(written: tuple[Lab, list[str]]) -> None:
    lab, acknowledged = written
    assert not judge_as_it_is(lab.folder, lab.memory, acknowledged).of_type("log.recovered")
    assert not judge(lab.folder, lab.memory, acknowledged).of_type("log.recovered")
    assert not (lab.folder / "quarantine").exists()
    assert SegmentStore(lab.folder).lock.last_holder().clean


def test_a_head_and_a_mark_that_are_torn_one_at_a_time(written: tuple[Lab, list[str]]) -> None:
    lab, acknowledged = written
    lab.save()
    for path, size in ((lab.folder / "checkpoint", 0), (lab.folder / "checkpoint", 70), (lab.folder / "checkpoint", 500)):
        lab.restore()
        path.write_bytes((path.read_bytes() + bytes(600))[:size])
        judge(lab.folder, Memory(lab.base / "state"), acknowledged)
    for slot in (0, 4096):
        lab.restore()
        mark = bytearray((lab.keys / "mark").read_bytes())
        mark[slot : slot + 100] = bytes(100)
        (lab.keys / "mark").write_bytes(mark)
        judge(lab.folder, Memory(lab.base / "state"), acknowledged)


def test_a_retry_is_answered_by_what_recovery_took_in_and_that_is_signed(written: tuple[Lab, list[str]]) -> None:
    lab, acknowledged = written
    log = lab.open()
    kept = [(p, p.read_bytes()) for p in (lab.folder / "checkpoint", lab.keys / "mark")]
    chosen = "evt_" + "0" * 31 + "1"
    log.log(**event(6, event_id=chosen))
    log.vanish()
    for path, data in kept:
        path.write_bytes(data)
    again = lab.open()
    assert again.log(**event(6, event_id=chosen)) == chosen
    again.vanish()
    found = judge_as_it_is(lab.folder, lab.memory, [*acknowledged, chosen])
    assert len(found.of_type("log.recovered")) == 1
