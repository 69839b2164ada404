"""Who works on what, when: one tick looks for what is due, a bounded pool drives rotations, one door takes triggers.

Due-ness is derived from records and the clock, never stored. Schedule, CLI, signal and HTTP all go through `submit`.
Between two effects a rotation is an entry in a heap of times, not a sleeping thread. Keeps I4 (one worker per
connection; claims are check-and-set) and I6 (what is due and not begun is told with its reason).
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rotator.core import policy
from rotator.core.brake import Engaged, Scope, engaged
from rotator.core.machine import Wait
from rotator.core.model import Ask, Outcome, Phase, Record, Trigger
from rotator.core.policy import Facts, Verdict
from rotator.core.reasons import Reason
from rotator.core.schedule import Schedule, last_change, next_due
from rotator.core.view import ConnectionView
from rotator.engine import Connection, Engine
from rotator.errors import Conflict, PortError
from rotator.ports import Clock, EventType, Observer, RotationEvent, StateStore
from rotator.runtime.membership import Membership

RETRY = 5.0  # seconds until a connection whose state could not be read is looked at again
FAR = timedelta(days=1)  # how long a connection that is not due is left alone at most
UNHURRIED = {Phase.OVERLAP, Phase.AWAIT_KEY, Phase.AWAIT_PUSH, Phase.AWAIT_RESTORE}  # open, but not working the IdP

NextCron = Callable[[datetime], datetime | None]  # first fire after a time


@dataclass(frozen=True, slots=True)
class Side:
    """The pace at one IdP or target."""

    name: str
    brake_after: int
    brake_cooldown: float
    max_parallel: int | None = None
    min_spacing: float = 0.0


@dataclass(frozen=True, slots=True)
class Managed:
    """One configured connection as the dispatcher needs it."""

    connection: Connection
    schedule: Schedule
    idp: Side
    target: Side
    worst_case: float  # seconds from a start to the IdP holding the new key
    next_cron: NextCron | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to a trigger."""

    rotation_id: str | None
    began: bool
    reason: Reason
    text: str


@dataclass(slots=True)
class Entry:
    managed: Managed
    record: Record
    version: int = 0
    loaded: bool = False
    look_at: datetime | None = None  # None: at the next tick
    held: Reason | None = None


