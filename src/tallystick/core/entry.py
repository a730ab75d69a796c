"""Entries: one event, one line of JSON, one leaf of the tree.

The line is what is hashed, stored, shown by ``tally show --raw`` and kept. Its grammar (``docs/format.md`` part 2):

* UTF-8 JSON without insignificant white space, fields in the declared order, absent fields omitted, no duplicate keys;
* strings with the escapes of RFC 8785 §3.2.2.2 and no lone surrogates; floats as in RFC 8785 §3.2.2.3, integers as exact
  decimal digits from −2⁶³ to 2⁶⁴−1; at most 32 levels deep;
* at most 65,535 bytes, so that it fits an entry bundle of C2SP tlog-tiles.

``decode`` accepts exactly these bytes: it decodes, encodes again and compares. Example::

    {"v":1,"log":"srv2/invoices/0f3a9c21b7de","event_id":"evt_019a…","timestamp":"2026-11-24T08:12:04.123456Z",
     "recorded_at":"2026-11-24T08:12:04.123981Z","event_type":"data_access","actor":"ana","actor_type":"user",
     "resource":"crm","action":"read customer","outcome":"success","details":{"id":42}}

``recorded_at`` is the last thing to be known (the leader of a group reads the clock under the lock), so that an event is
encoded in two halves between which it is spliced. Not here: payloads (``payload``), the tree (``merkle``), the clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from .errors import EntryRefused, Malformed
from .times import parse_time

LINE_BYTES_MAX = 65_535  # C2SP tlog-tiles: entries are length-prefixed with 16 bits
DEPTH_MAX = 32
INT_MIN, INT_MAX = -(2**63), 2**64 - 1
VERSION = 1
OWN_ACTOR = "tallystick"
PAYLOADS_MAX = 32


class AuditEventType(str, Enum):  # noqa: UP042  # the chapter's enum is str and Enum; its str() must stay
    """The eight types of the chapter. Other types are lower-case dotted names such as ``approval.decision``."""

    DATA_ACCESS = "data_access"
    DATA_MODIFICATION = "data_modification"
    AI_REQUEST = "ai_request"
    AI_RESPONSE = "ai_response"
    CONFIGURATION_CHANGE = "configuration_change"
    USER_ACTION = "user_action"
    SYSTEM_ERROR = "system_error"
    SECURITY_EVENT = "security_event"


EVENT_TYPES = tuple(t.value for t in AuditEventType)
_EVENT_TYPES = frozenset(EVENT_TYPES)
ACTOR_TYPES = ("user", "system", "service", "agent")
OUTCOMES = ("success", "failure", "partial", "denied")
_ACTOR_TYPES, _OUTCOMES = frozenset(ACTOR_TYPES), frozenset(OUTCOMES)
_DOTTED = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+", re.ASCII)
_EVENT_ID = re.compile(r"evt_[0-9a-f]{32}", re.ASCII)
_GIVEN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
_PAYLOAD_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FLOAT_MIN, _FLOAT_MAX = 1e-4, 1e15
_PLAIN = frozenset({str, bool, type(None)})


class PayloadRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry says of a payload: commitment (64 hex), size in bytes, media type. The content is beside the log."""

    commitment: str
    size: int
    media_type: str


class Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The fields of a line in their declared order, which is the order of the bytes."""

    v: int
    log: str
    event_id: str
    timestamp: str
    recorded_at: str
    event_type: str
    actor: str
    actor_type: str
    resource: str
    action: str
    outcome: str
    details: dict[str, Any] = {}
    session_id: str | None = None
    ip_address: str | None = None
    service: str | None = None
    on_behalf_of: str | None = None
    parent_id: str | None = None
    correlation_id: str | None = None
    trace_id: str | None = None
    reason: str | None = None
    corrects: str | None = None
    subject: str | None = None
    payloads: dict[str, PayloadRef] = {}


class EventFields(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The part of a line that callers give, in the same order: ``Fields`` without what the log adds and without payloads.

    ``EventDrafter`` encodes these, and judges what the types leave open.
    """

    event_type: str
    actor: str
    actor_type: str
    resource: str
    action: str
    outcome: str | msgspec.UnsetType = msgspec.UNSET
    details: Any = None
    session_id: str | None = None
    ip_address: str | None = None
    service: str | None = None
    on_behalf_of: str | None = None
    parent_id: str | None = None
    correlation_id: str | None = None
    trace_id: str | None = None
    reason: str | None = None
    corrects: str | None = None
    subject: str | None = None


