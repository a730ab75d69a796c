"""The day the machine died: restored backups, lost keys, and how the log goes on without pretending."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.backup import back_up
from tallystick.core.errors import ConfigError, Malformed, StateUnknown, StoreError, VerificationError
from tallystick.core.note import SignerKey
from tallystick.family import check_links, is_left, is_signed_link, parts
from tallystick.memory import Known, Memory
from tallystick.opening import read_genesis
from tallystick.resume import STEPS, resume
from tallystick.verification import trust, verify_log

from ..cli.conftest import tally  # noqa: F401
from ..faults.disks import Died, FaultDisk, attempt, tries
from ..faults.judge import event


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state")


@pytest.fixture(autouse=True)
def _writable_again(tmp_path: Path):
    """Older parts are read only; what clears up afterwards is not."""
    yield
    for where, _, _ in os.walk(tmp_path):
        os.chmod(where, 0o700)


def write(log: Path, memory: Memory, count: int, **more) -> list[str]:
    with AuditLogger(log, memory=memory, create=False) as opened:
        return [opened.log(**event(n, **more)) for n in range(count)]


@pytest.fixture
def log(tmp_path: Path, memory: Memory) -> Path:
    """Seven entries of which a backup has four: the backup was put back."""
    path = tmp_path / "audit_log"
    AuditLogger(path, memory=memory).close()
    write(path, memory, 3, payloads={"a": "kept"})
    back_up(path, tmp_path / "backup", memory=memory)
    write(path, memory, 3)
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "backup", path)
    return path


def test_a_restored_backup_refuses_names_resume_and_goes_on(log: Path, memory: Memory) -> None:
    before = {p.relative_to(log): p.read_bytes() for p in log.rglob("*") if p.is_file()}
    with pytest.raises(StateUnknown, match="tally resume"):
        write(log, memory, 1)
    done = resume(log, reason="disk failed", memory=memory)
    assert (done.part, done.left_size, done.lost, done.signed) == (2, 4, (4, 7), True)
    assert Path(done.left) == log.with_name("audit_log.until-4")
    after = {p.relative_to(done.left): p.read_bytes() for p in Path(done.left).rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if k in before} == before
    assert set(after) - set(before) <= {Path("lock"), Path("index.db"), Path("index.lock"), Path("index.db-journal"), Path("reserve")}
    write(log, memory, 2)
    verdict = verify_log(log, memory=memory)
    assert (verdict.exit_code, verdict.lost_on_record) == (0, 3), verdict.issues
    assert "LOST" in verdict.sentence
    assert verify_log(log, memory=memory).exit_code == 0


def test_what_was_cut_or_altered_before_stays_so_and_is_on_record(tmp_path: Path, memory: Memory) -> None:
    """Lost is what came after its end; what is missing or altered below that was not lost by resuming."""
    path = tmp_path / "audit_log"
    AuditLogger(path, memory=memory).close()
    write(path, memory, 5)
    segment = next((path / "segments").iterdir())
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-2]))
    done = resume(path, reason="cut", memory=memory)
    assert "MISSING" in done.found
    with AuditLogger(path, memory=memory, create=False) as opened:
        assert opened.entry(0).details["predecessor"]["damage"] == done.found
    assert verify_log(path, memory=memory).exit_code == 6


def test_entry_0_of_the_successor_says_what_it_must(log: Path, memory: Memory) -> None:
    old = read_genesis(log)
    resume(log, reason="disk failed", memory=memory)
    with AuditLogger(log, memory=memory) as opened:
        details = opened.entry(0).details
    told = details["predecessor"]
    assert (told["origin"], told["vkey"], told["size"], told["folder"]) == (old.origin, old.vkey.format(), 4, "audit_log.until-4")
    assert bytes.fromhex(told["root"]) == check_root(log.with_name("audit_log.until-4"), 4)
    assert told["known_elsewhere"]["size"] == 7
    assert told["lost"] == {"first": 4, "end": 7}
    assert details["reason"] == "disk failed"
    assert details["user"]
    new = read_genesis(log)
    assert new.origin.startswith(old.origin + "/r2-")
    assert new.vkey.key_id != old.vkey.key_id


def check_root(folder: Path, size: int) -> bytes:
    """RFC 6962 §2.1, by the slow program."""
    from hashlib import sha256

    def mth(lines: list[bytes]) -> bytes:
        if len(lines) == 1:
            return sha256(b"\0" + lines[0]).digest()
        k = 1 << (len(lines) - 1).bit_length() - 1
        return sha256(b"\1" + mth(lines[:k]) + mth(lines[k:])).digest()

    return mth((folder / "segments" / f"{0:020d}.jsonl").read_bytes().split(b"\n")[:size])


def test_lost_keys(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 3, payloads={"a": "kept"})
    assert verify_log(log, memory=memory).exit_code == 0
    shutil.rmtree(tmp_path / "audit_log.keys")
    done = resume(log, reason="key disk died", memory=memory)
    assert (done.left_size, done.lost, done.signed) == (4, (4, 4), False)
    write(log, memory, 1)
    assert verify_log(log, memory=memory).exit_code == 0


def test_where_only_the_key_of_the_epoch_is_lost_the_log_itself_goes_on(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 3)
    (tmp_path / "audit_log.keys/epoch-0.key").unlink()
    with pytest.raises(StoreError, match="tally key recover"):
        resume(log, reason="x", memory=memory)
    assert log.is_dir()
    assert len(parts(log)) == 1


def test_a_backup_of_a_resumed_log_takes_the_older_parts_along(log: Path, memory: Memory, tmp_path: Path) -> None:
    resume(log, reason="disk failed", memory=memory)
    write(log, memory, 2)
    (tmp_path / "usb").mkdir()
    for more in range(2):
        copies = back_up(log, tmp_path / "usb/copy", memory=memory)
        assert [Path(c.path).name for c in copies] == ["audit_log.until-4", "copy"]
        key = read_genesis(log).vkey.format()
        verdict = verify_log(tmp_path / "usb/copy", memory=Memory(None), vkey=key)
        assert (verdict.exit_code, verdict.lost_on_record) == (0, 3), verdict.issues
        assert len(verdict.older_parts) == 2
        write(log, memory, 1)
    with AuditLogger(tmp_path / "usb/copy", memory=Memory(tmp_path / "s2"), create=False) as copy:
        assert [e.part for e in copy.entries()] == [1, 1, 1, 0, 0, 0]


def test_keys_on_a_file_system_of_their_own(tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point cannot be renamed: what is empty is taken, what is not is refused."""
    keys = tmp_path / "audit_log.keys"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == keys)
    rename = os.rename

    def within(source, target):
        if keys in (Path(source), Path(target)) or (keys in Path(source).parents) != (keys in Path(target).parents):
            raise OSError(18, "Invalid cross-device link", str(source), None, str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", within)
    keys.mkdir(mode=0o700)
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    assert {p.name for p in keys.iterdir()} == {"log.key", "epoch-0.key", "mark"}
    write(log, memory, 2)
    with pytest.raises(StoreError, match="mount point"):
        resume(log, reason="stolen", memory=memory, new_keys=True)
    for path in keys.iterdir():
        path.unlink()
    done = resume(log, reason="the key disk died", memory=memory)
    assert done.left_size == 3
    write(log, memory, 1)
    assert verify_log(log, memory=memory).exit_code == 0


def test_lines_behind_the_head_stay_and_are_named(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 3)
    kept = (log / "checkpoint").read_bytes()
    write(log, memory, 2)
    (log / "checkpoint").write_bytes(kept)
    shutil.rmtree(tmp_path / "audit_log.keys")
    done = resume(log, reason="keys lost", memory=memory)
    assert done.left_size == 4
    verdict = verify_log(log, memory=memory)
    assert verdict.exit_code == 0, verdict.issues
    assert any("1#4 – 1#5: unsigned" in words for words in verdict.older_parts)


def test_a_log_that_is_fine_is_left_alone_unless_new_keys_are_asked_for(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 2)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(StoreError, match="--new-keys"):
        resume(log, reason="just so", memory=memory)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    done = resume(log, reason="a laptop was stolen", memory=memory, new_keys=True)
    assert (done.left_size, done.lost) == (3, (3, 3))
    assert verify_log(log, memory=memory).exit_code == 0


def test_nobody_writes_to_an_older_part_any_more(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 2)
    done = resume(log, reason="stolen", memory=memory, new_keys=True)
    assert is_left(Path(done.left)) == str(log)
    with pytest.raises(StoreError, match="older part"):
        write(Path(done.left), memory, 1)
    with pytest.raises(StoreError, match="older part"):
        resume(Path(done.left), reason="x", memory=memory)
    assert not [p for p in Path(done.left).rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o222]


def test_twice_from_the_same_backup(log: Path, memory: Memory, tmp_path: Path) -> None:
    resume(log, reason="first", memory=memory)
    ids = write(log, memory, 2)
    done = resume(log, reason="second", memory=memory, new_keys=True)
    assert done.part == 3
    write(log, memory, 1)
    family = parts(log)
    assert [p.number for p in family] == [1, 2, 3]
    assert [p.folder.name for p in family] == ["audit_log.until-4", "audit_log.until-3", "audit_log"]
    assert check_links(family) == []
    assert verify_log(log, memory=memory).exit_code == 0
    assert read_genesis(log).origin.count("/r") == 1
    assert ids


def test_a_new_machine_takes_a_copy(log: Path, memory: Memory, tmp_path: Path) -> None:
    new = tmp_path / "new machine/audit_log"
    new.parent.mkdir()
    fresh = Memory(tmp_path / "new state")
    with pytest.raises(StoreError, match="Which of them"):
        resume(log, reason="x", memory=fresh, source=tmp_path / "backup")
    done = resume(new, reason="new machine", memory=fresh, source=tmp_path / "backup")
    assert (done.left_size, Path(done.left).parent) == (4, new.parent)
    assert (tmp_path / "backup/log.vkey").exists()
    write(new, fresh, 1)
    assert verify_log(new, memory=fresh).exit_code == 0


def test_a_new_machine_with_the_keys_of_the_backup_opens_old_contents_and_signs_the_link(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    (named,) = write(log, memory, 1, payloads={"a": "kept"})
    back_up(log, tmp_path / "backup", memory=memory, with_keys=True)
    (tmp_path / "new").mkdir()
    done = resume(tmp_path / "new/audit_log", reason="new machine", memory=Memory(tmp_path / "s2"), source=tmp_path / "backup")
    assert done.signed
    assert not list(Path(done.left_keys).glob("epoch-*"))
    with AuditLogger(tmp_path / "new/audit_log", memory=Memory(tmp_path / "s2")) as opened:
        assert opened.open_payload(named, "a") == b"kept"


@pytest.mark.parametrize("with_keys", [False, True])
def test_the_log_is_gone_and_its_keys_are_not(tmp_path: Path, memory: Memory, with_keys: bool) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 3)
    (tmp_path / "usb").mkdir()
    back_up(log, tmp_path / "usb" / "audit_log", memory=memory, with_keys=with_keys)
    back_up(log, tmp_path / "beside", memory=memory)
    write(log, memory, 2)
    mark = (tmp_path / "audit_log.keys" / "mark").read_bytes()
    shutil.rmtree(log)
    stranger = Memory(tmp_path / "other state")
    done = resume(log, reason="the disk of the log died", source=tmp_path / ("usb/audit_log" if with_keys else "beside"), memory=stranger)
    assert done.signed and (Path(done.left_keys) / "mark").read_bytes() == mark
    assert done.lost == (4, 6)  # the mark beside the keys knew
    write(log, stranger, 1)
    after = verify_log(log, memory=stranger)
    assert after.exit_code == 0 and "2 OF AN OLDER PART ARE LOST" in after.sentence


def test_a_checkpoint_that_was_kept_tells_of_more_than_the_machine_knows(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 2)
    back_up(log, tmp_path / "backup", memory=memory)
    write(log, memory, 5)
    note = (log / "checkpoint").read_bytes()
    shutil.rmtree(log)
    shutil.rmtree(tmp_path / "audit_log.keys")
    shutil.copytree(tmp_path / "backup", log)
    with pytest.raises(VerificationError):
        resume(log, reason="x", memory=Memory(None), checkpoint=note.replace(b"\n8\n", b"\n9\n"))
    done = resume(log, reason="fire", memory=Memory(None), checkpoint=note)
    assert done.lost == (3, 8)


def test_a_checkpoint_of_an_older_part_is_told_where_it_can_be_checked(tally, log: Path, memory: Memory, tmp_path: Path) -> None:  # noqa: F811
    kept = tmp_path / "kept"
    kept.write_text(tally("checkpoint", log).out)
    done = resume(log, reason="disk failed", memory=memory)
    told = tally("verify", log, "--checkpoint", kept)
    assert told.code == 4 and f"tally verify {done.left} --checkpoint FILE" in told.out
    followed = tally("verify", done.left, "--checkpoint", kept, "--json").json  # 6: two entries of it are lost; the checkpoint is of it
    assert not [issue for issue in followed["issues"] if issue["issue"] == "malformed" or "checkpoint that you" in str(issue)]


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 1001])
def test_a_reason_is_one_line(log: Path, memory: Memory, reason: str) -> None:
    with pytest.raises(Malformed):
        resume(log, reason=reason, memory=memory)


