"""Every command of docs/keyd.md, with the daemon as a process, and as another user where the tests run as root."""

from __future__ import annotations

import os
import subprocess
import sys

from .test_docs import ROOT, blocks_of, run_command

PAGE = ROOT / "docs" / "keyd.md"


def test_every_command_of_the_page_runs(tmp_path):
    assert run_command("tally init audit_log --origin test/page", tmp_path).returncode == 0
    stand_ins = {"/var/lib/tallykeyd": "d", "/srv/app/audit_log": "audit_log", "/run/tallykeyd/socket": "s", " --group app": "",
                 " --user tallykeyd": " --user root" if os.geteuid() == 0 else ""}  # fmt: skip
    texts = []
    for block in blocks_of(PAGE):
        text = block.text
        for said, meant in stand_ins.items():
            text = text.replace(said, meant)
        texts.append(text)
    init, serve, after = texts
    done = run_command(init, tmp_path)
    assert done.returncode == 0, done.stderr
    daemon = subprocess.Popen([sys.executable, "-m", "tallystick", *serve.split()[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert "test/page at" in daemon.stderr.readline()
        done = run_command(f"set -e\n{after}", tmp_path)
    finally:
        daemon.terminate()
        daemon.wait(10)
        daemon.stderr.close()
    assert done.returncode == 0, done.stderr
    assert "holds the key of epoch 1" in done.stdout and "NOTHING ALTERED" in done.stdout
    assert sorted(n for n in os.listdir(tmp_path / "d") if n.startswith("epoch")) == ["epoch-1.key"]
    assert not [n for n in os.listdir(tmp_path / "audit_log.keys") if n.startswith("epoch")]
