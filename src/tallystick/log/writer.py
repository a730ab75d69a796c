"""The writer: one group at a time, under the lock (STORAGE rules 8–12).

Order, and what the next open finds if we die after each step:

1. key slots and payloads written, synced      → ciphertext that no entry names; harmless
2. lines written                               → perhaps a torn line: quarantined, named
3. hashes into the tree, head signed           → the same; the tree is derived again, the note was seen by nobody
4. lines synced                                → complete lines, unsigned: taken in, named
5. head written in place                       → signed; the mark lags, which it may
6. mark written                                → signed; the caller was not told yet
7. acknowledged

A head that was signed and not shown dies with the process. Head, tree and mark are synced by ``Keeper`` at most a second
later (rule 10).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from ..clock import Clock
from ..core import entry as ent
from ..core.checkpoint import Checkpoint
from ..core.entry import Draft, Fields, encode_draft
from ..core.epoch import CLOCK_STEP, CONFIG, CREATED, EPOCH_CLOSE, EPOCH_RECOVERED, GAP, RECOVERED, STARTED, Epoch, is_own, own_lines
from ..core.errors import AuditError, Conflict, DiskFull, EntryRefused, ReadOnly, StateUnknown, StoreError
from ..core.merkle import Frontier, leaves_of
from ..core.note import encode_base64
from ..core.query import ask
from ..core.times import SECOND_US, format_time
from ..disk import DISK, Disk, is_full, remote_file_system
from ..keys import Custody, KeyFolder
from ..store import Store
from ..vault import Place, Vault
from .epochs import DAILY, Epochs, Rhythm
from .groups import GroupCommit, Request
from .queue import Lost, Queue, Submitted, find_lost
from .recovery import Recovery, State, put_leaves
from .view import LogView

_GAP_LINE = b'"event_type":"log.gap"'
LOCK_WAIT_S = 10.0
CLOCK_STEP_US = 2 * SECOND_US
FOLLOW_BYTES_MAX = 4 << 20  # of other writers' lines at once; beyond that they are read in pieces


class Content(NamedTuple):
    """A payload on its way: where it belongs, its salt and its bytes. The entry already has its commitment."""

    place: Place
    salt: bytes
    content: bytes


class Event(msgspec.Struct, frozen=True):
    """One event ready to be appended. ``given`` is set where the caller chose the id; it then answers retries."""

    draft: Draft
    contents: tuple[Content, ...] = ()
    given: Given | None = None


class Given(NamedTuple):
    """The event as the caller passed it, to compare with what is stored under the same id (STORAGE rule 3)."""

    fields: Fields
    timestamp_given: bool


class Writer:
    """Appends to one log from one process. Safe for threads; ``fork`` is handled by ``forks``."""

    def __init__(
        self, store: Store, view: LogView, keys: KeyFolder, vault: Vault, clock: Clock, *,
        segment_bytes: int, config: Callable[[], bytes], rhythm: Rhythm = DAILY, custody: Custody | None = None,
        disk: Disk = DISK,
    ) -> None:  # fmt: skip
        self._store, self._view, self._keys, self._vault, self._clock = store, view, keys, vault, clock
        self._segment_bytes, self._config, self._disk = segment_bytes, config, disk
        self._queued = store.folder / "queued"
        self._lost: list[Lost] = []  # by processes that died
        self._recovery = Recovery(store, view, self._payload_there)
        self._synced_first = custody is not None  # what another process signed cannot be taken back with its lines
        self._epochs = Epochs(store, keys, custody or keys, view.genesis.origin, rhythm, disk)
        self._state: State | None = None
        self._fatal: AuditError | None = None
        self._last_clock: tuple[int, int] | None = None
        self._day = ""
        self._boot = ""
        self._gap: _Gap | None = None
        self._config_checked = False
        self.announce: dict[str, Any] | None = None  # of this run, said once before its first entries (``heartbeat``)
        self._begun = False  # this handle has been in a known state under the lock
        self.busy = threading.Lock()  # held for every commit and by the keeper while it looks at what is dirty
        self._flushing = threading.Lock()  # no descriptor is closed while it is synced
        self.written = threading.Event()
        self.epoch_closed = threading.Event()  # for who hands its checkpoint out; set, never cleared here
        self.groups = GroupCommit(self._commit)
        self.queue = Queue(self._queued, disk, self.groups.submit)

    # -- the way in --------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event], *, counted: bool = True) -> None:
        """All or nothing; durable, in the tree and under a written signed head on return. Raises what went wrong. ``counted=False``:
        the caller says by ``owe`` what could not be recorded."""
        request = Request(events, counted=counted)
        self.groups.run(request)
        if request.error is not None:
            raise request.error

    def submit(self, event: Event) -> Submitted:
        """Hand one event over and go on; see ``queue``."""
        draft = event.draft
        size = len(draft.head) + len(draft.tail) + sum(len(c.content) for c in event.contents)
        try:
            return self.queue.put(event, draft.event_id, size, self._clock.wall_us())
        except OSError as e:  # the tally could not be made: nothing is on its way
            raise self._refused(e) from e

    def own(self, event_type: str, action: str, details: dict[str, Any]) -> Event:
        """An entry of the log about itself."""
        now = format_time(self._clock.wall_us())
        fields = Fields(
            v=ent.VERSION, log=self._view.genesis.origin, event_id=self._clock.event_id(), timestamp=now,
            recorded_at="", event_type=event_type, actor=ent.OWN_ACTOR, actor_type="system", resource="log",
            action=action, outcome="success", details=details,
        )  # fmt: skip
        return Event(encode_draft(fields, own=True))

    # -- one group ---------------------------------------------------------------------------------------------------

    def _commit(self, requests: list[Request]) -> None:
        with self.busy:
            try:
                self._refuse_if_fatal()
                with self._store.exclusive(LOCK_WAIT_S):
                    self._commit_locked(requests)
            except BaseException as e:  # every caller of the group must learn of it, an interrupt too
                error = self._translate(e, requests)
                if not isinstance(error, Exception):  # Control-C is the leading thread's own; the others were waiting for it
                    interrupted = StoreError("the thread that wrote this group was interrupted; whether it was recorded is not "
                                             "known: record it again with event_id=, which is answered if it is there")  # fmt: skip
                for request in requests:
                    if request.error is None and request.result is None:
                        request.error = error if isinstance(error, Exception) else interrupted
                if not isinstance(error, Exception):
                    raise

    def _commit_locked(self, requests: list[Request]) -> None:
        self._ready()
        wanted = self._without_known(requests)
        if wanted:
            self._close_if_due()
            self.queue.writing(wanted)
            self._write([e for r in wanted for e in r.content])
        self._settle()  # a retry may be answered by what recovery just took in
        for request in wanted:
            request.result = True

    def exclusively(self, action: Callable[[Callable[[list[Event]], None]], Any]) -> Any:
        """Run ``action(append)`` under the lock, in a known state: for what must not interleave with other writers."""
        with self.busy:
            self._refuse_if_fatal()
            try:
                with self._store.exclusive(LOCK_WAIT_S):
                    self._ready()
                    self._settle()
                    return action(lambda events: self._write(events, own=True))
            except BaseException as e:  # an interrupt too leaves the state unknown
                error = self._translate(e, [])
                if error is e:
                    raise
                raise error from e

    # -- epochs ------------------------------------------------------------------------------------------------------

    def rotate(self, reason: str) -> tuple[int, bytes]:
        """End the running epoch now. The size and note of its closing checkpoint."""
        return cast("tuple[int, bytes]", self.exclusively(lambda _append: self._close_epoch(reason)))

    def end_day(self) -> None:
        """End an epoch whose day is over although nobody appends: the keeper calls this now and then."""
        state = self._state
        if self._begun and state is not None and self._epochs.due(state.size, self._clock.wall_us()) == "day":
            self.exclusively(lambda _append: self._close_if_due())

    def recover_epoch(self, reason: str) -> tuple[int, bytes]:
        """The key of the running epoch is lost: put that on record under the log key and go on with a new one (``core.epoch``).
        ``StoreError`` where the key is there, ``PermissionError`` or ``FileNotFoundError`` where the log key is not."""
        with self.busy:
            self._refuse_if_fatal()
            with self._store.exclusive(LOCK_WAIT_S):
                try:
                    self._ready(signing=False)
                    return self._recover_epoch(reason)
                except BaseException:  # the log key stands in for one head and never for another: begin anew without it
                    self._state = None
                    self._epochs.drop()
                    raise

    def _close_if_due(self) -> None:
        """An epoch that cannot end for want of the right to make its successor's key goes on; the status says so."""
        reason = self._epochs.due(self.state.size, self._clock.wall_us())
        if reason is None:
            return
        try:
            epoch, next_key = self._epochs.prepare()
        except OSError as e:
            if not _may_not_write(e):
                raise
            return
        self._end_epoch(epoch, EPOCH_CLOSE, "closed the epoch", next_key, reason)

    def _close_epoch(self, reason: str) -> tuple[int, bytes]:
        """The four steps of ``epochs``. If one fails, or we die there, whoever is next completes it in ``_ready``."""
        epoch, next_key = self._epochs.prepare()
        return self._end_epoch(epoch, EPOCH_CLOSE, "closed the epoch", next_key, reason)

    def _recover_epoch(self, reason: str) -> tuple[int, bytes]:
        lost = self._epochs.stand_in(self._view.history(self.state.signed), self._view.genesis.vkey)
        _, next_key = self._epochs.prepare()
        return self._end_epoch(lost, EPOCH_RECOVERED, "went on without the lost key of the epoch", next_key, reason)

    def _end_epoch(self, epoch: Epoch, event_type: str, action: str, next_key: str, reason: str) -> tuple[int, bytes]:
        def last(index: int, stamp: str) -> Event:
            return self.own(event_type, action, self._epochs.close_details(epoch, next_key, index, stamp, reason))

        self._write([], last=last)
        size, note = self.state.size, self.state.note
        assert note is not None
        try:
            kept = self._epochs.keep(epoch, size, note)
            self._epochs.destroy(epoch)
            self._epochs.take_up(self._view.history(size))
        except BaseException:  # the epoch is over: nothing more may be signed with its key by going on from here
            self._state = None
            self._epochs.drop()
            raise
        self.epoch_closed.set()
        return size, kept

    def _settle(self) -> None:
        """Sign what recovery found, so that the state is a signed one."""
        if self._state is not None and self._state.found is not None:
            self._write([])

    @property
    def last_us(self) -> int | None:
        """When this handle last wrote, by the wall clock; None if it did not."""
        return None if self._last_clock is None else self._last_clock[0]

    @property
    def state(self) -> State:
        """The state under the lock."""
        assert self._state is not None
        return self._state

    def _ready(self, *, signing: bool = True) -> None:
        """Rule 8: know where the log ends, and sign with the key of the epoch that runs there. A few reads of open descriptors when
        nobody else wrote. ``signing=False``: without a key."""
        state, first = self._state, not self._begun
        if first:
            self._begin()
        elif self._store.moved():
            raise self._die(StateUnknown(f"{self._store.folder} was replaced while this process was writing to it"))
        elif state is not None and state.note is not None and self._store.untouched(state.note):
            return
        holder = self._store.last_holder()
        if not first and holder is not None and holder.boot != self._boot:
            raise self._die(StateUnknown(f"two machines write to {self._store.folder}: boot {holder.boot} and this one"))
        self._keys.forget_sequence()
        followed = self._follow(state) if state is not None else None
        if followed is not None:
            self._state = followed
        else:
            # no holder at all: the lock is new, or a power loss took it
            unclean = first and (holder is None or (not holder.clean and holder.boot != self._boot))
            try:
                self._store.detach()
                self._state = self._recovery.take_in(state, self._keys.read_mark(), unclean=unclean, kept=self._newest_kept)
            except StateUnknown as e:
                raise self._die(e) from None
            self._day = ""
        if signing:
            self._take_up(finish=followed is None)
        # durable before anything is written that a power loss may tear: "clean" must not be found after it
        self._store.note_holder(self._boot, clean=False, durable=first or holder is None or holder.clean)
        if first:
            self._lost = find_lost(self._queued)
        self._begun = True

    def _follow(self, state: State) -> State | None:
        """The state after what usually happened: others appended to the same segment, and signed. None for whatever else.

        That a fellow signed is known from the mark, which lies with the key that signed: whoever can write there needs no forgery.
        What it covers is recomputed from the lines all the same.
        """
        mark, note, data = self._keys.newest_mark(), self._store.head_now(), self._store.appended(FOLLOW_BYTES_MAX)
        if mark is None or note is None or not data or self._epochs.current is None \
                or mark.epoch != self._epochs.current.number or state.found is not None:
            return None
        said = f"{mark.origin}\n{mark.size}\n{encode_base64(mark.root)}\n\n".encode()
        if data[-1] != 0x0A or not note.startswith(said) or mark.origin != self._view.genesis.origin:
            return None
        leaves, frontier = leaves_of(data), state.frontier.copy()
        frontier.extend_row(leaves)
        if frontier.size != mark.size or frontier.root() != mark.root or self._store.continues(mark.size):
            return None
        # whoever wrote the lines has written their hashes into the tree before he signed
        self._store.advance(len(data))
        self._view.note_lines(state.size, mark.size - state.size,
                              [(state.size + number, line) for number, line in own_lines(data, len(data))])  # fmt: skip
        return State(frontier, state.segment, state.offset + len(data), note, mark.size, None)

    def _begin(self) -> None:
        """First append of this handle: may we write here at all?"""
        remote = remote_file_system(self._store.folder)
        if remote is not None:
            raise StoreError(
                f"{self._store.folder} is on a {remote} file system, where locks and syncs cannot be relied on; "
                "keep the log on a local disk (reading it here is fine)"
            )
        self._boot = self._clock.boot_id()
        head = self._store.head()
        size = 1
        with contextlib.suppress(AuditError):
            size = self._view.open_head(head).size
        # the keys of another log? Before anything is touched; whether ours are there is seen when it is known which are needed
        newest = self._view.history(size).epochs[-1]
        with contextlib.suppress(FileNotFoundError):
            if self._epochs.is_another(newest):
                raise self._die(StateUnknown(f"{self._keys.path} does not hold the key that this log names for its epoch "
                                             f"{newest.number}: the keys of another log; nothing is signed"))  # fmt: skip

    def _take_up(self, *, finish: bool) -> None:
        """Sign with the key of the newest epoch; complete what a writer left that died while it ended one."""
        assert self._state is not None
        signed = self._state.signed
        history = self._view.history(signed)
        if finish or self._epochs.current is None or history.epochs[-1].number != self._epochs.current.number:
            finish = True
            if not self._epochs.agrees(history):  # then the lines decide, not the index: a key may have to be destroyed
                history = self._view.reread(signed)
        try:
            self._epochs.take_up(history)
        except StateUnknown as e:
            raise self._die(e) from None
        if finish:
            try:
                self._epochs.finish(history, signed)
            except BaseException:  # what is not completed now is before the next append, whoever does it
                self._state = None
                self._epochs.drop()
                raise

    def _newest_kept(self, above: int) -> Checkpoint | None:
        return self._epochs.newest_kept(above, lambda size: self._view.history(size).key_at(size))

    def _without_known(self, requests: list[Request]) -> list[Request]:
        """Answer retries of ids that are stored (or in this group already); what remains is to be written."""
        if not any(e.given for r in requests for e in r.content):
            return requests
        size = self.state.size
        self._view.fill(self.state.signed)
        taken: dict[str, Event] = {}
        wanted = []
        for request in requests:
            try:
                mine = dict(taken)  # what this request adds counts for its own later events too
                fresh = []
                for event in request.content:
                    if event.given is None or not self._is_known(event, size, mine):
                        fresh.append(event)
                        if event.given is not None:
                            mine[event.draft.event_id] = event
            except (Conflict, EntryRefused) as e:
                request.error = e
                continue
            taken = mine
            request.content = fresh
            if fresh:
                wanted.append(request)
            else:
                request.result = True
        return wanted

    def _is_known(self, event: Event, size: int, taken: dict[str, Event]) -> bool:
        assert event.given is not None
        earlier = taken.get(event.draft.event_id)
        if earlier is not None and earlier.given is not None:
            _same_or_conflict(event.given, earlier.given.fields, _equal_payloads(event, earlier))
            return True
        stored = self._view.find(event.draft.event_id, size)
        if stored is None:
            return False
        fields = ent.decode(stored.line)
        _same_or_conflict(event.given, fields, self._payloads_match(event, fields))
        return True

    def _payloads_match(self, event: Event, stored: Fields) -> bool:
        """Compared by opening the stored one; where it cannot be opened any more, by name, size and media type."""
        given = {c.place.name: c.content for c in event.contents}
        refs = event.given.fields.payloads if event.given else {}
        if set(given) != set(stored.payloads):
            return False
        for name, ref in stored.payloads.items():
            if ref.size != len(given[name]) or ref.media_type != refs[name].media_type:
                return False
            with contextlib.suppress(StoreError, OSError):
                place = Place(stored.event_id, name, stored.subject)
                kept = self._vault.open(place, ref.commitment, ref.size, day=stored.recorded_at[:10])
                if kept != given[name]:
                    return False
        return True

    def _write(self, events: list[Event], *, own: bool = False, last: Callable[[int, str], Event] | None = None) -> None:
        """Steps 1 to 6 for one group, what the log says about itself first (``own``: ``events`` are of that kind too). ``last`` makes
        the entry that ends an epoch from its index and time. On return the caller may acknowledge."""
        state, now = self.state, self._clock.wall_us()
        mine = self._own_entries(now)
        stamp = format_time(now)
        if last is not None:
            mine.append(last(state.size + len(mine), stamp))
        group = [*mine, *events]
        if not group:
            return
        day, origin = stamp[:10], self._view.genesis.origin
        for event in group:
            for content in event.contents:
                self._vault.put(content.place, content.salt, content.content, day=day)
        self._vault.sync()
        text = stamp.encode()
        lines = [event.draft.line(text) for event in group]
        data = b"\n".join(lines) + b"\n"
        state = self._room(state, day, len(data))
        frontier = state.frontier.copy()
        note, root = self._append_lines(state, data, frontier)
        self._put_head(note, origin, frontier.size, root)
        self._view.note_lines(state.size, len(lines), enumerate(lines if own else lines[: len(mine)], state.size))
        self._state = State(frontier, state.segment, state.offset + len(data), note, frontier.size, None)
        self._last_clock, self._day, self._gap = (now, self._clock.boot_us()), day, None
        self._config_checked, self.announce = True, None
        for lost in self._lost:  # said now, or nothing to say
            with contextlib.suppress(OSError):
                self._disk.unlink(lost.path)
        self._lost = []
        if not self.written.is_set():
            self.written.set()

    def _append_lines(self, state: State, data: bytes, frontier: Frontier) -> tuple[bytes, bytes]:
        """Steps 2 to 4: the head's note and root. The device writes while we hash and sign; the note is shown to nobody before
        the sync returned. What was written and could not be finished is taken back, unless the sync itself failed."""
        assert self._epochs.signer is not None
        try:
            self._store.append(state.size, data)
            put_leaves(self._store, frontier, leaves_of(data))
            root = frontier.root()
            if self._synced_first:
                self._store.sync()
            note = self._epochs.signer.sign(frontier.size, root)
            if not self._synced_first:
                self._store.sync()
        except OSError as e:
            self._state = None
            if not self._store.broken:
                try:
                    self._store.rollback()
                except OSError:
                    raise self._unknown(e) from e
            raise
        except AuditError as e:  # of tally keyd, which may have signed: the lines stay, and are taken in by the next append
            self._state = None
            if isinstance(e, StateUnknown):
                self._die(e)
            raise
        return note, root

    def _put_head(self, note: bytes, origin: str, size: int, root: bytes) -> None:
        """Steps 5 and 6. If either fails nobody knows what is signed: read it again before the next group."""
        try:
            assert self._epochs.current is not None
            self._store.put_head(note)
            self._keys.put_mark(origin, size, root, self._epochs.current.number)
        except OSError as e:
            self._state = None
            raise self._unknown(e) from e

    def _unknown(self, error: OSError) -> StoreError:
        """Not acknowledged and not a gap either: the lines may be there, and are taken in and named if they are."""
        return StoreError(f"{error.filename or self._store.folder}: {error.strerror}; whether these events are on record is "
                          "not known: look for them after the next append, or retry with event_id=")  # fmt: skip

    def _room(self, state: State, day: str, size: int) -> State:
        """A new segment at each new day and at the size limit; a group never spans two (rule 7)."""
        if state.offset == 0:
            return state
        if not self._day:
            self._day = self._day_of(state)
        if day == self._day and state.offset + size <= self._segment_bytes:
            return state
        self.roll()
        return self.state

    def roll(self) -> None:
        """Seal the growing segment, tree and head synced first, and begin a new one (under the lock)."""
        state = self.state
        if state.offset == 0:
            return
        self.sync_derived(of_all=True)
        self._store.roll(state.size)
        segments = self._store.segments()
        self._state = state._replace(segment=segments[-1], offset=0)
        self._day = ""

    def _day_of(self, state: State) -> str:
        """The UTC day of the growing segment: its first line says."""
        for batch in self._store.batches(state.segment):
            return ent.decode(batch.lines[0]).recorded_at[:10]
        return ""

    # -- what the log says about itself ------------------------------------------------------------------------------

    def _own_entries(self, now: int) -> list[Event]:
        own = []
        found = self.state.found
        if found is not None:
            own.append(self.own(RECOVERED, "taken in after an unclean stop", found.details()))
        step = self._clock_step(now)
        if step is not None:
            own.append(self.own(CLOCK_STEP, "the wall clock was moved", step))
        if self._gap is not None:
            late = self._gap.kept == self._gap.count
            own.append(self.own(GAP, "events come late" if late else "events could not be recorded", self._gap.details()))
        own += [self.own(GAP, "submitted events were lost with their process", details) for details in self._lost_details()]
        if not self._config_checked:
            digest = hashlib.sha256(self._config()).hexdigest()
            if digest != self._recorded_config():
                own.append(self.own(CONFIG, "log.toml changed", {"sha256": digest}))
        if self.announce is not None:
            own.append(self.own(STARTED, "began to record", self.announce))
        return own

    def _lost_details(self) -> list[dict[str, Any]]:
        """What dead processes had submitted and not recorded. If we died after this was written and before the tally was removed,
        it is on record already."""
        if not self._lost:
            return []
        told = {s.entry().details.get("queue") for s in self._view.answers(ask({"event_type": GAP}), self.state.size)
                if _GAP_LINE in s.line}  # fmt: skip
        found = []
        for lost in self._lost:
            recorded = lost.in_group if lost.in_group and self._view.find(lost.group_end, self.state.size) is not None else 0
            if lost.unsettled > recorded and lost.token not in told:
                gap = _Gap(lost.unsettled - recorded, lost.first_us, lost.last_us, "their process ended before they were written")
                # of a group that was being written some lines may have been taken in, without its last one
                partly = bool(lost.in_group) and not recorded and self.state.found is not None
                found.append({**gap.details(), "queue": lost.token, **({"at_most": True} if partly else {})})
        return found

    def _clock_step(self, now: int) -> dict[str, Any] | None:
        if self._last_clock is None:
            return None
        wall, boot = self._last_clock
        passed = self._clock.boot_us() - boot
        if now >= wall and abs(now - wall - passed) <= CLOCK_STEP_US:
            return None
        return {"before": format_time(wall), "expected": format_time(max(0, wall + passed)), "now": format_time(now)}

    def _recorded_config(self) -> str | None:
        for _, fields in sorted(self._view.key_lines().items(), reverse=True):
            if fields.event_type in (CONFIG, CREATED) and is_own(fields):
                found = fields.details.get("sha256", fields.details.get("config_sha256"))
                return found if isinstance(found, str) else None
        return None

    def _payload_there(self, fields: Fields, name: str) -> bool:
        place = Place(fields.event_id, name, fields.subject)
        return self._vault.find(place, fields.recorded_at[:10]) is not None

    # -- failure -----------------------------------------------------------------------------------------------------

    def _refuse_if_fatal(self) -> None:
        if self._fatal is not None:
            raise type(self._fatal)(str(self._fatal))
        if self._store.broken or self._vault.broken:
            raise self._die(StateUnknown("a sync failed earlier; close this logger and open the log again"))

    def _die(self, error: AuditError) -> AuditError:
        self._fatal = error
        return error

    def _translate(self, error: BaseException, requests: list[Request]) -> BaseException:
        """What the system said → what it means for the caller. Interrupts and our own errors pass as they are."""
        if not isinstance(error, OSError):
            if not isinstance(error, AuditError):
                self._state = None
            return error
        self._state = None
        lost = sum(len(r.content) for r in requests if r.counted)
        if self._store.broken or self._vault.broken:
            return self._die(StateUnknown(f"syncing to disk failed ({error.strerror}); nothing more is acknowledged by "
                                          "this logger: close it, look at the disk, open the log again"))  # fmt: skip
        if lost and not _may_not_write(error):
            self._count_gap(_Gap(lost, now := self._clock.wall_us(), now))
            if is_full(error):
                return DiskFull(f"{self._store.folder}: no space left; {lost} event(s) were not recorded, which will be on "
                                "the record once there is room")  # fmt: skip
        return self._refused(error)

    def _refused(self, error: OSError) -> StoreError:
        """Nothing was recorded, and nothing is to be said of it later."""
        if _may_not_write(error):
            return ReadOnly(f"{error.filename or self._store.folder}: {error.strerror}; this user may read this log, "
                            "not write it")  # fmt: skip
        if is_full(error):
            return DiskFull(f"{self._store.folder}: no space left; nothing was recorded")
        return StoreError(f"{error.filename or self._store.folder}: {error.strerror}; nothing was recorded")

    def owe(self, count: int, first_us: int, last_us: int, cause: str, *, kept: int = 0, is_full: bool = False) -> None:
        """The next entry comes after one that says: ``count`` events could not be recorded when they happened, why, and that ``kept``
        of them follow. It dies with this handle. ``is_full``: the disk is, and the room kept for this is given up."""
        with self.busy:
            self._count_gap(_Gap(count, first_us, last_us, cause, kept), use_reserve=is_full)

    def _count_gap(self, more: _Gap, *, use_reserve: bool = True) -> None:
        known = self._gap
        if known is not None:
            causes = known.cause.split("; ")
            cause = known.cause if more.cause in causes or len(causes) > 3 else f"{known.cause}; {more.cause}"
            more = _Gap(known.count + more.count, min(known.first_us, more.first_us), max(known.last_us, more.last_us), cause,
                        known.kept + more.kept)  # fmt: skip
        self._gap = more
        if use_reserve:
            with contextlib.suppress(AuditError, OSError):
                self._write_gap_from_reserve()

    def _write_gap_from_reserve(self) -> None:
        """The disk is full: give up the reserved room and put the beginning of the gap on record at once."""
        if not self._store.release_reserve():
            return
        with self._store.exclusive(LOCK_WAIT_S):
            self._ready()
            self._write([])

    # -- off the acknowledged path, and the orderly end ------------------------------------------------------------------

    def make_durable(self) -> None:
        """Sync head, tree and mark (rule 10), and keep room for the entry that says that the disk was full. Nobody waits for it:
        the syncs run beside the next groups."""
        with self._flushing:
            if self._epochs.signer is None or self._store.broken:
                return
            with contextlib.suppress(OSError):  # the next append says so
                self.sync_derived()
                self.queue.make_durable()
        with self.busy:
            if self._epochs.signer is not None and not self._store.broken:
                with contextlib.suppress(OSError):
                    self._store.make_reserve()

    def sync_derived(self, *, of_all: bool = False) -> None:
        """Tree, head and mark; ``of_all``: also what writers left that died (before something is built on it under the
        lock). A sync that failed is never tried again by this handle (rule 11)."""
        try:
            if of_all:
                self._store.flush_all()
                self._keys.sync_all()
            else:
                self._store.flush()
                self._keys.sync()
        except OSError:
            self._store.broken = True
            raise

    def close(self) -> None:
        """Sync head, tree and mark and say that the stop was a clean one. The caller stopped the keeper and flushed before."""
        self.groups.stop()
        self.queue.close()
        with self.busy:
            if self._epochs.signer is not None and self._fatal is None and not self._store.broken:
                with contextlib.suppress(AuditError, OSError):
                    with self._store.exclusive(LOCK_WAIT_S):
                        self.sync_derived()
                        holder = self._store.last_holder()
                        if holder is not None and (holder.pid, holder.boot) == (os.getpid(), self._boot):
                            self._store.note_holder(self._boot, clean=True, durable=False)  # others still write, else
                        self._store.make_reserve()
            self.drop()

    def drop(self) -> None:
        """Release all descriptors and forget the state."""
        with self._flushing:
            self._store.close()
            self._keys.close()
            self._vault.close()
        self._epochs.drop()
        self._state, self._begun = None, False

    def after_fork(self) -> None:
        """In the child: descriptors and locks are the parent's; begin anew."""
        self._store.forget_thread()
        self._flushing = threading.Lock()
        self.drop()
        self._last_clock, self._gap = None, None
        self.busy = threading.Lock()
        self.written = threading.Event()
        self.epoch_closed = threading.Event()
        self.groups = GroupCommit(self._commit)
        self.queue.abandon()
        self.queue = Queue(self._queued, self._disk, self.groups.submit)


