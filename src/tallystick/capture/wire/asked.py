"""What a request to a model asks for, as facts that can be recorded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"))
_USER_INFO = re.compile(r"//[^/@\s]*@")
NAMES_MAX = 64
NAME_CHARS_MAX = 100
ROLES_MAX = 12
IMAGES_MAX = 24


class Asked(msgspec.Struct):
    """One request. ``operation`` is of the OpenTelemetry GenAI conventions (``chat``, ``text_completion``, ``embeddings``), or
    what is
    done to a model (``pull`` …) where ``admin`` is set. ``prompt_chars`` counts code points of all text sent. ``content`` is what the
    content policy decides about: texts and tool definitions, images by their SHA-256; it never becomes part of an entry.
    """

    operation: str
    provider: str
    model: str | None = None
    admin: bool = False
    stream: bool = False
    prompt_chars: int = 0
    parameters: dict[str, Any] = {}
    roles: dict[str, int] = {}
    tools: list[str] = []
    images: list[dict[str, Any]] = []
    inputs: int | None = None
    choices: int | None = None
    format: str | None = None
    schema: Any = None
    unread: bool = False  # not of the shape that its interface describes: the server will say what it thinks of it
    content: dict[str, Any] = {}
    spoken: list[str] = []  # what the assistant said earlier, as the request repeats it
    results: list[tuple[str | None, str | None]] = []  # (tool call id, tool name) of results that the request brings back

    def details(self) -> dict[str, Any]:
        """The part of the entry's details that says what was asked, without lengths."""
        found: dict[str, Any] = {"operation": self.operation, "provider": self.provider}
        if self.model is not None:
            found["model_requested"] = self.model
        if not self.admin:
            found["stream"] = self.stream
        for name, value in (("parameters", self.parameters), ("messages", self.roles), ("tools", self.tools),
                            ("images", self.images[:IMAGES_MAX]), ("format", self.format), ("inputs", self.inputs),
                            ("choices", self.choices)):  # fmt: skip
            if value:
                found[name] = value
        if len(self.images) > IMAGES_MAX:
            found["images_in_all"] = len(self.images)
        return found | ({"unread_request": True} if self.unread else {})

    def count_role(self, role: object) -> str:
        """One more message of a role; its name. However many a request makes up, an entry has room for them."""
        word = role[:32] if isinstance(role, str) and role else "?"
        word = clean(word)
        if word not in self.roles and len(self.roles) >= ROLES_MAX:
            word = "other"
        self.roles[word] = self.roles.get(word, 0) + 1
        return word

    def text(self) -> bytes:
        """``content`` as UTF-8 JSON: the bytes that are committed to and, where the policy keeps content, kept."""
        try:
            return msgspec.json.encode(self.content)
        except (UnicodeEncodeError, TypeError, ValueError):  # half of a surrogate pair, or a value of the caller's own type
            return json.dumps(self.content, separators=(",", ":"), default=str).encode()


def chars(value: object) -> int:
    """Code points of a text; 0 for anything else."""
    return len(value) if isinstance(value, str) else 0


def name(value: object) -> str | None:
    """A model's, tool's or parameter's name: text of a sensible length, else None. Of an address no user info and no query."""
    if not isinstance(value, str) or not value:
        return None
    if "://" in value:
        value = _USER_INFO.sub("//", value).partition("?")[0]
    return clean(value)[:NAME_CHARS_MAX]


def clean(text: str) -> str:
    """Text that has a spelling in UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def parameters(given: object, known: Mapping[str, str]) -> dict[str, Any]:
    """Parameters under the names of the conventions: numbers and switches as they are, lists as their length. Texts are content, and
    only words of a few letters are taken over (``think: high``)."""
    found: dict[str, Any] = {}
    if isinstance(given, Mapping):
        for key, value in given.items():
            word = known.get(key)
            if word is None or value is None:
                continue
            is_word = isinstance(value, str) and len(value) <= 16 and value.isascii() and value.replace("_", "").isalnum()
            if is_word or (isinstance(value, bool | int | float) and -1e15 < value < 1e15):
                found[word] = value
            elif isinstance(value, list | tuple):
                found[word] = len(value)
            elif isinstance(value, str):
                found[word] = {"chars": len(value)}
    return found


def tool_names(given: object) -> list[str]:
    """The names of the functions that a request offers."""
    found = []
    for tool in given if isinstance(given, list | tuple) else ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        found.append(name(function.get("name")) or "?" if isinstance(function, Mapping) else "?")
    return found[:NAMES_MAX]


def digest(text: str) -> str:
    """What stands in the kept or committed content for an image, a sound, a file: SHA-256 of the text that carried it."""
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def image(base64_text: str, declared: str | None = None) -> dict[str, Any]:
    """Size and type of an image that is given as base64: never the image. 100 kB of base64 are not decoded for it."""
    import base64
    import binascii

    padding = base64_text[-2:].count("=")
    try:
        head = base64.b64decode(base64_text[:64], validate=True)
    except (binascii.Error, ValueError):
        head = b""
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    if kind is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "image/webp"
    found: dict[str, Any] = {"bytes": max(0, len(base64_text) * 3 // 4 - padding)}
    said = kind or name(declared)
    if said:
        found["type"] = said
    return found
