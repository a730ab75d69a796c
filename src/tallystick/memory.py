"""What this user knows of logs (STORAGE rule 22): trust on first use, as with SSH.

``known_logs.json`` in ``$TALLY_STATE``, else ``$XDG_STATE_HOME/tallystick``, else ``~/.local/state/tallystick`` keeps by path
the origin, verifier key, genesis root, the last proven size and root, and the pinned keys of witnesses, of each log that this user
made or verified. It is replaced as a whole under a lock; a file that cannot be read is an error, never an empty memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from .core.cosignature import ALGORITHMS
from .core.errors import ConfigError, VerificationError
from .core.note import VerifierKey
from .disk import DISK


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One log as this user knows it. ``root`` and ``genesis`` in hex; times in microseconds since the epoch. ``witnesses``: the
    vkeys of those whose cosignatures count for this user, by the name that he gave them. ``successor``: the verifier key and genesis
    root of the log that ``tally resume`` of this user put in its place; empty where there is none. ``pinned_us``: when the key was
    pinned, 0 where an older version did it. ``anchors``: what each anchor was when it was first seen here, by its name.
    ``altered_us``: when a verification found it altered, and no full one has held since; else 0."""

    origin: str
    vkey: str
    genesis: str
    size: int
    root: str
    seen_us: int
    full_size: int = 0
    full_us: int = 0
    witnesses: dict[str, str] = {}
    successor: str = ""
    pinned_us: int = 0
    anchors: dict[str, str] = {}
    altered_us: int = 0


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

    def put_proven(self, log: Path, known: Known) -> None:
        """Remember how far it was proven; what else is known of the path stays as it is now."""
        with self._changing() as logs:
            before = logs.get(_name(log))
            if before is not None:
                known = msgspec.structs.replace(known, witnesses=before.witnesses, successor=before.successor,
                                                pinned_us=before.pinned_us, anchors={**known.anchors, **before.anchors})  # fmt: skip
            logs[_name(log)] = known

    def put_altered(self, log: Path, us: int) -> None:
        """Remember that a verification ended with 6; nothing where the path is not known."""
        with self._changing() as logs:
            known = logs.get(_name(log))
            if known is not None:
                logs[_name(log)] = msgspec.structs.replace(known, altered_us=us)

    def pin_witness(self, log: Path, name: str, vkey: str) -> None:
        """See ``pin_witness``."""
        key = VerifierKey.parse(vkey, algorithms=ALGORITHMS)
        with self._changing() as logs:
            known = logs.get(_name(log))
            if known is None:
                raise ConfigError(f"the log at {log} is not known to you, so nothing can be pinned for it; first: tally trust {log}")
            for other, text in known.witnesses.items():
                pinned = VerifierKey.parse(text, algorithms=ALGORITHMS)
                if other == name and pinned != key:
                    raise VerificationError(f"the witness {name} is pinned here with another key, {text}")
                if other != name and pinned.public == key.public:
                    raise VerificationError(f"this key is pinned here already, as the witness {other}")
            logs[_name(log)] = msgspec.structs.replace(known, witnesses={**known.witnesses, name: vkey})

    def unpin_witness(self, log: Path, name: str) -> bool:
        """Forget a pinned witness; False if there was none of this name."""
        with self._changing() as logs:
            known = logs.get(_name(log))
            if known is None or name not in known.witnesses:
                return False
            left = {n: v for n, v in known.witnesses.items() if n != name}
            logs[_name(log)] = msgspec.structs.replace(known, witnesses=left)
            return True

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


def pin_witness(memory: Memory, log: Path, name: str, vkey: str) -> None:
    """From now on cosignatures under ``vkey`` count for this user as those of the witness ``name`` of this log (only they do: what
    the log's own policy says convinces nobody). The same again changes nothing.

    ``Malformed`` for a vkey that is none, ``ConfigError`` where the log is not known to this user or cannot be remembered,
    ``VerificationError`` where the name is pinned with another key or the key under another name.
    """
    if memory.folder is None:
        raise ConfigError("this user has no state folder to remember a witness in; set TALLY_STATE, or verify with --policy FILE")
    memory.pin_witness(log, name, vkey)


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
