"""What several commands need: which log, which period, clean text, JSON, a screen of at most 100 columns."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from ..logger import AuditLogger
    from ..memory import Known, Memory

COLUMNS_MAX = 100
_EVENT = re.compile(r"evt_[0-9a-f]{32}|[0-9]{0,4}#[0-9][0-9,._]*", re.ASCII)
# controls, DEL, C1, separators, and what turns the direction of text or joins nothing: all can make a screen lie
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_TRAILING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
F = TypeVar("F", bound=Callable[..., Any])


class Damaged(Exception):
    """What is stored is not what its format or its signature says, met while reading."""


# -- text --------------------------------------------------------------------------------------------------------------


def clean(text: object) -> str:
    """Text of a log for a screen: control characters as ``\\x1b``, direction marks as ``\\u202e``."""
    return _UNSAFE.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", str(text))


def print_json(value: Any, *, line: bool = False) -> None:
    """One JSON document; nothing in it can move a terminal's cursor."""
    text = json.dumps(value, ensure_ascii=False, indent=None if line else 2, allow_nan=False, default=str)
    click.echo(_UNSAFE_IN_JSON.sub(lambda m: f"\\u{ord(m[0]):04x}", text))


def print_bytes(data: bytes) -> None:
    """Exactly these bytes on standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_whole(file: Path, data: bytes) -> None:
    """All or nothing, under its name only when it is whole; a device or a pipe is written to, never replaced."""
    if file.exists() and not file.is_file():
        file.write_bytes(data)
        return
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def note(text: str) -> None:
    """A remark on standard error."""
    click.echo(clean(text), err=True)


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 entry``, ``1,204 entries``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def range_text(start: int, end: int) -> str:
    """A half-open range of indexes as ``#0 – #41``."""
    return f"#{start:,}" if end - start == 1 else f"#{start:,} – #{end - 1:,}"


# -- which log -----------------------------------------------------------------------------------------------------------


def is_event(text: str) -> bool:
    """An event id of ours or ``#index``: never taken for a path."""
    return _EVENT.fullmatch(text) is not None


def find_log(given: str | None) -> Path:
    """LOG: the argument, else ``$TALLY_LOG``, else ``./audit_log``."""
    from ..opening import log_path

    if given is not None and is_event(given):
        raise click.UsageError(f"{given} is an entry, not a folder; to see it: tally show '{given}'")
    if given == "":
        raise click.UsageError("the name of the log is empty")
    return log_path(given)


def wanted_entry(text: str) -> str | int:
    """An event id, or the index in ``#17,402``."""
    from ..core.merkle import SIZE_MAX

    if re.fullmatch("[0-9]{1,4}#[0-9][0-9,._]*", text, re.ASCII):
        return re.sub(r"[,._]", "", text)  # of an older part
    if not text.startswith("#"):
        return text
    digits = re.sub(r"[,._]", "", text[1:])
    if not digits.isascii() or not digits.isdigit() or int(digits[:20]) > SIZE_MAX:
        raise click.UsageError(f"{text!r} is not an index; write it like '#17402'")
    return int(digits)


def log_and_event(args: Sequence[str], command: str) -> tuple[str | None, str]:
    """``[LOG] EVENT``: one argument is always the entry."""
    if len(args) == 1:
        return None, args[0]
    if len(args) == 2:
        return args[0], args[1]
    if args:
        raise click.UsageError(f"{command} takes [LOG] EVENT, not {len(args)} arguments")
    raise click.UsageError(
        f"{command} needs an entry: tally {command} evt_…  or  tally {command} '#17'  (in quotes: a shell takes # for a comment)"
    )


@contextlib.contextmanager
def open_log(
    path: Path, *, write: bool = False, retention_days: int | None = None, service: str | None = None
) -> Iterator[AuditLogger]:
    """The log at a path, which must be there. Bad bytes met while reading become ``Damaged``."""
    from ..core.errors import EntryRefused, Malformed, VerificationError
    from ..logger import AuditLogger

    try:
        log = AuditLogger(path, retention_days, create=False, service=service)
        try:
            yield log
        finally:
            log.close()
    except EntryRefused:
        raise
    except (Malformed, VerificationError) as e:
        doing = "writing to" if write else "reading"
        raise Damaged(f"{e}\nthis was met while {doing} {path}; tally verify {path} says more") from e


