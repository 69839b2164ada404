"""Who lives: this instance's heartbeat, and what it sees of the others.

The lease is the instance's, not a rotation's. Our own lease is counted from *before* the write that renewed it. Another
instance has lapsed when we looked for a whole lease, by our monotonic clock, and did not see its heartbeat change:
nobody's wall clock is compared, and a time in which we could not look proves nothing. Keeps I4: taking over needs a
lapsed lease and a check-and-set write.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass

from rotator.errors import Conflict, PortError
from rotator.ports import Clock, Heartbeat, StateStore


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last change that we saw of an instance."""

    beat: int
    lease: float
    at: float  # monotonic seconds
    stopped: bool


class Membership:
    """Implements ports.Fence. `beat` and `observe` are called by scheduled jobs; the rest answers from memory."""

    def __init__(self, state: StateStore, clock: Clock, *, instance: str, lease: float) -> None:
        self._state = state
        self._clock = clock
        self._instance = instance
        self._lease = lease
        # counted from anywhere: nobody takes the heartbeat of an earlier process under our name, or of another, for ours
        self._beat = secrets.randbelow(1 << 40)
        self._version: int | None = None  # of our heartbeat in the store; None: not looked yet
        self._good_until = clock.monotonic()  # no lease before the first heartbeat is written
        self._stopped = False
        self._beating = threading.Lock()
        self._seen: dict[str, Sighting] = {}
        self._looked = clock.monotonic()  # when we last looked at the others
        self._lock = threading.Lock()
        self.problem = ""  # why the last heartbeat was not written; empty when it was

    def beat(self, open_: tuple[str, ...], *, stopped: bool = False) -> bool:
        """Write our heartbeat; True when it was written, and so our lease renewed. Never raises a port's error.

        `stopped` is the last one: others may take over at once, so no later call writes another.
        """
        with self._beating:
            if self._stopped:
                return False
            began = self._clock.monotonic()
            try:
                self._write(open_, stopped=stopped)
            except PortError as error:
                self.problem = str(error)
                return False
            self._good_until = began + (0.0 if stopped else self._lease)
            self._stopped, self.problem = stopped, ""
            return True

    def _write(self, open_: tuple[str, ...], *, stopped: bool) -> None:
        if self._version is None:  # an earlier process under our name is dead, or loses its lease by our write
            self._version = next((b.version for b in self._state.beats() if b.instance == self._instance), 0)
        heartbeat = Heartbeat(self._instance, self._beat + 1, self._lease, open_, stopped, self._version)
        try:
            self._version = self._state.beat(heartbeat)
        except Conflict:
            self._recognise()
            raise
        self._beat += 1

    def _recognise(self) -> None:
        """Our own heartbeat whose answer was lost is taken for written; another process under our name is not."""
        with suppress(PortError):
            mine = next((b for b in self._state.beats() if b.instance == self._instance), None)
            if mine is not None and mine.beat == self._beat + 1:
                self._beat, self._version = mine.beat, mine.version

    def observe(self) -> tuple[Heartbeat, ...]:
        """Look at all heartbeats; those of the other instances. Raises the state store's errors."""
        began = self._clock.monotonic()
        beats = tuple(b for b in self._state.beats() if b.instance != self._instance)
        now = self._clock.monotonic()
        with self._lock:
            self._looked = began
            for b in beats:
                seen = self._seen.get(b.instance)
                if seen is None or seen.beat != b.beat or seen.stopped != b.stopped:
                    self._seen[b.instance] = Sighting(b.beat, b.lease, now, b.stopped)
        return beats

    def left(self) -> float:
        return self._good_until - self._clock.monotonic()

    def lapsed(self, holder: str) -> bool:
        with self._lock:
            seen = self._seen.get(holder)
            if seen is None:  # never seen: its lease is counted from now
                self._seen[holder] = Sighting(-1, self._lease, self._clock.monotonic(), stopped=False)
                return False
            return seen.stopped or self._looked - seen.at > seen.lease
