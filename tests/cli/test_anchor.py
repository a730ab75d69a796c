"""``tally anchor``: tables are appended and taken out, the rest of log.toml stays; what became of a checkpoint is said."""

from __future__ import annotations

import pytest

from ..anchor.servers import MailServer, TimestampServer, authority, note_of, sendmail


def test_adding_appends_and_removing_restores_every_byte(tally, log, tmp_path):
    before = (log / "log.toml").read_bytes()
    odd = tmp_path / 'a "b" \\ ü'
    odd.mkdir()
    assert tally("anchor", "add", "nas", "--folder", odd).code == 0
    one = (log / "log.toml").read_bytes()
    assert one.startswith(before) and one != before
    assert tally("anchor", "add", "auditor", "--mail", "a@kanzlei.example,b@kanzlei.example").code == 0
    assert [(a["name"], a["kind"], a["target"]) for a in tally("anchor", "list", "--json").json] == [
        ("nas", "folder", str(odd)), ("auditor", "mail", "a@kanzlei.example,b@kanzlei.example")]  # fmt: skip
    assert tally("anchor", "test", "nas").out == "folder nas: kept 4 entries (not independent: on this machine)\n"
    assert tally("anchor", "remove", "auditor").code == 0
    assert (log / "log.toml").read_bytes() == one
    assert tally("anchor", "remove", "nas").code == 0
    assert (log / "log.toml").read_bytes() == before
    assert tally("anchor", "remove", "nas").code == 2


def test_a_table_in_the_middle_leaves_what_stands_around_it(tally, log, tmp_path):
    before = (log / "log.toml").read_text()
    (log / "log.toml").write_text(f'{before}\n[[anchor]]  # mine\nkind = "folder"\nname = "one"\nfolder = "{tmp_path}"\n'
                                  f'\n# about two\n[[anchor]]\nkind = "folder"\nname = "two"\nfolder = "{tmp_path}"\n')  # fmt: skip
    assert tally("anchor", "remove", "one").code == 0
    assert (log / "log.toml").read_text() == (
        f'{before}\n# about two\n[[anchor]]\nkind = "folder"\nname = "two"\nfolder = "{tmp_path}"\n')  # fmt: skip


def test_a_file_that_only_a_person_should_edit_is_not_changed(tally, log, tmp_path):
    whole = (log / "log.toml").read_text()
    text = f'anchor = [{{kind = "folder", name = "one", folder = "{tmp_path}"}}]\n' + whole
    (log / "log.toml").write_text(text)
    ran = tally("anchor", "add", "two", "--mail", "a@b.example")
    assert ran.code == 2 and "edit it by hand" in ran.err
    ran = tally("anchor", "remove", "one")
    assert ran.code == 2 and "by hand" in ran.err
    assert (log / "log.toml").read_text() == text


def test_that_anchors_changed_is_on_record(tally, log, tmp_path):
    tally("anchor", "add", "nas", "--folder", tmp_path)
    assert tally("record", "--actor", "ana", "--action", "x", "--resource", "y").code == 0
    assert "log.toml changed" in tally("query", "--type", "log.config").out


