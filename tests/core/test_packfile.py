"""Packs have one spelling: what any other tool can read, and nothing that two tools could read differently."""

import io
import struct
import subprocess
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.core.errors import Malformed
from tallystick.core.packfile import format_pack, parse_pack

MEMBERS = {"README.txt": b"first page\n", "entries/00000000000000000005.json": b"{}", "empty": b"", "verify.py": bytes(range(256))}
DATA = format_pack(MEMBERS)


def zipped(members, **how):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **how) as file:
        for name, data in members:
            file.writestr(name, data)
    return out.getvalue()


def test_others_read_it():
    with zipfile.ZipFile(io.BytesIO(DATA)) as file:
        assert file.testzip() is None
        assert file.namelist() == list(MEMBERS)
        assert {name: file.read(name) for name in file.namelist()} == MEMBERS
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in file.infolist()} == {0o100644}


def test_unzip_reads_it(tmp_path):
    (tmp_path / "p.zip").write_bytes(DATA)
    done = subprocess.run(["python3", "-m", "zipfile", "-e", "p.zip", "out"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == MEMBERS


def test_it_goes_and_comes_back():
    assert parse_pack(DATA) == MEMBERS
    assert list(parse_pack(DATA)) == list(MEMBERS)
    assert parse_pack(format_pack({})) == {}


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a/b/c", "a//b", "./a", ".a", "a/.b", "a\\b", "C:x", "ä", "a\0", "a/", "x" * 151])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(Malformed):
        format_pack({name: b""})
    with pytest.raises(Malformed):
        parse_pack(zipped([(name or "x", b"")]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        DATA[:-1],
        DATA + b"\0",
        b"\0" + DATA,
        DATA[:50],
        DATA[:4],
        zipped(MEMBERS.items()),
        zipped(MEMBERS.items(), compression=zipfile.ZIP_DEFLATED),
        zipped([("bomb", bytes(10_000_000))], compression=zipfile.ZIP_DEFLATED, compresslevel=9),
        DATA[:-2] + struct.pack("<H", 3) + b"abc",  # a comment
        DATA.replace(b"empty", b"README"[:5] if False else b"emptx", 1),  # local header and directory disagree
    ],
)
def test_other_zip_files_are_refused(data):
    with pytest.raises(Malformed):
        parse_pack(data)


def test_no_bit_can_be_flipped_without_changing_a_member_and_its_checksum():
    for i in range(8 * len(DATA)):
        changed = bytearray(DATA)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises(Malformed):
            parse_pack(bytes(changed))


def test_a_member_twice_is_refused():
    one = format_pack({"a": b"1"})
    two = format_pack({"b": b"2", "a": b"3"}).replace(b"b", b"a")
    for data in (two, one[:32] + one):
        with pytest.raises(Malformed):
            parse_pack(data)


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"\A[a-z0-9]{1,8}(/[a-z0-9.]{0,3}[a-z])?\Z").filter(lambda n: "/." not in n), st.binary(max_size=50), max_size=8))
def test_any_members_go_and_come_back(members):
    assert parse_pack(format_pack(members)) == members


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_bytes_that_are_accepted_are_the_one_spelling(noise, start, stop):
    changed = DATA[:start] + noise + DATA[stop:]
    try:
        assert format_pack(parse_pack(changed)) == changed
    except Malformed:
        pass
