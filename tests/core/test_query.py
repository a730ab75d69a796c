"""Questions: what the index narrows to is what a slow look at every entry finds; unknown fields are errors."""

from __future__ import annotations

import fnmatch
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick import AuditEntry, AuditLogger
from tallystick.core.entry import EVENT_TYPES, FIELD_NAMES, OUTCOMES
from tallystick.core.query import FIELDS, Condition, Question, ask, glob_matches, parse_where
from tallystick.core.times import parse_time
from tallystick.index.derive import Lines
from tallystick.index.file import SCHEMA, Index
from tallystick.index.fill import add
from tallystick.index.search import search
from tallystick.memory import Memory

ACTORS = ["ana", "Ana", "bo", "an*", "a_a", "ünal", "x'y", 'x"y', "%", "", "7", "true"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditLogger]:
    """150 events in which every field varies, also absent; some with times that go back, some not in the index yet."""
    base = tmp_path_factory.mktemp("query")
    events = []
    for i in range(150):
        events.append({
            "event_type": [*EVENT_TYPES, "auth.login"][i % 9], "actor": ACTORS[i % 12] or "nobody",
            "actor_type": ("user", "agent", "service")[i % 3], "resource": f"crm/{i % 7}", "action": ("read it", "write it")[i % 2],
            "outcome": OUTCOMES[i % 4], "timestamp": f"2026-11-{1 + i * 7 % 28:02d}T08:00:00.{i:06d}Z",
            "details": {"amount": (i, i / 2, str(i), None, True)[i % 5], "deep": {"a": {"b": i % 3}}, "dot.ted": i % 2,
                        "empty": {}, "list": [1]},
            "session_id": None if i % 2 else f"s{i % 5}", "ip_address": None if i % 3 else "10.0.0.7",
            "subject": None if i % 4 else ACTORS[i % 12], "case": None,
        })  # fmt: skip
        events[-1].pop("case")
    with AuditLogger(base / "log", memory=Memory(base / "state")) as made:
        made.log_many(events[:100])
        made.query(limit=1)
        made.log_many(events[100:])
        yield made


@pytest.fixture(scope="module")
def everything(log: AuditLogger) -> list[AuditEntry]:
    found = list(log.entries({"index": {">=": 0}})) + list(log.entries({"event_type": {"glob": "log.*"}}))
    return sorted(found, key=lambda e: e.index)


def slow(entries: list[AuditEntry], filters: dict[str, Any], start: int | None, end: int | None) -> list[int]:
    """Written from the description, not from the code."""

    def value(entry: AuditEntry, field: str) -> Any:
        if not field.startswith("details."):
            found = getattr(entry, field)
            return None if found == {} else found
        path = field.removeprefix("details.")
        if path in entry.details:
            return entry.details[path]
        here: Any = entry.details
        for step in path.split("."):
            here = here.get(step) if isinstance(here, dict) else None
        return here

    def equal(a: Any, b: Any) -> bool:
        return (a is b) if isinstance(a, bool) or isinstance(b, bool) else a == b

    def holds(entry: AuditEntry, field: str, wanted: Any) -> bool:
        have = value(entry, field)
        if isinstance(wanted, dict):
            return all(operator(have, op, v) for op, v in wanted.items())
        if isinstance(wanted, list):
            return any(equal(have, v) for v in wanted)
        return equal(have, wanted)

    def operator(have: Any, op: str, v: Any) -> bool:
        if op == "glob":
            return isinstance(have, str) and fnmatch.fnmatchcase(have, v)
        if op in ("=", "!="):
            return equal(have, v) is (op == "=")
        if op == "in":
            return any(equal(have, x) for x in v)
        kinds = [str if isinstance(x, str) else float if type(x) in (int, float) else None for x in (have, v)]
        if kinds[0] is None or kinds[0] is not kinds[1]:
            return False
        return {">": have > v, ">=": have >= v, "<": have < v, "<=": have <= v}[op]

    by_place = any(f in ("index", "event_id", "checksum") and not (isinstance(w, dict) and not {"=", "in"} & set(w))
                   for f, w in filters.items())  # fmt: skip

    def names_own(w: Any) -> bool:
        if isinstance(w, dict):
            return any(map(names_own, w.values()))
        return any(map(names_own, w)) if isinstance(w, list) else isinstance(w, str) and w.startswith("log.")

    own = by_place or names_own(filters.get("event_type"))
    return [
        e.index for e in entries
        if (own or not e.event_type.startswith("log."))
        and (start is None or parse_time(e.timestamp) >= start) and (end is None or parse_time(e.timestamp) <= end)
        and all(holds(e, f, w) for f, w in filters.items())
    ]  # fmt: skip


