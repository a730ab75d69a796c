"""``tally verify``."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import (
    Screen,
    clean,
    day_text,
    find_log,
    is_event,
    local,
    plural,
    print_json,
    range_text,
    user_memory,
    when_text,
    zone_text,
)  # fmt: skip

if TYPE_CHECKING:
    from datetime import tzinfo

    from ..core.verify import Span, Verdict
    from ..memory import Memory

_ORDER = (6, 2, 4, 5, 3)
ROWS_MAX = 40
_INPUT_BYTES_MAX = 2 << 20


@click.command(
    name="verify",
    epilog="""\b
Example:
  tally verify
  tally verify audit_log --checkpoint kept-elsewhere.checkpoint      or a saved mail
  tally verify --require witnessed,sealed,max-age=1d                 for schedulers
  tally verify monday.checkpoint friday.checkpoint --log audit_log
  tally verify decision.tlog-proof --entry decision.json --vkey "$(cat kept-elsewhere.vkey)"
  tally verify evidence.zip --vkey "$(cat kept-elsewhere.vkey)"      a pack, or a proven answer
\b
--require: witnessed, anchored, sealed (of all entries older than max-age, 25h unless given), content,
alive, max-age=1d (the newest confirmation from outside is no older).
Exit codes: 0 all that was asked is proven, 2 usage or I/O, 3 cannot judge, 4 malformed input,
5 stale or an older copy, 6 altered, missing or rolled back.""",
)
@click.argument("things", nargs=-1, metavar="[THING]...")
@click.option("--entry", "entry_file", metavar="FILE", help="What a proof is about, as 'show --raw' wrote it ('-': standard input).")
@click.option("--vkey", metavar="V", help="The key to trust instead of your memory; nothing is remembered then.")
@click.option("--checkpoint", "checkpoint_file", metavar="FILE", help="A checkpoint kept elsewhere: the log must extend it.")
@click.option("--policy", "policy_file", metavar="FILE", help="Whom you trust: key of the log, witnesses, how many must confirm.")
@click.option("--require", metavar="WORDS", help="What must be proven, or the exit code is 3 or 5.")
@click.option("--log", "log_path", metavar="LOG", help="The log that proves how two checkpoints go together.")
@click.option("--new-only", is_flag=True, help="Only what came after the last proven size.")
@click.option("--content", is_flag=True, help="Leave index and payloads out.")
@click.option("--details", is_flag=True, help="Roots, keys, checkpoints and who signed them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(
    things: tuple[str, ...], entry_file: str | None, vkey: str | None, checkpoint_file: str | None, policy_file: str | None,
    require: str | None, log_path: str | None, new_only: bool, content: bool, details: bool, as_json: bool,
) -> int:  # fmt: skip
    """Prove that nothing was altered. THING is a log folder, two checkpoints, a .tlog-proof, a pack, an answer, an archive."""
    _check_require(require)
    found = [(path, kind) for thing in things or (None,) for path, kind in _sort(thing)]
    kinds = {kind for _, kind in found}
    if entry_file is not None and "proof" not in kinds:
        raise click.UsageError("--entry belongs to a .tlog-proof")
    for option, handed_in, fitting in (
        ("--checkpoint", checkpoint_file, {"log", "pack"}), ("--policy", policy_file, {"log", "pack", "answer", "proof"}),
        ("--require", require, {"log"}),
    ):  # fmt: skip
        if handed_in is not None and not kinds & fitting:
            raise click.UsageError(f"{option} belongs to a {' or a '.join(sorted(fitting))}, not to what you named")
    if "proof" in kinds and entry_file is None:
        raise click.UsageError("a proof is about an entry: --entry FILE, written by 'tally show EVENT --raw'")
    if log_path is not None and "checkpoint" not in kinds:
        raise click.UsageError("--log belongs to two checkpoints; a log to verify is named without it")
    _check_vkey(vkey)
    paired, checkpoint_file = _pair(found, checkpoint_file)
    handed = _Given(
        b"" if entry_file is None else _read(entry_file), vkey, None if checkpoint_file is None else _read(checkpoint_file),
        None if policy_file is None else _read(policy_file), require, None if log_path is None else find_log(log_path),
        new_only, content,
    )  # fmt: skip
    return _all(paired, handed, as_json=as_json, details=details)


class _Given(NamedTuple):
    """What was handed in with the things."""

    line: bytes
    vkey: str | None
    checkpoint: bytes | None
    policy: bytes | None
    require: str | None
    log: Path | None
    new_only: bool
    content: bool


def _all(found: list[tuple[tuple[Path, ...], str]], given: _Given, *, as_json: bool, details: bool) -> int:
    memory = user_memory()
    documents, codes = [], []
    for at, (paths, kind) in enumerate(found):
        with _busy(f"verifying {paths[0]}", paths[0] if kind == "log" else None, quiet=as_json) as progress:
            verdict = _verify(paths, kind, memory, given, progress)
        codes.append(verdict.exit_code)
        if as_json:
            documents.append({**verdict.as_dict(), "path": str(paths[0]), "kind": kind})
        else:
            if at:
                click.echo()
            show_verdict(verdict, paths[0], kind, details=details)
    code = next((c for c in _ORDER if c in codes), 0)
    if as_json:
        print_json(documents[0] if len(documents) == 1 else {"exit_code": code, "verified": code == 0, "things": documents})
    return code


def _pair(
    found: list[tuple[Path, str]], checkpoint_file: str | None
) -> tuple[list[tuple[tuple[Path, ...], str]], str | None]:  # fmt: skip
    """Two checkpoints are one thing; one beside a log is what that log must extend."""
    notes = [path for path, kind in found if kind == "checkpoint"]
    others = [((path,), kind) for path, kind in found if kind != "checkpoint"]
    logs = [paths for paths, kind in others if kind == "log"]
    if len(notes) == 2:
        return [((notes[0], notes[1]), "checkpoints"), *others], checkpoint_file
    if len(notes) == 1 and len(logs) == 1 and checkpoint_file is None:
        return list(others), str(notes[0])
    if notes:
        raise click.UsageError(f"{notes[0]} is a checkpoint; verify takes two of them, or one and the log that it is of")
    return list(others), checkpoint_file


def _sort(thing: str | None) -> list[tuple[Path, str]]:
    """What a THING is: by what it looks like, never by what it claims."""
    if thing is None:
        return [(find_log(None), "log")]
    if is_event(thing):
        raise click.UsageError(f"{thing} is an entry; verify takes a log, a .tlog-proof, an archive (see tally prove)")
    path = Path(os.path.abspath(os.path.expanduser(thing)))
    if thing.endswith(".zst"):
        return [(path, "archive")]
    if thing.endswith(".tlog-proof"):
        return [(path, "proof")]
    handed_out = _handed_out(path)
    if handed_out:
        return [(path, handed_out)]
    if path.is_file():
        return [(path, "checkpoint" if _is_checkpoint(path) else "proof")]
    if path.is_dir() and not (path / "log.vkey").exists() and not (path / "segments").exists():
        archives = sorted(path.glob("audit_*.jsonl.zst"))
        if archives and user_memory().get(path) is None:
            return [(archive, "archive") for archive in archives]
    return [(path, "log")]


def _handed_out(path: Path) -> str | None:
    """A pack or an answer, by how it begins."""
    try:
        with path.open("rb") as file:
            begin = file.read(21) if path.is_file() else b""
    except OSError:
        return None
    return "pack" if begin[:4] in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix == ".zip" else (
        "answer" if begin == b"tallystick/answer@v1\n" else None)  # fmt: skip


def _is_checkpoint(path: Path) -> bool:
    from ..anchor.saved_mail import find_note
    from ..core.errors import Malformed

    try:
        find_note(_read(str(path)))
    except (Malformed, OSError):
        return False
    return True


def _verify(
    paths: tuple[Path, ...], kind: str, memory: Memory, given: _Given, progress: Callable[[str, int], None] | None
) -> Verdict:  # fmt: skip
    from .. import splitview, verification
    from ..core.errors import Malformed, VerificationError
    from ..core.verify import Finding, Verdict

    path = paths[0]
    try:
        if kind == "checkpoints":
            a, b = (splitview.Handed.read(_shown(path), _read(str(path))) for path in paths)
            vkey = given.vkey or os.environ.get("TALLY_VKEY") or None
            return splitview.compare(a, b, memory=memory, vkey=vkey, log=given.log)
        if kind in ("pack", "answer"):
            return _judge(path, kind, memory, given)
        if kind == "proof":
            return verification.verify_proof(_read(str(path)), given.line, vkey=given.vkey, memory=memory, policy=given.policy)
        if kind == "archive":
            return verification.verify_archive(path, memory=memory, vkey=given.vkey)
        return verification.verify_log(
            path, memory=memory, vkey=given.vkey, checkpoint=given.checkpoint, policy=given.policy, require=given.require,
            content=given.content, new_only=given.new_only, progress=progress,
        )  # fmt: skip
    except (VerificationError, Malformed, OSError) as e:
        code = 6 if isinstance(e, VerificationError) else 4 if isinstance(e, Malformed) else 2
        issue = {6: "replaced", 4: "malformed", 2: "unreadable"}[code]
        text = f"{e.filename or path}: {e.strerror}" if isinstance(e, OSError) else str(e)
        return Verdict(findings=[Finding(issue, text, code)], of=kind)


def _judge(path: Path, kind: str, memory: Memory, given: _Given) -> Verdict:
    from ..anchor.saved_mail import find_note
    from ..core.packfile import PACK_BYTES_MAX
    from ..judging import judge_answer, judge_pack

    data = _read(str(path), PACK_BYTES_MAX)
    if kind == "answer":
        return judge_answer(data, memory=memory, vkey=given.vkey, policy=given.policy)
    kept = None if given.checkpoint is None else find_note(given.checkpoint)
    return judge_pack(data, memory=memory, vkey=given.vkey, checkpoint=kept, policy=given.policy)


def _shown(path: Path) -> str:
    """As short as it can be named from here."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _check_require(require: str | None) -> None:
    from ..core.errors import Malformed
    from ..core.require import Requirements

    if require is not None:
        try:
            Requirements.parse(require)
        except Malformed as e:
            raise click.UsageError(f"--require: {e}") from None


