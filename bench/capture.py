"""Capture of calls to models: what it costs, what it keeps, what others miss; ``python -m bench.capture ROUNDS SCALE`` prints what it
saw as JSON.

Costs in rounds, every case in turn: calls and chunks in one process for each product, on a transport in that process; the proxy and
a model server in processes of their own. Then, once: memory along a stream, kill -9, and the conformance suite's calls under each.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import capture_long, capture_proxy
from .capture_local import DIALECTS
from .capture_peers import PRODUCTS, versions
from .disk import bare_append, median_us
from .report import CAPTURE, number, rates, table

OURS = "tallystick"
CALLS, CHUNKS, REQUESTS, PIECES, KILLS = 200, 1000, 1000, 1_000_000, 20


def main() -> None:
    """Run and print."""
    rounds, scale = int(sys.argv[1]), float(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-capture-") as name:
        os.environ["TALLY_STATE"] = str(Path(name).resolve() / "state")
        sys.stderr.write("  capture\n")
        print(json.dumps(_Capture(Path(name).resolve(), scale).run(rounds)))


class _Worker:
    """A process that measures a round whenever asked."""

    def __init__(self, product: str, folder: Path) -> None:
        self.product = product
        self._said = folder / f"{product}.err"
        with self._said.open("w") as said:
            command = [sys.executable, "-m", "bench.capture_calls", product, str(folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.failed = "" if self._out.readline() else self._why()

    def round(self, calls: int, chunks: int) -> dict[str, float]:
        self._in.write(f"{calls} {chunks}\n")
        self._in.flush()
        line = self._out.readline()
        if not line:
            raise SystemExit(f"{self.product}: {self._why()}")
        found: dict[str, float] = json.loads(line)
        return found

    def _why(self) -> str:
        return _last_line(self._said.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        self._in.close()
        self._process.wait()
        self._out.close()


class _Capture:
    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale = folder, scale
        self.seen: dict[str, list[float]] = {}
        self.syncs: list[float] = []
        self.calls, self.chunks = max(20, int(CALLS * scale)), max(100, int(CHUNKS * scale))

    def run(self, rounds: int) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(contextlib.closing(_Worker(name, self.folder))) for name in ("bare", OURS, *PRODUCTS)]
            for worker in workers[:2]:
                if worker.failed:
                    raise SystemExit(f"{worker.product}: {worker.failed}")
            did_not_run = {worker.product: worker.failed for worker in workers if worker.failed}
            proxied = stack.enter_context(capture_proxy.Proxied(self.folder))
            for n in range(rounds):
                sys.stderr.write(f"    round {n + 1} of {rounds}\n")
                self.syncs += bare_append(self.folder / "bare", [b"x" * 449 + b"\n"] * max(20, int(100 * self.scale)))
                for worker in workers:
                    if not worker.failed:
                        found = worker.round(self.calls, self.chunks)
                        self._note(found, "" if worker.product == OURS else f"{worker.product}: ")
                self._note(proxied.round(max(100, int(REQUESTS * self.scale))))
        sys.stderr.write("    memory, kill -9, completeness\n")
        pieces, kills = int(PIECES * self.scale), max(2, int(KILLS * self.scale))
        self._memory(pieces)
        killed = capture_long.kill(self.folder / "killed", kills)
        self._note({f"kill -9: {name}": value for name, value in killed.items()})
        matrix = self._matrix([name for name in (OURS, *PRODUCTS) if name not in did_not_run], did_not_run)
        return {"seen": self.seen, "fdatasync_p50_us": median_us(self.syncs), "matrix": matrix, "did_not_run": did_not_run,
                "versions": versions(), "pieces": pieces, "rounds": rounds, "chunks": self.chunks}  # fmt: skip

    def _note(self, found: dict[str, float], before: str = "") -> None:
        for name, value in found.items():
            self.seen.setdefault(before + name, []).append(value)

    def _memory(self, pieces: int) -> None:
        """Both at the same time: nobody's time is taken."""
        command = [sys.executable, "-m", "bench.capture_long", "memory", str(self.folder / "long"), str(pieces)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        through = capture_proxy.memory(self.folder / "long-proxy", pieces)
        said, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"the long stream: {_last_line(errors)}")
        for name, (early, late) in (("wrap", json.loads(said)), ("proxy", through)):
            self._note({f"{name} at a tenth, MB": early, f"{name} at the end, MB": late})

    def _matrix(self, products: list[str], did_not_run: dict[str, str]) -> dict[str, Any]:
        running, found = {}, {}
        for name in products:
            command = [sys.executable, "-m", "bench.capture_matrix", name, str(self.folder / "matrix")]
            command += [] if self.scale >= 1 else ["quick"]
            running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, process in running.items():
            said, errors = process.communicate()
            if process.returncode:
                did_not_run[name] = _last_line(errors)
            else:
                found[name] = json.loads(said)
        return found


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:160]


# -- what is printed -----------------------------------------------------------------------------------------------------------


def lines(found: dict[str, Any], head: str) -> list[str]:
    """The section of the report."""
    seen, said = found["seen"], found["versions"]
    text = [f"CAPTURE of calls to models: fdatasync p50 {found['fdatasync_p50_us']:.0f} µs, {found['rounds']} rounds; clients "
            f"{said['clients']}; a long stream: {found['pieces']:,} chunks; {seen['kill -9: kills'][0]:.0f} kills", head]  # fmt: skip
    text += table(CAPTURE, seen)
    text += ["", *_costs(found), "", *_completeness(found)]
    text += ["", "What they are made of: medians of a round's p50 (min – max)", *rates(seen)]
    return text


