"""Witnesses, in turn, round after round; ``python -m bench.witness ROUNDS SCALE`` prints what it saw as JSON.

Ours and aics-witness, each a process of its own, answer the same logs over kept connections: each request extends the log's last
checkpoint with a consistency proof in a tree of some thousand entries, all were made before. Both keep what they cosign in SQLite
with ``synchronous=FULL`` (WAL) before they answer. And appends of a log with a witness beside those of one without.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.foreign.packages import AICS, wheels

from tallystick import AuditLogger
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.merkle import Frontier, leaf_hash
from tallystick.core.note import SignerKey
from tallystick.core.tiles import prove_consistency, root_at
from tallystick.core.tlog_witness import format_request
from tallystick.outside import HandedOut, Parties
from tallystick.proving import current_checkpoint
from tallystick.publishing import Known, change_policy, write_policy
from tallystick.witness.folder import add_log, create, read_vkeys

from .events import events
from .seen import Cases

LOGS, FIRST = 32, 1000
NAME = "witness.example/w1"


def main() -> None:
    """Run and print."""
    rounds, scale = int(sys.argv[1]), float(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-witness-") as name:
        os.environ["TALLY_STATE"] = f"{name}/state"
        sys.stderr.write("  witness\n")
        print(json.dumps(_Witnesses(Path(name).resolve(), rounds, scale).run()))


class _Witnesses(Cases):
    def __init__(self, folder: Path, rounds: int, scale: float) -> None:
        super().__init__()
        self.folder, self.rounds = folder, rounds
        self.each = max(4, int(30 * scale))  # requests of one log in one round
        self.alone = max(8, int(100 * scale))  # of a lone client
        self.singles = max(20, int(400 * scale))
        self.signers = [SignerKey(f"log.example/{n}", Ed25519PrivateKey.generate()) for n in range(LOGS + 1)]
        self.bodies = self._bodies()

    def _bodies(self) -> list[list[bytes]]:
        """For each log its requests, the last one of them for the lone client."""
        grown = FIRST + self.rounds * max(self.each, self.alone) + 2
        leaves = [leaf_hash(b"%d" % n) for n in range(grown)]
        rows = [b"".join(leaves), *(b"".join(row) for row in Frontier().extend(leaves))]

        def read(level: int, start: int, count: int) -> bytes:
            return rows[level][32 * start : 32 * (start + count)]

        made = []
        for number, signer in enumerate(self.signers):
            count = self.rounds * (self.alone if number == LOGS else self.each)
            sizes = [0, FIRST, *range(FIRST + 1, FIRST + count + 1)]
            made.append([
                format_request(a, prove_consistency(read, a, b),
                               sign_checkpoint(Checkpoint(signer.name, b, root_at(read, b)), signer))
                for a, b in zip(sizes, sizes[1:], strict=False)
            ])  # fmt: skip
        return made

    def run(self) -> dict[str, Any]:
        servers = {"tally witness": self._ours(), "aics-witness": self._theirs()}
        try:
            for _, port in servers.values():
                drive(port, [bodies[:1] for bodies in self.bodies])  # the first checkpoint of each log
            for number in range(self.rounds):
                sys.stderr.write(f"    round {number + 1} of {self.rounds}\n")
                for name, (process, port) in servers.items():
                    self._many(name, process, port, number)
                    self._lone(name, port, number)
        finally:
            for process, _ in servers.values():
                process.send_signal(signal.SIGTERM)
                process.wait(20)
        self._appends()
        return {"seen": self.seen}

    def _many(self, name: str, process: subprocess.Popen[bytes], port: int, number: int) -> None:
        some = [bodies[1 + number * self.each : 1 + (number + 1) * self.each] for bodies in self.bodies[:LOGS]]
        count, cpu, started = LOGS * self.each, cpu_s(process.pid), time.perf_counter()
        taken = sorted(drive(port, some))
        self.note(f"{name}, {LOGS} logs at once", count / (time.perf_counter() - started))
        self.note(f"{name}, {LOGS} logs at once: p99, ms", taken[int(len(taken) * 0.99)] * 1000)
        self.note(f"{name}: CPU µs per request", (cpu_s(process.pid) - cpu) / count * 1e6)

    def _lone(self, name: str, port: int, number: int) -> None:
        some = self.bodies[LOGS][1 + number * self.alone : 1 + (number + 1) * self.alone]
        taken = sorted(drive(port, [some]))
        self.note(f"{name}, one log: p50, ms", statistics.median(taken) * 1000)

    def _ours(self) -> tuple[subprocess.Popen[bytes], int]:
        folder = self.folder / "ours"
        create(folder, NAME)
        for signer in self.signers:
            add_log(folder, signer.verifier.format())
        return started(_serve(folder), self.folder, {})

    def _theirs(self) -> tuple[subprocess.Popen[bytes], int]:
        folder = self.folder / "theirs"
        folder.mkdir()
        environment = {"PYTHONPATH": str(wheels(*AICS)), "AICS_WITNESS_CONFIG": str(folder / "witness.json")}
        command = [sys.executable, "-m", "aics_witness"]
        subprocess.run([*command, "init", "--name", NAME], env={**os.environ, **environment}, check=True, capture_output=True)
        config = json.loads((folder / "witness.json").read_text())
        config["logs"] = [{"origin": s.name, "vkeys": [s.verifier.format()]} for s in self.signers]
        (folder / "witness.json").write_text(json.dumps(config))
        return started([*command, "serve", "--listen", "127.0.0.1:0"], folder, environment)

    def _appends(self) -> None:
        """The same log() with a witness and without; a checkpoint goes out in each round while they run."""
        folder = self.folder / "appends"
        folder.mkdir()
        with AuditLogger(folder / "with") as one, AuditLogger(folder / "without") as other:
            create(folder / "w", NAME)
            add_log(folder / "w", one._handle.genesis.vkey.format())
            process, port = started(_serve(folder / "w"), folder, {})
            try:
                vkey = one._handle.genesis.vkey
                known = Known("w", f"http://127.0.0.1:{port}", read_vkeys(folder / "w"))
                write_policy(one.path, change_policy(None, vkey, [known], "all"))
                one._handle.publisher._look_at = 0.0
                some = events(self.singles)
                for log in (one, other):
                    log.log_many(some)
                for _ in range(self.rounds):
                    without = timed(other, some)
                    idle = timed(one, some)
                    note = current_checkpoint(one)
                    size = int(note.split(b"\n")[1])
                    HandedOut(one.path).put(size, note)
                    one._handle.publisher.wake()
                    during = timed(one, some)
                    self.note("log() p50, no witness, µs", statistics.median(without) * 1e6)
                    self.note("log() p50, with a witness, µs", statistics.median(idle) * 1e6)
                    self.note("log() p50, while a checkpoint is witnessed, µs", statistics.median(during) * 1e6)
                    self.note("all log() of a round: more time while a checkpoint is witnessed, ms", (sum(during) - sum(idle)) * 1e3)
                    state = Parties(one.path).get("w")
                    self.note("checkpoints witnessed in a round", float(state is not None and state.done_size == size))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


def _serve(folder: Path) -> list[str]:
    return [sys.executable, "-m", "tallystick", "witness", "serve", str(folder), "--listen", "127.0.0.1:0"]


def timed(log: AuditLogger, some: list[dict[str, Any]]) -> list[float]:
    """Seconds of each ``log()``."""
    taken = []
    for event in some:
        begun = time.perf_counter()
        log.log(**event)
        taken.append(time.perf_counter() - begun)
    return taken


def started(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """A server and the port that it says on standard error."""
    said = folder / f"said-{len(list(folder.iterdir()))}"
    with said.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=file, stderr=file)
    until = time.monotonic() + 20
    while (found := re.search(rb"127\.0\.0\.1:(\d+)", said.read_bytes())) is None:
        if time.monotonic() > until or process.poll() is not None:
            raise SystemExit(f"{command} does not serve: {said.read_text()}")
        time.sleep(0.02)
    return process, int(found[1])


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(port: int, work: list[list[bytes]]) -> list[float]:
    """Each list of requests over a connection of its own, one after the other; seconds of each. Whatever is not 200 ends the run."""
    selector, taken = selectors.DefaultSelector(), []
    for bodies in work:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        requests = iter([b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n" % len(b) + b for b in bodies])
        connection.sendall(next(requests))
        selector.register(connection, selectors.EVENT_READ, [requests, time.perf_counter(), b""])
    left = len(work)
    while left:
        for key, _ in selector.select(30):
            state = key.data
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            chunk = connection.recv(65536)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # no server waits 40 ms for our acknowledgement
            state[2] += chunk
            head, gap, body = state[2].partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE) if gap else None
            if chunk and (length is None or len(body) < int(length[1])):
                continue
            if b" 200 " not in head[:16]:
                raise SystemExit(f"a witness answered: {state[2][:300]!r}")
            now = time.perf_counter()
            taken.append(now - state[1])
            following = next(state[0], None)
            if following is None:
                selector.unregister(connection)
                connection.close()
                left -= 1
            else:
                state[1], state[2] = time.perf_counter(), b""
                connection.sendall(following)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return taken


if __name__ == "__main__":
    main()
