"""Making a log: all or nothing, under the lock of the parent folder.

Everything is written and synced under temporary names, then the key folder and last the log folder get their names. If we
die before the last rename there is no log; a key folder whose mark says size 1 and whose log never came is replaced by the
next call. ``LogMissing`` is the caller's business (``logger``): here a key folder that signed more than entry 0 is a refusal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..clock import Clock
from ..core import entry as ent
from ..core.checkpoint import Checkpoint, sign_checkpoint
from ..core.entry import Fields
from ..core.epoch import CREATED
from ..core.errors import DiskFull, LogMissing, ReadOnly, StoreError
from ..core.genesis import Genesis
from ..core.merkle import leaf_hash
from ..core.note import SignerKey
from ..core.times import format_time
from ..disk import Disk, give_to_owner_of
from ..keys import KeyFolder

LOCK_POLL_S = 0.02


class Plan(NamedTuple):
    """What to make: final paths, origin, the bytes of ``log.toml`` and what entry 0 says beside the keys."""

    folder: Path
    keys: Path
    origin: str
    config: bytes
    details: dict[str, Any]


@contextlib.contextmanager
def creation_lock(parent: Path) -> Iterator[None]:
    """One creator at a time in this folder."""
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def create(plan: Plan, clock: Clock, disk: Disk, *, exists: Callable[[Path], bool]) -> Genesis | None:
    """Make the log. None if somebody else made it meanwhile (``exists`` under the lock says so)."""
    try:
        return _create(plan, clock, disk, exists)
    except OSError as e:
        what = f"{e.filename or plan.folder}: {e.strerror}; no log was made"
        if isinstance(e, PermissionError) or e.errno == errno.EROFS:
            raise ReadOnly(what) from e
        raise (DiskFull if e.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError)(what) from e


def _create(plan: Plan, clock: Clock, disk: Disk, exists: Callable[[Path], bool]) -> Genesis | None:
    with creation_lock(plan.folder.parent):
        if exists(plan.folder):
            return None
        temporary = plan.folder.with_name(f".{plan.folder.name}.creating")
        temporary_keys = staged_keys(plan.keys, "creating")
        _refuse_while_resuming(plan.folder)
        for path in (temporary, temporary_keys):
            shutil.rmtree(path, ignore_errors=not path.exists())
        if plan.keys.exists() and os.listdir(plan.keys):  # an empty one was made, or mounted, for us
            _refuse_keys_in_use(plan)
            _clear_keys(plan.keys, temporary_keys, disk)
        genesis = build(plan, temporary, temporary_keys, clock, disk)
        place_keys(temporary_keys, plan.keys, disk)
        # if we die here: keys whose log never came; the next call clears them away
        disk.rename(temporary, plan.folder)
        disk.sync_folder(plan.folder.parent)
        return genesis


def build(plan: Plan, folder: Path, keys: Path, clock: Clock, disk: Disk) -> Genesis:
    """Write everything of a log under other names, ``folder`` and ``keys``, which must not be there; durable on return."""
    for path in (folder, keys):
        disk.mkdir(path, 0o700, like=plan.folder.parent)
    return _fill(plan, folder, keys, clock, disk)


def staged_keys(keys: Path, word: str) -> Path:
    """Where new keys are written before they get their place: beside it, or within it where something is mounted there (a rename
    does not leave a file system)."""
    return keys / f".{word}" if os.path.ismount(keys) else keys.with_name(f".{keys.name}.{word}")


def place_keys(staged: Path, keys: Path, disk: Disk) -> None:
    """Give new keys their place; durable on return. ``keys`` is not there, or empty. If we die within it, where it is a mount point,
    the mark says that these keys were never used, or that the next call goes on."""
    if staged.parent != keys:
        disk.rename(staged, keys)
        disk.sync_folder(keys.parent)
        return
    for name in sorted(os.listdir(staged), key=lambda n: n != "mark"):
        disk.rename(staged / name, keys / name)
    os.rmdir(staged)
    disk.sync_folder(keys)


def _clear_keys(keys: Path, temporary: Path, disk: Disk) -> None:
    """Keys that were never used. Beside their mark nothing else may be left alone: it says so."""
    if temporary.parent != keys:
        disk.rename(keys, temporary)  # as a whole: half of it would not say any more that it was never used
        shutil.rmtree(temporary)
        return
    for name in sorted(os.listdir(keys), key=lambda n: n == "mark"):
        disk.unlink(keys / name)


def _refuse_while_resuming(folder: Path) -> None:
    if folder.with_name(f".{folder.name}.resuming").exists():
        raise LogMissing(f"{folder} is being resumed and that was interrupted; to finish it: tally resume {folder}")


def _refuse_keys_in_use(plan: Plan) -> None:
    mark = KeyFolder(plan.keys).read_mark()
    if mark is None or mark.size > 1:
        seen = "" if mark is None else f" of {mark.size:,} entries ({mark.origin})"
        raise LogMissing(
            f"{plan.folder} is not there, but {plan.keys} has the keys of a log{seen}. If it was moved, open it where it is; "
            f"if it is gone for good, move {plan.keys} away and begin anew"
        )


def _fill(plan: Plan, folder: Path, keys: Path, clock: Clock, disk: Disk) -> Genesis:
    log_key, epoch_key = SignerKey.generate(plan.origin), SignerKey.generate(plan.origin)
    now = format_time(clock.wall_us())
    fields = Fields(
        v=ent.VERSION, log=plan.origin, event_id=clock.event_id(), timestamp=now, recorded_at=now,
        event_type=CREATED, actor=ent.OWN_ACTOR, actor_type="system", resource="log", action="created the log",
        outcome="success",
        details={
            "format": 1, "epoch": 0, "epoch_key": epoch_key.verifier.format(), "log_key": log_key.verifier.format(),
            "config_sha256": hashlib.sha256(plan.config).hexdigest(), **plan.details,
        },
    )  # fmt: skip
    line = ent.encode(fields)
    head = Checkpoint(plan.origin, 1, leaf_hash(line))
    genesis = Genesis(log_key.verifier, sign_checkpoint(head, log_key))
    ent.decode(line)
    genesis.open()
    for name in ("segments", "tree", "checkpoints", "payloads"):
        disk.mkdir(folder / name, 0o700, like=folder.parent)
    files = {
        "log.toml": plan.config,
        "log.vkey": genesis.format(),
        "checkpoint": sign_checkpoint(head, epoch_key),
        f"segments/{0:020d}.jsonl": line + b"\n",
        "tree/0": leaf_hash(line),
    }
    for name, data in files.items():
        disk.write_file(folder / name, data, 0o600, like=folder.parent)
    disk.sync_folder(folder)
    store = KeyFolder(keys, disk)
    store.create(log_key, epoch_key)
    store.put_mark(plan.origin, 1, leaf_hash(line), 0)
    store.sync()
    store.close()
    for name in os.listdir(keys):
        give_to_owner_of(keys.parent, keys / name)
    disk.sync_folder(keys)
    return genesis


def check_parent(folder: Path) -> None:
    """``StoreError`` that says what to do where the folder to make the log in is not there."""
    if not folder.parent.is_dir():
        raise StoreError(f"{folder.parent} is not there; make that folder first, then the log {folder.name} in it")
