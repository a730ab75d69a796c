"""A witness in a folder, logs that can be of any size, and a clock that can be set."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading

import pytest

from tallystick.clock import Clock
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.merkle import Frontier, leaf_hash, root_of
from tallystick.core.note import SignerKey
from tallystick.core.tiles import prove_consistency
from tallystick.core.tlog_witness import format_request
from tallystick.witness.folder import add_log, create, read_keys, read_logs
from tallystick.witness.server import serve
from tallystick.witness.state import Witness

NAME = "witness.example/w1"


class SetClock(Clock):
    """Says what it was told."""

    def __init__(self, second: int = 1_700_000_000) -> None:
        self.second = second
        self.asked = lambda: None

    def wall_us(self) -> int:
        self.asked()
        return self.second * 1_000_000


class MadeLog:
    """A log whose entries are numbers; ``branch`` makes another history from an entry on."""

    def __init__(self, origin: str = "log.example/one", leaves: int = 300) -> None:
        self.origin = origin
        self.key = SignerKey.generate(origin)
        self.set([leaf_hash(b"%d" % n) for n in range(leaves)])

    def set(self, leaves) -> None:
        self.leaves = leaves
        self.rows = [b"".join(leaves), *(b"".join(row) for row in Frontier().extend(leaves))]

    def branch(self, start: int) -> MadeLog:
        other = object.__new__(MadeLog)
        other.origin, other.key = self.origin, self.key
        other.set(self.leaves[:start] + [leaf_hash(b"other %d" % n) for n in range(start, len(self.leaves))])
        return other

    def read(self, level, start, count):
        return self.rows[level][32 * start : 32 * (start + count)]

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(self.origin, size, root_of(self.leaves[:size]))

    def note(self, size: int) -> bytes:
        return sign_checkpoint(self.checkpoint(size), self.key)

    def body(self, old: int, size: int) -> bytes:
        return format_request(old, prove_consistency(self.read, old, size) if old <= size else [], self.note(size))


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def log():
    return MadeLog()


@pytest.fixture
def folder(tmp_path, log):
    create(tmp_path / "w", NAME)
    add_log(tmp_path / "w", log.key.verifier.format())
    return tmp_path / "w"


class Asked:
    """A witness that is asked without HTTP."""

    def __init__(self, folder, clock) -> None:
        self.folder = folder
        self.witness = Witness(folder, read_keys(folder), clock)

    def __call__(self, *bodies):
        logs = read_logs(self.folder)
        found = [self.witness.authenticate(body, logs) for body in bodies]
        asked = [one for one in found if not hasattr(one, "status")]
        answers = iter(self.witness.settle(asked))
        found = [one if hasattr(one, "status") else next(answers) for one in found]
        return found if len(found) > 1 else found[0]


@pytest.fixture
def witness(folder, clock):
    asked = Asked(folder, clock)
    yield asked
    asked.witness.close()


class Served:
    """A witness that serves in a thread of its own."""

    def __init__(self, folder, clock=None) -> None:
        self.folder = folder
        self.witness = Witness(folder, read_keys(folder), clock or Clock())
        self.said: list[str] = []
        up = threading.Event()

        def ready(host, port):
            self.host, self.port = host, port
            up.set()

        async def run():
            self.loop, self.until = asyncio.get_running_loop(), asyncio.Event()
            await serve(self.witness, "127.0.0.1", 0, ready=ready, until=self.until, say=self.said.append)

        self.thread = threading.Thread(target=lambda: asyncio.run(run()))
        self.thread.start()
        assert up.wait(10)
        self.url = f"http://127.0.0.1:{self.port}/"

    def ask(self, method, path, body=None):
        """(status, headers, body)"""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """All that comes back until the server closes."""
        with socket.create_connection((self.host, self.port), timeout=10) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := s.recv(65536):
                got += chunk
            return got

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.until.set)
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.witness.close()


@pytest.fixture
def served(folder):
    one = Served(folder)
    yield one
    one.stop()


@contextlib.contextmanager
def serving(folder, clock=None):
    one = Served(folder, clock)
    try:
        yield one
    finally:
        one.stop()
