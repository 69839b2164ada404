"""Cron schedules, with APScheduler's trigger as a calculator only: what is due is derived, never stored as a job.

APScheduler counts weekdays from Monday and wants both day fields to match; cron counts from Sunday. Weekdays are
therefore turned into names, and an expression that restricts both day fields is refused, because its meaning differs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def next_cron(expression: str, timezone: str) -> Callable[[datetime], datetime | None]:
    """A function from a time to the schedule's first fire after it. Raises ValueError with a sentence."""
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError("a cron expression has five fields: minute hour day month weekday")
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ValueError("restrict the day of the month or the weekday, not both: programs disagree on what both mean")
    trigger = CronTrigger(
        minute=minute, hour=hour, day=day, month=month, day_of_week=weekdays(weekday), timezone=ZoneInfo(timezone)
    )

    def after(moment: datetime) -> datetime | None:
        found: datetime | None = trigger.get_next_fire_time(None, moment + timedelta(seconds=1))
        return found

    return after


def weekdays(field: str) -> str:
    """Cron's weekday field by names: "1-5" is "mon,tue,wed,thu,fri", "0" and "7" are "sun"."""
    if field == "*":
        return field
    days: list[str] = []
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, _, last = ("0", "-", "6") if span == "*" else span.partition("-")
        begin = _day(first)
        end = _day(last) if last else (6 if step else begin)
        if end < begin:
            end += 7
        days += [NAMES[d % 7] for d in range(begin, end + 1, int(step or 1))]
    return ",".join(dict.fromkeys(days))


def _day(text: str) -> int:
    if text.isdigit() and int(text) <= 7:
        return int(text) % 7
    if text in NAMES:
        return NAMES.index(text)
    raise ValueError(f"{text!r} is no weekday: use 0-7 or {', '.join(NAMES)}")
