"""From stored lines to the rows that the index must hold for them: a pure function, used to fill and to verify.

A **block** holds up to 1,024 consecutive entries, begins at each multiple of 1,024 and at each segment start, and never spans two
segments. A **chunk** is 16,384 consecutive indexes: ``index >> 14``.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from operator import attrgetter
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
_GETTERS = {name: attrgetter(name) for name, _ in _OPTIONAL}
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


class Lines(NamedTuple):
    """Consecutive entries of one segment: index of the first, where its line begins, lengths of the lines without newline, fields."""

    first: int
    segment: int
    offset: int
    lengths: list[int]
    fields: Sequence[Fields | Summary]

    def part(self, start: int, stop: int) -> Lines:
        """Entries ``start`` to ``stop``, which are indexes and lie in these."""
        a, b = start - self.first, stop - self.first
        return Lines(start, self.segment, self.offset + sum(self.lengths[:a]) + a, self.lengths[a:b], self.fields[a:b])


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


def block_of(lines: Lines) -> Block:
    """The row of entries that make a block, or a part of one."""
    fields = lines.fields
    times = [f.timestamp for f in fields]
    # stored times have one length: the least text is the least time
    earliest, latest = parse_time(min(times)), parse_time(max(times))
    types = [f.event_type for f in fields]
    counted = Counter(types)
    own = [kind for kind in counted if kind.startswith("log.")]
    if own:
        fields = [f for f in fields if not f.event_type.startswith("log.")]
    counts = Counts(sum(counted.pop(kind) for kind in own), dict(counted), dict(Counter([f.actor for f in fields])),
                    dict(Counter([f.outcome for f in fields])))  # fmt: skip
    ends = array("I", accumulate([length + 1 for length in lines.lengths]))
    return Block(lines.first, lines.segment, lines.offset, earliest, latest, little(ends), _encoder.encode(counts))


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

    def add(self, indexes: Sequence[int], fields: Sequence[Fields | Summary]) -> None:
        """More entries, by their indexes in the log."""
        places = [index & (CHUNK - 1) for index in indexes]
        for number, values in (
            (_EVENT_TYPE, [f.event_type for f in fields]), (_ACTOR, [f.actor for f in fields]),
            (_RESOURCE, [f.resource for f in fields]), (_ACTION, [f.action for f in fields]),
        ):  # fmt: skip
            terms = self._found[number]
            for value, at in zip(values, places, strict=True):
                if value in terms:
                    terms[value].append(at)
                else:
                    terms[value] = [at]
        own = self._found[OWN]
        mine = [at for f, at in zip(fields, places, strict=True) if f.event_type.startswith("log.")]
        if mine:
            own.setdefault("", []).extend(mine)
        unusual = self._found[_OUTCOME]
        for outcome, at in [(f.outcome, at) for f, at in zip(fields, places, strict=True) if f.outcome != USUAL_OUTCOME]:
            unusual.setdefault(outcome, []).append(at)
        for name, number in _OPTIONAL:
            values_of = _GETTERS[name]
            found = [(value, at) for value, at in zip(map(values_of, fields), places, strict=True) if value is not None]
            terms = self._found[number]
            for value, at in found:
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


def postings_of(lines: Lines) -> Postings:
    """The postings of entries of one chunk."""
    builder = PostingsBuilder()
    builder.add(range(lines.first, lines.first + len(lines.fields)), lines.fields)
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
