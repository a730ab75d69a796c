"""The pages about calls to models: every snippet runs, against the scripted server where the page says Ollama, and what a page says
is printed is what was printed.

Python blocks of a page share a namespace, as in ``test_docs``; one whose first line is ``# NAME.py`` is that file. ``tally proxy`` is
started and left running until the page ends. A ``text`` or ``json`` block is what the block before it printed, in a ``console`` block
it follows its command. In these ``…`` stands for whatever is there; ids, hashes, times and durations are any, and line breaks are blanks. In a snippet ``evt_…`` is the id that was printed last. ``toml`` is put into a real ``log.toml`` and read as that.
"""

from __future__ import annotations

import configparser
import contextlib
import gc
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tallystick import AuditLogger, uninstrument
from tallystick.cli.proxy import command as proxy_command
from tallystick.config import build_settings, read_settings

from ..capture import server as scripted
from ..capture.server import ModelServer
from .test_docs import ROOT, Block, blocks_of

NAMES = ("ollama", "answers", "content", "deploy", "integrations", "capture-limits")
PAGES = [ROOT / "docs" / f"{name}.md" for name in NAMES]
FRESH = {"integrations"}  # of these each python block is a program of its own that begins with the page's first one
SERVERS = ("11434", "8080", "8000", "1234")  # Ollama, llama.cpp, vLLM, LM Studio
PROXY = "11435"
ADMINISTERS = {"pip", "apt-get", "docker", "systemctl", "sudo", "install", "useradd", "ollama", "nft", "vllm", "llama-server", "lms",
               "uvicorn"}  # fmt: skip
CHECKED = {"ini", "yaml", "toml", "dockerfile", "nft"}
ANSWER = ["Dear Ms Weber, ", "your invoice ", "was paid ", "on 3 November."]
FILE = re.compile(r"# ([a-z_]+\.py)\n")
EVENT = re.compile(r"evt_[0-9a-f]{32}")
ANY = [
    (re.compile(r"evt_[0-9a-f]*…?"), "evt_"),
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{6,}…|\bsha256:[0-9a-f]+…?"), "HASH"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z"), "MOMENT"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "DAY"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b[\d.,]+ (?:ms|s|µs)\b"), "TOOK"),
    (re.compile(r"\b\d+\.\d\ds?\b"), "TOOK"),  # seconds in a table
    (re.compile(r'("(?:latency_us|ttft_us)": )\d+'), r"\1TOOK"),
    (re.compile(r"(?<=127\.0\.0\.1:)(?:" + "|".join(SERVERS[1:]) + r")\b"), SERVERS[0]),
    (re.compile(r"\b[\w.-]+/audit-log/[0-9a-f]+…?"), "ORIGIN"),
    (re.compile(r"─+"), "─"),
    (re.compile(r"(?<=/)\d+\.\d+\.\d+"), "VERSION"),
]  # fmt: skip
_scripted_whole, _scripted_get = scripted._ollama_whole, scripted._Reply._get


def _whole(path: str, body: Any, script: str) -> Any:
    """``qwen3`` asks for the tool that it is offered, until it has the result."""
    asks = script == "qwen3" and body.get("tools") and body["messages"][-1]["role"] != "tool"
    return _scripted_whole(path, body, "tools" if asks else script) | {"model": script}


def _get(reply: Any, path: str) -> bool:
    if path != "/api/tags":
        return _scripted_get(reply, path)
    models = [{"name": f"{name}:latest", "digest": reply.server.digest} for name in ("llama3.2", "qwen3")]
    return reply._whole(200, json.dumps({"models": models}).encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scripted, "TOKENS", ANSWER)
    monkeypatch.setattr(scripted, "ANSWER", "".join(ANSWER))
    monkeypatch.setattr(scripted, "_ollama_whole", _whole)
    monkeypatch.setattr(scripted._Reply, "_get", _get)
    with ModelServer() as one:
        yield one


