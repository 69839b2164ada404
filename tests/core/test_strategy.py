"""What a target and an identity provider can do decides the strategy; an unsafe pair is refused with a way out."""

from __future__ import annotations

import itertools

import pytest

from rotator.core import machine
from rotator.core.model import By, Phase, StrategyName
from rotator.core.strategy import STRATEGIES, LiveKeys, TargetCapabilities, Unsafe, Verdict, derive

API, PERSON = By.API, By.PERSON
MANY, TWO, ONE = LiveKeys.MANY, LiveKeys.TWO, LiveKeys.ONE
OVERLAP, MAKE_ROOM = StrategyName.OVERLAP, StrategyName.MAKE_ROOM
REPLACE, SUPPLIED = StrategyName.REPLACE, StrategyName.REPLACE_SUPPLIED

GAP = "Provisioning fails between mint and push."
NO_BACK = "The mint is the point of no return: there is no rollback."
NO_LABELS = "no label field"
MINTS = "A person mints the key."
REVOKES = "A person revokes the old key."
TYPES = "A person types the key into the identity provider."


def can(live: LiveKeys = MANY, **other: object) -> TargetCapabilities:
    return TargetCapabilities(live_keys=live, **other)  # type: ignore[arg-type]


def by_hand(live: LiveKeys = MANY) -> TargetCapabilities:
    return can(live, mint=PERSON, revoke=False, lists=False, labels=False)


@pytest.mark.parametrize(
    ("target", "push_by", "strategy", "mint_by", "notes"),
    [
        pytest.param(can(), API, OVERLAP, API, (), id="many keys, all by API"),
        pytest.param(can(), PERSON, OVERLAP, API, (TYPES,), id="many keys, a person pushes"),
        pytest.param(can(labels=False), API, OVERLAP, API, (NO_LABELS,), id="many keys without labels"),
        pytest.param(can(labels=False), PERSON, OVERLAP, API, (NO_LABELS, TYPES), id="no labels, a person pushes"),
        pytest.param(by_hand(), API, OVERLAP, PERSON, (MINTS, REVOKES), id="a person mints"),
        pytest.param(by_hand(), PERSON, OVERLAP, PERSON, (MINTS, TYPES, REVOKES), id="a person mints and pushes"),
        pytest.param(can(TWO), API, MAKE_ROOM, API, (), id="two keys, all by API"),
        pytest.param(can(TWO, labels=False), API, MAKE_ROOM, API, (NO_LABELS,), id="two keys without labels"),
        pytest.param(can(TWO), PERSON, MAKE_ROOM, API, (TYPES,), id="two keys, a person pushes"),
        pytest.param(
            by_hand(TWO), API, OVERLAP, PERSON, (MINTS, REVOKES), id="two keys, a person mints: they make the room"
        ),
        pytest.param(can(ONE), API, REPLACE, API, (GAP, NO_BACK), id="one key, minting kills it"),
        pytest.param(can(ONE), PERSON, REPLACE, API, (GAP, NO_BACK, TYPES), id="one key, a person pushes"),
        pytest.param(by_hand(ONE), API, REPLACE, PERSON, (GAP, NO_BACK, MINTS), id="one key, a person mints"),
        pytest.param(can(ONE, supplies=True), API, SUPPLIED, API, (GAP,), id="one key whose value we choose"),
        pytest.param(can(ONE, supplies=True), PERSON, SUPPLIED, API, (GAP, TYPES), id="our value, a person pushes"),
        pytest.param(
            can(ONE, supplies=True, mint=PERSON), API, REPLACE, PERSON, (GAP, NO_BACK, MINTS), id="their value by hand"
        ),
    ],
)
def test_the_strategy_and_who_does_what(
    target: TargetCapabilities, push_by: By, strategy: StrategyName, mint_by: By, notes: tuple[str, ...]
) -> None:
    route = derive(target, push_by, allow_gap=True)

    assert (route.strategy, route.mint_by, route.push_by) == (strategy, mint_by, push_by)
    assert len(route.notes) == len(notes), route.notes
    assert all(expected in note for expected, note in zip(notes, route.notes, strict=True)), route.notes


