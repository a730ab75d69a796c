"""Handing a checkpoint to whoever is configured outside: witnesses (``policy`` of the log) and anchors (``[[anchor]]`` of
``log.toml``).

``publish`` does it now. ``Publisher`` does it in the background of a process that writes: when an epoch was closed, and every
``[publish] minutes`` where that is set. Parties are asked side by side and independently; one that fails is pending and is tried
again, after half a minute, then twice as long each time, up to an hour. An append never waits for any of it: the publisher has
its own view of the log and takes none of the writer's locks. One process hands out at a time (``outside/lock``).

Only checkpoints with the line of the stable log key leave; where this user may not read that key, everything stays pending and
says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .anchor.configured import build_anchor
from .clock import CLOCK
from .config import Settings, keys_folder, read_settings
from .core.checkpoint import Checkpoint, open_checkpoint
from .core.errors import AuditError, ConfigError, Malformed, OutsideError, StoreError, VerificationError
from .core.genesis import Genesis
from .core.note import Signature, VerifierKey, add_signature, split
from .core.policy import POLICY_BYTES_MAX, Group, Log, Policy, Witness
from .disk import DISK, Disk, close_quietly, file_mode, folder_mode
from .keys import KeyFolder
from .log.view import LogView
from .opening import indexes_of
from .outside import HandedOut, Parties, PartyState
from .store.segments import SegmentStore

LOCK_WAIT_S = 60.0
LOOK_S = 10.0  # how often the background looks whether there is something to hand out
RETRY_S = (30.0, 3600.0)
_ERROR_CHARACTERS_MAX = 400
_QUORUM = "witnesses"


class Party(Protocol):
    """Whoever takes in checkpoints. ``hand_over`` returns what says ``local`` (on this machine) and ``word``, and may say ``lines``:
    signatures to be kept beside the checkpoint. It raises ``AuditError`` where it was not done."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def target(self) -> str: ...

    def hand_over(self, size: int, note: bytes) -> Any: ...


class Outcome(NamedTuple):
    """What became of a checkpoint at one party. ``error`` is empty where it was done; ``contradiction``: the party knows another
    history, or more of this one."""

    name: str
    kind: str
    target: str
    size: int
    word: str
    local: bool
    error: str
    contradiction: bool


class Known(NamedTuple):
    """A witness as ``policy`` names it: one name, where it is, its keys."""

    name: str
    url: str
    keys: tuple[VerifierKey, ...]


class Source(NamedTuple):
    """The log that is handed out, as far as that needs it."""

    folder: Path
    genesis: Genesis
    keys: KeyFolder
    store: Any
    view: LogView
    disk: Disk = DISK


def source_of(log: Any) -> Source:
    """The log behind an ``AuditLogger``."""
    handle = log._handle
    return Source(handle.folder, handle.genesis, handle.keys, handle.store, handle.view)


# -- who is configured -----------------------------------------------------------------------------------------------------


