"""Making packs; checking them with nothing of ours, as a stranger does."""

import io
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import Malformed, StoreError, VerificationError
from tallystick.core.evidence import read_pack
from tallystick.core.packfile import format_pack, parse_pack
from tallystick.evidence import checker, verify
from tallystick.packing import pack

from ..foreign.test_go import go  # noqa: F401
from .conftest import CASE, PEOPLE, make, ours, run_verify, theirs

PYTHONS = [p for p in sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.*/bin/python3"))
           if int(p.parent.parent.name.split(".")[1]) >= 8] or [Path(sys.executable)]  # fmt: skip


@pytest.fixture
def unpacked(made, tmp_path):
    with zipfile.ZipFile(io.BytesIO(made.data)) as file:
        file.extractall(tmp_path / "unpacked")
    (tmp_path / "p.zip").write_bytes(made.data)
    (tmp_path / "kept").write_bytes(made.kept)
    (tmp_path / "policy").write_bytes(made.policy)
    return tmp_path / "unpacked"


def test_the_same_input_gives_the_same_bytes(made):
    with AuditLogger(made.folder) as log:
        again = pack(log, reversed(made.chosen), opened=[(made.chosen[1], name) for name in ("binary", "empty", "prompt")])
    assert again == made.data
    assert parse_pack(made.data)["verify.py"] == checker()


def test_a_stranger_runs_verify_py_on_folder_and_zip(made, unpacked, tmp_path):
    script, zipped = unpacked / "verify.py", tmp_path / "p.zip"
    before = sorted(p.relative_to(unpacked) for p in unpacked.rglob("*"))
    for where in ([script], [script, unpacked], [script, zipped]):
        for args, code, said in (
            ([], 3, "CANNOT JUDGE: nothing pinned"),
            (["--vkey", made.vkey], 0, "ALL 3 ENTRIES ARE IN THE LOG"),
            (["--checkpoint", tmp_path / "kept"], 0, "sealed to 14"),
            (["--policy", tmp_path / "policy", "--vkey", made.vkey], 0, "cosigned by w.example/1"),
            (["--vkey", made.vkey.replace("+A", "+B", 1)], 4, "NOT A PACK"),
            (["--vkey", "nonsense"], 4, "--vkey"),
            (["--checkpoint", tmp_path / "nowhere"], 2, ""),
            (["--policy", tmp_path / "p.zip", "--vkey", made.vkey], 4, "policy"),
        ):  # fmt: skip
            done = run_verify(where, *args, cwd=tmp_path)
            assert done.returncode == code, (where, args, done.stdout, done.stderr)
            assert said in done.stdout
            assert done.stdout.split("\n")[0].isupper() or code == 2 or done.stdout[:5].isupper()  # the verdict first
    assert sorted(p.relative_to(unpacked) for p in unpacked.rglob("*")) == before  # nothing was written


def mailed(note):
    """The mail that ``tally anchor add --mail`` sends, as its reader saves it: quoted-printable, "=3D" for "=", lines that are cut."""
    message = EmailMessage()
    message["Subject"] = "Checkpoint"
    message.set_content("Keep this mail where whoever runs that machine cannot delete it, and be sure that you do.\n\n" + note.decode(),
                        cte="quoted-printable")  # fmt: skip
    assert b"=3D\n" in bytes(message) and b"=\n" in bytes(message)
    return bytes(message)


def test_a_card_or_a_mail_is_taken_as_it_was_saved(made, unpacked, tmp_path):
    from .test_page import card_of

    saved = {"terminal": card_of(made, "terminal"), "text": card_of(made, "text"), "crlf": b"Good evening\r\n\r\n" + made.kept.replace(b"\n", b"\r\n") + b"\r\nbye",
             "as our own mail program writes it": mailed(made.kept), "answered": mailed(b"> " + made.kept.replace(b"\n", b"\n> ")),
             "quoted": b"> " + made.kept.replace(b"\n", b"\n> ") + b"\n\nthanks"}  # fmt: skip
    for name, data in saved.items():
        (tmp_path / name).write_bytes(data)
        done = run_verify([unpacked / "verify.py"], "--checkpoint", tmp_path / name)
        assert done.returncode == 0, (name, done.stdout)
        assert "[sealed to 14]" in done.stdout
    (tmp_path / "none").write_bytes(b"a letter\n")
    assert run_verify([unpacked / "verify.py"], "--checkpoint", tmp_path / "none").returncode == 4


