"""One call to a model: written down before its bytes leave, and exactly once when it ends, however it ends.

``ai_request`` has the id that was minted for the call, ``ai_response`` has it as ``parent_id``. A request without an answer on
record is visible evidence of a crash. A call of which nothing was sent is one entry, ``ai_response`` under the call's own id.
What changes a model (pull, create, copy, delete) is one ``configuration_change`` when it ends.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..clock import CLOCK
from ..core.errors import AuditError, CallBlocked
from . import ends
from .context import NAMES
from .evidence import is_of_format
from .recorder import interrupts_the_log
from .wire.answer import Answer
from .wire.asked import Asked, clean

if TYPE_CHECKING:
    from .recorder import Recorder

Reader = Callable[[Answer, Mapping[str, Any]], None]


class Call:
    """One call. ``read`` reads one object of its answer; ``capture`` is the way in, ``client`` the program that made the call."""

    __slots__ = ("__weakref__", "_began_ns", "_first_ns", "_left", "_pid", "_valid", "answer", "asked", "attempts", "capture",
                 "catch_up", "claims", "client", "delivered", "digest", "endpoint", "event_id", "is_on_record", "is_sent",
                 "kept", "named", "read", "recorder", "server_version", "status", "unread", "who")  # fmt: skip

    def __init__(
        self, recorder: Recorder, asked: Asked, read: Reader, *, capture: str, endpoint: str = "", client: str = "",
        claims: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.recorder, self.asked, self.read = recorder, asked, read
        self.capture, self.client, self.claims = capture, client, claims
        self.endpoint = clean_endpoint(endpoint)
        self.event_id = CLOCK.event_id()
        # read once: a stream is consumed elsewhere, and its end may come in any thread
        self.who, self.named = recorder.who(claims)
        self.kept = recorder.keep(asked.model, self.who, self.event_id)
        self.answer = Answer(self.kept.salt, self.kept.limit)
        self.attempts, self.delivered = 1, 0
        self.status: int | None = None
        self.digest: str | None = None
        self.server_version: str | None = None
        self.unread: str | None = None
        self.catch_up: Callable[[], None] | None = None  # reads what was put off of the answer
        self.is_sent = False
        self.is_on_record = False  # its request is, or may be: whoever waited for that may have been cancelled
        self._valid: bool | None = None
        self._pid = os.getpid()
        self._left = [True]  # taken by whoever ends it; list.pop is one step for all threads
        self._began_ns = time.perf_counter_ns()
        self._first_ns: int | None = None

    # -- the beginning -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first byte leaves: the request is on record. ``CallBlocked`` if it cannot be, and must."""
        self._adopt()
        if not self.asked.admin:
            event = self._request()
            self.is_on_record = True
            if interrupts_the_log():
                recorder, event_id = self.recorder, self.event_id
                recorder.later(lambda: recorder.put(event, event_id))
            else:
                try:
                    self.recorder.put(event, self.event_id)
                except CallBlocked as e:
                    raise self._refused(e) from e.__cause__
        self._sent()

    async def abegin(self) -> None:
        """``begin`` without blocking the loop."""
        self._adopt()
        if not self.asked.admin:
            self.is_on_record = True
            try:
                await self.recorder.aput(self._request(), self.event_id)
            except CallBlocked as e:
                raise self._refused(e) from e.__cause__
        self._sent()

    def _refused(self, error: CallBlocked) -> CallBlocked:
        """It never began: there is nothing to end."""
        self._left.clear()
        self.recorder.open_calls.discard(self)
        return CallBlocked(f"{error}: nothing was sent")

    def _adopt(self) -> None:
        """A stream that was made before a fork and is read in the child is the child's own call."""
        if self._pid != os.getpid():
            self._pid, self._left, self.event_id = os.getpid(), [True], CLOCK.event_id()
            self.kept = self.recorder.keep(self.asked.model, self.who, self.event_id)
            self.answer = Answer(self.kept.salt, self.kept.limit)

    def _sent(self) -> None:
        self.is_sent = True
        self._began_ns = time.perf_counter_ns()
        self.recorder.evidence.asked_again(self.asked)

    def _request(self) -> dict[str, Any]:
        kept, payloads = self.kept.of_request(self.asked)
        event = self._event("ai_request", "success", {**self.asked.details(), **kept, **self._where()})
        if payloads:
            event["payloads"] = payloads
        return event

    # -- while it answers ------------------------------------------------------------------------------------------------

    def feed(self, part: Mapping[str, Any]) -> None:
        """One object of the answer. Never raises: what cannot be read is noted."""
        try:
            self.read(self.answer, part)
        except Exception as e:  # noqa: BLE001  # whatever a server sends, its caller gets it
            self.unread = type(e).__name__
        if self._first_ns is None and self.answer.bore:
            self._first_ns = time.perf_counter_ns()

    # -- the end ---------------------------------------------------------------------------------------------------------

    @property
    def has_begun_to_answer(self) -> bool:
        """Something of an answer has come, and the time of it is known."""
        return self._first_ns is not None

    @property
    def is_open(self) -> bool:
        """Nobody has ended it yet."""
        return bool(self._left)

    def source_ended(self) -> str:
        """The word for an answer whose source has no more."""
        if self.answer.error is not None:
            return ends.MID_STREAM_ERROR
        return ends.OK if self.answer.whole else ends.TRUNCATED

    def finish(self, end: str, error: BaseException | None = None, status: int | None = None) -> None:
        """End it, if nobody did: the entry is written before this returns. Raises only with ``block``."""
        event = self._take(end, error, status)
        if event is None:
            return
        if interrupts_the_log():
            self.recorder.later(lambda: self._end(*event))
        else:
            self._end(*event)

    async def afinish(self, end: str, error: BaseException | None = None, status: int | None = None) -> None:
        """``finish`` without blocking the loop. Not for ends by cancellation: the task may not get another turn."""
        event = self._take(end, error, status)
        if event is not None:
            await self.recorder.aput(*event)
            self._ended_well()

    def _end(self, keywords: dict[str, Any], event_id: str) -> None:
        self.recorder.put(keywords, event_id)
        self._ended_well()

    def _ended_well(self) -> None:
        """On record: now what is seen of an answer's fate can be bound to its entry."""
        if self.answer.whole and not self.asked.admin and self.answer.error is None:
            self.recorder.evidence.finished(self.event_id, self.answer, self._valid)

    def failed(self, error: BaseException) -> None:
        """An exception ended it; it is on its way to the caller, and stays what it is."""
        end, status = ends.end_of(error, answered=self.answer.chunks > 0)
        try:
            self.finish(end, error, status)
        except AuditError as e:
            error.add_note(f"this call could not be recorded in the audit log: {e}")

    def abandon(self) -> None:
        """Dropped, perhaps in a finaliser: only a note is left here, the helper writes."""
        event = self._take(ends.ABANDONED if self.is_sent else ends.NOT_SENT, None, None)
        if event is not None:
            keywords, event_id = event
            self.recorder.later(lambda: self.recorder.put(keywords, event_id))

    def _take(self, end: str, error: BaseException | None, status: int | None) -> tuple[dict[str, Any], str] | None:
        """The entry that ends it and its id, once; None for whoever comes second, and in a forked child."""
        if self._pid != os.getpid():
            return None
        try:
            self._left.pop()
        except IndexError:
            return None
        spent = time.perf_counter_ns() - self._began_ns
        if self.catch_up is not None:
            try:
                self.catch_up()
            except Exception as e:  # noqa: BLE001  # entered by a signal handler while it was at it
                self.unread = type(e).__name__
            self.catch_up = None  # it holds the body, and the body this call
        self.recorder.open_calls.discard(self)
        self.status = status or self.status
        answer, asked = self.answer, self.asked
        details: dict[str, Any] = {**asked.details(), **self._where(), **answer.details()}
        if self.kept.policy != "none" and not asked.admin:
            details["prompt_chars"] = asked.prompt_chars
        payloads: dict[str, Any] = {}
        if not asked.admin:
            kept, payloads = self.kept.of_answer(answer)
            if asked.operation == "embeddings":
                kept.pop("response_chars", None)
            details |= kept
        if self.is_sent:
            details["latency_us"] = spent // 1000
            details["attempts"] = self.attempts
            if answer.chunks and end != ends.HTTP_ERROR:
                details["chunks"] = answer.chunks
            if asked.stream and self._first_ns is not None:
                details["ttft_us"] = max(0, self._first_ns - self._began_ns) // 1000
        details["end"] = end
        if self.status is not None:
            details["status"] = self.status
        if self.digest is not None:
            details["model_digest"] = self.digest
        if self.server_version is not None:
            details["server_version"] = self.server_version
        if self.unread is not None:
            details["unread"] = self.unread
        said = _error(error, answer.error)
        if said is not None and end != ends.OK:
            details["error"] = said
        valid = is_of_format(asked, answer.text()) if end == ends.OK and not asked.admin else None
        if valid is not None:
            details["format_valid"] = valid
        self._valid = valid
        result = ends.outcome_of(end, delivered=self.delivered > 0)
        if asked.admin:
            return self._event("configuration_change", result, details), self.event_id
        event = self._event("ai_response", result, details)
        if payloads:
            event["payloads"] = payloads
        if not self.is_on_record:
            return event, self.event_id
        return event | {"parent_id": self.event_id}, CLOCK.event_id()

    def _where(self) -> dict[str, Any]:
        found: dict[str, Any] = {"capture": self.capture}
        if self.endpoint:
            found["endpoint"] = self.endpoint
        if self.client:
            found["client"] = self.client
        if not self.named:
            found["unattributed"] = True
        claimed = sorted(name for name in self.claims or () if name != "ip_address")
        if claimed:
            found["claimed"] = claimed  # by whoever made the call: nobody has checked it
        return found

    def _event(self, kind: str, outcome: str, details: dict[str, Any]) -> dict[str, Any]:
        action = f"{self.asked.operation} model" if self.asked.admin else "answer" if kind == "ai_response" else self.asked.operation
        event = {name: value for name in NAMES if (value := self.who.get(name)) is not None}
        return event | {"event_type": kind, "resource": self.asked.model or "unknown", "action": action, "outcome": outcome,
                        "details": details}  # fmt: skip


@functools.lru_cache(maxsize=256)
def clean_endpoint(url: str) -> str:
    """Scheme, host, port and path of an address: no user, no password, no query, no fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return ""
    return clean(f"{parts.scheme}://{host}{port}{parts.path}") if parts.scheme and host else ""


def _error(error: BaseException | None, said: str | None) -> dict[str, Any] | None:
    """The kind of an error and how long its text is; the text is content, and may name a secret."""
    if error is not None:
        try:
            length = len(str(error))
        except Exception:  # noqa: BLE001  # somebody's __str__
            length = 0
        return {"type": type(error).__name__, "length": length}
    return {"type": "error", "length": len(said)} if said is not None else None
