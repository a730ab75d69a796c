"""What contradicts a signature, the mark or a synced line never heals: nothing is signed any more, reading goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick.core.errors import StateUnknown
from tallystick.keys import KeyFolder
from tallystick.opening import make_log

from .judge import event
from .lab import BootClock, Lab


@pytest.fixture
def old(lab: Lab) -> Lab:
    """A log of 6 entries is saved; the one at work has 12."""
    log = lab.open()
    log.log_many([event(n) for n in range(5)])
    log.close()
    lab.save()
    log = lab.open()
    for n in range(5, 11):
        log.log(**event(n))
    log.close()
    return lab


def everything(lab: Lab) -> dict[str, bytes]:
    """All bytes that a signature could have gone into."""
    files = [p for root in (lab.folder, lab.keys) for p in root.rglob("*") if p.is_file()]
    return {str(p): p.read_bytes() for p in files if not p.name.startswith(("index", "lock", "reserve"))}


def refused(lab: Lab, match: str, log: object = None) -> None:
    """Refused at every try and by every handle, and nothing was changed by trying."""
    before = everything(lab)
    handles = [log] if log is not None else []
    for _ in range(2):
        handles.append(lab.open())
        handles.append(lab.open(clock=BootClock("another-boot")))
    for one in handles:
        for _ in range(2):
            with pytest.raises(StateUnknown, match=match) as error:
                one.log(**event(0))
            assert re.search("tally resume|opened|replaced|nothing is signed", str(error.value))
        one.vanish()
    signed = {name: data for name, data in everything(lab).items() if "/tree/" not in name}
    assert signed == {name: data for name, data in before.items() if "/tree/" not in name}


def rows(lab: Lab) -> int:
    log = lab.open()
    try:
        return len(log.query(limit=None))
    finally:
        log.vanish()


def test_the_older_copy_of_the_folder_with_the_newer_keys(old: Lab) -> None:
    old.restore("audit_log")
    refused(old, "12 entries were signed, only 6 are here")
    assert rows(old) == 5


def test_the_tail_is_cut_off(old: Lab) -> None:
    path = old.segment()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    refused(old, "only 10 are here")


def test_tail_cut_off_in_the_middle_of_a_signed_line(old: Lab) -> None:
    path = old.segment()
    path.write_bytes(path.read_bytes()[:-7])
    refused(old, "only 11 are here")


def test_tail_cut_off_with_the_head_put_back(old: Lab) -> None:
    head = (old._saved / "audit_log/checkpoint").read_bytes()
    path = old.segment()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    (old.folder / "checkpoint").write_bytes(head)
    refused(old, "12 entries were signed, only 6 are here")


@pytest.mark.parametrize("tree", ["kept", "deleted"])
@pytest.mark.parametrize("index", [0, 3, 11])
def test_a_line_below_the_head_is_edited(old: Lab, index: int, tree: str) -> None:
    """With the tree there a line far below the head is not looked at before an append, which signs what was signed before:
    ``verify`` names it. Without it, or where the lines are read, it is refused."""
    path = old.segment()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[index] = lines[index].replace(b'"read"', b'"raed"').replace(b"created the log", b"created the gol")
    path.write_bytes(b"".join(lines))
    if tree == "deleted":
        (old.folder / "tree/0").unlink()
        refused(old, "not the ones that were signed")
    else:
        assert old.open().verify_integrity()["exit_code"] == 6


def test_the_mark_is_ahead_of_the_lines(old: Lab) -> None:
    keys = KeyFolder(old.keys)
    keys.put_mark(keys.read_mark().origin, 13, bytes(32), 0)
    keys.close()
    refused(old, "13 entries were signed, only 12 are here")


def test_the_mark_is_of_another_history(old: Lab) -> None:
    keys = KeyFolder(old.keys)
    keys.put_mark(keys.read_mark().origin, 12, bytes(32), 0)
    keys.close()
    refused(old, "not the ones that were signed")


def test_the_mark_of_another_origin(old: Lab) -> None:
    keys = KeyFolder(old.keys)
    mark = keys.read_mark()
    for _ in range(2):
        keys.put_mark("host/other/000000000000", mark.size, mark.root, 0)
    keys.close()
    refused(old, "belongs to host/other/000000000000")


def test_no_mark(old: Lab) -> None:
    (old.keys / "mark").unlink()
    refused(old, "no mark of what was last signed")
    (old.keys / "mark").write_bytes(bytes(8192))
    refused(old, "no mark of what was last signed")


@pytest.mark.parametrize("names", [("mark",), ("epoch-0.key",), ("mark", "epoch-0.key", "log.key")])
@pytest.mark.parametrize("origin", ["its own", "the same"])
def test_the_keys_of_another_log(
    old: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], origin: str
) -> None:
    """Nothing is signed with a key that the log does not name, nor after a mark that is not its own."""
    other = Lab(tmp_path)
    make_log(other.folder, other.memory, retention_days=1, origin=old.origin() if origin == "the same" else None)
    capsys.readouterr()
    log = other.open()
    for n in range(11):
        log.log(**event(n))
    log.close()
    for name in names:
        shutil.copy(other.keys / name, old.keys / name)
    refused(old, r"belongs to|not hold the key that|are not the ones that were signed")


def test_a_copied_log_goes_on_only_where_its_mark_is(old: Lab, tmp_path: Path) -> None:
    """Folder and keys copied together are whole; from then on two exist, and whichever is behind its own mark is refused."""
    copy = Lab(tmp_path)
    shutil.copytree(old.folder, copy.folder)
    shutil.copytree(old.keys, copy.keys)
    log = copy.open()
    log.log(**event(100))
    log.close()
    shutil.rmtree(old.keys)
    shutil.copytree(copy.keys, old.keys)
    refused(old, "13 entries were signed, only 12 are here")


# -- while a process runs ------------------------------------------------------------------------------------------------


def test_an_older_checkpoint_is_put_in_place(old: Lab) -> None:
    log = old.open()
    log.log(**event(50))
    (old.folder / "checkpoint").write_bytes((old._saved / "audit_log/checkpoint").read_bytes())
    with pytest.raises(StateUnknown, match="older copy"):
        log.log(**event(51))
    with pytest.raises(StateUnknown, match="older copy"):
        log.log(**event(52))
    log.vanish()


def swap_in_place(lab: Lab) -> None:
    """Every file is overwritten with the older one; inodes stay."""
    for path in (lab._saved / "audit_log").rglob("*"):
        if path.is_file() and path.name not in ("lock",):
            (lab.folder / path.relative_to(lab._saved / "audit_log")).write_bytes(path.read_bytes())


def swap_folder(lab: Lab) -> None:
    lab.folder.rename(lab.folder.with_name("away"))
    shutil.copytree(lab._saved / "audit_log", lab.folder)


def swap_both(lab: Lab) -> None:
    swap_folder(lab)
    shutil.rmtree(lab.keys)
    shutil.copytree(lab._saved / "audit_log.keys", lab.keys)


@pytest.mark.parametrize("swap", [swap_in_place, swap_folder, swap_both])
def test_the_folder_is_replaced_by_an_older_one(old: Lab, swap: Callable[[Lab], None]) -> None:
    log = old.open()
    log.log(**event(50))
    swap(old)
    before = everything(old)
    for _ in range(2):
        with pytest.raises(StateUnknown, match=r"replaced|older copy|are here"):
            log.log(**event(51))
    log.close()
    assert everything(old) == before


def test_the_folder_is_removed(old: Lab) -> None:
    log = old.open()
    log.log(**event(50))
    shutil.rmtree(old.folder)
    with pytest.raises(StateUnknown, match="replaced"):
        log.log(**event(51))
    log.close()


def test_another_machine_writes(old: Lab) -> None:
    log = old.open()
    log.log(**event(50))
    other = old.open(clock=BootClock("another-boot"))
    other.log(**event(51))
    with pytest.raises(StateUnknown, match="two machines"):
        log.log(**event(52))
    other.vanish()
    log.vanish()


def test_a_segment_that_begins_where_nothing_was(old: Lab) -> None:
    (old.folder / "segments" / f"{20:020d}.jsonl").write_bytes(b"")
    refused(old, "begins after the end of the log")


def test_a_slot_of_the_mark_has_one_spelling(old: Lab) -> None:
    """What follows its line is NUL: a slot with anything else behind it is no slot, and the older one is behind the head."""
    keys = KeyFolder(old.keys)
    mark = keys.read_mark()
    path, at = old.keys / "mark", (mark.sequence % 2) * 4096
    data = bytearray(path.read_bytes())
    data[at + 400] = 1
    path.write_bytes(bytes(data))
    assert keys.read_mark().sequence == mark.sequence - 1
