"""The command line as people run it: in this process for speed, in another where it matters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from tallystick.cli import cli


class Ran(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def tally(tmp_path, monkeypatch):
    """Run one command line in this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*args, stdin=None):
        result = CliRunner().invoke(cli, [str(a) for a in args], input=io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin or b""))
        assert "Traceback" not in result.output
        assert result.exit_code != 1
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def process(tmp_path):
    """Run one command line in a process of its own."""

    def run(*args, stdin=b"", env=None, cwd=None, **more):
        done = subprocess.run(
            [sys.executable, "-m", "tallystick", *map(str, args)], input=stdin, capture_output=True, check=False, cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})}, timeout=60, **more,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr
        assert done.returncode != 1
        return done

    return run


@pytest.fixture
def log(tally):
    """A log with three events; its path."""
    assert tally("init", "--origin", "test/log").code == 0
    for actor, action, resource, amount in (("ana", "read customer", "crm/7", 42), ("bob", "post invoice", "erp/1", 150),
                                            ("ana", "log in", "portal", 7)):  # fmt: skip
        ran = tally("record", "--actor", actor, "--action", action, "--resource", resource, "--details", json.dumps({"amount": amount}))
        assert ran.code == 0, ran.err
    return Path.cwd() / "audit_log"


def events(*actions):
    """Piped JSON lines."""
    return "".join(
        json.dumps({"event_type": "data_access", "actor": "bot", "actor_type": "service", "resource": "r", "action": a}) + "\n"
        for a in actions
    )
