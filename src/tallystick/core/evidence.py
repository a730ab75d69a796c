"""What a pack says, and whether it holds (decision 23). Pure: members in, verdict out; no store, no network, no clock.

::

    README.txt  evidence.html  verify.py     for people; covered by no signature
    log.vkey                                 the log's verifier key and its genesis checkpoint
    checkpoint                               the note that every proof here is against, with all its lines
    policy                                   the log's own tlog-policy file, if it has one: a claim like any other
    entries/<index, 20 digits>.json          the stored bytes of an entry, and
    entries/<index>.tlog-proof               its proof (C2SP tlog-proof)
    keys/<index>.json  keys/<index>.tlog-proof     the same for the lines that say which key may sign: the epoch chain
    checkpoints/<size>                       what closed an epoch or was handed out, as first signed
    checkpoints/<size>.signatures            further lines on it
    checkpoints/<size>.consistency           base64 hashes, one a line: the tree of ``checkpoint`` begins with that tree
    checkpoints/<size>.<party>.tsr           an RFC 3161 response over the bytes of ``checkpoints/<size>``
    openings/<index>.<name>.salt             64 hex digits, with
    openings/<index>.<name>.content          the content: together they open the payload ``name`` of the entry
    salts/<index>                            64 hex digits: the salt of the ``commitments`` in the details of the entry

The chain: log key → genesis (size 1) → entry 0, ``log.created`` → the key of epoch 0 → the closing checkpoint of epoch 0, which
contains its ``log.epoch_close`` → the key of epoch 1 → … → the key that signs ``checkpoint``. Which log key is right the pack cannot
say of itself: without a key or a checkpoint from elsewhere nothing is pinned (3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar

from . import entry as ent
from .checkpoint import Checkpoint, open_checkpoint
from .cosignature import Cosignature, cosignatures
from .entry import Fields
from .epoch import KEY_TYPES, History, is_own, read_history
from .errors import AuditError, Malformed, VerificationError
from .genesis import Genesis
from .merkle import SIZE_MAX, leaf_hash, verify_consistency, verify_inclusion
from .note import VerifierKey, decode_base64, open_note, split
from .payload import open_commitment
from .policy import Policy
from .proof import InclusionProof
from .verify import Finding, Span, Verdict

FOR_PEOPLE = ("README.txt", "evidence.html", "verify.py")
ENTRIES_MAX = 10_000
CONSISTENCY_MAX = 64
_NUMBER = r"([0-9]{20})"
_GRAMMAR = {
    "line": re.compile(rf"(entries|keys)/{_NUMBER}\.(json|tlog-proof)", re.ASCII),
    "kept": re.compile(rf"checkpoints/{_NUMBER}(\.signatures|\.consistency)?", re.ASCII),
    "stamp": re.compile(rf"checkpoints/{_NUMBER}\.([a-z0-9][a-z0-9.-]{{0,39}})\.tsr", re.ASCII),
    "opening": re.compile(rf"openings/{_NUMBER}\.([a-z][a-z0-9_.-]{{0,63}})\.(salt|content)", re.ASCII),
    "salt": re.compile(rf"salts/{_NUMBER}", re.ASCII),
}
_HEX64 = re.compile(rb"[0-9a-f]{64}\n", re.ASCII)
T = TypeVar("T")


class ProvenLine(NamedTuple):
    """An entry's stored bytes and the proof that goes with them."""

    line: bytes
    proof: InclusionProof


class KeptCheckpoint(NamedTuple):
    """A checkpoint of the log's folder, with all its lines, and how the pack's checkpoint extends it."""

    note: bytes
    consistency: tuple[bytes, ...]


class Pack(NamedTuple):
    """The members of a pack, each of its format. Nothing is verified."""

    genesis: Genesis
    note: bytes
    policy: Policy | None
    entries: dict[int, ProvenLine]
    keys: dict[int, ProvenLine]
    kept: dict[int, KeptCheckpoint]
    stamps: tuple[tuple[int, str], ...]
    openings: dict[tuple[int, str], bytes]  # salt || content
    salts: dict[int, bytes]


class Trust(NamedTuple):
    """What the reader has from elsewhere: the log's key, a checkpoint, a policy file."""

    vkey: VerifierKey | None = None
    checkpoint: bytes | None = None
    policy: Policy | None = None


