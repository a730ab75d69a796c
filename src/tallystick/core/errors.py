"""The one tree of errors.

::

    AuditError
    ├── Malformed            bytes, text or an event that is not what its format says; names the place
    │   └── EntryRefused     an event that cannot become an entry; nothing was written (also a ValueError)
    ├── VerificationError    evidence that does not hold
    │   ├── UnknownSigner    a note without a signature by any key that was given
    │   └── QuorumMissed     a checkpoint that holds and that fewer witnesses cosigned than a policy asks for
    ├── StoreError           the store could not do what was asked; nothing was acknowledged
    │   ├── CallBlocked      a call to a model that could not be recorded, with failure = "block"
    │   ├── Conflict         the event id is taken by an event with other content
    │   ├── DiskFull         no space left; the loss is counted and will be on the record
    │   ├── LogBusy          another process held the lock for the whole wait; names its pid
    │   ├── LogMissing       a log that was here is gone, or there is none and none may be made
    │   ├── ReadOnly         this user may read the log, not write it
    │   └── StateUnknown     fatal: what is stored contradicts what was signed or synced; nothing is signed any more
    ├── OutsideError         a party outside was not reached or did not do what was asked; what was to go there is still pending
    └── ConfigError          ``log.toml`` or a setting is wrong; names the file and the key

Misuse of the Python interface (a wrong type, an unknown report name) is ``TypeError`` or ``ValueError``.
"""

from __future__ import annotations

from typing import Any


class AuditError(Exception):
    """Root of everything tallystick raises on purpose.

    ``result`` carries the return value of an audited function whose recording failed, so that work done is not lost.
    """

    result: Any = None


class Malformed(AuditError):
    """Bytes or text that are not what their format says."""


class EntryRefused(Malformed, ValueError):
    """An event that cannot become an entry. ``path`` names the field, ``position`` the event within a batch."""

    def __init__(self, message: str, *, path: str = "", position: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.position = position


class VerificationError(AuditError):
    """Evidence that does not hold."""


class UnknownSigner(VerificationError):
    """A note on which none of the given keys has a signature."""


class QuorumMissed(VerificationError):
    """The log signed it, and fewer witnesses cosigned it than the policy asks for."""


class StoreError(AuditError):
    """The store could not do what was asked. Nothing was acknowledged."""


class CallBlocked(StoreError):
    """A call to a model could not be recorded, and ``failure = "block"`` says that it must be: nothing was sent, or the answer
    stands in
    ``result``."""


class Conflict(StoreError):
    """The event id is taken by an event with other content."""


class DiskFull(StoreError):
    """No space left on the device. The event was not recorded; the gap is counted and will be on the record."""


class LogBusy(StoreError):
    """Another process held the lock for the whole wait."""


class LogMissing(StoreError):
    """A log that was known here is gone, or there is none at this path and none may be made."""


class ReadOnly(StoreError):
    """This user may read the log but not write it."""


class StateUnknown(StoreError):
    """What is stored contradicts what was signed or synced. Fatal: nothing is signed any more; reading goes on."""


class OutsideError(AuditError):
    """A witness, mail server, folder or timestamp authority was not reached, or did not do what was asked. What was to go there is
    pending. Never holds a secret."""


class ConfigError(AuditError):
    """A configuration file or setting is wrong."""
