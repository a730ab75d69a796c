"""Opening a log for writing: where it ends, what was signed of it, and what a crash left (STORAGE rules 8, 13–16).

``take_in`` runs under the lock, before every group, and is cheap when nothing happened. Else, in this order:

1. *Covered* lines: up to the newest of the stored head and the mark. They must be there, and the roots computed from them must
   equal the root that was signed, at the size of the head and at the size of the mark. If not: ``StateUnknown``.
2. Complete, decodable lines after them were written and perhaps synced, never signed: written again at the same place,
   synced, taken in, and named as unsigned by a ``log.recovered`` entry.
3. From the first byte that is no complete decodable line: moved to quarantine, named by the same entry.

The tree is believed only as far as the root that it gives is the signed one; otherwise, and after a power loss, it is derived
again from the lines. If we die anywhere here the next writer starts again at 1: nothing is signed before ``log.recovered`` is.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core import entry as ent
from ..core.checkpoint import Checkpoint
from ..core.epoch import RECOVERED
from ..core.errors import AuditError, Malformed, StateUnknown, StoreError
from ..core.merkle import Frontier, leaf_hashes
from ..core.tiles import frontier_at, root_at
from ..keys import Mark
from ..store import Segment, Store
from .view import LogView

HASH = 32
NAMED_MAX = 100  # names in one log.recovered; what more there is of cuts is named by the next
CUT_NAME = re.compile(r"[0-9]{20}-[0-9]{1,20}-[0-9a-f]{16}\.bin", re.ASCII)


class Found(NamedTuple):
    """What recovery found, for the ``log.recovered`` entry."""

    first: int
    end: int
    cut: tuple[dict[str, Any], ...]
    missing_payloads: tuple[str, ...]

    def details(self) -> dict[str, Any]:
        """Half-open range of the lines that were unsigned when found, and what was cut off behind them."""
        found: dict[str, Any] = {"first": self.first, "end": self.end}
        if self.cut:
            found["cut"] = list(self.cut)
        if self.missing_payloads:
            found["missing_payloads"] = list(self.missing_payloads)
        return found


class State(NamedTuple):
    """Where the log ends: tree, place of the next line, head as it was last seen, and what was just recovered."""

    frontier: Frontier
    segment: Segment
    offset: int
    note: bytes | None
    signed: int
    found: Found | None

    @property
    def size(self) -> int:
        """Number of lines."""
        return self.frontier.size


class Recovery:
    """One log's way back to a known state. ``payload_there`` says whether an entry's payload lies in the vault."""

    def __init__(self, store: Store, view: LogView, payload_there: Callable[[ent.Fields, str], bool]) -> None:
        self._store, self._view = store, view
        self._payload_there = payload_there

    def take_in(
        self, state: State | None, mark: Mark | None, *, unclean: bool, kept: Callable[[int], Checkpoint | None] = lambda _: None
    ) -> State:
        """The state now. ``state`` is what this handle knew, ``unclean`` whether the machine went down in between, ``kept`` the
        newest checkpoint above a size that was handed out: a power loss may have taken head and mark and left that.

        ``StateUnknown`` where lines, head, mark and what was handed out contradict each other.
        """
        note = self._store.head()
        head = self._read_head(note)
        self._refuse_what_contradicts(state, head, mark)
        wanted = _signed(head, mark, kept(head.size if head is not None else 0))
        if state is None or unclean:
            state = self._first_look(wanted, unclean)
        state = self._cover(state, wanted)
        return self._tail(state)._replace(note=note)

    def _read_head(self, note: bytes | None) -> Checkpoint | None:
        """None if the stored head says nothing (power loss may tear it; the mark then decides)."""
        try:
            return self._view.open_head(note).checkpoint
        except AuditError:
            self._view.forget()
            return None

    def _refuse_what_contradicts(self, state: State | None, head: Checkpoint | None, mark: Mark | None) -> None:
        origin = self._view.genesis.origin
        if mark is not None and mark.origin != origin:
            raise StateUnknown(f"the key folder belongs to {mark.origin}, this log is {origin}; nothing is signed")
        if mark is None and (head is None or head.size > 1):
            raise StateUnknown(
                "there is no mark of what was last signed beside the keys, but the log has more than its first entry: "
                "a copied log, or keys that are not its own; nothing is signed" + _WAY_ON
            )
        if state is not None and head is not None and head.size < state.signed:
            raise StateUnknown(
                f"the stored checkpoint covers {head.size:,} entries, this process has seen {state.signed:,} signed; "
                "somebody put an older copy here" + _WAY_ON
            )

    def _first_look(self, wanted: list[tuple[int, bytes]], unclean: bool) -> State:
        """The largest signed size at which the tree gives the signed root; else everything again from the lines."""
        segments = self._segments()
        if not unclean:
            for size, root in wanted[::-1]:
                with contextlib.suppress(StoreError):
                    frontier = frontier_at(self._store.hashes, size)
                    if frontier.root() == root and self._older_roots_hold(wanted, size):
                        last = segments[-1]
                        if self._view.end_of(size) == (last.start, last.size):  # a clean stop: nobody has to count
                            return State(frontier, last, last.size, None, size, None)
                        return self._place(frontier, segments)
        start = self._last_sealed(segments) if unclean else segments[0]
        if start != segments[0]:
            with contextlib.suppress(StoreError):  # what the tree says below ``start`` does not hold: begin at the beginning
                return self._derive(start, segments, wanted)
        try:
            return self._derive(segments[0], segments, wanted)
        except StateUnknown:
            raise
        except StoreError as e:
            raise StateUnknown(f"the tree of entries that left this folder cannot be read ({e})" + _WAY_ON) from e

    def _older_roots_hold(self, wanted: list[tuple[int, bytes]], size: int) -> bool:
        return all(root_at(self._store.hashes, s) == root for s, root in wanted if s < size)

    def _segments(self) -> list[Segment]:
        segments = self._store.segments()
        if not segments:
            raise StateUnknown("there are no segments in this log" + _WAY_ON)
        return segments

    @staticmethod
    def _last_sealed(segments: list[Segment]) -> Segment:
        return segments[-2] if len(segments) > 1 else segments[0]

    def _derive(self, start: Segment, segments: list[Segment], wanted: list[tuple[int, bytes]]) -> State:
        """Tree files from ``start`` on, again from the lines, as far as signed; each signed root is checked on the way."""
        frontier = frontier_at(self._store.hashes, start.start) if start.start else Frontier()
        covered = wanted[-1][0] if wanted else 0
        if start != segments[0]:
            self._check_base(frontier, wanted, start)
        for segment in segments[segments.index(start) :]:
            if segment.start != frontier.size or frontier.size >= covered:
                break
            for batch in self._store.batches(segment):
                if frontier.size >= covered:
                    break
                lines = batch.lines[: covered - frontier.size]
                self._extend(frontier, lines, wanted)
        if frontier.size < covered:
            raise self._short(frontier.size, covered)
        return self._place(frontier, segments)

    def _check_base(self, frontier: Frontier, wanted: list[tuple[int, bytes]], start: Segment) -> None:
        """Below ``start`` only the tree is read: it must give the roots that were signed there."""
        for size, root in wanted:
            if size <= start.start and root_at(self._store.hashes, size) != root:
                raise StoreError("the tree does not give the signed root")
        del frontier

    def _cover(self, state: State, wanted: list[tuple[int, bytes]]) -> State:
        """Lines that were signed after what ``state`` knew: by other processes, or before the mark was lost sight of."""
        covered = wanted[-1][0] if wanted else 0
        for size, root in wanted:
            if size <= state.size and not self._root_is(state, size, root):
                raise StateUnknown(f"the first {size:,} entries are not the ones that were signed" + _WAY_ON)
        if covered <= state.size:
            return state._replace(signed=max(state.signed, covered))
        frontier, segment, offset = state.frontier.copy(), state.segment, state.offset
        while True:
            for batch in self._store.batches(segment, offset, frontier.size):
                lines = batch.lines[: covered - frontier.size]
                self._extend(frontier, lines, [w for w in wanted if w[0] > frontier.size])
                offset = batch.offset + sum(map(len, lines)) + len(lines)
                if frontier.size >= covered:
                    break
            following = [s for s in self._segments() if s.start == frontier.size and s.start > segment.start]
            if not following or (frontier.size >= covered and following[0].start > covered):
                break
            segment, offset = following[0], 0
        if frontier.size < covered:
            raise self._short(frontier.size, covered)
        return State(frontier, segment, offset, None, covered, None)

    def _root_is(self, state: State, size: int, root: bytes) -> bool:
        if size == state.size:
            return state.frontier.root() == root
        try:
            return root_at(self._store.hashes, size) == root
        except StoreError:
            return False

    def _short(self, there: int, covered: int) -> StateUnknown:
        return StateUnknown(
            f"{covered:,} entries were signed, only {there:,} are here: the tail is missing, or this is an older copy"
            + _WAY_ON
        )

    def _extend(self, frontier: Frontier, lines: list[bytes], wanted: list[tuple[int, bytes]]) -> None:
        """Hash lines into tree and frontier, stopping at each signed size to compare the root."""
        done = 0
        stops = [size - frontier.size for size, _ in wanted if frontier.size < size <= frontier.size + len(lines)]
        roots = dict(wanted)
        for stop in sorted({*stops, len(lines)}):
            put_leaves(self._store, frontier, leaf_hashes(lines[done:stop]))
            done = stop
            signed = roots.get(frontier.size)
            if signed is not None and frontier.root() != signed:
                raise StateUnknown(f"the first {frontier.size:,} entries are not the ones that were signed" + _WAY_ON)

    def _place(self, frontier: Frontier, segments: list[Segment]) -> State:
        """Where line ``frontier.size`` begins. Lines are counted in the one segment that holds it."""
        size = frontier.size
        home = [s for s in segments if s.start <= size][-1]
        if home.start > size:
            raise self._short(home.start, size)
        reached, offset = home.start, 0
        for batch in self._store.batches(home):
            lines = batch.lines[: size - reached]
            reached += len(lines)
            offset = batch.offset + sum(map(len, lines)) + len(lines)
            if reached == size:
                break
        if reached < size:
            raise self._short(reached, size)
        if size == home.start:
            offset = 0
        return State(frontier, home, offset, None, size, None)

    # -- what nobody signed ------------------------------------------------------------------------------------------

    def _tail(self, state: State) -> State:
        """Rules 13 and 14 for whatever follows the covered lines."""
        segments = self._segments()
        last, signed = segments[-1], state.size
        state, lines = self._sealed_tail(state, segments)
        self._store.attach(last, state.offset)
        rest = self._store.tail(last, state.offset)
        cut = self._unnamed_cuts(signed)
        if not rest and not cut and not lines:
            return state
        here, kept = self._complete_lines(rest)
        frontier = state.frontier.copy()
        if here:
            self._store.rewrite(last, state.offset, rest[:kept])
            put_leaves(self._store, frontier, leaf_hashes(line for line, _ in here))
            lines += here
        if kept < len(rest):
            name, size, digest = self._store.cut(last, state.offset + kept)
            named = {"file": f"quarantine/{name}", "bytes": size, "sha256": digest}
            cut = [*(c for c in cut if c != named), named]
        missing = tuple(
            f"{fields.event_id}/{name}"
            for _, fields in lines
            for name in fields.payloads
            if not self._payload_there(fields, name)
        )
        found = Found(signed, frontier.size, tuple(cut[-NAMED_MAX:]), missing[:NAMED_MAX])
        return State(frontier, last, state.offset + kept, None, state.signed, found)

    def _sealed_tail(self, state: State, segments: list[Segment]) -> tuple[State, list[tuple[bytes, ent.Fields]]]:
        """Unsigned lines in segments that were sealed: whoever took them in began a new segment and died before he could
        sign. He had written them again and synced them, so they are whole and reach the next segment."""
        found: list[tuple[bytes, ent.Fields]] = []
        for segment, following in zip(segments, segments[1:], strict=False):
            if segment.start < state.segment.start:
                continue
            rest = self._store.tail(segment, state.offset)
            lines, kept = self._complete_lines(rest)
            if kept < len(rest) or state.size + len(lines) > following.start:
                raise StateUnknown(f"segments/{segment.name}: bytes after its last line, but it was sealed" + _WAY_ON)
            if state.size + len(lines) < following.start:
                raise StateUnknown(f"segments/{following.name} begins after the end of the log at "
                                   f"{state.size + len(lines):,}" + _WAY_ON)  # fmt: skip
            frontier = state.frontier.copy()
            put_leaves(self._store, frontier, leaf_hashes(line for line, _ in lines))
            state, found = state._replace(frontier=frontier, segment=following, offset=0), found + lines
        return state, found

    def _unnamed_cuts(self, size: int) -> list[dict[str, Any]]:
        """Files in quarantine that no signed entry names: whoever cut them died before he could."""
        folder = self._store.folder / "quarantine"
        if not folder.is_dir():
            return []
        history = self._view.history(size) if size else None
        known = {
            cut.get("file")
            for index, fields in self._view.key_lines().items()
            if fields.event_type == RECOVERED and history is not None and not history.is_recovered(index)
            for cut in fields.details.get("cut", ())
        }
        found = []
        for path in sorted(folder.iterdir()):
            if CUT_NAME.fullmatch(path.name) and path.is_file() and f"quarantine/{path.name}" not in known:
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                found.append({"file": f"quarantine/{path.name}", "bytes": len(data), "sha256": digest})
        return found

    def _complete_lines(self, rest: bytes) -> tuple[list[tuple[bytes, ent.Fields]], int]:
        found: list[tuple[bytes, ent.Fields]] = []
        kept = 0
        for line in rest.split(b"\n")[:-1]:
            try:
                fields = ent.decode(line)
            except Malformed:
                break
            if fields.log != self._view.genesis.origin:
                break
            found.append((line, fields))
            kept += len(line) + 1
        return found, kept


_WAY_ON = (
    ". Reading goes on: tally query, tally verify. Copy first (tally backup --as-evidence). To go on writing: tally resume LOG "
    "--reason …, which leaves this log as it is and opens a successor that names it"
)


def put_leaves(store: Store, frontier: Frontier, leaves: bytes) -> None:
    """Extend the frontier and the tree files by a row of leaf hashes."""
    before = frontier.size
    tiles = frontier.extend_row(leaves)
    store.put_hashes(0, before, leaves)
    for level, roots in enumerate(tiles, 1):
        if roots:
            store.put_hashes(level, before >> 8 * level, roots)


def _signed(*known: Checkpoint | Mark | None) -> list[tuple[int, bytes]]:
    """The sizes that were signed with their roots, ascending."""
    return sorted({(c.size, c.root) for c in known if c is not None})