class _Gap(NamedTuple):
    """Events that could not be recorded, until the next group that can."""

    count: int  # type: ignore[assignment]
    first_us: int
    last_us: int
    cause: str = "the log could not be written"
    kept: int = 0  # of them follow, from a spool

    def details(self) -> dict[str, Any]:
        found = {"count": self.count, "first": format_time(self.first_us), "last": format_time(self.last_us), "cause": self.cause}
        return found | ({"kept": self.kept} if self.kept else {})


def _may_not_write(error: OSError) -> bool:
    return isinstance(error, PermissionError) or error.errno == errno.EROFS


def _same_or_conflict(given: Given, stored: Fields, payloads_match: bool) -> None:
    ignored = ("recorded_at", "payloads") if given.timestamp_given else ("recorded_at", "payloads", "timestamp")
    different = [
        name for name in ent.FIELD_NAMES
        if name not in ignored and _shown(getattr(given.fields, name)) != _shown(getattr(stored, name))
    ]  # fmt: skip
    if not payloads_match:
        different.append("payloads")
    if different:
        raise Conflict(
            f"event id {given.fields.event_id} is taken by an event with other content ({', '.join(different)} differ); "
            "use a new id, or corrects= to correct an entry"
        )


def _shown(value: Any) -> bytes:
    return ent.encode_value(value)


def _equal_payloads(a: Event, b: Event) -> bool:
    return {c.place.name: c.content for c in a.contents} == {c.place.name: c.content for c in b.contents}
