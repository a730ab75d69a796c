"""Policies: which logs and how many witnesses a verifier believes (C2SP tlog-policy).

::

    log example.com/log+1a2b3c4d+AdEF…
    witness X1 x1.example+…+BKst… https://x1.example/
    witness X2 x2.example+…+BLuv…
    group X any X1 X2
    quorum X

One definition a line, words divided by spaces and tabs, ``#`` begins a comment line. A name is defined before
it is used and is member of at most one group, so that a witness counts once. Log keys are Ed25519 (0x01) or
ML-DSA-44 (0x06), witness keys are cosignature keys (0x04, 0x06). Stricter than the specification: the file is
UTF-8 of at most 256 KiB, with at most 256 logs, witnesses and groups each.

Not here: verifying the cosignatures. ``satisfied`` is told which witnesses are known to have cosigned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from .errors import Malformed
from .note import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, ED25519, VerifierKey

POLICY_BYTES_MAX = 1 << 18
DEFINITIONS_MAX = 256
_LOG_ALGORITHMS = (ED25519, COSIGNATURE_ML_DSA_44)
_WITNESS_ALGORITHMS = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)
_NONE = "none"
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")  # tlog-policy, "Character set"
_THRESHOLD = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Log:
    """A log that is believed: its key, whose name is its origin, and where it is, if said."""

    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness: its name within this policy, its key (with a name of its own), and where it is, if said."""

    name: str
    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A name that counts as cosigned when at least ``threshold`` of its members do."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as its file defines it. ``quorum`` names a witness or group, or is ``none``.

    Built by hand, it is checked when it is formatted; ``parse`` checks all of it.
    """

    logs: tuple[Log, ...]
    witnesses: tuple[Witness, ...]
    groups: tuple[Group, ...]
    quorum: str

    @classmethod
    def parse(cls, policy: bytes) -> Policy:
        """Read a policy file. ``Malformed``, naming the line, for what tlog-policy or our limits forbid."""
        definitions = _Definitions()
        for number, words in _lines(policy):
            try:
                definitions.read(words)
            except Malformed as error:
                raise Malformed(f"policy line {number}: {error}") from None
        if definitions.quorum is None:
            raise Malformed("a policy has one quorum line")
        logs, witnesses, groups = definitions.logs, definitions.witnesses, definitions.groups
        return cls(tuple(logs), tuple(witnesses), tuple(groups), definitions.quorum)

    def format(self) -> bytes:
        """One spelling: logs, witnesses, groups, quorum; single spaces, no comments. ``Malformed`` if it is
        no policy.
        """
        lines = [["log", log.key.format(), log.url] for log in self.logs]
        lines += [["witness", w.name, w.key.format(), w.url] for w in self.witnesses]
        lines += [["group", g.name, _format_threshold(g), *g.members] for g in self.groups]
        lines += [["quorum", self.quorum]]
        text = "".join(" ".join(word for word in words if word is not None) + "\n" for words in lines)
        try:
            policy = text.encode()
        except UnicodeEncodeError:
            raise Malformed("the policy has a lone surrogate") from None
        if Policy.parse(policy) != self:
            raise Malformed("a name or URL of the policy is not one word")
        return policy

    def satisfied(self, cosigned: Set[str]) -> bool:
        """True when the witnesses in ``cosigned`` (names of this policy) make the quorum; other names count
        nothing.
        """
        if self.quorum == _NONE:
            return True
        present = {w.name for w in self.witnesses if w.name in cosigned}
        for group in self.groups:  # in the order of their definition: members come first
            if sum(member in present for member in group.members) >= group.threshold:
                present.add(group.name)
        return self.quorum in present


def _format_threshold(group: Group) -> str:
    if group.threshold == 1:
        return "any"
    return "all" if group.threshold == len(group.members) else str(group.threshold)


def _lines(policy: bytes) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, words) of the lines that define something."""
    if len(policy) > POLICY_BYTES_MAX:
        raise Malformed("the policy is larger than 256 KiB")
    if _FORBIDDEN.search(policy):
        raise Malformed("the policy has a control character other than tab and newline")
    if not policy.endswith(b"\n"):
        raise Malformed("the last line of the policy does not end in a newline")
    try:
        text = policy.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the policy is not UTF-8") from None
    for number, line in enumerate(text[:-1].split("\n"), 1):
        # not str.split(): it knows Unicode's spaces, which belong to names here
        words = [word for word in re.split(r"[ \t]+", line) if word]
        if words and not words[0].startswith("#"):
            yield number, words


@dataclass(slots=True)
class _Definitions:
    """What the lines so far have defined. ``free``: names that may still become a member of a group."""

    logs: list[Log] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    quorum: str | None = None
    names: set[str] = field(default_factory=lambda: {_NONE})
    free: set[str] = field(default_factory=set)

    def read(self, words: list[str]) -> None:
        match words:
            case ["log", vkey, *url] if len(url) <= 1:
                self._log(Log(VerifierKey.parse(vkey, algorithms=_LOG_ALGORITHMS), *url))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._witness(Witness(name, VerifierKey.parse(vkey, algorithms=_WITNESS_ALGORITHMS), *url))
            case ["group", name, threshold, *members] if members:
                self._group(name, threshold, members)
            case ["quorum", name]:
                if self.quorum is not None:
                    raise Malformed("there is a quorum already")
                if name not in self.names:
                    raise Malformed("the quorum names nothing that is defined above")
                self.quorum = name
            case _:
                raise Malformed("not a log, witness, group or quorum line")
        if max(len(self.logs), len(self.witnesses), len(self.groups)) > DEFINITIONS_MAX:
            raise Malformed(f"a policy has at most {DEFINITIONS_MAX} logs, witnesses and groups")

    def _define(self, name: str) -> None:
        if name in self.names:
            raise Malformed("the name is defined already")
        self.names.add(name)
        self.free.add(name)

    def _log(self, log: Log) -> None:
        # "duplicate if they wrap the same underlying public key", whatever name and algorithm say
        if any(log.key.public == other.key.public for other in self.logs):
            raise Malformed("two logs have the same public key")
        self.logs.append(log)

    def _witness(self, witness: Witness) -> None:
        if any(witness.key.public == other.key.public for other in self.witnesses):
            raise Malformed("two witnesses have the same public key")
        self._define(witness.name)
        self.witnesses.append(witness)

    def _group(self, name: str, threshold: str, members: list[str]) -> None:
        if not set(members) <= self.free or len(set(members)) != len(members):
            raise Malformed("a member is defined above and belongs to one group, once")
        if threshold in ("any", "all"):
            least = 1 if threshold == "any" else len(members)
        elif _THRESHOLD.fullmatch(threshold) and int(threshold) <= len(members):
            least = int(threshold)
        else:
            raise Malformed("a group's threshold is any, all or a number from 1 to that of its members")
        self._define(name)
        self.free.difference_update(members)
        self.groups.append(Group(name, least, tuple(members)))
