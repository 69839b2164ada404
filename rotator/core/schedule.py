"""When a connection's key is next due, and when a rotation may start: times only, no facts about running rotations.

Keeps the promise behind `rotate_every`: jitter makes a key due *earlier*, never later, so no key gets older than
`rotate_every` because of it. All times are aware UTC datetimes, all durations seconds. `now` is always an argument.

Local times follow RFC 5545 §3.3.5: a start that the spring change skips is read with the offset before the gap
(02:30 becomes 03:30), a start that the autumn change repeats is its first occurrence. A window lasts its duration in
elapsed time, whatever the wall clock does meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rotator.core.model import Record
from rotator.core.reasons import Reason

DAY = 86400.0
JITTER_SHARE = 0.1  # of rotate_every: a jitter as long as the interval would rotate without end
UNKNOWN_AGE = datetime(
    1970, 1, 1, tzinfo=UTC
)  # a key of unknown age is overdue; waiting for news of it would be silence


@dataclass(frozen=True, slots=True)
class Window:
    """When rotations may start. It opens on each of `days` at `start` in `timezone`, and may cross midnight.

    `days` are ISO weekdays (1 Monday … 7 Sunday) of the opening, `duration` is seconds of elapsed time. Raises
    ValueError when it could never open, or names an unknown time zone.
    """

    days: tuple[int, ...]
    start: time
    duration: float
    timezone: str

    def __post_init__(self) -> None:
        if not self.days or not set(self.days) <= set(range(1, 8)):
            raise ValueError(f"days must be ISO weekdays 1 (Monday) to 7 (Sunday), at least one; got {self.days}")
        if self.duration <= 0:
            raise ValueError(f"duration must be above 0 seconds; got {self.duration:g}")
        if self.start.tzinfo is not None:
            raise ValueError("start is a wall-clock time; the zone stands in timezone")
        zone(self.timezone)


@dataclass(frozen=True, slots=True)
class Freeze:
    """A period without starts, from `start` up to but not including `end`. Raises ValueError when it is empty."""

    start: datetime
    end: datetime
    reason: str

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("start and end of a freeze need a UTC offset")
        if self.end <= self.start:
            raise ValueError(f"the freeze ends at {self.end.isoformat()}, not after its start")


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the configuration says about one connection's timing; durations in seconds."""

    rotate_every: float | None = None
    cron: str | None = None  # its next fire is computed by the caller and handed to `next_due`
    timezone: str = "UTC"  # of the cron schedule
    expiry_margin: float = 0.0  # rotate so long before the key expires
    jitter: float = 0.0
    window: Window | None = None
    freezes: tuple[Freeze, ...] = ()
    bootstrap: bool = False  # no key known: begin by rotating
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Due:
    """From when a rotation is due, and why (INTERVAL, CRON or EXPIRY)."""

    at: datetime
    reason: Reason


def next_due(record: Record, schedule: Schedule, cron_next: datetime | None) -> Due | None:
    """The earliest of interval, cron and expiry; None when the schedule is off, empty, or no key is known.

    - Interval: counted from the current key's birth, at most `rotate_every`, earlier by the jitter.
    - Cron: `cron_next`, the first fire after `last_change(record)`; later by the jitter, because a cron time says
      "not before".
    - Expiry: `expiry_margin` before the current key expires. No jitter: the margin is a promise.
    """
    if not schedule.enabled or record.current is None:
        return None
    dues: list[Due] = []
    if record.current.expires_at is not None:
        dues.append(Due(record.current.expires_at - timedelta(seconds=schedule.expiry_margin), Reason.EXPIRY))
    if schedule.rotate_every is not None:
        spread = min(schedule.jitter, schedule.rotate_every * JITTER_SHARE)
        early = jitter_seconds(record.connection, spread)
        born = record.current.minted_at or record.last_rotated_at
        at = UNKNOWN_AGE if born is None else born + timedelta(seconds=schedule.rotate_every - early)
        dues.append(Due(at, Reason.INTERVAL))
    if cron_next is not None:
        late = jitter_seconds(record.connection, schedule.jitter)
        dues.append(Due(cron_next + timedelta(seconds=late), Reason.CRON))
    return min(dues, key=lambda due: due.at, default=None)


def last_change(record: Record) -> datetime | None:
    """After which the caller looks for the cron schedule's next fire; None when the current key's age is unknown.

    The later of the key's birth and the end of the last successful rotation: a fire that passed while the rotation
    ran has been answered by it. A failed rotation answers none.
    """
    minted = record.current.minted_at if record.current else None
    return max((at for at in (minted, record.last_rotated_at) if at is not None), default=None)


def jitter_seconds(connection: str, spread: float) -> float:
    """From 0 up to `spread`, always the same for one connection, so that a restart reshuffles nothing."""
    digest = hashlib.sha256(connection.encode()).digest()
    return spread * int.from_bytes(digest[:6]) / 2**48


def next_opening(schedule: Schedule, now: datetime) -> datetime:
    """The first instant from `now` on that is inside the window and outside every freeze; `now` itself when open."""
    at = now
    while True:
        end = frozen_until(schedule.freezes, at)
        if end is not None:
            at = end
        elif schedule.window is not None and not in_window(schedule.window, at):
            at = next_window(schedule.window, at)
        else:
            return at


def frozen_until(freezes: tuple[Freeze, ...], now: datetime) -> datetime | None:
    """When the freeze around `now` ends, freezes that touch or overlap taken as one; None outside every freeze."""
    end = now
    for freeze in sorted(freezes, key=lambda freeze: freeze.start):
        if freeze.start <= end < freeze.end:
            end = freeze.end
    return end if end > now else None


def in_window(window: Window, now: datetime) -> bool:
    """Whether a rotation may start at `now`; the opening instant is inside, the closing one is not."""
    # Days after which even a window of a week is open without a break bound the look back.
    back = min(window.duration, 7 * DAY) // DAY + 2
    length = timedelta(seconds=window.duration)
    return any(opened <= now < opened + length for opened in _openings(window, now, -int(back), 1))


def next_window(window: Window, now: datetime) -> datetime:
    """When the window next opens, strictly after `now`."""
    # Eight days ahead hold every weekday even where a zone skipped a whole day (Pacific/Apia, December 2011).
    return min(opened for opened in _openings(window, now, -1, 9) if opened > now)


def zone(name: str) -> ZoneInfo:
    """The IANA time zone of this name. ValueError when there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"unknown time zone {name!r}; use an IANA name like Europe/Berlin") from None


def _openings(window: Window, around: datetime, first: int, last: int) -> Iterator[datetime]:
    """The window's opening instants on local days `first` to `last` relative to the day of `around`."""
    where = zone(window.timezone)
    today: date = around.astimezone(where).date()
    for offset in range(first, last + 1):
        day = today + timedelta(days=offset)
        if day.isoweekday() in window.days:
            # fold=0 is RFC 5545's reading of both a skipped and a repeated local time (PEP 495).
            yield datetime.combine(day, window.start.replace(fold=0), where).astimezone(UTC)
