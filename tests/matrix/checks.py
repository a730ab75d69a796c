"""What is no attack at one place of a log but a property, and is run once: sweeps, crashes, clocks, malformed input, promises.

Each returns what it saw, in a few words that are the same at every run, and raises ``AssertionError`` where that is not what must be
seen. ``whole`` names the test that does all of it where only a part is run here.
"""

from __future__ import annotations

import base64
import contextlib
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner

from tallystick import AuditLogger
from tallystick.anchor.folder import newest
from tallystick.anchor.saved_mail import find_note
from tallystick.cli import COMMANDS
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.cosignature import ALGORITHMS, cosignatures
from tallystick.core.errors import AuditError, LogMissing, Malformed, StoreError
from tallystick.core.merkle import verify_consistency
from tallystick.core.note import SignerKey, VerifierKey, open_note, split
from tallystick.core.policy import Policy
from tallystick.core.proof import InclusionProof
from tallystick.core.tiles import parse_tile_path, prove_consistency, root_at
from tallystick.core.times import SECOND_US
from tallystick.disk import Disk
from tallystick.keys import KeyFolder
from tallystick.log import check as log_check
from tallystick.log.view import HEAD_WAIT_S, LogView
from tallystick.memory import Memory
from tallystick.opening import make_log
from tallystick.proving import prove
from tallystick.splitview import Handed, compare
from tallystick.store.segments import SegmentStore
from tallystick.verification import verify_log, verify_proof

from ..faults.disks import DIED_AFTER, DIED_BEFORE, FaultDisk, attempt
from ..faults.lab import Lab as FaultLab
from . import attacker as a
from .attacker import Hands
from .grid import _thief
from .site import SECOND, SIZE, LabClock, Site, record

YEARS_3_US = 3 * 365 * 86_400 * SECOND_US


@dataclass
class Lab:
    """Where checks work: the sites, the clock, a folder of their own."""

    sites: dict[str, Site]
    clock: LabClock
    base: Path

    def site(self, name: str) -> Site:
        self.sites[name].put_back()
        return self.sites[name]

    def log(self, name: str) -> AuditLogger:
        """A new log of its own, with its own memory."""
        folder = self.base / name
        folder.mkdir()
        memory = Memory(folder / "state")
        make_log(folder / "audit_log", memory, retention_days=365, origin=f"audit.example/{name}")
        return AuditLogger(folder / "audit_log", memory=memory)


@dataclass(frozen=True)
class Check:
    """One property. ``exists`` False: a command that this version does not have."""

    name: str
    group: str
    rows: tuple[str, ...]
    run: Callable[[Lab], str]
    whole: tuple[str, ...] = ()


CHECKS: list[Check] = []
C1, C2, C3, C4 = ("Bytes and lines, everywhere", "Crashes, clocks, many writers: no false alarm", "Malformed input",
                  "What was kept elsewhere, and what answers rest on")  # fmt: skip


def check(name: str, group: str, *rows: str, whole: tuple[str, ...] = ()) -> Callable[[Callable[[Lab], str]], Callable[[Lab], str]]:
    def register(run: Callable[[Lab], str]) -> Callable[[Lab], str]:
        CHECKS.append(Check(name, group, rows, run, whole))
        return run

    return register


def codes(found: Counter[int]) -> str:
    return ", ".join(f"{n} × exit {code}" for code, n in sorted(found.items(), reverse=True))


# -- bytes and lines -------------------------------------------------------------------------------------------------------


