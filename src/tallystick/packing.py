"""Making packs: chosen entries, and all that a stranger needs to check them (decision 23). Reading packs is ``core.evidence``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .core import entry as ent
from .core.checkpoint import Checkpoint, open_checkpoint
from .core.entry import AuditEntry
from .core.epoch import CREATED, EPOCH_CLOSE, EPOCH_RECOVERED, RECOVERED, is_own
from .core.errors import AuditError, Malformed, StoreError
from .core.evidence import ENTRIES_MAX, FOR_PEOPLE, Trust, check_pack, read_pack
from .core.note import encode_base64, split
from .core.payload import SALT_BYTES
from .core.tiles import prove_consistency
from .evidence import build_pack
from .logger import AuditLogger
from .outside import HandedOut
from .proving import cosigned_checkpoint, current_checkpoint, log_policy, prove_against, with_log_key
from .vault import Place

_KEY_LINES = frozenset({CREATED, EPOCH_CLOSE, EPOCH_RECOVERED, RECOVERED})
_OTHERS_MAX = 100  # checkpoints that were handed out and closed nothing: the newest, for readers who kept one of them
SALT = "salt"


def pack(
    log: AuditLogger, wanted: Iterable[str | int], *, opened: Sequence[tuple[str | int, str]] = (), current: bool = False,
    since: bytes | None = None,
) -> bytes:  # fmt: skip
    """The pack of the entries with these ids or indexes.

    Against the newest checkpoint that witnesses cosigned and that covers them all; where there is none, or with ``current``, against
    the current one. ``opened``: (entry, name of a payload) to be opened to whoever gets the pack; the name ``salt`` opens the
    commitments of a call. ``since``: a checkpoint that the reader has, so that he can see that the log extends it.

    ``KeyError`` for an entry or payload that is not here, ``StoreError`` where something cannot be opened or does not hold (the
    pack is checked before it is returned), ``Malformed`` for a ``since`` that is no checkpoint of this log, ``PermissionError``.
    """
    lines = {}
    for one in wanted:
        stored, older = log.stored(one), log.older_part(one)
        if older is not None:
            raise StoreError(f"{one} is in an older part of this log, which has a key and a tree of its own: tally pack {older} …")
        lines[stored.hit.index] = stored.line
    if not lines:
        raise KeyError(f"no entry was chosen in {log.path}")
    if len(lines) > ENTRIES_MAX:
        raise StoreError(f"{len(lines):,} entries; a pack has at most {ENTRIES_MAX:,}")
    note = None if current else cosigned_checkpoint(log, max(lines))
    note = current_checkpoint(log) if note is None else with_log_key(log, note)
    size = Checkpoint.parse(split(note)[0]).size
    genesis = log._handle.genesis
    if not any((s.name, s.key_id) == (genesis.vkey.name, genesis.vkey.key_id) for s in split(note)[1]):
        raise StoreError("a pack needs the log key's line on its checkpoint, and that key is not readable by you")
    members = {"log.vkey": genesis.format(), "checkpoint": note}
    policy = log_policy(log)
    if policy is not None:
        members["policy"] = policy
    for folder, chosen in (("entries", lines), ("keys", _key_lines(log, size))):
        for index, line in chosen.items():
            members[f"{folder}/{index:020d}.json"] = line
            members[f"{folder}/{index:020d}.tlog-proof"] = prove_against(log, note, index, line).format()
    members |= _checkpoints(log, size, since)
    for entry, name in opened:
        members |= _opening(log, log.entry(entry), name, lines)
    return _checked(log, members)


def _checked(log: AuditLogger, members: dict[str, bytes]) -> bytes:
    """What does not hold does not leave."""
    verdict = check_pack(read_pack({**dict.fromkeys(FOR_PEOPLE, b""), **members}), Trust(vkey=log._handle.genesis.vkey))
    if verdict.exit_code:
        raise StoreError(f"the pack would not hold; tally verify {log.path} says more: {verdict.sentence}")
    return build_pack(members)


def _key_lines(log: AuditLogger, size: int) -> dict[int, bytes]:
    view = log._handle.view
    view.history(size)
    return {index: ent.encode(fields) for index, fields in sorted(view.key_lines().items())
            if index < size and is_own(fields) and fields.event_type in _KEY_LINES}  # fmt: skip


def _checkpoints(log: AuditLogger, size: int, since: bytes | None) -> dict[str, bytes]:
    """Those that closed epochs, those that a timestamp is over, the newest of the others, and the reader's own."""
    handed, history = HandedOut(log.path), log._handle.view.history(size)
    closes = [c for c in history.closes() if c <= size]
    sizes = [s for s in handed.sizes() if 1 <= s <= size]
    stamps = [(s, party) for s, party in handed.timestamps() if s in sizes][-_OTHERS_MAX:]
    members: dict[str, bytes] = {}
    for one in sorted({*closes, *(s for s, _ in stamps), *sizes[-_OTHERS_MAX:]}):
        note = handed.note(one)
        try:
            whole = handed.signed(one) or b""
            open_checkpoint(whole, [log._handle.genesis.vkey, history.key_at(one)], origin=log.origin)
        except AuditError as e:
            if one in closes:
                raise StoreError(f"checkpoints/{one:020d}, which closed an epoch, is not as it was: {e}") from e
            continue
        if note is not None:
            members |= _checkpoint(log, one, size, note, whole[len(note) :])
    for one, party in stamps:
        response = handed.timestamp(one, party)
        if response is not None and f"checkpoints/{one:020d}" in members:
            members[f"checkpoints/{one:020d}.{party}.tsr"] = response
    if since is not None:
        given = Checkpoint.parse(split(since)[0])
        if not 1 <= given.size <= size:
            raise Malformed(f"the checkpoint since which … is of {given.size:,} entries, the pack's of {size:,}")
        open_checkpoint(since, [log._handle.genesis.vkey, history.key_at(given.size)], origin=log.origin)
        if f"checkpoints/{given.size:020d}" not in members:
            members |= _checkpoint(log, given.size, size, since, b"")
    return members


def _checkpoint(log: AuditLogger, size: int, size2: int, note: bytes, more: bytes) -> dict[str, bytes]:
    name = f"checkpoints/{size:020d}"
    hashes = prove_consistency(log._handle.store.hashes, size, size2)
    members = {name: note, f"{name}.consistency": "".join(f"{encode_base64(h)}\n" for h in hashes).encode()}
    return members | ({f"{name}.signatures": more} if more else {})


def _opening(log: AuditLogger, entry: AuditEntry, name: str, lines: dict[int, bytes]) -> dict[str, bytes]:
    if entry.index not in lines:
        raise KeyError(f"{entry.event_id} is to be opened and not in the pack; name it among the entries")
    if name == SALT and isinstance(entry.details.get("commitments"), dict):
        return {f"salts/{entry.index:020d}": log.salt(entry.event_id).hex().encode() + b"\n"}
    ref = entry.payloads.get(name)
    if ref is None:
        known = ", ".join([*entry.payloads, *([SALT] if "commitments" in entry.details else [])])
        raise KeyError(f"{entry.event_id} has no payload {name!r}" + (f"; it has {known}" if known else ", and no other"))
    place = Place(entry.event_id, name, entry.subject)
    opened = log._handle.vault.open_salted(place, ref.commitment, ref.size, day=entry.recorded_at[:10])
    stem = f"openings/{entry.index:020d}.{name}"
    return {f"{stem}.salt": opened[:SALT_BYTES].hex().encode() + b"\n", f"{stem}.content": opened[SALT_BYTES:]}
