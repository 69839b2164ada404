"""What the engine's events say: what was being done, what came of it, what is true now, what happens next, and what a
person can do. The words come from the phase and the record alone, so that they are the same in logs, ledger and CLI.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rotator.core.machine import Result
from rotator.core.model import Outcome, Phase, Record, Rotation, StrategyName

DOING: Mapping[Phase, str] = MappingProxyType(
    {
        Phase.PREFLIGHT: "looking at both sides",
        Phase.MAKE_ROOM: "freeing a slot at the target",
        Phase.MINT: "minting the candidate at the target",
        Phase.AWAIT_KEY: "waiting for a person to leave a new key",
        Phase.STAGE: "staging the candidate in Vault",
        Phase.PROVE: "proving the candidate at the target",
        Phase.PUSH: "pushing the candidate to the identity provider",
        Phase.AWAIT_PUSH: "waiting for a person to type the candidate into the identity provider",
        Phase.CONFIRM: "confirming at the identity provider",
        Phase.PROMOTE: "making the candidate current in Vault",
        Phase.OVERLAP: "watching both keys",
        Phase.RETIRE: "retiring the old key",
        Phase.RESTORE: "giving the identity provider the previous key back",
        Phase.AWAIT_RESTORE: "waiting for a person to type the previous key back",
        Phase.DISCARD: "discarding the candidate",
    }
)

_BOTH = "both keys are alive and in Vault"
TRUE_NOW: Mapping[Phase, str] = MappingProxyType(
    {
        Phase.PREFLIGHT: "nothing was changed",
        Phase.MAKE_ROOM: "nothing that is in use was changed",
        Phase.MINT: "the identity provider uses the old key; a new one may exist at the target under our label",
        Phase.AWAIT_KEY: "nothing was changed",
        Phase.STAGE: "the identity provider uses the old key; the candidate is in memory only",
        Phase.PROVE: "the identity provider uses the old key; the candidate is staged in Vault",
        Phase.PUSH: f"{_BOTH}; which one the identity provider holds is not certain",
        Phase.AWAIT_PUSH: f"{_BOTH}; a person decides which one the identity provider holds",
        Phase.CONFIRM: f"{_BOTH}; the identity provider took the candidate",
        Phase.PROMOTE: f"{_BOTH}; the identity provider holds the candidate",
        Phase.OVERLAP: f"{_BOTH}; the identity provider holds the candidate",
        Phase.RETIRE: "the identity provider holds the new key; the old one may still be alive",
        Phase.RESTORE: f"{_BOTH}; the identity provider may hold either",
        Phase.AWAIT_RESTORE: f"{_BOTH}; a person decides which one the identity provider holds",
        Phase.DISCARD: "the identity provider uses the old key; the candidate may still be alive",
    }
)
# A mint that kills the old key leaves other truths.
TRUE_REPLACED = "the old key is dead or dying: provisioning fails until the identity provider has the candidate"
GAPS: Mapping[StrategyName, frozenset[Phase]] = MappingProxyType(
    {
        StrategyName.REPLACE: frozenset({Phase.MINT, Phase.STAGE, Phase.PUSH, Phase.AWAIT_PUSH}),
        StrategyName.REPLACE_SUPPLIED: frozenset({Phase.MINT, Phase.PUSH, Phase.AWAIT_PUSH, Phase.RESTORE}),
    }
)

ENDS: Mapping[Outcome, str] = MappingProxyType(
    {
        Outcome.ROTATED: "rotated: the identity provider and Vault have the new key",
        Outcome.ROLLED_BACK: "rolled back: the identity provider and Vault have the old key",
        Outcome.CANCELLED: "cancelled: nothing in use was changed",
        Outcome.STUCK: "stuck: no key of either side is revoked until a person acts",
    }
)


def step(r: Rotation, result: Result, after: Record) -> str:
    """One sentence about an effect that did not simply succeed, and what follows."""
    text = f"{DOING[r.phase]}: {result.detail or result.reason.value}. Now: {truth(r.binding.strategy, r.phase)}. Next: {_next(after)}"
    if after.rotation is not None and after.rotation.stuck is not None:
        text += f". {_person(after)}"
    return text


def truth(strategy: StrategyName, phase: Phase) -> str:
    """What is true of the keys while a rotation of this strategy is in this phase."""
    return TRUE_REPLACED if phase in GAPS.get(strategy, ()) else TRUE_NOW[phase]


def end(record: Record) -> str:
    """The rotation's last sentence."""
    last = record.last
    if last is None:
        return ""
    text = ENDS[last.outcome]
    if last.detail:
        text += f" ({last.reason.value}: {last.detail})"
    if record.debts:
        text += f". {len(record.debts)} key(s) should be dead and aren't proved so; they are looked at until they are"
    if last.outcome is Outcome.STUCK:
        text += f". {_person(record)}"
    return text


def _next(after: Record) -> str:
    r = after.rotation
    if r is None or r.stuck is not None:
        return ENDS[after.last.outcome] if after.last else "nothing"
    if r.not_before is not None:
        return f"again at {r.not_before:%Y-%m-%d %H:%M:%S} UTC"
    return DOING[r.phase]


def _person(record: Record) -> str:
    name, r = record.connection, record.rotation
    waits = r is not None and r.phase in {Phase.AWAIT_PUSH, Phase.AWAIT_RESTORE}
    typed = f" `rotator confirm {name}` once the key is typed in," if waits else ""
    return (
        f"A person can: `rotator status {name}`, then `rotator resume {name}` once the cause is mended,{typed}"
        f" `rotator rollback {name}`, or `rotator adopt {name}`"
    )
