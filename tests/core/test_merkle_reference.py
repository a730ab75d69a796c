"""RFC 6962 as a slow program, exhaustively to 130 leaves, against the fast one."""

import hashlib

import pytest

from tallystick.core import merkle
from tallystick.core.errors import VerificationError
from tallystick.core.tiles import frontier_at, parse_tile_path, prove_consistency, prove_inclusion, root_at, tile_path

N = 130
LEAVES = [hashlib.sha256(b"\0" + f"leaf {i}".encode()).digest() for i in range(N)]

pytestmark = pytest.mark.usefixtures("hashing")


def mth(leaves):
    """RFC 6962 §2.1."""
    n = len(leaves)
    if n == 0:
        return hashlib.sha256(b"").digest()
    if n == 1:
        return leaves[0]
    k = 1
    while k * 2 < n:
        k *= 2
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m, leaves):
    """RFC 6962 §2.1.1."""
    n = len(leaves)
    if n == 1:
        return []
    k = 1
    while k * 2 < n:
        k *= 2
    return [*path(m, leaves[:k]), mth(leaves[k:])] if m < k else [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m, leaves, whole):
    """RFC 6962 §2.1.2."""
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < n:
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def read(level, start, count):
    assert level == 0
    return b"".join(LEAVES[start : start + count])


@pytest.fixture(scope="module")
def roots():
    return [mth(LEAVES[:n]) for n in range(N + 1)]


def test_roots_and_frontiers_agree_with_the_rfc(roots):
    for n in range(N + 1):
        assert merkle.root_of(LEAVES[:n]) == root_at(read, n) == frontier_at(read, n).root() == roots[n]
    for cut in range(N + 1):
        frontier = merkle.Frontier()
        frontier.extend(LEAVES[:cut])
        frontier.extend(LEAVES[cut:])
        assert frontier.root() == roots[N]


def test_every_inclusion_proof_to_130_leaves_holds_and_no_flipped_bit_does(roots):
    for n in range(1, N + 1):
        for m in range(n):
            proof = prove_inclusion(read, m, n)
            if n % 13 == 0 or n < 20:
                assert proof == path(m, LEAVES[:n])
            merkle.verify_inclusion(m, n, LEAVES[m], proof, roots[n])
            bad = m % (len(proof) + 1)
            forged = [bytes([h[0] ^ 1]) + h[1:] if i == bad else h for i, h in enumerate([*proof, LEAVES[m]])]
            with pytest.raises(VerificationError):
                merkle.verify_inclusion(m, n, forged[-1], forged[:-1], roots[n])


def test_every_consistency_proof_to_130_leaves_holds_and_no_flipped_bit_does(roots):
    for n in range(1, N + 1):
        for m in range(1, n + 1):
            proof = prove_consistency(read, m, n)
            if n % 13 == 0 or n < 20:
                assert proof == subproof(m, LEAVES[:n], True)
            merkle.verify_consistency(m, n, roots[m], roots[n], proof)
            for bad in {0, len(proof) - 1} if proof else ():
                forged = [bytes([h[0] ^ 1]) + h[1:] if i == bad else h for i, h in enumerate(proof)]
                with pytest.raises(VerificationError):
                    merkle.verify_consistency(m, n, roots[m], roots[n], forged)
            if m < n:
                with pytest.raises(VerificationError):
                    merkle.verify_consistency(m, n, roots[n], roots[m], proof)


def test_tiles_are_completed_in_order():
    frontier, rows = merkle.Frontier(), []
    leaves = [merkle.leaf_hash(str(i).encode()) for i in range(1000)]
    for start in range(0, 1000, 37):
        tiles = frontier.extend(leaves[start : start + 37])
        rows.extend(tiles[0] if tiles else [])
    assert rows == [mth(leaves[i : i + 256]) for i in (0, 256, 512)]


@pytest.mark.parametrize(("args", "path_"), [((0, 1234067), "tile/0/x001/x234/067"), ((8, 0, 1), "tile/8/000.p/1")])
def test_tile_paths_of_the_specification(args, path_):
    assert tile_path(*args) == path_
    assert parse_tile_path(path_)[:2] == args[:2]
