"""Answers that can be checked: the range that was read, with the lines or leaf hashes of all of it (decision 24)."""

from __future__ import annotations

from .core.answer import RANGE_MAX, Answer, Proven
from .core.checkpoint import Checkpoint
from .core.errors import AuditError, StoreError
from .core.merkle import leaf_hash
from .core.note import split
from .core.query import Question
from .core.tiles import prove_range
from .logger import AuditLogger
from .proving import cosigned_checkpoint, current_checkpoint, with_log_key

_ALL = Question(lifecycle=True)


def prove_answer(
    log: AuditLogger, question: Question, *, after: int | None = None, before: int | None = None, with_lines: bool = False
) -> tuple[Answer, Proven]:  # fmt: skip
    """The answer to a question over the entries above ``after`` and below ``before`` that are here, and what it shows.

    Every line of the range is read and compared with its leaf hash; no index is asked. Against the newest checkpoint that
    witnesses cosigned where ``before`` ends below it, else against the current one. ``with_lines`` hands out all lines of the range,
    which alone shows that no other entry of it matches. ``StoreError`` where a line is not here or not the one that was signed, or
    the range is longer than 200,000 entries. The answer was checked before it is returned.
    """
    view, store = log._handle.view, log._handle.store
    note = None if before is None or before < 1 else cosigned_checkpoint(log, before - 1)
    note = current_checkpoint(log) if note is None else with_log_key(log, note)
    size = Checkpoint.parse(split(note)[0]).size
    segments = store.segments()
    here = segments[0].start if segments else size
    start, end = here if after is None else after + 1, size if before is None else min(before, size)
    end = max(start, end)
    if start < here:
        raise StoreError(f"entries below #{here:,} are archived, so that nobody can ask them here; begin with --after {here - 1}")
    if end > size:
        raise StoreError(f"the log has {size:,} entries; there are none after #{start - 1:,}")
    if end - start > RANGE_MAX:
        raise StoreError(f"{end - start:,} entries to be read; a proven answer is about at most {RANGE_MAX:,}: --after and --before")
    hashes = store.hashes(0, start, end - start)
    found: list[tuple[bool, bytes]] = []
    for stored in view.lines(start, end):
        leaf = hashes[32 * len(found) : 32 * len(found) + 32]
        if stored.hit.index != start + len(found) or leaf_hash(stored.line) != leaf:
            raise StoreError(f"entry #{start + len(found):,} is not the line that was signed; tally verify {log.path}")
        shown = with_lines or question.matches(stored.entry())
        found.append((True, stored.line) if shown else (False, leaf))
    left, right = prove_range(store.hashes, start, end, size)
    answer = Answer(question, start, tuple(found), tuple(left), tuple(right), note)
    if answer.end != end:
        raise StoreError(f"{end - answer.end:,} lines of the range are not here; tally verify {log.path}")
    try:
        return answer, answer.verify([log._handle.genesis.vkey, view.history(size).key_at(size)], origin=log.origin)
    except AuditError as e:
        raise StoreError(f"the answer would not hold; tally verify {log.path} says where: {e}") from e


__all__ = ["prove_answer"]
