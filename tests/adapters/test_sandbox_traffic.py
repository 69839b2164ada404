"""The sandbox's provisioning traffic: what it counts as a failure, and what it must not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from rotator.sandbox.target import TargetSandbox
from rotator.sandbox.target_faults import Fault
from rotator.sandbox.traffic import USER_AGENT, Held, Snapshot, Traffic


class Idp:
    """Holds a key for a target, as an identity provider's connection does."""

    def __init__(self, target: TargetSandbox) -> None:
        self.target = target
        self.key: str | None = target.seed_key("first")[0]

    def __call__(self) -> Held | None:
        return Held(self.target.scim_url, self.key) if self.key else None


@pytest.fixture
def target() -> Iterator[TargetSandbox]:
    with TargetSandbox("grafana") as running:
        yield running


@pytest.fixture
def idp(target: TargetSandbox) -> Idp:
    return Idp(target)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"never came true: {what}")


def some_calls_more(traffic: Traffic, count: int = 20) -> None:
    before = traffic.snapshot().calls
    wait_for(lambda: traffic.snapshot().calls >= before + count, f"{count} calls more")


def test_it_provisions_users_for_real_and_never_deletes_one(target: TargetSandbox, idp: Idp) -> None:
    with Traffic({"a": idp}, rate=200) as traffic:
        some_calls_more(traffic, 40)
    counts = traffic.snapshot()
    assert counts == Snapshot(calls=counts.calls, succeeded=counts.calls)
    methods = {call.method for call in target.calls}
    assert methods == {"GET", "POST", "PUT", "PATCH"}
    assert len(target.scim.storage.resources) == 3
    assert target.scim_calls == target.count(agent=USER_AGENT) == counts.calls


def test_a_dead_key_fails_every_call_until_another_one_is_held(target: TargetSandbox, idp: Idp) -> None:
    with Traffic({"a": idp}, rate=200) as traffic:
        some_calls_more(traffic, 5)
        assert idp.key is not None
        target.person_revokes(idp.key)
        wait_for(lambda: traffic.snapshot().failed >= 5, "refused calls")
        idp.key = target.person_mints("second")
        failed = traffic.snapshot().failed
        some_calls_more(traffic)
    assert traffic.snapshot().failed <= failed + 1, "at most the call that was on its way"
    assert target.refused == traffic.snapshot().failed + traffic.snapshot().raced


def test_a_key_that_was_replaced_while_a_call_was_on_its_way_is_no_failure(target: TargetSandbox, idp: Idp) -> None:
    old = idp.key
    assert old is not None
    new = target.person_mints("second")
    looks = 0

    def replaced_after_the_first_look() -> Held:
        nonlocal looks
        looks += 1
        if looks == 1:
            target.person_revokes(old)
            return Held(target.scim_url, old)
        return Held(target.scim_url, new)

    with Traffic({"a": replaced_after_the_first_look}, rate=200) as traffic:
        some_calls_more(traffic, 5)
    counts = traffic.snapshot()
    assert (counts.raced, counts.failed) == (1, 0)
    assert counts.calls == counts.succeeded


def test_the_same_race_fails_when_the_new_key_is_refused_too(target: TargetSandbox, idp: Idp) -> None:
    looks = iter(range(10_000))

    def never_the_same_twice_and_never_good() -> Held:
        return Held(target.scim_url, "bad-1" if next(looks) == 0 else "bad-2")

    with Traffic({"a": never_the_same_twice_and_never_good}, rate=200) as traffic:
        wait_for(lambda: traffic.snapshot().failed >= 1, "a failure")
    assert traffic.snapshot().raced == 1
    assert traffic.snapshot().succeeded == 0


