"""The Application Connections API of the sandbox Okta, with every doubt about it behind a switch.

Facts: Okta docs app-provisioning-connection and its OpenAPI document; recorded traffic of terraform-provider-okta and
okta-sdk-python; what okta-sdk-nodejs and okta-sdk-dotnet expect in their integration tests.
"""

import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from rotator.sandbox.okta_log import OKTA_SYSTEM, SystemLog
from rotator.sandbox.okta_scim import Remote
from rotator.sandbox.okta_state import App, Kind, State
from rotator.sandbox.okta_wire import Answer, Call, Caller, Endpoint, invalid, malformed, not_found

_ROOT = "/api/v1/apps/{app_id}/connections/default"
_READ, _MANAGE = ("okta.apps.read",), ("okta.apps.manage",)

# Tests a credential at the target by a real call; never raises.
Verify = Callable[[App, "Credential"], Remote]


class Credential:
    """What a POST brings: a token, or the OAuth 2.0 client to use. Not printable."""

    __slots__ = ("auth_scheme", "base_url", "client_id", "key", "rotation_mode")

    def __init__(
        self,
        *,
        auth_scheme: str = "TOKEN",
        key: str | None = None,
        base_url: str | None = None,
        client_id: str | None = None,
        rotation_mode: str = "MANUAL",
    ) -> None:
        self.auth_scheme = auth_scheme
        self.key = key
        self.base_url = base_url
        self.client_id = client_id
        self.rotation_mode = rotation_mode