def test_settings_whose_origin_cannot_be_replaced_are_refused_before_anything_changes(log: Path, memory: Memory, tmp_path: Path) -> None:
    text = (log / "log.toml").read_text()
    (log / "log.toml").write_text(text.replace("origin = ", "'origin' = "))
    with pytest.raises(ConfigError):
        resume(log, reason="x", memory=memory)
    assert sorted(p.name for p in tmp_path.glob("*audit_log*")) == ["audit_log", "audit_log.keys"]


# -- whom memory follows (STORAGE rule 22) -----------------------------------------------------------------------------------


def stranger(log: Path, folder: Path, size: int | None = None) -> Memory:
    """Another user who has verified the old part up to a size."""
    other = Memory(folder)
    if size is None:
        trust(log, other, None)
    else:
        genesis = read_genesis(log)
        other.put(log, Known(genesis.origin, genesis.vkey.format(), genesis.open().root.hex(), size, "00" * 32, 1))
    return other


def test_whoever_knows_the_old_key_follows_its_signature(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 2)
    other = stranger(log, tmp_path / "s2")
    resume(log, reason="stolen", memory=memory, new_keys=True)
    resume(log, reason="stolen again", memory=memory, new_keys=True)
    assert verify_log(log, memory=other).exit_code == 0
    assert other.get(log).vkey == read_genesis(log).vkey.format()


