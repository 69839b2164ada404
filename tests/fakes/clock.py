"""A clock that stands still until a test moves it, and whose waits pass at once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

_START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """implements ports.Clock. `wait` advances the time by all of its seconds; `stop` makes waits end at once."""

    def __init__(self, start: datetime = _START) -> None:
        self._lock = threading.Lock()
        self._now = start
        self._monotonic = 1000.0
        self._stopped = False

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, seconds: float) -> bool:
        if not self._stopped:
            self.advance(seconds)
        return self._stopped

    def advance(self, seconds: float) -> None:
        """Both the time of day and the seconds that never jump."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """The time of day alone, as when somebody sets the clock."""
        with self._lock:
            self._now += timedelta(seconds=seconds)

    def stop(self) -> None:
        self._stopped = True
