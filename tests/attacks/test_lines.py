"""Lines edited, deleted, swapped, duplicated, inserted; the tail; the head: each break named at its index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tallystick.core import entry as ent
from tallystick.core.note import SignerKey
from tallystick.keys import KeyFolder
from tallystick.logger import AuditLogger
from tallystick.memory import Memory
from tallystick.verification import trust, verify_log

from .conftest import Case, build, fill, the_one

EARLY, MIDDLE, LATE = 3, 20, -3  # first segment, a sealed one, the growing one


def _at(case: Case, which: int) -> int:
    return which % case.size


def _edited(line: bytes) -> bytes:
    assert b'"actor":"ana' in line
    return line.replace(b'"actor":"ana', b'"actor":"eve', 1)


@pytest.mark.parametrize("tree_too", [False, True])
@pytest.mark.parametrize("which", [EARLY, MIDDLE, LATE])
def test_edited(case: Case, which: int, tree_too: bool) -> None:
    index = _at(case, which)
    line = case.line(index)
    case.replace_line(index, _edited(line.data))
    if not tree_too:
        found = the_one(case.check(6, ("checksum_mismatch", index)), "checksum_mismatch")
        assert (found.file, found.offset) == (line.file, line.offset)
        assert found.event_id == ent.decode(line.data).event_id
        return
    # with the leaf hash changed as well nobody can say which line: the range is named, and nothing but the range
    case.replace_leaf(index, _edited(line.data))
    verdict = case.verify()
    assert verdict.exit_code == 6
    assert any(f.issue == "checksum_mismatch" and f.index <= index < f.end for f in verdict.findings if f.end)


def test_an_edited_line_of_another_length(case: Case) -> None:
    """What follows has moved in the file, and is not blamed for it."""
    line = case.line(MIDDLE)
    case.replace_line(MIDDLE, line.data.replace(b'"actor":"ana', b'"actor":"evelyn', 1))
    found = the_one(case.check(6, ("checksum_mismatch", MIDDLE)), "checksum_mismatch")
    assert (found.file, found.offset) == (line.file, line.offset)


def test_entry_0_edited(case: Case) -> None:
    case.replace_line(0, case.line(0).data.replace(b"created the log", b"created no log!"))
    case.check(6, ("checksum_mismatch", 0))


@pytest.mark.parametrize("which", [0, EARLY, MIDDLE, LATE, -1])
def test_deleted(case: Case, which: int) -> None:
    index = _at(case, which)
    line = case.line(index)
    case.change_lines(line.file, lambda lines: lines.pop(index - int(Path(line.file).stem)))
    found = the_one(case.check(6, ("missing", index)), "missing")
    assert (found.end, found.file) == (index + 1, line.file)


@pytest.mark.parametrize("which", [EARLY, MIDDLE, LATE])
def test_two_swapped(case: Case, which: int) -> None:
    """Either of the two is the one that moved."""
    index = _at(case, which)
    line = case.line(index)
    at = index - int(Path(line.file).stem)

    def swap(lines: list[bytes]) -> None:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]

    case.change_lines(line.file, swap)
    verdict = case.verify()
    assert verdict.exit_code == 6
    (found,) = verdict.findings
    assert found.issue == "order"
    assert found.index in (index, index + 1)
    assert found.file == line.file
    assert found.offset in {x.offset for x in case.lines() if x.index in (index, index + 1)}


@pytest.mark.parametrize("which", [EARLY, MIDDLE, LATE, -1])
def test_duplicated(case: Case, which: int) -> None:
    index = _at(case, which)
    line = case.line(index)
    at = index - int(Path(line.file).stem)
    case.change_lines(line.file, lambda lines: lines.insert(at, line.data))
    if index == case.size - 1:  # the copy lies beyond the head: not told from what a dying writer leaves
        found = the_one(case.check(3, ("missing", case.size)), "missing")
    else:
        found = the_one(case.check(6, ("duplicate", index)), "duplicate")
    assert (found.file, found.offset) == (line.file, line.offset + len(line.data) + 1)


def test_a_copy_in_another_segment(case: Case) -> None:
    """Found again although it stands in another file."""
    line, home = case.line(EARLY), case.line(MIDDLE)
    case.change_lines(home.file, lambda lines: lines.insert(MIDDLE - int(Path(home.file).stem), line.data))
    found = the_one(case.check(6, ("duplicate", EARLY)), "duplicate")
    assert (found.file, found.offset) == (home.file, home.offset)


def test_moved_to_another_segment(case: Case) -> None:
    line, home = case.line(EARLY), case.line(MIDDLE)
    case.change_lines(home.file, lambda lines: lines.insert(MIDDLE - int(Path(home.file).stem), line.data))
    case.change_lines(line.file, lambda lines: lines.pop(EARLY))
    found = the_one(case.check(6, ("missing", EARLY), ("order", EARLY)), "order")
    assert (found.file, found.offset) == (home.file, home.offset)


@pytest.mark.parametrize("which", [EARLY, MIDDLE, LATE])
def test_inserted_and_back_dated(case: Case, which: int) -> None:
    """A line that looks right in every way, dated between its neighbours."""
    index = _at(case, which)
    line = case.line(index)
    fields = ent.decode(line.data)
    forged = line.data.replace(fields.event_id.encode(), b"evt_" + b"0" * 32)
    ent.decode(forged)
    case.change_lines(line.file, lambda lines: lines.insert(index - int(Path(line.file).stem), forged))
    found = the_one(case.check(6, ("checksum_mismatch", index)), "checksum_mismatch")
    assert (found.file, found.offset) == (line.file, line.offset)


@pytest.mark.parametrize("tail", ["line", "half a line", "zeros", "own"])
def test_appended_beyond_the_head(case: Case, tail: str) -> None:
    """Nobody signed it, nobody denies it: exit 3 with its place."""
    last = case.lines()[-1]
    more = {
        "line": last.data.replace(b'"actor":"ana', b'"actor":"eve') + b"\n",
        "half a line": last.data[:50],
        "zeros": bytes(5000),
        "own": b"",
    }[tail]
    if tail == "own":
        own = ent.decode(case.line(0).data)
        fields = {n: getattr(own, n) for n in ent.FIELD_NAMES} | {
            "event_type": "log.epoch_close", "details": {"next_key": SignerKey.generate(own.log).verifier.format()}}  # fmt: skip
        more = ent.encode(ent.Fields(**fields)) + b"\n"
    case.put(last.file, case.read(last.file) + more)
    found = the_one(case.check(3, ("missing", case.size)), "missing")
    assert (found.file, found.offset) == (last.file, last.offset + len(last.data) + 1)
    assert any("unsigned tail" in text for text in case.verify().not_proven)


def test_bytes_after_the_last_line_of_a_sealed_segment(case: Case) -> None:
    """No complete line, so no line is wrong; still these are not the bytes that were sealed."""
    line = case.line(EARLY)
    following = int(Path(case.segments()[1]).stem)
    size = len(case.read(line.file))
    case.put(line.file, case.read(line.file) + b"more")
    found = the_one(case.check(6, ("checksum_mismatch", following)), "checksum_mismatch")
    assert (found.file, found.offset) == (line.file, size)


def _ugly(line: bytes) -> dict[str, bytes]:
    loaded = json.loads(line)
    return {
        "spaces": json.dumps(loaded, ensure_ascii=False).encode(),
        "key order": json.dumps(dict(reversed(list(loaded.items()))), ensure_ascii=False, separators=(",", ":")).encode(),
        "escapes": line.replace("ü".encode(), b"\\u00fc"),
        "slash": line.replace(b"crm/", b"crm\\/"),
        "integer as float": line.replace(b'"id":20', b'"id":20.0'),
        "exponent": line.replace(b'"id":20', b'"id":2e1'),
        "duplicate key": line.replace(b'"id":20', b'"id":20,"id":20'),
        "duplicate field": line.replace(b'"outcome":', b'"outcome":"success","outcome":'),
        "carriage return": line + b"\r",
        "trailing space": line + b" ",
        "byte order mark": b"\xef\xbb\xbf" + line,
        "null field": line[:-1] + b',"trace_id":null}',
    }


@pytest.mark.parametrize("spelling", sorted(_ugly(b'{"a":1}')))
def test_other_spellings_of_the_same_json(case: Case, spelling: str) -> None:
    line = next(x for x in case.lines() if b'"id":20,' in x.data)
    changed = _ugly(line.data)[spelling]
    assert changed != line.data
    case.replace_line(line.index, changed)
    found = the_one(case.check(6, ("checksum_mismatch", line.index)), "checksum_mismatch")
    assert (found.file, found.offset) == (line.file, line.offset)


@pytest.mark.parametrize("spelling", sorted(_ugly(b'{"a":1}')))
def test_other_spellings_signed_with_the_keys(case: Case, spelling: str) -> None:
    """Whoever has the keys still cannot make verify accept a line that is not in the grammar; memory names the rest."""
    line = next(x for x in case.lines() if b'"id":20,' in x.data)
    case.replace_line(line.index, _ugly(line.data)[spelling])
    case.resign(mark=True)
    verdict = case.verify()
    assert verdict.exit_code == 6
    assert ("checksum_mismatch", line.index) in {(f.issue, f.index) for f in verdict.findings}
    assert any(f.issue == "replaced" for f in verdict.findings)


# -- segments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_segment_removed(case: Case, number: int) -> None:
    files = case.segments()
    file = files[number]
    start = int(Path(file).stem)
    end = int(Path(files[number + 1]).stem) if number != -1 else case.size
    (case.folder / file).unlink()
    verdict = case.verify()
    assert verdict.exit_code == 6
    missing = [(f.index, f.end) for f in verdict.findings if f.issue == "missing"]
    assert (start, end) in missing
    assert {f.issue for f in verdict.findings} == {"missing"}


def test_all_segments_removed(case: Case) -> None:
    for file in case.segments():
        (case.folder / file).unlink()
    verdict = case.verify()
    assert verdict.exit_code == 6
    assert any(f.issue == "missing" and f.index == 0 for f in verdict.findings), verdict.issues


def test_two_segments_exchanged(case: Case) -> None:
    one, two = case.segments()[1:3]
    a, b = case.read(one), case.read(two)
    case.put(one, b)
    case.put(two, a)
    verdict = case.verify()
    assert verdict.exit_code == 6
    start, _, end = (int(Path(f).stem) for f in case.segments()[1:4])
    touched = {i for f in verdict.findings if f.index is not None for i in range(f.index, f.end or f.index + 1)}
    assert touched == set(range(start, end)), verdict.issues
    assert {f.issue for f in verdict.findings} <= {"checksum_mismatch", "missing", "order"}


def test_a_segment_renamed(case: Case) -> None:
    file = case.segments()[2]
    start = int(Path(file).stem)
    (case.folder / file).rename(case.folder / f"segments/{start + 1:020d}.jsonl")
    verdict = case.verify()
    assert verdict.exit_code == 6
    assert any(f.index == start for f in verdict.findings), verdict.issues
    assert min(f.index for f in verdict.findings if f.index is not None) == start


@pytest.mark.parametrize("beyond", [1, 10**9, 10**19, 10**20 - 1])
def test_a_segment_beyond_the_end(case: Case, beyond: int) -> None:
    last = case.segments()[-1]
    (case.folder / last).rename(case.folder / f"segments/{case.size + beyond if beyond == 1 else beyond:020d}.jsonl")
    verdict = case.verify()
    assert verdict.exit_code == 6
    assert (int(Path(last).stem), case.size) in [(f.index, f.end) for f in verdict.findings if f.issue == "missing"]


# -- the head ----------------------------------------------------------------------------------------------------------


def test_the_checkpoint_dropped(case: Case) -> None:
    (case.folder / "checkpoint").unlink()
    assert the_one(case.check(6, ("missing", None)), "missing").file == "checkpoint"


def test_the_signature_stripped(case: Case) -> None:
    text = case.read("checkpoint").split(b"\n\n")[0]
    for rest in (b"", b"\n", b"\n\n", b"\n\n\n"):
        case.put("checkpoint", text + rest)
        assert the_one(case.check(6, ("bad_signature", None)), "bad_signature").file == "checkpoint"


@pytest.mark.parametrize("who", ["a stranger", "the log key", "another epoch"])
def test_signed_by_the_wrong_key(case: Case, who: str) -> None:
    """The stable key signs what leaves, never a head."""
    text = (case.read("checkpoint").split(b"\n\n")[0] + b"\n").decode()
    from tallystick.core.note import sign

    origin = text.split("\n")[0]
    key = KeyFolder(case.keys).log_key() if who == "the log key" else SignerKey.generate(origin)
    case.put("checkpoint", sign(text, key))
    case.check(6, ("bad_signature", None))


def test_an_edit_and_a_bad_signature_are_both_named(case: Case) -> None:
    line = case.line(MIDDLE)
    case.replace_line(MIDDLE, _edited(line.data))
    case.flip("checkpoint", len(case.read("checkpoint")) - 20)
    verdict = case.verify()
    assert {("bad_signature", None), ("checksum_mismatch", MIDDLE)} <= {(f.issue, f.index) for f in verdict.findings}


@pytest.mark.parametrize("mark", [False, True])
def test_the_tail_cut_and_signed_again(case: Case, mark: bool) -> None:
    """With the keys, mark and all: only this user's memory is left to say so."""
    size = case.size
    last = case.segments()[-1]
    case.change_lines(last, lambda lines: lines.__delitem__(slice(-2, None)))
    case.resign(mark=mark)
    found = [f for f in case.check(6, ("rolled_back", size - 2)).findings if "your memory" in f.text]
    assert [(f.index, f.end) for f in found] == [(size - 2, size)]


