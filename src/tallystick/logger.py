"""``AuditLogger``: the composition root of the Python interface. It names the concrete store, keys, vault and index."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from . import config as cfg
from .capture.audited import build as build_audited
from .capture.context import current_context
from .clock import CLOCK, host_name, local_zone_name, system_user, zone
from .core import entry as ent
from .core.checkpoint import check_origin
from .core.entry import AuditEntry, AuditEventType, Fields, PayloadRef
from .core.errors import AuditError, EntryRefused, LogMissing, Malformed, StoreError
from .core.genesis import Genesis
from .core.payload import PAYLOAD_BYTES_MAX, SALT_BYTES, Payload, commit
from .core.query import Question, ask
from .core.times import format_time, parse_asked, to_us
from .disk import DISK, Disk
from .index import Index
from .keys import KeyFolder
from .log.create import Plan, check_parent, create
from .log.groups import Request
from .log.keeper import Keeper
from .log.view import LogView
from .log.writer import Content, Event, Given, Writer
from .memory import Known, Memory, default_memory
from .store.segments import SegmentStore
from .vault import Place, Vault

VERSION = "0.1.0"
_OPTIONAL = ("service", "on_behalf_of", "parent_id", "correlation_id", "trace_id", "reason", "corrects", "subject",
             "session_id", "ip_address")  # fmt: skip
_open: dict[tuple[str, int], _Handle] = {}
_open_lock = threading.RLock()


class _Handle:
    """What all loggers of one path in one process share: store, view, writer, keeper."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder = folder
        self.genesis = read_genesis(folder)
        self.settings = cfg.read_settings(folder)
        if self.settings.origin != self.genesis.origin:
            raise StoreError(f"{folder}: log.toml says {self.settings.origin}, log.vkey says {self.genesis.origin}")
        self.store = SegmentStore(folder, disk)
        self.keys = KeyFolder(cfg.keys_folder(folder, self.settings), disk)
        self.vault = Vault(folder / "payloads", self.keys.path, self.genesis.origin, disk)
        self.view = LogView(self.store, self.genesis, _indexes(folder, self.genesis))
        self.writer = Writer(
            self.store, self.view, self.keys, self.vault, CLOCK, segment_bytes=self.settings.segments.bytes,
            config=lambda: (folder / "log.toml").read_bytes(),
        )  # fmt: skip
        self.keeper = Keeper(self.writer, self.view)

    def close(self) -> None:
        self.keeper.stop()
        self.writer.close()
        if os.access(self.folder, os.W_OK):
            with contextlib.suppress(AuditError, OSError):  # a head that a failure left half-written; the next append heals it
                self.view.fill(wait_s=0.0)

    def after_fork(self) -> None:
        self.view.after_fork()
        self.vault.after_fork()
        self.keeper.after_fork()
        self.writer.after_fork()


