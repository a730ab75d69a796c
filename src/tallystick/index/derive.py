"""From stored lines to the rows that the index must hold for them: a pure function, used to fill and to verify.

A **block** holds up to 1,024 consecutive entries, begins at each multiple of 1,024 and at each segment start, and never spans two
segments. A **chunk** is 16,384 consecutive indexes: ``index >> 14``.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

import msgspec

from ..core.entry import Fields
from ..core.errors import Malformed
from ..core.times import parse_time

BLOCK = 1024
CHUNK_BITS = 14
CHUNK = 1 << CHUNK_BITS
_MASK = 2**63 - 1

# Numbers are part of the format. Not here, and so left to the exact answer: what is in nearly every entry or asked for by nobody.
FIELDS = {"event_type": 1, "actor": 2, "resource": 3, "action": 4, "outcome": 5, "service": 6, "session_id": 7, "on_behalf_of": 8,
          "parent_id": 9, "correlation_id": 10, "trace_id": 11, "corrects": 12, "subject": 13}  # fmt: skip
OWN = 0  # the field of what the log says about itself; its only term is 0
USUAL_OUTCOME = "success"  # not posted
_OPTIONAL = tuple((name, FIELDS[name]) for name in FIELDS if name not in ("event_type", "actor", "resource", "action", "outcome"))
_EVENT_TYPE, _ACTOR, _RESOURCE, _ACTION, _OUTCOME = (FIELDS[n] for n in ("event_type", "actor", "resource", "action", "outcome"))


class Block(NamedTuple):
    """A row of ``blocks``. ``ends``: u32 little-endian per entry, the end of its line (newline included) from ``offset``."""

    first: int
    segment: int
    offset: int
    earliest: int
    latest: int
    ends: bytes
    counts: bytes

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.ends) // 4


class Counts(msgspec.Struct, forbid_unknown_fields=True):
    """How many entries of a block there are by type, actor and outcome. What the log says about itself (``own``) is not in these."""

    own: int
    event_type: dict[str, int]
    actor: dict[str, int]
    outcome: dict[str, int]

    def holds_for(self, size: int) -> bool:
        """True if each sum is the number of entries; other counts are not believed."""
        return all(sum(part.values()) + self.own == size and min(part.values(), default=1) > 0 and self.own >= 0
                   for part in (self.event_type, self.actor, self.outcome))  # fmt: skip


class Summary(msgspec.Struct):
    """What the index wants to know of an entry: a part of its ``Fields``, and quicker to read from a line."""

    event_id: str
    timestamp: str
    event_type: str
    actor: str
    resource: str
    action: str
    outcome: str
    session_id: str | None = None
    service: str | None = None
    on_behalf_of: str | None = None
    parent_id: str | None = None
    correlation_id: str | None = None
    trace_id: str | None = None
    corrects: str | None = None
    subject: str | None = None


class Line(NamedTuple):
    """An entry as it is indexed: index, length of its line without newline, fields."""

    index: int  # type: ignore[assignment]
    length: int
    fields: Fields | Summary


_encoder = msgspec.json.Encoder(order="sorted")
_counts = msgspec.json.Decoder(Counts)
_summary = msgspec.json.Decoder(Summary)


def summary_of(line: bytes) -> Summary:
    """Bytes of a line that is not judged here: ``verify`` judges it, and the index with it. ``Malformed`` if it is no JSON of an
    entry at all."""
    try:
        return _summary.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"not an entry: {str(e)[:200]}") from e


def decode_counts(data: bytes | str) -> Counts:
    """``msgspec.DecodeError`` (a ``ValueError``) for what is not a block's counts."""
    return _counts.decode(data)


@lru_cache(maxsize=1 << 14)
def term_of(value: str) -> int:
    """The number under which a value is posted."""
    return int.from_bytes(sha256(value.encode("utf-8", "surrogatepass")).digest()[:8], "big") & _MASK


def id_key(event_id: str) -> int:
    """The number under which an event id is kept. Those that we mint ascend with time, so that they are added at the end."""
    if len(event_id) == 36 and event_id.startswith("evt_"):
        try:
            return int(event_id[4:20], 16) & _MASK
        except ValueError:
            pass
    return int.from_bytes(sha256(event_id.encode("utf-8", "surrogatepass")).digest()[:8], "big") & _MASK


def block_start(index: int, segment: int) -> int:
    """First index of the block of an entry in the segment that begins at ``segment``."""
    return max(segment, index - index % BLOCK)


