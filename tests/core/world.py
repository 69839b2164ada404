"""A small world that behaves, and an engine in it that can die, freeze or be lied to at any outside call.

The world holds one target, one identity provider, Vault's two ports and people who do what is asked of them. `Tap`
stands between the engine and every port: it counts the calls and plays one fault at one of them. After each case the
invariants are judged on the world's own state, never on what the engine says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from rotator import errors
from rotator.core.codec import encode
from rotator.core.machine import Wait
from rotator.core.model import (
    Binding,
    By,
    KeyRef,
    LedgerEntry,
    Limits,
    Outcome,
    Phase,
    Record,
    Trigger,
)
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import LiveKeys, derive
from rotator.engine import Connection, Engine
from rotator.ports import EventType, RotationEvent, Slot, StoredKey
from rotator.work import Ports
from tests.fakes.clock import FakeClock
from tests.fakes.idp import FakeIdp
from tests.fakes.target import FakeTarget
from tests.fakes.vault import FakeKeyStore, FakeStateStore

NAME = "conn"
LEASE = 60.0
LIMITS = Limits(
    settle=20,
    success_window=2,
    overlap=120,
    watch_every=30,
    outage=600,
    restore=600,
    discard=600,
    retire=660,
    person=3600,
    remind_every=600,
    backoff=2,
    backoff_cap=30,
)


class Died(BaseException):
    """kill -9 in the middle of a call."""


class Kind(StrEnum):
    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"
    DOWN = "is down"  # not applied, and said so
    DENIED = "denies us"
    LIMITED = "rate-limits us"
    LOST = "loses the request"  # Ambiguous, not applied
    REPLY_LOST = "loses the reply"  # Ambiguous, applied
    FROZEN = "freezes us"  # another instance takes over and finishes; then we wake inside the call
    OUTAGE = "is down from then on"


CHANGING = {"mint", "revoke", "push", "write", "destroy", "save"}


@dataclass
class Variant:
    """A pair of target and IdP, and how the world treats the candidate."""

    name: str
    live_keys: LiveKeys = LiveKeys.MANY
    mint: By = By.API
    push: By = By.API
    supplies: bool = False
    labels: bool = True
    last_used: bool = False
    log_readable: bool = True
    keeps_old: bool = False
    foreign_key: bool = False  # somebody else's key lies at the target
    candidate: str = "good"  # "dead": refused at once; "bad_in_use": the IdP's log complains during the overlap
    idp_refuses: bool = False
    bootstrap: bool = False
    old_dead: bool = False
    limits: Limits = LIMITS

    @property
    def two_alive(self) -> bool:
        return self.live_keys is not LiveKeys.ONE


class Tap:
    """Passes calls on to a port, counts them, and plays the world's fault at the chosen one."""

    def __init__(self, world: World, port: Any, names: tuple[str, ...]) -> None:
        self._world, self._port, self._names = world, port, names

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if name not in self._names:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._world.outside(name, lambda: value(*args, **kwargs))

        return call


