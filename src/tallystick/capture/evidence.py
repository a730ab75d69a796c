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
CHECKED_CHARS_MAX = 256 * 1024


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
        self._lock = threading.RLock()  # a signal handler may make a call while this thread holds it
        self._texts: collections.OrderedDict[Any, str] = collections.OrderedDict()
        self._tools: collections.OrderedDict[Any, str] = collections.OrderedDict()
        self._told: collections.OrderedDict[Any, bool] = collections.OrderedDict()

    def finished(self, event_id: str, answer: Answer, valid: bool | None) -> None:
        """A call ended well."""
        if valid is False:
            self._tell(event_id, "failed_validation", INVALID)
        text = answer.text()
        said = _digest(text) if text is not None and len(text) >= _ECHO_CHARS_MIN else None
        keys: list[Any] = []
        for call in answer.tool_calls.values():
            keys += [("id", call.id)] if call.id else []
            keys += [_asked_key(call.name, call.arguments), ("name", call.name)] if call.name else []
        with self._lock:
            if said is not None:
                _remember(self._texts, said, event_id)
            for key in keys:
                _remember(self._tools, key, event_id)

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
        key = _asked_key(tool, arguments)
        with self._lock:
            return self._tools.pop(key, None)

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


def _asked_key(tool: str, arguments: Any) -> Any:
    return "call", tool, _digest(_canonical(arguments))  # arguments are content: only their digest stays


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
        if len(text) > CHECKED_CHARS_MAX:
            return None
        validator = _validator(msgspec.json.encode(asked.schema))
        return None if validator is None else bool(validator.is_valid(value))
    except Exception:  # noqa: BLE001  # a schema that is none, or one that refers to somewhere else
        return None


@functools.lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:
    """None for a schema that refers to elsewhere, which nobody here fetches, and for one with patterns: a pattern can take for ever,
    and it is the caller's."""
    try:
        from jsonschema.validators import validator_for
        from referencing import Registry
    except ImportError:
        return None
    document = json.loads(schema)
    if _is_risky(document):
        return None
    return validator_for(document)(document, registry=Registry())


def _is_risky(schema: Any) -> bool:
    pending = [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            for key, value in one.items():
                if key in ("pattern", "patternProperties", "$dynamicRef", "$recursiveRef", "$schema") or (
                    key == "$ref" and not (isinstance(value, str) and value.startswith("#"))):  # fmt: skip
                    return True
                pending.append(value)
        elif isinstance(one, list):
            pending += one
    return False
