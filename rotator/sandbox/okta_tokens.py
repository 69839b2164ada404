"""API tokens (SSWS): signing in with one, and Okta's calls to list, change and revoke them; there is none to create one.

A token lives until 30 days after its last use; every use moves that on (Okta docs: create-an-api-token).
"""

import hmac
import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rotator.sandbox.okta_log import SystemLog
from rotator.sandbox.okta_state import State, stamp
from rotator.sandbox.okta_wire import Answer, Call, Caller, Endpoint, invalid, malformed, not_found

_WINDOW = timedelta(days=30)


@dataclass(slots=True)
class ApiToken:
    id: str
    name: str
    user_id: str
    created: datetime
    last_used: datetime
    secret: str = field(repr=False)
    network: dict[str, Any] = field(default_factory=lambda: {"connection": "ANYWHERE"})


class ApiTokens:
    def __init__(self, state: State, log: SystemLog) -> None:
        self._state = state
        self._log = log
        self._lock = threading.Lock()
        self._tokens: dict[str, ApiToken] = {}

    def mint(self, name: str) -> str:
        """What an admin does in the Admin Console; the token itself, shown this once."""
        now = self._state.now()
        token = ApiToken(
            id=self._state.new_id("00T"),
            name=name,
            user_id=self._state.new_id("00u"),
            created=now,
            last_used=now,
            secret="00" + secrets.token_urlsafe(30),
        )
        with self._lock:
            self._tokens[token.id] = token
        return token.secret

    def sign_in(self, secret: str) -> Caller | None:
        """The token's owner, and its expiry moved on; None when it is unknown, revoked or expired."""
        now = self._state.now()
        with self._lock:
            for token in self._tokens.values():
                if hmac.compare_digest(token.secret.encode(), secret.encode()):
                    if now > token.last_used + _WINDOW:
                        return None
                    token.last_used = max(now, token.last_used)
                    return Caller(id=token.user_id, type="User", name=token.name, token_id=token.id)
        return None

    def endpoints(self) -> list[Endpoint]:
        one, many = "/api/v1/api-tokens/{id}", "/api/v1/api-tokens"
        read, manage = ("okta.apiTokens.read",), ("okta.apiTokens.manage",)
        return [
            Endpoint("GET", many, self._list, read),
            Endpoint("DELETE", "/api/v1/api-tokens/current", self._revoke_current, manage),
            Endpoint("GET", one, self._get, read),
            Endpoint("PUT", one, self._put, manage, media_type="application/json"),
            Endpoint("DELETE", one, self._revoke, manage),
        ]

    def _list(self, call: Call) -> Answer:
        with self._lock:
            tokens = list(self._tokens.values())
        return Answer(200, [_view(token, call) for token in tokens])

    def _get(self, call: Call) -> Answer:
        token = self._tokens.get(call.params["id"])
        return Answer(200, _view(token, call)) if token else not_found(call.params["id"], "Token")

    def _put(self, call: Call) -> Answer:
        token, body = self._tokens.get(call.params["id"]), call.json()
        if token is None:
            return not_found(call.params["id"], "Token")
        if body is None:
            return malformed()
        if not isinstance(body.get("name"), str) or not isinstance(body.get("network", {}), dict):
            return invalid("name")
        with self._lock:
            token.name = body["name"]
            token.network = body.get("network", token.network)
        self._log.write("system.api_token.update", "SUCCESS", caller=call.caller or _NOBODY, targets=[_target(token)])
        return Answer(200, _view(token, call))

    def _revoke(self, call: Call) -> Answer:
        with self._lock:
            token = self._tokens.pop(call.params["id"], None)
        if token is None:
            return not_found(call.params["id"], "Token")
        self._log.write("system.api_token.revoke", "SUCCESS", caller=call.caller or _NOBODY, targets=[_target(token)])
        return Answer(204)

    def _revoke_current(self, call: Call) -> Answer:
        current = call.caller.token_id if call.caller else None
        if current is None:
            return invalid("token", "Only an API token can revoke itself.")
        return self._revoke(Call(call.method, call.url, call.path, {}, {"id": current}, {}, b"", call.caller))


_NOBODY = Caller(id="unknown", type="User", name="unknown")


def _target(token: ApiToken) -> dict[str, str]:
    return {"id": token.id, "type": "Token", "alternateId": token.name, "displayName": token.name}


def _view(token: ApiToken, call: Call) -> dict[str, Any]:
    """As recorded in okta-sdk-python's cassettes: `_links`, where the schema says `_link`."""
    origin = call.url.partition("/api/")[0]
    return {
        "id": token.id,
        "name": token.name,
        "userId": token.user_id,
        "clientName": "Okta API",
        "tokenWindow": "P30D",
        "network": token.network,
        "expiresAt": stamp(token.last_used + _WINDOW),
        "created": stamp(token.created),
        "lastUpdated": stamp(token.last_used),
        "_links": {
            "self": {"href": f"{origin}/api/v1/api-tokens/{token.id}", "hints": {"allow": ["GET", "DELETE"]}},
            "user": {"href": f"{origin}/api/v1/users/{token.user_id}", "hints": {"allow": ["GET"]}},
        },
    }
