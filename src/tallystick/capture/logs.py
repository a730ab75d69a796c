"""From the logging that a program already has: a handler for ``logging`` and a processor for structlog. Neither needs a package.

Both write through the recorder of the log: each event is durable when the logging call returns, which waits for the disk, and what
happens when the log cannot be written says ``failure`` in ``log.toml``. Nothing is raised into the program but ``CallBlocked``, with
``failure = "block"``.

What is said in a message is content: the entry has its length, the text (8,000 characters, redacted) is a payload, encrypted beside
the log, where the log keeps previews. An event is, unless its ``audit`` says otherwise,

* of type ``system_error`` and outcome ``failure`` from ERROR upwards, else of type ``logging.record`` and outcome ``success``:
  whether a line of a log is an access, a change or something that a user did is known to whoever wrote it, and to nobody else;
* about the resource ``logger:`` and the logger's name, with the action ``log message``;
* by whoever the audit context says, else the service; of the moment at which the logging call was made.

Details: ``logger``, ``level``, ``where`` (module, function, line), ``message_chars``, and ``error`` (type, length) where an exception
came along. Values in ``details`` that have no place in an entry (``Decimal``, ``datetime``) become text: nobody is there to be told.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum
from typing import Any, NamedTuple, Protocol

from ..clock import CLOCK
from ..core.entry import DEPTH_MAX, INT_MAX, INT_MIN, AuditEventType
from ..core.errors import CallBlocked
from ..core.payload import Payload
from ..core.times import format_time
from .audited import ARGUMENTS_MAX, as_text, described, error_text
from .context import NAMES
from .recorder import interrupts_the_log
from .redact import preview, redact_text

EVENT_TYPE = "logging.record"
ACTION = "log message"
MESSAGE_CHARS_MAX = 8000
_NAME_CHARS_MAX = 200
_OWN = "tallystick"
_LEVELS = {"debug": 10, "info": 20, "msg": 20, "warning": 30, "warn": 30, "error": 40, "err": 40, "exception": 40, "critical": 50,
           "fatal": 50}  # fmt: skip
_logger = logging.getLogger(_OWN)


class Logger(Protocol):
    """What is needed of a logger."""

    @property
    def keeps_previews(self) -> bool:
        """Whether texts are kept as payloads."""

    @property
    def recorder(self) -> Any:
        """What is recorded through."""


class AuditHandler(logging.Handler):
    """Records what is logged with ``extra={"audit": …}``: True, or a dict with keywords of ``AuditLogger.log``.

    ``logger.info("paid", extra={"audit": {"event_type": "data_modification", "actor": "ana", "resource": "erp:4711"}})``

    With ``everything=True`` whatever else reaches it is recorded too; ``level`` counts for both. Records of the logger ``tallystick``
    are not recorded, nor those that come while this thread is in the middle of writing the log, unless they carry ``audit``. Behind
    a ``QueueHandler`` the audit context of the caller is gone: name the actor in ``audit``.
    """

    def __init__(self, log: Logger, level: int | str = logging.NOTSET, *, everything: bool = False) -> None:
        super().__init__(level)
        self.everything = everything
        self._log = log

    def handle(self, record: logging.LogRecord) -> Any:
        """As every handler, but without its lock: events of many threads are written together, and a thread that holds a lock of the
        log while it says so in ``tallystick`` must not wait here for one that waits for the log."""
        if record.name == _OWN or record.name.startswith(_OWN + "."):
            return False
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Record it, if it is to be. Raises ``CallBlocked`` and nothing else; what goes wrong is said as by every handler."""
        said = getattr(record, "audit", None)
        asked = said is True or isinstance(said, Mapping)
        if not asked and not self.everything:
            return
        try:
            _put(self._log, _event(self._log, said if isinstance(said, Mapping) else {}, _of(record)), asked=asked)
        except CallBlocked:
            raise
        except Exception:  # noqa: BLE001  # whatever a record holds, the program goes on
            self.handleError(record)


