"""Times: one stored spelling; days and months of the log's zone, both ends included."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.core.errors import Malformed
from tallystick.core.times import DAY_US, day_bounds, format_time, parse_asked, parse_time, to_datetime, to_us, utc_day

LAST = 253_402_300_799_999_999
HOUR = 3_600_000_000
BERLIN, LORD_HOWE, APIA, SAO_PAULO = map(ZoneInfo, ("Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo"))
stamps = st.integers(0, LAST)


def us(text: str) -> int:
    return to_us(datetime.fromisoformat(text))


@given(stamps)
def test_stored_times_read_back(value: int) -> None:
    text = format_time(value)
    assert len(text) == 27
    assert parse_time(text) == value
    assert to_us(to_datetime(value)) == value
    assert utc_day(value) == text[:10]
    assert parse_asked(text, zone=BERLIN) == value


@given(stamps, stamps)
def test_stored_times_sort_as_they_passed(a: int, b: int) -> None:
    assert (format_time(a) < format_time(b)) is (a < b)


@given(st.text("0123456789-:.TZ+", min_size=20, max_size=30))
def test_other_texts_are_refused_or_the_one_spelling(text: str) -> None:
    try:
        value = parse_time(text)
    except Malformed:
        return
    assert format_time(value) == text


@pytest.mark.parametrize("text", [
    "2026-11-24T08:12:04.123456", "2026-11-24T08:12:04.12345Z", "2026-11-24T08:12:04Z", "2026-11-24 08:12:04.123456Z",
    "2026-13-24T08:12:04.123456Z", "2026-02-29T08:12:04.123456Z", "2026-11-24T24:00:00.000000Z", "2026-11-24T08:12:60.000000Z",
    "1969-12-31T23:59:59.999999Z", "2026-11-24T08:12:04.123456z", "2026-11-24T08:12:04.123456Z\n", "٢٠٢٦-11-24T08:12:04.123456Z",
    "", "0000-01-01T00:00:00.000000Z",
])  # fmt: skip
def test_not_a_stored_time(text: str) -> None:
    with pytest.raises(Malformed):
        parse_time(text)


@pytest.mark.parametrize("value", [-1, LAST + 1, 2**70])
def test_outside_the_years(value: int) -> None:
    with pytest.raises(ValueError, match="1970"):
        format_time(value)


@pytest.mark.parametrize(("day", "zone", "hours"), [
    ("2026-03-29", BERLIN, 23), ("2026-10-25", BERLIN, 25), ("2026-06-01", BERLIN, 24), ("2026-10-25", UTC, 24),
    ("2026-10-04", LORD_HOWE, 23.5), ("2026-04-05", LORD_HOWE, 24.5), ("2011-12-29", APIA, 24),
    ("2018-11-04", SAO_PAULO, 23),  # midnight itself was skipped: the day began at one
])  # fmt: skip
def test_days_where_the_clocks_change(day: str, zone: Any, hours: float) -> None:
    start, end = parse_asked(day, zone=zone), parse_asked(day, zone=zone, end=True)
    following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    assert end - start + 1 == hours * HOUR
    assert parse_asked(following, zone=zone) == end + 1


def test_a_day_that_never_was() -> None:
    """Samoa left out 30 December 2011."""
    assert parse_asked("2011-12-31", zone=APIA) == parse_asked("2011-12-29", zone=APIA, end=True) + 1


@given(st.dates(date(1970, 1, 2), date(9998, 12, 30)), st.sampled_from([BERLIN, LORD_HOWE, SAO_PAULO, UTC]))
def test_days_follow_each_other_without_gap(day: date, zone: Any) -> None:
    start, end = day_bounds(day, zone)
    assert start <= end
    assert day_bounds(day + timedelta(days=1), zone)[0] == end + 1


@given(st.integers(1970, 9998), st.integers(1, 12), st.sampled_from([BERLIN, UTC]))
def test_a_month_is_its_days(year: int, month: int, zone: Any) -> None:
    text = f"{year:04d}-{month:02d}"
    first = date(year, month, 1)
    last = date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
    assert parse_asked(text, zone=zone) == day_bounds(first, zone)[0]
    assert parse_asked(text, zone=zone, end=True) == day_bounds(last, zone)[1]


def test_both_ends_are_inclusive() -> None:
    assert parse_asked("2026-11-24", zone=UTC) == us("2026-11-24T00:00:00+00:00")
    assert parse_asked("2026-11-24", zone=UTC, end=True) == us("2026-11-24T23:59:59.999999+00:00")
    assert parse_asked("2026-11-24", zone=BERLIN, end=True) == us("2026-11-24T22:59:59.999999+00:00")
    assert parse_asked("2026-11", zone=UTC, end=True) == us("2026-11-30T23:59:59.999999+00:00")
    assert parse_asked("2024-02", zone=UTC, end=True) == us("2024-02-29T23:59:59.999999+00:00")
    assert parse_asked(date(2026, 11, 24), zone=BERLIN) == us("2026-11-24T00:00:00+01:00")
    assert parse_asked("2026-11-24T08:00", zone=BERLIN, end=True) == us("2026-11-24T08:00:00+00:00")


def test_the_last_day_there_is() -> None:
    assert parse_asked("9999-12-31", zone=UTC, end=True) == LAST
    assert parse_asked(date.max, zone=UTC) == LAST - DAY_US + 1


@pytest.mark.parametrize(("text", "meant"), [
    ("2026-11-24T08:00", "2026-11-24T08:00:00+00:00"), ("2026-11-24T08:00+02:00", "2026-11-24T06:00:00+00:00"),
    ("2026-11-24T08:00Z", "2026-11-24T08:00:00+00:00"), ("2026-11-24T08:00:01.5", "2026-11-24T08:00:01.500000+00:00"),
    (" 2026-11-24T08:00 ", "2026-11-24T08:00:00+00:00"),
])  # fmt: skip
def test_a_time_without_offset_is_utc(text: str, meant: str) -> None:
    assert parse_asked(text, zone=BERLIN) == parse_asked(text, zone=BERLIN, end=True) == us(meant)


def test_datetimes() -> None:
    naive = datetime(2026, 11, 24, 8)
    assert parse_asked(naive, zone=BERLIN) == us("2026-11-24T08:00:00+00:00")
    assert parse_asked(naive.replace(tzinfo=BERLIN), zone=UTC) == us("2026-11-24T07:00:00+00:00")
    twice = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    assert to_us(twice.replace(fold=1)) - to_us(twice) == HOUR


@pytest.mark.parametrize("offset", [-14, -1, 0, 1, 14])
def test_the_ends_of_time_do_not_overflow(offset: int) -> None:
    zone = timezone(timedelta(hours=offset))
    assert to_us(datetime.max.replace(tzinfo=zone)) == LAST - offset * HOUR
    assert to_us(datetime.min.replace(tzinfo=zone)) < 0


NOW = us("2026-11-24T12:00:00+00:00")  # a Tuesday


@pytest.mark.parametrize(("text", "start", "end"), [
    ("now", "2026-11-24T12:00:00+00:00", "2026-11-24T12:00:00+00:00"),
    ("today", "2026-11-24T00:00:00+01:00", "2026-11-24T23:59:59.999999+01:00"),
    ("Yesterday", "2026-11-23T00:00:00+01:00", "2026-11-23T23:59:59.999999+01:00"),
    ("last tuesday", "2026-11-17T00:00:00+01:00", "2026-11-17T23:59:59.999999+01:00"),
    ("monday", "2026-11-23T00:00:00+01:00", "2026-11-23T23:59:59.999999+01:00"),
    ("last wednesday", "2026-11-18T00:00:00+01:00", "2026-11-18T23:59:59.999999+01:00"),
    ("15m", "2026-11-24T11:45:00+00:00", "2026-11-24T11:45:00+00:00"),
    ("7d", "2026-11-17T12:00:00+00:00", "2026-11-17T12:00:00+00:00"),
    ("2w", "2026-11-10T12:00:00+00:00", "2026-11-10T12:00:00+00:00"),
    ("99999w", "1970-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"),
])  # fmt: skip
def test_relative(text: str, start: str, end: str) -> None:
    assert parse_asked(text, zone=BERLIN, now_us=NOW) == us(start)
    assert parse_asked(text, zone=BERLIN, end=True, now_us=NOW) == us(end)
    with pytest.raises(ValueError, match="understood are"):
        parse_asked(text, zone=BERLIN)


@given(st.text(max_size=20), st.booleans())
def test_any_text_is_a_time_or_a_value_error(text: str, end: bool) -> None:
    for now in (None, NOW):
        try:
            assert isinstance(parse_asked(text, zone=BERLIN, end=end, now_us=now), int)
        except ValueError as e:
            assert text[:5] in str(e) or repr(text)[1:5] in str(e)


@pytest.mark.parametrize("text", ["2026-00", "2026-13", "0000-01", "9999-12", "1969-12", "2026-02-30", "2026-11-24T25:00", "7 d",
                                  "-7d", "", "٢٠٢٦-11", "next tuesday", "0001-01-01T00:00+14:00x"])  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_asked(text, zone=UTC, now_us=NOW)


@pytest.mark.parametrize("value", [5, 1.5, None, b"2026", ["2026"]])
def test_what_is_no_text(value: Any) -> None:
    with pytest.raises(TypeError, match="a time is text"):
        parse_asked(value, zone=UTC)