@pytest.mark.parametrize("how", ["no line", "a line by another key", "a line over another key", "a line over another size"])
def test_everything_else_at_a_known_path_is_another_log(tmp_path: Path, memory: Memory, how: str) -> None:
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 2)
    other, old = stranger(log, tmp_path / "s2"), read_genesis(log)
    resume(log, reason="stolen", memory=memory, new_keys=True)
    note = (log / "predecessor").read_bytes()
    text = note.split(b"\n\n")[0].decode() + "\n"
    from tallystick.core.note import sign
    from tallystick.keys import KeyFolder

    key = KeyFolder(tmp_path / "audit_log.keys.until-3").log_key()
    if how == "no line":
        (log / "predecessor").unlink()
    elif how == "a line by another key":
        (log / "predecessor").write_bytes(sign(text, SignerKey.generate(old.origin)))
    elif how == "a line over another key":
        (log / "predecessor").write_bytes(sign(text.replace(read_genesis(log).vkey.format(), old.vkey.format()), key))
    else:
        (log / "predecessor").write_bytes(sign(text.replace("\n3\n", "\n2\n"), key))
    family = parts(log)
    assert not is_signed_link(family[0], family[1])
    verdict = verify_log(log, memory=other)
    assert (verdict.exit_code, verdict.findings[0].issue) == (6, "replaced")
    assert other.get(log).vkey == old.vkey.format()
    assert verify_log(log, memory=memory).exit_code == 0  # who resumed follows what he wrote


