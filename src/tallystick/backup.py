"""Backups: a consistent, verified copy of a log while it is written to (STORAGE rule 19), and a copy of everything as evidence.

The copy of a log is a log. ``checkpoint`` is read first and decides how far lines, tree and the rest are copied; it is written last:

1. payloads, settings, key lines, lines, tree      → synced; until 3 a new copy has a hidden name, an older one is whole as it was
2. the new lines are hashed as they lie in the copy → they must give the signed root, else what was added is cut off again
3. ``checkpoint``                                    → the copy is the newer one
4. segments and payload files that left the log are removed from the copy too
5. everything is read again and verified             → a new copy gets its name

If we die anywhere the next call goes on from what is there. Private keys and keys of payloads stay behind unless asked for, and
what was last signed (``mark``) always does: a log that is put back from a backup must not go on as if nothing had happened
(rule 16), it is for ``tally resume``. ``index.db`` is derived and not copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from . import config as cfg
from .clock import CLOCK, host_name, system_user
from .core.checkpoint import Checkpoint
from .core.errors import AuditError, DiskFull, Malformed, ReadOnly, StoreError, VerificationError
from .core.genesis import Genesis
from .core.merkle import HASH_BYTES, leaf_hashes
from .core.tiles import frontier_at, root_at
from .core.times import format_time
from .disk import DISK, Disk, file_mode, folder_mode, is_full
from .family import older_folders
from .log.view import Head, LogView
from .memory import Memory
from .opening import is_log, read_genesis
from .store.segments import SegmentStore
from .vault import end_of_frames

Progress = Callable[[str, int], None]
CHUNK = 1 << 20
TRIES = 20  # so often a segment may leave for the archive while we look
SMALL_BYTES_MAX = 64 << 20
_SMALL = ("log.toml", "log.vkey", "predecessor", "policy", "keylines.jsonl")
_HANDED_OUT = re.compile(r"([0-9]{20})(?:\..+)?", re.ASCII)
_KEY_FILE = re.compile(r"log\.key|epoch-[0-9]+\.key|payload-[0-9]{4}\.slots", re.ASCII)
_LEVEL = re.compile(r"[0-9]|1[0-9]", re.ASCII)


class Copied(NamedTuple):
    """What one backup did: entries in the copy, those that it had before, bytes written, whether keys came with it."""

    path: str
    origin: str
    entries: int
    had: int
    bytes: int
    keys: str | None
    left_out: tuple[str, ...]


def back_up(
    log: Path, dest: Path, *, memory: Memory, with_keys: bool = False, progress: Progress | None = None, disk: Disk = DISK
) -> list[Copied]:  # fmt: skip
    """Copy the log at ``log``, and its older parts, to ``dest`` (older parts beside it, under their own names).

    ``dest``: a new name in a folder that is there, or an older copy of the same log, to which what is new is added. Raises
    ``StoreError`` for a place that cannot be one (inside the log, another log, another history), ``VerificationError`` where the
    copy does not verify, ``DiskFull``, ``ReadOnly``, ``LogMissing``.
    """
    log, dest = Path(os.path.realpath(log)), Path(os.path.realpath(dest))
    genesis = read_genesis(log)
    check_places(log, dest, keys=cfg.keys_folder(log, cfg.read_settings(log)))
    known = memory.get(log)
    if known is not None and known.vkey != genesis.vkey.format() and not known.successor:
        raise VerificationError(f"{log} is not the log that is known here (tally verify {log}); to copy it as it is: --as-evidence")
    say = progress or (lambda _what, _bytes: None)
    done = []
    for part in older_folders(log):
        older = dest.parent / part.name
        check_places(part, older)
        done.append(_guarded(_Copy(part, older, disk, say), with_keys))
    done.append(_guarded(_Copy(log, dest, disk, say), with_keys))
    return done


def check_places(log: Path, dest: Path, *, keys: Path | None = None) -> None:
    """``StoreError`` where one lies within the other, or ``dest`` holds something else."""
    for home, what in ((log, "the log"), (keys, "the folder of its keys")):
        if home is not None and (dest == home or home in dest.parents):
            raise StoreError(f"{dest} lies in {what} {home}; a copy belongs elsewhere, best on another disk")
    if dest in log.parents:
        raise StoreError(f"{dest} contains the log; name a new folder in it: {dest / log.name}")
    if not dest.parent.is_dir():
        raise StoreError(f"{dest.parent} is not there; make that folder first, or mount the disk")
    if os.path.lexists(dest) and not dest.is_dir():
        raise StoreError(f"{dest} is a file; a copy of a log is a folder")
    if dest.is_dir() and not is_log(dest) and any(dest.iterdir()):
        raise StoreError(f"{dest} is a folder with other things in it; name a new folder in it: {dest / log.name}")


def _guarded(copy: _Copy, with_keys: bool) -> Copied:
    try:
        return copy.run(with_keys)
    except OSError as e:
        where = f"{e.filename or copy.dest}: {e.strerror}"
        if is_full(e):
            raise DiskFull(f"{where}; the copy at {copy.dest} is not whole; make room and run the same command again, it goes on "
                           "from there") from e  # fmt: skip
        raise (ReadOnly if isinstance(e, PermissionError) or e.errno == 30 else StoreError)(f"{where}; nothing was finished") from e


class _Copy:
    """One log on its way to one place."""

    def __init__(self, log: Path, dest: Path, disk: Disk, say: Progress) -> None:
        self.log, self.dest, self._disk, self._say = log, dest, disk, say
        self._genesis = read_genesis(log)
        self._store = SegmentStore(log)
        self._view = LogView(self._store, self._genesis, [])
        self._target = dest
        self._keys: Path | None = None
        self._bytes = 0
        self._left_out: list[str] = []
        self._exact = False  # compare what is there byte by byte instead of by length

    def run(self, with_keys: bool) -> Copied:
        fresh = not is_log(self.dest)
        self._target = self.dest.with_name(f".{self.dest.name}.partial") if fresh else self.dest
        keys = self.dest.with_name(f"{self.dest.name}.keys")
        if with_keys:
            self._keys = self._target.with_name(f"{self._target.name}.keys") if fresh and not keys.is_dir() else keys
        if not self._target.is_dir():
            self._disk.mkdir(self._target, folder_mode(self.log), like=self.dest.parent)
        had = self._older() if not fresh else None
        head = self._snapshot()
        if had is not None:
            self._refuse_another_history(had, head)
        self._refuse_keys(keys, with_keys)
        self._copy(head, 0 if had is None else had.size)
        try:
            self._verify()
        except VerificationError:
            # a run that was killed by a power loss may have left bytes of the right number and the wrong kind: compare all, once
            self._exact = True
            head = self._snapshot()
            self._copy(head, 0)
            self._verify()
        self._view.close()
        if fresh:
            if self.dest.is_dir():
                os.rmdir(self.dest)  # it was empty
            if self._keys not in (None, keys):
                self._disk.rename(self._keys, keys)
            # if we die here: keys whose copy has no name yet; the next call goes on with both
            self._disk.rename(self._target, self.dest)
            self._disk.sync_folder(self.dest.parent)
        return Copied(str(self.dest), self._genesis.origin, head.size, 0 if had is None else had.size, self._bytes,
                      str(keys) if with_keys else None, tuple(self._left_out))  # fmt: skip

    # -- may it be copied here -----------------------------------------------------------------------------------------

    def _older(self) -> Checkpoint:
        """The head of the copy that is there."""
        try:
            genesis = read_genesis(self.dest)
            if genesis != self._genesis:
                raise VerificationError(f"its key is {genesis.vkey.format()}")
            return LogView(SegmentStore(self.dest), genesis, []).head(0.0).checkpoint
        except AuditError as e:
            raise StoreError(f"{self.dest} is not an older copy of {self.log} ({self._genesis.origin}): {e}. Nothing was changed; "
                             "name another place") from e  # fmt: skip

    def _refuse_keys(self, keys: Path, with_keys: bool) -> None:
        if (keys / "mark").exists():
            raise StoreError(f"{self.dest} is a log that was written to with the keys in {keys}, no copy; name another place")
        if keys.is_dir() and not with_keys:
            raise StoreError(f"{keys} holds keys of an earlier backup --with-keys, which would not open what is new. Say --with-keys "
                             "again, or remove that folder")  # fmt: skip

    def _refuse_another_history(self, had: Checkpoint, head: Head) -> None:
        if had.size > head.size:
            raise StoreError(f"{self.dest} has {had.size:,} entries, {self.log} only {head.size:,}: the copy is newer than the log. "
                             "Nothing was changed; see tally verify of both, and tally resume")  # fmt: skip
        if root_at(self._store.hashes, had.size) != had.root:
            raise StoreError(f"{self.dest} and {self.log} are two histories: their first {had.size:,} entries differ. Nothing was "
                             "changed; keep both, they prove it (tally verify)")  # fmt: skip

    # -- the copy ------------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Head:
        """A head for which everything is here: no segment left for the archive between reading it and looking."""
        for _ in range(TRIES):
            head = self._view.head()
            segments = self._store.segments()
            first = segments[0].start if segments else head.size
            if first <= self._view.history(head.size).archived_until():
                return head
            self._view.forget()
        raise VerificationError(f"{self.log}: entries below #{first:,} are not here and no entry says where they went; to copy it as "
                                "it is: --as-evidence")  # fmt: skip

    def _copy(self, head: Head, had: int) -> None:
        for _ in range(TRIES):
            try:
                self._copy_once(head, had)
                return
            except FileNotFoundError as e:  # it left for the archive meanwhile: the newer head says so
                if Path(e.filename or "").parent.name != "segments":
                    raise
                head = self._snapshot()
        raise StoreError(f"{self.log}: segments leave faster than they can be copied")

    def _copy_once(self, head: Head, had: int) -> None:
        for folder in ("segments", "tree", "checkpoints", "payloads"):
            if not (self._target / folder).is_dir():
                self._disk.mkdir(self._target / folder, folder_mode(self._target), like=self._target)
        self._payloads()
        for name in (*_SMALL, *cfg.files_beside(cfg.read_settings(self.log))):
            self._small(name)
        for name in self._names("checkpoints"):
            match = _HANDED_OUT.fullmatch(name)
            if match and int(match[1]) <= head.size:
                self._small(f"checkpoints/{name}")
        linked = [folder for folder in ("quarantine", "archive", "outside") if (self.log / folder).is_symlink()]
        # to anywhere, and whoever runs this may read more than whoever made the link
        self._left_out += [folder for folder in linked if folder not in self._left_out]
        for folder in ("quarantine", "archive"):
            for name in self._names(folder) if folder not in linked else []:
                self._whole(f"{folder}/{name}")
        for name in self._names("outside") if "outside" not in linked else []:
            if name.endswith(".json"):  # replaced as a whole while we look
                if not (self._target / "outside").is_dir():
                    self._disk.mkdir(self._target / "outside", folder_mode(self._target), like=self._target)
                self._small(f"outside/{name}")
        before = {path: path.stat().st_size for folder in ("segments", "tree") for path in (self._target / folder).iterdir()}
        wanted = self._lines(head.size)
        for level in self._names("tree"):
            if _LEVEL.fullmatch(level):
                self._append(f"tree/{level}", (head.size >> 8 * int(level)) * HASH_BYTES)
        self._disk.sync_folder(self._target / "segments")
        self._disk.sync_folder(self._target / "tree")
        if had and not self._new_lines_hold(had, head.checkpoint):
            self._undo(before)
            raise VerificationError(f"the entries from #{had:,} on in {self.log} are not the bytes that were signed. {self.dest} "
                                    f"stays the copy of the first {had:,} that it was. See --as-evidence")  # fmt: skip
        if self._keys is not None:  # all keys of what the head covers were made before it was read
            self._copy_keys(self._keys)
        # if we die here: lines beyond the copy's checkpoint, which the next call continues
        self._disk.write_file(self._target / "checkpoint", head.note, file_mode(self._target), like=self._target)
        self._remove("segments", wanted)
        self._remove("payloads", set(self._names("payloads")))

    def _lines(self, size: int) -> set[str]:
        """Segments below ``size``, the last one as far as line ``size`` − 1 ends."""
        segments = [s for s in self._store.segments() if s.start < size]
        for segment in segments[:-1]:
            self._append(f"segments/{segment.name}", segment.size)
        if segments:
            last, end, left = segments[-1], 0, size - segments[-1].start
            for batch in self._store.batches(last):
                lines = batch.lines[:left]
                left -= len(lines)
                end = batch.offset + sum(map(len, lines)) + len(lines)
                if not left:
                    break
            if left:
                raise VerificationError(f"{self.log} has {size - left:,} entries, {size:,} were signed; to copy it as it is: "
                                        "--as-evidence")  # fmt: skip
            self._append(f"segments/{last.name}", end)
        return {s.name for s in segments}

    def _payloads(self) -> None:
        """Whole frames only: what every entry below the head names was written before it."""
        for name in self._names("payloads"):
            there = self._target / "payloads" / name
            start = 0
            if there.exists():
                start = end_of_frames(there)  # what a killed run left torn is written again
                if start != there.stat().st_size:
                    self._cut(there, start)
            source = self.log / "payloads" / name
            self._append(f"payloads/{name}", end_of_frames(source, start if source.stat().st_size >= start else 0))

    def _append(self, name: str, size: int) -> None:
        """Make ``name`` in the copy the first ``size`` bytes of the log's, by adding what is not there yet; synced."""
        target = self._target / name
        with _reading(self.log / name) as source:
            there = target.stat().st_size if target.exists() else 0
            at = self._common(source, target, min(there, size)) if self._exact or there > size else there
            if there > at:
                self._cut(target, at)
            if at == size and there:
                return
            fd = self._disk.open(target, os.O_WRONLY | os.O_CREAT, file_mode(self._target), like=self._target)
            try:
                while at < size:
                    data = os.pread(source, min(CHUNK, size - at), at)
                    if not data:
                        raise VerificationError(f"{self.log / name} has {at:,} bytes, {size:,} were signed or sealed")
                    self._disk.write_at(fd, data, at)
                    at += len(data)
                    self._bytes += len(data)
                    self._say(name, self._bytes)
                self._disk.sync(fd)
            finally:
                os.close(fd)

    def _cut(self, target: Path, size: int) -> None:
        fd = self._disk.open(target, os.O_WRONLY)
        try:
            self._disk.truncate(fd, size)
            self._disk.sync(fd)
        finally:
            os.close(fd)

    def _common(self, source: int, target: Path, size: int) -> int:
        """How many of the first ``size`` bytes are the same."""
        with _reading(target) as copy:
            at = 0
            while at < size:
                a, b = os.pread(source, min(CHUNK, size - at), at), os.pread(copy, min(CHUNK, size - at), at)
                if a != b or not a:
                    return at + next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                at += len(a)
        return size

    def _small(self, name: str) -> None:
        """A file that is replaced as a whole."""
        try:
            with _reading(self.log / name) as fd:
                if os.fstat(fd).st_size > SMALL_BYTES_MAX:
                    raise Malformed(f"{self.log / name}: larger than anything of this name")
                data = _all(fd)
        except FileNotFoundError:
            return
        target = self._target / name
        if not target.exists() or target.read_bytes() != data:
            self._disk.write_file(target, data, file_mode(self._target), like=self._target)
            self._bytes += len(data)

    def _whole(self, name: str) -> None:
        """A file that never changes once it is there, such as an archive; only regular files are copied."""
        folder = self._target / Path(name).parent
        try:
            size = os.lstat(self.log / name)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(size.st_mode):
            self._left_out.append(name)
            return
        if not folder.is_dir():
            self._disk.mkdir(folder, folder_mode(self._target), like=self._target)
        self._append(name, size.st_size)

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(n for n in os.listdir(self.log / folder) if not n.startswith("."))
        except FileNotFoundError:
            return []

    def _remove(self, folder: str, wanted: set[str]) -> None:
        for path in (self._target / folder).iterdir():
            if path.name not in wanted:
                self._disk.unlink(path)
        self._disk.sync_folder(self._target / folder)

    # -- does it hold --------------------------------------------------------------------------------------------------

    def _new_lines_hold(self, had: int, head: Checkpoint) -> bool:
        """The lines from ``had`` on, read back from the copy, and the root that was proven there give the root that is signed."""
        store = SegmentStore(self._target)
        try:
            frontier = frontier_at(store.hashes, had)
            for segment in store.segments():
                for batch in store.batches(segment):
                    lines = batch.lines[max(0, frontier.size - batch.index) : max(0, head.size - batch.index)]
                    if lines and batch.index <= frontier.size:
                        frontier.extend_row(leaf_hashes(lines))
            return frontier.size == head.size and frontier.root() == head.root
        except StoreError:
            return False

    def _undo(self, before: dict[Path, int]) -> None:
        for folder in ("segments", "tree"):
            for path in (self._target / folder).iterdir():
                if path not in before:
                    self._disk.unlink(path)
                elif path.stat().st_size > before[path]:
                    self._cut(path, before[path])

    def _verify(self) -> None:
        """Everything in the copy, as whoever gets it would. ``VerificationError`` says what is wrong."""
        from .verification import verify_log

        verdict = verify_log(self._target, memory=Memory(None), vkey=self._genesis.vkey.format(),
                             progress=lambda what, done: self._say(f"verifying {what}", done))  # fmt: skip
        # That a party outside keeps more entries (no file of the copy is named) is no fault of a copy: the log went on after it.
        if any(f.code in (2, 6) and not (f.issue == "rolled_back" and f.file is None) for f in verdict.findings):
            raise VerificationError(f"the copy at {self._target} does not verify: {verdict.sentence} If tally verify {self.log} says "
                                    "the same, copy it as it is: --as-evidence")  # fmt: skip

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _copy_keys(self, target: Path) -> None:
        source = cfg.keys_folder(self.log, cfg.read_settings(self.log))
        names = sorted(name for name in os.listdir(source) if _KEY_FILE.fullmatch(name))
        if not target.is_dir():
            self._disk.mkdir(target, 0o700, like=self.dest.parent)
        if stat.S_IMODE(target.stat().st_mode) & 0o077:
            raise StoreError(f"{target} is open to others; run: chmod 700 {target}")
        for name in names:
            with _reading(source / name) as fd:
                self._disk.write_file(target / name, _all(fd), 0o600, like=target)
        for path in target.iterdir():  # a key that was destroyed must not live on in a copy
            if _KEY_FILE.fullmatch(path.name) and path.name not in names:
                _overwrite(path, self._disk)
        self._disk.sync_folder(target)


