"""What the engine needs of the outside world. Every method raises only `rotator.errors` (contract tests hold to it).

A method that changes something says so. Adapters never retry (Vault settling a lost write excepted), never log key
material and give every call a total deadline. No port returns an HTTP body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from rotator.core.model import By, Record
from rotator.core.reasons import Reason
from rotator.core.secret import Secret
from rotator.core.strategy import LiveKeys as LiveKeys
from rotator.core.strategy import TargetCapabilities as TargetCapabilities

# --- target ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A live key as the target lists it; never its value."""

    key_id: str
    label: str | None = None
    created_at: datetime | None = None
    last_used_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Minted:
    key: Secret
    key_id: str | None
    expires_at: datetime | None = None


class Answer(StrEnum):
    """What a probe of a key says."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # the target turned this key away
    STATE = "state"  # the key may be fine; the target is paused, or lacks the feature


class Probe(StrEnum):
    """The probes that the engine asks for, from the cheapest on. Each but WRITE is one call."""

    USERS = "users"  # level 3: GET /Users?startIndex=1&count=2, as Okta does
    FILTER = "filter"  # level 4: GET /Users?filter=userName eq "<unknown>" -> totalResults 0
    GROUPS = "groups"  # level 5: 404 and 501 are allowed
    WRITE = "write"  # level 6, opt-in: create, update, deactivate a canary (several calls)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    answer: Answer
    detail: str = ""  # no body, no key
    status: int | None = None


class Target(Protocol):
    """The system that issues the key and hosts SCIM."""

    @property
    def capabilities(self) -> TargetCapabilities: ...

    def mint(self, label: str, value: Secret | None = None) -> Minted:
        """CHANGES. Issue a key under `label`; with `value`, where the target lets us choose it, set that.

        Raises Ambiguous when it may have been issued but the answer was lost.
        """

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """All live keys of this binding, every page read. Unsupported where the target can't list."""

    def revoke(self, key_id: str) -> None:
        """CHANGES. Kill one key. A key already gone is success."""

    def probe(self, key: Secret, probe: Probe) -> ProbeResult:
        """One test call with `key`. Transient when the side is down; RateLimited when told to wait."""


# --- identity provider -------------------------------------------------------------------------------------------------


