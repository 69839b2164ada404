"""The budget: what it learns from headers, when it holds a call back, and until when."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from rotator import errors
from rotator.adapters.http import HttpAnswer
from rotator.adapters.ratelimit import RateBudget
from tests.adapters.okta_stub import START, Meters, StillClock, limits


class Bench:
    def __init__(self) -> None:
        self.clock = StillClock()
        self.meter = Meters()
        self.budget = RateBudget(idp="acme", system="okta:acme", clock=self.clock, meter=self.meter)

    def answer(self, headers: dict[str, str], *, skew: float = 0.0, status: int = 200) -> HttpAnswer:
        return HttpAnswer(
            status=status,
            headers=headers,
            json=None,
            text_is_html=False,
            date=self.clock.at + timedelta(seconds=skew),
            received_at=self.clock.at,
        )

    def hear(self, headers: dict[str, str], *, skew: float = 0.0) -> None:
        self.budget.after("apps", self.answer(headers, skew=skew))

    def may(self, *, urgent: bool = False, bucket: str = "apps", who: str = "") -> bool:
        try:
            self.budget.before(bucket, doing="reading", urgent=urgent, who=who)
        except errors.RateLimited:
            return False
        return True

    def wait(self, *, urgent: bool = True, who: str = "") -> float:
        with pytest.raises(errors.RateLimited) as raised:
            self.budget.before("apps", doing="reading", urgent=urgent, who=who)
        assert raised.value.reset_at is not None
        return (raised.value.reset_at - self.clock.at).total_seconds()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_unknown_budget_lets_calls_through(bench: Bench) -> None:
    assert bench.may()


@pytest.mark.parametrize(
    ("limit", "remaining", "normal", "urgent"),
    [
        pytest.param(10, 10, 7, 10, id="of 10, three are kept for the urgent"),
        pytest.param(100, 5, 2, 5, id="of 100, three as well"),
        pytest.param(10, 3, 0, 3, id="only the reserve is left"),
        pytest.param(4, 4, 3, 4, id="a tiny limit keeps a third"),
        pytest.param(1, 1, 1, 1, id="a limit of one keeps none"),
        pytest.param(10, 0, 0, 0, id="nothing is left"),
    ],
)
def test_how_many_calls_may_still_go(limit: int, remaining: int, normal: int, urgent: int) -> None:
    for allowed, is_urgent in ((normal, False), (urgent, True)):
        bench = Bench()
        bench.hear(limits(limit, remaining))
        assert sum(bench.may(urgent=is_urgent) for _ in range(20)) == allowed


def test_what_normal_calls_leave_an_urgent_one_may_take(bench: Bench) -> None:
    bench.hear(limits(10, 4))
    assert [bench.may(), bench.may(), bench.may(urgent=True)] == [True, False, True]


def test_the_wait_goes_by_the_servers_clock(bench: Bench) -> None:
    """The server is 100 s ahead of us; it says reset is 30 s after its own date."""
    headers = limits(10, 0, 130)
    bench.hear(headers, skew=100.0)
    assert 31 <= bench.wait() <= 34.1


@pytest.mark.parametrize(
    ("reset", "least", "most"),
    [
        pytest.param("-5", 60, 63.1, id="an unreadable reset counts as a whole window"),
        pytest.param(str(int(START.timestamp()) - 500), 1, 4.1, id="a reset in the past"),
        pytest.param(str(int(START.timestamp()) + 99999), 65, 68.1, id="a reset far away is not believed"),
        pytest.param("9" * 13, 60, 63.1, id="a number of absurd length"),
    ],
)
def test_a_strange_reset_never_makes_a_strange_wait(bench: Bench, reset: str, least: float, most: float) -> None:
    bench.hear({**limits(10, 0), "x-rate-limit-reset": reset})
    assert least <= bench.wait() <= most


def test_jitter_spreads_connections_and_is_the_same_every_time(bench: Bench) -> None:
    bench.hear(limits(10, 0))
    waits = [bench.wait(who=f"app-{number}") for number in range(20)]
    assert len(set(waits)) > 5
    assert waits == [bench.wait(who=f"app-{number}") for number in range(20)]


def test_a_new_window_opens_when_the_old_one_has_passed(bench: Bench) -> None:
    bench.hear(limits(10, 0, 30))
    assert not bench.may(urgent=True)
    bench.clock.pass_(32)
    assert sum(bench.may() for _ in range(20)) == 7


def test_a_clock_set_back_does_not_hold_calls_for_ever(bench: Bench) -> None:
    bench.hear(limits(10, 0, 30))
    bench.clock.pass_(-3600)
    assert bench.may()


def test_answers_out_of_order_do_not_give_calls_back(bench: Bench) -> None:
    bench.hear(limits(10, 9))
    assert bench.may()
    assert bench.may()
    bench.hear(limits(10, 7))  # of the second call
    bench.hear(limits(10, 8))  # of the first one, late
    assert sum(bench.may(urgent=True) for _ in range(20)) == 7


def test_calls_in_flight_are_taken_off_a_new_window(bench: Bench) -> None:
    bench.hear(limits(10, 9, 5))
    assert all(bench.may() for _ in range(3))
    bench.hear(limits(10, 9, 65))  # one of the three opened the next window; two are on their way
    assert sum(bench.may(urgent=True) for _ in range(20)) == 7


def test_a_lost_call_is_no_longer_in_flight(bench: Bench) -> None:
    bench.hear(limits(10, 9, 5))
    assert bench.may()
    bench.budget.lost("apps")
    bench.hear(limits(10, 9, 65))
    assert sum(bench.may(urgent=True) for _ in range(20)) == 9


def test_buckets_are_apart(bench: Bench) -> None:
    bench.hear(limits(10, 0))
    assert bench.may(bucket="logs")


def test_a_concurrency_429_holds_all_but_the_urgent_for_seconds(bench: Bench) -> None:
    bench.hear(limits(10, 9))
    crowded = bench.answer(limits(0, 0, 60), status=429)
    bench.budget.after("apps", crowded)
    told = bench.budget.turned_away("apps", crowded, doing="reading")
    assert told.reset_at is not None
    assert 2 <= (told.reset_at - START).total_seconds() <= 5.1
    assert (bench.may(), bench.may(bucket="logs"), bench.may(urgent=True)) == (False, False, True)
    bench.clock.pass_(2)
    assert bench.may()


def test_a_429_of_a_gateway_is_waited_out_by_its_retry_after(bench: Bench) -> None:
    told = bench.budget.turned_away("apps", bench.answer({"retry-after": "7"}, status=429), doing="reading")
    assert told.reset_at is not None
    assert 8 <= (told.reset_at - START).total_seconds() <= 11.1


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no headers"),
        pytest.param({"x-rate-limit-limit": "ten", "x-rate-limit-remaining": "9"}, id="words"),
        pytest.param({"x-rate-limit-limit": "10"}, id="half of them"),
        pytest.param(limits(0, 0), id="those of a concurrency limit"),
    ],
)
def test_headers_that_say_nothing_change_nothing(bench: Bench, headers: dict[str, str]) -> None:
    bench.hear(limits(10, 5))
    bench.hear(headers)
    assert sum(bench.may(urgent=True) for _ in range(20)) == 5
    assert bench.meter.limits == [("acme", "apps", 5.0)]


def test_threads_together_never_exceed_the_budget(bench: Bench) -> None:
    bench.hear(limits(100, 50))
    start = threading.Barrier(16)

    def hammer(_: int) -> int:
        start.wait()
        return sum(bench.may(urgent=True) for _ in range(50))

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(hammer, range(16))) == 50
