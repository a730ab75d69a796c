"""Proven answers: a question, the range of entries that was read for it, and what the range says (decision 24).

::

    tallystick/answer@v1
    question {"conditions":[["actor","=","ana"]],"start_us":null,"end_us":null,"lifecycle":false}
    range 2 5
    left 1
    9T0…=
    right 2
    sFo…=
    gSK…=
    = {"v":1,"log":"example.com/log",…}
    # B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
    = {"v":1,"log":"example.com/log",…}

    example.com/log
    7
    sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

    — example.com/log hI2DJw…

One line per index of the half-open range, in order: ``=`` and the stored bytes, or ``#`` and the leaf hash alone. ``left`` and
``right`` are the hashes of ``merkle.verify_range``: together with the leaves they make the root of the checkpoint, so that no entry
of the range was left out, added or moved. What that shows depends on what is there:

* every index has its line: the question is asked again of all of them. The answer is complete: exactly these rows match in the range.
* some are hashes: the rows are in the log, at these places, and match. Whether one of the others matches as well is NOT shown.

Nothing is said of entries outside of the range. Limits: 200,000 entries, 64 MiB. Not here: whose key the checkpoint must have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import entry as ent
from .checkpoint import Checkpoint, open_checkpoint, parse_number
from .entry import AuditEntry
from .errors import Malformed, VerificationError
from .merkle import HASH_BYTES, leaf_hash, verify_range
from .note import VerifierKey, decode_base64, encode_base64, split
from .query import Condition, Question, ask

ANSWER_BYTES_MAX = 64 << 20
RANGE_MAX = 200_000
CONDITIONS_MAX = 100
GLOB_MAX = 256
_HEADER = b"tallystick/answer@v1"
_SIDE_MAX = 126


class Proven(NamedTuple):
    """What an answer shows: the checkpoint, the entries that match, and whether there are no others in the range."""

    checkpoint: Checkpoint
    rows: tuple[AuditEntry, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A file, taken apart. ``found``: for each index from ``start`` on whether its line is here, and the line or the leaf hash. Until
    ``verify`` has returned, every field is a claim."""

    question: Question
    start: int
    found: tuple[tuple[bool, bytes], ...]  # (is a line, its bytes or its leaf hash)
    left: tuple[bytes, ...]
    right: tuple[bytes, ...]
    checkpoint: bytes

    @property
    def end(self) -> int:
        """One more than the last index of the range."""
        return self.start + len(self.found)

    def format(self) -> bytes:
        """The bytes of the file. ``Malformed`` where they would not be one."""
        if len(self.found) > RANGE_MAX:
            raise Malformed(f"an answer is about at most {RANGE_MAX:,} entries")
        head = [_HEADER, b"question " + encode_question(self.question), b"range %d %d" % (self.start, self.end)]
        for name, hashes in ((b"left", self.left), (b"right", self.right)):
            head += [b"%b %d" % (name, len(hashes)), *(encode_base64(h).encode() for h in hashes)]
        body = [b"= " + data if is_line else b"# " + encode_base64(data).encode() for is_line, data in self.found]
        whole = b"\n".join([*head, *body, b"", self.checkpoint])
        if len(whole) > ANSWER_BYTES_MAX:
            raise Malformed(f"the answer is larger than {ANSWER_BYTES_MAX >> 20} MiB")
        return whole

    @classmethod
    def parse(cls, data: bytes) -> Answer:
        """Read a file. ``Malformed`` unless it is, byte for byte, what ``format`` writes."""
        if len(data) > ANSWER_BYTES_MAX:
            raise Malformed(f"the answer is larger than {ANSWER_BYTES_MAX >> 20} MiB")
        head, _, note = data.partition(b"\n\n")
        lines = head.split(b"\n")[::-1]
        if lines.pop() != _HEADER:
            raise Malformed(f"an answer starts with {_HEADER.decode()}")
        question = decode_question(_after(lines, b"question "))
        start, _, end = _text(_after(lines, b"range ")).partition(" ")
        left, right = (_hashes(lines, name) for name in (b"left ", b"right "))
        found = tuple(_found(line) for line in lines[::-1])
        answer = cls(question, parse_number(start), found, left, right, note)
        Checkpoint.parse(split(note)[0])
        if answer.end != parse_number(end) or answer.format() != data:
            raise Malformed("not the one spelling of an answer")
        return answer

    def verify(self, keys: Sequence[VerifierKey], *, origin: str | None = None) -> Proven:
        """The entries that match, under a checkpoint that one of ``keys`` signed.

        ``Malformed``, ``UnknownSigner`` and ``VerificationError`` as in ``open_checkpoint`` and ``verify_range``; also for a row
        that does not match the question, where not all lines are there, and for a line that is of another log.
        """
        checkpoint = open_checkpoint(self.checkpoint, keys, origin=origin)
        leaves = [leaf_hash(data) if is_line else data for is_line, data in self.found]
        verify_range(self.start, checkpoint.size, leaves, self.left, self.right, checkpoint.root)
        complete = all(is_line for is_line, _ in self.found)
        rows = []
        for index, (is_line, data) in enumerate(self.found, self.start):
            if not is_line:
                continue
            entry = ent.decode_entry(data, index, leaves[index - self.start].hex())
            if entry.log != checkpoint.origin:
                raise VerificationError(f"entry {index} says that it is of the log {entry.log[:80]!r}")
            if self.question.matches(entry):
                rows.append(entry)
            elif not complete:
                raise VerificationError(f"entry {index} is no answer to the question")
        return Proven(checkpoint, tuple(rows), complete)


