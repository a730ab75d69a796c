"""What can be seen of an answer's fate without anybody saying it: weaker evidence than a word about it, and marked as that.

* ``tool executed``: a later request brings back the result of a tool that the answer asked for, or the tool itself was seen to run;
* ``repeated``: a later request repeats the answer's text as what the assistant said;
* ``invalid``: the answer is not of the JSON schema that was asked for.

Each becomes an ``ai.outcome`` with that word as ``evidence``. Whatever is said explicitly counts before it, whenever it is said.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import threading
from typing import Any, Protocol

import msgspec

from ..core.outcomes import INVALID, REPEATED, TOOL_EXECUTED
from .wire.answer import Answer
from .wire.asked import Asked

_REMEMBERED = 2048
_ECHO_CHARS_MIN = 2


class Recorder(Protocol):
    """What is needed of the recorder."""

    @property
    def journal(self) -> Any:
        """The log."""

    def later(self, job: Any) -> None:
        """Do something off the caller's way."""

    def expect_late(self) -> None:
        """Have somebody there who does it."""


class Evidence:
    """What the calls of this process asked for and said, as long as it is recent: digests and ids, no content."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._texts: collections.OrderedDict[Any, str] = collections.OrderedDict()
        self._tools: collections.OrderedDict[Any, str] = collections.OrderedDict()
        self._told: collections.OrderedDict[Any, bool] = collections.OrderedDict()

    def finished(self, event_id: str, answer: Answer, valid: bool | None) -> None:
        """A call ended well."""
        if valid is False:
            self._tell(event_id, "failed_validation", INVALID)
        text = answer.text()
        with self._lock:
            if text is not None and len(text) >= _ECHO_CHARS_MIN:
                _remember(self._texts, _digest(text), event_id)
            for call in answer.tool_calls.values():
                if call.id:
                    _remember(self._tools, ("id", call.id), event_id)
                if call.name:
                    _remember(self._tools, ("call", call.name, _canonical(call.arguments)), event_id)
                    _remember(self._tools, ("name", call.name), event_id)

    def asked_again(self, asked: Asked) -> None:
        """A request is on its way: what it brings back of earlier answers."""
        if not asked.spoken and not asked.results:
            return
        with self._lock:
            seen = [(self._texts.get(_digest(text)), REPEATED) for text in asked.spoken[-8:]]
            for call_id, tool in asked.results[-16:]:
                found = self._tools.get(("id", call_id)) if call_id else None
                seen.append((found or (self._tools.get(("name", tool)) if tool else None), TOOL_EXECUTED))
        for event_id, evidence in seen:
            if event_id is not None:
                self._tell(event_id, "used", evidence)

    def asked_for(self, tool: str, arguments: dict[str, Any]) -> str | None:
        """The call whose answer asked for this tool with just these arguments, and was not seen to be answered for it yet; None where
        nobody asked for that: code may run its tools without any model."""
        with self._lock:
            return self._tools.pop(("call", tool, _canonical(arguments)), None)

    def tool_ran(self, event_id: str) -> None:
        """A tool that the answer asked for was seen to run."""
        self._tell(event_id, "used", TOOL_EXECUTED)

    def _tell(self, event_id: str, status: str, evidence: str) -> None:
        with self._lock:
            if (event_id, evidence) in self._told:
                return
            _remember(self._told, (event_id, evidence), True)
        journal = self._recorder.journal
        self._recorder.expect_late()
        self._recorder.later(lambda: journal.outcome(event_id, status, evidence=evidence))


def _remember(table: collections.OrderedDict[Any, Any], key: Any, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _REMEMBERED:
        table.popitem(last=False)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).digest()


def _canonical(arguments: Any) -> str:
    """Arguments in one spelling, whether they came as text or as an object."""
    if isinstance(arguments, str):
        try:
            return _canonical(dict(json.loads(arguments)))
        except (ValueError, TypeError, RecursionError):
            return str(arguments)
    return str(json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str))


def is_of_format(asked: Asked, text: str | None) -> bool | None:
    """Whether the answer is of the format that was asked for; None if none was, or if it cannot be said here (``jsonschema``, of the
    extra ``schema``, is not installed)."""
    if asked.format is None or text is None:
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    if asked.format != "json_schema" or asked.schema is None:
        return True
    try:
        validator = _validator(msgspec.json.encode(asked.schema))
        return None if validator is None else bool(validator.is_valid(value))
    except Exception:  # noqa: BLE001  # a schema that is none, or one that refers to somewhere else
        return None


@functools.lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:
    try:
        from jsonschema.validators import validator_for
    except ImportError:
        return None
    document = json.loads(schema)
    return validator_for(document)(document)
