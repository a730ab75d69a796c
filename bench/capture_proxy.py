"""Through the proxy and directly: one client that keeps its connection, one request after the other, three processes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .capture_local import MODEL, messages

BLOCK = 50
WAYS = ("direct", "proxy", "proxy, lengths")


class Proxied:
    """``with Proxied(folder) as one: one.round(1000)``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Proxied:
        port = self._open.enter_context(model_server())
        ports = {"direct": port, "proxy": self._open.enter_context(proxy(self._folder / "proxy", port)),
                 "proxy, lengths": self._open.enter_context(proxy(self._folder / "proxy-lengths", port, "lengths"))}  # fmt: skip
        self._clients = {way: self._open.enter_context(contextlib.closing(Client(ports[way]))) for way in WAYS}
        self.round(2 * BLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def round(self, count: int) -> dict[str, float]:
        """``count`` requests of each way, a block of one and a block of the next: p50 and p99 in ms."""
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(max(1, count // BLOCK)):
            for way, client in self._clients.items():
                for _ in range(BLOCK):
                    began = time.perf_counter()
                    client.ask()
                    taken[way].append((time.perf_counter() - began) * 1000)
        seen = {}
        for way, values in taken.items():
            values.sort()
            seen[f"{way}: p50, ms"] = values[len(values) // 2]
            seen[f"{way}: p99, ms"] = values[len(values) * 99 // 100]
        return seen


class Client:
    """As little of HTTP as it takes: what is measured is not the client."""

    def __init__(self, port: int, model: str = MODEL, *, stream: bool = False) -> None:
        body = json.dumps({"model": model, "messages": messages(), "stream": stream}).encode()
        headers = {"host": f"127.0.0.1:{port}", "content-type": "application/json", "content-length": str(len(body))}
        lines = ["POST /api/chat HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._request = "\r\n".join(lines).encode() + body
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """One request, and all of its answer, which says how long it is."""
        self._socket.sendall(self._request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._some()
        head = data[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(data[:300])
        left = int(head[head.find(b"content-length:") + 15 :].split(b"\r\n", 1)[0]) + end + 4 - len(data)
        while left > 0:
            left -= len(self._some())

    def pieces(self) -> Iterator[int]:
        """One request, and how many pieces of its stream have come, whenever more have."""
        self._socket.sendall(self._request)
        seen, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = self._some()
            seen += data.count(b'"done": false')
            tail = (tail + data)[-5:]
            yield seen

    def _some(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the connection was closed in the middle of an answer")
        return data

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def model_server() -> Iterator[int]:
    """The server's port."""
    command = [sys.executable, "-m", "bench.capture_server"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def proxy(folder: Path, upstream: int, content: str = "", pid: list[int] | None = None) -> Iterator[int]:
    """The port of a proxy with a log of its own."""
    from tallystick import AuditLogger

    AuditLogger(folder).close()
    if content:
        settings = folder / "log.toml"
        text = settings.read_text(encoding="utf-8")
        settings.write_text(text.replace('content = "commitment"', f'content = "{content}"'), encoding="utf-8")
    command = [sys.executable, "-m", "tallystick", "proxy", str(folder), "--upstream", f"http://127.0.0.1:{upstream}"]
    command += ["--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said: list[str] = []
        while not said or not said[-1].startswith("tally proxy: http://"):
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the proxy did not start: {''.join(said)}")
            said.append(line)
        if f"content = {content or 'commitment'}" not in said[-1]:
            raise RuntimeError(f"not the policy that was asked for: {said[-1]}")
        if pid is not None:
            pid.append(process.pid)
        yield int(said[-1].split(" ")[2].rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def peak_mb(pid: int) -> float:
    """The peak of a process's resident memory so far."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc")


def memory(folder: Path, pieces: int) -> tuple[float, float]:
    """Peak of the proxy's memory when a tenth of a stream has passed, and at its end: MB."""
    pid: list[int] = []
    with model_server() as server, proxy(folder, server, pid=pid) as port:
        with contextlib.closing(Client(port)) as client:
            client.ask()
        with contextlib.closing(Client(port, f"long:{pieces}", stream=True)) as client:
            early, seen = 0.0, 0
            for seen in client.pieces():
                if not early and seen >= pieces // 10:
                    early = peak_mb(pid[0])
            if abs(seen - pieces) > pieces // 100:  # a piece across two segments is not counted
                raise RuntimeError(f"{seen} of {pieces} pieces")
            return early, peak_mb(pid[0])
