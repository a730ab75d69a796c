"""Writes docs/attacks.md from a run of every attack: ``python docs/make_attacks.py``. A test runs them again and compares the two.

``python docs/make_attacks.py RESULTS.json`` also keeps what was seen, in full.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_name("attacks.md")
VERIFIERS = ("auditor", "operator")
COLUMNS = ("default", "epochs", "witness", "anchor")
SOURCES = {"T": "threat model", "B": "attack and fault tests", "P": "attacks on other packages", "M": "malformed lines",
           "L": "lessons"}  # fmt: skip

PAGE_TEXT = """# Attacks: what is noticed, by whom, and what is not

Made by running every attack (`python docs/make_attacks.py`); do not edit. A test runs them all again and fails if this page says anything else, if an
attack that must be noticed is not, or if a row of the lists at the end has no run.

**For whoever decides.** Whoever has no key cannot change a log unnoticed. Whoever has stolen the keys can, as far as nothing was kept outside the
machine: with a witness, or with a checkpoint a day in a folder or a mailbox elsewhere, only what is newer than the last one is open. Nothing here
notices an event that never reached the log, or one that was false when it was recorded.

## How to read it

Every log has the same 54 entries, made by using the product; what is handed out is handed out at 21 and at 42 entries, an hour apart.

| configuration | what it has |
| --- | --- |
| default | what `tally init` makes: epochs end daily, none has ended yet; nobody outside |
| epochs | three epochs have ended, at 20, 21 and 42 entries (the second was empty); nobody outside |
| witness | a C2SP witness has cosigned 21 and 42 entries; no epoch has ended |
| anchor | the checkpoints of 21 and 42 entries lie in a folder on another disk; no epoch has ended |

| who verifies | with what |
| --- | --- |
| auditor | a copy of the log folder without its keys; the key card (verifier key and genesis checkpoint); beside it, with *witness*, a policy file and what the witness itself says; with *anchor*, the newest checkpoint of that folder. He asks that entries older than 25 hours are sealed, witnessed or anchored (`--require`). No memory |
| operator | on the machine: `tally verify`, with the keys beside the log and his memory of it, last verified at 31 entries |

| attacker has | what |
| --- | --- |
| no key | the log folder, to change as he likes |
| current keys | besides the key folder: log key, key of the running epoch, mark |
| old epoch key | besides the log folder a copy of one epoch's key, made before it was destroyed (without ended epochs: of the running one) |
| snapshot | what log, or log and keys, or the whole machine were at an earlier time |
| whole machine | besides the keys the operator's memory |

A cell: the exit code, the first issue, and what contradicts: *signature* (of the head, over all lines), *pinned key*, *closed epoch* (its closing
checkpoint, whose key is gone), *witness*, *anchor*, *handed-out checkpoint* (the copy in the log folder), *memory*, *mark*. *below #42; newest 12 open*:
noticed if anything below #42 changes; the 12 entries from there on could be changed or cut off without it. **not detected** means exit code 0; what
the verdict says all the same stands in brackets. Each attack was run at many places and in each way that serves the attacker: the table shows the
way that served him best.

## What was seen

@TABLES@
Where everything that was handed out is removed with *witness* or *anchor*, only copies are: the witness, and the folder elsewhere, still have it.

## Properties

@CHECKS@
## What root on the machine can still do

Root is whoever controls the machine on which the log is written. None of this is stopped; the right column is what would make it visible.

| what | what would make it visible |
| --- | --- |
| never log an event, or stop the program that would | nothing in the log; heartbeats that are missed (`--require alive`), counters on the other side (mail server, bank, model provider) |
| drop events before they are appended | the same; what the log itself could not write is counted (`log.gap`) |
| feed false events, false times, another actor | nothing in the log: it keeps what it was told. Receipts of others, approvals with another person's credentials |
| replace the program by one that lies | nothing in the log; the package's hash checked from outside |
| read the keys in memory or on disk | nothing by itself. Used, they show as above: below the last ended epoch, cosignature or anchor |
| write the open epoch anew, or cut it off | a witness or anchor, as often as it confirms; ending epochs more often narrows it |
| put the whole machine back, memory and keys with it | a witness (it answers with the larger size), an anchor out of reach, a kept checkpoint |
| record that a key was lost (`log.epoch_recovered`), with the log key | the verdict says *seal broken, re-certified*; `--require sealed` is 3. Keep `log.key` off the machine |
| edit the memory of the users of the machine, their pinned witnesses and anchors | a verifier on another machine |
| set the clock before the program starts | the time at which a witness or an authority saw the checkpoint |
| delete the log | whoever holds a checkpoint, the card or a proof; the witness |
| read payloads: their keys lie on the machine | nothing; encryption is for forgetting and for backups |
| wait until nobody looks | verification on a schedule, elsewhere, with `--require max-age=1d` |

## Limits of what was measured

* A destroyed epoch key may survive on an SSD, in a copy-on-write file system, a snapshot, a backup of the key folder, or swap. Whoever finds it
  is the attacker *old epoch key*.
* With several writers, each keeps the old key in memory until it has recorded something after the close.
* A folder or a mailbox proves as much as it is out of the attacker's reach; a witness as much as it is independent.
* A witness here runs in the same test and stands for one elsewhere; a quorum of several was not attacked as a whole.
* Whoever trusts a key at first sight trusts whoever stood there first.

## Beside other packages

