"""A file imports only from lower floors; within floor 2 never from another part; within the others freely."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "tallystick"
FLOORS: dict[str, int] = {
    "core": 0, "disk": 1, "clock": 1, "keys": 2, "vault": 2, "index": 2, "memory": 2, "outside": 2, "store": 2, "log": 3,
    "retention": 3, "anchor": 3, "keyd": 3, "witness": 3, "capture": 4, "reports": 4, "evidence": 4, "config": 5, "opening": 5,
    "handles": 5, "events": 5, "journal": 5, "logger": 5, "verification": 5, "splitview": 5, "proving": 5, "packing": 5, "publishing": 5,
    "answering": 5, "judging": 5, "family": 5, "backup": 5, "resume": 5, "card": 5, "incident": 5,
    "demo": 5, "cli": 5, "__init__": 5, "__main__": 5,
}  # fmt: skip


def _imports(file: Path) -> set[str]:
    """The parts of the package that a file imports from anywhere in it, also inside functions."""
    here = ["tallystick", *file.relative_to(SOURCE).parent.parts]
    found: list[list[str]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            found += [[*module, alias.name] for alias in node.names] if module == ["tallystick"] else [module]
    return {name[1] if name[1] in FLOORS else "__init__" for name in found if name[0] == "tallystick" and len(name) > 1}


def _violations() -> list[str]:
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        for other in sorted(_imports(file) - {part}):
            allowed = FLOORS[other] < FLOORS[part] or (FLOORS[other] == FLOORS[part] and FLOORS[part] != 2)
            if not allowed:
                found.append(f"{file.relative_to(SOURCE)} (floor {FLOORS[part]}) imports {other} (floor {FLOORS[other]})")
    return found


def test_every_part_has_a_floor() -> None:
    assert {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} == set(
        FLOORS)  # fmt: skip


def test_imports_go_down() -> None:
    assert _violations() == []


def test_only_the_composition_names_a_concrete_store() -> None:
    """``log`` and the floors around it know the contract, ``store/__init__.py``, and nothing else of the stores."""
    naming = []
    for file in sorted(SOURCE.rglob("*.py")):
        part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        modules = {n.module or "" for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)}
        if FLOORS[part] < 5 and part != "store" and any(m.startswith(("store.", "tallystick.store.")) for m in modules):
            naming.append(str(file.relative_to(SOURCE)))
    assert naming == []
