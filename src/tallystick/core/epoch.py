"""Epochs: which key may sign a head of which size, and what a closed epoch seals (STORAGE rule 5, tlog.md §5).

Entry 0, ``log.created``, names the public key of epoch 0. A ``log.epoch_close`` at index i ends the running epoch and
names the next key. With c(j) the size just after the close of epoch j and c(−1) = 0, a head of size N is valid only
under the key of the epoch j with c(j−1) < N ≤ c(j). The head of size c(j), the *closing checkpoint*, is the last one that epoch's
key ever signs: the key is destroyed after it was kept, so that nobody who breaks in later can make another history below c(j).

Where the key of the running epoch was lost instead, the log key signs one ``log.epoch_recovered`` entry: that head, and only that
one, is valid under the log key. The log goes on, but whoever holds the log key could have done the same at any time: from the last
close before it on, closed epochs seal nothing against him. ``Seals`` keeps the two apart.

A line that was found beyond the signed head and taken in by recovery has no effect, for ever (STORAGE rule 13):
``log.recovered`` names such ranges, and it can only name lines just before itself. Not here: making or destroying keys.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from .entry import OWN_ACTOR, Fields
from .errors import Malformed, VerificationError
from .note import VerifierKey

CREATED, EPOCH_CLOSE, EPOCH_RECOVERED, RECOVERED = "log.created", "log.epoch_close", "log.epoch_recovered", "log.recovered"
ARCHIVED, PURGED, CONFIG, GAP, CLOCK_STEP = "log.archived", "log.purged", "log.config", "log.gap", "log.clock_step"
STARTED, HEARTBEAT, STOPPED = "log.started", "log.heartbeat", "log.stopped"
KEY_TYPES = frozenset({CREATED, EPOCH_CLOSE, EPOCH_RECOVERED, RECOVERED, ARCHIVED, PURGED})


_OWN = b'"event_type":"log.'


class Epoch(NamedTuple):
    """Epoch ``number`` signs heads of sizes ``after`` < N ≤ ``until`` (``None`` while it is open).

    ``closer``: the key under which the head of size ``until`` must be: its own, or the log key's where its own was lost.
    ``opened``: ``recorded_at`` of the entry that opened it; ``opened_at``: the index of that entry.
    """

    number: int
    key: VerifierKey
    after: int
    until: int | None
    closer: VerifierKey
    opened: str = ""

    @property
    def opened_at(self) -> int:
        """The index of the entry that named this epoch's key."""
        return max(0, self.after - 1)

    @property
    def lost(self) -> bool:
        """True where it was ended by the log key because its own was lost."""
        return self.closer != self.key


class Seals(NamedTuple):
    """What closed epochs say about the entries below. ``sealed_to``: nobody who broke in after that close can have changed an
    entry below it, unless he had the keys of the epochs before. ``broken``: (epoch, size) re-certified by the log key.
    ``missing``: (epoch, size) whose closing checkpoint is not there under the key that must have signed it: from the first of them
    on nothing is sealed."""

    sealed_to: int
    broken: tuple[tuple[int, int], ...]
    missing: tuple[tuple[int, int], ...]