@check("one bit flipped in every kind of file of the log and its keys", C1, "B1", whole=("tests/attacks/test_bytes.py::test_segments",))
def flips(lab: Lab) -> str:
    """Evidence: 6. Settings and who is asked: said, for they may be changed; the mark: its other slot holds."""
    other: set[str] = set()
    for name in ("epochs", "witness"):
        site = lab.site(name)
        files = [p for p in sorted(site.folder.rglob("*")) if p.is_file() and p.name not in ("lock", "index.lock", "reserve")]
        for path in [*files, site.keys / "mark"]:
            data, kind = path.read_bytes(), path.relative_to(site.home).parts[1]
            path.chmod(0o600)
            for at in sorted({len(data) * i // 9 for i in range(9)} | {len(data) - 1} if data else ()):
                path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
                verdict = site.as_operator(content=kind == "log.toml")
                line = kind == "checkpoints" and verdict.exit_code == 0 and data[:at].count("\u2014".encode()) > 0
                if line:
                    other.add("further signature lines in checkpoints/ (then of nobody)")
                elif kind in ("segments", "tree", "checkpoint", "checkpoints", "log.vkey", "payloads"):
                    assert verdict.exit_code == 6, (path, at, verdict.issues)
                elif verdict.exit_code == 0:
                    other.add({"index.db": "unused bytes of the index", "mark": "one of two slots of the mark", "policy": "policy",
                               "outside": "outside/", "log.toml": "log.toml"}[kind])  # fmt: skip
                else:
                    assert verdict.exit_code == 6, (path, at, verdict.issues)
            path.write_bytes(data)
    return f"exit 6 in lines, tree, head, checkpoints, key, payloads; exit 0 only in {'; '.join(sorted(other))}"


@check("every entry deleted, doubled, swapped with the next", C1, "B2", whole=("tests/attacks/test_lines.py::test_deleted",))
def every_entry(lab: Lab) -> str:
    told: Counter[int] = Counter()
    for index in range(SIZE):
        for deed in (a.delete, a.duplicate, a.swap):
            if deed is a.swap and index == SIZE - 1:
                continue
            hands = Hands(lab.site("epochs"))
            if deed is a.swap:
                hands.lines[index], hands.lines[index + 1] = hands.lines[index + 1], hands.lines[index]
            else:
                deed(hands.lines, index)
            hands.write_lines()
            code = hands.site.as_operator(content=True).exit_code
            assert code == 6 or (deed, index, code) == (a.duplicate, SIZE - 1, 3), (deed, index, code)
            told[code] += 1
    return f"{codes(told)} (the newest, doubled: an unsigned tail)"


@check("every hash of the tree deleted or exchanged with the next", C1, "B2", whole=("tests/attacks/test_bytes.py::test_tree",))
def tiles(lab: Lab) -> str:
    told: Counter[int] = Counter()
    site = lab.site("epochs")
    data = (site.folder / "tree/0").read_bytes()
    for index in range(SIZE - 1):
        at = 32 * index
        for changed in (data[:at] + data[at + 32 :], data[:at] + data[at + 32 : at + 64] + data[at : at + 32] + data[at + 64 :]):
            (site.folder / "tree/0").write_bytes(changed)
            told[site.as_operator(content=True).exit_code] += 1
    assert set(told) <= {6, 0}
    return f"{codes(told)} (a tree that is only shorter comes back by itself, and is said)" if told[0] else codes(told)


@check("cut at every byte of the last two lines, and at every entry", C1, "B3",
       whole=("tests/faults/test_never_heals.py::test_tail_cut_off_in_the_middle_of_a_signed_line",))  # fmt: skip
def cuts(lab: Lab) -> str:
    told: Counter[int] = Counter()
    hands = Hands(lab.site("default"))
    last = hands.folder / "segments" / f"{hands.starts[-1]:020d}.jsonl"
    data = last.read_bytes()
    for at in range(len(data) - len(hands.lines[-1]) - len(hands.lines[-2]) - 2, len(data), 5):
        last.write_bytes(data[:at])
        told[hands.site.as_operator(content=True).exit_code] += 1
    last.write_bytes(data)
    for size in range(1, SIZE):
        hands = Hands(lab.site("default"))
        del hands.lines[size:]
        hands.write_lines()
        told[hands.site.as_operator(content=True).exit_code] += 1
    assert set(told) == {6}
    return "exit 6 at each"


# -- no false alarm --------------------------------------------------------------------------------------------------------


@check("the clock put back and forward by three years, and at the end of an epoch", C2, "T11", "B10",
       whole=("tests/faults/test_epochs.py::test_killed_there",))  # fmt: skip
def clock_steps(lab: Lab) -> str:
    before = lab.clock.wall_us
    with lab.log("clock") as log:
        record(log, 1)
        for number, step in enumerate((-YEARS_3_US, 2 * YEARS_3_US, -YEARS_3_US, -5 * SECOND_US)):
            lab.clock.step(step)
            if number % 2:
                log.rotate("with a clock that moved")
            record(log, 2 + number)
        steps = len(log.query({"event_type": "log.clock_step"}))
        verdict = verify_log(log.path, memory=log.memory)
    lab.clock.step(before - lab.clock.wall_us)
    assert verdict.exit_code == 0
    assert steps == 4
    return f"exit 0, {steps} of 4 steps on record (log.clock_step); order is the index"


@check("a clock that was false before the process began", C2, "T11")
def clock_false(lab: Lab) -> str:
    before = lab.clock.wall_us
    with lab.log("false-clock") as log:
        record(log, 1)
    lab.clock.step(-YEARS_3_US)
    with AuditLogger(log.path, memory=log.memory) as log:
        record(log, 2)
        steps = len(log.query({"event_type": "log.clock_step"}))
        verdict = verify_log(log.path, memory=log.memory)
    lab.clock.step(before - lab.clock.wall_us)
    assert (verdict.exit_code, steps) == (0, 0)
    return "**not detected**: exit 0, nothing on record; an anchor or witness bounds when it was there"


WRITER = """
import sys
from pathlib import Path
from tallystick import AuditLogger
from tallystick.log import check as log_check
from tallystick.log.view import HEAD_WAIT_S, LogView
from tallystick.memory import Memory
with AuditLogger(sys.argv[1], memory=Memory(Path(sys.argv[2])), create=False) as log:
    for n in range(int(sys.argv[3])):
        log.log("data_access", "p" + sys.argv[4], "user", "r", "read")
        if n % 7 == 3 and sys.argv[4] == "1":
            log.rotate("in between")
    if sys.argv[4] == "0":
        import os
        os._exit(9)
"""


def _writers(log: AuditLogger, count: int, each: int) -> list[subprocess.Popen[bytes]]:
    state = str(log.memory.folder)
    return [subprocess.Popen([sys.executable, "-c", WRITER, str(log.path), state, str(each), str(n)]) for n in range(count)]


@check("four processes write, one ends epochs, one dies without closing", C2, "B11", "L6",
       whole=("tests/writers/test_processes.py::test_sixteen_processes", "tests/writers/test_processes.py::test_sixteen_processes_that_end_epochs"))  # fmt: skip
def writers(lab: Lab) -> str:
    log = lab.log("writers")
    log.close()
    assert [p.wait(60) for p in _writers(log, 4, 12)] == [9, 0, 0, 0]
    with AuditLogger(log.path, memory=log.memory) as log:
        counts = Counter(row["actor"] for row in log.query({"event_type": "data_access"}))
        verdict = verify_log(log.path, memory=log.memory)
    assert counts == {f"p{n}": 12 for n in range(4)}
    assert verdict.exit_code == 0
    return "48 of 48 entries, no fork, exit 0"


@check("verified again and again while another process appends", C2, "B20", whole=("tests/attacks/test_append.py",))
def verify_while_writing(lab: Lab) -> str:
    log = lab.log("while")
    log.close()
    found: Counter[int] = Counter()
    (writer,) = _writers(log, 1, 60)
    patient = mock.patch.object(LogView.head, "__defaults__", (HEAD_WAIT_S,)), mock.patch.object(log_check, "IN_FLIGHT_S", 1.0)
    with patient[0], patient[1]:  # what is in flight is looked at again, as in earnest
        while writer.poll() is None:
            found[verify_log(log.path, memory=log.memory).exit_code] += 1
    found[verify_log(log.path, memory=log.memory).exit_code] += 1
    assert set(found) == {0}, found
    return "exit 0 at each"


@check("every change of the disk while an entry is appended fails, or is the last before a kill", C2, "B12", "L11",
       whole=("tests/faults/test_kth_operation.py", "tests/faults/test_crash.py", "tests/faults/test_power_loss.py"))  # fmt: skip
def faults(lab: Lab) -> str:
    home = lab.base / "faults"
    home.mkdir()
    bench = FaultLab(home)
    bench.make()
    bench.save()
    tried = 0
    for way in (DIED_BEFORE, DIED_AFTER, None):
        for at in range(1, 40):
            bench.restore()
            disk = FaultDisk()
            log = bench.open(disk)
            disk.at = disk.count + at
            if way is not None:
                disk.way = way
            acknowledged = attempt(lambda log=log: log.log("data_access", "ana", "user", "r", "read"), StoreError)
            log.vanish()
            if not disk.fired:
                break
            tried += 1
            with AuditLogger(bench.folder, memory=bench.memory) as again:
                again.log("data_access", "ben", "user", "r", "read")
                assert acknowledged is None or again.get(acknowledged) is not None
            assert verify_log(bench.folder, memory=bench.memory).exit_code == 0
    assert tried > 10
    return "nothing acknowledged is lost, the next append goes on, exit 0"


@check("half a line, NUL bytes, a whole line at the end: as a death leaves them", C2, "B13", "L7",
       whole=("tests/faults/test_crash.py", "tests/attacks/test_lines.py::test_appended_beyond_the_head"))  # fmt: skip
def tails(lab: Lab) -> str:
    for tail in (b'{"v":1,"log":', bytes(5000), None):
        site = lab.site("default")
        hands = Hands(site)
        last = site.folder / "segments" / f"{hands.starts[-1]:020d}.jsonl"
        more = a.changed(hands.lines[-1], event_id="evt_" + "3" * 32, payloads={}) + b"\n" if tail is None else tail
        last.write_bytes(last.read_bytes() + more)
        assert site.as_operator().exit_code == 3
        with site.writer() as log:
            record(log, 99)
            (found,) = log.query({"event_type": "log.recovered"})
            assert found["details"].get("cut") or found["details"]["end"] > found["details"]["first"]
        assert site.as_operator().exit_code == 0
    return "exit 3 (unsigned tail); the next append takes in or sets aside, on record (log.recovered); then exit 0"


@check("index, its journal, the tree, the state of parties deleted", C2, "L5", whole=("tests/attacks/test_index.py",))
def derived(lab: Lab) -> str:
    site = lab.site("witness")
    for name in ("index.db", "index.db-journal", "tree/0"):
        (site.folder / name).unlink()
    shutil.rmtree(site.folder / "outside")
    assert site.as_operator().exit_code == 0
    with site.writer() as log:
        record(log, 99)
        assert len(log.query({"resource": "crm/99"})) == 1
    assert site.as_operator().exit_code == 0
    return "exit 0; all come back with the next append"


@check("a process that was killed leaves nothing that locks others out", C2, "L6")
def stale_lock(lab: Lab) -> str:
    log = lab.log("killed")
    log.close()
    (writer,) = _writers(log, 1, 3)
    assert writer.wait(60) == 9
    with AuditLogger(log.path, memory=log.memory) as log:
        record(log, 1)
    return "the next append goes through (flock: the kernel lets go)"


@check("a first-time default run, with every connection refused", C2, "L15")
def no_network(lab: Lab) -> str:
    def refuse(*_: Any) -> None:
        raise AssertionError("something connects")

    with mock.patch.object(socket.socket, "connect", refuse), lab.log("offline") as log:
        record(log, 1)
        log.rotate("offline")
        assert verify_log(log.path, memory=log.memory).exit_code == 0
    return "no connection is tried; exit 0"


@check("a failed, an aborted, a streamed call to a model", C2, "L14",
       whole=("tests/capture/test_conformance.py::test_the_call_is_on_record_and_its_caller_got_what_he_would_have_got",
              "tests/capture/test_conformance.py::test_a_refused_connection_is_a_failure_and_the_callers_exception_is_unchanged"))  # fmt: skip
def failing_calls(lab: Lab) -> str:
    with lab.log("tools") as log:
        @log.tool
        def breaks() -> None:
            raise RuntimeError("no")

        with contextlib.suppress(RuntimeError):
            breaks()
        (found,) = log.query({"event_type": "ai.tool"})
    assert found["outcome"] == "failure"
    return "a tool that raises is on record as failure; every way in and every end: the tests named"


@check("the log cannot be written", C2, "L11", whole=("tests/faults/test_full_and_readonly.py",))
def not_writable(lab: Lab) -> str:
    class Full(Disk):
        def write_at(self, fd: int, data: Any, offset: int) -> None:
            raise OSError(28, "No space left on device")

    site = lab.site("default")
    from tallystick.handles import Handle

    handle = Handle(site.folder, Full())
    event = handle.writer.own("log.gap", "x", {})
    try:
        handle.writer.append([event])
    except StoreError as e:
        return f"the caller gets {type(e).__name__}; nothing is swallowed"
    finally:
        with contextlib.suppress(AuditError, OSError):
            handle.close()
    raise AssertionError("nobody was told")


# -- malformed input -------------------------------------------------------------------------------------------------------


LINES: dict[str, tuple[str, bytes]] = {
    "NUL bytes": ("M1", bytes(500)), "200,000 brackets": ("M2", b"[" * 200_000), "a list": ("M3", b"[]"), "null": ("M3", b"null"),
    "invalid UTF-8": ("M4", b'{"v":1,"log":"\xff"}'), "a lone surrogate": ("M5", b'{"v":1,"log":"\\ud800"}'),
    "a number of 10,000 digits": ("M6", b'{"v":' + b"1" * 10_000 + b"}"), "NaN": ("M7", b'{"v":NaN}'), "a null field": ("M8", b""),
    "a byte order mark": ("M9", b"\xef\xbb\xbf{}"), "a line of 8 MB": ("M10", b"x" * 8_000_000),
    "upper case in an id": ("M11", b""),
}  # fmt: skip


def _hostile(name: str, line: bytes) -> bytes:
    if name == "a null field":
        return line[:-1] + b',"trace_id":null}'
    if name == "upper case in an id":
        head, _, rest = line.partition(b'"event_id":"evt_')
        return head + b'"event_id":"evt_' + rest[:32].upper() + rest[32:]
    return LINES[name][1]


@check("lines that break parsers, in the place of an entry and at the end", C3, *sorted({m for m, _ in LINES.values()}), "L12",
       whole=("tests/attacks/test_hostile.py::test_a_hostile_line", "tests/attacks/test_hostile.py::test_a_hostile_tail"))  # fmt: skip
def hostile_lines(lab: Lab) -> str:
    told: Counter[int] = Counter()
    for name in LINES:
        hands = Hands(lab.site("default"))
        hands.lines[30] = _hostile(name, hands.lines[30])
        hands.write_lines()
        found = hands.site.as_operator().exit_code
        hands = Hands(lab.site("default"))
        hands.lines.append(_hostile(name, hands.lines[30]))
        hands.write_lines()
        tail = hands.site.as_operator().exit_code
        assert (found, tail) == (6, 3), (name, found, tail)
        told[found] += 1
        told[tail] += 1
    return f"{len(LINES)} kinds: {codes(told)}; no traceback"


@check("the same lines signed with the stolen keys", C3, "M1", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "L2",
       whole=("tests/attacks/test_hostile.py::test_a_hostile_line_that_was_signed",
              "tests/attacks/test_lines.py::test_other_spellings_signed_with_the_keys"))  # fmt: skip
def hostile_signed(lab: Lab) -> str:
    count = 0
    for name in LINES:
        hands = _thief(lab.site("default"))
        if name in ("200,000 brackets", "a line of 8 MB"):
            continue  # no entry can be as long
        hands.lines[30] = _hostile(name, hands.lines[30])
        if name == "upper case in an id":
            continue  # ids that callers give may be spelled so
        a.finish(hands, 30, leave=False)
        verdict = hands.site.as_auditor()
        assert verdict.exit_code == 6, (name, verdict.issues)
        count += 1
    return f"{count} kinds: exit 6 by the grammar, though everything is signed and nothing was kept elsewhere"


@check("a field split by newlines and quotes into others", C3, "L3")
def framing(lab: Lab) -> str:
    with lab.log("framing") as log:
        log.log("data_access", "ana\n2020-01-01T00:00:00Z", "user", 'crm","actor":"eve', "read\u2028x|y")
        (found,) = log.query({"event_type": "data_access"})
        assert (found["actor"], found["resource"]) == ("ana\n2020-01-01T00:00:00Z", 'crm","actor":"eve')
        assert verify_log(log.path, memory=log.memory).exit_code == 0
    return "comes back as it was given; one line, one field, exit 0"


def _proof(lab: Lab) -> tuple[Site, bytes, bytes]:
    site = lab.site("default")
    with site.writer() as log:
        proof, line = prove(log, 20)
    return site, proof, line


@check("proofs with hashes of 31 and 33 bytes, 65 hashes, other base64, CRLF, leading zeros, sizes of 2⁶³", C3, "B18",
       whole=("tests/core/test_foreign_vectors.py::test_every_probe_of_transparency_dev_merkle_gets_the_verdict_that_it_names",
              "tests/core/test_proof.py::test_other_spellings_are_refused"))  # fmt: skip
def malformed_proofs(lab: Lab) -> str:
    site, proof, line = _proof(lab)
    assert verify_proof(proof, line, vkey=site.vkey, memory=Memory(None)).exit_code == 0
    lines = proof.split(b"\n")
    first = 2
    ways = {
        "31 bytes": b"A" * 41 + b"=", "33 bytes": b"A" * 44, "not canonical": lines[first][:-2] + b"B=", "no padding": lines[first][:-1],
        "url alphabet": b"-" + lines[first][1:],
    }  # fmt: skip
    changed = [b"\n".join([*lines[:first], way, *lines[first + 1 :]]) for way in ways.values()]
    changed += [proof.replace(b"\n", b"\r\n"), proof.replace(b"index ", b"index 0"), b"\n".join([*lines[:first], *[lines[first]] * 65, *lines[first:]]),
                proof.replace(b"\n54\n", b"\n054\n"), proof.replace(b"\n54\n", b"\n9223372036854775808\n"), proof[:-1],
                b"\n".join([*lines[:first], *lines[first + 1 :]]), proof.replace(b"index ", b"index 1")]  # fmt: skip
    for one in changed:
        assert one != proof
        with contextlib.suppress(AuditError):
            assert verify_proof(one, line, vkey=site.vkey, memory=Memory(None)).exit_code != 0, one
    assert verify_proof(proof, line.replace(b"ana", b"eve"), vkey=site.vkey, memory=Memory(None)).exit_code == 6
    return f"{len(changed) + 1} of {len(changed) + 1} refused"


@check("noise in notes, checkpoints, proofs, tile paths, policies, cosignatures, mails", C3, "B19",
       whole=("tests/core/test_note.py::test_bytes_that_are_accepted_are_the_one_spelling",
              "tests/core/test_proof.py::test_bytes_that_are_accepted_are_the_one_spelling"))  # fmt: skip
def fuzz(lab: Lab) -> str:
    site, proof, _ = _proof(lab)
    rng, key = random.Random(7), site.key
    head = (site.folder / "checkpoint").read_bytes()
    assert lab.sites["witness"].policy is not None
    targets: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (head, lambda x: open_note(x, [key])), (head, lambda x: Checkpoint.parse(split(x)[0])), (proof, InclusionProof.parse),
        (b"tile/entries/x001/x234/067.p/12", lambda x: parse_tile_path(x.decode("latin-1"))),
        (lab.sites["witness"].policy, Policy.parse), (lab.sites["witness"].checkpoint, lambda x: cosignatures(x, ())),
        (lab.sites["witness"].vkey.encode(), lambda x: VerifierKey.parse(x.decode("latin-1"))), (head, find_note),
    ]  # fmt: skip
    for data, parse in targets:
        for _ in range(150):
            noisy = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(noisy))
                noisy[at : at + rng.choice((0, 1, 1, 3))] = rng.choice((b"", b"\0", b"\n", b"\xff", b"=", b"0", b" ", b"\n\n"))
                noisy = noisy or bytearray(b"x")
            with contextlib.suppress(AuditError):
                parse(bytes(noisy))
    return f"{len(targets)} parsers × 150 changed inputs: accepted or refused by an error of ours, nothing else"


