"""Strategies: which phases a rotation goes through, where each failure leads, and which strategy a pair allows.

A strategy is data: a path and a table of edges. `machine.py` walks it. Failure edges belong to the strategy, because
what can be undone depends on what the target can do. An unsafe pair is refused here, with the reason and the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from rotator.core.model import By, Outcome, Phase, StrategyName


class Verdict(StrEnum):
    """What an effect came to."""

    OK = "ok"  # done, and proved where it can be
    MORE = "more"  # goes well, isn't finished; look again at a given time
    AGAIN = "again"  # could not be done or decided; says nothing about the key
    AMBIGUOUS = "ambiguous"  # sent, outcome unknown
    REFUSED = "refused"  # the key itself was turned away
    BLOCKED = "blocked"  # can't succeed like this
    LOST = "lost"  # the candidate's plaintext is gone
    HOLD = "hold"  # an alarm: wait for a person, or for things to heal
    FOREIGN = "foreign"  # the world is not what the record says; a person must look
    FORWARD = "forward"  # the previous key is dead and the candidate alive: the only way is on
    SPENT = "spent"  # AGAIN or AMBIGUOUS, and the phase's budget is used up (made by the machine)


Edges = Mapping[tuple[Phase, Verdict], Phase | Outcome]


@dataclass(frozen=True)
class Strategy:
    """`path` is the clean way; `edges` is where everything else leads; `no_return` is past undoing."""

    name: StrategyName
    path: tuple[Phase, ...]
    edges: Edges
    no_return: Phase


def _edges(*rows: tuple[Phase, str, Phase | Outcome]) -> Edges:
    """Rows of (phase, "verdict verdict …", destination)."""
    return MappingProxyType({(phase, Verdict(word)): to for phase, words, to in rows for word in words.split()})


P, O = Phase, Outcome  # noqa: E741  # the tables below are read as columns

# Nothing is changed before the mint; a way back from the mint on is `discard`, from the push on `restore`.
_LOOKING = (
    (P.PREFLIGHT, "refused blocked spent", O.CANCELLED),
    (P.PREFLIGHT, "foreign", O.STUCK),
    (P.MAKE_ROOM, "blocked spent refused", O.CANCELLED),
    (P.MAKE_ROOM, "foreign", O.STUCK),
)
_BACK = (
    (P.RESTORE, "ok", P.DISCARD),
    (P.RESTORE, "forward", P.PUSH),
    (P.RESTORE, "refused blocked spent foreign", O.STUCK),
    (P.DISCARD, "ok blocked spent refused", O.ROLLED_BACK),  # what isn't proved dead stays as a debt
    (P.DISCARD, "foreign", O.STUCK),
)

_OVERLAP = _edges(
    *_LOOKING,
    (P.MINT, "lost", P.MINT),
    (P.MINT, "refused blocked spent", P.DISCARD),
    (P.MINT, "foreign", O.STUCK),
    (P.STAGE, "lost", P.MINT),
    (P.STAGE, "refused blocked spent foreign", P.DISCARD),
    (P.PROVE, "refused blocked spent lost", P.DISCARD),
    (P.PUSH, "refused", P.RESTORE),
    (P.PUSH, "blocked spent lost", P.DISCARD),  # the machine makes it `restore` once a push was unclear
    (P.CONFIRM, "refused lost", P.RESTORE),
    (P.PROMOTE, "foreign", O.STUCK),
    (P.PROMOTE, "lost", P.RESTORE),
    (P.OVERLAP, "refused lost", P.RESTORE),
    (P.RETIRE, "blocked spent", O.ROTATED),  # with a debt
    (P.RETIRE, "foreign", O.STUCK),
    (P.RETIRE, "refused lost", P.RESTORE),  # `restore` proves the previous key first, and rolls forward if it is dead
    *_BACK,
)

# After a mint that kills the old key there is no discard and no restore.
_REPLACE = _edges(
    *_LOOKING,
    (P.MINT, "lost", P.MINT),
    (P.MINT, "blocked refused", O.CANCELLED),  # the machine makes it `stuck` once a mint was unclear
    (P.MINT, "spent foreign", O.STUCK),
    (P.STAGE, "lost", P.MINT),
    (P.STAGE, "refused blocked spent foreign", O.STUCK),
    (P.PUSH, "refused blocked spent", O.STUCK),
    (P.PUSH, "lost", P.MINT),
    (P.PROVE, "refused blocked spent", O.STUCK),
    (P.PROVE, "lost", P.MINT),
    (P.CONFIRM, "refused", O.STUCK),
    (P.CONFIRM, "lost", P.MINT),
    (P.PROMOTE, "foreign lost", O.STUCK),
    (P.RETIRE, "blocked spent", O.ROTATED),
    (P.RETIRE, "refused lost foreign", O.STUCK),
)

# We supply the value: it is staged before it is set, and undone by setting the old value back.
_SUPPLIED = _edges(
    *_LOOKING,
    (P.STAGE, "refused blocked spent foreign lost", P.DISCARD),
    (P.MINT, "lost refused blocked", P.DISCARD),
    (P.MINT, "spent", P.RESTORE),
    (P.MINT, "foreign", O.STUCK),
    (P.PUSH, "refused blocked spent lost", P.RESTORE),
    (P.PROVE, "refused blocked spent lost", P.RESTORE),
    (P.CONFIRM, "refused lost", P.RESTORE),
    (P.PROMOTE, "foreign", O.STUCK),
    (P.PROMOTE, "lost", P.RESTORE),
    (P.RETIRE, "blocked spent", O.ROTATED),
    (P.RETIRE, "refused lost foreign", O.STUCK),
    *_BACK,
)

_HALF = (P.MINT, P.STAGE, P.PROVE, P.PUSH, P.CONFIRM, P.PROMOTE, P.OVERLAP, P.RETIRE)
STRATEGIES: Mapping[StrategyName, Strategy] = MappingProxyType(
    {
        StrategyName.OVERLAP: Strategy(StrategyName.OVERLAP, (P.PREFLIGHT, *_HALF), _OVERLAP, P.RETIRE),
        StrategyName.MAKE_ROOM: Strategy(
            StrategyName.MAKE_ROOM, (P.PREFLIGHT, P.MAKE_ROOM, *_HALF), _OVERLAP, P.RETIRE
        ),
        StrategyName.REPLACE: Strategy(
            StrategyName.REPLACE,
            (P.PREFLIGHT, P.MINT, P.STAGE, P.PUSH, P.PROVE, P.CONFIRM, P.PROMOTE, P.RETIRE),
            _REPLACE,
            P.MINT,
        ),
        StrategyName.REPLACE_SUPPLIED: Strategy(
            StrategyName.REPLACE_SUPPLIED,
            (P.PREFLIGHT, P.STAGE, P.MINT, P.PUSH, P.PROVE, P.CONFIRM, P.PROMOTE, P.RETIRE),
            _SUPPLIED,
            P.PROMOTE,
        ),
    }
)


# --- deriving ----------------------------------------------------------------------------------------------------------


class LiveKeys(StrEnum):
    """How many keys the target lets live at once."""

    MANY = "many"
    TWO = "two"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class TargetCapabilities:
    """What the target can do; decides the strategy."""

    live_keys: LiveKeys = LiveKeys.MANY
    mint: By = By.API
    revoke: bool = True  # one key can be revoked by API
    lists: bool = True
    labels: bool = True  # a key carries a name of our choice that the list shows
    last_used: bool = False
    last_used_throttle: float = 60.0  # seconds by which last_used_at may lag
    supplies: bool = False  # we choose the value; mint sets it
    min_settle: float = 0.0  # seconds a fresh key is known to need


@dataclass(frozen=True, slots=True)
class Route:
    """The strategy for one connection, and who does the steps that an API may not offer."""

    strategy: StrategyName
    mint_by: By
    push_by: By
    notes: tuple[str, ...] = ()  # what an operator should know of this pair


class Unsafe(Exception):
    """This pair can't be rotated safely as configured. `reason` and `way_out` are sentences."""

    def __init__(self, reason: str, way_out: str) -> None:
        self.reason, self.way_out = reason, way_out
        super().__init__(f"{reason} {way_out}")


