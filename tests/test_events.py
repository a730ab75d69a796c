"""The short way from keywords to an event gives the bytes of the long way, or leaves it to that."""

import datetime
import enum
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import AuditLogger, audit_context
from tallystick.core import entry as ent
from tallystick.core.errors import EntryRefused
from tallystick.events import EventBuilder, build_event

ORIGIN = "srv2/invoices/0f3a9c21b7de"
NOW = b"2026-11-24T08:12:04.123456Z"


class Kind(str, enum.Enum):  # noqa: UP042
    OWN = "user_action"


class Text(str):
    __slots__ = ()


text = st.text(max_size=12) | st.sampled_from(["", "tallystick", "a", "é\u2028\"\\\n\x00", "\ud800", Text("sub"), Kind.OWN])
scalars = (
    st.none() | st.booleans() | text | st.integers(-(2**65), 2**65)
    | st.floats() | st.sampled_from([1.0, -0.0, 1e-4, 9.99e-5, 1e15, 999999999999999.9, 1e16, 5e-324, 1e21, 2**63, 2**64 - 1, -(2**63) - 1])
    | st.sampled_from([datetime.date(2026, 1, 1), b"x", Kind.OWN, {1}, object])
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.integers(), inner, max_size=3)
                      | st.tuples(inner), max_leaves=6)  # fmt: skip
events = st.fixed_dictionaries(
    {
        "event_type": st.sampled_from(["data_access", "approval.decision", "log.created", "Data", "", "a.b.", Kind.OWN]) | text,
        "actor": text, "actor_type": st.sampled_from(["user", "system", "service", "agent", "x"]), "resource": text, "action": text,
    },
    optional={
        "outcome": st.sampled_from(["success", "failure", "", "fine", None]), "details": st.none() | st.dictionaries(text, values, max_size=4),
        "session_id": st.none() | text, "service": st.none() | text, "reason": text, "subject": text, "trace_id": text | st.integers(),
        "unknown": text,
    },
)  # fmt: skip


def short(event):
    """None where it leaves the event to the long way."""
    try:
        return ent.EventDrafter(ORIGIN).draft(msgspec.convert(event, ent.EventFields), "evt_" + "0" * 32, NOW)
    except msgspec.ValidationError:
        return None


@given(events)
@settings(max_examples=1500, deadline=None)
def test_both_ways_write_the_same_bytes(event):
    quick = short({**event, "details": event["details"]} if "details" in event else dict(event))
    try:
        slow = build_event({**event, "event_id": "evt_" + "0" * 32, "timestamp": NOW.decode()}, ORIGIN, None).draft
    except EntryRefused:
        assert quick is None
        return
    if quick is not None:
        assert quick.line(NOW) == slow.line(NOW)
        assert ent.decode(quick.line(NOW)).event_id == quick.event_id


def test_nearly_all_events_take_the_short_way():
    from bench.events import events as some

    assert all(short(event) is not None for event in some(500))
    assert short({**some(1)[0], "details": {"a": 5.0, "b": [1.5, {"c": 1e18}]}}) is not None


def test_an_empty_outcome_is_refused():
    with pytest.raises(EntryRefused, match="outcome"):
        EventBuilder(ORIGIN, None).event({"event_type": "user_action", "actor": "a", "actor_type": "user", "resource": "r", "action": "x", "outcome": ""})


def test_many_events_are_named_by_their_position_and_keep_their_order(tmp_path):
    good = {"event_type": "user_action", "actor": "a", "actor_type": "user", "resource": "r", "action": "x"}
    with AuditLogger(tmp_path / "audit_log") as log:
        with pytest.raises(EntryRefused, match=r"event 2: details\.n") as refused:
            log.log_many([good, good, {**good, "details": {"n": math.nan}}, good])
        assert refused.value.position == 2
        assert list(log.entries()) == []
        mixed = [{**good, "details": {"n": n, **({"when": 2.0**70} if n % 3 == 0 else {})}} for n in range(30) if n % 3]
        mixed.insert(5, {**good, "details": {"n": 99}, "timestamp": "2020-01-01T00:00:00Z"})
        mixed.insert(9, {**good, "details": {"n": 98}, "payloads": {"a": "b"}})
        ids = log.log_many(tuple(mixed))
        assert [e.event_id for e in log.entries()] == ids
        assert [e.details["n"] for e in log.entries()] == [e["details"]["n"] for e in mixed]
        assert len(set(ids)) == len(ids)


def test_the_context_and_the_service_reach_both_ways(tmp_path):
    good = {"event_type": "user_action", "actor": "a", "actor_type": "user", "resource": "r", "action": "x"}
    with AuditLogger(tmp_path / "audit_log", service="crm") as log:
        log.log(**good)
        log.log(**good, service="own")
        log.log_many([good, {**good, "service": "own"}])
        with audit_context(case="INV-1"):
            log.log(**good)
            log.log_many([good])
        found = [(e.service, e.correlation_id) for e in log.entries()]
    assert found == [("crm", None), ("own", None), ("crm", None), ("own", None), ("crm", "INV-1"), ("crm", "INV-1")]


def test_the_short_way_has_the_fields_of_the_long_one_in_their_order():
    assert list(ent.EventFields.__struct_fields__) == list(ent.FIELD_NAMES[ent.FIELD_NAMES.index("event_type") : -1])
    assert ent.FIELD_NAMES[-1] == "payloads"
