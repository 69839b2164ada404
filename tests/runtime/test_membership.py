"""Who lives is judged by what was seen to change, on our own monotonic clock; nobody's wall clock counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from rotator.errors import Ambiguous, PortError, Transient
from rotator.ports import Heartbeat
from rotator.runtime.membership import Membership
from tests.fakes.clock import FakeClock
from tests.fakes.vault import FakeStateStore

LEASE = 60.0


@dataclass
class Store:
    """The state store's heartbeats, with calls that take time or go wrong."""

    clock: FakeClock
    real: FakeStateStore = field(default_factory=FakeStateStore)
    write_takes: float = 0.0
    fails: list[PortError] = field(default_factory=list)  # instead of the next writes
    answer_lost: list[PortError] = field(default_factory=list)  # after the next writes
    unreadable: PortError | None = None

    def beat(self, heartbeat: Heartbeat) -> int:
        self.clock.advance(self.write_takes)
        if self.fails:
            raise self.fails.pop(0)
        version = self.real.beat(heartbeat)
        if self.answer_lost:
            raise self.answer_lost.pop(0)
        return version

    def beats(self) -> tuple[Heartbeat, ...]:
        if self.unreadable is not None:
            raise self.unreadable
        return self.real.beats()


DOWN = Transient("write the heartbeat", system="vault", detail="connection refused")
LOST = Ambiguous("write the heartbeat", system="vault", detail="no answer")


@dataclass
class World:
    """Two instances on two machines: each with its own clock, both at one store."""

    clock: FakeClock = field(default_factory=FakeClock)
    other_clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.store = Store(self.clock)
        self.us = Membership(self.store, self.clock, instance="us", lease=LEASE)  # type: ignore[arg-type]
        self.other = Membership(self.store, self.other_clock, instance="other", lease=LEASE)  # type: ignore[arg-type]

    def look_for(self, seconds: float, *, other: Callable[[], object] = lambda: None) -> None:
        """So many seconds in steps of ten; `other` happens, and we look, at each."""
        for _ in range(int(seconds / 10)):
            self.clock.advance(10)
            other()
            self.us.observe()


@pytest.fixture
def world() -> World:
    return World()


# --- our own lease -----------------------------------------------------------------------------------------------------


def test_there_is_no_lease_before_the_first_heartbeat(world: World) -> None:
    assert world.us.left() <= 0


def test_the_lease_is_counted_from_before_the_write(world: World) -> None:
    world.store.write_takes = 25

    assert world.us.beat(())

    assert world.us.left() == LEASE - 25


def test_a_heartbeat_that_was_not_written_renews_nothing_and_says_why(world: World) -> None:
    world.us.beat(())
    world.clock.advance(20)
    world.store.fails = [DOWN]

    assert not world.us.beat(())

    assert world.us.left() == LEASE - 20
    assert "connection refused" in world.us.problem
    assert world.us.beat(())
    assert world.us.problem == ""
    assert world.us.left() == LEASE


def test_a_heartbeat_whose_answer_was_lost_does_not_end_the_instance(world: World) -> None:
    world.us.beat(())
    world.store.answer_lost = [LOST]
    assert not world.us.beat(())

    tries = [world.us.beat(()) for _ in range(3)]

    assert tries[-2:] == [True, True], "the store holds our own write: it must not lock us out for good"
    assert world.us.left() == LEASE


def test_the_first_heartbeat_may_lose_its_answer_too(world: World) -> None:
    world.store.answer_lost = [LOST]
    assert not world.us.beat(())

    world.us.beat(())  # finds its own
    assert world.us.beat(())


def test_a_restarted_process_goes_on_under_its_name_and_is_seen_to_live(world: World) -> None:
    world.other.beat(())
    world.look_for(LEASE)
    again = Membership(world.store, world.clock, instance="other", lease=LEASE)  # type: ignore[arg-type]

    assert again.beat(())

    world.look_for(10)
    assert not world.us.lapsed("other")


