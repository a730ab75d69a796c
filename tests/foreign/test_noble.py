"""ML-DSA-44 cosignatures (0x06), cross-checked both ways with @noble/post-quantum, an implementation in JavaScript that we did not write:
it builds the signed bytes from the specification by itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess

import pytest

from tallystick.core.checkpoint import Checkpoint
from tallystick.core.cosignature import CosignerKey, verify
from tallystick.core.errors import AuditError
from tallystick.core.merkle import root_of
from tallystick.core.note import VerifierKey, encode_base64

from .packages import NOBLE, need, node, npm

SCRIPT = """
import { createHash } from 'node:crypto';
import { ml_dsa44 } from '@noble/post-quantum/ml-dsa.js';
const bytes = (b) => Uint8Array.from(Buffer.from(b, 'base64'));
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64BE(BigInt(n)); return b; };
const u8 = (t) => { const b = Buffer.from(t, 'utf8'); return Buffer.concat([Buffer.from([b.length]), b]); };
// C2SP tlog-cosignature, "ML-DSA-44": label, name, time, origin, start, end, root
const message = (c) => Uint8Array.from(Buffer.concat([Buffer.from('subtree/v1\\n\\0'), u8(c.name), u64(c.time), u8(c.origin), u64(0),
  u64(c.size), Buffer.from(c.root, 'base64')]));
const keyId = (name, pub) => createHash('sha256').update(Buffer.concat([Buffer.from(name + '\\n'), Buffer.from([6]), pub])).digest().subarray(0, 4);
let input = '';
for await (const chunk of process.stdin) input += chunk;
const out = JSON.parse(input).map((c) => {
  if (c.seed) {
    const { secretKey, publicKey } = ml_dsa44.keygen(bytes(c.seed));
    const signature = ml_dsa44.sign(message(c), secretKey);
    return { public: Buffer.from(publicKey).toString('base64'), line:
      '\\u2014 ' + c.name + ' ' + Buffer.concat([keyId(c.name, publicKey), u64(c.time), signature]).toString('base64') };
  }
  const raw = Buffer.from(c.line.split(' ')[2], 'base64');
  const id = raw.subarray(0, 4).equals(keyId(c.name, bytes(c.public)));
  const time = raw.readBigUInt64BE(4) === BigInt(c.time);
  let ok = false;
  try { ok = ml_dsa44.verify(Uint8Array.from(raw.subarray(12)), message(c), bytes(c.public)); } catch { ok = false; }
  return { ok: id && time && ok };
});
console.log(JSON.stringify(out));
"""


@pytest.fixture(scope="module")
def noble():
    """``noble(cases)`` → one answer each: a signature where a seed is given, else whether the line holds."""
    folder = need(npm, NOBLE)

    def ask(cases):
        done = subprocess.run([node(), "--input-type=module", "-e", SCRIPT], input=json.dumps(cases), cwd=folder, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def _cases():
    for name, origin, size in (("w.example/1", "log.example/a", 1), ("witness.kanzlei.example", "srv2/invoices/0f3a9c21b7de", 18_204),
                               ("ü.example", "go.sum database tree", 2**63 - 1), ("n" * 255, "o" * 255, 5)):  # fmt: skip
        yield CosignerKey(name, 6, os.urandom(32)), Checkpoint(origin, size, root_of([os.urandom(32)])), 1_700_000_000 + size % 1000


def _as_case(key, checkpoint, time_s):
    return {"name": key.name, "time": str(time_s), "origin": checkpoint.origin, "size": str(checkpoint.size),
            "root": encode_base64(checkpoint.root), "public": encode_base64(key.verifier.public)}  # fmt: skip


def test_our_cosignatures_hold_for_noble_and_altered_ones_do_not(noble):
    cases, wanted = [], []
    for key, checkpoint, time_s in _cases():
        line = key.cosign(checkpoint, time_s).format()
        case = {**_as_case(key, checkpoint, time_s), "line": line}
        cases += [case, {**case, "size": str(checkpoint.size - 1)}, {**case, "root": encode_base64(bytes(32))},
                  {**case, "time": str(time_s + 1)}, {**case, "origin": "x" + checkpoint.origin[1:]}]  # fmt: skip
        wanted += [True, False, False, False, False]
        raw = bytearray(base64.b64decode(line.split(" ")[2]))
        raw[-1] ^= 1
        cases.append({**case, "line": f"— {key.name} {encode_base64(bytes(raw))}"})
        wanted.append(False)
    assert [answer["ok"] for answer in noble(cases)] == wanted


def test_cosignatures_by_noble_hold_for_us_and_altered_ones_do_not(noble):
    from dataclasses import replace

    from tallystick.core.note import Signature

    seeds = [os.urandom(32) for _ in range(4)]
    made = [(CosignerKey(key.name, 6, seed), checkpoint, time_s) for seed, (key, checkpoint, time_s) in zip(seeds, _cases(), strict=True)]
    answers = noble([{**_as_case(*one), "seed": encode_base64(seed)} for seed, one in zip(seeds, made, strict=True)])
    for (key, checkpoint, time_s), answer in zip(made, answers, strict=True):
        assert answer["public"] == encode_base64(key.verifier.public)  # the same key from the same seed
        line = Signature.parse(answer["line"])
        theirs = VerifierKey.of(key.name, base64.b64decode(answer["public"]), algorithm=6)
        assert verify(checkpoint, theirs, line).time_s == time_s
        for wrong in (replace(checkpoint, root=root_of([b"x" * 32])), replace(checkpoint, origin="another")):
            with pytest.raises(AuditError):
                verify(wrong, theirs, line)
        with pytest.raises(AuditError):
            verify(checkpoint, theirs, replace(line, signature=line.signature[:-1] + bytes([line.signature[-1] ^ 1])))
