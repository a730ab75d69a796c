"""``AuditLogger``: the composition root of the Python interface. It names the concrete store, keys, vault and index."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .capture.approval import approval_event
from .capture.audited import build as build_audited
from .capture.content import ContentPolicy, Rule
from .capture.context import current_context
from .capture.outcome import Use, outcome_event
from .capture.recorder import Recorder
from .clock import CLOCK, zone
from .core.entry import AuditEntry, AuditEventType
from .core.errors import AuditError, StoreError
from .core.query import Question, ask
from .core.times import parse_asked
from .events import EventBuilder, named
from .family import Family, OlderLog, joined_counts, refuse_older_part
from .handles import release, shared
from .journal import LogJournal, settle
from .log.groups import Request
from .log.queue import Submitted
from .log.view import Stored
from .log.writer import Writer
from .memory import Memory, default_memory
from .opening import log_path, open_or_create
from .reports import approvals
from .vault import Place

Client = TypeVar("Client")


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
        self._handle = shared(self.path)
        self._events = EventBuilder(self._handle.genesis.origin, service)
        self._recorder: Recorder | None = None
        self.family = Family(self.path)
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
        event = self._events.event(
            {"event_type": event_type, "actor": actor, "actor_type": actor_type, "resource": resource, "action": action,
             "outcome": outcome, "details": details, "session_id": session_id, "ip_address": ip_address, **more}
        )  # fmt: skip
        self._writer().append([event])
        return event.draft.event_id

    def log_many(self, events: Sequence[Mapping[str, Any]]) -> list[str]:
        """Record many events (dicts with the keywords of ``log``) as one group: all or nothing. Returns their ids.

        An event that cannot be recorded is named by its position in the error.
        """
        ready = self._events.events(events)
        if ready:
            self._writer().append(ready)
        return [event.draft.event_id for event in ready]

    def submit(
        self, event_type: AuditEventType | str, actor: str, actor_type: str, resource: str, action: str,
        outcome: str = "success", details: Mapping[str, Any] | None = None, session_id: str | None = None,
        ip_address: str | None = None, **more: Any,
    ) -> Submitted:  # fmt: skip
        """``log`` without waiting: the event is checked and on its way, **not** acknowledged, when this returns.

        The handle has ``event_id`` and ``wait()``; ``flush()`` waits for all. Waits while 8,192 events or 16 MiB are on their way.
        What a dying process loses of it is counted and on record (``log.gap``) once the log is written to again. Raises
        ``EntryRefused`` at once; what goes wrong later is raised by ``wait``, else by ``flush`` or ``close``.
        """
        event = self._events.event(
            {"event_type": event_type, "actor": actor, "actor_type": actor_type, "resource": resource, "action": action,
             "outcome": outcome, "details": details, "session_id": session_id, "ip_address": ip_address, **more}
        )  # fmt: skip
        return self._writer().submit(event)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything submitted to this log by this process is acknowledged. ``StoreError`` if something was not recorded
        and no ``wait()`` said so, ``TimeoutError`` after ``timeout_s`` seconds."""
        if self._recorder is not None:
            self._recorder.flush(timeout_s)
        self._handle.writer.queue.flush(timeout_s)

    @property
    def recorder(self) -> Recorder:
        """What every way in records through: wrapped clients, tools, the proxy, handlers."""
        if self._recorder is None:
            ai = self._handle.settings.ai
            rules = [Rule(rule.content, rule.model, rule.actor, rule.resource) for rule in ai.rules]
            self._recorder = Recorder(LogJournal(self), ContentPolicy(ai.content, rules), ai.failure, look_up=ai.look_up)
        return self._recorder

    def wrap(self, client: Client) -> Client:
        """The same client, with every call to a model on record: ``client = log.wrap(ollama.Client())``.

        Known are ``ollama.Client``, ``ollama.AsyncClient``, ``openai.OpenAI`` and ``openai.AsyncOpenAI`` (llama.cpp, vLLM, LM
        Studio, Ollama's
        ``/v1``); ``TypeError`` for anything else. Values, streams and exceptions stay what they were;
        ``tallystick.event_id(answer)`` is
        the id of the call. What is kept of prompts and answers, and what happens when the log cannot be written, says ``[ai]`` in
        ``log.toml``.
        """
        from .capture.clients import wrap

        wrapped: Client = wrap(self.recorder, client)
        return wrapped

    def tool(self, function: Any = None, *, name: str | None = None) -> Any:
        """``@log.tool``: a function, synchronous or not, that a model may ask for. Every run is an ``ai.tool`` entry;
        where an answer on record asked for it with just these arguments it is linked to that call, whose answer then counts as
        used. ``name``: what the model calls it. Raises like ``@audited`` when it cannot be recorded."""
        from .capture.tools import build_tool

        return build_tool(self, function, name)

    def outcome(
        self, answer: object, status: str, *, ref: str | None = None, by: str | None = None, kind: str = "code",
        reason: str | None = None, evidence: str = "explicit", details: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Record what became of an answer: ``used``, ``used_modified``, ``rejected``, ``failed_validation``, ``failed_downstream``,
        ``superseded`` or ``expired``. Returns the id of the new entry.

        ``answer``: the event id of a call (request or answer), or whatever bears one. ``ref``: where it went (``erp:4711``).
        ``by`` and ``kind`` (``human``, ``code``, ``model``): who says so, else the audit context, else the service. The newest
        outcome counts, all stay. One of a call that is not on record is kept and marked as an orphan. ``ValueError`` for an unknown
        status or kind.
        """
        event = outcome_event(self, answer, status, ref=ref, by=by, kind=kind, reason=reason, evidence=evidence, details=details)
        if by is None:
            context = current_context()
            event |= {"actor": context.get("actor") or self.service or "unknown",
                      "actor_type": context.get("actor_type", "user" if "actor" in context else "service")}  # fmt: skip
        return self.log(**event)

    def approval(
        self, subject: object, decision: str, *, by: str, known_by: str = "none", reason: str | None = None,
        shown: str | bytes | None = None,
    ) -> str:  # fmt: skip
        """Record who decided about an answer or any other entry: ``approved``, ``rejected`` or ``changed``. Returns the new id.

        ``subject``: an event id, or whatever bears one; it must be on record (``EntryRefused``). ``by`` is a claim; ``known_by`` says
        how he is known: ``operating system``, ``token``, ``header`` or ``none``, which is marked as self-reported. ``shown``: what he
        saw when he decided, kept encrypted and committed to. ``ValueError`` for an unknown word.
        """
        return self.log(**approval_event(self, subject, decision, by=by, known_by=known_by, reason=reason, shown=shown))

    def use(self, answer: object, *, ref: str | None = None) -> Use:
        """``with log.use(answer, ref="erp:4711") as r: …`` records ``used`` when the block ends, if ``ref`` was given here or by
        ``r.used(ref=…)``, and ``failed_downstream`` when it raises. Where neither was said it warns, with the line of code."""
        return Use(self.outcome, answer, ref)

    async def alog(self, *args: Any, **keywords: Any) -> str:
        """``log`` for coroutines: waits without blocking the loop; tasks that wait together are synced together."""
        event = self._events.event(named(args, keywords, "alog"))
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish(request: Request) -> None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile: nobody waits for this one any more
                loop.call_soon_threadsafe(settle, done, request.error)

        self._writer().groups.submit(Request([event], finish))
        await asyncio.shield(done)
        return event.draft.event_id

    def _writer(self) -> Writer:
        if self._closed:
            raise StoreError("this logger was closed")
        refuse_older_part(self.path)
        self._handle.keeper.start()
        self._handle.publisher.start()
        return self._handle.writer

    # -- reading -----------------------------------------------------------------------------------------------------

    def entries(
        self, filters: Mapping[str, Any] | None = None, start_time: Any = None, end_time: Any = None, *,
        limit: int | None = None, after: int | str | None = None, before: int | str | None = None,
        newest_first: bool = False, archives: str | os.PathLike[str] | None = None,
    ) -> Iterator[AuditEntry]:  # fmt: skip
        """Typed entries that match, oldest first. Page on with ``after=`` the last index (``before=`` newest first).

        Every acknowledged entry is seen; ``log.*`` entries only where ``event_type`` asks for them. Of a log that was resumed the
        older parts come first, with ``part`` set; a place in one of them is ``"1#17"``, an index is of the log itself.
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
        """One typed entry by event id, index or place (``"1#17"``); ``KeyError`` if there is none here."""
        part, stored = self._find(wanted)
        return part.entry(stored) if part is not None else stored.entry()

    def stored(self, wanted: str | int) -> Any:
        """The stored line (``line``) and its place (``hit``); ``KeyError`` if there is none here."""
        return self._find(wanted)[1]

    def older_part(self, wanted: str | int) -> Path | None:
        """The folder of the older part that an entry is in; None for one of the log itself. ``KeyError``."""
        part = self._find(wanted)[0]
        return None if part is None else part.folder

    def _find(self, wanted: str | int) -> tuple[OlderLog | None, Stored]:
        view = self._handle.view
        size = view.head().size
        found = view.at(wanted, size) if isinstance(wanted, int) else view.find(wanted, size) if "#" not in wanted else None
        if found is not None:
            return None, found
        older = self.family.find(wanted) if isinstance(wanted, str) else None
        if older is None:
            raise KeyError(f"no entry {wanted} in {self.path}")
        return older

    def open_payload(self, event_id: str, name: str) -> bytes:
        """The content of a payload, compared with its commitment; for the id of a call also one of its answer. ``KeyError``,
        ``StoreError``, ``PermissionError``."""
        entry = self.entry(event_id)
        if entry.event_type == "ai_request" and name not in entry.payloads:
            answers = self.entries({"parent_id": event_id, "event_type": "ai_response"})
            entry = next((answer for answer in answers if name in answer.payloads), entry)
        return self._open_payload(entry, name)

    def salt(self, event_id: str) -> bytes:
        """The 32 bytes under which the texts of a call are committed to: ``commitments`` in the details of its entries are
        ``HMAC-SHA256(salt, name || 0x00 || content)``. ``event_id``: of the request, or of the answer. ``KeyError`` if it committed
        to nothing, ``StoreError`` where the key is not there or was destroyed, ``PermissionError``."""
        entry = self.entry(event_id)
        if entry.event_type == "ai_response" and entry.parent_id is not None:
            entry = self.entry(entry.parent_id)
        day = entry.details.get("salt_day")
        if isinstance(day, str):
            return (self.family.vault(entry) or self._handle.vault).open_salt(day, entry.subject, entry.event_id)
        return self._open_payload(entry, "salt")

    def _open_payload(self, entry: AuditEntry, name: str) -> bytes:
        ref = entry.payloads.get(name)
        if ref is None:
            raise KeyError(f"{entry.event_id} has no payload {name!r}")
        place = Place(entry.event_id, name, entry.subject)
        return (self.family.vault(entry) or self._handle.vault).open(place, ref.commitment, ref.size, day=entry.recorded_at[:10])

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
        self, question: Question, limit: int | None, after: int | str | None, before: int | str | None, newest_first: bool,
        archives: str | os.PathLike[str] | None,
    ) -> Iterator[AuditEntry]:  # fmt: skip
        """All parts in order. An index as a limit is of the log itself: what comes before it are also the older parts."""
        in_older = [at if isinstance(at, str) else None for at in (after, before)]
        own_after, own_before = (at if isinstance(at, int) else None for at in (after, before))
        older: Iterable[AuditEntry] = () if own_after is not None else self.family.entries(
            question, after=in_older[0], before=in_older[1], newest_first=newest_first)  # fmt: skip
        own: Iterable[AuditEntry] = () if isinstance(before, str) else self._own_answers(
            question, limit, own_after, own_before, newest_first, archives)  # fmt: skip
        yield from itertools.islice(itertools.chain(own, older) if newest_first else itertools.chain(older, own), limit)

    def _own_answers(
        self, question: Question, limit: int | None, after: int | None, before: int | None, newest_first: bool,
        archives: str | os.PathLike[str] | None,
    ) -> Iterator[AuditEntry]:  # fmt: skip
        view = self._handle.view
        size = view.head().size
        self._fill(size)
        start, stop, left = 0 if after is None else after + 1, before, limit
        if left == 0:
            return
        sources = [view.answers(question, size, start=start, stop=stop, newest_first=newest_first, expect=left)]
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

    def counts(self, start: Any = None, end: Any = None, *, before: int | None = None, recount: bool = False) -> dict[str, Any]:
        """How many events of a period there are by type, actor and outcome, below index ``before``; times as in ``query``. What the
        log says about itself is not counted. ``counted_from`` says of how many entries the numbers come from the index
        (``derived``) and from the stored lines (``lines``); ``recount`` takes all from the lines."""
        start_us, end_us = self.bounds(start, end)
        view = self._handle.view
        size = view.head().size
        self._fill(size)
        found, derived, lines = view.counts(start_us, end_us, size if before is None else min(before, size), recount=recount)
        for more, of_index, of_lines in self.family.counts(start_us, end_us, recount=recount):
            found, derived, lines = joined_counts(found, more), derived + of_index, lines + of_lines
        return {
            "total_events": sum(found.event_type.values()), "by_event_type": dict(sorted(found.event_type.items())),
            "by_actor": dict(sorted(found.actor.items())), "by_outcome": dict(sorted(found.outcome.items())),
            "counted_from": {"derived": derived, "lines": lines},
        }  # fmt: skip

    def report_basis(self, *, at: int | None = None, verify: bool = False) -> dict[str, Any]:
        """The checkpoint that a report is made from and what this user has verified up to it."""
        from .verification import integrity_check

        return integrity_check(self, at=at, verify=verify)

    @property
    def approval_rules(self) -> tuple[approvals.Rule, ...]:
        """What needs an approval (``[[approval]]`` in ``log.toml``)."""
        return tuple(approvals.Rule.parse(rule.action, rule.where) for rule in self._handle.settings.approval)

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

    def rotate(self, reason: str = "asked for") -> dict[str, Any]:
        """End the running epoch now: the next key takes over, the old one is destroyed, and nobody who breaks in later can change an
        entry before. Returns the closing checkpoint: ``epoch``, ``size`` and ``note`` (keep it elsewhere)."""
        size, note = self._writer().rotate(reason)
        return {"epoch": self._handle.view.history(size).epoch_at(size).number, "size": size, "note": note.decode()}

    def recover_epoch(self, reason: str) -> dict[str, Any]:
        """The key of the running epoch is lost: put that on record under the log key and go on with a new one. From the last closed
        epoch on, closed epochs then seal nothing against whoever holds the log key, and every verdict says so. Returns what
        ``rotate`` does; ``StoreError`` where the key is there."""
        size, note = self._writer().recover_epoch(reason)
        return {"epoch": self._handle.view.history(size).epoch_at(size).number, "size": size, "note": note.decode()}

    def archive_old_entries(self, archive_path: str | os.PathLike[str]) -> dict[str, Any]:
        """Move the longest prefix of sealed segments whose events are all older than ``retention_days`` to files in
        ``archive_path``; killed anywhere, a second call finishes."""
        from .retention.archive import archive

        refuse_older_part(self.path)
        self._handle.keeper.start()
        self._handle.publisher.start()
        return archive(self._handle.writer, self._handle.view, self._handle.store, Path(archive_path),
                       older_than_us=CLOCK.wall_us() - self.retention_days * 86_400_000_000)  # fmt: skip

    def close(self) -> None:
        """Make everything durable and end. Another logger of the same path in this process goes on."""
        if not self._closed:
            if self._recorder is not None:
                self._recorder.close()
            self._closed = True
            self.family.close()
            release(self.path)

    def __enter__(self) -> AuditLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AuditLogger {self.path}>"



@functools.cache
def default_logger() -> AuditLogger:
    """The one logger of this process for code that names none."""
    return AuditLogger()


def instrument(log: AuditLogger | None = None) -> list[str]:
    """Record the calls of every ``ollama`` and ``openai`` client of this process, also of code that cannot be changed; ``log`` is the
    default logger where none is given. Returns the names of the libraries that were found. A second call changes only the log;
    ``uninstrument()`` takes it back. A client that was wrapped stays with its own log."""
    from .capture.clients import instrument

    return instrument((log or default_logger()).recorder)


def uninstrument() -> None:
    """Take ``instrument`` back."""
    from .capture.clients import uninstrument

    uninstrument()


audited = build_audited(lambda: default_logger())


def _arg_name(entry: AuditEntry, key: str) -> str:
    names = entry.details.get("arguments")
    if isinstance(names, list) and key.isdigit() and int(key) < len(names) and isinstance(names[int(key)], dict):
        return str(names[int(key)].get("name", key))
    return key


__all__ = ["AuditLogger", "audited", "default_logger", "instrument", "uninstrument"]
