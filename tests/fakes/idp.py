"""An identity provider in memory that behaves: it holds one key, tests it upon push, and writes a log.

Used by the engine's tests; the contract suite holds it to what the real adapter does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from rotator import errors
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import (
    Clock,
    ConnectionStatus,
    EventKind,
    HandOff,
    IdpCapabilities,
    IdpConnection,
    IdpEvent,
)

SYSTEM = "idp:fake"
FEATURES = {
    "USER_PROVISIONING.status": "ENABLED",
    "USER_PROVISIONING.capabilities.create.lifecycleCreate.status": "ENABLED",
    "USER_PROVISIONING.capabilities.update.profile.status": "ENABLED",
}


@dataclass
class FakeIdp:
    """`accepts` is the target's word on a key; the fake asks it whenever Okta would call the target."""

    clock: Clock
    accepts: Callable[[Secret], bool]
    key: Secret | None = None  # the one slot
    enabled: bool = True
    push_by: By = By.API
    failed_push_keeps_old: bool = False  # Okta documents neither; the default is the less pleasant world
    log_readable: bool = True
    base_url: str | None = None
    settings: dict[str, str] = field(default_factory=lambda: dict(FEATURES))
    log: list[IdpEvent] = field(default_factory=list)
    pushes: list[str] = field(default_factory=list)  # fingerprints, in order, refused ones too
    calls: list[str] = field(default_factory=list)  # names of the methods called, in order
    before: list[errors.PortError] = field(default_factory=list)  # raised by the next calls, which do nothing
    after_push: list[errors.PortError] = field(default_factory=list)  # raised by the next pushes once they are done

    @property
    def capabilities(self) -> IdpCapabilities:
        by_api = self.push_by is By.API
        return IdpCapabilities(push=self.push_by, reads_connection=by_api, features=by_api, log=True)

    def read(self) -> IdpConnection:
        self._called("read", "reading the provisioning connection", by_api_only=True)
        return self._connection()

    def features(self) -> Mapping[str, str]:
        self._called("features", "reading the provisioning features", by_api_only=True)
        return dict(sorted(self.settings.items())) if self.enabled else {"": "not enabled"}

    def push(self, key: Secret) -> IdpConnection:
        self._called("push", "giving the IdP the key", by_api_only=True)
        self.pushes.append(key.fingerprint)
        if not self.accepts(key):
            if not self.failed_push_keeps_old:
                self.key, self.enabled = key, False
            self._write(EventKind.KEY_BAD, "application.configuration.update FAILURE")
            raise errors.Refused("giving the IdP the key", system=SYSTEM, detail="tested and failed")
        self.key, self.enabled = key, True
        self._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")
        if self.after_push:
            raise self.after_push.pop(0)
        return self._connection()

    def events(self, since: datetime) -> tuple[IdpEvent, ...]:
        self._called("events", "reading the log", by_api_only=False)
        if not self.log_readable:
            raise errors.Denied("reading the log", system=SYSTEM, detail="HTTP 403", fix="Grant okta.logs.read")
        return tuple(event for event in self.log if event.at >= since)

    def hand_off(self) -> HandOff:
        return HandOff(where="https://idp.example/admin/app/1", field="API Token", form="the key alone")

    # --- what people and the IdP itself do ----------------------------------------------------------------------------

    def provision(self) -> bool:
        """The IdP uses the held key, as for a new user; whether the target took it. Nothing happens while disabled."""
        if not self.enabled or self.key is None:
            return False
        if self.accepts(self.key):
            self._write(EventKind.PROVED, "application.provision.user.push SUCCESS")
            return True
        self._write(EventKind.KEY_BAD, "application.integration.authentication_failure FAILURE")
        return False

    def person_types(self, key: Secret) -> bool:
        """An admin types a key into the console and saves it; whether it passed the test."""
        self.key, self.enabled = key, self.accepts(key)
        if not self.enabled:
            self._write(EventKind.KEY_BAD, "application.configuration.update FAILURE")
        self._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")
        return self.enabled

    def admin_disables(self) -> None:
        self.enabled = False
        self._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")

    def admin_changes_features(self, path: str = "USER_PROVISIONING.status", value: str = "DISABLED") -> None:
        self.settings[path] = value
        self._write(EventKind.CHANGED, "application.lifecycle.update SUCCESS")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _called(self, name: str, doing: str, *, by_api_only: bool) -> None:
        self.calls.append(name)
        if by_api_only and self.push_by is By.PERSON:
            raise errors.Unsupported(doing, system=SYSTEM, detail="a person does it")
        if self.before:
            raise self.before.pop(0)

    def _connection(self) -> IdpConnection:
        status = ConnectionStatus.ENABLED if self.enabled else ConnectionStatus.DISABLED
        return IdpConnection(status=status, scheme="TOKEN", base_url=self.base_url, at=self.clock.now())

    def _write(self, kind: EventKind, text: str) -> None:
        self.log.append(IdpEvent(kind=kind, at=self.clock.now(), id=f"event-{len(self.log) + 1}", text=text))