class AuditLogger:
    """A tamper-evident audit log in a folder.

    ``audit_path``: the folder, else ``$TALLY_LOG``, else ``./audit_log``. It is made where neither a log nor a memory of one is;
    ``LogMissing`` otherwise, and always with ``create=False``. ``retention_days`` is written into a log that is made here and
    otherwise only serves ``archive_old_entries`` of this object. ``service`` names the program in every entry.
    Safe for threads, ``fork`` and ``spawn``; closed at exit.
    """

    def __init__(
        self, audit_path: str | os.PathLike[str] | None = None, retention_days: int | None = None, *,
        create: bool = True, service: str | None = None, memory: Memory | None = None,
    ) -> None:  # fmt: skip
        if retention_days is not None and (type(retention_days) is not int or retention_days < 0):
            raise ValueError("retention_days is a whole number of days, 0 or more")
        self.path = log_path(audit_path)
        self.memory = memory or default_memory(os.environ)
        self.service = service
        open_or_create(self.path, self.memory, create=create, retention_days=retention_days)
        self._closed = False
        self._handle = _shared(self.path)
        self.retention_days = self._handle.settings.retention.days if retention_days is None else retention_days

    # -- writing -----------------------------------------------------------------------------------------------------

    def log(
        self, event_type: AuditEventType | str, actor: str, actor_type: str, resource: str, action: str,
        outcome: str = "success", details: Mapping[str, Any] | None = None, session_id: str | None = None,
        ip_address: str | None = None, **more: Any,
    ) -> str:  # fmt: skip
        """Record one event; returns its id when it is durable, in the tree and under a signed checkpoint.

        More keywords: ``timestamp`` (when it happened), ``service``, ``on_behalf_of``, ``parent_id``, ``correlation_id``,
        ``trace_id``, ``reason``, ``corrects``, ``subject``, ``payloads`` (name → text, bytes or ``Payload``: content kept
        encrypted beside the log), ``event_id`` (a retry with the same id and content is answered with the id).
        Raises ``EntryRefused`` (nothing was written), ``Conflict``, ``StoreError`` and below.
        """
        event = self._event(
            {"event_type": event_type, "actor": actor, "actor_type": actor_type, "resource": resource, "action": action,
             "outcome": outcome, "details": details, "session_id": session_id, "ip_address": ip_address, **more}
        )  # fmt: skip
        self._writer().append([event])
        return event.draft.event_id

    def log_many(self, events: Sequence[Mapping[str, Any]]) -> list[str]:
        """Record many events (dicts with the keywords of ``log``) as one group: all or nothing. Returns their ids.

        An event that cannot be recorded is named by its position in the error.
        """
        ready = []
        for position, event in enumerate(events):
            try:
                ready.append(self._event(dict(event)))
            except EntryRefused as e:
                raise EntryRefused(f"event {position}: {e}", path=e.path, position=position) from None
        if ready:
            self._writer().append(ready)
        return [event.draft.event_id for event in ready]

    async def alog(self, *args: Any, **keywords: Any) -> str:
        """``log`` for coroutines: waits without blocking the loop; tasks that wait together are synced together."""
        bound = _log_names(args, keywords)
        event = self._event(bound)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish(request: Request) -> None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile: nobody waits for this one any more
                loop.call_soon_threadsafe(_settle, done, request.error)

        self._writer().groups.submit(Request([event], finish))
        await asyncio.shield(done)
        return event.draft.event_id

    def _writer(self) -> Writer:
        if self._closed:
            raise StoreError("this logger was closed")
        self._handle.keeper.start()
        return self._handle.writer

    def _event(self, given: dict[str, Any]) -> Event:
        """Keywords of ``log`` → an event ready to be appended."""
        unknown = set(given) - _KEYWORDS
        if unknown:
            name = sorted(map(str, unknown))[0]
            raise EntryRefused(f"unknown field {name[:80]!r}; known are {', '.join(sorted(_KEYWORDS))}", path=name)
        context = current_context()
        subject = _text(given, "subject", context)
        event_id, chosen = given.get("event_id"), given.get("event_id") is not None
        event_id = _require(event_id, "event_id") if chosen else CLOCK.event_id()
        refs, contents = _payloads(given.get("payloads"), event_id, subject)
        details = given.get("details")
        if details is not None and not isinstance(details, Mapping):
            raise EntryRefused(f"details is a dict, not {type(details).__name__}", path="details")
        optional = {name: _text(given, name, context) for name in _OPTIONAL}
        fields = Fields(
            v=ent.VERSION, log=self._handle.genesis.origin, event_id=event_id, timestamp=_timestamp(given.get("timestamp")),
            recorded_at="", event_type=_require(given.get("event_type"), "event_type"),
            actor=_require(given.get("actor", context.get("actor")), "actor"),
            actor_type=_require(given.get("actor_type", context.get("actor_type")), "actor_type"),
            resource=_require(given.get("resource"), "resource"), action=_require(given.get("action"), "action"),
            outcome=_require(given.get("outcome", "success"), "outcome"), details=dict(details or {}), payloads=refs,
            **{**optional, "service": optional["service"] or self.service},
        )  # fmt: skip
        draft = ent.encode_draft(fields)
        return Event(draft, contents, Given(fields, given.get("timestamp") is not None) if chosen else None)

    # -- reading -----------------------------------------------------------------------------------------------------

    def entries(
        self, filters: Mapping[str, Any] | None = None, start_time: Any = None, end_time: Any = None, *,
        limit: int | None = None, after: int | None = None, before: int | None = None, newest_first: bool = False,
        archives: str | os.PathLike[str] | None = None,
    ) -> Iterator[AuditEntry]:  # fmt: skip
        """Typed entries that match, oldest first. Page on with ``after=`` the last index (``before=`` newest first).

        Every acknowledged entry is seen; ``log.*`` entries only where ``event_type`` asks for them.
        """
        question = self._question(filters, start_time, end_time)
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ValueError("limit is a whole number, or None for all")
        return self._answers(question, limit, after, before, newest_first, archives)

    def query(
        self, filters: Mapping[str, Any] | None = None, start_time: Any = None, end_time: Any = None,
        limit: int | None = 1000, **more: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The entries that match as dicts with the chapter's twelve keys (``checksum`` included) and what else is set.

        Argument values and result of audited functions stand under ``details.args`` and ``details.result_preview`` while
        they can be opened. Other keywords as in ``entries``.
        """
        return [self._row(entry) for entry in self.entries(filters, start_time, end_time, limit=limit, **more)]

    def get(self, event_id: str) -> dict[str, Any]:
        """One entry by its event id; ``KeyError`` if there is none."""
        return self._row(self.entry(event_id))

    def entry(self, wanted: str | int) -> AuditEntry:
        """One typed entry by event id or index; ``KeyError`` if there is none here."""
        found: AuditEntry = self.stored(wanted).entry()
        return found

    def stored(self, wanted: str | int) -> Any:
        """The stored line (``line``) and its place (``hit``); ``KeyError`` if there is none here."""
        view = self._handle.view
        size = view.head().size
        found = view.at(wanted, size) if isinstance(wanted, int) else view.find(wanted, size)
        if found is None:
            raise KeyError(f"no entry {wanted} in {self.path}")
        return found

    def open_payload(self, event_id: str, name: str) -> bytes:
        """The content of a payload, compared with its commitment. ``KeyError``, ``StoreError``, ``PermissionError``."""
        return self._open_payload(self.entry(event_id), name)

    def _open_payload(self, entry: AuditEntry, name: str) -> bytes:
        ref = entry.payloads.get(name)
        if ref is None:
            raise KeyError(f"{entry.event_id} has no payload {name!r}")
        place = Place(entry.event_id, name, entry.subject)
        return self._handle.vault.open(place, ref.commitment, ref.size, day=entry.recorded_at[:10])

    def _row(self, entry: AuditEntry) -> dict[str, Any]:
        row = entry.row()
        for name in entry.payloads:
            kind, _, key = name.partition(".")
            if kind in ("arg", "result", "error") and "function" in entry.details:
                try:
                    text = self._open_payload(entry, name).decode("utf-8", "replace")
                except (AuditError, OSError):
                    continue
                if kind == "arg":
                    row["details"].setdefault("args", {})[_arg_name(entry, key)] = text
                elif kind == "error" and isinstance(row["details"].get("error"), dict):
                    row["details"]["error"]["text"] = text
                else:
                    row["details"]["result_preview"] = text
        return row

    def _question(self, filters: Mapping[str, Any] | None, start: Any, end: Any) -> Question:
        where = self.zone
        return ask(
            filters,
            start_us=None if start is None else parse_asked(start, zone=where),
            end_us=None if end is None else parse_asked(end, zone=where, end=True),
        )

    def _answers(
        self, question: Question, limit: int | None, after: int | None, before: int | None, newest_first: bool,
        archives: str | os.PathLike[str] | None,
    ) -> Iterator[AuditEntry]:  # fmt: skip
        view = self._handle.view
        size = view.head().size
        self._fill(size)
        start, stop, left = 0 if after is None else after + 1, before, limit
        if left == 0:
            return
        sources = [view.answers(question, size, start=start, stop=stop, newest_first=newest_first)]
        if archives is not None:
            from .retention.archive import read_archives

            old = read_archives(Path(archives), view, size, start, stop)
            sources.insert(0 if not newest_first else 1, iter(list(old)[::-1]) if newest_first else old)
        for source in sources:
            for stored in source:
                entry = stored.entry()
                if question.matches(entry):
                    yield entry
                    if left is not None:
                        left -= 1
                        if left == 0:
                            return

    def _fill(self, size: int) -> None:
        self._handle.view.fill(size)

    def bounds(self, start: Any, end: Any) -> tuple[int | None, int | None]:
        """Asked-for times as inclusive microseconds."""
        question = self._question(None, start, end)
        return question.start_us, question.end_us

    def report_basis(self, *, at: int | None = None, verify: bool = False) -> dict[str, Any]:
        """The checkpoint that a report is made from and what this user has verified up to it."""
        from .verification import integrity_check

        return integrity_check(self, at=at, verify=verify)

    @property
    def keeps_previews(self) -> bool:
        """Whether values of audited functions are kept (``content.keep`` in ``log.toml``)."""
        return self._handle.settings.content.keep == "previews"

    @property
    def zone(self) -> Any:
        """The log's time zone."""
        return zone(self._handle.settings.timezone)

    def verifier_key(self) -> str:
        """The log's verifier key: keep it elsewhere."""
        return self._handle.genesis.vkey.format()

    def entry_count(self) -> int:
        """Entries that are signed, those of the log about itself included."""
        return self._handle.view.head().size

    @property
    def origin(self) -> str:
        """The log's origin."""
        return self._handle.genesis.origin

    # -- checking, archiving, ending -----------------------------------------------------------------------------------

    def verify_integrity(self, **options: Any) -> dict[str, Any]:
        """Recompute everything from the stored lines. ``verified`` is true exactly where ``tally verify`` exits 0."""
        from .verification import verify_log

        return verify_log(self.path, memory=self.memory, **options).as_dict()

    def archive_old_entries(self, archive_path: str | os.PathLike[str]) -> dict[str, Any]:
        """Move the longest prefix of sealed segments whose events are all older than ``retention_days`` to files in
        ``archive_path``; killed anywhere, a second call finishes."""
        from .retention.archive import archive

        self._handle.keeper.start()
        return archive(self._handle.writer, self._handle.view, self._handle.store, Path(archive_path),
                       older_than_us=CLOCK.wall_us() - self.retention_days * 86_400_000_000)  # fmt: skip

    def close(self) -> None:
        """Make everything durable and end. Another logger of the same path in this process goes on."""
        if not self._closed:
            self._closed = True
            _release(self.path)

    def __enter__(self) -> AuditLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AuditLogger {self.path}>"


_KEYWORDS = frozenset({*_OPTIONAL, "event_type", "actor", "actor_type", "resource", "action", "outcome", "details",
                       "timestamp", "payloads", "event_id"})  # fmt: skip
_POSITIONS = ("event_type", "actor", "actor_type", "resource", "action", "outcome", "details", "session_id", "ip_address")


def log_path(given: str | os.PathLike[str] | None) -> Path:
    """The argument, else ``$TALLY_LOG``, else ``./audit_log``, absolute."""
    chosen = given if given is not None else os.environ.get("TALLY_LOG") or "audit_log"
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(chosen))))
    if path.is_file():
        raise StoreError(f"{path} is a file; a log is a folder (importing such a file comes later): name another path")
    return path


