"""What a writing process does: ``python -m tests.writers.work MODE FOLDER COUNT`` prints the ids that were acknowledged."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

from tallystick import AuditLogger

from ..faults.judge import event


def single(log: AuditLogger, count: int) -> list[str]:
    return [log.log(**event(n)) for n in range(count)]


def threads(log: AuditLogger, count: int, width: int = 8) -> list[str]:
    found: list[str] = []

    def run() -> None:
        found.extend(log.log(**event(n, payloads={"a": "x"} if n % 10 == 0 else None)) for n in range(count // width))

    running = [threading.Thread(target=run) for _ in range(width)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return found


def tasks(log: AuditLogger, count: int) -> list[str]:
    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*(log.alog(**event(n)) for n in range(count))))

    return asyncio.run(all_of_them())


def forks(log: AuditLogger, count: int) -> list[str]:
    """Children are forked in the middle of what threads are writing, and write on with what they inherited."""
    part, found, children = count // 8, [], []
    go = threading.Barrier(5)

    def run() -> None:
        go.wait()
        found.extend(log.log(**event(n)) for n in range(part))

    running = [threading.Thread(target=run) for _ in range(4)]
    for one in running:
        one.start()
    go.wait()
    for _ in range(4):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(out)
                ids = threads(log, part, 2)
                log.close()
                os.write(into, "\n".join(ids).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(into)
        children.append((pid, out))
    for one in running:
        one.join()
    for pid, out in children:
        with os.fdopen(out) as file:
            found.extend(file.read().split("\n"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return found


def mix(log: AuditLogger, count: int) -> list[str]:
    part = count // 4
    found = log.log_many([event(n) for n in range(part)])
    return found + threads(log, part, 4) + tasks(log, part) + forks(log, part)


MODES = {f.__name__: f for f in (single, threads, tasks, forks, mix)}


def work(mode: str, folder: str, count: int) -> list[str]:
    with AuditLogger(Path(folder), create=False) as log:
        return MODES[mode](log, count)


def create_and_write(folder: str) -> str:
    with AuditLogger(Path(folder)) as log:
        return log.log(**event(0))


def one_id(folder: str, n: int) -> str:
    """The id is the same for all; the content of an odd one is not."""
    from tallystick.core.errors import Conflict

    with AuditLogger(Path(folder), create=False) as log:
        try:
            return log.log(**event(n % 2, payloads={"a": f"text {n % 2}"}), event_id="evt_" + "0" * 31 + "1")
        except Conflict as e:
            return f"conflict: {e}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(work(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
