"""A target in memory that behaves: keys that live, settle, die, and are refused. The contract suite holds it to HttpTarget.

Switches are plain attributes; nothing here crashes or loses answers: a test's world wraps that around the port.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from rotator import errors
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import Answer, KeyInfo, LiveKeys, Minted, Probe, ProbeResult, TargetCapabilities

_CAPS = {LiveKeys.MANY: None, LiveKeys.TWO: 2, LiveKeys.ONE: 1}


@dataclass(slots=True)
class FakeKey:
    """One key ever issued."""

    value: str
    id: str
    label: str | None
    created: datetime
    usable_from: datetime
    expires: datetime | None
    dies: datetime | None = None  # revoked: when it stops working
    last_used: datetime | None = None


class FakeTarget:
    """A `ports.Target`. `now` is the world's clock; durations in seconds."""

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        live_keys: LiveKeys = LiveKeys.MANY,
        mint: By = By.API,
        supplies: bool = False,  # with ONE: the caller sets the value; else ONE rolls
        lists: bool = True,
        labels: bool = True,
        revoke: bool = True,
        last_used: bool = False,
        last_used_throttle: float = 60.0,
        ttl: float | None = None,
        min_settle: float = 0.0,
    ) -> None:
        self._now = now
        self._lock = threading.RLock()
        self._capabilities = TargetCapabilities(
            live_keys=live_keys,
            mint=mint,
            revoke=revoke,
            lists=lists,
            labels=labels and lists,
            last_used=last_used and lists,
            last_used_throttle=last_used_throttle,
            supplies=supplies,
            min_settle=min_settle,
        )
        self.ttl = ttl
        self.settle = 0.0  # a fresh key is refused for so long
        self.linger = 0.0  # a revoked key is accepted for so long
        self.paused = False  # good keys get STATE (HCP Terraform's paused SCIM)
        self.down = False  # every call is Transient
        self.open = False  # every key is accepted: what the negative control is there for
        self.denied = False  # our own credential was refused
        self.groups = True
        self.keys: list[FakeKey] = []
        self.calls: list[str] = []  # "mint", "list_keys", "revoke", "probe_users" …

    # --- the truth ---

    def live(self) -> tuple[KeyInfo, ...]:
        """Keys neither revoked nor expired, oldest first; a lingering one is not among them."""
        with self._lock:
            return tuple(self._info(key) for key in self.keys if key.dies is None and not self._expired(key))

    def accepts(self, value: str) -> bool:
        """Whether a call with this key is let through now."""
        with self._lock:
            return any(self._alive(key) for key in self.keys if key.value == value)

    def id_of(self, value: str) -> str | None:
        return next((key.id for key in self.keys if key.value == value), None)

    # --- people, and the IdP ---

    def seed(self, label: str | None = None) -> Minted:
        """A key that has been there for long, or that a person issues in the console: no cap, no settling."""
        with self._lock:
            key = self._issue(label, None, settle=0.0)
            return Minted(Secret(key.value), key.id, key.expires)

    def kill(self, value: str) -> None:
        """A person revokes this key in the console; it dies at once."""
        with self._lock:
            for key in self.keys:
                if key.value == value and key.dies is None:
                    key.dies = self._now()

    def use(self, value: str) -> bool:
        """Provisioning traffic with this key; True when it was let through."""
        with self._lock:
            return not self.down and not self.paused and self._judge(value)

    # --- ports.Target ---

    @property
    def capabilities(self) -> TargetCapabilities:
        return self._capabilities

    def mint(self, label: str, value: Secret | None = None) -> Minted:
        with self._lock:
            self._called("mint", "issuing a key")
            if self.capabilities.mint is By.PERSON or self.capabilities.supplies != (value is not None):
                raise errors.Unsupported("issuing a key", system="target:fake")
            live = [key for key in self.keys if key.dies is None and not self._expired(key)]
            cap = _CAPS[self.capabilities.live_keys]
            if cap is not None and cap > 1 and len(live) >= cap:
                raise errors.Conflict("issuing a key", system="target:fake", detail=f"{cap} keys live already")
            if self.capabilities.labels and cap != 1 and any(key.label == label for key in live):
                raise errors.Conflict("issuing a key", system="target:fake", detail="the name is taken")
            key = self._issue(label, None if value is None else value.reveal(), settle=self.settle)
            return Minted(Secret(key.value), key.id if cap != 1 else None, key.expires)

    def list_keys(self) -> tuple[KeyInfo, ...]:
        with self._lock:
            self._called("list_keys", "listing keys")
            if not self.capabilities.lists:
                raise errors.Unsupported("listing keys", system="target:fake")
            return self.live()

    def revoke(self, key_id: str) -> None:
        with self._lock:
            self._called("revoke", "revoking a key")
            if not self.capabilities.revoke:
                raise errors.Unsupported("revoking a key", system="target:fake")
            for key in self.keys:
                if key.id == key_id and key.dies is None:
                    key.dies = self._now() + timedelta(seconds=self.linger)

    def probe(self, key: Secret, probe: Probe) -> ProbeResult:
        with self._lock:
            self.calls.append(f"probe_{probe.value}")
            if self.down:
                raise errors.Transient("proving a key", system="target:fake", detail="HTTP 503")
            if not self.open and not self._judge(key.reveal()):
                return ProbeResult(Answer.REFUSED, "HTTP 401", 401)
            if self.paused:
                return ProbeResult(Answer.STATE, "HTTP 403", 403)
            if probe is Probe.GROUPS and not self.groups:
                return ProbeResult(Answer.ACCEPTED, "the target has no groups (HTTP 404)", 404)
            return ProbeResult(Answer.ACCEPTED, "HTTP 200", 200)

    # --- inside ---

    def _called(self, operation: str, doing: str) -> None:
        self.calls.append(operation)
        if self.down:
            raise errors.Transient(doing, system="target:fake", detail="HTTP 503")
        if self.denied:
            raise errors.Denied(doing, system="target:fake", detail="HTTP 403")

    def _issue(self, label: str | None, value: str | None, *, settle: float) -> FakeKey:
        now = self._now()
        number = len(self.keys) + 1
        if self.capabilities.live_keys is LiveKeys.ONE:
            for key in self.keys:
                key.dies = min(key.dies or now, now)
        key = FakeKey(
            value=value or "fk_" + hashlib.sha256(f"key {number}".encode()).hexdigest()[:40],
            id=f"k{number}",
            label=label if self.capabilities.labels else None,
            created=now,
            usable_from=now + timedelta(seconds=settle),
            expires=None if self.ttl is None else now + timedelta(seconds=self.ttl),
        )
        self.keys.append(key)
        return key

    def _judge(self, value: str) -> bool:
        for key in self.keys:
            if key.value == value and self._alive(key):
                throttle = timedelta(seconds=self.capabilities.last_used_throttle)
                if key.last_used is None or self._now() - key.last_used >= throttle:
                    key.last_used = self._now()
                return True
        return False

    def _alive(self, key: FakeKey) -> bool:
        return (
            key.usable_from <= self._now() and (key.dies is None or self._now() < key.dies) and not self._expired(key)
        )

    def _expired(self, key: FakeKey) -> bool:
        return key.expires is not None and key.expires <= self._now()

    def _info(self, key: FakeKey) -> KeyInfo:
        used = key.last_used if self.capabilities.last_used else None
        return KeyInfo(key.id, key.label, key.created, used, key.expires)
