"""From the keywords of ``AuditLogger.log`` to an event that can be appended: checked, with its id, time and payload commitments.

What a caller passed is judged here, before anything waits for a lock, so that a refusal costs nobody else anything. This is the
price of every ``log()`` that a disk cannot hide; ``bench`` measures it as the caller's cost of ``submit``.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from itertools import repeat
from typing import Any

import msgspec

from .capture.context import current_context
from .clock import CLOCK
from .core import entry as ent
from .core.entry import AuditEventType, EventDrafter, EventFields, Fields, PayloadRef
from .core.errors import EntryRefused
from .core.payload import PAYLOAD_BYTES_MAX, SALT_BYTES, Payload, commit
from .core.times import format_time, parse_asked, to_us
from .log.writer import Content, Event, Given
from .vault import Place

_REQUIRED = ("event_type", "actor", "actor_type", "resource", "action", "outcome")
_OPTIONAL = frozenset({"service", "on_behalf_of", "parent_id", "correlation_id", "trace_id", "reason", "corrects", "subject",
                       "session_id", "ip_address"})  # fmt: skip
_TEXT = frozenset({*_OPTIONAL, *_REQUIRED})
KEYWORDS = frozenset({*_TEXT, "details", "timestamp", "payloads", "event_id"})
_convert = msgspec.convert
POSITIONS = (*_REQUIRED, "details", "session_id", "ip_address")


class EventBuilder:
    """Makes the events of one log. ``service`` is the program's name or None."""

    def __init__(self, origin: str, service: str | None) -> None:
        self._origin, self._service = origin, service
        self._drafter = EventDrafter(origin)

    def event(self, given: dict[str, Any], minted: str | None = None) -> Event:
        """One event: the short way where it is like nearly all, else ``build_event``. ``minted``: the id it gets, one of ours."""
        if not current_context():
            if type(given.get("event_type")) is AuditEventType:
                given = {**given, "event_type": given["event_type"].value}
            try:
                fields = _convert(given, EventFields)
            except msgspec.ValidationError:
                pass  # said in words below
            else:
                if not fields.service:
                    fields.service = self._service
                draft = self._drafter.draft(fields, minted or CLOCK.event_id(), format_time(CLOCK.wall_us()).encode())
                if draft is not None:
                    return Event(draft)
        return build_event(given, self._origin, self._service, minted)

    def events(self, given: Sequence[Mapping[str, Any]]) -> list[Event]:
        """Many events, happening at the same moment unless they say otherwise. An event that is refused is named by its position."""
        given = list(given)
        if not current_context():
            with contextlib.suppress(msgspec.ValidationError):
                now, service, draft = format_time(CLOCK.wall_us()).encode(), self._service, self._drafter.draft
                rows = _convert(given, list[EventFields])
                if service:
                    for fields in rows:
                        fields.service = fields.service or service
                drafts = list(map(draft, rows, CLOCK.event_ids(len(rows)), repeat(now)))
                return [Event(one) if one is not None else self._long(n, given[n]) for n, one in enumerate(drafts)]
        return [self._long(position, one) for position, one in enumerate(given)]

    def _long(self, position: int, given: Mapping[str, Any]) -> Event:
        try:
            return self.event(dict(given))
        except EntryRefused as e:
            raise EntryRefused(f"event {position}: {e}", path=e.path, position=position) from None


