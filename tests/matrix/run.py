"""Runs everything and says what was seen, as data that is the same at every run."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checks import CHECKS, Lab
from .grid import ATTACKS, Attack, Cell, Runner
from .site import SIZE, laboratory, make_sites

ROWS = Path(__file__).with_name("rows.toml")


def required_rows() -> dict[str, str]:
    """Every row that must have a run: id → text."""
    found = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    return {f"{source}{number}": text for source, rows in found.items() for number, text in rows.items()}


@contextmanager
def _base() -> Iterator[Path]:
    """A folder in memory where there is one: some ten thousand small logs are made and thrown away here."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="tallystick-matrix-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def run(progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """``cells``: every attack; ``checks``: every property; ``rows``: row → names of what ran for it. What failed has ``failed``."""
    cells: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    with _base() as base, laboratory() as clock:
        sites = make_sites(base, clock)
        try:
            runner = Runner(sites, clock)
            for attack in ATTACKS:
                progress(attack.name)
                cells += [_as_dict(attack, cell) for cell in runner.run(attack)]
            lab = Lab(sites, clock, base / "checks")
            lab.base.mkdir()
            for check in CHECKS:
                progress(check.name)
                found: dict[str, Any] = {"name": check.name, "group": check.group, "rows": list(check.rows), "whole": list(check.whole)}
                try:
                    checks.append(found | {"result": check.run(lab)})
                except Exception:
                    checks.append(found | {"result": "**failed**", "failed": traceback.format_exc()})
        finally:
            for site in sites.values():
                if site.witness is not None:
                    site.witness.stop()
    ran: dict[str, list[str]] = {}
    for one in [*({"name": a.name, "rows": a.rows} for a in ATTACKS), *checks]:
        if "failed" not in one:
            for row in one["rows"]:
                ran.setdefault(row, []).append(one["name"])
    return {"size": SIZE, "cells": cells, "checks": checks, "rows": ran}


def _as_dict(attack: Attack, cell: Cell) -> dict[str, Any]:
    must = attack.must[cell.configuration][cell.verifier == "operator"]
    late = [p for p in cell.open if p < must and p not in attack.may]
    found = {
        "attack": attack.name, "group": attack.group, "has": attack.has, "rows": list(attack.rows), "at": attack.at,
        "configuration": cell.configuration, "verifier": cell.verifier, "places": list(cell.places), "open": list(cell.open),
        "open_from": cell.open_from, "gaps": list(cell.gaps), "ways": cell.ways, "honest": attack.honest,
        "noticed": cell.noticed and cell.noticed._asdict(), "unnoticed": cell.unnoticed and cell.unnoticed._asdict(),
    }  # fmt: skip
    if late:
        found["failed"] = f"must be noticed at {late}, and is not"
    if attack.honest and cell.noticed:
        found["failed"] = f"a false alarm: {cell.noticed}"
    return found


def failures(found: dict[str, Any]) -> list[str]:
    """What must not be: an attack that must be noticed and is not, a property that does not hold, a row without a run."""
    failed = [f"{c['attack']}, {c['configuration']}, {c['verifier']}: {c['failed']}" for c in found["cells"] if "failed" in c]
    failed += [f"{c['name']}: {c['failed']}" for c in found["checks"] if "failed" in c]
    required = required_rows()
    failed += [f"{row} ({text}): not run" for row, text in required.items() if row not in found["rows"]]
    return failed + [f"{row}: not a row of {ROWS.name}" for row in found["rows"] if row not in required]


def to_stderr(name: str) -> None:
    sys.__stderr__ and sys.__stderr__.write(f"\r{name[:90]:<90}")