def _costs(found: dict[str, Any]) -> list[str]:
    """Ours beside the others': a whole call, a chunk of a stream, and a stream with its beginning and its end."""
    seen = found["seen"]
    columns = ("a call", "a chunk", f"a stream of {found['chunks']:,} chunks")
    text = ["COST OF RECORDING in µs of CPU more than the bare client, median (min – max); each product in a process of its own"]
    for d in DIALECTS:
        text.append(f"{d:<44}" + "".join(f"{column:>30}" for column in columns))
        chunks = [_more(seen, f"{d} captured, {what}", f"{d} bare, {what}") for what in ("CPU µs per chunk", "CPU µs of a stream")]
        rows = {}
        for product in [name for name in PRODUCTS if name not in found["did_not_run"]]:
            rows[f"  {product}, spans in memory, NOT durable"] = [
                _more(seen, f"{product}: {d}, {what}", f"bare: {d}, {what}")
                for what in ("CPU µs", "CPU µs per chunk", "CPU µs of a stream")]  # fmt: skip
        rows["  tallystick, nothing is written"] = [_more(seen, f"{d} captured, no appends, CPU µs", f"{d} bare, CPU µs"), *chunks]
        rows["    the same after a sync, with cold caches"] = [
            _more(seen, f"{d} captured, no appends, after a sync, CPU µs", f"{d} bare, after a sync, CPU µs")]  # fmt: skip
        rows["  tallystick, two appends, durable, signed"] = [_more(seen, f"{d} captured, two appends, CPU µs", f"{d} bare, CPU µs")]
        rows["    the same on the wall, with the syncs"] = [_more(seen, f"{d} captured, two appends, wall µs", f"{d} bare, wall µs")]
        text += [f"{what:<44}" + "".join(f"{one:>30}" for one in values) for what, values in rows.items()]
    return text


def _more(seen: dict[str, list[float]], a: str, b: str) -> str:
    values = [x - y for x, y in zip(seen[a], seen[b], strict=True)]
    return f"{number(statistics.median(values))} ({number(min(values))} – {number(max(values))})"


def _completeness(found: dict[str, Any]) -> list[str]:
    """Case × product: how many of its ways in are complete, and what is missing in the others."""
    matrix, said = found["matrix"], found["versions"]
    text = ["COMPLETE ON RECORD, of the ways in of each case (ollama and openai, synchronous and asynchronous), and what is missing",
            (f"{'':<36}" + "".join(f"{name:<44}" for name in matrix)).rstrip()]  # fmt: skip
    for case in dict.fromkeys(row["case"] for rows in matrix.values() for row in rows):
        cells = [_cell([row for row in rows if row["case"] == case]) for rows in matrix.values()]
        text.append(f"{case:<36}{''.join(f'{cell:<44}' for cell in cells)}".rstrip())
    totals = [f"{sum(not row['missing'] for row in rows)} of {len(rows)}" for rows in matrix.values()]
    text.append(f"{'complete':<36}{''.join(f'{total:<44}' for total in totals)}".rstrip())
    for dialect in DIALECTS:
        totals = [_total([row for row in rows if row["dialect"] == dialect]) for rows in matrix.values()]
        text.append(f"{f'  by {dialect}':<36}{''.join(f'{total:<44}' for total in totals)}".rstrip())
    totals = [f"{sum(_is_told(row, rows) for row in rows)} of {len(rows)}" for rows in matrix.values()]
    text.append(f"{'  if UNSET says “not well” *':<36}{''.join(f'{total:<44}' for total in totals)}".rstrip())
    text += ["  * where all calls of the kind that went well have the status OK, so that UNSET can be read as another end",
             "  record: there is one · one: not two · end: does not look like one that went well · text: what had come of it",
             "  " + "; ".join(f"{name}: {said[name]}" for name in PRODUCTS)]  # fmt: skip
    text += [f"  {name} DID NOT RUN: {why}" for name, why in found["did_not_run"].items()]
    return text


def _total(rows: list[dict[str, Any]]) -> str:
    return f"{sum(not row['missing'] for row in rows)} of {len(rows)}"


def _cell(rows: list[dict[str, Any]]) -> str:
    missing: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for word in row["missing"]:
            missing.setdefault(word, []).append(row)
    words = []
    for word, where in missing.items():
        dialects, status = {row["dialect"] for row in where}, sorted({row["status"] for row in where if word == "end"})
        if status:
            word += f" ({'/'.join(status)})"
        if len(dialects) < len({row["dialect"] for row in rows}):
            word += f" {dialects.pop()}"
        words.append(word)
    return f"{sum(not row['missing'] for row in rows)}/{len(rows)}  {', '.join(words)}".rstrip()


def _is_told(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Complete, if a span without a status is taken for one that did not go well."""
    if row["missing"] != ["end"]:
        return not row["missing"]
    alike = [r for r in rows if r["ok"] and r["status"] and (r["dialect"], r["stream"]) == (row["dialect"], row["stream"])]
    return bool(row["status"] == "UNSET" and all(r["status"] == "OK" for r in alike))


if __name__ == "__main__":
    main()
