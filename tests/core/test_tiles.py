"""Tiles: proofs out of concatenated files equal those of the RFC, with few planned reads and one spelling of paths."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.core.errors import Malformed
from tallystick.core.merkle import (
    EMPTY_ROOT,
    SIZE_MAX,
    Frontier,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tallystick.core.tiles import (
    frontier_at,
    parse_tile_path,
    prove_consistency,
    prove_inclusion,
    root_at,
    tile_path,
)

from . import rfc6962

LEAVES = [leaf_hash(rfc6962.line(i)) for i in range(70_000)]

pytestmark = pytest.mark.usefixtures("hashing")


class Tree:
    """``tree/0``, ``tree/1`` … in memory; keeps what was read and refuses what is not there."""

    def __init__(self, leaves):
        self.rows = [b"".join(leaves), *(b"".join(row) for row in Frontier().extend(leaves))]
        self.reads = []

    def read(self, level, start, count):
        self.reads.append((level, start, count))
        assert 0 < count <= 256
        assert start // 256 == (start + count - 1) // 256, "a read stays within a tile"
        assert (start + count) * 32 <= len(self.rows[level]), "a read stays within the tree"
        return self.rows[level][start * 32 : (start + count) * 32]


@pytest.fixture(scope="module")
def large():
    return Tree(LEAVES)


def test_every_proof_and_root_up_to_130_leaves_is_that_of_the_rfc():
    for n in range(131):
        tree = Tree(LEAVES[:n])
        assert root_at(tree.read, n) == rfc6962.mth(0, n)
        for i in range(n):
            assert prove_inclusion(tree.read, i, n) == rfc6962.path(i, 0, n)
        for m in range(1, n + 1):
            assert prove_consistency(tree.read, m, n) == rfc6962.proof(m, n)


NEAR_TILES = [1, 255, 256, 257, 511, 512, 513, 4097, 65_535, 65_536, 65_537, 65_792, 70_000]


@pytest.mark.parametrize("n", NEAR_TILES)
def test_proofs_near_the_edges_of_tiles_are_those_of_the_rfc(large, n):
    for i in {0, 1, 254, 255, 256, 257, n // 3, n // 2, 65_535, 65_536, n - 2, n - 1}:
        if 0 <= i < n:
            proof = prove_inclusion(large.read, i, n)
            assert proof == rfc6962.path(i, 0, n)
            verify_inclusion(i, n, LEAVES[i], proof, rfc6962.mth(0, n))
    for m in {1, 2, 3, 100, *NEAR_TILES, n}:
        if m <= n:
            proof = prove_consistency(large.read, m, n)
            assert proof == rfc6962.proof(m, n)
            verify_consistency(m, n, rfc6962.mth(0, m), rfc6962.mth(0, n), proof)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 70_000), st.integers(0, 3000))
def test_a_frontier_from_tiles_goes_on_like_one_that_saw_every_leaf(large, size, more):
    frontier = frontier_at(large.read, size)
    assert frontier.root() == root_of(LEAVES[:size])
    frontier.extend(LEAVES[size : size + more])
    assert frontier.root() == root_of(LEAVES[: size + more])


@pytest.mark.parametrize("n", NEAR_TILES)
def test_no_tile_is_read_twice_and_reads_are_few(large, n):
    for ask in (
        lambda: root_at(large.read, n),
        lambda: prove_inclusion(large.read, n // 2, n),
        lambda: prove_consistency(large.read, (n + 1) // 2, n),
    ):
        large.reads.clear()
        ask()
        tiles = [(level, start // 256) for level, start, _ in large.reads]
        assert len(set(tiles)) == len(tiles) <= 5


def test_what_needs_no_hash_reads_none():
    tree = Tree([])
    assert root_at(tree.read, 0) == EMPTY_ROOT
    assert prove_consistency(tree.read, 0, 9) == prove_consistency(tree.read, 9, 9) == []
    assert prove_inclusion(tree.read, 0, 1) == []
    assert tree.reads == []


def test_questions_about_trees_that_cannot_be_are_value_errors(large):
    for index, size in [(0, 0), (5, 5), (-1, 5), (0, SIZE_MAX + 1)]:
        with pytest.raises(ValueError):
            prove_inclusion(large.read, index, size)
    for size1, size2 in [(6, 5), (-1, 5), (0, SIZE_MAX + 1)]:
        with pytest.raises(ValueError):
            prove_consistency(large.read, size1, size2)
    for size in (-1, SIZE_MAX + 1):
        with pytest.raises(ValueError):
            frontier_at(large.read, size)


def test_a_read_of_another_length_is_refused():
    with pytest.raises(ValueError):
        root_at(lambda level, start, count: b"x" * (32 * count - 1), 7)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("tile/0/000", (0, 0, 256)),
        ("tile/0/x001/x234/067", (0, 1_234_067, 256)),
        ("tile/0/273.p/112", (0, 273, 112)),
        ("tile/63/999.p/1", (63, 999, 1)),
        ("tile/2/x001/000.p/255", (2, 1000, 255)),
        ("tile/0/x009/x223/x372/x036/x854/x775/807", (0, SIZE_MAX, 256)),
    ],
)
def test_tile_paths_are_spelled_as_in_c2sp(path, parts):
    assert tile_path(*parts) == path
    assert parse_tile_path(path) == parts


OTHER_SPELLINGS = """
    /tile/0/000 tile/0/000/ tile/00/000 tile/64/000 tile/-1/000 tile/0/0 tile/0/0000 tile/0/x000/001 tile/0/001/002
    tile/0/x001 tile/0/000.p/0 tile/0/000.p/256 tile/0/000.p/01 tile/0/000.p/ tile/8/0/000 tile/entries/000 tile/0/٣٣٣
    tile/0/000.p/1/ tile/0/x009/x223/x372/x036/x854/x775/808 tile/0/x001/x001/x001/x001/x001/x001/x001/001
    tile/0/X001/000 tile//000 tile/0/
""".split()


@pytest.mark.parametrize("path", ["", *OTHER_SPELLINGS, "tile/0/000\n", " tile/0/000", "tile/0/000 "])
def test_other_spellings_of_tile_paths_are_refused(path):
    with pytest.raises(Malformed):
        parse_tile_path(path)


@given(st.integers(0, 63), st.integers(0, SIZE_MAX), st.integers(1, 256))
def test_tile_paths_go_and_come_back(level, index, width):
    assert parse_tile_path(tile_path(level, index, width)) == (level, index, width)


@given(st.from_regex(r"\Atile/[0-9]{1,3}/(x[0-9]{3}/){0,7}[0-9]{3}(\.p/[0-9]{1,3})?\Z") | st.text())
def test_a_tile_path_that_is_accepted_is_the_one_spelling(path):
    try:
        parts = parse_tile_path(path)
    except Malformed:
        return
    assert tile_path(*parts) == path


@pytest.mark.parametrize("parts", [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (0, SIZE_MAX + 1, 1)])
def test_tiles_that_cannot_be_have_no_path(parts):
    with pytest.raises(ValueError):
        tile_path(*parts)