def is_log(folder: Path) -> bool:
    """True for a folder that holds a log."""
    return (folder / "log.vkey").is_file() or (folder / "segments").is_dir()


def read_genesis(folder: Path) -> Genesis:
    """``log.vkey`` of a log; ``LogMissing`` where there is none."""
    try:
        with (folder / "log.vkey").open("rb") as file:
            return Genesis.parse(file.read(16_384))
    except FileNotFoundError:
        raise LogMissing(f"there is no log at {folder} (no log.vkey); tally init {folder} makes one") from None


def open_or_create(
    folder: Path, memory: Memory, *, create: bool, retention_days: int | None = None, origin: str | None = None
) -> None:
    """Make the log where neither it nor a memory of it is; otherwise do nothing, or say what is missing."""
    if is_log(folder):
        return
    known, others = memory.get(folder), folder.exists() and any(folder.iterdir())
    if is_log(folder):
        return  # somebody made it while we looked: what we saw of it then is no sign of anything else
    if known is not None:
        when = format_time(known.seen_us)[:16].replace("T", " ")
        raise LogMissing(
            f"the log {known.origin} with {known.size:,} entries, last seen here at {folder} on {when} UTC, is gone. "
            f"Restore it; or, if that is meant, tally trust --forget {folder} and begin anew"
        )
    if not create:
        raise LogMissing(f"there is no log at {folder}, and none was to be made; tally init {folder} makes one")
    if others:
        raise StoreError(f"{folder} is a folder with other things in it; name an empty or a new one")
    make_log(folder, memory, retention_days=365 if retention_days is None else retention_days, origin=origin)