The same attacks on 22 configurations of 19 Python packages for audit logs, each by its own verify function in its strongest local configuration
(November 2026, the log folder in the attacker's hands):

| attack | not detected, of 22 | here, with nothing kept elsewhere | here, with a witness or an anchor |
| --- | --- | --- | --- |
| one field edited | 3 | detected | detected |
| newest entry edited | 4 | detected | detected |
| one entry removed | 1 | detected | detected |
| a JSON key twice | 17 | detected | detected |
| newest entries gone, nothing else | 18 | detected | detected |
| newest entries gone, with what lies beside | 22 (0 of the 11 that were run with a value kept elsewhere) | auditor: not detected; operator: by mark and memory | below the last confirmed |
| whole log anew, no key | 16 | detected | detected |
| whole log anew, with the key | 22 (0 of 11) | auditor: not detected until an epoch ended; operator: by memory | below the last confirmed |
| put back to an older copy | 22 | auditor: not detected; operator: by mark or memory | below the last confirmed |
| two logs to two auditors | 22 | not detected unless they compare | below the last confirmed |

## Which row is run as what

@ROWS@
"""


def render(found: dict[str, Any], required: dict[str, str]) -> str:
    """The whole page."""
    tables = "\n".join(_group(found, group) for group in dict.fromkeys(c["group"] for c in found["cells"]))
    checks = "\n".join(_checks(found, group) for group in dict.fromkeys(c["group"] for c in found["checks"]))
    return PAGE_TEXT.replace("@TABLES@\n", tables).replace("@CHECKS@\n", checks).replace("@ROWS@\n", _rows(found, required))


def _group(found: dict[str, Any], group: str) -> str:
    """What is noticed alike everywhere in one table; what depends on the configuration in one for each who verifies."""
    attacks: dict[str, list[dict[str, Any]]] = {}
    for cell in found["cells"]:
        if cell["group"] == group:
            attacks.setdefault(cell["attack"], []).append(cell)
    alike = {name: cells for name, cells in attacks.items()
             if all(len({_cell(c, found["size"]) for c in cells if c["verifier"] == v}) == 1 for v in VERIFIERS)}  # fmt: skip
    out = [f"### {group}\n"]
    if alike:
        rows = []
        for name, cells in alike.items():
            where = "" if len(cells) == 2 * len(COLUMNS) else f" ({', '.join(dict.fromkeys(c['configuration'] for c in cells))})"
            said = {c["verifier"]: _cell(c, found["size"]) for c in cells}
            rows.append([f"{name}{where}", cells[0]["has"], said["auditor"], said["operator"]])
        out.append("The same in every configuration where it can be done:\n")
        out.append(_table(["what is done", "attacker has", "auditor", "operator"], rows))
    rest = {name: cells for name, cells in attacks.items() if name not in alike}
    for verifier in VERIFIERS if rest else ():
        rows = []
        for name, cells in rest.items():
            by = {c["configuration"]: _cell(c, found["size"]) for c in cells if c["verifier"] == verifier}
            rows.append([f"{name} · *{cells[0]['has']}*", *(by.get(c, "–") for c in COLUMNS)])
        out.append(f"As the **{verifier}** sees it:\n")
        out.append(_table(["what is done · *attacker has*", *COLUMNS], rows))
    return "\n".join(out)


def _cell(cell: dict[str, Any], size: int) -> str:
    noticed, unnoticed = cell["noticed"], cell["unnoticed"]
    if cell["honest"] and not noticed:
        return "0"
    if not noticed:
        return "**not detected**" + _said(unnoticed)
    text = f"{noticed['code']} `{noticed['issues'][0]}` · {', '.join(noticed['evidence'])}"
    if cell["open_from"] < size:
        text += f", below #{cell['open_from']}; **newest {size - cell['open_from']} open**"
    if cell["gaps"]:
        where = f"first changed between #{cell['gaps'][0]} and #{cell['gaps'][-1]}"
        if cell["at"] == "size":
            where = f"cut at {' or '.join(map(str, cell['gaps']))}"
        text += f"; **not detected** if {where}"
    return text + (_said(unnoticed) if unnoticed else "")


def _said(outcome: dict[str, Any]) -> str:
    """What exit code 0 said all the same, without the numbers of one place."""
    words = []
    for said in outcome["said"]:
        if said.startswith("seal broken"):
            words.append("seal broken, re-certified")
        elif said.startswith("anchor"):
            words.append(said)
        elif said.startswith(("sealed to", "confirmed to")):
            words.append(f"{said.split()[0]} to less")
    return f" (0, and says: {'; '.join(dict.fromkeys(words))})" if words else ""


def _checks(found: dict[str, Any], group: str) -> str:
    rows = [[c["name"], c["result"], "<br>".join(f"`{w.removeprefix('tests/')}`" for w in c["whole"])]
            for c in found["checks"] if c["group"] == group]  # fmt: skip
    return f"### {group}\n\n" + _table(["what is done", "what was seen", "all of it: tests/"], rows)


def _rows(found: dict[str, Any], required: dict[str, str]) -> str:
    out = []
    for letter, source in SOURCES.items():
        rows = [[row, text, "; ".join(found["rows"].get(row, ["**not run**"]))] for row, text in required.items() if row[0] == letter]
        out.append(f"**{source.capitalize()}**\n\n" + _table(["row", "what it asks", "run as"], rows))
    return "\n".join(out)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main(results: str | None = None) -> int:
    """Run, write, and say what must not be."""
    sys.path.insert(0, str(ROOT))
    from tests.matrix.run import failures, required_rows, run, to_stderr

    found = run(to_stderr)
    PAGE.write_text(render(found, required_rows()), encoding="utf-8")
    if results is not None:
        Path(results).write_text(json.dumps(found, indent=1), encoding="utf-8")
    failed = failures(found)
    sys.stderr.write("\r" + "".join(f"{line}\n" for line in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
