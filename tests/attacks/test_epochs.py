"""Who broke in has the log key and the key of the running epoch, and none before; the auditor has the vkey and no memory."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tallystick import AuditLogger
from tallystick.clock import CLOCK
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.merkle import Frontier, leaf_hash
from tallystick.core.note import SignerKey, add_signature
from tallystick.core.tiles import root_at
from tallystick.core.verify import Verdict
from tallystick.disk import DISK
from tallystick.keys import KeyFolder
from tallystick.log.create import Plan, build
from tallystick.memory import Memory
from tallystick.outside import HandedOut
from tallystick.store.segments import SegmentStore
from tallystick.verification import verify_log

from .conftest import Case, fill


@pytest.fixture
def closed(case: Case) -> list[int]:
    """Two epochs closed; the sizes of their closing checkpoints."""
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.rotate()
        fill(log, 3)
        log.rotate()
        fill(log, 2)
    return HandedOut(case.folder).sizes()


def audit(case: Case, **options: Any) -> Verdict:
    """By somebody who has nothing but the vkey."""
    return verify_log(case.folder, memory=Memory(None), vkey=case.read("log.vkey").split(b"\n")[0].decode(), **options)


def sign_anew(case: Case) -> None:
    """Tree and head from the lines that are there, under the key of the running epoch."""
    leaves = [leaf_hash(line.data) for line in case.lines()]
    frontier = Frontier()
    rows = frontier.extend(leaves)
    for level, row in enumerate([leaves, *rows]):
        case.put(f"tree/{level}", b"".join(row))
    keys = KeyFolder(case.keys)
    (number,) = keys.numbers()
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    case.put("checkpoint", sign_checkpoint(Checkpoint(origin, frontier.size, frontier.root()), keys.epoch_key(number)))
    for path in (case.folder / "index.db", case.keys / "mark"):
        path.unlink(missing_ok=True)


def edit(case: Case, index: int) -> None:
    line = case.line(index)
    changed = line.data.replace(b"read customer", b"read nothing!")
    assert changed != line.data
    case.replace_line(index, changed)


def test_an_edit_below_the_last_close_with_the_keys_of_today(case: Case, closed: list[int]) -> None:
    edit(case, 5)
    sign_anew(case)
    verdict = audit(case)
    assert verdict.exit_code == 6 and any(f.issue == "replaced" for f in verdict.findings), verdict.issues


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_and_the_closing_checkpoints_removed(case: Case, closed: list[int], which: tuple[int, ...]) -> None:
    for honest in (True, False):
        for at in which:
            for path in (case.folder / "checkpoints").glob(f"{closed[at]:020d}*"):
                path.unlink()
        if not honest:
            edit(case, 5)
            sign_anew(case)
        verdict = audit(case)
        files = {f.file for f in verdict.findings if f.issue == "missing"}
        assert verdict.exit_code == 6 and {f"checkpoints/{closed[at]:020d}" for at in which} <= files


def test_and_replaced_by_ones_under_the_keys_that_are_left(case: Case, closed: list[int]) -> None:
    edit(case, 5)
    sign_anew(case)
    keys, origin = KeyFolder(case.keys), case.read("checkpoint").split(b"\n")[0].decode()
    (number,) = keys.numbers()
    for signers in ((keys.log_key(),), (keys.log_key(), keys.epoch_key(number))):
        for size in closed:
            for path in (case.folder / "checkpoints").glob(f"{size:020d}*"):
                path.unlink()
            made = Checkpoint(origin, size, root_at(SegmentStore(case.folder).hashes, size))
            HandedOut(case.folder).put(size, sign_checkpoint(made, *signers))
        verdict = audit(case)
        assert verdict.exit_code == 6 and verdict.sealed_to == 0, verdict.issues


def test_a_head_that_is_the_closing_checkpoint_needs_no_copy(case: Case, closed: list[int]) -> None:
    """A writer that died between signing and keeping it: the next one keeps it."""
    with AuditLogger(case.folder, memory=case.memory) as log:
        size = log.rotate()["size"]
    for path in (case.folder / "checkpoints").glob(f"{size:020d}*"):
        path.unlink()
    verdict = case.check(0)
    assert verdict.sealed_to == size == case.size


def test_a_log_made_up_anew_under_the_log_key_is_not_sealed(case: Case, closed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The log key signs the genesis checkpoint: its holder can begin with another entry 0 and keys of his own. With the vkey alone
    nobody can tell, so nothing is called sealed; with a checkpoint of the true log, or the memory of it, he is found out."""
    log_key = KeyFolder(case.keys).log_key()
    kept = add_signature(case.read("checkpoint"), log_key)  # as it leaves
    made = iter([log_key])
    generate = SignerKey.generate
    monkeypatch.setattr(SignerKey, "generate", staticmethod(lambda name: next(made, None) or generate(name)))
    config = case.read("log.toml")
    shutil.rmtree(case.folder)
    shutil.rmtree(case.keys)
    build(Plan(case.folder, case.keys, log_key.name, config, {}), case.folder, case.keys, CLOCK, DISK)
    with AuditLogger(case.folder, memory=Memory(None)) as log:
        fill(log, 6)
        log.rotate()
        fill(log, 2)
    verdict = audit(case)
    assert verdict.key[0] == log_key.verifier.format()
    assert verdict.sealed_to == 0 and verdict.spans[0].epoch == "epoch closed, entry 0 not pinned", verdict.spans
    assert audit(case, checkpoint=kept).exit_code == 6
    assert case.verify().exit_code == 6
    # the same log, honest, with something of it from outside
    own = case.read("checkpoint")
    assert audit(case, checkpoint=own).sealed_to > 0
