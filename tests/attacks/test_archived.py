"""A log whose first segments have left on record: what stayed, what was kept of them, and the archive itself."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core import entry as ent
from tallystick.core.errors import AuditError
from tallystick.core.merkle import leaf_hash
from tallystick.core.note import SignerKey
from tallystick.memory import Memory
from tallystick.verification import verify_archive, verify_log

from .conftest import Built, Case, build, fill, keep_original, put_back, the_one
from .test_bytes import positions
from .test_index import editing


@pytest.fixture(scope="module")
def archived_built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    base = tmp_path_factory.mktemp("archived")
    folder, memory = base / "audit_log", Memory(base / "state")
    build(folder, memory)
    with AuditLogger(folder, memory=memory, retention_days=0) as log:
        assert log.archive_old_entries(base / "archive")["archived"] == 48
        fill(log, 40, 100)
    assert verify_log(folder, memory=memory).exit_code == 0
    return keep_original(folder, base / "state")


@pytest.fixture
def case(archived_built: Built) -> Case:
    return put_back(archived_built)


def archives(case: Case) -> list[Path]:
    return sorted((case.folder.parent / "archive").iterdir())


def test_whole(case: Case) -> None:
    verdict = case.check(0)
    first = int(Path(case.segments()[0]).stem)
    assert first >= 48
    assert len(case.segments()) >= 3
    assert any("archived on record" in text for text in verdict.not_proven)
    assert {w for s in verdict.spans if s.end <= first for w in s.words} >= {"hashes only", "archived"}
    for path in archives(case):
        if path.suffix == ".zst":
            assert verify_archive(path, memory=case.memory).exit_code == 0


def test_every_byte_of_the_key_lines(case: Case) -> None:
    """They name the key that signs: the lines are compared with their leaf hashes."""
    data = case.read("keylines.jsonl")
    for position in positions(data):
        case.flip("keylines.jsonl", position, 1 << (position % 8))
        verdict = case.verify()
        assert verdict.exit_code == 6, (position, verdict.issues)
        case.put("keylines.jsonl", data)
    case.check(0)


@pytest.mark.parametrize("change", ["gone", "empty", "no entry 0", "another key", "twice", "a line more"])
def test_key_lines_changed(case: Case, change: str) -> None:
    data = case.read("keylines.jsonl")
    lines = data.splitlines(keepends=True)
    if change == "gone":
        (case.folder / "keylines.jsonl").unlink()
    else:
        own = ent.decode(lines[0].removesuffix(b"\n").split(b" ", 1)[1])
        fields = {n: getattr(own, n) for n in ent.FIELD_NAMES}
        forged = SignerKey.generate(own.log).verifier.format()
        fields["details"] = {**own.details, "epoch_key": forged}
        more = {**fields, "event_type": "log.epoch_close", "details": {"next_key": forged}}
        case.put("keylines.jsonl", {
            "empty": b"", "no entry 0": b"".join(lines[1:]), "twice": lines[0] + data,
            "another key": b"0 " + ent.encode(ent.Fields(**fields)) + b"\n" + b"".join(lines[1:]),
            "a line more": lines[0] + b"5 " + ent.encode(ent.Fields(**more)) + b"\n" + b"".join(lines[1:]),
        }[change])  # fmt: skip
    assert case.verify().exit_code == 6


def test_a_line_of_the_archived_range_in_tree_0(case: Case) -> None:
    """Nothing is left there but hashes: one that is altered no longer gives the root."""
    case.flip("tree/0", 5 * 32)
    assert case.verify().exit_code == 6


def test_a_further_segment_taken_away(case: Case) -> None:
    """More is gone than the record says; with the record itself (it stood there) all of the prefix is unexplained."""
    first, second = (int(Path(f).stem) for f in case.segments()[:2])
    (case.folder / case.segments()[0]).unlink()
    missing = {(f.index, f.end) for f in case.verify().findings if f.issue == "missing"}
    assert {(first, second), (0, second)} & missing
    assert case.verify().exit_code == 6


def test_a_line_that_stayed(case: Case) -> None:
    index = int(Path(case.segments()[0]).stem) + 4
    line = case.replace_line(index, case.line(index).data.replace(b'"actor":"', b'"actor":"x'))
    found = the_one(case.check(6, ("checksum_mismatch", index)), "checksum_mismatch")
    assert (found.file, found.offset) == (line.file, line.offset)


def test_rows_of_what_left_cannot_stand_for_what_stayed(case: Case) -> None:
    start = int(Path(case.segments()[0]).stem)
    index = start + 4
    with AuditLogger(case.folder, memory=case.memory) as log:
        event_id = log.entry(index).event_id
    with editing(case) as connection:
        connection.execute("UPDATE ids SET idx = 5 WHERE idx = ?", (index,))
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert log.entry(event_id).index == index
    assert ("index_mismatch", index) in {(f.issue, f.index) for f in case.verify().findings}
    with editing(case) as connection:
        connection.execute("UPDATE ids SET idx = ? WHERE idx = 5", (index,))
        connection.execute("DELETE FROM blocks WHERE first = 0")
        connection.execute("INSERT INTO blocks SELECT 0, segment, offset, earliest, latest, ends, counts FROM blocks WHERE first = ?", (start,))
    assert ("index_mismatch", 0) in {(f.issue, f.index) for f in case.verify().findings}
    with AuditLogger(case.folder, memory=case.memory) as log:
        assert log.entry(event_id).index == index
        with pytest.raises(KeyError):
            log.entry(5)


def test_a_checkpoint_of_before_is_still_compared(case: Case) -> None:
    """Size and root from when nothing had left: proven from the hashes alone."""
    size = 20
    case.check(0)
    from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
    from tallystick.core.tiles import root_at
    from tallystick.keys import KeyFolder
    from tallystick.store.segments import SegmentStore

    with closing(SegmentStore(case.folder)) as store:
        root = root_at(store.hashes, size)
    key = KeyFolder(case.keys).log_key()
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    case.check(0, checkpoint=sign_checkpoint(Checkpoint(origin, size, root), key))
    case.check(6, ("replaced", 0), checkpoint=sign_checkpoint(Checkpoint(origin, size, leaf_hash(b"x")), key))


def test_every_byte_class_of_an_archive(case: Case, tmp_path: Path) -> None:
    """A flipped bit is an error of ours or 6, never 0 and never a traceback."""
    for number, path in enumerate(archives(case)):
        if path.suffix != ".zst":
            continue
        folder = tmp_path / str(number)
        shutil.copytree(path.parent, folder)
        data = path.read_bytes()
        copy = folder / path.name
        copy.chmod(0o600)
        for position in positions(data):
            flipped = bytearray(data)
            flipped[position] ^= 1 << (position % 8)
            copy.write_bytes(flipped)
            try:
                verdict = verify_archive(copy, memory=case.memory)
            except AuditError:
                continue
            assert verdict.exit_code == 6, position
        for cut in (0, 1, len(data) // 2, len(data) - 1):
            copy.write_bytes(data[:cut])
            try:
                assert verify_archive(copy, memory=case.memory).exit_code == 6
            except AuditError:
                pass


def test_a_forged_archive_that_agrees_with_its_manifest(case: Case, tmp_path: Path) -> None:
    """Compared with the hashes in the log, which were signed."""
    path = next(p for p in archives(case) if p.suffix == ".zst")
    other_log, other_memory = tmp_path / "other" / "audit_log", Memory(tmp_path / "other" / "state")
    (tmp_path / "other").mkdir()
    build(other_log, other_memory)
    with AuditLogger(other_log, memory=other_memory, retention_days=0) as log:
        log.archive_old_entries(tmp_path / "forged")
    theirs = next(p for p in sorted((tmp_path / "forged").iterdir()) if p.suffix == ".zst")
    verdict = verify_archive(theirs, memory=case.memory)
    assert verdict.exit_code == 3  # of a log that is not known here
    assert verify_archive(path, memory=case.memory).exit_code == 0
