"""`[defaults]` and `[[connection]]`: what is rotated, when, and by which limits.

Both share the keys of `Timing`; a connection that sets one overrides the default. The values stand here once, so that
the schema, the example and the program can't disagree about a default.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.fields import Field

from rotator.config_values import (
    Characters,
    Count,
    Cron,
    Duration,
    Flag,
    KeyHeader,
    Moment,
    Name,
    PositiveDuration,
    Text,
    TimeOfDay,
    Url,
    Zone,
    parse_duration,
)


class Table(BaseModel):
    """A table of the file: frozen, unknown keys refused, and its errors never repeat what was written (I5)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def lasting(text: str, description: str) -> float:
    """A field with a duration as its default, shown in the schema as people write it."""
    field: float = Field(default=parse_duration(text), description=description, json_schema_extra={"default": text})
    return field


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class WindowTable(Table):
    """When rotations may start."""

    days: Annotated[tuple[Day, ...], Field(min_length=1)] = Field(
        default=DAYS, description="Days on which the window opens."
    )
    start: TimeOfDay = Field(description='Wall-clock time at which it opens, such as "22:00".')
    duration: PositiveDuration = Field(description="How long it stays open; it may cross midnight.")
    timezone: Zone = Field(default="UTC", description="IANA time zone of `start`.")


class FreezeTable(Table):
    """A period in which nothing starts, is pushed or retired; restoring and discarding go on."""

    start: Moment = Field(alias="from", description="First moment of the freeze.")
    until: Moment = Field(description="First moment after it.")
    reason: Text = Field(description="Shown wherever a rotation is held by it.")
    timezone: Zone = Field(default="UTC", description="IANA time zone of times written without an offset.")

    @property
    def begins(self) -> datetime:
        return self._utc(self.start)

    @property
    def ends(self) -> datetime:
        return self._utc(self.until)

    def _utc(self, moment: datetime) -> datetime:
        local = moment if moment.tzinfo is not None else moment.replace(tzinfo=ZoneInfo(self.timezone))
        return local.astimezone(UTC)


class Timing(Table):
    """Keys that `[defaults]` and every `[[connection]]` share; a connection's own value wins, whole lists included."""

    rotate_every: PositiveDuration | None = Field(
        default=None,
        description="Highest age of a key. Either this or `cron`; setting one replaces an inherited other.",
    )
    cron: Cron | None = Field(default=None, description="Five-field cron expression at which keys are rotated.")
    timezone: Zone = Field(default="UTC", description="IANA time zone of `cron`.")
    expiry_margin: Duration = lasting("3d", "Rotate so long before the key expires, whatever the schedule says.")
    jitter: Duration = lasting(
        "0s",
        "Spread of rotations, always the same for one connection: earlier for `rotate_every` (by a tenth of it at"
        " most), later for `cron`.",
    )
    window: WindowTable | None = Field(default=None, description="Rotations start only inside this window.")
    freeze: tuple[FreezeTable, ...] = Field(default=(), description="Periods without rotations.")
    enabled: Flag = Field(default=True, description="false: never by schedule, still when asked.")
    bootstrap: Flag = Field(
        default=False, description="true: without a known key, begin by rotating. Otherwise a key is adopted first."
    )

    overlap: Duration = lasting("1h", "How long the old key stays alive beside the new one, watched.")
    watch_every: PositiveDuration = lasting("60s", "How often both sides are looked at during the overlap.")
    settle: Duration = lasting(
        "120s",
        "How long a fresh key may still be refused by the target, or the target's `min_settle` if that is longer.",
    )
    successes: Count = Field(
        default=3, description="Accepted proofs in a row before the push and before the old key is revoked."
    )
    success_window: Duration = lasting("15s", "The time over which these proofs are spread.")
    outage: Duration = lasting("1h", "How long a rotation that changed nothing waits for a side that is down.")
    restore_deadline: PositiveDuration = lasting("1h", "How long putting the old key back is tried before `stuck`.")
    discard_deadline: PositiveDuration = lasting(
        "1h", "How long revoking a bad candidate is tried before it is a debt."
    )
    retire_deadline: PositiveDuration = lasting("1d", "How long revoking the old key is tried before it is a debt.")
    pushes: Count = Field(default=3, description="Pushes with an unknown outcome before the old key is put back.")
    mints: Count = Field(default=3, description="Keys minted for one rotation at most.")
    person_deadline: PositiveDuration = lasting("7d", "How long a rotation waits for a person's step.")
    remind_every: PositiveDuration = lasting("1d", "How often the person is reminded.")
    backoff: PositiveDuration = lasting("5s", "First wait after a failed try; it doubles.")
    backoff_cap: PositiveDuration = lasting("5m", "Longest wait between two tries.")

    allow_gap: Flag = Field(
        default=False,
        description="Accept a gap in provisioning at targets where minting kills the old key (live_keys = one).",
    )
    enable_disabled: Flag = Field(
        default=False, description="Also push to a connection that an admin switched off; this switches it on."
    )
    write_probe: Flag = Field(
        default=False,
        description="Also prove a key by creating, changing and deactivating a canary user. May cost a licence.",
    )


class KeyTable(Table):
    """How the key is written where it is used."""

    header: KeyHeader | None = Field(
        default=None,
        description='Value of the Authorization header, such as "Bearer {key}"; else the target\'s `header`.',
    )
    allow: Characters = Field(
        default="", description="Characters that this target's keys hold beyond those of bearer tokens."
    )


class ConnectionTable(Timing):
    """One provisioning connection: an app at an identity provider, and the target that issues its key."""

    name: Name = Field(
        description="Unique; lower case letters, digits, dots, dashes. Part of paths in Vault and labels."
    )
    idp: Text = Field(description="Which [idp.NAME] stores and uses the key.")
    app_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$", strict=True)] = Field(
        description="The app's id at the identity provider, such as Okta's 0oa…"
    )
    app: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$", strict=True)] = Field(
        description='The kind of app, as Okta calls it: "zscalerbyz", "okta_org2org", "scim2testapp" …'
    )
    target: Text = Field(description="Which [target.NAME] issues the key.")
    base_url: Url | None = Field(
        default=None, description="SCIM base URL that the identity provider uses; else the target's `scim_url`."
    )
    key: KeyTable = Field(default_factory=KeyTable, description="How the key is written.")
    push: Literal["api", "person"] | None = Field(
        default=None,
        description='Who gives the key to the identity provider. Left out: "api" where it has a call, else "person".',
    )


TIMING_KEYS: tuple[str, ...] = tuple(Timing.model_fields)
