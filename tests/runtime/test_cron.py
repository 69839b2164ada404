"""Cron schedules mean what cron's manual says, in every zone and over both clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rotator.core import policy
from rotator.core.model import KeyRef, Record
from rotator.core.policy import Facts
from rotator.core.reasons import Reason
from rotator.core.schedule import Schedule, last_change
from rotator.runtime.cron import next_cron, weekdays

EVERY_DAY = "sun,mon,tue,wed,thu,fri,sat"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fires(expression: str, zone: str, start: str, count: int) -> list[str]:
    """The next fires after `start`, in UTC."""
    after, moment, found = next_cron(expression, zone), at(start), []
    for _ in range(count):
        following = after(moment)
        assert following is not None
        assert following > moment
        found.append(f"{following.astimezone(UTC):%Y-%m-%d %H:%M}")
        moment = following
    return found


@pytest.mark.parametrize(
    ("field", "names"),
    [
        pytest.param("*", "*", id="every day"),
        pytest.param("0", "sun", id="0 is Sunday"),
        pytest.param("7", "sun", id="7 is Sunday too"),
        pytest.param("1", "mon", id="1 is Monday, not Tuesday as APScheduler counts"),
        pytest.param("6", "sat", id="6 is Saturday"),
        pytest.param("1-5", "mon,tue,wed,thu,fri", id="a range"),
        pytest.param("5-7", "fri,sat,sun", id="a range that ends on Sunday as 7"),
        pytest.param("0-7", EVERY_DAY, id="0-7 is every day, not Sunday alone"),
        pytest.param("1-7", "mon,tue,wed,thu,fri,sat,sun", id="1-7 is every day"),
        pytest.param("7-2", "sun,mon,tue", id="a range that begins on Sunday as 7"),
        pytest.param("fri-mon", "fri,sat,sun,mon", id="a range over the week's end"),
        pytest.param("MON,Wed", "mon,wed", id="names in any case"),
        pytest.param("1,1,3", "mon,wed", id="a day named twice"),
        pytest.param("*/2", "sun,tue,thu,sat", id="a step over the week"),
        pytest.param("1-5/2", "mon,wed,fri", id="a step over a range"),
        pytest.param("2/2", "tue,thu,sat", id="a step from a day on"),
    ],
)
def test_weekdays(field: str, names: str) -> None:
    assert weekdays(field) == names


@pytest.mark.parametrize(
    ("expression", "zone", "start", "expected"),
    [
        pytest.param("0 3 * * *", "UTC", "2026-05-04T02:59:59.5", ["2026-05-04 03:00"], id="half a second before"),
        pytest.param("0 3 * * *", "UTC", "2026-05-04T03:00:00", ["2026-05-05 03:00"], id="a fire is not after itself"),
        pytest.param("0 3 * * 7", "UTC", "2026-05-04T00:00", ["2026-05-10 03:00"], id="on Sundays"),
        pytest.param("0 3 1 * *", "UTC", "2026-05-04T00:00", ["2026-06-01 03:00"], id="on the first of the month"),
        pytest.param(
            "*/30 9-10 * * 1-5",
            "Europe/Berlin",
            "2026-05-08T08:00",
            ["2026-05-08 08:30", "2026-05-11 07:00"],
            id="a step in working hours, over a weekend",
        ),
        pytest.param("0 3 * * *", "Asia/Kolkata", "2026-05-04T00:00", ["2026-05-04 21:30"], id="half-hour zone"),
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00",
            ["2026-10-25 00:30", "2026-10-26 01:30"],
            id="autumn: 02:30 comes twice and fires once",
        ),
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T01:10",
            ["2026-10-26 01:30"],
            id="autumn: asked between the two 02:30, the second is no fire",
        ),
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00",
            ["2026-03-29 01:30", "2026-03-30 00:30"],
            id="spring: the skipped 02:30 fires at 03:30",
        ),
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-29T01:10",
            ["2026-03-29 01:30"],
            id="spring: asked just after the gap, the skipped time is still to come",
        ),
        pytest.param(
            "0 0 * * *",
            "America/Santiago",
            "2026-09-05T12:00",
            ["2026-09-06 04:00", "2026-09-07 03:00"],
            id="spring: a zone that skips midnight skips no day",
        ),
    ],
)
def test_next_fire(expression: str, zone: str, start: str, expected: list[str]) -> None:
    assert fires(expression, zone, start, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "zone", "sentence"),
    [
        pytest.param("0 3 * *", "UTC", "five fields", id="four fields"),
        pytest.param("0 0 3 * * *", "UTC", "five fields", id="six fields, with seconds"),
        pytest.param("0 3 1 * 1", "UTC", "not both", id="both day fields"),
        pytest.param("0 3 * * 8", "UTC", "no weekday", id="a weekday above 7"),
        pytest.param("0 3 * * funday", "UTC", "no weekday", id="an unknown weekday"),
        pytest.param("0 3 * * 1,", "UTC", "no weekday", id="a list with nothing in it"),
        pytest.param("0 3 * * */0", "UTC", "step", id="a weekday step of 0"),
        pytest.param("0 3 * * 1-5/x", "UTC", "step", id="a weekday step that is no number"),
        pytest.param("61 3 * * *", "UTC", "61", id="a minute above 59"),
        pytest.param("x 3 * * *", "UTC", "minute", id="a minute that is no number"),
        pytest.param("0 3 30 2 *", "UTC", "never fires", id="the 30th of February"),
        pytest.param("0 3 * * *", "Europe/Atlantis", "time zone", id="an unknown zone"),
    ],
)
def test_refused(expression: str, zone: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        next_cron(expression, zone)


def test_one_rotation_in_the_autumn_night() -> None:
    """A planner that looks every minute, and a rotation that takes three, from evening to the next evening."""
    cron = next_cron("30 2 * * *", "Europe/Berlin")
    born = at("2026-10-24T01:00")
    record = Record("conn", current=KeyRef(fingerprint="f", minted_at=born, ours=True), last_rotated_at=born)
    now, begun = at("2026-10-24T20:00"), []
    while now < at("2026-10-25T20:00"):
        facts = Facts(
            record=record,
            schedule=Schedule(cron="30 2 * * *", timezone="Europe/Berlin"),
            now=now,
            cron_next=cron(last_change(record) or now),
        )
        verdict = policy.judge(facts)
        if verdict.due:
            assert verdict.reason is Reason.CRON
            begun.append(f"{now:%H:%M}")
            minted, ended = now + timedelta(seconds=20), now + timedelta(minutes=3)
            key = KeyRef(fingerprint=f"f{len(begun)}", minted_at=minted, ours=True)
            record = Record("conn", current=key, last_rotated_at=ended)
            now = ended
        now += timedelta(minutes=1)

    assert begun == ["00:30"]
