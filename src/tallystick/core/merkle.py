"""The Merkle tree: RFC 6962 §2.1, in the words of RFC 9162 §2.1.

::

    MTH({})          = SHA-256()                                     (RFC 6962 §2.1)
    MTH({d})         = SHA-256(0x00 || d)                            leaf hash
    MTH(D[0:n])      = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n]))   node hash, k = largest power of two < n

A tree of five leaves, ``a`` to ``e``: the lone ``e`` is promoted, never duplicated. ::

                 root
               /      \\
            abcd       e          Frontier(5) holds [abcd, e]: the perfect subtrees, largest first
           /    \\
         ab      cd

Sizes are numbers of leaves, from 0 to 2⁶³−1; indexes count from 0; every hash has 32 bytes.
Not here: where hashes are kept and how proofs are made (``tiles``), who signed a root (``checkpoint``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from types import ModuleType
from typing import cast

from .errors import VerificationError

native: ModuleType | None
try:  # the same hashes in batches (``_sha256.c``), where it was built and finds its library
    from . import _sha256 as native
except ImportError:
    native = None

HASH_BYTES = 32
SIZE_MAX = 2**63 - 1  # C2SP tlog-tiles and the int64 of every other implementation
TILE_HEIGHT = 8  # C2SP tlog-tiles: a tile is a subtree of height 8
EMPTY_ROOT: bytes = sha256().digest()


def leaf_hash(line: bytes) -> bytes:
    """SHA-256(0x00 || line): the leaf of an entry's stored bytes (RFC 6962 §2.1)."""
    return sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right): the parent of two hashes (RFC 6962 §2.1)."""
    return sha256(b"\x01" + left + right).digest()


def leaf_hashes(lines: Iterable[bytes]) -> bytes:
    """The leaf hashes of lines, 32 bytes each, one after the other."""
    return b"".join([sha256(b"\x00" + line).digest() for line in lines])


def leaves_of(run: bytes, size: int | None = None) -> bytes:
    """The leaf hashes of the lines of ``run`` (of its first ``size`` bytes), each of which ends in a newline. ``ValueError`` if the
    last does not."""
    size = len(run) if size is None else size
    if native is not None:
        return cast(bytes, native.leaves(run if size == len(run) else memoryview(run)[:size]))
    if size and run[size - 1] != 0x0A:
        raise ValueError("the last line does not end")
    *lines, _ = run.split(b"\n") if size == len(run) else run[:size].split(b"\n")
    return leaf_hashes(lines)


def parents(row: bytes) -> bytes:
    """The node hashes over the pairs of an even row of hashes, in order. Here a million leaves spend their time."""
    if native is not None and len(row) > 64:
        return cast(bytes, native.parents(row))
    fresh = sha256(b"\x01").copy  # a state that has the 0x01: copying it is cheaper than setting up a new one
    above: list[bytes] = []
    append = above.append
    for at in range(0, len(row), 2 * HASH_BYTES):
        state = fresh()
        state.update(row[at : at + 2 * HASH_BYTES])
        append(state.digest())
    return b"".join(above)


class Frontier:
    """The compact range [0, size): all that is needed to append and to know the root.

    ``hashes`` are the roots of the perfect subtrees, largest first; one for each 1 bit of ``size``.
    ``ValueError`` when that does not hold, or when a hash has not 32 bytes, or a size is not in 0..2⁶³−1.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= SIZE_MAX:
            raise ValueError(f"tree size {size} is not in 0..2**63-1")
        if len(hashes) != size.bit_count() or any(len(h) != HASH_BYTES for h in hashes):
            raise ValueError(f"a frontier of size {size} is {size.bit_count()} hashes of 32 bytes")
        self.size = size
        self.hashes = list(hashes)

    def __repr__(self) -> str:
        return f"Frontier(size={self.size})"

    def copy(self) -> Frontier:
        """Another frontier of the same state; neither sees what is appended to the other."""
        other = object.__new__(Frontier)
        other.size, other.hashes = self.size, self.hashes.copy()
        return other

    def root(self) -> bytes:
        """MTH of everything appended so far; ``EMPTY_ROOT`` at size 0."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            root = node_hash(left, root)
        return root

    def append(self, leaf: bytes) -> list[list[bytes]]:
        """``extend`` by one leaf hash."""
        return self.extend((leaf,))

    def extend(self, leaves: Sequence[bytes]) -> list[list[bytes]]:
        """Append leaf hashes in order and return the roots of the tiles that became full by it.

        Part k of the answer holds the roots of the subtrees of 256^(k+1) leaves, in order: what
        ``tree/<k+1>`` grows by. Nothing is changed when ``ValueError`` is raised (a hash of another length, a
        size beyond 2⁶³−1).
        """
        if not set(map(len, leaves)) <= {HASH_BYTES}:
            raise ValueError("a leaf hash has 32 bytes")
        return [cut(row) for row in self.extend_row(b"".join(leaves))]

    def extend_row(self, row: bytes) -> list[bytes]:
        """``extend``, with hashes and answers as rows: 32 bytes each, one after the other."""
        if len(row) % HASH_BYTES:
            raise ValueError("a leaf hash has 32 bytes")
        grown = self.size + len(row) // HASH_BYTES
        if grown > SIZE_MAX:
            raise ValueError("a tree has at most 2**63-1 leaves")
        edge = self.hashes.copy()  # its last hash is the lowest subtree that waits for a right sibling
        odd: list[bytes] = []  # the lowest first: what will wait after this call
        full: list[bytes] = []
        level = 0
        while row:  # row: the subtrees of 2^level leaves that this call completed
            if level and level % TILE_HEIGHT == 0:
                full.append(row)
            if self.size >> level & 1:
                row = edge.pop() + row
            if len(row) // HASH_BYTES % 2:
                odd.append(row[-HASH_BYTES:])
                row = row[:-HASH_BYTES]
            row = parents(row)
            level += 1
        self.hashes = edge + odd[::-1]
        self.size = grown
        return full


def cut(row: bytes) -> list[bytes]:
    """A row of hashes, each by itself."""
    return [row[at : at + HASH_BYTES] for at in range(0, len(row), HASH_BYTES)]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH over leaf hashes (RFC 6962 §2.1): n − 1 node hashes."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root()


def _check_size(what: str, number: int) -> None:
    # bool is an int to Python; True as an index would be a second spelling of 1
    if type(number) is not int or not 0 <= number <= SIZE_MAX:
        raise VerificationError(f"{what} is not an integer in 0..2**63-1")


def _check_hashes(what: str, hashes: Sequence[bytes]) -> None:
    # without this an empty "hash" would equal an empty root, and 33 bytes could move a boundary inside a node
    if any(type(h) is not bytes or len(h) != HASH_BYTES for h in hashes):
        raise VerificationError(f"{what} is not 32 bytes")


def _check_root(size: int, root: bytes) -> None:
    if (size == 0) is not (root == EMPTY_ROOT):
        raise VerificationError("the root of the empty tree belongs to size 0 and to no other size")


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that ``leaf`` is at ``index`` of the tree with this ``size`` and ``root`` (RFC 9162 §2.1.3.2).

    ``proof`` starts with the leaf's sibling; its length is exactly what index and size demand. Raises
    ``VerificationError`` for anything else, arguments of a wrong type included.
    """
    _check_size("index", index)
    _check_size("tree size", size)
    _check_hashes("leaf hash", (leaf,))
    _check_hashes("root hash", (root,))
    _check_hashes("a proof hash", proof)
    if index >= size:
        raise VerificationError(f"index {index} is not in a tree of size {size}")
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            raise VerificationError("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while fn and not fn & 1:  # r was a lone right node: it is promoted to where it has a sibling
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise VerificationError("the inclusion proof is too short")
    if r != root:
        raise VerificationError(f"entry {index} is not in the tree of size {size} with this root")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of ``size2`` leaves begins with the tree of ``size1`` leaves (RFC 9162 §2.1.4.2).

    The proof is empty when the sizes are equal or ``size1`` is 0. Raises ``VerificationError`` for anything
    else, arguments of a wrong type included.
    """
    _check_size("tree size", size1)
    _check_size("tree size", size2)
    _check_hashes("root hash", (root1, root2))
    _check_hashes("a proof hash", proof)
    _check_root(size1, root1)
    _check_root(size2, root2)
    if size1 > size2:
        raise VerificationError(f"a tree of size {size2} cannot extend one of size {size1}")
    if size1 in (0, size2):
        if proof:
            raise VerificationError("the consistency proof is too long")
        if size1 and root1 != root2:
            raise VerificationError(f"two roots for the same tree size {size1}")
        return
    fold1, fold2 = _fold_consistency(size1, size2, root1, proof)
    if fold1 != root1 or fold2 != root2:
        raise VerificationError(f"the tree of size {size2} does not extend that of size {size1}")


def right_heights(end: int, size: int) -> list[int]:
    """The heights of the perfect subtrees that make up the leaves [end, size), from left to right: the largest that begins there and
    fits, each time. At most 2 × 63."""
    heights, at = [], end
    while at < size:
        height = (size - at).bit_length() - 1
        if at:
            height = min(height, (at & -at).bit_length() - 1)
        heights.append(height)
        at += 1 << height
    return heights


def verify_range(
    start: int, size: int, leaves: Sequence[bytes], left: Sequence[bytes], right: Sequence[bytes], root: bytes
) -> None:  # fmt: skip
    """Check that ``leaves`` are all leaf hashes [start, start + len(leaves)) of the tree with this ``size`` and ``root``.

    ``left``: the roots of the perfect subtrees of [0, start), largest first; ``right``: those of [start + len(leaves), size) as in
    ``right_heights``. Exactly as many as there are. Raises ``VerificationError`` for anything else.
    """
    for what, number in (("range start", start), ("tree size", size)):
        _check_size(what, number)
    for what, hashes in (("leaf hash", leaves), ("a hash left of the range", left), ("a hash right of it", right)):
        _check_hashes(what, hashes)
    _check_hashes("root hash", (root,))
    _check_root(size, root)
    end = start + len(leaves)
    if end > size:
        raise VerificationError(f"the range ends at {end}, beyond the tree of size {size}")
    heights = right_heights(end, size)
    if len(left) != start.bit_count() or len(right) != len(heights):
        raise VerificationError("the range proof has not the hashes that its range and size demand")
    frontier = Frontier(start, left)
    frontier.extend(leaves)
    bits = [bit for bit in range(end.bit_length() - 1, -1, -1) if end >> bit & 1]
    edge = list(zip(bits, frontier.hashes, strict=True))  # (height, root) of perfect subtrees, heights descending
    for height, node in zip(heights, right, strict=True):
        while edge and edge[-1][0] == height:
            node, height = node_hash(edge.pop()[1], node), height + 1
        edge.append((height, node))
    if Frontier(size, [node for _, node in edge]).root() != root:
        raise VerificationError(f"entries {start} to {end} of the tree of size {size} are not these")


def _fold_consistency(size1: int, size2: int, root1: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Both roots as the proof tells them, for 0 < size1 < size2 (RFC 9162 §2.1.4.2, steps 2 to 7)."""
    path = list(proof)
    if size1 & (size1 - 1) == 0:
        path.insert(0, root1)  # a perfect tree is its own first hash and is left out of the proof
    if not path:
        raise VerificationError("the consistency proof is too short")
    fn, sn = size1 - 1, size2 - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            raise VerificationError("the consistency proof is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise VerificationError("the consistency proof is too short")
    return fr, sr
