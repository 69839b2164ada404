"""The state machine: what to do next is a function of the saved record. Pure; it reads no clock and does no I/O.

    next_action(record, now) -> Action | Wait | None      what to do
    advance(record, result, now) -> Record                what the result of doing it means
    heed(record, now) -> Record                           what a person's request means

    preflight ─ make_room ─ mint/await_key ─ stage ─ prove ─ push/await_push ─ confirm ─ promote ─ overlap ─ retire ─▶ rotated
        │                        │             │       │          │               │         │         │         ╎
        ▼                        └──────┬──────┴───────┘          └───────┬───────┴─────────┴─────────┘  point of no return
    cancelled                        discard ◀─────────────────────── restore/await_restore ─▶ stuck
                                        └─▶ rolled_back

A record's phase is an *intent*: if we died, its effect may have happened. Loading the record and asking again is all the
recovery there is, because every effect looks before it makes.

Invariants: I2 (a label is in the record before the mint that carries it; what is not proved dead becomes a debt),
I4 (the engine saves what `advance` returns by check-and-set), I6 (every phase has a budget, or is a visible hold).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from rotator.core.model import (
    Ask,
    By,
    Debt,
    DebtKind,
    Ended,
    KeyRef,
    Outcome,
    Phase,
    PhaseTime,
    Record,
    Rotation,
    StrategyName,
)
from rotator.core.reasons import Reason
from rotator.core.strategy import STRATEGIES, Strategy, Verdict

DEBT_RETRY = 3600.0  # seconds between looks at a debt, after the first quick ones
LOG = "log"  # names of proof sources in `missing_proofs`
FEATURES = "features"
LAST_USED = "last_used"


@dataclass(frozen=True, slots=True)
class Action:
    """Do this phase's effect. `phase` None: look at the debts."""

    phase: Phase | None
    push_first: bool = False  # retire: the IdP's slot can't be fenced or read, so push again before the irreversible


@dataclass(frozen=True, slots=True)
class Wait:
    until: datetime
    reason: Reason


@dataclass(frozen=True, slots=True)
class Result:
    """What an effect came to. `record` carries what was learned; the machine changes only its course."""

    record: Record
    verdict: Verdict
    reason: Reason = Reason.DONE
    detail: str = ""
    retry_at: datetime | None = None


def next_action(record: Record, now: datetime) -> Action | Wait | None:
    """What to do with this record at `now`; None when there is nothing to do without a person."""
    r = record.rotation
    if r is None:
        due = [d for d in record.debts if d.not_before is None or d.not_before <= now]
        if due:
            return Action(None)
        times = [d.not_before for d in record.debts if d.not_before is not None]
        return Wait(min(times), Reason.STILL_ALIVE) if times else None
    if r.stuck is not None:
        return None
    if r.not_before is not None and r.not_before > now:
        return Wait(r.not_before, r.waiting or Reason.BACKOFF)
    return Action(r.phase, push_first=r.phase is Phase.RETIRE and _must_push_again(record, r))


def advance(record: Record, result: Result, now: datetime) -> Record:
    """The record after `result`: the next phase's intent, a wait, or an end. `record` is the one before the effect."""
    r = result.record.rotation
    if r is None:
        return result.record
    match result.verdict:
        case Verdict.OK:
            return _go(result, r, _next_phase(r), now)
        case Verdict.MORE | Verdict.HOLD:
            if result.verdict is Verdict.MORE and _budget_spent(r, now):
                return _go(replace(result, reason=Reason.DEADLINE), r, _edge(r, Verdict.SPENT), now)
            until = result.retry_at or _later(now, r.limits.watch_every)
            return _wait(result, r, until, attempts=r.attempts)
        case Verdict.AGAIN | Verdict.AMBIGUOUS:
            unclear = result.verdict is Verdict.AMBIGUOUS or r.unclear
            tried = replace(r, attempts=r.attempts + 1, unclear=unclear)
            if result.verdict is Verdict.AMBIGUOUS and r.phase is Phase.PUSH:
                tried = replace(tried, unclear_pushes=r.unclear_pushes + 1)
            if _budget_spent(tried, now):
                return _go(result, tried, _edge(tried, Verdict.SPENT), now)
            until = max(result.retry_at or now, _later(now, backoff(tried, record.connection)))
            return _wait(result, tried, until, attempts=tried.attempts)
        case Verdict.LOST:
            to = _edge(r, Verdict.LOST)
            if to is Phase.MINT and len(r.labels) >= r.limits.mints:
                to = _edge(r, Verdict.SPENT)
            return _go(result, r, to, now)
        case Verdict.REFUSED | Verdict.BLOCKED | Verdict.FOREIGN | Verdict.FORWARD | Verdict.SPENT:
            return _go(result, r, _edge(r, result.verdict), now)
        case never:
            assert_never(never)