words = st.sampled_from([*ACTORS, "crm/1", "success", "denied", "user_action", "log.created", "auth.login", "s0", "10.0.0.7",
                         "read it", "a", "crm/9", "\x00", "agent"])  # fmt: skip
scalars = st.none() | st.booleans() | st.integers(-3, 160) | st.sampled_from([2**63, -(2**70), 2.5, 7.0]) | words
globs = st.sampled_from(["*", "a*", "*a", "?na", "crm/?", "log.*", "l*", "", "an*", "**", "x'*", "%", "user_*", "s?"])
operators = st.dictionaries(st.sampled_from(["=", "!=", ">", ">=", "<", "<="]), scalars, min_size=1, max_size=2)
wanted = scalars | operators | st.lists(scalars, max_size=4) | globs.map(lambda g: {"glob": g}) | st.lists(
    scalars, max_size=3).map(lambda v: {"in": v})  # fmt: skip
fields = st.sampled_from([*FIELDS, "details.amount", "details.deep.a.b", "details.dot.ted", "details.none", "details.empty",
                          "details.list", "details.deep.a.b.c"]).filter(lambda f: f not in ("details", "payloads"))  # fmt: skip
moments = st.none() | st.integers(0, 30).map(lambda d: parse_time("2026-11-01T08:00:00.000020Z") + d * 86_400_000_000)


@given(st.dictionaries(fields, wanted, max_size=3), moments, moments, st.booleans(), st.none() | st.integers(0, 20))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_index_answers_as_a_slow_look_does(
    log: AuditLogger, everything: list[AuditEntry], filters: dict[str, Any], start: int | None, end: int | None, newest: bool,
    limit: int | None,
) -> None:  # fmt: skip
    expected = slow(everything, filters, start, end)
    expected = (expected[::-1] if newest else expected)[:limit]

    def text(moment: int | None) -> Any:
        from tallystick.core.times import to_datetime

        return None if moment is None else to_datetime(moment)

    found = log.entries(filters, text(start), text(end), newest_first=newest, limit=limit)
    assert [e.index for e in found] == expected