def encode_question(question: Question) -> bytes:
    """The one spelling of a question. ``Malformed`` for a value that has none."""
    conditions = [[c.field, c.operator, list(c.value) if isinstance(c.value, tuple) else c.value] for c in question.conditions]
    try:
        return ent.encode_value({"conditions": conditions, "start_us": question.start_us, "end_us": question.end_us,
                                 "lifecycle": question.lifecycle})  # fmt: skip
    except ValueError as e:
        raise Malformed(f"the question: {e}") from None


def decode_question(text: bytes) -> Question:
    """Strict: ``encode_question`` gives the same bytes, and it is a question that can be asked. ``Malformed`` otherwise."""
    try:
        value = json.loads(text)
        conditions = tuple(_condition(*one) for one in value["conditions"])
        question = Question(conditions, _microseconds(value["start_us"]), _microseconds(value["end_us"]), value["lifecycle"])
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise Malformed(f"not a question: {str(e)[:100]}") from None
    if type(question.lifecycle) is not bool or len(conditions) > CONDITIONS_MAX or encode_question(question) != text:
        raise Malformed("not the one spelling of a question")
    return question


def question_text(question: Question) -> str:
    """The question for people, in the order of its conditions."""
    parts = [f"{c.field} {c.operator} {json.dumps(c.value, ensure_ascii=False)}" for c in question.conditions]
    parts += [f"timestamp {op} {us} us" for op, us in ((">=", question.start_us), ("<=", question.end_us)) if us is not None]
    return ("; ".join(parts) or "every entry") + ("" if question.lifecycle else "; without what the log says about itself")


def _condition(name: Any, operator: Any, value: Any) -> Condition:
    if not isinstance(name, str) or not isinstance(operator, str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a condition is field, operator, value")
    (checked,) = ask({name: {operator: value}}).conditions
    if operator == "glob" and len(value) > GLOB_MAX:
        raise ValueError(f"a glob has at most {GLOB_MAX} characters")
    return checked


def _microseconds(value: Any) -> int | None:
    if value is not None and (type(value) is not int or abs(value) >= 2**63):
        raise ValueError("a time is a number of microseconds, or null")
    return value


def _after(lines: list[bytes], word: bytes) -> bytes:
    line = lines.pop() if lines else b""
    if not line.startswith(word):
        raise Malformed(f"an answer has a line {word.decode().strip()!r} here")
    return line[len(word) :]


def _text(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("the answer is not ASCII where it must be") from None


def _hash(raw: bytes) -> bytes:
    found = decode_base64(_text(raw))
    if len(found) != HASH_BYTES:
        raise Malformed("a hash has 32 bytes")
    return found


def _hashes(lines: list[bytes], word: bytes) -> tuple[bytes, ...]:
    count = parse_number(_text(_after(lines, word)))
    if count > _SIDE_MAX or count > len(lines):
        raise Malformed("the range proof is cut off, or has more hashes than any tree")
    return tuple(_hash(lines.pop()) for _ in range(count))


def _found(line: bytes) -> tuple[bool, bytes]:
    if line[:2] == b"= ":
        return True, line[2:]
    if line[:2] == b"# ":
        return False, _hash(line[2:])
    raise Malformed("a line of the range begins with = or #")


__all__ = ["Answer", "Proven", "decode_question", "encode_question", "question_text"]