def heed(record: Record, now: datetime) -> Record:
    """Apply what a person asked of the open rotation. `refuses` says beforehand whether it can be done."""
    r = record.rotation
    if r is None or r.asked is None or refuses(record, r.asked) is not None:
        return replace(record, rotation=replace(r, asked=None)) if r is not None else record
    ask = r.asked
    tried = r.unclear or (r.phase is Phase.RETIRE and r.attempts > 0)  # what was tried stays tried
    freed = replace(r, asked=None, stuck=None, waiting=None, detail="", not_before=None, attempts=0, unclear=tried)
    match ask:
        case Ask.CONFIRM:  # the phase's effect reads and clears it; a late word frees it too
            since = r.phase_since if r.stuck is None else now
            return replace(record, rotation=replace(r, stuck=None, waiting=None, not_before=None, phase_since=since))
        case Ask.RESUME:
            if r.waiting is Reason.FEATURES_CHANGED:
                freed = replace(freed, features=None)  # a person has looked and says go on
            if r.stuck is not None:  # the budgets that ended it begin anew
                mints = max(r.limits.mints, len(r.labels) + 1)
                fewer = min(r.unclear_pushes, max(1, r.limits.pushes - 1))
                freed = replace(freed, limits=replace(r.limits, mints=mints), unclear_pushes=fewer)
            if r.waiting is Reason.ASSERTED_ONLY:
                freed = replace(freed, asserted=False)
            if r.waiting in {Reason.FOREIGN_CHANGE, Reason.OLD_KEY_IN_USE}:
                freed = replace(freed, pushed_at=now)  # only what comes after counts
            return replace(record, rotation=replace(freed, phase_since=now))
        case Ask.ROLLBACK | Ask.CANCEL:
            why = Reason.ROLLBACK_ASKED if ask is Ask.ROLLBACK else Reason.CANCEL_ASKED
            to: Phase | Outcome
            if r.push_started_at is not None or _may_be_set(r):
                to = Phase.RESTORE
            else:
                to = Phase.DISCARD if r.labels or r.candidate else Outcome.CANCELLED
            asked = Result(
                replace(record, rotation=freed), Verdict.BLOCKED, why, f"asked by {r.asked_by or 'a person'}"
            )
            if isinstance(to, Phase):
                to = _person(to, r.binding.mint_by, r.binding.push_by)
            return _go(asked, freed, to, now)
        case never:
            assert_never(never)


def to_heed(r: Rotation | None) -> bool:
    """Whether a request is to be applied now. A person's word waits with its step for a side that is down."""
    if r is None or r.asked is not Ask.CONFIRM:
        return r is not None and r.asked is not None
    return r.stuck is not None or r.waiting in {Reason.AWAITING_PUSH, Reason.AWAITING_RESTORE}


def refuses(record: Record, ask: Ask) -> str | None:
    """Why this can't be asked of this record now; None when it can."""
    r = record.rotation
    if r is None:
        return "no rotation is open"
    undoable = (Phase.RESTORE, Verdict.OK) in _strategy(r).edges
    match ask:
        case Ask.RESUME:
            return None if r.stuck or r.not_before else "the rotation is neither stuck nor waiting"
        case Ask.CONFIRM:
            waits = r.phase in {Phase.AWAIT_PUSH, Phase.AWAIT_RESTORE}
            return None if waits else f"the rotation is in {r.phase}: no person's push is awaited"
        case Ask.CANCEL if r.push_started_at is not None:
            return "the candidate may already be at the identity provider: use rollback"
        case Ask.ROLLBACK | Ask.CANCEL:
            if r.phase in {Phase.RESTORE, Phase.AWAIT_RESTORE, Phase.DISCARD} and r.stuck is None:
                return "the rotation is being undone already"
            if r.phase is Phase.RETIRE and (r.attempts or r.unclear):
                return "past the point of no return: the old key may be revoked already"
            if r.push_started_at is not None and r.repair:
                return "the previous key is dead or unknown: there is nothing to go back to"
            if not undoable and (r.labels or r.candidate):
                return "the mint killed the old key: there is nothing to go back to"
            return None
        case never:
            assert_never(never)