def derive(target: TargetCapabilities, push_by: By, *, allow_gap: bool = False) -> Route:
    """The strategy that the target's and the IdP's abilities allow. Raises Unsafe."""
    by_api = target.mint is By.API
    people: tuple[str, ...] = () if by_api else ("A person mints the key.",)
    if push_by is By.PERSON:
        people += ("A person types the key into the identity provider.",)
    if target.live_keys is LiveKeys.ONE:
        if not allow_gap:
            raise Unsafe(
                "The target lets one key live: minting kills the old key before the identity provider has the new one.",
                "Set `allow_gap = true` on the connection to accept a gap of seconds in provisioning"
                " (longer where a person does a step), or use a target that allows two keys.",
            )
        gap = "Provisioning fails between mint and push."
        if target.supplies and by_api:
            return Route(StrategyName.REPLACE_SUPPLIED, By.API, push_by, (gap, *people))
        final = "The mint is the point of no return: there is no rollback."
        return Route(StrategyName.REPLACE, target.mint, push_by, (gap, final, *people))
    if by_api and not target.lists:
        raise Unsafe(
            "The target can't list its keys: a key whose answer was lost could never be found again.",
            'Describe a `list` call for this target, or use kind = "manual".',
        )
    if by_api and not target.revoke:
        raise Unsafe(
            "The target can't revoke a single key: neither a bad candidate nor the old key could be ended.",
            'Describe a `revoke` call for this target, or use kind = "manual".',
        )
    notes = people
    if by_api and not target.labels:
        doubt = (
            "The target has no label field: a key whose answer was lost is only suspected to be ours and is left for a"
            " person to revoke."
        )
        notes = (doubt, *notes)
    if target.live_keys is LiveKeys.TWO and by_api:
        return Route(StrategyName.MAKE_ROOM, By.API, push_by, notes)
    if not by_api:
        notes += ("A person revokes the old key.",)
    return Route(StrategyName.OVERLAP, target.mint, push_by, notes)
