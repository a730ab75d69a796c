#!/usr/bin/env python3
"""Check a tallystick pack with nothing but Python 3.8 or newer: one file, standard library only, no network, writes nothing.

    python3 verify.py                                   the unpacked folder in which this file lies
    python3 verify.py PACK.zip --vkey 'LOG+1a2b3c4d+…'    the zip itself, under a key that you got from somebody else
    python3 verify.py --checkpoint kept-elsewhere.txt   the log must extend a checkpoint that you have kept
    python3 verify.py --policy policy.txt               your own tlog-policy file: which log, which witnesses
    python3 verify.py --text 17:prompt=prompt.json      a text that you have: is it the one that entry 17 committed to?

Exit codes: 0 proven under what you gave · 2 usage or a file that cannot be read · 3 cannot judge; nothing pinned · 4 malformed ·
6 altered, or not what you gave. This file came from the party under audit, as the pack did: get another copy, or read it. It follows
RFC 8032 (Ed25519), RFC 6962 and RFC 9162 (trees), C2SP signed-note, tlog-checkpoint, tlog-proof, tlog-cosignature, tlog-policy.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import struct
import sys
import time
import zlib

# -- errors ------------------------------------------------------------------------------------------------------------------


class Malformed(Exception):
    """Not of its format (4)."""

    code = 4


class Altered(Exception):
    """Does not hold (6)."""

    code = 6


# -- Ed25519 (RFC 8032 section 5.1), verification only -------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER_Y = frozenset((0, 1, P - 1, Y8, P - Y8))  # all points of order 1, 2, 4, 8


def decode_point(raw):
    # type: (bytes) -> tuple[int, int, int, int] | None
    """Section 5.1.3, in extended coordinates; None where there is no such point."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == P - u and u:
        x = x * SQRT_M1 % P
    if v * x * x % P != u or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def add(p, q):
    # type: (tuple[int, int, int, int], tuple[int, int, int, int]) -> tuple[int, int, int, int]
    """Section 5.1.4."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def combine(s, p, k, q):
    # type: (int, tuple[int, int, int, int], int, tuple[int, int, int, int]) -> tuple[int, int, int, int]
    """[s]p + [k]q."""
    both, r = add(p, q), (0, 1, 1, 0)
    for bit in range(max(s.bit_length(), k.bit_length()) - 1, -1, -1):
        r = add(r, r)
        one, other = s >> bit & 1, k >> bit & 1
        if one or other:
            r = add(r, both if one and other else p if one else q)
    return r


def encode_point(p):
    # type: (tuple[int, int, int, int]) -> bytes
    """Section 5.1.2."""
    z = pow(p[2], P - 2, P)
    x, y = p[0] * z % P, p[1] * z % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = decode_point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519_verify(public, message, signature):
    # type: (bytes, bytes, bytes) -> bool
    """Section 5.1.7 with the equation [S]B = R + [k]A compared as bytes (no cofactor): what OpenSSL, BoringSSL and Go accept. A key
    that is not canonical or of small order verifies nothing."""
    if len(public) != 32 or len(signature) != 64:
        return False
    s = int.from_bytes(signature[32:], "little")
    a = decode_point(public)
    if s >= L or a is None or BASE is None or int.from_bytes(public, "little") & (2**255 - 1) in SMALL_ORDER_Y:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    minus_a = (P - a[0], a[1], 1, P - a[3])
    return encode_point(combine(s, BASE, k, minus_a)) == signature[:32]


# -- trees (RFC 9162 section 2.1) ------------------------------------------------------------------------------------------------

SIZE_MAX = 2**63 - 1
EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(line):
    # type: (bytes) -> bytes
    return hashlib.sha256(b"\0" + line).digest()


def node_hash(left, right):
    # type: (bytes, bytes) -> bytes
    return hashlib.sha256(b"\1" + left + right).digest()


def verify_inclusion(index, size, leaf, proof, root):
    # type: (int, int, bytes, list[bytes], bytes) -> None
    """Section 2.1.3.2."""
    if index >= size:
        raise Altered("entry %d is not in a tree of %d" % (index, size))
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            raise Altered("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    if sn or r != root:
        raise Altered("these bytes are not entry %d of the tree that was signed" % index)


def verify_consistency(size1, size2, root1, root2, proof):
    # type: (int, int, bytes, bytes, list[bytes]) -> None
    """Section 2.1.4.2, for 1 <= size1."""
    if size1 > size2 or (size1 == size2 and (proof or root1 != root2)):
        raise Altered("the tree of %d does not extend that of %d" % (size2, size1))
    if size1 == size2:
        return
    path = ([root1] if size1 & (size1 - 1) == 0 else []) + list(proof)
    if not path:
        raise Altered("the consistency proof is too short")
    fn, sn = size1 - 1, size2 - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            raise Altered("the consistency proof is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    if sn or fr != root1 or sr != root2:
        raise Altered("the tree of %d does not extend that of %d" % (size2, size1))


# -- notes, keys, checkpoints (C2SP) -----------------------------------------------------------------------------------------------

ALGORITHMS = {1: 32, 4: 32, 6: 1312}  # Ed25519, Ed25519 cosignature, ML-DSA-44 cosignature: bytes of a public key


def decode_base64(text):
    # type: (str) -> bytes
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise Malformed("not base64") from None
    if base64.b64encode(raw).decode("ascii") != text:
        raise Malformed("not canonical base64")
    return raw


def check_name(name):
    # type: (str) -> None
    if not name or "+" in name or any(c.isspace() or c < " " or "\ud800" <= c <= "\udfff" for c in name):
        raise Malformed("not a key name")


class Key:
    """A verifier key: name+keyid+base64(algorithm || public key)."""

    def __init__(self, text, algorithms=(1,)):
        # type: (str, tuple[int, ...]) -> None
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise Malformed("a key is name+keyid+base64")
        raw = decode_base64(parts[2])
        if not raw or raw[0] not in algorithms or len(raw) != 1 + ALGORITHMS[raw[0]]:
            raise Malformed("a key of another algorithm or length than is wanted here")
        check_name(parts[0])
        self.text, self.name, self.algorithm, self.public = text, parts[0], raw[0], raw[1:]
        y = int.from_bytes(self.public, "little") & (2**255 - 1)
        if self.algorithm != 6 and (y >= P or y in SMALL_ORDER_Y):
            raise Malformed("the key is not canonical, or of small order")
        digest = hashlib.sha256(self.name.encode("utf-8") + b"\n" + raw).hexdigest()
        if parts[1] != digest[:8]:
            raise Malformed("the key ID is not that of the key")
        self.id = bytes.fromhex(digest[:8])
        self.fingerprint = " ".join(digest[at : at + 4] for at in range(0, 32, 4))

    def made(self, line):
        # type: (tuple[str, bytes, bytes]) -> bool
        """A signature line that claims to be by this key."""
        return line[:2] == (self.name, self.id)


def split_note(note):
    # type: (bytes) -> tuple[str, list[tuple[str, bytes, bytes]]]
    """Text and lines (name, key ID, signature) of a note; nothing is verified."""
    if len(note) > 1 << 20 or any(b < 32 and b != 10 for b in note):
        raise Malformed("a note of more than 1 MiB, or with control characters")
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the note is not UTF-8") from None
    text, gap, tail = whole.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise Malformed("a note is a text, an empty line and signature lines")
    lines = []
    for line in tail[:-1].split("\n"):
        name, space, encoded = line[2:].partition(" ")
        raw = decode_base64(encoded)
        check_name(name)
        if line[:2] != "\u2014 " or not space or len(raw) < 5:
            raise Malformed("not a signature line")
        lines.append((name, raw[:4], raw[4:]))
    if len(lines) > 64 or len({line[:2] for line in lines}) != len(lines):
        raise Malformed("more than 64 signatures, or two by one key")
    return text + "\n", lines


def signers(note, keys):
    # type: (bytes, list[Key]) -> list[Key]
    """Those of the keys that signed the note: at least one, and none wrongly."""
    text, lines = split_note(note)
    found = []
    for line in lines:
        for key in keys:
            if key.made(line):
                if not ed25519_verify(key.public, text.encode("utf-8"), line[2]):
                    raise Altered("the signature by %s does not verify" % key.name)
                found.append(key)
    if not found:
        raise Altered("no signature by the key that it must have: " + " or ".join(k.fingerprint[:9] for k in keys))
    return found


def parse_number(text):
    # type: (str) -> int
    if not re.match(r"(0|[1-9][0-9]{0,18})\Z", text) or int(text) > SIZE_MAX:
        raise Malformed("not a decimal number in 0..2**63-1")
    return int(text)


def parse_checkpoint(note):
    # type: (bytes) -> tuple[str, int, bytes]
    """Origin, size and root that a note states."""
    text, _ = split_note(note)
    lines = text.split("\n")[:-1]
    if len(lines) < 3 or len(lines) > 19:
        raise Malformed("a checkpoint is origin, tree size, root hash and at most 16 more lines")
    for at, line in enumerate(lines):
        if not line or re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", line) or len(line.encode()) > (1024 if at else 255):
            raise Malformed("a line of the checkpoint is empty, too long or not printable")
    size, root = parse_number(lines[1]), decode_base64(lines[2])
    if len(root) != 32 or (size == 0) != (root == EMPTY_ROOT):
        raise Malformed("a root hash has 32 bytes; that of the empty tree belongs to size 0")
    return lines[0], size, root


def parse_hashes(lines):
    # type: (list[str]) -> list[bytes]
    hashes = [decode_base64(line) for line in lines]
    if len(hashes) > 64 or any(len(h) != 32 for h in hashes):
        raise Malformed("at most 64 hashes of 32 bytes")
    return hashes


def parse_proof(proof):
    # type: (bytes) -> tuple[int, list[bytes], bytes]
    """C2SP tlog-proof without its optional extra line: index, hashes, checkpoint."""
    head, gap, note = proof.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Malformed("not ASCII before the checkpoint") from None
    if lines[0] != "c2sp.org/tlog-proof@v1" or len(lines) < 2 or not lines[1].startswith("index ") or not gap or len(lines) > 65:
        raise Malformed("a proof is its first line, an index, hashes, an empty line and a checkpoint")
    parse_checkpoint(note)
    return parse_number(lines[1][6:]), parse_hashes(lines[2:]), note


# -- policies and cosignatures (C2SP) -------------------------------------------------------------------------------------------


class Policy:
    """Which logs and how many witnesses somebody believes."""

    def __init__(self, data):
        # type: (bytes) -> None
        if len(data) > 1 << 18 or not data.endswith(b"\n") or re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", data):
            raise Malformed("a policy is at most 256 KiB of text that ends in a newline")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("the policy is not UTF-8") from None
        self.logs = []  # type: list[Key]
        self.witnesses = {}  # type: dict[str, Key]
        self.groups = []  # type: list[tuple[str, int, list[str]]]
        self.quorum = ""
        self._free = set()  # type: set[str]
        for line in text.split("\n"):
            words = [w for w in re.split(r"[ \t]+", line) if w]
            if words and not words[0].startswith("#"):
                self._read(words)
        if not self.quorum or max(len(self.logs), len(self.witnesses), len(self.groups)) > 256:
            raise Malformed("a policy has one quorum line, and at most 256 of each kind")

    def _names(self):
        # type: () -> set[str]
        return {"none"} | set(self.witnesses) | {g[0] for g in self.groups}

    def _read(self, words):
        # type: (list[str]) -> None
        kind, count = words[0], len(words)
        if kind == "log" and count in (2, 3):
            key = Key(words[1], (1, 6))
            if any(key.public == other.public for other in self.logs):
                raise Malformed("two logs have one key")
            self.logs.append(key)
        elif kind == "witness" and count in (3, 4):
            key = Key(words[2], (4, 6))
            if words[1] in self._names() or any(key.public == other.public for other in self.witnesses.values()):
                raise Malformed("a name or key of a witness comes twice")
            self.witnesses[words[1]] = key
            self._free.add(words[1])
        elif kind == "group" and count >= 4:
            members = words[3:]
            least = {"any": 1, "all": len(members)}.get(words[2], 0)
            if not least and re.match(r"[1-9][0-9]{0,2}\Z", words[2]):
                least = int(words[2])
            if (words[1] in self._names() or not set(members) <= self._free or len(set(members)) != len(members)
                    or not 1 <= least <= len(members)):  # fmt: skip
                raise Malformed("a group with a name, member or threshold that it cannot have")
            self._free -= set(members)
            self._free.add(words[1])
            self.groups.append((words[1], least, members))
        elif kind == "quorum" and count == 2 and not self.quorum and words[1] in self._names():
            self.quorum = words[1]
        else:
            raise Malformed("not a log, witness, group or quorum line: %s" % clean(" ".join(words))[:60])

    def satisfied(self, cosigned):
        # type: (set[str]) -> bool
        present = set(cosigned) & set(self.witnesses)
        for name, least, members in self.groups:
            if len(present & set(members)) >= least:
                present.add(name)
        return self.quorum == "none" or self.quorum in present


def cosigners(note, policy):
    # type: (bytes, Policy) -> tuple[dict[str, int], list[str]]
    """Witnesses of the policy that cosigned, by name in the policy with their time; and those whose line is not checked here."""
    text, lines = split_note(note)
    found, unchecked = {}, []  # type: dict[str, int], list[str]
    for line in lines:
        for name, key in policy.witnesses.items():
            if not key.made(line):
                continue
            if key.algorithm == 6:
                unchecked.append(name)
                continue
            if len(line[2]) != 72:
                raise Malformed("not a cosignature by %s" % key.name)
            (seconds,) = struct.unpack(">Q", line[2][:8])
            if not 0 < seconds <= SIZE_MAX:
                raise Malformed("a cosignature by %s at no time" % key.name)
            signed = "cosignature/v1\ntime %d\n%s" % (seconds, text)
            if not ed25519_verify(key.public, signed.encode("utf-8"), line[2][8:]):
                raise Altered("the cosignature by %s does not verify" % key.name)
            found[name] = seconds
    return found, unchecked


# -- packs -----------------------------------------------------------------------------------------------------------------------

FOR_PEOPLE = ("README.txt", "evidence.html", "verify.py")
MEMBER = re.compile(
    r"(?:log\.vkey|checkpoint|policy|(?:entries|keys)/[0-9]{20}\.(?:json|tlog-proof)|checkpoints/[0-9]{20}(?:\.signatures|\.consistency"
    r"|\.[a-z0-9][a-z0-9.-]{0,39}\.tsr)?|openings/[0-9]{20}\.[a-z][a-z0-9_.-]{0,63}\.(?:salt|content)|salts/[0-9]{20})\Z"
)
BYTES_MAX = 1 << 28


def write_zip(members):
    # type: (dict[str, bytes]) -> bytes
    """The one spelling of a pack: stored, 1980-01-01, mode 0644, nothing else."""
    parts, directory, at = [], [], 0  # type: list[bytes], list[bytes], int
    for name, data in members.items():
        named = name.encode("ascii")
        shared = struct.pack("<HHHHIII", 0, 0, 0, 33, zlib.crc32(data), len(data), len(data))
        parts += [b"PK\x03\x04\x0a\0", shared, struct.pack("<HH", len(named), 0), named, data]
        directory += [b"PK\x01\x02\x14\x03\x0a\0", shared, struct.pack("<HHHHHII", len(named), 0, 0, 0, 0, 0o100644 << 16, at), named]
        at += 30 + len(named) + len(data)
    central = b"".join(directory)
    return b"".join(parts) + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(central), at, 0)


def read_zip(data):
    # type: (bytes) -> dict[str, bytes]
    members, at = {}, 0  # type: dict[str, bytes], int
    while data[at : at + 4] == b"PK\x03\x04" and len(data) >= at + 30 and len(members) <= 65000:
        size, length = struct.unpack("<I", data[at + 18 : at + 22])[0], struct.unpack("<H", data[at + 26 : at + 28])[0]
        begin = at + 30 + length
        name = data[at + 30 : begin].decode("latin-1")
        if name in members or begin + size > len(data) or not (name in FOR_PEOPLE or MEMBER.match(name)):
            raise Malformed("a member that is there twice, cut off, or does not belong: %s" % clean(name)[:80])
        members[name] = data[begin : begin + size]
        at = begin + size
    if write_zip(members) != data:
        raise Malformed("the zip was packed again, or something was added, hidden or cut off")
    return members


def read_folder(folder):
    # type: (str) -> tuple[dict[str, bytes], list[str]]
    """The members of an unpacked pack, and what lies at its top that is none."""
    members, strangers, total = {}, [], 0  # type: dict[str, bytes], list[str], int
    for top in sorted(os.listdir(folder)):
        path = os.path.join(folder, top)
        ours = os.path.isdir(path) and top in ("entries", "keys", "checkpoints", "openings", "salts")
        inner = sorted(os.listdir(path)) if ours else None
        if inner is None and not (top in FOR_PEOPLE or (MEMBER.match(top) and os.path.isfile(path))):
            strangers.append(top)
            continue
        for name in [top] if inner is None else [top + "/" + n for n in inner]:
            if not (name in FOR_PEOPLE or MEMBER.match(name)) or not os.path.isfile(os.path.join(folder, name)):
                raise Malformed("%s does not belong into a pack" % clean(name))
            total += os.path.getsize(os.path.join(folder, name))
            if total > BYTES_MAX:
                raise Malformed("a pack has at most 256 MiB")
            with open(os.path.join(folder, name), "rb") as file:
                members[name] = file.read()
    return members, strangers


def parse_entry(line):
    # type: (bytes) -> dict[str, object]
    """The JSON object of an entry; one that two readers could read differently is refused."""

    def once(pairs):
        # type: (list[tuple[str, object]]) -> dict[str, object]
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Malformed("an entry names something twice")
        return found

    def none(_text):
        # type: (str) -> object
        raise Malformed("an entry has a number that is none")

    try:
        fields = json.loads(line.decode("utf-8"), object_pairs_hook=once, parse_constant=none)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise Malformed("not an entry") from None
    if not isinstance(fields, dict) or len(line) > 65535 or b"\n" in line:
        raise Malformed("not an entry")
    return fields


def text_of(fields, *path):
    # type: (object, *str) -> str
    for step in path:
        fields = fields.get(step) if isinstance(fields, dict) else None
    return fields if isinstance(fields, str) else ""


def clean(text):
    # type: (object) -> str
    """Text for a screen: nothing in it moves the cursor or turns its direction."""
    unsafe = "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
    return re.sub(unsafe, lambda m: "\\u%04x" % ord(m.group()), str(text))


class Epoch:
    """Its key signs heads of sizes after < N <= until; the head of size until is signed by closer."""

    def __init__(self, number, key, after):
        # type: (int, Key, int) -> None
        self.number, self.key, self.closer, self.after = number, key, key, after
        self.until = None  # type: int | None


class Check:
    """One pack, looked at in the order in which one thing rests on another."""

    def __init__(self, members):
        # type: (dict[str, bytes]) -> None
        self.m = members
        self.findings = []  # type: list[tuple[int, str]]
        self.holds, self.open = [], []  # type: list[str], list[str]
        self.fields = {}  # type: dict[int, dict[str, object]]
        self.epochs = []  # type: list[Epoch]
        self.sealed_to = self.kept_size = 0
        self.pinned = ""

    def step(self, place, action, *args):
        # type: (str, object, *object) -> object
        try:
            return action(*args)  # type: ignore[operator]
        except (Malformed, Altered) as e:
            self.findings.append((e.code, "%s: %s" % (place, e)))
            return None

    @property
    def code(self):
        # type: () -> int
        codes = {code for code, _ in self.findings}
        return next((c for c in (6, 2, 4, 5, 3) if c in codes), 0)

    def run(self, vkey, checkpoint, policy):
        # type: (str | None, bytes | None, bytes | None) -> None
        self.step("the pack", self.structure)
        if self.findings:
            return
        self.step("log.vkey", self.genesis, vkey)
        self.step("checkpoint", self.head)
        if self.code:
            return
        before = len(self.findings)
        self.step("keys", self.history)
        whole = len(self.findings) == before
        if whole:
            self.step("checkpoint", self.epoch_line)
            self.chain()
        for index in self.numbers("entries/", ".json"):
            self.step("entries/%020d" % index, self.entry, index)
        self.openings()
        self.step("policy", self.witnesses, policy)
        if whole and checkpoint is not None:
            self.step("the checkpoint that you gave", self.from_elsewhere, checkpoint)
        if self.code in (0, 3) and not self.pinned:
            mine = self.key.fingerprint
            self.findings.append((3, "nothing pinned: all agrees under the key %s, which the pack brought itself" % mine))

    def numbers(self, prefix, suffix):
        # type: (str, str) -> list[int]
        at = len(prefix)
        return sorted(int(n[at : at + 20]) for n in self.m if n.startswith(prefix) and n[at + 20 :] == suffix)

    def structure(self):
        # type: () -> None
        """Every member of its format, nothing missing; nothing is verified."""
        for name in (*FOR_PEOPLE, "log.vkey", "checkpoint", "keys/%020d.json" % 0):
            if name not in self.m:
                raise Malformed("there is no " + name)
        for name, data in self.m.items():
            try:
                self.member(name, data)
            except Malformed as e:
                raise Malformed("%s: %s" % (clean(name), e)) from None
        if not 1 <= len(self.numbers("entries/", ".json")) <= 10000:
            raise Malformed("a pack has 1 to 10,000 entries")

    def member(self, name, data):
        # type: (str, bytes) -> None
        folder, _, rest = name.partition("/")
        if not (name in FOR_PEOPLE or MEMBER.match(name)):
            raise Malformed("does not belong into a pack")
        if rest and int(rest[:20]) > SIZE_MAX:
            raise Malformed("a number beyond 2**63-1")
        pairs = {".json": ".tlog-proof", ".tlog-proof": ".json", ".salt": ".content", ".content": ".salt"}
        stem, ending = os.path.splitext(name)
        if folder in ("entries", "keys", "openings") and stem + pairs[ending] not in self.m:
            raise Malformed("its other half is missing")
        if folder in ("openings", "salts") and "entries/%s.json" % rest[:20] not in self.m:
            raise Malformed("of an entry that is not in the pack")
        if folder == "salts" or (folder == "openings" and ending == ".salt"):
            if not re.match(rb"[0-9a-f]{64}\n\Z", data):
                raise Malformed("a salt is 64 hex digits and a newline")
        elif ending == ".tlog-proof":
            parse_proof(data)
        elif folder == "checkpoints":
            own = self.m.get(name[:32])
            if own is None or name[:32] + ".consistency" not in self.m:
                raise Malformed("a checkpoint and its consistency proof belong together")
            if name == name[:32]:
                parse_checkpoint(data)
            elif ending == ".signatures":
                parse_checkpoint(own + data)
            elif ending == ".consistency":
                self.consistency(data)
        elif name == "checkpoint":
            parse_checkpoint(data)
        elif name == "policy":
            Policy(data)
        elif name == "log.vkey":
            first, newline, _ = data.partition(b"\n")
            if len(data) > 8192 or not newline:
                raise Malformed("not a key and a genesis checkpoint")
            Key(first.decode("latin-1"))

    @staticmethod
    def consistency(data):
        # type: (bytes) -> list[bytes]
        lines = data.decode("latin-1").split("\n")
        if lines.pop():
            raise Malformed("the last line does not end")
        return parse_hashes(lines)

    def genesis(self, vkey):
        # type: (str | None) -> None
        first, _, self.genesis_note = self.m["log.vkey"].partition(b"\n")
        self.key = Key(first.decode("latin-1"))
        origin, size, self.genesis_root = parse_checkpoint(self.genesis_note)
        signers(self.genesis_note, [self.key])
        if (origin, size) != (self.key.name, 1):
            raise Altered("the genesis checkpoint is of another log, or not of size 1")
        if vkey is not None:
            if vkey != self.key.text:
                raise Altered("the pack is under the key %s, not the one that you gave" % self.key.fingerprint)
            self.pinned = "the key that you gave"

    def head(self):
        # type: () -> None
        self.note = self.m["checkpoint"]
        origin, self.size, self.root = parse_checkpoint(self.note)
        if origin != self.key.name:
            raise Altered("it is of another log than the key")
        signers(self.note, [self.key])
        if self.size < 1:
            raise Altered("a checkpoint of size 0 proves nothing")

    def line(self, folder, index):
        # type: (str, int) -> dict[str, object]
        """An entry, proven to be in the tree of ``checkpoint``."""
        name = "%s/%020d" % (folder, index)
        line = self.m[name + ".json"]
        said, hashes, note = parse_proof(self.m[name + ".tlog-proof"])
        if (said, note) != (index, self.note):
            raise Altered("the proof is of another index, or against another checkpoint than the pack's")
        verify_inclusion(index, self.size, leaf_hash(line), hashes, self.root)
        fields = parse_entry(line)
        if fields.get("log") != self.key.name:
            raise Altered("the entry says that it is of another log")
        return fields

    def entry(self, index):
        # type: (int) -> None
        self.fields[index] = self.line("entries", index)

    def history(self):
        # type: () -> None
        """Which key may sign a head of which size: what the log's lines about itself say."""
        lines = []
        for index in self.numbers("keys/", ".json"):
            try:
                fields = self.line("keys", index)
            except (Malformed, Altered) as e:
                raise type(e)("%020d: %s" % (index, e)) from None
            kinds = ("created", "epoch_close", "epoch_recovered", "recovered", "archived", "purged")
            own = (fields.get("actor"), fields.get("actor_type")) == ("tallystick", "system")
            if not own or fields.get("event_type") not in ["log." + kind for kind in kinds]:
                raise Malformed("%020d: not a line about keys" % index)
            lines.append((index, str(fields["event_type"]), fields.get("details") or {}))
        if leaf_hash(self.m["keys/%020d.json" % 0]) != self.genesis_root:
            raise Altered("entry 0 is not the one of the genesis checkpoint")
        self.recovered = []  # type: list[tuple[int, int]]
        for index, kind, said in reversed(lines):  # later lines decide about earlier ones
            if kind == "log.recovered" and not self.is_recovered(index):
                first, end = said.get("first"), said.get("end")  # type: ignore[attr-defined]
                if not (type(first) is int and type(end) is int and 0 < first <= end <= index):
                    raise Malformed("entry %d: log.recovered without its range" % index)
                self.recovered.append((first, end))
        for index, kind, said in lines:
            if self.is_recovered(index) or kind not in ("log.created", "log.epoch_close", "log.epoch_recovered"):
                continue
            if kind == "log.created" and index == 0:
                self.epochs.append(Epoch(0, self.named(said, "epoch_key"), 0))
            elif kind != "log.created" and self.epochs:
                self.end_epoch(index, kind, said)
        if not self.epochs:
            raise Malformed("entry 0 is not log.created")

    def end_epoch(self, index, kind, said):
        # type: (int, str, object) -> None
        last = self.epochs[-1]
        if [said.get(n) for n in ("epoch", "first", "last")] != [last.number, last.after, index]:  # type: ignore[attr-defined]
            raise Malformed("entry %d: not the end of epoch %d" % (index, last.number))
        key = self.named(said, "next_key")
        if key.text in [self.key.text] + [epoch.key.text for epoch in self.epochs]:
            raise Malformed("entry %d: the next key was used before" % index)
        last.until = index + 1
        if kind == "log.epoch_recovered":
            last.closer = self.key
        self.epochs.append(Epoch(last.number + 1, key, index + 1))

    def named(self, said, name):
        # type: (object, str) -> Key
        key = Key(text_of(said, name))
        if key.name != self.key.name:
            raise Malformed("a key of another log")
        return key

    def is_recovered(self, index):
        # type: (int) -> bool
        return any(first <= index < end for first, end in self.recovered)

    def key_at(self, size):
        # type: (int) -> Key
        for epoch in self.epochs:
            if epoch.after < size and (epoch.until is None or size <= epoch.until):
                return epoch.closer if size == epoch.until else epoch.key
        raise Altered("no epoch may sign a head of size %d" % size)

    def epoch_line(self):
        # type: () -> None
        signers(self.note, [self.key_at(self.size)])

    def chain(self):
        # type: () -> None
        """The checkpoints that closed epochs: all there, each by the key that must have signed it, each a beginning of this tree."""
        signed = {}  # type: dict[int, object]
        for size in self.numbers("checkpoints/", ""):
            signed[size] = self.step("checkpoints/%020d" % size, self.kept, size)
        broken = False
        for epoch in self.epochs:
            if epoch.until is None:
                break
            keys = signed.get(epoch.until)
            if keys is None or epoch.closer.text not in keys:  # type: ignore[operator]
                broken = True
                if epoch.until not in signed or keys is not None:
                    self.findings.append((6, "the epoch chain: epoch %d was closed at %d entries, and the checkpoint that its key "
                                          "signed then is not in the pack" % (epoch.number, epoch.until)))  # fmt: skip
            elif epoch.closer is not epoch.key:
                broken = True
                self.open.append("the seal is broken at %d entries: the key of epoch %d was lost, and the log key stood in for it"
                                 % (epoch.until, epoch.number))  # fmt: skip
            elif not broken:
                self.sealed_to = epoch.until

    def kept(self, size):
        # type: (int) -> list[str]
        name = "checkpoints/%020d" % size
        note = self.m[name] + self.m.get(name + ".signatures", b"")
        origin, said, root = parse_checkpoint(note)
        if (origin, said) != (self.key.name, size) or size < 1:
            raise Altered("of another log or size than its name says")
        verify_consistency(size, self.size, root, self.root, self.consistency(self.m[name + ".consistency"]))
        keys = {key.text: key for key in (self.key, self.key_at(size))}
        return [key.text for key in signers(note, list(keys.values()))]

    def openings(self):
        # type: () -> None
        for name in sorted(self.m):
            if name.startswith("openings/") and name.endswith(".salt"):
                self.step(name[:-5], self.opening, name[:-5], int(name[9:29]), name[30:-5])
        for index in self.numbers("salts/", ""):
            self.step("salts/%020d" % index, self.salted, index)

    def opening(self, stem, index, name):
        # type: (str, int, str) -> None
        fields = self.fields.get(index) or parse_entry(self.m["entries/%020d.json" % index])
        payloads = fields.get("payloads")
        ref = payloads.get(name) if isinstance(payloads, dict) else None
        if not isinstance(ref, dict):
            raise Malformed("the entry has no payload of that name")
        salt, content = bytes.fromhex(self.m[stem + ".salt"].decode("ascii").strip()), self.m[stem + ".content"]
        digest = hashlib.sha256(b"tallystick/payload/v1\0" + salt + struct.pack(">Q", len(content)) + content).hexdigest()
        if ref.get("size") != len(content) or ref.get("commitment") != digest:
            raise Altered("this content is not what the entry committed to")
        self.holds.append("openings/%020d.%s.content is the payload %s of entry #%d" % (index, name, name, index))

    def salted(self, index):
        # type: (int) -> dict[str, object]
        fields = self.fields.get(index) or parse_entry(self.m["entries/%020d.json" % index])
        details = fields.get("details")
        found = details.get("commitments") if isinstance(details, dict) else None
        if not isinstance(found, dict):
            raise Malformed("the entry has no commitments that a salt could open")
        return found

    def text(self, index, name, content):
        # type: (int, str, bytes) -> None
        """A text of the reader's own against the commitments of a call."""
        salt = self.m.get("salts/%020d" % index)
        if salt is None:
            raise Malformed("the pack has no salt of entry #%d: ask for one made with --open ID:salt" % index)
        mac = hmac.new(bytes.fromhex(salt.decode("ascii").strip()), name.encode() + b"\0" + content, hashlib.sha256).hexdigest()
        if self.salted(index).get(name) != mac:
            raise Altered("your text is not the %s that entry #%d committed to, or the salt is not its salt" % (clean(name), index))
        self.holds.append("your text is the %s that entry #%d committed to" % (clean(name), index))

    def witnesses(self, given):
        # type: (bytes | None) -> None
        data = self.m.get("policy") if given is None else given
        if data is None:
            return
        policy = Policy(data)
        if given is not None:
            if all(self.key.text != key.text for key in policy.logs):
                raise Altered("your policy file does not know this log's key")
            self.pinned = "your policy file"
        found, unchecked = cosigners(self.note, policy)
        said = ["cosigned by %s %s" % (policy.witnesses[n].name, utc(t)) for n, t in found.items()]
        if unchecked:
            self.open.append("ML-DSA-44 cosignatures by %s: not checked here" % ", ".join(map(clean, unchecked)))
        if given is None:
            if said:
                self.open.append("that the cosigners are who they seem (%s): their keys are the pack's own; give a policy file of "
                                 "yours" % "; ".join(map(clean, said)))  # fmt: skip
            return
        self.holds += [clean(s) for s in said]
        if not policy.satisfied(set(found)):
            by = ", ".join(map(clean, sorted(found))) or "none of its witnesses"
            self.findings.append((3, "the quorum %s of your policy is not reached: cosigned by %s" % (clean(policy.quorum), by)))

    def from_elsewhere(self, note):
        # type: (bytes) -> None
        origin, size, root = parse_checkpoint(note)
        if origin != self.key.name:
            raise Malformed("it is of the log %s" % clean(origin)[:80])
        keys = {self.key.text: self.key}
        if 1 <= size <= self.size:
            keys[self.key_at(size).text] = self.key_at(size)
        signers(note, list(keys.values()))
        kept = self.m.get("checkpoints/%020d" % size)
        here = (self.root if size == self.size else leaf_hash(self.m["keys/%020d.json" % 0]) if size == 1
                else parse_checkpoint(kept)[2] if kept is not None else None)  # fmt: skip
        if here is None:
            self.findings.append((3, "your checkpoint of %d entries: " % size + (
                "the pack is of an older state; ask for a new one" if size > self.size else
                "the pack has no proof from its size on; ask for one made with --since and that file")))  # fmt: skip
        elif here != root:
            raise Altered("at %d entries it has another root: two histories; keep both files, they prove it" % size)
        else:
            self.pinned, self.kept_size = "the checkpoint of %d entries that you kept" % size, size


