"""The sandbox Okta: an org on loopback that behaves as Okta is recorded and documented to behave.

What `rotator demo` and the tests rotate against. It shares no code with the rotator. Its activation really calls the
target, its credentials are random, its log is Okta's System Log, and what Okta documents nowhere is a switch. Keys go
in by POST, and out only to the target; `held_key` is for assertions.
"""

import secrets
import ssl as ssl_module
from collections.abc import Iterable, Mapping
from typing import Any, Self
from urllib.parse import urlencode

from rotator.sandbox.okta_apps import Apps, GroupPush, new_features
from rotator.sandbox.okta_connections import Connections
from rotator.sandbox.okta_gate import Gate
from rotator.sandbox.okta_limits import CallRecord, Faults, bucket_of, invalid_token
from rotator.sandbox.okta_log import SystemLog
from rotator.sandbox.okta_oauth import OAuth
from rotator.sandbox.okta_provisioning import Provisioning
from rotator.sandbox.okta_state import App, Kind, State, Switches, kind_of
from rotator.sandbox.okta_tokens import ApiTokens
from rotator.sandbox.okta_two_legged import TwoLegged
from rotator.sandbox.okta_wire import Answer, Call, Caller, Endpoint, error
from rotator.sandbox.server import LoopbackServer, Tls

_ADMIN = Caller(id="00uadmin000000000000", type="User", name="admin@sandbox.example")


class OktaSandbox:
    """One org. `start()`, or use it as a context manager; after `stop()` it can be started again on the same port."""

    def __init__(self, *, seed: int | None = None, ssl: Tls | None = None) -> None:
        """`seed` makes ids repeatable; credentials are random all the same. `ssl` makes it https."""
        self._state = State(seed)
        trust = ssl_module.create_default_context(cafile=ssl.cafile if ssl else None)
        self.log = SystemLog(self._state)
        self._tokens = ApiTokens(self._state, self.log)
        self._apps = Apps(self._state)
        self.oauth = OAuth(self._state, self.log)
        two_legged = TwoLegged(self._state, trust)
        self._provisioning = Provisioning(self._state, self.log, self._apps, two_legged, trust)
        self._connections = Connections(self._state, self.log, self._provisioning.verify, self._provisioning.enabled)
        endpoints = [
            *self._tokens.endpoints(),
            *self.oauth.endpoints(),
            *self._connections.endpoints(),
            *two_legged.endpoints(),
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

    def add_service_app(self, public_jwk: Mapping[str, Any], scopes: Iterable[str], *, dpop: bool) -> str:
        """A service app with this key and these granted scopes; its client id. `dpop`: tokens are bound to a key."""
        return self.oauth.register(public_jwk, frozenset(scopes), dpop=dpop)

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

    def provisions_with(self, app_id: str) -> str | None:
        """The key that Okta provisions with at this instant; None while the connection is DISABLED: it sends nothing."""
        app = self._state.apps[app_id]
        with self._state.lock:  # key and status belong together
            return app.key if app.enabled else None

    def connection(self, app_id: str) -> dict[str, Any]:
        """The connection as GET would show it."""
        return self._connections.view(self._state.apps[app_id], self.url)

    def enabled(self, app_id: str) -> bool:
        """Whether Okta provisions to the app; of apps that the API doesn't cover only the Admin Console shows it."""
        return self._state.apps[app_id].enabled

    # --- what people and Okta itself do -------------------------------------------------------------------------------

    def provision(self, app_id: str, user: Mapping[str, Any] | str) -> int:
        """Okta pushes a user (SCIM attributes, or a userName) with the held key; the target's HTTP status.

        0 when nothing reached the target. While the connection is DISABLED nothing is sent or logged.
        """
        return self._provisioning.push_user(self._state.apps[app_id], user)

    def push_group(self, app_id: str, mapping_id: str) -> int:
        """Okta pushes a group with the held key; the target's HTTP status. A failure puts the mapping into ERROR."""
        return self._provisioning.push_group(self._state.apps[app_id], mapping_id)

    def person_types_key(self, app_id: str, key: str) -> bool:
        """An admin types a key into the Admin Console and saves: stored, tested at the target; whether it passed."""
        app = self._state.apps[app_id]
        return self._connections.typed(app, key, _ADMIN)

    def person_consents(self, app_id: str) -> str:
        """A person opens the authorize link of a three-legged app and consents; the path and query to POST then."""
        app = self._state.apps[app_id]
        if app.consent_state is None:
            raise ValueError("no consent was asked for: POST the connection first")
        app.consent_code = secrets.token_urlsafe(16)
        given = urlencode({"code": app.consent_code, "state": app.consent_state})
        return f"/api/v1/apps/{app.name}/{app.id}/oauth2/callback?{given}"

    def admin_disables(self, app_id: str) -> None:
        """An admin switches provisioning off in the Admin Console."""
        self._connections.switched_off(self._state.apps[app_id], _ADMIN)

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

    def _sign_in(self, call: Call, endpoint: Endpoint) -> Caller | Answer:
        authorization = call.headers.get("authorization", "")
        if not authorization:
            return error(403, "E0000005", "Invalid session")
        if authorization.startswith("SSWS"):  # Okta's own SDK sends no space after it on some operations
            return self._tokens.sign_in(authorization[4:].strip()) or invalid_token()
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() in ("bearer", "dpop"):
            return self.oauth.sign_in(scheme.lower(), token, call, endpoint)
        return invalid_token()
