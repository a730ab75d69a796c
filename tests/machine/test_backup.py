"""Backups of a log that is written to, of one that grows, and of a damaged one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.backup import back_up, copy_evidence
from tallystick.core.errors import DiskFull, ReadOnly, StoreError, VerificationError
from tallystick.memory import Memory
from tallystick.resume import resume
from tallystick.store.segments import SegmentStore
from tallystick.verification import verify_log

from ..cli.conftest import tally  # noqa: F401
from ..faults.judge import event


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state")


@pytest.fixture
def log(tmp_path: Path, memory: Memory) -> Path:
    """A log with ten events, one with content."""
    with AuditLogger(tmp_path / "audit_log", memory=memory) as made:
        for n in range(10):
            made.log(**event(n, payloads={"a": "secret"} if n == 3 else None))
    return tmp_path / "audit_log"


def vkey(log: Path) -> str:
    return (log / "log.vkey").read_text().split("\n")[0]


def code(folder: Path, key: str) -> int:
    return verify_log(folder, memory=Memory(None), vkey=key).exit_code


def add(log: Path, memory: Memory, count: int) -> None:
    with AuditLogger(log, memory=memory) as more:
        for n in range(count):
            more.log(**event(n, payloads={"a": f"more {n}"}))


def test_the_copy_is_the_log_without_its_keys(log: Path, memory: Memory, tmp_path: Path) -> None:
    (done,) = back_up(log, tmp_path / "b", memory=memory)
    assert (done.entries, done.had, done.keys) == (11, 0, None)
    assert code(tmp_path / "b", vkey(log)) == 0
    assert not list(tmp_path.rglob("b*.keys"))
    assert (tmp_path / "b/segments/00000000000000000000.jsonl").read_bytes() == (log / "segments/00000000000000000000.jsonl").read_bytes()
    with AuditLogger(tmp_path / "b", memory=Memory(tmp_path / "s2"), create=False) as copy:
        assert copy.entry_count() == 11
        named = next(e for e in copy.entries() if e.payloads)
        with pytest.raises((StoreError, OSError)):
            copy.open_payload(named.event_id, "a")


def test_what_came_back_from_outside_is_in_the_copy(log: Path, memory: Memory, tmp_path: Path) -> None:
    from tallystick.outside import HandedOut, Parties, PartyState

    Parties(log).put("office", PartyState("folder", "/mnt/office", 5))
    HandedOut(log).put(11, (log / "checkpoint").read_bytes())
    back_up(log, tmp_path / "b", memory=memory)
    Parties(log).put("office", PartyState("folder", "/mnt/office", 11, error="x"))
    back_up(log, tmp_path / "b", memory=memory)
    assert Parties(tmp_path / "b").all() == Parties(log).all()
    assert HandedOut(tmp_path / "b").note(11) == (log / "checkpoint").read_bytes()


def test_a_second_backup_copies_what_is_new(log: Path, memory: Memory, tmp_path: Path) -> None:
    first = back_up(log, tmp_path / "b", memory=memory)[0]
    add(log, memory, 5)
    second = back_up(log, tmp_path / "b", memory=memory)[0]
    assert (second.had, second.entries) == (11, 16)
    assert second.bytes < first.bytes
    assert code(tmp_path / "b", vkey(log)) == 0
    assert back_up(log, tmp_path / "b", memory=memory)[0].bytes == 0


@pytest.mark.parametrize("seen", ["by the one who made it", "by a stranger with the key"])
def test_a_copy_of_a_log_that_eight_processes_write_to_is_never_called_altered(log: Path, memory: Memory, tmp_path: Path, seen: str) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-m", "tests.writers.work", mode, str(log), "200"], stdout=subprocess.DEVNULL,
                         cwd=Path(__file__).parents[2], env={**os.environ, "TALLY_STATE": str(memory.folder)})
        for mode in ["single", "threads"] * 4
    ]  # fmt: skip
    sizes = []
    try:
        n = 0
        while any(w.poll() is None for w in writers) or n < 3:
            dest = tmp_path / f"copy{n % 3}"
            sizes.append(back_up(log, dest, memory=memory)[-1].entries)
            found = verify_log(dest, memory=memory) if seen.startswith("by the one") else verify_log(dest, memory=Memory(None), vkey=vkey(log))
            assert found.exit_code in (0, 3, 5), (found.sentence, found.issues)
            n += 1
    finally:
        assert [w.wait() for w in writers] == [0] * 8
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 1, "nothing was written while copies were made"
    assert verify_log(log, memory=memory).exit_code == 0


def test_the_keys_come_only_where_asked_for_and_the_mark_never(log: Path, memory: Memory, tmp_path: Path) -> None:
    (done,) = back_up(log, tmp_path / "b", memory=memory, with_keys=True)
    keys = tmp_path / "b.keys"
    assert done.keys == str(keys)
    assert keys.stat().st_mode & 0o777 == 0o700
    assert {p.name for p in keys.iterdir()} == {"log.key", "epoch-0.key", next(p.name for p in keys.iterdir() if p.suffix == ".slots")}
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in keys.iterdir())
    with AuditLogger(tmp_path / "b", memory=Memory(tmp_path / "s2"), create=False) as copy:
        named = next(e for e in copy.entries() if e.payloads)
        assert copy.open_payload(named.event_id, "a") == b"secret"
        with pytest.raises(StoreError, match="no mark"):
            copy.log(**event(1))


def test_keys_of_an_earlier_backup_do_not_grow_stale(log: Path, memory: Memory, tmp_path: Path) -> None:
    back_up(log, tmp_path / "b", memory=memory, with_keys=True)
    with pytest.raises(StoreError, match="--with-keys again"):
        back_up(log, tmp_path / "b", memory=memory)


def test_a_key_that_was_destroyed_does_not_live_on_in_the_copy(log: Path, memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "audit_log.keys/epoch-7.key").write_bytes(b"a key")
    (tmp_path / "audit_log.keys/epoch-7.key").chmod(0o600)
    back_up(log, tmp_path / "b", memory=memory, with_keys=True)
    assert (tmp_path / "b.keys/epoch-7.key").exists()
    (tmp_path / "audit_log.keys/epoch-7.key").unlink()
    back_up(log, tmp_path / "b", memory=memory, with_keys=True)
    assert not (tmp_path / "b.keys/epoch-7.key").exists()


@pytest.mark.parametrize("dest", ["audit_log", "audit_log/x", "audit_log.keys/x", ".", "no/where", "file", "other"])
def test_places_that_cannot_be_one_are_refused(log: Path, memory: Memory, tmp_path: Path, dest: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter").write_text("dear")
    with pytest.raises(StoreError):
        back_up(log, tmp_path / dest, memory=memory)
    assert (tmp_path / "other/letter").read_text() == "dear"


def test_a_way_round_through_a_link_is_refused_too(log: Path, memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(log / "archive", target_is_directory=True)
    (log / "archive").mkdir()
    with pytest.raises(StoreError, match="lies in the log"):
        back_up(log, tmp_path / "link/x", memory=memory)


def test_another_log_and_another_history_are_refused_and_both_are_named(log: Path, memory: Memory, tmp_path: Path) -> None:
    with AuditLogger(tmp_path / "second", memory=memory) as other:
        other.log(**event(1))
    with pytest.raises(StoreError, match=f"{tmp_path / 'second'} is not an older copy of {log}"):
        back_up(log, tmp_path / "second", memory=memory)
    # two histories of one log: a copy with its keys went on
    fork = tmp_path / "fork/audit_log"
    shutil.copytree(log, fork)
    shutil.copytree(tmp_path / "audit_log.keys", tmp_path / "fork/audit_log.keys")
    add(fork, Memory(tmp_path / "s3"), 1)
    add(log, memory, 2)
    before = (fork / "segments/00000000000000000000.jsonl").read_bytes()
    with pytest.raises(StoreError, match="two histories"):
        back_up(log, fork, memory=memory)
    assert (fork / "segments/00000000000000000000.jsonl").read_bytes() == before
    shutil.copytree(log, tmp_path / "in use/audit_log")
    shutil.copytree(tmp_path / "audit_log.keys", tmp_path / "in use/audit_log.keys")
    with pytest.raises(StoreError, match="no copy"):
        back_up(log, tmp_path / "in use/audit_log", memory=memory)


def test_a_copy_that_is_newer_than_the_log_is_not_touched(log: Path, memory: Memory, tmp_path: Path) -> None:
    back_up(log, tmp_path / "old", memory=memory)
    add(log, memory, 3)
    back_up(log, tmp_path / "new", memory=memory)
    with pytest.raises(StoreError, match="the copy is newer than the log"):
        back_up(tmp_path / "old", tmp_path / "new", memory=Memory(None))


def test_an_altered_log_spoils_no_good_copy(log: Path, memory: Memory, tmp_path: Path) -> None:
    back_up(log, tmp_path / "b", memory=memory)
    add(log, memory, 3)
    segment = log / "segments/00000000000000000000.jsonl"
    data = segment.read_bytes()
    segment.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    with pytest.raises(VerificationError, match="not the bytes that were signed"):
        back_up(log, tmp_path / "b", memory=memory)
    assert code(tmp_path / "b", vkey(log)) == 0
    with pytest.raises(VerificationError, match="--as-evidence"):
        back_up(log, tmp_path / "fresh", memory=memory)
    assert not (tmp_path / "fresh").exists()


def test_what_a_power_loss_left_in_a_half_made_copy_is_made_good(log: Path, memory: Memory, tmp_path: Path) -> None:
    back_up(log, tmp_path / "b", memory=memory)
    partial = tmp_path / ".c.partial"
    shutil.copytree(tmp_path / "b", partial)
    segment = partial / "segments/00000000000000000000.jsonl"
    segment.write_bytes(segment.read_bytes()[:500] + bytes(len(segment.read_bytes()) - 500))
    day = next((partial / "payloads").iterdir())
    day.write_bytes(day.read_bytes()[:-3])
    back_up(log, tmp_path / "c", memory=memory)
    assert code(tmp_path / "c", vkey(log)) == 0
    assert not partial.exists()


def test_entries_that_left_for_the_archive_leave_the_copy_too(log: Path, memory: Memory, tmp_path: Path) -> None:
    from ..faults.lab import Bench

    bench = Bench(log, memory, segment_bytes=4096)
    for n in range(40):
        bench.log(**event(n, timestamp="2020-01-01T00:00:00Z"))
    bench.close()
    back_up(log, tmp_path / "b", memory=memory)
    assert len(SegmentStore(tmp_path / "b").segments()) > 2
    with AuditLogger(log, 1, memory=memory) as made:
        assert made.archive_old_entries(tmp_path / "away")["archived"] == 0  # the first ten are of today
    with AuditLogger(log, 0, memory=memory) as made:
        assert made.archive_old_entries(tmp_path / "away")["archived"]
    back_up(log, tmp_path / "b", memory=memory)
    assert [s.start for s in SegmentStore(tmp_path / "b").segments()] == [s.start for s in SegmentStore(log).segments()]
    assert code(tmp_path / "b", vkey(log)) == 0
    back_up(log, tmp_path / "c", memory=memory)
    assert code(tmp_path / "c", vkey(log)) == 0


def test_no_room_and_no_right_to_write_are_said(log: Path, memory: Memory, tmp_path: Path) -> None:
    from ..faults.disks import FAILED, FaultDisk

    with pytest.raises(DiskFull, match="goes on"):
        back_up(log, tmp_path / "b", memory=memory, disk=FaultDisk(12, FAILED, error=28))
    with pytest.raises(ReadOnly):
        back_up(log, tmp_path / "b", memory=memory, disk=FaultDisk(12, FAILED, error=30))
    back_up(log, tmp_path / "b", memory=memory)
    assert code(tmp_path / "b", vkey(log)) == 0


# -- as evidence -----------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_a_link_to_elsewhere_is_left_out_and_named(log: Path, memory: Memory, tmp_path: Path) -> None:
    """A backup is often run by somebody who may read more than who writes to the log."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/id_ed25519").write_text("secret")
    (log / "quarantine").symlink_to(tmp_path / "private")
    (copied,) = back_up(log, tmp_path / "copy", memory=memory)
    assert "quarantine" in copied.left_out
    assert not [p for p in (tmp_path / "copy").rglob("*") if p.name == "id_ed25519"]


