"""READ FIRST. One loop drives every rotation: load -> next action -> effect -> outcome and next intent in one write.

    claim()   opens a rotation: a check-and-set write makes us its holder
    run()     drives one connection until it waits, ends or is no longer ours
    ask()     leaves a person's request in the state record

Recovery after a crash is the same loop. The engine is the only caller of mutating port methods (through its effects) and
the only one that retries, waits, rolls back or stops; `core/machine.py` decides which.

Invariants: I2 (no effect without its intent saved), I4 (every change is a check-and-set write; one holder; an outside
call only while our lease outlasts it), I6 (every outcome is told: event, ledger entry, record).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rotator import telling
from rotator.core import ledger, machine
from rotator.core.machine import Action, Result, Wait
from rotator.core.model import Ask, Binding, By, LedgerEntry, Limits, Phase, Record, Rotation, StrategyName, Trigger
from rotator.core.reasons import Reason
from rotator.core.strategy import STRATEGIES, Verdict
from rotator.effects import EFFECTS
from rotator.effects_back import pay_debts
from rotator.errors import (
    Ambiguous,
    Conflict,
    Denied,
    Misconfigured,
    NotFound,
    PortError,
    RateLimited,
    Refused,
    Transient,
    Unsupported,
)
from rotator.ports import Clock, EventType, Fence, Observer, RotationEvent, StateStore
from rotator.work import Ports, Work

PERSON_WAITS = {Phase.AWAIT_KEY, Phase.AWAIT_PUSH, Phase.AWAIT_RESTORE}
ALARMED = {Phase.CONFIRM, Phase.PROMOTE, Phase.OVERLAP}  # they hold without end: said aloud after a few tries
SLOT_PHASES = {Phase.PUSH, Phase.CONFIRM, Phase.RETIRE, Phase.RESTORE, Phase.DISCARD}  # around a push


@dataclass(frozen=True, slots=True)
class Connection:
    """What the engine must know of one configured connection."""

    name: str
    binding: Binding
    limits: Limits
    open: Callable[[], Ports]  # made when first needed: most connections are idle
    frozen_until: Callable[[datetime], datetime | None] = lambda _: None  # a freeze holds push and retire
    allowed_characters: frozenset[str] = frozenset()
    config: str = ""  # digest of what a person configured for it


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a trigger: the rotation's id, and whether this trigger began it."""

    rotation_id: str
    began: bool


class Deposed(Exception):
    """Another holder wrote the record: what we hold in memory is void."""