@check("the kind of key in a cosignature changed from ML-DSA-44 to Ed25519, and two names exchanged", C3, "B7",
       whole=("tests/core/test_witnessed.py",))  # fmt: skip
def downgrade(lab: Lab) -> str:
    site = lab.site("witness")
    text = site.vkey
    assert site.witness is not None
    witness = site.witness.key.format()
    raw = witness.split("+", 2)[2]

    for kind in (1, 6, 255):
        data = bytes([kind]) + base64.b64decode(raw)[1:]
        with contextlib.suppress(Malformed):
            VerifierKey.parse(witness.removesuffix(raw) + base64.b64encode(data).decode(), algorithms=ALGORITHMS)
            raise AssertionError(kind)
    name, log_name = witness.partition("+")[0], text.partition("+")[0]
    for one, mine, theirs in ((witness, name, log_name), (text, log_name, name)):
        with contextlib.suppress(Malformed):
            VerifierKey.parse(one.replace(mine, theirs), algorithms=ALGORITHMS)
            raise AssertionError(mine)
    return "refused: the key ID binds name, kind and key"


# -- kept elsewhere --------------------------------------------------------------------------------------------------------


MAIL = b"From: bot@example\r\nTo: kept@example\r\nSubject: checkpoint\r\nContent-Type: text/plain; charset=utf-8\r\n" \
       b"Content-Transfer-Encoding: 8bit\r\n\r\n"  # fmt: skip


