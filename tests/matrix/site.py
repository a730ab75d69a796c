"""The logs that are attacked: four configurations, made by using the product, and the two who verify them.

Every log has the same history, so that their numbers can be compared::

    #0 … #18   ordinary entries (and what the log says about itself)      09:00
    #19, #20   two epochs end, the second one empty                       10:00   size 21: handed out
    #21 … #40  ordinary entries; the operator verifies at size 31         10:00
    #41        an epoch ends                                              11:00   size 42: handed out
    #42 … #53  ordinary entries, open                                     13:30
               all that verifies does so                                  13:15 of the next day

Where a configuration closes no epochs, or has nobody outside, ordinary entries stand there and nothing is handed out. What an attacker
may have kept on the way is kept: each head, each epoch key before it was destroyed, a snapshot of log and keys at every size.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import io
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tallystick import AuditEventType, AuditLogger
from tallystick.anchor.folder import newest
from tallystick.clock import Clock
from tallystick.core.note import SignerKey, VerifierKey
from tallystick.core.policy import Log, Policy, Witness
from tallystick.core.times import SECOND_US, parse_time
from tallystick.core.verify import Verdict
from tallystick.keys import KeyFolder
from tallystick.log import check
from tallystick.log.view import LogView
from tallystick.memory import Memory, pin_witness
from tallystick.opening import make_log, read_genesis
from tallystick.publishing import Known, Publisher, change_policy, publish, source_of, write_policy
from tallystick.verification import verify_log
from tallystick.witness import submit
from tallystick.witness.folder import add_log, create, read_keys, read_vkeys
from tallystick.witness.server import serve
from tallystick.witness.state import Witness as WitnessState

CONFIGURATIONS = ("default", "epochs", "witness", "anchor")
FIRST, VERIFIED, SECOND, SIZE = 21, 31, 42, 54  # sizes: handed out, verified by the operator, handed out, the whole log
HOUR_US = 3600 * SECOND_US
MORNING_US = parse_time("2026-03-02T09:00:00.000000Z")
VERIFIED_AT_US = MORNING_US + 28 * HOUR_US + HOUR_US // 4
WITNESS_HOST = "witness.example"


class LabClock:
    """The time for everybody here; it goes on by a millisecond each time somebody looks."""

    def __init__(self) -> None:
        self.wall_us = MORNING_US
        self.boot_us = 10**9

    def go_to(self, us: int) -> None:
        """Time passes."""
        self.boot_us += us - self.wall_us
        self.wall_us = us

    def step(self, us: int) -> None:
        """The wall clock is moved; no time passes."""
        self.wall_us += us

    def read_wall(self, _clock: Clock) -> int:
        self.wall_us, self.boot_us = self.wall_us + 1000, self.boot_us + 1000
        return self.wall_us

    def read_boot(self, _clock: Clock) -> int:
        return self.boot_us


@contextlib.contextmanager
def laboratory() -> Iterator[LabClock]:
    """A clock that can be set; no waiting for a head in flight; no syncs (nothing loses power here); a witness that is served on
    loopback and stands for one on another machine, under a name of its own; nothing is handed out in the background."""
    clock, connect = LabClock(), socket.create_connection

    def to_loopback(address: tuple[str, int], *args: Any, **more: Any) -> socket.socket:
        return connect(("127.0.0.1", address[1]) if address[0] == WITNESS_HOST else address, *args, **more)

    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (Clock, "wall_us", lambda c: clock.read_wall(c)), (Clock, "boot_us", lambda c: clock.read_boot(c)),
            (os, "fsync", lambda _: None), (os, "fdatasync", lambda _: None),
            (socket, "create_connection", to_loopback), (submit.Url, "is_local", lambda _: False),
            (LogView.head, "__defaults__", (0.0,)), (check, "IN_FLIGHT_S", 0.0),
            (Publisher, "start", lambda _: None),  # handed out is when the script says so, not when a thread gets to it
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(mock.patch.dict(os.environ))
        for name in ("TALLY_VKEY", "TALLY_LOG"):
            os.environ.pop(name, None)
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # "made a new log"
        yield clock


class WitnessServer:
    """A C2SP witness of this program, over HTTP."""

    def __init__(self, folder: Path, vkey: str) -> None:
        create(folder, f"{WITNESS_HOST}/w1")
        add_log(folder, vkey)
        self.key = read_vkeys(folder)[0]
        self._state, up = WitnessState(folder, read_keys(folder)), threading.Event()

        def ready(_host: str, port: int) -> None:
            self.port = port
            up.set()

        async def run() -> None:
            self._loop, self._until = asyncio.get_running_loop(), asyncio.Event()
            await serve(self._state, "127.0.0.1", 0, ready=ready, until=self._until)

        self._thread = threading.Thread(target=lambda: asyncio.run(run()))
        self._thread.start()
        assert up.wait(10)
        self.url = f"http://{WITNESS_HOST}:{self.port}/"

    def newest(self, origin: str) -> bytes:
        """What it says of a log to whoever asks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint")
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read()
        finally:
            connection.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._until.set)
        self._thread.join(10)
        self._state.close()


