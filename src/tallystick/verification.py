"""Verifying from outside: a log folder, a proof file, an archive. Who is trusted is decided here (STORAGE rule 22)."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import config as cfg
from .anchor.saved_mail import find_note
from .clock import CLOCK
from .core.checkpoint import Checkpoint, open_checkpoint
from .core.cosignature import ALGORITHMS
from .core.errors import (
    AuditError,
    ConfigError,
    LogMissing,
    Malformed,
    QuorumMissed,
    StoreError,
    UnknownSigner,
    VerificationError,
)
from .core.genesis import Genesis
from .core.merkle import leaf_hash
from .core.note import VerifierKey, split
from .core.policy import Policy
from .core.proof import InclusionProof
from .core.require import MAX_AGE_US, Requirements
from .core.tiles import root_at
from .core.times import SECOND_US, format_time
from .core.verify import Confirmation, Finding, Span, Verdict
from .family import check_links, check_older, follow, parts
from .index.file import Index
from .keys import KeyFolder, Mark
from .log.anchored import identities
from .log.check import Checker, Reference
from .log.confirmed import Kept, Trusted
from .log.view import LogView
from .logger import AuditLogger
from .memory import Known, Memory
from .opening import read_genesis
from .outside import HandedOut, Parties
from .splitview import keep_evidence
from .store.segments import SegmentStore
from .vault import Vault

_NOT_AS_IT_WAS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_SETTINGS_BYTES_MAX = 1 << 20
CLOCKS_APART_US = 3600 * SECOND_US


class _Asked(NamedTuple):
    """What a verification is to look at, and by what."""

    pinned: VerifierKey | None
    known: Known | None
    checkpoint: bytes | None
    policy: Policy | None
    require: Requirements | None
    content: bool
    new_only: bool
    progress: Callable[[str, int], None] | None
    alone: bool = False  # without the older parts of the family


def verify_log(
    path: Path, *, memory: Memory, vkey: str | None = None, checkpoint: bytes | None = None, policy: bytes | None = None,
    require: str | None = None, content: bool = False, new_only: bool = False, progress: Callable[[str, int], None] | None = None,
) -> Verdict:  # fmt: skip
    """Verify a log folder. ``vkey`` (else ``$TALLY_VKEY``) replaces what this user remembers, and then nothing is remembered.

    ``checkpoint``: a note kept elsewhere, with which the log must be consistent. ``policy``: a tlog-policy file of the verifier's:
    its log key is like ``vkey``, its quorum decides what is witnessed. ``require``: see ``core.require``. ``content`` leaves index
    and payloads out, ``new_only`` takes what came after the last proven size. ``progress`` is called with what is being done and the
    index reached.

    Never raises for what is wrong with the log; ``Malformed`` for a ``vkey``, ``policy`` or ``require`` that is none; a
    ``checkpoint`` that is none of this log is a finding (4), which hides no worse one.
    """
    path = Path(os.path.abspath(path))
    vkey = vkey or os.environ.get("TALLY_VKEY") or None
    chosen = Policy.parse(policy) if policy is not None else None
    pinned = VerifierKey.parse(vkey) if vkey else None
    known = memory.get(path) if pinned is None and chosen is None else None
    asked = _Asked(pinned, known, checkpoint, chosen, Requirements.parse(require) if require is not None else None, content,
                   new_only, progress)  # fmt: skip
    verdict = _guarded(path, memory, asked)
    if verdict.exit_code == 6 and known is not None:
        with contextlib.suppress(AuditError, OSError):  # a verdict does not depend on a state folder that can be written
            memory.put_altered(path, CLOCK.wall_us())
    return verdict


def _guarded(path: Path, memory: Memory, asked: _Asked) -> Verdict:
    """What stops a verification is a finding."""
    known = asked.known
    try:
        return _verify_log(path, memory, asked)
    except (LogMissing, StoreError, ConfigError, VerificationError, Malformed) as e:
        code = 6 if known is not None or isinstance(e, Malformed | VerificationError | ConfigError) else 2
        verdict = Verdict(origin=known.origin if known else "")
        text = str(e).partition("; tally init")[0] if code == 6 else str(e)  # a new log in the place of a known one is no remedy
        verdict.findings.append(Finding("missing" if code == 6 else "unreadable", text, code))
        return verdict
    except OSError as e:
        verdict = Verdict(origin=known.origin if known else "")
        code = 6 if known is not None and e.errno in _NOT_AS_IT_WAS else 2
        verdict.findings.append(Finding("missing" if code == 6 else "unreadable", f"{e.filename}: {e.strerror}", code))
        return verdict


def _verify_log(path: Path, memory: Memory, asked: _Asked) -> Verdict:
    strange = _strange_files(path)
    if strange:
        code = 2 if asked.known is None and asked.pinned is None and asked.policy is None else 6
        return Verdict(asked.known.origin if asked.known else "", findings=[
            Finding("missing", f"{name} is not a file, or not one of that size", code, file=name) for name in strange])  # fmt: skip
    genesis = read_genesis(path)
    followed = follow(path, genesis, asked.known, memory) if asked.known and asked.known.vkey != genesis.vkey.format() else None
    if followed is not None:
        asked = asked._replace(known=followed[0])
    store = SegmentStore(path)
    settings = cfg.read_settings(path)
    keys = KeyFolder(cfg.keys_folder(path, settings))
    strange = _strange_keys(keys.path)
    if strange:
        return Verdict(genesis.origin, findings=[Finding("missing", f"{name} is not a file", 6, file=name) for name in strange])
    index = Index(path / "index.db")
    known, content = asked.known, asked.content
    start = known.size if asked.new_only and known is not None else 0
    view = LogView(store, genesis, [index] if start else [])  # the index may help with what was proven before, and only there
    checker = Checker(store, view, Vault(path / "payloads", keys.path, genesis.origin), None if content else index, asked.progress,
                      handed=HandedOut(path), parties=Parties(path), trusted=_trusted(genesis, asked),
                      beat_us=settings.heartbeat.every_us)  # fmt: skip
    verdict = checker.verdict
    if settings.origin != genesis.origin:
        verdict.findings.append(Finding("replaced", f"log.toml says origin {settings.origin}, log.vkey {genesis.origin}",
                                        file="log.toml"))  # fmt: skip
    verdict.findings += followed[1] if followed is not None else []
    pinned = _pinned(genesis, asked, verdict)
    _trust(path, genesis, memory, pinned, known, verdict)
    head = checker.head(everything=not start)
    if head is None:
        return verdict
    references = [] if known is None or known.vkey != genesis.vkey.format() else [
        _reference(known, "your memory of this log")]  # fmt: skip
    references += _elsewhere(path, genesis, memory, pinned, head, verdict)
    kept = None if asked.checkpoint is None else _kept(path, asked.checkpoint, genesis, view, head, verdict)
    start = start if start <= head.size else 0
    checker.lines(head, start)
    checker.upper_tree(head)
    checker.references(head, references)
    agrees = kept is None or checker.given(head, kept)
    checker.handed_out(head)
    pins = known.anchors if known is not None and verdict.key[1] == "you" else None
    checker.anchored(head, settings.anchor, pins)
    verdict.seen += [f"anchor {name} is not configured any more (it was: {what})" for name, what in (pins or {}).items()
                     if name not in {one.name for one in settings.anchor}]  # fmt: skip
    if known is not None and known.full_us:  # what an anchor is is pinned when it is first seen: say that it was
        verdict.seen += [f"anchor {name} is new since you verified last; pinned as it is now: {what}"
                         for name, what in identities(settings.anchor, path).items() if pins is not None and name not in pins]
    verdict.confirmations = [_not_in_the_future(one, CLOCK.wall_us()) for one in verdict.confirmations]
    _keep_evidence(path, memory, store, checker, [] if agrees else [asked.checkpoint or b""])
    checker.mark(head, _mark(keys, verdict), older_copy=any(f.issue == "older_copy" for f in verdict.findings))
    if content:
        verdict.not_proven.append("index and payloads: left out (--content)")
    checker.entries(head, start=start, content=content)
    checker.config(cfg.recorded(path))
    verdict = checker.finish(head, start)
    if not asked.alone:
        _older_parts(path, asked, verdict)
    now = CLOCK.wall_us()
    _stale(verdict, now)
    _lacks(path, checker, verdict)
    if asked.require is not None:
        due, newest = checker.recorded_until(now - asked.require.age_us, head.size)
        verdict.findings += asked.require.lacking(verdict, due, now, newest, settings.heartbeat.every_us)
    _remember(path, genesis, memory, pinned, known, verdict, identities(settings.anchor, path),
              full=start == 0 and not content)  # fmt: skip
    return verdict


def _older_parts(path: Path, asked: _Asked, verdict: Verdict) -> None:
    """The parts that ``tally resume`` left, under the keys that the verified entries 0 name; ``new_only`` looks at the links."""
    try:
        family = parts(path)
    except (AuditError, OSError):
        return  # entry 0 is not what it was: that is a finding already
    progress = asked.progress
    if asked.new_only:
        verdict.findings += check_links(family)
        return
    older = check_older(family, lambda folder, vkey: _guarded(folder, Memory(None), _Asked(
        VerifierKey.parse(vkey), None, None, None, None, asked.content, False,
        progress and (lambda what, done: progress(f"{folder.name}: {what}", done)), alone=True)))  # fmt: skip
    verdict.findings += older.findings
    verdict.older_parts += older.words
    verdict.lost_on_record = sum(part.named.lost[1] - part.named.lost[0] for part in family if part.named is not None)


def _not_in_the_future(one: Confirmation, now_us: int) -> Confirmation:
    """Whoever states a time that is not yet says nothing about when: it would never be too old."""
    if one.time_us <= now_us + CLOCKS_APART_US:
        return one
    remark = f"it states a time in the future, second {one.time_us // SECOND_US} since 1970: when is not known"
    return one._replace(time_us=0, remark=f"{one.remark}; {remark}" if one.remark else remark)


def _pinned(genesis: Genesis, asked: _Asked, verdict: Verdict) -> VerifierKey | None:
    """The key that was given, by itself or in a policy. A policy that does not name this log is a finding."""
    if asked.policy is None:
        return asked.pinned
    named = {log.key.name: log.key for log in asked.policy.logs}.get(genesis.origin)
    if named is None:
        verdict.findings.append(Finding("malformed", f"the policy that you gave does not name the log {genesis.origin}", 4))
    elif asked.pinned is not None and named != asked.pinned:
        verdict.findings.append(Finding("malformed", f"the policy that you gave names {genesis.origin} with another key than the one "
                                        "that you gave", 4))  # fmt: skip
    return asked.pinned or named or genesis.vkey


def _trusted(genesis: Genesis, asked: _Asked) -> Trusted:
    """Whose confirmations count for this user, and whether the log's key came from outside its folder."""
    keys = {asked.pinned, *(log.key for log in asked.policy.logs if asked.policy is not None)} if asked.policy else {asked.pinned}
    known = asked.known
    remembered = known is not None and known.vkey == genesis.vkey.format()
    witnesses = known.witnesses if known is not None else {}
    pins = {n: VerifierKey.parse(v, algorithms=ALGORITHMS) for n, v in witnesses.items()}
    return Trusted(genesis.vkey in keys or remembered, remembered, pins, asked.policy)


