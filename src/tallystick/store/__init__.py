"""Stores: where lines, hashes and the head are kept. This page is the contract; ``tests/store/test_contract.py`` runs it.

A store keeps **lines** in runs called **segments**, each named by the index of its first line; the last one grows. It
keeps the **hashes** of the tree (level 0: leaf hashes, level L: roots of full subtrees of 256^L leaves) and one **head**,
the signed checkpoint. It knows nothing of what lines, hashes and heads mean.

*Readers* take no lock and change nothing. They may run while a writer does: ``head`` can be seen half-written (the caller
tries again for a second), lines beyond the head may be there or not.

*Writers* call the methods below ``exclusive`` only inside it. ``exclusive`` admits one holder among all threads,
processes and handles of a machine and is fair; ``LogBusy`` after ``wait_s`` names the holder.

* ``append`` writes lines, ``sync`` makes them durable before it returns: after a power loss they are there, byte for byte.
  Between the two there is time to hash and to sign. If ``append`` raises ``OSError``, or anything before ``sync`` does,
  ``rollback`` restores the end as it was; if a sync failed the handle is ``broken`` and only closing is left (a failed sync is
  never retried: STORAGE rule 11).
* ``put_hashes`` and ``put_head`` overwrite in place and are durable only after ``flush`` (rule 10): everything they say can be
  computed again from the lines.
* ``cut`` moves bytes after an offset of the last segment into quarantine, durable there before they are gone here.
* ``drop`` removes the first segment; the caller has proven that a copy exists elsewhere (rule 20).

Indexes are 0-based, ranges half-open, offsets in bytes within a segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol


class Segment(NamedTuple):
    """A run of lines: index of the first, name, size in bytes when it was looked at."""

    start: int
    name: str
    size: int


class Batch(NamedTuple):
    """Complete consecutive lines without their newlines; ``offset`` is where the first one begins in ``segment``."""

    index: int  # type: ignore[assignment]
    segment: int
    offset: int
    lines: list[bytes]


class Run(NamedTuple):
    """Complete consecutive lines as they lie, newlines included: the first ``size`` bytes of ``data``, which begin at ``offset``."""

    offset: int
    data: bytes
    size: int

    @property
    def lines(self) -> int:
        """How many there are."""
        return self.data.count(b"\n", 0, self.size)


class Holder(NamedTuple):
    """Who held the lock last: process id, boot id, and whether it ended in an orderly way."""

    pid: int
    boot: str
    clean: bool


class Store(Protocol):
    """What every backend does. See the module's text for the guarantees."""

    folder: Path
    broken: bool

    def head(self) -> bytes | None:
        """The stored head, or None if there is none."""

    def segments(self) -> list[Segment]:
        """All segments, ascending."""

    def batches(self, segment: Segment, offset: int = 0, index: int | None = None) -> Iterator[Batch]:
        """The complete lines of a segment from ``offset`` (where line ``index`` begins), in order, in bounded memory."""

    def runs(self, segment: Segment) -> Iterator[Run]:
        """The same from the beginning of a segment, not cut into lines."""

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes, or ``StoreError``."""

    def lines(self, places: Iterable[tuple[int, int, int]]) -> Iterator[bytes]:
        """For each (segment, offset, length) what ``read`` gives, in the same order; ``places`` is asked for as it goes."""

    def hashes(self, level: int, start: int, count: int) -> bytes:
        """``count`` × 32 bytes of a level, or ``StoreError``."""

    def hash_count(self, level: int) -> int:
        """How many whole hashes a level holds."""

    def exclusive(self, wait_s: float) -> AbstractContextManager[None]:
        """The one writer."""

    def last_holder(self) -> Holder | None:
        """Who held it last, as it is written down; None if nobody did."""

    def note_holder(self, boot: str, *, clean: bool, durable: bool) -> None:
        """Write down who holds it now, ``clean`` at an orderly end."""

    def forget_thread(self) -> None:
        """After fork: whatever waits for the lock is the parent's."""

    def moved(self) -> bool:
        """True if what this handle has open is no longer what lies at its place."""

    def untouched(self, head: bytes) -> bool:
        """True if nobody wrote since this handle did: the lock's last holder, the head and the end are as it left them."""

    def appended(self, limit: int) -> bytes | None:
        """What others wrote behind this handle's end in the segment it has open; None if that is more than ``limit`` bytes, or
        before ``attach``."""

    def continues(self, start: int) -> bool:
        """True if a segment begins at ``start`` that this handle does not have open: somebody sealed the one it has."""

    def head_now(self) -> bytes | None:
        """The head at the place where this handle writes it; None before it did."""

    def advance(self, count: int) -> None:
        """Go on ``count`` bytes later in the same segment."""

    def attach(self, segment: Segment, offset: int) -> None:
        """Go on writing ``segment`` at ``offset``."""

    def detach(self) -> None:
        """Forget where the end is."""

    def tail(self, segment: Segment, offset: int) -> bytes:
        """Everything after ``offset``: what recovery looks at."""

    def make_reserve(self) -> None:
        """Keep room for the entry that says that the disk was full."""

    def release_reserve(self) -> bool:
        """Give that room back; False if it was given up already."""

    def append(self, start: int, data: bytes) -> int:
        """Write whole lines (with newlines), the first having index ``start``; returns their offset. Not durable yet."""

    def sync(self) -> None:
        """Make what was appended durable."""

    def rollback(self) -> None:
        """Undo the last ``append``, which was not synced."""

    def roll(self, start: int) -> None:
        """Seal the growing segment and begin one at index ``start``."""

    def rewrite(self, segment: Segment, offset: int, data: bytes) -> None:
        """Write the same bytes again at the same place and sync them (recovery, rule 13)."""

    def cut(self, segment: Segment, offset: int) -> tuple[str, int, str]:
        """Move what follows ``offset`` to quarantine: its name there, number of bytes, SHA-256 in hex."""

    def put_hashes(self, level: int, start: int, data: bytes) -> None:
        """Write hashes at their place."""

    def put_head(self, note: bytes) -> None:
        """Write the head."""

    def flush(self) -> None:
        """Make hashes and head durable. May run in another thread than the one that writes."""

    def flush_all(self) -> None:
        """Like ``flush``, also for what other handles of this store wrote."""

    def drop(self, segment: Segment) -> None:
        """Remove the first segment."""

    def close(self) -> None:
        """Release everything without syncing."""
