"""Times: stored ones and asked-for ones.

A stored time is UTC with six digits, one spelling: ``2026-11-24T08:12:04.123456Z`` (27 characters). In memory a time
is an integer, microseconds since 1970-01-01T00:00:00Z, never a float and never a naive ``datetime``.

An asked-for time is what people type: a day, a month, a time with or without offset, ``7d``, ``yesterday``. A day is a
day of the log's time zone, a time without offset is UTC, and both ends of a period are inclusive.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo

from .errors import Malformed

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.toordinal()
_STORED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)
_AGO = re.compile(r"([0-9]{1,5})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LAST_US = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_FRACTION = re.compile(r"\.[0-9]{6}Z", re.ASCII)
_parsed = ("", 0)  # the last second that was parsed
_second = (-1, "")  # the last second that was formatted and its text: log times come in bursts


def format_time(us: int) -> str:
    """Microseconds since the epoch → the stored spelling. ``ValueError`` outside the years 1970–9999."""
    global _second  # noqa: PLW0603  # one tuple, replaced whole: safe without a lock
    if not 0 <= us <= _LAST_US:
        raise ValueError(f"{us} µs is outside the years 1970 to 9999")
    seconds, fraction = divmod(us, SECOND_US)
    known, prefix = _second
    if seconds != known:
        prefix = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.")
        _second = (seconds, prefix)
    return f"{prefix}{fraction:06d}Z"


def parse_time(text: str) -> int:
    """The stored spelling → microseconds since the epoch. ``Malformed`` for any other spelling or an impossible date."""
    global _parsed  # noqa: PLW0603  # as above
    start, known = _parsed
    fraction = text[19:]
    if text[:19] == start and _FRACTION.fullmatch(fraction):
        return known + int(fraction[1:7])
    if not _STORED.fullmatch(text):
        raise Malformed(f"not a stored time (2026-11-24T08:12:04.123456Z): {text[:40]!r}")
    try:
        day = date(int(text[:4]), int(text[5:7]), int(text[8:10]))
        hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
    except ValueError as e:
        raise Malformed(f"no such time: {text!r}") from e
    if hour > 23 or minute > 59 or second > 59 or day.year < 1970:
        raise Malformed(f"no such time: {text!r}")
    seconds = (day.toordinal() - _EPOCH_DAY) * 86_400 + hour * 3600 + minute * 60 + second
    _parsed = (text[:19], seconds * SECOND_US)
    return seconds * SECOND_US + int(text[20:26])


def to_us(moment: datetime) -> int:
    """An aware ``datetime`` → microseconds since the epoch, exactly (no float on the way)."""
    delta = moment - _EPOCH  # no astimezone: it ends with the year 9999
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds


def to_datetime(us: int, zone: tzinfo = UTC) -> datetime:
    """Microseconds since the epoch → an aware ``datetime`` in ``zone``."""
    return (_EPOCH + timedelta(microseconds=us)).astimezone(zone)


def utc_day(us: int) -> str:
    """The UTC day of a time, ``2026-11-24``: segments, payloads, keys and archives are cut by it (STORAGE rule 7)."""
    return format_time(us)[:10]


def day_bounds(day: date, zone: tzinfo) -> tuple[int, int]:
    """First and last microsecond of a day in ``zone``; 23 or 25 hours long where the clocks change."""
    start = to_us(datetime(day.year, day.month, day.day, tzinfo=zone))
    if day == date.max:
        return start, to_us(datetime.max.replace(tzinfo=zone))
    following = day + timedelta(days=1)
    return start, to_us(datetime(following.year, following.month, following.day, tzinfo=zone)) - 1


def parse_asked(value: str | date | datetime, *, zone: tzinfo, end: bool = False, now_us: int | None = None) -> int:
    """What people ask for → microseconds, the inclusive start or (``end``) the inclusive end.

    Takes a ``date``, a ``datetime`` (without offset: UTC), ``2026-11-24``, ``2026-11``, ``2026-11-24T08:00[:00[.0]]``
    with ``Z``, an offset or none, and, where ``now_us`` is given, ``now``, ``today``, ``yesterday``, ``last tuesday``,
    ``15m``, ``12h``, ``7d``, ``2w``. ``ValueError`` names what was understood.
    """
    if isinstance(value, datetime):
        return to_us(value if value.tzinfo else value.replace(tzinfo=UTC))
    if isinstance(value, date):
        return day_bounds(value, zone)[end]
    if not isinstance(value, str):
        raise TypeError(f"a time is text, a date or a datetime, not {type(value).__name__}")
    text = value.strip()
    if now_us is not None:
        relative = _parse_relative(text.lower(), zone, end, now_us)
        if relative is not None:
            return relative
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}", text, re.ASCII):
        return _month_bounds(text, zone)[end]
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
            return day_bounds(date.fromisoformat(text), zone)[end]
        moment = datetime.fromisoformat(text)
    except ValueError as e:
        raise ValueError(
            f"{value!r} is not a time; understood are 2026-11-24, 2026-11, 2026-11-24T08:00 (UTC unless it has an "
            "offset), and on the command line 7d, 12h, today, yesterday, last tuesday"
        ) from e
    return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _month_bounds(text: str, zone: tzinfo) -> tuple[int, int]:
    year, month = int(text[:4]), int(text[5:])
    if not 1 <= month <= 12 or not 1970 <= year <= 9998:
        raise ValueError(f"{text!r} is not a month")
    following = date(year + month // 12, month % 12 + 1, 1)
    return day_bounds(date(year, month, 1), zone)[0], day_bounds(following, zone)[0] - 1


def _parse_relative(text: str, zone: tzinfo, end: bool, now_us: int) -> int | None:
    today = to_datetime(now_us, zone).date()
    if text == "now":
        return now_us
    if text == "today":
        return day_bounds(today, zone)[end]
    if text == "yesterday":
        return day_bounds(today - timedelta(days=1), zone)[end]
    name = text.removeprefix("last ")
    if name in _DAYS:
        back = (today.weekday() - _DAYS.index(name)) % 7 or 7
        return day_bounds(today - timedelta(days=back), zone)[end]
    ago = _AGO.fullmatch(text)
    if ago:
        return max(0, now_us - int(ago[1]) * _UNIT_S[ago[2]] * SECOND_US)
    return None
