"""Epochs: which key may sign a head of which size (STORAGE rule 5).

Entry 0, ``log.created``, names the public key of epoch 0. A ``log.epoch_close`` at index i ends the running epoch and
names the next key. With c(j) the size just after the close of epoch j and c(−1) = 0, a head of size N is valid only
under the key of the epoch j with c(j−1) < N ≤ c(j).

A line that was found beyond the signed head and taken in by recovery has no effect, for ever (STORAGE rule 13):
``log.recovered`` names such ranges, and it can only name lines just before itself. Not here: making or destroying keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .entry import OWN_ACTOR, Fields
from .errors import Malformed, VerificationError
from .note import VerifierKey

CREATED, EPOCH_CLOSE, RECOVERED = "log.created", "log.epoch_close", "log.recovered"
ARCHIVED, PURGED, CONFIG, GAP, CLOCK_STEP = "log.archived", "log.purged", "log.config", "log.gap", "log.clock_step"
KEY_TYPES = frozenset({CREATED, EPOCH_CLOSE, RECOVERED, ARCHIVED, PURGED})


_OWN = b'"event_type":"log.'


class Epoch(NamedTuple):
    """Epoch ``number`` signs heads of sizes ``after`` < N ≤ ``until`` (``None`` while it is open)."""

    number: int
    key: VerifierKey
    after: int
    until: int | None


class History(NamedTuple):
    """What the lifecycle entries say that verification needs."""

    epochs: tuple[Epoch, ...]
    recovered: tuple[tuple[int, int], ...]  # half-open ranges of lines that were unsigned when found
    archived: tuple[tuple[int, int, str], ...]  # half-open ranges that left, with the name of the file they are in

    def epoch_at(self, size: int) -> Epoch:
        """The epoch whose key may sign a head of ``size`` ≥ 1."""
        for epoch in self.epochs:
            if epoch.after < size and (epoch.until is None or size <= epoch.until):
                return epoch
        raise VerificationError(f"no epoch may sign a head of size {size}")

    def archived_until(self) -> int:
        """The length of the prefix that left on record."""
        return self.archived[-1][1] if self.archived else 0

    def is_recovered(self, index: int) -> bool:
        """True for a line that was unsigned when found."""
        return any(start <= index < stop for start, stop in self.recovered)


def is_own(fields: Fields) -> bool:
    """True for an entry that only the log itself can write."""
    return fields.event_type.startswith("log.") and fields.actor == OWN_ACTOR and fields.actor_type == "system"


def own_lines(run: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Of complete lines, the first ``size`` bytes of ``run``, those that may be the log's about itself, each with its number from 0.
    Whether they are ``decode`` and ``is_own`` say."""
    found, number, counted = run.find(_OWN, 0, size), 0, 0
    while found >= 0:
        begin, end = run.rfind(b"\n", 0, found) + 1, run.find(b"\n", found)
        number, counted = number + run.count(b"\n", counted, begin), begin
        yield number, run[begin:end]
        found = run.find(_OWN, end, size)


def read_history(lines: Iterable[tuple[int, Fields]]) -> History:
    """Fold the key lines, in ascending index, into the history. Entry 0 must be among them.

    ``Malformed`` where an effective line does not say what its type must say.
    """
    known = [(index, fields) for index, fields in lines if is_own(fields) and fields.event_type in KEY_TYPES]
    recovered = _recovered_ranges(known)

    def effective(index: int) -> bool:
        return not any(start <= index < stop for start, stop in recovered)

    epochs: list[Epoch] = []
    archived: list[tuple[int, int, str]] = []
    for index, fields in known:
        if not effective(index):
            continue
        if fields.event_type == CREATED and index == 0:
            epochs.append(Epoch(0, _key(fields, "epoch_key", index), 0, None))
        elif fields.event_type == EPOCH_CLOSE and epochs:
            last = epochs[-1]
            epochs[-1] = last._replace(until=index + 1)
            epochs.append(Epoch(last.number + 1, _key(fields, "next_key", index), index + 1, None))
        elif fields.event_type == ARCHIVED:
            archived = _parts(fields, index)
    if not epochs:
        raise Malformed("there is no entry 0 of type log.created")
    return History(tuple(epochs), tuple(recovered), tuple(archived))


def _recovered_ranges(known: list[tuple[int, Fields]]) -> list[tuple[int, int]]:
    """Later lines decide about earlier ones, so fold from the end: a ``log.recovered`` that was itself recovered says
    nothing."""
    found: list[tuple[int, int]] = []
    for index, fields in reversed(known):
        if fields.event_type != RECOVERED or any(a <= index < b for a, b in found):
            continue
        first, stop = fields.details.get("first"), fields.details.get("end")
        if not (type(first) is int and type(stop) is int and 0 < first <= stop <= index):
            raise Malformed(f"entry {index}: log.recovered without its range")
        if first < stop:
            found.append((first, stop))
    return found[::-1]


def _parts(fields: Fields, index: int) -> list[tuple[int, int, str]]:
    """``log.archived`` names the whole prefix from 0 and where each part went."""
    parts, reached = [], 0
    listed = fields.details.get("parts")
    for part in listed if isinstance(listed, list) else [None]:
        first, end, name = (part.get(n) for n in ("first", "end", "name")) if isinstance(part, dict) else (None,) * 3
        if not (type(first) is int and first == reached and type(end) is int and first < end <= index
                and isinstance(name, str)):  # fmt: skip
            raise Malformed(f"entry {index}: log.archived does not name the whole prefix from 0")
        parts.append((first, end, name))
        reached = end
    return parts


def _key(fields: Fields, name: str, index: int) -> VerifierKey:
    text = fields.details.get(name)
    if not isinstance(text, str):
        raise Malformed(f"entry {index}: {fields.event_type} does not name its {name}")
    key = VerifierKey.parse(text)
    if key.name != fields.log:
        raise Malformed(f"entry {index}: the {name} belongs to {key.name[:80]!r}, not to this log")
    return key
