"""Handing out: the current checkpoint and inclusion proofs, signed by the stable log key, checked before they leave."""

from __future__ import annotations

from .core.checkpoint import open_checkpoint
from .core.errors import StoreError
from .core.merkle import leaf_hash
from .core.note import add_signature
from .core.proof import InclusionProof
from .core.tiles import prove_inclusion
from .logger import AuditLogger


def current_checkpoint(log: AuditLogger) -> bytes:
    """The head with the log key's line beside the epoch's. Without read rights on the log key: the head as stored."""
    handle = log._handle
    head = handle.view.head()
    try:
        key = handle.keys.log_key()
    except (PermissionError, FileNotFoundError):
        return head.note
    note = add_signature(head.note, key)
    open_checkpoint(note, [handle.genesis.vkey], origin=log.origin)
    return note


def prove(log: AuditLogger, wanted: str | int) -> tuple[bytes, bytes]:
    """A ``.tlog-proof`` for an entry by id or index, and its line. ``KeyError`` if it is not here.

    The proof was checked against the checkpoint it carries; ``StoreError`` if it did not hold (the tree is damaged: verify).
    """
    handle = log._handle
    note = current_checkpoint(log)
    head = handle.view.open_head(handle.view.head().note if note is None else note)
    stored = log.stored(wanted)
    hashes = prove_inclusion(handle.store.hashes, stored.hit.index, head.size)
    proof = InclusionProof(stored.hit.index, tuple(hashes), note)
    try:
        proof.verify(stored.line, [handle.genesis.vkey, handle.view.history(head.size).epoch_at(head.size).key])
    except Exception as e:
        raise StoreError(f"the proof of {wanted} does not hold; tally verify {log.path} says where: {e}") from e
    assert leaf_hash(stored.line)
    return proof.format(), stored.line
