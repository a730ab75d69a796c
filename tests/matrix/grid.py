"""The attacks that are run against every configuration, at many places, in every way that the attacker has, and what two verifiers say.

An attack at index k leaves #0 … #k−1 as they were. Of several ways the one counts that serves the attacker best: the one that is not
noticed, if there is one. Where it depends on k whether it is noticed, the smallest k at which it is not is what the table names: from
there on entries were *open*.
"""

from __future__ import annotations

import collections
import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tallystick.core.errors import AuditError
from tallystick.core.note import SignerKey, sign, split
from tallystick.core.times import format_time
from tallystick.core.verify import Finding, Verdict
from tallystick.keys import KeyFolder
from tallystick.memory import Memory
from tallystick.opening import make_log
from tallystick.publishing import publish, source_of

from . import attacker as a
from .attacker import Hands
from .site import CONFIGURATIONS, FIRST, SECOND, SIZE, VERIFIED, VERIFIED_AT_US, Site, record

VERIFIERS = ("auditor", "operator")
NO_KEY, CURRENT, OLD, SNAPSHOT, MACHINE = "no key", "current keys", "old epoch key", "snapshot", "whole machine"
Way = Callable[[Site, int], Any]
Must = dict[str, tuple[int, int]]


def _must(**changed: tuple[int, int]) -> Must:
    return {name: changed.get(name, changed.get("rest", (SIZE, SIZE))) for name in CONFIGURATIONS}


EVERYWHERE = _must()
CLOSES = range(FIRST - 1, FIRST + 1)  # cut at an old closing checkpoint, a log looks whole to epochs
NOWHERE = _must(rest=(0, 0))
WITH_KEYS = _must(rest=(SECOND, VERIFIED), default=(0, VERIFIED))
WITH_MEMORY = _must(rest=(SECOND, 0), default=(0, 0))
WITHOUT_MARK = _must(rest=(SECOND, SIZE), default=(0, SIZE))


class Attack(NamedTuple):
    """``rows``: the rows of the sources that it answers. ``must``: by configuration, up to which place an auditor and the operator must
    notice it; ``may``: places below at which they need not. ``at``: ``each`` (many indexes), ``few``, ``size`` (many sizes), ``once``.
    ``only``: in other configurations there is nothing to attack."""

    name: str
    group: str
    has: str
    rows: tuple[str, ...]
    ways: dict[str, Way]
    must: Must = EVERYWHERE
    at: str = "each"
    may: range = range(0)
    only: tuple[str, ...] = CONFIGURATIONS
    honest: bool = False


class Outcome(NamedTuple):
    """What one verifier said of one attack at one place, in the way that served the attacker best."""

    code: int
    issues: tuple[str, ...]
    evidence: tuple[str, ...]
    said: tuple[str, ...]
    way: str

    @property
    def noticed(self) -> bool:
        return self.code != 0


class Cell(NamedTuple):
    """One attack against one configuration, as one verifier sees it. ``places``: where it was done; ``open``: where of these nothing
    was noticed; ``noticed`` and ``unnoticed``: what was said, where it was and at the first place where it was not."""

    attack: str
    configuration: str
    verifier: str
    places: tuple[int, ...]
    open: tuple[int, ...]
    noticed: Outcome | None
    unnoticed: Outcome | None
    ways: int

    @property
    def open_from(self) -> int:
        """From this place on nothing was noticed, ``SIZE`` if it was everywhere."""
        closed = [p for p in self.places if p not in self.open]
        return min((p for p in self.open if p > max(closed, default=0)), default=SIZE)

    @property
    def gaps(self) -> tuple[int, ...]:
        """Places before it at which nothing was noticed either."""
        return tuple(p for p in self.open if p < self.open_from)


# -- what a verdict rests on -----------------------------------------------------------------------------------------------


