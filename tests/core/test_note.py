"""Notes: one spelling, one door, and no text without a signature that holds."""

from base64 import b64encode

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tallystick.core.errors import Malformed, UnknownSigner, VerificationError
from tallystick.core.note import _NOT_IN_NAME as NOT_IN_NAME
from tallystick.core.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_ML_DSA_44,
    NOTE_BYTES_MAX,
    SIGNATURES_MAX,
    Signature,
    SignerKey,
    VerifierKey,
    add_signature,
    decode_base64,
    encode_base64,
    open_note,
    sign,
    split,
)

ANA, BEN, EVE = (SignerKey.generate(f"{name}.example/log") for name in ("ana", "ben", "eve"))
TEXT = "One history.\n\n— not a signature: before the last empty line\n"
NOTE = sign(TEXT, ANA, BEN)

FOO = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"  # C2SP signed-note, "Verifier keys"
FOO_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
WIT1 = (  # transparency-dev/formats, witness_test.go
    "Wit1+55ee4561+AVhZSmQj9+SoL+p/nN0Hh76xXmF7QcHfytUrI1XfSClk",
    "PRIVATE+KEY+Wit1+55ee4561+AeadRiG7XM4XiieCHzD8lxysXMwcViy5nYsoXURWGrlE",
)

names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="+"), min_size=1, max_size=40)
lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
texts = st.lists(lines, min_size=1, max_size=6).map(lambda parts: "\n".join(parts) + "\n")


def test_a_note_opens_to_its_text_and_says_which_signatures_hold():
    note = open_note(NOTE, [ANA.verifier])
    assert note.text == TEXT
    assert [s.name for s in note.verified] == ["ana.example/log"]
    assert [s.name for s in note.unverified] == ["ben.example/log"]
    assert len(open_note(NOTE, [BEN.verifier, ANA.verifier, EVE.verifier]).verified) == 2


def test_the_example_of_the_specification_opens_and_signs_alike():
    assert open_note(FOO_NOTE, [VerifierKey.parse(FOO)]).text == "This is an example message.\n"
    signer = SignerKey.parse(WIT1[1])
    assert signer.verifier == VerifierKey.parse(WIT1[0])
    assert (signer.format(), signer.verifier.format()) == (WIT1[1], WIT1[0])


def test_a_note_by_nobody_known_is_an_unknown_signer():
    for keys in ([], [EVE.verifier], [VerifierKey.of("other.example", ANA.verifier.public)]):
        with pytest.raises(UnknownSigner):
            open_note(NOTE, keys)


def test_a_key_of_the_same_name_or_the_same_id_alone_is_unknown():
    impostor = VerifierKey("ana.example/log", EVE.verifier.key_id, 1, EVE.verifier.public)
    with pytest.raises(UnknownSigner):
        open_note(NOTE, [impostor])
    namesake = VerifierKey("eve.example/log", ANA.verifier.key_id, 1, ANA.verifier.public)
    with pytest.raises(UnknownSigner):
        open_note(NOTE, [namesake])


def test_one_known_signature_that_fails_spoils_the_note():
    text, (ana, ben) = split(NOTE)
    forged = Signature(ben.name, ben.key_id, ana.signature)
    note = f"{text}\n{ana.format()}\n{forged.format()}\n".encode()
    assert open_note(note, [ANA.verifier]).text == TEXT
    with pytest.raises(VerificationError, match="ben"):
        open_note(note, [ANA.verifier, BEN.verifier])


def test_no_bit_of_a_note_can_be_flipped():
    keys = [ANA.verifier]
    note = sign("log.example/a\n7\n", ANA)
    for i in range(8 * len(note)):
        changed = bytearray(note)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises((VerificationError, Malformed)):
            open_note(bytes(changed), keys)


def test_no_part_of_a_note_is_a_note():
    for cut in range(len(FOO_NOTE)):
        with pytest.raises((VerificationError, Malformed)):
            open_note(FOO_NOTE[:cut], [VerifierKey.parse(FOO)])


