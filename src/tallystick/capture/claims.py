"""What a client says about itself in headers. Claims, and recorded as that: nobody has checked them.

A value is taken as it is or not at all: one with a control character or another that does not print, a header that was sent
twice, and one longer than 200 characters are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

VALUE_CHARS_MAX = 200
FIELDS = {"x-audit-session": "session_id", "x-audit-case": "correlation_id", "x-audit-actor": "actor"}
TRACEPARENT = "traceparent"
# W3C Trace Context: of version 00 it is all; later ones may go on after another dash
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.ASCII)


def read_claims(headers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Fields of an entry: ``session_id``, ``correlation_id``, ``actor``. ``headers``: names in lower case, each with all its
    values, in Latin-1 as HTTP hands them over."""
    found: dict[str, str] = {}
    for header, field in FIELDS.items():
        values = headers.get(header, ())
        value = cleaned(_utf8(values[0])) if len(values) == 1 else None
        if value is not None:
            found[field] = value
    return found


def read_trace(headers: Mapping[str, Sequence[str]]) -> str | None:
    """The trace id of the one ``traceparent``."""
    values = headers.get(TRACEPARENT, ())
    return trace_id(values[0].strip(" \t")) if len(values) == 1 else None


def trace_id(traceparent: object) -> str | None:
    """The trace id of a ``traceparent`` as W3C Trace Context has it: 32 hex digits, or None if it is not valid."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if found is None or (found[1] == "00" and found[4] is not None):
        return None
    return found[2] if found[2].strip("0") and found[3].strip("0") else None


def cleaned(value: str) -> str | None:
    """A value that a stranger sent, if it can stand in an entry: 1 to 200 characters, all of which print."""
    value = value.strip(" \t")
    return value if 0 < len(value) <= VALUE_CHARS_MAX and value.isprintable() else None


def _utf8(value: str) -> str:
    """A header as its sender most likely meant it."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return value