def evidence_of(finding: Finding, site: Site) -> str:
    """Which of the things that can contradict a log did."""
    text, file, issue = finding.text, finding.file or "", finding.issue
    given = {"witness": "witness", "anchor": "anchor"}.get(site.name, "key card")
    if "your memory of" in text:
        return "memory"
    if file == "mark" or "the mark beside the keys" in text:
        return "mark"
    if "the checkpoint that you" in text:
        return given
    if "keeps other entries" in text or text.startswith("folder "):
        return "anchor"
    if "what witness" in text or text.startswith("witness ") or issue == "not_witnessed":
        return "witness"
    if issue == "not_anchored":
        return "anchor"
    if issue in ("not_sealed", "seal_missing") or (file or text).startswith("checkpoints/") or "closing checkpoint" in text:
        return "closed epoch" if site.closes else "handed-out checkpoint"
    if issue == "index_mismatch":
        return "lines"
    if not site.folder.exists():
        return "no log there"
    if issue == "unknown" or file == "log.vkey" or "the key" in text or "genesis checkpoint" in text or "log.vkey" in text:
        return "pinned key"
    if finding.code == 3 and "not signed" in text:
        return "unsigned tail"
    return "signature"


def outcome_of(verdict: Verdict, site: Site, honest: Verdict, way: str) -> Outcome:
    code = verdict.exit_code
    worst = [f for f in verdict.findings if f.code == code] or verdict.findings
    evidence = dict.fromkeys(evidence_of(f, site) for f in worst)
    said = []
    if not code:
        said += sorted({s.epoch for s in verdict.spans if s.epoch.startswith("seal ")})
        if verdict.sealed_to < honest.sealed_to:
            said.append(f"sealed to {verdict.sealed_to}")
        if verdict.confirmed_to < honest.confirmed_to:
            said.append(f"confirmed to {verdict.confirmed_to}")
        said += [text.partition(" (")[0] for text in verdict.seen if "not configured any more" in text]
    return Outcome(code, tuple(dict.fromkeys(f.issue for f in worst)), tuple(evidence), tuple(said), way)


# -- running -------------------------------------------------------------------------------------------------------------


class Runner:
    """All attacks on all configurations."""

    def __init__(self, sites: dict[str, Site], clock: Any) -> None:
        self.sites, self.clock = sites, clock
        self.honest: dict[tuple[str, str], Verdict] = {}
        for site in sites.values():
            for verifier in VERIFIERS:
                site.put_back()
                self.honest[site.name, verifier] = getattr(site, f"as_{verifier}")()

    def run(self, attack: Attack) -> Iterator[Cell]:
        for name in attack.only:
            site, found = self.sites[name], dict[str, dict[int, Outcome]]()
            places = list(_places(site, attack.at))
            for place in places:
                for verifier, outcome in self._best(attack, site, place).items():
                    found.setdefault(verifier, {})[place] = outcome
            for verifier, by_place in found.items():
                yield self._cell(attack, site, verifier, by_place)

    def _best(self, attack: Attack, site: Site, place: int) -> dict[str, Outcome]:
        best: dict[str, Outcome] = {}
        for name, way in attack.ways.items():
            site.put_back()
            self.clock.step(VERIFIED_AT_US - self.clock.wall_us)
            try:
                extra = way(site, place)
            except Impossible:
                continue
            for verifier in VERIFIERS:
                outcome = outcome_of(getattr(site, f"as_{verifier}")(), site, self.honest[site.name, verifier], name)
                if isinstance(extra, Outcome) and not outcome.noticed:
                    outcome = extra
                if verifier not in best or _rank(outcome) < _rank(best[verifier]):
                    best[verifier] = outcome
        assert best, f"{attack.name}: no way at {place} of {site.name}"
        return best

    def _cell(self, attack: Attack, site: Site, verifier: str, by_place: dict[int, Outcome]) -> Cell:
        unnoticed = tuple(p for p, o in by_place.items() if not o.noticed)
        noticed = [o for o in by_place.values() if o.noticed]
        usual = collections.Counter(o[:4] for o in noticed).most_common(1)
        said = next((o for o in noticed if o[:4] == usual[0][0]), None) if usual else None
        return Cell(attack.name, site.name, verifier, tuple(by_place), unnoticed, said, by_place[unnoticed[0]] if unnoticed else None,
                    len(attack.ways))  # fmt: skip


class Impossible(Exception):
    """This way is none at this place."""


