"""What is kept of prompts and answers: the content policy.

======================  =====================================================================================================
``none``                nothing, not even lengths
``lengths``             lengths
``commitment``          lengths, and a salted commitment to each text: whoever kept the text can prove that it is the one that was
sent
``redacted``            the same, and the texts with what looks like a secret masked, encrypted beside the log
``full``                the same, and the texts as they were, encrypted beside the log
======================  =====================================================================================================

The salt is derived from the payload key of the day and the id of the call (``salt_day`` in the request's entry), or where that key is
not at hand a payload of that entry (``salt``, 32 bytes); either way, once the key is destroyed the commitments say nothing. One is
``HMAC-SHA256(salt, name || 0x00 || content)``. Every entry of a call says under ``content`` which policy it was written by, so that
what was hidden is not taken for missing. Embedding vectors are never kept, images only as size and type.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ..core.payload import PAYLOAD_BYTES_MAX, Payload
from .redact import redact_text
from .wire.answer import TEXT_CHARS_KEPT, Answer, Text, arguments_text, commitment
from .wire.asked import Asked

POLICIES = ("none", "lengths", "commitment", "redacted", "full")
CONTENT_BYTES_MAX = min(8 << 20, PAYLOAD_BYTES_MAX)
SALT = "salt"


class Rule(NamedTuple):
    """One rule: patterns (``*``, ``?``, ``[…]``; case matters) of model, actor and resource, and the policy where all match."""

    content: str
    model: str = "*"
    actor: str = "*"
    resource: str = "*"


class ContentPolicy:
    """The rules of a log; the first that matches wins, else the default."""

    def __init__(self, default: str = "commitment", rules: Sequence[Rule] = ()) -> None:
        for word in (default, *(rule.content for rule in rules)):
            if word not in POLICIES:
                raise ValueError(f"{word!r} is no content policy; known are {', '.join(POLICIES)}")
        self.default, self.rules = default, tuple(rules)

    def of(self, model: str | None, actor: str, resource: str) -> str:
        """The policy for one call."""
        for rule in self.rules:
            if fnmatchcase(model or "", rule.model) and fnmatchcase(actor, rule.actor) and fnmatchcase(resource, rule.resource):
                return rule.content
        return self.default


class Kept:
    """What is kept of one call's content, by its policy. ``derived``: the day whose payload key gave the salt, and the salt; without
    it one is drawn, which then has to be kept as a payload."""

    __slots__ = ("policy", "salt", "salt_day")

    def __init__(self, policy: str, derived: tuple[str, bytes] | None = None) -> None:
        self.policy = policy
        self.salt_day: str | None = None
        self.salt: bytes | None = None
        if policy not in ("none", "lengths"):
            self.salt_day, self.salt = derived or (None, os.urandom(32))

    @property
    def limit(self) -> int:
        """How many characters of a text have to be at hand when it ends."""
        return CONTENT_BYTES_MAX if self.policy in ("redacted", "full") else TEXT_CHARS_KEPT

    def of_request(self, asked: Asked) -> tuple[dict[str, Any], dict[str, Payload]]:
        """Details and payloads of the request's entry."""
        details: dict[str, Any] = {"content": self.policy}
        if self.policy != "none":
            details["prompt_chars"] = asked.prompt_chars
        if self.salt is None:
            return details, {}
        text = asked.text()
        details["commitments"] = {"prompt": commitment(self.salt, "prompt", text)}
        payloads: dict[str, Payload] = {}
        if self.salt_day is not None:
            details["salt_day"] = self.salt_day
        else:
            payloads[SALT] = Payload(self.salt, "application/octet-stream")
        self._keep(payloads, details, "prompt", text, "application/json")
        return details, payloads

    def of_answer(self, answer: Answer) -> tuple[dict[str, Any], dict[str, Payload]]:
        """Details and payloads of the entry that ends the call."""
        details: dict[str, Any] = {"content": self.policy}
        if self.policy != "none":
            details["response_chars"] = answer.chars
            if answer.thinking is not None:
                details["thinking_chars"] = answer.thinking.chars
        if self.salt is None:
            return details, {}
        found: dict[str, str] = {}
        payloads: dict[str, Payload] = {}
        texts = list(answer.texts.values())
        if not texts and answer.whole and answer.vectors is None and not answer.tool_calls:
            texts = [Text("answer", self.salt, self.limit)]  # an empty answer is an answer
        for text in (*texts, *((answer.thinking,) if answer.thinking else ())):
            said = text.commitment()
            if said is not None and len(found) < 24:
                found[text.what] = said
                self._keep_text(payloads, details, text)
        if answer.tool_calls:
            calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls.values()]
            content = arguments_text(calls).encode("utf-8", "surrogatepass")
            found["tool_calls"] = commitment(self.salt, "tool_calls", content)
            self._keep(payloads, details, "tool_calls", content, "application/json")
        if answer.error is not None and self.policy in ("redacted", "full"):
            payloads["error"] = Payload(redact_text(answer.error).encode("utf-8", "replace"), "text/plain")
        if found:
            details["commitments"] = found
        return details, payloads

    def _keep_text(self, payloads: dict[str, Payload], details: dict[str, Any], text: Text) -> None:
        self._keep(payloads, details, text.what, text.text().encode("utf-8", "surrogatepass"), "text/plain", whole=text.kept)

    def _keep(
        self, payloads: dict[str, Payload], details: dict[str, Any], what: str, content: bytes, kind: str, *, whole: bool = True
    ) -> None:
        if self.policy not in ("redacted", "full"):
            return
        if len(content) > CONTENT_BYTES_MAX:
            content, whole = content[:CONTENT_BYTES_MAX], False
        if not whole:
            details.setdefault("cut_short", []).append(what)  # only the beginning is kept; the commitment is to all of it
        if self.policy == "redacted":
            content = redact_text(content.decode("utf-8", "replace")).encode("utf-8", "replace")
        payloads[what] = Payload(content, kind)
