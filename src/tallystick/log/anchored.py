"""What came back from the anchors of a log: the checkpoints in a folder elsewhere, timestamps over kept ones (decision 25).

Which anchors there are says ``log.toml``, which lies in the folder under suspicion. So what an anchor is (the folder's path, the
hash of the authority's certificate) is pinned by the verifier's user when he first verifies, and only a pinned one counts: as with
SSH, the first time is trusted and every change is named. Nothing is contacted here. Not here: whether a checkpoint is of this history
(``check``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..anchor.configured import AnchorSettings
from ..anchor.folder import FolderSettings
from ..anchor.folder import Kept as InFolder
from ..anchor.folder import kept as kept_in
from ..anchor.timestamp import PEM_BYTES_MAX, TimestampSettings, read_roots, verify_timestamp
from ..core.checkpoint import Checkpoint, open_signed
from ..core.epoch import History
from ..core.errors import AuditError, ConfigError, Malformed, VerificationError
from ..core.genesis import Genesis
from ..disk import remote_file_system
from ..outside import HandedOut, Parties
from .confirmed import Kept

TRIES_MAX = 5  # timestamps of one party that do not hold, before it is left alone


class Returned(NamedTuple):
    """What one anchor has. ``checkpoint`` None: nothing that is signed by this log, ``problem`` says why. ``remark``: why it does
    not count. ``older``: what else lies there, unverified: it confirms nothing, and may contradict."""

    name: str
    kind: str
    checkpoint: Checkpoint | None = None
    note: bytes = b""
    time_us: int = 0
    remark: str = ""
    problem: str = ""
    older: tuple[InFolder, ...] = ()


def identities(anchors: Sequence[AnchorSettings], log: Path) -> dict[str, str]:
    """What each anchor is, in one line to be pinned: its kind and target, for an authority the hash of its certificate."""
    found = {}
    for one in anchors:
        if isinstance(one, TimestampSettings):
            with contextlib.suppress(OSError):
                fd = os.open(log / one.certificate, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                with os.fdopen(fd, "rb") as file:
                    found[one.name] = f"timestamp {hashlib.sha256(file.read(PEM_BYTES_MAX)).hexdigest()}"
        elif isinstance(one, FolderSettings):
            found[one.name] = f"folder {one.folder}"
    return found


def returned(
    anchors: Sequence[AnchorSettings], log: Path, genesis: Genesis, history: History, holding: Sequence[Kept],
    pins: Mapping[str, str] | None,
) -> Iterator[Returned]:  # fmt: skip
    """What each anchor has. ``holding``: kept checkpoints of this history; ``pins``: identities that this user pinned, None where
    nothing is remembered."""
    known = identities(anchors, log)
    for one in anchors:
        if isinstance(one, FolderSettings):
            found = _folder(one, log, genesis, history)
        elif isinstance(one, TimestampSettings):
            found = _timestamp(one, log, holding)
        else:
            state = Parties(log).get(one.name)
            if state is not None and state.done_size:
                yield Returned(one.name, "mail", None, b"", state.done_us, problem=f"sent with {state.done_size:,} entries; that "
                               "it arrived is known with the saved mail: --checkpoint FILE")  # fmt: skip
            continue
        if found is None:
            continue
        remark = found.remark
        if pins is None:
            remark = "only the log's own settings name it; nothing is pinned in this run"
        elif pins.get(one.name, known.get(one.name)) != known.get(one.name):
            remark = f"it is not what was pinned here ({pins[one.name]})"
        yield found._replace(remark=remark)


def _folder(one: FolderSettings, log: Path, genesis: Genesis, history: History) -> Returned | None:
    """The newest that this log signed. What lies there may have been put there by others."""
    path = Path(one.folder)
    try:
        found = kept_in(path, genesis.origin)
        local = _on_this_machine(path, log)
    except OSError as e:
        return Returned(one.name, "folder", problem=f"{e.filename}: {e.strerror}")
    except AuditError as e:
        return Returned(one.name, "folder", problem=str(e))
    problem = "nothing is there yet"
    for kept in reversed(found):
        keys = [genesis.vkey]
        with contextlib.suppress(VerificationError):
            keys += [key for key in [history.key_at(kept.size)] if key != genesis.vkey]
        try:
            checkpoint, _ = open_signed(kept.note, keys, origin=genesis.origin)
            remark = f"not independent: {local}" if local else ""
            return Returned(one.name, "folder", checkpoint, kept.note, int(os.stat(kept.path).st_mtime_ns // 1000), remark,
                            older=tuple(other for other in found if other.path != kept.path))  # fmt: skip
        except (AuditError, OSError) as e:
            problem = f"{kept.path.name}: {e}"
    return Returned(one.name, "folder", problem=problem)


def _on_this_machine(folder: Path, log: Path) -> str:
    """Why whoever is root on this machine can change what lies there; empty for a share of another machine. Another disk outlives
    the log's, but it is attached here: what was carried away from it counts with ``--checkpoint``."""
    if os.stat(folder).st_dev == os.stat(log).st_dev:
        return "it is on the disk of the log"
    return "" if remote_file_system(folder) is not None else "that disk is attached to this machine"


def _timestamp(one: TimestampSettings, log: Path, holding: Sequence[Kept]) -> Returned | None:
    """The newest that holds."""
    handed = HandedOut(log)
    mine = {kept.checkpoint.size: kept for kept in holding}
    sizes = sorted((size for size, party in handed.timestamps() if party == one.name and size in mine), reverse=True)
    if not sizes:
        return Returned(one.name, "timestamp", problem="nothing came back from it yet")
    problem = ""
    if not (log / one.certificate).is_file():
        return Returned(one.name, "timestamp", problem=f"its certificate is not there: {one.certificate}")
    try:
        roots = read_roots(log / one.certificate)
        for size in sizes[:TRIES_MAX]:
            note, answer = handed.note(size), handed.timestamp(size, one.name)
            try:
                time_us = verify_timestamp(note or b"", answer or b"", roots)
                return Returned(one.name, "timestamp", mine[size].checkpoint, note or b"", time_us)
            except (Malformed, VerificationError) as e:
                problem = problem or f"checkpoints/{size:020d}.{one.name}.tsr: {e}"
    except (ConfigError, OSError) as e:
        problem = f"not checked here: {e}"
    return Returned(one.name, "timestamp", problem=problem)