@check("what reach each kind of thing kept elsewhere has, against the current keys", C4, "P15", "P8", "L8",
       whole=("tests/anchor/test_mail.py", "tests/anchor/test_timestamp.py", "tests/machine"))  # fmt: skip
def reach(lab: Lab) -> str:
    honest = lab.site("anchor")
    note = newest(honest.share, honest.key.name)
    assert note is not None
    card = (honest.folder / "log.vkey").read_bytes().partition(b"\n")[2]
    kinds = {"key card": (card, 1), "checkpoint": (note, SECOND), "saved mail": (MAIL + note.replace(b"\n", b"\r\n"), SECOND),
             "file in a folder": (note, SECOND)}  # fmt: skip
    said = []
    for kind, (kept, size) in kinds.items():
        assert lab.site("anchor").as_auditor(checkpoint=kept, require=None).exit_code == 0
        below, above = [], []
        for k in (2, 26, SECOND - 2, SECOND, SIZE - 1):
            hands = _thief(lab.site("anchor"))
            a.write_anew(hands, k, a.edit, leave=False)
            code = hands.site.as_auditor(checkpoint=kept, require=None).exit_code
            (below if k < size else above).append(code)
        assert set(below) <= {6} and set(above) == {0}, (kind, below, above)
        said.append(f"{kind}: {size} {'entries' if size > 1 else 'entry'}")
    return "; ".join(said)


