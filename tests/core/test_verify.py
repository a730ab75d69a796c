"""Verdicts: how found lines relate to expected ones, which exit code follows, how ranges are merged."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.core.verify import ISSUES, Alignment, Finding, Span, Verdict, align, merge


def names(text: str) -> list[bytes]:
    return [c.encode() for c in text]


def anchors_of(result: Alignment, expected: list[bytes], found: list[bytes]) -> list[tuple[int, int]]:
    """What is left in place, in order, when everything that is named is taken away."""
    gone = {i for i, _ in result.altered} | set(result.missing) | {i for i, _ in result.moved}
    wrong = {at for pairs in (result.altered, result.duplicate, result.moved, result.inserted) for _, at in pairs}
    left = [i for i in range(len(expected)) if i not in gone]
    right = [at for at in range(len(found)) if at not in wrong]
    assert len(left) == len(right), result
    return list(zip(left, right, strict=True))


def check(expected: list[bytes], found: list[bytes]) -> Alignment:
    """The laws that every alignment obeys."""
    result = align(expected, found)
    for i, at in anchors_of(result, expected, found):
        assert expected[i] == found[at], result
    for i, at in result.duplicate + result.moved:
        assert expected[i] == found[at], result
    for _, at in result.altered + result.inserted:
        assert found[at] not in expected, result
    named = [at for pairs in (result.altered, result.duplicate, result.moved, result.inserted) for _, at in pairs]
    assert len(named) == len(set(named)), result
    lost = [i for i, _ in result.altered] + result.missing + [i for i, _ in result.moved]
    assert len(lost) == len(set(lost)), result
    assert all(expected[i] not in found for i in result.missing), result
    assert all(expected[i] not in found for i, _ in result.altered), result
    assert sorted(result.missing) == result.missing
    return result


def fewest_moved(expected: list[bytes], found: list[bytes]) -> int:
    """Slow: the size of the largest set of first copies that is in order, by trying them all."""
    first = [f for n, f in enumerate(found) if f in expected and f not in found[:n]]
    places = [expected.index(f) for f in first]
    for size in range(len(places), -1, -1):
        if any(list(c) == sorted(c) for c in combinations(places, size)):
            return len(places) - size
    return 0


def test_exhaustively_when_small() -> None:
    """Every sequence of up to five out of four known lines and one foreign, against the four."""
    expected = names("abcd")
    for length in range(6):
        for found in product(names("abcdx"), repeat=length):
            result = check(expected, list(found))
            if len(set(found) - {b"x"}) == len([f for f in found if f != b"x"]):  # without copies the answer is one
                assert len(result.moved) == fewest_moved(expected, list(found)), found
            assert (result == Alignment([], [], [], [], [])) is (list(found) == expected)


def test_single_edits() -> None:
    base = "abcdefgh"
    for i in range(len(base)):
        cut = base[:i] + base[i + 1 :]
        assert check(names(base), names(cut)) == Alignment([], [i], [], [], [])
        assert check(names(base), names(base[:i] + "X" + base[i + 1 :])) == Alignment([(i, i)], [], [], [], [])
        assert check(names(base), names(base[:i] + "X" + base[i:])) == Alignment([], [], [], [], [(i, i)])
        assert check(names(base), names(base[: i + 1] + base[i] + base[i + 1 :])) == Alignment([], [], [(i, i + 1)], [], [])
        if i + 1 < len(base):
            swapped = base[:i] + base[i + 1] + base[i] + base[i + 2 :]
            assert len(check(names(base), names(swapped)).moved) == 1


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[bytes], list[bytes], dict[str, set[int]]]:
    """A run of lines, edits far enough apart not to touch, and what was done at which index."""
    size = draw(st.integers(1, 60))
    expected = [b"%d" % i for i in range(size)]
    done: dict[str, set[int]] = {"altered": set(), "missing": set(), "duplicate": set(), "inserted": set()}
    found: list[bytes] = []
    quiet = 0
    for i, line in enumerate(expected):
        what = "keep" if quiet else draw(st.sampled_from(["keep"] * 6 + list(done)))
        quiet = 2 if what != "keep" else max(0, quiet - 1)
        if what != "keep":
            done[what].add(i)
        if what == "inserted":
            found.append(b"new %d" % i)
        if what == "altered":
            found.append(b"changed %d" % i)
        elif what != "missing":
            found.append(line)
        if what == "duplicate":
            found.append(line)
    return expected, found, done


@given(edited())
@settings(max_examples=400, deadline=None)
def test_edits_are_named_where_they_were_made(case: tuple[list[bytes], list[bytes], dict[str, set[int]]]) -> None:
    expected, found, done = case
    result = check(expected, found)
    assert {i for i, _ in result.altered} == done["altered"]
    assert set(result.missing) == done["missing"]
    assert {i for i, _ in result.duplicate} == done["duplicate"]
    assert {i for i, _ in result.inserted} == done["inserted"]
    assert result.moved == []


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
@settings(max_examples=400, deadline=None)
def test_any_two_sequences(a: list[int], b: list[int]) -> None:
    check([b"%d" % i for i in dict.fromkeys(a)], [b"%d" % i for i in b])


def test_a_large_shuffle_takes_no_time_to_speak_of() -> None:
    expected = [b"%d" % i for i in range(50_000)]
    result = check_quick(expected, expected[::-1])
    assert len(result.moved) == len(expected) - 1


def check_quick(expected: list[bytes], found: list[bytes]) -> Alignment:
    return align(expected, found)


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_the_first_of_6_2_4_5_3() -> None:
    for size in range(6):
        for codes in combinations([2, 3, 4, 5, 6], size):
            verdict = Verdict(findings=[Finding("missing", "x", code) for code in codes])
            expected = next((c for c in (6, 2, 4, 5, 3) if c in codes), 0)
            assert verdict.exit_code == expected
            assert verdict.as_dict()["verified"] is (expected == 0)
            assert verdict.sentence.endswith(".")
            assert (verdict.sentence.startswith("NOTHING ALTERED")) is (expected == 0)
            assert 1 not in (verdict.exit_code,)


def test_the_sentence_names_each_kind_once() -> None:
    for issue in ISSUES:
        assert Verdict(findings=[Finding(issue, "x")]).sentence.startswith("1 × ")
    verdict = Verdict(findings=[Finding("missing", "x", 6, 3, 10), Finding("missing", "x", 6, 20), Finding("order", "x")])
    assert verdict.sentence == "8 × MISSING WITHOUT A RECORD; 1 × OUT OF PLACE."


def test_a_finding_always_has_the_keys_of_the_chapter() -> None:
    assert set(Finding("order", "x").as_dict()) == {"event_id", "timestamp", "issue", "text"}
    full: dict[str, Any] = Finding("order", "x", 6, 0, 0, "f", 0, "e", "t").as_dict()
    assert full == {"event_id": "e", "timestamp": "t", "issue": "order", "text": "x", "index": 0, "end": 0, "file": "f",
                    "offset": 0}  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from([("a",), ("b",)]))))
def test_merged_spans_say_the_same_of_each_index(parts: list[tuple[int, int, tuple[str, ...]]]) -> None:
    """For spans that do not overlap: same words for each index, no two neighbours alike, none empty."""
    spans, at = [], 0
    for gap, length, words in parts:
        at += gap % 3
        spans.append(Span(at, at + length, words))
        at += length
    merged = merge(spans)

    def words_at(which: list[Span], index: int) -> list[tuple[str, ...]]:
        return [s.words for s in which if s.start <= index < s.end]

    assert all(words_at(merged, i) == words_at(spans, i) for i in range(at + 1))
    assert all(s.start < s.end for s in merged)
    assert all(a.end < b.start or a.words != b.words for a, b in zip(merged, merged[1:], strict=False))
