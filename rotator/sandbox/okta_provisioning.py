"""What Okta does with a connection's credential: tests it, and provisions with it; and what it then logs.

A DISABLED connection provisions nothing. Several event types are written upon failure only, as at Okta.
"""

import ssl
import threading
from collections.abc import Mapping
from typing import Any

from rotator.sandbox.okta_apps import Apps
from rotator.sandbox.okta_connections import Credential
from rotator.sandbox.okta_log import SystemLog
from rotator.sandbox.okta_scim import Door, Remote, ScimClient
from rotator.sandbox.okta_state import App, State
from rotator.sandbox.okta_two_legged import TwoLegged

_GROUP_FAILED = "application.provision.group_push.mapping.update.or.delete.failed.with.error"


class Provisioning:
    def __init__(self, state: State, log: SystemLog, apps: Apps, two_legged: TwoLegged, trust: ssl.SSLContext) -> None:
        self._state = state
        self._log = log
        self._apps = apps
        self._two_legged = two_legged
        self._scim = ScimClient(trust)
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def verify(self, app: App, credential: Credential) -> Remote:
        """Whether the target lets this credential in, by a real call; it proves no right to write."""
        if credential.auth_scheme == "OAUTH2":
            return self._two_legged.test(app, credential.client_id or "")
        base = credential.base_url if credential.base_url not in (None, app.base_url) else app.scim_base
        if base is None or credential.key is None:
            return Remote(200 if base is None else 0, "verify", "Invalid URL. Not authorized.")
        return self._scim.test(Door(base, app.header.format(key=credential.key)))

    def push_user(self, app: App, user: Mapping[str, Any] | str) -> int:
        """The target's HTTP status; 0 when nothing was sent or answered."""
        content = _user(user)
        door = self._door(app)
        if door is None:
            if self._state.switches.disabled_queues:
                with self._lock:
                    self._waiting.setdefault(app.id, []).append(content)
            return 0
        remote = self._scim.push_user(door, content)
        name = str(content["userName"])
        who = {"id": f"00u-{name}", "type": "User", "alternateId": name, "displayName": name}
        self._trouble(app, remote)
        known = remote.operation == "push_profile"
        event = "application.provision.user.push_profile" if known else "application.provision.user.push"
        self._outcome(event, app, remote, who)
        return remote.status

    def push_group(self, app: App, mapping_id: str) -> int:
        """The target's HTTP status; 0 when nothing was sent or answered. A failure puts the mapping into ERROR."""
        mapping, door = self._apps.group_pushes[mapping_id], self._door(app)
        if door is None:
            return 0
        remote = self._scim.push_group(door, mapping.name)
        with self._state.lock:
            mapping.last_push = mapping.updated = self._state.now()
            mapping.error = None if remote.ok else f"Failed on group push. {remote.reason}"
            mapping.target_id = remote.object_id or mapping.target_id
        self._trouble(app, remote)
        self._outcome("application.provision.group_push.pushed" if remote.ok else _GROUP_FAILED, app, remote)
        return remote.status

    def enabled(self, app: App) -> None:
        """The connection was switched on: what waited, if anything waits, is pushed now."""
        with self._lock:
            waiting = self._waiting.pop(app.id, [])
        for user in waiting:
            self.push_user(app, user)

    def _door(self, app: App) -> Door | None:
        with self._state.lock:  # key and status belong together
            if not app.enabled or app.key is None or app.scim_base is None:
                return None
            return Door(app.scim_base, app.header.format(key=app.key))

    def _trouble(self, app: App, remote: Remote) -> None:
        if remote.ok:
            return
        event = "application.integration.general_failure"
        if remote.status in (401, 403):
            event = "application.integration.authentication_failure"
        elif remote.status == 429:
            event = "application.integration.rate_limit_exceeded"
        self._log.write(event, "FAILURE", app=app, reason=remote.reason)

    def _outcome(self, event: str, app: App, remote: Remote, *targets: Mapping[str, Any]) -> None:
        if remote.ok:
            self._log.write(event, "SUCCESS", app=app, targets=targets)
        else:
            self._log.write(event, "FAILURE", app=app, targets=targets, reason=remote.reason)


def _user(user: Mapping[str, Any] | str) -> dict[str, Any]:
    base: dict[str, Any] = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "active": True}
    return {**base, **({"userName": user} if isinstance(user, str) else user)}
