"""Who works on what, when: one tick looks for what is due, a bounded pool drives rotations, one door takes triggers.

Due-ness is derived from records and the clock, never stored. Schedule, CLI, signal and HTTP all go through `submit`.
Between two effects a rotation is an entry in a heap of times, not a sleeping thread. Keeps I4 (one worker per
connection; claims are check-and-set) and I6 (what is due and not begun is told with its reason).
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rotator.core import policy
from rotator.core.brake import Engaged, Scope, engaged
from rotator.core.machine import Wait
from rotator.core.model import Ask, LedgerEntry, Outcome, Phase, Record, Trigger
from rotator.core.policy import Facts, Verdict
from rotator.core.reasons import Reason
from rotator.core.schedule import Schedule, last_change, next_due, next_opening
from rotator.core.view import ConnectionView
from rotator.engine import Connection, Engine
from rotator.errors import Conflict, Misconfigured, PortError, Transient
from rotator.ports import Clock, EventType, Heartbeat, Observer, RotationEvent, StateStore
from rotator.runtime.membership import Membership

RETRY = 5.0  # seconds until a connection whose state could not be read is looked at again
FAR = timedelta(days=1)  # how long a connection that is not due is left alone at most
REFRESH = 600.0  # seconds after which a record that nobody spoke of is read again
REFRESHED = 20  # such records read at one tick at most
TROUBLE = 3  # calls to the state store that fail in a row before a tick leaves the rest to the next
BUSY = 60.0  # seconds that a request waits for another one about the same connection to be answered
TELL_AGAIN = timedelta(hours=1)  # what is held for one reason is told so often
CALM = frozenset({Reason.NOT_DUE, Reason.DISABLED, Reason.IN_PROGRESS})  # no news
OTHERS_MEND = frozenset({Reason.KEY_UNKNOWN, Reason.DRIFT})  # a person's `adopt`, in another process, ends these
UNHURRIED = {Phase.OVERLAP, Phase.AWAIT_KEY, Phase.AWAIT_PUSH, Phase.AWAIT_RESTORE}  # open, but not working the IdP

logger = logging.getLogger("rotator.dispatch")

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
    read_at: float = float("-inf")  # when the record was last read, in monotonic seconds
    view: ConnectionView | None = None  # as last made; every scrape asks for all of them


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
        self._idle = threading.Condition(self._lock)  # a connection is no longer worked on
        self._doors: dict[str, threading.Lock] = {}  # per IdP: who counts what runs there also adds to it
        self._heap: list[tuple[float, str]] = []
        self._wakes: dict[str, float] = {}  # the one entry of the heap that counts for each connection
        self._open: set[str] = set()  # connections with an open rotation
        self._failed: set[str] = set()  # connections whose last rotation failed
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._last_start: dict[str, datetime] = {}
        self._told: dict[str, tuple[Reason, datetime]] = {}
        self._heard: dict[str, int] = {}  # the last heartbeat of each other instance that was heeded
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
                entry.managed, entry.look_at, entry.view = m, None, None
        return tuple(kept)

    def load(self) -> None:
        """Read the record of every connection that has one. Raises the state store's errors.

        A record that can't be understood is told and tried again at each tick; it does not keep the others from work.
        """
        there = set(self._state.names())
        todo = [n for n, e in self._entries.items() if not e.loaded]
        for name in todo:
            if name not in there:
                self._entries[name].loaded, self._entries[name].read_at = True, self._clock.monotonic()
        list(self._pool.map(self._load_one, [n for n in todo if n in there]))
        # of a holder that died before it wrote them; all at once, because each time is waited for the disk
        self._engine.write_ledger(tuple(p for n in todo if (e := self._entries.get(n)) for p in _unwritten(e.record)))

    def _load_one(self, name: str) -> None:
        try:
            self._reload(name, write=False)
        except Misconfigured as error:
            self._unreadable(self._entries[name], error)

    def _unreadable(self, entry: Entry, error: PortError) -> None:
        """Its record can't be read: nothing is begun on an old one."""
        entry.loaded = False
        entry.held = Reason.MISCONFIGURED if isinstance(error, Misconfigured) else Reason.VAULT_DOWN
        self._tell_once(entry, entry.held, str(error))

    def _reload(self, name: str, *, mine: bool = False, write: bool = True) -> None:
        """Read its record; not under the feet of another thread that works on it, unless the caller is that one."""
        loaded = self._state.load(name)
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or (name in self._running and not mine):
                return
            record, entry.version = loaded if loaded is not None else (Record(name), 0)
            self._know(entry, record)
            entry.loaded, entry.look_at, entry.read_at = True, None, self._clock.monotonic()
        if write:
            self._engine.write_ledger(_unwritten(entry.record))

    def refresh(self, name: str) -> None:
        """Read its record now, so that what another process just did is seen; as known where Vault does not answer."""
        if name in self._entries and self._engine.record(name) is None:
            with suppress(PortError):
                self._reload(name)

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
        began = record.rotation or last
        idp = entry.managed.idp.name
        if began is not None and began.started_at > self._last_start.get(idp, began.started_at - FAR):
            self._last_start[idp] = began.started_at  # by whichever instance, also before our start

    def _among(self, names: set[str]) -> list[Entry]:
        return [e for e in map(self._entries.get, tuple(names)) if e is not None]

    # --- triggers ---

    def submit(self, name: str, trigger: Trigger, note: str = "") -> Submitted:
        """The one door for every trigger. Raises KeyError for an unknown name and the state store's errors."""
        entry = self._entries[name]
        for _ in range(3):
            running = self._wait_until_free(entry, 0.0 if trigger is Trigger.SCHEDULE else BUSY)
            if running is not None:
                return self._answer_running(running)
            with self._lock:
                door = self._doors.setdefault(entry.managed.idp.name, threading.Lock())
            with door:
                if trigger is not Trigger.SCHEDULE or not entry.loaded:
                    self._reload(name)
                verdict = self._judge(entry, asked=trigger is not Trigger.SCHEDULE)
                if verdict.reason is Reason.IN_PROGRESS:
                    return self._answer_running(entry.record)
                if not verdict.due:
                    if trigger is Trigger.SCHEDULE:
                        self._defer(entry, verdict)
                    else:
                        self._tell(entry, EventType.DEFERRED, verdict.reason, verdict.text)
                    return Submitted(None, began=False, reason=verdict.reason, text=verdict.text)
                try:
                    return self._claim(entry, verdict, trigger, note)
                except Conflict:
                    self._reload(name)
                except PortError:
                    entry.loaded = False  # the claim may have been written: the next tick looks
                    raise
        return Submitted(
            None, began=False, reason=Reason.IN_PROGRESS, text="the state record changes too fast: try again"
        )

    def _wait_until_free(self, entry: Entry, seconds: float) -> Record | None:
        """Until nobody works on this connection; its record, when that is because a rotation is being driven."""
        name = entry.managed.connection.name
        with self._idle:
            while name in self._running:
                held = self._engine.record(name) or entry.record
                if held.rotation is not None or seconds <= 0:
                    return held
                if not self._idle.wait(seconds):
                    raise Transient("taking a request", system="dispatch", detail=f"{name} is being worked on")
            if self._stopped:
                raise Transient("taking a request", system="dispatch", detail="this instance is stopping")
        return None

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
            self._told.pop(name, None)
        finally:
            self._free(name)
        self.wake(name)
        return Submitted(claim.rotation_id, began=claim.began, reason=verdict.reason, text="claimed")

    def _free(self, name: str) -> None:
        with self._idle:
            self._running.discard(name)
            self._idle.notify_all()

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
        """Look at everything that may be due. Called by the scheduler; errors of one connection don't end it.

        Raises the state store's error when the heartbeats can't be read, once all connections were looked at.
        """
        if self._stopped:
            return
        unseen: PortError | None = None
        beats: tuple[Heartbeat, ...] = ()
        try:
            beats = self._membership.observe()
        except PortError as error:
            unseen = error
        if self._each(self._to_read(beats), self._reload):
            now = self._clock.now()
            due = [n for n, e in list(self._entries.items()) if e.loaded and (e.look_at is None or e.look_at <= now)]
            self._each(due, self._look)
        if unseen is not None:
            raise unseen
        self.last_tick = self._clock.monotonic()

    def _each(self, names: Iterable[str], act: Callable[[str], None]) -> bool:
        """Act on each; what fails is told. A store that answers nobody is left alone until the next tick: False."""
        failed = 0
        for name in names:
            entry = self._entries.get(name)
            if entry is None or failed >= TROUBLE or self._stopped:
                continue
            try:
                act(name)
                failed = 0
            except KeyError:
                continue  # a reload took it out just now
            except PortError as error:
                failed += not isinstance(error, Misconfigured)
                self._unreadable(entry, error)
        return failed < TROUBLE

    def _to_read(self, beats: tuple[Heartbeat, ...]) -> list[str]:
        """Whose records may have been changed by others: open rotations, what others named, then the oldest known."""
        now = self._clock.monotonic()
        names = {n for n, e in list(self._entries.items()) if not e.loaded or e.record.rotation is not None}
        for b in beats:
            if self._heard.get(b.instance) != b.beat:
                self._heard[b.instance] = b.beat
                names |= set(b.open)
        old = [
            (e.read_at, n)
            for n, e in list(self._entries.items())
            if n not in names and (e.held in OTHERS_MEND or now - e.read_at > REFRESH)
        ]
        names |= {n for _, n in heapq.nsmallest(REFRESHED, old)}
        return [n for n in names if n not in self._running and self._engine.record(n) is None]

    def _look(self, name: str) -> None:
        entry, now = self._entries[name], self._clock.now()
        record, r = entry.record, entry.record.rotation
        if r is not None:
            entry.held = None
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
        if entry.record.current is None:
            return entry.managed.schedule.bootstrap
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
        """`not due` is no news."""
        entry.held = None if verdict.reason in CALM else verdict.reason
        if entry.held is not None:
            self._tell_once(entry, verdict.reason, verdict.text)

    def _tell_once(self, entry: Entry, reason: Reason, text: str) -> None:
        """Once per reason and hour."""
        name, now = entry.managed.connection.name, self._clock.now()
        told = self._told.get(name)
        if told is None or told[0] is not reason or now - told[1] >= TELL_AGAIN:
            self._told[name] = (reason, now)
            self._tell(entry, EventType.DEFERRED, reason, text)

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
        """Not dead: before `start` nothing is wrong."""
        return self._thread.ident is None or self._thread.is_alive()

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
                self._pool.submit(self._run, name, self._entries[name])

    def _run(self, name: str, entry: Entry) -> None:
        """One turn of one connection, in a worker."""
        wait = None
        try:
            wait = self._engine.run(entry.managed.connection)
        except PortError as error:
            wait = Wait(self._clock.now() + timedelta(seconds=RETRY), Reason.VAULT_DOWN)
            self._tell(entry, EventType.DEFERRED, Reason.VAULT_DOWN, str(error))
        except Exception as error:
            logger.exception("a bug, while working on %s", name)  # one connection's must not end the others
            wait = Wait(self._clock.now() + timedelta(seconds=60), Reason.GAVE_UP)
            self._tell(
                entry,
                EventType.HELD,
                Reason.GAVE_UP,
                f"a bug: {type(error).__name__}; tried again in a minute. Please report it",
            )
        self._after_run(name, entry, wait)

    def _after_run(self, name: str, entry: Entry, wait: Wait | None) -> None:
        held, left = self._engine.record(name), self._engine.left(name)
        try:
            if held is not None:
                self._know(entry, held)
            elif left is not None:
                with self._lock:
                    self._know(entry, left[0])
                    entry.version, entry.loaded, entry.read_at = left[1], True, self._clock.monotonic()
            elif not self._stopped:
                self._reload(name, mine=True)
        except PortError:
            entry.loaded = False
        finally:
            entry.look_at = None
            with self._lock:
                again = name in self._again
                self._again.discard(name)
            self._free(name)
        if again:
            self.wake(name)
        elif wait is not None:
            self.wake(name, max(0.01, (wait.until - self._clock.now()).total_seconds()))
        elif self._engine.record(name) is not None:
            self.wake(name, RETRY)  # it could not be laid down: the store was away just then

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
                except Exception:  # the lease lapses instead
                    logger.exception("%s could not be laid down", name)

    # --- looking ---

    def views(self) -> list[ConnectionView]:
        """Every connection as it is known now; for metrics, the API and status."""
        now = self._clock.now()
        return [self.view(e, now) for e in list(self._entries.values())]

    def look(self) -> None:
        """Judge every connection without beginning anything: what `held` says is then up to date."""
        for entry in list(self._entries.values()):
            if entry.record.rotation is None and entry.loaded:
                verdict = self._judge(entry, asked=False)
                entry.held = None if verdict.due or verdict.reason in CALM else verdict.reason

    def view(self, entry: Entry, now: datetime) -> ConnectionView:
        m = entry.managed
        name = m.connection.name
        record = self._engine.record(name) or entry.record
        if entry.view is not None and entry.view.record is record and entry.view.held is entry.held:
            return entry.view
        due = next_due(record, m.schedule, self._cron(m, record, now))
        made = ConnectionView(
            name=name,
            target=m.connection.binding.target,
            idp=m.connection.binding.idp,
            record=record,
            next_due=next_opening(m.schedule, due.at) if due is not None else None,
            held=entry.held,
            worst_case_seconds=m.worst_case,
            rotate_by=due.at if due is not None else None,
            live_keys=record.live_keys,
        )
        lasting = m.next_cron is None or last_change(record) is not None  # else the next fire moves on with the time
        if lasting and entry.managed is m:
            entry.view = made
        return made

    def entry(self, name: str) -> Entry:
        """Raises KeyError for an unknown name."""
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def open_names(self) -> tuple[str, ...]:
        """Connections with an open rotation, laid down or held; for the heartbeat, by which others learn of them."""
        return tuple(sorted(self._open | set(self._engine.held())))

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


def _unwritten(record: Record) -> tuple[LedgerEntry, ...]:
    """Ledger entries that a holder perhaps did not write: nobody holds the record now."""
    return record.ledger_pending if record.holder is None else ()