def begin(record: Record, rotation: Rotation, *, holder: str, config: str = "") -> Record:
    """Claim: the record with this rotation open, its holder named and its epoch raised. Save it by check-and-set (I4)."""
    return replace(
        record,
        rotation=rotation,
        sequence=rotation.sequence,
        holder=holder,
        epoch=record.epoch + 1,
        config=config,
        drift_since=None,
    )


def taken_over(record: Record, holder: str) -> Record:
    """The record under a new holder: the epoch rises. A holder that did not lay it down may have begun the effect."""
    r = record.rotation
    if r is not None and record.holder is not None:
        r = replace(r, unclear=True)
        if r.phase is Phase.PUSH:
            r = replace(r, unclear_pushes=max(1, r.unclear_pushes))
    return replace(record, rotation=r, holder=holder, epoch=record.epoch + 1)


def durable(before: Record, after: Record) -> bool:
    """Whether the change has to be saved now. A look that only says "not yet" needs no write."""

    def bare(record: Record) -> Record:
        r = record.rotation
        if r is None:
            return record
        return replace(record, rotation=replace(r, not_before=None, last_probe_at=None, detail=""))

    one, two = bare(before), bare(after)
    quick = {Reason.PROVING}  # seconds long
    if two.rotation is not None and two.rotation.waiting in quick and one.rotation is not None:
        two = replace(two, rotation=replace(two.rotation, waiting=one.rotation.waiting))
    return one != two


# --- labels ------------------------------------------------------------------------------------------------------------


def label(installation: str, connection: str, sequence: int, attempt: int) -> str:
    """The name that a minted key carries at the target: says whose it is and from which rotation (I2, I3)."""
    return f"{installation}-{connection}-s{sequence}-a{attempt}"


def label_sequence(installation: str, connection: str, text: str | None) -> int | None:
    """The sequence in a label of this connection; None when it is none of ours."""
    found = re.fullmatch(re.escape(f"{installation}-{connection}") + r"-s(\d+)-a(\d+)", text or "")
    return int(found[1]) if found else None


# --- budgets and waits -------------------------------------------------------------------------------------------------


def budget(r: Rotation) -> float | None:
    """Seconds this phase may go without success; None: it holds, visibly, until it heals or a person acts."""
    match r.phase:
        case Phase.PREFLIGHT | Phase.MAKE_ROOM | Phase.MINT | Phase.STAGE | Phase.PROVE | Phase.PUSH:
            return r.limits.outage
        case Phase.AWAIT_KEY | Phase.AWAIT_PUSH | Phase.AWAIT_RESTORE:
            return r.limits.person
        case Phase.CONFIRM | Phase.PROMOTE | Phase.OVERLAP:
            return None
        case Phase.RETIRE:
            return r.limits.retire
        case Phase.RESTORE:
            return r.limits.restore
        case Phase.DISCARD:
            return r.limits.discard
        case never:
            assert_never(never)


def backoff(r: Rotation, connection: str) -> float:
    """Seconds before the next try: doubling, capped, spread by the connection's name; from the record alone, so that a
    restart does not stampede."""
    raw = r.limits.backoff * 2.0 ** min(r.attempts - 1, 30)
    return min(r.limits.backoff_cap, raw) * (0.75 + 0.25 * spread(connection))


def spread(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def _budget_spent(r: Rotation, now: datetime) -> bool:
    if r.phase is Phase.PUSH and r.unclear_pushes >= r.limits.pushes:
        return True
    seconds = budget(r)
    return seconds is not None and (now - r.phase_since).total_seconds() >= seconds


def _later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)


def _wait(result: Result, r: Rotation, until: datetime, *, attempts: int) -> Record:
    waiting = replace(r, attempts=attempts, not_before=until, waiting=result.reason, detail=result.detail)
    return replace(result.record, rotation=waiting)


# --- edges -------------------------------------------------------------------------------------------------------------

