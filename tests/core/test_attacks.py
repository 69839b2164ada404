"""Attacks on the core: two things gone wrong in one run, people who ask at the worst moment, and stale facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from rotator import errors
from rotator.core.debts import left_behind
from rotator.core.model import Ask, By, Debt, DebtKind, KeyRef, Outcome, Phase, Trigger
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import LiveKeys
from rotator.engine import Engine
from rotator.ports import Answer, EventKind, IdpConnection, IdpEvent, Minted, Probe, ProbeResult, Slot, StoredKey
from tests.core.test_engine import asks, both, ended, once, rotation
from tests.core.world import LEASE, LIMITS, NAME, Kind, Variant, World


class Stop(Exception):
    """The test's script takes over."""


def live(world: World) -> set[str]:
    return {k.key_id for k in world.target.live()}


def held_is_alive(world: World) -> bool:
    return world.idp.key is not None and world.target.accepts(world.idp.key.reveal())


def stops_at(phase: Phase, *, waiting: Reason | None = None) -> Callable[[World], None]:
    def stop(world: World) -> None:
        raise Stop

    return once(phase, stop, waiting=waiting)


def until(world: World, phase: Phase, *, waiting: Reason | None = None) -> World:
    """Drive to this phase and leave it there; the holder lays down or lapses."""
    world.script = stops_at(phase, waiting=waiting)
    with pytest.raises(Stop):
        world.go()
    world.script = None
    return world


def sweep(world: World, times: int = 3) -> None:
    for _ in range(times):
        world.clock.advance(3700)
        world.engine().run(world.connection())


def claimed(world: World) -> Engine:
    engine = world.engine()
    engine.claim(
        world.connection(), world.record0, version=world.version0, why=Reason.ASKED, trigger=Trigger.CLI, note=""
    )
    return engine


# --- debts -------------------------------------------------------------------------------------------------------------


def test_a_key_that_was_a_debt_and_is_adopted_again_is_not_revoked() -> None:
    world = World(Variant("overlap"))
    current = world.record0.current
    assert current is not None
    debt = Debt(DebtKind.REVOKE, current, world.clock.now(), Reason.STILL_ALIVE)
    world.state.save(replace(world.record0, debts=(debt,)), world.version0)

    sweep(world)

    assert held_is_alive(world)
    assert world.record().debts == ()


def _adopts(world: World, value: str, *, key_id: str | None) -> None:
    """What `rotator adopt` writes for a key that lies at this value."""
    loaded = world.state.load(NAME)
    assert loaded is not None
    record, version = loaded
    ref = KeyRef(fingerprint=Secret(value).fingerprint, key_id=key_id, ours=key_id is not None)
    at = world.keys.write(NAME, Slot.CURRENT, StoredKey(Secret(value)), world.keys.newest(NAME, Slot.CURRENT))
    world.state.save(
        replace(
            record,
            current=replace(ref, version=at),
            previous=record.current,
            rotation=None,
            holder=None,
            epoch=record.epoch + 1,
            debts=record.debts + left_behind(record, ref, world.clock.now()),
        ),
        version,
    )


def test_adopting_the_old_key_while_the_identity_provider_may_hold_the_candidate_does_not_revoke_the_candidate() -> (
    None
):
    world = World(Variant("push", push=By.PERSON))
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]  # nobody is seen
    world.go()
    assert ended(world) == (Outcome.STUCK, Reason.DEADLINE)
    staged = world.keys.read(NAME, Slot.STAGED, rotation(world).staged_version)
    assert staged is not None
    world.idp.key = staged.key  # typed in, in a way that the log does not show

    _adopts(world, world.old, key_id=world.target.id_of(world.old))
    sweep(world)

    assert held_is_alive(world)
    assert [d.kind for d in world.record().debts] == [DebtKind.PERSON]


