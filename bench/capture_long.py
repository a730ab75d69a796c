"""Two programs that call a model: one with a very long stream, one that is killed.

``python -m bench.capture_long memory FOLDER PIECES`` prints the peak of its memory in MB after a tenth of the stream and at its end.
``python -m bench.capture_long killed FOLDER DIALECT`` prints the id of each call after it returned, until somebody kills it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from .capture_local import DIALECTS, ask, new_client

THREADS = 2


def memory(folder: Path, pieces: int) -> None:
    """One stream."""
    from tallystick import AuditLogger

    with AuditLogger(folder) as log:
        client = log.wrap(new_client("ollama", pieces))
        ask("ollama", client)
        early = 0.0
        for number, _ in enumerate(ask("ollama", client, stream=True), 1):
            if number == pieces // 10:
                early = _peak_mb()
        print(json.dumps([early, _peak_mb()]))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def calls(folder: Path, dialect: str) -> None:
    """Whole answers in one thread, streams in the other."""
    from tallystick import AuditLogger, event_id

    log = AuditLogger(folder)

    def work(number: int) -> None:
        client = log.wrap(new_client(dialect, 20))
        while True:
            answer = ask(dialect, client, stream=number == 1)
            call = event_id(answer)
            if number == 1:
                for _ in answer:
                    pass
            os.write(1, f"{call}\n".encode())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def kill(folder: Path, times: int) -> dict[str, int]:
    """Killed at a random moment, ``times`` times, always the same log; what it had been told, and what is on record of it."""
    from tallystick import AuditLogger

    draw = random.Random()
    told: set[str] = set()
    for number in range(times):
        command = [sys.executable, "-m", "bench.capture_long", "killed", str(folder), DIALECTS[number % 2]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        told.add(process.stdout.readline().decode().strip())
        time.sleep(draw.uniform(0.0, 0.4))
        process.kill()
        lines = process.stdout.read().decode().split("\n")
        process.wait()
        process.stdout.close()
        told.update(lines[:-1])  # a line that was cut was not said
    told.discard("")
    with AuditLogger(folder) as log:
        requests, answers = set(), set()
        for entry in log.entries({"event_type": ["ai_request", "ai_response"]}):
            if entry.event_type == "ai_request":
                requests.add(entry.event_id)
            elif entry.details["end"] == "ok":
                answers.add(entry.parent_id)
        # what the last one died in is unsigned until somebody appends, which takes it in and names it
        log.log("data_access", "bench", "service", "log", "look after the kills")
        verifies = bool(log.verify_integrity()["verified"])
    return {"kills": times, "acknowledged": len(told), "lost": len(told - (requests & answers)), "open": len(requests - answers),
            "verifies": int(verifies)}  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        memory(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        calls(Path(sys.argv[2]), sys.argv[3])