def read_pack(members: Mapping[str, bytes]) -> Pack:
    """The members of a pack → what they are. ``Malformed``, naming the member, for one that is not of its format, too much or
    missing."""
    left = dict(members)
    for name in FOR_PEOPLE:
        if left.pop(name, None) is None:
            raise Malformed(f"the pack has no {name}")
    found: dict[str, dict[tuple[str, ...], bytes]] = {kind: {} for kind in _GRAMMAR}
    single: dict[str, bytes] = {}
    for name, data in left.items():
        if name in ("log.vkey", "checkpoint", "policy"):
            single[name] = data
            continue
        match = next(((kind, m) for kind, pattern in _GRAMMAR.items() if (m := pattern.fullmatch(name))), None)
        if match is None:
            raise Malformed(f"{name} does not belong into a pack")
        found[match[0]][tuple(g or "" for g in match[1].groups())] = data
    for name in ("log.vkey", "checkpoint"):
        if name not in single:
            raise Malformed(f"the pack has no {name}")
    _named("checkpoint", partial(_read_note, single["checkpoint"]))
    entries, keys = (_lines(folder, found["line"]) for folder in ("entries", "keys"))
    if not entries or 0 not in keys:
        raise Malformed("a pack has at least one entry, and entry 0 among the lines about keys")
    if len(entries) > ENTRIES_MAX:
        raise Malformed(f"a pack has at most {ENTRIES_MAX:,} entries")
    kept = _kept(found["kept"])
    stamps = tuple(sorted((_number(size), party) for size, party in found["stamp"]))
    for size, party in stamps:
        if size not in kept:
            raise Malformed(f"checkpoints/{size:020d}.{party}.tsr is over a checkpoint that is not there")
    policy = single.get("policy")
    return Pack(
        _named("log.vkey", lambda: Genesis.parse(single["log.vkey"])), single["checkpoint"],
        None if policy is None else _named("policy", lambda: Policy.parse(policy)), entries, keys, kept, stamps,
        _openings(found["opening"], entries), _salts(found["salt"], entries),
    )  # fmt: skip


NOTHING = Trust()


def check_pack(pack: Pack, trust: Trust = NOTHING) -> Verdict:
    """What holds of a pack. Exit codes as everywhere: 0 under a key, checkpoint or policy from elsewhere; 3 where nothing is pinned,
    or something asked for cannot be judged from the pack; 4 and 6 for what is malformed or does not hold, each by its place."""
    return _Check(pack, trust).run()