def audit_processor(log: Logger) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    """A processor for structlog: an event with ``audit=True``, or a dict with keywords of ``AuditLogger.log``, is recorded; every
    event is passed on as it is, without the key ``audit``.

    ``structlog.configure(processors=[audit_processor(log), …])``, before what renders. Other values of the event are content: their
    names, types and lengths are ``details.fields``, a preview of them is a payload. What structlog then hands to ``logging`` is
    recorded once more if there is an ``AuditHandler`` for everything.
    """

    def process(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        said = event.pop("audit", None)
        if said is True or isinstance(said, Mapping):
            try:
                _put(log, _event(log, said if isinstance(said, Mapping) else {}, _of_dict(logger, method, event)), asked=True)
            except CallBlocked:
                raise
            except Exception:  # whatever an event holds, the program goes on
                _logger.exception("an event of structlog could not be recorded")
        return event

    return process


class _Said(NamedTuple):
    """One event of a logging library."""

    logger: str
    level: int
    where: str
    message: str
    error: BaseException | None
    moment_us: int
    fields: Mapping[str, Any]


def _put(log: Logger, event: dict[str, Any], *, asked: bool) -> None:
    recorder = log.recorder
    given = event.get("event_id")
    event_id = given if isinstance(given, str) and given else CLOCK.event_id()
    if not interrupts_the_log():
        recorder.expect_late()
        recorder.put(event, event_id)
    elif asked:  # of a signal handler or a finaliser in the middle of the log; the log itself asks for nothing
        recorder.later(lambda: recorder.put(event, event_id))


def _of(record: logging.LogRecord) -> _Said:
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001  # arguments that do not fit, or somebody's __str__
        message = _text(record.msg)
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    where = f"{record.module}.{record.funcName}:{record.lineno}"
    return _Said(record.name, record.levelno, where, message, error, int(record.created * 1_000_000), {})


def _of_dict(logger: Any, method: str, event: Mapping[str, Any]) -> _Said:
    name = getattr(logger, "name", None) or event.get("logger")
    error = event.get("exc_info")
    if isinstance(error, tuple) and len(error) == 3:
        error = error[1]
    elif error is True or (error is None and method == "exception"):
        error = sys.exc_info()[1]
    site = [str(event[key]) for key in ("module", "func_name") if key in event]  # of structlog's CallsiteParameterAdder
    where = ".".join(site) + (f":{event['lineno']}" if "lineno" in event else "")
    fields = {str(key): value for key, value in event.items() if key not in ("event", "exc_info")}
    error = error if isinstance(error, BaseException) else None
    name = name if isinstance(name, str) else "structlog"
    level = _LEVELS.get(method, logging.INFO)
    return _Said(name, level, where, _text(event.get("event", "")), error, CLOCK.wall_us(), fields)


def _event(log: Logger, given: Mapping[str, Any], said: _Said) -> dict[str, Any]:
    """The keywords of ``log``."""
    name = as_text(said.logger)[:_NAME_CHARS_MAX] or "root"
    who, named = log.recorder.who({key: given[key] for key in NAMES if given.get(key) is not None})
    is_error = said.level >= logging.ERROR
    details: dict[str, Any] = {"logger": name, "level": logging.getLevelName(said.level), "message_chars": len(said.message)}
    if said.where:
        details["where"] = as_text(said.where)[:_NAME_CHARS_MAX]
    if said.error is not None:
        details["error"] = {"type": type(said.error).__name__, "length": len(error_text(said.error))}
    if said.fields:
        details["fields"] = [described(key, value) for key, value in list(said.fields.items())[:ARGUMENTS_MAX]]
    if not named:
        details["unattributed"] = True
    payloads: dict[str, Payload] = {}
    if log.keeps_previews:
        text = redact_text(said.message[: 2 * MESSAGE_CHARS_MAX])
        if len(text) > MESSAGE_CHARS_MAX or len(said.message) > 2 * MESSAGE_CHARS_MAX:
            text = text[:MESSAGE_CHARS_MAX]
            details["cut_short"] = ["message"]
        payloads["message"] = _payload(text)
        if said.fields:
            payloads["fields"] = _payload(preview(dict(said.fields)))
    own, theirs = given.get("details"), given.get("payloads")
    event = {key: value for key, value in who.items() if key in NAMES and value is not None}
    event |= {
        "event_type": AuditEventType.SYSTEM_ERROR.value if is_error else EVENT_TYPE, "resource": f"logger:{name}", "action": ACTION,
        "outcome": "failure" if is_error else "success", "timestamp": format_time(said.moment_us),
    }  # fmt: skip
    event |= {str(key): value if key == "timestamp" else _spelled(value) for key, value in given.items() if value is not None}
    event["details"] = details | _spelled(own) if isinstance(own, Mapping) else details if own is None else _spelled(own)
    if theirs is not None:
        payloads |= {str(k): _payload(v) for k, v in (theirs if isinstance(theirs, Mapping) else {"payload": theirs}).items()}
    event["payloads"] = payloads
    return event


def _payload(value: Any) -> Payload:
    if isinstance(value, Payload):
        return value
    if isinstance(value, bytes | bytearray):
        return Payload(bytes(value), "application/octet-stream")
    return Payload(_text(value).encode("utf-8", "replace"))


def _spelled(value: Any, depth: int = 1) -> Any:
    """A value as an entry can have it, and as the spool can keep it until then."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return as_text(str.__str__(value))
    if isinstance(value, int):
        return int(value) if INT_MIN <= value <= INT_MAX else _text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) and abs(value) < INT_MAX else _text(value)
    if depth < DEPTH_MAX:
        if isinstance(value, Mapping):
            return {_text(key): _spelled(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_spelled(item, depth + 1) for item in value]
    return _text(value)


def _text(value: Any) -> str:
    try:
        return as_text(value if isinstance(value, str) else str(value))
    except Exception as e:  # noqa: BLE001  # somebody's __str__
        return f"<{type(value).__name__}: its text failed with {type(e).__name__}>"
