"""What a pack has for people: its first page, a checker to run, a page to open in a browser (decision 23).

The page carries the other members in it, as JSON of base64 texts: nothing in them can end a script or be taken for markup.
All three follow from the other members, so that the same input gives the same bytes.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from ..core.evidence import FOR_PEOPLE, Pack, read_pack
from ..core.packfile import format_pack

_DATA, _SCRIPT = b"@DATA@", b"@SCRIPT@"


def build_pack(members: Mapping[str, bytes]) -> bytes:
    """The pack file with these members and those for people. ``Malformed`` where they are not a pack's."""
    pack = read_pack({**dict.fromkeys(FOR_PEOPLE, b""), **members})
    ordered = dict(sorted(members.items()))
    people = {"README.txt": first_page(pack), "evidence.html": page(ordered), "verify.py": checker()}
    return format_pack({**people, **ordered})


def checker() -> bytes:
    """``verify.py``: standard library only."""
    return files(__name__).joinpath("verify.py").read_bytes()


def page(members: Mapping[str, bytes]) -> bytes:
    """``evidence.html`` with these members in it."""
    template = files(__name__).joinpath("page.html").read_bytes()
    before, mark, after = template.partition(_DATA)
    assert mark and _DATA not in after, "the template has its place for the data once"
    script = after.partition(b"<script>")[2].partition(b"</script>")[0]
    allowed = b"sha256-" + b64encode(sha256(script).digest())  # this one script, and no other, whatever the data may be
    before = before.replace(_SCRIPT, allowed)
    data = {name: b64encode(content).decode("ascii") for name, content in members.items()}
    return before + json.dumps(data, separators=(",", ":")).encode("ascii") + after


def first_page(pack: Pack) -> bytes:
    """``README.txt``: what this is, who it comes from, how to check it without them."""
    template = files(__name__).joinpath("first-page.txt").read_text(encoding="utf-8")
    vkey = pack.genesis.vkey
    indexes = sorted(pack.entries)
    some = ", ".join(f"#{index:,}" for index in indexes[:8]) + (f" and {len(indexes) - 8:,} more" if len(indexes) > 8 else "")
    for name, value in {
        "ORIGIN": vkey.name, "VKEY": vkey.format(), "FINGERPRINT": vkey.fingerprint, "ENTRIES": some, "COUNT": f"{len(indexes):,}",
        "FIRST": f"{indexes[0]:020d}", "OPENINGS": str(len(pack.openings)), "SALTS": str(len(pack.salts)),
        "CLOSED": str(len(pack.kept)),
    }.items():  # fmt: skip
        template = template.replace(f"@{name}@", value)
    return template.encode()