def test_a_candidate_that_was_never_pushed_is_revoked_after_an_adoption() -> None:
    world = until(World(Variant("overlap")), Phase.PROVE)
    _adopts(world, world.old, key_id=world.target.id_of(world.old))

    sweep(world)

    assert live(world) == {world.target.id_of(world.old)}
    assert world.record().debts == ()


def test_an_id_at_another_target_is_not_taken_for_ours() -> None:
    world = World(Variant("overlap"))
    foreign = world.target.seed("someone-elses")
    gone = KeyRef(key_id=foreign.key_id, label="rot-conn-s1-a1", ours=True)  # the same number, at the target before
    debt = Debt(DebtKind.REVOKE, gone, world.clock.now(), Reason.STILL_ALIVE)
    world.state.save(replace(world.record0, debts=(debt,)), world.version0)

    sweep(world)

    assert foreign.key_id in live(world)


def test_a_debt_at_a_target_that_the_connection_has_no_more_is_neither_revoked_nor_believed_dead_at_the_new_one() -> (
    None
):
    world = World(Variant("no labels", labels=False))
    foreign = world.target.seed()
    there = [
        Debt(DebtKind.REVOKE, KeyRef(key_id=key_id, ours=True), world.clock.now(), Reason.STILL_ALIVE, "the old target")
        for key_id in (foreign.key_id, "gone")
    ]
    world.state.save(replace(world.record0, debts=tuple(there)), world.version0)

    sweep(world)

    assert foreign.key_id in live(world)
    assert [d.key for d in world.record().debts] == [d.key for d in there]


def test_a_cap_is_not_freed_by_the_key_in_use_whose_id_nobody_gave() -> None:
    world = World(Variant("two", live_keys=LiveKeys.TWO))
    current = world.record0.current
    assert current is not None
    world.target.keys[0].label = "rot-conn-s4-a1"  # ours, from before the state was lost; adopted without its id
    world.target.seed("someone-elses")
    adopted = replace(current, key_id=None, ours=False)
    world.record0 = replace(world.record0, current=adopted, sequence=4)
    world.version0 = world.state.save(world.record0, world.version0)

    world.go()

    assert held_is_alive(world)
    assert ended(world) == (Outcome.CANCELLED, Reason.CAP_REACHED)


# --- the configuration changed under it --------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [Ask.ROLLBACK, Ask.RESUME])
def test_a_rotation_of_another_app_is_neither_resumed_nor_undone_at_this_one(ask: Ask) -> None:
    world = until(World(Variant("overlap")), Phase.OVERLAP)
    world.binding = replace(world.binding, app_id="another")
    world.clock.advance(300)
    world.drive()
    assert ended(world) == (Outcome.STUCK, Reason.CONFIG_CHANGED)
    pushes, alive = list(world.idp.pushes), live(world)

    assert world.engine().ask(NAME, ask, "ann") is None
    world.drive()

    assert world.idp.pushes == pushes
    assert live(world) == alive
    assert rotation(world).stuck is Reason.CONFIG_CHANGED
    assert rotation(world).asked is None


# --- two things at once ------------------------------------------------------------------------------------------------


def test_a_deposed_holder_whose_staged_write_was_unclear_does_not_revoke_what_its_successor_uses() -> None:
    world = World(Variant("overlap"))
    write = world.keys.write
    done: list[bool] = []

    def loses_the_reply(connection: str, slot: Slot, key: StoredKey, cas: int) -> int:
        version = write(connection, slot, key, cas)
        if slot is Slot.STAGED and key.key is not None and not done:
            done.append(True)
            world.clock.advance(LEASE * 3)
            world.drive()  # another instance finds the staged key and goes to the end
            raise errors.Ambiguous("writing", system="vault")
        return version

    world.keys.write = loses_the_reply  # type: ignore[method-assign]
    world.go().judge()

    assert world.violations == []
    assert held_is_alive(world)