def test_two_processes_under_one_name_do_not_both_have_a_lease(world: World) -> None:
    world.us.beat(())
    second = Membership(world.store, world.clock, instance="us", lease=LEASE)  # type: ignore[arg-type]
    assert second.beat(())

    first = []
    for _ in range(12):
        world.clock.advance(10)
        first.append(world.us.beat(()))
        assert second.beat(())

    assert not any(first)
    assert world.us.left() < 0


def test_the_stopping_heartbeat_is_the_last(world: World) -> None:
    world.us.beat(())

    assert world.us.beat(("conn",), stopped=True)
    assert not world.us.beat(()), "a late job must not take the farewell back"

    (last,) = world.store.real.beats()
    assert (last.stopped, last.open) == (True, ("conn",))
    assert world.us.left() <= 0


# --- the others --------------------------------------------------------------------------------------------------------


def test_an_instance_that_beats_never_lapses(world: World) -> None:
    world.look_for(10 * LEASE, other=lambda: world.other.beat(()))

    assert not world.us.lapsed("other")


def test_an_instance_lapses_when_it_was_not_seen_to_change_for_its_whole_lease(world: World) -> None:
    world.other.beat(())
    world.us.observe()

    world.look_for(LEASE)
    assert not world.us.lapsed("other")
    world.look_for(10)
    assert world.us.lapsed("other")


def test_the_other_instances_own_lease_counts(world: World) -> None:
    Membership(world.store, world.other_clock, instance="slow", lease=300).beat(())  # type: ignore[arg-type]
    world.us.observe()

    world.look_for(290)
    assert not world.us.lapsed("slow")
    world.look_for(20)
    assert world.us.lapsed("slow")


def test_an_instance_that_comes_back_lives(world: World) -> None:
    world.other.beat(())
    world.look_for(2 * LEASE)
    assert world.us.lapsed("other")

    world.other.beat(())
    world.us.observe()

    assert not world.us.lapsed("other")


def test_time_in_which_we_did_not_look_proves_nothing(world: World) -> None:
    """We were suspended, or cut off from the store, while the other one went on."""
    world.other.beat(())
    world.us.observe()
    world.clock.advance(5 * LEASE)
    world.store.unreadable = DOWN
    with pytest.raises(Transient):
        world.us.observe()

    assert not world.us.lapsed("other")

    world.store.unreadable = None
    world.other.beat(())
    world.us.observe()
    assert not world.us.lapsed("other")


def test_an_instance_that_stopped_is_taken_over_at_once(world: World) -> None:
    world.other.beat(("conn",))
    world.us.observe()
    assert not world.us.lapsed("other")

    world.other.beat(("conn",), stopped=True)
    (seen,) = world.us.observe()

    assert world.us.lapsed("other")
    assert seen.open == ("conn",)


def test_an_instance_that_was_never_seen_has_a_whole_lease_from_the_first_question_on(world: World) -> None:
    world.look_for(10 * LEASE)
    assert not world.us.lapsed("ghost")

    world.look_for(LEASE)
    assert not world.us.lapsed("ghost")
    world.look_for(10)
    assert world.us.lapsed("ghost")


@pytest.mark.parametrize("seconds", [-86400.0, 86400.0], ids=["a day behind", "a day ahead"])
def test_nobodys_wall_clock_counts(world: World, seconds: float) -> None:
    world.other.beat(())
    world.us.observe()

    world.other_clock.jump(seconds)
    world.clock.jump(-seconds)
    world.other.beat(())
    world.us.observe()
    assert not world.us.lapsed("other")
    world.look_for(LEASE)
    assert not world.us.lapsed("other")
    world.look_for(10)
    assert world.us.lapsed("other")


def test_we_do_not_see_ourselves(world: World) -> None:
    world.us.beat(("conn",))

    assert world.us.observe() == ()