@dataclass
class Site:
    """One configuration on its machine (``home``), and what was kept elsewhere (``away``), where no attacker here comes."""

    name: str
    home: Path
    away: Path
    heads: dict[int, bytes] = field(default_factory=dict)  # size → the head, as somebody who was reading may have copied it
    old_keys: dict[int, SignerKey] = field(default_factory=dict)  # copies of epoch keys made while they were there
    confirmed: int = 1  # what is kept elsewhere covers so many entries
    vkey: str = ""
    policy: bytes | None = None
    witness: WitnessServer | None = None
    checkpoint: bytes = b""

    @property
    def folder(self) -> Path:
        return self.home / "audit_log"

    @property
    def keys(self) -> Path:
        return self.home / "audit_log.keys"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def share(self) -> Path:
        return self.away / "share"

    @property
    def closes(self) -> bool:
        return self.name == "epochs"

    @property
    def key(self) -> VerifierKey:
        return VerifierKey.parse(self.vkey)

    def snapshot(self, size: int) -> Path:
        """A copy of log and keys as they were at that size."""
        return self.away / "snapshots" / str(size)

    def put_back(self) -> None:
        """As if nothing had been done yet, and nothing been handed out since."""
        for mine, original in ((self.home, self.away / "home"), (self.share, self.away / "share.original")):
            shutil.rmtree(mine, ignore_errors=True)
            shutil.copytree(original, mine)

    def as_operator(self, **options: Any) -> Verdict:
        """On the machine, with what this user remembers: ``tally verify LOG``."""
        return verify_log(self.folder, memory=Memory(self.state), **options)

    def as_auditor(self, **options: Any) -> Verdict:
        """With nothing but what was kept elsewhere: the key card, and what the configuration adds to it. What should be confirmed
        by now is asked for."""
        word = {"epochs": "sealed", "witness": "witnessed", "anchor": "anchored"}.get(self.name)
        with _out_of_reach(self.keys), _out_of_reach(self.share):
            return verify_log(self.folder, memory=Memory(None), **{
                "vkey": self.vkey, "checkpoint": self.checkpoint, "policy": self.policy, "require": word, **options})  # fmt: skip

    def writer(self) -> AuditLogger:
        return AuditLogger(self.folder, memory=Memory(self.state), create=False)


@contextlib.contextmanager
def _out_of_reach(folder: Path) -> Iterator[None]:
    """Who verifies a copy of the log on another machine has neither the keys nor what is mounted there."""
    hidden = folder.with_name(folder.name + ".hidden")
    if not folder.exists():
        yield
        return
    folder.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(folder)


def record(log: AuditLogger, number: int) -> None:
    """One ordinary entry; each kind of field somewhere, payloads with every fourth."""
    more: dict[str, Any] = {}
    if number % 3 == 0:
        more = {"service": "bot", "correlation_id": f"c{number}", "session_id": f"s{number}", "reason": "why", "subject": "s1"}
    if number % 4 == 0:
        more["payloads"] = {"arg.0": f"text of {number}"}
    log.log(list(AuditEventType)[number % 8], f"ana{number % 5}", "user", f"crm/{number}", "read customer", "success",
            {"id": number, "amount": number / 4, "text": "Grüße"}, **more)  # fmt: skip