def test_an_old_key_whose_revocation_is_under_way_is_not_restored() -> None:
    world = World(Variant("lingers"))
    world.target.linger = 100
    probe = world.target.probe
    turned_away: list[int] = []

    def turns_the_new_one_away_once(key: Secret, what: Probe) -> ProbeResult:
        r = world.record().rotation
        begun = "revoke" in world.target.calls and r is not None and r.phase is Phase.RETIRE and r.attempts == 1
        if begun and key.reveal() != world.old and not turned_away:
            turned_away.append(1)
            return ProbeResult(Answer.REFUSED, "HTTP 401", 401)
        return probe(key, what)

    world.target.probe = turns_the_new_one_away_once  # type: ignore[assignment, method-assign]
    world.go().judge()
    world.clock.advance(1000)

    assert turned_away
    assert held_is_alive(world)
    assert world.violations == []


@pytest.mark.parametrize("ask", [Ask.CANCEL, Ask.ROLLBACK])
def test_a_value_that_may_have_been_set_is_set_back_before_it_is_discarded(ask: Ask) -> None:
    variant = Variant("supplied", live_keys=LiveKeys.ONE, supplies=True)
    mint = World(variant).go().calls.index("mint")
    world = World(variant, at=mint, kind=Kind.REPLY_LOST)
    world.script = once(Phase.MINT, asks(ask))
    world.go().judge()

    assert ended(world)[0] is Outcome.ROLLED_BACK
    assert held_is_alive(world)
    assert world.violations == []


def test_a_roll_that_may_have_been_done_by_a_dead_holder_is_not_called_cancelled() -> None:
    variant = Variant("replace", live_keys=LiveKeys.ONE)
    mint = World(variant).go().calls.index("mint")
    world = World(variant, at=mint, kind=Kind.DIES_AFTER)
    real, count = world.target.mint, [0]

    def blocked_the_second_time(label: str, value: Secret | None = None) -> Minted:
        count[0] += 1
        if count[0] > 1:
            raise errors.Misconfigured("issuing", system="target:fake")
        return real(label, value)

    world.target.mint = blocked_the_second_time  # type: ignore[method-assign]
    world.go()

    assert count[0] > 1
    assert ended(world)[0] is Outcome.STUCK


# --- people ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("push", [By.API, By.PERSON])
def test_rolled_forward_after_the_promotion_the_new_key_does_not_become_its_own_previous_one(push: By) -> None:
    world = until(World(Variant("overlap", push=push)), Phase.OVERLAP)
    world.target.kill(world.old)
    asks(Ask.ROLLBACK)(world)
    world.clock.advance(300)
    world.drive()

    assert held_is_alive(world)
    assert ended(world)[0] is Outcome.ROTATED


def test_rolled_forward_the_only_living_key_is_not_discarded_when_the_identity_provider_takes_none() -> None:
    world = World(Variant("overlap"))
    begun: list[int] = []

    def refuses_and_is_down(key: Secret) -> IdpConnection:
        if not begun:
            begun.append(1)
            world.target.kill(world.old)
            raise errors.Refused("pushing", system="idp:fake")
        raise errors.Transient("pushing", system="idp:fake")

    world.idp.push = refuses_and_is_down  # type: ignore[method-assign]
    world.go()

    assert ended(world)[0] is Outcome.STUCK
    assert len(live(world)) == 1


def test_a_persons_word_waits_for_a_target_that_is_down() -> None:
    world = until(World(Variant("push", push=By.PERSON)), Phase.OVERLAP)
    asks(Ask.ROLLBACK)(world)
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]

    def types_in_silence_while_the_target_is_down(w: World) -> None:
        stored = w.keys.read(NAME, Slot.CURRENT, 1)
        assert stored is not None
        w.idp.key, w.target.down = stored.key, True
        asks(Ask.CONFIRM)(w)
        saves.append(len(w.calls))

    def comes_back(w: World) -> None:
        r = w.record().rotation
        if r is not None and r.waiting is Reason.TARGET_DOWN:
            saves.append(len(w.calls))
            w.target.down = len(saves) < 6

    saves: list[int] = []
    typed = once(Phase.AWAIT_RESTORE, types_in_silence_while_the_target_is_down, waiting=Reason.AWAITING_RESTORE)
    world.script = both(typed, comes_back)
    world.clock.advance(300)
    world.drive()

    assert ended(world) == (Outcome.ROLLED_BACK, Reason.ROLLBACK_ASKED)
    assert len(saves) == 6
    assert held_is_alive(world)


