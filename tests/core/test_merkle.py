"""The tree against the RFC as a slow program. Vectors that we did not make: ``test_foreign_vectors``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.core.errors import VerificationError
from tallystick.core.merkle import (
    EMPTY_ROOT,
    SIZE_MAX,
    Frontier,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

from . import rfc6962

SIZES = 131  # exhaustively, as the RFC's own draft vectors do
LEAVES = [leaf_hash(rfc6962.line(i)) for i in range(SIZES)]
ROOTS = [rfc6962.mth(0, n) for n in range(SIZES)]

pytestmark = pytest.mark.usefixtures("hashing")


def flipped(hashes, i, bit):
    """The same hashes with one bit of the i-th changed."""
    changed = bytearray(hashes[i])
    changed[bit // 8] ^= 1 << bit % 8
    return [*hashes[:i], bytes(changed), *hashes[i + 1 :]]


def test_the_root_is_that_of_the_rfc_at_every_size():
    frontier = Frontier()
    for n in range(SIZES):
        assert root_of(LEAVES[:n]) == frontier.root() == ROOTS[n]
        assert frontier.size == n
        if n < SIZES - 1:
            frontier.append(LEAVES[n])


def test_a_lone_right_node_is_promoted_and_not_duplicated():
    a, b, c = LEAVES[:3]
    assert root_of([a, b, c]) == node_hash(node_hash(a, b), c) != root_of([a, b, c, c])


def test_every_inclusion_proof_holds_and_no_bit_of_it_can_be_flipped():
    for n in range(1, SIZES):
        for i in range(n):
            proof = rfc6962.path(i, 0, n)
            verify_inclusion(i, n, LEAVES[i], proof, ROOTS[n])
            for j in range(len(proof)):
                with pytest.raises(VerificationError):
                    verify_inclusion(i, n, LEAVES[i], flipped(proof, j, (7 * i + n + j) % 256), ROOTS[n])


def test_every_consistency_proof_holds_and_no_bit_of_it_can_be_flipped():
    for n in range(1, SIZES):
        for m in range(1, n + 1):
            proof = rfc6962.proof(m, n)
            verify_consistency(m, n, ROOTS[m], ROOTS[n], proof)
            for j in range(len(proof)):
                with pytest.raises(VerificationError):
                    verify_consistency(m, n, ROOTS[m], ROOTS[n], flipped(proof, j, (7 * m + n + j) % 256))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 13])
def test_an_inclusion_proof_holds_for_its_own_index_size_leaf_and_root_only(n):
    for i in range(n):
        proof = rfc6962.path(i, 0, n)
        others = [(j, n, LEAVES[i], ROOTS[n]) for j in range(-1, 20) if j != i]
        others += [(i, m, LEAVES[i], ROOTS[m]) for m in range(1, 20) if m != n]
        others += [(i, n, LEAVES[j], ROOTS[n]) for j in range(20) if j != i]
        others += [(i, n, LEAVES[i], ROOTS[m]) for m in range(20) if m != n]
        for index, size, leaf, root in others:
            with pytest.raises(VerificationError):
                verify_inclusion(index, size, leaf, proof, root)


@pytest.mark.parametrize(("m", "n"), [(1, 2), (3, 7), (4, 7), (6, 8), (7, 7), (8, 13)])
def test_a_consistency_proof_holds_for_its_own_sizes_and_roots_only(m, n):
    proof = rfc6962.proof(m, n)
    others = [(k, n, ROOTS[k], ROOTS[n]) for k in range(20) if k not in (0, m, n)]
    others += [(m, k, ROOTS[m], ROOTS[k]) for k in range(20) if k not in (m, n)]
    others += [(m, n, ROOTS[k], ROOTS[n]) for k in range(20) if k != m]
    others += [(m, n, ROOTS[m], ROOTS[k]) for k in range(20) if k != n]
    for size1, size2, root1, root2 in others:
        with pytest.raises(VerificationError):
            verify_consistency(size1, size2, root1, root2, proof)


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: [*p, p[0]], lambda p: [p[0], *p], lambda p: p[::-1]])
def test_a_proof_has_exactly_the_hashes_that_its_sizes_demand(change):
    with pytest.raises(VerificationError):
        verify_inclusion(5, 13, LEAVES[5], change(rfc6962.path(5, 0, 13)), ROOTS[13])
    with pytest.raises(VerificationError):
        verify_consistency(5, 13, ROOTS[5], ROOTS[13], change(rfc6962.proof(5, 13)))


def test_a_root_made_to_fit_a_longer_proof_does_not_help():
    leaf, more = LEAVES[:2]
    for root in (node_hash(more, leaf), node_hash(leaf, more)):
        with pytest.raises(VerificationError, match="too long"):
            verify_inclusion(0, 1, leaf, [more], root)


def test_a_root_made_to_fit_a_leaf_of_another_length_does_not_help():
    for leaf in (b"", b"x" * 31, b"x" * 33):
        with pytest.raises(VerificationError):
            verify_inclusion(0, 2, leaf, [LEAVES[1]], node_hash(leaf, LEAVES[1]))


def test_the_empty_tree_begins_every_tree():
    verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    verify_consistency(0, 5, EMPTY_ROOT, ROOTS[5], [])


BAD_NUMBERS = [-1, SIZE_MAX + 1, 2**64, True, 1.0, "1", None]
BAD_HASHES = [b"", b"x" * 31, b"x" * 33, bytearray(32), "x" * 32, None]


@pytest.mark.parametrize("number", BAD_NUMBERS)
def test_a_size_is_an_integer_below_2_to_the_63(number):
    with pytest.raises(VerificationError):
        verify_inclusion(number, 8, LEAVES[0], rfc6962.path(0, 0, 8), ROOTS[8])
    with pytest.raises(VerificationError):
        verify_inclusion(0, number, LEAVES[0], [], LEAVES[0])
    with pytest.raises(VerificationError):
        verify_consistency(number, number, ROOTS[1], ROOTS[1], [])
    with pytest.raises(VerificationError):
        verify_consistency(1, number, ROOTS[1], ROOTS[1], [])


@pytest.mark.parametrize("bad", BAD_HASHES)
def test_a_hash_is_32_bytes(bad):
    for args in [(bad, [], bad), (bad, [], LEAVES[0]), (LEAVES[0], [], bad)]:
        with pytest.raises(VerificationError):
            verify_inclusion(0, 1, *args)
    with pytest.raises(VerificationError):
        verify_inclusion(0, 2, LEAVES[0], [bad], ROOTS[2])
    for root1, root2, proof in [(bad, bad, []), (ROOTS[1], ROOTS[2], [bad]), (bad, ROOTS[2], [LEAVES[1]])]:
        with pytest.raises(VerificationError):
            verify_consistency(1, 2 if proof else 1, root1, root2, proof)


@pytest.mark.parametrize(
    ("size1", "size2", "root1", "root2"),
    [
        (0, 0, ROOTS[1], ROOTS[1]),
        (0, 1, ROOTS[1], ROOTS[1]),
        (0, 1, EMPTY_ROOT, EMPTY_ROOT),
        (1, 1, EMPTY_ROOT, EMPTY_ROOT),
        (1, 0, ROOTS[1], EMPTY_ROOT),
    ],
)
def test_the_empty_root_belongs_to_size_0(size1, size2, root1, root2):
    with pytest.raises(VerificationError):
        verify_consistency(size1, size2, root1, root2, [])


@settings(deadline=None)
@given(st.lists(st.integers(0, 700), max_size=6))
def test_however_leaves_are_grouped_the_tree_is_the_same(groups):
    leaves = [leaf_hash(b"%d" % i) for i in range(sum(groups))]
    frontier, start, levels = Frontier(), 0, {}
    for count in groups:
        for level, row in enumerate(frontier.extend(leaves[start : start + count]), 1):
            levels.setdefault(level, []).extend(row)
        start += count
    whole = Frontier()
    tiles = whole.extend(leaves)
    assert (frontier.size, frontier.hashes) == (whole.size, whole.hashes)
    assert [row for _, row in sorted(levels.items())] == tiles
    assert tiles == ([[root_of(leaves[i - 256 : i]) for i in range(256, start + 1, 256)]] if start >= 256 else [])


def test_an_extension_hands_over_every_level_of_full_tiles():
    frontier = Frontier()
    leaves = [leaf_hash(b"%d" % i) for i in range(65_536 + 300)]
    frontier.extend(leaves[:250])
    level1, level2 = frontier.extend(leaves[250:])
    assert len(level1) == 257
    assert level1[0] == root_of(leaves[:256])
    assert level2 == [root_of(leaves[:65_536])] == [root_of(level1[:256])]
    assert frontier.root() == root_of(leaves)


def test_a_copy_of_a_frontier_goes_its_own_way():
    frontier = Frontier(3, [ROOTS[2], LEAVES[2]])
    frontier.copy().append(LEAVES[3])
    assert (frontier.size, frontier.root()) == (3, ROOTS[3])


@pytest.mark.parametrize(
    ("size", "hashes"), [(-1, []), (1, []), (2, LEAVES[:2]), (1, [b"x" * 31]), (0, LEAVES[:1]), (SIZE_MAX + 1, [])]
)
def test_a_frontier_has_one_hash_for_each_bit_of_its_size(size, hashes):
    with pytest.raises(ValueError):
        Frontier(size, hashes)


def test_what_cannot_be_appended_changes_nothing():
    frontier = Frontier(1, [LEAVES[0]])
    with pytest.raises(ValueError):
        frontier.extend([LEAVES[1], b"x" * 31])
    assert (frontier.size, frontier.hashes) == (1, [LEAVES[0]])
    full = Frontier(SIZE_MAX, [LEAVES[0]] * 63)
    with pytest.raises(ValueError):
        full.append(LEAVES[1])
    assert full.size == SIZE_MAX
