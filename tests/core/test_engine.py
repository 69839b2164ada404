"""What the engine does with people's requests, alarms, freezes and odd worlds; each on a world that behaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from rotator.core import ledger
from rotator.core.model import Ask, By, DebtKind, Outcome, Phase, Record, Rotation, Trigger
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import LiveKeys
from rotator.ports import EventKind, EventType, Slot, StoredKey
from tests.core.world import LIMITS, NAME, Kind, Variant, World

Script = Callable[[World], None]
VARIANT_OLD_DEAD = Variant("the old key is dead", old_dead=True)


def once(phase: Phase, act: Script, *, waiting: Reason | None = None) -> Script:
    """`act`, the first time that the rotation is in this phase (and waits for that)."""
    done: list[bool] = []

    def script(world: World) -> None:
        r = world.record().rotation
        if not done and r is not None and r.phase is phase and (waiting is None or r.waiting is waiting):
            done.append(True)
            act(world)

    return script


def both(*scripts: Script) -> Script:
    def script(world: World) -> None:
        for one in scripts:
            one(world)

    return script


def asks(what: Ask) -> Script:
    def act(world: World) -> None:
        assert world.engine().ask(NAME, what, "ann") is None

    return act


def ended(world: World) -> tuple[Outcome, Reason]:
    last = world.record().last
    assert last is not None
    return last.outcome, last.reason


def run(variant: Variant | None = None, script: Script | None = None) -> World:
    world = World(variant or Variant("overlap"))
    world.script = script
    return world.go().judge()


def rotation(world: World) -> Rotation:
    found = world.record().rotation
    assert found is not None
    return found


# --- requests ----------------------------------------------------------------------------------------------------------


def test_a_rollback_asked_in_the_overlap_puts_the_old_key_back_and_revokes_the_new_one() -> None:
    world = run(script=once(Phase.OVERLAP, asks(Ask.ROLLBACK)))

    assert world.violations == []
    assert ended(world) == (Outcome.ROLLED_BACK, Reason.ROLLBACK_ASKED)
    assert world.idp.key is not None
    assert world.idp.key.reveal() == world.old
    assert [k.key_id for k in world.target.live()] == [world.target.id_of(world.old)]


def test_a_cancel_before_the_push_discards_the_candidate() -> None:
    variant = Variant("slow proof", limits=replace(LIMITS, success_window=600))

    world = run(variant, once(Phase.PROVE, asks(Ask.CANCEL)))

    assert world.violations == []
    assert ended(world) == (Outcome.ROLLED_BACK, Reason.CANCEL_ASKED)
    assert world.idp.pushes == []


def test_a_cancel_after_the_push_is_refused_with_the_way_out() -> None:
    said: list[str | None] = []
    script = once(Phase.OVERLAP, lambda world: said.append(world.engine().ask(NAME, Ask.CANCEL, "ann")))

    world = run(script=script)

    assert said == ["the candidate may already be at the identity provider: use rollback"]
    assert ended(world)[0] is Outcome.ROTATED


def test_a_persons_word_moves_a_hand_off_on_and_is_kept_as_evidence() -> None:
    world = World(Variant("push", push=By.PERSON))

    def types_in_silence(w: World) -> None:
        r = rotation(w)
        staged = w.keys.read(NAME, Slot.STAGED, r.staged_version)
        assert staged is not None
        w.idp.key = staged.key  # saved in a way that the log does not show
        asks(Ask.CONFIRM)(w)

    world.script = both(
        once(Phase.AWAIT_PUSH, types_in_silence, waiting=Reason.AWAITING_PUSH),
        once(Phase.RETIRE, asks(Ask.RESUME), waiting=Reason.ASSERTED_ONLY),
    )
    world.go().judge()

    last = world.record().last
    assert world.violations == []
    assert last is not None
    assert last.outcome is Outcome.ROTATED
    assert "asserted by ann" in last.evidence


def test_a_persons_word_alone_does_not_revoke_the_old_key_while_the_log_could_show_it() -> None:
    world = World(Variant("push", push=By.PERSON))
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]  # they say so, and type nothing
    world.script = both(
        once(Phase.AWAIT_PUSH, asks(Ask.CONFIRM), waiting=Reason.AWAITING_PUSH),
        once(Phase.RETIRE, asks(Ask.ROLLBACK), waiting=Reason.ASSERTED_ONLY),
        once(Phase.AWAIT_RESTORE, asks(Ask.CONFIRM), waiting=Reason.AWAITING_RESTORE),
    )
    world.go()

    assert ended(world) == (Outcome.ROLLED_BACK, Reason.ROLLBACK_ASKED)
    assert world.target.accepts(world.old)
    assert world.idp.key is not None
    assert world.idp.key.reveal() == world.old


# --- alarms hold -------------------------------------------------------------------------------------------------------


def test_changed_features_hold_until_a_person_resumes() -> None:
    variant = Variant("features")
    world = World(variant)
    push = world.idp.push

    def pushes_and_somebody_edits(key: Secret) -> object:
        answer = push(key)
        world.idp.settings["USER_PROVISIONING.status"] = "DISABLED"
        return answer

    world.idp.push = pushes_and_somebody_edits  # type: ignore[assignment, method-assign]
    world.script = once(Phase.CONFIRM, asks(Ask.RESUME), waiting=Reason.FEATURES_CHANGED)
    world.go().judge()

    held = [e for e in world.events if e.type is EventType.HELD and e.reason is Reason.FEATURES_CHANGED]
    assert len(held) == 1
    assert "resume" in held[0].text
    assert ended(world)[0] is Outcome.ROTATED


def test_a_foreign_change_in_the_overlap_holds_and_can_be_rolled_back() -> None:
    script = both(
        once(Phase.OVERLAP, lambda w: w.clock.advance(10)),
        once(Phase.OVERLAP, lambda w: w.idp._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")),
        once(Phase.OVERLAP, asks(Ask.ROLLBACK), waiting=Reason.FOREIGN_CHANGE),
    )

    world = run(script=script)

    assert ended(world) == (Outcome.ROLLED_BACK, Reason.ROLLBACK_ASKED)
    assert [e for e in world.events if e.type is EventType.HELD and e.reason is Reason.FOREIGN_CHANGE]


def test_an_old_key_that_somebody_else_uses_is_not_revoked() -> None:
    variant = Variant("used", last_used=True, limits=replace(LIMITS, overlap=120))
    script = both(
        once(Phase.OVERLAP, lambda w: w.clock.advance(60)),
        lambda w: (w.target.use(w.old), None)[1] if rotation(w).phase is Phase.OVERLAP else None,
        once(Phase.RETIRE, asks(Ask.RESUME), waiting=Reason.OLD_KEY_IN_USE),
    )
    world = World(variant)
    world.script = lambda w: script(w) if w.record().rotation is not None else None
    world.go().judge()

    held = [e for e in world.events if e.reason is Reason.OLD_KEY_IN_USE]
    assert held
    assert ended(world)[0] is Outcome.ROTATED  # after the person said so


# --- preflight ---------------------------------------------------------------------------------------------------------


def _disable(w: World) -> None:
    w.idp.enabled = False


def _seed_newer(w: World) -> None:
    w.target.seed("rot-conn-s7-a1")


def _other_in_vault(w: World) -> None:
    w.keys.write(NAME, Slot.CURRENT, StoredKey(Secret("somebody-elses-value")), w.keys.newest(NAME, Slot.CURRENT))


PREFLIGHT = [
    pytest.param(_disable, Outcome.CANCELLED, Reason.IDP_DISABLED, id="an admin switched the connection off"),
    pytest.param(
        lambda w: w.target.kill(w.old), Outcome.CANCELLED, Reason.DRIFT, id="only the target refuses the key: drift"
    ),
    pytest.param(_seed_newer, Outcome.STUCK, Reason.STATE_OLDER_THAN_WORLD, id="the state was restored from a backup"),
    pytest.param(_other_in_vault, Outcome.CANCELLED, Reason.FOREIGN_VERSION, id="somebody else wrote the key in Vault"),
    pytest.param(
        lambda w: setattr(w.keys, "max_versions", 2),
        Outcome.CANCELLED,
        Reason.MISCONFIGURED,
        id="Vault keeps too few versions",
    ),
]


@pytest.mark.parametrize(("before", "outcome", "reason"), PREFLIGHT)
def test_preflight_changes_nothing_when(before: Script, outcome: Outcome, reason: Reason) -> None:
    world = World(Variant("overlap"))
    live = [k.key_id for k in world.target.live()]
    before(world)
    world.go()

    assert ended(world) == (outcome, reason)
    assert world.idp.pushes == []
    assert "mint" not in world.target.calls
    assert set(live) - {world.target.id_of(world.old)} <= {k.key_id for k in world.target.live()}


def test_drift_is_kept_in_the_record_until_somebody_adopts() -> None:
    world = World(Variant("overlap"))
    world.target.kill(world.old)
    world.go()

    assert world.record().drift_since is not None


def test_a_disabled_connection_is_switched_on_when_the_configuration_says_so() -> None:
    world = World(Variant("enable", limits=replace(LIMITS, enable_disabled=True)))
    world.idp.enabled = False
    world.go().judge()

    assert ended(world)[0] is Outcome.ROTATED
    assert world.idp.enabled


# --- proof -------------------------------------------------------------------------------------------------------------


def test_a_target_that_accepts_any_key_proves_nothing() -> None:
    world = World(Variant("open"))
    world.target.open = True
    world.script = lambda w: setattr(
        w.target, "open", w.record().rotation is not None and rotation(w).phase is Phase.PROVE
    )
    world.go()

    assert ended(world)[1] is Reason.ENDPOINT_OPEN
    assert world.idp.pushes == []


def test_a_fresh_key_that_settles_late_is_waited_for() -> None:
    world = World(Variant("settles"))
    world.target.settle = 12
    world.go().judge()

    assert world.violations == []
    assert ended(world)[0] is Outcome.ROTATED


def test_a_key_that_never_settles_is_discarded() -> None:
    world = World(Variant("never settles"))
    world.target.settle = 10_000
    world.go().judge()

    assert ended(world) == (Outcome.ROLLED_BACK, Reason.KEY_REFUSED)


# --- hand-offs ---------------------------------------------------------------------------------------------------------


def _leave(value: str) -> Script:
    def act(w: World) -> None:
        w.keys.write(NAME, Slot.HANDOFF, StoredKey(Secret(value)), w.keys.newest(NAME, Slot.HANDOFF))

    return act


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param("fk_abc\u200bdef", Reason.KEY_FORMAT, id="a zero-width space came along"),
        pytest.param("Bearer fk_abcdef", Reason.KEY_FORMAT, id="the scheme came along"),
        pytest.param("fk_abcdef ", Reason.KEY_FORMAT, id="a blank came along"),
    ],
)
def test_a_handed_over_key_that_cannot_be_right_is_left_alone_and_said(value: str, reason: Reason) -> None:
    world = World(Variant("mint", mint=By.PERSON, limits=replace(LIMITS, person=120)))
    _leave(value)(world)
    world.go()

    assert ended(world) == (Outcome.CANCELLED, Reason.DEADLINE)
    assert [e for e in world.events if e.reason is reason]
    assert world.keys.read(NAME, Slot.HANDOFF) is not None
    assert value not in repr(world.events)


def test_the_current_key_handed_over_again_is_refused() -> None:
    world = World(Variant("mint", mint=By.PERSON, limits=replace(LIMITS, person=120)))
    _leave(world.old)(world)
    world.go()

    assert [e for e in world.events if e.reason is Reason.KNOWN_KEY]
    assert ended(world)[0] is Outcome.CANCELLED


def test_a_handed_over_version_is_destroyed_once_staged() -> None:
    world = run(Variant("mint", mint=By.PERSON))

    assert ended(world)[0] is Outcome.ROTATED
    assert world.keys.newest(NAME, Slot.HANDOFF) == 1
    assert world.keys.read(NAME, Slot.HANDOFF) is None


def test_a_person_who_never_types_the_key_in_leaves_it_stuck_with_both_keys_alive() -> None:
    world = World(Variant("push", push=By.PERSON))
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]  # nobody comes
    world.go()

    assert ended(world) == (Outcome.STUCK, Reason.DEADLINE)
    assert len(world.target.live()) == 2
    assert [e for e in world.events if e.type is EventType.REMINDER]


# --- freezes and clocks ------------------------------------------------------------------------------------------------


def test_a_freeze_holds_the_push_and_the_retire_and_nothing_is_lost() -> None:
    world = World(Variant("frozen"))
    until = world.clock.now() + timedelta(days=2)
    world.frozen_until = lambda now: until if now < until else None
    world.go().judge()

    last = world.record().last
    assert world.violations == []
    assert last is not None
    assert last.outcome is Outcome.ROTATED
    assert last.ended_at > until
    assert [e for e in world.events if e.type is EventType.HELD and e.reason is Reason.FREEZE]


def test_a_freeze_does_not_hold_a_restore() -> None:
    world = World(Variant("frozen", candidate="bad_in_use"))
    end = world.clock.now() + timedelta(days=2)
    world.frozen_until = lambda now: end if rotation(world).phase is Phase.RETIRE and now < end else None
    world.go().judge()

    last = world.record().last
    assert last is not None
    assert last.outcome is Outcome.ROLLED_BACK
    assert last.ended_at < end


def test_a_doubtful_clock_holds_the_revoke() -> None:
    world = World(Variant("clock"))
    world.clock_ok = False
    engine = world.engine()
    engine.claim(
        world.connection(), world.record0, version=world.version0, why=Reason.ASKED, trigger=Trigger.CLI, note=""
    )
    for _ in range(40):
        wait = engine.run(world.connection())
        if wait is None or rotation(world).waiting is Reason.CLOCK:
            break
        world.pass_time(wait)

    assert rotation(world).phase is Phase.RETIRE
    assert rotation(world).waiting is Reason.CLOCK
    assert "revoke" not in world.target.calls
    engine.clock_ok = True
    world.clock.advance(61)
    world.drive(engine)
    assert ended(world)[0] is Outcome.ROTATED


# --- the configuration, Vault, and debts -------------------------------------------------------------------------------


def test_a_connection_that_became_another_one_under_an_open_rotation_is_stuck_and_nothing_is_revoked() -> None:
    world = World(Variant("overlap"))

    def another_app(w: World) -> None:
        w.binding = replace(w.binding, app_id="another")
        raise _Stop

    world.script = once(Phase.OVERLAP, another_app)
    with pytest.raises(_Stop):
        world.go()
    world.script = None
    world.clock.advance(300)
    world.drive()

    assert ended(world) == (Outcome.STUCK, Reason.CONFIG_CHANGED)
    assert len(world.target.live()) == 2


class _Stop(Exception):
    pass


def test_a_candidate_that_vault_never_took_is_revoked_while_the_lease_covers_it() -> None:
    world = World(Variant("vault down"))
    real = world.state.save
    down = [False]

    def save(record: Record, version: int) -> int:
        r = record.rotation
        if r is not None and r.phase is Phase.STAGE:
            down[0] = True
            world.lease_left = 6.0  # less than 1.5 calls: the heartbeat fails too
        if down[0]:
            from rotator import errors

            raise errors.Transient("saving", system="vault")
        return real(record, version)

    world.state.save = save  # type: ignore[method-assign]
    engine = world.engine()
    engine.claim(
        world.connection(), world.record0, version=world.version0, why=Reason.ASKED, trigger=Trigger.CLI, note=""
    )
    engine.run(world.connection())

    assert [k.key_id for k in world.target.live()] == [world.target.id_of(world.old)]
    world.state.save = real  # type: ignore[method-assign]
    world.lease_left = 60.0
    world.clock.advance(300)
    world.drive()
    assert ended(world)[0] is Outcome.ROTATED
    assert world.judge().violations == []


def test_a_revoke_that_works_only_later_is_waited_for() -> None:
    world = World(Variant("lingers"))
    world.target.linger = 100
    world.go().judge()

    assert world.violations == []
    assert ended(world)[0] is Outcome.ROTATED
    assert world.record().debts == ()


def test_an_old_key_that_outlives_its_budget_is_a_debt_and_is_paid_when_it_dies() -> None:
    world = World(Variant("lingers long"))
    world.target.linger = 4000
    world.go().judge()

    assert ended(world)[0] is Outcome.ROTATED
    assert [d.kind for d in world.record().debts] == [DebtKind.REVOKE]
    for _ in range(40):
        world.clock.advance(3600)
        world.engine().run(world.connection())
        if not world.record().debts:
            break
    assert world.record().debts == ()
    assert [e for e in world.events if e.type is EventType.DEBT_PAID]


def test_a_key_that_appears_at_a_target_without_labels_is_suspected_and_left_alone() -> None:
    world = World(Variant("no labels", labels=False), at=-1)
    calls = world.go().calls
    mint = calls.index("mint")
    world = World(Variant("no labels", labels=False), at=mint, kind=Kind.REPLY_LOST).go().judge()

    assert world.violations == []
    assert ended(world)[0] is Outcome.ROTATED
    suspected = [d for d in world.record().debts if d.kind is DebtKind.SUSPECTED]
    assert len(suspected) == 1
    assert suspected[0].key.key_id in {k.key_id for k in world.target.live()}


def test_our_labelled_leftover_from_an_earlier_rotation_is_reported_and_not_revoked() -> None:
    world = World(Variant("overlap"))
    world.record0 = replace(world.record0, sequence=4)
    world.version0 = world.state.save(world.record0, world.version0)
    stray = world.target.seed("rot-conn-s2-a1")
    world.go()

    assert ended(world)[0] is Outcome.ROTATED
    assert stray.key_id in {k.key_id for k in world.target.live()}
    assert [d.key.label for d in world.record().debts if d.kind is DebtKind.SUSPECTED] == ["rot-conn-s2-a1"]


def test_a_cap_that_our_own_debt_fills_is_freed() -> None:
    from rotator.core.model import Debt, KeyRef

    world = World(Variant("two", live_keys=LiveKeys.TWO))
    ours = world.target.seed("rot-conn-s0-a1")
    debt = Debt(DebtKind.REVOKE, KeyRef(key_id=ours.key_id, ours=True), world.clock.now(), Reason.STILL_ALIVE)
    world.record0 = replace(world.record0, debts=(debt,))
    world.version0 = world.state.save(world.record0, world.version0)
    world.go()

    assert ended(world)[0] is Outcome.ROTATED
    assert ours.key_id not in {k.key_id for k in world.target.live()}


# --- telling -----------------------------------------------------------------------------------------------------------


def test_the_ledger_holds_every_step_in_an_unbroken_chain() -> None:
    world = run()

    steps = [e.event for e in world.ledger]
    assert ledger.verify(world.ledger, {}) == []
    assert steps == [
        "claimed",
        "preflight",
        "mint",
        "stage",
        "prove",
        "push",
        "confirm",
        "promote",
        "overlap",
        "retire",
    ]


def test_every_step_that_fails_says_what_is_true_what_is_next_and_what_a_person_can_do() -> None:
    world = World(Variant("push", push=By.PERSON))
    world.idp.person_types = lambda key: False  # type: ignore[method-assign]
    world.go()

    text = [e.text for e in world.events if e.type is EventType.ENDED][-1]
    assert "stuck" in text
    assert "rotator status conn" in text
    failed = [e.text for e in world.events if e.type is EventType.PHASE_FAILED]
    assert all("Now: " in t and "Next: " in t for t in failed)


def test_complaints_about_the_dead_old_key_do_not_condemn_the_new_one() -> None:
    world = World(VARIANT_OLD_DEAD)
    world.script = lambda w: (w.idp.provision(), None)[1]
    push = world.idp.push

    def complains_up_to_the_push(key: Secret) -> object:
        world.idp._write(EventKind.KEY_BAD, "application.integration.authentication_failure FAILURE")
        world.clock.advance(0.5)
        return push(key)

    world.idp.push = complains_up_to_the_push  # type: ignore[assignment, method-assign]
    world.go().judge()

    assert world.violations == []
    assert ended(world)[0] is Outcome.ROTATED
