"""The quick way to prove content: every stored line in one pass, leaf by leaf against ``tree/0``, up to the signed root.

It says yes or nothing. Where anything at all is not as it should be, ``check`` looks again, slowly, and finds out what. Lines are
hashed in runs of about a megabyte, on as many threads as there are cores where hashing lets go of the interpreter's lock
(``core/_sha256``); what is in memory at once is bounded by that.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ..core import merkle
from ..core.checkpoint import Checkpoint
from ..core.epoch import own_lines
from ..core.errors import StoreError
from ..core.merkle import HASH_BYTES, Frontier, leaves_of
from ..core.tiles import frontier_at
from ..store import Run, Segment, Store

_THREADS_MAX = 4


class Agreed(NamedTuple):
    """Everything agrees. ``own``: lines that may be the log's about itself, with their index; ``end``: where the last signed line
    ends in the last segment."""

    own: list[tuple[int, bytes]]
    end: int


def prove_content(store: Store, head: Checkpoint, start: int, progress: Callable[[str, int], None]) -> Agreed | None:
    """Lines [start, head.size) against the tree and the signed root; None where something does not agree or is not here.

    Below ``start`` only those hashes of the tree are read that its frontier consists of: the signed root binds them. Below the first
    line that is here (archived before) the whole tree is recomputed from its leaf hashes, unless ``start`` is above.
    """
    segments = store.segments()
    first = segments[0].start if segments else head.size
    with contextlib.suppress(StoreError):
        return _Pass(store, head, progress).run(segments, max(first, start), derive=start < first)
    return None


class _Differs(Exception):
    """Something is not as it should be."""


class _Pass:
    def __init__(self, store: Store, head: Checkpoint, progress: Callable[[str, int], None]) -> None:
        self._store, self._head, self._progress = store, head, progress
        self._frontier = Frontier()
        self._own: list[tuple[int, bytes]] = []

    def run(self, segments: list[Segment], begin: int, *, derive: bool) -> Agreed | None:
        here = [s for s in segments if s.start < self._head.size]
        if not here or segments[-1].start > self._head.size:
            return None
        try:
            if derive:
                for at in range(0, begin, 1 << 16):
                    self._extend(self._store.hashes(0, at, min(1 << 16, begin - at)))
            elif begin:
                self._frontier = frontier_at(self._store.hashes, begin)
            end = 0
            for at, segment in enumerate(here):
                stop = here[at + 1].start if at + 1 < len(here) else self._head.size
                if stop > self._frontier.size:
                    end = self._segment(segment, stop, last=at + 1 == len(here))
                elif at + 1 == len(here):
                    end = self._end_of(segment, stop)
        except _Differs:
            return None
        if self._frontier.size != self._head.size or self._frontier.root() != self._head.root:
            return None
        return Agreed(self._own, end if segments[-1] == here[-1] else 0)

    def _end_of(self, segment: Segment, stop: int) -> int:
        """Nothing is new: where the last line ends."""
        at = segment.start
        for run in self._store.runs(segment):
            lines = run.lines
            if at + lines >= stop:
                return run.offset + _skip(run.data, stop - at)
            at += lines
        raise _Differs

    def _segment(self, segment: Segment, stop: int, *, last: bool) -> int:
        """Lines [frontier.size, stop) of a segment; the offset behind them."""
        if segment.start > self._frontier.size:
            raise _Differs  # a gap
        end = 0
        for run, row in self._hashed(segment):
            lines, wanted = len(row) // HASH_BYTES, stop - self._frontier.size
            if lines > wanted:
                if not last:
                    raise _Differs
                if not wanted:
                    break
                row, run = row[: wanted * HASH_BYTES], run._replace(size=_skip(run.data, wanted))
            self._take(run, row)
            end = run.offset + run.size
        if self._frontier.size != stop or (not last and end != segment.size):
            raise _Differs
        return end

    def _hashed(self, segment: Segment) -> Iterator[tuple[Run, bytes]]:
        runs = self._from_frontier(segment)
        threads = min(_THREADS_MAX, _cores()) if merkle.native is not None else 1
        if threads < 2 or segment.size < 4 << 20:
            for run in runs:
                yield run, leaves_of(run.data, run.size)
            return
        with ThreadPoolExecutor(threads - 1, "tallystick-verify") as pool:
            waiting: deque[tuple[Run, Future[bytes]]] = deque()
            for run in runs:
                waiting.append((run, pool.submit(leaves_of, run.data, run.size)))
                if len(waiting) > threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()

    def _from_frontier(self, segment: Segment) -> Iterator[Run]:
        """The runs of a segment without the lines below the frontier."""
        below = self._frontier.size - segment.start
        for run in self._store.runs(segment):
            if below:
                lines = run.lines
                if below >= lines:
                    below -= lines
                    continue
                begin, below = _skip(run.data, below), 0
                run = Run(run.offset + begin, run.data[begin : run.size], run.size - begin)
            yield run

    def _take(self, run: Run, row: bytes) -> None:
        at = self._frontier.size
        if row != self._store.hashes(0, at, len(row) // HASH_BYTES):
            raise _Differs
        self._own.extend((at + number, line) for number, line in own_lines(run.data, run.size))
        self._extend(row)
        self._progress("lines", self._frontier.size)

    def _extend(self, row: bytes) -> None:
        before = self._frontier.size
        for level, roots in enumerate(self._frontier.extend_row(row), 1):
            if roots and roots != self._store.hashes(level, before >> 8 * level, len(roots) // HASH_BYTES):
                raise _Differs


def _skip(data: bytes, lines: int) -> int:
    """The offset behind the first ``lines`` lines, of which there are as many."""
    at = 0
    for _ in range(lines):
        at = data.index(b"\n", at) + 1
    return at


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["Agreed", "prove_content"]