def _overwrite(path: Path, disk: Disk) -> None:
    size = path.stat().st_size
    fd = disk.open(path, os.O_WRONLY)
    try:
        disk.write_at(fd, bytes(size), 0)
        disk.sync(fd)
    finally:
        os.close(fd)
    disk.unlink(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[int]:
    """A regular file; anything else is ``StoreError``: opening a FIFO waits for ever, a device has no end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StoreError(f"{path} is not a file; to copy everything as it is: --as-evidence")
        yield fd
    finally:
        os.close(fd)


def _all(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, CHUNK), b""))


# -- as evidence ---------------------------------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """What a copy as evidence holds."""

    path: str
    files: int
    bytes: int
    not_copied: tuple[str, ...]
    sums_sha256: str


def copy_evidence(
    log: Path, dest: Path, *, with_keys: bool = False, progress: Progress | None = None, disk: Disk = DISK
) -> Evidence:  # fmt: skip
    """Copy the folder of a log as it is, byte for byte, damaged files too, into a new folder in ``dest``; nothing is judged.

    The new folder, ``evidence-<log>-<UTC time>``, holds the files under the name of the log's folder (its keys, with ``with_keys``,
    and older parts beside it), ``SHA256SUMS`` (``sha256sum -c SHA256SUMS``) and ``manifest.jsonl``: for everything that was there its
    type, size, mode, owner and times, and its SHA-256 as it was read. Symbolic links are not followed and devices are not opened;
    they stand in the manifest. What cannot be read is named and does not stop the rest. Same errors as ``back_up``.
    """
    log, dest = Path(os.path.abspath(log)), Path(os.path.realpath(dest))
    if not log.is_dir():
        raise StoreError(f"{log} is not a folder")
    real = Path(os.path.realpath(log))
    if dest == real or real in dest.parents:
        raise StoreError(f"{dest} lies in the log {log}; a copy belongs elsewhere, best on another disk")
    if not dest.is_dir():
        raise StoreError(f"{dest} is not a folder that is there; make it first, or mount the disk")
    moment = format_time(CLOCK.wall_us())
    name = f"evidence-{log.name}-{re.sub('[^0-9TZ]', '', moment[:19] + 'Z')}"
    return _gather(log, dest, name, with_keys, progress or (lambda _what, _bytes: None), disk)


def _gather(log: Path, dest: Path, name: str, with_keys: bool, say: Progress, disk: Disk) -> Evidence:
    partial = dest / f".{name}.partial"
    final = dest / name
    number = 2
    while os.path.lexists(final):
        final, number = dest / f"{name}.{number}", number + 1
    try:
        for left in dest.glob(f".evidence-{log.name}-*.partial"):  # of a run that was killed; what it saw is no longer of one moment
            shutil.rmtree(left)
        disk.mkdir(partial, 0o700)
        gathered = _Gathering(partial, disk, say, None if with_keys else _keys_within(log))
        gathered.about({"log": str(log), "host": host_name(), "user": system_user(), "began": format_time(CLOCK.wall_us())})
        for folder in (log, *_beside(log, with_keys)):
            gathered.tree(folder)
        gathered.about({"ended": format_time(CLOCK.wall_us())})
        sums = gathered.finish()
        disk.rename(partial, final)
        disk.sync_folder(dest)
    except OSError as e:
        where = f"{e.filename or dest}: {e.strerror}"
        if is_full(e):
            raise DiskFull(f"{where}; nothing was finished, what was copied is in {partial}") from e
        raise (ReadOnly if isinstance(e, PermissionError) or e.errno == 30 else StoreError)(f"{where}; nothing was finished") from e
    return Evidence(str(final), gathered.files, gathered.bytes, tuple(gathered.missed), sums)


def _beside(log: Path, with_keys: bool) -> list[Path]:
    """Older parts, by their names alone (nothing is judged here), and key folders where asked for."""
    found = []
    pattern = re.compile(re.escape(log.name) + r"(\.until-[0-9.]+)?" + (r"|.*\.keys(\.until-[0-9.]+)?" if with_keys else ""))
    for path in sorted(log.parent.iterdir()):
        is_ours = pattern.fullmatch(path.name) and path.name.startswith(log.name)
        if is_ours and path != log and path.is_dir() and not path.is_symlink():
            found.append(path)
    if with_keys:
        with contextlib.suppress(AuditError, OSError):
            keys = cfg.keys_folder(log, cfg.read_settings(log))
            if keys.is_dir() and keys not in found:
                found.append(keys)
    return found


def _keys_within(log: Path) -> Path | None:
    """The folder of the keys, where ``log.toml`` says that it is in the log's own."""
    with contextlib.suppress(AuditError, OSError):
        keys = Path(os.path.realpath(cfg.keys_folder(log, cfg.read_settings(log))))
        return keys if Path(os.path.realpath(log)) in keys.parents else None
    return None


