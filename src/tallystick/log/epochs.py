"""The running epoch of a writer: whose key signs, when it is due, and how it ends (STORAGE rule 5; decision 27).

An epoch ends in this order, under the lock; what the next writer does if we die after each step stands behind it:

1. the next private key is written, file and folder synced
   → no entry names it: it is destroyed
2. ``log.epoch_close`` is appended and the head signed with the old key, as for any group
   → lines without a signed head: recovered, without effect, and it begins anew; with one: the close is committed, 3 follows
3. the closing checkpoint, with the log key's line where this user may read that key, is kept in ``checkpoints/``, file and folder
   synced; from here on it covers those lines even if a power loss takes head and mark
   → 4 follows
4. the old private key is overwritten, synced, unlinked, the folder synced
   → done again

Nothing is appended between 2 and 3: the next head would replace the last one that the old key signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core.checkpoint import Checkpoint, HeadSigner, open_checkpoint
from ..core.epoch import Epoch, History
from ..core.errors import AuditError, StateUnknown, StoreError, VerificationError
from ..core.note import VerifierKey, add_signature
from ..core.tiles import root_at
from ..core.times import DAY_US, parse_time
from ..disk import Disk
from ..keys import Custody, KeyFolder, SignsHeads
from ..outside import HandedOut
from ..store import Store


class Rhythm(NamedTuple):
    """When an epoch ends by itself: at the first append of another UTC day, and before it would have more than ``entries`` entries
    (0: no such limit)."""

    daily: bool = True
    entries: int = 0


DAILY = Rhythm()


class Epochs:
    """The epochs of one log as one writer sees them; every method but ``due`` is called under the lock."""

    def __init__(self, store: Store, keys: KeyFolder, custody: Custody, origin: str, rhythm: Rhythm, disk: Disk) -> None:
        self._store, self._keys, self._custody, self._origin, self._rhythm = store, keys, custody, origin, rhythm
        self._handed = HandedOut(store.folder, disk)
        self.signer: SignsHeads | None = None
        self.current: Epoch | None = None
        self._day = -1  # UTC, counted from 1970, on which it was opened

    def take_up(self, history: History) -> None:
        """Sign with the key of the newest epoch from now on; a key of an epoch that ended meanwhile is dropped.

        ``StateUnknown`` where that key is not here, or is not the one that the log names."""
        newest = history.epochs[-1]
        if self.current is not None and self.current.number == newest.number and self.signer is not None:
            return
        self.signer, self.current = None, None
        try:
            signer = self._custody.signer(newest.number)
        except FileNotFoundError as e:
            raise StateUnknown(
                f"the key of the running epoch {newest.number} is not in {self._keys.path}: nothing can be signed. Restore it; if "
                "it is lost for good, tally key recover LOG --reason … puts that on record under the log key and goes on with a new "
                "one"
            ) from e
        if signer.verifier != newest.key:
            raise StateUnknown(f"{self._keys.path} does not hold the key that this log names for its epoch {newest.number}: the keys "
                               "of another log; nothing is signed")  # fmt: skip
        self.signer, self.current = signer, newest
        self._day = parse_time(newest.opened) // DAY_US if newest.opened else -1

    def drop(self) -> None:
        """Forget the key."""
        self.signer, self.current = None, None

    def is_another(self, epoch: Epoch) -> bool:
        """True where the key of ``epoch`` that is here is not the one that the log names. ``FileNotFoundError`` if none is; one that
        cannot be read is no sign of another log."""
        try:
            return self._custody.signer(epoch.number).verifier != epoch.key
        except StoreError:
            return False

    def agrees(self, history: History) -> bool:
        """True where the one key that is here has the number of the newest epoch, as it is when nobody died."""
        try:
            return self._custody.numbers() == [history.epochs[-1].number]
        except OSError:
            return True  # what hinders it is said by whoever needs the key

    def stand_in(self, history: History, vkey: VerifierKey) -> Epoch:
        """The log key takes the place of a lost epoch key, for one head. ``StoreError`` where that key is not lost, ``StateUnknown``
        where the log key is that of another log."""
        newest = history.epochs[-1]
        there = False
        with contextlib.suppress(FileNotFoundError, StoreError):
            there = self._custody.signer(newest.number).verifier == newest.key
        if there:
            raise StoreError(f"the key of the running epoch {newest.number} is there; a new one is made by tally key rotate")
        log_key = self._keys.log_key()
        if log_key.verifier != vkey:
            raise StateUnknown(f"{self._keys.path} has the log key of another log; nothing is signed")
        self.signer, self.current = HeadSigner(self._origin, log_key), newest
        return newest._replace(closer=vkey)

    def due(self, size: int, now_us: int) -> str | None:
        """Why the running epoch is to end before the next entry at index ``size`` at this time; None if it is not. A few comparisons:
        it is asked before every group."""
        epoch = self.current
        if epoch is None:
            return None
        if self._rhythm.daily and now_us // DAY_US != self._day:
            return "day"
        if self._rhythm.entries and size - epoch.after >= self._rhythm.entries:
            return "entries"
        return None

    def prepare(self) -> tuple[Epoch, str]:
        """Step 1: the running epoch, and the next key's public part."""
        assert self.current is not None
        return self.current, self._custody.prepare(self.current.number + 1, self._origin).format()

    def close_details(self, epoch: Epoch, next_key: str, index: int, closed: str, reason: str) -> dict[str, Any]:
        """What the entry says that ends ``epoch`` at ``index``: first and last index, times, reason, the next key."""
        return {"epoch": epoch.number, "first": epoch.after, "last": index, "opened": epoch.opened, "closed": closed,
                "reason": reason, "next_key": next_key}  # fmt: skip

    def keep(self, epoch: Epoch, size: int, note: bytes) -> bytes:
        """Step 3; returns the note that was kept. ``OSError`` if it could not be."""
        with contextlib.suppress(PermissionError, FileNotFoundError):
            log_key = self._keys.log_key()
            if log_key.verifier != epoch.closer:
                note = add_signature(note, log_key)
        self._handed.put(size, note)
        return note

    def destroy(self, epoch: Epoch) -> None:
        """Step 4. What cannot be destroyed now is tried again by whoever opens the log next."""
        with contextlib.suppress(OSError):
            self._custody.destroy(epoch.number)

    def finish(self, history: History, size: int) -> None:
        """Complete what a writer left that died: the last close's checkpoint, keys of closed epochs, keys that no entry names.
        ``size``: the signed size."""
        newest = history.epochs[-1]
        try:
            numbers = self._custody.numbers()
        except OSError:
            return
        if len(history.epochs) > 1:
            self._keep_last(history.epochs[-2], size, numbers)
        with contextlib.suppress(OSError):
            for number in numbers:
                closed = history.epochs[number] if number < newest.number else None
                if number != newest.number and (closed is None or self._is_kept(closed)):
                    self._custody.destroy(number)
            self._keys.sweep()

    def _keep_last(self, epoch: Epoch, size: int, numbers: list[int]) -> None:
        """Step 3 again, as long as nothing was appended after the close or the old key is still there: the same statement by the same
        key. What is there may never have been synced by who died: it is, before the key goes."""
        assert epoch.until is not None
        if epoch.until != size and epoch.number not in numbers:
            return
        if self._is_kept(epoch):
            self._handed.make_durable(epoch.until)
            return
        note = self._store.head()
        if note is None or not self._closes(note, epoch):
            try:  # a power loss took the head and left the mark
                signer = self._signer_of(epoch)
            except (FileNotFoundError, PermissionError):
                return  # verification will say that this seal is missing
            note = signer.sign(epoch.until, root_at(self._store.hashes, epoch.until))
        self.keep(epoch, epoch.until, note)

    def _signer_of(self, epoch: Epoch) -> SignsHeads:
        if epoch.lost:
            return HeadSigner(self._origin, self._keys.log_key())
        return self._custody.signer(epoch.number)

    def _is_kept(self, epoch: Epoch) -> bool:
        assert epoch.until is not None
        try:
            note = self._handed.signed(epoch.until)
        except AuditError:
            return False
        return note is not None and self._closes(note, epoch)

    def _closes(self, note: bytes, epoch: Epoch) -> bool:
        try:
            return open_checkpoint(note, [epoch.closer], origin=self._origin).size == epoch.until
        except AuditError:
            return False

    def newest_kept(self, above: int, key_at: Callable[[int], VerifierKey]) -> Checkpoint | None:
        """The newest checkpoint in ``checkpoints/`` larger than ``above`` that holds under the key of its size: it was synced, so it
        covers lines although a power loss took head and mark. None if there is none; one that does not hold says nothing here,
        verification names it."""
        for size in reversed(self._handed.sizes()):
            if size <= above:
                break
            with contextlib.suppress(AuditError):
                note = self._handed.signed(size)
                if note is not None:
                    found = open_checkpoint(note, [key_at(size)], origin=self._origin)
                    if found.size != size:
                        raise VerificationError("a checkpoint under the name of another size")
                    return found
        return None