def utc(seconds):
    # type: (int) -> str
    try:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "second %d" % seconds


def find_note(data):
    # type: (bytes) -> bytes
    """The checkpoint in a file: the file itself, the second part of a log.vkey, or a note within other text (a saved mail)."""
    for candidate in (data, data.partition(b"\n")[2]):
        try:
            parse_checkpoint(candidate)
        except Malformed:
            continue
        return candidate
    text = data.decode("utf-8", "replace").replace("\r\n", "\n") + "\n"
    soft = re.sub(r"=[ \t]*\n", "", text)  # quoted-printable (RFC 2045 section 6.7), as mail programs write "=" and the dash
    unquoted = re.sub(b"=([0-9A-F]{2})", lambda m: bytes([int(m.group(1), 16)]), soft.encode("utf-8")).decode("utf-8", "replace")
    note = re.compile("(?:^|\n)([^\n]+\n[0-9]+\n[A-Za-z0-9+/]{43}=\n(?:[^\n]+\n)*\n(?:\u2014 [^\n]+\n)+)")
    match = None
    for one in (text, unquoted):  # a card is indented, an answered mail quoted
        match = match or note.search(one) or note.search(re.sub(r"(?m)^[ \t>]+", "", one))
    if match is None:
        raise Malformed("there is no checkpoint in it")
    parse_checkpoint(match.group(1).encode("utf-8"))
    return match.group(1).encode("utf-8")