class _Check:
    def __init__(self, pack: Pack, trust: Trust) -> None:
        self.pack, self.trust = pack, trust
        self.log_key = pack.genesis.vkey
        self.verdict = Verdict(origin=pack.genesis.origin)
        self.pinned = False
        self.kept_size = 0  # of the checkpoint from elsewhere that this history was shown to extend
        self.sealed_to = 0
        self.words: list[str] = []

    def run(self) -> Verdict:
        verdict = self.verdict
        self._try("log.vkey", "bad_signature", self._genesis)
        self._try("checkpoint", "bad_signature", self._head)
        if verdict.exit_code:
            return verdict  # what all else is measured by does not hold
        history = self._try("keys", "replaced", self._history)
        if history is not None:
            self._try("checkpoint", "bad_signature", lambda: self._epoch_line(history))
            self._chain(history)
        for index, proven in sorted(self.pack.entries.items()):
            self._try(f"entries/{index:020d}", "checksum_mismatch", partial(self._line, index, proven), index)
        self._open()
        self._try("policy", "bad_signature", self._witnesses)
        self._try("the checkpoint that you gave", "replaced", self._from_elsewhere)
        self._conclude(history)
        return verdict

    def _try(self, place: str, issue: str, step: Callable[[], T], index: int | None = None) -> T | None:
        try:
            return step()
        except VerificationError as e:
            self.verdict.findings.append(Finding(issue, f"{place}: {e}", 6, index, file=place))
        except Malformed as e:
            self.verdict.findings.append(Finding("malformed", f"{place}: {e}", 4, index, file=place))
        return None

    def _genesis(self) -> None:
        self.pack.genesis.open()
        if self.trust.vkey is not None:
            if self.trust.vkey != self.log_key:
                raise VerificationError(f"the pack is under the key {self.log_key.fingerprint}, not the one that you gave, "
                                        f"{self.trust.vkey.fingerprint}")  # fmt: skip
            self.pinned = True

    def _head(self) -> None:
        self.head = open_checkpoint(self.pack.note, [self.log_key], origin=self.log_key.name)
        if self.head.size < 1:
            raise VerificationError("a checkpoint of size 0 proves nothing")
        self.verdict.tree_size, self.verdict.root = self.head.size, self.head.root.hex()

    def _line(self, index: int, proven: ProvenLine) -> Fields:
        if proven.proof.checkpoint != self.pack.note or proven.proof.index != index:
            raise VerificationError("the proof is of another index or against another checkpoint than the pack's")
        verify_inclusion(index, self.head.size, leaf_hash(proven.line), proven.proof.hashes, self.head.root)
        fields = ent.decode(proven.line)
        if fields.log != self.head.origin:
            raise VerificationError(f"the entry says that it is of the log {fields.log[:80]!r}")
        return fields

    def _history(self) -> History:
        lines = []
        for index, proven in sorted(self.pack.keys.items()):
            try:
                fields = self._line(index, proven)
            except (VerificationError, Malformed) as e:
                raise type(e)(f"{index:020d}: {e}") from None
            if not is_own(fields) or fields.event_type not in KEY_TYPES:
                raise Malformed(f"{index:020d}: not a line about keys")
            lines.append((index, fields))
        if leaf_hash(self.pack.keys[0].line) != self.pack.genesis.open().root:
            raise VerificationError("entry 0 is not the one of the genesis checkpoint")
        return read_history(lines)

    def _epoch_line(self, history: History) -> None:
        open_checkpoint(self.pack.note, [history.key_at(self.head.size)], origin=self.head.origin)

    def _chain(self, history: History) -> None:
        """Every closing checkpoint is there, signed by the key that must have, and the tree begins with its tree."""
        signed: dict[int, list[VerifierKey]] = {}
        for size, kept in sorted(self.pack.kept.items()):
            keys = self._try(f"checkpoints/{size:020d}", "bad_signature", partial(self._kept, size, kept, history))
            if keys is not None:
                signed[size] = keys
        seals = history.seals(signed)
        for epoch, size in seals.missing:
            if size not in self.pack.kept or size in signed:
                self.verdict.findings.append(Finding(
                    "bad_signature", f"the epoch chain: epoch {epoch} was closed at {size:,} entries, and the checkpoint that its "
                    "key signed then is not in the pack", 6, file="checkpoints"))  # fmt: skip
        for epoch, size in seals.broken:
            self.verdict.not_proven.append(f"the seal is broken at {size:,} entries: the key of epoch {epoch} was lost, and the "
                                           "log key stood in for it")  # fmt: skip
        self.sealed_to = seals.sealed_to

    def _kept(self, size: int, kept: KeptCheckpoint, history: History) -> list[VerifierKey]:
        checkpoint = _read_note(kept.note)
        if (checkpoint.origin, checkpoint.size) != (self.head.origin, size):
            raise VerificationError("the checkpoint is of another log or size than its name says")
        if size < 1:
            raise VerificationError("a checkpoint of size 0 proves nothing")
        verify_consistency(size, self.head.size, checkpoint.root, self.head.root, kept.consistency)
        keys = [self.log_key] + ([key] if (key := history.key_at(size)) != self.log_key else [])
        opened = open_note(kept.note, keys)
        by = {(s.name, s.key_id) for s in opened.verified}
        return [key for key in keys if (key.name, key.key_id) in by]

    def _open(self) -> None:
        for (index, name), opened in sorted(self.pack.openings.items()):
            self._try(f"openings/{index:020d}.{name}", "checksum_mismatch",
                      partial(self._opening, index, name, opened), index)  # fmt: skip
        for index in sorted(self.pack.salts):
            self._try(f"salts/{index:020d}", "checksum_mismatch", partial(self._salted, index), index)

    def _opening(self, index: int, name: str, opened: bytes) -> None:
        ref = ent.decode(self.pack.entries[index].line).payloads.get(name)
        if ref is None:
            raise Malformed("the entry has no payload of that name")
        open_commitment(opened, ref.commitment, ref.size)

    def _salted(self, index: int) -> None:
        if not isinstance(ent.decode(self.pack.entries[index].line).details.get("commitments"), dict):
            raise Malformed("the entry has no commitments that a salt could open")

    def _witnesses(self) -> None:
        policy = self.trust.policy
        if policy is not None:
            if all(log.key != self.log_key for log in policy.logs):
                raise VerificationError("your policy file does not know this log's key")
            self.pinned = True
            found = cosignatures(self.pack.note, [w.key for w in policy.witnesses])
            names = {w.name for w in policy.witnesses if any(c.key == w.key for c in found)}
            if not policy.satisfied(names):
                seen = ", ".join(sorted(names)) or "none of its witnesses"
                self.verdict.findings.append(Finding(
                    "unwitnessed", f"the quorum {policy.quorum!r} of your policy is not reached: cosigned by {seen}", 3))  # fmt: skip
            self.words += [_cosigned(c).replace("cosigned by", "witness", 1) for c in found]
        elif self.pack.policy is not None:
            found = cosignatures(self.pack.note, [w.key for w in self.pack.policy.witnesses])
            if found:
                said = "; ".join(map(_cosigned, found))
                self.verdict.not_proven.append(f"that the cosigners are who they seem ({said}): their keys are the pack's own; "
                                               "give a policy file of yours")  # fmt: skip

    def _from_elsewhere(self) -> None:
        """A checkpoint that the reader has kept pins the key and the history below it."""
        note = self.trust.checkpoint
        if note is None:
            return
        history = read_history(sorted((i, ent.decode(p.line)) for i, p in self.pack.keys.items()))
        given = _read_note(note)
        if given.origin != self.head.origin:
            raise Malformed(f"it is of the log {given.origin[:80]!r}, not of {self.head.origin!r}")
        keys = [self.log_key]
        if 1 <= given.size <= self.head.size and (key := history.key_at(given.size)) != self.log_key:
            keys.append(key)
        open_checkpoint(note, keys, origin=self.head.origin)
        root = self._root_at(given.size)
        if root is None:
            what = ("the pack is of an older state than your checkpoint; ask for a new one" if given.size > self.head.size else
                    "the pack has no proof from its size on; ask for one made with --since and that file")  # fmt: skip
            self.verdict.findings.append(Finding("unknown", f"your checkpoint of {given.size:,} entries: {what}", 3))
            return
        if root != given.root:
            raise VerificationError(f"at {given.size:,} entries it has another root: two histories; keep both files, they prove it")
        self.pinned, self.kept_size = True, given.size

    def _root_at(self, size: int) -> bytes | None:
        if size == self.head.size:
            return self.head.root
        if size == 1:
            return leaf_hash(self.pack.keys[0].line)
        kept = self.pack.kept.get(size)
        return None if kept is None else _read_note(kept.note).root

    def _conclude(self, history: History | None) -> None:
        verdict = self.verdict
        if verdict.exit_code in (4, 6) or history is None:
            return
        if not self.pinned:
            verdict.findings.append(Finding(
                "unknown", f"nothing pinned: all agrees under the key {self.log_key.fingerprint}, which the pack brought itself",
                3))  # fmt: skip
            verdict.next.append("get the key of this log from somebody else than the party that gave you the pack, then: "
                                "tally verify PACK --vkey KEY")  # fmt: skip
        outside = [*(["the checkpoint that you gave"] if self.kept_size else []), *self.words]
        for index in sorted(self.pack.entries):
            mine = [who for who in outside if who in self.words or index < self.kept_size]
            verdict.spans.append(Span(
                index, index + 1, ("content proven",), "unsigned when found" if history.is_recovered(index) else "signed",
                "sealed" if self.kept_size and index < self.sealed_to else "epoch open", tuple(mine)))  # fmt: skip
        verdict.sealed_to = self.sealed_to if self.kept_size else 0
        if self.sealed_to and not self.kept_size:
            verdict.not_proven.append(f"the seal of {self.sealed_to:,} entries by closed epochs: it counts only with a checkpoint "
                                      "that was kept outside (a card, an old mail)")  # fmt: skip
        if self.pack.stamps:
            stamps = ", ".join(f"{party} over checkpoints/{size:020d}" for size, party in self.pack.stamps)
            verdict.not_proven.append(f"timestamps: {stamps}; openssl ts -verify checks them")
        verdict.not_proven.append(f"only {len(self.pack.entries):,} of {self.head.size:,} entries were looked at; whether others "
                                  "belong to the matter is not in a pack")  # fmt: skip