@pytest.mark.parametrize(
    ("outage", "field"),
    [
        pytest.param("reset", "connection_errors", id="a reset connection"),
        pytest.param("refused", "connection_errors", id="nothing listening"),
        pytest.param("503", "unexpected", id="a 503"),
    ],
)
@pytest.mark.parametrize("told", [pytest.param(True, id="told"), pytest.param(False, id="not told")])
def test_an_outage_counts_apart_only_when_it_was_told(
    outage: str, field: str, told: bool, target: TargetSandbox, idp: Idp
) -> None:
    expected = "failed_while_target_down" if told else field
    with Traffic({"a": idp}, rate=200) as traffic:
        some_calls_more(traffic, 5)
        if told:
            with traffic.target_down("a"), target.down(outage):  # type: ignore[arg-type]  # the table's own words
                wait_for(lambda: getattr(traffic.snapshot(), expected) >= 3, expected)
        else:
            with target.down(outage):  # type: ignore[arg-type]  # the table's own words
                wait_for(lambda: getattr(traffic.snapshot(), expected) >= 3, expected)
        wait_for(lambda: traffic.snapshot().succeeded > 5, "calls again")
    counts = traffic.snapshot()
    assert counts.failed == 0
    assert counts.calls == counts.succeeded + getattr(counts, expected)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Fault(status=200, body=b"<html>Sign in</html>"), id="a login page"),
        pytest.param(Fault(status=200, body=b'{"ok": true}'), id="JSON that is no SCIM"),
        pytest.param(Fault(status=500, body=b'{"schemas": ["Error"], "status": "500"}'), id="a SCIM error"),
        pytest.param(Fault(status=429, headers={"Retry-After": "1"}), id="a limit"),
    ],
)
def test_an_answer_counts_as_neither_success_nor_refusal(answer: Fault, target: TargetSandbox, idp: Idp) -> None:
    target.faults.add(replace(answer, times=None))
    with Traffic({"a": idp}, rate=200) as traffic:
        wait_for(lambda: traffic.snapshot().unexpected >= 3, "unexpected answers")
    counts = traffic.snapshot()
    assert (counts.succeeded, counts.failed, counts.connection_errors) == (0, 0, 0)


def test_a_lost_answer_to_a_create_is_made_good(target: TargetSandbox, idp: Idp) -> None:
    target.faults.add(Fault(method="POST", path="/Users$", after=True, reset=True))
    with Traffic({"a": idp}, rate=200) as traffic:
        some_calls_more(traffic, 40)
    counts = traffic.snapshot()
    assert (counts.connection_errors, counts.unexpected, counts.failed) == (1, 0, 0)
    assert len(target.scim.storage.resources) == 3


@pytest.mark.parametrize(
    "key", [pytest.param("glsa_x\n", id="a trailing newline"), pytest.param("glsa_\u200bx", id="a zero-width blank")]
)
def test_a_key_with_hidden_characters_fails_as_it_would_in_real_use(key: str, idp: Idp) -> None:
    idp.key = key
    with Traffic({"a": idp}, rate=200) as traffic:
        wait_for(lambda: traffic.snapshot().failed >= 2, "failures")
    assert traffic.snapshot().succeeded == 0


def test_no_key_no_calls_and_sources_are_counted_apart(target: TargetSandbox, idp: Idp) -> None:
    with TargetSandbox("manual") as other:
        empty = Idp(other)
        empty.key = None
        with Traffic({"a": idp, "b": empty}, rate=200) as traffic:
            some_calls_more(traffic, 10)
        assert traffic.snapshot("b") == Snapshot()
        assert traffic.snapshot("a") == traffic.snapshot()
        assert other.scim_calls == 0


def test_the_rate_is_an_upper_bound_over_all_workers(target: TargetSandbox, idp: Idp) -> None:
    with (
        TargetSandbox("manual") as other,
        Traffic({"a": idp, "b": Idp(other)}, rate=8, workers=2) as traffic,
    ):
        some_calls_more(traffic, 4)
        started = time.monotonic()
        some_calls_more(traffic, 12)
        took = time.monotonic() - started
    assert took >= (12 - 4) / 8  # at most one call of each of the four workers is due at once


def test_stop_ends_every_thread(idp: Idp) -> None:
    before = threading.active_count()
    traffic = Traffic({"a": idp}, workers=3).start()
    assert sum(thread.name == "traffic-a" for thread in threading.enumerate()) == 3
    traffic.stop()
    assert not any(thread.name == "traffic-a" for thread in threading.enumerate())
    assert threading.active_count() <= before + 3  # the target's own connections may still be closing
