"""What we emit, judged by the Go team's code (golang.org/x/mod/sumdb); what one of us refuses, the other refuses too."""

import json
import os
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick.core.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from tallystick.core.errors import Malformed, VerificationError
from tallystick.core.merkle import Frontier, leaf_hash, root_of, verify_consistency, verify_inclusion
from tallystick.core.note import SignerKey, VerifierKey, open_note, sign
from tallystick.core.proof import InclusionProof
from tallystick.core.tiles import prove_consistency, prove_inclusion

XMOD = Path("/usr/share/gocode/src/golang.org/x/mod")
ORIGIN = "srv2/invoices/0f3a9c21b7de"
LOG = SignerKey(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))  # fixed: a failure comes back
VKEY = LOG.verifier.format()
SIZES = [*range(1, 41), 255, 256, 257, 1000, 4097]
LINES = [b'{"v":1,"log":"%s","n":%d}' % (ORIGIN.encode(), i) for i in range(4097)]
LEAVES = [leaf_hash(line) for line in LINES]
ROWS = [b"".join(LEAVES), *(b"".join(row) for row in Frontier().extend(LEAVES))]
ROOTS = {n: root_of(LEAVES[:n]) for n in (*SIZES, 2, 3, 64, 100, 128, 4096)}


def read(level, start, count):
    return ROWS[level][32 * start : 32 * (start + count)]


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    """``go(checks)`` → one verdict per check: "" when Go accepts. Built once, in a temporary folder, off line."""
    missing = [what for what, there in (("go", shutil.which("go")), (str(XMOD), XMOD.is_dir())) if not there]
    if missing:
        reason = f"not here: {' and '.join(missing)}; apt-get install golang-go golang-golang-x-mod-dev"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("govfy")
    shutil.copytree(Path(__file__).with_name("govfy"), folder, dirs_exist_ok=True)
    env = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOCACHE": str(folder / "cache"), "CGO_ENABLED": "0"}
    built = subprocess.run(["go", "build", "-o", "govfy", "."], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    def judge(checks):
        asked = json.dumps(checks, default=lambda raw: b64encode(raw).decode()).encode()
        answer = subprocess.run([folder / "govfy"], input=asked, capture_output=True, check=True)
        verdicts = json.loads(answer.stdout)
        assert len(verdicts) == len(checks)
        return verdicts

    return judge


def we_refuse(check):
    """Whether our own code refuses what the check asks."""
    keys = [VerifierKey.parse(check["Key"])] if "Key" in check else []
    first, second, *proof = check.get("Hashes") or [b"", b""]
    try:
        match check["Kind"]:
            case "note":
                open_note(check["Note"], keys)
            case "inclusion":
                verify_inclusion(check["Index"], check["Size"], first, proof, second)
            case "consistency":
                verify_consistency(check["Size1"], check["Size"], first, second, proof)
            case "tlog-proof":
                InclusionProof.parse(check["Proof"]).verify(check["Line"], keys, origin=check["Origin"])
    except (VerificationError, Malformed):
        return True
    return False


def both(go, checks, *, accept):
    """Go and we give the same verdict, and it is this one."""
    assert checks
    wrong = [c for c, verdict in zip(checks, go(checks), strict=True) if (verdict == "") is not accept or we_refuse(c) is accept]
    assert not wrong, f"{len(wrong)} of {len(checks)}, the first: {wrong[0]}"


def inclusion(index, size):
    hashes = [LEAVES[index], ROOTS[size], *prove_inclusion(read, index, size)]
    return {"Kind": "inclusion", "Index": index, "Size": size, "Hashes": hashes}


def consistency(size1, size2):
    hashes = [ROOTS[size1], ROOTS[size2], *prove_consistency(read, size1, size2)]
    return {"Kind": "consistency", "Size1": size1, "Size": size2, "Hashes": hashes}


def tlog_proof(index, size, extra=None):
    note = sign_checkpoint(Checkpoint(ORIGIN, size, ROOTS[size]), LOG)
    proof = InclusionProof(index, tuple(prove_inclusion(read, index, size)), note, extra)
    return {"Kind": "tlog-proof", "Proof": proof.format(), "Line": LINES[index], "Key": VKEY, "Origin": ORIGIN}


def indexes(size):
    near = {0, 1, size // 3, size // 2, size - 2, size - 1, 254, 255, 256}
    return [i for i in range(size) if size <= 40 or i in near]


def flip(raw, bit):
    changed = bytearray(raw)
    changed[bit // 8 % len(raw)] ^= 1 << bit % 8
    return bytes(changed)


def corrupted(check):
    """The same check with one thing wrong: a bit of each hash, one hash more or less, another index or size."""
    hashes = check["Hashes"]
    for i, h in enumerate(hashes):
        yield {**check, "Hashes": [*hashes[:i], flip(h, 37 * i + check["Size"]), *hashes[i + 1 :]]}
    for changed in ([*hashes, hashes[0]], [*hashes[:2], hashes[0], *hashes[2:]], hashes[:-1], hashes[:2] + hashes[3:]):
        if len(changed) >= 2 and changed != hashes:
            yield {**check, "Hashes": changed}
    yield {**check, "Hashes": [*hashes[:-1], hashes[-1][:31]]}
    for name in ("Index", "Size1"):
        if name in check:
            yield {**check, name: check[name] + 1}
            yield {**check, name: check[name] - 1 or -1}


def test_go_accepts_every_inclusion_proof_and_no_corrupted_one(go):
    checks = [inclusion(i, n) for n in SIZES for i in indexes(n)]
    both(go, checks, accept=True)
    both(go, [bad for c in checks for bad in corrupted(c)], accept=False)


def test_go_accepts_every_consistency_proof_and_no_corrupted_one(go):
    checks = [consistency(m, n) for n in SIZES for m in ROOTS if m <= n]
    both(go, checks, accept=True)
    both(go, [bad for c in checks if c["Size1"] < c["Size"] for bad in corrupted(c)], accept=False)


def test_go_opens_every_note_and_checkpoint_and_no_corrupted_one(go):
    notes = [sign_checkpoint(Checkpoint(ORIGIN, n, ROOTS[n]), LOG, SignerKey.generate("other.example")) for n in SIZES]
    for note, n in zip(notes, SIZES, strict=True):
        assert open_checkpoint(note, [LOG.verifier], origin=ORIGIN).size == n
    notes += [sign(text, LOG) for text in ("\n", "ä — ü\n", "two\n\nparts\n\n", "— looks like a signature\n", "x" * 100_000 + "\n")]
    checks = [{"Kind": "note", "Note": note, "Key": VKEY} for note in notes]
    both(go, checks, accept=True)
    both(go, [{**c, "Key": SignerKey.generate(ORIGIN).verifier.format()} for c in checks], accept=False)
    note = sign_checkpoint(Checkpoint(ORIGIN, 1, ROOTS[1]), LOG)
    last = len(note) - len("X=\n")  # the last letter before the padding has bits that Go does not look at: see below
    both(go, [{**checks[0], "Note": flip(note, bit)} for bit in range(8 * last)], accept=False)
    both(go, [{**checks[0], "Note": note[:cut]} for cut in range(len(note))], accept=False)


def test_go_accepts_every_proof_file_and_no_corrupted_one(go):
    checks = [tlog_proof(i, n, extra) for n in SIZES for i in indexes(n)[::3] for extra in (None, b"salt")]
    both(go, checks, accept=True)
    bad = []
    for c in checks:
        lines = c["Proof"].split(b"\n")
        empty = lines.index(b"")
        at = next(i for i, line in enumerate(lines) if line.startswith(b"index "))
        bad.append({**c, "Line": c["Line"] + b" "})
        bad.append({**c, "Origin": "srv2/other"})
        bad.append({**c, "Key": SignerKey.generate(ORIGIN).verifier.format()})
        bad.append({**c, "Proof": b"\n".join([*lines[:at], lines[at] + b"9", *lines[at + 1 :]])})
        bad.append({**c, "Proof": b"\n".join([*lines[: at + 1], lines[empty + 3], *lines[at + 1 :]])})
        bad.append({**c, "Proof": b"\n".join([*lines[:at], b"index 0" + lines[at][6:], *lines[at + 1 :]])})
        if empty > at + 1:
            bad.append({**c, "Proof": b"\n".join([*lines[: at + 1], *lines[at + 2 :]])})
            bad.append({**c, "Proof": b"\n".join([*lines[: at + 1], b"A" * 43 + b"=", *lines[at + 2 :]])})
    one = tlog_proof(5, 13)
    head = one["Proof"].index(b"\n\n")
    bad += [{**one, "Proof": flip(one["Proof"], bit)} for bit in range(8 * head)]
    both(go, bad, accept=False)


def test_where_we_are_stricter_than_go(go):
    """Go takes a second spelling of base64 and the same signature twice; for us a note has one spelling."""
    note = sign("text\n", LOG)
    line = note.split(b"\n\n")[1]
    last = note.index(b"=\n") - 1
    loose = note[:last] + bytes([note[last] + 1]) + note[last + 1 :]
    checks = [{"Kind": "note", "Note": n, "Key": VKEY} for n in (loose, note + line)]
    assert go(checks) == ["", ""]
    assert all(we_refuse(c) for c in checks)