def test_a_persons_word_in_a_restore_does_not_replace_the_proof_that_the_old_key_lives() -> None:
    world = until(World(Variant("push", push=By.PERSON)), Phase.OVERLAP)
    world.target.kill(world.old)
    asks(Ask.ROLLBACK)(world)
    world.script = once(Phase.AWAIT_RESTORE, asks(Ask.CONFIRM))
    world.clock.advance(300)
    world.drive()

    assert held_is_alive(world)


def test_a_word_about_the_push_is_not_taken_for_one_about_the_restore() -> None:
    world = World(Variant("push", push=By.PERSON))
    said: list[str | None] = []

    def typed_wrong(key: Secret) -> bool:
        world.idp.key = key
        world.idp._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")
        world.idp._write(EventKind.KEY_BAD, "application.integration.authentication_failure FAILURE")
        return False

    world.idp.person_types = typed_wrong  # type: ignore[method-assign]
    events = world.idp.events

    def confirms_meanwhile(since: datetime) -> tuple[IdpEvent, ...]:
        found = events(since)
        if world.idp.log and not said:
            said.append(world.engine().ask(NAME, Ask.CONFIRM, "ann"))
        return found

    world.idp.events = confirms_meanwhile  # type: ignore[method-assign]
    world.script = stops_at(Phase.AWAIT_RESTORE, waiting=Reason.AWAITING_RESTORE)

    with pytest.raises(Stop):  # it waits for the person, and has not ended by their word
        world.go()

    assert said == [None]
    assert len(live(world)) == 2


def test_what_was_logged_before_the_restore_began_does_not_count_as_the_old_key_typed_back() -> None:
    world = until(World(Variant("push", push=By.PERSON)), Phase.OVERLAP)
    asks(Ask.ROLLBACK)(world)
    world.idp._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")  # a second before
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]  # nobody types the old key back
    world.clock.advance(1)
    world.drive()

    assert held_is_alive(world)


def test_a_persons_late_word_frees_a_push_that_was_stuck_upon_its_deadline() -> None:
    world = World(Variant("push", push=By.PERSON))
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]
    world.go()
    assert ended(world) == (Outcome.STUCK, Reason.DEADLINE)
    staged = world.keys.read(NAME, Slot.STAGED, rotation(world).staged_version)
    assert staged is not None
    world.idp.key = staged.key

    asks(Ask.CONFIRM)(world)
    world.drive()

    assert ended(world)[0] is Outcome.ROTATED
    assert world.record().rotation is None


def test_a_rotation_held_because_the_old_key_is_used_can_be_rolled_back() -> None:
    variant = Variant("used", last_used=True)
    world = World(variant)
    script = once(Phase.RETIRE, asks(Ask.ROLLBACK), waiting=Reason.OLD_KEY_IN_USE)

    def uses(w: World) -> None:
        r = w.record().rotation
        if r is not None and r.phase is Phase.OVERLAP:
            w.clock.advance(20)
            w.target.use(w.old)
        if r is not None:
            script(w)

    world.script = uses
    world.go().judge()

    assert world.violations == []
    assert ended(world) == (Outcome.ROLLED_BACK, Reason.ROLLBACK_ASKED)


