"""More than 65,536 entries: several tiles of tiles, and the checker's own batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.memory import Memory
from tallystick.verification import verify_log

from .conftest import Case, the_one

SIZE = 66_500


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    base = tmp_path_factory.mktemp("large")
    folder, memory = base / "audit_log", Memory(base / "state")
    AuditLogger(folder, memory=memory).close()
    config = folder / "log.toml"
    config.write_bytes(config.read_bytes().replace(b"bytes = 67108864", b"bytes = 8000000"))
    with AuditLogger(folder, memory=memory) as log:
        for start in range(0, SIZE, 9500):
            log.log_many([{"event_type": "user_action", "actor": f"ana{i % 7}", "actor_type": "user", "resource": f"r{i}",
                           "action": "read"} for i in range(start, start + 9500)])  # fmt: skip
    assert verify_log(folder, memory=memory).exit_code == 0
    case = Case(folder, memory)
    for file in case.segments():
        (folder / file).chmod(0o600)
    yield case


def test_breaks_in_a_large_log(large: Case) -> None:
    """In one log, one after the other, each put back: lines across segments, each level of the tree, the index."""
    size = large.size
    assert size > 65_536 + 256
    assert len(large.segments()) >= 3
    assert {"tree/0", "tree/1", "tree/2"} <= set(large.files())
    by_index = {line.index: line for line in large.lines()}

    edited, deleted, doubled = by_index[70], by_index[30_001], by_index[size - 5]
    kept = {f: large.read(f) for f in {edited.file, deleted.file, doubled.file}}
    large.replace_line(70, edited.data.replace(b'"actor":"ana', b'"actor":"eve'))
    large.change_lines(deleted.file, lambda lines: lines.pop(30_001 - int(Path(deleted.file).stem)))
    at = size - 5 - int(Path(doubled.file).stem)
    large.change_lines(doubled.file, lambda lines: lines.insert(at, doubled.data))
    verdict = large.check(6, ("checksum_mismatch", 70), ("missing", 30_001), ("duplicate", size - 5))
    assert the_one(verdict, "checksum_mismatch").offset == edited.offset
    assert the_one(verdict, "duplicate").offset == doubled.offset + len(doubled.data) + 1
    for file, data in kept.items():
        large.put(file, data)

    for level, number, index in ((0, 65_540, 65_540), (1, 3, 3 * 256), (1, 255, 255 * 256), (2, 0, 0)):
        data = large.read(f"tree/{level}")
        large.flip(f"tree/{level}", number * 32)
        verdict = large.verify()
        assert verdict.exit_code == 6
        assert {f.issue for f in verdict.findings} == {"checksum_mismatch"}
        assert (index, f"tree/{level}", number * 32) in {(f.index, f.file, f.offset) for f in verdict.findings}
        large.put(f"tree/{level}", data)
    _two_large_segments_exchanged(large)


def _two_large_segments_exchanged(large: Case) -> None:
    """Tens of thousands of breaks: the list ends, the verdict does not change, it takes seconds."""
    one, two = large.segments()[:2]
    a, b = large.read(one), large.read(two)
    large.put(one, b)
    large.put(two, a)
    verdict = large.verify(content=True)
    assert verdict.exit_code == 6
    assert len(verdict.findings) <= 1000
    assert any("more than" in text for text in verdict.not_proven)
    large.put(one, a)
    large.put(two, b)
    large.check(0)