@dataclass
class World:
    variant: Variant
    at: int = -1  # number of the outside call at which the fault plays; -1: none
    kind: Kind = Kind.DIES_BEFORE
    clock: FakeClock = field(default_factory=FakeClock)
    calls: list[str] = field(default_factory=list)
    events: list[RotationEvent] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    engines: int = 0
    script: Callable[[World], None] | None = None  # what somebody does between two turns of the engine
    clock_ok: bool = True
    frozen_until: Callable[[datetime], datetime | None] = lambda _: None
    lease_left: float = LEASE
    refused_traffic: int = 0
    _down_until: float | None = None
    _frozen: bool = False

    def __post_init__(self) -> None:
        v = self.variant
        self.target = FakeTarget(
            self.clock.now,
            live_keys=v.live_keys,
            mint=v.mint,
            supplies=v.supplies,
            labels=v.labels,
            lists=v.mint is By.API and v.live_keys is not LiveKeys.ONE,
            revoke=v.mint is By.API and v.live_keys is not LiveKeys.ONE,
            last_used=v.last_used,
            last_used_throttle=10,
        )
        self.idp = FakeIdp(
            self.clock,
            self._idp_accepts,
            push_by=v.push,
            failed_push_keeps_old=v.keeps_old,
            log_readable=v.log_readable,
        )
        self.keys, self.state = FakeKeyStore(), FakeStateStore()
        self.foreign = self.target.seed("someone-elses") if v.foreign_key else None
        old = self.target.seed(None)
        self.old = old.key.reveal()
        self.idp.key = old.key
        self.record0 = Record(NAME)
        if not v.bootstrap:
            version = self.keys.write(NAME, Slot.CURRENT, StoredKey(old.key, key_id=old.key_id), 0)
            ref = KeyRef(
                fingerprint=old.key.fingerprint,
                key_id=old.key_id if v.mint is By.API else None,
                version=version,
                minted_at=self.clock.now(),
                ours=v.mint is By.API,
            )
            self.record0 = Record(NAME, current=ref, last_rotated_at=self.clock.now())
        self.version0 = self.state.save(self.record0, 0)
        if v.old_dead:
            self.target.kill(self.old)
        self.clock.advance(3600)
        if v.old_dead:
            self.idp.provision()
        route = derive(self.target.capabilities, v.push, allow_gap=True)
        self.binding = Binding(
            idp="idp",
            app_id="app",
            base_url="",
            target="target",
            strategy=route.strategy,
            mint_by=route.mint_by,
            push_by=route.push_by,
        )

    # --- outside calls ---

    def outside(self, name: str, call: Callable[[], Any]) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        self.clock.advance(0.05)
        if self._down_until is not None and self.clock.monotonic() < self._down_until:
            raise errors.Transient(name, system="world")
        if number != self.at or self._frozen:
            return self._watched(call)
        match self.kind:
            case Kind.DIES_BEFORE:
                raise Died(name)
            case Kind.DIES_AFTER:
                self._watched(call)
                raise Died(name)
            case Kind.DOWN:
                raise errors.Transient(name, system="world")
            case Kind.DENIED:
                raise errors.Denied(name, system="world")
            case Kind.LIMITED:
                raise errors.RateLimited(name, system="world", reset_at=self.clock.now() + timedelta(seconds=20))
            case Kind.LOST:
                raise (errors.Ambiguous if name in CHANGING else errors.Transient)(name, system="world")
            case Kind.REPLY_LOST:
                self._watched(call)
                raise (errors.Ambiguous if name in CHANGING else errors.Transient)(name, system="world")
            case Kind.FROZEN:
                self._frozen = True
                self.clock.advance(LEASE * 3)
                self.drive()  # another instance takes over and goes to the end
                return self._watched(call)
            case Kind.OUTAGE:
                self._down_until = self.clock.monotonic() + 700
                raise errors.Transient(name, system="world")

    def _watched(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            self._collect()
            self._traffic()

    def _traffic(self) -> None:
        """I1: the key that the IdP holds is accepted by the target at every instant."""
        v = self.variant
        held = self.idp.key
        if (
            not v.two_alive
            or v.candidate != "good"
            or v.idp_refuses
            or v.old_dead
            or held is None
            or not self.idp.enabled
        ):
            return
        if not self.target.accepts(held.reveal()):
            self.violations.append(f"I1: the key that the IdP holds is dead after {self.calls[-1]}")

    def _idp_accepts(self, key: Secret) -> bool:
        if self.variant.idp_refuses and key.reveal() != self.old:
            return False
        return self.target.accepts(key.reveal())

    def _collect(self) -> None:
        for key in self.target.keys:
            if key.value not in self.secrets:
                self.secrets.append(key.value)
                if self.variant.candidate == "dead" and key.value != self.old and key.label != "someone-elses":
                    self.target.kill(key.value)

    # --- people ---

    def people(self) -> None:
        """They do what the record asks of them, once."""
        if self.script is not None:
            self.script(self)
        loaded = self.state.load(NAME)
        r = loaded[0].rotation if loaded else None
        if r is None or loaded is None:
            return
        if r.phase is Phase.AWAIT_KEY and self.keys.read(NAME, Slot.HANDOFF) is None:
            minted = self.target.seed(None)
            self._collect()
            newest = self.keys.newest(NAME, Slot.HANDOFF)
            self.keys.write(NAME, Slot.HANDOFF, StoredKey(minted.key), newest)
        if r.phase is Phase.AWAIT_PUSH and r.waiting is Reason.AWAITING_PUSH:
            staged = self.keys.read(NAME, Slot.STAGED, r.staged_version)
            if staged and staged.key and (self.idp.key is None or not self.idp.key.same_as(staged.key)):
                self.idp.person_types(staged.key)
        if r.phase is Phase.AWAIT_RESTORE and r.waiting is Reason.AWAITING_RESTORE:
            old = loaded[0].previous if r.promoted else loaded[0].current
            stored = self.keys.read(NAME, Slot.CURRENT, old.version) if old else None
            if stored and stored.key and (self.idp.key is None or not self.idp.key.same_as(stored.key)):
                self.idp.person_types(stored.key)
        if self.variant.candidate == "bad_in_use" and r.phase is Phase.OVERLAP and r.failure is None:
            self.idp._write(machine_kind(), "application.integration.authentication_failure FAILURE")

    # --- driving ---

    def left(self) -> float:
        return self.lease_left

    def lapsed(self, holder: str) -> bool:
        return True

    def on(self, event: RotationEvent) -> None:
        self.events.append(event)

    def connection(self) -> Connection:
        ports = Ports(
            target=Tap(self, self.target, ("mint", "list_keys", "revoke", "probe")),
            idp=Tap(self, self.idp, ("read", "features", "push", "events")),
            keys=Tap(self, self.keys, ("read", "write", "newest", "destroy", "check")),
            clock=self.clock,
        )
        return Connection(NAME, self.binding, self.variant.limits, lambda: ports, frozen_until=self.frozen_until)

    def engine(self) -> Engine:
        self.engines += 1
        engine = Engine(
            instance=f"i{self.engines}",
            installation="rot",
            state=Tap(self, self.state, ("load", "save")),
            clock=self.clock,
            fence=self,
            observer=self,
            write_ledger=self._write,
            call_deadline=5,
            lease=LEASE,
        )
        engine.clock_ok = self.clock_ok
        return engine

    def _write(self, entries: tuple[LedgerEntry, ...]) -> bool:
        self.ledger.extend(entries)
        return True

    def go(self) -> World:
        """Claim and drive to the end, restarting after each death."""
        why = Reason.BOOTSTRAP if self.variant.bootstrap else Reason.ASKED
        engine = self.engine()
        try:
            engine.claim(self.connection(), self.record0, version=self.version0, why=why, trigger=Trigger.CLI, note="")
        except errors.PortError:
            loaded = self.state.load(NAME)
            if loaded is None or loaded[0].rotation is None:
                return self  # the claim was not taken: nothing begins
        except Died:
            self._collect()
            loaded = self.state.load(NAME)
            if loaded is None or loaded[0].rotation is None:
                return self
            self.judge(final=False)
            self.clock.advance(LEASE * 2)
            self.drive()
            return self
        self.drive(engine)
        return self

    def drive(self, engine: Engine | None = None) -> None:
        engine, connection = engine or self.engine(), self.connection()
        for _ in range(5000):
            try:
                wait = engine.run(connection)
            except Died:
                self.judge(final=False)
                self.clock.advance(LEASE * 2)
                engine = self.engine()
                continue
            except errors.PortError:
                self.clock.advance(30)
                continue
            if wait is None:
                return
            loaded = self.state.load(NAME)
            if loaded is not None and loaded[0].rotation is None and wait.reason is Reason.STILL_ALIVE:
                return  # only debts are left
            self.people()
            self.pass_time(wait)
        self.violations.append("I6: the rotation did not end")

    def pass_time(self, wait: Wait) -> None:
        down = self._down_until is not None and self.clock.monotonic() < self._down_until
        self.clock.advance(max(20.0 if down else 0.1, (wait.until - self.clock.now()).total_seconds()))

    # --- judging ---

    def record(self) -> Record:
        loaded = self.state.load(NAME)
        if loaded is None:
            raise AssertionError("the state record is gone")
        return loaded[0]

    def judge(self, *, final: bool = True) -> World:
        self._collect()
        record = self.record()
        self._never_lost(record)
        self._never_guess()
        self._never_plain(record)
        if final:
            self._ended_well(record)
        return self

    def _never_lost(self, record: Record) -> None:
        stored = {
            k.key.reveal()
            for versions in self.keys.everything().values()
            for k in versions.values()
            if k.key is not None
        }
        labels = {d.key.label for d in record.debts} | set(record.rotation.labels if record.rotation else ())
        ids = {d.key.key_id for d in record.debts}
        suspects = record.rotation.known_ids if record.rotation else None
        for key in self.target.keys:
            if key.value == self.old or key.label == "someone-elses" or not self.target.accepts(key.value):
                continue
            named = key.label in labels or key.id in ids or (suspects is not None and key.id not in suspects)
            if key.value not in stored and not named and self.variant.two_alive:
                self.violations.append(
                    f"I2: live key {key.id} ({key.label}) is neither in Vault nor named in the record"
                )

    def _never_guess(self) -> None:
        if self.foreign is not None and not self.target.accepts(self.foreign.key.reveal()):
            self.violations.append("I3: somebody else's key was revoked")

    def _never_plain(self, record: Record) -> None:
        text = json.dumps(encode(record)) + repr(self.events) + repr(self.ledger)
        if any(secret in text for secret in self.secrets):
            self.violations.append("I5: key material in the record, an event or the ledger")

    def _ended_well(self, record: Record) -> None:
        last, r = record.last, record.rotation
        if last is None or (r is not None and r.stuck is None):
            self.violations.append("I6: no end")
            return
        told = [e for e in self.events if e.type is EventType.ENDED and e.outcome == last.outcome.value]
        written = [e for e in (*self.ledger, *record.ledger_pending) if ("to", last.outcome.value) in e.data]
        if not told and not written:
            self.violations.append("I6: the end was not told")
        if last.sequence != self.record0.sequence + 1:
            self.violations.append("I4: more than one rotation")
        current = self.keys.read(NAME, Slot.CURRENT)
        held = self.idp.key.reveal() if self.idp.key else ""
        value = current.key.reveal() if current and current.key else ""
        match last.outcome:
            case Outcome.ROTATED:
                if held != value or not self.target.accepts(held):
                    self.violations.append("rotated, but the IdP and Vault don't hold the same live key")
                if held == self.old:
                    self.violations.append("rotated, but the key is the old one")
                if self.target.accepts(self.old) and not record.debts and not self.variant.bootstrap:
                    self.violations.append("rotated, but the old key lives and is no debt")
            case Outcome.ROLLED_BACK | Outcome.CANCELLED:
                if not self.variant.bootstrap and (held != self.old or value != self.old):
                    self.violations.append(f"{last.outcome}, but the old key is not in place")
                if not self.target.accepts(self.old) and not self.variant.old_dead and self.variant.two_alive:
                    self.violations.append(f"{last.outcome}, but the old key is dead")
            case Outcome.STUCK:
                if self.variant.two_alive and not self.variant.old_dead and not self.target.accepts(self.old):
                    self.violations.append("stuck with the old key revoked")
        ours = [k for k in self.target.keys if self.target.accepts(k.value) and k.label != "someone-elses"]
        owed = {d.key.key_id for d in record.debts} | {d.key.label for d in record.debts}
        owed_prints = {d.key.fingerprint for d in record.debts}
        extra = [
            k
            for k in ours
            if k.value != value
            and k.id not in owed
            and (k.label is None or k.label not in owed)
            and Secret(k.value).fingerprint not in owed_prints
        ]
        if last.outcome is not Outcome.STUCK and extra and not self.variant.bootstrap:
            self.violations.append(f"{last.outcome}, but {len(extra)} more live key(s) than the current and the debts")


def machine_kind() -> Any:
    from rotator.ports import EventKind

    return EventKind.KEY_BAD