@pytest.mark.parametrize(
    ("target", "reason", "way_out"),
    [
        pytest.param(can(ONE), "kills the old key", "allow_gap = true", id="one key, no gap allowed"),
        pytest.param(can(ONE, supplies=True), "kills the old key", "allow_gap = true", id="our value, no gap allowed"),
        pytest.param(by_hand(ONE), "kills the old key", "allow_gap = true", id="one key by hand, no gap allowed"),
        pytest.param(can(lists=False), "can't list", "Describe a `list` call", id="keys can't be listed"),
        pytest.param(can(TWO, lists=False), "can't list", "Describe a `list` call", id="two keys, not listed"),
        pytest.param(can(revoke=False), "can't revoke", "Describe a `revoke` call", id="a key can't be revoked"),
        pytest.param(can(TWO, revoke=False), "can't revoke", "Describe a `revoke` call", id="two keys, no revoke"),
    ],
)
@pytest.mark.parametrize("push_by", [API, PERSON])
def test_an_unsafe_pair_is_refused_with_a_way_out(
    target: TargetCapabilities, push_by: By, reason: str, way_out: str
) -> None:
    with pytest.raises(Unsafe) as refused:
        derive(target, push_by)

    assert reason in refused.value.reason
    assert way_out in refused.value.way_out


def test_a_gap_is_allowed_only_where_one_key_lives() -> None:
    for live, lists, revoke in itertools.product((MANY, TWO), (True, False), (True, False)):
        target = can(live, lists=lists, revoke=revoke)
        if lists and revoke:
            assert derive(target, API, allow_gap=True) == derive(target, API)
        else:
            with pytest.raises(Unsafe):
                derive(target, API, allow_gap=True)


def test_every_combination_has_a_strategy_or_a_reason() -> None:
    booleans, told = (True, False), 0
    unsafe: list[Unsafe] = []
    table = itertools.product(LiveKeys, By, By, booleans, booleans, booleans, booleans, booleans)
    for live, mint, push_by, revoke, lists, labels, supplies, gap in table:
        target = TargetCapabilities(live, mint, revoke, lists, labels, supplies=supplies)
        try:
            route = derive(target, push_by, allow_gap=gap)
        except Unsafe as refused:
            unsafe.append(refused)
            continue
        told += 1
        way = machine.path(route.strategy, route.mint_by, route.push_by)
        assert (Phase.AWAIT_KEY in way) == (mint is PERSON)
        assert (Phase.AWAIT_PUSH in way) == (push_by is PERSON)
        if live is not ONE and mint is API:  # an overlap without a way to end a key would only pile keys up
            assert target.lists
            assert target.revoke
        if live is ONE:
            assert gap
            assert Phase.OVERLAP not in way

    assert told > 100
    assert unsafe
    assert all(refused.reason and refused.way_out for refused in unsafe)


@pytest.mark.parametrize("name", list(StrategyName))
def test_every_strategy_proves_before_its_old_key_goes_and_names_its_point_of_no_return(name: StrategyName) -> None:
    strategy = STRATEGIES[name]
    order = strategy.path.index

    assert strategy.no_return in strategy.path
    assert order(Phase.PROVE) < order(Phase.PROMOTE) < order(Phase.RETIRE)
    assert order(Phase.STAGE) < order(Phase.PUSH) < order(Phase.CONFIRM) < order(Phase.PROMOTE)
    if Phase.OVERLAP in strategy.path:
        assert order(Phase.PROVE) < order(Phase.PUSH)
        assert strategy.no_return is Phase.RETIRE
    can_go_back = (Phase.RESTORE, Verdict.OK) in strategy.edges
    assert can_go_back == (name is not REPLACE)
