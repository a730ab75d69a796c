"""Five peers from PyPI on the same events: newest versions, in an environment of their own under ``.bench/``.

What is said of each beside its figures was read in its code; the numbers of syncs were counted in an earlier study of these
versions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SAID = {
    "auditchain": "SQLite, default journal: 4 syncs per append. Hash chain over the record; no signature without a key",
    "tamperlog": "flushes, never syncs: NOT durable. RFC 6962 leaves; verify hashes copies in memory, not the file",
    "pymerkle": "SQLite, default journal: 4 syncs per append. Leaf hashes; entries are never hashed again ('verify' is the root)",
    "bijotel": "SQLite, WAL, a connection per append: 5 syncs. HMAC over the body; time and name are outside it",
    "cloakllm": "flushes, never syncs: NOT durable. Hash chain over the whole entry; details of events do not fit its schema",
    "tallystick": "1 sync per append: durable. Every byte in a Merkle tree whose head is signed at every append",
}


def compare(own: Path, count: int) -> list[str]:
    """The table. What cannot be installed or run is said in it."""
    python = _environment()
    lines = [f"PEERS on {count:,} of the same events, one at a time, at most 10 s each; one run, no rounds", ""]
    for name, said in SAID.items():
        folder = own / name
        folder.mkdir()
        version = _version(python, name) if name != "tallystick" else "this one"
        command = [sys.executable if name == "tallystick" else str(python), "-m", "bench.peer_cases", name, str(folder), str(count)]
        sys.stderr.write(f"  {name}\n")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "TALLY_STATE": str(own / "state")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:120]
            lines.append(f"{name:<12} {version or 'NOT INSTALLED':<9} DID NOT RUN: {last}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        lines.append(f"{name:<12} {version:<9} {found['append']:>9,.0f} appends/s   verify {found['verify']:>11,.0f} /s   "
                     f"({found['events']:,} events)   {said}")  # fmt: skip
    return lines


def _environment() -> Path:
    folder = Path(".bench/peers").absolute()
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    names = [name for name in SAID if name != "tallystick"]
    for name in names:  # one at a time: one that fails must not take the others with it
        command = [str(python), "-m", "pip", "install", "-q", "--upgrade", "--disable-pip-version-check", name]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.stderr.write(f"  {name} COULD NOT BE INSTALLED\n")
    return python


def _version(python: Path, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout.strip()