def _rank(outcome: Outcome) -> tuple[int, int, int]:
    """The attacker's order: not noticed, with as little said as can be; then exit codes that alarm least; then little evidence."""
    return (outcome.noticed, len(outcome.said), {0: 0, 3: 1, 5: 2, 4: 3, 2: 4, 6: 5}[outcome.code] * 10 + len(outcome.evidence))


def _places(site: Site, at: str) -> Iterator[int]:
    if at == "once":
        yield SIZE // 2
        return
    edges = {FIRST, VERIFIED, SECOND}
    near = {e + d for e in edges for d in (-2, -1, 0, 1)}
    if at == "size":
        yield from range(3, SIZE) if site.closes else sorted({*near, 3, 8, 13, 26, 37, 47, SIZE - 1})
        return
    lines = Hands(_fresh(site)).lines
    chosen = {2, FIRST, VERIFIED, SIZE - 1} if at == "few" else {*near, 2, 9, 16, 26, 36, 48, SIZE - 1}
    yield from (k for k in sorted(chosen) if a.is_ordinary(lines[k]))


def _fresh(site: Site) -> Site:
    site.put_back()
    return site


# -- who has what ----------------------------------------------------------------------------------------------------------


def _thief(site: Site) -> Hands:
    """Somebody who has the key folder as it lies there."""
    folder = KeyFolder(site.keys)
    return Hands(site, {n: folder.epoch_key(n) for n in folder.numbers()}, log_key=folder.log_key(), owns_keys=True)


def _keeper_of(site: Site, epoch: int) -> Hands:
    """Somebody who copied one epoch's key while it was there, and nothing else."""
    return Hands(site, {epoch: site.old_keys[epoch]})


# -- ways ----------------------------------------------------------------------------------------------------------------


def lines_only(deed: Callable[[a.Lines, int], None], *, whole: bool = False) -> Way:
    """In the one segment where k is; ``whole``: in the whole log as if it were one."""

    def way(site: Site, k: int) -> None:
        hands = Hands(site)
        if whole:
            deed(hands.lines, k)
            hands.write_lines()
            return
        start = max(s for s in hands.starts if s <= k)
        stop = min((s for s in hands.starts if s > k), default=SIZE)
        lines = hands.lines[start:stop]
        deed(lines, k - start)
        hands.put(f"segments/{start:020d}.jsonl", b"".join(line + b"\n" for line in lines))

    return way


def hashes_too(deed: Callable[[a.Lines, int], None], head: str) -> Way:
    """Every hash made anew; the head ``left`` as it was, ``patched`` (the new root over the old signature) or signed by a ``stranger``."""

    def way(site: Site, k: int) -> None:
        hands = Hands(site)
        deed(hands.lines, k)
        hands.write_lines()
        hands.write_tree()
        if head == "patched":
            hands.put("checkpoint", hands.checkpoint().format().encode() + b"\n" + hands.read("checkpoint").partition(b"\n\n")[2])
        elif head == "stranger":
            hands.write_head(SignerKey.generate(hands.origin))

    return way


def made_up(deed: Callable[[a.Lines, int], None], *, vkey_too: bool) -> Way:
    return lambda site, k: a.make_up_keys(Hands(site), deed, k, vkey_too=vkey_too)


def anew(deed: Callable[[a.Lines, int], None], *, leave: bool) -> Way:
    return lambda site, k: a.write_anew(_thief(site), k, deed, leave=leave)


def lost_key(deed: Callable[[a.Lines, int], None], *, young: bool) -> Way:
    def way(site: Site, k: int) -> None:
        hands = _thief(site)
        when = format_time(VERIFIED_AT_US) if young else a.ent.decode(hands.lines[k]).recorded_at
        a.record_a_lost_key(hands, k, deed, when)

    return way


def reseal(site: Site, k: int) -> None:
    """Closing checkpoints of epochs whose keys are gone, signed with the newest key instead."""
    hands = _thief(site)
    a.edit(hands.lines, k)
    hands.write_lines()
    hands.write_tree()
    newest = hands.epoch_keys[max(hands.epoch_keys)]
    for size in hands.handed_out():
        if size > k:
            hands.hand_out(size, newest, *([hands.log_key] if hands.log_key else []))
    hands.write_head(newest)
    hands.write_mark()


