"""The k-th change of the disk fails, or the process dies there, for k until none is left; each before and after it was done.

One row is one script; the judge is the same for all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallystick import AuditLogger
from tallystick.clock import CLOCK
from tallystick.core.errors import StateUnknown, StoreError
from tallystick.core.genesis import Genesis
from tallystick.disk import Disk
from tallystick.log.create import Plan, create
from tallystick.opening import is_log
from tallystick.retention.archive import archive

from .disks import COLUMNS, FaultDisk, HalfWrite, attempt, tries
from .judge import event, judge
from .lab import Bench, BootClock, Lab

SMALL = 1500  # bytes of a segment: two or three entries
OLD = "2020-01-01T00:00:00Z"
Script = Callable[[Bench], list[str]]


def single(log: Bench) -> list[str]:
    return [i for n in range(3) if (i := attempt(lambda n=n: log.log(**event(n)), StoreError))]


def payload(log: Bench) -> list[str]:
    return [
        i for n in range(3)
        if (i := attempt(lambda n=n: log.log(**event(n, payloads={"a": "x" * 50, "b": b"y"}, subject="s1")), StoreError))
    ]  # fmt: skip


def many(log: Bench) -> list[str]:
    found: list[str] = []
    for n in range(0, 10, 5):
        found += attempt(lambda n=n: log.log_many([event(m) for m in range(n, n + 5)]), StoreError) or []
    return found


def tended(log: Bench) -> list[str]:
    found = []
    for n in range(3):
        found.append(attempt(lambda n=n: log.log(**event(n)), StoreError))
        attempt(log.tend)
    return [i for i in found if i]


def rolling(log: Bench) -> list[str]:
    return [i for n in range(8) if (i := attempt(lambda n=n: log.log(**event(n)), StoreError))]


def run(lab: Lab, disk: Disk, script: Script, *, segment_bytes: int | None = None, boot: str | None = None) -> list[str]:
    """What was acknowledged. Ends in ``close`` where the process still lives and in nothing where it died."""
    log = lab.open(disk, segment_bytes=segment_bytes, **({"clock": BootClock(boot)} if boot else {}))
    acknowledged = script(log)
    attempt(log.close)
    log.vanish()
    return acknowledged


@pytest.mark.parametrize("make", [FaultDisk, HalfWrite])
@pytest.mark.parametrize(("script", "segment_bytes"), [
    (single, None), (payload, None), (many, None), (tended, None), (rolling, SMALL),
])  # fmt: skip
def test_append(lab: Lab, script: Script, segment_bytes: int | None, make: Any) -> None:
    lab.save()
    for disk in tries(make):
        lab.restore()
        acknowledged = run(lab, disk, script, segment_bytes=segment_bytes)
        found = judge(lab.folder, lab.memory, acknowledged)
        if not disk.fired:
            assert len(acknowledged) == len([s for s in found.lines if s.fields.actor == "ana"]) - 1
            assert len(disk.seen) > 10


def test_what_failed_is_counted_or_stored_and_never_both(lab: Lab) -> None:
    """The count of ``log.gap`` is the number of events that are not there."""
    lab.save()
    for disk in tries(ways=COLUMNS[:2]):
        lab.restore()
        log = lab.open(disk)
        attempt(lambda log=log: log.log(**event(0)), StoreError)
        acknowledged = attempt(lambda log=log: log.log(**event(1)), StoreError)
        fatal = log._handle.writer._fatal is not None
        attempt(log.close)
        log.vanish()
        found = judge(lab.folder, lab.memory, [acknowledged] if acknowledged else [])
        there = {f.details["n"] for s in found.lines if (f := s.fields).actor == "ana"}
        lost = sum(g.details["count"] for g in found.of_type("log.gap"))
        if not fatal and acknowledged:
            assert lost == len({0, 1} - there), (disk.at, disk.way, disk.seen[disk.at - 1 : disk.at])


def unsigned(lab: Lab, torn: bytes, *, segment_bytes: int | None = None) -> list[str]:
    """A log whose last three entries lost their head and mark, with ``torn`` behind them; the writer died."""
    log = lab.open(segment_bytes=segment_bytes)
    acknowledged = [log.log(**event(n)) for n in range(4)]
    kept = [(p, p.read_bytes()) for p in (lab.folder / "checkpoint", lab.keys / "mark")]
    acknowledged += [log.log(**event(n, payloads={"a": f"text {n}"})) for n in range(4, 7)]
    log.vanish()
    for path, data in kept:
        path.write_bytes(data)
    with lab.segment().open("ab") as file:
        file.write(torn)
    return acknowledged


@pytest.mark.parametrize("boot", [None, "another-boot"])
@pytest.mark.parametrize("segment_bytes", [None, 10])
def test_recovery(lab: Lab, boot: str | None, segment_bytes: int | None) -> None:
    """A torn tail and unsigned lines are found by a writer that fails or dies in the middle of the repair, which may have
    to begin a new segment too; the next one repairs what the first left."""
    earlier = unsigned(lab, b'{"v":1,"torn')
    lab.save()
    for disk in tries():
        lab.restore()
        acknowledged = run(lab, disk, single, segment_bytes=segment_bytes, boot=boot)
        found = judge(lab.folder, lab.memory, [*earlier, *acknowledged])
        if disk.fired and disk.way in COLUMNS[:2] and not disk.seen[disk.at - 1].startswith("sync"):
            assert len(acknowledged) >= 2, "one failure that was no sync, and the same handle does not go on"
        recovered = found.of_type("log.recovered")
        assert recovered
        cuts = {c["file"] for r in recovered for c in r.details.get("cut", ())}
        assert cuts == {f"quarantine/{p.name}" for p in (lab.folder / "quarantine").iterdir() if p.suffix == ".bin"}
        assert len(cuts) == 1


def test_a_writer_that_runs_goes_on_where_another_died(lab: Lab) -> None:
    """It knew where the log ends; what the dead one left there it must not write past."""
    lab.save()
    for disk in tries(ways=COLUMNS[2:]):
        lab.restore()
        log = lab.open(segment_bytes=SMALL)
        acknowledged = [log.log(**event(0))]
        other = lab.open(disk, segment_bytes=SMALL)
        for n in range(6):
            acknowledged.append(attempt(lambda other=other, n=n: other.log(**event(n, payloads={"a": "x"}))))
            acknowledged.append(attempt(other.tend))
            acknowledged.append(log.log(**event(n, payloads={"b": "y"})))
        other.vanish()
        log.close()
        judge(lab.folder, lab.memory, [i for i in acknowledged if i])


def test_a_second_failure_during_the_repair_of_the_first(lab: Lab) -> None:
    lab.save()
    for first in range(2, 40, 7):
        for disk in tries(ways=("died before", "died after")):
            lab.restore()
            early = FaultDisk(first, "died after")
            acknowledged = run(lab, early, payload, segment_bytes=SMALL)
            acknowledged += run(lab, disk, payload, segment_bytes=SMALL)
            judge(lab.folder, lab.memory, acknowledged)
            if not early.fired:
                return


def test_create(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever fails: the next call makes the log or finds it made; never half of one."""
    lab = Lab(base)
    for disk in tries(HalfWrite):
        lab.restore()
        plan = Plan(lab.folder, lab.keys, "host/log/000000000000", _config(), {})
        made = attempt(lambda disk=disk, plan=plan: create(plan, CLOCK, disk, exists=is_log), StoreError)
        assert made is None or isinstance(made, Genesis)
        assert disk.fired == (made is None)
        with AuditLogger(lab.folder, memory=lab.memory) as log:
            first = log.log(**event(0))
        judge(lab.folder, lab.memory, [first])
        assert sorted(p.name for p in base.iterdir()) == ["audit_log", "audit_log.keys", "state"]
    capsys.readouterr()


