"""The folder of a witness: its keys and the logs that it knows.

::

    witness.key   0600  one or two private keys, a line each: Ed25519 (0x04), and ML-DSA-44 (0x06) where it was made with one
    witness.vkey        their verifier keys: what is given to the owners of logs
    logs                one key of a log a line: <vkey> <origin>
    state.db            what was cosigned (``state``); served: how far ``state.db`` was at least; lock: who serves

``witness.key`` is written last: a folder without it never was a witness.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ..core.cosignature import CosignerKey, has_ml_dsa
from ..core.errors import Malformed, StoreError
from ..core.note import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, VerifierKey
from ..core.tlog_witness import LOG_ALGORITHMS
from ..disk import DISK, Disk
from .state import create_database

_KEY_BYTES_MAX = 4096
_LOGS_BYTES_MAX = 1 << 22

Logs = dict[str, tuple[VerifierKey, ...]]
"""Origin → keys that may sign its checkpoints."""


def create(folder: Path, name: str, *, ml_dsa: bool = False, disk: Disk = DISK) -> tuple[VerifierKey, ...]:
    """Make a witness; its verifier keys. ``StoreError`` where something is there already, ``Malformed`` for the name or where
    ML-DSA-44 is not to be had. If we die before the end the folder has no ``witness.key``: remove it and begin again."""
    if ml_dsa and not has_ml_dsa():
        raise Malformed("ML-DSA-44 needs a newer version of cryptography (48, with OpenSSL 3.5)")
    algorithms = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44) if ml_dsa else (COSIGNATURE_ED25519,)
    keys = [CosignerKey(name, algorithm, os.urandom(32)) for algorithm in algorithms]
    if len(name.encode()) > 255:
        raise Malformed("the name of a witness has at most 255 bytes")
    if folder.exists() and any(folder.iterdir()):
        what = "a witness" if (folder / "witness.key").exists() else "a folder with other things in it"
        raise StoreError(f"{folder} is {what} already; name an empty or a new folder")
    if not folder.exists():
        disk.mkdir(folder, 0o700)
    disk.chmod(folder, 0o700)
    vkeys = tuple(key.verifier for key in keys)
    create_database(folder, vkeys, disk)
    disk.write_file(folder / "logs", b"")
    disk.write_file(folder / "witness.vkey", "".join(k.format() + "\n" for k in vkeys).encode(), 0o644)
    disk.write_file(folder / "witness.key", "".join(k.format() + "\n" for k in keys).encode(), 0o600)
    return vkeys


def read_keys(folder: Path) -> tuple[CosignerKey, ...]:
    """The private keys. ``StoreError`` where there is no witness, where others may read them or they are no keys."""
    path = folder / "witness.key"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise StoreError(f"{folder} is not a witness (no witness.key); tally witness init {folder} --name NAME makes one") from None
    with os.fdopen(fd, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(_KEY_BYTES_MAX)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StoreError(f"{path} can be read by others (mode {mode & 0o777:03o}); run: chmod 600 {path}")
    try:
        keys = tuple(CosignerKey.parse(line) for line in text.decode("ascii").removesuffix("\n").split("\n"))
    except (Malformed, UnicodeDecodeError) as e:
        raise StoreError(f"{path} is not a key of a witness") from e.__cause__
    if len({k.verifier.algorithm for k in keys}) != len(keys) or len({k.name for k in keys}) != 1:
        raise StoreError(f"{path} holds two keys of one kind or of two names")
    return keys


def read_vkeys(folder: Path) -> tuple[VerifierKey, ...]:
    """The verifier keys as they are given to owners of logs."""
    try:
        text = (folder / "witness.vkey").read_text(encoding="ascii")
    except FileNotFoundError:
        raise StoreError(f"{folder} is not a witness (no witness.vkey); tally witness init {folder} --name NAME makes one") from None
    algorithms = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)
    return tuple(VerifierKey.parse(line, algorithms=algorithms) for line in text.splitlines())


def read_logs(folder: Path) -> Logs:
    """The logs that this witness knows. ``StoreError`` names a line that says nothing."""
    path = folder / "logs"
    with path.open("rb") as file:
        data = file.read(_LOGS_BYTES_MAX + 1)
    if len(data) > _LOGS_BYTES_MAX or (data and not data.endswith(b"\n")):
        raise StoreError(f"{path} is too large or does not end in a newline")
    found: Logs = {}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        if line and not line.startswith(b"#"):
            try:
                key, origin = _read_log(line.decode("utf-8"))
            except (Malformed, UnicodeDecodeError) as e:
                raise StoreError(f"{path}, line {number}: {e}") from None
            found[origin] = (*found.get(origin, ()), key)
    return found


def _read_log(line: str) -> tuple[VerifierKey, str]:
    vkey, _, origin = line.partition(" ")
    if not origin:
        raise Malformed("a line is: <vkey> <origin>")
    return VerifierKey.parse(vkey, algorithms=LOG_ALGORITHMS), origin


def add_log(folder: Path, vkey: str, origin: str | None = None, *, disk: Disk = DISK) -> tuple[str, bool]:
    """Know a log by one more key from now on, also while the witness serves; its origin (the key's name unless said) and whether that
    was new. ``Malformed`` for a key that is none, or that is this witness's own."""
    key = VerifierKey.parse(vkey, algorithms=LOG_ALGORITHMS)
    named = key.name if origin is None else origin
    _check_log(key, named, read_vkeys(folder))
    logs = read_logs(folder)
    if key in logs.get(named, ()):
        return named, False
    data = (folder / "logs").read_bytes() + f"{key.format()} {named}\n".encode()
    disk.write_file(folder / "logs", data)
    return named, True


def _check_log(key: VerifierKey, origin: str, own: Sequence[VerifierKey]) -> None:
    if any(key.public == mine.public for mine in own):
        raise Malformed("that is this witness's own key: its own cosignatures would count as the log's signature")
    if not origin or len(origin.encode()) > 255 or any(c < " " or c == "\x7f" for c in origin):
        raise Malformed("an origin is one line of 1 to 255 bytes")
