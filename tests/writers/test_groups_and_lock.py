"""Who waits together is synced together; who cannot get the lock is told by whom; no grant comes to one who went away."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick.core.errors import LogBusy
from tallystick.disk import DISK
from tallystick.log import groups as groups_module
from tallystick.log import writer as writer_module
from tallystick.store import lock as lock_module
from tallystick.store.lock import FolderLock

from ..faults.disks import FaultDisk
from ..faults.judge import event, judge
from ..faults.lab import Lab

WIDTH = 32


class Gate(FaultDisk):
    """Each data sync of lines waits until ``ready`` says that enough others stand in line."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: Callable[[], bool] = lambda: True
        self.syncs = 0
        self.moment = threading.Condition()

    def sync_data(self, fd: int) -> None:
        if "/segments/" in os.readlink(f"/proc/self/fd/{fd}"):
            with self.moment:
                assert self.moment.wait_for(self.ready, 60)
            self.syncs += 1
        super().sync_data(fd)


def test_thirty_two_threads_are_few_groups(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one group is being synced the others gather, and those just served are awaited: not two half groups in turn."""
    monkeypatch.setattr(groups_module, "GAP_S", 2.0)  # this machine's threads may come late
    monkeypatch.setattr(groups_module, "LINGER_S_MAX", 2.0)
    disk, rounds = Gate(), 12
    log = lab.open(disk)
    acknowledged = [log.log(**event(0))]
    groups, left = log._handle.writer.groups, [WIDTH]
    disk.syncs = 0
    # a sync returns when all that still have something to record wait: for it, or behind it
    leading: list[int] = []
    commit = groups._commit
    groups._commit = lambda group: (leading.append(len(group)), commit(group))[1]  # type: ignore[assignment]
    disk.ready = lambda: len(groups._pending) + leading[-1] >= left[0]

    enqueue = groups._enqueue

    def enqueued(request: object) -> bool:
        first = enqueue(request)  # type: ignore[arg-type]
        with disk.moment:
            disk.moment.notify_all()
        return first

    groups._enqueue = enqueued  # type: ignore[method-assign, assignment]

    def run() -> None:
        for n in range(rounds):
            acknowledged.append(log.log(**event(n)))
        with disk.moment:
            left[0] -= 1
            disk.moment.notify_all()

    running = [threading.Thread(target=run) for _ in range(WIDTH)]
    for one in running:
        one.start()
    for one in running:
        one.join(120)
    log.close()
    assert len(acknowledged) == WIDTH * rounds + 1
    assert sum(leading) == WIDTH * rounds
    assert disk.syncs == len(leading)
    assert WIDTH * rounds / disk.syncs >= 20, leading
    judge(lab.folder, lab.memory, acknowledged)


def test_a_single_writer_waits_for_nobody(lab: Lab) -> None:
    disk = Gate()
    log = lab.open(disk)
    log.log(**event(0))
    disk.syncs = 0
    for n in range(5):
        log.log(**event(n))
        assert log._handle.writer.groups._expected == 1
    assert disk.syncs == 5
    log.close()


def test_a_group_fails_as_a_whole_and_each_caller_learns_of_it(lab: Lab) -> None:
    log = lab.open()
    log.log(**event(0))
    writer, errors = log._handle.writer, []
    writer.busy.acquire()

    def run() -> None:
        try:
            log.log(**event(1))
        except OSError as e:
            errors.append(e)
        except Exception as e:
            errors.append(e)

    running = [threading.Thread(target=run) for _ in range(8)]
    log._handle.store._disk = FaultDisk(1)
    for one in running:
        one.start()
    while len(writer.groups._pending) < 7:
        pass
    writer.busy.release()
    for one in running:
        one.join(30)
    gaps = 8 - len(errors)
    assert len(errors) in (1, 7, 8)  # the first alone, the rest together, or all at once
    acknowledged = [log.log(**event(2))]
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    assert sum(g.details["count"] for g in found.of_type("log.gap")) == len(errors)
    assert len([s for s in found.lines if s.fields.details.get("n") == 1]) == gaps


def test_the_busy_log_names_who_holds_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LOCK_WAIT_S", 0.05)
    holder, log = lab.open(), lab.open()
    acknowledged = [holder.log(**event(0)), log.log(**event(1))]
    with holder._handle.store.exclusive(1):
        for _ in range(3):
            with pytest.raises(LogBusy, match=f"process {os.getpid()} has held the lock"):
                log.log(**event(2))
    acknowledged.append(log.log(**event(3)))
    holder.close()
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    assert [s.fields.details["n"] for s in found.lines if s.fields.actor == "ana"] == [0, 1, 3, 999]


def _lock(base: Path) -> FolderLock:
    (base / "turnstile").mkdir(exist_ok=True)
    return FolderLock(base / "lock", base / "turnstile", DISK)


def test_a_late_grant_is_not_taken_for_the_next_try(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait was given up; its thread is granted the lock all the same, and before it lets go the same handle tries again.
    What the thread then releases must not be what this try holds."""
    mine, theirs = _lock(base), _lock(base)
    real, main = fcntl.flock, threading.current_thread()
    granted, go, threads = threading.Event(), threading.Event(), []

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        if threading.current_thread() is not main and os.path.samestat(os.fstat(fd), (base / "lock").stat()):
            threads.append(threading.current_thread())
            granted.set()
            assert go.wait(30)

    monkeypatch.setattr(fcntl, "flock", flock)
    with theirs.held(1):
        with pytest.raises(LogBusy), mine.held(0.05):
            pass
    assert granted.wait(30)
    if not _taken(mine):
        go.set()  # the new try is on another descriptor: it gets the lock when the thread has let go
    with mine.held(30):
        go.set()
        threads[0].join(1)
        probe = os.open(base / "lock", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            real(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(probe)
    with _lock(base).held(30):
        pass


def _taken(lock: FolderLock) -> bool:
    """Whether a try on the descriptor that this handle has now would succeed though nobody let go."""
    return lock.fd is not None


def test_an_interrupted_wait_leaves_nobody_with_the_lock(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C while another process holds the log: when that one lets go, the lock is free for everybody."""
    mine, theirs = _lock(base), _lock(base)

    def interrupted(_wait: lock_module._Wait, _seconds: float) -> bool:
        raise KeyboardInterrupt

    with theirs.held(1):
        with monkeypatch.context() as patch:
            patch.setattr(lock_module._Wait, "finish", interrupted)
            with pytest.raises(KeyboardInterrupt), mine.held(30):
                pass
    for one in (_lock(base), mine, _lock(base)):
        with one.held(5):
            pass


def test_who_comes_back_queues_behind_who_waits(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is free and somebody stands in the turnstile who has not taken it yet: nobody passes him."""
    quick, patient = _lock(base), _lock(base)
    real = fcntl.flock
    standing, go, done = threading.Event(), threading.Event(), threading.Event()

    def flock(fd: int, operation: int) -> None:
        helper = threading.current_thread().name == "tallystick-lock" and operation == fcntl.LOCK_EX
        if helper and not go.is_set() and os.path.samestat(os.fstat(fd), (base / "lock").stat()):
            standing.set()
            assert go.wait(30)
        real(fd, operation)

    def wait() -> None:
        with patient.held(30):
            done.set()

    monkeypatch.setattr(fcntl, "flock", flock)
    with quick.held(30):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert standing.wait(30)
    with pytest.raises(LogBusy), quick.held(0.05):
        pass
    go.set()
    waiting.join(30)
    assert done.is_set()
    with quick.held(30):
        pass


def test_an_interrupt_is_the_leaders_own_and_the_others_hear_what_it_means_for_them(lab: Lab) -> None:
    """Control-C hits the thread that writes for all: it is raised there; who waited gets an error that is a StoreError, and the
    next group is led by somebody."""
    log = lab.open()
    log.log(**event(0))
    writer = log._handle.writer
    real, entered, go = writer._commit_locked, threading.Event(), threading.Event()

    def interrupted(_requests: object) -> None:
        entered.set()
        assert go.wait(30)
        raise KeyboardInterrupt

    raised: list[BaseException] = []

    def record() -> None:
        try:
            log.log(**event(1))
        except BaseException as e:
            raised.append(e)

    with writer.busy:  # the leader waits here with a group of one; the other two gather behind it
        leader = threading.Thread(target=record)
        leader.start()
        while not writer.groups._leading or writer.groups._pending:
            threading.Event().wait(0.001)
        others = [threading.Thread(target=record) for _ in range(2)]
        for one in others:
            one.start()
        while len(writer.groups._pending) < 2:
            threading.Event().wait(0.001)
        writer._commit_locked = interrupted  # type: ignore[method-assign]
    assert entered.wait(30)
    go.set()
    for one in [leader, *others]:
        one.join(30)
        assert not one.is_alive()
    assert sorted(type(e).__name__ for e in raised) == ["KeyboardInterrupt", "KeyboardInterrupt", "StoreError"]
    writer._commit_locked = real  # type: ignore[method-assign]
    assert log.log(**event(2))
    log.close()
