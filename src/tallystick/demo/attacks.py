"""The attacker, loose on copies of a log and its keys.

He works on the files alone and knows the format as well as we do. Each attack takes the copied log folder (and the key folder
beside it), changes it, and says in one sentence what was done. Nothing here is imported by anything but the demo and its tests.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..core.checkpoint import Checkpoint, sign_checkpoint
from ..core.genesis import Genesis
from ..core.merkle import Frontier, leaf_hash
from ..core.note import SignerKey, split
from ..keys import KeyFolder


class Attack(NamedTuple):
    """Name, what the attacker has, and the deed."""

    name: str
    has: str
    act: Callable[[Path, Path], str]


def edit_without_a_key(log: Path, keys: Path) -> str:
    """(1) One line edited, every hash computed anew, the index removed; the signature stays what it was."""
    del keys
    lines = _read(log)
    at = _victim(lines)
    lines[at] = _edited(lines[at])
    _write(log, lines)
    return f"edited entry #{at}, computed every hash of the tree anew and deleted the index"


def rekey(log: Path, keys: Path) -> str:
    """(2) The whole log under new keys: first entry, genesis, vkey, head and mark are all consistent again."""
    lines = _read(log)
    origin = json.loads(lines[0])["log"]
    log_key, epoch_key = SignerKey.generate(origin), SignerKey.generate(origin)
    first = json.loads(lines[0])
    first["details"]["epoch_key"] = epoch_key.verifier.format()
    first["details"]["log_key"] = log_key.verifier.format()
    lines[0] = _spelled(first)
    at = _victim(lines)
    lines[at] = _edited(lines[at])
    _write(log, lines)
    for name, key in (("log.key", log_key), ("epoch-0.key", epoch_key)):
        (keys / name).write_text(key.format() + "\n")
    genesis = sign_checkpoint(Checkpoint(origin, 1, leaf_hash(lines[0])), log_key)
    (log / "log.vkey").write_bytes(Genesis(log_key.verifier, genesis).format())
    _sign(log, keys, lines)
    return f"edited entry #{at} and gave the whole copy new keys, a new first entry and new signatures"


def rewrite_with_found_keys(log: Path, keys: Path) -> str:
    """(3) History rewritten and signed again with the very keys that lie beside the log."""
    lines = _read(log)
    at = _victim(lines)
    lines[at] = _edited(lines[at])
    _write(log, lines)
    _sign(log, keys, lines)
    return f"edited entry #{at} and signed the new history with the keys found beside the log"


def cut_the_tail(log: Path, keys: Path) -> str:
    """(4) The newest entries removed, the shorter log signed with the keys that lie beside it."""
    lines = _read(log)
    kept = max(2, len(lines) - max(3, len(lines) // 5))
    _write(log, lines[:kept])
    _sign(log, keys, lines[:kept])
    return f"cut the newest {len(lines) - kept} entries and signed the shorter log with the keys found beside it"


def edit_memory(memory: Path, log: Path) -> None:
    """What an attacker does who may also write to this user's state folder: the memory says what the copy says now."""
    head = Checkpoint.parse(split((log / "checkpoint").read_bytes())[0])
    path = memory / "known_logs.json"
    known = json.loads(path.read_bytes())
    known[os.path.realpath(log)] |= {"size": head.size, "root": head.root.hex(), "full_size": head.size}
    path.write_text(json.dumps(known, indent=1) + "\n")


ATTACKS = (
    Attack("edit and recompute", "no key", edit_without_a_key),
    Attack("re-key everything", "keys of his own", rekey),
    Attack("rewrite and re-sign", "the keys beside the log", rewrite_with_found_keys),
    Attack("cut the tail", "the keys beside the log", cut_the_tail),
)


def _read(log: Path) -> list[bytes]:
    lines: list[bytes] = []
    for path in sorted((log / "segments").glob("*.jsonl")):
        lines += path.read_bytes().split(b"\n")[:-1]
    return lines


def _write(log: Path, lines: list[bytes]) -> None:
    """All lines in one segment, the tree to match, no index."""
    shutil.rmtree(log / "segments")
    shutil.rmtree(log / "tree")
    for name in ("segments", "tree"):
        (log / name).mkdir(mode=0o700)
    (log / "segments" / f"{0:020d}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    leaves = [leaf_hash(line) for line in lines]
    (log / "tree" / "0").write_bytes(b"".join(leaves))
    for level, row in enumerate(Frontier().extend(leaves), 1):
        (log / "tree" / str(level)).write_bytes(b"".join(row))
    for name in ("index.db", "index.db-journal", "index.lock"):
        (log / name).unlink(missing_ok=True)


def _sign(log: Path, keys: Path, lines: list[bytes]) -> None:
    """Head and mark by the epoch key that lies in ``keys``."""
    folder = KeyFolder(keys)
    frontier = Frontier()
    frontier.extend([leaf_hash(line) for line in lines])
    key = folder.epoch_key(0)
    head = Checkpoint(key.verifier.name, frontier.size, frontier.root())
    (log / "checkpoint").write_bytes(sign_checkpoint(head, key))
    (keys / "mark").unlink(missing_ok=True)
    folder.put_mark(head.origin, head.size, head.root, 0)
    folder.sync()
    folder.close()


def _victim(lines: list[bytes]) -> int:
    """A decision in the middle of the log."""
    wanted = [i for i, line in enumerate(lines) if i and b'"event_type":"data_modification"' in line]
    return wanted[len(wanted) // 2] if wanted else len(lines) // 2


def _edited(line: bytes) -> bytes:
    entry = json.loads(line)
    entry["actor"] = "ana" if entry["actor"] != "ana" else "bob"
    entry["actor_type"] = "user"
    return _spelled(entry)


def _spelled(entry: object) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()


def copy_log(log: Path, keys: Path, target: Path) -> None:
    """A copy of log and keys at another place, as somebody with access to the disk makes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for source, name in ((log, target), (keys, target.with_name(target.name + ".keys"))):
        if name.exists():
            os.chmod(name, 0o700)
            shutil.rmtree(name)
        shutil.copytree(source, name)
        for path in name.rglob("*"):
            if path.is_file():
                path.chmod(0o600)
