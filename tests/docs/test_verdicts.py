"""``docs/verdicts.md`` has every word that a verdict can say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tallystick.core.require import WORDS
from tallystick.core.verify import ASKED, ISSUES, Verdict

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "verdicts.md").read_text(encoding="utf-8")
SOURCES = Path(__file__).resolve().parents[2] / "src" / "tallystick"


@pytest.mark.parametrize("word", [*ISSUES, *ASKED, *WORDS, *Verdict().as_dict()])
def test_the_page_has_it(word: str) -> None:
    assert f"`{word}`" in PAGE or word in ("origin", "tree_size", "root", "lifecycle_entries", "lost_on_record")


def test_the_page_has_what_ranges_are_called() -> None:
    check = (SOURCES / "log" / "check.py").read_text(encoding="utf-8")
    said = re.findall(r'"((?:content proven|proven before|hashes only|archived|altered|missing|unsigned when found|sealed|epoch open|'
                      r'epoch closed, its key not pinned)|seal (?:broken|missing) at)', check)  # fmt: skip
    assert len(set(said)) >= 10
    for word in set(said):
        assert f"`{word}" in PAGE, word