def test_a_request_that_came_too_late_is_told_as_refused() -> None:
    world = World(Variant("overlap"))
    world.target.linger = 100
    done: list[str | None] = []
    revoke = world.target.revoke

    def asked_meanwhile(key_id: str) -> None:
        revoke(key_id)
        if not done:
            done.append(world.engine().ask(NAME, Ask.ROLLBACK, "ann"))

    world.target.revoke = asked_meanwhile  # type: ignore[method-assign]
    world.go().judge()

    assert ended(world)[0] is Outcome.ROTATED
    assert [e.event for e in world.ledger if e.event.endswith("_rollback") and not e.event.startswith("asked")] == (
        ["refused_rollback"] if done == [None] else []
    )


# --- resuming ----------------------------------------------------------------------------------------------------------


def test_a_roll_whose_mints_are_used_up_is_given_another_by_resume() -> None:
    variant = Variant("replace", live_keys=LiveKeys.ONE)
    world = World(variant)
    world.script = None
    write = world.keys.write
    down = [True]

    def conflicts(connection: str, slot: Slot, key: StoredKey, cas: int) -> int:
        if down[0] and slot is Slot.STAGED and key.key is not None:
            raise errors.Conflict("writing", system="vault")
        return write(connection, slot, key, cas)

    world.keys.write = conflicts  # type: ignore[method-assign]
    world.go()
    assert ended(world)[0] is Outcome.STUCK
    down[0] = False

    asks(Ask.RESUME)(world)
    world.drive()

    assert ended(world)[0] is Outcome.ROTATED


# --- the lease ---------------------------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_inside_a_step_ends_it_before_the_revoke() -> None:
    world = World(Variant("overlap", limits=replace(LIMITS, successes=1)))
    engine = claimed(world)
    probe = world.target.probe

    def slow(key: Secret, what: Probe) -> ProbeResult:
        r = world.record().rotation
        if r is not None and r.phase is Phase.RETIRE:
            world.lease_left = 1.0  # the heartbeat fails meanwhile
        return probe(key, what)

    world.target.probe = slow  # type: ignore[assignment, method-assign]
    for _ in range(60):
        wait = engine.run(world.connection())
        if wait is None or world.lease_left < 5:
            break
        world.pass_time(wait)
    engine.run(world.connection())

    assert world.lease_left == 1.0
    assert "revoke" not in world.target.calls


# --- stale facts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("push", [By.API, By.PERSON])
def test_what_happened_during_a_freeze_before_the_revoke_is_seen(push: By) -> None:
    world = World(Variant("frozen", push=push))
    end = world.clock.now() + timedelta(days=2)
    world.frozen_until = lambda now: (
        end if world.record().rotation and rotation(world).phase is Phase.RETIRE and now < end else None
    )

    def puts_the_old_key_back(w: World) -> None:
        w.clock.advance(600)
        stored = w.keys.read(NAME, Slot.CURRENT, 1)
        assert stored is not None
        assert stored.key is not None
        w.idp.person_types(stored.key)

    world.script = once(Phase.RETIRE, puts_the_old_key_back, waiting=Reason.FREEZE)
    engine = claimed(world)
    for _ in range(200):
        wait = engine.run(world.connection())
        r = world.record().rotation
        if wait is None and r is None:
            break
        if r is not None and r.waiting is Reason.FOREIGN_CHANGE:
            break
        world.people()
        if wait is not None:
            world.pass_time(wait)

    assert held_is_alive(world)
    assert world.violations == []
    assert rotation(world).waiting is Reason.FOREIGN_CHANGE


def test_a_candidate_whose_id_the_target_did_not_give_is_not_taken_for_a_stray() -> None:
    world = World(Variant("overlap"))
    real, count = world.target.mint, [0]

    def without_id(label: str, value: Secret | None = None) -> Minted:
        count[0] += 1
        minted = real(label, value)
        if count[0] == 1:
            raise errors.Ambiguous("issuing", system="target:fake")
        return replace(minted, key_id=None)

    world.target.mint = without_id  # type: ignore[method-assign]
    world.go()

    assert held_is_alive(world)
    assert world.violations == []
