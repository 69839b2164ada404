"""The policy as sentences: which rule answers, until when, and what a person's request may skip."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rotator.core.brake import Engaged, Scope
from rotator.core.model import (
    Binding,
    By,
    Ended,
    KeyRef,
    Limits,
    Outcome,
    Phase,
    Record,
    Rotation,
    StrategyName,
    Trigger,
)
from rotator.core.policy import RULES, Facts, Verdict, backoff_until, judge
from rotator.core.reasons import Reason
from rotator.core.schedule import DAY, Freeze, Schedule, Window

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)  # a Tuesday
HOUR = 3600.0


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def ahead(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def key(age: float = 31 * DAY, life: float | None = None) -> KeyRef:
    return KeyRef(minted_at=ago(age), expires_at=None if life is None else ahead(life), ours=True)


def rotation(stuck: Reason | None = None) -> Rotation:
    return Rotation(
        id="r7",
        installation="prod",
        sequence=7,
        trigger=Trigger.SCHEDULE,
        note="",
        why=Reason.INTERVAL,
        binding=Binding("acme", "0oa1", "https://t.example/scim", "t", StrategyName.OVERLAP, By.API, By.API),
        limits=Limits(),
        started_at=ago(60),
        phase=Phase.PUSH,
        phase_since=ago(5),
        stuck=stuck,
    )


def ended(at: datetime) -> Ended:
    return Ended(
        id="r6",
        sequence=6,
        trigger=Trigger.SCHEDULE,
        strategy=StrategyName.OVERLAP,
        outcome=Outcome.ROLLED_BACK,
        reason=Reason.KEY_REFUSED,
        detail="",
        started_at=at - timedelta(minutes=1),
        ended_at=at,
    )


def failed(times: int, ended_ago: float) -> Record:
    return Record("crm", current=key(), last=ended(ago(ended_ago)), failures=times)


OVERDUE = Record("crm", current=key())
YOUNG = Record("crm", current=key(age=10 * DAY))
MONTHLY = Schedule(rotate_every=30 * DAY)
SUNDAYS = Window((7,), time(2), 2 * HOUR, "UTC")  # opens next 4 days and 14 hours after NOW
TO_SUNDAY = 4 * DAY + 14 * HOUR
FREEZE = Freeze(ago(DAY), ahead(10 * DAY), "quarter end")
BRAKED = (Engaged(Scope.IDP, "acme", ahead(HOUR)),)
DUE = Facts(OVERDUE, MONTHLY, NOW)


CASES = [
    # due
    pytest.param(DUE, True, Reason.INTERVAL, None, id="a key older than its interval is due"),
    pytest.param(
        Facts(YOUNG, Schedule(cron="0 3 * * *"), NOW, cron_next=ago(60)),
        True,
        Reason.CRON,
        None,
        id="a cron fire that passed is due",
    ),
    pytest.param(
        Facts(Record("crm", current=key(DAY, 3 * DAY)), Schedule(rotate_every=30 * DAY, expiry_margin=7 * DAY), NOW),
        True,
        Reason.EXPIRY,
        None,
        id="a key inside its expiry margin is due",
    ),
    pytest.param(
        Facts(Record("crm"), Schedule(bootstrap=True), NOW),
        True,
        Reason.BOOTSTRAP,
        None,
        id="no key known, bootstrap set: due",
    ),
    pytest.param(replace(DUE, record=YOUNG, asked=True), True, Reason.ASKED, None, id="asked for before its time: due"),
    pytest.param(
        Facts(Record("crm", current=KeyRef()), MONTHLY, NOW),
        True,
        Reason.INTERVAL,
        None,
        id="a known key of unknown age is due",
    ),
    # not due
    pytest.param(
        replace(DUE, record=YOUNG),
        False,
        Reason.NOT_DUE,
        ahead(20 * DAY),
        id="a young key is not due until its time",
    ),
    pytest.param(
        Facts(OVERDUE, Schedule(), NOW), False, Reason.NOT_DUE, None, id="nothing scheduled: never due by itself"
    ),
    pytest.param(
        Facts(YOUNG, Schedule(cron="0 3 * * *"), NOW, cron_next=ahead(60)),
        False,
        Reason.NOT_DUE,
        ahead(60),
        id="a cron fire to come is waited for",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, enabled=False)),
        False,
        Reason.DISABLED,
        None,
        id="a schedule that is switched off rotates nothing",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, enabled=False), asked=True),
        True,
        Reason.ASKED,
        None,
        id="but a person can ask",
    ),
    pytest.param(
        replace(DUE, record=YOUNG, schedule=replace(MONTHLY, freezes=(FREEZE,))),
        False,
        Reason.NOT_DUE,
        ahead(20 * DAY),
        id="a key that is not due is not called frozen",
    ),
    # an unknown key
    pytest.param(
        Facts(Record("crm"), MONTHLY, NOW),
        False,
        Reason.KEY_UNKNOWN,
        None,
        id="the process starts, nothing was adopted: nothing rotates",
    ),
    pytest.param(
        Facts(Record("crm"), MONTHLY, NOW, asked=True),
        False,
        Reason.KEY_UNKNOWN,
        None,
        id="asking does not make an unknown key known",
    ),
    pytest.param(
        Facts(Record("crm"), replace(MONTHLY, bootstrap=True, window=SUNDAYS), NOW),
        False,
        Reason.OUTSIDE_WINDOW,
        ahead(TO_SUNDAY),
        id="a bootstrap waits for its window too",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, bootstrap=True)),
        True,
        Reason.INTERVAL,
        None,
        id="bootstrap says nothing about a known key",
    ),
    # open and stuck rotations
    pytest.param(
        replace(DUE, record=replace(OVERDUE, rotation=rotation())),
        False,
        Reason.IN_PROGRESS,
        None,
        id="an open rotation holds the next",
    ),
    pytest.param(
        replace(DUE, record=replace(OVERDUE, rotation=rotation()), asked=True),
        False,
        Reason.IN_PROGRESS,
        None,
        id="also when asked",
    ),
    pytest.param(
        replace(DUE, record=replace(OVERDUE, rotation=rotation(Reason.BOTH_DEAD)), asked=True),
        False,
        Reason.STUCK,
        None,
        id="a stuck rotation holds every trigger",
    ),
    # clock, drift
    pytest.param(replace(DUE, clock_ok=False), False, Reason.CLOCK, None, id="a clock that is off holds starts"),
    pytest.param(replace(DUE, clock_ok=False, asked=True), False, Reason.CLOCK, None, id="also those asked for"),
    pytest.param(
        replace(DUE, record=replace(YOUNG, drift_since=ago(HOUR))),
        False,
        Reason.DRIFT,
        None,
        id="drift is shown even when nothing is due",
    ),
    pytest.param(
        replace(DUE, record=replace(OVERDUE, drift_since=ago(HOUR)), asked=True),
        False,
        Reason.DRIFT,
        None,
        id="drift holds a request too",
    ),
    # freeze
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, freezes=(FREEZE,))),
        False,
        Reason.FREEZE,
        ahead(10 * DAY),
        id="a freeze holds until it ends",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, freezes=(FREEZE,)), asked=True),
        False,
        Reason.FREEZE,
        ahead(10 * DAY),
        id="a person's request does not break a freeze",
    ),
    pytest.param(
        replace(
            DUE,
            record=Record("crm", current=key(DAY, 9 * DAY)),
            schedule=Schedule(expiry_margin=14 * DAY, freezes=(FREEZE,)),
        ),
        True,
        Reason.EXPIRY,
        None,
        id="a freeze that would let the key expire holds nothing",
    ),
    pytest.param(
        replace(
            DUE,
            record=Record("crm", current=key(DAY, 11 * DAY)),
            schedule=Schedule(expiry_margin=14 * DAY, freezes=(FREEZE,)),
        ),
        False,
        Reason.FREEZE,
        ahead(10 * DAY),
        id="a key that outlives the freeze waits for its end",
    ),
    pytest.param(
        replace(
            DUE,
            record=Record("crm", current=key(31 * DAY, 9 * DAY)),
            schedule=Schedule(rotate_every=30 * DAY, expiry_margin=2 * DAY, freezes=(FREEZE,)),
        ),
        False,
        Reason.FREEZE,
        ahead(7 * DAY),
        id="overdue in a freeze and not yet inside the margin: held until the margin begins",
    ),
    # brake
    pytest.param(replace(DUE, brake=BRAKED), False, Reason.BRAKE, ahead(HOUR), id="a brake holds"),
    pytest.param(replace(DUE, brake=BRAKED, asked=True), False, Reason.BRAKE, ahead(HOUR), id="also a request"),
    pytest.param(
        replace(DUE, brake=(*BRAKED, Engaged(Scope.TARGET, "t", ahead(2 * HOUR)))),
        False,
        Reason.BRAKE,
        ahead(2 * HOUR),
        id="of two brakes the longer one counts",
    ),
    pytest.param(
        replace(DUE, brake=(Engaged(Scope.IDP, "acme", ago(1)),)),
        True,
        Reason.INTERVAL,
        None,
        id="a brake whose time is over holds nothing",
    ),
    # backoff
    pytest.param(replace(DUE, record=failed(1, 60)), False, Reason.BACKOFF, "computed", id="after a failure it waits"),
    pytest.param(
        replace(DUE, record=failed(1, 301)), True, Reason.INTERVAL, None, id="after five minutes it tries again"
    ),
    pytest.param(
        replace(DUE, record=failed(4, 31 * 60)),
        False,
        Reason.BACKOFF,
        "computed",
        id="after four failures half an hour is too soon",
    ),
    pytest.param(replace(DUE, record=failed(60, DAY + 1)), True, Reason.INTERVAL, None, id="never longer than a day"),
    pytest.param(
        replace(DUE, record=failed(4, 60), asked=True), True, Reason.ASKED, None, id="asking skips the backoff"
    ),
    pytest.param(
        replace(DUE, record=replace(failed(4, 60), current=key(DAY))),
        False,
        Reason.NOT_DUE,
        ahead(29 * DAY),
        id="what is not due is not called backed off",
    ),
    # window
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, window=SUNDAYS)),
        False,
        Reason.OUTSIDE_WINDOW,
        ahead(TO_SUNDAY),
        id="due on Tuesday, the window opens on Sunday",
    ),
    pytest.param(
        replace(DUE, now=ahead(TO_SUNDAY), schedule=replace(MONTHLY, window=SUNDAYS)),
        True,
        Reason.INTERVAL,
        None,
        id="on Sunday it starts",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, window=SUNDAYS), asked=True),
        True,
        Reason.ASKED,
        None,
        id="asking skips the window",
    ),
    pytest.param(
        replace(
            DUE,
            record=Record("crm", current=key(DAY, 4 * DAY)),
            schedule=Schedule(expiry_margin=7 * DAY, window=SUNDAYS),
        ),
        True,
        Reason.EXPIRY,
        None,
        id="a key that would expire before Sunday does not wait for it",
    ),
    pytest.param(
        replace(
            DUE,
            record=Record("crm", current=key(DAY, 5 * DAY)),
            schedule=Schedule(expiry_margin=7 * DAY, window=SUNDAYS),
        ),
        False,
        Reason.OUTSIDE_WINDOW,
        ahead(TO_SUNDAY),
        id="a key that lives past Sunday waits for it",
    ),
    pytest.param(
        replace(
            DUE,
            record=Record("crm", current=key(DAY, 5 * DAY)),
            schedule=Schedule(expiry_margin=7 * DAY, window=SUNDAYS),
            worst_case=DAY,
        ),
        True,
        Reason.EXPIRY,
        None,
        id="unless a rotation on Sunday could end too late",
    ),
    pytest.param(
        replace(DUE, record=Record("crm", current=key(31 * DAY, -HOUR)), schedule=replace(MONTHLY, window=SUNDAYS)),
        True,
        Reason.EXPIRY,
        None,
        id="an expired key waits for nothing",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, window=SUNDAYS, freezes=(Freeze(ahead(4 * DAY), ahead(6 * DAY), "x"),))),
        False,
        Reason.OUTSIDE_WINDOW,
        ahead(TO_SUNDAY + 7 * DAY),
        id="a Sunday inside a freeze is no opening",
    ),
    # the IdP's pace and capacity
    pytest.param(
        replace(DUE, last_start_at_idp=ago(60), min_spacing=300),
        False,
        Reason.SPACING,
        ahead(240),
        id="starts at one IdP are spaced",
    ),
    pytest.param(
        replace(DUE, last_start_at_idp=ago(60), min_spacing=300, asked=True),
        False,
        Reason.SPACING,
        ahead(240),
        id="also those of a signal that asks for all",
    ),
    pytest.param(
        replace(DUE, last_start_at_idp=ago(300), min_spacing=300),
        True,
        Reason.INTERVAL,
        None,
        id="when spaced enough it starts",
    ),
    pytest.param(replace(DUE, running_at_idp=2, max_parallel=2), False, Reason.PARALLEL, None, id="the IdP is full"),
    pytest.param(
        replace(DUE, running_at_idp=2, max_parallel=2, asked=True),
        False,
        Reason.PARALLEL,
        None,
        id="for a request too",
    ),
    pytest.param(replace(DUE, running_at_idp=1, max_parallel=2), True, Reason.INTERVAL, None, id="one place is left"),
    pytest.param(replace(DUE, running_at_idp=50), True, Reason.INTERVAL, None, id="no limit is no limit"),
    # order
    pytest.param(
        replace(DUE, record=replace(OVERDUE, rotation=rotation()), clock_ok=False, brake=BRAKED),
        False,
        Reason.IN_PROGRESS,
        None,
        id="what is open comes before what holds",
    ),
    pytest.param(
        replace(DUE, schedule=replace(MONTHLY, freezes=(FREEZE,), window=SUNDAYS), brake=BRAKED),
        False,
        Reason.FREEZE,
        ahead(10 * DAY),
        id="a freeze is named before a brake and a window",
    ),
    pytest.param(
        replace(DUE, record=failed(1, 60), brake=BRAKED),
        False,
        Reason.BRAKE,
        ahead(HOUR),
        id="a brake is named before the connection's own backoff",
    ),
]


@pytest.mark.parametrize(("facts", "due", "reason", "until"), CASES)
def test_the_verdict(facts: Facts, due: bool, reason: Reason, until: datetime | str | None) -> None:
    verdict = judge(facts)
    assert (verdict.due, verdict.reason) == (due, reason), verdict.text
    assert verdict.until == (backoff_until(facts.record) if until == "computed" else until)
    assert verdict.text


def test_bootstrap_is_due_and_says_so() -> None:
    assert judge(Facts(Record("crm"), Schedule(bootstrap=True), NOW)) == Verdict(
        due=True, reason=Reason.BOOTSTRAP, until=None, text="no key is known and bootstrap is set"
    )


@pytest.mark.parametrize(
    ("failures", "low", "high"),
    [
        pytest.param(1, 240, 300, id="first: five minutes"),
        pytest.param(2, 480, 600, id="second: ten"),
        pytest.param(5, 3840, 4800, id="fifth: an hour and a third"),
        pytest.param(9, 0.8 * 76800, 76800, id="ninth: most of a day"),
        pytest.param(10, 0.8 * DAY, DAY, id="tenth: a day"),
        pytest.param(5000, 0.8 * DAY, DAY, id="a number that would overflow: a day"),
    ],
)
def test_backoff_doubles_to_a_day(failures: int, low: float, high: float) -> None:
    until = backoff_until(failed(failures, 0))
    assert until is not None
    assert low <= (until - NOW).total_seconds() <= high


def test_backoff_of_an_expiring_key_takes_at_most_a_quarter_of_its_life() -> None:
    until = backoff_until(replace(failed(20, 0), current=key(DAY, 8 * HOUR)))
    assert until == ahead(2 * HOUR)


def test_backoff_needs_a_failure_and_an_ending() -> None:
    assert backoff_until(failed(0, 60)) is None
    assert backoff_until(Record("crm", failures=3)) is None


def test_a_thousand_connections_that_failed_together_do_not_return_together_nor_at_a_restart() -> None:
    first = [backoff_until(replace(failed(10, 0), connection=f"c{n}")) for n in range(1000)]
    again = [backoff_until(replace(failed(10, 0), connection=f"c{n}")) for n in range(1000)]
    assert first == again
    assert len({at.replace(minute=0, second=0, microsecond=0) for at in first if at}) >= 5


def test_every_rule_holds_something_and_starts_nothing() -> None:
    """A rule only holds; what no rule holds is due. Each is the answer to at least one case above."""
    told = set()
    for case in CASES:
        facts = case.values[0]
        assert isinstance(facts, Facts)
        told |= {rule.__name__ for rule in RULES if (verdict := rule(facts)) is not None and not verdict.due}
    assert told == {rule.__name__ for rule in RULES}


# --- the property ------------------------------------------------------------------------------------------------------

times = st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive by hypothesis' rule
seconds = st.floats(0, 400 * DAY)
keys = st.builds(KeyRef, minted_at=st.none() | times, expires_at=st.none() | times)
windows = st.builds(
    Window,
    days=st.sets(st.integers(1, 7), min_size=1).map(lambda days: tuple(sorted(days))),
    start=st.times(),
    duration=st.floats(1, 9 * DAY),
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "America/Santiago", "Pacific/Apia", "Australia/Lord_Howe"]),
)
freezes = st.builds(
    lambda start, length: Freeze(start, start + timedelta(seconds=length), "x"),
    start=times,
    length=st.floats(1, 200 * DAY),
)
schedules = st.builds(
    Schedule,
    rotate_every=st.none() | st.floats(1, 400 * DAY),
    expiry_margin=seconds,
    jitter=seconds,
    window=st.none() | windows,
    freezes=st.lists(freezes, max_size=3).map(tuple),
    bootstrap=st.booleans(),
    enabled=st.booleans(),
)
records = st.builds(
    Record,
    connection=st.text(max_size=8),
    current=st.none() | keys,
    rotation=st.sampled_from([None, None, None, rotation(), rotation(Reason.BOTH_DEAD)]),
    last=st.none() | times.map(ended),
    last_rotated_at=st.none() | times,
    failures=st.integers(0, 10**6),
    drift_since=st.sampled_from([None, None, None, NOW]),
)
facts = st.builds(
    Facts,
    record=records,
    schedule=schedules,
    now=times,
    cron_next=st.none() | times,
    asked=st.booleans(),
    clock_ok=st.sampled_from([True, True, True, False]),
    brake=st.lists(st.builds(Engaged, st.sampled_from(Scope), st.just("x"), times), max_size=2).map(tuple),
    running_at_idp=st.integers(0, 5),
    max_parallel=st.none() | st.integers(1, 5),
    last_start_at_idp=st.none() | times,
    min_spacing=seconds,
    worst_case=seconds,
)


@settings(max_examples=600, deadline=None)
@given(facts=facts)
def test_judging_is_total_deterministic_and_never_names_a_time_that_has_passed(facts: Facts) -> None:
    verdict = judge(facts)
    assert verdict == judge(facts)
    assert verdict.until is None or verdict.until > facts.now
    assert verdict.text
    if verdict.due:
        assert verdict.until is None
        assert facts.record.rotation is None
        assert facts.clock_ok
        assert facts.record.current is not None or facts.schedule.bootstrap


@settings(max_examples=400, deadline=None)
@given(facts=facts, early=st.floats(0, 1, exclude_max=True))
def test_before_the_named_time_nothing_becomes_due_by_itself(facts: Facts, early: float) -> None:
    """So a planner may sleep until then as long as no fact but the clock changes."""
    verdict = judge(facts)
    if verdict.until is not None:
        last_moment = verdict.until - timedelta(microseconds=1)  # the product may round up to `until` itself
        between = min(facts.now + (verdict.until - facts.now) * early, last_moment)
        assert not judge(replace(facts, now=between)).due


@settings(max_examples=400, deadline=None)
@given(facts=facts)
def test_asking_never_holds_what_the_schedule_would_start(facts: Facts) -> None:
    if judge(replace(facts, asked=False)).due:
        assert judge(replace(facts, asked=True)).due
