"""The sandbox Okta: an org on loopback that behaves as Okta is recorded and documented to behave.

What `rotator demo` and the tests rotate against. It shares no code with the rotator. Its activation really calls the
target, its credentials are random, its log is Okta's System Log, and what Okta documents nowhere is a switch. Keys go
in by POST, and out only to the target; `held_key` is for assertions.
"""

import ssl as ssl_module
from collections.abc import Mapping
from typing import Any, Self

from rotator.sandbox.okta_apps import Apps, GroupPush, new_features
from rotator.sandbox.okta_connections import Connections, Credential
from rotator.sandbox.okta_gate import Gate
from rotator.sandbox.okta_limits import CallRecord, Faults, bucket_of, invalid_token
from rotator.sandbox.okta_log import SystemLog
from rotator.sandbox.okta_scim import Remote, ScimClient
from rotator.sandbox.okta_state import App, Kind, State, Switches, kind_of
from rotator.sandbox.okta_tokens import ApiTokens
from rotator.sandbox.okta_wire import Answer, Call, Caller, Endpoint, error
from rotator.sandbox.server import LoopbackServer, Tls

_ADMIN = Caller(id="00uadmin000000000000", type="User", name="admin@sandbox.example")


class OktaSandbox:
    """One org. `start()`, or use it as a context manager; after `stop()` it can be started again on the same port."""

    def __init__(self, *, seed: int | None = None, ssl: Tls | None = None) -> None:
        """`seed` makes ids repeatable; credentials are random all the same. `ssl` makes it https."""
        self._state = State(seed)
        self._trust = ssl_module.create_default_context(cafile=ssl.cafile) if ssl and ssl.cafile else None
        self.log = SystemLog(self._state)
        self._tokens = ApiTokens(self._state, self.log)
        self._apps = Apps(self._state)
        self._connections = Connections(self._state, self.log, self._verify, self._on_enabled)
        endpoints = [
            *self._tokens.endpoints(),
            *self._connections.endpoints(),
            *self._apps.endpoints(),
            Endpoint("GET", "/api/v1/logs", self.log.handle, ("okta.logs.read",)),
        ]
        self._gate = Gate(self._state, endpoints, self._sign_in)
        self._server = LoopbackServer(self._gate, tls=ssl)
        self.api_token = self._tokens.mint("sandbox")

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def switches(self) -> Switches:
        return self._state.switches

    @property
    def faults(self) -> Faults:
        return self._gate.faults

    @property
    def calls(self) -> list[CallRecord]:
        """Every call so far, in the order they ended."""
        return list(self._gate.calls)

    def calls_in(self, bucket: str) -> int:
        """How many calls counted in a bucket: "apps" (connections, features …), "app", "logs", "groups", "token", "api"."""
        return sum(bucket_of(call.path) == bucket for call in self._gate.calls)

    # --- setting the scene --------------------------------------------------------------------------------------------

    def add_app(
        self,
        name: str,
        *,
        label: str,
        base_url: str,
        verify_url: str | None,
        header: str = "Bearer {key}",
        key: str | None,
        enabled: bool,
    ) -> str:
        """An app instance; the app's id. `name` decides what the API covers, as at Okta.

        `verify_url` is the target's SCIM base, which Okta calls with `header` filled with the key; None: any
        credential passes. `key` and `enabled` are what the connection holds already.
        """
        kind = kind_of(name)
        app = App(
            id=self._state.new_id("0oa"),
            name=name,
            label=label,
            kind=kind,
            base_url=base_url,
            verify_url=verify_url,
            header=header,
            created=self._state.now(),
            key=key,
            enabled=enabled,
            auth_scheme="OAUTH2" if kind is Kind.THREE_LEGGED else "TOKEN",
            configured_base_url=base_url,
            features=new_features(kind, name),
        )
        self._state.apps[app.id] = app
        return app.id

    def add_api_token(self, name: str) -> str:
        """Another SSWS token, as an admin makes one in the Admin Console; there is no API for it."""
        return self._tokens.mint(name)

    def add_group_push(self, app_id: str, name: str) -> str:
        """A group push mapping of the app; its id."""
        now = self._state.now()
        mapping = GroupPush(self._state.new_id("gPm"), app_id, self._state.new_id("00g"), name, now, now)
        self._apps.group_pushes[mapping.id] = mapping
        return mapping.id

    # --- looking inside, for assertions -------------------------------------------------------------------------------

    def held_key(self, app_id: str) -> str | None:
        """The key the connection holds now; Okta itself never gives it."""
        return self._state.apps[app_id].key

    def connection(self, app_id: str) -> dict[str, Any]:
        """The connection as GET would show it."""
        return self._connections.view(self._state.apps[app_id], self.url)

    def enabled(self, app_id: str) -> bool:
        """Whether Okta provisions to the app; of apps that the API doesn't cover only the Admin Console shows it."""
        return self._state.apps[app_id].enabled

    # --- what people and Okta itself do -------------------------------------------------------------------------------

    def provision(self, app_id: str, user: Mapping[str, Any] | str) -> int:
        """Okta pushes a user (SCIM attributes, or a userName) with the held key; the target's HTTP status.

        0 when nothing reached the target, or the connection is DISABLED or empty: then nothing is done or logged.
        """
        app = self._state.apps[app_id]
        if not app.enabled or app.key is None:
            return 0
        content = _user(user)
        remote = self._with_target(app, app.key, lambda client: client.push_user(content))
        name = str(content["userName"])
        who = [{"id": f"00u-{name}", "type": "User", "alternateId": name, "displayName": name}]
        self._integration_trouble(app, remote)
        event = (
            "application.provision.user.push_profile"
            if remote.operation == "push_profile"
            else "application.provision.user.push"
        )
        self._log_outcome(event, app, remote, targets=who)
        return remote.status

    def push_group(self, app_id: str, mapping_id: str) -> int:
        """Okta pushes a group with the held key; the target's HTTP status. A failure puts the mapping into ERROR."""
        app, mapping = self._state.apps[app_id], self._apps.group_pushes[mapping_id]
        if not app.enabled or app.key is None:
            return 0
        remote = self._with_target(app, app.key, lambda client: client.push_group(mapping.name))
        mapping.last_push = mapping.updated = self._state.now()
        mapping.error = None if remote.ok else f"Failed on group push. {remote.reason}"
        mapping.target_id = remote.object_id or mapping.target_id
        self._integration_trouble(app, remote)
        failed = "application.provision.group_push.mapping.update.or.delete.failed.with.error"
        self._log_outcome("application.provision.group_push.pushed" if remote.ok else failed, app, remote)
        return remote.status

    def person_types_key(self, app_id: str, key: str) -> bool:
        """An admin types a key into the Admin Console and saves: stored, tested at the target; whether it passed."""
        app = self._state.apps[app_id]
        credential = Credential(key=key)
        before = {"status": "ENABLED" if app.enabled else "DISABLED"}
        tested = self._verify(app, credential)
        with self._state.lock:
            app.key, app.enabled = key, tested.ok
        if not tested.ok:
            reason = "Error while verifying API credentials"
            self.log.write("application.configuration.update", "FAILURE", app=app, reason=reason)
        after = {"status": "ENABLED" if app.enabled else "DISABLED"}
        self.log.write("application.lifecycle.update", "SUCCESS", app=app, caller=_ADMIN, change=(before, after))
        return tested.ok

    def admin_disables(self, app_id: str) -> None:
        """An admin switches provisioning off in the Admin Console."""
        app = self._state.apps[app_id]
        app.enabled = False
        change = ({"status": "ENABLED"}, {"status": "DISABLED"})
        self.log.write("application.lifecycle.update", "SUCCESS", app=app, caller=_ADMIN, change=change)

    def admin_changes_features(self, app_id: str, path: str = "update.profile.status", value: Any = "DISABLED") -> None:
        """An admin changes one setting of USER_PROVISIONING; `path` is dotted, below `capabilities`."""
        app = self._state.apps[app_id]
        *above, last = path.split(".")
        with self._state.lock:
            place = app.features["USER_PROVISIONING"]
            for step in above:
                place = place[step]
            place[last] = value
        self.log.write("application.lifecycle.update", "SUCCESS", app=app, caller=_ADMIN)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _sign_in(self, call: Call, _endpoint: Endpoint) -> Caller | Answer:
        authorization = call.headers.get("authorization", "")
        if not authorization:
            return error(403, "E0000005", "Invalid session")
        if authorization.startswith("SSWS"):  # Okta's own SDK sends no space after it on some operations
            return self._tokens.sign_in(authorization[4:].strip()) or invalid_token()
        return invalid_token()

    def _verify(self, app: App, credential: Credential) -> Remote:
        base = credential.base_url if credential.base_url not in (None, app.base_url) else app.scim_base
        if base is None or credential.key is None:
            return Remote(200, "verify", "")
        return self._with_target(app, credential.key, lambda client: client.test(), base=base)

    def _with_target(self, app: App, key: str, use: Any, *, base: str | None = None) -> Remote:
        where = base or app.scim_base
        if where is None:
            return Remote(0, "push", "The app has no target to call.")
        with ScimClient(where, app.header.format(key=key), self._trust) as client:
            outcome: Remote = use(client)
        return outcome

    def _on_enabled(self, app: App) -> None:
        """Nothing is made up for: what happened while a connection was DISABLED waits for the next change."""

    def _integration_trouble(self, app: App, remote: Remote) -> None:
        """These types are written upon failure only."""
        if remote.status in (401, 403):
            self.log.write("application.integration.authentication_failure", "FAILURE", app=app, reason=remote.reason)
        elif remote.status == 429:
            self.log.write("application.integration.rate_limit_exceeded", "FAILURE", app=app, reason=remote.reason)
        elif not remote.ok:
            self.log.write("application.integration.general_failure", "FAILURE", app=app, reason=remote.reason)

    def _log_outcome(self, event: str, app: App, remote: Remote, *, targets: Any = ()) -> None:
        result, reason = ("SUCCESS", None) if remote.ok else ("FAILURE", remote.reason)
        self.log.write(event, result, app=app, reason=reason, targets=targets)


def _user(user: Mapping[str, Any] | str) -> dict[str, Any]:
    base: dict[str, Any] = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "active": True}
    return {**base, **({"userName": user} if isinstance(user, str) else user)}
