"""Logs to be broken: made once, copied for each try, opened with a disk and a clock of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from tallystick import AuditLogger
from tallystick.clock import CLOCK, Clock
from tallystick.disk import DISK, Disk
from tallystick.events import EventBuilder
from tallystick.family import Family
from tallystick.handles import Handle
from tallystick.log.keeper import Keeper
from tallystick.log.writer import Writer
from tallystick.memory import Memory
from tallystick.opening import make_log


class NoThread(Keeper):
    """A keeper that works only when told to (``tend``), so that every operation has its number."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class BootClock(Clock):
    """The real clock, in another boot."""

    def __init__(self, boot: str) -> None:
        assert " " not in boot
        self._boot = boot

    def boot_id(self) -> str:
        return self._boot


class Bench(AuditLogger):
    """A logger with a handle of its own: nothing is shared with other loggers of the process, no thread runs."""

    def __init__(
        self, folder: Path, memory: Memory, disk: Disk = DISK, *, clock: Clock = CLOCK, segment_bytes: int | None = None
    ) -> None:
        self.path, self.memory, self.service, self._closed = folder, memory, None, False
        self._handle = handle = Handle(folder, disk)
        handle.writer = Writer(
            handle.store, handle.view, handle.keys, handle.vault, clock,
            segment_bytes=segment_bytes or handle.settings.segments.bytes, config=lambda: (folder / "log.toml").read_bytes(),
            disk=disk,
        )  # fmt: skip
        handle.keeper = NoThread(handle.writer, handle.view)
        self._events = EventBuilder(handle.genesis.origin, None)
        self._recorder = None
        self.family = Family(folder)
        self.retention_days = handle.settings.retention.days

    def tend(self) -> None:
        """What the keeper does twice a second."""
        self._handle.keeper.tend()

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
        self._closed = True
        self._handle.close()

    def vanish(self) -> None:
        """The process is gone: the kernel closes its descriptors, nothing is written any more."""
        self._closed = True
        self._handle.writer.drop()


class Lab:
    """One folder for tries."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.memory = Memory(base / "state")
        self.folder = base / "audit_log"
        self.keys = base / "audit_log.keys"
        self._saved = base / "saved"

    def make(self) -> None:
        make_log(self.folder, self.memory, retention_days=365, origin=None)

    def open(self, disk: Disk = DISK, *, clock: Clock = CLOCK, segment_bytes: int | None = None) -> Bench:
        return Bench(self.folder, self.memory, disk, clock=clock, segment_bytes=segment_bytes)

    def save(self) -> None:
        """Remember log, keys and memory as they are now."""
        shutil.rmtree(self._saved, ignore_errors=True)
        for path in (self.folder, self.keys, self.base / "state"):
            if path.exists():
                shutil.copytree(path, self._saved / path.name)

    def restore(self, *names: str) -> None:
        """Put back everything (or only what is named) as it was saved."""
        for path in (self.folder, self.keys, *(self.base / n for n in ("state", "archive", "deep"))):
            if not names or path.name in names:
                shutil.rmtree(path, ignore_errors=True)
                if (self._saved / path.name).exists():
                    shutil.copytree(self._saved / path.name, path)

    def origin(self) -> str:
        return (self.folder / "checkpoint").read_text().split("\n")[0]

    def segment(self) -> Path:
        return sorted((self.folder / "segments").iterdir())[-1]