def test_a_new_log_put_in_its_place_that_names_the_old_one_is_not_followed(tmp_path: Path, memory: Memory) -> None:
    """An attacker without the log key runs resume in a state folder of his own."""
    log = tmp_path / "audit_log"
    AuditLogger(log, memory=memory).close()
    write(log, memory, 2)
    (tmp_path / "audit_log.keys/log.key").unlink()
    resume(log, reason="mine now", memory=Memory(tmp_path / "attacker"), new_keys=True)
    assert verify_log(log, memory=memory).exit_code == 6


def test_whoever_has_seen_more_than_was_left_is_told(log: Path, memory: Memory, tmp_path: Path) -> None:
    other = stranger(log, tmp_path / "s2", size=6)
    resume(log, reason="disk failed", memory=memory)
    verdict = verify_log(log, memory=other)
    assert verdict.exit_code == 6
    assert any(f.issue == "rolled_back" and "6 entries" in f.text for f in verdict.findings)


# -- the links --------------------------------------------------------------------------------------------------------------


def test_a_part_that_is_missing_or_another_is_said_with_its_range(log: Path, memory: Memory, tmp_path: Path) -> None:
    resume(log, reason="disk failed", memory=memory)
    left = tmp_path / "audit_log.until-4"
    left.rename(tmp_path / "away")
    verdict = verify_log(log, memory=memory)
    assert verdict.exit_code == 6
    assert any(f.issue == "missing" and "1#0 – 1#3" in f.text for f in verdict.findings)
    AuditLogger(left, memory=Memory(None)).close()
    assert "it has the key" in parts(log)[0].why
    assert verify_log(log, memory=memory).exit_code == 6


