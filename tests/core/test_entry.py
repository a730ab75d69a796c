"""Entries: one event, one line, one spelling."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallystick.core import entry as ent
from tallystick.core.entry import Fields, PayloadRef
from tallystick.core.errors import EntryRefused, Malformed
from tallystick.core.times import format_time

NOW = "2026-11-24T08:12:04.123456Z"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.integers(ent.INT_MIN, ent.INT_MAX) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda f: not (f == int(f) and not -(2**63) < int(f) <= ent.INT_MAX and abs(f) < 1e21)
)  # fmt: skip
values = st.recursive(st.none() | st.booleans() | numbers | text,
                      lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=4), max_leaves=20)  # fmt: skip
refs = st.builds(PayloadRef, commitment=st.text("0123456789abcdef", min_size=64, max_size=64),
                 size=st.integers(0, 2**63 - 1), media_type=some_text)  # fmt: skip
times = st.integers(0, 253_402_300_799_999_999).map(format_time)
optional = st.none() | text


@st.composite
def fields(draw: st.DrawFn) -> Fields:
    return Fields(
        v=1, log="srv/x/0123456789ab", event_id="evt_" + draw(st.text("0123456789abcdef", min_size=32, max_size=32)),
        timestamp=draw(times), recorded_at=draw(times),
        event_type=draw(st.sampled_from([*ent.EVENT_TYPES, "approval.decision", "a.0_.b"])), actor=draw(some_text),
        actor_type=draw(st.sampled_from(ent.ACTOR_TYPES)), resource=draw(some_text), action=draw(some_text),
        outcome=draw(st.sampled_from(ent.OUTCOMES)), details=draw(st.dictionaries(text, values, max_size=5)),
        payloads=draw(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.-]{0,63}", fullmatch=True), refs, max_size=3)),
        **{name: draw(optional) for name in (*ent.EXTRA_FIELDS, "session_id", "ip_address")},
    )  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal as JSON values: 1 and 1.0 are, true and 1 are not. ``b`` was given: where it is a whole float beyond 2⁵³ the
    digits of RFC 8785 read back as an integer near it whose nearest float it is."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, float):
        return float(a) == b
    return type(a) is type(b) and bool(a == b)


@given(fields())
@settings(deadline=None, max_examples=100)
def test_what_is_encoded_is_decoded(given_fields: Fields) -> None:
    line = ent.encode(given_fields)
    read = ent.decode(line)
    assert ent.encode(read) == line
    assert b"\n" not in line
    for name in ent.FIELD_NAMES:
        assert same(getattr(read, name), getattr(given_fields, name)), name
    assert same(json.loads(line).get("details", {}), given_fields.details)


@given(fields())
@settings(deadline=None)
def test_a_draft_becomes_the_same_line(given_fields: Fields) -> None:
    import msgspec

    waiting = msgspec.structs.replace(given_fields, recorded_at="")
    assert ent.encode_draft(waiting, own=True).line(given_fields.recorded_at.encode()) == ent.encode(given_fields)


@given(fields(), st.data())
@settings(deadline=None, max_examples=300)
def test_a_changed_line_is_another_entry_or_none(given_fields: Fields, data: st.DataObject) -> None:
    """Whatever is done to the bytes: they are refused, or they are themselves the one spelling of something."""
    line = bytearray(ent.encode(given_fields))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line) - 1))
        what = data.draw(st.sampled_from(["set", "delete", "insert", "repeat"]))
        if what == "set":
            line[at] = data.draw(st.integers(0, 255))
        elif what == "delete":
            del line[at]
        elif what == "insert":
            line.insert(at, data.draw(st.sampled_from(b' \t\r\n",:{}[]\\0+-eE.u')))
        else:
            line[at:at] = line[at : at + data.draw(st.integers(1, 30))]
    _decoded_or_refused(bytes(line))


@given(st.binary(max_size=200))
@example(b"null")
@example(b"{}")
@example(b'{"v":1}')
@example(b"[" * 60_000)
@example(b'{"v":' + b"1" * 5000)
@example(b"\xff")
@example(b"")
def test_any_bytes(data: bytes) -> None:
    _decoded_or_refused(data)


def _decoded_or_refused(data: bytes) -> None:
    try:
        found = ent.decode(data)
    except Malformed:
        return
    assert ent.encode(found) == data


GOOD = ent.encode(Fields(
    v=1, log="a/b", event_id="evt_" + "0" * 32, timestamp=NOW, recorded_at=NOW, event_type="user_action", actor="ana",
    actor_type="user", resource="crm", action="a", outcome="success", details={"n": 5, "s": "ü/"}, service="x",
))  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [
    (b'"v":1', b'"v":2'), (b'"v":1', b'"v":1.0'), (b'"v":1', b'"v":true'), (b'"v":1', b'"v":"1"'), (b'"n":5', b'"n":5.0'),
    (b'"n":5', b'"n":5e0'), (b'"n":5', b'"n":05'), (b'"n":5', b'"n":+5'), (b'"n":5', b'"n":-0'), (b'"n":5', b'"n":NaN'),
    (b'"n":5', b'"n":5,"n":5'), (b'"n":5', b'"n":1e400'), (b'"n":5', b'"n":18446744073709551616'),
    (b'"n":5', b'"n":-9223372036854775809'), (b'"n":5', b'"n":0.10'), (b'"n":5', b'"n":1E5'), (b'"n":5', b'"n":1e21'),
    (b"/", b"\\/"), ("ü".encode(), b"\\u00fc"), ("ü".encode(), b"\\u0041"), ("ü".encode(), b"\\ud800"),
    ("ü".encode(), b"\xed\xa0\x80"), ("ü".encode(), b"\t"), ("ü".encode(), b"\x00"), (b":", b": "), (b",", b", "),
    (b'"actor":"ana"', b'"actor":""'), (b'"actor":"ana"', b'"actor":null'), (b'"actor":"ana"', b'"actor":5'),
    (b'"service":"x"', b'"service":null'), (b'"service":"x"', b'"unknown":"x"'), (b',"service":"x"', b',"payloads":{}'),
    (b'"service":"x"', b'"service":"x","service":"y"'), (b'"success"', b'"ok"'), (b'"user"', b'"robot"'),
    (b'"user_action"', b'"nothing"'), (b'"user_action"', b'"USER_ACTION"'), (NOW.encode(), NOW[:-1].encode()),
    (NOW.encode(), b"2026-11-24T08:12:04.123456+00:00"), (NOW.encode(), b"2026-11-24T08:12:04Z"),
    (NOW.encode(), b"2026-02-30T08:12:04.123456Z"), (NOW.encode(), b"2026-11-24T08:12:60.123456Z"),
    (NOW.encode(), b"2026-11-24t08:12:04.123456z"), (NOW.encode(), b"1969-12-31T23:59:59.999999Z"),
    (b'"evt_0', b'"evt 0'), (b"{", b"[{"), (b'"details":{"n":5,', b'"details":{"n":5,"deep":' + b"[" * 33 + b"]" * 33 + b","),
])  # fmt: skip
def test_not_the_one_spelling(old: bytes, new: bytes) -> None:
    ent.decode(GOOD)
    assert old in GOOD
    with pytest.raises(Malformed):
        ent.decode(GOOD.replace(old, new, 1))


@pytest.mark.parametrize("change", [lambda g: g + b"\n", lambda g: g + b" ", lambda g: b" " + g, lambda g: b"\xef\xbb\xbf" + g,
                                    lambda g: g + g, lambda g: g[:-1], lambda g: b""])  # fmt: skip
def test_around_the_line(change: Any) -> None:
    with pytest.raises(Malformed):
        ent.decode(change(GOOD))


def test_the_order_is_the_declared_one() -> None:
    loaded = json.loads(GOOD)
    turned = json.dumps(dict(reversed(list(loaded.items()))), separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(Malformed):
        ent.decode(turned)


# -- floats ------------------------------------------------------------------------------------------------------------


def slow_number(value: float) -> str:
    """ECMAScript Number::toString, written from its text: the least k, then the nearest of the k-digit numbers."""
    if value == 0:
        return "0"
    if value < 0:
        return "-" + slow_number(-value)
    exact = Fraction(value)
    n = math.floor(math.log10(value)) + 2
    while exact < Fraction(10) ** (n - 1):
        n -= 1
    for k in range(1, 18):  # value = s × 10^(n−k), 10^(k−1) ≤ s < 10^k
        scale = Fraction(10) ** (n - k)
        near = [s for s in (math.floor(exact / scale), math.floor(exact / scale) + 1)]
        fits = [s for s in near if 10 ** (k - 1) <= s <= 10**k and _rounds_to(Fraction(s) * scale, value)]
        if fits:
            s = min(fits, key=lambda c: (abs(c * scale - exact), c % 2))
            break
    if s == 10**k:
        s, k, n = 1, 1, n + 1
    digits = str(s)
    k = len(digits)
    if k <= n <= 21:
        return digits + "0" * (n - k)
    if 0 < n <= 21:
        return f"{digits[:n]}.{digits[n:]}"
    if -6 < n <= 0:
        return f"0.{'0' * -n}{digits}"
    exponent = f"e{'+' if n > 0 else '-'}{abs(n - 1)}"
    return (digits if k == 1 else f"{digits[0]}.{digits[1:]}") + exponent


def _rounds_to(exact: Fraction, value: float) -> bool:
    try:
        return float(exact) == value
    except OverflowError:
        return False


def _check_float(value: float) -> None:
    expected = slow_number(value)
    assert rfc8785.dumps(value).decode() == expected
    if "." not in expected and "e" not in expected and not ent.INT_MIN <= int(expected) <= ent.INT_MAX:
        with pytest.raises(EntryRefused):
            ent.format_float(value)
        return
    assert ent.format_float(value).decode() == expected
    line = GOOD.replace(b'"n":5', b'"n":' + expected.encode())
    assert float(ent.decode(line).details["n"]) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=1000, deadline=None)
@example(1e21)
@example(1e20)
@example(123456789012345680000.0)
@example(2.0**63)
@example(2.0**64)
@example(-(2.0**63))
@example(5e-324)
@example(1.7976931348623157e308)
@example(2.2250738585072014e-308)
@example(1e-6)
@example(1e-7)
@example(9.999999999999999e22)
@example(1e23)
@example(0.1)
@example(-0.0)
@example(333333333.3333333)
@example(9007199254740993.0)
def test_floats_are_spelled_as_ecmascript_does(value: float) -> None:
    _check_float(value)


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=1000, deadline=None)
def test_floats_by_their_bits(bits: int) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    if math.isfinite(value):
        _check_float(value)


@pytest.mark.parametrize("power", range(-30, 31))
def test_floats_around_the_powers_of_ten(power: int) -> None:
    for value in (10.0**power, math.nextafter(10.0**power, 0), math.nextafter(10.0**power, math.inf), 5 * 10.0**power):
        _check_float(value)
        _check_float(-value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number(value: float) -> None:
    with pytest.raises(EntryRefused, match="details"):
        ent.format_float(value, "details.x")
