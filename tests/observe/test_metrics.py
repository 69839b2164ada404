"""Metrics: what is exported, from which state, and that it stays small and fast."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rotator.core.ledger import append
from rotator.core.model import (
    Binding,
    By,
    Debt,
    DebtKind,
    KeyRef,
    Limits,
    Outcome,
    Phase,
    Record,
    Rotation,
    StrategyName,
    Trigger,
)
from rotator.core.reasons import Reason
from rotator.core.view import ConnectionView
from rotator.observe import names
from rotator.observe.metrics import Metrics
from rotator.ports import EventType, RotationEvent

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
BINDING = Binding("acme", "0oa1", "https://scim", "graf", StrategyName.OVERLAP, By.API, By.API)
CURRENT = KeyRef("1a2b3c4d5e6f", "key-id-1", minted_at=NOW - 10 * DAY, expires_at=NOW + 20 * DAY)


def rotation(phase: Phase = Phase.OVERLAP, **changes: Any) -> Rotation:
    made = Rotation(
        id="r1",
        installation="test",
        sequence=7,
        trigger=Trigger.CLI,
        note="note",
        why=Reason.ASKED,
        binding=BINDING,
        limits=Limits(),
        started_at=NOW - DAY,
        phase=phase,
        phase_since=NOW,
        labels=("label-1",),
    )
    return replace(made, **changes)


def record(**changes: Any) -> Record:
    return replace(Record("graf-1", current=CURRENT), **changes)


def view(record_: Record | None = None, **changes: Any) -> ConnectionView:
    made = ConnectionView("graf-1", "graf", "acme", record_ or record(), NOW + DAY, None, 3600.0)
    return replace(made, **changes)


def metrics(*views: ConnectionView, limit: int = 1000) -> Metrics:
    return Metrics(snapshot=lambda: views, now=lambda: NOW, version="1.2.3", per_connection_limit=limit)


def scrape(made: Metrics) -> dict[tuple[str, ...], float]:
    """(name without prefix, label values in the label names' order …) -> value; a connection's own labels left out."""
    found = {}
    for family in text_string_to_metric_families(made.render().decode()):
        for sample in family.samples:
            own = [v for k, v in sorted(sample.labels.items()) if k not in {"connection", "target", "idp"}]
            if "connection" not in sample.labels:
                own = [v for _, v in sorted(sample.labels.items())]
            found[(sample.name.removeprefix("rotator_"), *own)] = sample.value
    return found


# --- the table ---------------------------------------------------------------------------------------------------------


def test_every_exported_family_stands_in_the_table_with_its_type_labels_and_help() -> None:
    made = metrics(
        view(
            record(rotation=rotation(), last_rotated_at=NOW, proved_target_at=NOW),
            live_keys=1,
            rotate_by=NOW,
            prove_every=60.0,
        )
    )
    made.configured(targets=["graf"], idps=["acme"], operations={"vault": ["read"]})
    made.call("vault", "read", "ok", 0.1)
    made.rate_limit("acme", "apps", 5)
    made.on(RotationEvent(EventType.PHASE_DONE, NOW, "graf-1", target="graf", phase="push", seconds=1.0))
    found = {}
    for family in text_string_to_metric_families(made.render().decode()):
        assert family.samples, family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, labels, family.documentation)
    assert found == {row.full_name: (row.kind.value, set(row.labels), row.help) for row in names.METRICS}


def test_the_readme_table_has_a_row_for_each() -> None:
    rows = names.markdown_table().splitlines()[2:]
    assert len(rows) == len(names.METRICS)
    assert all(row.full_name in line and row.help in line for row, line in zip(names.METRICS, rows, strict=True))


def test_names_follow_prometheus_conventions() -> None:
    for row in names.METRICS:
        assert (row.kind is names.Kind.COUNTER) == row.name.endswith("_total"), row.name
        assert (row.kind is names.Kind.HISTOGRAM) == bool(row.buckets), row.name
        assert not set("\n|") & set(row.help), row.name


# --- gauges from state -------------------------------------------------------------------------------------------------

STUCK = rotation(stuck=Reason.BOTH_DEAD)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(view(), {("connections", "ok"): 1, ("connection_healthy",): 1, ("stuck",): 0}, id="all is well"),
        pytest.param(view(), {("key_age_seconds",): 864000}, id="age of the current key"),
        pytest.param(view(), {("key_expiry_timestamp_seconds",): CURRENT.expires_at}, id="its expiry"),
        pytest.param(
            view(),
            {("key_slack_seconds",): 20 * 86400 - 3600, ("lowest_key_slack_seconds",): 20 * 86400 - 3600},
            id="slack is the time to expiry less the worst-case time to rotate",
        ),
        pytest.param(
            view(worst_case_seconds=30 * 86400.0), {("key_slack_seconds",): -10 * 86400}, id="slack below zero is told"
        ),
        pytest.param(
            view(record(current=replace(CURRENT, expires_at=None))),
            {
                ("key_slack_seconds",): None,
                ("lowest_key_slack_seconds",): None,
                ("key_expiry_timestamp_seconds",): None,
            },
            id="a key that never expires has no slack",
        ),
        pytest.param(
            view(record(current=None)),
            {("connections", "unknown_key"): 1, ("connection_healthy",): 0, ("key_age_seconds",): None},
            id="no key known",
        ),
        pytest.param(
            view(record(rotation=STUCK)),
            {
                ("connections", "stuck"): 1,
                ("stuck",): 1,
                ("connection_healthy",): 0,
                ("unhealthy_connections",): 1,
                ("rotation_in_progress", "overlap"): None,
            },
            id="stuck",
        ),
        pytest.param(
            view(record(rotation=rotation(Phase.PUSH))),
            {
                ("connections", "in_progress"): 1,
                ("rotation_in_progress", "push"): 1,
                ("connection_healthy",): 1,
                ("waiting_for_person", "push"): 0,
            },
            id="a rotation is open",
        ),
        pytest.param(
            view(record(rotation=rotation(Phase.AWAIT_PUSH))),
            {
                ("connections", "waiting_for_person"): 1,
                ("waiting_for_person", "push"): 1,
                ("waiting_for_person", "key"): 0,
                ("waiting_for_person", "restore"): 0,
            },
            id="a person is awaited",
        ),
        pytest.param(
            view(record(rotation=rotation(waiting=Reason.FEATURES_CHANGED))),
            {("connection_healthy",): 0, ("connections", "in_progress"): 1},
            id="an open rotation that holds with an alarm is not healthy",
        ),
        pytest.param(
            view(record(rotation=rotation(waiting=Reason.OVERLAPPING))), {("connection_healthy",): 1}, id="watching is"
        ),
        pytest.param(
            view(record(drift_since=NOW)), {("connections", "drift"): 1, ("connection_healthy",): 0}, id="drift"
        ),
        pytest.param(
            view(record(failures=3)), {("connection_healthy",): 1}, id="failed rotations that were undone are healthy"
        ),
        pytest.param(
            view(next_due=NOW - timedelta(seconds=90)),
            {("connections", "due"): 1, ("oldest_overdue_seconds",): 90},
            id="due and not begun",
        ),
        pytest.param(
            view(next_due=NOW - timedelta(seconds=90), held=Reason.BRAKE),
            {("connections", "held"): 1, ("oldest_overdue_seconds",): 90},
            id="held back, and overdue all the same",
        ),
        pytest.param(
            view(record(rotation=rotation()), next_due=NOW - DAY),
            {("oldest_overdue_seconds",): 0},
            id="begun: not overdue",
        ),
        pytest.param(
            view(next_due=None),
            {("oldest_overdue_seconds",): 0, ("next_rotation_timestamp_seconds",): None},
            id="never due by itself",
        ),
        pytest.param(view(next_due=NOW + DAY), {("next_rotation_timestamp_seconds",): NOW + DAY}, id="next rotation"),
        pytest.param(view(rotate_by=NOW + DAY), {("key_rotate_by_timestamp_seconds",): NOW + DAY}, id="rotate by"),
        pytest.param(
            view(record(last_rotated_at=NOW - DAY)),
            {("last_rotation_timestamp_seconds",): NOW - DAY},
            id="last rotation",
        ),
        pytest.param(
            view(record(proved_target_at=NOW - DAY), prove_every=7200.0),
            {
                ("last_proof_timestamp_seconds", "target"): NOW - DAY,
                ("last_proof_timestamp_seconds", "idp"): None,
                ("proof_interval_seconds",): 7200,
                ("stale_proofs", "target"): 1,
                ("stale_proofs", "idp"): 0,
            },
            id="a proof that is stale, and a side that can't be proved",
        ),
        pytest.param(
            view(record(proved_target_at=NOW - DAY), prove_every=8 * 3600.0),
            {("stale_proofs", "target"): 0},
            id="three intervals old is not yet stale",
        ),
        pytest.param(
            view(record(proved_target_at=NOW - 90 * DAY)),
            {("stale_proofs", "target"): 0, ("proof_interval_seconds",): None},
            id="proved only while rotating: never stale",
        ),
        pytest.param(view(live_keys=3), {("live_keys",): 3}, id="live keys"),
        pytest.param(view(), {("live_keys",): None}, id="live keys where the target can't list"),
        pytest.param(
            view(record(debts=tuple(Debt(k, CURRENT, NOW, Reason.STILL_ALIVE) for k in (DebtKind.REVOKE,) * 2))),
            {
                ("debts", "revoke"): 2,
                ("debts", "person"): 0,
                ("open_debts", "revoke"): 2,
                ("open_debts", "suspected"): 0,
            },
            id="debts by kind",
        ),
        pytest.param(
            view(append(record(), NOW, "e", "r", "b", {})), {("ledger_pending_entries",): 1}, id="ledger not on disk"
        ),
    ],
)
def test_gauges(seen: ConnectionView, expected: dict[tuple[str, ...], float | datetime | None]) -> None:
    found = scrape(metrics(seen))
    for series, value in expected.items():
        assert found.get(series) == (value.timestamp() if isinstance(value, datetime) else value), series


def test_sums_go_over_all_connections() -> None:
    soon = record(current=replace(CURRENT, expires_at=NOW + DAY))
    found = scrape(
        metrics(
            view(next_due=NOW - timedelta(seconds=5)),
            view(soon, next_due=NOW - timedelta(seconds=9), name="b"),
            view(record(rotation=STUCK), name="c"),
            view(record(drift_since=NOW), name="d", next_due=NOW - timedelta(seconds=7)),
        )
    )
    assert found[("oldest_overdue_seconds",)] == 9
    assert found[("lowest_key_slack_seconds",)] == 86400 - 3600
    assert found[("unhealthy_connections",)] == 2
    assert sum(value for series, value in found.items() if series[0] == "connections") == 4


def test_gauges_are_of_the_moment_of_the_scrape_and_a_removed_connection_vanishes() -> None:
    views = [view()]
    made = Metrics(snapshot=lambda: views, now=lambda: NOW, version="1")
    assert ("stuck",) in scrape(made)
    views[0] = view(record(rotation=STUCK))
    assert scrape(made)[("stuck",)] == 1
    views.clear()
    assert ("stuck",) not in scrape(made)


@pytest.mark.parametrize(
    ("count", "each"),
    [pytest.param(3, True, id="up to the limit"), pytest.param(4, False, id="above it only the sums")],
)
def test_series_per_connection_stop_at_the_limit(count: int, each: bool) -> None:
    made = metrics(*(view(name=f"c{n}") for n in range(count)), limit=3)
    families = {f.name for f in text_string_to_metric_families(made.render().decode()) if f.samples}
    per_connection = {row.full_name for row in names.METRICS if row.per_connection}
    assert bool(families & per_connection) == each
    found = scrape(made)
    assert found[("per_connection_series",)] == each
    assert found[("connections", "ok")] == count


def test_a_snapshot_that_fails_fails_the_scrape() -> None:
    def broken() -> list[ConnectionView]:
        raise RuntimeError("state unknown")

    made = Metrics(snapshot=broken, now=lambda: NOW, version="1")
    with pytest.raises(RuntimeError, match="state unknown"):
        made.render()


# --- counters ----------------------------------------------------------------------------------------------------------


def test_counters_begin_at_0_for_all_that_the_configuration_makes_possible() -> None:
    made = metrics()
    made.configured(targets=["graf", "zs"], idps=["acme"], operations={"okta:acme": ["push", "read"]})
    found = scrape(made)
    rotations = {series[1:] for series in found if series[0] == "rotations_total"}
    assert rotations == {(o.value, t, tr.value) for o in Outcome for t in ("graf", "zs") for tr in Trigger}
    assert {s[1] for s in found if s[0] == "deferred_total"} == {reason.value for reason in Reason}
    assert {s[1:] for s in found if s[0] == "brake_engaged"} == {("graf", "target"), ("zs", "target"), ("acme", "idp")}
    requests = {s[1:] for s in found if s[0] == "api_requests_total"}
    assert requests == {(op, result, "okta:acme") for op in ("push", "read") for result in names.RESULTS}
    assert all(value == 0 for s, value in found.items() if s[0].endswith("_total"))


def test_a_reload_keeps_what_was_counted() -> None:
    made = metrics()
    made.configured(targets=["graf"], idps=[])
    made.on(ended("rotated"))
    made.configured(targets=["graf", "new"], idps=[])
    found = scrape(made)
    assert found[("rotations_total", "rotated", "graf", "http")] == 1
    assert found[("rotations_total", "rotated", "new", "http")] == 0


def ended(outcome: str) -> RotationEvent:
    return RotationEvent(EventType.ENDED, NOW, "graf-1", target="graf", outcome=outcome, trigger="http", seconds=9.0)


@pytest.mark.parametrize(
    ("event", "series"),
    [
        pytest.param(ended("stuck"), ("rotations_total", "stuck", "graf", "http"), id="a rotation ends"),
        pytest.param(
            RotationEvent(EventType.DEFERRED, NOW, "graf-1", reason=Reason.FREEZE),
            ("deferred_total", "freeze"),
            id="a rotation is deferred",
        ),
        pytest.param(
            RotationEvent(EventType.PHASE_DONE, NOW, "graf-1", target="graf", phase="push", seconds=2.0, outcome="ok"),
            ("rotation_phase_duration_seconds_count", "done", "push", "graf"),
            id="a phase is done",
        ),
        pytest.param(
            RotationEvent(EventType.PHASE_FAILED, NOW, "graf-1", target="graf", phase="push", seconds=2.0, outcome="x"),
            ("rotation_phase_duration_seconds_count", "failed", "push", "graf"),
            id="a phase fails",
        ),
    ],
)
def test_events_are_counted(event: RotationEvent, series: tuple[str, ...]) -> None:
    made = metrics()
    made.on(event)
    made.on(event)
    assert scrape(made)[series] == 2


def test_a_phase_that_only_waits_has_no_duration() -> None:
    made = metrics()
    made.on(RotationEvent(EventType.PHASE_WAITS, NOW, "graf-1", target="graf", phase="push", seconds=2.0))
    assert not [s for s in scrape(made) if s[0].startswith("rotation_phase_duration_seconds")]


def test_a_call_is_counted_and_timed_and_its_other_results_begin_at_0() -> None:
    made = metrics()
    made.call("vault", "read", "denied", 0.02)
    found = scrape(made)
    assert found[("api_requests_total", "read", "denied", "vault")] == 1
    assert found[("api_requests_total", "read", "ok", "vault")] == 0
    assert found[("api_request_duration_seconds_sum", "read", "vault")] == 0.02


def test_the_results_are_the_typed_errors() -> None:
    assert set(names.RESULTS) == {
        "ok",
        "transient",
        "rate_limited",
        "denied",
        "not_found",
        "conflict",
        "refused",
        "ambiguous",
        "unsupported",
        "misconfigured",
    }


def test_observers_and_meters_never_raise(caplog: pytest.LogCaptureFixture) -> None:
    made = metrics()
    made.on(RotationEvent(EventType.PHASE_DONE, NOW, "c", phase="push", target="t", seconds="soon"))  # type: ignore[arg-type]
    made.call("vault", "read", "ok", "soon")  # type: ignore[arg-type]
    made.rate_limit("acme", "apps", "many")  # type: ignore[arg-type]
    assert caplog.text.count("could not be") == 3


def test_what_the_daemon_sets() -> None:
    made = metrics()
    before = scrape(made)
    assert math.isnan(before[("vault_token_expiry_timestamp_seconds",)])
    assert (before[("config_reload_success",)], before[("last_tick_timestamp_seconds",)]) == (1, 0)
    made.configured(targets=["graf"], idps=["acme"])
    made.brake("target", "graf", engaged=True)
    made.vault_token_expiry(NOW)
    made.config_reload(success=False)
    made.tick(NOW)
    made.rate_limit("acme", "apps", 17)
    found = scrape(made)
    assert found[("brake_engaged", "graf", "target")] == 1
    assert found[("brake_engaged", "acme", "idp")] == 0
    assert found[("vault_token_expiry_timestamp_seconds",)] == NOW.timestamp()
    assert found[("config_reload_success",)] == 0
    assert found[("last_tick_timestamp_seconds",)] == NOW.timestamp()
    assert found[("idp_rate_limit_remaining", "apps", "acme")] == 17
    made.vault_token_expiry(None)
    assert math.isnan(scrape(made)[("vault_token_expiry_timestamp_seconds",)])


# --- what it must not be -----------------------------------------------------------------------------------------------


def test_nothing_exported_names_a_key_a_label_a_rotation_or_a_person() -> None:
    whole = record(
        rotation=rotation(asked_by="ann@example.com", candidate=replace(CURRENT, fingerprint="ffffffffffff")),
        debts=(Debt(DebtKind.REVOKE, CURRENT, NOW, Reason.STILL_ALIVE),),
        holder="host-a",
    )
    made = metrics(view(whole))
    event = RotationEvent(EventType.PHASE_DONE, NOW, "graf-1", whole, "r1", "graf", "acme", "push", 1.0, "ok", "cli")
    made.on(replace(event, text="key-id-1", fields={"user": "ann@example.com"}))
    text = made.render().decode()
    for word in ("1a2b3c4d5e6f", "ffffffffffff", "key-id-1", "label-1", "ann@example.com", "host-a", '"r1"', "note"):
        assert word not in text


def test_10_000_connections_are_looked_at_once_each_and_give_as_many_series_as_10() -> None:
    looked = []

    def snapshot(count: int) -> list[ConnectionView]:
        looked.append(count)
        return [view(name=f"c{n}") for n in range(count)]

    sizes = []
    for count in (10, 10_000):
        made = Metrics(snapshot=lambda: snapshot(count), now=lambda: NOW, version="1", per_connection_limit=5)  # noqa: B023 - used in this turn of the loop
        sizes.append(made.render().count(b"\n"))
    assert looked == [10, 10_000]
    assert sizes[0] == sizes[1]
