"""What a witness cosigned: checked, decided, kept, and only then answered (C2SP tlog-witness v1.0.0, "add-checkpoint").

``Witness.authenticate`` is everything that can be said of a request without knowing what was cosigned before. ``Witness.settle``
decides many authentic requests in their order, in one transaction of SQLite (WAL, ``synchronous=FULL``): one sync for all of
them, after which they are answered. Check and store are one step: a lock in this process, ``flock`` against a second one.

A witness that forgot what it cosigned would sign a second history. So it starts only on a ``state.db`` that has its keys, whose
newest cosignatures verify, and that is at least as far as ``served`` says, a file beside it that is written after every commit
and synced about once a second: a database restored from before the last second of the last run is noticed, one restored together
with ``served`` is not.

Kept for each log: the last ``KEPT`` checkpoints that were cosigned, and as evidence every validly signed one that contradicts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..clock import CLOCK, Clock
from ..core import cosignature
from ..core.checkpoint import Checkpoint
from ..core.cosignature import CosignerKey
from ..core.errors import AuditError, Malformed, StateUnknown, StoreError
from ..core.note import COSIGNATURE_ML_DSA_44, Signature, VerifierKey, split
from ..core.tlog_witness import TEXT_TYPE, Known, Refused, Request, authenticate, decide, parse_request
from ..disk import DISK, Disk, close_quietly

KEPT = 4096  # cosigned checkpoints of one log: against them another root for an older size is recognised
EVIDENCE_MAX = 1000  # contradictions of one log
_PRUNE_EVERY = 512
_SERVED_BYTES = 96

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE cosigned (origin TEXT, size INTEGER, root BLOB NOT NULL, time_s INTEGER NOT NULL, note BLOB NOT NULL,
                       PRIMARY KEY (origin, size)) WITHOUT ROWID;
CREATE TABLE evidence (origin TEXT, size INTEGER, root BLOB, kind TEXT NOT NULL, time_s INTEGER NOT NULL, request BLOB NOT NULL,
                       known BLOB NOT NULL, PRIMARY KEY (origin, size, root)) WITHOUT ROWID;
"""


class Answer(NamedTuple):
    """What goes back over HTTP. ``retry_s``: when to ask again, 0 for not at all."""

    status: int
    body: bytes
    content_type: str = TEXT_TYPE
    retry_s: int = 0


class Authentic(NamedTuple):
    """A request that a known log signed."""

    request: Request
    signatures: tuple[Signature, ...]


class Cosigned(NamedTuple):
    """The newest checkpoint of a log that was cosigned. ``lines``: the cosignatures as they were answered; ``note``: the checkpoint
    with the log's signatures and these."""

    size: int
    root: bytes
    time_s: int
    lines: bytes
    note: bytes


class Contradiction(NamedTuple):
    """``kind`` is ``split`` (another root for a size that was cosigned: ``request`` and ``known`` prove two histories) or
    ``unproven`` (signed by the log, but shown without a proof that holds)."""

    origin: str
    size: int
    root: bytes
    kind: str
    time_s: int
    request: bytes
    known: bytes


def create_database(folder: Path, vkeys: Sequence[VerifierKey], disk: Disk = DISK) -> None:
    """The empty database of a new witness, durable on return."""
    path = folder / "state.db"
    os.close(disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        _set_up(db)
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("vkeys", _joined(vkeys)), ("sequence", 0), ("format", 1)])
        db.execute("COMMIT")
    disk.write_file(folder / "served", _served(vkeys, 0))
    disk.sync_folder(folder)


def _joined(vkeys: Sequence[VerifierKey]) -> str:
    return "\n".join(sorted(k.format() for k in vkeys))


def _served(vkeys: Sequence[VerifierKey], sequence: int) -> bytes:
    # always the same length, written in place: what is torn does not read as a smaller number
    name = hashlib.sha256(_joined(vkeys).encode()).hexdigest()
    return f"{name} {sequence:020d}".encode().ljust(_SERVED_BYTES - 1) + b"\n"


