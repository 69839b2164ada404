"""Is a rotation of this connection due, and if not, why not and until when? One list of rules, the first answer wins.

Gather once, judge purely: the caller reads the record, the clock and the neighbours into `Facts`; `judge` adds nothing.
The planner, `rotator status` and a person's request get the same answer from the same list. Keeps I4 (an open rotation
holds every other start) and I6 (a hold is a reason, a time and a sentence, never silence).

A person's request (`asked`: CLI, HTTP, signal) goes through the same list. It skips what only paces the program by
itself: the schedule and its off switch, the window and the backoff. It does not skip what protects keys or other
people: an open or stuck rotation, an unknown or drifting key, our clock, a freeze, a brake, and the IdP's limits. For
those there are other ways out: `resume`, `adopt`, a changed configuration, the cooldown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from rotator.core.brake import Engaged
from rotator.core.model import Record
from rotator.core.reasons import Reason
from rotator.core.schedule import (
    UNKNOWN_AGE,
    Due,
    Schedule,
    frozen_until,
    in_window,
    jitter_seconds,
    next_due,
    next_opening,
)

BACKOFF_FIRST = 300.0  # seconds after the first failed rotation; doubles
BACKOFF_CAP = 86400.0
BACKOFF_SPREAD = 0.2  # of the delay, taken off it by connection, so that failures of one minute do not return as one
LIFE_SHARE = 4  # never wait longer than a quarter of what is left of an expiring key's life


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a verdict depends on. Durations in seconds."""

    record: Record  # Record(connection=name) where none was ever written
    schedule: Schedule
    now: datetime
    cron_next: datetime | None = None  # first fire after schedule.last_change(record)
    asked: bool = False  # by a person or a program, not by the schedule
    clock_ok: bool = True  # skew and jumps within bounds
    brake: tuple[Engaged, ...] = ()  # on for this connection's IdP or target
    running_at_idp: int = 0  # open rotations of other connections at the same IdP
    max_parallel: int | None = None
    last_start_at_idp: datetime | None = None
    min_spacing: float = 0.0
    worst_case: float = 0.0  # from a start until the IdP holds the new key, at worst


@dataclass(frozen=True, slots=True)
class Verdict:
    """`due` or held; why; `until` when at the earliest time alone can change it (after `now`, or None); a sentence."""

    due: bool
    reason: Reason
    until: datetime | None
    text: str


Rule = Callable[[Facts], Verdict | None]


def judge(facts: Facts) -> Verdict:
    """The first rule's answer; total and deterministic."""
    for rule in RULES:
        verdict = rule(facts)
        if verdict is not None:
            return verdict
    return _start(facts)


def backoff_until(record: Record) -> datetime | None:
    """When a connection whose last rotations failed may be tried again, from the record alone; None without failures.

    5 minutes doubling up to a day, less up to a fifth by connection; at most a quarter of what was left of the key's
    life when the last one ended, so that a long series of failures does not wait an expiring key to death.
    """
    if record.failures < 1 or record.last is None:
        return None
    ended = record.last.ended_at
    delay = min(BACKOFF_CAP, BACKOFF_FIRST * 2.0 ** min(record.failures - 1, 30))
    delay -= jitter_seconds(f"{record.connection} {record.failures}", delay * BACKOFF_SPREAD)
    if record.current is not None and record.current.expires_at is not None:
        left = (record.current.expires_at - ended).total_seconds()
        if left > 0:
            delay = min(delay, max(BACKOFF_FIRST, left / LIFE_SHARE))
    return ended + timedelta(seconds=delay)


# --- rules, in the order of RULES -------------------------------------------------------------------------------------


def _stuck(facts: Facts) -> Verdict | None:
    rotation = facts.record.rotation
    if rotation is None or rotation.stuck is None:
        return None
    return _held(Reason.STUCK, f"rotation {rotation.id} is stuck ({rotation.stuck}): resume, roll back or adopt")


def _in_progress(facts: Facts) -> Verdict | None:
    rotation = facts.record.rotation
    if rotation is None:
        return None
    return _held(Reason.IN_PROGRESS, f"rotation {rotation.id} is in phase {rotation.phase}")


def _clock(facts: Facts) -> Verdict | None:
    return (
        None if facts.clock_ok else _held(Reason.CLOCK, "this instance's clock is off or jumped; due times mean little")
    )


def _key_unknown(facts: Facts) -> Verdict | None:
    if facts.record.current is not None or facts.schedule.bootstrap:
        return None
    return _held(Reason.KEY_UNKNOWN, "no current key is known: adopt the existing one, or set bootstrap")


def _drift(facts: Facts) -> Verdict | None:
    since = facts.record.drift_since
    if since is None:
        return None
    return _held(
        Reason.DRIFT, f"since {_when(since)} the target refuses the key that Vault calls current: adopt the right one"
    )


def _disabled(facts: Facts) -> Verdict | None:
    if facts.asked or facts.schedule.enabled:
        return None
    return _held(Reason.DISABLED, "the schedule is switched off; rotations only on request")


def _not_due(facts: Facts) -> Verdict | None:
    if facts.asked or facts.record.current is None:
        return None
    due = _next(facts)
    if due is None:
        return _held(Reason.NOT_DUE, "nothing schedules a rotation: no interval, no cron, no known expiry")
    if due.at <= facts.now:
        return None
    return _held(Reason.NOT_DUE, f"next due at {_when(due.at)} by {due.reason}", due.at)