_BY_PERSON = {Phase.MINT: Phase.AWAIT_KEY, Phase.PUSH: Phase.AWAIT_PUSH, Phase.RESTORE: Phase.AWAIT_RESTORE}
_BY_API = {person: api for api, person in _BY_PERSON.items()}


def _strategy(r: Rotation) -> Strategy:
    return STRATEGIES[r.binding.strategy]


def path(strategy: StrategyName, mint_by: By, push_by: By) -> tuple[Phase, ...]:
    """The clean way, with the steps that a person does."""
    return tuple(_person(p, mint_by, push_by) for p in STRATEGIES[strategy].path)


def _person(phase: Phase, mint_by: By, push_by: By) -> Phase:
    by = mint_by if phase is Phase.MINT else push_by
    return _BY_PERSON.get(phase, phase) if by is By.PERSON else phase


def _next_phase(r: Rotation) -> Phase | Outcome:
    if (r.phase, Verdict.OK) in _strategy(r).edges or r.phase is Phase.AWAIT_RESTORE:
        return _edge(r, Verdict.OK)
    way = path(r.binding.strategy, r.binding.mint_by, r.binding.push_by)
    at = way.index(r.phase) + 1
    return way[at] if at < len(way) else Outcome.ROTATED


def _edge(r: Rotation, verdict: Verdict) -> Phase | Outcome:
    """Where this leads, with what the table can't know: an unclear push or mint, a dead previous key, a person's step."""
    if r.phase is Phase.AWAIT_KEY:  # nothing was changed yet
        return Outcome.STUCK if verdict is Verdict.FOREIGN else Outcome.CANCELLED
    if r.phase is Phase.AWAIT_PUSH and verdict is Verdict.SPENT:
        return Outcome.STUCK  # which key the IdP holds is unknown: both stay alive
    to = _strategy(r).edges[_BY_API.get(r.phase, r.phase), verdict]
    may_be_there = r.push_started_at is not None and (r.unclear_pushes > 0 or r.pushed_at is not None)
    undoable = (Phase.RESTORE, Verdict.OK) in _strategy(r).edges
    if r.phase is Phase.PUSH and to is Phase.DISCARD and may_be_there:
        to = Phase.RESTORE
    if to is Phase.DISCARD and _may_be_set(r):
        to = Phase.RESTORE
    if r.phase is Phase.MINT and to is Outcome.CANCELLED and (r.attempts > 0 or r.unclear):
        to = Outcome.STUCK  # replace: an earlier try may have killed the old key
    if r.phase is Phase.MINT and to is Phase.DISCARD and not r.candidate and not undoable:
        to = Outcome.STUCK
    if to is Phase.RESTORE and r.repair:
        to = Outcome.STUCK  # there is nothing to go back to
    if verdict is Verdict.FORWARD and r.repair:
        to = Outcome.STUCK  # rolled forward once already
    return _person(to, r.binding.mint_by, r.binding.push_by) if isinstance(to, Phase) else to


def _may_be_set(r: Rotation) -> bool:
    """Our value may be the target's one key already: the old one has to be set back before it is discarded."""
    return r.binding.strategy is StrategyName.REPLACE_SUPPLIED and r.phase is Phase.MINT and r.unclear


def _go(result: Result, r: Rotation, to: Phase | Outcome, now: datetime) -> Record:
    """Take an edge: record why, then enter the phase or end."""
    times = (*r.times, PhaseTime(r.phase, round(max(0.0, (now - r.phase_since).total_seconds()), 3)))
    backwards = to in {Phase.RESTORE, Phase.AWAIT_RESTORE, Phase.DISCARD, Outcome.STUCK, Outcome.CANCELLED}
    if backwards and result.verdict is not Verdict.OK and (r.failure is None or to is Outcome.STUCK):
        r = replace(r, failure=result.reason, failure_detail=result.detail)
    if result.verdict is Verdict.FORWARD:
        r = replace(r, repair=True, unclear_pushes=1)  # it may hold the only key that lives: no discard from here (I1)
    record = result.record
    if r.phase in {Phase.RETIRE, Phase.DISCARD} and result.verdict is not Verdict.OK and not isinstance(to, Phase):
        record = _owe(record, r, result, now)
    r = replace(r, times=times, attempts=0, unclear=False, not_before=None, waiting=None, detail="", reminded_at=None)
    if r.asked is Ask.CONFIRM:
        r = replace(r, asked=None, asked_by="")  # it was about the step that is over
    if isinstance(to, Phase):
        return replace(record, rotation=_enter(r, to, record, now))
    return _end(record, r, to, result, now)


