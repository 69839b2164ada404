"""The state record and what is in it: frozen, without key material (I5), and all that is durable.

One record per connection lies in Vault and is the only truth about a rotation. `machine.py` reads it to say what to do
next. Times are aware datetimes in UTC; durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from rotator.core.reasons import Reason

SCHEMA = 1


class Phase(StrEnum):
    """What a rotation is doing, or is waiting to do."""

    PREFLIGHT = "preflight"  # look at both sides and at Vault; change nothing
    MAKE_ROOM = "make_room"  # free a slot of ours at a target that caps live keys
    MINT = "mint"  # the target issues the candidate
    AWAIT_KEY = "await_key"  # a person leaves the candidate in the hand-off path
    STAGE = "stage"  # the candidate goes into Vault's staged path
    PROVE = "prove"  # the target accepts the candidate and refuses a corrupted one
    PUSH = "push"  # the IdP gets the candidate
    AWAIT_PUSH = "await_push"  # a person types the candidate into the IdP
    CONFIRM = "confirm"  # the IdP says enabled and complains of nothing
    PROMOTE = "promote"  # the candidate becomes current in Vault
    OVERLAP = "overlap"  # both keys live; watch
    RETIRE = "retire"  # the old key is revoked and proved dead
    RESTORE = "restore"  # the previous key goes back to the IdP
    AWAIT_RESTORE = "await_restore"  # a person types the previous key back
    DISCARD = "discard"  # the candidate is revoked and its staged versions destroyed


class Outcome(StrEnum):
    """How a rotation ends (I6)."""

    ROTATED = "rotated"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"  # nothing in use had been changed
    STUCK = "stuck"  # needs a person; keys stay alive and in Vault


class Trigger(StrEnum):
    SCHEDULE = "schedule"
    CLI = "cli"
    SIGNAL = "signal"
    HTTP = "http"


class By(StrEnum):
    """Who does a step that the API may not offer."""

    API = "api"
    PERSON = "person"


class StrategyName(StrEnum):
    OVERLAP = "overlap"  # many live keys
    MAKE_ROOM = "make_room"  # two live keys: free a slot first
    REPLACE = "replace"  # one live key: the mint kills the old one
    REPLACE_SUPPLIED = "replace_supplied"  # one live key whose value we supply


class Ask(StrEnum):
    """What a person asked of an open rotation."""

    ROLLBACK = "rollback"
    CANCEL = "cancel"
    RESUME = "resume"
    CONFIRM = "confirm"  # "I have typed it in": evidence asserted by a person


class DebtKind(StrEnum):
    """Keys that should be dead and aren't proved so."""

    REVOKE = "revoke"  # ours, by id or label; the sweep revokes it
    PERSON = "person"  # only a person can revoke it; the sweep notices its death
    SUSPECTED = "suspected"  # appeared after a mint without labels; never revoked by us (I3)


@dataclass(frozen=True, slots=True)
class KeyRef:
    """A key without its value. `version` is where its value lies in Vault's `keys/` (current, previous) path."""

    fingerprint: str | None = None
    key_id: str | None = None  # the target's id; None where it has none or we were not told
    label: str | None = None
    version: int | None = None
    minted_at: datetime | None = None
    expires_at: datetime | None = None
    ours: bool = False  # minted by us, or adopted with a key id that a person gave (I3)