def test_an_older_part_that_was_altered_is_found(log: Path, memory: Memory, tmp_path: Path) -> None:
    resume(log, reason="disk failed", memory=memory)
    segment = tmp_path / "audit_log.until-4/segments/00000000000000000000.jsonl"
    segment.chmod(0o600)
    segment.write_bytes(segment.read_bytes().replace(b"ana", b"eve", 1))
    verdict = verify_log(log, memory=memory)
    assert verdict.exit_code == 6
    assert any(f.text.startswith("part 1: entry #") for f in verdict.findings)


# -- killed anywhere ----------------------------------------------------------------------------------------------------------


def whole(log: Path, memory: Memory, *, lost: int) -> None:
    write(log, memory, 1)
    verdict = verify_log(log, memory=memory)
    assert (verdict.exit_code, verdict.lost_on_record) == (0, lost), verdict.issues
    assert len(parts(log)) == 2
    assert not [p for p in log.parent.iterdir() if p.name.startswith(".audit_log")]
    assert sorted(p.name for p in log.parent.glob("audit_log*")) == [
        "audit_log", "audit_log.keys", "audit_log.keys.until-4", "audit_log.until-4"]  # fmt: skip


@pytest.mark.parametrize("where", STEPS)
def test_killed_after_each_step_the_next_call_completes(log: Path, memory: Memory, where: str) -> None:
    def step(name: str) -> None:
        if name == where:
            raise Died(name)

    with pytest.raises(Died):
        resume(log, reason="disk failed", memory=memory, step=step)
    if where != "built":  # nobody makes a new log in its place meanwhile, known here or not
        if not log.exists():
            for other in (memory, Memory(None)):
                with pytest.raises(StoreError, match=r"resumed|is gone"):
                    AuditLogger(log, memory=other)
    done = resume(log, reason="disk failed", memory=memory)
    assert done.lost == (4, 7)
    whole(log, memory, lost=3)


@pytest.mark.parametrize("way", ["failed", "done but reported failed", "died before", "died after"])
def test_at_every_change_of_the_disk(log: Path, memory: Memory, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    saved = tmp_path / "saved"
    saved.mkdir()
    for name in ("audit_log", "audit_log.keys", "state"):
        shutil.copytree(tmp_path / name, saved / name)
    for disk in tries(FaultDisk, (way,)):
        for path in [p for p in tmp_path.iterdir() if "audit_log" in p.name or p.name == "state"]:
            subprocess.run(["chmod", "-R", "u+w", path], check=True)
            shutil.rmtree(path)
        for name in ("audit_log", "audit_log.keys", "state"):
            shutil.copytree(saved / name, tmp_path / name)
        attempt(lambda disk=disk: resume(log, reason="disk failed", memory=memory, disk=disk), StoreError)
        attempt(lambda: resume(log, reason="disk failed", memory=memory), StoreError)
        whole(log, memory, lost=3)


# -- the command ------------------------------------------------------------------------------------------------------------------


def test_the_command(tally, log: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("TALLY_STATE", str(memory.folder))
    assert tally("resume", log).code == 2
    ran = tally("resume", log, "--reason", "disk failed")
    assert ran.code == 0, ran.err
    assert "#4 – #6, 3 entries" in ran.out
    assert "BUT 3 OF AN OLDER PART ARE LOST" in " ".join(tally("verify", log).out.split())
    again = tally("resume", log, "--reason", "disk failed")
    assert (again.code, "nothing to resume" in again.err) == (2, True)
    assert tally("resume", log, "--reason", "stolen", "--new-keys", "--json").json["part"] == 3