class Dispatcher:
    """Owns the index of connections; everything else asks it."""

    def __init__(
        self,
        *,
        engine: Engine,
        state: StateStore,
        membership: Membership,
        clock: Clock,
        observer: Observer,
        workers: int,
    ) -> None:
        self._engine = engine
        self._state = state
        self._membership = membership
        self._clock = clock
        self._observer = observer
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="rotation")
        self._entries: dict[str, Entry] = {}
        self._lock = threading.RLock()
        self._due = threading.Condition(self._lock)
        self._heap: list[tuple[float, str]] = []
        self._wakes: dict[str, float] = {}  # the one entry of the heap that counts for each connection
        self._open: set[str] = set()  # connections with an open rotation
        self._failed: set[str] = set()  # connections whose last rotation failed
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._last_start: dict[str, datetime] = {}
        self._told: dict[str, tuple[Reason, datetime]] = {}
        self._stopped = False
        self.last_tick: float | None = None
        self._thread = threading.Thread(target=self._loop, name="dispatch", daemon=True)

    # --- configuration ---

    def configure(self, managed: Mapping[str, Managed]) -> tuple[str, ...]:
        """Take a new configuration. Connections whose open rotation would lose its identity keep the old one: named."""
        kept = []
        with self._lock:
            for name, entry in list(self._entries.items()):
                new = managed.get(name)
                open_ = entry.record.rotation
                if open_ is not None and (new is None or new.connection.binding != open_.binding):
                    kept.append(name)
                elif new is None:
                    del self._entries[name]
            for name, m in managed.items():
                if name in kept:
                    continue
                entry = self._entries.setdefault(name, Entry(m, Record(name)))
                entry.managed, entry.look_at = m, None
        return tuple(kept)

    def load(self) -> None:
        """Read the record of every connection that has one. Raises the state store's errors."""
        there = set(self._state.names())
        todo = [n for n, e in self._entries.items() if not e.loaded]
        for name in todo:
            if name not in there:
                self._entries[name].loaded = True
        list(self._pool.map(self._reload, [n for n in todo if n in there]))

    def _reload(self, name: str, *, mine: bool = False) -> None:
        """Read its record; not under the feet of another thread that works on it, unless the caller is that one."""
        loaded = self._state.load(name)
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or (name in self._running and not mine):
                return
            record, entry.version = loaded if loaded is not None else (Record(name), 0)
            self._know(entry, record)
            entry.loaded, entry.look_at = True, None
        if entry.record.ledger_pending and entry.record.holder is None:
            self._engine.write_ledger(entry.record.ledger_pending)  # of a holder that died before it wrote them

    def _know(self, entry: Entry, record: Record) -> None:
        """Take a record in, and into the small sets: with 10,000 connections nobody may look through all for each."""
        name, last = entry.managed.connection.name, record.last
        entry.record = record
        for among, names in (
            (record.rotation is not None, self._open),
            (last is not None and last.outcome in {Outcome.ROLLED_BACK, Outcome.STUCK}, self._failed),
        ):
            if among:
                names.add(name)
            else:
                names.discard(name)

    def _among(self, names: set[str]) -> list[Entry]:
        return [e for e in map(self._entries.get, tuple(names)) if e is not None]

    # --- triggers ---

    def submit(self, name: str, trigger: Trigger, note: str = "") -> Submitted:
        """The one door for every trigger. Raises KeyError for an unknown name and the state store's errors."""
        entry = self._entries[name]
        for _ in range(3):
            with self._lock:
                if name in self._running:
                    held = self._engine.record(name) or entry.record
                    if held.rotation is not None:
                        return self._answer_running(held)
            if trigger is not Trigger.SCHEDULE or not entry.loaded:
                self._reload(name)
            verdict = self._judge(entry, asked=trigger is not Trigger.SCHEDULE)
            if not verdict.due:
                if verdict.reason is Reason.IN_PROGRESS:
                    return self._answer_running(entry.record)
                self._defer(entry, verdict)
                return Submitted(None, began=False, reason=verdict.reason, text=verdict.text)
            try:
                return self._claim(entry, verdict, trigger, note)
            except Conflict:
                self._reload(name)
        return Submitted(
            None, began=False, reason=Reason.IN_PROGRESS, text="the state record changes too fast: try again"
        )

    def _claim(self, entry: Entry, verdict: Verdict, trigger: Trigger, note: str) -> Submitted:
        name = entry.managed.connection.name
        with self._lock:
            if name in self._running:
                raise Conflict("claiming a rotation", system="dispatch", detail="being worked on")
            self._running.add(name)
        try:
            claim = self._engine.claim(
                entry.managed.connection,
                entry.record,
                version=entry.version,
                why=verdict.reason,
                trigger=trigger,
                note=note,
            )
            self._know(entry, self._engine.record(name) or entry.record)
            self._last_start[entry.managed.idp.name] = self._clock.now()
            entry.held = None
        finally:
            with self._lock:
                self._running.discard(name)
        self.wake(name)
        return Submitted(claim.rotation_id, began=claim.began, reason=verdict.reason, text="claimed")

    def _answer_running(self, record: Record) -> Submitted:
        r = record.rotation
        text = f"rotation {r.id} is in phase {r.phase}" if r else "in progress"
        if r is not None and r.stuck is not None:
            return Submitted(None, began=False, reason=Reason.STUCK, text=f"rotation {r.id} is stuck: {r.stuck}")
        return Submitted(r.id if r else None, began=False, reason=Reason.IN_PROGRESS, text=text)

    def ask(self, name: str, ask: Ask, by: str) -> str | None:
        """A person's request about an open rotation; a sentence when it is refused."""
        refused = self._engine.ask(name, ask, by)
        if refused is None:
            self.wake(name)
        return refused

    # --- the tick ---

    def tick(self) -> None:
        """Look at everything that may be due. Called by the scheduler; errors of one connection don't end it."""
        now = self._clock.now()
        beats = self._membership.observe()
        elsewhere = {name for b in beats for name in b.open}
        for name in elsewhere | {n for n, e in list(self._entries.items()) if self._should_reload(e)}:
            entry = self._entries.get(name)
            if entry is not None and name not in self._running and self._engine.record(name) is None:
                self._reload(name)
        for name, entry in list(self._entries.items()):
            if entry.look_at is None or entry.look_at <= now:
                try:
                    self._look(name, entry, now)
                except PortError as error:
                    entry.look_at = now + timedelta(seconds=RETRY)
                    self._tell(entry, EventType.DEFERRED, Reason.VAULT_DOWN, str(error))
        self.last_tick = self._clock.monotonic()

    def _should_reload(self, entry: Entry) -> bool:
        return not entry.loaded or entry.record.rotation is not None

    def _look(self, name: str, entry: Entry, now: datetime) -> None:
        record, r = entry.record, entry.record.rotation
        if r is not None:
            # what this process holds is being driven, or is in the heap; what waits is left alone until its time
            driven = name in self._running or self._engine.record(name) is not None
            waits = r.stuck is not None or (r.not_before is not None and r.not_before > now)
            if not driven and (r.asked is not None or not waits):
                self.wake(name)
            return
        looks = [d.not_before or now for d in record.debts]
        if any(at <= now for at in looks):
            self.wake(name)
        verdict = self._judge(entry, asked=False)
        if verdict.due:
            self.submit(name, Trigger.SCHEDULE)
            return
        self._defer(entry, verdict)
        if verdict.reason is Reason.NOT_DUE:
            entry.look_at = min(verdict.until or now + FAR, now + FAR, *looks)
        else:
            entry.look_at = min((verdict.until, *looks)) if verdict.until is not None else None

    def _judge(self, entry: Entry, *, asked: bool) -> Verdict:
        m, record, now = entry.managed, entry.record, self._clock.now()
        open_here = (
            [
                e
                for e in self._among(self._open)
                if e is not entry and e.managed.idp.name == m.idp.name and e.record.rotation is not None
            ]
            if m.idp.max_parallel is not None
            else []
        )
        working = [
            e
            for e in open_here
            if e.record.rotation and e.record.rotation.stuck is None and e.record.rotation.phase not in UNHURRIED
        ]
        if record.config not in {"", m.connection.config}:
            record = replace(record, failures=0)  # a changed configuration clears the backoff
        facts = Facts(
            record=record,
            schedule=m.schedule,
            now=now,
            cron_next=self._cron(m, record, now),
            asked=asked,
            clock_ok=self._engine.clock_ok,
            brake=self.brakes(entry.managed) if asked or self._may_be_due(entry, now) else (),
            running_at_idp=len(working),
            max_parallel=m.idp.max_parallel,
            last_start_at_idp=self._last_start.get(m.idp.name),
            min_spacing=m.idp.min_spacing,
            worst_case=m.worst_case,
        )
        return policy.judge(facts)

    def _may_be_due(self, entry: Entry, now: datetime) -> bool:
        due = self._next_due(entry, now)
        return due is not None and due <= now

    def _cron(self, m: Managed, record: Record, now: datetime) -> datetime | None:
        return m.next_cron(last_change(record) or now) if m.next_cron is not None else None

    def _next_due(self, entry: Entry, now: datetime) -> datetime | None:
        due = next_due(entry.record, entry.managed.schedule, self._cron(entry.managed, entry.record, now))
        return due.at if due is not None else None

    def brakes(self, m: Managed) -> tuple[Engaged, ...]:
        """The brakes that are on for this connection's IdP and target; computed from the records' last endings."""
        now, found = self._clock.now(), []
        for scope, side in ((Scope.IDP, m.idp), (Scope.TARGET, m.target)):

            def here(e: Entry, scope: Scope = scope, side: Side = side) -> bool:
                return (e.managed.idp if scope is Scope.IDP else e.managed.target).name == side.name

            if sum(map(here, self._among(self._failed))) < side.brake_after:
                continue  # the newest endings can't all be failures: no need to look at all
            last = [e.record.last for e in list(self._entries.values()) if e.record.last is not None and here(e)]
            until = engaged(last, side.brake_after, side.brake_cooldown, now)
            if until is not None:
                found.append(Engaged(scope, side.name, until))
        return tuple(found)

    def _defer(self, entry: Entry, verdict: Verdict) -> None:
        """Told once per reason and hour; `not due` is no news."""
        entry.held = None if verdict.reason in {Reason.NOT_DUE, Reason.DISABLED, Reason.IN_PROGRESS} else verdict.reason
        if entry.held is None:
            return
        name, now = entry.managed.connection.name, self._clock.now()
        told = self._told.get(name)
        if told is not None and told[0] is verdict.reason and now - told[1] < timedelta(hours=1):
            return
        self._told[name] = (verdict.reason, now)
        self._tell(entry, EventType.DEFERRED, verdict.reason, verdict.text)

    def _tell(self, entry: Entry, kind: EventType, reason: Reason, text: str) -> None:
        binding = entry.managed.connection.binding
        self._observer.on(
            RotationEvent(
                type=kind,
                at=self._clock.now(),
                connection=entry.managed.connection.name,
                record=entry.record,
                target=binding.target,
                idp=binding.idp,
                reason=reason,
                text=text,
            )
        )

    # --- running ---

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self, name: str, seconds: float = 0.0) -> None:
        """Drive this connection in so many seconds."""
        with self._due:
            if seconds <= 0 and name in self._running:
                self._again.add(name)
                return
            at = self._clock.monotonic() + seconds
            if self._wakes.get(name, at + 1) <= at:
                return  # it comes sooner anyway
            self._wakes[name] = at
            heapq.heappush(self._heap, (at, name))
            self._due.notify()

    def _loop(self) -> None:
        while True:
            with self._due:
                if self._stopped:
                    return
                now = self._clock.monotonic()
                if not self._heap or self._heap[0][0] > now:
                    self._due.wait(self._heap[0][0] - now if self._heap else None)
                    continue
                at, name = heapq.heappop(self._heap)
                if self._wakes.get(name) != at:
                    continue  # replaced by an earlier one
                del self._wakes[name]
                if name in self._running or name not in self._entries:
                    continue
                self._running.add(name)
            self._pool.submit(self._run, name)

    def _run(self, name: str) -> None:
        """One turn of one connection, in a worker."""
        entry, wait = self._entries[name], None
        try:
            wait = self._engine.run(entry.managed.connection)
        except PortError as error:
            wait = Wait(self._clock.now() + timedelta(seconds=RETRY), Reason.VAULT_DOWN)
            self._tell(entry, EventType.DEFERRED, Reason.VAULT_DOWN, str(error))
        except Exception as error:  # noqa: BLE001 - one connection's bug must not end the others
            wait = Wait(self._clock.now() + timedelta(seconds=60), Reason.GAVE_UP)
            self._tell(
                entry,
                EventType.HELD,
                Reason.GAVE_UP,
                f"a bug: {type(error).__name__}; tried again in a minute. Please report it",
            )
        self._after_run(name, entry, wait)

    def _after_run(self, name: str, entry: Entry, wait: Wait | None) -> None:
        held = self._engine.record(name)
        try:
            if held is not None:
                self._know(entry, held)
            elif not self._stopped:
                self._reload(name, mine=True)
        except PortError:
            entry.loaded = False
        finally:
            entry.look_at = None
            with self._lock:
                self._running.discard(name)
                again = name in self._again
                self._again.discard(name)
        if again:
            self.wake(name)
        elif wait is not None:
            self.wake(name, max(0.01, (wait.until - self._clock.now()).total_seconds()))

    def stop(self) -> None:
        """Finish the steps that run, not the rotations; returns when no worker runs."""
        self._engine.stopping.set()
        with self._due:
            self._stopped = True
            self._due.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for name in self._engine.held():  # lay down what waits
            entry = self._entries.get(name)
            if entry is not None:
                try:
                    self._engine.run(entry.managed.connection)
                except PortError:
                    continue  # the lease lapses instead

    # --- looking ---

    def views(self) -> list[ConnectionView]:
        """Every connection as it is known now; for metrics, the API and status."""
        now = self._clock.now()
        return [self.view(e, now) for e in list(self._entries.values())]

    def look(self) -> None:
        """Judge every connection without beginning anything: what `held` says is then up to date."""
        for entry in list(self._entries.values()):
            if entry.record.rotation is None:
                verdict = self._judge(entry, asked=False)
                calm = verdict.due or verdict.reason in {Reason.NOT_DUE, Reason.DISABLED, Reason.IN_PROGRESS}
                entry.held = None if calm else verdict.reason

    def view(self, entry: Entry, now: datetime) -> ConnectionView:
        m = entry.managed
        name = m.connection.name
        record = self._engine.record(name) or entry.record
        due = next_due(record, m.schedule, self._cron(m, record, now))
        return ConnectionView(
            name=name,
            target=m.connection.binding.target,
            idp=m.connection.binding.idp,
            record=record,
            next_due=due.at if due is not None and m.schedule.enabled else None,
            held=entry.held,
            worst_case_seconds=m.worst_case,
            rotate_by=due.at if due is not None else None,
            live_keys=record.live_keys,
        )

    def entry(self, name: str) -> Entry:
        """Raises KeyError for an unknown name."""
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def all_brakes(self) -> dict[tuple[Scope, str], bool]:
        """Every side's brake, on or off."""
        found: dict[tuple[Scope, str], bool] = {}
        seen: set[tuple[str, str]] = set()
        for e in list(self._entries.values()):
            m = e.managed
            if (m.idp.name, m.target.name) in seen:
                continue
            seen.add((m.idp.name, m.target.name))
            on = {(b.scope, b.name) for b in self.brakes(m)}
            for key in ((Scope.IDP, m.idp.name), (Scope.TARGET, m.target.name)):
                found[key] = found.get(key, False) or key in on
        return found
