"""Whatever is typed: an exit code of the table, one line of error, no internal error."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tallystick.cli import COMMANDS

from .conftest import events

WORDS = [
    "audit_log", "#0", "#1", "#99", "#", "##", "evt_" + "0" * 32, "full", "security", "data_access", "2026-11", "2026-99", "9999-12",
    "0000-00", "-", "--", "", " ", "x", "../x", "x" * 5000, "\u00e9", "\x1b[2J", "a\nb", "%s", "{}", "*",
    "--on", "today", "--since", "7d", "--until", "--period", "--where", "details.a>1", "details.a~*", "index=1", "--limit", "0", "1",
    "-1", "--after", "--json", "--jsonl", "--raw", "--newest-first", "--actor", "--action", "--details", '{"a":1}', "[", "--type", "log.*",
    "--vkey", "--checkpoint", "--entry", "kept", "--new-only", "--content", "--at", "2", "--verify", "--older-than", "99999", "--origin",
    "--forget", "-o", "--output", "p.tlog-proof", "--force", "--archives", "folder", "file", "x.zst", "audit_2026-01-01_0-1.jsonl.zst",
    "--event-id", "--timestamp", "2026-11-01T08:00", "99999999999d", "--help", "--version", "vkey", "--reason", "1" * 400,
]  # fmt: skip
ANSWERS = {0, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("seed", range(12))
def test_any_arguments(tally, log, seed):
    chance = random.Random(seed)
    Path("folder").mkdir()
    for name in ("file", "kept", "x.zst", "audit_2026-01-01_0-1.jsonl.zst"):
        Path(name).write_bytes(chance.randbytes(100))
    (log.parent / "p.tlog-proof").write_text("c2sp.org/tlog-proof@v1\nindex 1\n")
    commands = [c for c in (*COMMANDS, "log") if c not in ("demo", "proxy")]  # proxy serves until it is told to stop
    for _ in range(60):
        args = [chance.choice(commands), *chance.choices(WORDS, k=chance.randint(0, 4))]
        ran = tally(*args, stdin=events("x") if chance.random() < 0.5 else "nonsense\n")
        assert ran.code in ANSWERS, (args, ran)
        assert "internal error" not in ran.err, (args, ran.err)
        assert "\x1b" not in ran.out + ran.err or args[0] == "init", args  # init repeats the path to whoever typed it
        if log.exists():
            continue
        pytest.fail(f"{args} removed the log")
    assert tally("verify", log).code == 0
    assert os.path.isdir("folder")
