"""Sixteen processes, threads, forks and tasks on one log: no fork, no gap, no duplicate; what was acknowledged is there."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.core.errors import StoreError
from tallystick.index import connection
from tallystick.log.create import creation_lock
from tallystick.memory import Known, Memory
from tallystick.opening import is_log

from ..faults.judge import all_lines, event, judge, judge_as_it_is
from ..faults.lab import Lab
from . import work

ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Other processes find the same memory."""
    monkeypatch.setenv("TALLY_STATE", str(lab.base / "state"))
    return lab


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(8, mp_context=SPAWN) as made:
        yield made


def small_segments(lab: Lab) -> None:
    config = lab.folder / "log.toml"
    config.write_bytes(config.read_bytes().replace(b"bytes = 67108864", b"bytes = 60000"))


def subprocesses(lab: Lab, jobs: list[tuple[str, int]]) -> list[str]:
    running = [
        subprocess.Popen([sys.executable, "-m", "tests.writers.work", mode, str(lab.folder), str(count)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE) for mode, count in jobs
    ]  # fmt: skip
    found: list[str] = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert not err
        found += out.split("\n")
    return found


def test_sixteen_processes(lab: Lab) -> None:
    small_segments(lab)
    acknowledged = subprocesses(lab, [("single", 40)] * 8 + [("threads", 40)] * 4 + [("tasks", 40)] * 3 + [("forks", 64)])
    assert len(acknowledged) == len(set(acknowledged)) == 15 * 40 + 64
    found = judge(lab.folder, lab.memory, acknowledged)
    assert len(list((lab.folder / "segments").iterdir())) > 3
    assert len([s for s in found.lines if s.fields.actor == "ana"]) == len(acknowledged) + 1
    assert not found.of_type("log.recovered")


def test_sixteen_processes_that_end_epochs(lab: Lab) -> None:
    """Every seventh entry or so another key signs: nobody signs with a stale one, each epoch ends once."""
    config = lab.folder / "log.toml"
    config.write_bytes(config.read_bytes().replace(b"entries = 0 ", b"entries = 7 "))
    acknowledged = subprocesses(lab, [("single", 20)] * 10 + [("threads", 40)] * 3 + [("tasks", 40)] * 2 + [("forks", 64)])
    found = judge(lab.folder, lab.memory, acknowledged)
    assert len(set(acknowledged)) == len(acknowledged)
    assert len(found.of_type("log.epoch_close")) > 30
    assert not found.of_type("log.recovered")


def test_mix_in_spawned_processes(lab: Lab, pool: ProcessPoolExecutor) -> None:
    done = [pool.submit(work.work, "mix", str(lab.folder), 160) for _ in range(4)]
    acknowledged = [i for one in done for i in one.result(120)]
    assert len(set(acknowledged)) == len(acknowledged)
    judge(lab.folder, lab.memory, acknowledged)


@pytest.mark.parametrize("mode", ["threads", "tasks", "forks", "mix"])
def test_one_process(lab: Lab, mode: str) -> None:
    done = subprocesses(lab, [(mode, 320)])
    assert len(set(done)) == len(done) >= 160
    judge(lab.folder, lab.memory, done)


def test_ids_after_fork_are_never_those_of_the_parent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draw at the same time in parent and children, who share everything they had in memory."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    log = AuditLogger(lab.folder, memory=lab.memory)
    log.log(**event(0))
    pipes = []
    for _ in range(8):
        out, into = os.pipe()
        if os.fork() == 0:
            os.write(into, log.log(**event(1)).encode())
            os._exit(0)
        os.close(into)
        pipes.append(out)
    ids = [log.log(**event(1))]
    for out in pipes:
        with os.fdopen(out) as file:
            ids.append(file.read())
        os.wait()
    log.close()
    assert len({i for i in ids if i.startswith("evt_")}) == 9
    judge(lab.folder, lab.memory, ids)


def test_a_child_that_only_inherits_leaves_the_parent_alone(lab: Lab) -> None:
    """It ends, by ``exit`` or by closing, and the parent writes on under its own lock."""
    log = AuditLogger(lab.folder, memory=lab.memory)
    acknowledged = [log.log(**event(0))]
    for close in (False, True):
        pid = os.fork()
        if pid == 0:
            if close:
                log.close()
            os._exit(0)
        os.waitpid(pid, 0)
        acknowledged.append(log.log(**event(1)))
    log.close()
    found = judge(lab.folder, lab.memory, acknowledged)
    assert not found.of_type("log.recovered")


def test_one_id_from_many_processes_is_one_entry(lab: Lab, pool: ProcessPoolExecutor) -> None:
    answers = [one.result(60) for one in [pool.submit(work.one_id, str(lab.folder), n) for n in range(32)]]
    same = [a for a in answers if a == "evt_" + "0" * 31 + "1"]
    conflicts = [a for a in answers if a.startswith("conflict: ")]
    assert len(same) == len(conflicts) == 16
    assert all("details, payloads differ" in c or "resource" in c for c in conflicts)
    found = judge(lab.folder, lab.memory, same[:1])
    assert len([s for s in found.lines if s.fields.actor == "ana"]) == 2


def test_a_cancelled_task_and_a_closed_loop_stop_nobody_else(lab: Lab) -> None:
    """What was under way is recorded; who waits in the same group is woken."""
    log = AuditLogger(lab.folder, memory=lab.memory)
    log.log(**event(0))
    writer = log._handle.writer

    async def begin() -> None:
        task = asyncio.create_task(log.alog(**event(1)))
        while not writer.groups._pending and not writer.groups._leading:
            await asyncio.sleep(0)
        task.cancel()

    writer.busy.acquire()  # the group cannot be committed before the loop is gone
    asyncio.run(begin())
    ids: list[str] = []
    others = [threading.Thread(target=lambda: ids.append(log.log(**event(2)))) for _ in range(5)]
    for one in others:
        one.start()
    writer.busy.release()
    for one in others:
        one.join(30)
        assert not one.is_alive()
    log.close()
    found = judge(lab.folder, lab.memory, ids)
    assert sorted(s.fields.details["n"] for s in found.lines if s.fields.actor == "ana") == [0, 1, 2, 2, 2, 2, 2, 999]


def test_two_loggers_of_one_path_share_one_writer(lab: Lab) -> None:
    a, b = AuditLogger(lab.folder, memory=lab.memory), AuditLogger(lab.folder, memory=lab.memory)
    ids = [a.log(**event(0)), b.log(**event(1))]
    a.close()
    with pytest.raises(StoreError, match="closed"):
        a.log(**event(2))
    ids.append(b.log(**event(3)))
    b.close()
    judge_as_it_is(lab.folder, lab.memory, ids)
    assert [s.fields.event_id for s in all_lines(lab.folder)[1:]] == ids


def test_eight_processes_make_one_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is announced once, by whoever made it."""
    monkeypatch.setenv("TALLY_STATE", str(tmp_path / "state"))
    folder = tmp_path / "new" / "audit_log"
    folder.parent.mkdir()
    code = "import sys; from tests.writers.work import create_and_write; print(create_and_write(sys.argv[1]))"
    running = [subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE) for _ in range(8)]  # fmt: skip
    done = [(*one.communicate(timeout=60), one.returncode) for one in running]
    assert [code for _, _, code in done] == [0] * 8, done
    assert sum(err.count("tallystick made a new log") for _, err, _ in done) == 1
    ids = [out.strip() for out, _, _ in done]
    assert len(set(ids)) == 8
    judge(folder, Memory(tmp_path / "state"), ids)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["audit_log", "audit_log.keys"]


@pytest.mark.parametrize("remembered", [True, False])
def test_a_log_that_is_made_while_we_look_is_there(base: Path, remembered: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Between the look for the log and the look into the memory another process makes and remembers it."""
    lab = Lab(base)

    class Late(Memory):
        def get(self, log: Path) -> Known | None:
            if not is_log(lab.folder):
                lab.make()
            return super().get(log) if remembered else None

    late = Late(base / "state")
    with AuditLogger(lab.folder, memory=late) as log:
        ids = [log.log(**event(0))]
    judge(lab.folder, lab.memory, ids)
    assert capsys.readouterr().err.count("made a new log") == 1


def test_one_creator_at_a_time(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab(base)
    with creation_lock(base):
        other = threading.Thread(target=lab.make)
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert not lab.folder.exists()
    other.join(30)
    assert is_log(lab.folder)
    capsys.readouterr()


def test_no_fork_while_a_thread_is_inside_sqlite(lab: Lab) -> None:
    """The child would inherit SQLite's mutexes locked, and hang in its first query with the log's lock in its hands."""
    log = AuditLogger(lab.folder, memory=lab.memory)
    acknowledged = [log.log(**event(0))]
    inside, leave, forked = threading.Event(), threading.Event(), threading.Event()

    def query() -> None:
        with connection._GATE:
            inside.set()
            leave.wait(30)

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if len(log.query()) == 1 and log.log(**event(1)) else 1)
        forked.set()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    running = [threading.Thread(target=query), threading.Thread(target=fork)]
    running[0].start()
    assert inside.wait(30)
    running[1].start()
    assert not forked.wait(0.2)
    leave.set()
    for one in running:
        one.join(30)
    assert forked.is_set()
    rows = iter(log.entries())
    next(rows)  # whoever only holds a cursor holds nobody up
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    log.close()
    assert len(all_lines(lab.folder)) == 3
    judge(lab.folder, lab.memory, acknowledged)


def test_the_fork_gate_counts_and_is_reentrant():
    """The collector may close a connection inside another call; the outer call must still hold up a fork."""
    from tallystick.index.connection import _ForkGate

    gate = _ForkGate()
    inside, leave, closed = threading.Event(), threading.Event(), threading.Event()

    def work():
        with gate:
            with gate, gate:
                pass
            inside.set()
            leave.wait()
            with gate:  # while a fork waits for us
                pass

    def fork():
        gate.close()
        closed.set()
        gate.open()

    threads = [threading.Thread(target=work), threading.Thread(target=fork)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    assert not closed.wait(0.2)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert closed.is_set()
    assert gate._inside == {}