class AuditEntry(Fields, frozen=True, omit_defaults=True, kw_only=True):
    """An entry as it is read: the fields of its line, its index in the log and its checksum (leaf hash, 64 hex). ``part``: of a log
    that was resumed, which older part it is of, from 1; 0 in the log itself."""

    index: int
    checksum: str
    part: int = 0  # never in a line: there it would stand before ``index``, which is not the one spelling

    @property
    def place(self) -> str:
        """``#17,402``, or ``1#17,402`` in part 1 of a log that was resumed."""
        return f"{self.part or ''}#{self.index:,}"

    @property
    def order(self) -> tuple[bool, int, int]:
        """What sorts entries of all parts in the order of recording."""
        return (not self.part, self.part, self.index)

    @property
    def timestamp_us(self) -> int:
        """When it happened, in microseconds since the epoch: a claim of the caller."""
        return parse_time(self.timestamp)

    @property
    def recorded_at_us(self) -> int:
        """When the log recorded it, in microseconds since the epoch: testimony of the log's machine."""
        return parse_time(self.recorded_at)

    @property
    def is_lifecycle(self) -> bool:
        """True for what the log says about itself (``log.*``)."""
        return self.event_type.startswith("log.")

    def row(self) -> dict[str, Any]:
        """The entry as the chapter's dictionary: its twelve keys always, other fields where they are set."""
        found = {name: getattr(self, name) for name in CHAPTER_KEYS[:-1]}
        found["details"] = _thaw(self.details)
        found["checksum"] = self.checksum
        found["index"] = self.index
        if self.part:
            found["part"] = self.part
        found["recorded_at"] = self.recorded_at
        for name in EXTRA_FIELDS:
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        if self.payloads:
            found["payloads"] = {name: msgspec.structs.asdict(ref) for name, ref in self.payloads.items()}
        return found


FIELD_NAMES = tuple(f.name for f in msgspec.structs.fields(Fields))
CHAPTER_KEYS = (
    "event_id", "timestamp", "event_type", "actor", "actor_type", "resource", "action", "outcome", "details",
    "session_id", "ip_address", "checksum",
)  # fmt: skip
EXTRA_FIELDS = (
    "service", "on_behalf_of", "parent_id", "correlation_id", "trace_id", "reason", "corrects", "subject",
)  # fmt: skip