def test_it_needs_no_rights_to_write(made, unpacked):
    for path in [unpacked, *unpacked.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    try:
        assert run_verify([unpacked / "verify.py"], "--vkey", made.vkey).returncode == 0
    finally:
        for path in [unpacked, *unpacked.rglob("*")]:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)


@pytest.mark.parametrize("python", PYTHONS, ids=lambda p: p.parent.parent.name)
def test_every_python_from_3_8_on_says_the_same(made, unpacked, python):
    for args, code in (([], 3), (["--vkey", made.vkey], 0)):
        mine = run_verify([unpacked / "verify.py"], *args)
        done = run_verify([unpacked / "verify.py"], *args, python=str(python))
        assert (done.returncode, done.stdout) == (code, mine.stdout)


def test_it_imports_the_standard_library_only(unpacked):
    source = (unpacked / "verify.py").read_text()
    imported = {line.split()[1] for line in source.split("\n") if line.startswith(("import ", "from "))}
    assert imported <= set(sys.stdlib_module_names) | {"__future__"}
    assert not imported & {"socket", "urllib", "http", "ssl", "subprocess", "ctypes", "tempfile"}
    assert "open(" in source and '"wb"' not in source and '"w"' not in source


def test_zip_files_that_are_not_packs_are_refused_by_both(made, tmp_path):
    members = parse_pack(made.data)
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    for data in (deflated.getvalue(), made.data + b"\0", made.data[:-1], b"\0" + made.data, format_pack({**members, "x": b""}), b"", made.data[:3000]):
        with pytest.raises(Malformed):
            read_pack(parse_pack(data))
        (tmp_path / "bad.zip").write_bytes(data)
        assert verify.main([str(tmp_path / "bad.zip")]) == 4


def test_strange_files_in_the_folder(made, unpacked):
    (unpacked / "my-notes.txt").write_text("x")
    done = run_verify([unpacked / "verify.py"], "--vkey", made.vkey)
    assert done.returncode == 0 and "not part of the pack: my-notes.txt" in done.stdout
    (unpacked / "entries" / "extra.json").write_text("{}")
    assert run_verify([unpacked / "verify.py"], "--vkey", made.vkey).returncode == 4


def test_texts_of_calls_are_compared_with_their_commitments(tmp_path):
    """The salt of a call is handed out, and whoever has the text sees that it is the one."""
    from tallystick.capture.wire.answer import commitment

    with AuditLogger(tmp_path / "audit_log") as log:
        salt = bytes(range(32))
        event = log.log("ai_request", "bot", "agent", "llama", "chat", details={"commitments": {"prompt": commitment(salt, "prompt", b"the text")}},
                        payloads={"salt": salt})  # fmt: skip
        index = log.entry(event).index
        data, vkey = pack(log, [event], opened=[(event, "salt")]), log.verifier_key()
        with pytest.raises(KeyError, match="no payload 'prompt'; it has salt"):
            pack(log, [event], opened=[(event, "prompt")])
        with pytest.raises(KeyError, match="not in the pack"):
            pack(log, [0], opened=[(event, "salt")])
        with pytest.raises(KeyError):
            pack(log, ["evt_none"])
    (tmp_path / "p.zip").write_bytes(data)
    (tmp_path / "text").write_bytes(b"the text")
    (tmp_path / "other").write_bytes(b"the test")
    (tmp_path / "verify.py").write_bytes(parse_pack(data)["verify.py"])
    for name, code in (("text", 0), ("other", 6)):
        done = run_verify([tmp_path / "verify.py", tmp_path / "p.zip"], "--vkey", vkey, "--text", f"{index}:prompt={tmp_path / name}")
        assert done.returncode == code, done.stdout
    assert ours(parse_pack(data), vkey=vkey) == theirs(parse_pack(data), vkey=vkey) == 0


def test_since_a_checkpoint_that_the_reader_kept(made, tmp_path):
    from tallystick.core.note import SignerKey, sign
    from tallystick.proving import current_checkpoint

    with AuditLogger(tmp_path / "audit_log") as log:
        for i in range(5):
            log.log("user_action", "ana", "user", f"r/{i}", "do")
        kept = current_checkpoint(log)
        for i in range(20):
            log.log("user_action", "ana", "user", f"r/{i}", "do")
        without, having = pack(log, [3]), pack(log, [3], since=kept)
        with pytest.raises(VerificationError):
            pack(log, [3], since=sign(kept.partition(b"\n\n")[0].decode() + "\n", SignerKey.generate(log.origin)))
    for data, code in ((without, 3), (having, 0)):
        members = parse_pack(data)
        assert ours(members, checkpoint=kept) == theirs(members, checkpoint=kept) == code