def _set_up(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")


class Witness:
    """A witness that serves. One at a time for a folder; safe for threads. ``close`` it."""

    def __init__(self, folder: Path, keys: Sequence[CosignerKey], clock: Clock = CLOCK, disk: Disk = DISK) -> None:
        """``StoreError``: another process serves it. ``StateUnknown``: its database is missing, of another witness, altered or older
        than what it has answered."""
        self.folder, self.keys, self._clock, self._disk = folder, tuple(keys), clock, disk
        self.vkeys = tuple(key.verifier for key in keys)
        self.broken = ""
        self._dirty = False  # ``served`` was written and not synced
        self._hashes: dict[str, str] = {}
        self._unproven: set[tuple[str, int, bytes]] = set()  # evidence that a proof would settle
        self._busy = threading.Lock()
        self._lock: int | None = None
        self._served_fd: int | None = None
        self._db: sqlite3.Connection | None = None
        try:
            self._lock = self._take_lock()
            self._db = self._open_database()
            self._sequence, self._last = self._load(self._db)
            self._served_fd = disk.open(folder / "served", os.O_RDWR)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- starting ------------------------------------------------------------------------------------------------------

    def _take_lock(self) -> int:
        fd = self._disk.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StoreError(f"{self.folder}: this witness is served by another process already") from None
        return fd

    def _open_database(self) -> sqlite3.Connection:
        path = self.folder / "state.db"
        if not path.is_file():
            raise StateUnknown(f"{path} is not there: {_GO_ON}")
        try:
            db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False)
            _set_up(db)
        except sqlite3.Error as e:
            raise StateUnknown(f"{path} cannot be used ({e}): {_GO_ON}") from None
        return db

    def _load(self, db: sqlite3.Connection) -> tuple[int, dict[str, Cosigned]]:
        path = self.folder / "state.db"
        try:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            rows = db.execute("SELECT origin, max(size), root, time_s, note FROM cosigned GROUP BY origin").fetchall()
            unproven = db.execute("SELECT origin, size, root FROM evidence WHERE kind = 'unproven'").fetchall()
        except sqlite3.Error as e:
            raise StateUnknown(f"{path} is empty or damaged ({e}): {_GO_ON}") from None
        self._unproven = set(unproven)
        if meta.get("vkeys") != _joined(self.vkeys):
            raise StateUnknown(f"{path} belongs to another witness (its keys are not those in witness.key): {_GO_ON}")
        sequence = meta.get("sequence")
        least = self._served_sequence()
        if type(sequence) is not int or sequence < least:
            steps = f"{sequence} of at least {least} steps"
            raise StateUnknown(f"{path} is older than what this witness has answered ({steps}): {_GO_ON}")
        last = {}
        for origin, size, root, time_s, note in rows:
            last[origin] = self._opened(origin, size, root, time_s, note)
        return sequence, last

    def _served_sequence(self) -> int:
        try:
            text = (self.folder / "served").read_bytes()
            sequence = int(text.split()[1])
        except (FileNotFoundError, ValueError, IndexError):
            raise StateUnknown(f"{self.folder / 'served'} is missing or unreadable: {_GO_ON}") from None
        if text != _served(self.vkeys, sequence):
            raise StateUnknown(f"{self.folder / 'served'} belongs to another witness or is damaged: {_GO_ON}")
        return sequence

    def _opened(self, origin: str, size: int, root: bytes, time_s: int, note: bytes) -> Cosigned:
        """A row whose note was cosigned here, and which says the same as that: one that somebody wrote into the database does not
        start a witness. A time of 0 was forgotten."""
        mine = {(k.name, k.key_id) for k in self.vkeys}
        path = self.folder / "state.db"
        try:
            found = cosignature.cosignatures(note, self.vkeys)
            said = Checkpoint.parse(split(note)[0])
            lines = [line for line in note.decode().rpartition("\n\n")[2].splitlines() if _whose(line) in mine]
        except AuditError as e:
            raise StateUnknown(f"{path}: what it holds of {origin} was not signed here ({e}): {_GO_ON}") from None
        if not found:
            raise StateUnknown(f"{path}: what it holds of {origin} was not signed here: {_GO_ON}")
        if (said.origin, said.size, said.root) != (origin, size, root) or time_s not in (0, found[0].time_s):
            raise StateUnknown(f"{path}: what it says of {origin} is not what was signed here: {_GO_ON}")
        return Cosigned(size, root, time_s, "".join(line + "\n" for line in lines).encode(), note)

    # -- answering -----------------------------------------------------------------------------------------------------

    def authenticate(self, body: bytes, logs: dict[str, tuple[VerifierKey, ...]]) -> Authentic | Answer:
        """A request as far as it can be judged alone: what a known log signed, or the answer (400, 403, 404)."""
        try:
            request = parse_request(body)
            return Authentic(request, authenticate(request, logs.get(request.origin, ())))
        except Malformed as e:
            return Answer(400, f"{e}\n".encode())
        except Refused as e:
            return Answer(e.status, e.body, e.content_type)

    def settle(self, asked: Sequence[Authentic]) -> list[Answer]:
        """Decide, keep, answer. One transaction and one sync for all; none where nothing is to be kept. 503 for all if keeping
        failed: nothing of it was answered, and nothing will be until a new start (a failed sync is never retried)."""
        with self._busy:
            if self.broken or self._db is None:
                return [_failed(self.broken)] * len(asked)
            batch = _Batch(self, self._db)
            try:
                answers = [batch.decide(one) for one in asked]
                if batch.rows or batch.evidence:
                    self._commit(self._db, batch)
                    self._unproven.update((e[0], e[1], e[2]) for e in batch.evidence if e[3] == "unproven")
            except (sqlite3.Error, AuditError, OSError) as e:
                self.broken = str(e) or type(e).__name__
                return [_failed(self.broken)] * len(asked)
            self._last.update(batch.fresh)
            return answers

    def _commit(self, db: sqlite3.Connection, batch: _Batch) -> None:
        sequence = self._sequence + 1
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT OR REPLACE INTO cosigned VALUES (?, ?, ?, ?, ?)", batch.rows)
        settled = [(row[0], row[1], row[2]) for row in batch.rows if (row[0], row[1], row[2]) in self._unproven]
        if settled:  # it was shown to extend what was cosigned after all
            db.executemany("DELETE FROM evidence WHERE origin = ? AND size = ? AND root = ? AND kind = 'unproven'", settled)
        if batch.evidence:
            db.executemany("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?)", batch.evidence)
        db.execute("UPDATE meta SET value = ? WHERE key = 'sequence'", (sequence,))
        if sequence % _PRUNE_EVERY == 0:
            self._prune(db)
        db.execute("COMMIT")
        # if we die here: kept and not answered; the log asks again with the size that 409 tells it
        self._sequence, self._dirty = sequence, True
        if self._served_fd is not None:
            with contextlib.suppress(OSError):  # a full disk: ``served`` lags, which it may
                self._disk.write_at(self._served_fd, _served(self.vkeys, sequence), 0)

    def _prune(self, db: sqlite3.Connection) -> None:
        for (origin,) in db.execute("SELECT origin FROM cosigned GROUP BY origin HAVING count(*) > ?", (2 * KEPT,)).fetchall():
            db.execute("DELETE FROM cosigned WHERE origin = ?1 AND size < (SELECT size FROM cosigned WHERE origin = ?1 "
                       "ORDER BY size DESC LIMIT 1 OFFSET ?2)", (origin, KEPT - 1))  # fmt: skip

    def make_durable(self) -> None:
        """Sync ``served``; about once a second, off the answered path."""
        with self._busy:
            if self._dirty and self._served_fd is not None:
                self._dirty = False
                with contextlib.suppress(OSError):
                    self._disk.sync_data(self._served_fd)

    def forget_time(self, origin: str) -> None:
        """Cosign ``origin`` again although the clock is behind its last cosignature: for a clock that ran ahead then.
        ``KeyError`` if it was never cosigned."""
        with self._busy:
            last = self._last[origin]
            if self._db is not None:
                self._db.execute("UPDATE cosigned SET time_s = 0 WHERE origin = ? AND size = ?", (origin, last.size))
            self._last[origin] = last._replace(time_s=0)

    def now_s(self) -> int:
        """The wall clock, whole seconds."""
        return self._clock.wall_us() // 1_000_000

    def last(self, origin: str) -> Cosigned | None:
        """The newest cosigned checkpoint of a log, as far as it is kept durably."""
        return self._last.get(origin)

    def by_hash(self, digest: str) -> Cosigned | None:
        """The same by the SHA-256 of the origin in hex, as the monitoring interface asks for it."""
        if len(self._hashes) != len(self._last):
            self._hashes = {hashlib.sha256(origin.encode()).hexdigest(): origin for origin in list(self._last)}
        return self._last.get(self._hashes.get(digest, ""))

    def close(self) -> None:
        """Release everything; nothing is lost by dying instead."""
        if self._db is not None:
            self.make_durable()
            self._db.close()
            self._db = None
        close_quietly(self._served_fd)
        close_quietly(self._lock)
        self._served_fd = self._lock = None