_encoder = msgspec.json.Encoder()
_encode = _encoder.encode
_entry_decoder = msgspec.json.Decoder(AuditEntry)
_decoder = msgspec.json.Decoder(Fields)


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An encoded event that waits for its ``recorded_at``: the line is ``head + recorded_at + tail``."""

    event_id: str
    head: bytes
    tail: bytes

    def line(self, recorded_at: bytes) -> bytes:
        """The finished line, without newline."""
        return self.head + recorded_at + self.tail


_HOLE = b',"recorded_at":"'
_PLACE = "0000-00-00T00:00:00.000000Z"  # as long as a stored time, so that sizes are known before it is


def encode_draft(fields: Fields, *, own: bool = False) -> Draft:
    """Check one event and encode it up to its ``recorded_at`` (which must be ``""`` in ``fields``).

    ``own`` admits what only the log itself may say. ``EntryRefused`` names the field and what would be accepted; nothing
    else is raised for bad content.
    """
    check_fields(fields, own=own)
    text = encode(fields)
    # {"v":1,"log":"<origin>","event_id":"<id>","timestamp":"<27>" – origin and id need no escapes
    cut = text.index(_HOLE) + len(_HOLE)
    draft = Draft(fields.event_id, text[:cut], text[cut:])
    size = len(text) + len(_PLACE)
    if size > LINE_BYTES_MAX:
        raise EntryRefused(
            f"the entry would be {size:,} bytes, {LINE_BYTES_MAX:,} is the limit; keep long content in payloads=…",
            path="details",
        )
    return draft


class EventDrafter:
    """``encode_draft`` for the usual event of one log, in a third of the time. The same bytes, or None where it takes more to say
    whether there are any: the caller then goes the long way, which refuses in words."""

    __slots__ = ("_prefix",)

    def __init__(self, origin: str) -> None:
        self._prefix = b'{"v":%d,"log":"%b","event_id":"' % (VERSION, origin.encode())

    def draft(self, given: EventFields, event_id: str, timestamp: bytes) -> Draft | None:
        """``event_id`` is one that we minted, ``timestamp`` a stored time. ``given`` may be changed."""
        details, kind, actor, outcome = given.details, given.event_type, given.actor, given.outcome
        if details is not None:
            if type(details) is not dict:
                return None
            if not details:
                given.details = None
            elif not _is_plain(details, 1):
                try:
                    given.details = _plain(details, "details", 1)
                except EntryRefused:
                    return None
        if outcome not in _OUTCOMES:
            if outcome is not msgspec.UNSET:
                return None
            given.outcome = "success"
        if (
            given.actor_type not in _ACTOR_TYPES or not actor or not given.action or not given.resource
            or (kind not in _EVENT_TYPES and (kind.startswith("log.") or not _DOTTED.fullmatch(kind)))
            or (actor == OWN_ACTOR and given.actor_type == "system")
        ):  # fmt: skip
            return None
        try:
            tail = b'",' + _encode(given)[1:]
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair; text that is a subclass
            return None
        head = b'%b%b","timestamp":"%b","recorded_at":"' % (self._prefix, event_id.encode(), timestamp)
        return Draft(event_id, head, tail) if len(head) + len(tail) <= LINE_BYTES_MAX - len(_PLACE) else None


def decode(line: bytes) -> Fields:
    """Bytes of a line (without newline) → its fields. Strict: ``encode(decode(line)) == line`` or ``Malformed``."""
    if len(line) > LINE_BYTES_MAX:
        raise Malformed(f"a line of {len(line):,} bytes; {LINE_BYTES_MAX:,} is the limit")
    try:
        fields = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"not an entry: {str(e)[:200]}") from e
    check_fields(fields, own=True)
    parse_time(fields.recorded_at)
    if encode(fields) != line:
        raise Malformed("not the one spelling of this entry (order, spaces, escapes, numbers or duplicate keys)")
    return fields


def encode(fields: Fields) -> bytes:
    """Fields → the bytes of the line. ``EntryRefused`` where the grammar has no spelling for them."""
    if fields.details and not _is_plain(fields.details, 1):
        plain = _plain(fields.details, "details", 1)
        if plain is not fields.details:
            fields = msgspec.structs.replace(fields, details=plain)
    try:
        return _encoder.encode(fields)
    except UnicodeEncodeError as e:
        raise _surrogate(fields) from e


def encode_value(value: Any) -> bytes:
    """One value in the spelling that a line would have, for comparing what a caller passes with what is stored."""
    return _encoder.encode(_plain(value, "value", 0))


def decode_entry(line: bytes, index: int, checksum: str) -> AuditEntry:
    """``decode`` for somebody who knows the place of the line: an entry, in one go."""
    if len(line) > LINE_BYTES_MAX:
        raise Malformed(f"a line of {len(line):,} bytes; {LINE_BYTES_MAX:,} is the limit")
    # with two more fields at its end the line is the one spelling of the entry, if it is the one spelling of its fields
    text = b'%b,"index":%d,"checksum":"%b"}' % (line[:-1], index, checksum.encode())
    try:
        entry = _entry_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"not an entry: {str(e)[:200]}") from e
    check_fields(entry, own=True)
    parse_time(entry.recorded_at)
    if line[-1:] != b"}" or encode(entry) != text:
        raise Malformed("not the one spelling of this entry (order, spaces, escapes, numbers or duplicate keys)")
    return entry


def check_fields(fields: Fields, *, own: bool = False) -> None:
    """The rules for the declared fields; ``own`` also admits what only the log itself may say (STORAGE rule 4)."""
    if fields.v != VERSION:
        raise EntryRefused(f"schema version {fields.v} is not known here; this is version {VERSION}", path="v")
    if not (_GIVEN_ID.fullmatch(fields.event_id)):
        raise EntryRefused(
            "event_id: 1 to 128 characters of letters, digits and . _ : / @ + - , not beginning with a sign",
            path="event_id",
        )
    parse_time(fields.timestamp)
    if fields.event_type not in _EVENT_TYPES:
        check_event_type(fields.event_type, own=own)
    if fields.actor_type not in ACTOR_TYPES:
        raise _not_one_of("actor_type", fields.actor_type, ACTOR_TYPES)
    if fields.outcome not in OUTCOMES:
        raise _not_one_of("outcome", fields.outcome, OUTCOMES)
    if not (fields.actor and fields.action and fields.resource):
        name = next(n for n in ("actor", "action", "resource") if not getattr(fields, n))
        raise EntryRefused(f"{name} must not be empty", path=name)
    if not own and fields.actor == OWN_ACTOR and fields.actor_type == "system":
        raise EntryRefused('the actor "tallystick" of type "system" is the log itself; use another name', path="actor")
    if fields.payloads:
        _check_payloads(fields.payloads)


def check_event_type(name: str, *, own: bool = False) -> None:
    """A type is one of the eight or a lower-case dotted name; ``log.*`` is the log's own."""
    if name in _EVENT_TYPES:
        return
    if not _DOTTED.fullmatch(name):
        raise EntryRefused(
            f"event_type {name[:80]!r} is not known; known are {', '.join(EVENT_TYPES)}, and any lower-case dotted "
            'name such as "approval.decision"',
            path="event_type",
        )
    if name.startswith("log.") and not own:
        raise EntryRefused("event types log.* are what the log says about itself; use another name", path="event_type")