def test_the_tail_cut_without_a_key(case: Case) -> None:
    """An old head, kept by the attacker, over the lines that belong to it: everything is signed, but it is old."""
    fresh = case.snapshot(case.folder.with_name("older"))
    before = case.size
    with AuditLogger(case.folder, memory=case.memory) as log:
        fill(log, 5, 1000)
    assert case.check(0).tree_size == before + 5
    keys = case.keys.with_name("kept.keys")
    shutil.rmtree(keys, ignore_errors=True)
    shutil.copytree(case.keys, keys)
    case.replace_with(fresh)
    shutil.rmtree(case.keys)
    shutil.copytree(keys, case.keys)  # the mark was not put back
    verdict = case.check(6, ("rolled_back", before))
    assert {"your memory" in f.text for f in verdict.findings} == {True, False}  # the mark says so too
    shutil.rmtree(fresh)
    shutil.rmtree(fresh.with_name("older.keys"))


# -- the whole folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def grown(case: Case) -> tuple[Case, Path, int]:
    """The log after five more entries, and the copy that was taken before them."""
    older = case.snapshot(case.folder.with_name("older"))
    size = case.size
    with AuditLogger(case.folder, memory=case.memory) as log:
        fill(log, 5, 1000)
    assert case.check(0).tree_size == size + 5
    yield case, older, size
    shutil.rmtree(older)
    shutil.rmtree(older.with_name("older.keys"))