_GO_ON = ("a witness that forgot what it cosigned must not go on under the same key. Restore the newest state.db; if there is none, "
          "make a new witness (tally witness init NEWDIR --name …) and give its vkey to the owners of the logs")  # fmt: skip


def _whose(line: str) -> tuple[str, int]:
    signature = Signature.parse(line)
    return signature.name, signature.key_id


def _failed(reason: str) -> Answer:
    return Answer(503, f"the witness cannot keep what it would sign ({reason or 'it is closed'}); nothing was cosigned\n".encode())


class _Batch:
    """Requests that are decided together. What they change is seen by the later ones of them at once, by all others after the
    commit."""

    def __init__(self, witness: Witness, db: sqlite3.Connection) -> None:
        self._witness, self._db = witness, db
        self._now_s = witness.now_s()
        self.fresh: dict[str, Cosigned] = {}
        self.rows: list[tuple[str, int, bytes, int, bytes]] = []
        self.evidence: list[tuple[str, int, bytes, str, int, bytes, bytes]] = []

    def decide(self, asked: Authentic) -> Answer:
        request = asked.request
        last = self.fresh.get(request.origin) or self._witness.last(request.origin)
        try:
            checkpoint = decide(request, None if last is None else Known(last.size, last.root))
        except Refused as e:
            self._keep(request, e, last)
            return Answer(e.status, e.body, e.content_type)
        if last is not None and self._now_s <= last.time_s:
            behind = last.time_s - self._now_s
            if behind:
                # the time of a cosignature is when the tree was seen: not a time that the clock does not show, nor one before the
                # last
                return Answer(503, f"the witness's clock is {behind} s behind its last cosignature of this log\n".encode(), TEXT_TYPE,
                              min(behind, 3600))  # fmt: skip
            if last.size == checkpoint.size and last.note.startswith(f"{request.text}\n".encode()):
                return Answer(200, last.lines)  # asked again within the second: the same answer, nothing new to keep
        lines = "".join(
            key.cosign(checkpoint, self._now_s).format() + "\n" for key in self._witness.keys
            if not checkpoint.extensions or key.verifier.algorithm != COSIGNATURE_ML_DSA_44
        )  # fmt: skip
        by_log = "".join(s.format() + "\n" for s in asked.signatures)
        note = f"{request.text}\n{by_log}{lines}".encode()
        cosigned = Cosigned(checkpoint.size, checkpoint.root, self._now_s, lines.encode(), note)
        self.fresh[request.origin] = cosigned
        self.rows.append((request.origin, cosigned.size, cosigned.root, cosigned.time_s, note))
        return Answer(200, cosigned.lines)

    def _keep(self, request: Request, refused: Refused, last: Cosigned | None) -> None:
        """A refused checkpoint that contradicts what was cosigned, with the one that it contradicts."""
        if request.checkpoint is None or last is None:
            return
        kind, known = refused.contradicts, last.note
        if not kind and request.size < last.size:
            asked = request.origin, request.size
            row = self._db.execute("SELECT root, note FROM cosigned WHERE origin = ? AND size = ?", asked).fetchone()
            if row is not None and row[0] != request.checkpoint.root:
                kind, known = "split", row[1]
        if not kind:
            return
        (count,) = self._db.execute("SELECT count(*) FROM evidence WHERE origin = ?", (request.origin,)).fetchone()
        if count < EVIDENCE_MAX:
            self.evidence.append((request.origin, request.size, request.checkpoint.root, kind, self._now_s, request.note, known))


def contradictions(folder: Path) -> list[Contradiction]:
    """The evidence that a witness has kept, in the order of origins and sizes; also while it serves."""
    with _reading(folder) as db:
        rows = db.execute("SELECT origin, size, root, kind, time_s, request, known FROM evidence ORDER BY origin, size").fetchall()
    return [Contradiction(*row) for row in rows]


class Seen(NamedTuple):
    """How far a log was cosigned. ``kept``: how many of its checkpoints are kept."""

    size: int
    time_s: int
    kept: int


def cosigned_logs(folder: Path) -> dict[str, Seen]:
    """Origin → how far; also while the witness serves."""
    with _reading(folder) as db:
        rows = db.execute("SELECT origin, max(size), time_s, count(*) FROM cosigned GROUP BY origin ORDER BY origin").fetchall()
    return {origin: Seen(size, time_s, kept) for origin, size, time_s, kept in rows}


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / "state.db"
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be read: {e}") from None
    try:
        yield db
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be read: {e}") from None
    finally:
        db.close()
