"""Tiles: where the hashes of the tree lie, and proofs made from them (C2SP tlog-tiles v0.1.0, RFC 6962
§2.1.1, §2.1.2).

``tree/<level>`` is one growing file of 32-byte hashes: level 0 the leaf hashes, level L the roots of the full
subtrees of 256^L leaves. A C2SP tile is a slice of it: ``tile/1/000.p/17`` is hashes 0..17 of ``tree/1``. A
tree of 70,000 leaves has 70,000 hashes at level 0, 273 at level 1 and 1 at level 2.

Every read is planned before the first one is made: which subtrees are needed, in which tiles they lie, one
read of at most 256 hashes (8 KiB) per tile. A proof in a tree of a million leaves takes up to five. The
hashes are believed as they are: whoever makes a proof checks it, or a stranger does
(``merkle.verify_inclusion``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .errors import Malformed
from .merkle import HASH_BYTES, SIZE_MAX, TILE_HEIGHT, Frontier, parents, right_heights

TILE_WIDTH = 256
LEVEL_MAX = 63  # C2SP tlog-tiles, "Merkle Tree"; with 64-bit sizes no level above 7 is ever filled

Read = Callable[[int, int, int], bytes]
"""``read(level, start, count)``: exactly ``count`` × 32 bytes of ``tree/<level>`` from ``start``."""

_Range = tuple[int, int]  # leaves [lo, hi): perfect, or at the right edge of the tree
_Node = tuple[int, int]  # (height, number): root of the leaves [number << height, (number + 1) << height)

_TILE_PATH = re.compile(
    r"tile/(?P<level>[0-9]{1,2})/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[0-9]{1,3}))?",
    re.ASCII,
)


def frontier_at(read: Read, size: int) -> Frontier:
    """The compact range [0, size), with one read per level. ``ValueError`` for a size not in 0..2⁶³−1."""
    if not 0 <= size <= SIZE_MAX:
        raise ValueError(f"tree size {size} is not in 0..2**63-1")
    cover = _cover((0, size))
    found = _read_nodes(read, cover)
    return Frontier(size, [found[node] for node in cover])


def root_at(read: Read, size: int) -> bytes:
    """The root hash of the first ``size`` leaves; ``EMPTY_ROOT`` for 0."""
    return frontier_at(read, size).root()


def prove_inclusion(read: Read, index: int, size: int) -> list[bytes]:
    """PATH(index, D[0:size]) of RFC 6962 §2.1.1, the leaf's sibling first.

    ``ValueError`` unless 0 <= index < size <= 2⁶³−1.
    """
    if not 0 <= index < size <= SIZE_MAX:
        raise ValueError(f"there is no entry {index} in a tree of size {size}")
    ranges: list[_Range] = []
    lo, hi = 0, size
    while hi - lo > 1:
        k = _split(lo, hi)
        if index < k:
            ranges.append((k, hi))
            hi = k
        else:
            ranges.append((lo, k))
            lo = k
    return _hashes_of(read, ranges[::-1])


def prove_consistency(read: Read, size1: int, size2: int) -> list[bytes]:
    """PROOF(size1, D[0:size2]) of RFC 6962 §2.1.2; empty when the sizes are equal or ``size1`` is 0.

    ``ValueError`` unless 0 <= size1 <= size2 <= 2⁶³−1.
    """
    if not 0 <= size1 <= size2 <= SIZE_MAX:
        raise ValueError(f"a tree of size {size2} cannot extend one of size {size1}")
    if size1 == 0:
        return []
    ranges: list[_Range] = []
    lo, hi, whole = 0, size2, True  # whole: [lo, size1) is the old tree itself, whose root the verifier has
    while hi > size1:
        k = _split(lo, hi)
        if size1 <= k:
            ranges.append((k, hi))
            hi = k
        else:
            ranges.append((lo, k))
            lo, whole = k, False
    if not whole:
        ranges.append((lo, size1))
    return _hashes_of(read, ranges[::-1])


def prove_range(read: Read, start: int, end: int, size: int) -> tuple[list[bytes], list[bytes]]:
    """The hashes left and right of the leaves [start, end), as ``merkle.verify_range`` takes them.

    ``ValueError`` unless 0 <= start <= end <= size <= 2⁶³−1.
    """
    if not 0 <= start <= end <= size <= SIZE_MAX:
        raise ValueError(f"there is no range {start} to {end} in a tree of size {size}")
    left, right, at = _cover((0, start)), [], end
    for height in right_heights(end, size):
        right.append((height, at >> height))
        at += 1 << height
    found = _read_nodes(read, [*left, *right])
    return [found[node] for node in left], [found[node] for node in right]


def _split(lo: int, hi: int) -> int:
    """Where RFC 6962 §2.1 divides [lo, hi): lo + the largest power of two smaller than hi − lo."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def _cover(leaves: _Range) -> list[_Node]:
    """The perfect subtrees that make up [lo, hi), largest first: one for each 1 bit of their number."""
    lo, hi = leaves
    nodes = []
    while lo < hi:
        height = (hi - lo).bit_length() - 1
        nodes.append((height, lo >> height))
        lo += 1 << height
    return nodes


