"""Verdicts: what was seen, in ranges, and what became of each expected line. Pure; ``log.check`` reads the files.

Exit codes (STORAGE rule 21): 0 all that was asked is proven · 2 usage or I/O · 3 cannot judge · 4 malformed input handed in · 5 stale
or an older copy · 6 altered, missing or rolled back. If several apply: the first of 6, 2, 4, 5, 3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .times import SECOND_US, format_time

ISSUES = ("checksum_mismatch", "missing", "duplicate", "order", "index_mismatch", "bad_signature", "rolled_back", "replaced",
          "split_view")
ASKED = ("not_witnessed", "not_anchored", "not_sealed", "not_content", "not_confirmed", "not_alive", "stale", "silent")
HASHES_ONLY = "hashes only"
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
    """A half-open range of indexes and what holds for all of it, in four dimensions that say nothing of each other.

    ``contents``: ``content proven``, ``proven before``, ``hashes only`` and why, ``altered``, ``missing``. ``signed``: ``signed`` or
    ``unsigned when found``. ``epoch``: ``sealed`` and its exceptions. ``outside``: who confirmed it and counts.
    """

    start: int
    end: int
    contents: tuple[str, ...]
    signed: str = "signed"
    epoch: str = "epoch open"
    outside: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All of them in one row."""
        return (*self.contents, self.signed, self.epoch, *(self.outside or ("nobody outside yet",)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"start": self.start, "end": self.end, "words": list(self.words), "contents": list(self.contents),
                "signed": self.signed, "epoch": self.epoch, "outside": list(self.outside)}  # fmt: skip


class Confirmation(NamedTuple):
    """Somebody said that the first ``size`` entries had the root that they have. ``kind``: ``witness``, ``timestamp``, ``folder``,
    ``mail`` or ``given`` (a checkpoint that whoever verifies brought along); ``time_us``: when, as he says himself, 0 if he does
    not. ``counts`` False: it says nothing to this verifier; ``remark`` says why."""

    by: str
    kind: str
    size: int
    time_us: int = 0
    counts: bool = True
    remark: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"by": self.by, "kind": self.kind, "size": self.size, "counts": self.counts, "remark": self.remark,
                "time": format_time(self.time_us) if self.time_us else None}  # fmt: skip