SIGNATURE = FOO_NOTE.decode().rpartition("\n\n")[2]
ENCODED = SIGNATURE.split(" ")[2].rstrip("\n")


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n\n",
        b"text\n\n",
        b"text\n\n\n",
        b"text\n",
        f"text\n{SIGNATURE}".encode(),
        f"text\n\n{SIGNATURE}"[:-1].encode(),  # without the final newline
        f"text\n\n{SIGNATURE}\n".encode(),
        f"text\r\n\r\n{SIGNATURE}".encode(),
        f"te\tx\n\n{SIGNATURE}".encode(),
        f"te\0x\n\n{SIGNATURE}".encode(),
        f"text\n\n{SIGNATURE}{SIGNATURE}".encode(),  # the same key twice
        f"text\n\n{SIGNATURE}trailing\n".encode(),
        f"text\n\n {SIGNATURE}".encode(),
        f"text\n\n- example.com/foo {ENCODED}\n".encode(),
        f"text\n\n—  example.com/foo {ENCODED}\n".encode(),
        f"text\n\n— example.com/foo  {ENCODED}\n".encode(),
        f"text\n\n— example.com/foo {ENCODED} \n".encode(),
        f"text\n\n— example.com+foo {ENCODED}\n".encode(),
        f"text\n\n— example.com\u00a0foo {ENCODED}\n".encode(),
        f"text\n\n— example.com\u2028foo {ENCODED}\n".encode(),
        f"text\n\n—  {ENCODED}\n".encode(),
        b"text\n\n\xe2\x80\x94 example.com/foo \n",
        b"text\n\n\xe2\x80\x94 example.com/foo\n",
        b"text\n\n\xe2\x80\x94 example.com/foo AAAAAA==\n",  # a key ID alone
        b"text\n\n\xe2\x80\x94 example.com/foo AAAAAAB=\n",  # not canonical
        b"text\n\n\xe2\x80\x94 example.com/foo AAAAAAA\n",
        b"text\n\n\xe2\x80\x94 example.com/foo AAAA_-AA\n",
        b"\xff\n\n" + SIGNATURE.encode(),
        b"\xed\xa0\x80\n\n" + SIGNATURE.encode(),  # a surrogate in UTF-8
    ],
)
def test_what_is_not_a_note_is_malformed(note):
    with pytest.raises(Malformed):
        split(note)
    with pytest.raises(Malformed):
        open_note(note, [VerifierKey.parse(FOO)])


def test_size_and_number_of_signatures_are_bounded():
    many = "".join(Signature(f"w{i}", i, b"x" * 64).format() + "\n" for i in range(SIGNATURES_MAX))
    assert len(split(f"text\n\n{many}".encode())[1]) == SIGNATURES_MAX
    with pytest.raises(Malformed):
        split(f"text\n\n{many}{SIGNATURE}".encode())
    room = NOTE_BYTES_MAX - len(f"\n\n{SIGNATURE}".encode())
    split(b"x" * room + f"\n\n{SIGNATURE}".encode())
    with pytest.raises(Malformed):
        split(b"x" * (room + 1) + f"\n\n{SIGNATURE}".encode())


def test_a_signature_is_added_at_the_end_and_only_once():
    assert add_signature(sign(TEXT, ANA), BEN) == NOTE
    with pytest.raises(Malformed):
        add_signature(NOTE, ANA)
    with pytest.raises(Malformed):
        sign(TEXT, ANA, ANA)


@pytest.mark.parametrize("text", ["", "no newline", "x\r\n", "x\0\n", "\ud800\n", "ends in no\n\nnewline", "x\n\n— y"])
def test_only_a_text_can_be_signed(text):
    with pytest.raises(Malformed):
        sign(text, ANA)


def test_misuse_is_a_value_error():
    with pytest.raises(ValueError):
        sign(TEXT)
    weak = VerifierKey.of("ana.example/log", ANA.verifier.public, algorithm=COSIGNATURE_ED25519)
    with pytest.raises(ValueError):
        open_note(NOTE, [weak])
    with pytest.raises(ValueError):
        weak.verify(b"", b"")
    twin = VerifierKey(ANA.name, ANA.verifier.key_id, 1, BEN.verifier.public)
    with pytest.raises(ValueError):
        open_note(NOTE, [ANA.verifier, twin])
    assert open_note(NOTE, [ANA.verifier, ANA.verifier]).verified


@settings(deadline=None)
@given(texts)
def test_every_text_can_be_signed_opened_and_split(text):
    note = sign(text, ANA)
    assert open_note(note, [ANA.verifier]).text == text == split(note)[0]


@settings(deadline=None)
@given(texts, st.lists(st.tuples(names, st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=80)), min_size=1, max_size=5))
def test_signature_lines_of_anybody_go_and_come_back(text, signatures):
    given_lines = tuple(Signature(*s) for s in signatures)
    assume(len({s[:2] for s in signatures}) == len(signatures))
    note = f"{text}\n{''.join(s.format() + chr(10) for s in given_lines)}".encode()
    assert split(note) == (text, given_lines)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(FOO_NOTE)), st.integers(0, len(FOO_NOTE)))
def test_bytes_that_are_accepted_are_the_one_spelling(noise, start, stop):
    note = FOO_NOTE[:start] + noise + FOO_NOTE[stop:]
    try:
        text, signatures = split(note)
    except Malformed:
        return
    assert f"{text}\n{''.join(s.format() + chr(10) for s in signatures)}".encode() == note


# Keys


def test_a_signer_key_goes_and_comes_back_and_never_shows_its_secret():
    text = ANA.format()
    again = SignerKey.parse(text)
    assert again.verifier == ANA.verifier
    assert again.sign(b"x") == ANA.sign(b"x")
    secret = text.split("+", 4)[4]
    for shown in (repr(ANA), str(ANA), f"{ANA}", repr([ANA])):
        assert secret[:8] not in shown
        assert shown.strip("[]") == f"<SignerKey ana.example/log+{ANA.verifier.key_id:08x}>"