class Engine:
    """Drives rotations. Thread-safe over connections; one connection is driven by one thread at a time."""

    def __init__(
        self,
        *,
        instance: str,
        installation: str,
        state: StateStore,
        clock: Clock,
        fence: Fence,
        observer: Observer,
        write_ledger: Callable[[tuple[LedgerEntry, ...]], bool],
        call_deadline: float,
        lease: float,
    ) -> None:
        self._instance = instance
        self._installation = installation
        self._state = state
        self._clock = clock
        self._fence = fence
        self._observer = observer
        self.write_ledger = write_ledger
        self._call_deadline = call_deadline
        self._lease = lease
        self._works: dict[str, Work] = {}
        self._left: dict[str, tuple[Record, int]] = {}  # as laid down, until somebody asks
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.clock_ok = True

    # --- triggers ---

    def claim(
        self, connection: Connection, record: Record | None, *, version: int, why: Reason, trigger: Trigger, note: str
    ) -> Claim:
        """Open a rotation by a check-and-set write against `version`. Raises Conflict when somebody was faster."""
        record = record or Record(connection.name)
        if record.rotation is not None:
            return Claim(record.rotation.id, began=False)
        now = self._clock.now()
        rotation = Rotation(
            id=uuid.uuid4().hex,
            installation=self._installation,
            sequence=record.sequence + 1,
            trigger=trigger,
            note=note,
            why=why,
            binding=connection.binding,
            limits=connection.limits,
            started_at=now,
            phase=Phase.PREFLIGHT,
            phase_since=now,
        )
        opened = machine.begin(record, rotation, holder=self._instance, config=connection.config)
        opened = self._entry(opened, "claimed", {"trigger": trigger.value, "why": why.value, "note": note})
        version = self._state.save(opened, version)
        work = self._work(connection, opened, version)
        self._put(work)
        self._emit(EventType.CLAIMED, work, reason=why, text=f"claimed by {self._instance}: {why.value}")
        self._flush(work)
        return Claim(rotation.id, began=True)

    def ask(self, name: str, ask: Ask, by: str) -> str | None:
        """Leave a person's request in the record; whoever holds the rotation heeds it. A sentence when it is refused."""
        for _ in range(5):
            loaded = self._state.load(name)
            if loaded is None:
                return "no state record: this connection was never rotated or adopted"
            record, version = loaded
            why_not = machine.refuses(record, ask)
            if why_not is not None or record.rotation is None:
                return why_not
            asked = replace(record, rotation=replace(record.rotation, asked=ask, asked_by=by))
            asked = ledger.append(asked, self._clock.now(), f"asked_{ask}", record.rotation.id, by, {})
            with suppress(Conflict):
                self._state.save(asked, version)
                return None
        return "the record changes too fast: try again"

    # --- the loop ---

    def run(self, connection: Connection) -> Wait | None:
        """Drive until it waits, ends or is not ours. Raises PortError when the state can't be read."""
        work = self._works.get(connection.name)
        if work is None:
            opened = self._open(connection)
            if not isinstance(opened, Work):
                return opened
            work = opened
        try:
            if work.waited:
                self._hear(work)
            wait = self._drive(work)
        except Deposed:
            self._give_up_unstored(work)
            self._drop(work)
            text = "another instance took this over; nothing more is done here"
            if work.record.rotation is not None and work.record.rotation.phase in SLOT_PHASES:
                text += f". A push of ours may have come after its own: `rotator verify {work.name}`"
            self._emit(EventType.LEASE_LOST, work, reason=Reason.IN_PROGRESS, text=text)
            return Wait(self._after(self._lease), Reason.IN_PROGRESS)
        except Exception:
            self._drop(work)  # a programmer's error: what is in memory can't be trusted
            raise
        work.waited = wait is not None and wait.reason is not Reason.PROVING
        return wait

    def _drive(self, work: Work) -> Wait | None:
        while True:
            if self._fence.left() < self._call_deadline:
                return self._lease_short(work)
            if machine.durable(work.saved, work.record) and not self._save(work):
                return self._vault_down(work)
            if self.stopping.is_set() and not self._in_memory_only(work):
                self._lay_down(work)
                return None
            rotation, now = work.record.rotation, self._clock.now()
            if machine.to_heed(rotation):
                self._heed(work)
                continue
            action = machine.next_action(work.record, now)
            match action:
                case None:
                    self._lay_down(work)
                    return None
                case Wait():
                    if rotation is None or (action.until - now).total_seconds() > self._lease / 2:
                        self._lay_down(work)
                    return action
                case Action(phase=None):
                    self._pay(work)
                case Action():
                    if not self._hold_back(work, action, now):
                        self._perform(work, action)

    def _hold_back(self, work: Work, action: Action, now: datetime) -> bool:
        """A freeze holds push and retire, a doubtful clock holds retire; never restore or discard."""
        r, until, why = work.rotation, None, Reason.FREEZE
        if (
            action.phase in {Phase.PUSH, Phase.AWAIT_PUSH, Phase.RETIRE}
            and r.why is not Reason.EXPIRY
            and not r.unclear_pushes
        ):
            until = work.frozen_until(now)
        if until is None and action.phase is Phase.RETIRE and not self.clock_ok:
            until, why = self._after(60.0), Reason.CLOCK
        if until is None:
            return False
        held = replace(r, not_before=until, waiting=why, phase_since=until)  # the wait is not the phase's fault
        work.record = replace(work.record, rotation=held)
        self._emit(
            EventType.HELD,
            work,
            phase=r.phase.value,
            reason=why,
            text=f"held until {until:%Y-%m-%d %H:%M:%S} UTC: {telling.truth(r.binding.strategy, r.phase)}",
        )
        return True

    def _perform(self, work: Work, action: Action) -> None:
        """One effect: its intent is saved already; its outcome and the next intent are saved by the loop."""
        before, began = work.rotation, self._clock.monotonic()
        work.push_first = action.push_first
        try:
            result = EFFECTS[before.phase](work)
        except PortError as error:
            result = self._failed(work, error)
        now, seconds = self._clock.now(), self._clock.monotonic() - began
        after = machine.advance(work.saved, result, now)
        moved = after.rotation is None or after.rotation.stuck is not None or after.rotation.phase is not before.phase
        moved = moved or result.verdict is Verdict.LOST
        if moved:
            to = (
                after.rotation.phase.value
                if after.rotation and not after.rotation.stuck
                else after.last.outcome.value
                if after.last
                else ""
            )
            after = self._entry(
                after,
                before.phase.value,
                {"verdict": result.verdict.value, "reason": result.reason.value, "to": to}
                | self._facts(result.record, ended=after.rotation is None or after.rotation.stuck is not None),
                rotation=before.id,
            )
            work.entered()
        after = self._remind(work, before, after, result)
        work.record = after
        if after.rotation is not None and after.rotation.phase is Phase.MINT and moved:
            work.plaintext = (
                None if after.rotation.binding.strategy is not StrategyName.REPLACE_SUPPLIED else work.plaintext
            )
        if moved:
            self._save(work)  # where Vault is down the loop tries again before it does anything else
        self._tell(work, before, result, after, seconds, moved=moved)

    def _failed(self, work: Work, error: PortError) -> Result:
        """What a port's error means for the phase. 401 and 403 from the IdP are about our own credential, not the key."""
        phase, now = work.rotation.phase, self._clock.now()
        text = str(error)
        match error:
            case RateLimited():
                return Result(work.record, Verdict.AGAIN, Reason.RATE_LIMITED, text, error.reset_at)
            case Transient():
                at = now + timedelta(seconds=error.retry_after) if error.retry_after else None
                return Result(work.record, Verdict.AGAIN, _down(error.system), text, at)
            case Ambiguous():
                return Result(work.record, Verdict.AMBIGUOUS, Reason.AMBIGUOUS, text)
            case Refused():
                return Result(work.record, Verdict.REFUSED, Reason.KEY_REFUSED, text)
            case Denied():
                return Result(work.record, Verdict.AGAIN, Reason.DENIED, text)
            case NotFound():
                return Result(work.record, Verdict.AGAIN, Reason.NOT_FOUND, text)
            case Conflict():
                full = error.system.startswith("target:")  # the label is taken, or the cap of live keys is reached
                return Result(work.record, Verdict.AGAIN, Reason.CAP_REACHED if full else Reason.IN_PROGRESS, text)
            case Unsupported() | Misconfigured() | PortError():
                reason = Reason.UNSUPPORTED if isinstance(error, Unsupported) else Reason.MISCONFIGURED
                known = (
                    phase in PERSON_WAITS
                    or (phase, Verdict.BLOCKED) in STRATEGIES[work.rotation.binding.strategy].edges
                )
                verdict = Verdict.BLOCKED if known and phase is not Phase.AWAIT_PUSH else Verdict.HOLD
                return Result(work.record, verdict, reason, text, self._after(work.limits.backoff_cap))

    # --- opening, laying down ---

    def _open(self, connection: Connection) -> Work | Wait | None:
        """Load; become the holder if nobody alive is and something is due."""
        loaded = self._state.load(connection.name)
        if loaded is None:
            return None
        record, version = loaded
        now = self._clock.now()
        todo = machine.next_action(record, now)
        if not isinstance(todo, Action) and not machine.to_heed(record.rotation):
            return todo
        if record.holder is not None and record.holder != self._instance and not self._fence.lapsed(record.holder):
            return Wait(self._after(self._lease / 2), Reason.IN_PROGRESS)
        r = record.rotation
        if r is not None and r.binding != connection.binding:
            record = self._misfit(record, r)
        taken = machine.taken_over(record, self._instance)
        work = self._work(connection, taken, version)
        work.saved = record
        try:
            work.version = self._state.save(taken, version)
        except Conflict:
            return Wait(self._after(1.0), Reason.IN_PROGRESS)
        work.saved = taken
        if r is not None and record.holder is not None:
            self._emit(EventType.TAKEN_OVER, work, text=f"{record.holder} is gone; going on at {r.phase.value}")
        self._put(work)
        return work

    def _misfit(self, record: Record, r: Rotation) -> Record:
        """The configuration of an open rotation changed: stuck, nothing revoked, until it is put back or a key adopted.

        What was asked of it is dropped: at another app or target it would overwrite and revoke what isn't ours (I3).
        """
        record = replace(record, rotation=replace(r, asked=None, asked_by=""))
        result = Result(
            record,
            Verdict.FOREIGN,
            Reason.CONFIG_CHANGED,
            "the connection's identity changed in the configuration while its rotation is open",
        )
        return machine.stop(result, self._clock.now()) if r.stuck is None else record

    def _lay_down(self, work: Work) -> None:
        """Give up the hold between two effects, so that whoever is due goes on at once."""
        if work.record.holder is not None:
            work.record = machine.laid_down(work.record)
        if work.record != work.saved and not self._save(work):
            return  # kept; the next run tries again
        self._left[work.name] = (work.saved, work.version)
        self._drop(work)

    def _lease_short(self, work: Work) -> Wait:
        """Our lease is about to lapse: no outside call may begin. What is only in memory is given up in order."""
        r = work.record.rotation
        if r is not None and self._in_memory_only(work) and self._fence.left() <= 0:
            self._drop(work)  # whoever comes next finds the key by its label
        return Wait(self._after(min(1.0, self._lease / 10)), Reason.VAULT_DOWN)

    def _vault_down(self, work: Work) -> Wait:
        """The record can't be saved. A candidate that is only in memory is revoked while the lease still covers it."""
        short = self._fence.left() < 1.5 * self._call_deadline
        if short and self._give_up_unstored(work):
            self._drop(work)
        return Wait(self._after(min(1.0, self._lease / 10)), Reason.VAULT_DOWN)

    def _give_up_unstored(self, work: Work) -> bool:
        """Revoke a candidate that only this process's memory holds: nobody can use it. The mint's saved intent authorises
        it; a failed try is found by label. Not where the mint killed the old key, and not after an unclear staged write:
        it may have arrived, and whoever took over found the candidate there (I1)."""
        r = work.record.rotation
        if (
            r is None
            or r.unclear
            or not self._in_memory_only(work)
            or r.candidate is None
            or r.candidate.key_id is None
        ):
            return False
        if (
            r.binding.strategy in {StrategyName.REPLACE, StrategyName.REPLACE_SUPPLIED}
            or r.binding.mint_by is not By.API
        ):
            return False
        with suppress(PortError):
            work.ports.target.revoke(r.candidate.key_id)
        return True

    def _in_memory_only(self, work: Work) -> bool:
        r = work.record.rotation
        return r is not None and r.phase is Phase.STAGE and work.plaintext is not None

    def _heed(self, work: Work) -> None:
        before = work.rotation
        too_late = machine.refuses(work.record, before.asked) if before.asked is not None else None
        word = "heeded" if too_late is None else "refused"
        after = machine.heed(work.record, self._clock.now())
        work.record = self._entry(
            after, f"{word}_{before.asked}", {"why": too_late or ""}, rotation=before.id, by=before.asked_by
        )
        work.entered()
        if after.rotation is None or after.rotation.phase is not before.phase:
            self._emit(
                EventType.PHASE_FAILED,
                work,
                phase=before.phase.value,
                text=f"{before.asked} asked by {before.asked_by}",
                rotation_id=before.id,
            )
        if after.rotation is None:
            self._ended(work, before)

    def _pay(self, work: Work) -> None:
        record, paid = pay_debts(work)
        for debt in paid:
            facts = {"key_id": debt.key.key_id or "", "fingerprint": debt.key.fingerprint or ""}
            record = self._entry(record, "debt_paid", facts)
        work.record = record
        for debt in paid:
            self._emit(
                EventType.DEBT_PAID,
                work,
                reason=debt.reason,
                text=f"key {debt.key.key_id or debt.key.label} is proved dead",
            )

    # --- saving ---

    def _save(self, work: Work) -> bool:
        """Check-and-set; False when Vault can't be reached. Raises Deposed when another holder wrote."""
        for _ in range(3):
            try:
                work.version = self._state.save(work.record, work.version)
            except Conflict:
                self._merge(work)
                continue
            except (Transient, RateLimited, Ambiguous, Denied) as error:
                self._emit(
                    EventType.PHASE_WAITS,
                    work,
                    reason=Reason.VAULT_DOWN,
                    text=f"the state record can't be saved: {error}. Nothing further is done until it can",
                )
                return False
            work.saved = work.record
            self._flush(work)
            return True
        return False

    def _merge(self, work: Work) -> None:
        """Somebody wrote: a person's request is taken along; our own lost write is recognised; else we are deposed."""
        loaded = self._state.load(work.name)
        if loaded is None:
            raise Deposed(work.name)
        there, version = loaded
        same = there.epoch == work.saved.epoch and there.holder in {self._instance, work.saved.holder}
        if not same or (there.rotation and work.saved.rotation and there.rotation.id != work.saved.rotation.id):
            raise Deposed(work.name)
        r, theirs = work.record.rotation, there.rotation
        if r is not None and theirs is not None and theirs.asked is Ask.CONFIRM and theirs.phase is not r.phase:
            theirs = None  # a word about a step that is over says nothing about this one
        if r is not None and theirs is not None and theirs.asked is not None:
            work.record = replace(work.record, rotation=replace(r, asked=theirs.asked, asked_by=theirs.asked_by))
        work.version = version

    def _hear(self, work: Work) -> None:
        """After a wait: has a person asked for something, or has somebody else taken this over meanwhile?"""
        with suppress(Transient, RateLimited, Ambiguous, Denied):  # Vault is down: the next save tells
            loaded = self._state.load(work.name)
            if loaded is None or loaded[1] != work.version:
                self._merge(work)

    def _flush(self, work: Work) -> None:
        """Pending ledger entries go to the file; they leave the record with its next write."""
        if work.record.ledger_pending and self.write_ledger(work.record.ledger_pending):
            work.record = replace(work.record, ledger_pending=())
            work.saved = replace(work.saved, ledger_pending=())  # no write only for this

    # --- telling ---

    def _entry(self, record: Record, event: str, data: dict[str, str], *, rotation: str = "", by: str = "") -> Record:
        name = rotation or (record.rotation.id if record.rotation else "")
        return ledger.append(
            record, self._clock.now(), event, name, by or self._instance, {k: v for k, v in data.items() if v}
        )

    def _facts(self, record: Record, *, ended: bool) -> dict[str, str]:
        """Which key a step was about; at an end also what proved it and which proofs our credentials don't allow."""
        r = record.rotation
        if r is None:
            return {}
        facts = {"evidence": "; ".join(r.evidence), "missing_proofs": ", ".join(r.missing_proofs)} if ended else {}
        if r.candidate is not None:
            facts |= {"key_id": r.candidate.key_id or "", "fingerprint": r.candidate.fingerprint or ""}
        return facts

    def _remind(self, work: Work, before: Rotation, after: Record, result: Result) -> Record:
        r, now = after.rotation, self._clock.now()
        if r is None or r.stuck is not None or r.phase is not before.phase or r.not_before is None:
            return after
        waits = r.phase in PERSON_WAITS or result.verdict is Verdict.HOLD or (r.phase in ALARMED and r.attempts >= 3)
        if not waits or (r.reminded_at and (now - r.reminded_at).total_seconds() < r.limits.remind_every):
            return after
        kind = EventType.REMINDER if r.phase in PERSON_WAITS else EventType.HELD
        self._emit(
            kind,
            work,
            phase=r.phase.value,
            reason=result.reason,
            text=telling.step(before, result, after),
            record=after,
        )
        return replace(after, rotation=replace(r, reminded_at=now))

    def _tell(
        self, work: Work, before: Rotation, result: Result, after: Record, seconds: float, *, moved: bool
    ) -> None:
        if not moved:
            kind = EventType.PHASE_WAITS
        else:
            kind = EventType.PHASE_DONE if result.verdict is Verdict.OK else EventType.PHASE_FAILED
        text = "" if result.verdict is Verdict.OK else telling.step(before, result, after)
        done = (
            after.last.times[-1].seconds
            if moved and after.rotation is None and after.last and after.last.times
            else None
        )
        if moved and after.rotation is not None and after.rotation.times:
            done = after.rotation.times[-1].seconds
        self._emit(
            kind,
            work,
            phase=before.phase.value,
            reason=result.reason,
            text=text,
            seconds=done if done is not None else seconds,
            rotation_id=before.id,
            outcome=result.verdict.value,
        )
        if after.rotation is None or after.rotation.stuck is not None:
            self._ended(work, before)

    def _ended(self, work: Work, before: Rotation) -> None:
        last = work.record.last
        if last is not None:
            self._emit(
                EventType.ENDED,
                work,
                rotation_id=before.id,
                outcome=last.outcome.value,
                reason=last.reason,
                text=telling.end(work.record),
                seconds=(last.ended_at - last.started_at).total_seconds(),
                trigger=before.trigger.value,
            )

    def _emit(
        self,
        kind: EventType,
        work: Work,
        *,
        phase: str = "",
        reason: Reason | None = None,
        text: str = "",
        seconds: float | None = None,
        rotation_id: str = "",
        outcome: str = "",
        trigger: str = "",
        record: Record | None = None,
    ) -> None:
        r = work.record.rotation
        binding = work.binding
        self._observer.on(
            RotationEvent(
                type=kind,
                at=self._clock.now(),
                connection=work.name,
                record=record or work.record,
                rotation_id=rotation_id or (r.id if r else ""),
                target=binding.target,
                idp=binding.idp,
                phase=phase or (r.phase.value if r else ""),
                seconds=seconds,
                outcome=outcome,
                trigger=trigger or (r.trigger.value if r else ""),
                reason=reason,
                text=text,
            )
        )

    # --- small things ---

    def _work(self, connection: Connection, record: Record, version: int) -> Work:
        return Work(
            name=connection.name,
            ports=connection.open(),
            binding=connection.binding,
            record=record,
            version=version,
            saved=record,
            allowed_characters=connection.allowed_characters,
            frozen_until=connection.frozen_until,
            may_call=lambda: self._fence.left() >= self._call_deadline,
        )

    def _put(self, work: Work) -> None:
        with self._lock:
            self._works[work.name] = work

    def _drop(self, work: Work) -> None:
        with self._lock:
            self._works.pop(work.name, None)
        work.plaintext = work.old_plaintext = None

    def left(self, name: str) -> tuple[Record, int] | None:
        """The record of a connection that was just laid down here, and its version; once, and then forgotten."""
        return self._left.pop(name, None)

    def held(self) -> tuple[str, ...]:
        """Connections whose rotation this process holds; for the heartbeat."""
        with self._lock:
            return tuple(self._works)

    def record(self, name: str) -> Record | None:
        """The record of a connection that this process holds, as last known here."""
        work = self._works.get(name)
        return work.record if work is not None else None

    def _after(self, seconds: float) -> datetime:
        return self._clock.now() + timedelta(seconds=seconds)


def _down(system: str) -> Reason:
    kind = system.partition(":")[0]
    return {"vault": Reason.VAULT_DOWN, "target": Reason.TARGET_DOWN}.get(kind, Reason.IDP_DOWN)
