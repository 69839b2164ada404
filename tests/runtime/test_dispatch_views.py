"""A view is kept between scrapes, and made anew once anything that it shows has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from rotator.core.reasons import Reason
from rotator.core.schedule import Schedule
from rotator.core.view import ConnectionView
from tests.runtime.dispatch_world import DAY, Process, World

YEARLY, MONTHLY = Schedule(rotate_every=365 * DAY), Schedule(rotate_every=30 * DAY)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def _view(one: Process) -> ConnectionView:
    (view,) = one.dispatcher.views()
    return view


def test_an_idle_connection_keeps_its_view(world: World) -> None:
    world.connect(schedule=YEARLY)
    one = world.process()
    assert _view(one) is _view(one)


def _reload(world: World, one: Process) -> None:
    one.dispatcher.configure({"conn": replace(world.places["conn"].managed, schedule=MONTHLY)})


def _hold(world: World, one: Process) -> None:
    one.dispatcher.entry("conn").held = Reason.FREEZE


def _rotate(world: World, one: Process) -> None:
    one.submit()
    one.ended()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        pytest.param(_reload, lambda v: v.next_due, id="a reload brings another schedule"),
        pytest.param(_hold, lambda v: v.held, id="it is held now"),
        pytest.param(_rotate, lambda v: v.record.current, id="a rotation brings another key"),
    ],
)
def test_a_change_is_shown(
    world: World, change: Callable[[World, Process], None], shown: Callable[[ConnectionView], object]
) -> None:
    world.connect(schedule=YEARLY)
    one = world.process()
    before = _view(one)
    change(world, one)
    assert shown(_view(one)) != shown(before)


def test_a_cron_time_that_only_the_clock_moves_is_not_kept(world: World) -> None:
    def fire(after: datetime) -> datetime:
        return after + timedelta(hours=1)

    world.connect(schedule=Schedule(cron="0 3 * * *"), next_cron=fire)
    world.change("conn", last_rotated_at=None, current=replace(world.places["conn"].first, minted_at=None))
    one = world.process()
    before = _view(one).next_due
    world.clock.advance(7200)
    after = _view(one).next_due
    assert before is not None
    assert after is not None
    assert after > before