def test_an_older_copy_at_the_known_path(grown: tuple[Case, Path, int]) -> None:
    case, older, size = grown
    case.replace_with(older)
    found = the_one(case.check(6, ("rolled_back", size)), "rolled_back")
    assert (found.index, found.end) == (size, size + 5)


@pytest.mark.parametrize("own_keys", [True, False])
def test_an_older_copy_at_another_path(grown: tuple[Case, Path, int], own_keys: bool) -> None:
    """Also where its log.toml still leads to the keys of the newer one, whose mark is ahead."""
    case, older, _ = grown
    if own_keys:
        config = older / "log.toml"
        config.write_bytes(config.read_bytes().replace(b"audit_log.keys", b"older.keys"))
    verdict = verify_log(older, memory=case.memory)
    assert verdict.exit_code == 5, verdict.issues
    assert {f.issue for f in verdict.findings} == {"older_copy", "unknown"}


def test_an_altered_older_copy_at_another_path(grown: tuple[Case, Path, int]) -> None:
    """Shorter and not the same history: not merely old."""
    case, older, _ = grown
    copy = Case(older, case.memory)
    copy.replace_line(MIDDLE, _edited(copy.line(MIDDLE).data))
    copy.resign(mark=True)
    assert verify_log(older, memory=case.memory).exit_code == 6


