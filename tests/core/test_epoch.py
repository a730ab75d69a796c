"""Which key signs which size, and what closing checkpoints seal: strictly what the entries say, compared with the rule as slow code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.core.entry import OWN_ACTOR, Fields
from tallystick.core.epoch import CREATED, EPOCH_CLOSE, EPOCH_RECOVERED, RECOVERED, read_history
from tallystick.core.errors import Malformed, VerificationError
from tallystick.core.note import SignerKey

ORIGIN = "log.example/a"
KEYS = [SignerKey.generate(ORIGIN).verifier for _ in range(12)]
LOG_KEY, OTHER = SignerKey.generate(ORIGIN).verifier, SignerKey.generate("log.example/b").verifier


def own(event_type: str, **details: Any) -> Fields:
    return Fields(v=1, log=ORIGIN, event_id="evt_" + "0" * 32, timestamp="2026-11-24T00:00:00.000000Z",
                  recorded_at="2026-11-24T00:00:00.000000Z", event_type=event_type, actor=OWN_ACTOR, actor_type="system", resource="log",
                  action="a", outcome="success", details=details)  # fmt: skip


def created() -> tuple[int, Fields]:
    return 0, own(CREATED, epoch_key=KEYS[0].format(), log_key=LOG_KEY.format())


def close(number: int, first: int, index: int, event_type: str = EPOCH_CLOSE, **other: Any) -> tuple[int, Fields]:
    details = {"epoch": number, "first": first, "last": index, "next_key": KEYS[number + 1].format(), **other}
    return index, own(event_type, **details)


def test_keys_change_at_the_closes_and_not_before() -> None:
    history = read_history([created(), close(0, 0, 4), close(1, 5, 5), close(2, 6, 9, EPOCH_RECOVERED)])
    expected = [0] * 5 + [1] + [2] * 3
    assert [history.key_at(n) for n in range(1, 10)] == [KEYS[i] for i in expected]
    assert history.key_at(10) == LOG_KEY  # that head and no other
    assert history.key_at(11) == history.key_at(10**9) == KEYS[3]
    assert history.closes() == [5, 6, 10]
    with pytest.raises(VerificationError):
        history.epoch_at(0)


@pytest.mark.parametrize("lines", [
    [close(1, 0, 4)], [close(0, 1, 4)], [close(0, 0, 4, last=5)], [close(0, 0, 4, last="4")], [close(0, 0, 4, epoch=True)],
    [close(0, 0, 4), close(0, 0, 6)], [close(0, 0, 4), close(2, 5, 6)], [close(0, 0, 4), close(1, 4, 6)],
    [close(0, 0, 4, next_key=KEYS[0].format())], [close(0, 0, 4, next_key=LOG_KEY.format())],
    [close(0, 0, 4, next_key=OTHER.format())], [close(0, 0, 4, next_key=None)], [close(0, 0, 4, next_key="x")],
    [close(0, 0, 4), close(1, 5, 8, next_key=KEYS[0].format())], [close(0, 0, 4), close(1, 5, 8, next_key=KEYS[1].format())],
], ids=itertools.count())  # fmt: skip
def test_what_does_not_say_exactly_that_is_malformed(lines: list[tuple[int, Fields]]) -> None:
    """A second close of an epoch, a close that skips one, a key that was used before (journald's CVE-2023-31438 and 31439)."""
    with pytest.raises(Malformed):
        read_history([created(), *lines])


def test_true_is_no_number() -> None:
    first = close(0, 0, 4)
    second = close(1, 5, 8, epoch=True)
    with pytest.raises(Malformed):
        read_history([created(), first, second])


def test_a_close_that_was_unsigned_when_found_has_no_effect() -> None:
    history = read_history([created(), close(0, 0, 4), (5, own(RECOVERED, first=3, end=5)), close(0, 0, 7)])
    assert history.closes() == [8]


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=8), st.data())
def test_against_the_rule_as_slow_code(gaps: list[tuple[int, bool]], data: st.DataObject) -> None:
    lines, at = [created()], 0
    ends = []
    for number, (gap, lost) in enumerate(gaps):
        index = at + gap
        lines.append(close(number, at, index, EPOCH_RECOVERED if lost else EPOCH_CLOSE))
        ends.append((index + 1, lost))
        at = index + 1
    history = read_history(lines)
    for size in range(1, at + 4):
        j = sum(1 for end, _ in ends if size > end)
        expected = LOG_KEY if j < len(ends) and ends[j] == (size, True) else KEYS[j]
        assert history.key_at(size) == expected
    there = {end: data.draw(st.sampled_from(["right", "wrong", "none"])) for end, _ in ends}
    signed = {end: [history.key_at(end)] if word == "right" else [KEYS[11]] for end, word in there.items() if word != "none"}
    seals = history.seals(signed)
    whole = list(itertools.takewhile(lambda e: there[e[0]] == "right" and not e[1], ends))
    assert seals.sealed_to == (whole[-1][0] if whole else 0)
    assert [size for _, size in seals.missing] == [end for end, _ in ends if there[end] != "right"]
    assert [size for _, size in seals.broken] == [end for end, lost in ends if lost and there[end] == "right"]
