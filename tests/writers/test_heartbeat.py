"""Signs of life: who began, who lives, who stopped; and the silences that verification names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.clock import CLOCK
from tallystick.core.errors import ConfigError
from tallystick.core.times import SECOND_US
from tallystick.handles import Handle
from tallystick.memory import Memory
from tallystick.verification import verify_log

from ..faults.judge import event

HOUR_US = 3600 * SECOND_US


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state")


@pytest.fixture
def log(tmp_path: Path, memory: Memory) -> Path:
    folder = tmp_path / "audit_log"
    AuditLogger(folder, memory=memory).close()
    configure(folder, "1h")
    return folder


def configure(folder: Path, every: str) -> None:
    with (folder / "log.toml").open("a") as file:
        file.write(f'\n[heartbeat]\nevery = "{every}"\n')


def told(folder: Path) -> list[dict]:
    lines = [json.loads(line) for path in sorted((folder / "segments").iterdir()) for line in path.read_bytes().splitlines()]
    return [line for line in lines if line["event_type"] in ("log.started", "log.heartbeat", "log.stopped", "data_access")]


def test_a_run_is_framed_by_its_beginning_and_its_end(log: Path, memory: Memory) -> None:
    with AuditLogger(log, memory=memory, create=False) as logger:
        logger.log(**event(1))
        logger.log(**event(2))
    found = told(log)
    assert [line["event_type"] for line in found] == ["log.started", "data_access", "data_access", "log.stopped"]
    started, stopped = found[0]["details"], found[-1]["details"]
    assert started["run"] == stopped["run"] and started["every_s"] == 3600 and started["pid"] == os.getpid()
    assert verify_log(log, memory=memory).exit_code == 0
    with AuditLogger(log, memory=memory, create=False) as logger:
        assert len(list(logger.entries())) == 2  # who logs two events sees two


def test_who_only_reads_says_nothing_and_without_the_setting_nobody_does(tmp_path: Path, log: Path, memory: Memory) -> None:
    with AuditLogger(log, memory=memory, create=False) as logger:
        assert list(logger.entries()) == []
    assert told(log) == []
    with AuditLogger(tmp_path / "plain", memory=memory) as logger:
        logger.log(**event(1))
    assert [line["event_type"] for line in told(tmp_path / "plain")] == ["data_access"]


class Rounds:
    """In the place of the event that ends the thread: so many rounds, with the waits that were asked for."""

    def __init__(self, rounds: int, at_each: object) -> None:
        self.waits: list[float] = []
        self._left, self._at_each = rounds, at_each

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        self._left -= 1
        self._at_each(timeout)  # type: ignore[operator]
        return self._left < 0


def test_the_thread_beats_only_after_silence(log: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [CLOCK.wall_us()]
    boot = CLOCK.boot_us() - now[0]
    monkeypatch.setattr(type(CLOCK), "wall_us", lambda _self: now[0])
    monkeypatch.setattr(type(CLOCK), "boot_us", lambda _self: now[0] + boot)
    with AuditLogger(log, memory=memory, create=False) as logger:
        logger.log(**event(1))
        rounds = Rounds(3, lambda seconds: now.__setitem__(0, now[0] + int(seconds * SECOND_US)))
        logger._handle.heartbeat._live(rounds)  # type: ignore[arg-type]
        assert [round(w) for w in rounds.waits] == [3600, 3600, 3600, 3600]
    assert [line["event_type"] for line in told(log)] == ["log.started", "data_access", *["log.heartbeat"] * 3, "log.stopped"]
    verdict = verify_log(log, memory=memory)
    assert (verdict.exit_code, verdict.seen) == (0, [])


def test_silences_are_named_and_are_no_alarm(log: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    for hours in (0, 1, 9):
        then = CLOCK.wall_us() + hours * HOUR_US
        with monkeypatch.context() as patch:
            patch.setattr(type(CLOCK), "wall_us", lambda _self, then=then: then)
            with AuditLogger(log, memory=memory, create=False) as logger:
                logger.log(**event(hours))
    verdict = verify_log(log, memory=memory)
    assert verdict.exit_code == 0
    (text,) = verdict.seen
    assert text.startswith("silent from ") and " between #" in text
    assert verify_log(log, memory=memory, require="alive").exit_code == 0
    late = CLOCK.wall_us() + 12 * HOUR_US
    monkeypatch.setattr(type(CLOCK), "wall_us", lambda _self: late)
    assert [f.issue for f in verify_log(log, memory=memory, require="alive").findings] == ["silent"]
    assert verify_log(log, memory=memory, require="alive").exit_code == 5


def test_a_forked_child_is_a_run_of_its_own(log: Path, memory: Memory) -> None:
    with AuditLogger(log, memory=memory, create=False) as logger:
        logger.log(**event(1))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                logger.log(**event(2))
                logger.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    runs = [line["details"]["run"] for line in told(log) if line["event_type"] == "log.started"]
    assert len(set(runs)) == 2
    assert [line["event_type"] for line in told(log)].count("log.stopped") == 2
    assert verify_log(log, memory=memory).exit_code == 0


def test_one_beat_for_cron_says_nothing_else(log: Path) -> None:
    handle = Handle(log)
    handle.heartbeat.beat()
    handle.close()
    assert [line["event_type"] for line in told(log)] == ["log.heartbeat"]


@pytest.mark.parametrize("every", ["1s", "soon", "0h", "1"])
def test_a_rhythm_that_is_none_is_refused_with_its_place(tmp_path: Path, memory: Memory, every: str) -> None:
    AuditLogger(tmp_path / "other", memory=memory).close()
    configure(tmp_path / "other", every)
    with pytest.raises(ConfigError, match=r"log\.toml: heartbeat\.every"):
        AuditLogger(tmp_path / "other", memory=memory, create=False)