@check("a larger log: 3,000 entries, a checkpoint kept at 2,000", C4, "P15", "L10", whole=("tests/attacks/test_large.py",))
def larger(lab: Lab) -> str:
    with lab.log("larger") as log:
        events = [{"event_type": "data_access", "actor": f"ana{n % 5}", "actor_type": "user", "resource": "r", "action": "read"}
                  for n in range(3000)]  # fmt: skip
        log.log_many(events[:1999])
        kept = (log.path / "checkpoint").read_bytes()
        log.log_many(events[1999:])
        assert len(log.query({"event_type": "data_access"}, limit=None)) == 3000
        assert verify_log(log.path, memory=log.memory, checkpoint=kept).as_dict()["total_entries"] == 3000
    site = Site("larger", lab.base / "larger", lab.base, vkey=(log.path / "log.vkey").read_text().split("\n")[0], checkpoint=kept)
    found = []
    original = lab.base / "larger.original"
    shutil.copytree(site.home, original)
    for k in (1998, 2000):
        shutil.rmtree(site.home)
        shutil.copytree(original, site.home)
        a.write_anew(_thief(site), k, a.edit, leave=False)
        found.append(site.as_auditor().exit_code)
    assert found == [6, 0]
    return "edited at #1,998: exit 6; at #2,000: **not detected** (1,001 newest open); verify looks at all 3,000, a query gives 1,000 unless told limit=None"


