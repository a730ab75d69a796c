"""Every test gets a memory of its own; the end of the output is a table of legs."""

from __future__ import annotations

import collections
import os
import platform
import shutil
import sqlite3
import subprocess

import pytest

import tallystick

LEGS = {
    "core": "formats, property tests", "faults": "faults, power loss, kill -9", "writers": "many writers", "bench": "benchmark harness",
    "attacks": "altered and hostile files", "matrix": "attack matrix", "foreign": "Go x/mod, aics-tlog, noble", "cli": "command line", "capture": "audited, redactor",
    "reports": "reports", "retention": "archive", "anchor": "mail, folders, OpenSSL TSA", "keyd": "keys elsewhere",
    "witness": "witness, its log",
    "demo": "demo, real model", "docs": "documents", "store": "store contract", "evidence": "packs, verify.py, Chromium",
    "machine": "backup, resume, key card",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_memory(tmp_path_factory, monkeypatch):
    """No test touches the memory or the log of the person who runs it."""
    monkeypatch.setenv("TALLY_STATE", str(tmp_path_factory.mktemp("state")))
    for name in ("TALLY_LOG", "TALLY_VKEY"):
        monkeypatch.delenv(name, raising=False)


def _version(leg: str) -> str:
    if leg == "foreign" and shutil.which("go"):
        return subprocess.run(["go", "version"], capture_output=True, text=True, check=False).stdout.split()[2]
    return ""


def pytest_terminal_summary(terminalreporter):
    """Which legs ran, with what, how many."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            parts = getattr(report, "nodeid", "tests/?").split("/")
            counts[parts[1].split("::")[0] if len(parts) > 1 else "?"][outcome] += 1
    write = terminalreporter.write_line
    write("")
    write(f"tallystick {tallystick.__version__} · Python {platform.python_version()} · SQLite {sqlite3.sqlite_version} · "
          f"{os.uname().sysname} {os.uname().release}")  # fmt: skip
    write(f"{'leg':<12} {'what':<28} {'passed':>7} {'failed':>7} {'skipped':>8}  version")
    for leg in sorted({*counts, *(name for name in LEGS if os.path.isdir(f"tests/{name}"))}):
        c = counts.get(leg, collections.Counter())
        write(f"{leg:<12} {LEGS.get(leg, 'structure'):<28} {c['passed']:>7} {c['failed'] + c['error']:>7} {c['skipped']:>8}"
              f"  {_version(leg)}{'' if sum(c.values()) else '  DID NOT RUN'}")  # fmt: skip
