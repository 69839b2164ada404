"""What is written as a state record is read back the same, and what can't be understood is refused with its path."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Step
from hypothesis import strategies as st

from rotator.core.codec import decode, encode
from rotator.core.model import (
    SCHEMA,
    Binding,
    By,
    Debt,
    DebtKind,
    Ended,
    KeyRef,
    LedgerEntry,
    Limits,
    Phase,
    PhaseTime,
    Record,
    Rotation,
    StrategyName,
    Trigger,
)
from rotator.core.reasons import Reason

_EARLIEST = datetime(1970, 1, 2)  # noqa: DTZ001  # hypothesis wants bounds without a zone
_LATEST = datetime(9999, 12, 30)  # noqa: DTZ001  # as above
_INDIA = timezone(timedelta(hours=5, minutes=30))
_times = st.datetimes(_EARLIEST, _LATEST, timezones=st.sampled_from([UTC, _INDIA]))
_floats = st.floats(allow_nan=False, allow_infinity=False)
for _type in (KeyRef, Debt, Limits, Binding, PhaseTime, Rotation, Ended, LedgerEntry, Record):
    # every field drawn from its type, so that a field added to the model is covered the day it is added
    st.register_type_strategy(_type, lambda cls: st.builds(cls, **{f.name: ... for f in fields(cls)}))
st.register_type_strategy(datetime, _times)
st.register_type_strategy(float, _floats)

_PHASES = [Step.reuse, Step.generate, Step.shrink]  # `explain` traces every line: minutes for a record this wide
_FIRST_DAY = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
_NOW = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)


def _rotation(**changes: Any) -> Rotation:
    binding = Binding("acme", "0oa1", "https://x", "graf", StrategyName.OVERLAP, By.API, By.PERSON)
    base = Rotation(
        id="r-1",
        installation="prod",
        sequence=3,
        trigger=Trigger.CLI,
        note="",
        why=Reason.ASKED,
        binding=binding,
        limits=Limits(),
        started_at=_NOW,
        phase=Phase.MINT,
        phase_since=_NOW,
    )
    return replace(base, **changes)


# too_slow only says that the machine is busy: a record has some hundred fields to draw
@settings(max_examples=60, deadline=None, phases=_PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(record=st.from_type(Record))
def test_a_record_comes_back_the_same_through_json(record: Record) -> None:
    record = replace(record, schema=SCHEMA)
    assert decode(json.loads(json.dumps(encode(record), allow_nan=False))) == record


def test_defaults_are_left_out_but_the_schema_stands() -> None:
    assert encode(Record("grafana")) == {"connection": "grafana", "schema": SCHEMA}


def test_an_open_rotation_keeps_its_limits_even_where_they_are_todays_defaults() -> None:
    encoded: Any = encode(Record("grafana", rotation=_rotation()))
    assert set(encoded["rotation"]["limits"]) == {field.name for field in fields(Limits)}


def test_times_are_utc_and_end_in_z() -> None:
    india = _NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert encode(Record("g", last_rotated_at=india))["last_rotated_at"] == "2026-03-01T12:00:00.250000Z"


def test_decode_gives_back_the_models_own_types() -> None:
    debt = Debt(DebtKind.SUSPECTED, KeyRef(key_id="7"), _NOW, Reason.STILL_ALIVE)
    record = decode(json.loads(json.dumps(encode(Record("g", rotation=_rotation(), debts=(debt,))))))
    assert record.rotation is not None
    assert record.rotation.phase is Phase.MINT
    assert record.rotation.trigger is Trigger.CLI
    assert record.debts == (debt,)
    assert record.debts[0].reason is Reason.STILL_ALIVE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"schema": SCHEMA + 1}, "newer rotator", id="a record of a newer rotator is refused, and says so"),
        pytest.param({"schema": None}, "schema: expected", id="a record without a schema is refused"),
        pytest.param({"schema": True}, "schema: expected", id="true is no schema number"),
        pytest.param({"epoch": "2"}, "epoch: expected int, found '2'", id="text where a number belongs"),
        pytest.param({"epoch": True}, "epoch: expected int, found True", id="true where a number belongs"),
        pytest.param({"colour": 1}, "colour: a field this rotator does not know", id="an unknown field"),
        pytest.param({"debts": {}}, "debts: expected a list", id="an object where a list belongs"),
        pytest.param({"debts": [{"kind": "revoke"}]}, r"debts\[0\]\.key: missing", id="a field missing deep inside"),
        pytest.param(
            {"last_rotated_at": "2026-03-01T12:00:00"}, "last_rotated_at: expected a time", id="a time without zone"
        ),
        pytest.param({"last_rotated_at": "soon"}, "last_rotated_at: expected a time", id="no time at all"),
        pytest.param(
            {"last_rotated_at": "0001-01-01T00:00:00+05:30"}, "expected a time", id="a time before the calendar"
        ),
        pytest.param({"current": []}, "current: expected an object", id="a list where an object belongs"),
        pytest.param({"rotation": {"phase": "dream"}}, "rotation", id="a rotation with next to nothing in it"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_its_path(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode({"schema": SCHEMA, "connection": "g", **change})


def test_an_unknown_phase_names_the_phase_and_where_it_stands() -> None:
    encoded: Any = encode(Record("g", rotation=_rotation()))
    encoded["rotation"]["phase"] = "dream"
    with pytest.raises(ValueError, match=r"rotation\.phase: 'dream' is no Phase"):
        decode(encoded)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param(Record("g", last_rotated_at=datetime(2026, 1, 1)), "without time zone", id="a time without zone"),  # noqa: DTZ001  # the case
        pytest.param(Record("g", last_rotated_at=_FIRST_DAY), "outside the calendar", id="a time before the calendar"),
        pytest.param(
            Record("g", rotation=_rotation(limits=Limits(settle=float("inf")))), r"limits\.settle", id="endless"
        ),
    ],
)
def test_what_json_cannot_hold_is_not_written(record: Record, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(record)