@check("every cosignature removed from the log folder, and the auditor has the policy file alone", C4, "T13", "B7",
       whole=("tests/attacks/test_outside.py::test_required_of_all_entries_that_are_old_enough",))  # fmt: skip
def stripped(lab: Lab) -> str:
    site = lab.site("witness")
    shutil.rmtree(site.folder / "checkpoints")
    (site.folder / "checkpoints").mkdir()
    for require, code in (("witnessed", 3), (None, 0)):
        verdict = site.as_auditor(checkpoint=None, require=require)
        assert (verdict.exit_code, verdict.confirmed_to) == (code, 0), verdict.issues
    assert site.as_auditor().witnessed_to == SECOND
    return "exit 3 `not_witnessed` where he requires it; else 0, and *none of them is confirmed*; with what the witness itself says: all as before"


@check("two auditors compare the checkpoints that they were shown", C4, "T8", "B6", whole=("tests/cli/test_commands.py",))
def split_view(lab: Lab) -> str:
    site = lab.site("default")
    honest = site.heads[SIZE]
    hands = _thief(site)
    log_key = hands.log_key
    assert log_key is not None
    shown = sign_checkpoint(hands.checkpoint(), log_key)
    a.write_anew(hands, 40, a.edit, leave=False)
    other = sign_checkpoint(hands.checkpoint(), log_key)
    verdict = compare(Handed.read("a", shown), Handed.read("b", other), memory=Memory(None), vkey=site.vkey, log=None)
    assert [f.issue for f in verdict.findings] == ["split_view"]
    assert honest != other
    return "exit 6 split_view (tally verify A B); both notes prove it to anybody who has the key"