class History(NamedTuple):
    """What the lifecycle entries say that verification needs."""

    epochs: tuple[Epoch, ...]
    recovered: tuple[tuple[int, int], ...]  # half-open ranges of lines that were unsigned when found
    archived: tuple[tuple[int, int, str], ...]  # half-open ranges that left, with the name of the file they are in
    log_key: VerifierKey | None = None  # as entry 0 names it

    def epoch_at(self, size: int) -> Epoch:
        """The epoch whose key may sign a head of ``size`` ≥ 1."""
        at = bisect_left(self.epochs, size, key=lambda epoch: epoch.after) - 1
        if at < 0:
            raise VerificationError(f"no epoch may sign a head of size {size}")
        return self.epochs[at]  # each begins where the one before ends

    def key_at(self, size: int) -> VerifierKey:
        """The key under which the head of ``size`` ≥ 1 must be signed."""
        epoch = self.epoch_at(size)
        return epoch.closer if size == epoch.until else epoch.key

    def closes(self) -> list[int]:
        """The sizes of the closing checkpoints, ascending."""
        return [epoch.until for epoch in self.epochs if epoch.until is not None]

    def seals(self, signed: Mapping[int, Collection[VerifierKey]]) -> Seals:
        """What the closing checkpoints seal. ``signed``: by tree size, the keys whose signature on a checkpoint of this log was
        verified, and whose root is the one recomputed from the entries."""
        sealed_to, broken, missing = 0, [], []
        for epoch in self.epochs:
            if epoch.until is None:
                break
            if epoch.closer not in signed.get(epoch.until, ()):
                missing.append((epoch.number, epoch.until))
            elif epoch.lost:
                broken.append((epoch.number, epoch.until))
            elif not broken and not missing:
                sealed_to = epoch.until
        return Seals(sealed_to, tuple(broken), tuple(missing))

    def extended(self, lines: Iterable[tuple[int, Fields]]) -> History | None:
        """The history with the key lines that follow those it was read from; None where one of them decides about earlier ones, so
        that all have to be read again. ``Malformed`` as in ``read_history``."""
        known = [(index, fields) for index, fields in lines if is_own(fields) and fields.event_type in KEY_TYPES]
        if any(fields.event_type == RECOVERED for _, fields in known):
            return None
        return _fold(self, known, ()) if known else self

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

    first = next(((i, f) for i, f in known if f.event_type == CREATED and i == 0), None)
    if first is None:
        raise Malformed("there is no entry 0 of type log.created")
    key = _key(first[1], "epoch_key", 0)
    log_key = _key(first[1], "log_key", 0) if "log_key" in first[1].details else None
    begun = History((Epoch(0, key, 0, None, key, first[1].recorded_at),), tuple(recovered), (), log_key)
    return _fold(begun, [(i, f) for i, f in known if i > 0], recovered)


def _fold(history: History, known: list[tuple[int, Fields]], without: Collection[tuple[int, int]]) -> History:
    """Lines in the ranges ``without`` have no effect."""
    epochs, archived = list(history.epochs), history.archived
    used = {epoch.key.public for epoch in epochs} | ({history.log_key.public} if history.log_key is not None else set())
    for index, fields in known:
        if any(start <= index < stop for start, stop in without):
            continue
        if fields.event_type in (EPOCH_CLOSE, EPOCH_RECOVERED):
            _end(epochs, used, index, fields, history.log_key)
        elif fields.event_type == ARCHIVED:
            archived = tuple(_parts(fields, index))
    return history._replace(epochs=tuple(epochs), archived=archived)


def _end(epochs: list[Epoch], used: set[bytes], index: int, fields: Fields, log_key: VerifierKey | None) -> None:
    """One epoch ends, the next begins. Exactly what the type says, or ``Malformed``: an epoch closes once, and no key comes twice."""
    last, said = epochs[-1], fields.details
    numbers = [said.get("epoch"), said.get("first"), said.get("last")]
    if numbers != [last.number, last.after, index] or any(type(n) is not int for n in numbers):  # true == 1
        raise Malformed(f"entry {index}: {fields.event_type} is not that of epoch {last.number}, entries {last.after} to {index}")
    key = _key(fields, "next_key", index)
    if key.public in used:
        raise Malformed(f"entry {index}: the next key of {fields.event_type} was used before")
    closer: VerifierKey | None = last.key if fields.event_type == EPOCH_CLOSE else log_key
    if closer is None:
        raise Malformed(f"entry {index}: log.epoch_recovered in a log whose first entry names no log key")
    used.add(key.public)
    epochs[-1] = last._replace(until=index + 1, closer=closer)
    epochs.append(Epoch(last.number + 1, key, index + 1, None, key, fields.recorded_at))


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
    key = _parsed(text)
    if key.name != fields.log:
        raise Malformed(f"entry {index}: the {name} belongs to {key.name[:80]!r}, not to this log")
    return key


@lru_cache(maxsize=1 << 14)  # the history is read again and again, and every key in it is the same
def _parsed(text: str) -> VerifierKey:
    return VerifierKey.parse(text)
