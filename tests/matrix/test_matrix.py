"""The published attack matrix is what a run gives, and nothing that must be noticed is not."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from .run import failures, required_rows, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run()


def _page() -> Any:
    spec = importlib.util.spec_from_file_location("make_attacks", ROOT / "docs" / "make_attacks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_run_and_every_attack_that_must_be_noticed_is(found: dict[str, Any]) -> None:
    assert failures(found) == []


def test_the_committed_page_is_what_this_run_gives(found: dict[str, Any]) -> None:
    page = _page()
    now, committed = page.render(found, required_rows()), page.PAGE.read_text(encoding="utf-8")
    difference = list(difflib.unified_diff(committed.splitlines(), now.splitlines(), "docs/attacks.md", "this run", lineterm="", n=0))
    assert difference == [], "python docs/make_attacks.py\n" + "\n".join(difference[:40])


def test_what_the_page_names_as_all_of_it_exists(found: dict[str, Any]) -> None:
    for name in {w for check in found["checks"] for w in check["whole"]}:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_a_row_without_a_run_fails_and_is_printed(found: dict[str, Any]) -> None:
    less = found | {"rows": {row: names for row, names in found["rows"].items() if row != "B16"}}
    assert failures(less) == [f"B16 ({required_rows()['B16']}): not run"]
    assert f"| B16 | {required_rows()['B16']} | **not run** |" in _page().render(less, required_rows())


def test_what_the_threat_model_says_of_stolen_keys_is_what_was_seen(found: dict[str, Any]) -> None:
    """The honest core of it, spelled out: with the vkey alone nothing, and from the last point elsewhere on nothing."""
    seen = {(c["configuration"], c["verifier"]): c["open_from"] for c in found["cells"]
            if c["attack"] == "an entry edited and all after it signed anew"}  # fmt: skip
    assert seen == {("default", "auditor"): 2, ("epochs", "auditor"): 42, ("witness", "auditor"): 42, ("anchor", "auditor"): 42,
                    ("default", "operator"): 31, ("epochs", "operator"): 31, ("witness", "operator"): 31,
                    ("anchor", "operator"): 31}  # fmt: skip