@check("a log of this name is gone and the program is started", C4, "L9", "B17")
def missing_log(lab: Lab) -> str:
    site = lab.site("default")
    shutil.rmtree(site.folder)
    try:
        AuditLogger(site.folder, memory=Memory(site.state))
    except LogMissing:
        return "LogMissing: a log that is known here is never silently made anew"
    raise AssertionError("a new log was made")


@check("an old checkpoint after honest growth", C4, "L8")
def growth(lab: Lab) -> str:
    site = lab.site("default")
    store = SegmentStore(site.folder)
    log_key = KeyFolder(site.keys).log_key()
    for size in range(1, SIZE + 1):
        old = Checkpoint(site.key.name, size, root_at(store.hashes, size))
        verify_consistency(size, SIZE, old.root, root_at(store.hashes, SIZE), prove_consistency(store.hashes, size, SIZE))
        if size % 9 == 0:
            assert site.as_auditor(checkpoint=sign_checkpoint(old, log_key)).exit_code == 0
    return f"consistent at each of {SIZE} sizes; exit 0"


@check("a payload removed, altered, exchanged with another", C4, "L13", whole=("tests/attacks/test_bytes.py::test_payloads",))
def payloads(lab: Lab) -> str:
    site = lab.site("default")
    (path,) = (site.folder / "payloads").iterdir()
    data = path.read_bytes()
    half = len(data) // 2
    for changed in (data[:half], data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :], data[:half] + data[: len(data) - half]):
        path.write_bytes(changed)
        assert site.as_operator().exit_code == 6
    return "exit 6: the commitment stands in the entry"