# -- the command line -------------------------------------------------------------------------------------------------------------


def sentence(check):
    # type: (Check) -> str
    count = len(check.fields)
    some = "THE ENTRY IS" if count == 1 else "ALL %d ENTRIES ARE" % count
    if check.code == 0:
        return "%s IN THE LOG %s, unaltered, as it was at %d entries." % (some, clean(check.key.name), check.size)
    if check.code == 3:
        return "CANNOT JUDGE: " + next(text for code, text in check.findings if code == 3) + "."
    return {4: "NOT A PACK AS IT WAS MADE: ", 6: "ALTERED, OR NOT WHAT YOU ASKED FOR: "}[check.code] + next(
        text for code, text in check.findings if code == check.code) + "."  # fmt: skip


def report(check, strangers, out):
    # type: (Check, list[str], object) -> None
    def say(text=""):
        # type: (str) -> None
        print(text, file=out)  # type: ignore[call-overload]

    say(sentence(check))
    for code, text in check.findings:
        if text not in sentence(check):
            say("  (%d) %s" % (code, text))
    if check.code in (0, 3):
        say()
        for index, fields in sorted(check.fields.items()):
            marks = []
            if check.kept_size and index < check.sealed_to:
                marks.append("sealed to %d" % check.sealed_to)
            if check.is_recovered(index):
                marks.append("unsigned when found")
            said = [text_of(fields, n) for n in ("timestamp", "actor", "action", "resource", "outcome")]
            say("  #%d  %s%s" % (index, clean("  ".join(said)), "  [%s]" % ", ".join(marks) if marks else ""))
        say()
        for text in check.holds:
            say("  holds:       " + text)
        if check.pinned:
            say("  rests on:    " + check.pinned)
        say("  key:         " + check.key.fingerprint)
        stamps = sorted(n for n in check.m if n.endswith(".tsr"))
        if check.sealed_to and not check.kept_size:
            check.open.append("the seal of %d entries by closed epochs: it counts only with a checkpoint that was kept outside"
                              % check.sealed_to)  # fmt: skip
        for text in [*check.open, *("timestamp: openssl ts -verify -data %s -in %s -CAfile CA.pem" % (n[:32], n) for n in stamps),
                     "whether other entries belong to the matter: a pack shows what it has"]:  # fmt: skip
            say("  not proven:  " + text)
        if not check.pinned:
            say("\n  next: get the key from somebody else than the party that gave you the pack, then --vkey KEY")
    for name in strangers:
        say("  not part of the pack: " + clean(name))


