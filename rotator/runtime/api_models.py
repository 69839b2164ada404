"""What goes over the HTTP API, as pydantic models: the bodies, the answers, and the OpenAPI document from the same.

No field can hold key material (I5): a key is its id and fingerprint. Bodies take no field but those named.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rotator.core import view as state
from rotator.core.model import Ask, Debt, DebtKind, Ended, KeyRef, Outcome, Phase, Rotation, StrategyName, Trigger
from rotator.core.reasons import Reason
from rotator.core.view import ConnectionView, State


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NoBody(Body):
    """Nothing: no body, or an empty object."""


class RotateBody(Body):
    reason: Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        default="", description="Why; kept in the rotation's note and in the ledger. Never put a key here."
    )


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Error(Answer):
    """Every answer with a status of 400 or more."""

    error: str = Field(description="A fixed word")
    message: str = Field(description="A sentence for a person")
    rotation_id: str | None = None


class Submitted(Answer):
    rotation_id: str
    status: Literal["accepted", "running"] = Field(description="running: one was open already; this is its id")


class Asked(Answer):
    rotation_id: str
    asked: Ask


class Verified(Answer):
    connection: str
    ok: bool
    target: str = Field(description="What the target said to the current key, or the error")
    idp: str = Field(description="What the identity provider says of the connection, or the error")
    message: str
    missing_proofs: tuple[str, ...] = Field(description="Proof sources that the rotator's own credentials don't allow")


class KeyAnswer(Answer):
    """A key without its value."""

    fingerprint: str | None
    key_id: str | None
    minted_at: datetime | None
    expires_at: datetime | None
    ours: bool

    @classmethod
    def of(cls, key: KeyRef) -> KeyAnswer:
        return cls(
            fingerprint=key.fingerprint,
            key_id=key.key_id,
            minted_at=key.minted_at,
            expires_at=key.expires_at,
            ours=key.ours,
        )


class DebtAnswer(Answer):
    """A key that should be dead and isn't proved so."""

    kind: DebtKind
    key: KeyAnswer
    label: str | None
    since: datetime
    reason: Reason

    @classmethod
    def of(cls, debt: Debt) -> DebtAnswer:
        key = KeyAnswer.of(debt.key)
        return cls(kind=debt.kind, key=key, label=debt.key.label, since=debt.since, reason=debt.reason)


class RotationAnswer(Answer):
    id: str
    connection: str
    status: Literal["open"] | Outcome
    sequence: int
    trigger: Trigger
    strategy: StrategyName
    started_at: datetime
    ended_at: datetime | None = None
    phase: Phase | None = Field(default=None, description="What an open or stuck rotation is doing or waiting for")
    phase_since: datetime | None = None
    not_before: datetime | None = Field(default=None, description="When it goes on, if it waits")
    reason: Reason | None = Field(default=None, description="Why it waits, is stuck, or ended so")
    message: str = ""
    note: str = ""
    asked: Ask | None = None
    seconds: dict[str, float] = Field(description="Per phase that was done")
    evidence: tuple[str, ...]
    missing_proofs: tuple[str, ...]

    @classmethod
    def of(cls, connection: str, rotation: Rotation | Ended) -> RotationAnswer:
        if isinstance(rotation, Ended):
            return cls(
                id=rotation.id,
                connection=connection,
                status=rotation.outcome,
                sequence=rotation.sequence,
                trigger=rotation.trigger,
                strategy=rotation.strategy,
                started_at=rotation.started_at,
                ended_at=rotation.ended_at,
                reason=rotation.reason,
                message=rotation.detail,
                seconds=_seconds(rotation),
                evidence=rotation.evidence,
                missing_proofs=rotation.missing_proofs,
            )
        return cls(
            id=rotation.id,
            connection=connection,
            status=Outcome.STUCK if rotation.stuck else "open",
            sequence=rotation.sequence,
            trigger=rotation.trigger,
            strategy=rotation.binding.strategy,
            started_at=rotation.started_at,
            phase=rotation.phase,
            phase_since=rotation.phase_since,
            not_before=rotation.not_before,
            reason=rotation.stuck or rotation.waiting,
            message=rotation.failure_detail if rotation.stuck else rotation.detail,
            note=rotation.note,
            asked=rotation.asked,
            seconds=_seconds(rotation),
            evidence=rotation.evidence,
            missing_proofs=rotation.missing_proofs,
        )


class ConnectionAnswer(Answer):
    name: str
    target: str
    idp: str
    state: State
    healthy: bool
    held: Reason | None = Field(description="Why a due rotation does not begin")
    next_due: datetime | None
    rotate_by: datetime | None
    last_rotated_at: datetime | None
    slack_seconds: float | None = Field(description="Time to the key's expiry minus the worst-case time to rotate")
    current: KeyAnswer | None
    previous: KeyAnswer | None
    proved_target_at: datetime | None
    proved_idp_at: datetime | None
    drift_since: datetime | None
    live_keys: int | None
    debts: tuple[DebtAnswer, ...]
    rotation: RotationAnswer | None = Field(description="The open or stuck rotation")
    last: RotationAnswer | None = Field(description="The last rotation that ended")

    @classmethod
    def of(cls, view: ConnectionView, now: datetime) -> ConnectionAnswer:
        record = view.record
        return cls(
            name=view.name,
            target=view.target,
            idp=view.idp,
            state=state.state_of(view, now),
            healthy=state.is_healthy(record),
            held=view.held,
            next_due=view.next_due,
            rotate_by=view.rotate_by,
            last_rotated_at=record.last_rotated_at,
            slack_seconds=state.slack_seconds(view, now),
            current=KeyAnswer.of(record.current) if record.current else None,
            previous=KeyAnswer.of(record.previous) if record.previous else None,
            proved_target_at=record.proved_target_at,
            proved_idp_at=record.proved_idp_at,
            drift_since=record.drift_since,
            live_keys=view.live_keys,
            debts=tuple(DebtAnswer.of(debt) for debt in record.debts),
            rotation=RotationAnswer.of(view.name, record.rotation) if record.rotation else None,
            last=RotationAnswer.of(view.name, record.last) if record.last else None,
        )


class ConnectionsAnswer(Answer):
    connections: tuple[ConnectionAnswer, ...]


class Health(Answer):
    ok: bool
    reasons: tuple[str, ...] = ()


def _seconds(rotation: Rotation | Ended) -> dict[str, float]:
    """Per phase; one that was done twice counts both times."""
    total: dict[str, float] = {}
    for time in rotation.times:
        total[time.phase.value] = total.get(time.phase.value, 0.0) + time.seconds
    return total
