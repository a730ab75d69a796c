"""Every snippet of README.md and docs/ runs: Python in one namespace per file, ``tally`` commands in the same folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: ([^>]+?) -->\s*\Z")
EXIT = re.compile(r"#\s*exit (\d+)\s*\Z")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
LEFT_ALONE = ("make", "pip", "apt-get", "git", "python3", "cd", "cp", "mkdir", "umask")


class Block(NamedTuple):
    """One fenced block; ``reason`` is set where the page says that it is not run."""

    language: str
    text: str
    line: int
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        marker = NOT_RUN.search(text[: match.start()])
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 2, marker[1] if marker else None))
    return found


def commands_of(block: Block) -> list[tuple[str, int]]:
    """``tally`` lines with the exit code that the page says (0 without a word). A console block has prompts."""
    found = []
    for raw in block.text.replace("\\\n", " ").split("\n"):
        line = raw.removeprefix("$ ") if block.language == "console" else raw
        if block.language == "console" and not raw.startswith("$ "):
            continue
        expected = EXIT.search(line)
        line = EXIT.sub("", line).strip()
        if line and not line.startswith("#") and line.split()[0] not in LEFT_ALONE:
            found.append((line, int(expected[1]) if expected else 0))
    return found


def run_command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Through the shell, because pages show pipes and redirections; ``tally`` is this checkout's."""
    python = f"{shlex.quote(sys.executable)} -m tallystick"
    script = f"tally() {{ {python} \"$@\"; }}\nset -o pipefail\n{line}"
    environment = {**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "default"}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
                          check=False, stdin=subprocess.DEVNULL)  # fmt: skip


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    source = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
    exec(compile(source, str(page), "exec", dont_inherit=True), namespace)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_snippet_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    ran = skipped = 0
    for block in blocks_of(page):
        if block.language not in ("python", "sh", "console"):
            continue
        if block.reason is not None:
            skipped += 1
            continue
        if block.language == "python":
            run_python(block, page, namespace)
            ran += 1
            continue
        for line, expected in commands_of(block):
            done = run_command(line, tmp_path)
            assert done.returncode == expected, f"{page.name}:{block.line}: {line}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr
            ran += 1
    with capsys.disabled():
        if ran or skipped:
            print(f"\n{page.relative_to(ROOT)}: {ran} ran, {skipped} blocks not run")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_words_we_never_say():
    """We say what was seen. We name no guilty and hand out no certificates."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").lower()
        assert not re.search(r"\bcompliant\b", text), page
        assert not re.search(r"\b(?:was|is|were|been|log) tampered\b", text), page
