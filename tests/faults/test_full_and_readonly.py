"""No room, no right, no writable disk: a clear error, nothing lost, and the loss itself on record."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick.core.errors import DiskFull, ReadOnly, StateUnknown, StoreError
from tallystick.memory import Memory
from tallystick.verification import verify_log

from .disks import FaultDisk
from .judge import event, judge, judge_as_it_is
from .lab import Lab

ROOT = Path(__file__).parents[2]


class NoRoom(FaultDisk):
    """Writes fail while ``full``; the reserve gives room for ``spare`` more."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.spare = False, 0

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        if self.full and offset + len(data) > os.fstat(fd).st_size:
            if self.spare < len(data):
                os.pwrite(fd, data[: len(data) // 2], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.spare -= len(data)
        super().write_at(fd, data, offset)

    def unlink(self, path: Path) -> None:
        if path.name == "reserve":
            self.spare += path.stat().st_size
        super().unlink(path)


def test_without_a_reserve_the_gap_precedes_the_next_event(lab: Lab) -> None:
    disk = NoRoom()
    log = lab.open(disk)
    acknowledged = [log.log(**event(0))]
    disk.full = True
    for _ in range(3):
        with pytest.raises(DiskFull, match="1 event"):
            log.log(**event(1))
    with pytest.raises(DiskFull, match="4 event"):
        log.log_many([event(n) for n in range(4)])
    disk.full = False
    acknowledged.append(log.log(**event(2)))
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    (gap,) = found.of_type("log.gap")
    assert gap.details["count"] == 7
    assert gap.details["first"] <= gap.details["last"]
    assert [s.fields.event_id for s in found.lines][2:4] == [gap.event_id, acknowledged[1]]


def test_with_a_reserve_the_gap_is_on_record_while_the_disk_is_full(lab: Lab) -> None:
    disk = NoRoom()
    log = lab.open(disk)
    acknowledged = [log.log(**event(0))]
    log.tend()
    assert (lab.folder / "reserve").stat().st_size == 65536
    disk.full = True
    with pytest.raises(DiskFull):
        log.log(**event(1, details={"text": "x" * 50_000}))
    assert not (lab.folder / "reserve").exists()
    disk.spare = 0
    with pytest.raises(DiskFull):
        log.log(**event(2))
    with pytest.raises(DiskFull):
        log.log(**event(3))
    log.vanish()
    gap_now = judge_as_it_is(lab.folder, lab.memory, acknowledged).of_type("log.gap")
    assert [g.details["count"] for g in gap_now] == [1]


def test_the_reserve_comes_back(lab: Lab) -> None:
    disk = NoRoom()
    log = lab.open(disk)
    log.log(**event(0))
    log.tend()
    disk.full = True
    with pytest.raises(DiskFull):
        log.log(**event(1))
    disk.spare = 0
    log.tend()
    assert not (lab.folder / "reserve").exists()  # no half of one either
    disk.full = False
    acknowledged = [log.log(**event(2))]
    log.tend()
    assert (lab.folder / "reserve").stat().st_size == 65536
    log.close()
    gaps = judge(lab.folder, lab.memory, acknowledged).of_type("log.gap")
    assert sum(g.details["count"] for g in gaps) == 1


def test_payloads_and_new_segments_meet_the_full_disk_too(lab: Lab) -> None:
    disk = NoRoom()
    log = lab.open(disk, segment_bytes=1500)
    acknowledged, lost = [], 0
    for n in range(30):
        disk.full = n % 3 == 1
        try:
            acknowledged.append(log.log(**event(n, payloads={"a": "x" * 100}, subject=f"s{n % 4}")))
        except DiskFull:
            lost += 1
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    assert lost == 10
    assert sum(g.details["count"] for g in found.of_type("log.gap")) == lost


def test_a_torn_tail_on_a_full_disk_waits_for_room(lab: Lab) -> None:
    log = lab.open()
    acknowledged = [log.log(**event(0))]
    log.vanish()
    with lab.segment().open("ab") as file:
        file.write(b'{"v":1,')
    disk = NoRoom()
    disk.full = True
    log = lab.open(disk)
    for _ in range(2):
        with pytest.raises(DiskFull):
            log.log(**event(1))
    disk.full = False
    acknowledged.append(log.log(**event(2)))
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    assert [g.details["count"] for g in found.of_type("log.gap")] == [2]
    assert len(found.of_type("log.recovered")) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte, where this user may mount one."""
    point = tmp_path / "small"
    point.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(point)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting needs root")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_real_full_disk(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab(small_disk)
    lab.memory = Memory(tmp_path / "state")
    lab.make()
    capsys.readouterr()
    log = lab.open()
    acknowledged = [log.log(**event(0))]
    log.tend()
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    lost = 0
    for n in range(200):
        try:
            acknowledged.append(log.log(**event(n, details={"text": "y" * 3000})))
        except DiskFull:
            lost += 1
    assert lost > 50
    log.vanish()
    log = lab.open()
    with pytest.raises(DiskFull):
        log.log_many([event(n, details={"text": "z" * 60_000}) for n in range(20)])
    lost_here = 20
    assert verify_log(lab.folder, memory=lab.memory).exit_code == 0
    ballast.unlink()
    acknowledged.append(log.log(**event(1)))
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    gaps = [g.details["count"] for g in found.of_type("log.gap")]
    assert lost_here in gaps
    assert sum(gaps) <= lost + lost_here  # what died with the first process uncounted was never promised


def test_a_disk_that_turned_read_only(lab: Lab) -> None:
    log = lab.open()
    acknowledged = [log.log(**event(0))]
    log.close()
    for at in range(1, 12):
        log = lab.open(FaultDisk(at, error=errno.EROFS))
        try:
            acknowledged.append(log.log(**event(1)))
        except (ReadOnly, StateUnknown) as e:
            assert isinstance(e, ReadOnly) != log._handle.store.broken
        except StoreError as e:
            assert "not known" in str(e)  # the lines are there, their signature is not
        log.vanish()
    judge(lab.folder, lab.memory, acknowledged)


READER = """
import os, sys
import backports.zstd, sqlite3, tallystick.index, tallystick.retention.archive, zoneinfo
from tallystick import AuditLogger
from tallystick.core.errors import ReadOnly
from tallystick.verification import verify_log
from tallystick.memory import Memory
from pathlib import Path
folder, vkey = Path(sys.argv[1]), sys.argv[2]
os.setgroups([]), os.setgid(65534), os.setuid(65534)
log = AuditLogger(folder, create=False)
rows = log.query(limit=None)
assert len(rows) == 3, rows
assert log.get(rows[1]["event_id"]) == rows[1]
try:
    log.log("data_access", "eve", "user", "crm", "read")
except ReadOnly as e:
    print("refused:", e)
verdict = verify_log(folder, memory=Memory(None), vkey=vkey)
print(verdict.exit_code, verdict.not_proven)
log.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_another_user_reads_verifies_and_is_told_that_he_cannot_write(tmp_path: Path) -> None:
    """Given to a group by mode 0750/0640 (here: to all), while a writer has it open."""
    base = Path("/tmp") / f"tallystick-nobody-{os.getpid()}"
    base.mkdir(mode=0o755)
    try:
        lab = Lab(base)
        lab.make()
        log = lab.open()
        for n in range(3):
            log.log(**event(n, payloads={"a": "secret"}))
        log.tend()
        for path in [lab.folder, *lab.folder.rglob("*")]:
            if path.name != "lock":
                path.chmod(0o755 if path.is_dir() else 0o644)
        before = _listing(lab.folder)
        home = base / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        vkey = log._handle.genesis.vkey.format()
        done = subprocess.run(
            [sys.executable, "-B", "-W", "error", "-c", READER, str(lab.folder), vkey],
            capture_output=True, text=True, check=False, cwd=home,
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "refused:" in done.stdout
        assert "not write it" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("0 "), done.stdout
        assert "not readable by you" in done.stdout
        assert _listing(lab.folder) == before
        log.close()
    finally:
        shutil.rmtree(base)


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_size) for p in folder.rglob("*"))
