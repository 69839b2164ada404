"""Dispatchers over one store in memory: each a process of its own, with connections whose world behaves.

Time stands still until a test moves it. A dispatcher's turns are driven by `settle`, which waits for a condition and
not for time; its heap of later turns is woken by moving the clock on and ticking.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from rotator.core.model import Binding, By, Ended, KeyRef, LedgerEntry, Limits, Outcome, Record, StrategyName, Trigger
from rotator.core.reasons import Reason
from rotator.core.schedule import Schedule
from rotator.core.strategy import derive
from rotator.engine import Connection, Engine
from rotator.errors import PortError
from rotator.ports import EventType, RotationEvent, Slot, StoredKey
from rotator.runtime.dispatch import Dispatcher, Managed, NextCron, Side
from rotator.runtime.membership import Membership
from rotator.work import Ports
from tests.fakes.clock import FakeClock
from tests.fakes.idp import FakeIdp
from tests.fakes.target import FakeTarget
from tests.fakes.vault import FakeKeyStore, FakeStateStore

LEASE = 60.0
DAY = 86400.0
QUICK = Limits(settle=5, success_window=0, overlap=0, backoff=1, backoff_cap=5, outage=120, discard=120, restore=120)
DAILY = Schedule(rotate_every=DAY)
SIDE = Side("idp", brake_after=100, brake_cooldown=1800.0)


class Store(FakeStateStore):
    """The state store; a test makes calls about one connection, or all heartbeats, fail."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, PortError] = {}  # by connection; "" for the heartbeats
        self.before_save: Callable[[], object] | None = None
        self.lost: list[PortError] = []  # after the next saves
        self.loads: list[str] = []

    def load(self, connection: str) -> tuple[Record, int] | None:
        self.loads.append(connection)
        self._may(connection)
        return super().load(connection)

    def save(self, record: Record, version: int) -> int:
        self._may(record.connection)
        if self.before_save is not None:
            first, self.before_save = self.before_save, None
            first()
        written = super().save(record, version)
        if self.lost:
            raise self.lost.pop(0)
        return written

    def beats(self) -> Any:
        self._may("")
        return super().beats()

    def _may(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]


@dataclass
class Place:
    """One connection's world."""

    target: FakeTarget
    idp: FakeIdp
    managed: Managed
    first: KeyRef