def test_a_fork_at_another_path(grown: tuple[Case, Path, int]) -> None:
    """The copy went on by itself: as long as the known one, but another history."""
    case, older, _ = grown
    config = older / "log.toml"
    config.write_bytes(config.read_bytes().replace(b"audit_log.keys", b"older.keys"))
    with AuditLogger(older, memory=Memory(None)) as log:
        fill(log, 9, 2000)
    verdict = verify_log(older, memory=case.memory)
    assert verdict.exit_code == 6
    assert any(f.issue == "replaced" for f in verdict.findings)


def test_log_and_key_replaced_together(case: Case, tmp_path: Path) -> None:
    build(tmp_path / "audit_log", Memory(tmp_path / "state"), 48)
    case.replace_with(tmp_path / "audit_log")
    found = the_one(case.check(6, ("replaced", None)), "replaced")
    assert found.file == "log.vkey"


def test_the_same_origin_with_another_key_elsewhere(case: Case, tmp_path: Path) -> None:
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    from tallystick.opening import make_log

    make_log(tmp_path / "fake", Memory(None), retention_days=365, origin=origin)
    verdict = verify_log(tmp_path / "fake", memory=case.memory)
    assert verdict.exit_code == 6
    assert {f.issue for f in verdict.findings} == {"replaced", "unknown"}


