"""What a client says about itself in headers. Claims, and recorded as that: nobody has checked them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_FIELDS = {b"x-audit-session": "session_id", b"x-audit-actor": "actor", b"x-audit-case": "correlation_id"}
VALUE_CHARS_MAX = 200


def read_claims(headers: Iterable[tuple[bytes, bytes]], ip: str | None) -> dict[str, str]:
    """Fields of an entry: ``session_id``, ``actor``, ``correlation_id``, ``trace_id`` of W3C Trace Context, and ``ip_address``,
    which is the connection's and no claim."""
    found = {"ip_address": ip} if ip else {}
    for name, value in headers:
        field = _FIELDS.get(name)
        if field is not None:
            text = value.decode("utf-8", "replace").strip()[:VALUE_CHARS_MAX]
            if text and text.isprintable():
                found[field] = text
        elif name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value.decode("ascii", "replace").strip())
            if match and match[1].strip("0"):
                found["trace_id"] = match[1]
    return found
