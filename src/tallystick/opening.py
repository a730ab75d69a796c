"""Where logs are and how they begin: path, creation, the first words to whoever made one."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from . import config as cfg
from .clock import CLOCK, host_name, local_zone_name, system_user
from .core.checkpoint import check_origin
from .core.errors import LogMissing, Malformed, StoreError
from .core.genesis import Genesis
from .core.times import format_time
from .disk import DISK
from .index.file import Index
from .log.create import Plan, check_parent, create
from .memory import Known, Memory

VERSION = "0.1.0"


def log_path(given: str | os.PathLike[str] | None) -> Path:
    """The argument, else ``$TALLY_LOG``, else ``./audit_log``, absolute."""
    chosen = given if given is not None else os.environ.get("TALLY_LOG") or "audit_log"
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(chosen))))
    if path.is_file():
        raise StoreError(f"{path} is a file; a log is a folder (importing such a file comes later): name another path")
    return path


def is_log(folder: Path) -> bool:
    """True for a folder that holds a log."""
    return (folder / "log.vkey").is_file() or (folder / "segments").is_dir()


def read_genesis(folder: Path) -> Genesis:
    """``log.vkey`` of a log; ``LogMissing`` where there is none."""
    try:
        with (folder / "log.vkey").open("rb") as file:
            return Genesis.parse(file.read(16_384))
    except FileNotFoundError:
        raise LogMissing(f"there is no log at {folder} (no log.vkey); tally init {folder} makes one") from None


def open_or_create(
    folder: Path, memory: Memory, *, create: bool, retention_days: int | None = None, origin: str | None = None
) -> None:
    """Make the log where neither it nor a memory of it is; otherwise do nothing, or say what is missing."""
    if is_log(folder):
        return
    known, others = memory.get(folder), folder.exists() and any(folder.iterdir())
    if is_log(folder):
        return  # somebody made it while we looked: what we saw of it then is no sign of anything else
    if known is not None:
        when = format_time(known.seen_us)[:16].replace("T", " ")
        raise LogMissing(
            f"the log {known.origin} with {known.size:,} entries, last seen here at {folder} on {when} UTC, is gone. "
            f"Restore it. From a backup: tally resume {folder} --from BACKUP --reason …. If it was meant to go: "
            f"tally trust --forget {folder}, and begin anew"
        )
    if not create:
        raise LogMissing(f"there is no log at {folder}, and none was to be made; tally init {folder} makes one")
    if others:
        raise StoreError(f"{folder} is a folder with other things in it; name an empty or a new one")
    make_log(folder, memory, retention_days=365 if retention_days is None else retention_days, origin=origin)


def make_log(folder: Path, memory: Memory, *, retention_days: int, origin: str | None) -> None:
    """Make it, remember it, and tell whoever made it once, on standard error."""
    check_parent(folder)
    name = origin or _default_origin(folder)
    try:
        check_origin(name)
    except Malformed as e:
        raise ValueError(str(e)) from None
    keys = folder.with_name(folder.name + ".keys")
    settings = cfg.build_settings(name, local_zone_name(), f"../{keys.name}", retention_days)
    details = {"tool": f"tallystick {VERSION}", "host": host_name(), "user": system_user()}
    genesis = create(Plan(folder, keys, name, settings, details), CLOCK, DISK, exists=is_log)
    if genesis is None:
        return
    first = genesis.open()
    vkey = genesis.vkey.format()
    now = CLOCK.wall_us()
    memory.put(folder, Known(name, vkey, first.root.hex(), 1, first.root.hex(), now, pinned_us=now))
    sys.stderr.write(
        f"tallystick made a new log\n  folder   {folder}\n  origin   {name}\n  key      {vkey}\n"
        f"  keeps    entries {retention_days} days; values of audited functions (500 characters each) encrypted\n"
        f"  keys     {keys}  (keep them out of backups of the log; keep a copy of the line 'key' elsewhere)\n"
    )


def _default_origin(folder: Path) -> str:
    name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in folder.name.lower())[:40]
    return f"{host_name()}/{name.strip('.-') or 'log'}/{os.urandom(6).hex()}"


def indexes_of(folder: Path, genesis: Genesis) -> list[Index]:
    """The log's own index, and for those who may not write there one in their cache."""
    found = [Index(folder / "index.db")]
    if not os.access(folder, os.W_OK):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        cache = Path(base) / "tallystick" / "index"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = hashlib.sha256(f"{genesis.vkey.format()}\0{folder}".encode()).hexdigest()[:24]
            found.append(Index(cache / f"{name}.db"))
        except OSError:
            pass
    return found
