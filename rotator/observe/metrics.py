"""Metrics: counters from events and calls, gauges from the state at scrape time.

Keeps I5 (no label holds a key id, token or user) and I6 (every end is counted). Gauges are computed when scraped, so a
restart forgets nothing and a removed connection's series vanish. Counters start at 0 for every combination that the
configuration makes possible: `increase()` would miss the first failure otherwise.
"""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from rotator.core.model import Outcome, Trigger
from rotator.core.reasons import Reason
from rotator.core.view import ConnectionView
from rotator.observe.gauges import StateCollector
from rotator.observe.names import BY_NAME, RESULTS
from rotator.ports import EventType, RotationEvent

logger = logging.getLogger("rotator.metrics")
_PHASE_OUTCOMES = {EventType.PHASE_DONE: "done", EventType.PHASE_FAILED: "failed"}


class Metrics:
    """Implements ports.Meter and ports.Observer. All methods are thread-safe; none but `render` raises.

    `snapshot` gives all connections as they are now and is called once per scrape; what it raises fails the scrape, so
    that `up` tells. `now` is the clock. Series per connection are left out above `per_connection_limit` connections.
    """

    def __init__(
        self,
        *,
        snapshot: Callable[[], Iterable[ConnectionView]],
        now: Callable[[], datetime],
        version: str,
        per_connection_limit: int = 1000,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series, and nobody asks for them
        self._registry = CollectorRegistry()
        self._rotations = self._counter("rotations_total")
        self._deferred = self._counter("deferred_total")
        self._phases = self._histogram("rotation_phase_duration_seconds")
        self._requests = self._counter("api_requests_total")
        self._request_seconds = self._histogram("api_request_duration_seconds")
        self._rate_limit = self._gauge("idp_rate_limit_remaining")
        self._brake = self._gauge("brake_engaged")
        self._token_expiry = self._gauge("vault_token_expiry_timestamp_seconds")
        self._reload = self._gauge("config_reload_success")
        self._tick = self._gauge("last_tick_timestamp_seconds")
        self._gauge("build_info").labels(version, platform.python_version()).set(1)
        self._registry.register(StateCollector(snapshot, now, per_connection_limit))
        self._seeded: set[tuple[str, str]] = set()
        self._reload.set(1)
        self._token_expiry.set(math.nan)
        for reason in Reason:
            self._deferred.labels(reason.value)

    def render(self) -> bytes:
        """The exposition, text format 0.0.4."""
        return generate_latest(self._registry)

    def configured(
        self, *, targets: Iterable[str], idps: Iterable[str], operations: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        """Seed what this configuration makes possible; call it at the start and after a reload.

        `operations`: per system ("vault", "okta:<idp>", "target:<name>") the words that its adapter reports. Without
        it an operation's results are seeded at its first call.
        """
        targets, idps = tuple(targets), tuple(idps)
        for target in targets:
            for trigger in Trigger:
                for outcome in Outcome:
                    self._rotations.labels(target, trigger.value, outcome.value)
        for scope, names in (("target", targets), ("idp", idps)):
            for name in names:
                self._brake.labels(scope, name)
        for system, words in (operations or {}).items():
            for word in words:
                self._seed_operation(system, word)

    def on(self, event: RotationEvent) -> None:
        try:
            self._count(event)
        except Exception:
            logger.exception("an event could not be counted: %s", event.type)

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        try:
            self._seed_operation(system, operation)
            self._requests.labels(system, operation, result).inc()
            self._request_seconds.labels(system, operation).observe(seconds)
        except Exception:
            logger.exception("a request could not be counted: %s", operation)

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        try:
            self._rate_limit.labels(idp, bucket).set(remaining)
        except Exception:
            logger.exception("a rate limit could not be noted: %s", idp)

    def brake(self, scope: Literal["idp", "target"], name: str, *, engaged: bool) -> None:
        """Whether new rotations at this IdP or target are held."""
        self._brake.labels(scope, name).set(engaged)

    def vault_token_expiry(self, at: datetime | None) -> None:
        """When our own Vault token expires; None when it never does."""
        self._token_expiry.set(math.nan if at is None else at.timestamp())

    def config_reload(self, *, success: bool) -> None:
        self._reload.set(success)

    def tick(self, at: datetime) -> None:
        """The planner has looked at all connections."""
        self._tick.set(at.timestamp())

    def _count(self, event: RotationEvent) -> None:
        if event.type is EventType.ENDED:
            self._rotations.labels(event.target, event.trigger, event.outcome).inc()
        elif event.type is EventType.DEFERRED and event.reason is not None:
            self._deferred.labels(event.reason.value).inc()
        elif event.type in _PHASE_OUTCOMES and event.seconds is not None:
            outcome = _PHASE_OUTCOMES[event.type]
            self._phases.labels(event.phase, event.target, outcome).observe(event.seconds)

    def _seed_operation(self, system: str, operation: str) -> None:
        if (system, operation) not in self._seeded:
            for result in RESULTS:
                self._requests.labels(system, operation, result)
            self._seeded.add((system, operation))

    def _counter(self, name: str) -> Counter:
        row = BY_NAME[name]
        return Counter(row.full_name, row.help, row.labels, registry=self._registry)

    def _gauge(self, name: str) -> Gauge:
        row = BY_NAME[name]
        return Gauge(row.full_name, row.help, row.labels, registry=self._registry)

    def _histogram(self, name: str) -> Histogram:
        row = BY_NAME[name]
        return Histogram(row.full_name, row.help, row.labels, buckets=row.buckets, registry=self._registry)