class _Gathering:
    """The files of one piece of evidence and what is written down about them. ``keys``: a folder whose contents stay out."""

    def __init__(self, folder: Path, disk: Disk, say: Progress, keys: Path | None = None) -> None:
        self._folder, self._disk, self._say, self._keys = folder, disk, say, keys
        self._manifest: list[bytes] = []
        self._sums: list[str] = []
        self.files = self.bytes = 0
        self.missed: list[str] = []

    def about(self, what: dict[str, Any]) -> None:
        """A line of the manifest."""
        self._manifest.append(msgspec.json.encode(what))

    def tree(self, source: Path) -> None:
        """One folder with everything in it, in the order of names; of a log ``checkpoint`` before the rest (rule 19)."""
        self._entry(source, source.name)

    def _entry(self, path: Path, name: str) -> None:
        try:
            status = os.lstat(path)
        except OSError as e:
            self._missed(name, str(e.strerror))
            return
        told: dict[str, Any] = {"path": _text(name), "mode": f"{stat.S_IMODE(status.st_mode):04o}", "uid": status.st_uid,
                                "gid": status.st_gid, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}  # fmt: skip
        if stat.S_ISDIR(status.st_mode) and self._keys is not None and os.path.realpath(path) == str(self._keys):
            self.about({"type": "folder of private keys, left out", **told})
            self.missed.append(f"{name}: private keys (--with-keys copies them)")
        elif stat.S_ISDIR(status.st_mode):
            self.about({"type": "folder", **told})
            self._folder_of(path, name)
        elif stat.S_ISREG(status.st_mode):
            self._file(path, name, told)
        elif stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(OSError):
                told["target"] = _text(os.readlink(path))
            self.about({"type": "link, not followed", **told})
            self.missed.append(f"{name}: a symbolic link, not followed")
        else:
            self.about({"type": "device, socket or pipe, not opened", **told})
            self.missed.append(f"{name}: no file, not opened")

    def _folder_of(self, path: Path, name: str) -> None:
        self._disk.mkdir(self._folder / name, 0o700)
        try:
            names = sorted(os.listdir(path), key=lambda n: (n != "checkpoint", n))
        except OSError as e:
            self._missed(name, str(e.strerror))
            return
        for one in names:
            self._entry(path / one, f"{name}/{one}")
        self._disk.sync_folder(self._folder / name)

    def _file(self, path: Path, name: str, told: dict[str, Any]) -> None:
        digest, at, error = hashlib.sha256(), 0, ""
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as e:
            self.about({"type": "file", **told, "error": e.strerror})
            self._missed(name, str(e.strerror))
            return
        target = self._disk.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            while True:
                try:
                    data = os.pread(source, CHUNK, at)
                except OSError as e:  # a block that the disk does not give back: what came before it is kept
                    error = str(e.strerror)
                    break
                if not data:
                    break
                self._disk.write_at(target, data, at)
                digest.update(data)
                at += len(data)
                self.bytes += len(data)
                self._say(name, self.bytes)
            self._disk.sync(target)
        finally:
            os.close(target)
            os.close(source)
        if _digest(self._folder / name) != digest.hexdigest():
            raise StoreError(f"{self._folder / name} does not read back as it was written; use another disk")
        self.files += 1
        self._sums.append(_sum_line(digest.hexdigest(), name))
        self.about({"type": "file", **told, "size": at, "sha256": digest.hexdigest(), **({"error": error} if error else {})})
        if error:
            self._missed(name, f"{error} after {at:,} bytes")

    def _missed(self, name: str, why: str) -> None:
        self.missed.append(f"{name}: {why}")

    def finish(self) -> str:
        """Write manifest and sums; the SHA-256 of the sums, to be written down elsewhere."""
        manifest = b"".join(line + b"\n" for line in self._manifest)
        self._disk.write_file(self._folder / "manifest.jsonl", manifest, 0o600)
        self._sums.append(_sum_line(hashlib.sha256(manifest).hexdigest(), "manifest.jsonl"))
        sums = os.fsencode("".join(self._sums))
        self._disk.write_file(self._folder / "SHA256SUMS", sums, 0o600)
        return hashlib.sha256(sums).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_line(digest: str, name: str) -> str:
    """As sha256sum(1) writes it: names with a newline or a backslash are escaped and the line is marked."""
    if "\n" in name or "\\" in name or "\r" in name:
        name = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        return f"\\{digest}  {name}\n"
    return f"{digest}  {name}\n"


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8", "backslashreplace")


__all__ = ["Copied", "Evidence", "Genesis", "back_up", "check_places", "copy_evidence"]
