"""The one judge of everything in this folder: whatever happened to a log, opened again it must be whole."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tallystick import AuditLogger
from tallystick.core import entry as ent
from tallystick.core.checkpoint import open_checkpoint
from tallystick.core.epoch import read_history
from tallystick.core.genesis import Genesis
from tallystick.core.note import open_note
from tallystick.core.tiles import root_at
from tallystick.core.verify import Verdict
from tallystick.memory import Memory
from tallystick.outside import HandedOut
from tallystick.retention.archive import read_archive
from tallystick.store.segments import SegmentStore
from tallystick.verification import trust, verify_log


class Stored(NamedTuple):
    """A line by its place."""

    index: int
    fields: ent.Fields


class Judgement(NamedTuple):
    """What the judge saw: the verdict and every line that is here or archived, ascending."""

    verdict: Verdict
    lines: list[Stored]

    def of_type(self, event_type: str) -> list[ent.Fields]:
        return [s.fields for s in self.lines if s.fields.event_type == event_type]


def event(n: int, **more: object) -> dict[str, object]:
    return {"event_type": "data_access", "actor": "ana", "actor_type": "user", "resource": f"crm/{n}", "action": "read",
            "details": {"n": n}, **more}  # fmt: skip


def judge(folder: Path, memory: Memory, acknowledged: Iterable[str], *, archives: Path | None = None) -> Judgement:
    """Open with a fresh handle, append, close; then: verified, gapless, each acknowledged event once, payloads open."""
    if memory.get(folder) is None:
        trust(folder, memory, None)  # whoever made it died before he could remember it
    with AuditLogger(folder, memory=memory, create=False) as log:
        last = log.log(**event(999))
    found = judge_as_it_is(folder, memory, [*acknowledged, last], archives=archives)
    assert found.lines[-1].fields.event_id == last
    judge_epochs(folder, found)
    return found


def judge_epochs(folder: Path, found: Judgement) -> None:
    """Each epoch that ended has exactly one closing checkpoint, under its key and over the entries as they are; the one private key
    that is here is that of the running epoch."""
    genesis = Genesis.parse((folder / "log.vkey").read_bytes())
    history = read_history((s.index, s.fields) for s in found.lines if s.fields.event_type.startswith("log."))
    store, handed = SegmentStore(folder), HandedOut(folder)
    signed = {}
    for size in handed.sizes():
        note = handed.signed(size)
        assert note is not None
        keys = [genesis.vkey, history.key_at(size)]
        checkpoint = open_checkpoint(note, keys, origin=genesis.origin)
        assert (checkpoint.size, checkpoint.root) == (size, root_at(store.hashes, size))
        signed[size] = [k for k in keys if any((s.name, s.key_id) == (k.name, k.key_id) for s in open_note(note, keys).verified)]
    seals = history.seals(signed)
    assert not seals.missing, seals
    assert set(history.closes()) <= set(signed)
    names = sorted(p.name for p in folder.with_name(folder.name + ".keys").iterdir() if "epoch" in p.name)
    assert names == [f"epoch-{history.epochs[-1].number}.key"]


def judge_as_it_is(folder: Path, memory: Memory, acknowledged: Iterable[str], *, archives: Path | None = None) -> Judgement:
    """The same without appending first."""
    verdict = verify_log(folder, memory=memory)
    assert verdict.exit_code == 0, (verdict.sentence, verdict.issues)
    lines = all_lines(folder, archives)
    assert [s.index for s in lines] == list(range(verdict.tree_size)), "a gap or a duplicate among the indexes"
    counts = collections.Counter(s.fields.event_id for s in lines)
    assert not [i for i, n in counts.items() if n > 1], "an event is there twice"
    lost = [i for i in acknowledged if i not in counts]
    assert not lost, f"{len(lost)} acknowledged events are not there: {lost[:5]}"
    _open_payloads(folder, memory, set(acknowledged), archives)
    return Judgement(verdict, lines)


def all_lines(folder: Path, archives: Path | None = None) -> list[Stored]:
    """Straight from the files: what was archived and left, then every segment."""
    store = SegmentStore(folder)
    segments = store.segments()
    found: list[Stored] = []
    if segments[0].start > 0:
        assert archives is not None
        parts = {int(p.name.split("_")[2].split("-")[0]): p for p in archives.glob("*.jsonl.zst")}
        while len(found) < segments[0].start:
            _, lines = read_archive(parts[len(found)])
            found += [Stored(len(found) + at, ent.decode(line)) for at, line in enumerate(lines)]
    for segment in segments:
        assert segment.start == len(found), f"segments/{segment.name} does not begin where the one before ended"
        data = (folder / "segments" / segment.name).read_bytes()
        assert not data or data.endswith(b"\n"), f"segments/{segment.name} ends in a torn line"
        found += [Stored(len(found) + at, ent.decode(line)) for at, line in enumerate(data.split(b"\n")[:-1])]
    return found


def _open_payloads(folder: Path, memory: Memory, acknowledged: set[str], archives: Path | None) -> None:
    wanted = [s for s in all_lines(folder, archives) if s.fields.payloads and s.fields.event_id in acknowledged]
    if not wanted:
        return
    with AuditLogger(folder, memory=memory, create=False) as log:
        for stored in wanted:
            entry = ent.AuditEntry(index=stored.index, checksum="", **{n: getattr(stored.fields, n) for n in ent.FIELD_NAMES})
            for name, ref in stored.fields.payloads.items():
                assert len(log._open_payload(entry, name)) == ref.size
