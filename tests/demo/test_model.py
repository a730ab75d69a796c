"""Finding a server and ending one."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest

from tallystick.demo import model
from tallystick.demo.install import DemoError, Node, Parts
from tallystick.demo.model import find_server, is_loopback, threads

FAKE = """
import sys, time
print("some library says hello", flush=True)
print("ready http://127.0.0.1:4711", flush=True)
open(sys.argv[-1], "w").write("x")
sys.stdin.read()
"""


def test_a_server_with_a_model_is_found_and_nothing_is_pulled(ollama):
    found = find_server(ollama.host)
    assert (found.host, found.model, found.digest) == (ollama.host, "tiny:1b", "d" * 64)
    assert not ollama.asked


def test_ollama_host_is_asked_before_loopback(ollama, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", ollama.host)
    assert find_server().host == ollama.host


def test_a_proxy_is_not_asked_about_loopback(ollama, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert find_server(ollama.host) is not None


@pytest.mark.parametrize(
    "models",
    [
        [],
        [{"model": "nomic-embed-text:latest"}],
        [{"model": "all-minilm", "details": {"family": "bert"}}],
        [{"model": "gpt-oss:120b-cloud"}],
        [{"model": None}],
    ],
)
def test_a_server_without_a_model_for_chat_on_this_machine_is_none(ollama, models):
    ollama.models = models
    assert find_server(ollama.host) is None


def test_the_first_usable_model_is_taken(ollama):
    ollama.models = [{"model": "gpt-oss:120b-cloud"}, {"model": "nomic-embed-text"}, {"model": "llama3.2"}, {"model": "phi"}]
    assert find_server(ollama.host).model == "llama3.2"


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://[", "nonsense:port", "http://127.0.0.1:9/api"])
def test_nobody_there_is_none(host):
    assert find_server(host) is None


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1:11434", True), ("http://localhost:1", True), ("localhost", True), ("http://[::1]:1", True), ("0.0.0.0", True),
        ("http://127.0.0.1.example.com", False), ("localhost.example.com", False), ("10.0.0.7", False), ("https://example.com", False),
    ],
)  # fmt: skip
def test_mails_that_leave_this_machine_are_said_to(host, here):
    assert is_loopback(host) is here


def test_threads_follow_the_cores(monkeypatch):
    monkeypatch.setenv("CI", "1")
    assert threads() == 1
    monkeypatch.delenv("CI")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert threads() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert threads() == 1


@pytest.fixture
def started(tmp_path, monkeypatch):
    """``start_server`` with a Python program in node's place."""

    def use(program, seconds=20.0):
        script = tmp_path / "server.py"
        script.write_text(textwrap.dedent(program))
        node = tmp_path / "node"
        node.write_text(f'#!/bin/sh\nexec {sys.executable} {script} {tmp_path / "started"}\n')
        node.chmod(0o755)
        monkeypatch.setattr(model, "apply_install", lambda plan, report: Parts(Node(str(node), (), ""), tmp_path, tmp_path))
        monkeypatch.setattr(model, "READY_SECONDS", seconds)
        return model.start_server(tmp_path, model.InstallPlan(tmp_path, ()), print)

    return use


@pytest.fixture
def spawned(monkeypatch):
    """The processes that were started."""
    found, spawn = [], model._spawn
    monkeypatch.setattr(model, "_spawn", lambda *a: found.append(spawn(*a)) or found[-1])
    return found


def test_the_server_ends_with_the_block_also_on_exceptions(started, spawned):
    with started(FAKE) as server:
        assert server.host == "http://127.0.0.1:4711" and spawned[0].poll() is None
    assert spawned[0].returncode == 0
    with pytest.raises(RuntimeError), started(FAKE):
        raise RuntimeError("in the block")
    assert spawned[1].returncode == 0


def test_a_server_that_will_not_end_is_ended(started, spawned, monkeypatch):
    monkeypatch.setattr(model, "STOP_SECONDS", 0.3)
    program = FAKE.replace("sys.stdin.read()", "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    with started(program):
        pass
    assert spawned[0].returncode == -9


def test_a_server_that_dies_says_its_last_words(started):
    program = "import sys; sys.stderr.write('GLIBC_2.99 not found\\n'); sys.exit(1)"
    with pytest.raises(DemoError, match=r"ended before it was ready\n +GLIBC_2.99"), started(program):
        pass


def test_a_server_that_is_never_ready(started, spawned, monkeypatch):
    monkeypatch.setattr(model, "STOP_SECONDS", 0.3)
    with pytest.raises(DemoError, match="not ready in"), started("import time; time.sleep(60)", seconds=0.5):
        pass
    assert spawned[0].returncode == -15
