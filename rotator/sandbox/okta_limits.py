"""What can go wrong before or after a call does its work: rate limits, concurrency, and faults that a test queues."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rotator.sandbox.okta_state import Switches
from rotator.sandbox.okta_wire import Answer, error

_BUCKETS = (
    (re.compile(r"^/oauth2/v1/token$"), "token"),
    (re.compile(r"^/api/v1/apps/[^/]+$"), "app"),  # exactly one app: a larger bucket of its own
    (re.compile(r"^/api/v1/apps(/|$)"), "apps"),  # connections, features, group push … (Okta docs: rate-limits)
    (re.compile(r"^/api/v1/groups(/|$)"), "groups"),
    (re.compile(r"^/api/v1/logs$"), "logs"),
)


def bucket_of(path: str) -> str:
    """The rate-limit bucket that a path counts in; "api" for all the rest."""
    return next((name for pattern, name in _BUCKETS if pattern.search(path)), "api")


class CallRecord(NamedTuple):
    """One call as it ended; status 0 when it got no answer."""

    at: float  # monotonic seconds
    method: str
    path: str
    status: int


class FaultKind(StrEnum):
    RATE_LIMIT = "429"
    CONCURRENCY = "concurrency 429"
    ERROR_AFTER_STORING = "500 after the work was done"
    READ_ONLY = "503 E0000010"
    TIMEOUT_AFTER_STORING = "work done, connection held and dropped"
    DROPPED_BEFORE_STORING = "connection dropped, nothing done"
    EMPTY_403 = "empty 403 with www-authenticate"
    DENIED = "403 E0000006"
    INVALID_TOKEN = "401 E0000011"
    HTML_502 = "HTML 502"


AFTER_STORING = frozenset({FaultKind.ERROR_AFTER_STORING, FaultKind.TIMEOUT_AFTER_STORING})


@dataclass(slots=True)
class Fault:
    """`method` and `path` are regular expressions (whole method, any part of the path)."""

    kind: FaultKind
    method: str
    path: str
    times: int
    hold_seconds: float


@dataclass(slots=True)
class Faults:
    """A queue: each call takes the first fault that fits it. `fired` tells what was given out, in order."""

    fired: list[FaultKind] = field(default_factory=list)
    _queue: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, kind: FaultKind, method: str = ".*", path: str = "", *, times: int = 1, hold_seconds: float = 60.0
    ) -> None:
        """The next `times` calls that fit end this way. `hold_seconds`: how long TIMEOUT_AFTER_STORING holds on."""
        with self._lock:
            self._queue.append(Fault(kind, method, path, times, hold_seconds))

    def clear(self) -> None:
        with self._lock:
            self._queue.clear()

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._queue:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._queue.remove(fault)
                    self.fired.append(fault.kind)
                    return fault
        return None


class Limits:
    """Fixed windows per bucket, opened by the first call (a descending counter was recorded over one window)."""

    def __init__(self, switches: Switches, epoch: Callable[[], float]) -> None:
        self._switches = switches
        self._epoch = epoch
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[float, int, int]] = {}  # bucket -> monotonic end, epoch reset, calls used

    def count(self, bucket: str) -> tuple[bool, tuple[tuple[str, str], ...]]:
        """Counts one call: whether it is allowed, and the x-rate-limit headers for its answer."""
        limit = self._switches.rate_limits[bucket]
        with self._lock:
            end, reset, used = self._windows.get(bucket, (0.0, 0, 0))
            if time.monotonic() >= end:
                length = self._switches.rate_window_seconds
                end, reset, used = time.monotonic() + length, int(self._epoch() + length), 0
            self._windows[bucket] = (end, reset, used + 1)
        return used < limit, self._headers(limit, max(0, limit - used - 1), reset)

    def blocked(self, bucket: str) -> tuple[tuple[str, str], ...]:
        """Headers of a bucket with nothing left, for a queued 429."""
        limit = self._switches.rate_limits[bucket]
        with self._lock:
            reset = self._windows[bucket][1]
        return self._headers(limit, 0, reset)

    def busy(self) -> tuple[tuple[str, str], ...]:
        """Headers of a concurrency 429: limit and remaining both 0, the reset only a hint (Okta docs: rl2-concurrency)."""
        return self._headers(0, 0, int(self._epoch() + 1))

    @staticmethod
    def _headers(limit: int, remaining: int, reset: int) -> tuple[tuple[str, str], ...]:
        return (
            ("x-rate-limit-limit", str(limit)),
            ("x-rate-limit-remaining", str(remaining)),
            ("x-rate-limit-reset", str(reset)),
        )


def too_many() -> Answer:
    """Recorded in okta-sdk-python's cassettes: no Retry-After."""
    return error(429, "E0000047", "API call exceeded rate limit due to too many requests.")


def answer_of(kind: FaultKind, url: str, scopes: tuple[str, ...]) -> Answer:
    """The wire shape of a fault that has one."""
    match kind:
        case FaultKind.RATE_LIMIT | FaultKind.CONCURRENCY:
            return too_many()
        case FaultKind.ERROR_AFTER_STORING:
            return error(500, "E0000009", "Internal Server Error")
        case FaultKind.READ_ONLY:
            return error(503, "E0000010", "Service is in read only mode")
        case FaultKind.EMPTY_403:
            return insufficient_scope(url, scopes)
        case FaultKind.DENIED:
            return denied()
        case FaultKind.INVALID_TOKEN:
            return invalid_token()
        case FaultKind.HTML_502:
            page = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
            return Answer(502, page)
        case FaultKind.TIMEOUT_AFTER_STORING | FaultKind.DROPPED_BEFORE_STORING:
            raise AssertionError(f"{kind} has no answer")


def denied() -> Answer:
    return error(403, "E0000006", "You do not have permission to perform the requested action")


def invalid_token() -> Answer:
    return error(401, "E0000011", "Invalid token provided")


def insufficient_scope(url: str, scopes: tuple[str, ...]) -> Answer:
    """An OAuth token without the scope: 403, no body, all of it in the header (okta-sdk-golang issue 145)."""
    origin, _, resource = url.partition("/api/")
    challenge = (
        f'Bearer authorization_uri="{origin}/oauth2/v1/authorize", realm="{origin}", scope="{" ".join(scopes)}", '
        'error="insufficient_scope", error_description="The access token provided does not contain the required '
        f'scopes.", resource="/api/{resource}"'
    )
    return Answer(403, None, (("www-authenticate", challenge),))
