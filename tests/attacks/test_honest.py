"""Before any attack: the honest log is whole, so that whatever is found later was done by the attack."""

from __future__ import annotations

from .conftest import Case


def test_nothing_is_found(case: Case) -> None:
    verdict = case.check(0)
    assert verdict.tree_size == case.size == len(case.lines())
    assert len(case.segments()) >= 4
    assert case.check(0, content=True)
    assert case.check(0, new_only=True)
