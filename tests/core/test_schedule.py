"""Due times, windows, freezes and the brake, as sentences; windows also against a brute-force reading of the calendar."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.core.brake import engaged
from rotator.core.model import KeyRef, Outcome, Record
from rotator.core.reasons import Reason
from rotator.core.schedule import (
    DAY,
    UNKNOWN_AGE,
    Due,
    Freeze,
    Schedule,
    Window,
    frozen_until,
    in_window,
    jitter_seconds,
    last_change,
    next_due,
    next_opening,
    next_window,
)

HOUR = 3600.0
EVERY_DAY = (1, 2, 3, 4, 5, 6, 7)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def key(minted: str | None = None, expires: str | None = None) -> KeyRef:
    return KeyRef(minted_at=utc(minted) if minted else None, expires_at=utc(expires) if expires else None)


# --- next_due ---------------------------------------------------------------------------------------------------------

BORN = Record("crm", current=key("2026-03-01 00:00"))


@pytest.mark.parametrize(
    ("record", "schedule", "cron_next", "expected"),
    [
        pytest.param(
            BORN,
            Schedule(rotate_every=30 * DAY),
            None,
            Due(utc("2026-03-31 00:00"), Reason.INTERVAL),
            id="an interval counts from the key's birth",
        ),
        pytest.param(
            Record("crm", current=key(), last_rotated_at=utc("2026-03-02 00:00")),
            Schedule(rotate_every=30 * DAY),
            None,
            Due(utc("2026-04-01 00:00"), Reason.INTERVAL),
            id="without a birth it counts from the last rotation",
        ),
        pytest.param(
            Record("crm", current=key("2026-03-01 00:00"), last_rotated_at=utc("2026-03-08 00:00")),
            Schedule(rotate_every=30 * DAY),
            None,
            Due(utc("2026-03-31 00:00"), Reason.INTERVAL),
            id="a rotation that took a week does not let the key get a week older",
        ),
        pytest.param(
            Record("crm", current=key()),
            Schedule(rotate_every=30 * DAY),
            None,
            Due(UNKNOWN_AGE, Reason.INTERVAL),
            id="a known key of unknown age is overdue, not forgotten",
        ),
        pytest.param(
            Record("crm", current=key("2026-03-01 00:00", "2026-03-21 00:00")),
            Schedule(rotate_every=30 * DAY, expiry_margin=7 * DAY),
            None,
            Due(utc("2026-03-14 00:00"), Reason.EXPIRY),
            id="an expiry margin that begins first wins over the interval",
        ),
        pytest.param(
            Record("crm", current=key("2026-03-01 00:00", "2026-12-31 00:00")),
            Schedule(rotate_every=30 * DAY, expiry_margin=7 * DAY),
            None,
            Due(utc("2026-03-31 00:00"), Reason.INTERVAL),
            id="a far expiry leaves the interval alone",
        ),
        pytest.param(
            Record("crm", current=key(expires="2026-12-31 00:00")),
            Schedule(),
            None,
            Due(utc("2026-12-31 00:00"), Reason.EXPIRY),
            id="an expiring key is due even with nothing configured, at the latest when it expires",
        ),
        pytest.param(
            BORN,
            Schedule(cron="0 3 * * 1"),
            utc("2026-03-02 03:00"),
            Due(utc("2026-03-02 03:00"), Reason.CRON),
            id="a cron fire is due at its time",
        ),
        pytest.param(
            BORN,
            Schedule(rotate_every=30 * DAY, enabled=False),
            utc("2026-03-02 03:00"),
            None,
            id="a schedule that is switched off makes nothing due",
        ),
        pytest.param(
            Record("crm"),
            Schedule(rotate_every=30 * DAY, bootstrap=True),
            None,
            None,
            id="without a known key no time makes a rotation due",
        ),
        pytest.param(BORN, Schedule(), None, None, id="no interval, no cron and no expiry: never due by itself"),
    ],
)
def test_next_due(record: Record, schedule: Schedule, cron_next: datetime | None, expected: Due | None) -> None:
    assert next_due(record, schedule, cron_next) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(Record("crm"), None, id="no key, no past"),
        pytest.param(Record("crm", current=key()), None, id="a key of unknown age has no past"),
        pytest.param(BORN, utc("2026-03-01 00:00"), id="an adopted key's birth is the last change"),
        pytest.param(
            Record("crm", current=key("2026-03-01 01:59"), last_rotated_at=utc("2026-03-01 03:10")),
            utc("2026-03-01 03:10"),
            id="a cron fire during a rotation is answered by it",
        ),
        pytest.param(
            Record("crm", current=key("2026-03-05 00:00"), last_rotated_at=utc("2026-03-01 00:00")),
            utc("2026-03-05 00:00"),
            id="a key adopted after our last rotation is the later change",
        ),
    ],
)
def test_where_cron_counts_from(record: Record, expected: datetime | None) -> None:
    assert last_change(record) == expected


@given(name=st.text(max_size=30), every=st.floats(60, 400 * DAY), spread=st.floats(0, 400 * DAY))
def test_jitter_never_makes_a_key_older_than_its_interval_nor_rotates_without_end(
    name: str, every: float, spread: float
) -> None:
    due = next_due(Record(name, current=key("2026-03-01 00:00")), Schedule(rotate_every=every, jitter=spread), None)
    assert due is not None
    age = (due.at - utc("2026-03-01 00:00")).total_seconds()
    assert 0.9 * every - 1e-3 <= age <= every + 1e-3


def test_jitter_moves_a_cron_fire_only_later_because_a_cron_time_says_not_before() -> None:
    due = next_due(BORN, Schedule(cron="0 3 * * *", jitter=HOUR), utc("2026-03-02 03:00"))
    assert due is not None
    assert utc("2026-03-02 03:00") < due.at < utc("2026-03-02 04:00")


@given(name=st.text(max_size=40), spread=st.floats(0, 1e7))
def test_jitter_is_within_its_spread_and_the_same_after_a_restart(name: str, spread: float) -> None:
    value = jitter_seconds(name, spread)
    assert 0 <= value <= spread
    assert value == jitter_seconds(name, spread)


def test_jitter_spreads_a_thousand_connections_over_the_whole_hour() -> None:
    tenths = {int(jitter_seconds(f"connection-{n}", HOUR) // 360) for n in range(1000)}
    assert tenths == set(range(10))


def test_jitter_is_pinned_so_that_an_upgrade_does_not_reshuffle_it() -> None:
    assert jitter_seconds("crm", HOUR) == pytest.approx(PINNED_CRM)


PINNED_CRM = 2058.497772310611

# --- windows ----------------------------------------------------------------------------------------------------------

BERLIN_NIGHT = Window((1, 2, 3, 4, 5), time(22), 6 * HOUR, "Europe/Berlin")
BERLIN_0230 = Window(EVERY_DAY, time(2, 30), HOUR, "Europe/Berlin")
WEEKEND = Window((6,), time(0), 48 * HOUR, "Europe/Berlin")


@pytest.mark.parametrize(
    ("window", "now", "expected"),
    [
        pytest.param(BERLIN_NIGHT, "2026-01-05 20:59:59", False, id="Monday 21:59:59 in Berlin is before the opening"),
        pytest.param(BERLIN_NIGHT, "2026-01-05 21:00:00", True, id="the opening instant is inside"),
        pytest.param(BERLIN_NIGHT, "2026-01-05 23:30:00", True, id="the window goes on after midnight"),
        pytest.param(BERLIN_NIGHT, "2026-01-06 02:59:59", True, id="the last second is inside"),
        pytest.param(BERLIN_NIGHT, "2026-01-06 03:00:00", False, id="the closing instant is outside"),
        pytest.param(BERLIN_NIGHT, "2026-01-10 02:00:00", True, id="Friday's window reaches into Saturday"),
        pytest.param(BERLIN_NIGHT, "2026-01-10 22:00:00", False, id="Saturday opens none"),
        pytest.param(BERLIN_NIGHT, "2026-01-12 00:00:00", False, id="Sunday's midnight belongs to no window"),
        pytest.param(WEEKEND, "2026-01-11 12:00:00", True, id="a window of two days is open on the second"),
        pytest.param(WEEKEND, "2026-01-11 23:00:00", False, id="a window of two days ends with Sunday"),
        pytest.param(
            Window((1,), time(0), 7 * DAY, "UTC"), "2026-01-11 23:59:59", True, id="a week-long window never closes"
        ),
        pytest.param(
            Window((3,), time(0), 30 * DAY, "UTC"), "2026-01-06 12:00:00", True, id="nor does a month-long one"
        ),
        pytest.param(
            BERLIN_0230, "2026-03-29 01:29:59", False, id="spring gap: 02:30 does not exist, not open at 03:29"
        ),
        pytest.param(BERLIN_0230, "2026-03-29 01:30:00", True, id="spring gap: it opens at 03:30 summer time"),
        pytest.param(BERLIN_0230, "2026-10-25 00:30:00", True, id="autumn fold: it opens at the first 02:30"),
        pytest.param(BERLIN_0230, "2026-10-25 01:30:00", False, id="autumn fold: and not again at the second"),
        pytest.param(
            Window((7,), time(1), 3 * HOUR, "Europe/Berlin"),
            "2026-10-25 01:59:59",
            True,
            id="autumn fold: a window across it lasts its duration, not its wall-clock span",
        ),
        pytest.param(
            Window((7,), time(1), 3 * HOUR, "Europe/Berlin"),
            "2026-03-29 02:59:59",
            True,
            id="spring gap: a window across it closes an hour later on the wall",
        ),
    ],
)
def test_in_window(window: Window, now: str, expected: bool) -> None:
    assert in_window(window, utc(now)) is expected


@pytest.mark.parametrize(
    ("window", "now", "expected"),
    [
        pytest.param(BERLIN_NIGHT, "2026-01-05 12:00", "2026-01-05 21:00", id="later today"),
        pytest.param(BERLIN_NIGHT, "2026-01-05 21:00", "2026-01-06 21:00", id="from the opening on, the next one"),
        pytest.param(BERLIN_NIGHT, "2026-01-10 04:00", "2026-01-12 21:00", id="over the weekend"),
        pytest.param(BERLIN_0230, "2026-03-28 12:00", "2026-03-29 01:30", id="into the spring gap"),
        pytest.param(BERLIN_0230, "2026-10-24 12:00", "2026-10-25 00:30", id="to the first of two"),
        pytest.param(BERLIN_0230, "2026-10-25 00:30", "2026-10-26 01:30", id="past the second of two"),
        pytest.param(
            Window((5,), time(9), HOUR, "Pacific/Apia"),
            "2011-12-29 00:00",
            "2011-12-30 19:00",
            id="a Friday that Samoa skipped falls on the same instant's Saturday",
        ),
    ],
)
def test_next_window(window: Window, now: str, expected: str) -> None:
    assert next_window(window, utc(now)) == utc(expected)


STEP = timedelta(minutes=15)


def brute_force_openings(window: Window) -> list[datetime]:
    """Walk 2026 and a margin in quarters of an hour and note when the wall clock shows the start, by RFC 5545's words."""
    where = ZoneInfo(window.timezone)
    first_seen: dict[datetime, datetime] = {}  # wall clock -> the first instant that shows it
    at = utc("2025-12-20 00:00")
    while at < utc("2027-01-12 00:00"):
        first_seen.setdefault(at.astimezone(where).replace(tzinfo=None), at)
        at += STEP
    openings = []
    day = datetime(2025, 12, 22)  # noqa: DTZ001 - a calendar day, not an instant
    while day.year < 2027 or day.day < 10:
        wall = datetime.combine(day, window.start)
        if day.isoweekday() in window.days:
            shown, gap = wall, timedelta(0)
            while shown not in first_seen:  # skipped: step back to a wall clock that exists, then go on by elapsed time
                shown, gap = shown - STEP, gap + STEP
            openings.append(first_seen[shown] + gap)
        day += timedelta(days=1)
    return openings


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(Window((1, 3, 5), time(2, 30), 90 * 60, "Europe/Berlin"), id="Berlin, inside both changes"),
        pytest.param(Window(EVERY_DAY, time(1, 45), 23 * HOUR, "America/New_York"), id="New York, nearly always open"),
        pytest.param(Window((7,), time(2, 15), 5 * HOUR, "Australia/Lord_Howe"), id="Lord Howe, half-hour change"),
        pytest.param(Window((7,), time(0), 2 * HOUR, "America/Santiago"), id="Santiago, the change is at midnight"),
        pytest.param(Window((2, 6), time(23, 15), 30 * HOUR, "Pacific/Chatham"), id="Chatham, over a day, +12:45"),
        pytest.param(Window((4,), time(22), 8 * HOUR, "Asia/Kolkata"), id="Kolkata, no change, +05:30"),
    ],
)
def test_every_hour_of_a_year_agrees_with_the_brute_force_reading(window: Window) -> None:
    openings = brute_force_openings(window)
    length = timedelta(seconds=window.duration)
    hours = 0
    for minutes in range(0, 365 * 24 * 60, 60):
        # 37 minutes later every hour walks through the minutes of the hour
        now = utc("2026-01-01 00:00") + timedelta(minutes=minutes, seconds=(minutes * 37) % 3600)
        assert in_window(window, now) is any(at <= now < at + length for at in openings), now
        assert next_window(window, now) == next(at for at in openings if at > now), now
        hours += 1
    assert hours == 8760


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Window((), time(1), HOUR, "UTC"), "days", id="a window without days never opens"),
        pytest.param(lambda: Window((0,), time(1), HOUR, "UTC"), "ISO weekdays", id="day 0 is no ISO weekday"),
        pytest.param(lambda: Window((1,), time(1), 0, "UTC"), "above 0", id="an empty window"),
        pytest.param(lambda: Window((1,), time(1), HOUR, "Mars/Base"), "Mars/Base", id="an unknown zone"),
        pytest.param(lambda: Window((1,), time(1), HOUR, "../etc/passwd"), "unknown time zone", id="a path as a zone"),
        pytest.param(lambda: Window((1,), time(1, tzinfo=UTC), HOUR, "UTC"), "wall-clock", id="a start with an offset"),
        pytest.param(
            lambda: Freeze(utc("2026-01-02 00:00"), utc("2026-01-02 00:00"), "x"), "not after", id="an empty freeze"
        ),
        pytest.param(
            lambda: Freeze(datetime(2026, 1, 1), datetime(2026, 1, 2), "x"),  # noqa: DTZ001 - naive on purpose
            "UTC offset",
            id="a freeze without an offset",
        ),
    ],
)
def test_what_could_never_hold_is_refused_when_made(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


# --- freezes ----------------------------------------------------------------------------------------------------------

YEAR_END = Freeze(utc("2026-12-20 00:00"), utc("2027-01-04 00:00"), "year end")
AUDIT = Freeze(utc("2027-01-04 00:00"), utc("2027-01-08 00:00"), "audit")
INSIDE = Freeze(utc("2026-12-24 00:00"), utc("2026-12-27 00:00"), "holidays")


@pytest.mark.parametrize(
    ("freezes", "now", "expected"),
    [
        pytest.param((), "2026-12-24 00:00", None, id="no freeze"),
        pytest.param((YEAR_END,), "2026-12-19 23:59", None, id="before it begins"),
        pytest.param((YEAR_END,), "2026-12-20 00:00", "2027-01-04 00:00", id="from its first instant"),
        pytest.param((YEAR_END,), "2027-01-04 00:00", None, id="its end is free"),
        pytest.param((AUDIT, YEAR_END), "2026-12-28 00:00", "2027-01-08 00:00", id="two that touch are one"),
        pytest.param(
            (YEAR_END, INSIDE), "2026-12-25 00:00", "2027-01-04 00:00", id="one inside another ends with the outer"
        ),
        pytest.param((AUDIT,), "2026-12-25 00:00", None, id="a later one does not hold yet"),
    ],
)
def test_frozen_until(freezes: tuple[Freeze, ...], now: str, expected: str | None) -> None:
    assert frozen_until(freezes, utc(now)) == (utc(expected) if expected else None)


@pytest.mark.parametrize(
    ("schedule", "now", "expected"),
    [
        pytest.param(Schedule(), "2026-12-25 00:00", "2026-12-25 00:00", id="without window and freeze always now"),
        pytest.param(Schedule(window=BERLIN_NIGHT), "2026-12-25 22:00", "2026-12-25 22:00", id="inside the window now"),
        pytest.param(
            Schedule(window=BERLIN_NIGHT, freezes=(YEAR_END,)),
            "2026-12-25 00:00",
            "2027-01-04 21:00",
            id="after the freeze the window is waited for",
        ),
        pytest.param(
            Schedule(window=BERLIN_NIGHT, freezes=(YEAR_END, AUDIT)),
            "2026-12-19 12:00",
            "2027-01-08 00:00",
            id="nights that would open in a freeze are no openings, the one it ends in is",
        ),
        pytest.param(
            Schedule(window=WEEKEND, freezes=(Freeze(utc("2026-12-18 00:00"), utc("2026-12-19 12:00"), "x"),)),
            "2026-12-18 12:00",
            "2026-12-19 12:00",
            id="a freeze that ends inside a window opens it late",
        ),
    ],
)
def test_next_opening(schedule: Schedule, now: str, expected: str) -> None:
    assert next_opening(schedule, utc(now)) == utc(expected)


# --- brake ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    ended_at: datetime
    outcome: Outcome


def ends(*outcomes: Outcome) -> list[End]:
    """Endings an hour apart from midnight on, oldest first."""
    return [End(utc("2026-03-01 00:00") + timedelta(hours=n), outcome) for n, outcome in enumerate(outcomes)]


OK, BACK, STUCK, CANCELLED = Outcome.ROTATED, Outcome.ROLLED_BACK, Outcome.STUCK, Outcome.CANCELLED


@pytest.mark.parametrize(
    ("endings", "after", "now", "expected"),
    [
        pytest.param([], 3, "2026-03-01 03:00", None, id="no endings, no brake"),
        pytest.param(ends(BACK, BACK), 3, "2026-03-01 03:00", None, id="two failures do not engage a brake of three"),
        pytest.param(
            ends(BACK, BACK, BACK), 3, "2026-03-01 02:30", "2026-03-01 04:00", id="three do, for the cooldown"
        ),
        pytest.param(ends(OK, BACK, STUCK, BACK), 3, "2026-03-01 04:00", "2026-03-01 05:00", id="stuck is a failure"),
        pytest.param(ends(BACK, BACK, OK, BACK), 3, "2026-03-01 04:00", None, id="a success in between breaks the row"),
        pytest.param(ends(BACK, BACK, BACK, OK), 3, "2026-03-01 03:30", None, id="a success releases it"),
        pytest.param(
            ends(BACK, BACK, CANCELLED, BACK), 3, "2026-03-01 03:30", "2026-03-01 05:00", id="cancelled breaks no row"
        ),
        pytest.param(ends(CANCELLED, CANCELLED, CANCELLED), 3, "2026-03-01 03:00", None, id="cancelled is no failure"),
        pytest.param(ends(BACK, BACK, BACK), 3, "2026-03-01 04:00", None, id="it lets go at the end of the cooldown"),
        pytest.param(
            ends(BACK, BACK, BACK, CANCELLED, BACK),
            3,
            "2026-03-01 04:30",
            "2026-03-01 06:00",
            id="the next failure engages it anew",
        ),
        pytest.param(
            list(reversed(ends(OK, BACK, BACK, BACK))),
            3,
            "2026-03-01 04:00",
            "2026-03-01 05:00",
            id="the order of the input does not matter",
        ),
        pytest.param(ends(BACK, BACK, BACK), 0, "2026-03-01 02:30", None, id="zero switches it off"),
    ],
)
def test_the_brake(endings: list[End], after: int, now: str, expected: str | None) -> None:
    assert engaged(endings, after, 2 * HOUR, utc(now)) == (utc(expected) if expected else None)