def _cosigned(cosignature: Cosignature) -> str:
    try:
        when = datetime.fromtimestamp(cosignature.time_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        when = f"second {cosignature.time_s}"
    return f"cosigned by {cosignature.key.name} {when}"


def _read_note(note: bytes) -> Checkpoint:
    return Checkpoint.parse(split(note)[0])


def _named(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except Malformed as e:
        raise Malformed(f"{name}: {e}") from None


def _number(text: str) -> int:
    number = int(text)
    if number > SIZE_MAX:
        raise Malformed(f"{text} is beyond 2**63-1")
    return number


def _lines(folder: str, found: Mapping[tuple[str, ...], bytes]) -> dict[int, ProvenLine]:
    both: dict[str, dict[str, bytes]] = {}
    for (where, number, kind), data in found.items():
        if where == folder:
            both.setdefault(number, {})[kind] = data
    lines = {}
    for number, parts in sorted(both.items()):
        if len(parts) != 2:
            raise Malformed(f"{folder}/{number}: an entry and its proof belong together")
        name = f"{folder}/{number}.tlog-proof"
        proof = _named(name, partial(InclusionProof.parse, parts["tlog-proof"]))
        if proof.extra is not None:
            raise Malformed(f"{name}: nobody signs an extra line; a pack has none")
        lines[_number(number)] = ProvenLine(parts["json"], proof)
    return lines


def _kept(found: Mapping[tuple[str, ...], bytes]) -> dict[int, KeptCheckpoint]:
    kept = {}
    for number in sorted({number for number, _ in found}):
        note, more, hashes = (found.get((number, suffix)) for suffix in ("", ".signatures", ".consistency"))
        if note is None or hashes is None:
            raise Malformed(f"checkpoints/{number}: a checkpoint and its consistency proof belong together")
        whole = note + (more or b"")
        for part in (note, whole):
            _named(f"checkpoints/{number}", partial(_read_note, part))
        kept[_number(number)] = KeptCheckpoint(whole, _named(f"checkpoints/{number}.consistency", partial(_hashes, hashes)))
    return kept


def _hashes(data: bytes) -> tuple[bytes, ...]:
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Malformed("not base64") from None
    if lines.pop() or len(lines) > CONSISTENCY_MAX:
        raise Malformed(f"at most {CONSISTENCY_MAX} hashes, each on a line of its own")
    hashes = tuple(map(decode_base64, lines))
    if any(len(h) != 32 for h in hashes):
        raise Malformed("a hash has 32 bytes")
    return hashes


def _salt(name: str, data: bytes) -> bytes:
    if not _HEX64.fullmatch(data):
        raise Malformed(f"{name}: a salt is 64 hex digits and a newline")
    return bytes.fromhex(data.decode("ascii").strip())


def _openings(found: Mapping[tuple[str, ...], bytes], entries: Iterable[int]) -> dict[tuple[int, str], bytes]:
    openings = {}
    for number, name in sorted({(number, name) for number, name, _ in found}):
        salt, content = found.get((number, name, "salt")), found.get((number, name, "content"))
        place = f"openings/{number}.{name}"
        if salt is None or content is None:
            raise Malformed(f"{place}: salt and content belong together")
        if _number(number) not in entries:
            raise Malformed(f"{place} opens an entry that is not in the pack")
        openings[_number(number), name] = _salt(place, salt) + content
    return openings


def _salts(found: Mapping[tuple[str, ...], bytes], entries: Iterable[int]) -> dict[int, bytes]:
    salts = {}
    for (number,), data in sorted(found.items()):
        if _number(number) not in entries:
            raise Malformed(f"salts/{number} is of an entry that is not in the pack")
        salts[_number(number)] = _salt(f"salts/{number}", data)
    return salts


__all__ = ["AuditError", "Pack", "Trust", "check_pack", "read_pack"]