def make_log(folder: Path, memory: Memory, *, retention_days: int, origin: str | None) -> None:
    """Make it, remember it, and tell whoever made it once, on standard error."""
    check_parent(folder)
    name = origin or _default_origin(folder)
    try:
        check_origin(name)
    except Malformed as e:
        raise ValueError(str(e)) from None
    keys = folder.with_name(folder.name + ".keys")
    settings = cfg.build_settings(name, local_zone_name(), f"../{keys.name}", retention_days)
    details = {"tool": f"tallystick {VERSION}", "host": host_name(), "user": system_user()}
    genesis = create(Plan(folder, keys, name, settings, details), CLOCK, DISK, exists=is_log)
    if genesis is None:
        return
    first = genesis.open()
    vkey = genesis.vkey.format()
    memory.put(folder, Known(name, vkey, first.root.hex(), 1, first.root.hex(), CLOCK.wall_us()))
    sys.stderr.write(
        f"tallystick made a new log\n  folder   {folder}\n  origin   {name}\n  key      {vkey}\n"
        f"  keeps    entries {retention_days} days; values of audited functions (500 characters each) encrypted\n"
        f"  keys     {keys}  (keep them out of backups of the log; keep a copy of the line 'key' elsewhere)\n"
    )


def _default_origin(folder: Path) -> str:
    name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in folder.name.lower())[:40]
    return f"{host_name()}/{name.strip('.-') or 'log'}/{os.urandom(6).hex()}"