def test_evidence_leaves_keys_within_the_log_out_unless_asked(log: Path, tmp_path: Path) -> None:
    log.with_name(f"{log.name}.keys").rename(log / "secrets")
    settings = (log / "log.toml").read_text()
    changed = settings.replace(f'keys = "../{log.name}.keys"', 'keys = "secrets"')
    assert changed != settings
    (log / "log.toml").write_text(changed)
    (tmp_path / "out").mkdir()
    without = copy_evidence(log, tmp_path / "out")
    assert not list(Path(without.path).rglob("*.key")) and any("private keys" in text for text in without.not_copied)
    assert list(Path(copy_evidence(log, tmp_path / "out", with_keys=True).path).rglob("log.key"))


def test_evidence_is_every_byte_and_stock_tools_check_it(log: Path, tmp_path: Path) -> None:
    segment = log / "segments/00000000000000000000.jsonl"
    segment.write_bytes(segment.read_bytes()[:300] + b"altered" + segment.read_bytes()[307:])
    (log / "checkpoint").write_bytes(b"\xff\xfe")
    os.mkfifo(log / "pipe")
    (log / "link").symlink_to("/etc/passwd")
    (log / "a\nb\\c").write_bytes(b"odd name")
    (log / os.fsdecode(b"latin\xe9")).write_bytes(b"no utf-8")
    (tmp_path / "usb").mkdir()
    found = copy_evidence(log, tmp_path / "usb")
    folder = Path(found.path)
    for path in (p for p in log.rglob("*") if p.is_file() and not p.is_symlink()):
        assert (folder / "audit_log" / path.relative_to(log)).read_bytes() == path.read_bytes()
    assert not (folder / "audit_log/link").exists()
    assert sorted(m.split(":")[0] for m in found.not_copied) == ["audit_log/link", "audit_log/pipe"]
    assert not list(tmp_path.rglob("evidence-*/*.keys"))
    checked = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert len(checked.stdout.splitlines()) == found.files + 1
    (folder / "audit_log/log.toml").write_bytes(b"x")
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False).returncode == 1