@dataclass(frozen=True, slots=True)
class Debt:
    """A key that should be dead and isn't proved so; stays in the record over rotations until it is."""

    kind: DebtKind
    key: KeyRef
    since: datetime
    reason: Reason
    target: str = ""  # at which its key lives; a connection may get another one; empty: not known
    staged_version: int | None = None  # where its value still lies, when it was never current
    attempts: int = 0
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often, in seconds. Copied into a rotation at its claim, so that it ends by the rules it began by."""

    settle: float = 120.0  # a fresh key may be refused for so long: some targets take minutes to spread it
    successes: int = 3  # consecutive accepted probes before push and before revoke
    success_window: float = 15.0  # over which they are spread
    overlap: float = 3600.0
    watch_every: float = 60.0  # while overlapping
    outage: float = 3600.0  # how long a phase that changed nothing waits for a side that is down
    restore: float = 3600.0  # how long a restore is tried before `stuck`
    discard: float = 3600.0  # how long a discard is tried before it becomes a debt
    retire: float = 86400.0  # how long a revoke is tried before it becomes a debt
    pushes: int = 3  # ambiguous pushes before the previous key is restored
    mints: int = 3
    person: float = 7 * 86400.0  # deadline of a hand-off
    remind_every: float = 86400.0
    backoff: float = 5.0  # first wait; doubles
    backoff_cap: float = 300.0
    enable_disabled: bool = False  # push to a connection that an admin switched off
    write_probe: bool = False  # prove the candidate's write rights with a canary user too


@dataclass(frozen=True, slots=True)
class Binding:
    """Which connection a rotation was claimed for. Changed under an open rotation: hold, then stuck."""

    idp: str
    app_id: str
    base_url: str
    target: str
    strategy: StrategyName
    mint_by: By
    push_by: By


@dataclass(frozen=True, slots=True)
class PhaseTime:
    phase: Phase
    seconds: float


@dataclass(frozen=True, slots=True)
class Rotation:
    """One open (or stuck) rotation. Its phase is an *intent*: the effect may have happened if we died."""

    id: str
    installation: str  # prefix of our labels
    sequence: int
    trigger: Trigger
    note: str  # the --reason given by a person
    why: Reason  # why it was due
    binding: Binding
    limits: Limits
    started_at: datetime
    phase: Phase
    phase_since: datetime
    attempts: int = 0  # unsuccessful tries of this phase's effect
    unclear: bool = False  # the last try of this phase's effect may have been applied
    not_before: datetime | None = None  # wait until then
    waiting: Reason | None = None
    detail: str = ""  # the sentence beside `waiting`; no key material
    reminded_at: datetime | None = None
    labels: tuple[str, ...] = ()  # every label a mint was intended under; recorded before the call (I2)
    known_ids: tuple[str, ...] | None = None  # ids listed before the mint, at targets without labels
    candidate: KeyRef | None = None
    staged_cas: int = 0  # version of the void written before the mint; a zombie's staged write conflicts
    staged_version: int | None = None
    handoff_version: int | None = None  # the person's version, destroyed once staged
    features: str | None = None  # digest of the app's features before the push
    pushed_at: datetime | None = None  # IdP's clock, when the last accepted push was answered
    push_started_at: datetime | None = None  # our clock, just before the first push attempt
    pushed_epoch: int = 0  # in which the IdP last took the candidate
    pushed_again: bool = False  # just before retire, where nothing else would tell
    unclear_pushes: int = 0  # pushes whose outcome is unknown
    last_probe_at: datetime | None = None  # our last probe with the candidate, to tell its last use from the IdP's
    asserted: bool = False  # only a person's word says that the IdP holds the candidate
    promoted: bool = False
    repair: bool = False  # the previous key is dead or unknown: no restore is possible
    failure: Reason | None = None  # what began the way back
    failure_detail: str = ""
    asked: Ask | None = None
    asked_by: str = ""
    stuck: Reason | None = None
    missing_proofs: tuple[str, ...] = ()  # proof sources that our credentials don't allow
    evidence: tuple[str, ...] = ()  # what proved the steps, and what a person asserted
    times: tuple[PhaseTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The last rotation's end, kept in the record."""

    id: str
    sequence: int
    trigger: Trigger
    strategy: StrategyName
    outcome: Outcome
    reason: Reason
    detail: str
    started_at: datetime
    ended_at: datetime
    times: tuple[PhaseTime, ...] = ()
    evidence: tuple[str, ...] = ()
    missing_proofs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of the ledger; `hash` covers all other fields, `prev` is the hash of the entry before."""

    connection: str
    number: int  # 1, 2, 3 … per connection
    at: datetime
    event: str
    rotation: str
    by: str  # instance, or who asked
    data: tuple[tuple[str, str], ...]
    prev: str
    hash: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that is durable about one connection."""

    connection: str
    schema: int = SCHEMA
    sequence: int = 0  # of the last claimed rotation
    epoch: int = 0  # raised at every change of holder
    holder: str | None = None
    current: KeyRef | None = None
    previous: KeyRef | None = None
    rotation: Rotation | None = None
    last: Ended | None = None
    last_rotated_at: datetime | None = None
    failures: int = 0  # ended rotations that failed, in a row
    config: str = (
        ""  # digest of the configuration that the last rotation was claimed under; a change clears the backoff
    )
    live_keys: int | None = None  # at the target, as last listed and changed by us
    drift_since: datetime | None = None
    debts: tuple[Debt, ...] = ()
    proved_target_at: datetime | None = None
    proved_idp_at: datetime | None = None
    known_fingerprints: tuple[str, ...] = ()  # of the last keys; a hand-off of one of them is refused
    ledger_number: int = 0
    ledger_hash: str = ""
    ledger_pending: tuple[LedgerEntry, ...] = field(default=())
