"""What this user knows of logs (STORAGE rule 22): trust on first use, as with SSH.

``known_logs.json`` in ``$TALLY_STATE``, else ``$XDG_STATE_HOME/tallystick``, else ``~/.local/state/tallystick`` keeps by path
the origin, verifier key, genesis root, and the last proven size and root of each log that this user made or verified. It is
replaced as a whole under a lock; a file that cannot be read is an error, never an empty memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from .core.errors import ConfigError
from .disk import DISK


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One log as this user knows it. ``root`` and ``genesis`` in hex; times in microseconds since the epoch."""

    origin: str
    vkey: str
    genesis: str
    size: int
    root: str
    seen_us: int
    full_size: int = 0
    full_us: int = 0


class Memory:
    """The user's known logs. ``folder`` None remembers nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @property
    def path(self) -> Path | None:
        """The file."""
        return None if self.folder is None else self.folder / "known_logs.json"

    def all(self) -> dict[str, Known]:
        """By absolute path. ``ConfigError`` if the file is not what it should be."""
        if self.path is None or not self.path.exists():
            return {}
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, Known])
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as e:
            raise ConfigError(f"{self.path} cannot be read ({e}); it is your memory of logs: restore it, or move it "
                              "away and trust each log anew") from e  # fmt: skip

    def get(self, log: Path) -> Known | None:
        """What is known at this path."""
        return self.all().get(_name(log))

    def elsewhere(self, origin: str, log: Path) -> dict[str, Known]:
        """The same origin at other paths."""
        return {path: k for path, k in self.all().items() if k.origin == origin and path != _name(log)}

    def put(self, log: Path, known: Known) -> None:
        """Remember."""
        with self._changing() as logs:
            logs[_name(log)] = known

    def forget(self, log: Path) -> bool:
        """Forget a path; False if it was not known."""
        with self._changing() as logs:
            return logs.pop(_name(log), None) is not None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Known]]:
        if self.folder is None or self.path is None:
            yield {}
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / "known_logs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            logs = self.all()
            before = dict(logs)
            yield logs
            if logs != before:
                text = json.dumps({k: msgspec.to_builtins(v) for k, v in sorted(logs.items())}, indent=1)
                DISK.write_file(self.path, text.encode() + b"\n", 0o600)
        finally:
            os.close(fd)


def default_memory(environ: Mapping[str, str]) -> Memory:
    """``$TALLY_STATE``, else the XDG state folder; a memory of nothing where the user has no home."""
    if environ.get("TALLY_STATE"):
        return Memory(Path(environ["TALLY_STATE"]).absolute())
    if environ.get("XDG_STATE_HOME", "").startswith("/"):
        return Memory(Path(environ["XDG_STATE_HOME"]) / "tallystick")
    home = os.path.expanduser("~")
    return Memory(Path(home) / ".local/state/tallystick") if home.startswith("/") and os.path.isdir(home) else Memory(None)


def _name(log: Path) -> str:
    return os.path.realpath(log)
