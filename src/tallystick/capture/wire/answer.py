"""What a model answered, counted as it comes in. Memory stays flat in the length of a stream."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from .asked import name

TEXT_CHARS_KEPT = 64 * 1024
_PARTS_MAX = 512
TOOL_CALLS_MAX = 64
ARGUMENTS_CHARS_MAX = 256 * 1024


def commitment(salt: bytes, what: str, content: bytes) -> str:
    """``HMAC-SHA256(salt, what || 0x00 || content)`` in hex (RFC 2104): binds to the content, and says nothing about it to
    whoever has not the salt. ``what`` is ``prompt``, ``answer`` and so on."""
    return hmac.new(salt, what.encode() + b"\0" + content, hashlib.sha256).hexdigest()


class Text:
    """A text that comes in pieces: its length, the text itself up to a limit, and its commitment however long it is."""

    __slots__ = ("_hmac", "_parts", "chars", "kept", "limit", "salt", "what")

    def __init__(self, what: str, salt: bytes | None, limit: int) -> None:
        self.what, self.salt, self.limit = what, salt, limit
        self.chars = 0
        self.kept = True  # all of it
        self._parts: list[str] = []
        self._hmac: Any = None

    def add(self, piece: str) -> None:
        """The next piece."""
        self.chars += len(piece)
        if not self.kept:
            if self._hmac is not None:
                self._hmac.update(piece.encode("utf-8", "surrogatepass"))
            return
        parts = self._parts
        parts.append(piece)
        if self.chars > self.limit:
            self._overflow()
        elif len(parts) > _PARTS_MAX:
            self._parts = ["".join(parts)]

    def _overflow(self) -> None:
        self.kept = False
        if self.salt is not None:
            self._hmac = hmac.new(self.salt, self.what.encode() + b"\0", hashlib.sha256)
            for part in self._parts:
                self._hmac.update(part.encode("utf-8", "surrogatepass"))
        self._parts = ["".join(self._parts)[: self.limit]] if self.limit > TEXT_CHARS_KEPT else []

    def text(self) -> str:
        """What is kept of it: all where ``kept`` is true, else its beginning or nothing."""
        return "".join(self._parts)

    def commitment(self) -> str | None:
        """None without a salt."""
        if self.salt is None:
            return None
        if self._hmac is not None:
            return str(self._hmac.hexdigest())
        return commitment(self.salt, self.what, self.text().encode("utf-8", "surrogatepass"))


class ToolCall:
    """A call of a tool that the model asks for. Its arguments are content."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, tool: str | None, call_id: str | None, arguments: str) -> None:
        self.name, self.id, self.arguments = tool, call_id, arguments

    def details(self) -> dict[str, Any]:
        """Name, id and the length of the arguments."""
        found: dict[str, Any] = {"name": self.name or "?"}
        if self.id is not None:
            found["id"] = self.id
        return found | {"arguments_chars": len(self.arguments)}


def arguments_text(arguments: object) -> str:
    """Arguments as compact JSON text, whether they came as an object (Ollama) or as text (OpenAI)."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), default=str)


class Answer:
    """The facts of one answer. ``whole`` says that the server ended it in its own grammar (``done``, ``[DONE]``, one JSON object)."""

    __slots__ = (
        "_limit",
        "_salt",
        "bore",
        "chunks",
        "dimensions",
        "error",
        "error_code",
        "fingerprint",
        "finish_reason",
        "input_tokens",
        "model",
        "more",
        "output_tokens",
        "remote_host",
        "remote_model",
        "server_id",
        "texts",
        "thinking",
        "tool_calls",
        "vectors",
        "whole",
    )  # fmt: skip

    def __init__(self, salt: bytes | None = None, limit: int = TEXT_CHARS_KEPT) -> None:
        self._salt, self._limit = salt, limit
        self.model: str | None = None
        self.remote_host: str | None = None
        self.remote_model: str | None = None
        self.server_id: str | None = None
        self.fingerprint: str | None = None
        self.chunks = 0
        self.texts: dict[int, Text] = {}
        self.thinking: Text | None = None
        self.tool_calls: dict[Any, ToolCall] = {}
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.vectors: int | None = None
        self.dimensions: int | None = None
        self.error: str | None = None
        self.error_code: Any = None
        self.more: dict[str, int] = {}
        self.whole = False
        self.bore = False  # something of an answer was in it

    @property
    def chars(self) -> int:
        """Code points of the answer texts."""
        return sum(text.chars for text in self.texts.values())

    def say(self, piece: object, choice: int = 0) -> None:
        """A piece of an answer's text."""
        if type(piece) is str and piece:
            text = self.texts.get(choice)
            if text is None:
                if len(self.texts) >= 128:
                    return
                text = self.texts[choice] = Text("answer" if choice == 0 else f"answer.{choice}", self._salt, self._limit)
            text.add(piece)
            self.bore = True

    def think(self, piece: object) -> None:
        """A piece of the thinking that comes before an answer."""
        if type(piece) is str and piece:
            if self.thinking is None:
                self.thinking = Text("thinking", self._salt, self._limit)
            self.thinking.add(piece)
            self.bore = True

    def ask_tool(self, key: Any, tool: object, call_id: object, arguments: object) -> None:
        """A tool call, or the next piece of one that is known under ``key``."""
        self.bore = True
        known = self.tool_calls.get(key)
        if known is None:
            if len(self.tool_calls) < TOOL_CALLS_MAX:
                self.tool_calls[key] = ToolCall(name(tool), name(call_id), arguments_text(arguments)[:ARGUMENTS_CHARS_MAX])
            return
        known.name, known.id = known.name or name(tool), known.id or name(call_id)
        if isinstance(arguments, str) and len(known.arguments) < ARGUMENTS_CHARS_MAX:
            known.arguments += arguments

    def text(self, choice: int = 0) -> str | None:
        """The answer's text, if it was kept whole."""
        found = self.texts.get(choice)
        return found.text() if found is not None and found.kept else None

    def details(self) -> dict[str, Any]:
        """The part of the entry's details that says what came back, without lengths."""
        found: dict[str, Any] = {}
        for key, value in (("model", self.model), ("finish_reason", self.finish_reason), ("input_tokens", self.input_tokens),
                           ("output_tokens", self.output_tokens), ("remote_host", self.remote_host),
                           ("remote_model", self.remote_model), ("fingerprint", self.fingerprint), ("server_id", self.server_id),
                           ("vectors", self.vectors), ("dimensions", self.dimensions)):  # fmt: skip
            if value is not None:
                found[key] = value
        if len(self.texts) > 1:
            found["choices"] = len(self.texts)
        if self.tool_calls:
            found["tool_calls"] = [call.details() for call in self.tool_calls.values()]
        return found | ({"server": self.more} if self.more else {})


def count(value: object) -> int | None:
    """A number of tokens or the like that the server says; None for anything that is none. Absent is not zero."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def error_text(value: object) -> str | None:
    """The message of an ``error`` member, in the shape of Ollama (text) or OpenAI (object)."""
    if isinstance(value, Mapping):
        value = value.get("message") or value.get("type") or "error"
    return value if isinstance(value, str) and value else None
