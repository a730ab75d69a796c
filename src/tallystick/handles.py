"""What all loggers of one path in one process share, and what becomes of it at fork and at exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from pathlib import Path

from . import config as cfg
from .clock import CLOCK
from .core.errors import AuditError, StoreError
from .disk import DISK, Disk
from .keyd.client import KeydCustody
from .keys import KeyFolder
from .log.epochs import Rhythm
from .log.heartbeat import Heartbeat
from .log.keeper import Keeper
from .log.view import LogView
from .log.writer import Writer
from .opening import indexes_of, read_genesis
from .publishing import Publisher
from .store.segments import SegmentStore
from .vault import Vault

_open: dict[tuple[str, int], Handle] = {}
_users: dict[tuple[str, int], int] = {}
_open_lock = threading.RLock()


class Handle:
    """One log, open in this process: store, keys, vault, view, writer, keeper, publisher."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder = folder
        self.genesis = read_genesis(folder)
        self.settings = cfg.read_settings(folder)
        if self.settings.origin != self.genesis.origin:
            raise StoreError(f"{folder}: log.toml says {self.settings.origin}, log.vkey says {self.genesis.origin}")
        self.store = SegmentStore(folder, disk)
        self.keys = KeyFolder(cfg.keys_folder(folder, self.settings), disk)
        self.vault = Vault(folder / "payloads", self.keys.path, self.genesis.origin, disk)
        self.view = LogView(self.store, self.genesis, indexes_of(folder, self.genesis))
        self.writer = Writer(
            self.store, self.view, self.keys, self.vault, CLOCK, segment_bytes=self.settings.segments.bytes,
            config=lambda: cfg.recorded(folder), disk=disk,
            rhythm=Rhythm(self.settings.epochs.close == "daily", self.settings.epochs.entries), custody=self._custody(),
        )  # fmt: skip
        self.heartbeat = Heartbeat(self.writer, self.settings.heartbeat.every_us, CLOCK)
        self.keeper = Keeper(self.writer, self.view, self.heartbeat)
        self.publisher = Publisher(folder, self.genesis, lambda: KeyFolder(self.keys.path), disk)

    def _custody(self) -> KeydCustody | None:
        """The daemon that holds the epoch keys, where log.toml names one."""
        where = self.settings.keyd.socket
        return KeydCustody(self.folder / where, self.genesis.origin, self.store.hashes) if where else None

    def close(self) -> None:
        """The orderly end. What was submitted is settled first; if something of it failed unheard, that is raised last."""
        unheard: AuditError | None = None
        try:
            self.writer.queue.flush()
        except AuditError as e:
            unheard = e
        self.heartbeat.stop()
        self.publisher.stop()
        self.keeper.stop()
        self.writer.close()
        if os.access(self.folder, os.W_OK):
            with contextlib.suppress(AuditError, OSError):  # a head that a failure left half-written; the next append heals it
                self.view.fill(wait_s=0.0)
        self.view.close()
        if unheard is not None:
            raise unheard

    def after_fork(self) -> None:
        self.view.after_fork()
        self.vault.after_fork()
        self.keeper.after_fork()
        self.publisher.after_fork()
        self.writer.after_fork()
        self.heartbeat.after_fork()


def shared(folder: Path) -> Handle:
    """The handle of a log in this process, one more user of it."""
    key = (os.path.realpath(folder), os.getpid())
    with _open_lock:
        handle = _open.get(key)
        if handle is None:
            handle = _open[key] = Handle(folder)
            _users[key] = 0
        _users[key] += 1
        return handle


def release(folder: Path) -> None:
    """One user less; the last one closes it."""
    key = (os.path.realpath(folder), os.getpid())
    with _open_lock:
        if key not in _open:
            return
        _users[key] -= 1
        if _users[key] == 0:
            del _users[key]
            _open.pop(key).close()


def _before_fork() -> None:
    _open_lock.acquire()
    for handle in _open.values():
        handle.writer.groups.hold()
        handle.writer.busy.acquire()


def _after_fork_in_parent() -> None:
    for handle in _open.values():
        handle.writer.busy.release()
        handle.writer.groups.release()
    _open_lock.release()


def _after_fork_in_child() -> None:
    global _open_lock  # noqa: PLW0603  # the parent's lock cannot be trusted in the child
    handles, users = dict(_open), dict(_users)
    _open.clear()
    _users.clear()
    _open_lock = threading.RLock()
    for (path, _), handle in handles.items():
        handle.after_fork()
        _open[(path, os.getpid())] = handle
    for (path, _), count in users.items():
        _users[(path, os.getpid())] = count


def _close_all() -> None:
    with _open_lock:
        for key in list(_open):
            if key[1] == os.getpid():
                _users.pop(key, None)
                try:
                    _open.pop(key).close()
                except AuditError as e:
                    sys.stderr.write(f"tallystick: {key[0]}: {e}\n")


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_close_all)