def is_minted_id(text: str) -> bool:
    """True for the ids that tallystick makes: ``evt_`` and 32 hex digits."""
    return _EVENT_ID.fullmatch(text) is not None


def check_payload_name(name: object) -> str:
    """A payload name: 1 to 64 of ``a-z 0-9 _ . -``, beginning with a letter. ``EntryRefused`` otherwise."""
    if not isinstance(name, str) or not _PAYLOAD_NAME.fullmatch(name):
        raise EntryRefused(f"payload name {str(name)[:80]!r}: up to 64 of a-z 0-9 _ . - , a letter first",
                           path="payloads")  # fmt: skip
    return name


def _check_payloads(refs: Mapping[str, PayloadRef]) -> None:
    if len(refs) > PAYLOADS_MAX:
        raise EntryRefused(f"{len(refs)} payloads; {PAYLOADS_MAX} is the limit", path="payloads")
    for name, ref in refs.items():
        check_payload_name(name)
        if not _HEX64.fullmatch(ref.commitment) or not 0 <= ref.size < 2**63 or not ref.media_type:
            raise EntryRefused("commitment (64 hex), size or media type is wrong", path=f"payloads.{name}")


def _not_one_of(name: str, value: str, allowed: Sequence[str]) -> EntryRefused:
    return EntryRefused(f"{name} {value[:80]!r} is not one of {', '.join(allowed)}", path=name)


def _is_plain(value: dict[Any, Any], depth: int) -> bool:
    """True if the encoder writes ``value`` in its one spelling as it is, which nearly always holds. False says nothing:
    ``_plain`` finds out what is to be changed or refused."""
    for key, item in value.items():
        if type(key) is not str:
            return False
        kind = type(item)
        if kind is str:
            continue
        if kind is int:
            if not INT_MIN <= item <= INT_MAX:
                return False
        elif kind is float:
            # between these bounds, and with a fraction, msgspec and RFC 8785 write the same digits
            if not _FLOAT_MIN <= abs(item) < _FLOAT_MAX or item % 1 == 0:
                return False
        elif kind is list:
            if depth >= DEPTH_MAX or not (_PLAIN.issuperset(map(type, item)) or _is_plain_list(item, depth + 1)):
                return False
        elif kind is dict:
            if depth >= DEPTH_MAX or not _is_plain(item, depth + 1):
                return False
        elif kind not in _PLAIN:
            return False
    return True


def _is_plain_list(value: list[Any], depth: int) -> bool:
    for item in value:
        kind = type(item)
        if not (kind is str or item is None or kind is bool or (kind is int and INT_MIN <= item <= INT_MAX)) and (
            kind is not dict or depth >= DEPTH_MAX or not _is_plain(item, depth + 1)
        ):
            return False
    return True


