"""Checkpoints: three lines with one spelling, of the log that was asked for, signed by whom we know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.core.checkpoint import (
    Checkpoint,
    check_origin,
    open_checkpoint,
    parse_number,
    sign_checkpoint,
)
from tallystick.core.errors import Malformed, UnknownSigner, VerificationError
from tallystick.core.merkle import EMPTY_ROOT, SIZE_MAX
from tallystick.core.note import SignerKey, VerifierKey, sign

ORIGIN = "srv2/invoices/0f3a9c21b7de"
LOG, WITNESS = SignerKey.generate(ORIGIN), SignerKey.generate("witness.example")
ROOT = bytes(range(32))
ROOT_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
CHECKPOINT = Checkpoint(ORIGIN, 7, ROOT)
TEXT = f"{ORIGIN}\n7\n{ROOT_TEXT}\n"

texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=50)


def test_a_checkpoint_is_origin_size_and_root():
    assert CHECKPOINT.format() == TEXT
    assert Checkpoint.parse(TEXT) == CHECKPOINT
    assert Checkpoint.parse(TEXT + "one\ntwo\n").extensions == ("one", "two")


def test_a_signed_checkpoint_opens_with_the_key_of_its_log():
    note = sign_checkpoint(CHECKPOINT, LOG, WITNESS)
    assert len(note) < 512
    assert open_checkpoint(note, [LOG.verifier], origin=ORIGIN) == CHECKPOINT
    assert open_checkpoint(note, [LOG.verifier], origin=None) == CHECKPOINT
    with pytest.raises(UnknownSigner):
        open_checkpoint(note, [SignerKey.generate(ORIGIN).verifier], origin=ORIGIN)


def test_a_checkpoint_of_another_log_is_refused_before_its_signatures_are_looked_at():
    note = sign_checkpoint(CHECKPOINT, LOG)
    for keys in ([LOG.verifier], []):
        with pytest.raises(VerificationError, match="another log") as caught:
            open_checkpoint(note, keys, origin="srv2/other/0f3a9c21b7de")
        assert not isinstance(caught.value, UnknownSigner)


def test_without_an_origin_the_key_must_have_the_name_of_the_log():
    note = sign_checkpoint(CHECKPOINT, LOG, WITNESS)
    with pytest.raises(VerificationError, match="another log"):
        open_checkpoint(note, [WITNESS.verifier], origin=None)
    with pytest.raises(VerificationError, match="another log"):
        open_checkpoint(sign_checkpoint(CHECKPOINT, WITNESS), [WITNESS.verifier], origin=None)
    assert open_checkpoint(note, [WITNESS.verifier], origin=ORIGIN) == CHECKPOINT  # the caller said which log


def test_a_real_checkpoint_whose_key_has_another_name_opens_when_its_origin_is_named():
    key = VerifierKey.parse("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
    note = (
        "go.sum database tree\n35225469\nvt5T6GaLCXvyHFl9VUvvItR43XZxfLgftEcTyO3eJCQ=\n\n— sum.golang.org "
        "Az3grpukl5AXaVfYkLiDGORx/DN2nlcS5kZHR5uYOBV2KA2HgXpD+gu9HHONebHLAyaKbbTM75QTtPydhKCExixSfwQ=\n"
    ).encode()
    assert open_checkpoint(note, [key], origin="go.sum database tree").size == 35_225_469
    with pytest.raises(VerificationError):
        open_checkpoint(note, [key], origin=None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n7\n{ROOT_TEXT}",
        f"\n7\n{ROOT_TEXT}\n",
        *(f"{ORIGIN}\n{n}\n{ROOT_TEXT}\n" for n in ("", "+7", "07", " 7", "7 ", "-7", "1_0", "٣", "²", "7.0", "0x7")),
        f"{ORIGIN}\n{SIZE_MAX + 1}\n{ROOT_TEXT}\n",
        f"{ORIGIN}\n{2**64}\n{ROOT_TEXT}\n",
        f"{ORIGIN}\n{'9' * 5000}\n{ROOT_TEXT}\n",
        f"{ORIGIN}\n0\n{ROOT_TEXT}\n",
        f"{ORIGIN}\n7\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",  # the empty root
        f"{ORIGIN}\n7\n{ROOT_TEXT[:-1]}\n",
        f"{ORIGIN}\n7\n{ROOT_TEXT[:-2]}9=\n",
        f"{ORIGIN}\n7\n AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        f"{ORIGIN}\n7\nAAEC\n",
        f"{ORIGIN}\n7\n{'A' * 44}\n",  # 33 bytes
        f"{ORIGIN}\n7\n{ROOT_TEXT}\n\n",
        f"{ORIGIN}\n7\n{ROOT_TEXT}\n\nextension\n",
        f"{ORIGIN}\n7\n{ROOT_TEXT}\nextension",
        f"{ORIGIN}\n7\n{ROOT_TEXT}\n" + "x\n" * 17,
        f"{ORIGIN}\n7\n{ROOT_TEXT}\n{'x' * 1025}\n",
        f"{'x' * 256}\n7\n{ROOT_TEXT}\n",
        *(f"{ORIGIN}\n7\n{ROOT_TEXT}\nx{c}y\n" for c in "\x7f\x85\u2028\u2029\r\t\0\x1c\ud800"),
        *(f"x{c}y\n7\n{ROOT_TEXT}\n" for c in "\x7f\x85\u2028\u2029\r\t\0\x1c\ud800"),
        TEXT.replace("\n", "\r\n"),
    ],
)
def test_other_spellings_are_refused(text):
    with pytest.raises(Malformed):
        Checkpoint.parse(text)


def test_limits_are_reached_before_they_are_passed():
    full = Checkpoint("o" * 255, SIZE_MAX, ROOT, ("x" * 1024,) * 16)
    assert Checkpoint.parse(full.format()) == full
    assert open_checkpoint(sign(f"{ORIGIN}\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", LOG), [LOG.verifier], origin=ORIGIN)


@pytest.mark.parametrize(
    "fields",
    [
        ("", 7, ROOT),
        ("a\nb", 7, ROOT),
        ("a", -1, ROOT),
        ("a", True, ROOT),
        ("a", SIZE_MAX + 1, ROOT),
        ("a", 7, ROOT[:31]),
        ("a", 7, EMPTY_ROOT),
        ("a", 0, ROOT),
        ("a", 7, ROOT, ("",)),
        ("a", 7, ROOT, ("x\n\ny",)),
    ],
)
def test_a_checkpoint_that_has_no_text_cannot_be_made(fields):
    with pytest.raises(Malformed):
        Checkpoint(*fields)


@given(texts, st.integers(1, SIZE_MAX), st.binary(min_size=32, max_size=32), st.lists(texts, max_size=16))
def test_checkpoints_go_and_come_back(origin, size, root, extensions):
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.parse(checkpoint.format()) == checkpoint


@given(st.text(max_size=20), st.integers(0, len(TEXT)), st.integers(0, len(TEXT)))
def test_a_text_that_is_accepted_is_the_one_spelling(noise, start, stop):
    text = TEXT[:start] + noise + TEXT[stop:]
    try:
        checkpoint = Checkpoint.parse(text)
    except Malformed:
        return
    assert checkpoint.format() == text


@given(st.text("0123456789+-_ ٣", max_size=22) | st.text(max_size=3))
def test_numbers_have_one_spelling(text):
    try:
        number = parse_number(text)
    except Malformed:
        return
    assert str(number) == text
    assert number <= SIZE_MAX


def test_numbers_end_at_2_to_the_63():
    assert parse_number(str(SIZE_MAX)) == SIZE_MAX
    with pytest.raises(Malformed):
        parse_number(str(SIZE_MAX + 1))


@pytest.mark.parametrize("origin", ["a", "srv2/invoices/0f3a9c21b7de", "log.example.com/2026-11", "x" * 120])
def test_origins_that_we_give(origin):
    check_origin(origin)


@pytest.mark.parametrize("origin", ["", "x" * 121, "Log", "a b", "a+b", "a_b", "ä", "a\n", "http://x", "a\\b", "a\0"])
def test_origins_that_we_do_not_give(origin):
    with pytest.raises(Malformed):
        check_origin(origin)
