"""The extension gives the bytes that hashlib gives, and refuses what the pure code refuses."""

from __future__ import annotations

import mmap
import threading
from hashlib import sha256
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.core import merkle

pytestmark = pytest.mark.usefixtures("hashing")


def test_the_way_that_was_asked_for_is_taken(hashing: str) -> None:
    assert isinstance(merkle.native, ModuleType) is (hashing == "libcrypto")


@given(st.lists(st.binary(max_size=200).map(lambda b: b.replace(b"\n", b" ")), max_size=40))
def test_leaves_of_lines(lines: list[bytes]) -> None:
    run = b"".join(line + b"\n" for line in lines)
    assert merkle.leaves_of(run) == b"".join(sha256(b"\0" + line).digest() for line in lines)


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 63, 64, 65, 118, 119, 120, 65_535, 1 << 20])
def test_leaves_of_lines_at_the_block_bounds(size: int) -> None:
    run = b"x" * size + b"\n" + b"\n" + b"y" * size + b"\n"
    assert merkle.cut(merkle.leaves_of(run)) == [merkle.leaf_hash(line) for line in (b"x" * size, b"", b"y" * size)]


@pytest.mark.parametrize("run", [b"x", b"a\nx", b"\n\0"])
def test_a_line_that_does_not_end_is_refused(run: bytes) -> None:
    with pytest.raises(ValueError, match="does not end"):
        merkle.leaves_of(run)


@given(st.binary(min_size=0, max_size=64 * 9).map(lambda b: b[: len(b) // 64 * 64]))
def test_parents(row: bytes) -> None:
    assert merkle.parents(row) == b"".join(sha256(b"\1" + row[i : i + 64]).digest() for i in range(0, len(row), 64))


def test_many_threads_at_once() -> None:
    """The lock is let go of: no state may be shared."""
    runs = [bytes([65 + n]) * 5000 + b"\n" for n in range(8)]
    wanted, found = [merkle.leaf_hash(run[:-1]) for run in runs], [b""] * 8

    def work(n: int) -> None:
        for _ in range(200):
            found[n] = merkle.leaves_of(runs[n] * 3)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3 * leaf for leaf in wanted]


def test_odd_arguments_of_the_extension(hashing: str) -> None:
    if merkle.native is None:
        assert hashing == "hashlib"
        return
    with pytest.raises(ValueError, match="64"):
        merkle.native.parents(b"x" * 65)
    with pytest.raises(TypeError):
        merkle.native.leaves("text")
    assert merkle.native.leaves(b"") == merkle.native.parents(b"") == b""
    with mmap.mmap(-1, 4096) as view:
        view[:] = b"\n" * 4096
        assert merkle.native.leaves(view) == merkle.leaf_hash(b"") * 4096
