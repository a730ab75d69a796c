"""Sixteen processes, threads, forks, tasks on one log: no fork, gap or duplicate; acknowledged is stored; nobody starves."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import LogBusy
from tallystick.disk import DISK, Disk
from tallystick.log.groups import GroupCommit, Request
from tallystick.store.segments import SegmentStore

EVENT = {"event_type": "data_access", "actor": "ana", "actor_type": "user", "resource": "crm", "action": "read"}

WRITER = """
import sys
from tallystick import AuditLogger
log = AuditLogger(sys.argv[1], create=sys.argv[3] == "create")
for n in range(int(sys.argv[2])):
    print(log.log("data_access", sys.argv[4], "service", "crm", "read", details={"n": n},
                  payloads={"p": str(n)} if n % 5 == 0 else None), flush=True)
"""


def writers(path, count, events, how="open"):
    started = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(events), how, f"p{k}"], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True) for k in range(count)
    ]  # fmt: skip
    ids = []
    for process in started:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        ids += out.split()
    return ids


def check(log, ids):
    """One history: what was acknowledged is there once, in a gapless order, and everything is proven."""
    entries = list(log.entries({"event_type": {"glob": "*"}}, limit=None))
    assert [e.index for e in log.entries({"index": {">=": 0}, "event_type": ["data_access", "log.created"]})] == list(range(len(ids) + 1))
    assert sorted(e.event_id for e in entries if e.event_type == "data_access") == sorted(ids)
    status = log.verify_integrity()
    assert status["verified"], status["issues"][:5]
    assert status["tree_size"] == len(ids) + 1


def test_sixteen_processes_write_one_history_and_each_in_its_own_order(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        ids = writers(log.path, 16, 25)
        assert len(set(ids)) == 400
        check(log, ids)
        for k in range(16):
            assert [r["details"]["n"] for r in log.query({"actor": f"p{k}"}, limit=None)] == list(range(25))


def test_eight_processes_that_all_make_the_log_make_one(tmp_path):
    ids = writers(tmp_path / "audit_log", 8, 3, "create")
    with AuditLogger(tmp_path / "audit_log", create=False) as log:
        check(log, ids)


def test_forks_in_the_middle_of_busy_threads(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        ids, stop = [], threading.Event()

        def work():
            while not stop.is_set():
                ids.append(log.log(**EVENT))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:  # the child writes through the logger that it inherited, and says what was acknowledged
                status = 1
                try:
                    os.write(write, "\n".join(log.log(**EVENT) for _ in range(5)).encode())
                    status = 0
                finally:
                    os._exit(status)
            os.close(write)
            with os.fdopen(read) as said:
                ids += said.read().split()
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert len(ids) == len(set(ids))
        check(log, ids)


def test_threads_tasks_and_batches_at_once(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        ids: list[str] = []

        def singles():
            for _ in range(30):
                ids.append(log.log(**EVENT))

        def batches():
            for _ in range(5):
                ids.extend(log.log_many([EVENT] * 40))

        async def tasks():
            return await asyncio.gather(*(log.alog(**EVENT) for _ in range(150)))

        threads = [threading.Thread(target=t) for t in (singles, batches) * 4]
        for thread in threads:
            thread.start()
        ids += asyncio.run(tasks())
        for thread in threads:
            thread.join()
        assert len(ids) == 4 * 30 + 4 * 200 + 150
        check(log, ids)


def test_the_same_id_from_many_processes_is_one_entry(tmp_path):
    code = """
import sys
from tallystick import AuditLogger
log = AuditLogger(sys.argv[1])
for n in range(10):
    log.log("data_access", "ana", "user", "crm", "read", details={"n": n}, event_id=f"job-{n}")
"""
    with AuditLogger(tmp_path / "audit_log") as log:
        started = [subprocess.Popen([sys.executable, "-c", code, str(log.path)]) for _ in range(6)]
        assert [p.wait(timeout=120) for p in started] == [0] * 6
        check(log, [f"job-{n}" for n in range(10)])


def test_whoever_waits_together_is_synced_together():
    """32 callers that come back at once make groups of (nearly) 32: the leader lingers for those seen last time."""
    sizes = []
    barrier = threading.Barrier(32)

    def commit(requests):
        sizes.append(len(requests))
        for request in requests:
            request.result = True

    groups = GroupCommit(commit)
    groups._last_s = 60.0  # as if a sync took so long that lingering is worth its whole limit
    groups._expected = 32

    def work():
        for _ in range(10):
            barrier.wait()
            request = Request(None)
            groups._last_s, groups._expected = 60.0, 32
            groups.run(request)
            assert request.result

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sizes) == 320
    assert 320 / len(sizes) >= 16


def test_one_sync_for_a_whole_group(tmp_path):
    """While one sync is under way 20 more callers arrive: they share the next one."""

    class Slow(Disk):
        syncs = 0
        block = threading.Event()
        entered = threading.Event()

        def sync_data(self, fd):
            type(self).syncs += 1
            self.entered.set()
            self.block.wait(60)
            super().sync_data(fd)

    from tallystick import logger as module

    AuditLogger(tmp_path / "audit_log").close()
    log = AuditLogger(tmp_path / "audit_log")
    log.log(**EVENT)
    log._handle.keeper.stop()
    slow = Slow()
    log._handle.store._disk = slow
    try:
        first = threading.Thread(target=lambda: log.log(**EVENT))
        first.start()
        assert slow.entered.wait(60)
        rest = [threading.Thread(target=lambda: log.log(**EVENT)) for _ in range(20)]
        for thread in rest:
            thread.start()
        while len(log._handle.writer.groups._pending) < 20:
            threading.Event().wait(0.001)
        before = slow.syncs
        slow.block.set()
        for thread in [first, *rest]:
            thread.join()
        assert slow.syncs - before == 1
        assert module is not None
    finally:
        log._handle.store._disk = DISK
        log.close()


def test_a_holder_that_does_not_let_go_is_named(tmp_path):
    with AuditLogger(tmp_path / "audit_log") as log:
        log.log(**EVENT)
        other = SegmentStore(log.path)
        with other.exclusive(5):
            with pytest.raises(LogBusy, match="process"), log._handle.store.exclusive(0.05):
                pass
        other.close()
        log.log(**EVENT)


def test_ids_never_repeat_after_a_fork(tmp_path):
    from tallystick.clock import CLOCK

    read, write = os.pipe()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os.write(write, "".join(CLOCK.event_id() + "\n" for _ in range(100)).encode())
            os._exit(0)
        pids.append(pid)
    os.close(write)
    with os.fdopen(read) as said:
        ids = said.read().split()
    for pid in pids:
        os.waitpid(pid, 0)
    assert len(ids) == len(set(ids)) == 400
