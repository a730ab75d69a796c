"""Requests to a witness and its verdicts: the whole table of the specification, and requests that torchwood's litewitness judged."""

import re
from base64 import b64decode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.cosignature import CosignerKey
from tallystick.core.errors import Malformed
from tallystick.core.merkle import EMPTY_ROOT, Frontier, leaf_hash, root_of
from tallystick.core.note import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, SignerKey, VerifierKey, encode_base64, sign
from tallystick.core.tiles import prove_consistency
from tallystick.core.tlog_witness import Known, Refused, authenticate, decide, format_request, parse_request, parse_size

from .vectors import need

ORIGIN = "log.example/one"
LOG = SignerKey(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = SignerKey(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
LEAVES = [leaf_hash(b"%d" % n) for n in range(300)]
ROWS = [b"".join(LEAVES), *(b"".join(row) for row in Frontier().extend(LEAVES))]


def read(level, start, count):
    return ROWS[level][32 * start : 32 * (start + count)]


def checkpoint(size, root=None, *extensions, origin=ORIGIN):
    return Checkpoint(origin, size, root_of(LEAVES[:size]) if root is None else root, extensions)


def body(old, size, *, root=None, proof=None, signers=(LOG,)):
    proof = (prove_consistency(read, old, size) if old <= size else []) if proof is None else proof
    return format_request(old, proof, sign_checkpoint(checkpoint(size, root), *signers))


def known(size):
    return Known(size, root_of(LEAVES[:size])) if size else None


def verdict(raw, last, keys=(LOG.verifier,)):
    """(status, body, what it contradicts)."""
    try:
        request = parse_request(raw)
    except Malformed as e:
        return 400, str(e), ""
    try:
        authenticate(request, keys if request.origin == ORIGIN else ())
        decide(request, last)
    except Refused as e:
        return e.status, e.body.decode(), e.contradicts
    return 200, "", ""


@pytest.mark.parametrize(("old", "new"), [(0, 1), (0, 300), (1, 2), (1, 1), (255, 256), (256, 257), (128, 300), (299, 300), (300, 300), (7, 8)])
def test_what_extends_the_last_one_is_cosigned(old, new):
    assert verdict(body(old, new), known(old))[0] == 200


def test_the_empty_tree_is_cosigned_and_then_extended():
    assert verdict(body(0, 0), None)[0] == 200
    assert verdict(body(0, 5), Known(0, EMPTY_ROOT))[0] == 200


def _empty_with(root, signer=LOG, old=0):
    note = sign(f"{ORIGIN}\n0\n{encode_base64(root)}\n", signer)
    return f"old {old}\n\n".encode() + note


def _broken(raw):
    """The same request with one bit of the signature turned over."""
    head, _, tail = raw.rpartition(b" ")
    letter = b"A" if tail[20:21] != b"A" else b"B"
    return head + b" " + tail[:20] + letter + tail[21:]


BAD = bytes(31) + b"\1"
TABLE = [
    ("unknown origin", lambda: body(0, 5).replace(ORIGIN.encode(), b"log.example/two"), None, 404, ""),
    ("no signature by a key that is trusted", lambda: body(0, 5, signers=(OTHER,)), None, 403, ""),
    ("a signature that does not hold", lambda: _broken(body(0, 5)), None, 403, ""),
    ("one that holds and one that does not", lambda: _broken(body(0, 5, signers=(OTHER, LOG))), None, 403, ""),
    ("old above the checkpoint's size", lambda: body(9, 5, proof=[]), known(9), 400, ""),
    ("the same where the signature is bad: that comes first", lambda: body(9, 5, proof=[], signers=(OTHER,)), known(9), 403, ""),
    ("old is not the stored size", lambda: body(3, 9), known(5), 409, ""),
    ("old of a witness that knows more", lambda: body(0, 9), known(5), 409, ""),
    ("old of one that knows nothing", lambda: body(3, 9), None, 409, ""),
    ("the same size with another root and an old that does not fit", lambda: body(0, 5, root=BAD), known(5), 409, "split"),
    ("size 0 with another root", lambda: _empty_with(BAD), None, 422, ""),
    ("the same, unsigned", lambda: _empty_with(BAD, OTHER), None, 403, ""),
    ("size 0 with another root where 5 are known", lambda: _empty_with(BAD), known(5), 409, ""),
    ("a proof from 0", lambda: body(0, 5, proof=[BAD]), None, 422, ""),
    ("no proof", lambda: body(5, 9, proof=[]), known(5), 422, "unproven"),
    ("a proof that is too long", lambda: body(5, 9, proof=[*prove_consistency(read, 5, 9), BAD]), known(5), 422, "unproven"),
    ("a proof of something else", lambda: body(5, 9, proof=prove_consistency(read, 6, 9)), known(5), 422, "unproven"),
    ("another tree", lambda: body(5, 9, root=BAD), known(5), 422, "unproven"),
    ("the same size with another root", lambda: body(5, 5, root=BAD), known(5), 422, "split"),
    ("the same size with a proof", lambda: body(5, 5, proof=[BAD]), known(5), 422, "unproven"),
]


@pytest.mark.parametrize(("raw", "last", "status", "contradicts"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_refused_and_with_which_status(raw, last, status, contradicts):
    found = verdict(raw(), last)
    assert (found[0], found[2]) == (status, contradicts)
    if status == 409:
        assert found[1] == f"{last.size if last else 0}\n"
        assert parse_size(found[1].encode()) == (last.size if last else 0)


MALFORMED = [
    ("nothing", lambda b: b""), ("no empty line", lambda b: b.replace(b"\n\n", b"\n")), ("Old", lambda b: b"O" + b[1:]),
    ("two spaces", lambda b: b.replace(b"old ", b"old  ")), ("leading zero", lambda b: b.replace(b"old 5", b"old 05")),
    ("sign", lambda b: b.replace(b"old 5", b"old +5")), ("2**63", lambda b: b.replace(b"old 5", b"old 9223372036854775808")),
    ("CRLF", lambda b: b.replace(b"old 5\n", b"old 5\r\n")), ("no final newline", lambda b: b[:-1]),
    ("one byte more", lambda b: b + b"\n"), ("size 2**64", lambda b: b.replace(b"\n9\n", b"\n18446744073709551616\n")),
    ("a hash of 31 bytes", lambda b: b.replace(b"old 5\n", b"old 5\n" + encode_base64(bytes(31)).encode() + b"\n")),
    ("a hash not canonical", lambda b: b.replace(b"old 5\n", b"old 5\n" + encode_base64(bytes(32)).encode()[:-2] + b"B=\n")),
    ("64 hashes", lambda b: b"old 5\n" + (encode_base64(bytes(32)) + "\n").encode() * 64 + b[b.index(b"\n\n") + 1 :]),
    ("DEL in an extension", lambda b: b.replace(b"=\n\n\xe2", b"=\na\x7fb\n\n\xe2")),
    ("U+2028 in an extension", lambda b: b.replace(b"=\n\n\xe2", "=\na\u2028b\n\n—".encode()[:-2])),
    ("17 extensions", lambda b: b.replace(b"=\n\n\xe2", b"=\n" + b"x\n" * 17 + b"\n\xe2")),
    ("65 signatures", lambda b: b + "".join(f"— a{n} AAAAAAA=\n" for n in range(65)).encode()),
    ("two lines of one key", lambda b: b + b[b.rindex(b"\xe2\x80\x94") :]),
    ("300 KiB", lambda b: b.replace(b"old 5\n", b"old 5\n" + b"x" * 300_000)),
]  # fmt: skip


@pytest.mark.parametrize("change", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_what_is_malformed(change):
    whole = body(5, 9)
    assert verdict(whole, known(5))[0] == 200
    changed = change(whole)
    assert changed != whole
    assert verdict(changed, known(5))[0] == 400


def test_a_request_is_read_as_it_was_written():
    for old, new in ((0, 1), (5, 9), (128, 300)):
        raw = body(old, new)
        request = parse_request(raw)
        assert (request.old_size, request.size, request.origin) == (old, new, ORIGIN)
        assert format_request(request.old_size, request.proof, request.note) == raw


def test_any_cut_and_any_byte_turned_over_is_refused_or_means_the_same():
    whole = body(5, 9)
    accepted = []
    for at in range(len(whole)):
        assert verdict(whole[:at], known(5))[0] != 200
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        if verdict(changed, known(5))[0] == 200:
            accepted.append(at)
    assert accepted == []


@pytest.mark.parametrize("algorithm", [COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44])
def test_a_log_may_sign_as_a_cosigner(algorithm):
    key = CosignerKey(ORIGIN, algorithm, bytes(32))
    made = checkpoint(5)
    note = f"{made.format()}\n{key.cosign(made, 1_700_000_000).format()}\n".encode()
    assert verdict(format_request(0, [], note), None, (key.verifier,))[0] == 200
    other = CosignerKey(ORIGIN, algorithm, bytes(31) + b"\1")
    assert verdict(format_request(0, [], note), None, (other.verifier,))[0] == 403
    at = note.rindex(b" ") + 30
    broken = note[:at] + (b"A" if note[at : at + 1] != b"A" else b"B") + note[at + 1 :]
    assert verdict(format_request(0, [], broken), None, (key.verifier,))[0] == 403


def test_a_size_is_one_number_and_a_newline():
    assert parse_size(b"0\n") == 0
    for bad in (b"", b"1", b"01\n", b"-1\n", b"1\n\n", b" 1\n", b"9223372036854775808\n", "١\n".encode()):
        with pytest.raises(Malformed):
            parse_size(bad)


# -- requests that another implementation judged -----------------------------------------------------------------------------

# what that version did differently from the specification of today: an unknown origin is 404
_CORRECTED = {("403", "unknown log"): 404}
_SUMDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
_SIGSUM = "ffdc2d4d98e4124d3feaf788c0c2f9abfd796083d1f0495437f302ec79cf100f"


def torchwood(name):
    """(body, status, what the answer contains or is) of each request in a file."""
    text = need("torchwood-litewitness").joinpath(name).read_text(encoding="utf-8")
    found = re.findall(r"^POST [^\n]*\n```\n(.*?)```\nHTTP (\d+)\n\[Asserts\]\nbody (?:contains|==) \"([^\"]*)\"", text, re.MULTILINE | re.DOTALL)
    assert found
    return [(raw.encode(), _CORRECTED.get((status, said), int(status)), said) for raw, status, said in found]


def _canonical(raw):
    """The signature line in the one spelling of base64 that we read: one of theirs has stray bits at its end, which is 400 here."""
    head, _, signature = raw.rpartition(b" ")
    canonical = head + b" " + encode_base64(b64decode(signature)).encode() + b"\n"
    if canonical != raw:
        assert verdict(raw, None)[0] == 400
    return canonical


@pytest.mark.parametrize(("name", "key"), [("litewitness.txt", _SIGSUM), ("sumdb.txt", _SUMDB)])
def test_we_judge_as_torchwood_did(name, key):
    last, statuses = None, []
    requests = torchwood(name)
    for raw, status, said in requests:
        raw = _canonical(raw)
        origin = parse_request(raw).origin
        log = VerifierKey.parse(key) if "+" in key else VerifierKey.of(
            "sigsum.org/v1/tree/4d6d8825a6bb689d459628312889dfbb0bcd41b5211d9e1ce768b0ff0309e562", bytes.fromhex(key))
        mine = origin in (log.name, "go.sum database tree")
        request = parse_request(raw)
        try:
            authenticate(request, (log,) if mine else ())
            made = decide(request, last)
        except Refused as e:
            found = e.status
            if status == 409:
                assert e.body.decode() == said.replace("\\n", "\n")
        else:
            found, last = 200, Known(made.size, made.root)
        assert found == status, (raw.decode(), said)
        statuses.append(found)
    assert last == Known(*((5, last.root) if "lite" in name else (35225469, last.root)))
    if "lite" in name:
        assert set(statuses) == {200, 403, 404, 409, 422}