@check("entries archived; proofs made before", C4, "B15", whole=("tests/retention/test_archive.py",))
def archived(lab: Lab) -> str:
    site, proof, line = _proof(lab)
    with site.writer() as log:
        lab.clock.go_to(lab.clock.wall_us + 2 * 86_400 * SECOND_US)
        log.retention_days = 1
        record(log, 98)
        moved = log.archive_old_entries(site.home / "archives")
    lab.clock.step(-2 * 86_400 * SECOND_US)
    assert moved
    assert verify_proof(proof, line, vkey=site.vkey, memory=Memory(None)).exit_code == 0
    verdict = site.as_operator()
    assert verdict.exit_code == 0 and verdict.gone_to > 20, (verdict.issues, verdict.gone_to)
    purge = CliRunner().invoke(_group(), ["purge", str(site.folder)])
    assert purge.exit_code == 2 and "purge" not in COMMANDS
    return "old proofs hold, exit 0, the range is *archived* on record; purging: **not in this version** (tally purge: exit 2)"


@check("a subject erased: text, key and salt in no file", C4, "B14")
def erased(lab: Lab) -> str:
    """As far as it exists: there is no such command, and a key slot that somebody overwrites is not called erased."""
    site = lab.site("default")
    done = CliRunner().invoke(_group(), ["erase", "--subject", "s1", str(site.folder)])
    assert done.exit_code == 2 and "erase" not in COMMANDS
    slots = next(site.keys.glob("payload-*.slots"))
    slots.write_bytes(bytes(len(slots.read_bytes())))
    assert site.as_operator().exit_code == 6
    return "**not in this version** (tally erase: exit 2); keys destroyed by hand are exit 6, never called erased"


def _group() -> Any:
    from tallystick.cli import Tally

    return Tally(name="tally")


@check("a key that the verifier never saw", C4, "L16", "L4", whole=("tests/attacks/test_lines.py::test_an_unknown_log_is_not_judged",))
def unknown(lab: Lab) -> str:
    site = lab.site("default")
    assert verify_log(site.folder, memory=Memory(None)).exit_code == 3
    other = SignerKey.generate(site.key.name).verifier.format()
    assert site.as_auditor(vkey=other, checkpoint=None).exit_code == 6
    return "exit 3, the key shown, nothing remembered; another key than the one given: exit 6"