class ConnectionStatus(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"
    UNKNOWN = "unknown"  # this app's connection can't be read or set by API


@dataclass(frozen=True, slots=True)
class IdpConnection:
    """The IdP's side as it reports it; never the key."""

    status: ConnectionStatus
    scheme: str | None = None  # "TOKEN", "OAUTH2"
    base_url: str | None = None
    at: datetime | None = None  # the IdP's own clock when it answered


class EventKind(StrEnum):
    KEY_BAD = "key_bad"  # the IdP could not sign in at the target
    CHANGED = "changed"  # somebody changed the app's settings
    PROVED = "proved"  # a real provisioning operation succeeded
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class IdpEvent:
    kind: EventKind
    at: datetime  # the IdP's clock
    id: str
    text: str  # event type and reason, cut to 200 characters


@dataclass(frozen=True, slots=True)
class HandOff:
    """What a person needs for a hand-off; no key material."""

    where: str  # deep link into the admin console
    field: str  # name of the field
    form: str  # how the key must be written there
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdpCapabilities:
    push: By = By.API
    reads_connection: bool = True
    features: bool = True
    log: bool = True  # may still turn out unreadable: `events` then raises Denied


class IdentityProvider(Protocol):
    """The system that stores and uses the key. One instance serves one connection (app)."""

    @property
    def capabilities(self) -> IdpCapabilities: ...

    def read(self) -> IdpConnection:
        """The connection as it is now. Unsupported when the IdP answers UNKNOWN for an app we push by API."""

    def features(self) -> Mapping[str, str]:
        """The app's provisioning features, flattened to dotted path -> value, for a comparison before and after."""

    def push(self, key: Secret) -> IdpConnection:
        """CHANGES. Give the IdP this key and switch the connection on.

        Refused: the IdP tested the key and it failed. Ambiguous: sent, outcome unknown.
        Transient, RateLimited, Denied, NotFound: not taken, nothing changed.
        """

    def events(self, since: datetime) -> tuple[IdpEvent, ...]:
        """Log events about this app since then (IdP's clock), oldest first. Denied when the log can't be read."""

    def hand_off(self) -> HandOff:
        """What to tell a person who has to type the key in."""


# --- Vault -------------------------------------------------------------------------------------------------------------


class Slot(StrEnum):
    """The three places of a connection's keys."""

    CURRENT = "keys"
    STAGED = "staged"
    HANDOFF = "handoff"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it lies in Vault. `version` is 0 before it is written; `key` is None in a void version."""

    key: Secret | None
    ref_fingerprint: str | None = None
    key_id: str | None = None
    rotation_id: str | None = None
    label: str | None = None
    minted_at: datetime | None = None
    expires_at: datetime | None = None
    version: int = 0


class KeyStore(Protocol):
    """Key material. Instances serve all connections."""

    def read(self, connection: str, slot: Slot, version: int | None = None) -> StoredKey | None:
        """The given or newest version; None when absent, deleted or destroyed. Fresh with respect to our own writes."""

    def write(self, connection: str, slot: Slot, key: StoredKey, cas: int) -> int:
        """CHANGES. Check-and-set write; the new version. Conflict when `cas` is not the newest version.

        A write whose answer is lost is settled by reading back an attempt id; Ambiguous when even that fails.
        """

    def newest(self, connection: str, slot: Slot) -> int:
        """The newest version's number, also when it was destroyed; 0 when nothing was ever written."""

    def destroy(self, connection: str, slot: Slot, versions: tuple[int, ...]) -> None:
        """CHANGES. Destroy these versions for good; metadata stays, so that version numbers go on."""

    def check(self, connection: str) -> None:
        """Misconfigured when `keys/` keeps fewer than 4 versions or deletes them by itself."""

    def where(self, connection: str, slot: Slot) -> str:
        """The path for a person: `mount/prefix/slot/connection`."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """An instance's sign of life. `beat` changes with every write; others judge by seeing it change."""

    instance: str
    beat: int
    lease: float  # seconds
    open: tuple[str, ...] = ()  # connections whose rotation it holds
    stopped: bool = False  # drained and gone: take over at once
    version: int = 0


class StateStore(Protocol):
    """State records and heartbeats, every write a check-and-set (I4)."""

    def load(self, connection: str) -> tuple[Record, int] | None:
        """The record and its version; None when there is none. Misconfigured when it can't be understood."""

    def save(self, record: Record, version: int) -> int:
        """CHANGES. Write against `version` (0: must not exist); the new version. Conflict when somebody else wrote.

        A write whose answer is lost is settled by reading back; Ambiguous when even that fails.
        """

    def names(self) -> tuple[str, ...]:
        """Connections that have a record."""

    def beat(self, heartbeat: Heartbeat) -> int:
        """CHANGES. Write this instance's heartbeat; the new version."""

    def beats(self) -> tuple[Heartbeat, ...]:
        """The heartbeats of all instances."""

    def skew(self) -> float | None:
        """Seconds by which Vault's clock was ahead of ours at its last answer; None before the first."""


# --- time and telling --------------------------------------------------------------------------------------------------


class Clock(Protocol):
    def now(self) -> datetime:
        """Aware, UTC."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    def wait(self, seconds: float) -> bool:
        """Wait, or less when the program stops. True when it stops."""


class Fence(Protocol):
    """Who lives. A lease is an instance's; it is judged by what we saw change, never by another host's clock."""

    def left(self) -> float:
        """Seconds of our own lease left; outside calls must end within it."""

    def lapsed(self, holder: str) -> bool:
        """Whether this other instance showed no sign of life for a whole lease, or said that it stopped."""


class EventType(StrEnum):
    CLAIMED = "claimed"  # a rotation began
    TAKEN_OVER = "taken_over"  # another instance's rotation goes on here
    PHASE_DONE = "phase_done"
    PHASE_WAITS = "phase_waits"
    PHASE_FAILED = "phase_failed"  # an edge towards rollback, or a new try
    HELD = "held"  # an alarm; the rotation waits for a person or for things to heal
    REMINDER = "reminder"  # a person is still awaited
    DEFERRED = "deferred"  # due, or asked for, but not started
    ENDED = "ended"
    DEBT_PAID = "debt_paid"
    ADOPTED = "adopted"
    VERIFIED = "verified"
    LEASE_LOST = "lease_lost"


@dataclass(frozen=True, slots=True)
class RotationEvent:
    """What happened, for logs, metrics and the ledger. No key material (I5)."""

    type: EventType
    at: datetime
    connection: str
    record: Record | None = None
    rotation_id: str = ""
    target: str = ""
    idp: str = ""
    phase: str = ""
    seconds: float | None = None
    outcome: str = ""
    trigger: str = ""
    reason: Reason | None = None
    text: str = ""  # what was being done, what is true now, what happens next, what a person can do
    fields: Mapping[str, str] = field(default_factory=dict)


class Observer(Protocol):
    def on(self, event: RotationEvent) -> None:
        """Never raises; slow work is the observer's own problem."""


class Meter(Protocol):
    """Where adapters report their calls; never raises."""

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        """One request on the wire. `system` is "vault", "okta:<idp>" or "target:<name>"; `operation` is a fixed word
        such as "push"; `result` is "ok" or the error's class in snake_case ("rate_limited", "ambiguous" …).
        """

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        """What the IdP's headers said is left in a bucket."""
