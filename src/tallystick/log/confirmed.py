"""What others confirmed of a log: checkpoints that were handed out, and who signed them besides (decisions 16 and 25).

Every file in ``checkpoints/`` is opened under the log's own keys, and compared with the roots that the lines give; every signature
line by a key that the verifier brought along is verified, once. What the log folder says about who its witnesses are convinces
nobody: their lines are named, and do not count. Not here: which keys the verifier trusts, what follows for ranges (``check``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..core.checkpoint import Checkpoint, open_signed
from ..core.cosignature import verify as verify_cosignature
from ..core.epoch import History
from ..core.errors import AuditError, Malformed, VerificationError
from ..core.genesis import Genesis
from ..core.note import Signature, VerifierKey
from ..core.policy import POLICY_BYTES_MAX, Policy
from ..core.times import SECOND_US
from ..core.verify import Confirmation
from ..outside import HandedOut, Parties

_FILE = re.compile(r"[0-9]{20}(\.signatures|\.[a-z0-9][a-z0-9.-]*\.tsr)?|\..*\.tmp", re.ASCII)  # .tmp: of a writer that died
_PARTY = re.compile(r"[a-z0-9][a-z0-9.-]*", re.ASCII)


class Trusted(NamedTuple):
    """What whoever verifies brings along; none of it comes from the log folder. ``pinned``: the log's key did; ``first``:
    entry 0 did, as part of what he remembers. ``witnesses``: by the name under which he knows them. ``policy``: whose quorum decides
    what is witnessed; without one any witness does."""

    pinned: bool = False
    first: bool = False
    witnesses: Mapping[str, VerifierKey] = {}
    policy: Policy | None = None

    def keys(self) -> dict[str, VerifierKey]:
        """All witnesses that count, each key once; the policy's names come first."""
        found = {w.name: w.key for w in self.policy.witnesses} if self.policy is not None else {}
        known = {key.public for key in found.values()}
        for name, key in self.witnesses.items():
            if key.public not in known:
                found[name if name not in found else f"{name} (pinned)"] = key
        return found


NOBODY = Trusted()


class Kept(NamedTuple):
    """A checkpoint of ``checkpoints/``, signed by this log, with the signature lines of others on it. ``signed_by``: the log's keys
    whose lines were verified."""

    checkpoint: Checkpoint
    signatures: tuple[Signature, ...]
    file: str
    signed_by: tuple[VerifierKey, ...]


class Seen(NamedTuple):
    """A witness's cosignature that holds."""

    name: str
    kept: Kept
    time_us: int