def user_memory() -> Memory:
    """What this user knows of logs."""
    from ..memory import default_memory

    return default_memory(os.environ)


def stored_entry(log: AuditLogger, text: str) -> Any:
    """The stored line, or one clear line of error."""
    wanted = wanted_entry(text)
    try:
        return log.stored(wanted)
    except KeyError:
        pass
    view = log._handle.view
    size = view.head().size
    if isinstance(wanted, str):
        hint = ""
        if os.path.isdir(text):
            hint = "; that is a folder: name the log first and then the entry"
        elif text.isascii() and text.isdigit():
            hint = f"; by index it is '#{text}', in quotes"
        raise click.ClickException(f"there is no entry {text!r} in {log.path}{hint}")
    for first, end, name in view.history(size).archived:
        if first <= wanted < end:
            raise click.ClickException(f"entry #{wanted:,} was archived; it is in {name}: tally query --archives FOLDER")
    raise click.ClickException(f"there is no entry #{wanted:,} in {log.path}, which has #0 to #{size - 1:,}")


# -- which period ----------------------------------------------------------------------------------------------------------


class Period(NamedTuple):
    """Inclusive microseconds; None is open."""

    start_us: int | None
    end_us: int | None

    @property
    def start(self) -> datetime | None:
        """As a time."""
        return None if self.start_us is None else _moment(self.start_us)

    @property
    def end(self) -> datetime | None:
        """As a time."""
        return None if self.end_us is None else _moment(self.end_us)


def _moment(us: int) -> datetime:
    from ..core.times import to_datetime

    return to_datetime(us, UTC)


def period_options(function: F) -> F:
    """``--on``, ``--since``, ``--until``, ``--period``."""
    for option in reversed((
        click.option("--on", metavar="DAY", help="One day of the log's time zone: 2026-11-24, yesterday, 'last tuesday'."),
        click.option("--since", metavar="T", help="From then on: a date, a time (UTC without offset), 7d, yesterday."),
        click.option("--until", metavar="T", help="Up to then, that day included."),
        click.option("--period", metavar="P", help="A month or a day: 2026-11."),
    )):  # fmt: skip
        function = option(function)
    return function


def parse_period(
    zone: tzinfo, on: str | None, since: str | None, until: str | None, period: str | None, now_us: int | None = None
) -> Period:  # fmt: skip
    """The options' words as times. A usage error names the option."""
    if sum((on is not None, period is not None, since is not None or until is not None)) > 1:
        raise click.UsageError("--on, --period and --since/--until do not go together")
    now = time.time_ns() // 1000 if now_us is None else now_us
    for name, value in (("--on", on), ("--period", period)):
        if value is not None:
            start, end = _asked(name, value, zone, False, now), _asked(name, value, zone, True, now)
            if end <= start:
                raise click.UsageError(f"{name}: {value!r} is a moment, not a day or a month; --since and --until take moments")
            return Period(start, end)
    found = Period(
        None if since is None else _asked("--since", since, zone, False, now),
        None if until is None else _asked("--until", until, zone, True, now),
    )
    if found.start_us is not None and found.end_us is not None and found.start_us > found.end_us:
        raise click.UsageError("--since is later than --until")
    return found


def _asked(name: str, value: str, zone: tzinfo, end: bool, now: int) -> int:
    from ..core.times import parse_asked, to_datetime

    try:
        us = parse_asked(value, zone=zone, end=end, now_us=now)
        to_datetime(us, zone)
        return us
    except ValueError as e:
        raise click.UsageError(f"{name}: {e}") from None
    except OverflowError:
        raise click.UsageError(f"{name}: {value!r} is outside the years this program knows") from None


# -- times for people ------------------------------------------------------------------------------------------------------


def local(us: int, zone: tzinfo) -> datetime:
    """A time in the log's zone."""
    from ..core.times import to_datetime

    return to_datetime(us, zone)


def zone_text(moment: datetime) -> str:
    """``Europe/Berlin (+01:00)``."""
    name = getattr(moment.tzinfo, "key", None) or str(moment.tzinfo)
    offset = moment.strftime("%z")
    return f"{name} ({offset[:3]}:{offset[3:5]})"


