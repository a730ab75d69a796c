"""Every snippet of README.md and docs/ runs: Python in one namespace per file, ``tally`` commands in the same folder."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tallystick.cli import ALIASES, COMMANDS
from tallystick.core.entry import format_float
from tallystick.core.errors import EntryRefused

from ..capture.server import ModelServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: ([^>]+?) -->\s*\Z")
EXIT = re.compile(r"#\s*exit (\d+)\s*\Z")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
INLINE = re.compile(r"`tally ([a-z]+)([^`]*)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SERVED = re.compile(r"127\.0\.0\.1:(738[0-9])")
LEFT_ALONE = ("make", "pip", "apt-get", "git")


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


def commands_of(block: Block) -> tuple[list[tuple[str, int]], int]:
    """``tally`` lines with the exit code that the page says (0 without a word), and how many others there are. A console
    block has prompts. A line that is neither is an error: nothing is left out silently."""
    found, left_alone = [], 0
    for raw in block.text.replace("\\\n", " ").split("\n"):
        line = raw.removeprefix("$ ") if block.language == "console" else raw
        if block.language == "console" and not raw.startswith("$ "):
            continue
        expected = EXIT.search(line)
        line = EXIT.sub("", line).strip()
        if not line or line.startswith("#"):
            continue
        if line.split()[0] in LEFT_ALONE:
            left_alone += 1
        elif "tally" in line.split() or line.startswith("python3 "):
            found.append((line, int(expected[1]) if expected else 0))
        else:
            raise AssertionError(f"line {block.line} and below: neither run nor known as left alone: {line}")
    return found, left_alone


def run_command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Through the shell, because pages show pipes and redirections; ``tally`` is this checkout's."""
    python = f"{shlex.quote(sys.executable)} -m tallystick"
    script = f"tally() {{ {python} \"$@\"; }}\nset -o pipefail\n{line}"
    environment = {**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "default"}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
                          check=False, stdin=subprocess.DEVNULL)  # fmt: skip


class Servers:
    """Commands that end in ``&``: each runs until the page ends, on a port of its own in the place of the one that the page names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports, self.running = folder, {}, []

    def with_ports(self, line: str) -> str:
        for port in set(SERVED.findall(line)):
            if port not in self.ports:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    self.ports[port] = str(free.getsockname()[1])
            line = line.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[port]}")
        return line

    def start(self, line: str) -> None:
        """Returns when it has said its first line."""
        command = [sys.executable, "-m", *shlex.split(line.rstrip("& ").replace("tally ", "tallystick ", 1))]
        server = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.running.append(server)
        assert server.stderr is not None and server.stderr.readline(), f"{line} said nothing"

    def stop(self) -> None:
        for server in self.running:
            server.terminate()
            assert server.communicate(timeout=20)[1] == "" and server.returncode == 0


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    source = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
    exec(compile(source, str(page), "exec", dont_inherit=True), namespace)


@pytest.fixture(scope="module")
def model():
    """A scripted server in the place of Ollama."""
    with ModelServer() as server:
        yield server


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # pages leave clients open
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_snippet_of_a_page_runs(page, model, tmp_path, monkeypatch, capsys, record_property, request):
    monkeypatch.chdir(tmp_path)
    if model is not None:
        monkeypatch.setenv("OLLAMA_HOST", model.url)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    servers = Servers(tmp_path)
    request.addfinalizer(servers.stop)
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
        commands, left_alone = commands_of(block)
        skipped += left_alone
        for line, expected in commands:
            ran += 1
            line = servers.with_ports(line)
            if line.endswith("&"):
                servers.start(line)
                continue
            done = run_command(line, tmp_path)
            assert done.returncode == expected, f"{page.name}:{block.line}: {line}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr
    namespace.clear()
    gc.collect()
    record_property("snippets", f"{ran} ran, {skipped} skipped")
    with capsys.disabled():
        if ran or skipped:
            print(f"\n{page.relative_to(ROOT)}: {ran} snippets and commands ran, {skipped} skipped")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_and_option_named_in_a_sentence_exists(page):
    for command, rest in INLINE.findall(page.read_text(encoding="utf-8")):
        assert command in {**COMMANDS, **ALIASES}, f"{page.name}: tally {command}"
        known = help_of(command)
        for option in OPTION.findall(rest):
            assert option in known, f"{page.name}: tally {command}{rest}: {option}"


@functools.cache
def help_of(command: str) -> str:
    done = subprocess.run([sys.executable, "-m", "tallystick", command, "--help"], capture_output=True, text=True, check=True)
    return done.stdout


def test_api_md_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None and spec.loader is not None
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == make_api.build(), "run: python docs/make_api.py"


def test_the_floats_of_the_format_page_are_those_of_the_code():
    section = (ROOT / "docs/format.md").read_text(encoding="utf-8").partition("### 2.2")[2].partition("### 2.3")[0]
    rows = re.findall(r"^\| ([−0-9e.]+) \| (`[^`]+`|refused)", section, re.MULTILINE)
    assert len(rows) == 7
    for value, spelled in rows:
        number = float(value.replace("−", "-"))
        if spelled == "refused":
            with pytest.raises(EntryRefused):
                format_float(number)
        else:
            assert f"`{format_float(number).decode()}`" == spelled


@pytest.mark.parametrize("text", [
    "```python\nassert False\n```\n", "```sh\ntally verify nowhere\n```\n", "```console\n$ tally no-such-command\n```\n",
    "```sh\nrm -rf elsewhere\n```\n",
])  # fmt: skip
def test_a_snippet_that_fails_is_noticed(text, tmp_path, monkeypatch, capsys, record_property, request):
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError):
        test_every_snippet_of_a_page_runs(page, None, tmp_path, monkeypatch, capsys, record_property, request)


def test_words_we_never_say():
    """We say what was seen. We name no guilty and hand out no certificates."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").lower()
        assert not re.search(r"\bcompliant\b", text), page
        assert not re.search(r"\b(?:was|is|were|been|log) tampered\b", text), page
