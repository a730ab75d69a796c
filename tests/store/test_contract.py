"""The contract of stores. Any backend is run through it: add it to ``STORES``."""

import os
import threading

import pytest

from tallystick.core.errors import LogBusy, StoreError
from tallystick.disk import Disk
from tallystick.store import Store
from tallystick.store.segments import SegmentStore


def make_segments(folder, disk=None):
    for name in ("segments", "tree"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return SegmentStore(folder, disk or Disk())


STORES = {"segments": make_segments}


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    made = STORES[request.param](tmp_path / "log")
    yield made
    made.close()


def lines_of(store):
    return [line for s in store.segments() for batch in store.batches(s) for line in batch.lines]


def test_it_is_a_store(store):
    wanted = [name for name in vars(Store) if not name.startswith("_")]
    assert [name for name in wanted if not hasattr(store, name)] == []


def test_a_new_store_is_empty(store):
    assert store.head() is None
    assert store.segments() == []
    assert store.hash_count(0) == 0


def test_lines_come_back_byte_for_byte_with_their_places(store):
    with store.exclusive(1):
        store.roll(0)
        assert store.append(0, b"a\nbb\n") == 0
        assert store.append(2, b"\xc3\xa9\n") == 5
        store.roll(3)
        store.append(3, b"d\n")
    assert lines_of(store) == [b"a", b"bb", b"\xc3\xa9", b"d"]
    assert [s.start for s in store.segments()] == [0, 3]
    assert store.read(0, 2, 2) == b"bb"
    [batch] = store.batches(store.segments()[0], 2, 1)
    assert (batch.index, batch.offset, batch.lines) == (1, 2, [b"bb", b"\xc3\xa9"])
    with pytest.raises(StoreError):
        store.read(0, 6, 99)


def test_an_incomplete_last_line_is_not_a_line(store):
    with store.exclusive(1):
        store.roll(0)
        store.append(0, b"a\nhalf")
    assert lines_of(store) == [b"a"]


def test_many_lines_come_in_bounded_batches(store):
    data = b"".join(b"%d %s\n" % (i, b"x" * 100) for i in range(50_000))
    with store.exclusive(1):
        store.roll(0)
        store.append(0, data)
    batches = list(store.batches(store.segments()[0]))
    assert len(batches) > 3
    assert b"".join(b"\n".join(b.lines) + b"\n" for b in batches) == data
    for batch in batches:
        assert store.read(0, batch.offset, len(batch.lines[0])) == batch.lines[0]


def test_hashes_and_head_are_overwritten_in_place(store):
    with store.exclusive(1):
        store.put_hashes(0, 0, bytes(96))
        store.put_hashes(0, 1, b"\1" * 32)
        store.put_head(b"a longer head\n")
        store.put_head(b"head\n")
        store.flush()
    assert store.hashes(0, 0, 3) == bytes(32) + b"\1" * 32 + bytes(32)
    assert store.head() == b"head\n"
    with pytest.raises(StoreError):
        store.hashes(0, 2, 2)
    with pytest.raises(StoreError):
        store.hashes(1, 0, 1)


def test_only_one_holder_and_whoever_waits_too_long_is_told_who_holds_it(store):
    holding, done = threading.Event(), threading.Event()

    def hold():
        with store.exclusive(1):
            store.note_holder("boot", clean=False, durable=False)
            holding.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    other = SegmentStore(store.folder)
    with pytest.raises(LogBusy, match=f"process {os.getpid()}"), other.exclusive(0.05):
        pass
    done.set()
    thread.join()
    with other.exclusive(10):
        pass
    other.close()


def test_a_failed_sync_breaks_the_handle_and_a_failed_write_can_be_taken_back(tmp_path):
    class Failing(Disk):
        fail = ""

        def write_at(self, fd, data, offset):
            if self.fail == "write":
                super().write_at(fd, data[:1], offset)
                raise OSError(28, "full")
            super().write_at(fd, data, offset)

        def sync_data(self, fd):
            if self.fail == "sync":
                raise OSError(5, "io")
            super().sync_data(fd)

    disk = Failing()
    store = make_segments(tmp_path / "log", disk)
    with store.exclusive(1):
        store.roll(0)
        store.append(0, b"a\n")
        disk.fail = "write"
        with pytest.raises(OSError):
            store.append(1, b"b\n")
        disk.fail = ""
        store.rollback()
        assert not store.broken
        store.append(1, b"c\n")
        assert lines_of(store) == [b"a", b"c"]
        disk.fail = "sync"
        store.append(2, b"d\n")
        with pytest.raises(OSError):
            store.sync()
        assert store.broken
    store.close()


def test_what_is_cut_is_in_quarantine_first(store):
    with store.exclusive(1):
        store.roll(0)
        store.append(0, b"a\n\0\0torn")
        name, size, digest = store.cut(store.segments()[0], 2)
    assert lines_of(store) == [b"a"]
    assert size == 6
    assert len(digest) == 64
    assert (store.folder / "quarantine" / name).read_bytes() == b"\0\0torn"


def test_the_first_segment_can_be_dropped(store):
    with store.exclusive(1):
        store.roll(0)
        store.append(0, b"a\n")
        store.roll(1)
        store.append(1, b"b\n")
        store.drop(store.segments()[0])
    assert [s.start for s in store.segments()] == [1]
    assert lines_of(store) == [b"b"]


@pytest.mark.parametrize("kind", STORES)
def test_a_handle_knows_whether_and_what_others_wrote(kind, tmp_path):
    mine, other = (STORES[kind](tmp_path / "log") for _ in range(2))
    with mine.exclusive(1):
        mine.roll(0)
        mine.append(0, b"a\n")
        mine.sync()
        mine.put_head(b"one")
        assert not mine.untouched(b"one")  # it did not note itself yet
        mine.note_holder("boot", clean=False, durable=False)
        assert mine.untouched(b"one")
        assert not mine.untouched(b"two")
        assert mine.appended(100) == b""
    with other.exclusive(1):
        other.attach(other.segments()[0], 2)
        other.note_holder("boot", clean=False, durable=False)
        assert not other.untouched(b"one")  # it never looked at the head
        other.append(1, b"b\nc\n")
        other.sync()
    with mine.exclusive(1):
        assert not mine.untouched(b"one")
        mine.note_holder("boot", clean=False, durable=False)
        assert not mine.untouched(b"one")
        assert mine.appended(3) is None
        assert mine.appended(4) == b"b\nc\n"
        assert not mine.continues(3)
        mine.advance(4)
        assert mine.appended(100) == b""
        assert mine.untouched(b"one")
        assert mine.append(3, b"d\n") == 6
    with other.exclusive(1):
        other.advance(2)
        other.roll(4)
    with mine.exclusive(1):
        assert mine.continues(4)
    mine.close()
    assert mine.appended(100) is None
    other.close()


@pytest.mark.parametrize("name", ["checkpoint", "lock", "segments/00000000000000000000.jsonl"])
def test_a_file_that_was_replaced_is_seen(name, tmp_path):
    store = make_segments(tmp_path / "log")
    with store.exclusive(1):
        store.roll(0)
        store.append(0, b"a\n")
        store.put_head(b"one")
        assert not store.moved()
        path = store.folder / name
        (store.folder / "copy").write_bytes(path.read_bytes() if path.exists() else b"")
        os.replace(store.folder / "copy", path)
        assert store.moved()
        path.unlink()
        assert store.moved()
    store.close()