class Maker:
    """Makes one configuration by using it."""

    def __init__(self, name: str, base: Path, clock: LabClock) -> None:
        self.site, self._clock = Site(name, base / name / "home", base / name / "away"), clock
        self.site.home.mkdir(parents=True)
        self.site.share.mkdir(parents=True)

    def make(self) -> Site:
        site, clock = self.site, self._clock
        clock.go_to(max(MORNING_US, clock.wall_us)) if clock.wall_us < MORNING_US else clock.step(MORNING_US - clock.wall_us)
        make_log(site.folder, Memory(site.state), retention_days=365, origin="audit.example/invoices")
        self._configure()
        with site.writer() as log:
            self._until(log, FIRST - 2)
            clock.go_to(MORNING_US + HOUR_US)
            self._end(log)
            self._end(log)
            self._hand_out(log)
            self._until(log, VERIFIED)
            assert site.as_operator().exit_code == 0
            self._until(log, SECOND - 1)
            clock.go_to(MORNING_US + 2 * HOUR_US)
            self._end(log)
            self._hand_out(log)
            clock.go_to(MORNING_US + 9 * HOUR_US // 2)
            self._until(log, SIZE)
        assert site.heads.keys() == set(range(3, SIZE + 1))  # the first group has the changed settings before it
        clock.go_to(VERIFIED_AT_US)
        shutil.copytree(site.home, site.away / "home")
        shutil.copytree(site.share, site.away / "share.original")
        return site

    def _configure(self) -> None:
        site, genesis = self.site, read_genesis(self.site.folder)
        site.vkey, site.checkpoint = genesis.vkey.format(), genesis.note
        toml = site.folder / "log.toml"
        text = toml.read_bytes().replace(b"bytes = 67108864", b"bytes = 8192")
        if site.name == "anchor":
            text += f'\n[[anchor]]\nname = "nas"\nkind = "folder"\nfolder = "{site.share}"\n'.encode()
        toml.write_bytes(text)
        if site.name == "witness":
            site.witness = WitnessServer(site.away / "witness", site.vkey)
            write_policy(site.folder, change_policy(None, site.key, [Known("kanzlei", site.witness.url, (site.witness.key,))], "all"))
            pin_witness(Memory(site.state), site.folder, "kanzlei", site.witness.key.format())
            site.policy = Policy((Log(site.key),), (Witness("kanzlei", site.witness.key),), (), "kanzlei").format()

    def _until(self, log: AuditLogger, size: int) -> None:
        while (now := log._handle.view.head().size) < size:
            record(log, now)
            self._keep(log)

    def _keep(self, log: AuditLogger) -> None:
        site, size = self.site, log._handle.view.head().size
        site.heads[size] = (site.folder / "checkpoint").read_bytes()
        to = site.snapshot(size)
        shutil.copytree(site.folder, to / "audit_log")
        shutil.copytree(site.keys, to / "audit_log.keys")
        folder = KeyFolder(site.keys)
        site.old_keys |= {number: folder.epoch_key(number) for number in folder.numbers()}

    def _end(self, log: AuditLogger) -> None:
        """An epoch, where this configuration closes any."""
        if self.site.closes:
            log.rotate("as planned")
        else:
            record(log, log._handle.view.head().size)
        self._keep(log)

    def _hand_out(self, log: AuditLogger) -> None:
        site = self.site
        if site.name not in ("witness", "anchor"):
            return
        (outcome,) = publish(source_of(log))
        assert not outcome.error
        found = newest(site.share, log.origin) if site.witness is None else site.witness.newest(log.origin)
        assert found is not None
        site.checkpoint, site.confirmed = found, outcome.size


def make_sites(base: Path, clock: LabClock) -> dict[str, Site]:
    """All configurations, by name."""
    return {name: Maker(name, base, clock).make() for name in CONFIGURATIONS}
