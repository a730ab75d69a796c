"""Questions: filters as values, and the slow, exact answer to "does this entry match?".

The index narrows, this decides: an entry is an answer only if ``Question.matches`` says so about its decoded bytes.

A filter is ``field → condition``. A condition is a value (equality), ``None`` (absent), a list (one of), or a dict of
operators: ``{"glob": "crm/*"}``, ``{">": 100, "<=": 500}``, ``{"!=": "x"}``. A field is a declared field of an entry,
``index``, ``checksum``, or a dotted path into ``details`` such as ``details.amount``. Numbers compare with numbers and
text with text; anything else does not match. A glob has ``*`` and ``?`` only, and is case-sensitive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from .entry import FIELD_NAMES, AuditEntry

FIELDS = (*FIELD_NAMES[2:], "index", "checksum")
_OPERATORS = ("=", "!=", ">", ">=", "<", "<=", "glob", "in")
_WHERE = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*(!=|>=|<=|=|>|<|~)\s*(.*?)\s*", re.ASCII | re.DOTALL)


class Condition(NamedTuple):
    """``field operator value``; operator ``=`` with ``None`` means absent."""

    field: str
    operator: str
    value: Any


class Question(NamedTuple):
    """All conditions must hold. Times are inclusive microseconds on ``timestamp``; ``lifecycle`` admits ``log.*``."""

    conditions: tuple[Condition, ...] = ()
    start_us: int | None = None
    end_us: int | None = None
    lifecycle: bool = False

    def matches(self, entry: AuditEntry) -> bool:
        """The exact answer, from the decoded line alone."""
        if not self.lifecycle and entry.is_lifecycle:
            return False
        if self.start_us is not None and entry.timestamp_us < self.start_us:
            return False
        if self.end_us is not None and entry.timestamp_us > self.end_us:
            return False
        return all(_holds(c.operator, _value_of(entry, c.field), c.value) for c in self.conditions)


def ask(filters: Mapping[str, Any] | None, *, start_us: int | None = None, end_us: int | None = None) -> Question:
    """The chapter's filter dictionary → a question. An unknown field or operator is a ``ValueError`` naming the known.

    ``log.*`` entries are left out unless ``event_type`` asks for them by name or glob.
    """
    found: list[Condition] = []
    for field, wanted in (filters or {}).items():
        check_field(field)
        found.extend(_conditions(field, wanted))
    asked = any(
        c.field == "event_type" and any(isinstance(v, str) and v.startswith("log.") for v in _listed(c.value))
        for c in found
    )
    by_place = any(c.field in ("index", "event_id", "checksum") and c.operator in ("=", "in") for c in found)
    return Question(tuple(found), start_us, end_us, lifecycle=asked or by_place)


def parse_where(text: str) -> Condition:
    """``details.amount>100``, ``actor=ana``, ``resource~crm/*``: the command line's spelling of one condition.

    A value that reads as a number, ``true``, ``false`` or ``null`` is one; quote it to mean the text.
    """
    found = _WHERE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a condition; write it like details.amount>100 or resource~crm/*")
    check_field(found[1])
    operator = {"~": "glob"}.get(found[2], found[2])
    return Condition(found[1], operator, found[3] if operator == "glob" else _literal(found[3]))


def check_field(field: str) -> None:
    """``ValueError`` that names the known fields for one that is not."""
    if not isinstance(field, str):
        raise TypeError(f"a filter's field is text, not {type(field).__name__}")
    if field in FIELDS or (field.startswith("details.") and all(field.split("."))):
        return
    raise ValueError(f"unknown field {field!r}; known are {', '.join(FIELDS)}, and details.<name>")


def _conditions(field: str, wanted: Any) -> list[Condition]:
    if isinstance(wanted, Mapping):
        for operator in wanted:
            if operator not in _OPERATORS:
                raise ValueError(f"{field}: unknown operator {operator!r}; known are {' '.join(_OPERATORS)}")
        return [Condition(field, op, _condition_value(field, op, v)) for op, v in wanted.items()]
    if isinstance(wanted, list | tuple | set | frozenset):
        return [Condition(field, "in", tuple(_scalar(field, v) for v in wanted))]
    return [Condition(field, "=", _scalar(field, wanted))]


def _condition_value(field: str, operator: str, value: Any) -> Any:
    if operator == "in":
        if not isinstance(value, list | tuple | set | frozenset):
            raise ValueError(f"{field}: 'in' takes a list")
        return tuple(_scalar(field, v) for v in value)
    if operator == "glob" and not isinstance(value, str):
        raise ValueError(f"{field}: a glob is text")
    return _scalar(field, value)


def _scalar(field: str, value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(f"{field}: a filter compares with text, a number, true/false or None, not {type(value).__name__}")


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _literal(text: str) -> Any:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,19})", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,19})\.[0-9]{1,20}", text, re.ASCII):
        return float(text)
    return text


def _value_of(entry: AuditEntry, field: str) -> Any:
    if not field.startswith("details."):
        value = getattr(entry, field)
        return None if value == {} else value
    value = entry.details
    path = field[len("details.") :]
    if path in value:  # a key that itself contains a dot
        return value[path]
    for step in path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return None
    return value


def _holds(operator: str, actual: Any, wanted: Any) -> bool:
    if operator == "=":
        return _equal(actual, wanted)
    if operator == "in":
        return any(_equal(actual, one) for one in wanted)
    if operator == "!=":
        return not _equal(actual, wanted)
    if operator == "glob":
        return isinstance(actual, str) and glob_matches(wanted, actual)
    if not _comparable(actual, wanted):
        return False
    return bool(
        actual > wanted if operator == ">"
        else actual >= wanted if operator == ">="
        else actual < wanted if operator == "<"
        else actual <= wanted
    )  # fmt: skip


def glob_matches(glob: str, text: str) -> bool:
    """A glob of ``*`` and ``?`` over the whole text. What is between two stars is looked for from left to right, so that no glob,
    also one that came in a file, takes longer than its length times that of the text."""
    first, *rest = (re.compile("".join("." if c == "?" else re.escape(c) for c in part), re.DOTALL) for part in glob.split("*"))
    if not rest:
        return first.fullmatch(text) is not None
    last, ends = rest.pop(), len(text) - len(glob.rpartition("*")[2])
    begun = first.match(text)
    at = begun.end() if begun else len(text) + 1
    for part in rest:
        found = part.search(text, at) if at <= ends else None
        at = found.end() if found else len(text) + 1
    return at <= ends and last.fullmatch(text, ends) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comparable(a: Any, b: Any) -> bool:
    return (_is_number(a) and _is_number(b)) or (isinstance(a, str) and isinstance(b, str))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)
