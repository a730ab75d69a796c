"""Handing out: the current checkpoint and inclusion proofs, signed by the stable log key, checked before they leave."""

from __future__ import annotations

from .core.checkpoint import Checkpoint, open_checkpoint
from .core.errors import AuditError, Malformed, StoreError
from .core.merkle import leaf_hash
from .core.note import add_signature, split
from .core.policy import POLICY_BYTES_MAX, Policy
from .core.proof import InclusionProof, open_witnessed
from .core.tiles import prove_inclusion
from .logger import AuditLogger
from .outside import HandedOut

_COSIGNATURE_BYTES = (8 + 64, 8 + 2420)  # u64 time and a signature of either algorithm


def current_checkpoint(log: AuditLogger) -> bytes:
    """The head with the log key's line beside the epoch's. Without read rights on the log key: the head as stored."""
    return with_log_key(log, log._handle.view.head().note)


def with_log_key(log: AuditLogger, note: bytes) -> bytes:
    """A note of this log that has the log key's line, which is added where it is missing and this user may read that key."""
    handle = log._handle
    vkey = handle.genesis.vkey
    if not any((s.name, s.key_id) == (vkey.name, vkey.key_id) for s in split(note)[1]):
        try:
            key = handle.keys.log_key()
        except (PermissionError, FileNotFoundError):
            return note
        note = add_signature(note, key)
    open_checkpoint(note, [vkey], origin=log.origin)
    return note


def log_policy(log: AuditLogger) -> bytes | None:
    """The bytes of the file ``policy`` of the log, None if it has none. Unread: ``Policy.parse`` says what it is."""
    try:
        with (log.path / "policy").open("rb") as file:
            return file.read(POLICY_BYTES_MAX + 1)
    except FileNotFoundError:
        return None


def cosigned_checkpoint(log: AuditLogger, index: int) -> bytes | None:
    """The newest checkpoint that was handed out, covers ``index`` and reaches the quorum of the log's policy; else the newest
    with any cosignature at all; None if there is none. Whoever uses it verifies it: here only its lines are looked at."""
    handle = log._handle
    handed, head = HandedOut(log.path), handle.view.head().size
    policy = _quorum_of(log)
    fallback = None
    for size in reversed([s for s in handed.sizes() if index < s <= head]):
        try:
            note = handed.signed(size)
        except AuditError:
            continue  # verify names it; a proof needs another one
        if note is None or not _is_cosigned(log, note):
            continue
        if policy is None or _reaches(note, policy, log.origin):
            return note
        fallback = fallback or note
    return fallback


def prove(log: AuditLogger, wanted: str | int, *, current: bool = False) -> tuple[bytes, bytes]:
    """A ``.tlog-proof`` for an entry by id or index, and its line. ``KeyError`` if it is not here.

    Against the newest checkpoint with cosignatures that covers the entry; where there is none, or with ``current``, against the
    current one. The proof was checked against the checkpoint it carries; ``StoreError`` if it did not hold (the tree is damaged).
    """
    stored = log.stored(wanted)
    note = None if current else cosigned_checkpoint(log, stored.hit.index)
    note = current_checkpoint(log) if note is None else with_log_key(log, note)
    return prove_against(log, note, stored.hit.index, stored.line).format(), stored.line


def prove_against(log: AuditLogger, note: bytes, index: int, line: bytes) -> InclusionProof:
    """The proof of one line against a checkpoint of this log. ``StoreError`` if it does not hold."""
    handle = log._handle
    size = Checkpoint.parse(split(note)[0]).size
    try:
        proof = InclusionProof(index, tuple(prove_inclusion(handle.store.hashes, index, size)), note)
        proof.verify(line, [handle.genesis.vkey, handle.view.history(size).key_at(size)], origin=log.origin)
    except AuditError as e:
        raise StoreError(f"the proof of entry #{index:,} does not hold; tally verify {log.path} says where: {e}") from e
    assert leaf_hash(line)
    return proof


def _quorum_of(log: AuditLogger) -> Policy | None:
    data = log_policy(log)
    try:
        policy = None if data is None else Policy.parse(data)
    except Malformed:
        return None
    return policy if policy is not None and policy.quorum != "none" else None


def _is_cosigned(log: AuditLogger, note: bytes) -> bool:
    return any(s.name != log.origin and len(s.signature) in _COSIGNATURE_BYTES for s in split(note)[1])


def _reaches(note: bytes, policy: Policy, origin: str) -> bool:
    try:
        open_witnessed(note, policy, origin=origin)
    except AuditError:
        return False
    return True
