"""Every member altered in every way: verify.py and our core refuse alike, with the same exit code."""

import random

import pytest

from tallystick.core.checkpoint import Checkpoint
from tallystick.core.cosignature import CosignerKey
from tallystick.core.note import COSIGNATURE_ED25519, SignerKey, sign, split

from .conftest import PEOPLE, WITNESS, ours, theirs


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def alterations(members):
    """(what, members) with one thing changed: bits of each line of each member, cut, grown, emptied, left out, exchanged."""
    chance = random.Random(1)
    names = [name for name in members if name not in PEOPLE]
    for name in names:
        data = members[name]

        def other(changed, name=name):
            return {**members, name: changed}

        starts = [0] + [i + 1 for i, b in enumerate(data[:-1]) if b == 10]
        for start in starts:
            end = data.find(b"\n", start) if data.find(b"\n", start) >= 0 else len(data)
            for _ in range(2 if len(starts) > 2 else 6):
                if end > start:
                    bit = 8 * chance.randrange(start, end) + chance.randrange(8)
                    yield f"{name}: bit {bit}", other(flip(data, bit))
            if end > start:
                yield f"{name}: without the line at {start}", other(data[:start] + data[end + 1 :])
                yield f"{name}: the line at {start} twice", other(data[: end + 1] + data[start : end + 1] + data[end + 1 :])
        for what, changed in (("without its last byte", data[:-1]), ("with one byte more", data + b"x"), ("with a newline more", data + b"\n"),
                              ("empty", b""), ("with CRLF", data.replace(b"\n", b"\r\n")), ("NUL", data + b"\0")):  # fmt: skip
            if changed != data:
                yield f"{name}: {what}", other(changed)
        yield f"{name}: left out", {n: d for n, d in members.items() if n != name}
        near = chance.choice([n for n in names if n != name and n.partition("/")[0] == name.partition("/")[0]] or names)
        if members[near] != data:
            yield f"{name}: as {near}", other(members[near])
    for name in ("entries/00000000000000000004.json", "x", "entries/x", "checkpoints/00000000000000000099", "salts/00000000000000000001",
                 "salts/00000000000000000003", "entries/99999999999999999999.json", "openings/00000000000000000001.x.salt"):  # fmt: skip
        yield f"{name}: new", {**members, name: b"0" * 64 + b"\n"}


def harmless(what):
    """Lines of others than the keys that must have signed, and the log's own policy: claims that nothing here rests on."""
    return what.startswith("policy: ") or ".signatures: " in what or (what.startswith("checkpoints/") and ": without the line" in what
                                                                      and ".consistency" not in what)  # fmt: skip


def test_the_sweep(made):
    tried, codes, apart, accepted = 0, {}, [], []
    for what, members in alterations(made.members):
        mine, other = ours(members, vkey=made.vkey), theirs(members, vkey=made.vkey)
        tried += 1
        codes[mine] = codes.get(mine, 0) + 1
        if mine != other:
            apart.append((what, mine, other))
        if mine == 0:
            accepted.append(what)
    assert not apart, f"{len(apart)} of {tried}: {apart[:10]}"
    assert tried > 600 and codes[4] > 100 and codes[6] > 100
    unsigned = [w for w in accepted if not harmless(w)]
    assert unsigned == [], '\n'.join(unsigned)


def parts(members, name):
    text, signatures = split(members[name])
    return text, signatures


def resigned(made, name, *keep):
    """A note with only those of its signature lines."""
    text, signatures = parts(made.members, name)
    return (text + "\n" + "".join(s.format() + "\n" for at, s in enumerate(signatures) if at in keep)).encode()


def test_a_stripped_signature_is_refused(made):
    from tallystick.core.proof import InclusionProof

    signatures = parts(made.members, "checkpoint")[1]
    assert len(signatures) == 3  # the epoch's, the log's, the witness's
    for keep, code in (((0, 1), 0), ((1, 2), 6), ((0, 2), 6), ((2,), 6), ((1,), 6), ((0,), 6)):
        note = resigned(made, "checkpoint", *keep)
        members = {n: InclusionProof(p.index, p.hashes, note).format() if n.endswith(".tlog-proof") and (p := InclusionProof.parse(d)) else d
                   for n, d in made.members.items()}  # fmt: skip
        members["checkpoint"] = note
        assert (ours(members, vkey=made.vkey), theirs(members, vkey=made.vkey)) == (code, code), keep
        # without the witness's line the quorum of the reader is not reached: not altered, and not proven
        wanted = code if 2 in keep or code else 3
        assert (ours(members, policy=made.policy), theirs(members, policy=made.policy)) == (wanted, wanted), keep


