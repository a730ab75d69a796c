"""The redactor: previews of values without secrets.

Masked are values under names that say password, token, secret, key, authorization, cookie or the like, at any depth, and text that
looks like a key wherever it stands (bearer tokens, ``sk-…``, AWS and GitHub keys, JWTs, PEM blocks, user info in URLs). What was
masked is marked as ``[masked]``: a preview never pretends to be whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PREVIEW_CHARS = 500
MASK = "[masked]"
_SECRET_WORDS = frozenset({"password", "passwd", "passphrase", "pwd", "token", "tokens", "secret", "secrets", "key", "keys", "apikey",
                           "authorization", "auth", "cookie", "cookies", "credential", "credentials", "bearer", "pin"})  # fmt: skip
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_KEY_LIKE = re.compile(
    r"(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|PRIVATE\+KEY\+\S+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_ASSIGNED = re.compile(
    r"""(?i)(["']?(?<![\w-])[\w-]{0,64}?(?:password|passwd|token|secret|api[_-]?key|authorization|cookie)[\w-]{0,64}["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;&}\]]+)"""
)
_DEPTH_MAX, _ITEMS_MAX = 6, 50


def is_secret_name(name: str) -> bool:
    """True for names whose words say that the value is a secret: ``api_key``, ``X-Auth-Token``, ``dbPassword``."""
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(name))


def preview(value: Any, *, name: str = "") -> str:
    """Up to 500 characters of ``value`` as text, secrets masked before it is cut."""
    if name and is_secret_name(name):
        return MASK
    text = value if isinstance(value, str) else _shown(_masked(value, 0))
    text = redact_text(text[: PREVIEW_CHARS * 20])
    return text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 1] + "…"


def redact_text(text: str) -> str:
    """Free text with what looks like a key masked."""
    return _ASSIGNED.sub(lambda m: m[1] + MASK, _KEY_LIKE.sub(MASK, text))


def _masked(value: Any, depth: int) -> Any:
    if depth >= _DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:_ITEMS_MAX]
        return {k: MASK if isinstance(k, str) and is_secret_name(k) else _masked(v, depth + 1) for k, v in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(v, depth + 1) for v in list(value)[:_ITEMS_MAX]]
    return value


def _shown(value: Any) -> str:
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception as e:  # noqa: BLE001  # somebody's __repr__ must not break the call that is recorded
        return f"<{type(value).__name__}: its repr failed with {type(e).__name__}>"
