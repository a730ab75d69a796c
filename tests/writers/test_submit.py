"""``submit``: what is on its way is bounded, acknowledged by ``wait`` and ``flush``, and counted when it is lost."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import AuditError, Conflict, DiskFull, EntryRefused, ReadOnly, StoreError
from tallystick.log import queue as q

from .test_many_writers import EVENT, check


def gaps(log):
    return [e.details for e in log.entries({"event_type": "log.gap"})]


def test_a_handle_has_its_id_and_waits_for_it(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        handle = log.submit(**EVENT, event_id="mine-1")
        assert handle.event_id == "mine-1"
        assert handle.wait() == "mine-1"
        assert handle.settled
        assert log.entry("mine-1").actor == EVENT["actor"]
        assert "on its way" not in repr(handle)


def test_flush_acknowledges_everything_in_its_order(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        handles = [log.submit(**{**EVENT, "details": {"n": n}}, payloads={"text": f"no {n}"}) for n in range(3000)]
        log.flush()
        assert all(h.settled for h in handles)
        assert [e.details["n"] for e in log.entries()] == list(range(3000))
        assert [e.event_id for e in log.entries()] == [h.event_id for h in handles]
        assert log.open_payload(handles[1234].event_id, "text") == b"no 1234"
        assert gaps(log) == []
        check(log, [h.event_id for h in handles])
    assert list((tmp_path / "audit_log" / "queued").iterdir()) == []


def test_close_and_the_end_of_the_process_settle_what_is_on_its_way(tmp_path):
    code = """if True:
        from tallystick import AuditLogger
        import sys
        log = AuditLogger(sys.argv[1])
        for n in range(500):
            log.submit("data_access", "bot", "service", "crm", f"read {n}")
    """
    subprocess.run([sys.executable, "-c", code, tmp_path / "audit_log"], check=True, timeout=60)
    with AuditLogger(tmp_path / "audit_log") as log:
        assert len(list(log.entries())) == 500
        log.log(**EVENT)
        assert gaps(log) == []


def test_bad_events_are_refused_at_once(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        with pytest.raises(EntryRefused, match="outcome"):
            log.submit(**{**EVENT, "outcome": "fine"})
        log.flush()


def test_a_failure_is_told_once_by_wait_else_by_flush(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT, event_id="taken")
        heard, unheard = (log.submit(**{**EVENT, "action": f"other {n}"}, event_id="taken") for n in range(2))
        with pytest.raises(Conflict):
            heard.wait()
        with pytest.raises(StoreError, match="1 submitted event"):
            log.flush()
        log.flush()
        assert unheard.settled


def test_close_raises_what_nobody_heard_and_closes_all_the_same(tmp_path):
    log = AuditLogger(tmp_path / "audit_log")
    log.log(**EVENT, event_id="taken")
    log.submit(**{**EVENT, "action": "other"}, event_id="taken")
    with pytest.raises(StoreError, match="not recorded"):
        log.close()
    with AuditLogger(tmp_path / "audit_log") as again:
        again.log(**EVENT)
        assert again.verify_integrity()["exit_code"] == 0


class Stopped:
    """The log's lock in other hands: nothing is written until ``go``."""

    def __init__(self, log):
        self.stop, held = threading.Event(), threading.Event()

        def hold():
            from tallystick.store.segments import SegmentStore

            store = SegmentStore(log.path)
            with store.exclusive(5):
                held.set()
                self.stop.wait()
            store.close()

        self.thread = threading.Thread(target=hold)
        self.thread.start()
        held.wait()

    def go(self):
        self.stop.set()
        self.thread.join()


@pytest.mark.parametrize(("events", "size", "fit"), [(5, 1 << 30, 5), (1000, 3000, None)])
def test_a_caller_who_is_too_far_ahead_waits(tmp_path, monkeypatch, events, size, fit):
    monkeypatch.setattr(q, "EVENTS_MAX", events)
    monkeypatch.setattr(q, "BYTES_MAX", size)
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
        stopped, done = Stopped(log), []

        def work():
            for _ in range(30):
                done.append(log.submit(**EVENT))

        thread = threading.Thread(target=work)
        thread.start()
        queue = log._handle.writer.queue
        while thread.is_alive() and len(done) < (fit or 4):
            pass
        assert thread.is_alive()  # with the log standing still it can never get to 30
        assert queue._submitted - queue._settled <= events
        assert queue._bytes <= size
        with pytest.raises(TimeoutError):
            log.flush(timeout_s=0)
        with pytest.raises(TimeoutError):
            done[0].wait(timeout_s=0)
        stopped.go()
        thread.join()
        log.flush()
        assert len(list(log.entries())) == 31