def _check_vkey(vkey: str | None) -> None:
    from ..core.errors import Malformed
    from ..core.note import VerifierKey

    for name, value in (("--vkey", vkey), ("$TALLY_VKEY", os.environ.get("TALLY_VKEY") if vkey is None else None)):
        if value:
            try:
                VerifierKey.parse(value)
            except Malformed as e:
                raise Malformed(f"{name}: {e}") from None


def _read(name: str, bytes_max: int = _INPUT_BYTES_MAX) -> bytes:
    from ..core.errors import Malformed

    if name == "-":
        data = sys.stdin.buffer.read(bytes_max + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise Malformed(f"{name}: more than {bytes_max:,} bytes; nothing that belongs here is so long")
    return data


@contextlib.contextmanager
def _busy(text: str, log: Path | None, *, quiet: bool) -> Iterator[Callable[[str, int], None] | None]:
    """How far it is, for people, on standard error and only on a terminal: a bar that ends at the last entry."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, highlight=False)
    total = None if log is None else _claimed_size(log)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[reached]}", markup=False),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(clean(text), total=total, reached="")

        def reach(what: str, done: int) -> None:
            of = "" if total is None else f" / {total:,}"
            bar.update(task, description=clean(f"{text}: {what}"), completed=done, reached=f"#{done:,}{of}")

        yield reach


def _claimed_size(log: Path) -> int | None:
    """What the head says of itself: good enough for a bar."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        if (log / "checkpoint").is_file():
            with (log / "checkpoint").open("rb") as file:
                return int(file.read(4096).split(b"\n")[1][:19])
    return None


# -- the screen ------------------------------------------------------------------------------------------------------------


def show_verdict(verdict: Verdict, path: Path, kind: str = "log", *, details: bool = False) -> None:
    """The finding, then the ranges, then what cannot be seen, whose key it is, what is missing, and the next command."""
    screen = Screen()
    zone = _zone(path) if kind == "log" else None
    now = local(time.time_ns() // 1000, zone) if zone else None
    when = f"{day_text(now)} {now:%H:%M} {zone_text(now)}" if now else ""
    screen.long("   ".join(str(x) for x in (verdict.origin, "" if kind == "checkpoints" else path, when) if x), "bold")
    screen.blank()
    code = verdict.exit_code
    _sentence(screen, verdict, kind, zone)
    if code == 6:
        screen.line("Copy first, repair nothing.", "bold", indent=2)
    issues = verdict.issues
    if not (len(issues) == 1 and issues[0].get("index") is None and str(issues[0].get("text")) in verdict.sentence):
        _issues(screen, issues, zone)
    if kind in ("log", "pack") and code in (0, 3, 6):
        _ranges(screen, verdict, zone)
    if code == 6:
        _bad_day(screen, verdict)
    lists = [("older parts", verdict.older_parts), ("cannot be seen here", _unseen(verdict, kind)), ("seen", verdict.seen),
             ("kept as evidence", verdict.evidence),
             ("not counted", _not_counted(verdict, zone)), ("pending", verdict.pending)]  # fmt: skip
    shown = [(title, lines) for title, lines in lists if lines]
    if shown:
        screen.blank()
    for title, lines in shown:
        for at, text in enumerate(lines):
            shown_text = f"{title + ':' if at == 0 else '':<22}{text}"
            if lines is verdict.evidence:
                screen.long(f"  {shown_text}")  # paths are copied
            else:
                screen.line(shown_text, indent=2, hang=22)
    _key(screen, verdict, zone)
    if details:
        _details(screen, verdict, zone)
    _commands(screen, "to add", [] if code in (2, 4, 6) else [(what, how) for what, how in verdict.lacks])
    following = _next(verdict, path, kind)
    if following:
        screen.blank()
    for at, text in enumerate(following):
        shown_text = f"{'next:' if at == 0 else '':<12}{text}"
        if "tally " in text:
            screen.long(f"  {shown_text}")
        else:
            screen.line(shown_text, indent=2, hang=12)


def _sentence(screen: Screen, verdict: Verdict, kind: str, zone: tzinfo | None) -> None:
    code = verdict.exit_code
    style = "bold red" if code in (6, 2) else "bold"
    if kind != "log" or not verdict.sentence.startswith("NOTHING ALTERED"):
        screen.line(verdict.sentence, style, indent=2)
        return
    first, _, second = verdict.sentence.partition("; ")
    screen.line(f"{first}{_period(verdict, zone)}.", style, indent=2)
    second, dot, asked = second.partition(". ")
    screen.line(second[:1].upper() + second[1:].replace(" also confirmed", " are also confirmed", 1) + dot.strip(), style, indent=2)
    if asked:
        screen.line(asked, "bold", indent=2)
    if verdict.lifecycle_entries:
        screen.line(f"  {plural(verdict.lifecycle_entries, 'of them is', 'of them are')} about the log itself.")


def _period(verdict: Verdict, zone: tzinfo | None) -> str:
    from ..core.times import parse_time

    if verdict.times is None or zone is None:
        return ""
    first, last = (when_text(parse_time(t), zone) for t in verdict.times)
    if first[:-5] == last[:-5]:
        return f" ({first} – {last[-5:]})" if first != last else f" ({first})"
    return f" ({first} – {last})"


def _ranges(screen: Screen, verdict: Verdict, zone: tzinfo | None) -> None:
    if not verdict.spans:
        return
    screen.blank()
    rows = [_row(verdict, s, zone) for s in verdict.spans[:ROWS_MAX]]
    red = [at for at, s in enumerate(verdict.spans[:ROWS_MAX]) if s.contents[0] in ("altered", "missing")]
    screen.table(["entries", "contents", "signed", "epoch closed", "confirmed outside by"], rows, red=red)
    if len(verdict.spans) > ROWS_MAX:
        screen.line(f"  … {len(verdict.spans) - ROWS_MAX:,} more ranges; all of them: --json")
    if verdict.gone_to:
        screen.line(f"gone on record:  {range_text(0, verdict.gone_to)} in archives; only what identifies them is here", indent=2)


def _row(verdict: Verdict, span: Span, zone: tzinfo | None) -> list[str]:
    place = [range_text(span.start, span.end), _contents(span)]
    if span.start >= verdict.tree_size:  # others have seen them; nothing is known of them here
        return [*place, "–", "–", "–"]
    epoch = {"sealed": "ok", "epoch open": "open"}.get(span.epoch, span.epoch)
    return [*place, "ok" if span.signed == "signed" else span.signed, epoch, _by(verdict, span, zone)]


def _contents(span: Span) -> str:
    return {"content proven": "ok", "proven before": "ok before"}.get(span.contents[0], ", ".join(span.contents))


def _by(verdict: Verdict, span: Span, zone: tzinfo | None) -> str:
    if not span.outside:
        return "nobody yet"
    times = {c.by: c.time_us for c in verdict.confirmations if c.counts}
    return ", ".join(f"{by} ({_at(times[by], zone)})" if times.get(by) else by for by in span.outside)


def _at(us: int, zone: tzinfo | None) -> str:
    from ..core.verify import minute_text

    return when_text(us, zone) if zone else minute_text(us)


def _bad_day(screen: Screen, verdict: Verdict) -> None:
    """What still holds, and what a log cannot tell."""
    bad = sum(s.end - s.start for s in verdict.spans if s.contents[0] in ("altered", "missing") and s.end <= verdict.tree_size)
    holds = sum(s.end - s.start for s in verdict.spans if s.contents[0] in ("content proven", "proven before"))
    screen.blank()
    other = "other " if bad else ""
    if holds == 1:
        screen.line(f"The {other or 'one '}entry that is here holds.", indent=2)
    elif holds:
        screen.line(f"The {other}{holds:,} entries that are here hold.", indent=2)
    screen.line("Who or why cannot be told from the log.", indent=2)


def _unseen(verdict: Verdict, kind: str) -> list[str]:
    found = [text for text in verdict.not_proven if not text.startswith(("the key is pinned only", "this run remembers nothing"))]
    if kind == "log" and verdict.exit_code in (0, 3, 5) and verdict.tree_size:
        found.append("what never passed the program, wrapper or proxy that records")
    return found


def _not_counted(verdict: Verdict, zone: tzinfo | None) -> list[str]:
    return [f"{c.by}: {c.remark} (says {c.size:,} entries{f', {_at(c.time_us, zone)}' if c.time_us else ''})"
            for c in verdict.confirmations if not c.counts]  # fmt: skip


def _key(screen: Screen, verdict: Verdict, zone: tzinfo | None) -> None:
    vkey, who, since = verdict.key
    if not vkey or who == "nobody":
        return
    key_id = vkey.split("+")[1]
    text = f"key {key_id[:4]} {key_id[4:]}, "
    text += "given by you; nothing is remembered" if who == "given" else "pinned on this machine, by you" + (
        f", since {_at(since, zone)}" if since else "")  # fmt: skip
    if who != "given":
        from ..card import made_us

        text += f"; card printed: {'yes' if made_us(user_memory(), vkey) else 'no (tally key card)'}"
    screen.blank()
    screen.line(text, indent=2)


def _details(screen: Screen, verdict: Verdict, zone: tzinfo | None) -> None:
    screen.blank()
    screen.long(f"  tree size   {verdict.tree_size:,}")
    screen.long(f"  root hash   {verdict.root}")
    screen.long(f"  log key     {verdict.key[0]}")
    screen.line(f"witnessed to {verdict.witnessed_to:,} · anchored to {verdict.anchored_to:,} · sealed to {verdict.sealed_to:,}",
                indent=2)  # fmt: skip
    for c in verdict.confirmations:
        when = f", {_at(c.time_us, zone)}" if c.time_us else ""
        what = {"witness": f"cosignature by {c.by} on the checkpoint", "given": c.by}.get(c.kind, f"{c.by}: checkpoint")
        screen.line(f"{what} of size {c.size:,}{when}{'' if c.counts else ': ' + c.remark}", indent=2)


def _commands(screen: Screen, title: str, rows: list[tuple[str, str]]) -> None:
    """What, and below it the command, which is never wrapped."""
    if rows:
        screen.blank()
    for at, (what, how) in enumerate(rows):
        screen.line(f"{title + ':' if at == 0 else '':<12}{what}", indent=2, hang=12)
        screen.long(f"  {'':<12}{how}")


def _issues(screen: Screen, issues: list[dict[str, Any]], zone: tzinfo | None) -> None:
    if not issues:
        return
    screen.blank()
    rows = []
    for issue in issues[:ROWS_MAX]:
        index, end = issue.get("index"), issue.get("end")
        place = "the log" if index is None else range_text(index, end or index + 1)
        where = issue.get("file") or ""
        if issue.get("offset") is not None:
            where += f" at byte {issue['offset']:,}"
        said = [_when(issue.get("timestamp"), zone), issue.get("event_id"), issue.get("text"), where and f"({where})"]
        rows.append([place, str(issue.get("issue", "")).replace("_", " "), " ".join(str(s) for s in said if s)])
    screen.table(["", "", ""], rows, head=False)
    if len(issues) > ROWS_MAX:
        screen.line(f"  … {len(issues) - ROWS_MAX:,} more; all of them: --json")


def _when(text: str | None, zone: tzinfo | None) -> str:
    from ..core.errors import Malformed
    from ..core.times import parse_time

    if not text:
        return ""
    try:
        return f"{local(parse_time(text), zone):%Y-%m-%d %H:%M}" if zone else text
    except (Malformed, ValueError, OverflowError, TypeError):
        return str(text)


def _next(verdict: Verdict, path: Path, kind: str) -> list[str]:
    from ..opening import is_log

    found = list(verdict.next)
    if verdict.exit_code == 6 and kind == "log" and not is_log(path):
        found.append(f"tally resume {shlex.quote(str(path))} --from BACKUP --reason \"restored the backup of …\"")
        found.append("or look where it went, and put all of it back")
    elif verdict.exit_code == 6 and kind == "log":
        found.append(f"tally backup --as-evidence DEST-ON-ANOTHER-DISK --log {shlex.quote(str(path))}")
        found.append('then read docs: "When it says altered"')
    return found


def _zone(path: Path) -> tzinfo | None:
    from ..clock import zone
    from ..config import read_settings
    from ..core.errors import AuditError

    try:
        return zone(read_settings(path).timezone)
    except (AuditError, OSError, ValueError):
        return None
