"""Who lives: this instance's heartbeat, and what it sees of the others.

The lease is the instance's, not a rotation's. Our own lease is counted from *before* the write that renewed it. Another
instance has lapsed when we looked for a whole lease, by our monotonic clock, and did not see its heartbeat change:
nobody's wall clock is compared, and a time in which we could not look proves nothing. Keeps I4: taking over needs a
lapsed lease and a check-and-set write.
"""

from __future__ import annotations

import threading
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
        self._beat = 0
        self._version = 0
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
        heartbeat = Heartbeat(self._instance, self._beat + 1, self._lease, open_, stopped, self._version)
        try:
            self._version = self._state.beat(heartbeat)
        except Conflict:  # our last write was made, though its answer was lost: nobody else writes under our name
            self._version = next((b.version for b in self._state.beats() if b.instance == self._instance), 0)
            raise
        finally:
            self._beat += 1  # a write that may have been made counts: each that follows must differ from it

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