def test_evidence_with_keys_and_older_parts_and_twice(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "audit_log.until-5")
    (tmp_path / "usb").mkdir()
    found = [copy_evidence(log, tmp_path / "usb", with_keys=True), copy_evidence(log, tmp_path / "usb", with_keys=True)]
    assert found[0].path != found[1].path
    assert {p.name for p in Path(found[0].path).iterdir()} == {
        "audit_log", "audit_log.keys", "audit_log.until-5", "manifest.jsonl", "SHA256SUMS"}  # fmt: skip


# -- the command -------------------------------------------------------------------------------------------------------------------


def test_the_command(tally, log: Path, tmp_path: Path) -> None:  # noqa: F811
    ran = tally("backup", tmp_path / "b", "--log", log)
    assert ran.code == 0
    assert "copied and verified: 11 entries" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100
    assert tally("backup", tmp_path / "b", "--log", log, "--json").json["copies"][0]["had"] == 11
    loud = tally("backup", tmp_path / "b", "--log", log, "--with-keys")
    assert "PRIVATE KEYS ARE IN THIS BACKUP" in loud.out
    assert tally("backup", log / "x", "--log", log).code == 2
    (tmp_path / "usb").mkdir()
    assert "sha256sum -c" in tally("backup", "--as-evidence", tmp_path / "usb", "--log", log).out


