"""The benchmark runs and fills every row of its table. No figure is judged here: timing claims belong in ``bench``."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench.disk import Refused, slowed_environment

from bench import capture, report
from bench import capture_matrix as matrix

ROOT = Path(__file__).parents[2]


def child(tmp_path, *arguments, environment=None):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**(environment or {}), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_row_of_the_writes(tmp_path):
    found = child(tmp_path, "bench.writes", "1", "0.05", "as-is")
    lines = report.table(report.AS_IS, found["seen"])
    assert len(lines) == len(report.AS_IS)
    assert all("reached" in line.lower() for line in lines)
    assert found["fdatasync_p50_us"] > 0


def test_every_row_of_the_slowed_writes_and_the_slowing_is_checked(tmp_path):
    if not shutil.which("cc"):
        with pytest.raises(Refused, match="compiler"):
            slowed_environment(tmp_path)
        return
    environment = slowed_environment(tmp_path)
    found = child(tmp_path, "bench.writes", "1", "0.05", "slowed", environment=environment)
    assert len(report.table(report.SLOWED, found["seen"])) == len(report.SLOWED)
    assert found["fdatasync_p50_us"] >= 2000
    # what the library cannot slow ends the process
    for code in ("import os; os.open('x', os.O_CREAT | os.O_WRONLY | os.O_DSYNC, 0o600)",
                 "import os; f = os.open('y', os.O_CREAT | os.O_WRONLY, 0o600); os.pwritev(f, [b'a'], 0, os.RWF_DSYNC)",
                 f"import ctypes; ctypes.CDLL(None).syscall({74 if os.uname().machine == 'x86_64' else 82}, 2)"):  # fsync
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 97, code
        assert "does not slow" in done.stderr


def test_a_run_that_is_not_slowed_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="is not slowed"):
        child(tmp_path, "bench.writes", "1", "0.05", "slowed")


def test_every_row_of_the_reads(tmp_path):
    found = child(tmp_path, "bench.reads", "1", "6000", str(tmp_path))
    assert len(report.table(report.READS, found["seen"])) == len(report.READS)
    assert len(report.resources(found)) == 4
    large = child(tmp_path, "bench.reads", "large", str(tmp_path), "2000", "4000")
    assert len(large) == 8


def test_figures_are_judged_by_their_median():
    assert "aim reached" in report.line("x", 10, 1, 20, 4, 7, "×", False, "")
    assert "must reached" in report.line("x", 5, 1, 20, 4, 7, "×", False, "")
    assert "NOT REACHED" in report.line("x", 3.9, 1, 20, 4, 7, "×", False, "")
    assert "NOT REACHED" in report.line("x", 3.9, 1, 20, 2, 1, "s", True, "")
    assert "aim reached" in report.line("x", 0.9, 1, 20, 2, 1, "s", True, "")


def test_every_row_of_the_capture(tmp_path):
    found = child(tmp_path, "bench.capture", "1", "0.02")
    assert len(report.table(report.CAPTURE, found["seen"])) == len(report.CAPTURE)
    assert set(found["matrix"]) | set(found["did_not_run"]) >= {"tallystick", "OpenLLMetry", "OpenInference"}
    assert found["seen"]["kill -9: lost"] == [0]
    assert found["seen"]["kill -9: acknowledged"] > [0]
    assert found["seen"]["kill -9: verifies"] == [1]
    ours = found["matrix"]["tallystick"]
    assert len(ours) > 60
    assert [row for row in ours if row["missing"]] == []
    text = capture.lines(found, "")
    assert [line for line in text if line.startswith("whole ")]
    assert any(line.startswith("complete ") for line in text)


class Span:
    def __init__(self, status, events=(), name="chat", **attributes):
        self.name, self.attributes = name, {key.replace("__", "."): value for key, value in attributes.items()}
        self.status = SimpleNamespace(status_code=SimpleNamespace(name=status))
        self.events = [SimpleNamespace(name=event) for event in events]


def test_completeness_is_judged_by_what_a_span_says():
    def wants(**given):
        return matrix.Wanted(**{"model": "m", "is_ok": True, "is_sent": True, "text": "", "copies": 1, "tool": False,
                                "tokens": (None, None), "embeddings": False, **given})

    def lacks(wanted, *spans):
        return matrix.lacks(wanted, [matrix.Span(span) for span in spans])

    fine = Span("UNSET", gen_ai__request__model="m", llm__output_messages__0__message__content="Grüße")
    assert lacks(wants(text="Grüße"), fine) == []
    assert lacks(wants(text="Grüße aus"), fine) == ["text"]
    assert lacks(wants(text="Grüße", copies=2), fine) == ["text"]
    assert lacks(wants(), fine, fine) == ["one"]
    assert lacks(wants(model="n"), fine) == ["model"]
    assert lacks(wants(tokens=(7, None)), fine) == ["tokens"]
    assert lacks(wants(tool=True), fine) == ["tool"]
    assert lacks(wants(embeddings=True), fine) == ["record"]
    assert lacks(wants()) == ["record"]
    assert lacks(wants(is_sent=False)) == []
    for well in ("OK", "UNSET"):
        assert lacks(wants(is_ok=False), Span(well, gen_ai__request__model="m")) == ["end"]
    for ended in (Span("ERROR", gen_ai__request__model="m"), Span("UNSET", ["exception"], gen_ai__request__model="m"),
                  Span("OK", gen_ai__request__model="m", error__type="Timeout")):
        assert lacks(wants(is_ok=False), ended) == []
        assert lacks(wants(), ended) == ["end"]
    said = json.dumps([{"parts": [{"type": "tool_call", "name": "weather", "arguments": {"city": "Köln"}}]}])
    assert lacks(wants(tool=True), Span("OK", gen_ai__request__model="m", gen_ai__output__messages=said)) == []


def test_every_row_of_the_witnesses():
    """In the checkout: it fetches aics-witness as the foreign tests do."""
    from ..foreign.packages import AICS, need, wheels

    need(wheels, *AICS)
    done = subprocess.run([sys.executable, "-m", "bench.witness", "1", "0.05"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)["seen"]
    lines = report.table(report.WITNESS, seen)
    assert len(lines) == len(report.WITNESS)
    assert all("reached" in line.lower() for line in lines)
