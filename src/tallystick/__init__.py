"""tallystick: the tamper-evident audit log for automation that runs on local AI.

::

    from tallystick import AuditLogger, AuditEventType

    log = AuditLogger("audit_log")
    log.log(AuditEventType.DATA_ACCESS, "ana", "user", "crm", "read customer", details={"id": 42})
    assert log.verify_integrity()["verified"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture.context import audit_context
    from .capture.outcome import event_id
    from .core.entry import AuditEntry, AuditEventType
    from .core.errors import AuditError
    from .core.payload import Payload
    from .logger import AuditLogger, instrument, uninstrument
    from .reports.compliance import ComplianceReporter

    audited: Any

__all__ = ["AuditEntry", "AuditError", "AuditEventType", "AuditLogger", "ComplianceReporter", "Payload", "audit_context",
           "audited", "event_id", "instrument", "uninstrument"]  # fmt: skip
__version__ = "0.1.0"

_HOMES = {
    "AuditEntry": "core.entry", "AuditError": "core.errors", "AuditEventType": "core.entry", "AuditLogger": "logger",
    "ComplianceReporter": "reports.compliance", "Payload": "core.payload", "audit_context": "capture.context",
    "audited": "logger", "event_id": "capture.outcome", "instrument": "logger", "uninstrument": "logger",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Names are imported when first used, so that ``import tallystick`` and ``tally --help`` stay quick."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tallystick' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
