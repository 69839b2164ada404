"""What the sandbox Okta knows: its apps, its own clock and ids, and the switches for what Okta leaves undocumented.

A key lies in `App.key` and nowhere else; it is kept out of every repr.
"""

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

# Limits per minute of the buckets (names in `okta_limits.bucket_of`): wide, so that only tests about limits meet them.
WIDE_LIMITS: Mapping[str, int] = {"apps": 6000, "app": 6000, "groups": 6000, "logs": 6000, "token": 6000, "api": 6000}


class Kind(StrEnum):
    """How the connections API covers an app (Okta docs: app-provisioning-connection)."""

    TOKEN = "token"
    TOKEN_OR_TWO_LEGGED = "token or two-legged OAuth 2.0"
    THREE_LEGGED = "three-legged OAuth 2.0"
    UNSUPPORTED = "unsupported"


_KINDS: Mapping[str, Kind] = {
    "zscalerbyz": Kind.TOKEN,
    "okta_org2org": Kind.TOKEN_OR_TWO_LEGGED,
    "google": Kind.THREE_LEGGED,
    "office365": Kind.THREE_LEGGED,
    "slack": Kind.THREE_LEGGED,
    "zoomus": Kind.THREE_LEGGED,
}


def kind_of(name: str) -> Kind:
    """The kind of an app by its catalog name; every app that Okta's guide does not list is unsupported."""
    return _KINDS.get(name, Kind.UNSUPPORTED)


@dataclass(slots=True)
class Switches:
    """One per thing that Okta documents nowhere; the defaults are the less pleasant or the likelier world."""

    failed_post_keeps_old: bool = False  # a refused POST?activate leaves the old key in place
    failed_post_keeps_enabled: bool = False  # … and the connection ENABLED
    plain_post_keeps_enabled: bool = False  # POST without activate leaves an ENABLED connection ENABLED
    plain_post_verifies: bool = False  # POST without activate tests the credential too
    unsupported_post_refused: bool = False  # a TOKEN for an app without an API-managed connection: 400, not UNKNOWN
    cause_in_summary: bool = False  # the 400's cause stands in errorSummary instead of errorCauses
    app_shows_token: bool = False  # GET of the app gives settings.app.token away
    disabled_queues: bool = False  # pushes due while DISABLED wait for it to be ENABLED, instead of being lost
    jwks_bare: bool = False  # the connection's key set comes bare instead of wrapped in "jwks"
    jwks_public: bool = False  # … and without asking for a credential
    log_delay_seconds: float = 0.0  # between an event's `published` and the moment it can be read
    rate_limits: dict[str, int] = field(default_factory=lambda: dict(WIDE_LIMITS))  # calls per window, by bucket
    rate_window_seconds: float = 60.0
    concurrency_limit: int = 75  # calls in flight in the whole org
    read_seconds: float = 0.0  # how long a GET takes; recorded on a real org: 1.1 s
    write_seconds: float = 0.0  # how long anything else takes; recorded: POST 2.8 s, activate 3.2 s
    clock_ahead_seconds: float = 0.0  # the org's clock against this machine's


@dataclass(slots=True)
class App:
    """One app instance with its only provisioning connection, `default`."""

    id: str
    name: str
    label: str
    kind: Kind
    base_url: str
    verify_url: str | None  # SCIM base that Okta calls; None: nothing to call, any credential passes
    header: str  # value of the Authorization header, e.g. "Bearer {key}"
    created: datetime
    key: str | None = field(default=None, repr=False)
    enabled: bool = False
    auth_scheme: str = "TOKEN"
    client_id: str | None = None
    rotation_mode: str = "MANUAL"
    consent_state: str | None = field(default=None, repr=False)
    consent_code: str | None = field(default=None, repr=False)
    consented: bool = False
    configured_base_url: str = ""
    features: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def scim_base(self) -> str | None:
        """Where Okta calls the target: the configured place, or a base URL that was pushed since."""
        return self.verify_url if self.base_url == self.configured_base_url else self.base_url


class State:
    """The org's memory. Hold `lock` for changes that must be seen whole; never during an outgoing call."""

    def __init__(self, seed: int | None) -> None:
        self.lock = threading.RLock()
        self.switches = Switches()
        self.apps: dict[str, App] = {}
        self._random = random.Random(seed)

    def now(self) -> datetime:
        """The org's clock, UTC."""
        return datetime.now(UTC) + timedelta(seconds=self.switches.clock_ahead_seconds)

    def epoch(self) -> float:
        """The org's clock as Unix seconds."""
        return time.time() + self.switches.clock_ahead_seconds

    def new_id(self, prefix: str) -> str:
        """An Okta-like id: three letters for the kind, 20 characters in all. No credential."""
        with self.lock:
            return prefix + "".join(self._random.choices("abcdefghijkmnpqrstuvwxyz0123456789", k=20 - len(prefix)))


def stamp(moment: datetime) -> str:
    """As Okta writes times: UTC, milliseconds, Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
