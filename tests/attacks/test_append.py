"""What cannot become an entry is refused by name, nothing is written, and the next append works."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
from typing import Any

import pytest

from tallystick import AuditLogger
from tallystick.core.entry import LINE_BYTES_MAX
from tallystick.core.errors import Conflict, EntryRefused, Malformed

from .conftest import Case

GOOD: dict[str, Any] = {"event_type": "user_action", "actor": "ana", "actor_type": "user", "resource": "crm", "action": "a",
                        "outcome": "success"}  # fmt: skip


class Key(enum.Enum):
    """As a key of details it stands for its text."""

    A = "a"
    N = 5


def nested(depth: int, kind: str = "list") -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


DETAILS: dict[str, tuple[Any, str]] = {
    "NaN": ({"a": {"b": [0, math.nan]}}, "details.a.b[1]"),
    "infinity": ({"a": math.inf}, "details.a"),
    "minus infinity": ({"a": -math.inf}, "details.a"),
    "a float too large for its digits": ({"a": 1e20}, "details.a"),
    "10,000 digits": ({"a": 10**10_000}, "details.a"),
    "minus 10,000 digits": ({"a": [-(10**10_000)]}, "details.a[0]"),
    "2^64": ({"a": 2**64}, "details.a"),
    "-2^63-1": ({"a": -(2**63) - 1}, "details.a"),
    "a lone surrogate": ({"a": "\ud800"}, "details.a"),
    "a lone surrogate in a list": ({"a": ["x", "\udfff"]}, "details.a[1]"),
    "a lone surrogate in a key": ({"a\ud800": 1}, "details (a key)"),
    "bytes": ({"a": b"x"}, "details.a"),
    "Decimal": ({"a": decimal.Decimal("1.5")}, "details.a"),
    "datetime": ({"a": datetime.datetime.now(datetime.UTC)}, "details.a"),
    "a set": ({"a": {1}}, "details.a"),
    "an object": ({"a": object()}, "details.a"),
    "complex": ({"a": 1j}, "details.a"),
    "a class": ({"a": int}, "details.a"),
    "a key that is a number": ({"a": {1: 2}}, "details.a"),
    "a key that is None": ({None: 2}, "details"),
    "a key that is bytes": ({b"x": 2}, "details"),
    "a key that is an Enum of a number": ({Key.N: 2}, "details"),
    "the same key twice through an Enum": ({"a": 1, Key.A: 2}, "details"),
    "33 levels": (nested(40, "dict"), "details" + ".a" * 32),
    "33 levels of lists": ({"a": nested(40)}, "details.a" + "[0]" * 31),
    "200,000 levels": ({"a": nested(200_000)}, "details.a" + "[0]" * 31),
    "itself": (circular(), "details" + ".self" * 32),
    "oversized": ({"a": "x" * LINE_BYTES_MAX}, "details"),
    "oversized by escapes": ({"a": "\x00" * (LINE_BYTES_MAX // 6)}, "details"),
    "oversized in UTF-8": ({"a": "ü" * (LINE_BYTES_MAX // 2)}, "details"),
    "50 MB": ({"a": "x" * 50_000_000}, "details"),
    "100,000 keys": ({str(i): i for i in range(100_000)}, "details"),
    "a list": ([1], "details"),
    "text": ("x", "details"),
}
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"severity": "high"}, "severity"),
    "an unknown field with a strange name": ({"": 1}, ""),
    "recorded_at": ({"recorded_at": "2026-11-24T08:12:04.123456Z"}, "recorded_at"),
    "index": ({"index": 5}, "index"),
    "checksum": ({"checksum": "00"}, "checksum"),
    "no actor": ({"actor": None}, "actor"),
    "an empty actor": ({"actor": ""}, "actor"),
    "an actor that is a number": ({"actor": 5}, "actor"),
    "an actor that is bytes": ({"actor": b"ana"}, "actor"),
    "an actor with half a surrogate pair": ({"actor": "a\ud800"}, "actor"),
    "an empty action": ({"action": ""}, "action"),
    "an empty resource": ({"resource": ""}, "resource"),
    "a resource that is a list": ({"resource": ["crm"]}, "resource"),
    "an oversized resource": ({"resource": "x" * 70_000}, "details"),
    "another actor type": ({"actor_type": "robot"}, "actor_type"),
    "another outcome": ({"outcome": "ok"}, "outcome"),
    "an outcome that is True": ({"outcome": True}, "outcome"),
    "another type": ({"event_type": "login"}, "event_type"),
    "a type in capitals": ({"event_type": "Auth.Login"}, "event_type"),
    "a type with a trailing newline": ({"event_type": "auth.login\n"}, "event_type"),
    "a type with digits of another script": ({"event_type": "auth.٣"}, "event_type"),
    "log.created": ({"event_type": "log.created"}, "event_type"),
    "log.anything": ({"event_type": "log.anything"}, "event_type"),
    "the log's own actor": ({"actor": "tallystick", "actor_type": "system"}, "actor"),
    "an id that is a path": ({"event_id": "../x"}, "event_id"),
    "an id with a space": ({"event_id": "a b"}, "event_id"),
    "an id with a newline": ({"event_id": "a\n"}, "event_id"),
    "an id of 129 characters": ({"event_id": "a" * 129}, "event_id"),
    "an id that is empty": ({"event_id": ""}, "event_id"),
    "an id that is a number": ({"event_id": 5}, "event_id"),
    "a naive time": ({"timestamp": datetime.datetime(2026, 11, 24)}, "timestamp"),
    "a time before 1970": ({"timestamp": "1969-12-31"}, "timestamp"),
    "a time that is a number": ({"timestamp": 1764000000}, "timestamp"),
    "a time that is none": ({"timestamp": "soon"}, "timestamp"),
    "a time beyond 9999": ({"timestamp": "9999-12-31T23:59:59.999999-10:00"}, "timestamp"),
    "a session that is a number": ({"session_id": 5}, "session_id"),
    "a reason that is a dict": ({"reason": {}}, "reason"),
    "a payload name in capitals": ({"payloads": {"Prompt": "x"}}, "payloads"),
    "a payload name that is a number": ({"payloads": {5: "x"}}, "payloads"),
    "a payload that is a number": ({"payloads": {"p": 5}}, "payloads.p"),
    "33 payloads": ({"payloads": {f"p{i}": "x" for i in range(33)}}, "payloads"),
    "payloads that are a list": ({"payloads": ["x"]}, "payloads"),
}


def _state(case: Case) -> dict[str, bytes]:
    return {f: case.read(f) for f in case.files() if not f.startswith("index.db")} | {
        p.name: p.read_bytes() for p in case.keys.iterdir()}  # fmt: skip


def _refused(case: Case, event: dict[str, Any], path: str) -> None:
    with AuditLogger(case.folder, memory=case.memory) as log:
        before, size = _state(case), case.size
        with pytest.raises(EntryRefused) as caught:
            log.log(**event)
        assert caught.value.path == path
        assert len(str(caught.value)) < 1000
        with pytest.raises(EntryRefused) as caught:
            log.log_many([GOOD, GOOD, event, GOOD])
        assert (caught.value.path, caught.value.position) == (path, 2)
        assert "event 2" in str(caught.value)
        assert _state(case) == before
        log.log(**GOOD)
        assert case.size == size + 1


@pytest.mark.parametrize("name", sorted(DETAILS))
def test_details(case: Case, name: str) -> None:
    details, path = DETAILS[name]
    _refused(case, {**GOOD, "details": details}, path)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_fields(case: Case, name: str) -> None:
    more, path = FIELDS[name]
    _refused(case, {**GOOD, **more}, path)


@pytest.mark.parametrize("field", ["event_type", "actor", "actor_type", "resource", "action"])
def test_what_must_be_there(case: Case, field: str) -> None:
    with AuditLogger(case.folder, memory=case.memory) as log:
        with pytest.raises(EntryRefused) as caught:
            log.log_many([{k: v for k, v in GOOD.items() if k != field}])
        assert (caught.value.path, caught.value.position) == (field, 0)


def test_the_largest_entry_fits_and_one_byte_more_does_not(case: Case) -> None:
    with AuditLogger(case.folder, memory=case.memory) as log:
        event_id = log.log(**GOOD, details={"a": ""})
        room = LINE_BYTES_MAX - len(log.stored(event_id).line)
        largest = log.log(**GOOD, details={"a": "x" * room})
        assert len(log.stored(largest).line) == LINE_BYTES_MAX
        with pytest.raises(EntryRefused, match="65,536"):
            log.log(**GOOD, details={"a": "x" * (room + 1)})
    assert case.verify().exit_code == 0


def test_what_is_at_the_limits_is_taken(case: Case) -> None:
    details = {"i": [2**64 - 1, -(2**63), 0], "f": [0.0, -0.0, 5e-324, 1.7e8, 1e-7, 123456.789], "deep": nested(30),
               Key.A: Key.A, "t": (1, "x"), "s": "\U0001f600\u2028\x7f\x00", "": ""}  # fmt: skip
    with AuditLogger(case.folder, memory=case.memory) as log:
        found = log.get(log.log(**GOOD, details=details))["details"]
    assert found["i"] == details["i"]
    assert found["f"] == [0, 0, 5e-324, 1.7e8, 1e-7, 123456.789]
    assert found["a"] == "a"
    assert found["t"] == [1, "x"]
    assert found["s"] == details["s"]
    assert case.verify().exit_code == 0


def test_an_id_with_other_content_is_a_conflict(case: Case) -> None:
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.log(**GOOD, event_id="order-1")
        size = case.size
        assert log.log(**GOOD, event_id="order-1") == "order-1"
        with pytest.raises(Conflict, match="outcome"):
            log.log(**{**GOOD, "outcome": "failure"}, event_id="order-1")
        assert case.size == size


def test_the_caller_may_change_what_it_passed(case: Case) -> None:
    """What was recorded is what was passed, not what became of it later."""
    details = {"a": [1]}
    with AuditLogger(case.folder, memory=case.memory) as log:
        event_id = log.log(**GOOD, details=details)
        details["a"].append(2)
        assert log.get(event_id)["details"] == {"a": [1]}


def test_text_that_is_a_subclass(case: Case) -> None:
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "eve"

    with AuditLogger(case.folder, memory=case.memory) as log:
        assert log.get(log.log(**{**GOOD, "actor": Name("ana")}))["actor"] == "ana"
        with pytest.raises(EntryRefused):
            log.log(**GOOD, details={"a": Name("x")})
    assert issubclass(EntryRefused, Malformed)
