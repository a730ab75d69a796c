"""The daemon: holds the epoch keys of one log and signs only heads that extend the last one that it signed.

Its folder (0700, of its own user) is a key folder without a log key: ``epoch-<n>.key`` and ``mark``, which is the last head that was
signed; and ``keyd.json``: the log's origin and who may ask. The mark is durable before an answer leaves: if we die in between, the
same head is asked for again and signed again, byte for byte.

What a writer that was taken over can do with it: have entries of its own signed, end the epoch, hinder. What it cannot: read a key,
have a second history signed, go back behind a closed epoch. Root reads the keys out of this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..core.checkpoint import Checkpoint, HeadSigner
from ..core.errors import AuditError, Malformed, StateUnknown, StoreError, VerificationError
from ..core.merkle import HASH_BYTES, verify_consistency
from ..disk import DISK, Disk, close_quietly
from ..keys import KeyFolder, Mark
from .frames import PROOF_MAX, Answer, Request, encode, receive

TIMEOUT_S = 2.0
REQUESTS_PER_S = 1000.0
_BURST = 200.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7): pid, uid, gid


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``keyd.json``. ``uids``: who may ask beside the daemon's own user."""

    origin: str
    uids: tuple[int, ...]


class Keyd:
    """The keys and what may be signed with them. One at a time per folder. ``StateUnknown`` without a readable mark: whoever lost
    it no longer knows what he signed."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder = folder
        self.settings = read_settings(folder)
        self._lock = disk.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600, like=folder)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{folder}: another tally keyd serves it already") from None
            self.keys = KeyFolder(folder, disk)
            self.keys.sweep()
            mark = self.keys.read_mark()
            if mark is None or mark.origin != self.settings.origin:
                raise StateUnknown(f"{folder / 'mark'} is missing, damaged or of another log: what was signed last is not known, and "
                                   "nothing is signed. Go on with a new key on record: tally key recover")  # fmt: skip
            self._last: Mark = mark
        except BaseException:
            close_quietly(self._lock)
            raise
        self._signer: tuple[int, HeadSigner] | None = None

    def __enter__(self) -> Keyd:
        return self

    def __exit__(self, *_: object) -> None:
        self.keys.close()
        close_quietly(self._lock)

    def answer(self, request: Request) -> Answer:
        """Do one thing. What is refused is an answer; ``OSError`` where the disk failed, after which nothing may be signed."""
        if request.origin != self.settings.origin:
            return Answer(error=f"these are the keys of {self.settings.origin}")
        known: dict[str, Callable[[Request], Answer]] = {
            "head": self._head, "key": self._key, "sign": self._sign, "prepare": self._prepare, "numbers": self._numbers,
            "destroy": self._destroy,
        }  # fmt: skip
        action = known.get(request.op)
        return Answer(error="no such operation") if action is None else action(request)

    def _head(self, _request: Request) -> Answer:
        return Answer(size=self._last.size, root=self._last.root)

    def _key(self, request: Request) -> Answer:
        try:
            return Answer(text=self._signer_of(request.number).verifier.format())
        except FileNotFoundError:
            return Answer(missing=True)

    def _signer_of(self, number: int) -> HeadSigner:
        if self._signer is None or self._signer[0] != number:
            self._signer = (number, self.keys.signer(number))
        return self._signer[1]

    def _sign(self, request: Request) -> Answer:
        last, size, root = self._last, request.size, request.root
        here = Answer(size=last.size, root=last.root)
        if len(root) != HASH_BYTES or len(request.proof) > PROOF_MAX or any(len(h) != HASH_BYTES for h in request.proof):
            return Answer(error="a head has a root of 32 bytes and a proof of at most 63 hashes")
        if request.number < last.epoch or size < last.size or (size == last.size and root != last.root):
            return msgspec.structs.replace(here, error=f"{last.size} entries were signed in epoch {last.epoch}: this goes back")
        if request.number > last.epoch and size == last.size:
            return msgspec.structs.replace(here, error="the first head of an epoch is larger than the last of the one before")
        try:
            verify_consistency(last.size, size, last.root, root, request.proof)
        except (VerificationError, ValueError) as e:
            return msgspec.structs.replace(here, error=f"it does not extend the {last.size} entries that were signed: {e}")
        try:
            signer = self._signer_of(request.number)
        except FileNotFoundError:
            return Answer(missing=True)
        if size > last.size:  # persisted before anything is signed: a signature that exists is always known here
            self.keys.put_mark(last.origin, size, root, request.number)
            self.keys.sync()
            self._last = Mark(0, last.origin, size, root, request.number)
        return Answer(text=signer.sign(size, root).decode(), size=size, root=root)

    def _prepare(self, request: Request) -> Answer:
        number, there = request.number, self.keys.numbers()
        if number <= self._last.epoch or (there and number > max(there) + 1):
            return Answer(error=f"the next epoch after {self._last.epoch} cannot be {number}")
        self._signer = None
        return Answer(text=self.keys.prepare(number, self.settings.origin).format())

    def _numbers(self, _request: Request) -> Answer:
        return Answer(numbers=tuple(self.keys.numbers()))

    def _destroy(self, request: Request) -> Answer:
        there = self.keys.numbers()
        if request.number in there and request.number == self._last.epoch and request.number == max(there):
            return Answer(error="the key of the running epoch goes when the next one is there")
        self._signer = None
        self.keys.destroy(request.number)
        return Answer()


def read_settings(folder: Path) -> Settings:
    """``keyd.json``. ``StoreError`` names the file."""
    path = folder / "keyd.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no keys for tally keyd (no keyd.json); tally keyd init makes it") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise StoreError(f"{path}: {e}") from None


# -- the socket ------------------------------------------------------------------------------------------------------------


class Door:
    """The Unix socket, made with exactly ``mode`` and the group ``group``. The caller holds the folder's lock, so that a socket that
    is there is one that a dead daemon left. Who asks is taken from the kernel (SO_PEERCRED), Linux only."""

    def __init__(self, path: Path, *, mode: int = 0o660, group: str | None = None) -> None:
        self.path = path
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise StoreError(f"{path} is there and is no socket")
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            before = os.umask(0o177)  # nobody connects before the mode is right
            try:
                self._socket.bind(os.fspath(path))
            finally:
                os.umask(before)
            if group is not None:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            os.chmod(path, mode)
            self._socket.listen(64)
        except KeyError:
            self._socket.close()
            raise StoreError(f"there is no group {group}") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def serve(self, keyd: Keyd, *, stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Answer one connection after the other until ``stop()``, which is asked at least twice a second. Ends with ``OSError`` where
        the keys' disk failed."""
        tokens, then = _BURST, time.monotonic()
        self._socket.settimeout(0.5)
        while not stop():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            now = time.monotonic()
            tokens = min(_BURST, tokens + (now - then) * REQUESTS_PER_S) - 1
            then = now
            if tokens < 0:  # who asks too often waits, and with him everybody: a delay loses nothing
                time.sleep(-tokens / REQUESTS_PER_S)
            with connection:
                self._converse(connection, keyd, say)

    def _converse(self, connection: socket.socket, keyd: Keyd, say: Callable[[str], None]) -> None:
        pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        allowed = uid == os.geteuid() or uid in keyd.settings.uids
        try:
            if not allowed:
                say(f"refused: user {uid} (process {pid}) may not ask")
                reply = Answer(error=f"user {uid} may not ask here")
            else:
                request = receive(connection, Request, TIMEOUT_S)
                assert isinstance(request, Request)
                reply = keyd.answer(request)
                if reply.error:
                    say(f"refused: {request.op} by user {uid} (process {pid}): {reply.error}")
        except Malformed as e:
            reply = Answer(error=str(e))
        except AuditError as e:  # a key file that is none
            reply = Answer(error=str(e))
        except (TimeoutError, ConnectionError):
            return  # the other side; a failing disk passes through and ends the daemon
        with contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT_S)
            connection.sendall(encode(reply))


# -- taking the keys over ---------------------------------------------------------------------------------------------------


def take_over(keys: KeyFolder, folder: Path, number: int, head: Checkpoint, uids: tuple[int, ...], disk: Disk = DISK) -> None:
    """Copy the key of the running epoch into ``folder``, which exists and is empty, with the log's head as the last that was signed.
    The caller holds the log's lock, and destroys the key in ``keys`` once the log names the socket. ``keyd.json`` comes last: a
    folder without it is not served."""
    if any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty; name an empty or a new folder")
    key = keys.epoch_key(number)
    disk.write_file(folder / f"epoch-{number}.key", (key.format() + "\n").encode(), 0o600, like=folder)
    mine = KeyFolder(folder, disk)
    try:
        mine.put_mark(head.origin, head.size, head.root, number)
        mine.sync()
    finally:
        mine.close()
    disk.write_file(folder / "keyd.json", msgspec.json.encode(Settings(head.origin, uids)) + b"\n", 0o600, like=folder)
