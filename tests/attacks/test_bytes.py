"""One bit of every file: every byte of small files, a sweep over large ones with all their boundaries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.verification import Verdict

from .conftest import Case

SWEEP = 60


def positions(data: bytes) -> list[int]:
    """Every byte of a small file; else both ends, both sides of every line end, and an even sweep in between."""
    if len(data) <= 200:
        return list(range(len(data)))
    ends = [at for at, byte in enumerate(data) if byte == 10][:10]
    chosen = {0, 1, 2, len(data) - 2, len(data) - 1, *(len(data) * i // SWEEP for i in range(SWEEP))}
    return sorted(p for p in chosen | {e + d for e in ends for d in (-1, 0, 1)} if p < len(data))


def sweep(case: Case, file: str, at: list[int] | None = None) -> list[tuple[int, Verdict]]:
    """Flip one bit, verify, put the byte back; the lowest bit, or another where that says more."""
    original = case.read(file)
    found = []
    for number, position in enumerate(positions(original) if at is None else at):
        case.flip(file, position, 1 << (number % 8))
        found.append((position, case.verify()))
        case.put(file, original)
    assert case.verify().exit_code == 0
    return found


def test_segments(case: Case) -> None:
    """The right line, the right file, the right offset; a newline that goes makes one line of two."""
    for file in case.segments():
        lines = [line for line in case.lines() if line.file == file]
        data = case.read(file)
        growing = file == case.segments()[-1]
        for position, verdict in sweep(case, file):
            hit = next(x for x in lines if x.offset <= position <= x.offset + len(x.data))
            assert verdict.exit_code == 6, (file, position)
            first = min((f for f in verdict.findings if f.index is not None and f.code == 6), key=lambda f: f.index)
            assert (first.index, first.file) == (hit.index, file), (position, verdict.issues)
            if data[position] != 10:
                assert (first.issue, first.offset) == ("checksum_mismatch", hit.offset), (position, verdict.issues)
            assert {f.index for f in verdict.findings} <= {hit.index, hit.index + 1, *([case.size] if growing else [])}


def test_a_byte_becomes_a_newline(case: Case) -> None:
    """Two lines of one: the first half stands for the entry, the second was never signed."""
    line = case.line(20)
    data = bytearray(case.read(line.file))
    data[line.offset + 30] = 10
    case.put(line.file, bytes(data))
    case.check(6, ("checksum_mismatch", 20), ("checksum_mismatch", 21))


def test_checkpoint(case: Case) -> None:
    """Every byte: origin, size, root, signature."""
    for position, verdict in sweep(case, "checkpoint", list(range(len(case.read("checkpoint"))))):
        assert verdict.exit_code == 6, position
        assert "bad_signature" in {f.issue for f in verdict.findings}, (position, verdict.issues)


def test_vkey(case: Case) -> None:
    """Every byte: the key, the genesis checkpoint, its signature."""
    for position, verdict in sweep(case, "log.vkey", list(range(len(case.read("log.vkey"))))):
        assert verdict.exit_code == 6, (position, verdict.issues)


def test_tree(case: Case) -> None:
    """Derived, but what proofs are made from: a wrong hash is named, the line is not blamed."""
    for position, verdict in sweep(case, "tree/0"):
        assert verdict.exit_code == 6, position
        (found,) = verdict.findings
        assert (found.issue, found.index, found.file) == ("checksum_mismatch", position // 32, "tree/0")
        assert found.offset == position // 32 * 32


@pytest.mark.parametrize("left", [0, 1, 32, 33, -32, -1])
def test_a_tree_cut_short(case: Case, left: int) -> None:
    """Short is no contradiction: it comes back by itself, and is said."""
    case.put("tree/0", case.read("tree/0")[:left])
    verdict = case.check(0)
    assert any("tree/0" in text for text in verdict.not_proven), verdict.not_proven


def test_no_tree(case: Case) -> None:
    (case.folder / "tree/0").unlink()
    assert any("tree/0" in text for text in case.check(0).not_proven)


def test_payloads(case: Case) -> None:
    """Frame heads, names, ciphertext, checksums: the entry whose content it is."""
    (file,) = [f for f in case.files() if f.startswith("payloads/")]
    from tallystick.vault import Vault

    frames = list(Vault(case.folder / "payloads", case.keys, "").frames())
    by_id = {line.data.split(b'"event_id":"')[1][:36].decode(): line.index for line in case.lines()}
    for position, verdict in sweep(case, file):
        hit = next(f for f in frames if f.offset <= position < f.offset + f.length)
        assert verdict.exit_code == 6, position
        named = {f.index for f in verdict.findings}
        assert by_id[hit.event_id] in named, (position, verdict.issues)
        assert {f.file for f in verdict.findings} == {"payloads"}
        assert {f.issue for f in verdict.findings} <= {"checksum_mismatch", "missing"}
        assert min(named) == by_id[hit.event_id], (position, verdict.issues)


def test_log_toml(case: Case) -> None:
    """Settings are no evidence: whoever may write there may change them, and the change becomes an entry.

    Bytes that are no settings any more are an error (6: the log is not as it was made); any other change is said among
    what was not proven, also in a comment: the hash of the whole file is on record.
    """
    data = case.read("log.toml")
    for position, verdict in sweep(case, "log.toml", list(range(len(data)))):
        if verdict.exit_code == 0:
            assert any("log.toml" in text for text in verdict.not_proven), (position, verdict.not_proven)
        else:
            assert verdict.exit_code == 6, (position, verdict.issues)


def test_the_index(case: Case) -> None:
    """Pages of SQLite: a flip is named, or it is where nothing is stored and nothing is found."""
    data = case.read("index.db")
    silent = []
    for position, verdict in sweep(case, "index.db", sorted({*range(100), *(len(data) * i // 150 for i in range(100))})):
        if verdict.exit_code == 0:
            silent.append(position)
            continue
        assert verdict.exit_code == 6, (position, verdict.issues)
        assert {f.issue for f in verdict.findings} == {"index_mismatch"}, (position, verdict.issues)
        assert {f.file for f in verdict.findings} == {"index.db"}
    unused = [p for p in silent if p >= 100]
    assert all(_is_unused(data, p) for p in unused), unused


def _is_unused(data: bytes, position: int) -> bool:
    """True between the cell pointers and the cells of a page, in a free block, or in the file's own head."""
    size = int.from_bytes(data[16:18], "big") or 65536
    start = position // size * size
    head = start + (100 if start == 0 else 0)
    page = data[start : start + size]
    kind = page[head - start]
    pointers = head - start + (8 if kind in (10, 13) else 12)
    cells = int.from_bytes(page[head - start + 3 : head - start + 5], "big")
    content = int.from_bytes(page[head - start + 5 : head - start + 7], "big") or size
    return kind not in (2, 5, 10, 13) or pointers + 2 * cells <= position - start < content


def test_every_kind_of_file_is_in_a_test_above(case: Case) -> None:
    """A new kind of file needs its own sweep. (The journal of the index is empty: nothing to flip.)"""
    assert case.read("index.db-journal") == b""
    known = {"log.toml", "log.vkey", "checkpoint", "index.db", "index.db-journal", "segments", "tree", "payloads"}
    assert {Path(f).parts[0] for f in case.files()} == known
