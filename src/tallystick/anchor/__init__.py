"""Anchors: where a checkpoint goes that is no witness: a mailbox, a folder elsewhere, a timestamp authority. One file per kind.

Nothing is contacted unless a ``[[anchor]]`` table of ``log.toml`` names it. An anchor that fails raises and leaves the checkpoint
pending: pending is not done. When to hand over, and what is remembered of it (``outside.Parties``), is the business of whoever calls.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Handed(NamedTuple):
    """What became of a checkpoint that was handed over. ``word``: ``sent`` (somebody took it in who may still lose it), ``kept`` (it
    was read back from where it lies) or ``confirmed`` (the answer was verified). ``local``: it was seen to lie on the device of the
    log, so that it is not independent of it."""

    word: str
    local: bool = False


class Anchor(Protocol):
    """One configured anchor. ``name`` as in ``log.toml``; ``target`` says in one line where it is, without secrets."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def target(self) -> str: ...

    def hand_over(self, size: int, note: bytes) -> Handed:
        """Hand over the checkpoint of ``size``, whose ``note`` the caller has put into ``checkpoints/``. Takes a minute at most.

        ``OutsideError`` where it was not done, ``ConfigError`` where it cannot be with what ``log.toml`` says, ``VerificationError``
        where what came back contradicts this log. Handing over the same one again does no harm.
        """
        ...