class Reader:
    """Somebody who does what a page says, in a folder of his own."""

    def __init__(self, page: Path, folder: Path, server: ModelServer) -> None:
        self.page, self.folder = page, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            proxy = str(free.getsockname()[1])
        self.ports = {**dict.fromkeys(SERVERS, str(server.port)), PROXY: proxy}
        self.printed = self.last_id = ""
        self.prelude: Block | None = None
        self.namespace: dict[str, Any] = {"__name__": "__docs__"}
        self.proxies: list[subprocess.Popen[str]] = []
        self.ran = self.left_alone = self.compared = 0

    def here(self, text: str) -> str:
        """A snippet with the addresses of this test."""
        text = re.sub(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+", lambda m: self.ports.get(m[0], m[0]), text)
        return text.replace("evt_…", self.last_id or "evt_…")

    def there(self, text: str) -> str:
        """What was printed, with the addresses of the page."""
        for port in (SERVERS[0], PROXY):
            text = text.replace(f"127.0.0.1:{self.ports[port]}", f"127.0.0.1:{port}")
        return text.replace(str(self.folder), "/home/ana")

    def do(self, block: Block) -> None:
        where = f"{self.page.name}:{block.line}"
        if block.language == "python":
            self.python(block)
        elif block.language in ("sh", "console"):
            self.commands(block, where)
        elif block.language in ("text", "json"):
            self.compare(block.text, self.printed, where)
        elif block.language in CHECKED:
            getattr(self, block.language)(block.text)
            self.ran += 1
        else:
            raise AssertionError(f"{where}: a block that is neither run nor checked")

    # -- what is run

    def python(self, block: Block) -> None:
        named = FILE.match(block.text)
        if named:
            (self.folder / named[1]).write_text(self.here(block.text), encoding="utf-8")
            return
        self.ran += 1
        if self.page.stem in FRESH:
            self.prelude = self.prelude or block
            source = self.prelude.text + (block.text if block is not self.prelude else "")
            self.printed = self.run([sys.executable, "-W", "ignore", "-c", self.here(source)], f"{self.page.name}:{block.line}")
            return
        out = io.StringIO()
        source = "\n" * (block.line - 1) + self.here(block.text)
        with contextlib.redirect_stdout(out):
            exec(compile(source, str(self.page), "exec", dont_inherit=True), self.namespace)
        self.saw(out.getvalue())

    def commands(self, block: Block, where: str) -> None:
        """Each line that is a command, and after it, in a console block, what it printed."""
        lines = block.text.replace("\\\n", " ").split("\n")
        said: list[str] = []
        for line in [*lines, "$ "] if block.language == "console" else lines:
            if block.language == "console" and not line.startswith("$ "):
                said.append(line)
                continue
            if any(said):
                self.compare("\n".join(said), self.printed, where)
            said = []
            line = line.removeprefix("$ ").strip()
            if line and not line.startswith("#"):
                self.command(line, where)

    def command(self, line: str, where: str) -> None:
        words = [w for w in shlex.split(line.partition("  #")[0]) if not re.match(r"[A-Z_]+=", w)]
        if words[0] in ADMINISTERS:
            self.left_alone += 1
            return
        self.ran += 1
        expected = re.search(r"#\s*exit (\d+)\s*\Z", line)
        if words[:2] == ["tally", "proxy"]:
            self.start_proxy(shlex.split(self.here(line))[2:])
            return
        python = shlex.quote(sys.executable)
        script = f"tally() {{ {python} -m tallystick \"$@\"; }}\npython() {{ {python} \"$@\"; }}\nset -o pipefail\n{self.here(line)}"
        self.saw(self.run(["bash", "-c", script], f"{where}: {line}", int(expected[1]) if expected else 0))

    def run(self, args: list[str], where: str, expected: int = 0) -> str:
        done = subprocess.run(args, cwd=self.folder, capture_output=True, text=True, timeout=180, check=False,
                              stdin=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "120"})  # fmt: skip
        assert done.returncode == expected, f"{where}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{where}\n{done.stderr}"
        return done.stdout

    def saw(self, text: str) -> None:
        self.printed = text
        for found in EVENT.finditer(text):
            self.last_id = found[0]

    def start_proxy(self, args: list[str]) -> None:
        self.stop_proxies()
        proxy = subprocess.Popen([sys.executable, "-m", "tallystick", "proxy", *args], cwd=self.folder, text=True,
                                 stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)  # fmt: skip
        self.proxies.append(proxy)
        assert proxy.stderr is not None
        self.printed = proxy.stderr.readline()
        assert "recorded in" in self.printed, self.printed + proxy.stderr.read()

    def stop_proxies(self) -> None:
        for proxy in self.proxies:
            if proxy.poll() is None:
                proxy.terminate()
            _, said = proxy.communicate(timeout=30)
            assert proxy.returncode == 0, said
        self.proxies.clear()

    # -- what is compared

    def compare(self, expected: str, printed: str, where: str) -> None:
        self.compared += 1
        wanted, found = plain(expected), plain(self.there(printed))
        pattern = re.escape(wanted).replace("…", ".*?")
        assert re.fullmatch(pattern, found, re.DOTALL), f"{where}: printed was\n{self.there(printed)}\n\n{wanted}\n{found}"

    # -- what is only read

    def toml(self, text: str) -> None:
        """Into the log of the page if there is one, else into a new ``log.toml``."""
        given = tomllib.loads(text)
        assert given
        folder = self.folder / "audit_log"
        if not folder.exists():
            folder = self.folder / "only_settings"
            folder.mkdir(exist_ok=True)
            (folder / "log.toml").write_bytes(build_settings("docs.example", "Etc/UTC", "../audit_log.keys", 365))
        path = folder / "log.toml"
        sections = re.split(r"(?m)^(?=\[)", path.read_text(encoding="utf-8"))
        kept = [s for s in sections if not any(re.match(rf"\[+{name}\b", s) for name in given)]
        path.write_text("".join(kept) + "\n" + text, encoding="utf-8")
        settings = read_settings(folder)
        for name in given:
            assert hasattr(settings, name)

    def ini(self, text: str) -> None:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        assert set(unit.sections()) <= {"Unit", "Service", "Install"}
        start = shlex.split(unit["Service"]["ExecStart"])
        assert start[0].endswith("/tally") and start[1] == "proxy"
        proxy_command.make_context("proxy", start[2:])

    def yaml(self, text: str) -> None:
        if find_spec("yaml") is None:
            self.left_alone += 1
            return
        import yaml

        found = yaml.safe_load(text)
        for service in found["services"].values():
            for volume in service.get("volumes", ()):
                assert volume.partition(":")[0] in found["volumes"]
            for network in service.get("networks", ()):
                assert network in found["networks"]

    def dockerfile(self, text: str) -> None:
        lines = dict(line.split(" ", 1) for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#"))
        assert json.loads(lines["ENTRYPOINT"]) == ["tally"]
        command = json.loads(lines["CMD"])
        assert command[0] == "proxy"
        proxy_command.make_context("proxy", command[1:])

    def nft(self, text: str) -> None:
        assert text.count("{") == text.count("}") > 0
        if shutil.which("nft") and os.geteuid() == 0:
            done = subprocess.run(["nft", "-c", "-f", "-"], input=text, text=True, capture_output=True, check=False)
            assert done.returncode == 0 or "Operation not" in done.stderr, done.stderr

    def close(self) -> None:
        self.stop_proxies()
        uninstrument()
        for value in self.namespace.values():
            if isinstance(value, AuditLogger):
                value.close()
        self.namespace.clear()
        gc.collect()


def is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def plain(text: str) -> str:
    """Without what differs from run to run, and without how it is set out."""
    for pattern, word in ANY:
        text = pattern.sub(word, text)
    return " ".join(text.split())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # a page does not close its clients
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_snippet_of_a_page_runs_and_prints_what_the_page_says(page, tmp_path, server, monkeypatch, capsys, record_property):
    text = page.read_text(encoding="utf-8")
    shown = set(re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE)) - {"tallystick"}
    missing = sorted(name for name in shown if not name.startswith("tallystick.") and not is_there(name))
    if "curl " in text and shutil.which("curl") is None:
        missing.append("curl")
    if missing:
        assert os.environ.get("CI") != "true", f"the page shows {', '.join(missing)}, which can be installed"
        pytest.skip(f"the page shows {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("TZ", "UTC")
    reader = Reader(page, tmp_path, server)
    try:
        for block in blocks_of(page):
            if block.reason is None or "test_ai_docs" in block.reason or block.language not in ("python", "sh", "console"):
                reader.do(block)
            else:
                reader.left_alone += 1
        if page.stem == "integrations":
            integrated(tmp_path)
    finally:
        reader.close()
    assert reader.ran
    said = f"{reader.ran} ran, {reader.compared} compared, {reader.left_alone} left to the administrator"
    record_property("snippets", said)
    with capsys.disabled():
        print(f"\ndocs/{page.name}: {said}")


def integrated(folder: Path) -> None:
    """Every section of the page left what it says."""
    with AuditLogger(folder / "audit_log", create=False) as log:
        rows = log.query(limit=None)
        ends = {row["details"]["capture"]: row["outcome"] for row in rows if row["event_type"] == "ai_response"}
        assert ends == dict.fromkeys(["otel", "litellm", "langchain", "wrap"], "success")
        tools = {row["action"]: row["details"] for row in rows if row["event_type"] == "ai.tool"}
        assert tools["balance"]["server"] == "erp"
        assert log.get(tools["weather"]["asked_by"])["details"]["capture"] == "wrap"
        fates = {row["details"]["call"]: row["details"]["evidence"] for row in rows if row["event_type"] == "ai.outcome"}
        assert sorted(fates.values()) == ["explicit", "explicit", "tool executed"]
        posts = [row for row in rows if row["action"] == "post invoice"]
        assert [(row["actor"], row["resource"]) for row in posts] == [("ana", "erp:4711")] * 2
        [read] = [row for row in rows if row["action"] == "Read invoice"]
        assert (read["actor"], read["ip_address"]) == ("ana", None), "the test client of Starlette has no address"
        [stream] = [row for row in rows if row["action"] == "Stream reply"]
        assert (stream["details"]["items"], stream["details"]["end"]) == (3, "ok")
        assert log.verify_integrity()["verified"]


def test_a_difference_is_noticed(tmp_path, server):
    reader = Reader(tmp_path / "page.md", tmp_path, server)
    reader.compare("a  b\n…\n  c … e\nevt_…  12:00:00", "a b\nx\ny\nc d e\nevt_01 13:00:01\n", "here")
    for expected, printed in (("a", "b"), ("a\n…\nb", "a\nc"), ("a", "a\nb"), ("a\nb", "a")):
        with pytest.raises(AssertionError):
            reader.compare(expected, printed, "here")
    with pytest.raises(AssertionError):
        reader.do(Block("", "who knows", 1, None))
    with pytest.raises(AssertionError):
        reader.do(Block("sh", "tally verify nowhere", 1, None))
