"""One connection as its watchers see it: its record, and what policy says about it now. No key material (I5).

The dispatcher makes views; metrics, the HTTP API and `rotator status` read them, so that all three tell the same story.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from rotator.core.model import Phase, Record
from rotator.core.reasons import Reason


class State(StrEnum):
    """The one word for a connection; where several hold, the first in this order."""

    STUCK = "stuck"  # needs a person; no trigger, only what a person asks
    WAITING_FOR_PERSON = "waiting_for_person"
    IN_PROGRESS = "in_progress"
    UNKNOWN_KEY = "unknown_key"  # no current key in Vault: adopt one or bootstrap
    DRIFT = "drift"  # the target refuses the key that Vault calls current
    HELD = "held"  # due, and held back for a reason that `held` names
    DUE = "due"  # due, allowed, and not begun yet
    OK = "ok"


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """What the dispatcher knows about one connection at one moment."""

    name: str
    target: str
    idp: str
    record: Record
    next_due: datetime | None  # when the next rotation is due and allowed to begin; None: never by itself
    held: Reason | None  # why a due rotation does not begin
    worst_case_seconds: float  # the longest a rotation may take by its limits
    rotate_by: datetime | None = None  # when policy wants a new key, whatever windows and freezes say
    live_keys: int | None = None  # as last listed at the target; None where it can't be listed
    prove_every: float | None = None  # seconds between proofs of the current key; None: only while rotating


WAITS_FOR_PERSON = {
    Phase.AWAIT_KEY: "key",
    Phase.AWAIT_PUSH: "push",
    Phase.AWAIT_RESTORE: "restore",
}

# An open rotation that found something wrong with the connection itself, and holds
ALARMS = frozenset(
    {
        Reason.FEATURES_CHANGED,
        Reason.FOREIGN_CHANGE,
        Reason.CONNECTION_NOT_ENABLED,
        Reason.CONNECTION_DIFFERS,
        Reason.CONFIG_CHANGED,
        Reason.KEY_BAD_IN_USE,
        Reason.OLD_KEY_IN_USE,
        Reason.DRIFT,
    }
)


def is_stuck(record: Record) -> bool:
    return record.rotation is not None and record.rotation.stuck is not None


def waits_for(record: Record) -> str | None:
    """What a person is awaited for: "key", "push", "restore", or None."""
    if record.rotation is None or is_stuck(record):
        return None
    return WAITS_FOR_PERSON.get(record.rotation.phase)


def is_healthy(record: Record) -> bool:
    """The current key is known and nothing says that it fails in use. A failed, undone rotation is healthy."""
    alarm = record.rotation is not None and record.rotation.waiting in ALARMS
    return record.current is not None and record.drift_since is None and not is_stuck(record) and not alarm


def overdue_seconds(view: ConnectionView, now: datetime) -> float:
    """How long a rotation could have begun and has not; 0 when none is due or one is open."""
    if view.next_due is None or view.record.rotation is not None:
        return 0.0
    return max(0.0, (now - view.next_due).total_seconds())


def slack_seconds(view: ConnectionView, now: datetime) -> float | None:
    """Time to the current key's expiry minus the worst-case time to rotate; None when it does not expire."""
    current = view.record.current
    if current is None or current.expires_at is None:
        return None
    return (current.expires_at - now).total_seconds() - view.worst_case_seconds


def state_of(view: ConnectionView, now: datetime) -> State:
    """The first of `State` that holds."""
    record = view.record
    if is_stuck(record):
        return State.STUCK
    if waits_for(record):
        return State.WAITING_FOR_PERSON
    if record.rotation is not None:
        return State.IN_PROGRESS
    if record.current is None:
        return State.UNKNOWN_KEY
    if record.drift_since is not None:
        return State.DRIFT
    if view.held is not None:
        return State.HELD
    return State.DUE if overdue_seconds(view, now) > 0 else State.OK