def test_every_field_with_every_operator(everything: list[AuditEntry]) -> None:
    """Without luck: each combination with values that occur and values that do not."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in SCHEMA:
            connection.execute(statement)
        add(connection, Lines(0, 0, 0, [9] * len(everything), everything))
        every = [f for f in FIELDS if f not in ("details", "payloads")]
        for field in [*every, "details.amount", "details.deep.a.b", "details.dot.ted", "details.none", "details.list"]:
            base = None if field.startswith("details.") else getattr(everything[20], field)
            for value in (None, True, 0, 1, 20, 20.5, "", "20", "ana", "log.created", base):
                asked: list[Any] = [value, [value], [value, "x"], {"in": [value]},
                                    *({op: value} for op in ("=", "!=", "<", "<=", ">", ">="))]  # fmt: skip
                for wanted_value in asked:
                    filters = {field: wanted_value}
                    question = ask(filters)
                    expected = slow(everything, filters, None, None)
                    assert [e.index for e in everything if question.matches(e)] == expected, filters
                    assert set(expected) <= {h.index for h in search(connection, question, 0, len(everything))}, filters


def test_paging_finds_each_once(log: AuditLogger) -> None:
    whole = [e.index for e in log.entries({"actor_type": "agent"})]
    for newest in (False, True):
        pages: list[int] = []
        while True:
            place = {("before" if newest else "after"): pages[-1]} if pages else {}
            page = [e.index for e in log.entries({"actor_type": "agent"}, limit=7, newest_first=newest, **place)]
            if not page:
                break
            pages += page
        assert pages == (whole[::-1] if newest else whole)


@given(st.dictionaries(fields, wanted, max_size=2))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_index_leaves_out_is_no_answer(everything: list[AuditEntry], filters: dict[str, Any]) -> None:
    """``search`` alone: a superset of the answers, in any order of asking."""
    question = ask(filters)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in SCHEMA:
            connection.execute(statement)
        add(connection, Lines(0, 0, 0, [9] * len(everything), everything))
        hits = {h.index for h in search(connection, question, 0, len(everything))}
    assert {e.index for e in everything if question.matches(e)} <= hits


@given(st.text("ab*?[]\n.", max_size=8), st.text("ab*?[]\n.", max_size=8))
def test_globs(glob: str, text: str) -> None:
    """``*`` and ``?`` only: a bracket is a bracket."""
    quoted = glob.replace("[", "[[]")
    assert glob_matches(glob, text) is fnmatch.fnmatchcase(text, quoted)


def test_a_glob_of_many_stars_ends() -> None:
    assert not glob_matches("*" * 1000 + "b", "a" * 5000)


def test_unknown_fields_name_the_known() -> None:
    for field in ("Actor", "actor ", "detail", "details", "details.", "details..a", "v", "log", "idx", "actor; DROP TABLE entries"):
        if field in FIELDS:
            continue
        with pytest.raises(ValueError, match="known are event_id"):
            ask({field: 1})
    assert set(FIELDS) == set(FIELD_NAMES[2:]) | {"index", "checksum"}


@pytest.mark.parametrize("filters", [{"actor": {"~": 1}}, {"actor": {"glob": 5}}, {"actor": {"in": "ana"}}, {"actor": [[1]]},
                                     {"actor": b"x"}, {"actor": object()}, {"actor": {"=": {}}}])  # fmt: skip
def test_impossible_conditions(filters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="actor"):
        ask(filters)


def test_a_field_that_is_no_text() -> None:
    with pytest.raises(TypeError):
        ask({5: 1})  # type: ignore[dict-item]


def test_an_enum_is_its_value() -> None:
    class Kind(Enum):
        A = "a"

    assert ask({"actor": Kind.A}) == ask({"actor": "a"}) == Question((Condition("actor", "=", "a"),))


@pytest.mark.parametrize(("text", "condition"), [
    ("details.amount>100", Condition("details.amount", ">", 100)), ("actor=ana", Condition("actor", "=", "ana")),
    ("resource~crm/*", Condition("resource", "glob", "crm/*")), ("details.a!=1.5", Condition("details.a", "!=", 1.5)),
    ("details.a = true", Condition("details.a", "=", True)), ("details.a='true'", Condition("details.a", "=", "true")),
    ("session_id=null", Condition("session_id", "=", None)), ('details.a="5"', Condition("details.a", "=", "5")),
    ("details.a>=-3", Condition("details.a", ">=", -3)), ("details.a=007", Condition("details.a", "=", "007")),
    ("details.a=1e5", Condition("details.a", "=", "1e5")), ("details.a=", Condition("details.a", "=", "")),
    ("details.a=x=y", Condition("details.a", "=", "x=y")), ("resource~5", Condition("resource", "glob", "5")),
])  # fmt: skip
def test_conditions_as_people_write_them(text: str, condition: Condition) -> None:
    assert parse_where(text) == condition


@given(st.text(max_size=30))
def test_any_text_is_a_condition_or_a_value_error(text: str) -> None:
    try:
        found = parse_where(text)
    except ValueError:
        return
    assert found.operator in ("=", "!=", ">", ">=", "<", "<=", "glob")


def test_huge_numbers_in_conditions(log: AuditLogger) -> None:
    assert log.query({"index": 2**64}) == log.query({"index": {"in": [2**200, -1]}}) == []
    assert parse_where("index=" + "9" * 5000).value == "9" * 5000


def test_an_index_of_another_schema_is_not_asked(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "index.db")) as connection:
        connection.execute("CREATE TABLE entries (idx)")
    with pytest.raises(sqlite3.DatabaseError), Index(tmp_path / "index.db").reading():
        pass