@dataclass
class World:
    """One store, one clock; connections and processes are added."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: Store = field(default_factory=Store)
    keys: FakeKeyStore = field(default_factory=FakeKeyStore)
    places: dict[str, Place] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    def connect(
        self,
        name: str = "conn",
        *,
        schedule: Schedule = DAILY,
        limits: Limits = QUICK,
        known: bool = True,
        idp: Side = SIDE,
        target_side: Side | None = None,
        next_cron: NextCron | None = None,
        expires_at: datetime | None = None,
        push: By = By.API,
    ) -> Place:
        """A connection whose key is in use and, unless not `known`, adopted now."""
        target = FakeTarget(self.clock.now)
        old = target.seed(None)
        provider = FakeIdp(self.clock, lambda key: target.accepts(key.reveal()), key=old.key, push_by=push)
        route = derive(target.capabilities, push)
        binding = Binding(idp.name, name, "", "target", route.strategy, route.mint_by, route.push_by)
        ports = Ports(target=target, idp=provider, keys=self.keys, clock=self.clock)
        connection = Connection(name, binding, limits, lambda: ports)
        side = target_side or Side(f"target-{name}", 100, 1800.0)
        managed = Managed(connection, schedule, idp, side, worst_case=600.0, next_cron=next_cron)
        version = self.keys.write(name, Slot.CURRENT, StoredKey(old.key, key_id=old.key_id), 0)
        now = self.clock.now()
        ref = KeyRef(old.key.fingerprint, old.key_id, None, version, minted_at=now, expires_at=expires_at, ours=True)
        if known:
            self.store.save(Record(name, current=ref, last_rotated_at=now), 0)
        self.places[name] = Place(target, provider, managed, ref)
        return self.places[name]

    def process(self, name: str = "one", *, workers: int = 2) -> Process:
        """A process with all connections, loaded and running."""
        process = Process(self, name, workers)
        self.processes.append(process)
        return process

    def record(self, name: str = "conn") -> Record:
        loaded = self.store.load(name)
        assert loaded is not None
        return loaded[0]

    def change(self, name: str, **fields: Any) -> Record:
        """Another program writes the record."""
        record, version = self.store.load(name) or (Record(name), 0)
        changed = replace(record, **fields)
        self.store.save(changed, version)
        return changed

    def failed_before(self, name: str, *, ago: float = 60.0, failures: int = 1) -> None:
        """Its last rotation was rolled back so long ago."""
        at = self.clock.now() - timedelta(seconds=ago)
        last = Ended(
            "r0", 1, Trigger.SCHEDULE, StrategyName.OVERLAP, Outcome.ROLLED_BACK, Reason.KEY_REFUSED, "", at, at
        )
        self.change(name, last=last, failures=failures, sequence=1)

    def close(self) -> None:
        for process in self.processes:
            process.close()


class Process:
    """An instance: membership, engine and dispatcher, and what it told."""

    def __init__(self, world: World, name: str, workers: int) -> None:
        self.world, self.name = world, name
        self.events: list[RotationEvent] = []
        self.ledger: list[LedgerEntry] = []
        self.membership = Membership(world.store, world.clock, instance=name, lease=LEASE)
        self.engine = Engine(
            instance=name,
            installation="rot",
            state=world.store,
            clock=world.clock,
            fence=self.membership,
            observer=self,
            write_ledger=self._write,
            call_deadline=5,
            lease=LEASE,
        )
        self.dispatcher = Dispatcher(
            engine=self.engine,
            state=world.store,
            membership=self.membership,
            clock=world.clock,
            observer=self,
            workers=workers,
        )
        self._closed = False
        self.dispatcher.configure({n: p.managed for n, p in world.places.items()})
        self.beat()
        self.dispatcher.load()
        self.dispatcher.start()

    def _write(self, entries: tuple[LedgerEntry, ...]) -> bool:
        self.ledger.extend(entries)
        return True

    def on(self, event: RotationEvent) -> None:
        self.events.append(event)

    def beat(self, *, stopped: bool = False) -> None:
        self.membership.beat(self.dispatcher.open_names(), stopped=stopped)

    def tick(self) -> None:
        self.beat()
        self.dispatcher.tick()

    def told(self, kind: EventType = EventType.DEFERRED) -> list[tuple[str, Reason | None]]:
        return [(e.connection, e.reason) for e in self.events if e.type is kind]

    def submit(self, name: str = "conn", trigger: Trigger = Trigger.HTTP) -> Any:
        return self.dispatcher.submit(name, trigger, "")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Time goes on, a second at a time, with a tick each, until it is so."""
        for _ in range(2000):
            if condition():
                return
            self.world.clock.advance(1)
            self.tick()
            with self.dispatcher._due:
                self.dispatcher._due.notify_all()
            self.quiet()
        raise AssertionError(f"not reached: {what}")

    def ended(self, name: str = "conn") -> Ended:
        """Drive until its open rotation is over."""
        self.until(lambda: self.world.record(name).rotation is None and self.world.record(name).last, "an end")
        last = self.world.record(name).last
        assert last is not None
        self.quiet()
        return last

    def quiet(self) -> None:
        """Nothing is being worked on, and nothing that is due now waits for a worker."""

        def idle() -> bool:
            with self.dispatcher._lock:
                now = self.world.clock.monotonic()
                return not self.dispatcher._running and all(at > now for at in self.dispatcher._wakes.values())

        _breathe(idle)

    def stop(self) -> None:
        """As the daemon does on SIGTERM."""
        self.close()
        self.beat(stopped=True)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.dispatcher.stop()


def _breathe(condition: Callable[[], object]) -> None:
    """Let the worker threads run until it is so; two real seconds at most."""
    until, pause = time.monotonic() + 2, threading.Event()
    while not condition() and time.monotonic() < until:
        pause.wait(0.001)