def _hashes_of(read: Read, ranges: Iterable[_Range]) -> list[bytes]:
    """MTH of each range of leaves. Ranges do not overlap: each subtree read belongs to one of them."""
    covers = [_cover(leaves) for leaves in ranges]
    found = _read_nodes(read, [node for cover in covers for node in cover])
    hashes = []
    for cover in covers:
        size = sum(1 << height for height, _ in cover)
        hashes.append(Frontier(size, [found.pop(node) for node in cover]).root())
    assert not found, "a subtree was read that no range needs"
    return hashes


def _read_nodes(read: Read, nodes: Iterable[_Node]) -> dict[_Node, bytes]:
    """The hashes of perfect subtrees: one read per tile that has something of them, then folded up."""
    places: dict[_Node, tuple[int, int, int]] = {}  # level and the hashes [start, stop) of it below the node
    spans: dict[tuple[int, int], _Range] = {}  # (level, tile) -> the hashes of the level to be read there
    for height, number in nodes:
        level, rest = divmod(height, TILE_HEIGHT)
        start, stop = number << rest, (number + 1) << rest
        places[height, number] = level, start, stop
        tile = level, start // TILE_WIDTH  # a subtree of height < 8 above a level never crosses a tile
        seen_start, seen_stop = spans.get(tile, (start, stop))
        spans[tile] = min(start, seen_start), max(stop, seen_stop)
    rows = {tile: _read_row(read, tile[0], *spans[tile]) for tile in sorted(spans)}
    found = {}
    for node, (level, start, stop) in places.items():
        tile = level, start // TILE_WIDTH
        first = spans[tile][0]
        row = rows[tile][(start - first) * HASH_BYTES : (stop - first) * HASH_BYTES]
        while len(row) > HASH_BYTES:
            row = parents(row)
        found[node] = row
    return found


def _read_row(read: Read, level: int, start: int, stop: int) -> bytes:
    packed = read(level, start, stop - start)
    if len(packed) != (stop - start) * HASH_BYTES:
        raise ValueError(f"{stop - start} hashes of level {level} were read as {len(packed)} bytes")
    return packed


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """The C2SP spelling of a tile: ``tile/0/x001/x234/067.p/12``; a full tile (256 hashes) has no ``.p``.

    ``ValueError`` unless level is in 0..63, width in 1..256 and index in 0..2⁶³−1.
    """
    if not (0 <= level <= LEVEL_MAX and 0 <= index <= SIZE_MAX and 1 <= width <= TILE_WIDTH):
        raise ValueError(f"there is no tile {index} of width {width} at level {level}")
    path = f"{index % 1000:03d}"
    while index >= 1000:
        index //= 1000
        path = f"x{index % 1000:03d}/{path}"
    return f"tile/{level}/{path}" + ("" if width == TILE_WIDTH else f".p/{width}")


def parse_tile_path(path: str) -> tuple[int, int, int]:
    """(level, index, width) of a tile's path. ``Malformed`` for all that ``tile_path`` does not write."""
    match = _TILE_PATH.fullmatch(path)
    if match is None:
        raise Malformed("not the path of a tile")
    level, index = int(match["level"]), int(match["index"].replace("x", "").replace("/", ""))
    width = TILE_WIDTH if match["width"] is None else int(match["width"])
    # one comparison refuses leading zeros, x000/, .p/0 and .p/256
    in_range = level <= LEVEL_MAX and index <= SIZE_MAX and 1 <= width <= TILE_WIDTH
    if not in_range or tile_path(level, index, width) != path:
        raise Malformed("not the path of a tile")
    return level, index, width
