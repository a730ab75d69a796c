"""Two checkpoints of one log: one history, or two (decision 26). What contradicts is kept as evidence, and never deleted here.

::

    <state folder>/evidence/<origin, "/" as "_">/<16 hex of SHA-256 of the bytes>.checkpoint

Two notes with one size and two roots, both signed by the log's key, convince anybody who has the key; no log is needed. For two sizes
a proof is needed that the longer begins with the shorter (RFC 9162 §2.1.4): it is made from a log that has both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .anchor.saved_mail import find_note
from .core.checkpoint import Checkpoint, open_checkpoint
from .core.errors import AuditError, StoreError, UnknownSigner, VerificationError
from .core.merkle import verify_consistency
from .core.note import VerifierKey, split
from .core.tiles import prove_consistency, root_at
from .core.verify import Finding, Verdict
from .disk import DISK
from .log.view import LogView
from .memory import Memory
from .opening import read_genesis
from .store.segments import SegmentStore


class Handed(NamedTuple):
    """A checkpoint that was handed in: what it is called here, its bytes as they came, and the note in them."""

    name: str
    note: bytes
    checkpoint: Checkpoint

    @classmethod
    def read(cls, name: str, data: bytes) -> Handed:
        """``Malformed`` where there is no checkpoint, or more than one, in ``data`` (a note, a saved mail)."""
        note = find_note(data)
        return cls(name, note, Checkpoint.parse(split(note)[0]))


def keep_evidence(memory: Memory, origin: str, notes: Sequence[bytes]) -> list[Path]:
    """Keep notes that contradict each other, durable on return; the same again changes nothing. Empty without a state folder."""
    if memory.folder is None:
        return []
    folder = memory.folder / "evidence" / (origin.replace("/", "_").lstrip(".") or "log")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = []
    for note in notes:
        path = folder / f"{hashlib.sha256(note).hexdigest()[:16]}.checkpoint"
        if not path.exists():
            DISK.write_file(path, note, 0o600)
        found.append(path)
    return found


def compare(first: Handed, second: Handed, *, memory: Memory, vkey: str | None, log: Path | None) -> Verdict:
    """Do the two belong to one history? Under the given key, the log's own, or the one that this user pinned for their origin.

    0 one history · 3 cannot judge (no key, or two sizes and no log that has both) · 4 not signed by that key, or of two logs · 6 two
    histories: both notes are kept (``verdict.evidence``). ``Malformed`` for a ``vkey`` that is none.
    """
    a, b = sorted((first, second), key=lambda h: h.checkpoint.size)
    verdict = Verdict(b.checkpoint.origin, b.checkpoint.size, b.checkpoint.root.hex(), of="checkpoints")
    if a.checkpoint.origin != b.checkpoint.origin:
        verdict.findings.append(Finding("malformed", f"{a.name} is of {a.checkpoint.origin}, {b.name} of {b.checkpoint.origin}: two "
                                        "logs", 4))  # fmt: skip
        return verdict
    keys = _keys(verdict, memory, vkey, log)
    signed = [_is_signed(one, keys, verdict) for one in (a, b) if keys]  # both are looked at, so that both are named
    if not signed or not all(signed):
        return verdict
    if a.checkpoint.size == b.checkpoint.size:
        if a.checkpoint.root != b.checkpoint.root:
            _two_histories(verdict, memory, a, b, f"{a.name} and {b.name} are both of {a.checkpoint.size:,} entries and signed by "
                           "the same log, and the entries differ")  # fmt: skip
    elif log is None:
        verdict.findings.append(Finding("no_proof", f"{a.name} is of {a.checkpoint.size:,} entries and {b.name} of "
                                        f"{b.checkpoint.size:,}: only a log that has both can tell whether the longer begins with "
                                        "the shorter", 3))  # fmt: skip
        verdict.next.append(f"tally verify {a.name} {b.name} --log LOG")
    else:
        _with_log(verdict, memory, a, b, SegmentStore(log))
    return verdict


def _keys(verdict: Verdict, memory: Memory, vkey: str | None, log: Path | None) -> list[VerifierKey]:
    """Those that may sign for the origin. Those of epochs come from the log, where its own key is the one that is trusted."""
    origin = verdict.origin
    if vkey is not None:
        keys = [VerifierKey.parse(vkey)]
    else:
        keys = sorted({VerifierKey.parse(k.vkey) for k in memory.all().values() if k.origin == origin}, key=lambda k: k.key_id)
    if not keys:
        verdict.findings.append(Finding("unknown", f"no key to check with: {origin} was never seen here; give it with --vkey", 3))
        return []
    if log is not None:
        genesis = read_genesis(log)
        if genesis.vkey not in keys:
            verdict.findings.append(Finding("replaced", f"{log} has another key than the one that is trusted for {origin}", 6))
            return []
        try:
            view = LogView(SegmentStore(log), genesis, [])
            keys += [e.key for e in view.history(view.head().size).epochs if e.key not in keys]
        except AuditError as e:
            verdict.findings.append(Finding("bad_signature", f"{log}: {e}", 6))
            return []
    return keys


def _is_signed(one: Handed, keys: list[VerifierKey], verdict: Verdict) -> bool:
    try:
        open_checkpoint(one.note, keys, origin=verdict.origin)
    except UnknownSigner:
        verdict.findings.append(Finding("unknown", f"{one.name} is not signed by a key that is known here; a log tells the keys of "
                                        "its epochs: --log LOG", 3))  # fmt: skip
        return False
    except VerificationError as e:
        verdict.findings.append(Finding("malformed", f"{one.name}: {e}", 4))
        return False
    return True


def _with_log(verdict: Verdict, memory: Memory, a: Handed, b: Handed, store: SegmentStore) -> None:
    """A proof of consistency needs no trust in the tree that it was made from; where it fails, the log's own roots say with whom it
    does not agree."""
    size1, size2 = a.checkpoint.size, b.checkpoint.size
    try:
        proof = prove_consistency(store.hashes, size1, size2)
        verify_consistency(size1, size2, a.checkpoint.root, b.checkpoint.root, proof)
        return
    except StoreError:
        verdict.findings.append(Finding("no_proof", f"the log there has not {size2:,} entries, or its tree cannot be read so far", 3))
        return
    except VerificationError:
        agrees = [one.name for one in (a, b) if root_at(store.hashes, one.checkpoint.size) == one.checkpoint.root]
    if agrees:
        other = b.name if agrees == [a.name] else a.name
        _two_histories(verdict, memory, a, b, f"the entries of {b.name} do not begin with those of {a.name}, and both are signed by "
                       f"the same log; the log here agrees with {agrees[0]}, not with {other}")  # fmt: skip
        return
    verdict.findings.append(Finding("no_proof", "the log there agrees with neither of them, so that it can prove nothing about the "
                                    "two; verify it with each: tally verify LOG --checkpoint FILE", 3))  # fmt: skip


def _two_histories(verdict: Verdict, memory: Memory, a: Handed, b: Handed, text: str) -> None:
    verdict.findings.append(Finding("split_view", text, 6))
    verdict.evidence = [str(path) for path in keep_evidence(memory, verdict.origin, [a.note, b.note])]
    if not verdict.evidence:
        verdict.not_proven.append("you have no state folder: keep both files yourself")
