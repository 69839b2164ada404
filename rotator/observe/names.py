"""Every series that the program exports, in one table. README's table is made from it; rules and dashboards are checked
against it. Label values come from closed lists or from the configuration: never a key id, a token or a user (I5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from rotator import errors
from rotator.core.view import State

PREFIX = "rotator_"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `name` is without the prefix; counters end in `_total`, durations are seconds, times Unix seconds."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    per_connection: bool = False
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which it can be queried."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.full_name}_{end}" for end in ("bucket", "count", "sum"))
        return (self.full_name,)


def _counter(name: str, labels: str, text: str) -> Metric:
    return Metric(name, Kind.COUNTER, tuple(labels.split()), text)


def _gauge(name: str, labels: str, text: str) -> Metric:
    return Metric(name, Kind.GAUGE, tuple(labels.split()), text)


def _histogram(name: str, labels: str, text: str, *buckets: float) -> Metric:
    return Metric(name, Kind.HISTOGRAM, tuple(labels.split()), text, buckets=buckets)


def _each(name: str, labels: str, text: str) -> Metric:
    return Metric(name, Kind.GAUGE, ("connection", "target", "idp", *labels.split()), text, per_connection=True)


_STATES = ", ".join(state.value for state in State)

METRICS: tuple[Metric, ...] = (
    _counter("rotations_total", "target trigger outcome", "Rotations that ended"),
    _counter("deferred_total", "reason", "Times a rotation was due or asked for and did not begin"),
    _histogram(
        "rotation_phase_duration_seconds",
        "phase target outcome",
        "Time a phase took, waits included; outcome is done or failed",
        *(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 21600, 86400, 604800),
    ),
    _counter(
        "api_requests_total",
        "system operation result",
        "Requests to Vault, IdPs and targets; result is ok or the error",
    ),
    _histogram(
        "api_request_duration_seconds",
        "system operation",
        "Time of one request on the wire",
        *(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    _gauge("idp_rate_limit_remaining", "idp bucket", "Requests left in the IdP's bucket, as its last answer said"),
    _gauge("brake_engaged", "scope name", "1 while failures in a row hold new rotations; scope is idp or target"),
    _gauge("vault_token_expiry_timestamp_seconds", "", "When the rotator's own Vault token expires; NaN if never"),
    _gauge("config_reload_success", "", "1 if the last reload was taken, 0 if the old configuration was kept"),
    _gauge(
        "last_tick_timestamp_seconds", "", "When the planner last looked at all connections; 0 before the first time"
    ),
    _gauge("connections", "state", f"Connections by state: {_STATES}"),
    _gauge("oldest_overdue_seconds", "", "Longest time a rotation could have begun and has not"),
    _gauge("lowest_key_slack_seconds", "", "Lowest key_slack_seconds of all connections; absent if no key expires"),
    _gauge("unhealthy_connections", "", "Connections with connection_healthy 0"),
    _gauge("open_debts", "kind", "Keys that should be dead and aren't proved so, over all connections"),
    _gauge("stale_proofs", "side", "Connections whose last proof is older than three times its interval"),
    _gauge("ledger_pending_entries", "", "Ledger entries not yet on disk; they wait in the state records"),
    _gauge("per_connection_series", "", "1 if the series below are exported, 0 if there are too many connections"),
    _gauge("build_info", "version python", "1; the version runs"),
    _each("key_age_seconds", "", "Age of the current key; absent if unknown"),
    _each("key_rotate_by_timestamp_seconds", "", "When policy wants a new key, whatever windows and freezes say"),
    _each("key_expiry_timestamp_seconds", "", "When the current key expires; absent if never"),
    _each("key_slack_seconds", "", "Time to expiry minus the worst-case time to rotate; absent if it never expires"),
    _each("last_rotation_timestamp_seconds", "", "When the last rotation succeeded"),
    _each("next_rotation_timestamp_seconds", "", "When the next rotation is due and allowed to begin"),
    _each("last_proof_timestamp_seconds", "side", "When the current key was last proved; side is target or idp"),
    _each("proof_interval_seconds", "", "How often the current key ought to be proved; absent if only while rotating"),
    _each("connection_healthy", "", "1 if the current key is known and nothing says that it fails in use"),
    _each("rotation_in_progress", "phase", "1 while a rotation is open, with its phase; absent otherwise"),
    _each("waiting_for_person", "what", "1 while a person is awaited for a key, push or restore"),
    _each("live_keys", "", "Live keys as last listed at the target; absent if it can't be listed"),
    _each("debts", "kind", "Keys that should be dead and aren't proved so; kind is revoke, person or suspected"),
    _each("stuck", "", "1 if the last rotation needs a person"),
)

BY_NAME = {metric.name: metric for metric in METRICS}
SERIES = frozenset(series for metric in METRICS for series in metric.series)


def _result(error: type[errors.PortError]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", error.__name__).lower()


# What `result` of api_requests_total can be
RESULTS = ("ok", *sorted(_result(error) for error in errors.PortError.__subclasses__()))


def markdown_table() -> str:
    """The table of README's section on metrics."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(metric.labels) or "–"
        rows.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows)