def _indexes(folder: Path, genesis: Genesis) -> list[Index]:
    """The log's own index, and for those who may not write there one in their cache."""
    found = [Index(folder / "index.db")]
    if not os.access(folder, os.W_OK):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        cache = Path(base) / "tallystick" / "index"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = hashlib.sha256(f"{genesis.vkey.format()}\0{folder}".encode()).hexdigest()[:24]
            found.append(Index(cache / f"{name}.db"))
        except OSError:
            pass
    return found


def _shared(folder: Path) -> _Handle:
    key = (os.path.realpath(folder), os.getpid())
    with _open_lock:
        handle = _open.get(key)
        if handle is None:
            handle = _open[key] = _Handle(folder)
            _users[key] = 0
        _users[key] += 1
        return handle


def _release(folder: Path) -> None:
    key = (os.path.realpath(folder), os.getpid())
    with _open_lock:
        if key not in _open:
            return
        _users[key] -= 1
        if _users[key] == 0:
            _open.pop(key).close()
            del _users[key]


_users: dict[tuple[str, int], int] = {}


def _before_fork() -> None:
    _open_lock.acquire()
    for handle in _open.values():
        handle.writer.groups.hold()
        handle.writer.busy.acquire()


def _after_fork_in_parent() -> None:
    for handle in _open.values():
        handle.writer.busy.release()
        handle.writer.groups.release()
    _open_lock.release()