def thief_ways(deed: Callable[[a.Lines, int], None]) -> dict[str, Way]:
    return {"what was handed out left": anew(deed, leave=True), "what was handed out removed": anew(deed, leave=False),
            "a lost key recorded": lost_key(deed, young=False), "a lost key recorded, times made new": lost_key(deed, young=True)}  # fmt: skip


def with_memory(way: Way) -> Way:
    """And the operator's memory edited to what the log says now."""

    def both(site: Site, k: int) -> None:
        way(site, k)
        hands = Hands(site)
        a.edit_memory(site, len(hands.lines), hands.root().hex())

    return both


def with_old_key(deed: Callable[[a.Lines, int], None], epoch: int) -> dict[str, Way]:
    return {f"left {leave}": (lambda site, k, leave=leave: a.write_anew(_keeper_of(site, epoch if site.closes else 0), k, deed, leave=leave))
            for leave in (True, False)}  # fmt: skip


def cut_lines(site: Site, size: int) -> None:
    hands = Hands(site)
    del hands.lines[size:]
    hands.write_lines()


def cut_without_key(site: Site, size: int) -> None:
    a.cut(Hands(site), size, None)


def cut_with_keys(site: Site, size: int) -> None:
    hands = _thief(site)
    a.cut(hands, size, hands.epoch_keys[max(hands.epoch_keys)])


def rolled_back(*, keys: bool, memory: bool = False) -> Way:
    def way(site: Site, size: int) -> None:
        a.roll_back(site, size, keys=keys)
        if memory:
            hands = Hands(site)
            a.edit_memory(site, len(hands.lines), hands.root().hex())

    return way


def goes_on(*, keys: bool) -> Way:
    """The older copy is written to by the program itself, which hands out again what it then has."""

    def way(site: Site, size: int) -> Outcome | None:
        a.roll_back(site, size, keys=keys)
        try:
            with site.writer() as log:
                while log._handle.view.head().size < SIZE + 3:
                    record(log, 1000 + log._handle.view.head().size)
                if site.name not in ("witness", "anchor") or size >= site.confirmed:
                    return None
                (told,) = publish(source_of(log))
                return Outcome(6, ("contradiction",), (site.name,), (), "") if told.contradiction else None
        except AuditError as e:
            return Outcome(2, (type(e).__name__,), ("mark: the writer refuses",), (), "")

    return way


def log_gone(site: Site, _k: int) -> None:
    shutil.rmtree(site.folder)


def log_emptied(site: Site, _k: int) -> None:
    for path in (site.folder / "segments").iterdir():
        path.write_bytes(b"")


def begun_anew(site: Site, _k: int) -> None:
    """Everything gone, and a new log of the same name made by the program itself, somewhat filled."""
    shutil.rmtree(site.folder)
    shutil.rmtree(site.keys)
    make_log(site.folder, Memory(None), retention_days=365, origin=site.key.name)
    from tallystick import AuditLogger

    with AuditLogger(site.folder, memory=Memory(None)) as log:
        for number in range(3):
            record(log, number)


def handed_out_removed(*which: int) -> Way:
    def way(site: Site, _k: int) -> None:
        hands = Hands(site)
        sizes = hands.handed_out()
        for size in [sizes[i] for i in which] if which else sizes:
            for path in (site.folder / "checkpoints").glob(f"{size:020d}*"):
                path.unlink()

    return way


def signatures_removed(rest: bytes) -> Way:
    def way(site: Site, _k: int) -> None:
        hands = Hands(site)
        hands.put("checkpoint", hands.read("checkpoint").partition(b"\n\n")[0] + rest)

    return way


def signed_by(who: str) -> Way:
    def way(site: Site, _k: int) -> None:
        hands = Hands(site)
        text = split(hands.read("checkpoint"))[0]
        key = SignerKey.generate(hands.origin) if who == "stranger" else KeyFolder(site.keys).log_key()
        hands.put("checkpoint", sign(text, key))

    return way


def head_bytes(change: Callable[[bytes], bytes]) -> Way:
    def way(site: Site, _k: int) -> None:
        hands = Hands(site)
        old = hands.read("checkpoint")
        assert change(old) != old
        hands.put("checkpoint", change(old))

    return way


