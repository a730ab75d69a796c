"""Packs as files: a ZIP that has one spelling (decision 23).

Everything that unpacks ZIP files reads it, and only what ``format_pack`` writes is accepted: members stored uncompressed one after
the other, the central directory, its end, and nothing before, between or behind them; no extra fields, comments, flags or
descriptors; every time 1980-01-01 00:00, every mode 0644. So the same members are the same bytes, nothing can be hidden from one
reader and shown to another, and no file is larger inside than outside.

Names are ``word`` or ``folder/word`` of ``[A-Za-z0-9._-]``, not beginning with a dot: none leads out of a folder. Limits: 256 MiB,
65,000 members. Not here: which members a pack has and what they say (``evidence``).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping

from .errors import Malformed

PACK_BYTES_MAX = 1 << 28
MEMBERS_MAX = 65_000
_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}", re.ASCII)
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION, _MADE_BY = 10, 3 << 8 | 20  # 1.0: stored; made on Unix, so that the mode counts
_DATE = 0 << 9 | 1 << 5 | 1  # 1980-01-01, the earliest there is
_MODE = 0o100644 << 16


def format_pack(members: Mapping[str, bytes]) -> bytes:
    """The file with these members in this order. ``Malformed`` for a name that has none, or beyond the limits."""
    if len(members) > MEMBERS_MAX:
        raise Malformed(f"a pack has at most {MEMBERS_MAX:,} members")
    size = sum(len(data) + 2 * len(name) + 76 for name, data in members.items()) + 22
    if size > PACK_BYTES_MAX:
        raise Malformed(f"a pack has at most {PACK_BYTES_MAX:,} bytes")
    parts, directory, at = [], [], 0
    for name, data in members.items():
        if not _NAME.fullmatch(name):
            raise Malformed(f"{name[:80]!r} is not the name of a member of a pack")
        named, crc = name.encode("ascii"), zlib.crc32(data)
        shared = struct.pack("<HHHHIII", 0, 0, 0, _DATE, crc, len(data), len(data))
        parts += [_LOCAL, struct.pack("<H", _VERSION), shared, struct.pack("<HH", len(named), 0), named, data]
        directory += [_CENTRAL, struct.pack("<HH", _MADE_BY, _VERSION), shared,
                      struct.pack("<HHHHHII", len(named), 0, 0, 0, 0, _MODE, at), named]  # fmt: skip
        at += 30 + len(named) + len(data)
    central = b"".join(directory)
    count = len(members)
    end = _END + struct.pack("<HHHHIIH", 0, 0, count, count, len(central), at, 0)
    return b"".join([*parts, central, end])


def parse_pack(data: bytes) -> dict[str, bytes]:
    """The members in their order. ``Malformed`` unless the file is, byte for byte, what ``format_pack`` writes."""
    if len(data) > PACK_BYTES_MAX:
        raise Malformed(f"the pack is larger than {PACK_BYTES_MAX:,} bytes")
    members: dict[str, bytes] = {}
    at = 0
    while data[at : at + 4] == _LOCAL and len(members) <= MEMBERS_MAX:
        header = data[at + 4 : at + 30]
        if len(header) != 26:
            raise Malformed("the pack ends within a member")
        size, length = struct.unpack("<I", header[14:18])[0], struct.unpack("<H", header[22:24])[0]
        begin = at + 30 + length
        try:
            name = data[at + 30 : begin].decode("ascii")
        except UnicodeDecodeError:
            raise Malformed("the name of a member is not ASCII") from None
        if name in members:
            raise Malformed(f"the pack has {name[:80]!r} twice")
        if begin + size > len(data):
            raise Malformed("the pack ends within a member")
        members[name] = data[begin : begin + size]
        at = begin + size
    if format_pack(members) != data:
        raise Malformed("not the one spelling of a pack: it was packed again, or something was added, hidden or cut off")
    return members
