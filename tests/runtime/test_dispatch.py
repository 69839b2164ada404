"""What is begun, when, by whom; what is held and told; and that several processes at one store do not fight."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from rotator.core.model import Ask, By, Debt, DebtKind, KeyRef, Outcome, Phase, Record, Trigger
from rotator.core.reasons import Reason
from rotator.core.schedule import Freeze, Schedule, Window
from rotator.errors import Ambiguous, Misconfigured, Transient
from rotator.ports import EventType
from rotator.runtime.cron import next_cron
from rotator.runtime.dispatch import Side
from tests.runtime.dispatch_world import DAILY, DAY, QUICK, SIDE, World

DOWN = Transient("read the state record", system="vault", detail="connection refused")
GARBLED = Misconfigured("read the state record", system="vault", detail="schema 99")
IDLE = Schedule(rotate_every=1000 * DAY)
LONG = replace(QUICK, overlap=7200, watch_every=600)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


# --- one door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", [Trigger.CLI, Trigger.SIGNAL, Trigger.HTTP])
def test_who_asks_gets_a_rotation_that_is_not_due(world: World, trigger: Trigger) -> None:
    world.connect(schedule=IDLE)
    one = world.process()

    answer = one.submit(trigger=trigger)

    assert (answer.began, answer.reason) == (True, Reason.ASKED)
    last = one.ended()
    assert (last.id, last.trigger, last.outcome) == (answer.rotation_id, trigger, Outcome.ROTATED)


def test_a_second_request_is_answered_with_the_running_rotation(world: World) -> None:
    world.connect(limits=LONG)
    one, two = world.process("one"), world.process("two")
    first = one.submit()

    again = [one.submit(trigger=t) for t in Trigger]
    elsewhere = two.submit()

    assert [a.rotation_id for a in (*again, elsewhere)] == [first.rotation_id] * 5
    assert not any(a.began for a in (*again, elsewhere))


def test_requests_at_the_same_instant_begin_one_rotation_and_all_get_its_id(world: World) -> None:
    world.connect(limits=LONG)
    one = world.process()
    here, gate = threading.Barrier(4), threading.Event()
    world.store.before_save = lambda: gate.wait(0.2)  # the first claim is being written while the others come

    def ask() -> str | None:
        here.wait()
        answer: str | None = one.submit().rotation_id
        return answer

    with ThreadPoolExecutor(4) as pool:
        ids = {f.result() for f in [pool.submit(ask) for _ in range(4)]}

    assert len(ids) == 1
    assert None not in ids
    assert world.record().sequence == 1


def test_two_processes_that_claim_at_once_begin_one_rotation(world: World) -> None:
    world.connect(limits=LONG)
    one, two = world.process("one"), world.process("two")
    found: list[str | None] = []
    world.store.before_save = lambda: found.append(two.submit().rotation_id)  # just before the first one's claim

    found.append(one.submit().rotation_id)

    assert found[0] == found[1]
    assert world.record().sequence == 1


def test_an_unknown_name_is_a_key_error(world: World) -> None:
    one = world.process()

    with pytest.raises(KeyError):
        one.submit("nobody")


def test_a_process_that_stops_takes_no_request(world: World) -> None:
    world.connect()
    one = world.process()
    one.stop()

    with pytest.raises(Transient, match="stopping"):
        one.submit()
    assert world.record().rotation is None


def test_a_claim_whose_answer_was_lost_is_found_and_driven(world: World) -> None:
    world.connect(schedule=IDLE)
    one = world.process()
    world.store.lost = [Ambiguous("write the state record", system="vault")]
    with pytest.raises(Ambiguous):
        one.submit()

    one.tick()
    assert one.dispatcher.entry("conn").record.rotation is not None
    assert one.ended().outcome is Outcome.ROTATED


# --- when --------------------------------------------------------------------------------------------------------------


def test_nothing_rotates_because_a_process_started(world: World) -> None:
    world.connect("young")
    world.connect("unknown", known=False)
    world.connect("idle", schedule=Schedule(cron="0 3 1 1 *"), next_cron=next_cron("0 3 1 1 *", "UTC"))
    for name in ("one", "two", "three"):
        one = world.process(name)
        one.tick()
        one.quiet()
        one.stop()

    assert [world.store.load(n) for n in ("unknown",)] == [None]
    assert [world.record(n).sequence for n in ("young", "idle")] == [0, 0]
    assert world.processes[0].told() == [("unknown", Reason.KEY_UNKNOWN)]


def test_a_key_unknown_is_rotated_where_the_configuration_says_to_begin_so(world: World) -> None:
    world.connect(known=False, schedule=replace(DAILY, bootstrap=True))
    one = world.process()
    one.tick()

    assert one.ended().outcome is Outcome.ROTATED
    assert world.record().sequence == 1


def test_a_rotation_is_due_after_its_interval_and_only_once(world: World) -> None:
    world.connect()
    one = world.process()
    world.clock.advance(DAY - 10)
    one.tick()
    assert world.record().rotation is None

    world.clock.advance(11)
    one.tick()
    assert one.ended().trigger is Trigger.SCHEDULE
    world.clock.advance(DAY / 2)
    one.tick()
    one.quiet()
    assert world.record().sequence == 1


def test_a_rotation_is_due_before_the_key_expires(world: World) -> None:
    schedule = Schedule(rotate_every=300 * DAY, expiry_margin=3 * DAY)
    world.connect(schedule=schedule, expires_at=world.clock.now() + timedelta(days=10))
    one = world.process()
    world.clock.advance(6.9 * DAY)
    one.tick()
    assert world.record().rotation is None

    world.clock.advance(0.2 * DAY)
    one.tick()
    rotation = world.record().rotation
    assert rotation is not None
    assert rotation.why is Reason.EXPIRY


def test_a_rotation_is_due_when_cron_says_so(world: World) -> None:
    world.connect(schedule=Schedule(cron="0 3 * * *"), next_cron=next_cron("0 3 * * *", "UTC"))
    one = world.process()
    world.clock.advance(14 * 3600 + 3540)  # from noon to 02:59
    one.tick()
    assert world.record().rotation is None

    world.clock.advance(120)
    one.tick()
    rotation = world.record().rotation
    assert rotation is not None
    assert rotation.why is Reason.CRON


# --- held, told once, and due afterwards -------------------------------------------------------------------------------


HOLDS = [
    pytest.param(Reason.OUTSIDE_WINDOW, 6 * 3600.0, id="outside the window, which opens at 18:00"),
    pytest.param(Reason.FREEZE, 3 * DAY, id="in a freeze of three days"),
    pytest.param(Reason.BRAKE, 1800.0, id="braked after failures at the IdP"),
    pytest.param(Reason.SPACING, 900.0, id="another rotation began there just now"),
    pytest.param(Reason.BACKOFF, 300.0, id="its last rotation failed"),
]


def hold(world: World, reason: Reason) -> None:
    """A connection `conn` that is due in a day, and then held for this reason."""
    schedule, idp = DAILY, SIDE
    due = world.clock.now() + timedelta(days=1)
    match reason:
        case Reason.OUTSIDE_WINDOW:
            opens = (due + timedelta(hours=6)).time()
            schedule = replace(DAILY, window=Window(tuple(range(1, 8)), opens, 3600.0, "UTC"))
        case Reason.FREEZE:
            schedule = replace(DAILY, freezes=(Freeze(due, due + timedelta(days=3), "audit"),))
        case Reason.BRAKE:
            idp = Side("idp", brake_after=2, brake_cooldown=1800.0)
        case Reason.SPACING:
            idp = Side("idp", 100, 1800.0, min_spacing=900.0)
    world.connect(schedule=schedule, idp=idp)
    others = ("other", "third") if reason in {Reason.BRAKE, Reason.SPACING} else ()
    for name in others:
        world.connect(name, schedule=IDLE, idp=idp)
    world.clock.advance(DAY + 1)
    for name in others:
        world.failed_before(name, ago=0)
    if reason is Reason.BACKOFF:
        world.failed_before("conn", ago=0)


@pytest.mark.parametrize(("reason", "at_most"), HOLDS)
def test_what_holds_a_due_rotation_is_told_once_and_lets_go_without_a_restart(
    world: World, reason: Reason, at_most: float
) -> None:
    hold(world, reason)
    one = world.process()

    for _ in range(5):
        world.clock.advance(1)
        one.tick()

    assert one.told() == [("conn", reason)]
    assert one.dispatcher.entry("conn").held is reason
    assert world.record().rotation is None

    world.clock.advance(at_most)
    one.tick()
    rotation = world.record().rotation
    assert rotation is not None
    assert rotation.why is Reason.INTERVAL
    assert one.dispatcher.entry("conn").held is None


def test_what_is_held_for_long_is_told_again_each_hour(world: World) -> None:
    hold(world, Reason.FREEZE)
    one = world.process()

    for _ in range(3 * 60):
        one.tick()
        world.clock.advance(60)
        one.dispatcher.entry("conn").look_at = None

    assert one.told() == [("conn", Reason.FREEZE)] * 3


def test_no_more_run_at_an_idp_than_may_and_the_next_begins_when_one_is_through(world: World) -> None:
    idp = Side("idp", 100, 1800.0, max_parallel=1)
    world.connect("a", idp=idp)
    world.connect("b", idp=idp)
    world.places["a"].target.down = True  # it waits in preflight
    one = world.process()
    world.clock.advance(DAY + 1)

    answer = one.submit("a")
    one.tick()
    one.quiet()
    assert answer.began
    assert one.told() == [("b", Reason.PARALLEL)]
    assert one.submit("b").reason is Reason.PARALLEL, "who asks is held too"

    world.places["a"].target.down = False
    one.until(lambda: world.record("b").last, "b's rotation")
    assert world.record("b").sequence == 1


def test_spacing_and_parallel_count_what_others_began_before_our_start(world: World) -> None:
    idp = Side("idp", 100, 1800.0, max_parallel=1, min_spacing=900.0)
    world.connect("a", idp=Side("idp", 100, 1800.0))
    world.connect("b", idp=idp)
    one = world.process("one")
    one.submit("a")
    one.ended("a")

    two = world.process("two")

    assert two.submit("b").reason is Reason.SPACING


def test_a_request_that_is_refused_is_told_each_time_and_leaves_the_connection_as_it_is(world: World) -> None:
    now = world.clock.now()
    world.connect(schedule=replace(IDLE, freezes=(Freeze(now, now + timedelta(days=1), "audit"),)))
    one = world.process()
    one.tick()

    answers = [one.submit(), one.submit()]

    assert {a.reason for a in answers} == {Reason.FREEZE}
    assert "audit" in answers[0].text
    assert one.told() == [("conn", Reason.FREEZE)] * 2
    assert one.dispatcher.entry("conn").held is None, "nothing is due: nothing is held"


def test_a_brake_holds_a_bootstrap_too(world: World) -> None:
    idp = Side("idp", brake_after=1, brake_cooldown=1800.0)
    world.connect("conn", known=False, schedule=replace(DAILY, bootstrap=True), idp=idp)
    world.connect("other", schedule=IDLE, idp=idp)
    world.failed_before("other", ago=0)
    one = world.process()

    one.tick()
    assert one.told() == [("conn", Reason.BRAKE)]
    world.clock.advance(1800)
    one.tick()
    rotation = world.record().rotation
    assert rotation is not None
    assert rotation.why is Reason.BOOTSTRAP


def test_a_changed_configuration_clears_the_backoff(world: World) -> None:
    place = world.connect()
    world.clock.advance(DAY + 1)
    world.failed_before("conn", ago=0)
    world.change("conn", config="old")
    one = world.process()
    same = replace(place.managed, connection=replace(place.managed.connection, config="old"))
    one.dispatcher.configure({"conn": same})
    one.tick()
    assert one.told() == [("conn", Reason.BACKOFF)]

    one.dispatcher.configure({"conn": replace(same, connection=replace(same.connection, config="new"))})
    one.tick()

    assert world.record().rotation is not None


def test_a_rotation_that_ended_elsewhere_is_known_at_the_next_tick(world: World) -> None:
    world.connect(schedule=IDLE)
    one, two = world.process("one"), world.process("two")
    two.submit()
    two.beat()
    one.tick()
    one.quiet()  # it looked, and saw that another one has it
    two.ended()
    two.beat()

    one.tick()

    assert one.dispatcher.entry("conn").record.rotation is None
    assert one.told(EventType.CLAIMED) == []


def test_an_unfit_clock_holds_starts(world: World) -> None:
    world.connect()
    one = world.process()
    world.clock.advance(DAY + 1)
    one.engine.clock_ok = False
    one.tick()
    assert one.told() == [("conn", Reason.CLOCK)]

    one.engine.clock_ok = True
    one.tick()
    assert world.record().rotation is not None


def test_a_failed_rotation_backs_off_and_is_tried_again(world: World) -> None:
    place = world.connect(limits=replace(QUICK, settle=0))
    one = world.process()
    world.clock.advance(DAY + 1)
    refuses, place.idp.accepts = place.idp.accepts, lambda key: key.fingerprint == place.first.fingerprint
    one.tick()
    assert one.ended().outcome is Outcome.ROLLED_BACK
    place.idp.accepts = refuses

    one.tick()
    assert ("conn", Reason.BACKOFF) in one.told()
    assert world.record().sequence == 1
    world.clock.advance(300)
    one.tick()
    one.until(lambda: world.record().sequence == 2 and world.record().rotation is None, "the second try")
    last = world.record().last
    assert last is not None
    assert last.outcome is Outcome.ROTATED


# --- stuck, debts, people ----------------------------------------------------------------------------------------------


def stuck(world: World) -> None:
    """A hand-off whose deadline passed."""
    world.connect(push=By.PERSON, limits=replace(QUICK, person=30, watch_every=5))
    one = world.process()
    one.submit()
    one.until(lambda: (r := world.record().rotation) and r.stuck, "the deadline")


@pytest.mark.parametrize("trigger", list(Trigger))
def test_stuck_blocks_every_trigger(world: World, trigger: Trigger) -> None:
    stuck(world)
    before = world.record()

    answer = world.processes[0].submit(trigger=trigger)

    assert (answer.rotation_id, answer.reason) == (None, Reason.STUCK)
    assert world.record() == before


def test_a_stuck_rotation_is_left_alone_until_somebody_asks(world: World) -> None:
    stuck(world)
    (one,) = world.processes
    told = len(one.events)
    for _ in range(10):
        world.clock.advance(60)
        one.tick()
        one.quiet()
    assert len(one.events) == told

    assert one.dispatcher.ask("conn", Ask.ROLLBACK, "ann") is None
    one.until(lambda: (r := world.record().rotation) and r.phase is Phase.AWAIT_RESTORE, "the way back")


def test_a_request_that_another_process_wrote_is_heeded_at_the_next_tick(world: World) -> None:
    stuck(world)
    (one,) = world.processes
    two = world.process("two")
    two.close()  # a command without a loop of its own
    assert two.engine.ask("conn", Ask.RESUME, "ann") is None

    one.tick()
    one.until(lambda: (r := world.record().rotation) and r.stuck is None, "the resume")


def test_a_debt_is_looked_at_when_its_time_comes_and_goes_when_the_key_is_dead(world: World) -> None:
    place = world.connect(schedule=IDLE)
    stray = place.target.seed("rot-conn-s9-a1")
    later = world.clock.now() + timedelta(hours=2)
    key = KeyRef(stray.key.fingerprint, stray.key_id, "rot-conn-s9-a1", ours=True)
    world.change("conn", debts=(Debt(DebtKind.REVOKE, key, world.clock.now(), Reason.GAVE_UP, not_before=later),))
    one = world.process()
    one.tick()
    one.quiet()
    assert place.target.accepts(stray.key.reveal())

    world.clock.advance(7201)
    one.tick()
    one.until(lambda: not world.record().debts, "the debt to be paid")
    assert not place.target.accepts(stray.key.reveal())
    assert world.record().sequence == 0


# --- several processes -------------------------------------------------------------------------------------------------


def test_a_rotation_that_another_process_laid_down_is_picked_up_at_the_next_tick(world: World) -> None:
    world.connect(schedule=IDLE)
    daemon = world.process("daemon")
    daemon.tick()
    command = world.process("command")
    world.places["conn"].target.down = True
    answer = command.submit()
    command.quiet()
    command.stop()
    world.places["conn"].target.down = False
    rotation = world.record().rotation
    assert rotation is not None
    assert world.record().holder is None

    daemon.tick()

    known = daemon.dispatcher.entry("conn").record.rotation
    assert known is not None
    assert known.id == answer.rotation_id
    assert daemon.ended().id == answer.rotation_id
    assert daemon.told(EventType.ENDED) == [("conn", Reason.DONE)]


def test_a_dead_process_leaves_its_rotation_to_others_after_its_lease(world: World) -> None:
    world.connect(schedule=IDLE)
    daemon = world.process("daemon")
    dead = world.process("dead")
    daemon.tick()
    world.places["conn"].target.down = True
    answer = dead.submit()
    dead.quiet()
    dead.beat()
    dead.dispatcher.stop = lambda: None  # type: ignore[method-assign]  # kill -9: it lays nothing down
    dead.dispatcher._stopped = True
    world.places["conn"].target.down = False

    daemon.tick()
    world.clock.advance(10)
    daemon.tick()
    daemon.quiet()
    assert world.record().holder == "dead"

    assert daemon.ended().id == answer.rotation_id
    assert daemon.told(EventType.TAKEN_OVER) == [("conn", None)]


def test_two_processes_side_by_side_rotate_each_connection_once(world: World) -> None:
    for n in range(4):
        world.connect(f"c{n}", limits=replace(QUICK, overlap=120, watch_every=40))
    one, two = world.process("one"), world.process("two")
    world.clock.advance(DAY + 1)

    for _ in range(600):
        one.tick()
        two.tick()
        world.clock.advance(1)
        for each in (one, two):
            with each.dispatcher._due:
                each.dispatcher._due.notify_all()
            each.quiet()

    for n in range(4):
        record, place = world.record(f"c{n}"), world.places[f"c{n}"]
        assert record.rotation is None
        assert record.last is not None
        assert (record.sequence, record.last.outcome) == (1, Outcome.ROTATED)
        assert len(place.target.live()) == 1
    ends = one.told(EventType.ENDED) + two.told(EventType.ENDED)
    assert sorted(ends) == sorted((f"c{n}", Reason.DONE) for n in range(4))


def test_an_adoption_by_a_command_is_seen_without_a_restart(world: World) -> None:
    place = world.connect(known=False)
    one = world.process()
    one.tick()
    assert one.dispatcher.entry("conn").held is Reason.KEY_UNKNOWN

    world.change("conn", current=place.first, last_rotated_at=world.clock.now())
    one.tick()

    assert one.dispatcher.entry("conn").held is None
    assert one.dispatcher.entry("conn").record.current == place.first


def test_a_change_that_nobody_told_is_seen_in_the_end_and_idle_records_are_read_seldom(world: World) -> None:
    for n in range(50):
        world.connect(f"c{n:02}", schedule=IDLE)
    one = world.process()
    world.change("c07", drift_since=world.clock.now())
    one.tick()
    world.store.loads.clear()
    for _ in range(9):
        world.clock.advance(60)
        one.tick()
    assert world.store.loads == []

    for _ in range(4):
        before = len(world.store.loads)
        world.clock.advance(60)
        one.tick()
        assert len(world.store.loads) - before <= 20

    assert one.dispatcher.entry("c07").record.drift_since is not None
    assert len(set(world.store.loads)) == 50


# --- a store that fails ------------------------------------------------------------------------------------------------


def test_one_unreadable_record_does_not_keep_the_others_from_work(world: World) -> None:
    for name in ("a", "b", "c"):
        world.connect(name)
    world.store.broken["b"] = GARBLED
    one = world.process()
    world.clock.advance(DAY + 1)
    one.events.clear()
    for _ in range(3):
        one.tick()

    assert one.told() == [("b", Reason.MISCONFIGURED)]
    assert one.dispatcher.entry("b").held is Reason.MISCONFIGURED
    assert one.ended("a").outcome is Outcome.ROTATED
    assert one.ended("c").outcome is Outcome.ROTATED
    del world.store.broken["b"]
    assert one.ended("b").outcome is Outcome.ROTATED


def test_a_store_that_is_down_for_one_connection_does_not_end_the_tick_for_others(world: World) -> None:
    for name in ("a", "b", "c"):
        world.connect(name)
    one = world.process()
    world.store.broken["a"] = world.store.broken["b"] = DOWN
    world.clock.advance(DAY + 1)
    one.tick()

    assert sorted(one.told()) == [("a", Reason.VAULT_DOWN), ("b", Reason.VAULT_DOWN)]
    assert one.ended("c").outcome is Outcome.ROTATED
    world.store.broken.clear()
    assert one.ended("a").outcome is Outcome.ROTATED


def test_a_store_that_answers_nobody_is_asked_a_few_times_and_then_at_the_next_tick(world: World) -> None:
    for n in range(30):
        world.connect(f"c{n:02}")
    one = world.process()
    world.clock.advance(DAY + 1)
    world.store.broken.update({f"c{n:02}": DOWN for n in range(30)})
    world.store.broken[""] = DOWN

    with pytest.raises(Transient):
        one.dispatcher.tick()

    assert len(one.told()) == 3
    assert one.dispatcher.last_tick is None, "it is not ready: it has not seen the others"


def test_load_raises_while_the_store_is_down(world: World) -> None:
    world.connect()
    one = world.process()
    world.store.broken["conn"] = DOWN
    one.dispatcher.entry("conn").loaded = False

    with pytest.raises(Transient):
        one.dispatcher.load()


# --- configuration -----------------------------------------------------------------------------------------------------


def test_a_connection_keeps_its_old_configuration_while_its_rotation_is_open(world: World) -> None:
    place = world.connect("open", limits=LONG)
    world.connect("idle")
    one = world.process()
    one.submit("open")
    old = place.managed
    moved = replace(old.connection, binding=replace(old.connection.binding, base_url="https://elsewhere.example"))
    new = {"open": replace(old, connection=moved)}

    assert one.dispatcher.configure(new) == ("open",)
    assert one.dispatcher.entry("open").managed is old
    assert one.dispatcher.names() == ("open",)
    assert one.dispatcher.configure({}) == ("open",)
    assert one.dispatcher.names() == ("open",)


def test_a_change_that_leaves_the_identity_is_taken_at_once(world: World) -> None:
    place = world.connect(limits=LONG)
    one = world.process()
    one.submit()
    new = replace(place.managed, schedule=IDLE)

    assert one.dispatcher.configure({"conn": new}) == ()
    assert one.dispatcher.entry("conn").managed.schedule is IDLE


def test_a_new_schedule_is_judged_at_the_next_tick_and_a_new_connection_appears(world: World) -> None:
    place = world.connect(schedule=IDLE)
    one = world.process()
    world.clock.advance(DAY + 1)
    one.tick()
    other = world.connect("new")

    one.dispatcher.configure({"conn": replace(place.managed, schedule=DAILY), "new": other.managed})
    one.tick()

    assert world.record().rotation is not None
    assert one.dispatcher.entry("new").loaded
    assert {v.name for v in one.dispatcher.views()} == {"conn", "new"}


# --- a bug -------------------------------------------------------------------------------------------------------------


def test_a_bug_in_one_connection_is_told_and_ends_no_other(world: World) -> None:
    world.connect("bad")
    world.connect("good")
    one = world.process()
    world.clock.advance(DAY + 1)

    def bug() -> Record:
        raise ZeroDivisionError

    world.places["bad"].target.list_keys = bug  # type: ignore[assignment,method-assign]
    one.tick()

    assert one.ended("good").outcome is Outcome.ROTATED
    assert ("bad", Reason.GAVE_UP) in one.told(EventType.HELD)
    assert world.record("bad").rotation is not None