def test_an_unknown_log_is_not_judged(case: Case) -> None:
    nobody = Memory(case.folder.with_name("nobody"))
    verdict = verify_log(case.folder, memory=nobody)
    assert verdict.exit_code == 3
    key = case.read("log.vkey").split(b"\n")[0].decode()
    assert key in verdict.findings[0].text
    assert nobody.all() == {}
    assert verify_log(case.folder, memory=nobody, vkey=key).exit_code == 0
    assert nobody.all() == {}
    assert trust(case.folder, Memory(case.folder.with_name("nobody2")), key).exit_code == 0


def test_the_wrong_key_given(case: Case) -> None:
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    other = SignerKey.generate(origin).verifier.format()
    case.check(6, ("replaced", None), vkey=other)


def test_the_log_is_gone(case: Case) -> None:
    shutil.rmtree(case.folder)
    case.check(6, ("missing", None))


def test_keys_memory_and_log_in_the_hands_of_the_attacker(case: Case) -> None:
    """Nothing on the machine can tell; the checkpoint that was kept elsewhere does."""
    kept, vkey = case.read("checkpoint"), case.read("log.vkey").split(b"\n")[0].decode()
    case.replace_line(MIDDLE, _edited(case.line(MIDDLE).data))
    case.resign(mark=True)
    (case.folder / "index.db").unlink()
    path = case.memory.path
    assert path is not None
    text = json.loads(path.read_text())
    root = json.loads(json.dumps(case.verify(content=True).root))
    for known in text.values():
        known["root"] = root
    path.write_text(json.dumps(text))
    case.check(0)
    case.check(6, ("replaced", 0), checkpoint=kept)
    case.check(6, ("replaced", 0), checkpoint=kept, vkey=vkey)
    case.check(0, vkey=vkey)