@pytest.mark.parametrize(("words", "why"), [
    (["x"], "one of --mail, --folder and --timestamp"),
    (["x", "--mail", "a@b", "--folder", "/tmp"], "one of --mail"),
    (["x", "--folder", "/tmp", "--smtp", "a:25"], "--smtp belongs to --mail"),
    (["x", "--folder", "/tmp", "--from", "a@b"], "--from belongs to --mail"),
    (["x", "--folder", "/nonexistent/mnt"], "is not a folder that is there; mount or make it first"),
    (["x", "--timestamp", "http://a.example/"], "--timestamp and --certificate go together"),
    (["x", "--timestamp", "http://a.example/", "--certificate", "/nonexistent/a.pem"], "--certificate: /nonexistent/a.pem: No such file"),
    (["Not A Name", "--mail", "a@b"], "a name is 1 to 40"),
    (["x", "--mail", "a b"], "to is 1 to 20 mail addresses"),
    (["x", "--mail", "a@b", "--smtp", "m.example:25", "--from", "a@b", "--user", "u", "--password-env", "P", "--tls", "none"], "without TLS"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(tally, log, words, why):
    before = (log / "log.toml").read_bytes()
    ran = tally("anchor", "add", *words)
    assert ran.code == 2 and why in ran.err
    assert (log / "log.toml").read_bytes() == before


def test_a_name_is_one_party(tally, log, tmp_path):
    assert tally("anchor", "add", "x", "--folder", tmp_path).code == 0
    ran = tally("anchor", "add", "x", "--mail", "a@b.example")
    assert ran.code == 2 and "the name x is taken" in ran.err


def test_settings_in_log_toml_are_checked_when_it_is_read(tally, log):
    with (log / "log.toml").open("a") as file:
        file.write('\n[[anchor]]\nkind = "mail"\nname = "x"\nto = "a@b.example"\npassword = "secret"\n')
    ran = tally("status")
    assert ran.code == 2 and "unknown field `password`" in ran.err and "secret" not in ran.err


def test_all_three_kinds_at_once_and_one_that_fails_concerns_no_other(tally, log, tmp_path):
    authority(tmp_path)
    (tmp_path / "share").mkdir()
    with MailServer() as server, TimestampServer(tmp_path) as tsa:
        assert tally("anchor", "add", "auditor", "--mail", "a@kanzlei.example", "--smtp", server.where, "--tls", "none",
                     "--from", "tally@srv2.example").code == 0  # fmt: skip
        assert tally("anchor", "add", "nas", "--folder", tmp_path / "share").code == 0
        assert tally("anchor", "add", "stamp", "--timestamp", tsa.url, "--certificate", tmp_path / "ca.pem").code == 0
        assert tally("anchor", "add", "gone", "--mail", "a@kanzlei.example", "--sendmail", sendmail(tmp_path, 75, "no queue")).code == 0
        ran = tally("anchor", "now")
    assert ran.code == 2
    assert [line.partition(": ")[::2] for line in ran.out.splitlines() if not line.startswith(" ")][:3] == [
        ("mail auditor", "sent 4 entries"), ("folder nas", "kept 4 entries (not independent: on this machine)"),
        ("timestamp stamp", "confirmed 4 entries")]  # fmt: skip
    assert "mail gone: pending:" in ran.out and "ended with 75: no queue" in ran.out.replace("\n  ", " ")
    listed = {a["name"]: a for a in tally("anchor", "list", "--json").json}
    assert {n: a["done_size"] for n, a in listed.items()} == {"auditor": 4, "nas": 4, "stamp": 4, "gone": 0}
    assert "no queue" in listed["gone"]["error"]
    (tmp_path / "saved.eml").write_bytes(server.mails[0][1])
    ran = tally("verify", "--checkpoint", tmp_path / "saved.eml")
    assert ran.code == 0, ran.out


def test_what_an_anchor_needs_goes_along_into_a_backup_and_a_successor(tally, log, tmp_path):
    authority(tmp_path)
    assert tally("anchor", "add", "stamp", "--timestamp", "http://127.0.0.1:1/", "--certificate", tmp_path / "ca.pem").code == 0
    assert tally("backup", tmp_path / "copy").code == 0
    assert (tmp_path / "copy" / "stamp.pem").read_bytes() == (tmp_path / "ca.pem").read_bytes()
    assert tally("keyd", "init", tmp_path / "d", "--log", log, "--socket", tmp_path / "s").code == 0
    ran = tally("resume", log, "--reason", "keyd and its folder burned", "--new-keys")
    assert ran.code == 0, ran.err
    assert (log / "stamp.pem").is_file() and "[[anchor]]" in (log / "log.toml").read_text()
    assert "keyd" not in (log / "log.toml").read_text(), "a daemon holds the keys of one log"
    assert tally("record", log, "--actor", "ana", "--action", "x", "--resource", "y").code == 0


def test_another_history_in_the_folder_is_exit_6(tally, log, tmp_path):
    (tmp_path / "share" / "test_log").mkdir(parents=True)
    (tmp_path / "share" / "test_log" / "00000000000000000004.checkpoint").write_bytes(note_of(4, origin="test/log"))
    assert tally("anchor", "add", "nas", "--folder", tmp_path / "share").code == 0
    ran = tally("anchor", "now")
    assert ran.code == 6 and "CONTRADICTS" in ran.out and "two histories of test/log" in ran.out.replace("\n  ", " ")


def test_a_log_without_anchors_says_so(tally, log):
    assert tally("anchor", "now").code == 2
    assert tally("anchor", "test", "x").code == 2
    assert "no anchors" in tally("anchor", "list").err
