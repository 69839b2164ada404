"""The core walked: every strategy x every outside call x every way in which that call can go wrong.

Each case drives the real engine in a small world (`world.py`) with one fault at one outside call: death before or after
it, an outage, a refusal, a lost request, a lost reply, or a freeze in which another instance takes over and finishes.
Then the invariants are judged on the world's own state. The number of cases is printed at the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from rotator.core import machine
from rotator.core.model import By, Outcome, Phase, Record, StrategyName
from rotator.core.strategy import STRATEGIES, LiveKeys, Verdict
from tests.core.world import Kind, Variant, World

VARIANTS = {
    v.name: v
    for v in (
        Variant("overlap"),
        Variant("a person mints", mint=By.PERSON),
        Variant("a person pushes", push=By.PERSON),
        Variant("a person does both", mint=By.PERSON, push=By.PERSON),
        Variant("make room", live_keys=LiveKeys.TWO),
        Variant("replace", live_keys=LiveKeys.ONE),
        Variant("replace with our value", live_keys=LiveKeys.ONE, supplies=True),
        Variant("no labels", labels=False),
        Variant("the log can't be read", log_readable=False),
        Variant("somebody else's key beside ours", foreign_key=True, last_used=True),
        Variant("the minted key is dead", candidate="dead"),
        Variant("the key is bad in use", candidate="bad_in_use"),
        Variant("the key is bad in use, a person pushed", candidate="bad_in_use", push=By.PERSON),
        Variant("the IdP refuses the key and loses the old one", idp_refuses=True),
        Variant("the IdP refuses the key and keeps the old one", idp_refuses=True, keeps_old=True),
        Variant("no key known, bootstrap", bootstrap=True),
        Variant("the old key is dead", old_dead=True),
        Variant("capped by somebody else's key", live_keys=LiveKeys.TWO, foreign_key=True),
    )
}
ENDS = {
    "the minted key is dead": Outcome.ROLLED_BACK,
    "the key is bad in use": Outcome.ROLLED_BACK,
    "the key is bad in use, a person pushed": Outcome.ROLLED_BACK,
    "the IdP refuses the key and loses the old one": Outcome.ROLLED_BACK,
    "the IdP refuses the key and keeps the old one": Outcome.ROLLED_BACK,
    "capped by somebody else's key": Outcome.CANCELLED,
}


def unfenceable(variant: Variant, kind: Kind, call: str) -> bool:
    """What no check-and-set can stop: a call that left a frozen holder just before its successor finished.

    A late roll kills the key that the successor minted; `allow_gap` accepts it. A late push of a candidate that the
    successor has meanwhile discarded gives the IdP a dead key; the holder says so when it wakes (LEASE_LOST), and the
    IdP's log shows it. Both need a process to freeze between its last look at its lease and the call.
    """
    rolls = variant.name == "replace" and call in {"newest", "write", "mint"}
    undone = ENDS.get(variant.name) is Outcome.ROLLED_BACK and call == "push"
    return kind is Kind.FROZEN and (rolls or undone)


def walk(variant: Variant, kind: Kind) -> tuple[int, list[str]]:
    """Every outside call of the clean run, with this fault at it: how many cases, and what was violated where."""
    calls = World(variant).go().calls
    found = []
    cases = 0
    for at, call in enumerate(calls):
        if unfenceable(variant, kind, call):
            continue
        cases += 1
        world = World(variant, at=at, kind=kind).go()
        record = world.record()
        if record.last is not None or record.rotation is not None:  # else the claim itself was not taken
            world.judge()
        found += [f"{call} (call {at}) {kind}: {violation}" for violation in world.violations]
    return cases, found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_clean_run_ends_as_it_should(name: str) -> None:
    world = World(VARIANTS[name]).go().judge()

    last = world.record().last
    assert world.violations == []
    assert last is not None
    assert last.outcome is ENDS.get(name, Outcome.ROTATED)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: f"a call {kind}")
@pytest.mark.parametrize("name", VARIANTS)
def test_the_invariants_hold_wherever(name: str, kind: Kind, record_property: Callable[[str, object], None]) -> None:
    cases, violations = walk(VARIANTS[name], kind)

    record_property("walked", cases)
    assert cases > 0
    assert violations == []


# --- the walk is worth something: machines broken on purpose are caught ------------------------------------------------


def _with_edge(phase: Phase, verdict: Verdict, to: Phase | Outcome) -> Any:
    strategy = STRATEGIES[StrategyName.OVERLAP]
    broken = replace(strategy, edges=MappingProxyType({**strategy.edges, (phase, verdict): to}))
    return MappingProxyType({**STRATEGIES, StrategyName.OVERLAP: broken})


def _without(phase: Phase) -> Any:
    strategy = STRATEGIES[StrategyName.OVERLAP]
    path = tuple(p for p in strategy.path if p is not phase)
    return MappingProxyType({**STRATEGIES, StrategyName.OVERLAP: replace(strategy, path=path)})


def _trusting_takeover(record: Record, holder: str) -> Record:
    return replace(record, holder=holder, epoch=record.epoch + 1)


BROKEN = [
    pytest.param(
        "STRATEGIES",
        _without(Phase.PROMOTE),
        "overlap",
        Kind.DIES_AFTER,
        "don't hold the same live key",
        id="a rotation that ends without promoting",
    ),
    pytest.param(
        "STRATEGIES",
        _with_edge(Phase.PUSH, Verdict.REFUSED, Phase.DISCARD),
        "the IdP refuses the key and loses the old one",
        Kind.DIES_BEFORE,
        "the old key is not in place",
        id="a refused push is not undone",
    ),
    pytest.param(
        "taken_over",
        _trusting_takeover,
        "no labels",
        Kind.DIES_AFTER,
        "more live key",
        id="a takeover believes that nothing was sent",
    ),
    pytest.param(
        "_owe",
        lambda record, *_: record,
        "a person mints",
        Kind.DOWN,
        "lives and is no debt",
        id="what is not proved dead is forgotten",
    ),
]


@pytest.mark.parametrize(("attribute", "broken", "name", "kind", "said"), BROKEN)
def test_a_broken_machine_is_caught(
    monkeypatch: pytest.MonkeyPatch, attribute: str, broken: object, name: str, kind: Kind, said: str
) -> None:
    monkeypatch.setattr(machine, attribute, broken)

    _, violations = walk(VARIANTS[name], kind)

    assert [v for v in violations if said in v] != []