def _rewritten_without_a_key(case: Case) -> None:
    """All lines anew under an epoch key of the attacker's, which his entry 0 names; ``log.vkey`` is the true one."""
    first = ent.decode(case.line(0).data)
    key = SignerKey.generate(first.log)
    fields = {n: getattr(first, n) for n in ent.FIELD_NAMES}
    fields["details"] = {**first.details, "epoch_key": key.verifier.format()}
    case.replace_line(0, ent.encode(ent.Fields(**fields)))
    case.replace_line(MIDDLE, _edited(case.line(MIDDLE).data))
    (case.keys / "epoch-0.key").write_text(key.format() + "\n")
    case.resign(mark=True)
    (case.folder / "index.db").unlink()


def test_everything_rewritten_under_another_epoch_key(case: Case) -> None:
    """The genesis checkpoint, signed by the key that is pinned, names entry 0 and so the key of epoch 0."""
    vkey = case.read("log.vkey").split(b"\n")[0].decode()
    _rewritten_without_a_key(case)
    case.check(6, ("replaced", 0), vkey=vkey)
    case.check(6, ("replaced", 0))
    nobody = Memory(case.folder.with_name("nobody"))
    assert verify_log(case.folder, memory=nobody).exit_code == 6
    assert trust(case.folder, nobody, vkey).exit_code == 6
    assert nobody.all() == {}


def test_three_breaks_at_once(case: Case) -> None:
    """One edited, one deleted, one there twice, in three segments, and an unsigned tail: all named."""
    size = case.size
    a, b, c = case.line(EARLY), case.line(MIDDLE), case.line(size - 3)
    assert len({a.file, b.file, c.file}) == 3
    case.replace_line(EARLY, _edited(a.data))
    case.change_lines(b.file, lambda lines: lines.pop(MIDDLE - int(Path(b.file).stem)))
    case.change_lines(c.file, lambda lines: lines.insert(size - 3 - int(Path(c.file).stem), c.data))
    case.put(c.file, case.read(c.file) + b"half a li")
    case.check(6, ("checksum_mismatch", EARLY), ("missing", MIDDLE), ("duplicate", size - 3), ("missing", size))


def test_three_breaks_in_one_segment(case: Case) -> None:
    files = case.segments()
    start = int(Path(files[1]).stem)

    def change(lines: list[bytes]) -> None:
        lines[1] = _edited(lines[1])
        lines.insert(4, lines[3])
        lines.pop(6)

    case.change_lines(files[1], change)
    case.check(6, ("checksum_mismatch", start + 1), ("duplicate", start + 3), ("missing", start + 5))


@pytest.mark.parametrize("kind", ["log.epoch_close", "log.purged", "log.archived", "log.recovered"])
def test_lifecycle_lines_appended_by_hand_have_no_effect_for_ever(case: Case, kind: str) -> None:
    """The next writer takes them in and names them; the key, the history and the verdict stay what they were."""
    size, last = case.size, case.segments()[-1]
    own = ent.decode(case.line(0).data)
    forged = SignerKey.generate(own.log)
    details = {
        "log.epoch_close": {"next_key": forged.verifier.format()},
        "log.purged": {"parts": [{"first": 0, "end": 10, "name": "x"}]},
        "log.archived": {"parts": [{"first": 0, "end": 10, "name": "x"}]},
        "log.recovered": {"first": 1, "end": 40},
    }[kind]
    fields = {n: getattr(own, n) for n in ent.FIELD_NAMES} | {"event_type": kind, "details": details}
    case.put(last, case.read(last) + ent.encode(ent.Fields(**fields)) + b"\n")
    case.check(3, ("missing", size))
    for number in range(2):
        with AuditLogger(case.folder, memory=case.memory) as log:
            fill(log, 2, 1000 + number * 10)
        verdict = case.check(0)
        assert any("unsigned when found" in s.words and s.start <= size < s.end for s in verdict.spans)
        assert not any("archived" in s.words for s in verdict.spans)
    kept = case.segments()[0]
    (case.folder / kept).unlink()  # what it said had left has not left
    assert case.verify().exit_code == 6