def test_a_copy_is_made_and_taken_up_again_while_a_folder_outside_keeps_more(tally, log: Path, memory: Memory, tmp_path: Path) -> None:  # noqa: F811
    """An anchor of the log is an anchor in the copy: what went there later is no fault of the copy."""
    (tmp_path / "nas").mkdir()
    assert tally("anchor", "add", "nas", "--folder", tmp_path / "nas", "--log", log)[0] == 0
    back_up(log, tmp_path / "copy", memory=memory)
    add(log, memory, 2)
    assert tally("publish", log)[0] == 0
    assert verify_log(log, memory=memory).exit_code == 0
    older = verify_log(tmp_path / "copy", memory=memory)
    assert older.exit_code == 5 and not [f for f in older.findings if f.code == 6]
    assert any("folder nas keeps" in text for text in older.seen)
    stranger = verify_log(tmp_path / "copy", memory=Memory(None), vkey=vkey(log))
    assert stranger.exit_code == 6 and "CUT OFF" in stranger.sentence  # whoever does not know the log sees that entries are missing
    shutil.rmtree(log)
    shutil.rmtree(f"{log}.keys")
    resume(log, reason="the disk died", source=tmp_path / "copy", memory=memory)
    after = verify_log(log, memory=memory)
    assert after.exit_code == 0 and "OF AN OLDER PART ARE LOST" in after.sentence