def block_of(segment: int, offset: int, lines: Iterable[Line]) -> Block:
    """The row of consecutive entries, the first of which begins at ``offset``."""
    ends, end, own = array("I"), 0, 0
    earliest, latest, first = _MASK, 0, -1
    types: dict[str, int] = {}
    actors: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    for index, length, fields in lines:
        if first < 0:
            first = index
        end += length + 1
        ends.append(end)
        moment = parse_time(fields.timestamp)
        earliest = min(earliest, moment)
        latest = max(latest, moment)
        kind = fields.event_type
        if kind.startswith("log."):
            own += 1
        else:
            types[kind] = types.get(kind, 0) + 1
            actors[fields.actor] = actors.get(fields.actor, 0) + 1
            outcomes[fields.outcome] = outcomes.get(fields.outcome, 0) + 1
    return Block(first, segment, offset, earliest, latest, little(ends), _encoder.encode(Counts(own, types, actors, outcomes)))


def joined(a: Block, b: Block) -> Block:
    """Two parts of one block, in their order."""
    shift = a.ends[-4:]
    base = int.from_bytes(shift, "little")
    ends = array("I", [end + base for end in numbers("I", b.ends)])
    left, right = decode_counts(a.counts), decode_counts(b.counts)
    for mine, its in ((left.event_type, right.event_type), (left.actor, right.actor), (left.outcome, right.outcome)):
        for name, count in its.items():
            mine[name] = mine.get(name, 0) + count
    left.own += right.own
    return Block(a.first, a.segment, a.offset, min(a.earliest, b.earliest), max(a.latest, b.latest), a.ends + little(ends),
                 _encoder.encode(left))  # fmt: skip


Postings = dict[tuple[int, int], bytes]
"""(field, term) → u16 little-endian offsets within the chunk, ascending."""


class PostingsBuilder:
    """Collects the postings of entries of one chunk, given in ascending index."""

    def __init__(self) -> None:
        self._found: dict[int, dict[str, list[int]]] = {number: {} for number in (*FIELDS.values(), OWN)}
        self._often = tuple(self._found[n] for n in (_EVENT_TYPE, _ACTOR, _RESOURCE, _ACTION))
        self._rare = tuple((name, self._found[number]) for name, number in _OPTIONAL)

    def add(self, index: int, fields: Fields | Summary) -> None:
        """One more entry."""
        at = index & (CHUNK - 1)
        types, actors, resources, actions = self._often
        for terms, value in ((types, fields.event_type), (actors, fields.actor), (resources, fields.resource),
                             (actions, fields.action)):  # fmt: skip
            known = terms.get(value)
            if known is None:
                terms[value] = [at]
            else:
                known.append(at)
        if fields.outcome != USUAL_OUTCOME:
            self._found[_OUTCOME].setdefault(fields.outcome, []).append(at)
        if fields.event_type.startswith("log."):
            self._found[OWN].setdefault("", []).append(at)
        for name, terms in self._rare:
            value = getattr(fields, name)
            if value is not None:
                terms.setdefault(value, []).append(at)

    def rows(self) -> Postings:
        """What the chunk's rows must be for these entries."""
        rows: Postings = {}
        for number, terms in self._found.items():
            for value, offsets in terms.items():
                key = (number, term_of(value) if number else 0)
                data = little(array("H", offsets))
                rows[key] = data if key not in rows else merged(rows[key], data)
        return rows


def postings_of(lines: Iterable[Line]) -> Postings:
    """The postings of entries of one chunk, in ascending index."""
    builder = PostingsBuilder()
    for index, _, fields in lines:
        builder.add(index, fields)
    return builder.rows()


def merged(a: bytes, b: bytes) -> bytes:
    """Two values with one number: their entries in order."""
    return little(array("H", sorted({*numbers("H", a), *numbers("H", b)})))


def little(numbers_: array[int]) -> bytes:
    """Little-endian bytes whatever the machine."""
    if sys.byteorder == "big":
        numbers_ = array(numbers_.typecode, numbers_)
        numbers_.byteswap()
    return numbers_.tobytes()


def numbers(kind: str, data: bytes) -> array[int]:
    """Back: ``kind`` is ``H`` (u16) or ``I`` (u32). ``ValueError`` for a length that is no multiple."""
    found = array(kind)
    found.frombytes(data)
    if sys.byteorder == "big":
        found.byteswap()
    return found