@dataclass
class Verdict:
    """What verification says. ``exit_code`` follows from ``findings``. The sizes say how far, from 0: ``confirmed_to`` by anybody
    outside who counts, ``witnessed_to`` by witnesses, ``anchored_to`` by anchors and given checkpoints, ``sealed_to`` by closed
    epochs; ``gone_to`` what left on record. ``of``: what was verified, ``log``, ``archive``, ``proof``, ``pack``, ``answer`` or
    ``checkpoints``."""

    origin: str = ""
    tree_size: int = 0
    root: str = ""
    lifecycle_entries: int = 0
    findings: list[Finding] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    not_proven: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    proven_from: int = 0
    older_parts: list[str] = field(default_factory=list)  # what holds of the logs that this one goes on after
    lost_on_record: int = 0  # entries of older parts that are not here, as tally resume recorded
    broken_at: int | None = None  # the first index from which on no epoch seals, because the key of one was reported lost
    of: str = "log"
    confirmations: list[Confirmation] = field(default_factory=list)
    confirmed_to: int = 0
    witnessed_to: int = 0
    anchored_to: int = 0
    sealed_to: int = 0
    gone_to: int = 0
    pending: list[str] = field(default_factory=list)  # parties outside of which nothing is proven, and why
    seen: list[str] = field(default_factory=list)
    times: tuple[str, str] | None = None  # when the first and the last entry that are here were recorded
    evidence: list[str] = field(default_factory=list)  # files with checkpoints that contradict each other
    lacks: list[tuple[str, str]] = field(default_factory=list)  # what would make it stronger, and the command that adds it
    key: tuple[str, str, int] = ("", "", 0)  # the log's verifier key, who vouches for it (you, given, nobody), since when if known
    said: str = ""  # what holds, of a pack or an answer
    stale_since_us: int = 0  # the newest confirmation, where it is too old and not of everything

    @property
    def exit_code(self) -> int:
        """The first that applies of 6, 2, 4, 5, 3; else 0."""
        codes = {f.code for f in self.findings}
        return next((c for c in _ORDER if c in codes), 0)

    @property
    def verdict(self) -> str:
        """One word for the exit code."""
        return _WORDS[self.exit_code]

    def _count(self, issue: str) -> int:
        """How many entries a kind of finding is about; what is not about an entry counts one. Several parties who all say that the
        same entries are gone do not make them more."""
        found = [f for f in self.findings if f.issue == issue and f.code == 6]
        ranges = sorted((f.index, f.end) for f in found if f.index is not None and f.end is not None)
        count, to = len(found) - len(ranges), 0
        for start, end in ranges:
            count, to = count + max(0, end - max(start, to)), max(to, end)
        return count

    @property
    def sentence(self) -> str:
        """One sentence that anybody understands; it says what was seen, not who or why."""
        code = self.exit_code
        if code == 0:
            return self._good()
        if code == 6:
            count = {name: self._count(name) for name in ISSUES}
            said = {"checksum_mismatch": "not the bytes that were signed", "missing": "missing without a record",
                    "duplicate": "there twice", "order": "out of place", "index_mismatch": "wrong in the index",
                    "bad_signature": "not signed by this log", "rolled_back": "cut off or rolled back",
                    "replaced": "not the log that is known here", "split_view": "told in two versions"}  # fmt: skip
            return "; ".join(f"{n:,} × {said[name]}" for name, n in count.items() if n).upper() + "."
        worst = next(f for f in self.findings if f.code == code)
        if all(f.issue in ASKED for f in self.findings):
            return f"{self._good()[:-1]}. NOT AS ASKED FOR: {worst.text}."
        return f"{self.verdict.upper()}: {worst.text}."

    def _good(self) -> str:
        if self.of in ("pack", "answer"):
            return self.said
        if self.of == "proof":
            return f"THE ENTRY IS IN THE LOG {self.origin}, as it was at {self.tree_size:,} entries."
        if self.of == "checkpoints":
            return f"ONE HISTORY of {self.origin}: the longer of the two, {self.tree_size:,} entries, begins with the shorter."
        if self.of == "archive":
            last = self.spans[0] if self.spans else None
            return f"NOTHING ALTERED in this archive{f': #{last.start:,} – #{last.end - 1:,}' if last else ''}."
        gone = f", of which {self.gone_to:,} are archived on record" if self.gone_to else ""
        lost = f"; BUT {self.lost_on_record:,} OF AN OLDER PART ARE LOST (on record)" if self.lost_on_record else ""
        if self.broken_at is not None:
            lost += f"; BUT A SIGNING KEY WAS REPORTED LOST: from #{self.broken_at:,} on nothing is sealed"
        return f"NOTHING ALTERED, NOTHING MISSING among {self.tree_size:,} entries{gone}; {self.confirmed}{lost}."

    @property
    def confirmed(self) -> str:
        """How much of the log somebody outside this machine confirms, and since when nothing newer."""
        left = self.tree_size - self.confirmed_to
        if not self.confirmed_to:
            return "none of them is confirmed outside this machine yet"
        text = "all of them" if left <= 0 else f"all but the newest {left:,}" if left > 1 else "all but the newest one"
        stale = f", nothing newer since {minute_text(self.stale_since_us)}" if self.stale_since_us else ""
        return f"{text} also confirmed outside this machine{stale}"

    @property
    def ranges(self) -> list[dict[str, Any]]:
        """The spans for JSON."""
        return [s.as_dict() for s in self.spans]

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
            "next": self.next, "older_parts": self.older_parts, "lost_on_record": self.lost_on_record,
            "confirmed_until": self.confirmed_to, "witnessed_until": self.witnessed_to,
            "anchored_until": self.anchored_to, "sealed_until": self.sealed_to,
            "stale_since": format_time(self.stale_since_us) if self.stale_since_us else None,
            "confirmations": [c.as_dict() for c in self.confirmations], "seen": self.seen,
            "pending": self.pending,
            "lacks": [{"what": what, "command": command} for what, command in self.lacks],
            "evidence": self.evidence,
            "key": {"vkey": self.key[0], "pinned": self.key[1], "since": format_time(self.key[2]) if self.key[2] else None},
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


def minute_text(us: int) -> str:
    """``2026-11-24 02:00 UTC``; what is outside the years 1970 to 9999, where anybody may state a time, as a number."""
    if not 0 <= us < 253_402_300_800 * SECOND_US:
        return f"second {us // SECOND_US} since 1970"
    return f"{format_time(us)[:16].replace('T', ' ')} UTC"


def merge(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of which the same holds become one."""
    found: list[Span] = []
    for span in sorted(spans):
        if span.start >= span.end:
            continue
        if found and found[-1].end == span.start and found[-1][2:] == span[2:]:
            found[-1] = found[-1]._replace(end=span.end)
        else:
            found.append(span)
    return found