def _enter(r: Rotation, phase: Phase, record: Record, now: datetime) -> Rotation:
    since = r.phase_since if phase is r.phase else now  # a mint repeated keeps its budget
    r = replace(r, phase=phase, phase_since=since)
    if phase is Phase.MINT:  # recorded before the call: after a crash the key is found by it (I2)
        name = label(r.installation, record.connection, r.sequence, len(r.labels) + 1)
        lost = r.binding.strategy is not StrategyName.REPLACE_SUPPLIED
        r = replace(r, labels=(*r.labels, name), candidate=None if lost else r.candidate)
    if phase in {Phase.MINT, Phase.AWAIT_KEY} and r.binding.strategy is not StrategyName.REPLACE_SUPPLIED:
        r = replace(r, staged_version=None)
    if phase in {Phase.PUSH, Phase.AWAIT_PUSH} and r.push_started_at is None:
        r = replace(r, push_started_at=now)
    return r


def _end(record: Record, r: Rotation, outcome: Outcome, result: Result, now: datetime) -> Record:
    reason = (r.failure or result.reason) if outcome is not Outcome.ROTATED else Reason.DONE
    detail = (r.failure_detail or result.detail) if outcome is not Outcome.ROTATED else ""
    ended = Ended(
        id=r.id,
        sequence=r.sequence,
        trigger=r.trigger,
        strategy=r.binding.strategy,
        outcome=outcome,
        reason=reason,
        detail=detail,
        started_at=r.started_at,
        ended_at=now,
        times=r.times,
        evidence=r.evidence,
        missing_proofs=r.missing_proofs,
    )
    record = replace(record, last=ended, holder=None)
    match outcome:
        case Outcome.ROTATED:
            return replace(record, rotation=None, last_rotated_at=now, failures=0)
        case Outcome.ROLLED_BACK:
            return replace(record, rotation=None, failures=record.failures + 1)
        case Outcome.CANCELLED:
            failures = record.failures + (0 if reason is Reason.CANCEL_ASKED else 1)
            drifted = now if reason is Reason.DRIFT else record.drift_since
            return replace(record, rotation=None, failures=failures, drift_since=drifted)
        case Outcome.STUCK:
            return replace(record, rotation=replace(r, stuck=reason, phase_since=now), failures=record.failures + 1)
        case never:
            assert_never(never)


def _owe(record: Record, r: Rotation, result: Result, now: datetime) -> Record:
    """What should be dead and isn't proved so stays in the record, by id or by label (I2)."""
    keys: list[tuple[KeyRef, int | None]] = []
    if r.phase is Phase.RETIRE and record.previous is not None:
        keys.append((record.previous, None))
    if r.phase is Phase.DISCARD:
        if r.candidate is not None:
            keys.append((r.candidate, r.staged_version))
        named = {k.label for k, _ in keys}
        keys += [(KeyRef(label=name, ours=True), None) for name in r.labels if name not in named]
    owed = {(d.key.key_id, d.key.label, d.key.fingerprint) for d in record.debts}
    debts = tuple(
        Debt(
            kind=DebtKind.REVOKE if key.ours and r.binding.mint_by is By.API else DebtKind.PERSON,
            key=key,
            since=now,
            reason=result.reason,
            target=r.binding.target,
            staged_version=version,
            not_before=now,
        )
        for key, version in keys
        if (key.key_id, key.label, key.fingerprint) not in owed
    )
    return replace(record, debts=record.debts + debts)


def stop(result: Result, now: datetime) -> Record:
    """The record with its rotation stuck where it is, for a person to look at."""
    if result.record.rotation is None:
        return result.record
    return _go(result, result.record.rotation, Outcome.STUCK, now)


def laid_down(record: Record) -> Record:
    """The record without a holder, between two effects: whoever is due goes on at once."""
    return replace(record, holder=None)


def _must_push_again(record: Record, r: Rotation) -> bool:
    """The IdP's slot can't be read or fenced: push again when another holder may have pushed, or nothing would tell."""
    blind = LOG in r.missing_proofs and not r.pushed_again
    return r.binding.push_by is By.API and (r.pushed_epoch != record.epoch or blind)
