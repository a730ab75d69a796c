"""Every command of docs/anchors.md, with a mail system, a share and an authority in the places that the page names."""

from __future__ import annotations

import os
import shutil

import pytest

from ..anchor.servers import MailServer, TimestampServer, authority, issue, sendmail
from .test_docs import ROOT, blocks_of, run_command

PAGE = ROOT / "docs" / "anchors.md"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A log, and what the page's commands meet."""
    monkeypatch.chdir(tmp_path)
    assert run_command("tally init audit_log", tmp_path).returncode == 0
    (tmp_path / "nas").mkdir()
    authority(tmp_path)
    issue(tmp_path, "server", "ca", "subjectAltName=DNS:localhost\n")
    (tmp_path / "chain.pem").write_text((tmp_path / "server.pem").read_text() + (tmp_path / "server.key").read_text())
    shutil.copy(tmp_path / "ca.pem", tmp_path / "tsa-ca.pem")
    (tmp_path / "audit_log.keys" / "mail.password").write_text("horse\n")
    os.chmod(tmp_path / "audit_log.keys" / "mail.password", 0o600)
    return tmp_path


def test_every_command_of_the_page_runs(place):
    program, ran = sendmail(place), []
    with MailServer(("tally", "horse"), chain=place / "chain.pem") as mail, TimestampServer(place) as tsa:
        stand_ins = {
            "--mail auditor@kanzlei.example\n": f"--mail auditor@kanzlei.example --sendmail {program}\n",
            "mail.example:587": f"{mail.where} --ca ca.pem", "/mnt/nas/checkpoints": str(place / "nas"),
            "http://tsa.example/tsr": tsa.url, "saved.eml": str(place / "mail"),
        }  # fmt: skip
        for block in blocks_of(PAGE):
            text = block.text
            for said, meant in stand_ins.items():
                text = text.replace(said, meant)
            done = run_command(f"set -e\n{text}", place)
            assert done.returncode == 0, f"{PAGE.name}:{block.line}\n{done.stdout}{done.stderr}"
            ran.append(done.stdout)
    said = "".join(ran)
    assert len(ran) == 6 and len(mail.mails) >= 1
    for words in ("mail auditor: sent", "mail office: sent", "folder nas: kept", "timestamp stamp: confirmed"):
        assert words in said
    assert said.count("NOTHING ALTERED") == 2
