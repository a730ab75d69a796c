"""RFC 6962 §2.1 as a slow program: the recursion as it is printed there, and nothing else.

It shares no line with ``tallystick.core``, so that two derivations of one truth can be compared.
"""

from functools import cache
from hashlib import sha256


def line(i: int) -> bytes:
    return b'{"entry":%d}' % i


def split(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


@cache
def mth(lo: int, hi: int) -> bytes:
    """MTH(D[lo:hi]) with D[i] = line(i)."""
    n = hi - lo
    if n == 0:
        return sha256(b"").digest()
    if n == 1:
        return sha256(b"\x00" + line(lo)).digest()
    k = split(n)
    return sha256(b"\x01" + mth(lo, lo + k) + mth(lo + k, hi)).digest()


def path(m: int, lo: int, hi: int) -> list[bytes]:
    """PATH(m, D[lo:hi]), §2.1.1."""
    n = hi - lo
    if n == 1:
        return []
    k = split(n)
    if m < k:
        return [*path(m, lo, lo + k), mth(lo + k, hi)]
    return [*path(m - k, lo + k, hi), mth(lo, lo + k)]


def proof(m: int, n: int) -> list[bytes]:
    """PROOF(m, D[0:n]), §2.1.2, for 0 < m <= n."""
    return subproof(m, 0, n, True)


def subproof(m: int, lo: int, hi: int, whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[lo:hi], whole), §2.1.2."""
    n = hi - lo
    if m == n:
        return [] if whole else [mth(lo, hi)]
    k = split(n)
    if m <= k:
        return [*subproof(m, lo, lo + k, whole), mth(lo + k, hi)]
    return [*subproof(m - k, lo + k, hi, False), mth(lo, lo + k)]
