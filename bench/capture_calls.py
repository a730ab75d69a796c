"""What capture costs a call and a chunk; ``python -m bench.capture_calls PRODUCT FOLDER`` measures one round for each line
``CALLS CHUNKS`` on its standard input, and answers with a line of JSON: name → value.

One product in one process, because the others patch the libraries. ``bare`` is nobody, ``tallystick`` has bare clients beside its
own, as ``wrap`` hooks one client.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .capture_local import DIALECTS, ask, new_client
from .capture_peers import Spans, instrument

STREAMS = 4
PROMPT_4K = "The terms of delivery of 2024 hold for all orders that were placed before the end of the year. " * 43


def main() -> None:
    """Measure whenever asked."""
    product, folder = sys.argv[1], Path(sys.argv[2])
    worker = Ours(folder) if product == "tallystick" else Theirs(product)
    worker.round(20, 50)
    print("ready", flush=True)
    for line in sys.stdin:
        calls, chunks = map(int, line.split())
        worker.seen = {}
        worker.round(calls, chunks)
        print(json.dumps(worker.seen), flush=True)


class Worker:
    """Measures; ``seen``: what it saw in this round."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def calls(self, count: int, cases: dict[str, Callable[[], Any]], before: Callable[[], None] = lambda: None) -> None:
        """Each in turn, ``count`` times, ``before`` not counted: median of CPU time of this thread and of time on the wall, in µs."""
        cpu: dict[str, list[int]] = {name: [] for name in cases}
        wall: dict[str, list[int]] = {name: [] for name in cases}
        for _ in range(count):
            for name, case in cases.items():
                before()
                began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
                case()
                spent_cpu, spent = time.thread_time_ns() - began_cpu, time.perf_counter_ns() - began
                cpu[name].append(spent_cpu)
                wall[name].append(spent)
        for name in cases:
            self.seen[f"{name}, CPU µs"] = statistics.median(cpu[name]) / 1000
            self.seen[f"{name}, wall µs"] = statistics.median(wall[name]) / 1000

    def chunks(self, dialect: str, clients: dict[str, Any]) -> None:
        """CPU µs per chunk, from the first to the last but some with text, so that neither beginning nor end is in it; and of a whole
        stream, where it is what others do at its end."""
        found: dict[str, list[float]] = {name: [] for name in clients}
        streams: dict[str, list[int]] = {name: [] for name in clients}
        for _ in range(STREAMS):
            for name, client in clients.items():
                began = time.thread_time_ns()
                found[name].append(_one_stream(ask(dialect, client, stream=True)))
                streams[name].append(time.thread_time_ns() - began)
        for name in clients:
            self.seen[f"{name}, CPU µs per chunk"] = statistics.median(found[name])
            self.seen[f"{name}, CPU µs of a stream"] = statistics.median(streams[name]) / 1000

    def achunks(self, dialect: str, clients: dict[str, Any]) -> None:
        """The same for asynchronous clients."""
        found: dict[str, list[float]] = {name: [] for name in clients}

        async def all_of_them() -> None:
            for _ in range(STREAMS):
                for name, client in clients.items():
                    found[name].append(await _one_async_stream(await ask(dialect, client, stream=True)))

        asyncio.run(all_of_them())
        for name, values in found.items():
            self.seen[f"{name}, CPU µs per chunk"] = statistics.median(values)


def _one_stream(stream: Any) -> float:
    parts = iter(stream)
    next(parts)
    now, counted = 0, 1
    began = time.thread_time_ns()
    for count, _ in enumerate(parts, 1):
        if not count % 50:
            now, counted = time.thread_time_ns(), count
    return (now - began) / counted / 1000


async def _one_async_stream(stream: Any) -> float:
    parts = stream.__aiter__()
    await anext(parts)
    count, now, counted = 0, 0, 1
    began = time.thread_time_ns()
    async for _ in parts:
        count += 1
        if not count % 50:
            now, counted = time.thread_time_ns(), count
    return (now - began) / counted / 1000


