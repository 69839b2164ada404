"""The real clock. The only place that waits; every wait ends when the program stops."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from rotator.ports import Clock


class SystemClock:
    """Implements ports.Clock; `stop` is set by the daemon's signal handlers."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        return self.stop.wait(max(0.0, seconds))


class ClockWatch:
    """Is our clock fit to decide what is due? Off against Vault's by more than `most` seconds, or a jump, says no."""

    def __init__(self, clock: Clock, *, most: float = 60.0, calm: float = 60.0) -> None:
        self._clock, self._most, self._calm = clock, most, calm
        self._offset = clock.now().timestamp() - clock.monotonic()
        self._jumped_at: float | None = None

    def ok(self, skew: float | None) -> bool:
        """Call at every tick; a jump holds until the clock was calm for `calm` seconds."""
        now = self._clock.monotonic()
        offset = self._clock.now().timestamp() - now
        if abs(offset - self._offset) > self._most:
            self._jumped_at = now
        self._offset = offset
        if self._jumped_at is not None and now - self._jumped_at > self._calm:
            self._jumped_at = None
        return self._jumped_at is None and (skew is None or abs(skew) <= self._most)