def build_event(given: Mapping[str, Any], origin: str, service: str | None, minted: str | None = None) -> Event:
    """Keywords of ``log`` → an event ready to be appended. ``origin`` is the log's, ``service`` the program's name or None.

    What ``audit_context`` has set fills in what the caller left out. ``EntryRefused`` names the field that is wrong.
    """
    context = current_context()
    texts: dict[str, str] = {}
    for name, value in given.items():
        if type(value) is str and name in _TEXT:
            texts[name] = value
        elif name not in KEYWORDS:
            raise _unknown(given)
        elif name in _REQUIRED or (value is not None and name in _OPTIONAL):
            texts[name] = _require(value, name)
    if context:
        for name, value in context.items():
            if name not in texts and given.get(name) is None:
                texts[name] = _require(value, name)
    if service is not None and not texts.get("service"):
        texts["service"] = service
    texts.setdefault("outcome", "success")
    now = CLOCK.wall_us()
    event_id, moment, details, payloads = given.get("event_id"), given.get("timestamp"), given.get("details"), given.get("payloads")
    chosen = event_id is not None
    event_id = _require(event_id, "event_id") if chosen else minted or CLOCK.event_id()
    if details is None:
        details = {}
    elif type(details) is not dict:
        if not isinstance(details, Mapping):
            raise EntryRefused(f"details is a dict, not {type(details).__name__}", path="details")
        details = dict(details)
    refs, contents = _payloads(payloads, event_id, texts.get("subject")) if payloads else ({}, ())
    try:
        fields = Fields(
            v=ent.VERSION, log=origin, event_id=event_id, timestamp=format_time(now) if moment is None else _timestamp(moment),
            recorded_at="", details=details, payloads=refs, **texts,
        )  # fmt: skip
    except TypeError:  # a field without a default is not there
        for name in _REQUIRED:
            _require(texts.get(name), name)
        raise
    if chosen:
        # compared later, under the lock, with what is stored: the caller may change his dict until then
        fields = _frozen(fields)
        return Event(ent.encode_draft(fields), contents, Given(fields, moment is not None))
    return Event(ent.encode_draft(fields), contents)


def named(args: tuple[Any, ...], keywords: dict[str, Any], function: str) -> dict[str, Any]:
    """Positional and keyword arguments as ``log`` takes them → keywords. ``TypeError`` as Python would say it."""
    if len(args) > len(POSITIONS):
        raise TypeError(f"{function}() takes {len(POSITIONS)} positional arguments, {len(args)} were given")
    bound = dict(zip(POSITIONS, args, strict=False))
    twice = set(bound) & set(keywords)
    if twice:
        raise TypeError(f"{function}() got {sorted(twice)[0]} twice")
    return {**bound, **keywords}


def _unknown(given: Mapping[str, Any]) -> EntryRefused:
    name = sorted(map(str, set(given) - KEYWORDS))[0]
    return EntryRefused(f"unknown field {name[:80]!r}; known are {', '.join(sorted(KEYWORDS))}", path=name)


def _frozen(fields: Fields) -> Fields:
    return msgspec.structs.replace(fields, details=copy.deepcopy(fields.details))


def _require(value: Any, name: str) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        raise EntryRefused(f"{name} is missing", path=name)
    if not isinstance(value, str):
        raise EntryRefused(f"{name} is text, not {type(value).__name__}", path=name)
    return value if type(value) is str else str.__str__(value)


def _timestamp(value: Any) -> str:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise EntryRefused("timestamp needs a time zone: datetime.now(timezone.utc), not utcnow()", path="timestamp")
        us = to_us(value)
    elif isinstance(value, str):
        try:
            us = parse_asked(value, zone=UTC)
        except (ValueError, TypeError) as e:
            raise EntryRefused(f"timestamp: {e}", path="timestamp") from None
    else:
        raise EntryRefused(f"timestamp is an aware datetime or text, not {type(value).__name__}", path="timestamp")
    try:
        return format_time(us)
    except ValueError as e:
        raise EntryRefused(f"timestamp: {e}", path="timestamp") from None


def _payloads(given: Any, event_id: str, subject: str | None) -> tuple[dict[str, PayloadRef], tuple[Content, ...]]:
    if not isinstance(given, Mapping):
        raise EntryRefused("payloads is a dict of name → text or bytes", path="payloads")
    refs: dict[str, PayloadRef] = {}
    contents = []
    for name, value in given.items():
        ent.check_payload_name(name)
        payload = _payload(name, value)
        if len(payload.content) > PAYLOAD_BYTES_MAX:
            raise EntryRefused(f"payloads.{name}: more than {PAYLOAD_BYTES_MAX:,} bytes", path=f"payloads.{name}")
        salt = os.urandom(SALT_BYTES)
        refs[name] = PayloadRef(commit(salt, payload.content), len(payload.content), payload.media_type)
        contents.append(Content(Place(event_id, name, subject), salt, payload.content))
    return refs, tuple(contents)


def _payload(name: str, value: Any) -> Payload:
    if isinstance(value, Payload):
        return value
    if isinstance(value, str):
        return Payload(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray):
        return Payload(bytes(value), "application/octet-stream")
    raise EntryRefused(f"payloads.{name}: text, bytes or Payload, not {type(value).__name__}", path=f"payloads.{name}")