class Theirs(Worker):
    """Another product, or nobody; spans go to memory."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.spans: Spans | None = instrument(product)
        self.clients = {dialect: new_client(dialect) for dialect in DIALECTS}

    def round(self, calls: int, chunks: int) -> None:
        for dialect, client in self.clients.items():
            self.calls(calls, {dialect: lambda d=dialect, c=client: ask(d, c)})
            self.chunks(dialect, {dialect: new_client(dialect, chunks + 10)})
        if self.spans is not None:
            self.spans.take()


class Ours(Worker):
    """Bare clients, wrapped ones whose events go nowhere, wrapped ones on a real log; and the same events into the log alone."""

    def __init__(self, folder: Path) -> None:
        from tallystick import AuditLogger

        from . import product

        super().__init__()
        self.product, self.folder = product, folder
        self.log = AuditLogger(folder / "calls")
        self.nowhere = product.recorder(self.log, puts=product.nothing)
        self.bare = {d: new_client(d) for d in DIALECTS}
        self.null = {d: product.wrap(self.nowhere, new_client(d)) for d in DIALECTS}
        self.real = {d: product.wrap(product.recorder(self.log), new_client(d)) for d in DIALECTS}
        self.events = {d: self._events(d) for d in DIALECTS}
        self.contents = {word: product.wrap(product.recorder(self.log, content=word), new_client("ollama"))
                         for word in ("lengths", "full")}  # fmt: skip
        self.syncs = Syncs()
        self._bare = os.open(folder / "calls-bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _events(self, dialect: str) -> list[dict[str, Any]]:
        """The two events of one call."""
        kept: list[dict[str, Any]] = []
        ask(dialect, self.product.wrap(self.product.recorder(self.log, puts=kept.append), new_client(dialect)))
        return [{**event, "details": dict(event["details"])} for event in kept]

    def round(self, calls: int, chunks: int) -> None:
        for d in DIALECTS:
            self.settle()
            self.calls(calls, {f"{d} bare": lambda d=d: ask(d, self.bare[d]),
                               f"{d} captured, no appends": lambda d=d: ask(d, self.null[d])})  # fmt: skip
            # as it is where a model answers for seconds: the caches are somebody else's
            cold = {f"{d} bare, after a sync": lambda d=d: ask(d, self.bare[d]),
                    f"{d} captured, no appends, after a sync": lambda d=d: ask(d, self.null[d])}  # fmt: skip
            self.calls(calls // 2, cold, self.sync)
        for d in DIALECTS:
            self.settle()
            two = self.events[d]
            self.calls(calls, {f"{d} captured, two appends": lambda d=d: ask(d, self.real[d]),
                               f"{d} two appends alone": lambda two=two: [self.log.log(**event) for event in two]})  # fmt: skip
        self.settle()
        self.payload(calls)
        self.settle()
        for d in DIALECTS:
            self.chunks(d, {f"{d} bare": new_client(d, chunks + 10), f"{d} captured": self.wrapped(d, chunks)})
            self.achunks(d, {f"{d} async bare": new_client(d, chunks + 10, is_async=True),
                             f"{d} async captured": self.wrapped(d, chunks, is_async=True)})  # fmt: skip

    def settle(self) -> None:
        """Nothing of one case runs on in the next."""
        self.product.settle(self.log)

    def sync(self) -> None:
        """A bare line, synced."""
        os.write(self._bare, b"x" * 449 + b"\n")
        os.fdatasync(self._bare)

    def wrapped(self, dialect: str, chunks: int, *, is_async: bool = False) -> Any:
        return self.product.wrap(self.nowhere, new_client(dialect, chunks + 10, is_async=is_async))

    def payload(self, count: int) -> None:
        """A call with a prompt of 4 kB under both policies, and one append with and without it: what is not sync, and the sync."""
        event = {"event_type": "ai_request", "actor": "bot", "actor_type": "service", "resource": "llama3.2", "action": "chat"}
        cases: dict[str, Callable[[], Any]] = {
            f"4 kB, {word}": lambda c=client: ask("ollama", c, prompt=PROMPT_4K) for word, client in self.contents.items()}
        cases["log() without payload"] = lambda: self.log.log(**event)
        cases["log() with 4 kB payload"] = lambda: self.log.log(**event, payloads={"prompt": PROMPT_4K})
        busy: dict[str, list[float]] = {name: [] for name in cases}
        synced: dict[str, list[float]] = {name: [] for name in cases}
        syncs: dict[str, list[int]] = {name: [] for name in cases}
        with self.syncs:
            for _ in range(count):
                for name, case in cases.items():
                    self.syncs.reset()
                    began = time.perf_counter_ns()
                    case()
                    spent = time.perf_counter_ns() - began
                    busy[name].append(spent - self.syncs.ns)
                    synced[name].append(self.syncs.ns)
                    syncs[name].append(self.syncs.count)
        for name in cases:
            self.seen[f"{name}: without its syncs, wall µs"] = statistics.median(busy[name]) / 1000
            self.seen[f"{name}: its syncs, wall µs"] = statistics.median(synced[name]) / 1000
            self.seen[f"{name}: syncs"] = statistics.median(syncs[name])


class Syncs:
    """While it is entered, the syncs of the thread that made it are counted and timed."""

    def __init__(self) -> None:
        self.ns = self.count = 0
        self._thread = threading.get_ident()
        self._originals = (os.fdatasync, os.fsync)

    def reset(self) -> None:
        self.ns = self.count = 0

    def __enter__(self) -> None:
        os.fdatasync, os.fsync = (self._timed(original) for original in self._originals)

    def __exit__(self, *_: object) -> None:
        os.fdatasync, os.fsync = self._originals

    def _timed(self, original: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            if threading.get_ident() != self._thread:
                original(fd)
                return
            began = time.perf_counter_ns()
            try:
                original(fd)
            finally:
                self.ns += time.perf_counter_ns() - began
                self.count += 1

        return sync


if __name__ == "__main__":
    main()