def _stale(verdict: Verdict, now_us: int) -> None:
    """Where not everything is confirmed and the newest confirmation is older than a day and an hour, say since when."""
    newest = max((c.time_us for c in verdict.confirmations if c.counts), default=0)
    if newest and verdict.confirmed_to < verdict.tree_size and now_us - newest > MAX_AGE_US:
        verdict.stale_since_us = newest


def _keep_evidence(path: Path, memory: Memory, store: SegmentStore, checker: Checker, notes: list[bytes]) -> None:
    """Checkpoints signed by this log that are not of this history, and its own head, outlive whatever becomes of the folder."""
    notes += checker.notes_against
    for file in checker.contradicting[:20]:
        with contextlib.suppress(AuditError, OSError):
            notes.append(HandedOut(path).signed(int(file[-20:])) or b"")
    if notes:
        with contextlib.suppress(AuditError):
            notes.append(store.head() or b"")
        kept = keep_evidence(memory, checker.verdict.origin, [note for note in notes if note])
        checker.verdict.evidence = [str(file) for file in kept]


def _lacks(path: Path, checker: Checker, verdict: Verdict) -> None:
    """What would make the verdict stronger, and the command that adds it."""
    said, log = {c.kind for c in verdict.confirmations if c.counts}, shlex.quote(str(path))
    for name, vkey in checker.unpinned_witnesses():
        verdict.lacks.append((f"this log asks witness {name}, whose key you have not pinned: compare it with what its owner gave you",
                              f"tally witness add {shlex.quote(name)} {vkey} URL --log {log}"))  # fmt: skip
    if "witness" not in said and not checker.unpinned_witnesses():
        verdict.lacks.append(("no witness outside this machine confirms this log", f"tally witness add NAME VKEY URL --log {log}"))
    if not said:
        verdict.lacks.append(("nothing of it was kept outside this machine: by mail, on another disk, with a timestamp authority",
                              "tally anchor add --help"))  # fmt: skip
    if any("entry 0 not pinned" in span.epoch for span in verdict.spans):
        verdict.lacks.append(("closed epochs seal nothing against the holder of the log key, who can begin this log anew, as long as "
                              "nothing else of it is known to you", f"tally verify {log} --checkpoint FILE"))  # fmt: skip
    elif not verdict.sealed_to and verdict.key[1] != "nobody":
        verdict.lacks.append(("nothing is sealed yet: whoever breaks in can still change all of it", f"tally key rotate {log}"))