class Outside:
    """One look at what came back to one log. ``tell(issue, text, file)`` is called with each break."""

    def __init__(
        self, handed: HandedOut, parties: Parties, trusted: Trusted, tell: Callable[[str, str, str], None]
    ) -> None:  # fmt: skip
        self._handed, self._parties, self.trusted, self._tell = handed, parties, trusted, tell
        self._own_policy = _read_policy(handed)
        self._own_keys: set[bytes] = set()  # public keys of this log

    def read(self, genesis: Genesis, history: History, is_new: Callable[[int], bool] = lambda _: False) -> list[Kept]:
        """Every checkpoint that is there and signed by this log, ascending; what is not is told. Sizes of which ``is_new`` says that
        they came since the head was read are left for the next verification."""
        self._own_keys = {genesis.vkey.public, *(epoch.key.public for epoch in history.epochs)}
        found = []
        for size in self._handed.sizes():
            if is_new(size):
                continue
            file = f"checkpoints/{size:020d}"
            keys = [genesis.vkey]
            with contextlib.suppress(VerificationError):
                keys += [k for k in [history.key_at(size)] if k != genesis.vkey]
            try:
                note = self._handed.signed(size)
                if note is None:
                    continue  # it was there a moment ago
                checkpoint, opened = open_signed(note, keys, origin=genesis.origin)
                if checkpoint.size != size:
                    raise Malformed(f"it is of {checkpoint.size:,} entries")
                lines = {(s.name, s.key_id) for s in opened.verified}
                by = tuple(key for key in keys if (key.name, key.key_id) in lines)
                found.append(Kept(checkpoint, opened.unverified, file, by))
            except AuditError as e:
                self._tell("bad_signature", f"{file}: {e}", file)
        for name in self._strangers():
            self._tell("bad_signature", f"checkpoints/{name} is no file of that folder", f"checkpoints/{name}")
        return found

    def _strangers(self) -> list[str]:
        try:
            names = sorted(os.listdir(self._handed.folder))
        except FileNotFoundError:
            return []
        here = set(names)
        return [n for n in names if not _FILE.fullmatch(n) or (n.endswith((".signatures", ".tsr")) and n[:20] not in here)]

    def witnesses(self, kept: list[Kept], tell: Callable[[str, str, str], None] | None = None) -> list[Seen]:
        """All cosignatures by trusted keys that hold, in the order of ``kept``; one that does not is told, to ``tell`` if given."""
        keys = {(key.name, key.key_id): (name, key) for name, key in self.trusted.keys().items()}
        found = []
        for one in kept:
            for line in one.signatures:
                name, key = keys.get((line.name, line.key_id), (None, None))
                if name is None or key is None:
                    continue
                try:
                    time_s = verify_cosignature(one.checkpoint, key, line).time_s
                    found.append(Seen(name, one, time_s * SECOND_US))
                except AuditError as e:
                    (tell or self._tell)("bad_signature", f"{one.file}: what stands there as the confirmation of witness {name} was "
                                         f"not made by it ({e})", one.file)  # fmt: skip
        return found

    def confirmations(self, holding: list[Kept], seen: list[Seen]) -> list[Confirmation]:
        """The newest of each witness among checkpoints that ``holding`` says are of this history, then of those that do not count."""
        newest: dict[str, Seen] = {}
        files = {one.file for one in holding}
        for one in seen:
            if one.kept.file in files and (one.name not in newest or newest[one.name].kept.checkpoint.size
                                           <= one.kept.checkpoint.size):  # fmt: skip
                newest[one.name] = one
        found = []
        for name, one in sorted(newest.items()):
            remark = "not independent: it runs on this machine" if self._is_local(name) else ""
            if self.trusted.keys()[name].public in self._own_keys:
                remark = "not independent: its key is one of this log"
            found.append(Confirmation(f"witness {name}", "witness", one.kept.checkpoint.size, one.time_us, not remark, remark))
        return found + self._not_pinned(holding)

    def witnessed_to(self, confirmations: list[Confirmation]) -> int:
        """The largest size that enough witnesses confirmed: the policy's quorum of them, or without one any."""
        reach = {c.by.removeprefix("witness "): c.size for c in confirmations if c.kind == "witness" and c.counts}
        policy = self.trusted.policy
        for size in sorted(set(reach.values()), reverse=True):
            if policy is None or policy.satisfied({name for name, known in reach.items() if known >= size}):
                return size
        return 0

    def _not_pinned(self, holding: list[Kept]) -> list[Confirmation]:
        """Witnesses of the log's own policy whose keys nobody here chose: the newest line of each, if it holds."""
        if self._own_policy is None:
            return []
        pinned = {key.public for key in self.trusted.keys().values()}
        found = []
        for witness in self._own_policy.witnesses:
            if witness.key.public in pinned:
                continue
            for one in reversed(holding):
                line = next((s for s in one.signatures if (s.name, s.key_id) == (witness.key.name, witness.key.key_id)), None)
                if line is None:
                    continue
                with contextlib.suppress(AuditError):
                    time_s = verify_cosignature(one.checkpoint, witness.key, line).time_s
                    found.append(Confirmation(f"witness {witness.name}", "witness", one.checkpoint.size, time_s * SECOND_US, False,
                                              "its key is not pinned here"))  # fmt: skip
                    break
        return found

    def unpinned(self) -> list[tuple[str, str]]:
        """Name and vkey of the log's own witnesses whose keys are not pinned here."""
        pinned = {key.public for key in self.trusted.keys().values()}
        policy = self._own_policy
        return [] if policy is None else [(w.name, w.key.format()) for w in policy.witnesses if w.key.public not in pinned]

    def _is_local(self, name: str) -> bool:
        """True where the party was seen to be on this machine, or is asked at an address of it."""
        state = self._parties.get(name) if _PARTY.fullmatch(name) else None
        key = self.trusted.keys().get(name)
        policies = [p for p in (self.trusted.policy, self._own_policy) if p is not None]
        urls = [w.url for p in policies for w in p.witnesses if w.url is not None and key is not None and w.key.public == key.public]
        return (state is not None and state.local) or any(_is_loopback(url) for url in urls)


def _is_loopback(url: str) -> bool:
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_policy(handed: HandedOut) -> Policy | None:
    """The log's own ``policy`` file, None where there is none that can be read: it convinces nobody either way."""
    try:
        fd = os.open(handed.folder.parent / "policy", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            return Policy.parse(file.read(POLICY_BYTES_MAX + 1))
    except (OSError, Malformed):
        return None
