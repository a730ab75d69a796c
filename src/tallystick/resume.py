"""``tally resume``: how to go on after a restored backup or lost keys, without pretending (STORAGE rules 16 and 22, decision 21).

A log never goes on from an older state or with an unknown key under the same origin. What is here stays as it is and becomes an older
part, ``LOG.until-<size>``; a **successor** with its own origin and keys takes the path. Its entry 0 names the old part, the newest
checkpoint of it known elsewhere, the range lost, the reason and who. ``family`` reads both as one.

Steps, and what the next call finds if we die after each (``STEPS`` names them; the tests die at every one):

1. built       the successor, whole, under ``.LOG.resuming.tmp``     → nothing is decided; it is made anew
2. decided     that folder is called ``.LOG.resuming``               → from here on every call only completes
3. remembered  this user's memory names the successor                → the same
4. keys left   the old keys are called ``KEYS.until-<size>``         → the same; nobody can write
5. log left    the old folder is called ``LOG.until-<size>``         → the same; there is no log at the path, and ``create`` refuses
6. closed      the old folder is read only                           → the same
7. keys placed the new keys have their place                         → the same
8. placed      the successor has the path                            → done; memory follows at the next look

All but the memory goes through one ``Disk``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from . import config as cfg
from .backup import Progress, back_up
from .clock import CLOCK, Clock, host_name, system_user
from .core.checkpoint import Checkpoint, open_checkpoint
from .core.errors import AuditError, ConfigError, DiskFull, Malformed, ReadOnly, StateUnknown, StoreError, VerificationError
from .core.genesis import Genesis
from .core.note import VerifierKey
from .core.tiles import root_at
from .disk import DISK, Disk, is_full
from .family import follow, is_left, predecessor, sign_successor, successor_text
from .handles import Handle
from .keys import KeyFolder
from .log.create import Plan, build, creation_lock, place_keys, staged_keys
from .log.view import LogView
from .memory import Known, Memory
from .opening import VERSION, read_genesis
from .outside import HandedOut
from .store.segments import SegmentStore

STEPS = ("built", "decided", "remembered", "keys left", "log left", "closed", "keys placed", "placed")
LOCK_WAIT_S = 10.0
REASON_CHARS_MAX = 1000
_ORIGIN_CHARS_MAX = 120
_SUFFIX = re.compile(r"/r[0-9]{1,4}-[0-9a-f]{8}\Z", re.ASCII)
_ORIGIN_LINE = re.compile(rb'^origin[ \t]*=[ \t]*"[^"\r\n]*"', re.MULTILINE)
_KEY_FILE = re.compile(r"log\.key|payload-[0-9]{4}\.slots", re.ASCII)


class Elsewhere(NamedTuple):
    """A size and root of the old log that is known outside its folder, and from where."""

    size: int
    root: bytes
    source: str


class Resumed(NamedTuple):
    """What was done: the successor, the part that was left, what is lost (half-open), whether the old key signed the link."""

    path: str
    origin: str
    vkey: str
    part: int
    left: str
    left_keys: str
    left_size: int
    lost: tuple[int, int]
    known_elsewhere: dict[str, Any] | None
    signed: bool
    reason: str
    found: str = ""  # what verification said of the old part where it was not whole; it is on record in entry 0 too


class _Order(NamedTuple):
    """What one call wants and with what it works."""

    log: Path
    reason: str
    memory: Memory
    checkpoint: bytes | None
    new_keys: bool
    progress: Progress | None
    disk: Disk
    clock: Clock
    step: Callable[[str], None]


def resume(
    log: Path, *, reason: str, memory: Memory, source: Path | None = None, checkpoint: bytes | None = None, new_keys: bool = False,
    progress: Progress | None = None, disk: Disk = DISK, clock: Clock = CLOCK, step: Callable[[str], None] = lambda _name: None,
) -> Resumed:  # fmt: skip
    """Leave the log at ``log`` as it is and open a successor in its place, or finish a resume that was interrupted.

    ``source``: a copy elsewhere that becomes the old part, where nothing is left at ``log``. ``checkpoint``: a note kept elsewhere.
    ``new_keys``: also where the log is fine, to leave its keys. ``step`` is called after each of ``STEPS``. Stop what writes first: a
    process that has the old log open gets ``StateUnknown``. Raises ``StoreError`` where there is nothing to resume, ``ReadOnly``,
    ``DiskFull``, ``LogBusy``, ``ConfigError``, ``Malformed`` and ``VerificationError`` for a bad ``checkpoint`` or a log that is not
    the one known here.
    """
    log = Path(os.path.realpath(log))
    order = _Order(log, reason, memory, checkpoint, new_keys, progress, disk, clock, step)
    if not reason.strip() or len(reason) > REASON_CHARS_MAX or not reason.isprintable():
        raise Malformed(f"a reason is one line of 1 to {REASON_CHARS_MAX} characters")
    try:
        with creation_lock(log.parent):
            if _ready(log).exists():
                return _complete(order)
            return _begin_from(order, source) if source is not None else _begin(order)
    except OSError as e:
        where = f"{e.filename or log}: {e.strerror}; run the same command again once that is solved, it goes on from there"
        if is_full(e):
            raise DiskFull(where) from e
        raise (ReadOnly if isinstance(e, PermissionError) or e.errno == errno.EROFS else StoreError)(where) from e


def why_not(log: Path) -> str:
    """Why the log at ``log`` cannot be written to in a way that only a successor helps; empty where it can. What is no such reason
    (no right to write, a busy lock, a full disk) is raised."""
    handle = Handle(log)
    try:
        keys = handle.keys.path
        if not keys.is_dir() or not any(keys.glob("epoch-*.key")):
            return f"there are no keys to sign with in {keys}"
        handle.writer.exclusively(lambda _append: None)
    except StateUnknown as e:
        return str(e).split(". Reading goes on", maxsplit=1)[0]
    except StoreError as e:
        if "not a private key" in str(e) or isinstance(e.__cause__, FileNotFoundError):
            return str(e)
        raise
    except (Malformed, VerificationError) as e:
        return str(e)
    finally:
        handle.writer.drop()
        handle.view.close()
    return ""


# -- may it, and with what ---------------------------------------------------------------------------------------------------------


def _begin(order: _Order) -> Resumed:
    log = order.log
    genesis = read_genesis(log)
    home = is_left(log)
    if home:
        raise StoreError(f"{log} is an older part already; the log goes on at {home}")
    known = order.memory.get(log)
    if known is not None and known.successor and known.successor == successor_text(genesis):
        follow(log, genesis, known, order.memory)  # it was killed after its last rename
        return _told(log)
    if known is not None and known.vkey != genesis.vkey.format():
        raise VerificationError(f"{log} is not the log that is known here (tally verify {log}): nothing was changed")
    keys = cfg.keys_folder(log, cfg.read_settings(log))
    if not order.new_keys and (keys / "log.key").exists() and (keys / "mark").exists() and not any(keys.glob("epoch-*.key")):
        raise StoreError(f"{keys} lacks only the key of the running epoch: tally key recover {log} --reason … goes on with this log. "
                         "Where that refuses: --new-keys")  # fmt: skip
    why = why_not(log)
    if not why and not order.new_keys:
        raise StoreError(f"{log} can be written to: there is nothing to resume. To go on under new keys all the same, because "
                         "somebody else may have these: --new-keys")  # fmt: skip
    with SegmentStore(log).exclusive(LOCK_WAIT_S):
        return _decide(order, log, why or "new keys were asked for", moved=True)


def _begin_from(order: _Order, source: Path) -> Resumed:
    """The old part is a copy of the copy at ``source``, which stays."""
    log, source = order.log, Path(os.path.realpath(source))
    if log.exists():
        raise StoreError(f"{log} is there as well as {source}. Which of them is the log? Move {log} away, or leave --from out")
    genesis = read_genesis(source)
    known = order.memory.get(log)
    if known is not None and known.vkey != genesis.vkey.format():
        raise VerificationError(f"{source} is not a copy of the log that is known at {log} ({known.origin})")
    head = LogView(SegmentStore(source), genesis, []).head().checkpoint
    left = _left(log, head.size, genesis)
    back_up(source, left, memory=Memory(None), progress=order.progress, disk=order.disk)
    _leave_keys(log, source, left, order.disk)
    _bring_keys(source, left, order.disk)
    return _decide(order, left, "there is no log at its place any more", moved=False)


def _leave_keys(log: Path, source: Path, left: Path, disk: Disk) -> None:
    """Where the keys lay apart and outlived the log they are those of the old part: they sign the link, and their mark knows how long
    it was. If we die here: the same command finds them under their new name and goes on."""
    settings = cfg.read_settings(source)
    keys, target = cfg.keys_folder(log, settings), cfg.keys_folder(left, settings)
    if keys.is_dir() and not os.path.ismount(keys) and not target.exists():
        disk.rename(keys, target)
        disk.sync_folder(keys.parent)


def _bring_keys(source: Path, left: Path, disk: Disk) -> None:
    """What opens the contents of the old part, and the key that may say who goes on; not what signed its heads."""
    settings = cfg.read_settings(source)
    keys, target = cfg.keys_folder(source, settings), cfg.keys_folder(left, settings)
    if not keys.is_dir():
        return
    if not target.is_dir():
        disk.mkdir(target, 0o700, like=left.parent)
    for path in sorted(keys.iterdir()):
        known = (target / path.name).exists()  # what the machine itself still has is newer than the backup's
        if _KEY_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink() and not known:
            disk.write_file(target / path.name, path.read_bytes(), 0o600, like=target)


def _decide(order: _Order, old: Path, why: str, *, moved: bool) -> Resumed:
    """Build the successor under a hidden name, then call it ready."""
    log, disk = order.log, order.disk
    genesis, settings = read_genesis(old), cfg.read_settings(old)
    keys = cfg.keys_folder(log, settings)
    if os.path.ismount(keys) and set(os.listdir(keys)) - {"lost+found", ".resuming"}:
        raise StoreError(f"{keys} is a mount point with keys in it, which cannot be renamed; move what is in it away first")
    own = _own_head(old, genesis)
    named = predecessor_number(old, genesis)
    elsewhere = _elsewhere(order, old, genesis)
    left = _left(log, own.size, genesis) if moved else old
    details = {
        "tool": f"tallystick {VERSION}", "host": host_name(), "user": system_user(), "reason": order.reason,
        "predecessor": _predecessor(order, old, genesis, own, elsewhere, left.name, named, why),
    }  # fmt: skip
    origin = _origin(genesis.origin, named + 1)
    building, staged = _ready(log).with_name(f"{_ready(log).name}.tmp"), staged_keys(keys, "resuming")
    for path in (building, staged):
        shutil.rmtree(path, ignore_errors=not path.exists())
    plan = Plan(log, keys, origin, _settings(old, origin, settings), details)
    made = build(plan, building, staged, order.clock, disk)
    for name in cfg.files_beside(settings):
        with contextlib.suppress(FileNotFoundError):  # the anchor says that it is missing
            disk.write_file(building / name, (old / name).read_bytes(), 0o600, like=log.parent)
    with contextlib.suppress(AuditError, OSError):  # without the old key the link is believed on this machine only
        signer = KeyFolder(cfg.keys_folder(old, settings)).log_key()
        if signer.verifier == genesis.vkey:
            disk.write_file(building / "predecessor", sign_successor(signer, own.size, own.root, made), 0o600, like=log.parent)
    order.step("built")
    disk.rename(building, _ready(log))
    disk.sync_folder(log.parent)
    order.step("decided")
    return _complete(order)


def predecessor_number(folder: Path, genesis: Genesis) -> int:
    """Which part a log is, from 1; a log whose entry 0 cannot be read counts as the first."""
    with contextlib.suppress(AuditError, OSError):
        named = predecessor(folder, genesis)
        return named.part + 1 if named else 1
    return 1


def _own_head(folder: Path, genesis: Genesis) -> Checkpoint:
    """The newest head in the folder itself that is signed: ``checkpoint``, else one that was handed out, else the genesis."""
    view = LogView(SegmentStore(folder), genesis, [])
    with contextlib.suppress(AuditError, OSError):
        return view.head().checkpoint
    for size in reversed(HandedOut(folder).sizes()):
        with contextlib.suppress(AuditError, OSError):
            return open_checkpoint(HandedOut(folder).signed(size) or b"", _keys(view, genesis), origin=genesis.origin)
    return genesis.open()


def _keys(view: LogView, genesis: Genesis) -> list[VerifierKey]:
    keys = [genesis.vkey]
    with contextlib.suppress(AuditError, OSError):
        keys += [epoch.key for epoch in view.history(view.head().size).epochs]
    return keys


def _elsewhere(order: _Order, folder: Path, genesis: Genesis) -> Elsewhere | None:
    """The longest of what memory, mark, handed-out checkpoints and the one given know of this log."""
    view, vkey = LogView(SegmentStore(folder), genesis, []), genesis.vkey.format()
    found: list[Elsewhere] = []
    known = order.memory.get(order.log)
    for name, one in [(str(order.log), known), *order.memory.elsewhere(genesis.origin, order.log).items()]:
        if one is not None and one.vkey == vkey:
            found.append(Elsewhere(one.size, bytes.fromhex(one.root), f"what {system_user()} verified at {Path(name).name}"))
    with contextlib.suppress(OSError, AuditError):
        mark = KeyFolder(cfg.keys_folder(folder, cfg.read_settings(folder))).read_mark()
        if mark is not None and mark.origin == genesis.origin:
            found.append(Elsewhere(mark.size, mark.root, "the mark beside the keys"))
    handed = HandedOut(folder)
    for size in handed.sizes()[-3:]:
        with contextlib.suppress(AuditError, OSError):
            one_out = open_checkpoint(handed.signed(size) or b"", _keys(view, genesis), origin=genesis.origin)
            found.append(Elsewhere(one_out.size, one_out.root, "a checkpoint that was handed out"))
    if order.checkpoint is not None:
        given = open_checkpoint(order.checkpoint, _keys(view, genesis), origin=genesis.origin)
        found.append(Elsewhere(given.size, given.root, "a checkpoint that was kept"))
    return max(found, default=None, key=lambda one: one.size)


def _predecessor(
    order: _Order, old: Path, genesis: Genesis, own: Checkpoint, elsewhere: Elsewhere | None, left: str, part: int, why: str
) -> dict[str, Any]:  # fmt: skip
    """What entry 0 of the successor says."""
    from .verification import verify_log

    verdict = verify_log(old, memory=Memory(None), vkey=genesis.vkey.format(), progress=order.progress)
    told: dict[str, Any] = {
        "part": part, "origin": genesis.origin, "vkey": genesis.vkey.format(), "size": own.size, "root": own.root.hex(),
        "folder": left, "state": why[:500], "verdict": verdict.sentence[:500],
    }  # fmt: skip
    if any(f.code == 6 and f.issue != "rolled_back" for f in verdict.findings):
        told["damage"] = verdict.sentence[:500]
    if elsewhere is not None:
        told["known_elsewhere"] = {"size": elsewhere.size, "root": elsewhere.root.hex(), "from": elsewhere.source}
        if elsewhere.size > own.size:
            told["lost"] = {"first": own.size, "end": elsewhere.size}
        else:
            with contextlib.suppress(StoreError, OSError):
                told["known_elsewhere"]["agrees"] = root_at(SegmentStore(old).hashes, elsewhere.size) == elsewhere.root
    beyond = _beyond(old, own.size)
    if beyond is not None:
        told["unsigned"] = beyond
    return told


def _beyond(folder: Path, size: int) -> dict[str, Any] | None:
    """Complete lines after the head, which nobody signed: their range, and the hash of their bytes. They stay where they are."""
    store, digest, end = SegmentStore(folder), hashlib.sha256(), size
    for segment in store.segments():
        for batch in store.batches(segment):
            lines = batch.lines[max(0, size - batch.index) :]
            if lines and batch.index <= end:
                digest.update(b"".join(line + b"\n" for line in lines))
                end = batch.index + len(batch.lines)
    return {"first": size, "end": end, "sha256": digest.hexdigest()} if end > size else None


def _settings(folder: Path, origin: str, old: cfg.Settings) -> bytes:
    """``log.toml`` of the old part with the new origin."""
    text = (folder / "log.toml").read_bytes()
    new, count = _ORIGIN_LINE.subn(f'origin = "{origin}"'.encode(), text, count=1)
    if count != 1 or old.origin.encode() not in text:
        raise ConfigError(f'{folder / "log.toml"}: origin = "…" does not stand on a line of its own')
    return cfg.without_keyd(new)


def _origin(old: str, part: int) -> str:
    """The old origin with the number of the part and something random: two successors of one log never share an origin."""
    suffix = f"/r{part}-{os.urandom(4).hex()}"
    return _SUFFIX.sub("", old)[: _ORIGIN_CHARS_MAX - len(suffix)] + suffix


def _left(log: Path, size: int, genesis: Genesis) -> Path:
    """A free name for the old part, or the one where an interrupted ``--from`` has copied it."""
    for number in range(1, 10_000):
        path = log.with_name(f"{log.name}.until-{size}" + (f".{number}" if number > 1 else ""))
        if not os.path.lexists(path):
            return path
        with contextlib.suppress(AuditError, OSError):
            if not log.exists() and read_genesis(path).vkey == genesis.vkey:
                return path
    raise StoreError(f"{log.parent} has thousands of older parts of {size:,} entries; move them away")


def _ready(log: Path) -> Path:
    return log.with_name(f".{log.name}.resuming")


# -- from here on every call only completes ----------------------------------------------------------------------------------------


def _complete(order: _Order) -> Resumed:
    """What is still to be renamed is seen from what is there; each rename is one step."""
    log, disk, memory, ready = order.log, order.disk, order.memory, _ready(order.log)
    genesis = read_genesis(ready)
    named = predecessor(ready, genesis)
    if named is None:
        raise StoreError(f"{ready} is no log that tally resume made; look at it, then move it away")
    known = memory.get(log)
    if known is not None and known.vkey == named.vkey.format():
        memory.put(log, msgspec.structs.replace(known, successor=successor_text(genesis)))
    order.step("remembered")
    left = log.with_name(named.folder)
    settings = cfg.read_settings(ready)
    keys = cfg.keys_folder(log, settings)
    staged, old_keys = staged_keys(keys, "resuming"), cfg.keys_folder(left, settings)
    if staged.is_dir() and keys.is_dir() and not os.path.ismount(keys):
        disk.rename(keys, old_keys)
        disk.sync_folder(keys.parent)
    order.step("keys left")
    if log.is_dir():
        disk.rename(log, left)
        disk.sync_folder(log.parent)
    order.step("log left")
    _close(left, disk)
    order.step("closed")
    if staged.is_dir():
        place_keys(staged, keys, disk)
    order.step("keys placed")
    disk.rename(ready, log)
    disk.sync_folder(log.parent)
    order.step("placed")
    if known is None:
        first = genesis.open().root.hex()
        memory.put(log, Known(genesis.origin, genesis.vkey.format(), first, 1, first, order.clock.wall_us()))
    else:
        follow(log, genesis, memory.get(log) or known, memory)
    return _told(log)


def _close(left: Path, disk: Disk) -> None:
    """Nobody writes there any more: permission bits without writing, of files before their folders."""
    for where, folders, files in os.walk(left, topdown=False):
        for name in (*files, *folders, "."):
            path = Path(where, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                mode = stat.S_IMODE(status.st_mode)
                if mode & 0o222:
                    disk.chmod(path, mode & ~0o222)


def _told(log: Path) -> Resumed:
    """What the successor's entry 0 says, for whoever ran the command."""
    genesis = read_genesis(log)
    named = predecessor(log, genesis)
    if named is None:
        raise StoreError(f"{log} has no predecessor")
    fields = LogView(SegmentStore(log), genesis, []).at(0, 1)
    told = fields.entry().details["predecessor"] if fields else {}
    known = told.get("known_elsewhere")
    left = log.with_name(named.folder)
    return Resumed(
        str(log), genesis.origin, genesis.vkey.format(), named.part + 1, str(left),
        str(cfg.keys_folder(left, cfg.read_settings(log))), named.size, named.lost, dict(known) if known else None,
        (log / "predecessor").exists(), named.reason, str(told.get("damage", "")),
    )  # fmt: skip
