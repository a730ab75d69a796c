"""Proven answers: what a range proof binds, what a question shows, and that nothing else is accepted."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.core import entry as ent
from tallystick.core.answer import GLOB_MAX, Answer, decode_question, encode_question, question_text
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.entry import Fields
from tallystick.core.errors import Malformed, UnknownSigner, VerificationError
from tallystick.core.merkle import Frontier, leaf_hash, right_heights, root_of, verify_range
from tallystick.core.note import SignerKey
from tallystick.core.query import Question, ask, glob_matches
from tallystick.core.tiles import prove_range

from . import rfc6962

ORIGIN = "srv2/invoices/0f3a9c21b7de"
LOG = SignerKey.generate(ORIGIN)
SIZE = 21


def line(i, log=ORIGIN):
    return ent.encode(Fields(v=1, log=log, event_id=f"evt_{i:032x}", timestamp="2026-11-24T08:12:04.000000Z", recorded_at="2026-11-24T08:12:04.000001Z",
                             event_type="user_action", actor=("ana", "bob", "eva")[i % 3], actor_type="user", resource=f"r/{i}", action="do",
                             outcome="success", details={"amount": i}))  # fmt: skip


LINES = [line(i) for i in range(SIZE)]
LEAVES = [leaf_hash(data) for data in LINES]
ROWS = [b"".join(LEAVES), *(b"".join(row) for row in Frontier().extend(LEAVES))]
ANA = ask({"actor": "ana"})


def read(level, start, count):
    return ROWS[level][32 * start : 32 * (start + count)]


def note(size=SIZE, signer=LOG, leaves=LEAVES):
    return sign_checkpoint(Checkpoint(ORIGIN, size, root_of(leaves[:size])), signer)


def answer(question=ANA, start=3, end=15, *, lines=False, size=SIZE):
    left, right = prove_range(read, start, end, size)
    found = []
    for i in range(start, end):
        shown = lines or question.matches(ent.decode_entry(LINES[i], i, LEAVES[i].hex()))
        found.append((True, LINES[i]) if shown else (False, LEAVES[i]))
    return Answer(question, start, tuple(found), tuple(left), tuple(right), note(size))


def verified(one):
    return Answer.parse(one.format()).verify([LOG.verifier], origin=ORIGIN)


@pytest.mark.parametrize("size", range(1, 20))
def test_every_range_of_every_tree_is_bound_by_its_proof(size):
    root = rfc6962.mth(0, size)
    leaves = [leaf_hash(rfc6962.line(i)) for i in range(size)]
    row = b"".join(leaves)
    for start in range(size + 1):
        for end in range(start, size + 1):
            left, right = prove_range(lambda level, at, n: row[32 * at : 32 * (at + n)], start, end, size)
            verify_range(start, size, leaves[start:end], left, right, root)
            assert sum(1 << h for h in right_heights(end, size)) == size - end
            for bad_left, bad_right in ((left[:-1], right), (left, right[:-1]), ([*left, root], right), (left, [*right, root]), (left[::-1], right), (left, right[::-1])):
                if (bad_left, bad_right) != (left, right):
                    with pytest.raises(VerificationError):
                        verify_range(start, size, leaves[start:end], bad_left, bad_right, root)
            for bad in (leaves[start : end + 1] if end < size else leaves[start:end] * 2 or [root], leaves[start + 1 : end + 1], leaves[start:end][::-1], leaves[start : end - 1]):
                if bad != leaves[start:end]:
                    with pytest.raises(VerificationError):
                        verify_range(start, size, bad, left, right, root)


def test_a_large_tree_is_read_from_its_tiles():
    size = 70_000
    leaves = [i.to_bytes(32, "big") for i in range(size)]
    frontier = Frontier()
    levels = [b"".join(leaves), *(b"".join(row) for row in frontier.extend(leaves))]
    fetch = lambda level, start, count: levels[level][32 * start : 32 * (start + count)]  # noqa: E731
    for start, end in ((0, 0), (0, size), (1, 2), (255, 257), (65_535, 65_537), (12_345, 54_321), (size, size)):
        left, right = prove_range(fetch, start, end, size)
        verify_range(start, size, leaves[start:end], left, right, frontier.root())
        with pytest.raises(VerificationError):
            verify_range(start, size, leaves[start:end], left, right, bytes(32))


def test_with_all_lines_the_answer_is_complete():
    for start, end in ((0, SIZE), (3, 15), (4, 4), (20, 21), (0, 1)):
        proven = verified(answer(start=start, end=end, lines=True))
        assert proven.complete
        assert [e.index for e in proven.rows] == [i for i in range(start, end) if i % 3 == 0]


def test_with_hashes_the_rows_are_proven_and_no_more():
    proven = verified(answer())
    assert not proven.complete
    assert [e.index for e in proven.rows] == [3, 6, 9, 12]
    hidden = dataclasses.replace(answer(), found=tuple((False, LEAVES[i]) for i in range(3, 15)))
    assert verified(hidden) == (proven.checkpoint, (), False)  # rows may be hidden as hashes: that is why it is not complete


def change(one, at, value):
    found = list(one.found)
    found[at : at + 1] = value
    return dataclasses.replace(one, found=tuple(found))


@pytest.mark.parametrize("lines", [True, False])
def test_nothing_can_be_dropped_added_moved_or_exchanged(lines):
    one = answer(lines=lines)
    extra = ent.encode(ent.decode(LINES[3]))
    forged = LINES[4].replace(b'"bob"', b'"ana"')
    bad = {
        "dropped": change(one, 0, []),
        "dropped at the end": change(one, 11, []),
        "added": change(one, 2, [one.found[2], (True, extra)]),
        "added at the end": change(one, 11, [one.found[11], (True, LINES[15])]),
        "exchanged": dataclasses.replace(one, found=one.found[::-1]),
        "two exchanged": change(change(one, 0, [one.found[3]]), 3, [one.found[0]]),
        "altered": change(one, 0, [(True, LINES[3].replace(b'"ana"', b'"eve"'))]),
        "forged into a row": change(one, 1, [(True, forged)]),
        "hash of another": change(one, 1, [(False, LEAVES[7])]),
        "another start": dataclasses.replace(one, start=one.start + 1),
        "an earlier start": dataclasses.replace(one, start=one.start - 1),
        "another size": dataclasses.replace(one, checkpoint=note(SIZE - 1)),
        "another tree": dataclasses.replace(one, checkpoint=note(leaves=LEAVES[::-1])),
        "no left": dataclasses.replace(one, left=()),
        "no right": dataclasses.replace(one, right=()),
    }
    verified(one)
    for what, wrong in bad.items():
        with pytest.raises((VerificationError, Malformed)):
            verified(wrong)
            pytest.fail(what)


def test_another_question_is_another_answer():
    other = ask({"actor": "bob"})
    with pytest.raises(VerificationError, match="no answer to the question"):
        verified(dataclasses.replace(answer(), question=other))
    proven = verified(dataclasses.replace(answer(lines=True), question=other))
    assert [e.index for e in proven.rows] == [4, 7, 10, 13]  # all lines are there: it is asked again, and the rows are those of the question
    with pytest.raises(VerificationError, match="no answer"):
        verified(dataclasses.replace(answer(), found=change(answer(), 1, [(True, LINES[4])]).found))


def test_the_key_and_the_log_count():
    with pytest.raises(UnknownSigner):
        answer().verify([SignerKey.generate(ORIGIN).verifier])
    with pytest.raises(VerificationError):
        answer().verify([LOG.verifier], origin="else/where")
    lines = [line(i, "else/where") for i in range(4)]
    leaves = [leaf_hash(data) for data in lines]
    stolen = Answer(ANA, 0, tuple((True, data) for data in lines), (), (), note(4, leaves=leaves))
    with pytest.raises(VerificationError, match="of the log"):
        stolen.verify([LOG.verifier])


BYTES = answer().format()


def test_the_file_reads_as_its_format_says():
    text = BYTES.decode()
    assert text.startswith('tallystick/answer@v1\nquestion {"conditions":[["actor","=","ana"]],"start_us":null,"end_us":null,"lifecycle":false}\nrange 3 15\nleft 2\n')
    assert BYTES.endswith(b"\n\n" + note())
    assert Answer.parse(BYTES) == answer()


@pytest.mark.parametrize("old,new", [
    (b"answer@v1", b"answer@v2"), (b"range 3 15", b"range 3 16"), (b"range 3 15", b"range 03 15"), (b"range 3 15", b"range 3"), (b"left 2", b"left 3"),
    (b"left 2", b"left 1"), (b"left 2", b"left 99999999"), (b"right ", b"right 0"), (b"\n= ", b"\n? "), (b"\n# ", b"\n#"),
    (b'"lifecycle":false', b'"lifecycle":0'), (b'"lifecycle":false', b'"lifecycle": false'), (b'"start_us":null', b'"start_us":1.5'),
    (b'"start_us":null', b'"start_us":1e3'), (b'[["actor","=","ana"]]', b'[["actor","=","ana","x"]]'), (b'["actor","=","ana"]', b'["actor","like","ana"]'),
    (b'["actor","=","ana"]', b'["nobody","=","ana"]'), (b'["actor","=","ana"]', b'["actor","=",{}]'), (b'["actor","=","ana"]', b'["actor","in","ana"]'),
    (b'{"conditions"', b'{"x":1,"conditions"'), (b'{"conditions"', b'{"lifecycle":true,"conditions"'), (b"\n\n", b"\n"), (b"\n\n", b"\n\n\n"),
])  # fmt: skip
def test_other_spellings_are_refused(old, new):
    assert old in BYTES
    with pytest.raises(Malformed):
        Answer.parse(BYTES.replace(old, new, 1))


def test_no_bit_can_be_flipped_except_in_what_is_asked():
    """A flip within the question makes another question, which the rows do not answer, or a spelling that is none."""
    for i in range(0, 8 * len(BYTES), 7):
        changed = bytearray(BYTES)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises((Malformed, VerificationError)):
            Answer.parse(bytes(changed)).verify([LOG.verifier], origin=ORIGIN)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=30), st.integers(0, len(BYTES)), st.integers(0, len(BYTES)))
def test_bytes_that_are_accepted_are_the_one_spelling(noise, start, stop):
    changed = BYTES[:start] + noise + BYTES[stop:]
    try:
        assert Answer.parse(changed).format() == changed
    except Malformed:
        pass


@pytest.mark.parametrize("filters", [
    {}, {"actor": None}, {"actor": ["a", "b"]}, {"details.amount": {">": 1, "<=": 2.5}}, {"index": {">=": 3}}, {"resource": {"glob": "crm/*?"}},
    {"details.ok": True}, {"actor": {"!=": "\u2028</script>"}}, {"details.big": 2**63},
])  # fmt: skip
def test_questions_go_and_come_back(filters):
    question = ask(filters, start_us=-5, end_us=7)
    assert decode_question(encode_question(question)) == question
    assert question_text(question)


def test_questions_that_cannot_be_asked_are_refused():
    for value in ([], {}, {"conditions": [], "start_us": None, "end_us": None}, None, 1):
        with pytest.raises(Malformed):
            decode_question(json.dumps(value).encode())
    deep = b"[" * 100_000
    for text in (b"", b"{", deep, b'{"conditions":[["actor","=",NaN]],"start_us":null,"end_us":null,"lifecycle":false}'):
        with pytest.raises(Malformed):
            decode_question(text)
    with pytest.raises(Malformed):
        decode_question(encode_question(ask({"actor": {"glob": "*a" * GLOB_MAX}})))
    assert encode_question(Question()) == b'{"conditions":[],"start_us":null,"end_us":null,"lifecycle":false}'


def slow_glob(glob, text):
    """What a glob means, straight from the definition."""
    if not glob:
        return not text
    if glob[0] == "*":
        return any(slow_glob(glob[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and glob[0] in ("?", text[0]) and slow_glob(glob[1:], text[1:])


@settings(max_examples=500, deadline=None)
@given(st.text("ab*?.\n", max_size=6), st.text("ab.\n*", max_size=8))
def test_globs_mean_what_they_say(glob, text):
    assert glob_matches(glob, text) is slow_glob(glob, text)


def test_no_glob_takes_for_ever():
    assert not glob_matches("*a" * 100 + "*b", "a" * 60_000)
