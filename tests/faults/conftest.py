"""A lab for each test; real syncs are left out where the machine cannot go down."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick.log import check
from tallystick.log.view import LogView

from .lab import Lab


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small logs are made and thrown away here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(prefix="tallystick-test-", dir=memory))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def lab(base: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    made = Lab(base)
    made.make()
    capsys.readouterr()
    return made


@pytest.fixture(autouse=True)
def _no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own machine does not lose its power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does not verify is read once, not for a second."""
    monkeypatch.setattr(LogView.head, "__defaults__", (0.0,))
    monkeypatch.setattr(check, "IN_FLIGHT_S", 0.0)