def _strange_files(path: Path) -> list[str]:
    """What should be a file and is something else: opening a FIFO waits for ever, a device has no end."""
    names = ["log.toml", "log.vkey", "checkpoint", "policy", "predecessor", "keylines.jsonl", "index.db-journal"]
    found = []
    for folder in ("segments", "tree", "payloads", "checkpoints"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            try:
                names += [f"{folder}/{name}" for name in sorted(os.listdir(path / folder))]
            except NotADirectoryError:
                found.append(folder)
    for name in names:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            try:
                status = os.stat(path / name)
            except OSError as e:
                if e.errno != errno.ELOOP:
                    raise
                found.append(name)
                continue
            too_large = name in ("log.toml", "policy") and status.st_size > _SETTINGS_BYTES_MAX
            if not stat.S_ISREG(status.st_mode) or too_large:
                found.append(name)
    return found


def _strange_keys(keys: Path) -> list[str]:
    """The same in the folder of the keys: of what verification opens there."""
    found = []
    with contextlib.suppress(OSError):  # not there, not readable by this user: nothing of it is opened either
        for name in sorted(os.listdir(keys)):
            if name == "mark" or name.endswith((".key", ".slots")):
                try:
                    if not stat.S_ISREG(os.stat(keys / name).st_mode):
                        found.append(f"{keys.name}/{name}")
                except FileNotFoundError:
                    continue  # it was there a moment ago, or leads nowhere
                except PermissionError:
                    continue
                except OSError:
                    found.append(f"{keys.name}/{name}")
    return found


def _reference(known: Known, source: str) -> Reference:
    try:
        return Reference(known.size, bytes.fromhex(known.root), source)
    except ValueError:
        raise ConfigError(f"{source} has no root that can be read: {known.root[:80]!r}") from None


def _trust(
    path: Path, genesis: Genesis, memory: Memory, pinned: VerifierKey | None, known: Known | None, verdict: Verdict
) -> None:
    """Trust on first use: the key must be the one given, or the one remembered for this path."""
    vkey = genesis.vkey.format()
    who = "given" if pinned is not None else "you" if known is not None and known.vkey == vkey else "nobody"
    verdict.key = (vkey, who, known.pinned_us if known is not None and who == "you" else 0)
    if pinned is not None:
        verdict.not_proven.append("this run remembers nothing: the key was given (--vkey)")
        if pinned != genesis.vkey:
            verdict.findings.append(Finding("replaced", f"the log has the key {vkey}, not the one that you gave",
                                            file="log.vkey"))  # fmt: skip
    elif known is None:
        verdict.findings.append(Finding("unknown", f"this log was never seen here; its key says of itself {vkey}", 3))
        verdict.next.append(f"compare that key with what its owner gave you, then: tally trust {path} --vkey {vkey}")
        if memory.folder is None:
            verdict.not_proven.append("this user has no state folder; give the key with --vkey")
    elif (known.vkey, known.origin) != (vkey, genesis.origin):
        verdict.findings.append(
            Finding("replaced", f"known here is {known.origin} with key {VerifierKey.parse(known.vkey).key_id:08x}; this is "
                    f"{genesis.origin} with key {genesis.vkey.key_id:08x}", file="log.vkey")  # fmt: skip
        )
    else:
        verdict.not_proven.append("the key is pinned only on this machine, by this user")


def _elsewhere(
    path: Path, genesis: Genesis, memory: Memory, pinned: VerifierKey | None, head: Checkpoint, verdict: Verdict
) -> list[Reference]:
    """The same origin known at other paths: another key is 6, a consistent longer history makes this an older copy (5)."""
    if pinned is not None:
        return []
    found = []
    for other, known in sorted(memory.elsewhere(genesis.origin, path).items()):
        if known.vkey != genesis.vkey.format():
            verdict.findings.append(Finding("replaced", f"{genesis.origin} is known at {other} with another key"))
        elif known.size > head.size:
            verdict.findings.append(
                Finding("older_copy", f"an older copy: at {other} this log had {known.size:,} entries, here {head.size:,}", 5)
            )
        else:
            found.append(_reference(known, f"your memory of {other}"))
    return found


def _kept(path: Path, note: bytes, genesis: Genesis, view: LogView, head: Checkpoint, verdict: Verdict) -> Kept | None:
    """A checkpoint from elsewhere, under the log's key or one of its epochs', with whoever else signed it."""
    keys = [genesis.vkey]
    try:
        keys += [e.key for e in view.history(head.size).epochs]
    except AuditError:
        pass
    try:
        found = find_note(note)
        return Kept(open_checkpoint(found, keys, origin=genesis.origin), split(found)[1], "the checkpoint that you gave", ())
    except VerificationError as e:
        verdict.findings.append(Finding("malformed", f"the checkpoint that you gave is not one of this log: {e}", 4))
        with contextlib.suppress(AuditError, OSError):
            origin = Checkpoint.parse(split(find_note(note))[0]).origin
            verdict.next += [f"it is one of an older part: tally verify {shlex.quote(str(part.folder))} --checkpoint FILE"
                             for part in parts(path)[:-1] if part.genesis is not None and part.genesis.origin == origin]  # fmt: skip
    except Malformed as e:
        verdict.findings.append(Finding("malformed", f"the checkpoint that you gave: {e}", 4))
    return None


def _mark(keys: KeyFolder, verdict: Verdict) -> Mark | None:
    try:
        return keys.read_mark()
    except PermissionError:
        verdict.not_proven.append("what was last signed here (mark): not readable by you")
    except OSError as e:
        verdict.not_proven.append(f"what was last signed here (mark): {e.strerror}")
    return None


def _remember(
    path: Path, genesis: Genesis, memory: Memory, pinned: VerifierKey | None, known: Known | None, verdict: Verdict,
    anchors: dict[str, str], *, full: bool,
) -> None:  # fmt: skip
    """What was proven becomes what is known; never anything that was not."""
    if pinned is not None or known is None or verdict.exit_code not in (0, 3) or any(
        f.issue == "unknown" for f in verdict.findings):  # fmt: skip
        return
    now = CLOCK.wall_us()
    memory.put_proven(path, Known(
        genesis.origin, genesis.vkey.format(), known.genesis, verdict.tree_size, verdict.root, now,
        verdict.tree_size if full else known.full_size, now if full else known.full_us, anchors=anchors,
        altered_us=0 if full else known.altered_us,
    ))  # fmt: skip


def trust(path: Path, memory: Memory, vkey: str | None) -> Verdict:
    """``tally trust``: pin the key of a log, after everything else about it was verified. ``VerificationError`` if the key
    that was given is not the log's, or if it is known here under another; ``--forget`` first then."""
    path = Path(os.path.abspath(path))
    genesis = read_genesis(path)
    if vkey is not None and VerifierKey.parse(vkey) != genesis.vkey:
        raise VerificationError(f"{path} has the key {genesis.vkey.format()}, not the one that you gave")
    known = memory.get(path)
    if known is not None and known.vkey != genesis.vkey.format():
        raise VerificationError(f"{path} is known here with another key; if that is right: tally trust --forget {path}")
    first = genesis.open()
    if known is None:
        now = CLOCK.wall_us()
        memory.put(path, Known(genesis.origin, genesis.vkey.format(), first.root.hex(), 1, first.root.hex(), now, pinned_us=now))
    verdict = verify_log(path, memory=memory)
    if verdict.exit_code not in (0, 3) and known is None:
        memory.forget(path)
    return verdict


def integrity_check(log: AuditLogger, *, at: int | None, verify: bool) -> dict[str, Any]:
    """For reports: the checkpoint, this user's last full verification, and an incremental one up to the checkpoint.

    ``ValueError`` if ``at`` is not a size that this log has had.
    """
    handle = log._handle
    head = handle.view.head()
    size = head.size if at is None else at
    if not 1 <= size <= head.size:
        raise ValueError(f"at={size}: this log has {head.size:,} entries")
    root = head.checkpoint.root if size == head.size else root_at(handle.store.hashes, size)
    return {
        "integrity_check": _checked(log, verify=verify),
        "archived_not_counted": _not_here(log, size),
        **({"older_parts_not_counted": log.family.not_here()} if log.family.not_here() else {}),
        "checkpoint": {"origin": log.origin, "size": size, "root": root.hex()},
    }


def _not_here(log: AuditLogger, size: int) -> dict[str, Any] | None:
    """Entries that left for archives are not in a report; it has to say so."""
    segments = log._handle.store.segments()
    first = min(segments[0].start, size) if segments else size
    return {"first": 0, "end": first, "why": "archived; their events are not counted here"} if first else None


def _checked(log: AuditLogger, *, verify: bool) -> dict[str, Any]:
    known = log.memory.get(log.path)
    if not verify and (known is None or not known.full_us):
        return {
            "verified": False, "verdict": "never verified", "issues": [], "last_full_verification": None,
            "sentence": "This log was never verified by this user; tally verify does it, or verify=True.",
        }  # fmt: skip
    altered = known is not None and known.altered_us > 0  # then what is older than the last proven size is looked at again
    verdict = verify_log(log.path, memory=log.memory, new_only=not verify and not altered)
    known = log.memory.get(log.path)
    return {
        "verified": verdict.exit_code == 0, "verdict": verdict.verdict, "sentence": verdict.sentence,
        "checked_from": verdict.proven_from, "checked_until": verdict.tree_size, "issues": verdict.issues[:100],
        "last_full_verification": {"until": known.full_size, "when": format_time(known.full_us)} if known else None,
    }  # fmt: skip


def verify_archive(path: Path, *, memory: Memory, vkey: str | None = None) -> Verdict:
    """An archive file: what it holds agrees with its manifest, and with the log where that is known here."""
    from .retention.archive import read_archive

    manifest, lines = read_archive(path)
    verdict = Verdict(origin=manifest.origin, tree_size=manifest.end, root="", of="archive")
    homes = [p for p, k in memory.all().items() if k.origin == manifest.origin and (Path(p) / "tree" / "0").exists()]
    if not homes:
        verdict.findings.append(Finding("unknown", f"the file agrees with its manifest; the log {manifest.origin} is not "
                                        "known here, so nothing says that these are the lines that were signed", 3))  # fmt: skip
        return verdict
    stored = SegmentStore(Path(homes[0])).hashes(0, manifest.first, len(lines))
    for number, line in enumerate(lines, manifest.first):
        at = (number - manifest.first) * 32
        if stored[at : at + 32] != leaf_hash(line):
            verdict.findings.append(Finding("checksum_mismatch", f"entry #{number:,} is not the one in the log", 6, number,
                                            file=path.name))  # fmt: skip
    log = verify_log(Path(homes[0]), memory=memory, vkey=vkey, content=True)
    if log.exit_code not in (0, 3):
        verdict.findings.append(Finding("replaced", f"the log at {homes[0]}: {log.sentence}", log.exit_code))
    verdict.spans = [Span(manifest.first, manifest.end, ("content proven", "archived"))]
    return verdict


def verify_proof(proof: bytes, line: bytes, *, vkey: str | None, memory: Memory, policy: bytes | None = None) -> Verdict:
    """A ``.tlog-proof`` and the entry it is about, without any store. The key is given, or known here by its origin; with ``policy``
    (a tlog-policy file) its log keys and its quorum decide: 3 where fewer witnesses cosigned than it asks for. ``Malformed`` for a
    policy, proof or key that is none."""
    parsed = InclusionProof.parse(proof)
    believed = None if policy is None else Policy.parse(policy)
    vkey = vkey or os.environ.get("TALLY_VKEY") or None
    given = [VerifierKey.parse(vkey)] if vkey else []
    keys = given or [VerifierKey.parse(k.vkey) for k in memory.all().values()]
    verdict = Verdict(of="proof")
    if believed is None and not keys:
        verdict.findings.append(Finding("unknown", "no key to check with: give it with --vkey", 3))
        return verdict
    bare = line.removesuffix(b"\n")
    try:
        if believed is not None:
            if given and all(log.key != given[0] for log in believed.logs):
                raise Malformed("the policy does not name the key that you gave")
            witnessed = parsed.verify_witnessed(bare, believed)
            checkpoint = witnessed.checkpoint
            verdict.confirmations += [Confirmation(f"witness {c.key.name}", "witness", checkpoint.size, c.time_s * SECOND_US)
                                      for c in witnessed.cosignatures]  # fmt: skip
            verdict.witnessed_to = checkpoint.size if believed.quorum != "none" else 0
        else:
            checkpoint = parsed.verify(bare, keys)
    except VerificationError as e:
        cannot_judge = isinstance(e, QuorumMissed) or (isinstance(e, UnknownSigner) and not vkey and believed is None)
        issue = "unwitnessed" if isinstance(e, QuorumMissed) else "bad_signature"
        verdict.findings.append(Finding(issue, str(e), 3 if cannot_judge else 6, parsed.index))
        return verdict
    verdict.origin, verdict.tree_size, verdict.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    verdict.not_proven.append(f"only entry #{parsed.index:,} was looked at")
    return verdict
