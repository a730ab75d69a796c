"""What the cases need of tallystick beyond its public interface, in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tallystick import AuditLogger
from tallystick.capture import clients
from tallystick.capture.content import ContentPolicy
from tallystick.capture.recorder import Recorder
from tallystick.core import merkle
from tallystick.core.tiles import prove_inclusion
from tallystick.journal import LogJournal
from tallystick.verification import verify_log


def settle(log: AuditLogger) -> None:
    """Head, tree and mark synced, the index caught up: nothing of one case runs on in the next."""
    log._handle.writer.make_durable()
    log._handle.view.fill()


def fill(log: AuditLogger) -> None:
    """The index, up to the head."""
    if not log._handle.view.fill():
        time.sleep(0.001)  # the keeper is at it
        fill(log)


def groups(log: AuditLogger) -> int:
    """How many groups were committed."""
    return log._handle.writer.groups.groups


def prove(log: AuditLogger, index: int, size: int) -> list[bytes]:
    """An inclusion proof from the stored tree."""
    return prove_inclusion(log._handle.store.hashes, index, size)


def verify_content(log: AuditLogger, *, pure: bool = False) -> int:
    """Content only; ``pure``: with hashlib, on one thread."""
    native = merkle.native
    merkle.native = None if pure else native
    try:
        verdict = verify_log(log.path, memory=log.memory, content=True)
    finally:
        merkle.native = native
    assert verdict.exit_code == 0, verdict.sentence
    return verdict.tree_size


def verify_everything(log: AuditLogger, *, new_only: bool = False) -> int:
    """Content, index and payloads."""
    verdict = verify_log(log.path, memory=log.memory, new_only=new_only)
    assert verdict.exit_code == 0, verdict.sentence
    return verdict.tree_size


def hashing() -> str:
    """Which way hashes are made by default."""
    return "libcrypto, in batches (extension)" if merkle.native is not None else "hashlib (no extension)"


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the entries, the tree and the index."""
    def total(part: Path) -> int:
        return sum(f.stat().st_size for f in part.iterdir())

    return {"entries": total(folder / "segments"), "tree": total(folder / "tree"), "index": (folder / "index.db").stat().st_size}


def recorder(log: AuditLogger, *, puts: Callable[[dict[str, Any]], Any] | None = None, content: str = "commitment") -> Recorder:
    """A recorder on the log; with ``puts`` its events go there and not into the log."""
    journal = LogJournal(log)
    if puts is not None:
        journal = _Elsewhere(log, puts)
    return Recorder(journal, ContentPolicy(content))


class _Elsewhere(LogJournal):
    def __init__(self, log: AuditLogger, puts: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(log)
        self._puts = puts

    def put(self, keywords: dict[str, Any], event_id: str) -> None:
        self._puts(keywords)

    async def aput(self, keywords: dict[str, Any], event_id: str) -> None:
        self._puts(keywords)


def nothing(_: object) -> None:
    """Where events go that are not to be recorded."""


def wrap(one: Recorder, client: Any) -> Any:
    """``AuditLogger.wrap`` with that recorder."""
    return clients.wrap(one, client)
