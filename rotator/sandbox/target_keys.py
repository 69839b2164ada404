"""The keys of a sandbox target: what it issued, which it accepts, and how it misbehaves while doing so.

Values are kept as digests, as a real issuer keeps them: a key can be shown only in the answer that mints it.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

Outage = Literal["refused", "reset", "503", "hang"]
NEVER = math.inf


@dataclass(slots=True)
class Behaviour:
    """Switches, each a thing that some real target does. Set them at any time; the defaults behave well."""

    # A fresh key
    settle_seconds: float = 0.0  # refused for so long after the mint (Grafana Cloud: up to 10 minutes)
    first_answers: tuple[bool, ...] = ()  # its first SCIM calls: accepted or refused, as when nodes disagree
    mint_dead: bool = False  # minted keys are never accepted
    mint_read_only: bool = False  # minted keys can read but not write: bad only in real use
    mint_only_for: str = ""  # minted keys are let in only from this User-Agent: an allow-list without the IdP on it
    # Judging a key
    header: str = "Bearer {key}"
    refused_status: int = 401  # authentik and others answer 403 for a bad key
    # SCIM
    scim_paused: bool = False  # discovery 200, Users and Groups 403 (HCP Terraform)
    login_page: bool = False  # 200 with HTML for everything, as a proxy's sign-in page
    open_discovery: bool = False  # ServiceProviderConfig answers without a key (RFC 7643 §5 recommends it)
    last_used_throttle: float = 0.0  # seconds between two updates of last use (HCP Terraform: 60)
    # Admin API
    admin_denied: bool = False  # the admin token is good but lacks the right
    revoke_delay: float = 0.0  # seconds that a revoked key still works; NEVER: it never dies
    revoke_status: int | None = None  # revoking fails with this status and changes nothing
    list_omits: set[str] = field(default_factory=set)  # key ids that the list leaves out
    rename: Callable[[str], str] | None = None  # how the target changes a label when it stores it
    # Everything
    outage: Outage | None = None
    retry_after: int | None = None  # every call answers 429 with this Retry-After, in seconds
    latency: float = 0.0  # seconds added to every call


@dataclass(slots=True)
class IssuedKey:
    id: str
    label: str
    digest: str
    created: datetime
    expires: datetime | None
    scopes: tuple[str, ...]
    read_only: bool
    only_for: str
    dead: bool
    usable_from: float  # monotonic seconds
    answers: list[bool]  # still to be given to its first calls
    revoked: bool = False  # gone from the list
    dies_at: float = NEVER  # monotonic seconds
    last_used: datetime | None = None


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def fingerprint(value: str) -> str:
    """How a key is named in counters: the first 12 hex digits of its SHA-256."""
    return digest(value)[:12]


class KeyRing:
    """The issued keys. Hold `lock` where a look and a change belong together."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.lock = threading.RLock()
        self._behaviour = behaviour
        self._keys: list[IssuedKey] = []

    def issue(
        self,
        key_id: str,
        value: str,
        *,
        label: str = "",
        expires: datetime | None = None,
        scopes: tuple[str, ...] = (),
        seeded: bool = False,
    ) -> IssuedKey:
        """Record a key. A seeded one is old: the switches for fresh keys don't touch it."""
        behaviour = self._behaviour
        if behaviour.rename is not None and not seeded:
            label = behaviour.rename(label)
        key = IssuedKey(
            id=key_id,
            label=label,
            digest=digest(value),
            created=datetime.now(UTC),
            expires=expires,
            scopes=scopes,
            read_only=behaviour.mint_read_only and not seeded,
            only_for="" if seeded else behaviour.mint_only_for,
            dead=behaviour.mint_dead and not seeded,
            usable_from=0.0 if seeded else time.monotonic() + behaviour.settle_seconds,
            answers=[] if seeded else list(behaviour.first_answers),
        )
        with self.lock:
            self._keys.append(key)
        return key

    def listed(self) -> list[IssuedKey]:
        """What a list shows: neither revoked nor left out by the switch; expired keys are shown."""
        with self.lock:
            return [k for k in self._keys if not k.revoked and k.id not in self._behaviour.list_omits]

    def live(self) -> list[IssuedKey]:
        """Issued, not revoked, not expired."""
        with self.lock:
            return [k for k in self._keys if not k.revoked and not expired(k)]

    def get(self, key_id: str) -> IssuedKey | None:
        with self.lock:
            return next((k for k in self._keys if k.id == key_id and not k.revoked), None)

    def find(self, value: str) -> IssuedKey | None:
        """The newest key with this value, revoked or not."""
        wanted = digest(value)
        with self.lock:
            return next((k for k in reversed(self._keys) if k.digest == wanted), None)

    def revoke(self, key: IssuedKey) -> None:
        with self.lock:
            key.revoked = True
            key.dies_at = time.monotonic() + self._behaviour.revoke_delay

    def accepts(self, value: str) -> bool:
        """Whether a SCIM read with this key is let through now, from state alone; first answers are not used up."""
        key = self.find(value)
        return key is not None and _alive(key)

    def judge(self, value: str) -> IssuedKey | None:
        """The key, when it is accepted for a SCIM call: uses up a first answer and notes the use."""
        with self.lock:
            key = self.find(value)
            if key is None or not _alive(key):
                return None
            if key.answers and not key.answers.pop(0):
                return None
            now = datetime.now(UTC)
            throttle = timedelta(seconds=self._behaviour.last_used_throttle)
            if key.last_used is None or now - key.last_used >= throttle:
                key.last_used = now
            return key


def expired(key: IssuedKey) -> bool:
    return key.expires is not None and key.expires <= datetime.now(UTC)


def _alive(key: IssuedKey) -> bool:
    now = time.monotonic()
    return not key.dead and not expired(key) and key.usable_from <= now < key.dies_at
