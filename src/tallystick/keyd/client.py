"""``keys.Custody`` over the socket of ``tally keyd``: what a writer uses instead of key files (``[keyd] socket`` in log.toml).

The writer syncs its lines before it asks for a head: with key files a signature that nobody saw may be thrown away with its lines,
the daemon's may not. Where no answer came the same is asked again; where still none comes, nobody knows whether it was signed: the
lines stay, and the next append takes them in on record.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

from ..core.checkpoint import Checkpoint, open_checkpoint
from ..core.errors import AuditError, Malformed, StateUnknown, StoreError
from ..core.note import VerifierKey
from ..core.tiles import Read, prove_consistency
from .frames import Answer, Request, encode, receive

TIMEOUT_S = 10.0
_AGAIN_S = (0.05, 0.2, 0.5, 1.0)


class KeydCustody:
    """The epoch keys of ``origin`` behind ``path``. ``read``: the log's tree, for consistency proofs.
    A daemon that is not there is ``ConnectionRefusedError``; what it refuses is ``StateUnknown``."""

    def __init__(self, path: Path, origin: str, read: Read) -> None:
        self.path, self._origin, self._read = path, origin, read
        self._last: int | None = None  # the size that the daemon signed last, as far as this process knows

    def signer(self, number: int) -> KeydSigner:
        """What signs heads of epoch ``number``. ``FileNotFoundError`` if the daemon has no such key."""
        return KeydSigner(self, number, VerifierKey.parse(self._ask(Request("key", self._origin, number)).text))

    def prepare(self, number: int, origin: str) -> VerifierKey:
        """Have the key of epoch ``number`` made, durable on return."""
        return VerifierKey.parse(self._ask(Request("prepare", origin, number)).text)

    def numbers(self) -> list[int]:
        """The epochs whose keys are there, ascending."""
        return list(self._ask(Request("numbers", self._origin)).numbers)

    def destroy(self, number: int) -> None:
        """Have the key of epoch ``number`` destroyed, durable on return. ``OSError`` where the daemon keeps it."""
        try:
            self._ask(Request("destroy", self._origin, number))
        except StateUnknown as e:
            raise OSError(errno.EBUSY, str(e), os.fspath(self.path)) from None

    def last_size(self) -> int:
        """The size of the last head that the daemon signed."""
        return self._ask(Request("head", self._origin)).size

    def sign(self, number: int, size: int, root: bytes, verifier: VerifierKey) -> bytes:
        """The note of a head, verified. ``OSError`` only where it certainly was not signed; else ``StateUnknown`` where the daemon
        refuses, ``StoreError`` where nobody knows."""
        last = self.last_size() if self._last is None else self._last
        answer = self._propose(number, last, size, root)
        if answer.error and answer.size not in (0, last):  # another process had a head signed since
            answer = self._propose(number, answer.size, size, root)
        self._last = answer.size or None
        if answer.missing:
            raise StateUnknown(f"tally keyd at {self.path} has no key of epoch {number}")
        if answer.error:
            raise StateUnknown(f"tally keyd at {self.path} does not sign: {answer.error}. If this log was set back, the way on is: "
                               "tally resume")  # fmt: skip
        note = answer.text.encode()
        try:
            if open_checkpoint(note, [verifier], origin=self._origin) != Checkpoint(self._origin, size, root):
                raise Malformed("another head than the one asked for")
        except AuditError as e:
            raise StateUnknown(f"tally keyd at {self.path} answered with something else than a signature: {e}") from None
        return note

    def _propose(self, number: int, last: int, size: int, root: bytes) -> Answer:
        proof = prove_consistency(self._read, last, size) if last <= size else []
        request = Request("sign", self._origin, number, size, root, tuple(proof))
        for wait in (*_AGAIN_S, None):
            try:
                return self._exchange(request)
            except _NoAnswer as e:  # it may have signed: the same head is signed again, byte for byte
                problem = e
            except OSError as e:
                if wait == _AGAIN_S[0]:
                    raise  # nothing was ever sent
                problem = _NoAnswer(str(e))
            if wait is not None:
                time.sleep(wait)
        raise StoreError(f"tally keyd at {self.path} does not answer ({problem}); whether it signed is not known, so whether these "
                         "events are on record is not: look for them after the next append")  # fmt: skip

    def _ask(self, request: Request) -> Answer:
        """``OSError`` where it is not there, ``FileNotFoundError`` where it has no such key, ``StateUnknown`` where it refuses."""
        try:
            answer = self._exchange(request)
        except _NoAnswer as e:
            raise OSError(errno.ETIMEDOUT, str(e), os.fspath(self.path)) from None
        if answer.missing:
            raise FileNotFoundError(errno.ENOENT, "tally keyd has no such key", os.fspath(self.path))
        if answer.error:
            raise StateUnknown(f"tally keyd at {self.path}: {answer.error}")
        return answer

    def _exchange(self, request: Request) -> Answer:
        """One connection. ``ConnectionRefusedError`` where nothing was sent, ``_NoAnswer`` where that is not known."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(TIMEOUT_S)
            try:
                connection.connect(os.fspath(self.path))
            except PermissionError:
                raise
            except OSError as e:  # also "no such file", which would be taken for a key that is not there
                why = f"tally keyd is not running ({e.strerror})"
                raise ConnectionRefusedError(errno.ECONNREFUSED, why, os.fspath(self.path)) from None
            try:
                connection.sendall(encode(request))
            except OSError:
                pass  # refused before it was read; the answer says why
            try:
                answer = receive(connection, Answer, TIMEOUT_S)
            except (OSError, Malformed) as e:
                raise _NoAnswer(str(e)) from None
        assert isinstance(answer, Answer)
        return answer


class _NoAnswer(Exception):
    """Something was sent and nothing came back."""


class KeydSigner:
    """Signs heads of one epoch through the daemon."""

    def __init__(self, custody: KeydCustody, number: int, verifier: VerifierKey) -> None:
        self._custody, self._number, self.verifier = custody, number, verifier

    def sign(self, size: int, root: bytes) -> bytes:
        """The note of the head of ``size`` ≥ 1 entries, which extends the last one."""
        return self._custody.sign(self._number, size, root, self.verifier)