def test_log_beside_submit_is_acknowledged_when_it_returns(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        for n in range(50):
            log.submit(**EVENT)
            event_id = log.log(**EVENT)
            assert log.entry(event_id).index >= 0
            assert log.entry_count() >= 2 * n
        log.flush()


CHILD = """if True:
    import os, sys, threading
    from tallystick import AuditLogger
    log = AuditLogger(sys.argv[1])
    log.log("data_access", "bot", "service", "crm", "read")
    writer = log._handle.writer
    how, wanted = sys.argv[2], int(sys.argv[3])
    class Gate:
        def __init__(self): self.event = threading.Event()
    ready = threading.Event()
    if how == "before":
        def blocked(*a, **k): ready.wait(); threading.Event().wait()
        writer._write = blocked
    else:
        place, name = {"sync": (writer._store, "sync"), "signed": (writer._keys, "put_mark")}[how]
        real = getattr(place, name)
        count = [0]
        def die(*a, **k):
            if how == "signed": real(*a, **k)
            if writer.queue._submitted > 0: os.kill(os.getpid(), 9)
            return real(*a, **k) if how != "signed" else None
        hold = threading.Event()
        write = writer._write
        def later(events): hold.wait(); setattr(place, name, die); write(events)
        writer._write = later
    for n in range(wanted):
        log.submit("data_access", "bot", "service", "crm", f"read {n}")
    ready.set()
    if how == "before":
        print("submitted", flush=True)
    else:
        hold.set()
    threading.Event().wait()
"""


def run_child(folder, how, count):
    child = subprocess.Popen([sys.executable, "-c", CHILD, folder, how, str(count)], stdout=subprocess.PIPE, text=True)
    if how == "before":
        assert child.stdout.readline() == "submitted\n"
        os.kill(child.pid, signal.SIGKILL)
    child.wait(timeout=60)
    child.stdout.close()
    assert child.returncode == -9


def test_what_a_dying_process_loses_is_counted_once(tmp_path):
    folder = tmp_path / "audit_log"
    before = time.time_ns() // 1000
    run_child(folder, "before", 37)
    [tally] = (folder / "queued").iterdir()
    copy = tally.read_bytes()
    with AuditLogger(folder) as log:
        log.log(**EVENT)
        [gap] = gaps(log)
        assert gap["count"] == 37
        assert "their process ended" in gap["cause"]
        assert gap["queue"] == tally.name
        entry = next(iter(log.entries({"event_type": "log.gap"})))
        from tallystick.core.times import parse_time

        assert before <= parse_time(gap["first"]) <= parse_time(gap["last"]) <= entry.recorded_at_us
        assert not tally.exists()
    tally.write_bytes(copy)  # as if we had died between the entry and the removal
    with AuditLogger(folder) as log:
        log.log(**EVENT)
        assert len(gaps(log)) == 1
        assert not tally.exists()
        assert log.verify_integrity()["exit_code"] == 0


@pytest.mark.parametrize("how", ["sync", "signed"])
def test_what_was_written_before_its_process_died_is_not_counted_as_lost(tmp_path, how):
    """``sync``: lines there, unsigned, taken in by recovery; ``signed``: all done but for the telling."""
    folder = tmp_path / "audit_log"
    run_child(folder, how, 20)
    with AuditLogger(folder) as log:
        log.log(**EVENT)
        recorded = len([e for e in log.entries() if e.action.startswith("read ")])
        lost = sum(g["count"] for g in gaps(log))
        assert recorded + lost == 20
        assert recorded >= 1
        assert list((folder / "queued").iterdir()) == []


def test_the_tally_of_a_living_process_is_left_alone(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.submit(**EVENT).wait()
        assert len(list((log.path / "queued").iterdir())) == 1
        assert q.find_lost(log.path / "queued") == []
        pid = os.fork()
        if pid == 0:  # the child has a queue of its own and leaves the parent's alone
            status = 1
            try:
                child = log.submit(**EVENT)
                child.wait()
                status = 0 if len(list((log.path / "queued").iterdir())) == 2 else 2
                log.close()
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        log.submit(**EVENT).wait()
        assert gaps(log) == []
        assert len(list((log.path / "queued").iterdir())) == 1


def test_a_child_is_told_that_the_parent_records_it(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        stopped = Stopped(log)
        handle = log.submit(**EVENT)
        # fork waits until no group is in flight, so let it go on first; the handle belongs to the parent all the same
        stopped.go()
        pid = os.fork()
        if pid == 0:
            try:
                handle._request.result = None
                handle.wait()
            except AuditError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert handle.wait() == handle.event_id


@pytest.mark.parametrize("content", [b"", b"TSQ1", b"x" * 256, b"TSQ1" + b"\xff" * 252, b"\0" * 4096])
def test_what_is_no_tally_says_nothing(tmp_path, content):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
    folder = tmp_path / "audit_log" / "queued"
    folder.mkdir(exist_ok=True)
    (folder / ("0" * 16)).write_bytes(content)
    os.mkfifo(folder / ("1" * 16))
    (folder / "notes").write_text("hello")
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
        assert gaps(log) == []


def test_a_full_disk_is_told_and_on_record(tmp_path):
    from tallystick.disk import Disk
    from tallystick.handles import Handle

    class Full(Disk):
        full = False

        def write_at(self, fd, data, offset):
            if self.full:
                raise OSError(28, "No space left on device")
            super().write_at(fd, data, offset)

    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
        path = log.path
    disk = Full()
    handle = Handle(path, disk)
    log = AuditLogger(path)
    log._handle = handle
    log.submit(**EVENT).wait()
    disk.full = True
    waiting = [log.submit(**EVENT) for _ in range(3)]
    with pytest.raises(DiskFull):
        waiting[0].wait()
    disk.full = False
    with pytest.raises(StoreError, match="2 submitted"):
        log.flush()
    log.log(**EVENT)
    assert sum(g["count"] for g in gaps(log)) == 3
    handle.close()
    log.close()


def test_a_failure_that_was_told_hushes_up_no_other(tmp_path):
    """Waited for twice, or waited for after flush had said it: the next one's failure is still to be heard."""
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT, event_id="taken")
        bad = {**EVENT, "action": "other"}
        first, second = (log.submit(**bad, event_id="taken") for _ in range(2))
        for _ in range(2):
            with pytest.raises(Conflict):
                first.wait()
        with pytest.raises(StoreError, match="1 submitted event"):
            log.flush()
        third = log.submit(**bad, event_id="taken")
        with pytest.raises(Conflict):
            second.wait()
        with pytest.raises(StoreError, match="1 submitted event"):
            log.flush()
        assert third.settled


@pytest.mark.parametrize(("number", "kind"), [(28, DiskFull), (30, ReadOnly), (13, ReadOnly), (5, StoreError)])
def test_a_tally_that_cannot_be_made_is_an_error_of_ours_and_leaves_nothing(tmp_path, monkeypatch, number, kind):
    from tallystick.disk import Disk

    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
        with monkeypatch.context() as patch:
            def fail(*_):
                raise OSError(number, os.strerror(number))

            patch.setattr(Disk, "sync", fail)
            with pytest.raises(kind) as raised:
                log.submit(**EVENT)
            assert type(raised.value) is kind
        assert not any((log.path / "queued").glob("*"))
        log.flush()
        log.submit(**EVENT).wait()
        assert gaps(log) == []


def test_who_looks_for_lost_tallies_is_waited_for(tmp_path, monkeypatch):
    import fcntl

    real, asked = fcntl.flock, []

    def flock(fd, how):
        if "/queued/" in os.readlink(f"/proc/self/fd/{fd}"):
            asked.append(how)
        return real(fd, how)

    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
        monkeypatch.setattr(fcntl, "flock", flock)
        log.submit(**EVENT).wait()
        assert asked == [fcntl.LOCK_EX]
