"""The attacker at work: each attack on a copy of its own, judged by ``tally verify`` in another process.

A copy is first trusted and verified at its place, as its user would have done, with a memory of its own beside it. Then
the attacker comes; then it is verified again, in the ways that a person has: with that memory, without any, with the
memory edited too, with a checkpoint that was kept elsewhere. What should come out is written here beside each way and
compared with what did: a demo whose attacker gets away unseen fails.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .attacks import ATTACKS, Attack, copy_log, edit_memory
from .install import DemoError

Tally = Callable[..., tuple[int, str]]


class Way(NamedTuple):
    """One way to verify an attacked copy, and what should come out: the exit code and the kind of issue."""

    caught_by: str
    memory: str
    exit_code: int
    issue: str = ""
    with_checkpoint: bool = False


class Row(NamedTuple):
    """One verdict: what was done, what caught it (or did not), the exit code, and whether it came out as it should."""

    number: int
    name: str
    has: str
    deed: str
    caught_by: str
    exit_code: int
    as_expected: bool


OWN, NONE, EDITED = "own", "none", "edited"
_KEPT = "the checkpoint kept elsewhere"
_UNSEEN = "nothing: he edited this user's memory too"
WAYS: tuple[tuple[Way, ...], ...] = (
    (Way("the signature: he has no key for the new root", NONE, 6, "checksum_mismatch"),),
    (Way("nothing, for a stranger: he has never seen the key", NONE, 3), Way("the pinned key", OWN, 6, "replaced")),
    (
        Way("this user's own memory of the log", OWN, 6, "replaced"),
        Way(_UNSEEN, EDITED, 0),
        Way(_KEPT, EDITED, 6, "replaced", with_checkpoint=True),
    ),
    (
        Way("this user's own memory of the log", OWN, 6, "rolled_back"),
        Way(_UNSEEN, EDITED, 0),
        Way(_KEPT, EDITED, 6, "rolled_back", with_checkpoint=True),
    ),
)


class Scene(NamedTuple):
    """Where it happens: the honest log and keys, its verifier key, a checkpoint kept elsewhere, a folder for the copies."""

    log: Path
    keys: Path
    vkey: str
    checkpoint: Path
    folder: Path


def run_attacks(scene: Scene, tally: Tally) -> Iterator[Row]:
    """All attacks, each on its own copy. ``tally(*arguments, state=FOLDER)`` runs one command in another process."""
    shutil.rmtree(scene.folder, ignore_errors=True)
    for number, (attack, ways) in enumerate(zip(ATTACKS, WAYS, strict=True), 1):
        yield from _one_attack(scene, tally, number, attack, ways)


def _one_attack(scene: Scene, tally: Tally, number: int, attack: Attack, ways: tuple[Way, ...]) -> Iterator[Row]:
    place = scene.folder / str(number)
    copy, memory = place / "audit_log", place / "memory"
    copy_log(scene.log, scene.keys, copy)
    code, said = tally("trust", str(copy), "--vkey", scene.vkey, state=memory)
    if code:
        raise DemoError(f"the honest copy {copy} does not verify (exit code {code}):\n{said}")
    deed = attack.act(copy, copy.with_name("audit_log.keys"))
    for way in ways:
        if way.memory == EDITED:
            edit_memory(memory, copy)
        kept = ["--checkpoint", str(scene.checkpoint)] if way.with_checkpoint else []
        state = place / "no-memory" if way.memory == NONE else memory
        code, said = tally("verify", str(copy), *kept, "--json", state=state)
        fits = code == way.exit_code and (not way.issue or way.issue in _issues(said))
        yield Row(number, attack.name, attack.has, deed, way.caught_by, code, fits)


def _issues(said: str) -> set[str]:
    try:
        return {issue["issue"] for issue in json.loads(said)["issues"]}
    except (ValueError, KeyError, TypeError):
        return set()
