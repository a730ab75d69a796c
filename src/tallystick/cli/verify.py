"""``tally verify``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Screen, clean, day_text, find_log, is_event, local, plural, print_json, range_text, user_memory, zone_text

if TYPE_CHECKING:
    from datetime import tzinfo

    from ..core.verify import Verdict
    from ..memory import Memory

_ORDER = (6, 2, 4, 5, 3)
ROWS_MAX = 40
_INPUT_BYTES_MAX = 2 << 20


@click.command(
    name="verify",
    epilog="""\b
Example:
  tally verify
  tally verify audit_log --checkpoint kept-elsewhere.checkpoint
  tally verify decision.tlog-proof --entry decision.json --vkey "$(cat kept-elsewhere.vkey)"
\b
Exit codes: 0 all that was asked is proven, 2 usage or I/O, 3 cannot judge, 4 malformed input,
5 stale or an older copy, 6 altered, missing or rolled back.""",
)
@click.argument("things", nargs=-1, metavar="[THING]...")
@click.option("--entry", "entry_file", metavar="FILE", help="What a proof is about, as 'show --raw' wrote it ('-': standard input).")
@click.option("--vkey", metavar="V", help="The key to trust instead of your memory; nothing is remembered then.")
@click.option("--checkpoint", "checkpoint_file", metavar="FILE", help="A checkpoint kept elsewhere: the log must extend it.")
@click.option("--new-only", is_flag=True, help="Only what came after the last proven size.")
@click.option("--content", is_flag=True, help="Leave index and payloads out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(
    things: tuple[str, ...], entry_file: str | None, vkey: str | None, checkpoint_file: str | None, new_only: bool, content: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Prove that nothing was altered. THING is a log folder, a .tlog-proof, an archive file or a folder of them."""
    found = [(path, kind) for thing in things or (None,) for path, kind in _sort(thing)]
    kinds = {kind for _, kind in found}
    if entry_file is not None and "proof" not in kinds:
        raise click.UsageError("--entry belongs to a .tlog-proof")
    if checkpoint_file is not None and "log" not in kinds:
        raise click.UsageError("--checkpoint belongs to a log")
    if "proof" in kinds and entry_file is None:
        raise click.UsageError("a proof is about an entry: --entry FILE, written by 'tally show EVENT --raw'")
    _check_vkey(vkey)
    checkpoint = None if checkpoint_file is None else _read(checkpoint_file)
    line = b"" if entry_file is None else _read(entry_file)
    memory = user_memory()
    documents, codes = [], []
    for at, (path, kind) in enumerate(found):
        with _busy(f"verifying {path}", quiet=as_json) as progress:
            verdict = _verify(path, kind, memory, line=line, vkey=vkey, checkpoint=checkpoint, new_only=new_only, content=content,
                              progress=progress)  # fmt: skip
        codes.append(verdict.exit_code)
        if as_json:
            documents.append({**verdict.as_dict(), "path": str(path), "kind": kind})
        else:
            if at:
                click.echo()
            show_verdict(verdict, path, kind)
    code = next((c for c in _ORDER if c in codes), 0)
    if as_json:
        print_json(documents[0] if len(documents) == 1 else {"exit_code": code, "verified": code == 0, "things": documents})
    return code


def _sort(thing: str | None) -> list[tuple[Path, str]]:
    """What a THING is: by what it looks like, never by what it claims."""
    if thing is None:
        return [(find_log(None), "log")]
    if is_event(thing):
        raise click.UsageError(f"{thing} is an entry; verify takes a log, a .tlog-proof, an archive (see tally prove)")
    path = Path(os.path.abspath(os.path.expanduser(thing)))
    if thing.endswith(".zst"):
        return [(path, "archive")]
    if thing.endswith(".tlog-proof") or path.is_file():
        return [(path, "proof")]
    if path.is_dir() and not (path / "log.vkey").exists() and not (path / "segments").exists():
        archives = sorted(path.glob("audit_*.jsonl.zst"))
        if archives and user_memory().get(path) is None:
            return [(archive, "archive") for archive in archives]
    return [(path, "log")]


def _verify(
    path: Path, kind: str, memory: Memory, *, line: bytes, vkey: str | None, checkpoint: bytes | None, new_only: bool,
    content: bool, progress: Callable[[str, int], None] | None = None,
) -> Verdict:  # fmt: skip
    from .. import verification
    from ..core.errors import Malformed, VerificationError
    from ..core.verify import Finding, Verdict

    try:
        if kind == "proof":
            return verification.verify_proof(_read(str(path)), line, vkey=vkey, memory=memory)
        if kind == "archive":
            return verification.verify_archive(path, memory=memory, vkey=vkey)
        return verification.verify_log(path, memory=memory, vkey=vkey, checkpoint=checkpoint, content=content, new_only=new_only,
                                       progress=progress)  # fmt: skip
    except (VerificationError, Malformed, OSError) as e:
        code = 6 if isinstance(e, VerificationError) else 4 if isinstance(e, Malformed) else 2
        issue = {6: "replaced", 4: "malformed", 2: "unreadable"}[code]
        text = f"{e.filename or path}: {e.strerror}" if isinstance(e, OSError) else str(e)
        return Verdict(findings=[Finding(issue, text, code)])