class Connections:
    def __init__(self, state: State, log: SystemLog, verify: Verify, on_enabled: Callable[[App], None]) -> None:
        self._state = state
        self._log = log
        self._verify = verify
        self._on_enabled = on_enabled

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", _ROOT, self._get, _READ),
            Endpoint("POST", _ROOT, self._post, _MANAGE, media_type="application/json"),
            Endpoint("POST", f"{_ROOT}/lifecycle/activate", self._activate, _MANAGE),
            Endpoint("POST", f"{_ROOT}/lifecycle/deactivate", self._deactivate, _MANAGE),
            Endpoint("POST", "/api/v1/apps/{app_name}/{app_id}/oauth2/callback", self._callback, _MANAGE),
        ]

    def view(self, app: App, origin: str) -> dict[str, Any]:
        """The connection as GET shows it. The credential is never in it."""
        if app.kind is Kind.UNSUPPORTED:  # recorded: 200, and nothing says that the app isn't covered
            return {"status": "UNKNOWN", "profile": {"authScheme": "UNKNOWN"}}
        links = self._links(app, f"{origin}/api/v1/apps/{app.id}/connections/default")
        status = "ENABLED" if app.enabled else "DISABLED"
        if app.kind is Kind.THREE_LEGGED:
            return {"status": status, "profile": {"authScheme": "OAUTH2"}, "_links": links}
        if app.auth_scheme == "OAUTH2":
            profile = {
                "authScheme": "OAUTH2",
                "clientId": app.client_id,
                "signing": {"rotationMode": app.rotation_mode},
            }
            return {
                "authScheme": "OAUTH2",
                "status": status,
                "profile": profile,
                "clientId": app.client_id,
                "_links": links,
            }
        if app.key is None:  # recorded: never set up, so no profile although the schema requires it
            return {"authScheme": "TOKEN", "status": status, "_links": links}
        return {
            "authScheme": "TOKEN",
            "status": status,
            "baseUrl": app.base_url,
            "profile": {"authScheme": "TOKEN"},
            "_links": links,
        }

    def typed(self, app: App, key: str, person: Caller) -> bool:
        """A person saved a key in the Admin Console, which stores it and tests it; whether it passed."""
        before = self._told(app)
        tested = self._verify(app, Credential(key=key))
        with self._state.lock:
            _store(app, Credential(key=key))
            app.enabled = tested.ok
        if tested.ok:
            self._on_enabled(app)
        else:
            self._could_not_verify(app)
        self._updated(app, person, before)
        return tested.ok

    def switched_off(self, app: App, by: Caller) -> None:
        """The connection was deactivated; logged also when it was off already (okta-sdk-dotnet: idempotent)."""
        before = self._told(app)
        with self._state.lock:
            app.enabled = False
        self._updated(app, by, before)

    def _get(self, call: Call) -> Answer:
        app = self._state.apps.get(call.params["app_id"])
        return Answer(200, self.view(app, _origin(call))) if app else _no_app(call)

    def _post(self, call: Call) -> Answer:
        app = self._state.apps.get(call.params["app_id"])
        if app is None:
            return _no_app(call)
        credential = self._read_credential(app, call)
        if isinstance(credential, Answer):
            return credential
        if credential is None:
            return Answer(200, self.view(app, _origin(call)))
        activate = call.query.get("activate", "false").lower() == "true"  # the guide says TRUE, the SDKs send true
        before = self._told(app)
        if activate or self._state.switches.plain_post_verifies:
            tested = self._test(app, credential)
            if not tested.ok:
                self._refused(app, credential, call, before)
                return self._refusal(tested)
        with self._state.lock:
            _store(app, credential)
            if app.kind is Kind.THREE_LEGGED:
                app.consent_state, app.consent_code, app.consented = secrets.token_urlsafe(16), None, False
            app.enabled = activate or (app.enabled and self._state.switches.plain_post_keeps_enabled)
        self._updated(app, _who(call), before)
        if activate:
            self._on_enabled(app)
        return Answer(200, self.view(app, _origin(call)))

    def _read_credential(self, app: App, call: Call) -> Credential | Answer | None:
        """What the body asks for; None when the app has no connection to write to."""
        body = call.json()
        profile = body.get("profile") if body is not None else None
        if body is None or not isinstance(profile, dict):
            return malformed()
        scheme, token, base_url = profile.get("authScheme"), profile.get("token"), body.get("baseUrl")
        if app.kind is Kind.UNSUPPORTED:
            refused = self._state.switches.unsupported_post_refused and scheme != "UNKNOWN"
            return invalid("authScheme", "The app does not support provisioning connections.") if refused else None
        if scheme == "TOKEN" and app.kind is not Kind.THREE_LEGGED:
            if not isinstance(token, str) or not token:
                return invalid("token", "token: The field cannot be left blank")
            if app.kind is Kind.TOKEN and not isinstance(base_url, str):
                return invalid("baseUrl", "baseUrl: The field cannot be left blank")
            return Credential(key=token, base_url=base_url if isinstance(base_url, str) else None)
        if scheme == "OAUTH2" and app.kind is Kind.THREE_LEGGED:
            settings = profile.get("settings")
            if app.name == "office365" and not (
                isinstance(settings, dict) and settings.get("adminUsername") and settings.get("adminPassword")
            ):
                return invalid("settings", "adminUsername and adminPassword are required")
            return Credential(auth_scheme="OAUTH2")
        if scheme == "OAUTH2" and app.kind is Kind.TOKEN_OR_TWO_LEGGED:
            client_id, signing = profile.get("clientId"), profile.get("signing") or {}
            mode = signing.get("rotationMode", "MANUAL") if isinstance(signing, dict) else None
            if not isinstance(client_id, str) or mode not in ("AUTO", "MANUAL"):
                return invalid("clientId or signing")
            return Credential(auth_scheme="OAUTH2", client_id=client_id, rotation_mode=mode)
        return invalid("authScheme")

    def _activate(self, call: Call) -> Answer:
        app = self._state.apps.get(call.params["app_id"])
        if app is None:
            return _no_app(call)
        if app.kind is Kind.UNSUPPORTED:
            return Answer(204)
        before = self._told(app)
        held = Credential(
            auth_scheme=app.auth_scheme, key=app.key, client_id=app.client_id, rotation_mode=app.rotation_mode
        )
        tested = self._test(app, held)
        if not tested.ok:
            with self._state.lock:
                app.enabled = False
            self._could_not_verify(app)
            return self._refusal(tested)
        with self._state.lock:
            app.enabled = True
        self._updated(app, _who(call), before)
        self._on_enabled(app)
        return Answer(204)

    def _deactivate(self, call: Call) -> Answer:
        app = self._state.apps.get(call.params["app_id"])
        if app is None:
            return _no_app(call)
        if app.kind is not Kind.UNSUPPORTED:
            self.switched_off(app, _who(call))
        return Answer(204)

    def _callback(self, call: Call) -> Answer:
        """The last step of a three-legged consent; `state` and `code` are good once."""
        app = self._state.apps.get(call.params["app_id"])
        if app is None or app.kind is not Kind.THREE_LEGGED or app.name != call.params["app_name"]:
            return _no_app(call)
        with self._state.lock:
            given = (call.query.get("state"), call.query.get("code"))
            if app.consent_code is None or given != (app.consent_state, app.consent_code):
                return invalid("state or code")
            app.consent_state, app.consent_code, app.consented = None, None, True
        return Answer(204)

    def _test(self, app: App, credential: Credential) -> Remote:
        if app.kind is Kind.THREE_LEGGED:
            return Remote(200 if app.consented else 0, "verify", "Consent is missing.")
        if credential.auth_scheme == "TOKEN" and credential.key is None:
            return Remote(0, "verify", "Invalid URL. Not authorized.")
        return self._verify(app, credential)

    def _refused(self, app: App, credential: Credential, call: Call, before: dict[str, Any]) -> None:
        """A POST whose credential failed the test. Okta documents neither what is kept nor the status after it."""
        switches = self._state.switches
        with self._state.lock:
            if not switches.failed_post_keeps_old:
                _store(app, credential)
            if not switches.failed_post_keeps_enabled:
                app.enabled = False
        self._could_not_verify(app)
        if self._told(app) != before:
            self._updated(app, _who(call), before)

    def _refusal(self, tested: Remote) -> Answer:
        cause = f"Verification failed: {tested.reason}"
        if self._state.switches.cause_in_summary:
            return invalid(f"credential. {cause}")
        return invalid("credential", cause)

    def _could_not_verify(self, app: App) -> None:
        reason = "Error while verifying API credentials"
        self._log.write("application.configuration.update", "FAILURE", app=app, reason=reason)

    def _updated(self, app: App, by: Caller, before: dict[str, Any]) -> None:
        self._log.write("application.lifecycle.update", "SUCCESS", app=app, caller=by, change=(before, self._told(app)))

    @staticmethod
    def _told(app: App) -> dict[str, Any]:
        """What the log may say about a connection."""
        return {
            "status": "ENABLED" if app.enabled else "DISABLED",
            "authScheme": app.auth_scheme,
            "baseUrl": app.base_url,
        }

    @staticmethod
    def _links(app: App, root: str) -> dict[str, Any]:
        links: dict[str, Any] = {"self": {"href": root, "hints": {"allow": ["POST", "GET"]}}}
        move = "deactivate" if app.enabled else "activate"
        links[move] = {"href": f"{root}/lifecycle/{move}", "hints": {"allow": ["POST"]}}
        if app.kind is Kind.THREE_LEGGED and app.consent_state is not None:
            asked = {"scope": "admin", "response_type": "code", "state": app.consent_state, "client_id": app.id}
            links["authorize"] = {
                "href": f"{app.base_url}/oauth/authorize?{urlencode(asked)}",
                "hints": {
                    "allow": ["GET"],
                    "guidance": ["Open this address in a browser and consent, to complete the OAuth 2.0 connection."],
                },
            }
        return links


def _store(app: App, credential: Credential) -> None:
    app.auth_scheme = credential.auth_scheme
    app.key = credential.key
    app.client_id = credential.client_id
    app.rotation_mode = credential.rotation_mode
    app.base_url = credential.base_url or app.base_url


def _who(call: Call) -> Caller:
    return call.caller or OKTA_SYSTEM


def _origin(call: Call) -> str:
    return call.url.partition("/api/")[0]


def _no_app(call: Call) -> Answer:
    return not_found(call.params["app_id"], "AppInstance")