def _freeze(facts: Facts) -> Verdict | None:
    end = frozen_until(facts.schedule.freezes, facts.now)
    if end is None or _dying(facts):
        return None
    why = "; ".join(freeze.reason for freeze in facts.schedule.freezes if freeze.start <= facts.now < freeze.end)
    return _held(Reason.FREEZE, f"frozen until {_when(end)}: {why}", _or_margin(facts, end))


def _brake(facts: Facts) -> Verdict | None:
    on = [brake for brake in facts.brake if brake.until > facts.now]
    if not on:
        return None
    last = max(on, key=lambda brake: brake.until)
    names = ", ".join(f"{brake.scope} {brake.name}" for brake in on)
    return _held(Reason.BRAKE, f"too many failures in a row at {names}; braked until {_when(last.until)}", last.until)


def _backoff(facts: Facts) -> Verdict | None:
    until = backoff_until(facts.record)
    if facts.asked or until is None or until <= facts.now:
        return None
    times = facts.record.failures
    return _held(Reason.BACKOFF, f"{times} failed in a row; tried again from {_when(until)}", until)


def _outside_window(facts: Facts) -> Verdict | None:
    window = facts.schedule.window
    if facts.asked or window is None or in_window(window, facts.now) or _dying(facts):
        return None
    opens = next_opening(facts.schedule, facts.now)
    return _held(Reason.OUTSIDE_WINDOW, f"due; the window opens at {_when(opens)}", _or_margin(facts, opens))


def _spacing(facts: Facts) -> Verdict | None:
    if facts.last_start_at_idp is None:
        return None
    until = facts.last_start_at_idp + timedelta(seconds=facts.min_spacing)
    if until <= facts.now:
        return None
    return _held(Reason.SPACING, f"another rotation began at this IdP; next start from {_when(until)}", until)


def _parallel(facts: Facts) -> Verdict | None:
    if facts.max_parallel is None or facts.running_at_idp < facts.max_parallel:
        return None
    return _held(Reason.PARALLEL, f"{facts.running_at_idp} of {facts.max_parallel} rotations run at this IdP")


RULES: tuple[Rule, ...] = (
    # What is wrong or open, whoever asks
    _stuck,  # the last rotation needs a person
    _in_progress,  # one rotation per connection at a time (I4)
    _clock,  # no time below can be trusted
    _key_unknown,  # nothing rotates merely because the process started
    _drift,  # the world differs from the record; a person looks first
    # Is there a wish at all?
    _disabled,  # unless asked
    _not_due,  # unless asked: interval, cron, expiry
    # What holds a wish
    _freeze,  # everybody, unless the key would expire before the next opening
    _brake,  # everybody: the failures are the side's, not this connection's
    _backoff,  # unless asked: this connection's own failures
    _outside_window,  # unless asked, or the key would expire before the next opening
    _spacing,  # everybody: the IdP's pace
    _parallel,  # everybody: the IdP's capacity
)


def _start(facts: Facts) -> Verdict:
    """No rule holds it: due now, and why."""
    if facts.asked:
        return Verdict(due=True, reason=Reason.ASKED, until=None, text="asked for")
    due = _next(facts)
    if due is None:  # only bootstrap comes this far without a due time
        return Verdict(due=True, reason=Reason.BOOTSTRAP, until=None, text="no key is known and bootstrap is set")
    if _dying(facts):
        expires = facts.record.current.expires_at if facts.record.current else None
        text = f"the key expires at {_when(expires or due.at)}, before the next opening leaves time to rotate"
        return Verdict(due=True, reason=Reason.EXPIRY, until=None, text=text)
    since = "the key's age is unknown" if due.at == UNKNOWN_AGE else f"since {_when(due.at)}"
    return Verdict(due=True, reason=due.reason, until=None, text=f"due by {due.reason}, {since}")


def _dying(facts: Facts) -> bool:
    """Inside the expiry margin, and at the next opening too little would be left to rotate in.

    A window or a freeze that would let the key die protects nobody: the rotation starts at once, as EXPIRY.
    """
    current = facts.record.current
    if current is None or current.expires_at is None:
        return False
    if facts.now < current.expires_at - timedelta(seconds=facts.schedule.expiry_margin):
        return False
    latest_start = current.expires_at - timedelta(seconds=facts.worst_case)
    return latest_start < next_opening(facts.schedule, facts.now)


def _or_margin(facts: Facts, until: datetime) -> datetime:
    """`until`, or the beginning of the expiry margin where that comes first: it may lift the hold."""
    current = facts.record.current
    if current is None or current.expires_at is None:
        return until
    margin = current.expires_at - timedelta(seconds=facts.schedule.expiry_margin)
    return min(until, margin) if margin > facts.now else until


def _next(facts: Facts) -> Due | None:
    return next_due(facts.record, facts.schedule, facts.cron_next)


def _held(reason: Reason, text: str, until: datetime | None = None) -> Verdict:
    return Verdict(due=False, reason=reason, until=until, text=text)


def _when(at: datetime) -> str:
    return at.isoformat(timespec="minutes")