def index_edited(statement: str) -> Way:
    def way(site: Site, _k: int) -> None:
        with contextlib.closing(sqlite3.connect(site.folder / "index.db", isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount

    return way


def empty_epoch_removed(site: Site, _k: int) -> None:
    """The end of the empty epoch taken out, all later places renumbered, signed with the current keys."""
    hands = _thief(site)
    at = [i for i, line in enumerate(hands.lines) if a.is_close(line)][1]
    del hands.lines[at]
    hands.renumber(0)
    a.finish(hands, FIRST - 2, leave=False)


def second_close(site: Site, _k: int) -> None:
    """One epoch ended twice."""
    hands = _thief(site)
    at = [i for i, line in enumerate(hands.lines) if a.is_close(line)][-1]
    line = hands.lines[at]
    hands.lines.insert(at + 1, a.changed(line, event_id=a.ent.decode(line).event_id[:24] + "2" * 12))
    hands.write_lines()
    hands.write_tree()
    hands.write_head(hands.epoch_keys[max(hands.epoch_keys)])
    hands.write_mark()


def close_moved(change: str) -> Way:
    def way(site: Site, _k: int) -> None:
        hands = Hands(site)
        at = [i for i, line in enumerate(hands.lines) if a.is_close(line)][0 if change == "swapped" else -1]
        if change == "deleted":
            del hands.lines[at]
        elif change == "doubled":
            hands.lines.insert(at, hands.lines[at])
        else:
            hands.lines[at], hands.lines[at + 1] = hands.lines[at + 1], hands.lines[at]
        hands.write_lines()

    return way


def nothing(_site: Site, _k: int) -> None:
    """The event never reached the log."""


SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "spaces": lambda x: x.replace(b'","', b'", "', 1), "escapes": lambda x: x.replace("ü".encode(), b"\\u00fc"),
    "slash": lambda x: x.replace(b"crm/", b"crm\\/"),
    "key order": lambda x: b"{" + b",".join(reversed(x[1:-1].split(b",", 1))) + b"}",
}  # fmt: skip


def _id(line: bytes) -> bytes:
    return line.partition(b'"id":')[2].partition(b",")[0]


Deed = Callable[[a.Lines, int], None]
FLOAT: Deed = a.spell(lambda x: x.replace(b'"id":' + _id(x), b'"id":' + _id(x) + b".0"))
TWICE: Deed = a.spell(lambda x: x.replace(b'"id":', b'"id":' + _id(x) + b',"id":'))
EXTRA: Deed = a.spell(lambda x: x[:-1] + b',"approved_by":"ceo"}')
RETURN: Deed = a.spell(lambda x: x + b"\r")


def blank(lines: a.Lines, k: int) -> None:
    lines.insert(k, b"")


def first_gone(lines: a.Lines, _k: int) -> None:
    del lines[:20]


def again_at_the_end(lines: a.Lines, _k: int) -> None:
    lines.append(lines[-1])


G1, G2, G3, G4, G5, G6 = ("Lines changed, without a key", "Written anew with keys", "Cut off and put back", "Deleted and begun anew",
                          "Signatures, seals and confirmations taken away", "What is not a change of the lines")  # fmt: skip
RECOMPUTED = ("left", "patched", "stranger")


def _attacks() -> list[Attack]:
    keyless: list[tuple[str, tuple[str, ...], Deed]] = [
        ("one entry edited", ("T1", "P1", "P2", "B2"), a.edit), ("one entry removed", ("T3", "P4", "B2"), a.delete),
        ("two entries swapped", ("T3", "P9", "B2"), a.swap), ("one entry doubled", ("T3", "P10", "B2"), a.duplicate),
        ("an entry with an old time inserted", ("T3", "T5", "P12"), a.back_date),
        ("a field added that nobody asked for", ("P3", "L2"), EXTRA),
        ("an integer spelled as a float", ("P21",), FLOAT), ("a key twice in the JSON", ("P22",), TWICE),
        ("a carriage return", ("P23",), RETURN), ("a blank line", ("P23",), blank),
    ]  # fmt: skip
    found = [Attack("nothing was done", G1, NO_KEY, ("L8",), {"nothing": nothing}, NOWHERE, "once", honest=True)]
    found += [Attack(name, G1, NO_KEY, rows, {"lines only": lines_only(deed)}, at="few")
              for name, rows, deed in keyless]
    found += [
        Attack("other spaces, escapes, order of keys", G1, NO_KEY, ("P20", "L1"),
               {n: lines_only(a.spell(f)) for n, f in SPELLINGS.items()}, at="few"),
        Attack("the first 20 entries removed", G1, NO_KEY, ("P5", "L10"), {"lines only": lines_only(first_gone, whole=True)}, at="once"),
        Attack("the newest entry written once more at the end", G1, NO_KEY, ("P11",), {"lines only": lines_only(again_at_the_end, whole=True)},
               at="once"),
        Attack("one entry edited, every hash made anew", G1, NO_KEY, ("T2", "B4", "L4"),
               {f"head {h}": hashes_too(a.edit, h) for h in RECOMPUTED}, at="few"),
        Attack("one entry removed, every hash made anew", G1, NO_KEY, ("T2", "B4"),
               {f"head {h}": hashes_too(a.delete, h) for h in RECOMPUTED}, at="few"),
        Attack("the whole log made anew under made-up keys", G1, NO_KEY, ("T6", "P13", "B4", "L16"),
               {f"vkey {'made up too' if v else 'left'}": made_up(a.edit, vkey_too=v) for v in (False, True)}, at="few"),
    ]  # fmt: skip
    for name, rows, deed in (
        ("edited and all after it signed anew", ("T7", "P14", "P15", "B4", "B8"), a.edit),
        ("removed and all after it signed anew", ("T7", "P14", "B4"), a.delete),
        ("inserted with an old time, all after it signed anew", ("T5", "T7", "T12", "B4"), a.back_date),
    ):  # fmt: skip
        found.append(Attack(f"an entry {name}", G2, CURRENT, rows, thief_ways(deed), must=WITH_KEYS))
    found += [
        Attack("closing checkpoints of old epochs signed with the newest key", G2, CURRENT, ("B8",), {"re-sealed": reseal},
               only=("epochs",), must=_must(epochs=(SECOND, SECOND))),
        Attack("the end of an empty epoch removed", G2, CURRENT, ("B8",), {"signed anew": empty_epoch_removed}, at="once",
               only=("epochs",)),
        Attack("an epoch ended twice", G2, CURRENT, ("B8",), {"signed anew": second_close}, at="once", only=("epochs",)),
        Attack("an entry edited with the first epoch's key", G2, OLD, ("B4",), with_old_key(a.edit, 0), must=_must(rest=(SECOND, SIZE), default=(0, SIZE), epochs=(SIZE, SIZE)), may=range(FIRST - 2)),
        Attack("an entry edited with the key of the epoch before the running one", G2, OLD, ("B4",), with_old_key(a.edit, 2),
               only=("epochs",), must=EVERYWHERE, may=range(FIRST, SECOND - 1)),
        Attack("an entry edited, signed anew, and the operator's memory with it", G2, MACHINE, ("T7", "B4"),
               {n: with_memory(w) for n, w in thief_ways(a.edit).items()}, must=WITH_MEMORY),
        Attack("the newest entries gone, nothing else", G3, NO_KEY, ("P6", "B3"), {"lines only": cut_lines}, at="size"),
        Attack("the newest entries gone, with an older head that was kept", G3, NO_KEY, ("T4", "P7", "P8", "B3"),
               {"an older head": cut_without_key}, at="size", must=WITHOUT_MARK, may=CLOSES),
        Attack("the newest entries gone, signed anew", G3, CURRENT, ("T4", "P7", "P8"), {"signed anew": cut_with_keys}, at="size", must=WITH_KEYS, may=CLOSES),
        Attack("the folder put back as it was", G3, SNAPSHOT + " of the log", ("T9", "P16", "B5"), {"put back": rolled_back(keys=False)}, at="size", must=WITHOUT_MARK, may=CLOSES),
        Attack("folder and keys put back as they were", G3, SNAPSHOT, ("T9", "P16", "B5"), {"put back": rolled_back(keys=True)}, at="size", must=WITH_KEYS, may=CLOSES),
        Attack("the folder put back, and the program writes on", G3, SNAPSHOT + " of the log", ("B5",), {"goes on": goes_on(keys=False)}, at="size"),
        Attack("folder and keys put back, and the program writes on", G3, SNAPSHOT, ("T9", "B5"), {"goes on": goes_on(keys=True)}, at="size", must=_must(default=(0, VERIFIED), epochs=(0, VERIFIED), witness=(SECOND, SECOND), anchor=(SECOND, SECOND))),
        Attack("the whole machine put back, memory too", G3, SNAPSHOT + " of the machine", ("T9", "B5"),
               {"put back": rolled_back(keys=True, memory=True)}, at="size", must=_must(rest=(SECOND, 0), default=(0, 0), anchor=(SECOND, SECOND)), may=CLOSES),
        Attack("the log deleted", G4, NO_KEY, ("T10", "P17", "L9"), {"gone": log_gone}, at="once"),
        Attack("every segment emptied", G4, NO_KEY, ("P18", "L9"), {"emptied": log_emptied}, at="once"),
        Attack("deleted and begun anew under the same name", G4, CURRENT, ("T10", "B17", "L9"), {"begun anew": begun_anew}, at="once"),
        Attack("the signature of the head removed", G5, NO_KEY, ("T13", "B7", "L4"),
               {repr(rest): signatures_removed(rest) for rest in (b"", b"\n", b"\n\n", b"\n\n\n")}, at="once"),
        Attack("the head signed by a key that nobody knows", G5, NO_KEY, ("B7", "L16"), {"a stranger": signed_by("stranger")}, at="once"),
        Attack("the head signed by the log key instead of the epoch's", G5, CURRENT, ("B7",), {"the log key": signed_by("log key")}, at="once"),
        Attack("another key name, key ID or kind of key in the signature", G5, NO_KEY, ("B7",), {
            "name": head_bytes(lambda x: x.replace(b"\xe2\x80\x94 audit", b"\xe2\x80\x94 tidua")),
            "key ID": head_bytes(_other_id),
            "small": head_bytes(lambda x: x.replace(b"\n\n\xe2\x80\x94", b"\n\n-")),
        }, at="once"),
        Attack("everything removed that was handed out", G5, NO_KEY, ("T13", "B7", "B16"), {"all": handed_out_removed()}, at="once",
               only=("epochs", "witness", "anchor"), must=_must(witness=(0, 0), anchor=(0, 0))),
        Attack("two consecutive closing checkpoints removed", G5, NO_KEY, ("B16",), {"two": handed_out_removed(0, 1)}, at="once", only=("epochs",)),
        Attack("the newest closing checkpoint removed", G5, NO_KEY, ("B16",), {"one": handed_out_removed(-1)}, at="once", only=("epochs",)),
        Attack("the entry that ends an epoch removed, doubled or moved", G5, NO_KEY, ("B2",),
               {c: close_moved(c) for c in ("deleted", "doubled", "swapped")}, at="once", only=("epochs",)),
        Attack("another history shown to another auditor", G6, CURRENT, ("T8", "P19", "B6"), thief_ways(a.edit), must=WITH_KEYS),
        Attack("rows of the index removed, added or changed", G6, NO_KEY, ("T14", "B9", "L1"), {
            "row removed": index_edited("DELETE FROM ids WHERE idx = 20"), "id changed": index_edited("UPDATE ids SET id = id + 1 WHERE idx = 20"),
            "list changed": index_edited("UPDATE postings SET list = x'0100' WHERE field = 1"),
            "block changed": index_edited("UPDATE blocks SET latest = 0")}, at="once"),
        Attack("the event never recorded", G6, NO_KEY, ("T15",), {"never": nothing}, at="once", must=NOWHERE),
    ]  # fmt: skip
    return found


def _other_id(head: bytes) -> bytes:
    """One bit of the key ID, in the base64 of the signature."""
    at = head.rindex(b" ") + 1
    return head[:at] + (b"A" if head[at : at + 1] != b"A" else b"B") + head[at + 1 :]


ATTACKS = _attacks()
