"""The running program: a list of things that run, and a main loop that ends them together.

The main thread takes the signals and watches the others: the first that dies stops all, visibly, for the supervisor to
start again. SIGTERM and SIGINT finish the steps that run (not the rotations) and lay the rotations down.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.schedulers.background import BackgroundScheduler

from rotator.core.model import Trigger
from rotator.errors import PortError
from rotator.runtime.clock import ClockWatch, SystemClock
from rotator.runtime.dispatch import Dispatcher
from rotator.runtime.membership import Membership

HANDLED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
LOOK = 0.5  # seconds between looks at the threads


class Log(Protocol):
    """What the daemon says of itself: an event's name and its fields."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...


@dataclass
class Daemon:
    """Everything that runs. `reload` reads the configuration again; `usr1` names what SIGUSR1 rotates."""

    clock: SystemClock
    dispatcher: Dispatcher
    membership: Membership
    open_names: Callable[[], tuple[str, ...]]
    renew_token: Callable[[], None]
    skew: Callable[[], float | None]
    set_clock_ok: Callable[[bool], None]
    after_tick: Callable[[], None]
    reload: Callable[[], None]
    usr1: Callable[[], tuple[str, ...]]
    tick: float
    lease: float
    log: Log
    serve: Callable[[], tuple[Callable[[], bool], Callable[[], None]]] | None = None  # -> (alive, stop)
    ready: Callable[[], None] = lambda: None
    _signals: queue.SimpleQueue[signal.Signals] = field(default_factory=queue.SimpleQueue)

    def run(self) -> int:
        """Until a signal or a death; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # before any thread: they all inherit it
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        watch = ClockWatch(self.clock)
        scheduler = self._scheduler(watch)
        alive, stop_serving = self.serve() if self.serve is not None else (lambda: True, lambda: None)
        code = 0
        try:
            self._begin()
            scheduler.start()
            self.dispatcher.start()
            self.ready()
            rotate_all = partial(scheduler.add_job, self._rotate_now)  # a long list must not keep signals waiting
            code = self._loop(lambda: alive() and scheduler.running and self.dispatcher.alive(), rotate_all)
        finally:
            self.clock.stop.set()
            stop_serving()
            self.dispatcher.stop()  # under a lease that is still renewed: the steps that run may take their time
            if scheduler.running:
                scheduler.shutdown(wait=False)
            self.membership.beat(self.open_names(), stopped=True)
            self.log.info("stopped", exit_code=code)
        return code

    def _listen(self) -> None:
        # sigtimedwait would be one thread less, but a process that is stopped or traced past its deadline gets a signal
        # out of it that nobody sent (CPython 3.11 Modules/signalmodule.c: EINTR at the deadline reads an empty siginfo)
        while True:
            self._signals.put(signal.Signals(signal.sigwait(HANDLED)))

    def _signal(self, seconds: float) -> signal.Signals | None:
        """The next signal, if one comes within so many seconds."""
        with suppress(queue.Empty):
            return self._signals.get(timeout=seconds)
        return None

    def _begin(self) -> None:
        """A lease and all records first: without them nothing may be done. Vault may come up after us."""
        later: list[signal.Signals] = []
        while True:
            try:
                if self.membership.beat(self.open_names()):
                    self.dispatcher.load()
                    for got in later:
                        self._signals.put(got)
                    return
                text = f"Vault does not take our heartbeat: {self.membership.problem}"
            except PortError as error:
                text = str(error)
            self.log.warning("waiting_for_vault", text=f"{text}. Nothing is rotated until it does")
            match self._signal(min(5.0, self.lease / 4)):
                case signal.SIGTERM | signal.SIGINT:
                    raise SystemExit(0)
                case signal.Signals() as got:
                    later.append(got)

    def _loop(self, all_alive: Callable[[], bool], rotate_all: Callable[[], object]) -> int:
        while True:
            got = self._signal(LOOK)
            if not all_alive():
                self.log.error(
                    "thread_died", text="a thread that must run has died; the program ends so that it is started again"
                )
                return 1
            if got is None:
                continue
            self.log.info("signal", name=got.name)
            match got:
                case signal.SIGTERM | signal.SIGINT:
                    return 0
                case signal.SIGHUP:
                    self.reload()
                case signal.SIGUSR1:
                    rotate_all()

    def _rotate_now(self) -> None:
        for name in self.usr1():
            if self.clock.stop.is_set():
                return
            try:
                answer = self.dispatcher.submit(name, Trigger.SIGNAL, "SIGUSR1")
                self.log.info("submitted", connection=name, began=answer.began, reason=answer.reason, text=answer.text)
            except (PortError, KeyError) as error:
                self.log.warning("submit_failed", connection=name, text=str(error))

    def _scheduler(self, watch: ClockWatch) -> BackgroundScheduler:
        """A few fixed jobs. UTC, because a zone's spring gap would stall short intervals; no misfire grace, because a
        late tick is as good as an early one."""
        scheduler = BackgroundScheduler(
            timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )

        def every(seconds: float, name: str, job: Callable[[], None]) -> None:
            scheduler.add_job(
                job, "interval", seconds=seconds, id=name, next_run_time=datetime.now(UTC), max_instances=1
            )

        def tick() -> None:
            self.set_clock_ok(watch.ok(self.skew()))
            self.dispatcher.tick()
            self.after_tick()

        every(max(0.05, self.tick), "tick", tick)
        every(max(0.05, self.lease / 4), "heartbeat", self._beat)
        every(max(1.0, min(30.0, self.lease / 4)), "vault_token", self.renew_token)
        scheduler.add_listener(self._told, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        return scheduler

    def _beat(self) -> None:
        if not self.membership.beat(self.open_names()) and not self.clock.stop.is_set():
            self.log.warning(
                "heartbeat_failed", lease_left=round(self.membership.left(), 1), text=self.membership.problem
            )

    def _told(self, event: JobEvent) -> None:
        error = getattr(event, "exception", None)
        if isinstance(error, PortError):
            self.log.warning("job_failed", job=event.job_id, text=str(error))
        elif error is not None:
            self.log.error("job_failed", job=event.job_id, error=type(error).__name__)
