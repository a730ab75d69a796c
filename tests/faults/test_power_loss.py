"""The power goes at any moment, and any part of what was not synced is gone with it: nothing acknowledged ever is."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.clock import CLOCK
from tallystick.log.create import Plan, create
from tallystick.memory import Known, Memory
from tallystick.opening import is_log
from tallystick.retention.archive import archive

from .disks import attempt
from .judge import event, judge
from .lab import Bench, BootClock, Lab
from .power import Mortal, PowerDisk, lose_pages

SEEDS = 400
CHUNK = 40


@pytest.fixture
def lab(base: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    """The disk with the log is one, what the user remembers lies on another."""
    (base / "disk").mkdir()
    made = Lab(base / "disk")
    made.memory = Memory(base / "state")
    made.make()
    capsys.readouterr()
    return made


def _saved(lab: Lab) -> Known:
    lab.save()
    known = lab.memory.get(lab.folder)
    assert known is not None
    return known


def work(begin: Callable[[], Bench], choose: random.Random, steps: int) -> list[str]:
    """Something of everything, by one or two writers in turn, who may die and be followed by another; ends where the power
    does."""
    acknowledged: list[str] = []
    logs = [begin() for _ in range(choose.choice((1, 2)))]
    for n in range(steps):
        at = choose.randrange(len(logs))
        if getattr(logs[at]._handle.store._disk, "dead", False):
            logs[at].vanish()
            logs[at] = begin()
        one = logs[at]
        kind = choose.randrange(12)
        if kind < 4:
            found = attempt(lambda one=one, n=n: [one.log(**event(n, details={"n": n, "text": "x" * choose.choice((1, 300, 3000))}))])
        elif kind < 6:
            payloads = {"a": "p" * choose.choice((1, 5000)), "b": b"q"}
            found = attempt(lambda one=one, n=n, p=payloads: [one.log(**event(n, payloads=p, subject=choose.choice(("s", "t"))))])
        elif kind < 8:
            found = attempt(lambda one=one, n=n: one.log_many([event(m) for m in range(n, n + choose.choice((2, 30, 300)))]))
        elif kind < 9:
            found = attempt(one.tend)
        elif kind < 11:
            found = attempt(lambda one=one: (one.rotate(), [])[1])
        else:
            found = attempt(one._handle.close)  # opened again by the next append
        acknowledged += found or []
    for one in logs:
        one.vanish()
    return acknowledged


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_append_and_roll(lab: Lab, first: int) -> None:
    known = _saved(lab)
    for seed in range(first, first + CHUNK):
        lab.restore()
        lab.memory.put(lab.folder, known)
        choose = random.Random(seed)
        acknowledged: list[str] = []
        for boot in range(choose.choice((1, 1, 2, 3))):  # the repair may lose its power too
            disk = PowerDisk(lab.base, choose.choice((0, choose.randrange(1, 150), choose.randrange(1, 150))))
            clock = BootClock(f"boot-{boot}")

            def begin(disk: PowerDisk = disk, clock: BootClock = clock, choose: random.Random = choose) -> Bench:
                mortal = choose.choice((disk, Mortal(disk, choose.randrange(1, 40), after=choose.random() < 0.5)))
                return lab.open(mortal, clock=clock, segment_bytes=choose.choice((4096, 40_000)))

            acknowledged += work(begin, choose, choose.randrange(1, 14))
            disk.lose(seed, keep=lambda path: choose.random() < 0.5)
        judge(lab.folder, lab.memory, acknowledged)


@pytest.mark.parametrize("by", ["one", "another that closes", "another that closed"])
def test_holes_that_the_way_to_the_root_does_not_touch(lab: Lab, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three hundred hashes a lost page of leaf hashes does not change what the tree gives for the whole; only the lock
    says that the machine went down. ``clean`` must not be found there: not from before, and not from a writer who was not
    the last."""
    first = lab.open(clock=BootClock("boot-0"))
    earlier = [first.log(**event(0))]
    first.close()
    known = _saved(lab)
    for lock_page in (set(), {0}):
        lab.restore()
        lab.memory.put(lab.folder, known)
        disk, clock = PowerDisk(lab.base), BootClock("boot-1")
        log, other = lab.open(disk, clock=clock), lab.open(disk, clock=clock)
        acknowledged = list(earlier)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 99_999_999)  # the other is another process
            if by != "one":
                acknowledged.append(other.log(**event(1)))
                other.tend()  # it has nothing to sync at its end
            if by == "another that closed":
                other.close()
        acknowledged += log.log_many([event(n) for n in range(400)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 99_999_999)
            if by == "another that closes":
                other.close()
        log.vanish()
        other.vanish()
        lose_pages(disk, {lab.folder / "tree/0": {0}, lab.folder / "lock": lock_page})
        judge(lab.folder, lab.memory, acknowledged)


def test_a_lost_lock_file_is_an_unclean_stop(lab: Lab) -> None:
    """Nothing says any more that the machine was running: the tree is not believed."""
    log = lab.open(clock=BootClock("earlier"))
    acknowledged = log.log_many([event(n) for n in range(300)])
    log.tend()
    log.vanish()
    tree = bytearray((lab.folder / "tree/0").read_bytes())
    tree[10 * 32 : 20 * 32] = bytes(320)  # a hole that the way to the root does not touch
    (lab.folder / "tree/0").write_bytes(tree)
    (lab.folder / "lock").unlink()
    judge(lab.folder, lab.memory, acknowledged)


def test_create(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log is there as a whole, or the next call makes it."""
    (base / "disk").mkdir()
    lab = Lab(base / "disk")
    lab.memory = Memory(base / "state")
    made = None
    for seed in range(1000):
        if made is not None:
            break
        disk = PowerDisk(lab.base, seed // 4 + 1)
        config = b'format = 1\norigin = "host/log/000000000000"\ntimezone = "UTC"\nkeys = "../audit_log.keys"\n'
        plan = Plan(lab.folder, lab.keys, "host/log/000000000000", config, {})
        made = attempt(lambda disk=disk, plan=plan: create(plan, BootClock("earlier"), disk, exists=is_log))
        disk.lose(seed)
        with AuditLogger(lab.folder, memory=lab.memory) as log:
            first = log.log(**event(0))
        judge(lab.folder, lab.memory, [first])
        lab.memory.forget(lab.folder)
        for path in base.joinpath("disk").iterdir():
            shutil.rmtree(path)
    assert made is not None
    capsys.readouterr()


def test_archive(lab: Lab) -> None:
    """On the way into the archive everything is somewhere at every moment."""
    log = lab.open(segment_bytes=1500)
    acknowledged = [log.log(**event(n, timestamp="2020-01-01T00:00:00Z")) for n in range(9)]
    log.close()
    known = _saved(lab)
    folder = lab.base / "deep" / "archive"
    for seed in range(80):
        lab.restore()
        lab.memory.put(lab.folder, known)
        disk = PowerDisk(lab.base, seed + 1)
        for boot, one in enumerate((disk, None)):
            log = lab.open(one or PowerDisk(lab.base), clock=BootClock(f"boot-{boot}"), segment_bytes=1500)
            handle = log._handle
            attempt(lambda handle=handle, one=one: archive(
                handle.writer, handle.view, handle.store, folder, older_than_us=CLOCK.wall_us() - 10**9,
                **({"disk": one} if one else {})))  # fmt: skip
            attempt(log.tend)
            log.vanish()
            if one:
                one.lose(seed)
        found = judge(lab.folder, lab.memory, acknowledged, archives=folder)
        assert found.verdict.spans[0].words[1] == "archived"


def test_an_archive_finished_after_a_death_and_before_a_power_loss(lab: Lab) -> None:
    """Whoever finishes what another began syncs what that one could not any more, before anything is removed."""
    log = lab.open(segment_bytes=1500)
    acknowledged = [log.log(**event(n, timestamp="2020-01-01T00:00:00Z")) for n in range(5)]
    log.close()
    known = _saved(lab)
    folder = lab.base / "archive"
    for at in range(1, 300):
        lab.restore()
        lab.memory.put(lab.folder, known)
        disk = PowerDisk(lab.base)
        for one in (mortal := Mortal(disk, at, after=True), disk):
            log = lab.open(one, clock=BootClock("boot-1"), segment_bytes=1500)
            handle = log._handle
            attempt(lambda handle=handle, one=one: archive(
                handle.writer, handle.view, handle.store, folder, older_than_us=CLOCK.wall_us() - 10**9, disk=one))  # fmt: skip
            log.vanish()
        disk.lose(at)
        judge(lab.folder, lab.memory, acknowledged, archives=folder)
        if not mortal.dead:
            break