def _config() -> bytes:
    from tallystick.config import build_settings

    return build_settings("host/log/000000000000", "UTC", "../audit_log.keys", 365)


def test_archive(lab: Lab) -> None:
    """Nothing is lost on the way out, and a second call finishes."""
    log = lab.open(segment_bytes=SMALL)
    earlier = [log.log(**event(n, timestamp=OLD)) for n in range(9)]
    log.close()
    lab.save()
    folder = lab.base / "archive"
    for disk in tries():
        lab.restore()
        log = lab.open(disk, segment_bytes=SMALL)
        attempt(lambda log=log, disk=disk: _archive(log, folder, disk), OSError, StoreError)  # OSError: writing the copy
        attempt(log.close)
        log.vanish()
        judge(lab.folder, lab.memory, earlier, archives=folder)
        again = lab.open(segment_bytes=SMALL)
        _archive(again, folder, again._handle.store._disk)
        again.close()
        found = judge(lab.folder, lab.memory, earlier, archives=folder)
        assert found.verdict.spans[0].words[1] == "archived"


def test_an_archive_begun_in_one_folder_is_finished_in_another(lab: Lab) -> None:
    log = lab.open(segment_bytes=SMALL)
    earlier = [log.log(**event(n, timestamp=OLD)) for n in range(9)]
    log.close()
    lab.save()
    folder, elsewhere = lab.base / "archive", lab.base / "deep"
    for disk in tries(ways=("died after",)):
        lab.restore()
        log = lab.open(disk, segment_bytes=SMALL)
        attempt(lambda log=log, disk=disk: _archive(log, folder, disk))
        log.vanish()
        again = lab.open(segment_bytes=SMALL)
        _archive(again, elsewhere, again._handle.store._disk)
        again.close()
        for path in folder.glob("*") if folder.exists() else ():
            if not (elsewhere / path.name).exists():
                shutil.copy(path, elsewhere)
        found = judge(lab.folder, lab.memory, earlier, archives=elsewhere)
        assert found.verdict.spans[0].words[1] == "archived"


def _archive(log: Bench, folder: Path, disk: Disk) -> Any:
    handle = log._handle
    return archive(handle.writer, handle.view, handle.store, folder, older_than_us=CLOCK.wall_us() - 86_400_000_000,
                   disk=disk)  # fmt: skip


def test_after_a_failed_sync_nothing_more_is_acknowledged(lab: Lab) -> None:
    lab.save()
    script = single, payload, tended
    for way in COLUMNS[:2]:
        for what in script:
            for at in range(1, 60):
                lab.restore()
                disk = FaultDisk(at, way)
                log = lab.open(disk)
                what(log)
                if disk.fired and disk.seen[at - 1].startswith("sync"):
                    with pytest.raises(StateUnknown):
                        log.log(**event(7))
                    with pytest.raises(StateUnknown):
                        log.log(**event(8))
                log.vanish()
                if not disk.fired:
                    break