def _plain(value: Any, path: str, depth: int) -> Any:
    """``value`` with everything that has one JSON spelling, floats spelled as RFC 8785; the same object if nothing
    had to change. ``EntryRefused`` names the path of the first thing that has none."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            shown = f"{value}" if abs(value) < 10**40 else "an integer of more than 40 digits"
            raise EntryRefused(f"{path}: {shown} is outside −2⁶³ … 2⁶⁴−1; pass it as text", path=path)
        return value
    if kind is float:
        return msgspec.Raw(format_float(value, path))
    if depth > DEPTH_MAX:
        raise EntryRefused(f"{path[:120]}: more than {DEPTH_MAX} levels deep", path=path)
    if kind is dict:
        return _plain_dict(value, path, depth)
    if kind is list or kind is tuple:
        items = [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        same = kind is list and all(a is b for a, b in zip(items, value, strict=True))
        return value if same else items
    if isinstance(value, Enum):
        return _plain(value.value, path, depth)
    if isinstance(value, Mapping):
        return _plain_dict(dict(value), path, depth)
    raise EntryRefused(
        f"{path}: {kind.__name__} has no place in an entry; use text, a number, true/false, null, a list or a dict"
        + ("; write the amount as text" if kind.__name__ == "Decimal" else ""),
        path=path,
    )


def _plain_dict(value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
    changed = False
    found: dict[str, Any] = {}
    for key, item in value.items():
        if type(key) is not str:
            if not (isinstance(key, Enum) and isinstance(key.value, str)):
                raise EntryRefused(f"{path}: the key {str(key)[:40]!r} is not text", path=path)
            key, changed = key.value, True
            if key in found:
                raise EntryRefused(f"{path}: the key {key[:40]!r} is there twice", path=path)
        plain = _plain(item, f"{path}.{key}", depth + 1)
        changed = changed or plain is not item
        found[key] = plain
    return found if changed else value


def format_float(value: float, path: str = "") -> bytes:
    """RFC 8785 §3.2.2.3 (ECMAScript Number::toString). Refused: NaN, infinities, and integral floats beyond the integer
    range, whose digits would read back as an integer that has no place."""
    if not math.isfinite(value):
        raise EntryRefused(f"{path}: {value} is not a number that JSON has", path=path)
    if value == 0:
        return b"0"
    shortest = repr(abs(value))
    mantissa, _, exp_text = shortest.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + ("" if fraction == "0" else fraction)).lstrip("0")
    point = int(exp_text or 0) + (len(whole) if whole != "0" else -(len(fraction) - len(fraction.lstrip("0"))))
    digits = digits.rstrip("0") if fraction in ("", "0") else digits
    sign = "-" if value < 0 else ""
    k = len(digits)
    if k <= point <= 21:
        text = digits + "0" * (point - k)
        if not INT_MIN <= int(sign + text) <= INT_MAX:  # the digits, which are not always the value: -2.0**63 reads lower
            raise EntryRefused(f"{path}: {value!r} is outside −2⁶³ … 2⁶⁴−1; pass it as text", path=path)
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        power = point - 1
        text = f"{digits[0]}{'.' + digits[1:] if k > 1 else ''}e{'+' if power > 0 else '-'}{abs(power)}"
    return (sign + text).encode()


def _surrogate(fields: Fields) -> EntryRefused:
    """Names the field in which the lone surrogate stands."""

    def find(value: Any, path: str) -> str | None:
        if isinstance(value, str):
            return None if value.isascii() or _encodes(value) else path
        if isinstance(value, dict):
            for key, item in value.items():
                if not _encodes(key):
                    return f"{path} (a key)"
                if (hit := find(item, f"{path}.{key}")) is not None:
                    return hit
        if isinstance(value, list):
            for i, item in enumerate(value):
                if (hit := find(item, f"{path}[{i}]")) is not None:
                    return hit
        return None

    for name in FIELD_NAMES:
        hit = find(getattr(fields, name), name)
        if hit is not None:
            return EntryRefused(f"{hit}: half of a surrogate pair is not text; decode it properly first", path=hit)
    return EntryRefused("text that cannot be written as UTF-8", path="details")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _thaw(value: Any) -> Any:
    """A copy that the caller may change."""
    if isinstance(value, dict):
        return {k: _thaw(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_thaw(v) for v in value]
    return value