def arguments(argv):
    # type: (list[str]) -> argparse.Namespace
    codes = "Exit codes: 0 proven, 2 usage, 3 cannot judge, 4 malformed, 6 altered."
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=codes)
    parser.add_argument("pack", nargs="?", help="the zip, or the unpacked folder (default: where this file lies)")
    parser.add_argument("--vkey", metavar="KEY", help="the log's key, from somebody else than who gave you the pack")
    parser.add_argument("--checkpoint", metavar="FILE", help="a checkpoint that you have kept (a card, a saved mail)")
    parser.add_argument("--policy", metavar="FILE", help="your own tlog-policy file")
    parser.add_argument("--text", metavar="INDEX:NAME=FILE", action="append", default=[], help="a text to compare with a commitment")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(argv)


def read(name):
    # type: (str) -> bytes
    with open(name, "rb") as file:
        data = file.read(BYTES_MAX + 1)
    if len(data) > BYTES_MAX:
        raise Malformed("%s has more than 256 MiB" % clean(name))
    return data


def judge(args):
    # type: (argparse.Namespace) -> tuple[Check, list[str]]
    check, strangers = Check({}), []  # type: Check, list[str]
    if args.vkey is not None:
        try:
            Key(args.vkey)
        except Malformed as e:
            check.findings.append((4, "--vkey: %s" % e))
            return check, strangers
    where = args.pack or os.path.dirname(os.path.abspath(__file__))
    kept = None if args.checkpoint is None else check.step(args.checkpoint, find_note, read(args.checkpoint))
    policy = None if args.policy is None else read(args.policy)
    texts = []
    for text in args.text:
        match = re.match(r"#?([0-9]{1,19}):([a-z][a-z0-9_.]{0,63})=(.+)\Z", text, re.DOTALL)
        if match is None:
            raise OSError(2, "--text is INDEX:NAME=FILE", text)
        texts.append((int(match.group(1)), match.group(2), read(match.group(3))))
    try:
        if os.path.isdir(where):
            check.m, strangers = read_folder(where)
        else:
            check.m = read_zip(read(where))
    except Malformed as e:
        check.findings.append((4, "%s: %s" % (clean(where), e)))
        return check, strangers
    check.run(args.vkey, kept, policy)  # type: ignore[arg-type]
    for text in texts if check.code in (0, 3) else []:
        check.step("--text", check.text, *text)
    return check, strangers


def main(argv):
    # type: (list[str]) -> int
    args = arguments(argv)
    try:
        check, strangers = judge(args)
    except OSError as e:
        print("verify.py: %s: %s" % (clean(e.filename), e.strerror), file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if args.json:
        print(json.dumps({"exit_code": check.code, "verified": check.code == 0, "sentence": sentence(check),
                          "findings": [{"code": c, "text": t} for c, t in check.findings], "entries": sorted(check.fields),
                          "sealed_to": check.sealed_to if check.kept_size else 0, "rests_on": check.pinned}, indent=2))  # fmt: skip
    else:
        report(check, strangers, sys.stdout)
    return check.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
