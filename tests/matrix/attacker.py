"""What an attacker's hands can do: he knows the format as well as we do, and works on the files alone.

``Hands`` holds the lines of a log and writes back whatever he makes of them: segments, tree, head, the checkpoints that were handed
out, the mark, the keys, with what he has. Which of several ways serves him best is not decided here: ``grid`` tries all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tallystick.core import entry as ent
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.epoch import EPOCH_RECOVERED, History, read_history
from tallystick.core.errors import AuditError
from tallystick.core.genesis import Genesis
from tallystick.core.merkle import Frontier, leaf_hash, root_of
from tallystick.core.note import SignerKey
from tallystick.keys import KeyFolder
from tallystick.outside import HandedOut

from .site import Site

Lines = list[bytes]


class Hands:
    """One attacker at one log. ``epoch_keys``: private keys that he has, by epoch; ``log_key``: the stable one; ``owns_keys``: he may
    write the key folder, mark included."""

    def __init__(self, site: Site, epoch_keys: Mapping[int, SignerKey] | None = None, *, log_key: SignerKey | None = None,
                 owns_keys: bool = False) -> None:  # fmt: skip
        self.site, self.folder = site, site.folder
        self.epoch_keys, self.log_key, self.owns_keys = dict(epoch_keys or {}), log_key, owns_keys
        self.starts = [int(p.stem) for p in sorted((self.folder / "segments").iterdir())]
        self.lines: Lines = b"".join(self._segment(s).read_bytes() for s in self.starts).split(b"\n")[:-1]
        self.origin = site.key.name

    def _segment(self, start: int) -> Path:
        return self.folder / "segments" / f"{start:020d}.jsonl"

    # -- files -------------------------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        if path.exists():
            path.chmod(0o600)
        path.write_bytes(data)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write_lines(self) -> None:
        """The lines as they now are, in the segments that there were."""
        for at, start in enumerate(self.starts):
            stop = self.starts[at + 1] if at + 1 < len(self.starts) else None
            if start >= len(self.lines) and at:
                self._segment(start).unlink()
            else:
                self.put(f"segments/{start:020d}.jsonl", b"".join(line + b"\n" for line in self.lines[start:stop]))

    def write_tree(self) -> None:
        """Every hash anew; and no index that could contradict."""
        leaves = [leaf_hash(line) for line in self.lines]
        self.put("tree/0", b"".join(leaves))
        for path in (self.folder / "tree").iterdir():
            if path.name != "0":
                path.unlink()
        for level, row in enumerate(Frontier().extend(leaves), 1):
            self.put(f"tree/{level}", b"".join(row))
        self.remove_index()

    def remove_index(self) -> None:
        (self.folder / "index.db").unlink(missing_ok=True)

    def root(self, size: int | None = None) -> bytes:
        return root_of([leaf_hash(line) for line in self.lines[:size]])

    def checkpoint(self, size: int | None = None) -> Checkpoint:
        size = len(self.lines) if size is None else size
        return Checkpoint(self.origin, size, self.root(size))

    def write_head(self, *keys: SignerKey) -> None:
        self.put("checkpoint", sign_checkpoint(self.checkpoint(), *keys))

    def write_mark(self) -> None:
        """Only who owns the key folder can."""
        if self.owns_keys:
            folder = KeyFolder(self.site.keys)
            folder.put_mark(self.origin, len(self.lines), self.root(), max(self.epoch_keys, default=0))
            folder.close()

    def handed_out(self) -> list[int]:
        return HandedOut(self.folder).sizes()

    def forget_handed_out(self, above: int) -> None:
        """What was handed out and would contradict: gone, with whatever others signed beneath; and who was asked, with it."""
        for path in (self.folder / "checkpoints").iterdir():
            if int(path.name[:20]) > above:
                path.unlink()
        if above < self.site.confirmed:
            (self.folder / "policy").unlink(missing_ok=True)
            self.put("log.toml", self.read("log.toml").partition(b"\n[[anchor]]")[0])

    def hand_out(self, size: int, *keys: SignerKey) -> None:
        """A checkpoint as if it had been kept when it was made."""
        self.put(f"checkpoints/{size:020d}", sign_checkpoint(self.checkpoint(size), *keys))

    # -- history -----------------------------------------------------------------------------------------------------

    def history(self) -> History:
        """The epochs, as the lines that he now has tell them."""
        return read_history([(i, f) for i, line in enumerate(self.lines) if b'"event_type":"log.' in line
                             and (f := _decoded(line)) is not None])  # fmt: skip

    def renumber(self, after: int) -> None:
        """Where entries before them came or went, later ends of epochs name their new places."""
        begins, number = 0, 0
        for index, line in enumerate(self.lines):
            if is_close(line):
                fields = ent.decode(line)
                if index >= after:
                    details = {**fields.details, "epoch": number, "first": begins, "last": index}
                    self.lines[index] = changed(line, details=details)
                begins, number = index + 1, number + 1

    def take_over(self, epoch: int) -> None:
        """From the end of ``epoch`` on, whose key he has, every next key is one of his own."""
        for index, line in enumerate(self.lines):
            if is_close(line):
                details = ent.decode(line).details
                if details["epoch"] >= epoch:
                    key = self.epoch_keys[details["epoch"] + 1] = SignerKey.generate(self.origin)
                    self.lines[index] = changed(line, details={**details, "next_key": key.verifier.format()})

    def key_for(self, size: int, history: History) -> SignerKey | None:
        """The key that must sign a head of this size, if he has it."""
        wanted = history.key_at(size)
        keys = [*self.epoch_keys.values(), *([self.log_key] if self.log_key else [])]
        return next((key for key in keys if key.verifier == wanted), None)


def is_close(line: bytes) -> bool:
    """True for an entry that ends an epoch."""
    return b'"event_type":"log.epoch_' in line


def _decoded(line: bytes) -> ent.Fields | None:
    try:
        return ent.decode(line)
    except AuditError:
        return None


def changed(line: bytes, **fields: Any) -> bytes:
    """The line with other values in some fields, in the one spelling."""
    old = ent.decode(line)
    return ent.encode(ent.Fields(**{name: getattr(old, name) for name in ent.FIELD_NAMES} | fields))


def is_ordinary(line: bytes) -> bool:
    return b'"actor":"ana' in line


# -- deeds: what is done to the lines at index k ---------------------------------------------------------------------------


def edit(lines: Lines, k: int) -> None:
    lines[k] = lines[k].replace(b'"actor":"ana', b'"actor":"eve', 1)


def delete(lines: Lines, k: int) -> None:
    del lines[k]


def swap(lines: Lines, k: int) -> None:
    other = k + 1 if k + 1 < len(lines) else k - 1
    lines[k], lines[other] = lines[other], lines[k]


def duplicate(lines: Lines, k: int) -> None:
    lines.insert(k, lines[k])


def back_date(lines: Lines, k: int) -> None:
    """A new line that looks right in every way, with the times of the one that stands there."""
    old = ent.decode(lines[k])
    lines.insert(k, changed(lines[k], event_id=old.event_id[:24] + "0" * 12, actor="eve", payloads={}))


def spell(text: Callable[[bytes], bytes]) -> Callable[[Lines, int], None]:
    """Other bytes for the same line."""

    def deed(lines: Lines, k: int) -> None:
        assert text(lines[k]) != lines[k]
        lines[k] = text(lines[k])

    return deed


# -- ways to write a history anew ------------------------------------------------------------------------------------------


def write_anew(hands: Hands, k: int, deed: Callable[[Lines, int], None], *, leave: bool) -> None:
    """From k on, with the newest key that he has that may sign there; what he cannot sign is left as it was or removed."""
    deed(hands.lines, k)
    hands.renumber(k)
    hands.take_over(max(hands.epoch_keys))
    finish(hands, k, leave=leave)


def finish(hands: Hands, k: int, *, leave: bool) -> None:
    """Files for the lines that he now has: everything signed that his keys may sign."""
    hands.write_lines()
    hands.write_tree()
    history = hands.history()
    if not leave:
        hands.forget_handed_out(k)
        for size in history.closes():
            key = hands.key_for(size, history)
            if size > k and key is not None:
                hands.hand_out(size, key, *([hands.log_key] if hands.log_key and hands.log_key != key else []))
    key = hands.key_for(len(hands.lines), history) or hands.epoch_keys[max(hands.epoch_keys)]
    hands.write_head(key)
    hands.write_mark()


def record_a_lost_key(hands: Hands, k: int, deed: Callable[[Lines, int], None], young: str) -> None:
    """The log key says that the key of the epoch at k was lost, so that he may go on with one of his own: ``log.epoch_recovered``.
    What follows looks as if it had been recorded just now."""
    assert hands.log_key is not None
    deed(hands.lines, k)
    epoch = read_history([(i, ent.decode(line)) for i, line in enumerate(hands.lines[:k]) if b'"event_type":"log.' in line]).epochs[-1]
    mine = SignerKey.generate(hands.origin)
    own = ent.decode(hands.lines[0])
    fields = {n: getattr(own, n) for n in ent.FIELD_NAMES} | {
        "event_type": EPOCH_RECOVERED, "action": "went on without the lost key of the epoch", "event_id": own.event_id[:24] + "1" * 12,
        "timestamp": young, "recorded_at": young,
        "details": {"epoch": epoch.number, "first": epoch.after, "last": k, "opened": epoch.opened, "closed": young,
                    "reason": "the disk died", "next_key": mine.verifier.format()}}  # fmt: skip
    rest = [changed(line, recorded_at=young) for line in hands.lines[k:] if not is_close(line)]
    hands.lines = [*hands.lines[:k], ent.encode(ent.Fields(**fields)), *rest]
    hands.epoch_keys = {epoch.number + 1: mine}
    finish(hands, k, leave=False)


def make_up_keys(hands: Hands, deed: Callable[[Lines, int], None], k: int, *, vkey_too: bool) -> None:
    """The whole log under keys that the attacker made: entry 0 names them; ``log.vkey`` stays the true one, or is made too."""
    log_key, epoch_key = SignerKey.generate(hands.origin), SignerKey.generate(hands.origin)
    deed(hands.lines, k)
    hands.renumber(k)
    details = {**ent.decode(hands.lines[0]).details, "epoch_key": epoch_key.verifier.format(), "log_key": log_key.verifier.format()}
    hands.lines[0] = changed(hands.lines[0], details=details)
    hands.epoch_keys = {0: epoch_key}
    hands.take_over(0)
    if vkey_too:
        hands.put("log.vkey", Genesis(log_key.verifier, sign_checkpoint(hands.checkpoint(1), log_key)).format())
        hands.log_key = log_key
    finish(hands, 0, leave=False)


def cut(hands: Hands, size: int, key: SignerKey | None) -> None:
    """The newest entries are gone, and everything derived with them. Without a key the head is one that he kept."""
    hands.lines = hands.lines[:size]
    hands.write_lines()
    hands.write_tree()
    hands.forget_handed_out(size)
    if key is None:
        hands.put("checkpoint", hands.site.heads[size])
    else:
        history = hands.history()
        hands.put("checkpoint", hands.site.heads[size] if hands.key_for(size, history) is None
                  else sign_checkpoint(hands.checkpoint(), key))  # fmt: skip
    hands.write_mark()


def roll_back(site: Site, size: int, *, keys: bool) -> None:
    """An older copy of the folder, with its keys or without."""
    then = site.snapshot(size)
    for mine, theirs in ((site.folder, then / "audit_log"), (site.keys, then / "audit_log.keys")):
        if keys or mine == site.folder:
            shutil.rmtree(mine)
            shutil.copytree(theirs, mine)


def edit_memory(site: Site, size: int, root: str) -> None:
    """The operator's memory says what the attacker wants it to say."""
    path = site.state / "known_logs.json"
    logs = json.loads(path.read_text())
    for known in logs.values():
        known.update(size=size, root=root, full_size=min(known["full_size"], size))
    path.write_text(json.dumps(logs))


