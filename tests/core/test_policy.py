"""Policies: the same few words for everyone who has to decide whom to believe."""

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tallystick.core.errors import Malformed
from tallystick.core.note import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, SignerKey, VerifierKey
from tallystick.core.policy import Group, Log, Policy, Witness


def _public(seed):
    """Fixed keys: the names of the cases below must be the same in every test process."""
    raw = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key()
    return raw.public_bytes(Encoding.Raw, PublicFormat.Raw)


LOG = VerifierKey.of("log.example/a", _public(99))
KEYS = [VerifierKey.of(f"w{i}.example", _public(i), algorithm=COSIGNATURE_ED25519) for i in range(8)]
PQ = VerifierKey.of("pq.example", b"k" * 1312, algorithm=COSIGNATURE_ML_DSA_44)
W = [key.format() for key in KEYS]

EXAMPLE = f"""
# two organisations, each with three witnesses
log {LOG.format()}

witness X1 {W[0]}
witness X2 {W[1]} https://x2.example/
  witness\tX3   {W[2]}\t
group X-witnesses 2 X1 X2 X3

witness Y1 {W[3]}
witness Y2 {W[4]}
witness Y3 {W[5]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
""".encode()


def test_the_example_of_the_specification_means_what_it_says():
    policy = Policy.parse(EXAMPLE)
    assert policy.logs == (Log(LOG),)
    assert [w.name for w in policy.witnesses] == ["X1", "X2", "X3", "Y1", "Y2", "Y3"]
    assert policy.witnesses[1] == Witness("X2", KEYS[1], "https://x2.example/")
    assert policy.groups[2] == Group("X-and-Y", 2, ("X-witnesses", "Y-witnesses"))
    names = [w.name for w in policy.witnesses]
    for count in range(7):
        for cosigned in itertools.combinations(names, count):
            enough = sum(n[0] == "X" for n in cosigned) >= 2 and any(n[0] == "Y" for n in cosigned)
            assert policy.satisfied(set(cosigned)) is enough


def test_names_that_are_no_witnesses_count_nothing():
    policy = Policy.parse(EXAMPLE)
    assert not policy.satisfied({"X-and-Y", "X-witnesses", "Y-witnesses", "none", "log.example/a", "w0.example"})


def test_a_quorum_of_none_asks_for_nobody_and_a_witness_for_itself():
    assert Policy.parse(b"quorum none\n").satisfied(set())
    policy = Policy.parse(f"witness A {W[0]}\nwitness B {PQ.format()}\nquorum B\n".encode())
    assert not policy.satisfied({"A"})
    assert policy.satisfied({"B"})


def test_a_policy_has_one_spelling_that_reads_back():
    policy = Policy.parse(EXAMPLE)
    text = policy.format()
    assert Policy.parse(text) == policy
    assert Policy.parse(text).format() == text
    assert b"#" not in text
    assert b"group X-witnesses 2 X1 X2 X3\n" in text


WITNESSES = f"witness A {W[0]}\nwitness B {W[1]}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quorum none",
        "# nothing\n",
        "quorum none\nquorum none\n",
        "quorum\n",
        "quorum A\n",
        "quorum none A\n",
        "Quorum none\n",
        "witness\n",
        f"quorum A\nwitness A {W[0]}\n",
        f"witness none {W[0]}\nquorum none\n",
        f"witness A {W[0]}\nwitness A {W[1]}\nquorum A\n",
        f"witness A {W[0]}\nwitness B {W[0]}\nquorum A\n",
        f"witness A {W[0]} url more\nquorum A\n",
        f"witness A {LOG.format()}\nquorum A\n",
        f"witness A {W[0][:-1]}\nquorum A\n",
        f"log {W[0]}\nquorum none\n",
        f"log {LOG.format()}\nlog {LOG.format()} url\nquorum none\n",
        f"log {LOG.format()}\nlog {VerifierKey.of('another.example', LOG.public).format()}\nquorum none\n",
        f"log name {LOG.format()}\nquorum none\n",
        f"{WITNESSES}group G any\nquorum G\n",
        f"{WITNESSES}group G\nquorum G\n",
        f"{WITNESSES}group A any B\nquorum A\n",
        f"{WITNESSES}group G any A A\nquorum G\n",
        f"{WITNESSES}group G any A C\nquorum G\n",
        f"{WITNESSES}group G any none\nquorum G\n",
        f"{WITNESSES}group G any G\nquorum G\n",
        f"{WITNESSES}group G any A\ngroup H any A B\nquorum H\n",
        *(f"{WITNESSES}group G {k} A B\nquorum G\n" for k in ("0", "3", "-1", "+1", "01", "1.0", "٣", "Any", "1000")),
        f"group G any A\n{WITNESSES}quorum G\n",
        f"{WITNESSES}quorum A\u00a0\n",
        "quorum none\r\n",
        "quorum none\x7f\n",
        "quorum\x0bnone\n",
        "quorum none\x00\n",
        "quorum none # comment\n",
        "quorum none\n" + "#" * (1 << 18) + "\n",
    ],
)
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(Malformed):
        Policy.parse(text.encode())


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(Malformed):
        Policy.parse(b"# \xff\nquorum none\n")


