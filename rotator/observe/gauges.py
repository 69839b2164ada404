"""The gauges that are computed from the connections' state when Prometheus scrapes, in one pass over them.

Above the limit only the sums are exported: 10,000 connections times 20 series is half a megabyte per scrape and more.
The alert rules fall back on the sums then (`per_connection_series`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import chain

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rotator.core import view as state
from rotator.core.model import DebtKind, Record
from rotator.core.view import ConnectionView, State
from rotator.observe.names import BY_NAME, METRICS

Families = dict[str, GaugeMetricFamily]
Sample = tuple[str, tuple[str, ...], float]  # name in the table, values of its own labels, value

_SUMS = (
    "connections",
    "oldest_overdue_seconds",
    "lowest_key_slack_seconds",
    "unhealthy_connections",
    "open_debts",
    "stale_proofs",
    "ledger_pending_entries",
    "per_connection_series",
)
_EACH = tuple(metric.name for metric in METRICS if metric.per_connection)
_PERSON = tuple(state.WAITS_FOR_PERSON.values())
STALE = 3  # missed proofs in a row before one counts as stale


class StateCollector(Collector):
    """`snapshot` gives all connections; `now` the time; `limit` how many connections get series of their own."""

    def __init__(
        self, snapshot: Callable[[], Iterable[ConnectionView]], now: Callable[[], datetime], limit: int
    ) -> None:
        self._snapshot = snapshot
        self._now = now
        self._limit = limit

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names only, so that registering does not call `snapshot`."""
        return iter(_families((*_SUMS, *_EACH)).values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        views = tuple(self._snapshot())
        now = self._now()
        each = len(views) <= self._limit
        sums = _families(_SUMS)
        for name, labels, value in _sums(views, now):
            sums[name].add_metric(labels, value)
        sums["per_connection_series"].add_metric((), float(each))
        families = _families(_EACH if each else ())
        for view in views if each else ():
            named = (view.name, view.target, view.idp)
            for name, labels, value in _samples(view, now):
                families[name].add_metric((*named, *labels), value)
        return chain(sums.values(), families.values())


def _families(names: Iterable[str]) -> Families:
    rows = [BY_NAME[name] for name in names]
    return {row.name: GaugeMetricFamily(row.full_name, row.help, labels=row.labels) for row in rows}


def _sums(views: Iterable[ConnectionView], now: datetime) -> Iterator[Sample]:
    states = Counter[State](dict.fromkeys(State, 0))
    debts = Counter[DebtKind](dict.fromkeys(DebtKind, 0))
    stale = {"target": 0, "idp": 0}
    overdue, slack, unhealthy, pending = 0.0, None, 0, 0
    for view in views:
        record = view.record
        states[state.state_of(view, now)] += 1
        debts.update(debt.kind for debt in record.debts)
        overdue = max(overdue, state.overdue_seconds(view, now))
        own = state.slack_seconds(view, now)
        slack = own if slack is None or (own is not None and own < slack) else slack
        unhealthy += not state.is_healthy(record)
        pending += len(record.ledger_pending)
        if view.prove_every is not None:
            for side, at in _proofs(record):
                stale[side] += at is not None and (now - at).total_seconds() > STALE * view.prove_every
    for word, count in states.items():
        yield "connections", (word.value,), count
    for kind, count in debts.items():
        yield "open_debts", (kind.value,), count
    for side, count in stale.items():
        yield "stale_proofs", (side,), count
    yield "oldest_overdue_seconds", (), overdue
    yield "unhealthy_connections", (), unhealthy
    yield "ledger_pending_entries", (), pending
    if slack is not None:
        yield "lowest_key_slack_seconds", (), slack


def _samples(view: ConnectionView, now: datetime) -> Iterator[Sample]:
    record = view.record
    current = record.current
    if current and current.minted_at:
        yield "key_age_seconds", (), (now - current.minted_at).total_seconds()
    times = {
        "key_rotate_by_timestamp_seconds": view.rotate_by,
        "key_expiry_timestamp_seconds": current.expires_at if current else None,
        "last_rotation_timestamp_seconds": record.last_rotated_at,
        "next_rotation_timestamp_seconds": view.next_due,
    }
    for name, at in times.items():
        if at is not None:
            yield name, (), at.timestamp()
    slack = state.slack_seconds(view, now)
    if slack is not None:
        yield "key_slack_seconds", (), slack
    for side, at in _proofs(record):
        if at is not None:
            yield "last_proof_timestamp_seconds", (side,), at.timestamp()
    if view.prove_every is not None:
        yield "proof_interval_seconds", (), view.prove_every
    yield "connection_healthy", (), state.is_healthy(record)
    yield "stuck", (), state.is_stuck(record)
    if record.rotation is not None and not state.is_stuck(record):
        yield "rotation_in_progress", (record.rotation.phase.value,), 1
    awaited = state.waits_for(record)
    for what in _PERSON:
        yield "waiting_for_person", (what,), what == awaited
    if view.live_keys is not None:
        yield "live_keys", (), view.live_keys
    for kind in DebtKind:
        yield "debts", (kind.value,), sum(debt.kind is kind for debt in record.debts)


def _proofs(record: Record) -> tuple[tuple[str, datetime | None], ...]:
    return (("target", record.proved_target_at), ("idp", record.proved_idp_at))