def day_text(moment: datetime) -> str:
    """``Tue 24 Nov 2026``, in English whatever the locale."""
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    return f"{days[moment.weekday()]} {moment.day} {months[moment.month - 1]} {moment.year}"


def when_text(us: int, zone: tzinfo, *, now_us: int | None = None) -> str:
    """``today 09:11``, ``yesterday 09:11``, else ``Tue 24 Nov 2026 09:11``."""
    from datetime import timedelta

    moment = local(us, zone)
    today = local(time.time_ns() // 1000 if now_us is None else now_us, zone).date()
    clock = moment.strftime("%H:%M")
    if moment.date() == today:
        return f"today {clock}"
    if moment.date() == today - timedelta(days=1):
        return f"yesterday {clock}"
    return f"{day_text(moment)} {clock}"


def _zones(moments: Sequence[datetime]) -> str:
    """``Europe/Berlin (+02:00, +01:00)``: the offsets in the order in which they come."""
    offsets = dict.fromkeys(zone_text(moment).rpartition("(")[2].rstrip(")") for moment in moments)
    return f"{zone_text(moments[0]).rpartition(' (')[0]} ({', '.join(offsets)})"


def period_text(period: Period, zone: tzinfo, shown: Sequence[datetime] = ()) -> str:
    """The heading of an answer: what was asked for, with the zone and every offset that its times and the ``shown`` ones have."""
    from datetime import timedelta

    ends = [local(us, zone) for us in period if us is not None]
    zones = _zones(sorted([*ends, *shown]) or [local(time.time_ns() // 1000, zone)])
    if not ends:
        return f"all times {zones}"
    if len(ends) == 1:
        word = "since" if period.start_us is not None else "until"
        return f"{word} {day_text(ends[0])}, {_clock(ends[0])} {zones}"
    first, last = ends
    after = last + timedelta(microseconds=1)
    whole = (first.hour, first.minute, first.second, first.microsecond) == (0, 0, 0, 0) and (
        after.hour, after.minute, after.second, after.microsecond) == (0, 0, 0, 0)  # fmt: skip
    if whole and first.date() == last.date():
        return f"{day_text(first)}, 00:00–24:00 {zones}"
    if whole:
        return f"{day_text(first)} – {day_text(last)} {zones}"
    return f"{day_text(first)}, {_clock(first)} – {day_text(last)}, {_clock(last)} {zones}"


def _clock(moment: datetime) -> str:
    if moment.microsecond == 999_999 and (moment.hour, moment.minute, moment.second) == (23, 59, 59):
        return "24:00"
    return moment.strftime("%H:%M:%S" if moment.second or moment.microsecond else "%H:%M")


# -- the screen ------------------------------------------------------------------------------------------------------------


class Screen:
    """Standard output for people: at most 100 columns, no markup, red only for what needs a person."""

    def __init__(self) -> None:
        from rich.console import Console

        class Quiet(Console):
            """Rich would end the process with 1 when nobody reads."""

            def on_broken_pipe(self) -> None:
                raise BrokenPipeError

        width = COLUMNS_MAX
        if sys.stdout.isatty() or os.environ.get("COLUMNS"):
            width = max(40, min(Console().width, COLUMNS_MAX))
        self.console = Quiet(highlight=False, markup=False, emoji=False, width=width, file=sys.stdout)

    def line(self, text: object = "", style: str = "", *, indent: int = 0, hang: int = 0) -> None:
        """One cleaned line, wrapped at the edge; what is wrapped begins ``hang`` columns further in."""
        from rich.text import Text

        wrapped = list(Text(clean(text), style=style).wrap(self.console, self.console.width - indent - hang)) or [Text()]
        for at, one in enumerate(wrapped):
            one.rstrip()
            self.console.print(Text(" " * (indent + (hang if at else 0))) + one, soft_wrap=True)

    def long(self, text: object, style: str = "") -> None:
        """One cleaned line that is never wrapped: what people copy."""
        from rich.text import Text

        self.console.print(Text(clean(text), style=style), soft_wrap=True)

    def blank(self) -> None:
        """An empty line."""
        self.console.print()

    def pairs(self, rows: Sequence[tuple[str, object]], *, indent: int = 0) -> None:
        """Names and values; values wrap in their column."""
        self.table(["", ""], [(name, value) for name, value in rows if value not in (None, "")], indent=indent, head=False)

    def table(
        self, heads: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = (), indent: int = 2,
        head: bool = True, cut: Sequence[int] = (), red: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """A plain table. Columns in ``right`` are numbers, those in ``cut`` end in … where there is no room."""
        from rich import box
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        cells = [[Text(clean(cell)) for cell in row] for row in rows]
        natural = [max([len(name) if head else 0, *(row[at].cell_len for row in cells)]) for at, name in enumerate(heads)]
        flexible = list(cut) or [len(heads) - 1]
        widths = _widths(natural, flexible, self.console.width - indent - 2 * (len(heads) - 1))
        table = Table(box=box.SIMPLE_HEAD if head else None, show_header=head, show_edge=False, pad_edge=False,
                      padding=(0, 1 if head else 2, 0, 0))  # fmt: skip
        for at, name in enumerate(heads):
            table.add_column(name, justify="right" if at in right else "left", overflow="ellipsis" if at in cut else "fold",
                             no_wrap=at in cut or at in right, width=widths[at])  # fmt: skip
        for number, row in enumerate(cells):
            table.add_row(*row, style="red" if number in red else "")
        with self.console.capture() as captured:
            self.console.print(Padding(table, (0, 0, 0, indent), expand=False))
        self.console.file.write(_TRAILING.sub(r"\1", captured.get()))


def archived_range(log: AuditLogger) -> tuple[int, int] | None:
    """The half-open range of entries that have left this log on record; None if all are here."""
    view = log._handle.view
    parts = view.history(view.head().size).archived
    segments = view.store.segments()
    gone = min(max((end for _, end, _ in parts), default=0), segments[0].start if segments else 0)
    return (0, gone) if gone else None


def _widths(natural: Sequence[int], flexible: Sequence[int], room: int) -> list[int]:
    """What is not flexible gets what it needs; the flexible ones share the rest, small ones first."""
    widths = list(natural)
    left = max(room - sum(w for at, w in enumerate(natural) if at not in flexible), 4 * len(flexible))
    for done, at in enumerate(sorted(flexible, key=lambda at: natural[at])):
        widths[at] = max(1, min(natural[at], left // (len(flexible) - done)))
        left -= widths[at]
    return widths


# -- what this user verified -------------------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """What this user's memory says of a log, in words."""

    sentence: str
    size: int
    alarm: bool
    full_us: int


def last_verified(log: AuditLogger) -> Checked:
    """How far the log was last verified by this user, and whether it is the log that is known here."""
    head = log._handle.view.head().size
    known = log.memory.get(log.path)
    vkey = log._handle.genesis.vkey.format()
    if known is None:
        return Checked(f"never verified by you, its key is not trusted here yet: tally verify {log.path}", 0, False, 0)
    if known.vkey != vkey or known.origin != log.origin:
        return Checked(f"THIS IS NOT THE LOG THAT IS KNOWN HERE, its key is another: tally verify {log.path}", 0, True, 0)
    if known.size > head:
        return Checked(f"ENTRIES ARE MISSING: you have seen {known.size:,} here, now there are {head:,}: tally verify {log.path}",
                       head, True, known.full_us)  # fmt: skip
    if known.altered_us:
        return Checked(f"ALTERED OR INCOMPLETE: found {when_text(known.altered_us, log.zone)}; tally verify {log.path}",
                       known.size, True, known.full_us)  # fmt: skip
    return _checked(log, known, head)


def _checked(log: AuditLogger, known: Known, head: int) -> Checked:
    if not known.full_us:
        return Checked(f"never verified: tally verify {log.path}", 0, False, 0)
    text = f"verified up to #{known.size - 1:,} {when_text(known.seen_us, log.zone)}, nothing altered"
    if known.size < head:
        text += f"; {plural(head - known.size, 'entry', 'entries')} since then"
    return Checked(text, known.size, False, known.full_us)


@contextlib.contextmanager
def busy(
    text: str, *, quiet: bool, said: Callable[[str, int], str] = lambda _what, done: f"{done:,}"
) -> Iterator[Callable[[str, int], None] | None]:
    """How far long work is, for people, on standard error: ``text``, what is being done and ``said`` of how much of it is done."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True, markup=False, highlight=False).status(clean(text)) as status:
        yield lambda what, done: status.update(clean(f"{text}: {what}, {said(what, done)}"))
