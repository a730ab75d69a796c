"""A real model server: one that is here already, or one that the demo installs and starts.

``find_server`` looks for an Ollama (``OLLAMA_HOST``, then loopback) that lists a model; it never pulls one,
and never takes a model that runs in somebody's cloud. ``start_server`` installs what ``plan_install`` names
and runs ``model_server.mjs`` on a free loopback port for as long as the ``with`` block lasts.
"""

from __future__ import annotations

import importlib.util
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .install import (
    ENGINE_VERSION,
    MODEL_SHA256,
    DemoError,
    InstallItem,
    InstallPlan,
    Parts,
    Report,
    apply_install,
    default_cache,
    plan_install,
)

if TYPE_CHECKING:
    from ollama import Client

__all__ = [
    "DemoError", "InstallItem", "InstallPlan", "Server", "client_for", "default_cache", "find_server",
    "plan_install", "start_server",
]  # fmt: skip

LOOPBACK = "127.0.0.1:11434"
MODEL_NAME = "smollm2:135m"
LOOK_SECONDS = 3.0
STOP_SECONDS = 5.0
READY_SECONDS = 180.0  # two seconds on a quiet machine
_READY = re.compile(rb"^ready (http://127\.0\.0\.1:[0-9]+)$", re.MULTILINE)


class Server(NamedTuple):
    """A server that answers: where, which model (name and digest, "" if unknown), and in words."""

    host: str
    model: str
    digest: str
    description: str


def check_client() -> None:
    """``DemoError`` where the ``ollama`` client is not installed."""
    if importlib.util.find_spec("ollama") is None:
        raise DemoError("the demo needs the ollama client: pip install 'tallystick[demo]'")


def client_for(host: str, seconds: float) -> Client:
    """The real ``ollama`` client, to be closed. A proxy from the environment must not see what goes to loopback."""
    from ollama import Client

    options: dict[str, Any] = {"timeout": seconds}
    if is_loopback(host):
        options["trust_env"] = False
    return Client(host, **options)


def is_loopback(host: str) -> bool:
    """True where mails sent to ``host`` stay on this machine."""
    name = re.sub(r"^[a-z]+://", "", host)
    return re.match(r"(localhost|127\.[0-9.]+|0\.0\.0\.0|\[::1\])(:|/|$)", name) is not None


def find_server(host: str | None = None) -> Server | None:
    """The first server that lists a usable model, or ``None``. A given ``host`` is the only one asked."""
    candidates = [host] if host else [os.environ.get("OLLAMA_HOST") or "", LOOPBACK]
    for candidate in filter(None, candidates):
        model = _usable_model(candidate)
        if model is not None:
            where = "" if is_loopback(candidate) else " (not this machine: the sample mails are sent there)"
            return Server(candidate, *model, f"{model[0]}, on the Ollama server at {candidate}{where}")
    return None


def _usable_model(host: str) -> tuple[str, str] | None:
    check_client()
    from httpx import HTTPError, InvalidURL
    from ollama import ResponseError

    try:
        with client_for(host, LOOK_SECONDS) as client:
            listed = client.list().models
    except (OSError, HTTPError, InvalidURL, ResponseError, ValueError):
        return None  # nobody is there, or nobody who speaks Ollama
    for found in listed:
        families = (found.details.families or [found.details.family or ""]) if found.details else []
        embeds = "embed" in (found.model or "") or any("bert" in family for family in families)
        if found.model and not embeds and "cloud" not in found.model:
            return found.model, found.digest or ""
    return None


@contextmanager
def start_server(cache: Path, plan: InstallPlan, report: Report) -> Iterator[Server]:
    """Install what is missing, start the server, and stop it (only it) at the end, also on exceptions."""
    parts = apply_install(plan._replace(cache=cache), report)
    with tempfile.TemporaryFile() as errors:
        process = _spawn(parts, errors)
        try:
            host = _wait_until_ready(process, errors)
            yield Server(
                host,
                MODEL_NAME,
                MODEL_SHA256,
                f"SmolLM2-135M-Instruct Q4_1 in llama.cpp (node-llama-cpp {ENGINE_VERSION}), started here",
            )
        finally:
            _stop(process)


def threads() -> int:
    """One on two cores or in CI, else two: a llama.cpp that shares its core with others waits for itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if os.environ.get("CI") or cores <= 2 else 2


def _spawn(parts: Parts, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("model_server.mjs")
    command = [
        parts.node.node, str(script), "--engine", str(parts.engine), "--model", str(parts.model),
        "--name", MODEL_NAME, "--digest", MODEL_SHA256, "--threads", str(threads()),
    ]  # fmt: skip
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
    except OSError as e:
        raise DemoError(f"{parts.node.node} cannot be started: {e}") from e


def _wait_until_ready(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    assert process.stdout is not None
    heard, deadline = b"", time.monotonic() + READY_SECONDS
    while not (found := _READY.search(heard)):
        left = deadline - time.monotonic()
        if left <= 0:
            raise DemoError(
                f"the model server was not ready in {READY_SECONDS:.0f} seconds{_last_words(errors)}"
            )
        if not select.select([process.stdout], [], [], left)[0]:
            continue
        part = process.stdout.read(4096)
        if not part:
            raise DemoError(f"the model server ended before it was ready{_last_words(errors)}")
        heard += part
    return found[1].decode()


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read(65_536).decode("utf-8", "replace").strip().splitlines()
    return "".join(f"\n  {line[:200]}" for line in lines[-6:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # the server ends with its standard input
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()
