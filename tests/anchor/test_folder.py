"""Checkpoints in a folder elsewhere: durable, never overwritten, and two histories are kept as evidence."""

from __future__ import annotations

import errno
import os

import pytest

from tallystick.anchor.folder import Folder, FolderSettings, folder_name, kept, newest
from tallystick.core.errors import Malformed, OutsideError, VerificationError
from tallystick.disk import Disk

from .servers import ORIGIN, note_of

HOME = "srv2_invoices_0f3a9c21b7de"


@pytest.fixture
def share(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "log").mkdir()
    return tmp_path / "share"


def _anchor(share, disk=None, **more):
    settings = FolderSettings(name="nas", folder=str(share), **more)
    settings.check()
    return Folder(settings, ORIGIN, share.parent / "log", disk or Disk())


def test_it_lies_there_and_is_read_back(share):
    handed = _anchor(share).hand_over(7, note_of(7))
    assert handed.word == "kept" and handed.local, "the same device: not independent"
    assert (share / HOME / "00000000000000000007.checkpoint").read_bytes() == note_of(7)
    _anchor(share).hand_over(12, note_of(12))
    _anchor(share).hand_over(12, note_of(12))
    assert newest(share, ORIGIN) == note_of(12)
    assert [(k.size, k.note) for k in kept(share, ORIGIN)] == [(7, note_of(7)), (12, note_of(12))]
    assert sorted(os.listdir(share / HOME)) == ["00000000000000000007.checkpoint", "00000000000000000012.checkpoint"]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system here")  # nothing that could be installed
def test_another_device_is_of_this_machine_and_its_absence_is_noticed(share, monkeypatch):
    import tempfile

    from tallystick.anchor import folder

    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(share).st_dev:
            pytest.skip("no second file system here")
        anchor = Folder(FolderSettings("usb", elsewhere, True), ORIGIN, share.parent / "log")
        assert anchor.hand_over(7, note_of(7)).local  # attached here, whoever is root here writes to it
        monkeypatch.setattr(folder, "remote_file_system", lambda path: "nfs4")
        assert not anchor.hand_over(8, note_of(8)).local
    with pytest.raises(OutsideError, match="is on the device of the log, which it was not when it was added; is it mounted"):
        _anchor(share, elsewhere=True).hand_over(7, note_of(7))
    assert os.listdir(share) == []


def test_a_missing_folder_is_pending_and_not_made(share):
    share.rmdir()
    with pytest.raises(OutsideError, match="is not there; is it mounted"):
        _anchor(share).hand_over(7, note_of(7))
    assert not share.exists()
    with pytest.raises(OutsideError, match="is it mounted"):
        newest(share, ORIGIN)
    share.write_text("")
    with pytest.raises(OutsideError, match="is not a folder"):
        _anchor(share).hand_over(7, note_of(7))


def test_another_history_of_the_same_size_is_kept_beside_it(share):
    theirs, ours = note_of(7, bytes(range(1, 33))), note_of(7)
    _anchor(share).hand_over(7, theirs)
    for _ in range(2):
        with pytest.raises(VerificationError, match="two histories of srv2"):
            _anchor(share).hand_over(7, ours)
    assert (share / HOME / "00000000000000000007.checkpoint").read_bytes() == theirs
    assert {k.note for k in kept(share, ORIGIN)} == {theirs, ours}
    assert len(os.listdir(share / HOME)) == 2


def test_a_file_that_is_no_checkpoint_is_not_overwritten_either(share):
    (share / HOME).mkdir()
    path = share / HOME / "00000000000000000007.checkpoint"
    path.write_bytes(b"torn")
    with pytest.raises(VerificationError):
        _anchor(share).hand_over(7, note_of(7))
    assert path.read_bytes() == b"torn"
    with pytest.raises(Malformed, match=r"00000000000000000007.checkpoint: a note is"):
        kept(share, ORIGIN)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutsideError, match="is not a file"):
        _anchor(share).hand_over(7, note_of(7))


def test_a_checkpoint_of_another_log_is_named(share):
    (share / HOME).mkdir()
    (share / HOME / "x.checkpoint").write_bytes(note_of(7, origin="other/log"))
    with pytest.raises(Malformed, match="is a checkpoint of other/log"):
        newest(share, ORIGIN)
    assert newest(share, "never/seen") is None


def test_origins_are_one_path_segment():
    for origin in ("..", ".", "../../etc", ".hidden", "a/../b", "/"):
        name = folder_name(origin)
        assert "/" not in name and not name.startswith(".")


class NoModes(Disk):
    """exFAT, CIFS: fchmod is refused, and folders cannot be synced."""

    def open(self, path, flags, mode=0o600, *, like=None):
        made = flags & os.O_CREAT and not path.exists()
        fd = super().open(path, flags, mode, like=like)
        if made:
            os.close(fd)
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        return fd

    def sync_folder(self, path):
        raise OSError(errno.EINVAL, "Invalid argument", str(path))


class Lying(Disk):
    def rename(self, source, target):
        super().rename(source, target)
        os.truncate(target, 10)


class Full(Disk):
    def write_at(self, fd, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_system_without_modes_is_good_enough(share):
    assert _anchor(share, NoModes()).hand_over(7, note_of(7)).word == "kept"
    assert newest(share, ORIGIN) == note_of(7)


def test_what_reads_back_as_something_else_is_pending(share):
    with pytest.raises(OutsideError, match="reads back as something else"):
        _anchor(share, Lying()).hand_over(7, note_of(7))


def test_a_full_share_is_pending_and_leaves_no_checkpoint(share):
    with pytest.raises(OutsideError, match="No space left on device"):
        _anchor(share, Full()).hand_over(7, note_of(7))
    assert kept(share, ORIGIN) == []
    assert _anchor(share).hand_over(7, note_of(7)).word == "kept"


def test_settings_that_cannot_be():
    with pytest.raises(Malformed, match="absolute"):
        FolderSettings("nas", "mnt/nas").check()
