"""An epoch ends in four steps; whoever dies or fails between any two of them leaves something that the next writer completes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallystick import AuditLogger
from tallystick.clock import Clock
from tallystick.core.checkpoint import Checkpoint, HeadSigner, open_checkpoint
from tallystick.core.epoch import EPOCH_CLOSE, EPOCH_RECOVERED, History, read_history
from tallystick.core.errors import AuditError, ReadOnly, StateUnknown, StoreError
from tallystick.core.note import SignerKey
from tallystick.index import search
from tallystick.keys import KeyFolder
from tallystick.log.epochs import Rhythm
from tallystick.outside import HandedOut
from tallystick.verification import verify_log

from .disks import COLUMNS, DIED_AFTER, DIED_BEFORE, FaultDisk, HalfWrite, attempt, tries
from .judge import Judgement, all_lines, event, judge
from .lab import Bench, Lab


def history_of(found: Judgement) -> History:
    return read_history((s.index, s.fields) for s in found.lines if s.fields.event_type.startswith("log."))


def closes(found: Judgement) -> list[int]:
    """The effective ends of epochs, by number."""
    return [epoch.number for epoch in history_of(found).epochs if epoch.until is not None]


def rotating(log: Bench) -> list[str]:
    found = [attempt(lambda: log.log(**event(0)), StoreError)]
    for n in range(1, 3):
        attempt(log.rotate, StoreError, OSError)
        found.append(attempt(lambda n=n: log.log(**event(n, payloads={"a": "x"})), StoreError))
    return [i for i in found if i]


@pytest.mark.parametrize("make", [FaultDisk, HalfWrite])
def test_every_change_of_the_disk_fails_or_is_the_last(lab: Lab, make: Any) -> None:
    lab.save()
    for disk in tries(make):
        lab.restore()
        log = lab.open(disk)
        acknowledged = rotating(log)
        attempt(log.close)
        log.vanish()
        found = judge(lab.folder, lab.memory, acknowledged)
        if not disk.fired:
            assert closes(found) == [0, 1]


# What a writer does to end an epoch, in order, as the disk sees it; every name is a place to die at.
STEPS = [
    "next key: file", "next key: written", "next key: synced", "next key: named", "next key: folder synced",
    "entry: written", "entry: hashed", "entry: synced", "head: written", "mark: written",
    "closing checkpoint: file", "closing checkpoint: written", "closing checkpoint: synced", "closing checkpoint: named",
    "closing checkpoint: folder synced",
    "old key: overwritten", "old key: synced", "old key: unlinked", "old key: folder synced",
]  # fmt: skip
COMMITTED_BY = STEPS.index("head: written")  # from here on the epoch is over whatever happens


def _ready(lab: Lab, disk: FaultDisk) -> Bench:
    log = lab.open(disk)
    log.log(**event(0))
    log.tend()
    disk.count = 0
    disk.seen.clear()
    return log


def test_the_steps_are_those_and_seven_syncs(lab: Lab) -> None:
    disk = FaultDisk()
    log = _ready(lab, disk)
    log.rotate()
    log.vanish()
    assert disk.seen == [
        "open .epoch-1.key.tmp", "write", "sync", "rename epoch-1.key", "sync_folder audit_log.keys",
        "write", "write", "sync_data", "write", "write",
        "open .00000000000000000003.tmp", "write", "sync", "rename 00000000000000000003", "sync_folder checkpoints",
        "write", "sync", "unlink epoch-0.key", "sync_folder audit_log.keys",
    ]  # fmt: skip
    assert len(disk.seen) == len(STEPS)
    assert sum("sync" in step for step in disk.seen) == 7


@pytest.mark.parametrize("way", [DIED_BEFORE, DIED_AFTER])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_killed_there(lab: Lab, step: int, way: str) -> None:
    """Before the head is written nothing happened; after it the next writer completes: one close, one key."""
    disk = FaultDisk()
    log = _ready(lab, disk)
    disk.at, disk.way = step + 1, way
    attempt(log.rotate)
    assert disk.fired
    log.vanish()
    found = judge(lab.folder, lab.memory, [])
    happened = step > COMMITTED_BY or (step == COMMITTED_BY and way == DIED_AFTER)
    assert closes(found) == ([0] if happened else [])


@pytest.mark.parametrize("step", range(COMMITTED_BY + 1, len(STEPS)), ids=STEPS[COMMITTED_BY + 1 :])
def test_after_each_step_a_power_loss_takes_head_and_mark(lab: Lab, step: int) -> None:
    """Until the closing checkpoint is kept the lines are unsigned and the old key is there; from then on that checkpoint covers them."""
    disk = FaultDisk()
    log = _ready(lab, disk)
    before = {p: p.read_bytes() for p in (lab.folder / "checkpoint", lab.keys / "mark")}
    disk.at, disk.way = step + 1, DIED_AFTER
    attempt(log.rotate)
    log.vanish()
    for path, data in before.items():
        path.write_bytes(data)
    found = judge(lab.folder, lab.memory, [])
    kept = step >= STEPS.index("closing checkpoint: named")
    assert closes(found) == ([0] if kept else [])
    assert bool(found.of_type("log.recovered")) is not kept


def test_the_head_is_lost_and_the_mark_is_not(lab: Lab) -> None:
    """The mark covers the close, but nobody has the note that the old key signed any more: it is signed once more."""
    disk = FaultDisk()
    log = _ready(lab, disk)
    head = (lab.folder / "checkpoint").read_bytes()
    disk.at, disk.way = STEPS.index("closing checkpoint: file") + 1, DIED_BEFORE
    attempt(log.rotate)
    log.vanish()
    (lab.folder / "checkpoint").write_bytes(head)
    assert closes(judge(lab.folder, lab.memory, [])) == [0]


@pytest.mark.parametrize("way", COLUMNS)
def test_a_second_writer_completes_and_drops_its_stale_key(lab: Lab, way: str) -> None:
    lab.save()
    for disk in tries(ways=(way,)):
        lab.restore()
        other = lab.open()
        acknowledged = [other.log(**event(0))]
        log = lab.open(disk)
        acknowledged += rotating(log)
        log.vanish()
        acknowledged += [other.log(**event(n)) for n in range(10, 13)]
        head = (lab.folder / "checkpoint").read_bytes()
        other.close()
        found = judge(lab.folder, lab.memory, acknowledged)
        key = history_of(found).epochs[-1].key
        assert open_checkpoint(head, [key], origin=lab.origin()).size == found.verdict.tree_size - 1


def test_epochs_end_by_number_and_by_day_also_where_nobody_appends(lab: Lab) -> None:
    class Days(Clock):
        day = 0

        def wall_us(self) -> int:
            return super().wall_us() + self.day * 86_400_000_000

        def boot_us(self) -> int:
            return super().boot_us() + self.day * 86_400_000_000

    clock = Days()
    log = lab.open(clock=clock)
    log._handle.writer._epochs._rhythm = Rhythm(daily=True, entries=3)
    for n in range(7):
        log.log(**event(n))
    clock.day = 1
    log._handle.writer.end_day()
    log._handle.writer.end_day()  # once a day
    clock.day = 4
    log.log(**event(8))
    log._handle.writer._epochs._rhythm = Rhythm(daily=False)
    clock.day = 9
    log.log(**event(9))
    log.close()
    reasons = [s.fields.details["reason"] for s in all_lines(lab.folder) if s.fields.event_type == EPOCH_CLOSE]
    assert reasons == ["entries", "entries", "day", "day"]
    spans = [e.until - e.after for e in history_of(judge(lab.folder, lab.memory, [])).epochs if e.until is not None]
    assert max(spans) == 4  # three and the close


def test_what_no_entry_names_is_destroyed_and_what_was_closed_too(lab: Lab) -> None:
    with lab.open() as log:
        log.log(**event(0))
        old = (lab.keys / "epoch-0.key").read_bytes()
        log.rotate()
    KeyFolder(lab.keys).prepare(2, lab.origin())
    (lab.keys / ".epoch-2.key.tmp").write_bytes(b"half a key")
    (lab.keys / "epoch-0.key").write_bytes(old)
    judge(lab.folder, lab.memory, [])
    assert sorted(p.name for p in lab.keys.iterdir() if "epoch" in p.name) == ["epoch-1.key"]


def test_a_key_is_overwritten_before_its_name_goes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path, **kw: (seen.append(Path(path).read_bytes()), unlink(path, **kw)))
    with lab.open() as log:
        log.rotate()
    assert any(data and not data.strip(b"\0") for data in seen)


def _lose_the_key(lab: Lab) -> None:
    with lab.open() as log:
        log.log(**event(0))
        log.rotate()
        log.log(**event(1))
    (lab.keys / "epoch-1.key").unlink()


def test_a_lost_key_stops_writing_and_the_log_key_goes_on(lab: Lab) -> None:
    _lose_the_key(lab)
    log = lab.open()
    with pytest.raises(StateUnknown, match="tally key recover"):
        log.log(**event(2))
    log.vanish()
    log = lab.open()
    log.recover_epoch("disk died")
    i = log.log(**event(3))
    log.rotate()
    log.close()
    found = judge(lab.folder, lab.memory, [i])
    ended = found.of_type(EPOCH_RECOVERED)
    assert [e.details["reason"] for e in ended] == ["disk died"]
    epochs = history_of(found).epochs
    assert [e.lost for e in epochs] == [False, True, False, False]
    handed = HandedOut(lab.folder)
    assert handed.sizes() == [e.until for e in epochs if e.until is not None]
    assert found.verdict.broken_at == found.verdict.sealed_to == epochs[0].until
    assert f"A SIGNING KEY WAS REPORTED LOST: from #{epochs[0].until} on nothing is sealed" in found.verdict.sentence


def test_a_key_that_is_there_is_not_recovered(lab: Lab) -> None:
    with lab.open() as log:
        with pytest.raises(StoreError, match="is there"):
            log.recover_epoch("no reason")
        log.log(**event(1))
    assert not judge(lab.folder, lab.memory, []).of_type(EPOCH_RECOVERED)


@pytest.mark.parametrize("way", COLUMNS)
def test_recovering_fails_or_dies_anywhere(lab: Lab, way: str) -> None:
    _lose_the_key(lab)
    lab.save()
    for disk in tries(ways=(way,)):
        lab.restore()
        log = lab.open(disk)
        attempt(lambda log=log: log.recover_epoch("disk died"), StoreError, OSError)
        log.vanish()
        log = lab.open()
        try:
            log.log(**event(3))
        except StateUnknown:
            log.vanish()
            log = lab.open()
            log.recover_epoch("disk died")
        log.close()
        found = judge(lab.folder, lab.memory, [])
        effective = [e for e in history_of(found).epochs if e.lost]
        assert len(effective) == 1


@pytest.mark.parametrize("way", COLUMNS[:2])
def test_a_handle_that_failed_to_recover_signs_nothing_with_the_log_key(lab: Lab, way: str) -> None:
    """The same handle is asked again after each failure: by an append, then by recovering once more."""
    _lose_the_key(lab)
    lab.save()
    for disk in tries(ways=(way,)):
        lab.restore()
        log = lab.open(disk)
        attempt(lambda log=log: log.recover_epoch("disk died"), StoreError, OSError)
        acknowledged = attempt(lambda log=log: log.log(**event(3)), StoreError)
        log.vanish()
        log = lab.open()
        attempt(lambda log=log: log.recover_epoch("disk died"), StoreError, OSError)
        log.vanish()
        found = judge(lab.folder, lab.memory, [acknowledged] if acknowledged else [])
        assert len([e for e in history_of(found).epochs if e.lost]) == 1


def test_a_recovery_that_is_refused_leaves_the_handle_as_it_was(lab: Lab) -> None:
    with lab.open() as log:
        acknowledged = [log.log(**event(0))]
        for n in range(1, 3):
            with pytest.raises(StoreError, match="is there"):
                log.recover_epoch("no reason")
            acknowledged.append(log.log(**event(n)))
    assert closes(judge(lab.folder, lab.memory, acknowledged)) == []


def test_who_may_not_make_keys_goes_on_in_the_old_epoch(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    log = lab.open()
    log._handle.writer._epochs._rhythm = Rhythm(entries=2)

    def refuse(self: KeyFolder, number: int, origin: str) -> None:
        raise PermissionError(13, "no", "keys")

    with monkeypatch.context() as patch:
        patch.setattr(KeyFolder, "prepare", refuse)
        acknowledged = [log.log(**event(n)) for n in range(5)]
    log.close()
    assert closes(judge(lab.folder, lab.memory, acknowledged)) == []


def test_an_index_that_hides_a_close_has_no_key_destroyed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys are there and the index knows of one epoch only: the lines decide which of them may go."""
    disk = FaultDisk()
    log = _ready(lab, disk)
    disk.at, disk.way = STEPS.index("old key: overwritten") + 1, DIED_BEFORE
    attempt(log.rotate)
    log.vanish()
    with AuditLogger(lab.folder, memory=lab.memory) as reader:
        reader.query()  # fills the index up to the head
    monkeypatch.setattr(search, "own_lines", lambda *_: iter(()))
    log = lab.open()
    acknowledged = [log.log(**event(1))]
    log.close()
    monkeypatch.undo()
    assert closes(judge(lab.folder, lab.memory, acknowledged)) == [0]