def test_a_lost_epoch_key_is_said(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log("user_action", "ana", "user", "r", "do")
        log.rotate("first")
        event = log.log("user_action", "ana", "user", "r", "do")
    for key in (tmp_path / "audit_log.keys").glob("epoch-*.key"):
        key.unlink()
    with AuditLogger(tmp_path / "audit_log") as log:
        log.recover_epoch("the disk of the keys died")
        data, vkey, genesis = pack(log, [event]), log.verifier_key(), log._handle.genesis.note
    members = parse_pack(data)
    assert ours(members, vkey=vkey) == theirs(members, vkey=vkey) == 0
    check = verify.Check(members)
    check.run(vkey, genesis, None)
    assert check.sealed_to == 3
    assert any("the seal is broken" in text for text in check.open)


def test_what_does_not_hold_does_not_leave(tmp_path):
    folder = make(tmp_path / "audit_log").folder
    closing = folder / "checkpoints" / f"{3:020d}"
    closing.write_bytes(closing.read_bytes().replace(b"\n3\n", b"\n4\n"))
    with AuditLogger(folder) as log, pytest.raises(StoreError):
        pack(log, [1])


def test_go_accepts_the_proofs_of_a_pack(made, go):  # noqa: F811
    """golang.org/x/mod/sumdb, which we did not write; and it refuses each where we alter it."""
    key = made.vkey
    checks = [{"Kind": "tlog-proof", "Proof": made.members[f"{folder}/{index:020d}.tlog-proof"], "Line": made.members[f"{folder}/{index:020d}.json"],
               "Key": key, "Origin": key.split("+")[0]} for folder, indexes in (("entries", made.chosen), ("keys", [0, 2, 13])) for index in indexes]  # fmt: skip
    checks += [{"Kind": "note", "Note": made.members[name], "Key": key} for name in made.members if name == "checkpoint" or name[-20:].isdigit()]
    assert len(checks) == 10
    assert go(checks) == [""] * len(checks)
    assert all(go([{**c, "Line": c["Line"][:-1] + b"]"} for c in checks[:6]]))


def test_openssl_verifies_the_signature_of_the_checkpoint(made, tmp_path):
    """By hand: the key and the signature cut out of the files, nothing of ours."""
    from base64 import b64decode

    text, _, lines = made.members["checkpoint"].partition(b"\n\n")
    own = next(line for line in lines.split(b"\n") if b64decode(line.split(b" ")[-1])[:4].hex() == made.vkey.split("+")[1])
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + b64decode(made.vkey.split("+", 2)[2])[1:])
    (tmp_path / "signature").write_bytes(b64decode(own.split(b" ")[-1])[4:])
    for content, code in ((text + b"\n", 0), (text + b"\n\n", 1)):
        (tmp_path / "text").write_bytes(content)
        done = subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der", "-rawin", "-in", "text",
                               "-sigfile", "signature"], cwd=tmp_path, capture_output=True, check=False)  # fmt: skip
        assert (done.returncode != 0) == code, done


def test_the_command_line(made, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from tallystick.cli import cli

    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.folder, "audit_log")
    shutil.copytree(made.folder.with_name("audit_log.keys"), "audit_log.keys")

    def tally(*args):
        done = CliRunner().invoke(cli, [str(a) for a in args])
        assert "Traceback" not in done.output
        return done

    done = tally("pack", "--case", CASE, "--open", "#3:prompt", "-o", "e.zip")
    assert done.exit_code == 0, done.output
    assert "3 entries, 1 of their contents opened" in done.output and made.vkey in done.output
    members = parse_pack(Path("e.zip").read_bytes())
    assert sum(n.startswith("entries/") for n in members) == 6
    assert members["openings/00000000000000000003.prompt.content"] == made.members["openings/00000000000000000003.prompt.content"]
    assert tally("pack", "--case", CASE, "-o", "e.zip").exit_code == 2  # not over another file
    assert tally("pack", "--case", CASE, "-o", "e.zip", "--force", "--json").exit_code == 0
    for args in (["pack"], ["pack", "--case", "none"], ["pack", "#1", "--open", "nonsense"], ["pack", "#99"], ["pack", "#1", "--open", "#1:none"]):
        assert tally(*args, "-o", "f.zip").exit_code == 2, args
    assert not Path("f.zip").exists()
    assert tally("pack", "audit_log", "#1", "#3", "-o", "two.zip").exit_code == 0
    assert {n for n in parse_pack(Path("two.zip").read_bytes()) if n in PEOPLE} == set(PEOPLE)
