"""Writes docs/api.md from the docstrings of the public names: ``python docs/make_api.py``. A test compares the two."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tallystick
from tallystick.core import errors

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API

Made from docstrings by `python docs/make_api.py`; do not edit. Everything here is imported from `tallystick`; names that are
not here may change at any time.
"""


def build() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in sorted(tallystick.__all__, key=lambda n: (n[0].islower(), n)):
        parts.extend(_named(name, getattr(tallystick, name)))
    parts.append("## Errors\n\nAll are below `AuditError`, in `tallystick.core.errors`.\n")
    parts.append("```text\n" + _tree(errors) + "\n```\n")
    return "\n".join(parts)


def _named(name: str, value: Any) -> Iterator[str]:
    yield f"## `{name}`\n"
    if not inspect.isclass(value):
        yield f"```text\n{name}{_signature(value)}\n```\n"
        yield _text(value)
        return
    if _own_init(value):
        yield f"```text\n{name}{_signature(value)}\n```\n"
    yield _text(value)
    choices = getattr(value, "__members__", {})
    if choices:
        yield "\n".join(f"- `{name}` = `{choice.value!r}`" for name, choice in choices.items()) + "\n"
    fields = getattr(value, "__struct_fields__", getattr(value, "_fields", ()))
    if fields:
        yield "Fields: " + ", ".join(f"`{field}`" for field in fields) + ".\n"
    if choices:
        return
    for member, found in _members(value):
        kind = "" if isinstance(found, property) else _signature(getattr(value, member))
        yield f"### `{name}.{member}`\n"
        if kind:
            yield f"```text\n{'async ' * inspect.iscoroutinefunction(found)}{member}{kind}\n```\n"
        yield _text(found)


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """Documented public methods and properties, in the order of the source."""
    for home in reversed(value.__mro__):
        if home.__module__.startswith("tallystick"):
            for name, found in vars(home).items():
                documented = inspect.isfunction(found) or isinstance(found, property)
                if documented and not name.startswith("_") and inspect.getdoc(found):
                    yield name, found


def _own_init(value: type) -> bool:
    return inspect.isfunction(vars(value).get("__init__"))


def _signature(value: Any) -> str:
    """One parameter a line where it would be long; annotations as they stand in the source."""
    signature = inspect.signature(value)
    shown: list[str] = []
    for name, parameter in signature.parameters.items():
        if name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(s.startswith("*") for s in shown):
            shown.append("*")
        star = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        shown.append(f"{star}{name}: {parameter.annotation}{default}")
    returns = "" if inspect.isclass(value) else f" -> {signature.return_annotation}"
    text = f"({', '.join(shown)}){returns}"
    return text if len(text) <= 110 else "(\n    " + ",\n    ".join(shown) + f",\n){returns}"


def _text(value: Any) -> str:
    """A docstring as Markdown: double back ticks are single ones here, and a literal block is fenced."""
    text = (inspect.getdoc(value) or "").replace("``", "`")
    return text + "\n"


def _tree(module: Any) -> str:
    text = inspect.getdoc(module) or ""
    block = text.partition("::\n\n")[2].partition("\n\n")[0]
    return inspect.cleandoc(block).replace("``", "")


if __name__ == "__main__":
    PAGE.write_text(build(), encoding="utf-8")