def test_a_refusal_names_its_line():
    with pytest.raises(Malformed, match="line 3"):
        Policy.parse(b"# a\n\nwitness\nquorum none\n")


def test_thirty_two_of_everything_fit_and_more_than_256_do_not():
    keys = [SignerKey.generate("k").verifier.public for _ in range(257)]
    logs = [VerifierKey.of(f"l{i}", k) for i, k in enumerate(keys)]
    witnesses = [VerifierKey.of(f"w{i}", k, algorithm=COSIGNATURE_ED25519) for i, k in enumerate(keys)]
    for count, fits in ((32, True), (256, True), (257, False)):
        lines = [f"log {k.format()}\n" for k in logs[:count]]
        lines += [f"witness w{i} {k.format()}\n" for i, k in enumerate(witnesses[:count])]
        lines += [f"group g{i} any w{i}\n" for i in range(count)]
        text = ("".join(lines) + "quorum g0\n").encode()
        if fits:
            assert Policy.parse(text).satisfied({"w0"})
        else:
            with pytest.raises(Malformed):
                Policy.parse(text)


@pytest.mark.parametrize(
    "policy",
    [
        Policy((), (), (), "A"),
        Policy((), (Witness("a b", KEYS[0]),), (), "none"),
        Policy((), (Witness("", KEYS[0]),), (), "none"),
        Policy((), (Witness("A", KEYS[0], ""),), (), "A"),
        Policy((), (Witness("A", KEYS[0], "x\nquorum none"),), (), "A"),
        Policy((), (Witness("A", KEYS[0], "\ud800"),), (), "A"),
        Policy((), (Witness("A", LOG),), (), "A"),
        Policy((), (Witness("A", KEYS[0]),), (Group("G", 2, ("A",)),), "G"),
        Policy((), (Witness("A", KEYS[0]),), (Group("G", 0, ("A",)),), "G"),
        Policy((), (), (Group("G", 1, ()),), "G"),
    ],
)
def test_a_policy_built_wrong_cannot_be_written(policy):
    with pytest.raises(Malformed):
        policy.format()


words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=" "), min_size=1, max_size=8)


@given(st.data())
def test_policies_go_and_come_back(data):
    names = data.draw(st.lists(words.filter(lambda n: n != "none"), min_size=2, max_size=8, unique=True))
    cut = data.draw(st.integers(1, len(names)))
    witnesses = tuple(Witness(n, k, data.draw(st.none() | words)) for n, k in zip(names[:cut], KEYS, strict=False))
    free, groups = names[:cut], []
    for name in names[cut:]:
        if not free:
            break
        members = data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=len(free), unique=True))
        groups.append(Group(name, data.draw(st.integers(1, len(members))), tuple(members)))
        free = [n for n in free if n not in members] + [name]
    quorum = data.draw(st.sampled_from(["none", *names[:cut], *(g.name for g in groups)]))
    policy = Policy((Log(LOG),), witnesses, tuple(groups), quorum)
    assert Policy.parse(policy.format()) == policy


@given(st.binary(max_size=20), st.integers(0, len(EXAMPLE)), st.integers(0, len(EXAMPLE)))
def test_bytes_that_are_accepted_have_a_spelling_that_means_the_same(noise, start, stop):
    try:
        policy = Policy.parse(EXAMPLE[:start] + noise + EXAMPLE[stop:])
    except Malformed:
        return
    assert Policy.parse(policy.format()) == policy