def test_no_part_and_no_neighbour_of_a_key_is_a_key():
    for good, parse in ((FOO, VerifierKey.parse), (WIT1[1], SignerKey.parse)):
        for i in range(len(good)):
            changed = good[:i] + chr(ord(good[i]) + 1) + good[i + 1 :]
            for bad in (good[:i], good[i + 1 :], changed, good[:i] + " " + good[i:], good[:i] + "\n" + good[i:]):
                with pytest.raises(Malformed) as caught:
                    parse(bad)
                assert good[-12:] not in str(caught.value)
    for bad in (FOO.upper(), FOO + "\n", FOO.replace("530d903a", "530D903A"), "++", "", "٣+٣+٣"):
        with pytest.raises(Malformed):
            VerifierKey.parse(bad)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\u2003b", "a\x07", "\ud800", "a\x7f\u3000"])
def test_key_names_have_no_space_plus_or_control_character(name):
    with pytest.raises(Malformed):
        VerifierKey.of(name, ANA.verifier.public)
    with pytest.raises(Malformed):
        SignerKey.generate(name)


def test_algorithms_other_than_ed25519_are_parsed_where_they_are_asked_for():
    wide = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)
    for algorithm, public in ((COSIGNATURE_ED25519, ANA.verifier.public), (COSIGNATURE_ML_DSA_44, b"k" * 1312)):
        key = VerifierKey.of("w.example", public, algorithm=algorithm)
        assert VerifierKey.parse(key.format(), algorithms=wide) == key
        with pytest.raises(Malformed):
            VerifierKey.parse(key.format())
    with pytest.raises(Malformed):
        VerifierKey.parse(FOO, algorithms=wide)
    for algorithm, public in ((1, b"k" * 31), (1, b"k" * 33), (6, b"k" * 32), (2, b"k" * 32), (0xFF, b"k" * 32)):
        with pytest.raises(Malformed):
            VerifierKey.of("w.example", public, algorithm=algorithm)


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def times_eight_is_neutral(y):
    """Whether 8·(x, y) is the neutral point, with the doubling of RFC 8032 §5.1.4 on projective coordinates."""
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if x * x % P != x2:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == x2, "y is not on the curve"
    z = 1
    for _ in range(3):
        a, b, c = x * x, y * y, 2 * z * z
        h, g = a + b, a - b
        e, f = h - (x + y) ** 2, c + g
        x, y, z = e * f % P, g * h % P, f * g % P
    return x == 0 and y == z


def test_public_keys_of_small_order_are_refused():
    from tallystick.core import note as module

    assert len(module._SMALL_ORDER_Y) == 5
    for y in module._SMALL_ORDER_Y:
        assert times_eight_is_neutral(y)
        for sign_bit in (0, 1):
            with pytest.raises(Malformed, match="small order"):
                VerifierKey.of("weak.example", (y | sign_bit << 255).to_bytes(32, "little"))
    assert not times_eight_is_neutral(int.from_bytes(ANA.verifier.public, "little") & (2**255 - 1))


@pytest.mark.parametrize("above", [0, 1, 2, 18])
def test_public_keys_that_are_not_canonical_are_refused(above):
    for sign_bit in (0, 1):
        with pytest.raises(Malformed, match="canonical"):
            VerifierKey.of("odd.example", (P + above | sign_bit << 255).to_bytes(32, "little"))


def test_a_public_key_that_is_no_point_verifies_nothing():
    key = VerifierKey.of("none.example", (2).to_bytes(32, "little"))
    with pytest.raises(VerificationError):
        key.verify(b"text", b"s" * 64)


@pytest.mark.parametrize("signature", [b"", b"x", b"x" * 63, b"x" * 65, b"\0" * 64, b"\xff" * 64])
def test_signatures_that_are_none_are_refused(signature):
    with pytest.raises(VerificationError):
        ANA.verifier.verify(b"text", signature)


@given(names, st.binary(min_size=32, max_size=32))
def test_verifier_keys_go_and_come_back(name, public):
    try:
        key = VerifierKey.of(name, public)
    except Malformed:
        assume(False)
    assert VerifierKey.parse(key.format()) == key


@given(st.binary(max_size=40))
def test_base64_goes_and_comes_back(raw):
    assert encode_base64(raw) == b64encode(raw).decode()
    assert decode_base64(encode_base64(raw)) == raw


@given(st.text("AB/+=_- \n", max_size=8) | st.text(max_size=8))
def test_base64_that_is_accepted_is_the_one_spelling(text):
    try:
        raw = decode_base64(text)
    except Malformed:
        return
    assert encode_base64(raw) == text


def test_names_have_no_space_plus_or_control_character_of_any_script():
    for code in range(0x110000):
        c = chr(code)
        bad = c.isspace() or c < " " or c == "+" or "\ud800" <= c <= "\udfff"
        assert (NOT_IN_NAME.search(c) is not None) is bad, hex(code)
