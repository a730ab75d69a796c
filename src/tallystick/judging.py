"""Verifying what was handed out, without the log: packs and proven answers. Whose key counts is decided here (STORAGE rule 22)."""

from __future__ import annotations

import os

from .core.answer import Answer, question_text
from .core.cosignature import cosignatures
from .core.errors import UnknownSigner, VerificationError
from .core.evidence import Trust, check_pack, read_pack
from .core.note import VerifierKey, split
from .core.packfile import parse_pack
from .core.policy import Policy
from .core.verify import Finding, Span, Verdict
from .evidence import checker, page
from .memory import Memory


def judge_pack(
    data: bytes, *, memory: Memory, vkey: str | None = None, checkpoint: bytes | None = None, policy: bytes | None = None
) -> Verdict:  # fmt: skip
    """A pack. ``vkey`` (else ``$TALLY_VKEY``), a kept ``checkpoint`` or a tlog-policy file says whom to believe; without any of them
    what this user remembers of the log's origin. ``Malformed`` for what is no pack."""
    members = parse_pack(data)
    found = read_pack(members)
    given = _given(vkey)
    known = {k.vkey for k in memory.all().values() if k.origin == found.genesis.origin} if given is None else set()
    mine = found.genesis.vkey.format()
    pinned = given or (VerifierKey.parse(mine if mine in known else sorted(known)[0]) if known else None)
    verdict = check_pack(found, Trust(pinned, checkpoint, None if policy is None else Policy.parse(policy)))
    verdict.of = "pack"
    verdict.key = (mine, "given" if given else "you" if pinned else "nobody", 0)
    count = len(found.entries)
    some = "THE ENTRY IS" if count == 1 else f"ALL {count:,} ENTRIES ARE"
    verdict.said = f"{some} IN THE LOG {verdict.origin}, unaltered, as it was at {verdict.tree_size:,} entries."
    if members["verify.py"] != checker():
        verdict.not_proven.append("the verify.py in it: it is another than the one of this version")
    if members["evidence.html"] != page({n: d for n, d in members.items() if n not in ("README.txt", "evidence.html", "verify.py")}):
        verdict.not_proven.append("the evidence.html in it: it is not the page that this version makes of these files")
    return verdict


def judge_answer(
    data: bytes, *, memory: Memory, vkey: str | None = None, policy: bytes | None = None
) -> Verdict:  # fmt: skip
    """A proven answer. The key is given, or known here by its origin. ``Malformed`` for what is none."""
    answer = Answer.parse(data)
    given = _given(vkey)
    verdict = Verdict(of="answer", origin=split(answer.checkpoint)[0].partition("\n")[0])
    believed = None if policy is None else Policy.parse(policy)
    if believed is not None:
        keys = [log.key for log in believed.logs if log.key.algorithm == 1]
    else:
        keys = [given] if given else [VerifierKey.parse(k.vkey) for k in memory.all().values() if k.origin == verdict.origin]
    if not keys:
        verdict.findings.append(Finding("unknown", "no key to check with: give it with --vkey", 3))
        return verdict
    try:
        proven = answer.verify(keys)
        by = cosignatures(answer.checkpoint, [w.key for w in believed.witnesses]) if believed else ()
    except VerificationError as e:
        verdict.findings.append(Finding("bad_signature" if isinstance(e, UnknownSigner) else "checksum_mismatch", str(e)))
        return verdict
    if believed is not None and not believed.satisfied({w.name for w in believed.witnesses if any(c.key == w.key for c in by)}):
        verdict.findings.append(Finding("unwitnessed", f"the quorum {believed.quorum!r} of your policy is not reached", 3))
    verdict.tree_size, verdict.root = proven.checkpoint.size, proven.checkpoint.root.hex()
    verdict.key = (keys[0].format() if len(keys) == 1 else "", "given" if given else "you", 0)
    rows, read = len(proven.rows), answer.end - answer.start
    span = f"#{answer.start:,} – #{answer.end - 1:,}" if read else f"before #{answer.start:,}, which is empty"
    if proven.complete:
        verdict.said = f"THE ANSWER IS COMPLETE: of the {read:,} entries {span} of {verdict.origin} exactly {rows:,} match."
    else:
        hidden = sum(not line for line, _ in answer.found)
        where = f"THE LOG {verdict.origin}, unaltered, in this order"
        verdict.said = f"THE {rows:,} ROWS ARE IN {where}, among the {read:,} entries {span}."
        verdict.not_proven.append(f"that no other of these entries matches: {hidden:,} of them are here as hashes only "
                                  "(tally query --prove --with-lines hands them out)")  # fmt: skip
    verdict.not_proven.append(f"anything about entries outside of {span}")
    verdict.seen.append(f"asked: {question_text(answer.question)}")
    verdict.spans = [Span(e.index, e.index + 1, ("content proven",)) for e in proven.rows[:10_000]]
    return verdict


def _given(vkey: str | None) -> VerifierKey | None:
    text = vkey or os.environ.get("TALLY_VKEY") or None
    return None if text is None else VerifierKey.parse(text)


__all__ = ["judge_answer", "judge_pack"]
