"""An honest log, built once, put back at the same path before each attack; the user's memory knows it in full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tallystick import AuditEventType, AuditLogger
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.merkle import Frontier, leaf_hash
from tallystick.core.verify import Finding, Verdict
from tallystick.keys import KeyFolder
from tallystick.log import check
from tallystick.log.check import Checker
from tallystick.log.view import LogView
from tallystick.memory import Memory
from tallystick.verification import verify_log


class Line(NamedTuple):
    """A stored line: index, file relative to the folder, offset in it, bytes without newline."""

    index: int
    file: str
    offset: int
    data: bytes


class Case:
    """A log folder at its remembered path, to be damaged and verified."""

    def __init__(self, folder: Path, memory: Memory) -> None:
        self.folder, self.memory = folder, memory
        self.keys = folder.with_name(folder.name + ".keys")

    # -- looking ----------------------------------------------------------------------------------------------------

    def files(self) -> list[str]:
        """Every file of the folder, relative, that is not there for coordination only."""
        found = (p.relative_to(self.folder).as_posix() for p in sorted(self.folder.rglob("*")) if p.is_file())
        return [name for name in found if name not in ("lock", "index.lock", "reserve")]

    def segments(self) -> list[str]:
        return [name for name in self.files() if name.startswith("segments/")]

    def lines(self) -> list[Line]:
        found = []
        for file in self.segments():
            index, offset = int(Path(file).stem), 0
            for data in (self.folder / file).read_bytes().split(b"\n")[:-1]:
                found.append(Line(index, file, offset, data))
                index, offset = index + 1, offset + len(data) + 1
        return found

    def line(self, index: int) -> Line:
        return next(line for line in self.lines() if line.index == index)

    @property
    def size(self) -> int:
        return int((self.folder / "checkpoint").read_text().split("\n")[1])

    # -- damaging ----------------------------------------------------------------------------------------------------

    def put(self, file: str, data: bytes) -> None:
        path = self.folder / file
        if path.exists():
            path.chmod(0o600)
        path.write_bytes(data)

    def read(self, file: str) -> bytes:
        return (self.folder / file).read_bytes()

    def flip(self, file: str, at: int, bit: int = 1) -> None:
        data = bytearray(self.read(file))
        data[at] ^= bit
        self.put(file, bytes(data))

    def change_lines(self, file: str, change: Callable[[list[bytes]], Any]) -> None:
        """``change`` works on the list of lines of one segment in place."""
        lines = self.read(file).split(b"\n")[:-1]
        change(lines)
        self.put(file, b"".join(line + b"\n" for line in lines))

    def replace_line(self, index: int, data: bytes) -> Line:
        line = self.line(index)
        self.change_lines(line.file, lambda lines: lines.__setitem__(index - int(Path(line.file).stem), data))
        return line

    def replace_leaf(self, index: int, data: bytes) -> None:
        tree = bytearray(self.read("tree/0"))
        tree[index * 32 : index * 32 + 32] = leaf_hash(data)
        self.put("tree/0", bytes(tree))

    def resign(self, *, mark: bool = False) -> None:
        """The attacker found the keys: tree and head are made anew from the lines that are there, and signed."""
        leaves = [leaf_hash(line.data) for line in self.lines()]
        frontier = Frontier()
        rows = frontier.extend(leaves)
        self.put("tree/0", b"".join(leaves))
        for level, row in enumerate(rows, 1):
            self.put(f"tree/{level}", b"".join(row))
        for name in self.files():
            if name.startswith("tree/") and int(name[5:]) > len(rows):
                (self.folder / name).unlink()
        keys = KeyFolder(self.keys)
        origin = self.read("checkpoint").split(b"\n")[0].decode()
        self.put("checkpoint", sign_checkpoint(Checkpoint(origin, frontier.size, frontier.root()), keys.epoch_key(0)))
        if mark:
            keys.put_mark(origin, frontier.size, frontier.root(), 0)
            keys.close()

    def snapshot(self, to: Path) -> Path:
        """A copy of the folder and its keys in another place."""
        shutil.copytree(self.folder, to)
        shutil.copytree(self.keys, to.with_name(to.name + ".keys"))
        return to

    def replace_with(self, other: Path) -> None:
        for mine, theirs in ((self.folder, other), (self.keys, other.with_name(other.name + ".keys"))):
            shutil.rmtree(mine)
            shutil.copytree(theirs, mine)

    # -- verifying ---------------------------------------------------------------------------------------------------

    def verify(self, **options: Any) -> Verdict:
        """By the quick way and by the slow one, which must say the same of everything."""
        before = self.memory.all()
        Checker.quick = False
        try:
            slow = verify_log(self.folder, memory=self.memory, **options)
        finally:
            Checker.quick = True
        for path, known in before.items():
            self.memory.put(Path(path), known)  # else the second would begin where the first ended
        verdict = verify_log(self.folder, memory=self.memory, **options)
        assert verdict.as_dict() == slow.as_dict()
        return verdict

    def check(self, code: int, *expected: tuple[str, int | None], **options: Any) -> Verdict:
        """Verify: this exit code, and exactly these (issue, index), whatever their order."""
        verdict = self.verify(**options)
        assert verdict.exit_code == code, verdict.issues
        assert sorted({(f.issue, f.index) for f in verdict.findings}, key=str) == sorted(expected, key=str), verdict.issues
        return verdict


def the_one(verdict: Verdict, issue: str) -> Finding:
    """The only finding of this issue."""
    (found,) = [f for f in verdict.findings if f.issue == issue]
    return found


def fill(log: AuditLogger, count: int, first: int = 0) -> list[str]:
    """Events of all kinds: every optional field somewhere, payloads with and without a subject."""
    types, ids = list(AuditEventType), []
    for i in range(first, first + count):
        more: dict[str, Any] = {}
        if i % 3 == 0:
            more = {"service": "bot", "on_behalf_of": "bo", "parent_id": f"p{i}", "correlation_id": f"c{i}",
                    "trace_id": f"t{i}", "reason": "why", "corrects": f"x{i}", "subject": f"s{i % 2}",
                    "session_id": f"se{i}", "ip_address": "10.0.0.7"}  # fmt: skip
        if i % 4 == 0:
            more["payloads"] = {"arg.0": f"text of {i}", "result": bytes([i % 256]) * 40}
        ids.append(log.log(types[i % 8], f"ana{i % 5}", "user", f"crm/{i}", "read customer",
                           ("success", "failure", "partial", "denied")[i % 4],
                           {"id": i, "amount": i / 4, "text": "Grüße \"q\" /", "deep": {"a": [1, None, True]}}, **more))  # fmt: skip
    return ids


def build(folder: Path, memory: Memory, count: int = 48) -> None:
    """A log of several sealed segments, closed, verified in full."""
    AuditLogger(folder, memory=memory).close()
    config = folder / "log.toml"
    config.write_bytes(config.read_bytes().replace(b"bytes = 67108864", b"bytes = 8192"))
    with AuditLogger(folder, memory=memory) as log:
        fill(log, count)
    verdict = verify_log(folder, memory=memory)
    assert verdict.exit_code == 0, verdict.issues


class Built(NamedTuple):
    """Where the honest log lives, and the untouched copy it is put back from."""

    folder: Path
    state: Path
    original: Path


def keep_original(folder: Path, state: Path) -> Built:
    original = folder.parent / "original"
    for path in (folder, folder.with_name(folder.name + ".keys"), state):
        shutil.copytree(path, original / path.name)
    return Built(folder, state, original)


def put_back(built: Built) -> Case:
    for path in (built.folder, built.folder.with_name(built.folder.name + ".keys"), built.state):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(built.original / path.name, path)
    for path in built.folder.rglob("*"):
        os.chmod(path, 0o700 if path.is_dir() else 0o600)
    return Case(built.folder, Memory(built.state))


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """At least three sealed segments, payloads, one mark."""
    base = tmp_path_factory.mktemp("honest")
    folder, state = base / "audit_log", base / "state"
    build(folder, Memory(state))
    assert len(list((folder / "segments").iterdir())) >= 4
    return keep_original(folder, state)


@pytest.fixture
def case(honest: Built) -> Case:
    """The honest log at its remembered path, as if nothing had happened yet."""
    return put_back(honest)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head that does not verify is read once, not for a second."""
    monkeypatch.setattr(LogView.head, "__defaults__", (0.0,))
    monkeypatch.setattr(check, "IN_FLIGHT_S", 0.0)
    monkeypatch.delenv("TALLY_VKEY", raising=False)
    yield