def read_policy(folder: Path) -> Policy | None:
    """The log's own policy, None if it has none. ``ConfigError`` names the file where it is none."""
    path = folder / "policy"
    try:
        with path.open("rb") as file:
            data = file.read(POLICY_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    try:
        return Policy.parse(data)
    except Malformed as e:
        raise ConfigError(f"{path}: {e}") from None


def known_witnesses(policy: Policy | None) -> list[Known]:
    """The witnesses that have a URL, in their order. Several keys of one are the members of a group with its name
    (``change_policy``)."""
    if policy is None:
        return []
    groups = {member: group.name for group in policy.groups for member in group.members}
    found: dict[tuple[str, str], list[VerifierKey]] = {}
    for witness in policy.witnesses:
        if witness.url is not None:
            group = groups.get(witness.name, "")
            name = group if group and witness.name.startswith(f"{group}.") else witness.name
            found.setdefault((name, witness.url), []).append(witness.key)
    return [Known(name, url, tuple(keys)) for (name, url), keys in found.items()]


def change_policy(policy: Policy | None, log: VerifierKey, witnesses: list[Known], quorum: str) -> Policy:
    """The policy of a log with these witnesses, of which ``quorum`` (``all``, ``any`` or a number) make a checkpoint count. A witness
    with several keys is a group of that name, any of whose keys will do, so that it counts once. Lines for other logs in ``policy``
    stay. ``Malformed`` where that is no policy."""
    logs = tuple(one for one in (policy.logs if policy else ()) if one.key != log)
    named: list[Witness] = []
    groups: list[Group] = []
    for one in witnesses:
        if len(one.keys) == 1:
            named.append(Witness(one.name, one.keys[0], one.url))
            continue
        members = [Witness(f"{one.name}.{key.algorithm:02x}", key, one.url) for key in one.keys]
        named += members
        groups.append(Group(one.name, 1, tuple(w.name for w in members)))
    if not witnesses:
        return Policy((Log(log), *logs), (), (), "none")
    count = len(witnesses)
    least = {"all": count, "any": 1}.get(quorum) or (int(quorum) if quorum.isascii() and quorum.isdigit() else 0)
    if not 1 <= least <= count:
        raise Malformed(f"a quorum of {count} is all, any or a number from 1 to {count}")
    groups.append(Group(_QUORUM, least, tuple(one.name for one in witnesses)))
    changed = Policy((Log(log), *logs), tuple(named), tuple(groups), _QUORUM)
    return Policy.parse(changed.format())


def quorum_word(policy: Policy) -> str:
    """What ``change_policy`` was given: ``all``, ``any`` or a number."""
    group = next((g for g in policy.groups if g.name == policy.quorum), None)
    if group is None:
        return "all"
    return "all" if group.threshold == len(group.members) else "any" if group.threshold == 1 else str(group.threshold)


def write_policy(folder: Path, policy: Policy, disk: Disk = DISK) -> None:
    """Durable on return; that it changed becomes an entry at the next append."""
    disk.write_file(folder / "policy", policy.format(), file_mode(folder), like=folder)


def parties_of(source: Source, settings: Settings) -> list[Party]:
    """Everybody who is configured. ``ConfigError`` where ``policy`` or an anchor is not what it should be."""
    from .witness.submit import WitnessClient  # TLS is not loaded into programs that never hand out

    known = Parties(source.folder, source.disk)
    found: list[Party] = []
    for one in known_witnesses(read_policy(source.folder)):
        done = known.get(one.name)
        size = done.done_size if done is not None and done.target == one.url else 0
        found.append(WitnessClient(one.name, one.url, one.keys, source.store.hashes, lambda: source.view.head().size, size))
    found += _anchors(source, settings)
    return found


def _anchors(source: Source, settings: Settings) -> list[Party]:
    """The ``[[anchor]]`` tables. A name that a witness has is no anchor's: both would be one in ``outside/``."""
    names = {one.name for one in known_witnesses(read_policy(source.folder))}
    for one in settings.anchor:
        if one.name in names:
            raise ConfigError(f"{source.folder / 'log.toml'}: the anchor {one.name} has the name of a witness in the file policy")
    keys = keys_folder(source.folder, settings)
    return [build_anchor(one, source.genesis.origin, source.folder, keys, source.disk) for one in settings.anchor]


# -- handing out -----------------------------------------------------------------------------------------------------------


def publish(
    source: Source, settings: Settings | None = None, *, size: int | None = None, only: Collection[str] | None = None,
    wait_s: float = LOCK_WAIT_S,
) -> list[Outcome]:  # fmt: skip
    """Hand the current checkpoint (or that of ``size`` in ``checkpoints/``) to every party, or to those named in ``only``.

    What fails at one party is in its ``Outcome`` and in ``outside/``, and concerns no other. ``StoreError`` where the checkpoint
    itself cannot be handed out (the log key is not readable by this user, the log cannot be read, another process is handing out).
    """
    settings = read_settings(source.folder) if settings is None else settings
    parties = [p for p in parties_of(source, settings) if only is None or p.name in only]
    if not parties:
        return []
    with _one_at_a_time(source, wait_s):
        handed = HandedOut(source.folder, source.disk)
        note = source.view.head().note if size is None else handed.signed(size)
        if note is None:
            raise StoreError(f"there is no checkpoint of {size:,} entries in {handed.folder}")
        try:
            note = _with_log_key(source, note)
        except StoreError as e:
            for party in parties:
                _remember(source, party, None, str(e), 0)
            raise
        size = Checkpoint.parse(split(note)[0]).size
        handed.put(size, note)  # what was there already stays as it was
        note = handed.signed(size) or note
        with ThreadPoolExecutor(min(8, len(parties)), "tallystick-outside") as pool:
            asked = [(party, pool.submit(_hand_over, party, size, note)) for party in parties]
            return [_settle(source, handed, party, size, future.result()) for party, future in asked]


def _with_log_key(source: Source, note: bytes) -> bytes:
    """The note with the log key's line, verified. ``StoreError`` where it lacks that and this user may not read the key."""
    vkey = source.genesis.vkey
    if not any((s.name, s.key_id) == (vkey.name, vkey.key_id) for s in split(note)[1]):
        try:
            note = add_signature(note, source.keys.log_key())
        except (PermissionError, FileNotFoundError):
            raise StoreError(
                f"the log key in {source.keys.path} is not readable by you, and only what it signed goes out; "
                f"whoever may read it runs: tally publish {source.folder}"
            ) from None
    open_checkpoint(note, [vkey], origin=source.genesis.origin)
    return note


def _hand_over(party: Party, size: int, note: bytes) -> Any:
    """What the party says, or the error; nothing of it may stop the others."""
    try:
        return party.hand_over(size, note)
    except (AuditError, OSError, ValueError) as e:
        return e


def _settle(source: Source, handed: HandedOut, party: Party, size: int, result: Any) -> Outcome:
    """Keep what came back and remember how far the party is. If we die between: it is asked again, which does no harm."""
    if isinstance(result, Exception):
        error = str(result) or type(result).__name__
        local = _remember(source, party, None, error, size).local
        contradiction = isinstance(result, VerificationError)
        return Outcome(party.name, party.kind, party.target, size, "pending", local, error, contradiction)
    lines: tuple[Signature, ...] = getattr(result, "lines", ())
    if lines:
        handed.add(size, lines)
    _remember(source, party, result.local, "", size)
    return Outcome(party.name, party.kind, party.target, size, result.word, result.local, "", False)


def _remember(source: Source, party: Party, local: bool | None, error: str, size: int) -> PartyState:
    states = Parties(source.folder, source.disk)
    before = states.get(party.name)
    if before is None or before.target != party.target:
        before = PartyState(party.kind, party.target)
    now = CLOCK.wall_us()
    state = PartyState(
        party.kind, party.target, before.done_size if error else size, before.done_us if error else now, now,
        error[:_ERROR_CHARACTERS_MAX], before.local if local is None else local,
    )  # fmt: skip
    states.put(party.name, state)
    return state


@contextlib.contextmanager
def _one_at_a_time(source: Source, wait_s: float) -> Iterator[None]:
    """``outside/lock``. ``Busy`` where another process holds it for the whole wait."""
    folder = source.folder / "outside"
    if not folder.is_dir():
        with contextlib.suppress(FileExistsError):
            source.disk.mkdir(folder, folder_mode(source.folder), like=source.folder)
    fd = source.disk.open(folder / "lock", os.O_RDWR | os.O_CREAT, file_mode(source.folder), like=source.folder)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Busy(f"another process is handing out checkpoints of {source.folder}") from None
            time.sleep(0.05)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # not only closed: a fork may hold a copy of the descriptor
    finally:
        close_quietly(fd)


class Busy(OutsideError):
    """Another process is handing out."""


# -- in the background -----------------------------------------------------------------------------------------------------


class Publisher:
    """A thread that hands out closed epochs, started by appends where somebody is configured. It shares nothing with the writer."""

    def __init__(self, folder: Path, genesis: Genesis, keys: Callable[[], KeyFolder], disk: Disk = DISK) -> None:
        self._folder, self._genesis, self._keys, self._disk = folder, genesis, keys, disk
        self._wake, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._look_at = 0.0
        self._due: dict[str, float] = {}  # when a party that failed is asked again
        self._wait: dict[str, float] = {}

    def start(self) -> None:
        """Start the thread if somebody is configured; looks at most twice a minute, and costs nothing in between."""
        if self._thread is None and time.monotonic() >= self._look_at:
            self._start()

    def _start(self) -> None:
        with self._starting:
            self._look_at = time.monotonic() + 30.0
            if self._thread is not None or not _is_configured(self._folder):
                return
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="tallystick-publisher", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """An epoch was closed: look now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop; waits a moment for what is being handed out. If we die in it, or go on without it: it is handed out again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping = True
            self._wake.set()
            thread.join(0.5)

    def after_fork(self) -> None:
        """In the child: the thread is the parent's, and its locks may be held."""
        self._thread, self._look_at = None, 0.0
        self._wake, self._starting = threading.Event(), threading.Lock()

    def _run(self) -> None:
        store = SegmentStore(self._folder, self._disk)
        view = LogView(store, self._genesis, indexes_of(self._folder, self._genesis))
        source = Source(self._folder, self._genesis, self._keys(), store, view, self._disk)
        try:
            while not self._stopping:
                with contextlib.suppress(AuditError, OSError, ValueError, sqlite3.Error):  # whatever it is, it is tried again
                    self.look(source)
                self._wake.wait(LOOK_S)
                self._wake.clear()
        finally:
            view.close()
            source.keys.close()

    def look(self, source: Source) -> list[Outcome]:
        """Hand out what is due: the newest checkpoint of ``checkpoints/`` to whoever does not have it, the current one where
        ``[publish] minutes`` are over. One round; returns what was done."""
        settings = read_settings(source.folder)
        parties = parties_of(source, settings)
        states = Parties(source.folder, self._disk)
        now_us, now = CLOCK.wall_us(), time.monotonic()
        sizes = HandedOut(source.folder, self._disk).sizes()
        newest = sizes[-1] if sizes else 0
        done: list[Outcome] = []
        known = {p.name: states.get(p.name) or PartyState(p.kind, p.target) for p in parties}
        reached = {name: s for name, s in known.items() if self._is_due(name, s, now, now_us)}
        minutes = settings.publish.minutes
        late = {name for name, s in reached.items() if minutes and now_us - s.done_us >= minutes * 60_000_000}
        if late and (head := source.view.head().size) > 0:
            late = {name for name in late if reached[name].done_size < head}
        behind = {name for name, s in reached.items() if s.done_size < newest} - late
        for size, names in ((None, late), (newest, behind)):
            if names:
                try:
                    done += publish(source, settings, size=size, only=names, wait_s=0.0)
                except StoreError as e:
                    states_of = [(name, reached[name]) for name in names]
                    done += [Outcome(n, s.kind, s.target, size or 0, "pending", s.local, str(e), False) for n, s in states_of]
        for outcome in done:
            self._plan(outcome, now)
        return done

    def _is_due(self, name: str, state: PartyState, now: float, now_us: int) -> bool:
        """Not again so soon after a failure, also one that another process had: short programs would ask at every start."""
        failed_just_now = bool(state.error) and 0 <= now_us - state.tried_us < RETRY_S[0] * 1e6
        return self._due.get(name, 0.0) <= now and not failed_just_now

    def _plan(self, outcome: Outcome, now: float) -> None:
        if not outcome.error:
            self._due.pop(outcome.name, None)
            self._wait.pop(outcome.name, None)
            return
        wait = min(self._wait.get(outcome.name, RETRY_S[0] / 2) * 2, RETRY_S[1])
        self._wait[outcome.name], self._due[outcome.name] = wait, now + wait


def _is_configured(folder: Path) -> bool:
    """Whether anybody is named, without judging how. A file that cannot be read is somebody's mistake that ``publish`` tells."""
    with contextlib.suppress(AuditError, OSError):
        if known_witnesses(read_policy(folder)):
            return True
    with contextlib.suppress(AuditError, OSError):
        return bool(getattr(read_settings(folder), "anchor", ()))
    return False