@pytest.mark.parametrize("size", [3, 14])
def test_a_broken_epoch_chain_is_refused(made, size):
    name = f"checkpoints/{size:020d}"
    text, signatures = parts(made.members, name)
    gone = {n: d for n, d in made.members.items() if not n.startswith(name)}
    by_log = {**made.members, name: resigned(made, name, 1)}
    stranger = SignerKey.generate(made.vkey.split("+")[0])
    by_other = {**made.members, name: sign(text, stranger)}
    line = {n: d for n, d in made.members.items() if not n.startswith(f"keys/{size - 1:020d}")}
    assert len(signatures) == 2
    for members in (gone, by_log, by_other):
        assert (ours(members, vkey=made.vkey), theirs(members, vkey=made.vkey)) == (6, 6)
    # without the line of the first close the next one is not that of the running epoch; without the last, the head is by an unknown key
    assert ours(line, vkey=made.vkey) == theirs(line, vkey=made.vkey) == (4 if size == 3 else 6)


def test_what_is_not_given_is_not_believed(made):
    other = SignerKey.generate(made.vkey.split("+")[0])
    stranger = CosignerKey("w.example/1", COSIGNATURE_ED25519, b"s" * 32)
    policy = made.policy.replace(WITNESS.verifier.format().encode(), stranger.verifier.format().encode())
    head = Checkpoint.parse(split(made.members["checkpoint"])[0])
    kept = Checkpoint.parse(split(made.kept)[0])
    later = Checkpoint(head.origin, head.size + 5, b"x" * 32)
    cases = [
        ({}, 3),
        ({"vkey": made.vkey}, 0),
        ({"vkey": other.verifier.format()}, 6),
        ({"checkpoint": made.kept}, 0),
        ({"checkpoint": made.genesis}, 0),
        ({"checkpoint": made.members["checkpoint"]}, 0),
        ({"checkpoint": sign(kept.format(), other)}, 6),
        ({"checkpoint": sign(later.format(), other)}, 6),
        ({"checkpoint": sign(Checkpoint("else/where", 1, b"x" * 32).format(), SignerKey.generate("else/where"))}, 4),
        ({"policy": made.policy}, 0),
        ({"policy": policy}, 3),
        ({"policy": made.policy.replace(made.vkey.encode(), other.verifier.format().encode())}, 6),
        ({"vkey": made.vkey, "policy": policy}, 3),
    ]
    for given, code in cases:
        assert (ours(made.members, **given), theirs(made.members, **given)) == (code, code), given


def test_two_histories_are_seen(made):
    """The log's own key signs another root for a size that was handed out."""
    from tallystick.keys import KeyFolder

    key = KeyFolder(made.folder.with_name(made.folder.name + ".keys")).log_key()
    kept = Checkpoint.parse(split(made.kept)[0])
    for size in (1, kept.size, 15):
        given = sign(Checkpoint(kept.origin, size, b"y" * 32).format(), key)
        assert (ours(made.members, checkpoint=given), theirs(made.members, checkpoint=given)) == (6, 6)
    for size in (2, 7, 400):  # nothing in the pack to compare with: said, and not green
        given = sign(Checkpoint(kept.origin, size, b"y" * 32).format(), key)
        assert (ours(made.members, checkpoint=given), theirs(made.members, checkpoint=given)) == (3, 3)


def test_a_genesis_of_another_beginning_is_refused(made):
    """Whoever has the log key can sign a new first checkpoint; the entries then do not begin with it."""
    from tallystick.keys import KeyFolder

    key = KeyFolder(made.folder.with_name(made.folder.name + ".keys")).log_key()
    origin = made.vkey.split("+")[0]
    for size, root in ((1, b"g" * 32), (2, Checkpoint.parse(split(made.genesis)[0]).root)):
        members = {**made.members, "log.vkey": made.vkey.encode() + b"\n" + sign(Checkpoint(origin, size, root).format(), key)}
        assert (ours(members, vkey=made.vkey), theirs(members, vkey=made.vkey)) == (6, 6)