def _check_vkey(vkey: str | None) -> None:
    from ..core.errors import Malformed
    from ..core.note import VerifierKey

    for name, value in (("--vkey", vkey), ("$TALLY_VKEY", os.environ.get("TALLY_VKEY") if vkey is None else None)):
        if value:
            try:
                VerifierKey.parse(value)
            except Malformed as e:
                raise Malformed(f"{name}: {e}") from None


def _read(name: str) -> bytes:
    from ..core.errors import Malformed

    if name == "-":
        data = sys.stdin.buffer.read(_INPUT_BYTES_MAX + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(_INPUT_BYTES_MAX + 1)
    if len(data) > _INPUT_BYTES_MAX:
        raise Malformed(f"{name}: more than {_INPUT_BYTES_MAX:,} bytes; nothing that belongs here is so long")
    return data


@contextlib.contextmanager
def _busy(text: str, *, quiet: bool) -> Iterator[Callable[[str, int], None] | None]:
    """How far it is, for people, on standard error: what is being done and the entry reached."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True, markup=False, highlight=False).status(clean(text)) as status:
        yield lambda what, done: status.update(clean(f"{text}: {what}, #{done:,}"))


# -- the screen ------------------------------------------------------------------------------------------------------------


def show_verdict(verdict: Verdict, path: Path, kind: str = "log") -> None:
    """The finding, then the ranges, then what was not proven, then the next command."""
    screen = Screen()
    zone = _zone(path) if kind == "log" else None
    now = local(time.time_ns() // 1000, zone) if zone else None
    when = f"{day_text(now)} {now:%H:%M} {zone_text(now)}" if now else ""
    screen.long("   ".join(str(x) for x in (verdict.origin, path, when) if x), "bold")
    screen.blank()
    code = verdict.exit_code
    own = verdict.sentence
    if kind == "proof" and code == 0:
        own = f"THE ENTRY IS IN THE LOG {verdict.origin}, as it was at {verdict.tree_size:,} entries."
    elif kind == "archive" and code == 0:
        span = verdict.spans[0] if verdict.spans else None
        own = f"NOTHING ALTERED in this archive{f': {range_text(span.start, span.end)}' if span else ''}."
    screen.line(own, "bold red" if code in (6, 2) else "bold", indent=2)
    if code == 6:
        screen.line("Copy first, repair nothing.", "bold", indent=2)
    if code == 0 and verdict.lifecycle_entries and kind == "log":
        screen.line(f"  {plural(verdict.lifecycle_entries, 'of them is', 'of them are')} about the log itself.")
    issues = verdict.issues
    if not (len(issues) == 1 and issues[0].get("index") is None and str(issues[0].get("text")) in own):
        _issues(screen, issues, zone)
    _ranges(screen, verdict.ranges, kind)
    if code == 6:
        screen.blank()
        screen.line("  Who or why cannot be told from the log.")
    for title, lines in (("not proven", verdict.not_proven), ("next", _next(verdict, path, kind))):
        if lines:
            screen.blank()
            for at, text in enumerate(lines):
                shown = f"{title + ':' if at == 0 else '':<12}{text}"
                if "tally " in text:
                    screen.long(f"  {shown}")
                else:
                    screen.line(shown, indent=2, hang=12)


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


def _ranges(screen: Screen, ranges: list[dict[str, Any]], kind: str) -> None:
    if not ranges or kind == "proof":
        return
    screen.blank()
    rows = [[range_text(r["start"], r["end"]), f"{r['end'] - r['start']:,}", " · ".join(r["words"])] for r in ranges[:ROWS_MAX]]
    screen.table(["entries", "count", "what holds"], rows, right=[1])
    if len(ranges) > ROWS_MAX:
        screen.line(f"  … {len(ranges) - ROWS_MAX:,} more ranges; all of them: --json")


def _next(verdict: Verdict, path: Path, kind: str) -> list[str]:
    found = list(verdict.next)
    if verdict.exit_code == 6 and kind == "log":
        found.append(f"copy {path} and {path}.keys as they are, then read docs: \"When it says altered\"")
    return found


def _zone(path: Path) -> tzinfo | None:
    from ..clock import zone
    from ..config import read_settings
    from ..core.errors import AuditError

    try:
        return zone(read_settings(path).timezone)
    except (AuditError, OSError, ValueError):
        return None