@pytest.mark.parametrize("planted", [b"garbage", b"log.example/x\n4\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 x AAAAAAA=\n", b""])
def test_a_file_in_the_way_of_the_closing_checkpoint_stops_writing_until_it_is_gone(lab: Lab, planted: bytes) -> None:
    """Nothing is signed with the key of an epoch that is over."""
    log = lab.open()
    log.log(**event(0))
    in_the_way = lab.folder / "checkpoints" / f"{3:020d}"
    in_the_way.write_bytes(planted)
    with pytest.raises(AuditError):
        log.rotate()
    for _ in range(2):
        with pytest.raises(AuditError):
            log.log(**event(1))
    in_the_way.unlink()
    acknowledged = [log.log(**event(2))]
    log.close()
    assert closes(judge(lab.folder, lab.memory, acknowledged)) == [0]


def test_where_closing_checkpoints_may_not_be_kept_nothing_is_recorded_and_that_is_said(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is over then: no entry may follow under its key, and the next writer who may completes it."""
    log = lab.open()
    log._handle.writer._epochs._rhythm = Rhythm(entries=2)
    acknowledged = [log.log(**event(0))]

    def refuse(self: HandedOut, size: int, note: bytes) -> None:
        raise PermissionError(13, "no", "checkpoints")

    with monkeypatch.context() as patch:
        patch.setattr(HandedOut, "put", refuse)
        for n in range(1, 3):
            with pytest.raises(ReadOnly):
                log.log(**event(n))
    acknowledged.append(log.log(**event(3)))
    log.close()
    assert closes(judge(lab.folder, lab.memory, acknowledged))[0] == 0


# -- what a thief of keys can do ------------------------------------------------------------------------------------------


def test_an_old_key_signs_nothing_any_more(lab: Lab) -> None:
    old = KeyFolder(lab.keys).epoch_key(0)
    with lab.open() as log:
        log.rotate()
        log.log(**event(1))
    checkpoint = Checkpoint.parse((lab.folder / "checkpoint").read_text().rpartition("\n\n")[0] + "\n")
    (lab.folder / "checkpoint").write_bytes(HeadSigner(lab.origin(), old).sign(checkpoint.size, checkpoint.root))
    assert verify_log(lab.folder, memory=lab.memory).exit_code == 6


def test_keys_are_fresh_and_not_derived(lab: Lab) -> None:
    seen = set()
    with lab.open() as log:
        for number in range(20):
            seen.add((lab.keys / f"epoch-{number}.key").read_bytes())
            log.rotate()
    assert len(seen) == 20


@pytest.mark.parametrize("seed", range(60))
def test_random_writers_rotate_and_die(lab: Lab, seed: int) -> None:
    choose = random.Random(seed)
    acknowledged: list[str] = []
    logs: list[Bench] = []
    actions: list[Callable[[Bench], Any]] = [
        lambda log: acknowledged.append(log.log(**event(1))), lambda log: log.rotate(), lambda log: log.tend(), lambda log: log.close(),
    ]  # fmt: skip
    for _ in range(25):
        if len(logs) < 3:
            logs.append(lab.open(FaultDisk(choose.randrange(1, 90), choose.choice(COLUMNS[2:]))))
        log = choose.choice(logs)
        attempt(lambda log=log: choose.choice(actions)(log), StoreError)
        if log._handle.store._disk.dead or log._closed or log._handle.writer._fatal:
            log.vanish()
            logs.remove(log)
    for log in logs:
        log.vanish()
    found = judge(lab.folder, lab.memory, acknowledged)
    assert found.verdict.exit_code == 0 and not found.verdict.findings


def test_signers_name_the_log(lab: Lab) -> None:
    assert isinstance(KeyFolder(lab.keys).epoch_key(0), SignerKey)
    assert KeyFolder(lab.keys).signer(0).verifier.name == lab.origin()
