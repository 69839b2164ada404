"""Cron schedules, with APScheduler's trigger as a calculator only: what is due is derived, never stored as a job.

APScheduler counts weekdays from Monday and wants both day fields to match; cron counts from Sunday. Weekdays are
therefore turned into names, and an expression that restricts both day fields is refused, because its meaning differs.
The calculator is given wall-clock times and knows no zone: with one it fires twice at a time that the autumn change
repeats, and never at a midnight that the spring change skips. As in RFC 5545 §3.3.5 a repeated time is its first
occurrence, and a skipped one is read with the offset before the gap.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.triggers.cron import CronTrigger

from rotator.core.schedule import zone

NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
ONCE = datetime(2000, 1, 1, tzinfo=UTC)  # from which an expression must fire at some time
STEP = timedelta(microseconds=1)


def next_cron(expression: str, timezone: str) -> Callable[[datetime], datetime | None]:
    """A function from a time to the schedule's first fire after it, in UTC. Raises ValueError with a sentence."""
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError("a cron expression has five fields: minute hour day month weekday")
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ValueError("restrict the day of the month or the weekday, not both: programs disagree on what both mean")
    where = zone(timezone)
    trigger = CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=weekdays(weekday), timezone=UTC)
    if trigger.get_next_fire_time(None, ONCE) is None:
        raise ValueError("this cron expression never fires: no month of it has such a day")

    def after(moment: datetime) -> datetime | None:
        local = moment.astimezone(where)
        before = (moment.astimezone(UTC) - timedelta(days=1)).astimezone(where)
        skipped = max(timedelta(), (local.utcoffset() or timedelta()) - (before.utcoffset() or timedelta()))
        wall: datetime | None = local.replace(tzinfo=UTC) - skipped  # a skipped time comes after the gap
        while wall is not None:
            wall = trigger.get_next_fire_time(None, wall + STEP)
            at = wall.replace(tzinfo=where, fold=0).astimezone(UTC) if wall is not None else None
            if at is None or at > moment:
                return at
        return None

    return after


def weekdays(field: str) -> str:
    """Cron's weekday field by names: "1-5" is "mon,tue,wed,thu,fri", "0" and "7" are "sun"."""
    if field == "*":
        return field
    days: list[str] = []
    for part in field.lower().split(","):
        span, slash, step = part.partition("/")
        first, _, last = ("0", "-", "6") if span == "*" else span.partition("-")
        begin = _day(first) % 7
        end = _day(last) if last else (6 if slash else begin)
        if end < begin:
            end += 7
        days += [NAMES[d % 7] for d in range(begin, end + 1, _step(step) if slash else 1)]
    return ",".join(dict.fromkeys(days))


def _day(text: str) -> int:
    """0 to 7: as the end of a range, 7 is the Sunday after."""
    if text.isascii() and text.isdigit() and int(text) <= 7:
        return int(text)
    if text in NAMES:
        return NAMES.index(text)
    raise ValueError(f"{text!r} is no weekday: use 0-7 or {', '.join(NAMES)}")


def _step(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 7:
        return int(text)
    raise ValueError("a weekday's step is a number from 1 to 7")