def _after_fork_in_child() -> None:
    global _open_lock  # noqa: PLW0603  # the parent's lock cannot be trusted in the child
    handles, users = dict(_open), dict(_users)
    _open.clear()
    _users.clear()
    _open_lock = threading.RLock()
    for (path, _), handle in handles.items():
        handle.after_fork()
        _open[(path, os.getpid())] = handle
    for (path, _), count in users.items():
        _users[(path, os.getpid())] = count


def _close_all() -> None:
    with _open_lock:
        for key in list(_open):
            if key[1] == os.getpid():
                _open.pop(key).close()
                _users.pop(key, None)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_close_all)


@functools.cache
def default_logger() -> AuditLogger:
    """The one logger of this process for code that names none."""
    return AuditLogger()


audited = build_audited(lambda: default_logger())


def _log_names(args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    if len(args) > len(_POSITIONS):
        raise TypeError(f"alog() takes {len(_POSITIONS)} positional arguments, {len(args)} were given")
    bound = dict(zip(_POSITIONS, args, strict=False))
    twice = set(bound) & set(keywords)
    if twice:
        raise TypeError(f"alog() got {sorted(twice)[0]} twice")
    return {**bound, **keywords}


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if not done.done():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _require(value: Any, name: str) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        raise EntryRefused(f"{name} is missing", path=name)
    if not isinstance(value, str):
        raise EntryRefused(f"{name} is text, not {type(value).__name__}", path=name)
    return value if type(value) is str else str.__str__(value)


def _text(given: dict[str, Any], name: str, context: Mapping[str, Any]) -> str | None:
    value = given.get(name)
    if value is None:
        value = context.get(name)
    return None if value is None else _require(value, name)


def _timestamp(value: Any) -> str:
    if value is None:
        return format_time(CLOCK.wall_us())
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise EntryRefused("timestamp needs a time zone: datetime.now(timezone.utc), not utcnow()", path="timestamp")
        us = to_us(value)
    elif isinstance(value, str):
        try:
            us = parse_asked(value, zone=UTC)
        except (ValueError, TypeError) as e:
            raise EntryRefused(f"timestamp: {e}", path="timestamp") from None
    else:
        raise EntryRefused(f"timestamp is an aware datetime or text, not {type(value).__name__}", path="timestamp")
    try:
        return format_time(us)
    except ValueError as e:
        raise EntryRefused(f"timestamp: {e}", path="timestamp") from None


def _payloads(given: Any, event_id: str, subject: str | None) -> tuple[dict[str, PayloadRef], tuple[Content, ...]]:
    if not given:
        return {}, ()
    if not isinstance(given, Mapping):
        raise EntryRefused("payloads is a dict of name → text or bytes", path="payloads")
    refs: dict[str, PayloadRef] = {}
    contents = []
    for name, value in given.items():
        ent.check_payload_name(name)
        payload = _payload(name, value)
        if len(payload.content) > PAYLOAD_BYTES_MAX:
            raise EntryRefused(f"payloads.{name}: more than {PAYLOAD_BYTES_MAX:,} bytes", path=f"payloads.{name}")
        salt = os.urandom(SALT_BYTES)
        refs[name] = PayloadRef(commit(salt, payload.content), len(payload.content), payload.media_type)
        contents.append(Content(Place(event_id, name, subject), salt, payload.content))
    return refs, tuple(contents)


def _payload(name: str, value: Any) -> Payload:
    if isinstance(value, Payload):
        return value
    if isinstance(value, str):
        return Payload(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray):
        return Payload(bytes(value), "application/octet-stream")
    raise EntryRefused(f"payloads.{name}: text, bytes or Payload, not {type(value).__name__}", path=f"payloads.{name}")


def _arg_name(entry: AuditEntry, key: str) -> str:
    names = entry.details.get("arguments")
    if isinstance(names, list) and key.isdigit() and int(key) < len(names) and isinstance(names[int(key)], dict):
        return str(names[int(key)].get("name", key))
    return key


__all__ = ["AuditLogger", "audited", "default_logger", "log_path", "open_or_create"]
