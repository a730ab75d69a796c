"""A lab for each test; real syncs are left out where the machine cannot go down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .lab import Lab


@pytest.fixture
def lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    made = Lab(tmp_path)
    made.make()
    capsys.readouterr()
    return made


@pytest.fixture(autouse=True)
def _no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own machine does not lose its power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
