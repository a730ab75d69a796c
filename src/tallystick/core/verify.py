"""Verdicts: what was seen, in ranges, and what became of each expected line. Pure; ``log.check`` reads the files.

Exit codes (STORAGE rule 21): 0 all that was asked is proven · 2 usage or I/O · 3 cannot judge · 4 malformed input handed in · 5 stale
or an older copy · 6 altered, missing or rolled back. If several apply: the first of 6, 2, 4, 5, 3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ISSUES = ("checksum_mismatch", "missing", "duplicate", "order", "index_mismatch", "bad_signature", "rolled_back", "replaced")
_ORDER = (6, 2, 4, 5, 3)
_WORDS = {0: "intact", 2: "not readable", 3: "cannot judge", 4: "malformed", 5: "stale", 6: "altered"}


class Finding(NamedTuple):
    """One break: the issue's name, the index it concerns (None: the log as a whole), and where its bytes are."""

    issue: str
    text: str
    code: int = 6
    index: int | None = None  # type: ignore[assignment]
    end: int | None = None
    file: str | None = None
    offset: int | None = None
    event_id: str | None = None
    timestamp: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the chapter's keys always, places where there are some."""
        found: dict[str, Any] = {"event_id": self.event_id, "timestamp": self.timestamp, "issue": self.issue,
                                 "text": self.text}  # fmt: skip
        found |= {k: v for k, v in (("index", self.index), ("end", self.end), ("file", self.file),
                                    ("offset", self.offset)) if v is not None}  # fmt: skip
        return found


class Span(NamedTuple):
    """A half-open range of indexes and the words that hold for all of it."""

    start: int
    end: int
    words: tuple[str, ...]


@dataclass
class Verdict:
    """What verification says. ``exit_code`` follows from ``findings``."""

    origin: str = ""
    tree_size: int = 0
    root: str = ""
    lifecycle_entries: int = 0
    findings: list[Finding] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    not_proven: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    proven_from: int = 0

    @property
    def exit_code(self) -> int:
        """The first that applies of 6, 2, 4, 5, 3; else 0."""
        codes = {f.code for f in self.findings}
        return next((c for c in _ORDER if c in codes), 0)

    @property
    def verdict(self) -> str:
        """One word for the exit code."""
        return _WORDS[self.exit_code]

    @property
    def sentence(self) -> str:
        """One sentence that anybody understands; it says what was seen, not who or why."""
        code = self.exit_code
        if code == 0:
            return f"NOTHING ALTERED, NOTHING MISSING among {self.tree_size:,} entries."
        if code == 6:
            count = {name: sum(1 if f.end is None or f.index is None else f.end - f.index
                               for f in self.findings if f.issue == name and f.code == 6) for name in ISSUES}  # fmt: skip
            said = {"checksum_mismatch": "not the bytes that were signed", "missing": "missing without a record",
                    "duplicate": "there twice", "order": "out of place", "index_mismatch": "wrong in the index",
                    "bad_signature": "not signed by this log", "rolled_back": "cut off or rolled back",
                    "replaced": "not the log that is known here"}  # fmt: skip
            return "; ".join(f"{n:,} × {said[name]}" for name, n in count.items() if n).upper() + "."
        worst = next(f for f in self.findings if f.code == code)
        return f"{self.verdict.upper()}: {worst.text}."

    @property
    def ranges(self) -> list[dict[str, Any]]:
        """The spans for JSON."""
        return [{"start": s.start, "end": s.end, "words": list(s.words)} for s in self.spans]

    @property
    def issues(self) -> list[dict[str, Any]]:
        """The findings for JSON."""
        return [f.as_dict() for f in self.findings]

    def as_dict(self) -> dict[str, Any]:
        """The document that ``verify_integrity`` returns and ``tally verify --json`` prints."""
        return {
            "verified": self.exit_code == 0, "total_entries": max(0, self.tree_size - self.lifecycle_entries),
            "issues": self.issues, "verdict": self.verdict, "exit_code": self.exit_code, "sentence": self.sentence,
            "origin": self.origin, "tree_size": self.tree_size, "root": self.root,
            "lifecycle_entries": self.lifecycle_entries, "ranges": self.ranges, "not_proven": self.not_proven,
            "next": self.next,
        }  # fmt: skip


class Alignment(NamedTuple):
    """How found lines relate to expected ones. Numbers are positions in the two sequences."""

    altered: list[tuple[int, int]]  # expected position, found position
    missing: list[int]  # expected positions
    duplicate: list[tuple[int, int]]  # expected position, found position of the further copy
    moved: list[tuple[int, int]]  # expected position, found position
    inserted: list[tuple[int, int]]  # expected position before which, found position


def align(expected: Sequence[bytes], found: Sequence[bytes]) -> Alignment:
    """Leaf hashes that were signed against leaf hashes of the lines that are there.

    Lines in the right order are anchors (longest increasing run). Between two anchors, unknown lines stand for missing
    ones one by one (altered); what is left over is missing or inserted. Linear where all agree, O(n log n) otherwise.
    """
    if list(expected) == list(found):
        return Alignment([], [], [], [], [])
    position = {h: i for i, h in enumerate(expected)}
    seen: dict[int, int] = {}
    duplicate, known = [], []
    for at, h in enumerate(found):
        i = position.get(h)
        if i is None:
            continue
        if expected[at : at + 1] == [h]:
            i = at  # equal lines are possible in theory; the one in place is itself
        if i in seen:
            duplicate.append((i, at))
        else:
            seen[i] = at
            known.append((i, at))
    anchors = _longest_increasing(known)
    moved = [pair for pair in known if pair not in anchors]
    result = Alignment([], [], duplicate, sorted(moved), [])
    taken = {at for _, at in duplicate} | {at for _, at in moved}
    elsewhere = {i for i, _ in moved}
    last_i, last_at = -1, -1
    for i, at in [*sorted(anchors), (len(expected), len(found))]:
        gone = [g for g in range(last_i + 1, i) if g not in elsewhere]
        new = [n for n in range(last_at + 1, at) if n not in taken]
        pairs = min(len(gone), len(new))
        result.altered.extend(zip(gone[:pairs], new[:pairs], strict=True))
        result.missing.extend(gone[pairs:])
        result.inserted.extend((last_i + 1 + len(gone), n) for n in new[pairs:])
        last_i, last_at = i, at
    return result


def _longest_increasing(pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The pairs (expected, found), ascending in found, of a longest run that ascends in expected too (patience)."""
    tails: list[int] = []
    ends: list[int] = []
    back: list[int] = []
    for at, (i, _) in enumerate(pairs):
        k = bisect_left(tails, i)
        back.append(ends[k - 1] if k else -1)
        if k == len(tails):
            tails.append(i)
            ends.append(at)
        else:
            tails[k], ends[k] = i, at
    chosen, at = set(), ends[-1] if ends else -1
    while at >= 0:
        chosen.add(pairs[at])
        at = back[at]
    return chosen


def merge(spans: Sequence[Span]) -> list[Span]:
    """Neighbours with the same words become one."""
    found: list[Span] = []
    for span in sorted(spans):
        if span.start >= span.end:
            continue
        if found and found[-1].end == span.start and found[-1].words == span.words:
            found[-1] = Span(found[-1].start, span.end, span.words)
        else:
            found.append(span)
    return found
