"""Token admin APIs of sandbox targets, continued: no label, one key only, or no API at all."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from rotator.sandbox.target_http import Request, Response, json_response
from rotator.sandbox.target_keys import Behaviour, KeyRing
from rotator.sandbox.target_shapes import AdminApi, Route, moment, random_text

AUTH0_SCOPES = tuple(
    f"{verb}:{kind}" for kind in ("users", "groups") for verb in ("get", "post", "put", "patch", "delete")
)
AUTH0_SHORTEST_LIFE = 900  # seconds; must be greater (API text) or at least (guide): the stricter reading


class Auth0(AdminApi):
    """Inbound SCIM tokens: two at most, no label, scopes by verb. Source: Auth0 docs, configure-inbound-scim."""

    labelled = False
    hand_scopes = AUTH0_SCOPES
    cap = 2

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        super().__init__(keys, behaviour)
        connection = "con_" + random_text(16)
        self.ids = {"connection_id": connection}
        self.scim_path = f"/scim/v2/connections/{connection}"
        tokens = f"/api/v2/connections/{connection}/scim-configuration/tokens"
        self.routes = (
            Route("mint", "POST", tokens, self._mint),
            Route("list", "GET", tokens, self._list),
            Route("revoke", "DELETE", tokens + "/{key_id}", self._revoke),
        )

    def new_key(self) -> tuple[str, str]:
        key_id = "tok_" + random_text(16)
        return key_id, f"{key_id}.{random_text(48)}"

    def error(self, status: int, message: str) -> Response:
        names = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}
        return json_response(status, {"statusCode": status, "error": names.get(status, "Error"), "message": message})

    def denied(self) -> Response:
        return self.error(403, "Insufficient scope, expected any of: create:scim_token")

    def bad_admin(self) -> Response:
        return self.error(401, "Invalid token")

    def _mint(self, request: Request) -> Response:
        body = request.json() if request.body else {}
        if not isinstance(body, dict):
            return self.error(400, "Payload validation error")
        scopes, lifetime = body.get("scopes", list(AUTH0_SCOPES)), body.get("token_lifetime")
        if not isinstance(scopes, list) or not scopes or not set(scopes) <= set(AUTH0_SCOPES):
            return self.error(400, "Payload validation error: scopes")
        if lifetime is not None and (not isinstance(lifetime, int) or lifetime <= AUTH0_SHORTEST_LIFE):
            return self.error(400, f"Payload validation error: token_lifetime must be above {AUTH0_SHORTEST_LIFE}")
        expires = None if lifetime is None else datetime.now(UTC) + timedelta(seconds=lifetime)
        with self.keys.lock:
            if len(self.keys.live()) >= self.cap:
                return self.error(409, "The maximum number of tokens for this connection has been reached")
            key_id, value = self.new_key()
            key = self.keys.issue(key_id, value, expires=expires, scopes=tuple(scopes))
        answer = {
            "token_id": key_id,
            "token": value,
            "scopes": scopes,
            "created_at": moment(key.created),
            "valid_until": moment(key.expires),
        }
        return json_response(201, answer)

    def _list(self, _: Request) -> Response:
        return json_response(
            200,
            [
                {
                    "token_id": key.id,
                    "scopes": list(key.scopes),
                    "created_at": moment(key.created),
                    "valid_until": moment(key.expires),
                    "last_used_at": moment(key.last_used),
                }
                for key in self.keys.listed()
            ],
        )

    def _revoke(self, _: Request, key_id: str) -> Response:
        with self.keys.lock:
            key = self.keys.get(key_id)
            if key is None:
                return self.error(404, "The token does not exist")
            self.keys.revoke(key)
        return Response(204)


class Roll(AdminApi):
    """One token whose value is rolled in place. Source: Cloudflare API, accounts/tokens/value (roll)."""

    one_key = True

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        super().__init__(keys, behaviour)
        account, token = secrets.token_hex(16), secrets.token_hex(16)
        self.ids = {"account_id": account, "token_id": token}
        self.scim_path = f"/client/v4/accounts/{account}/scim/v2"
        one = f"/client/v4/accounts/{account}/tokens/{token}"
        self.routes = (
            Route("replace", "PUT", one + "/value", self._roll),
            Route("show", "GET", one, self._show),
        )

    def new_key(self) -> tuple[str, str]:
        return self.ids["token_id"], random_text(40)

    def error(self, status: int, message: str) -> Response:
        code = {401: 10000, 403: 9109, 404: 1003}.get(status, 1001)
        errors = [{"code": code, "message": message}]
        return json_response(status, {"success": False, "errors": errors, "messages": [], "result": None})

    def _roll(self, _: Request) -> Response:
        with self.keys.lock:
            key_id, value = self.new_key()
            label = next((key.label for key in self.keys.live()), "")
            for key in self.keys.live():
                self.keys.revoke(key)  # the old value is dead at once
            self.keys.issue(key_id, value, label=label)
        return _cloudflare(value)

    def _show(self, _: Request) -> Response:
        key = self.keys.get(self.ids["token_id"])
        if key is None:
            return self.error(404, "Token not found")
        return _cloudflare(
            {
                "id": key.id,
                "name": key.label,
                "status": "active",
                "issued_on": moment(key.created),
                "last_used_on": moment(key.last_used),
                "expires_on": moment(key.expires),
            }
        )


class SetKey(AdminApi):
    """One token whose value the caller supplies. Source: goauthentik/authentik core/api/tokens.py, sources/scim."""

    one_key = True
    defaults: ClassVar[Mapping[str, Any]] = {"refused_status": 403}  # authentik's own tests expect 403 for a bad token

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        super().__init__(keys, behaviour)
        slug = "source-" + random_text(8).lower()
        identifier = f"goauthentik.io/source/scim/{slug}".replace("/", "-")
        self.ids = {"slug": slug, "token_identifier": identifier}
        self.scim_path = f"/source/scim/{slug}/v2"
        one = f"/api/v3/core/tokens/{identifier}"
        self.routes = (
            Route("replace", "POST", one + "/set_key/", self._set),
            Route("show", "GET", one + "/", self._show),
            Route("view_key", "GET", one + "/view_key/", self._view_key),
        )

    def new_key(self) -> tuple[str, str]:
        return self.ids["token_identifier"], random_text(60)

    def error(self, status: int, message: str) -> Response:
        return json_response(status, {"detail": message})

    def bad_admin(self) -> Response:
        return self.error(403, "Token invalid/expired")

    def _set(self, request: Request) -> Response:
        body = request.json()
        value = body.get("key") if isinstance(body, dict) else None
        if not isinstance(value, str) or not value:
            return json_response(400, {"key": ["This field is required."]})
        with self.keys.lock:
            label = next((key.label for key in self.keys.live()), "")
            for key in self.keys.live():
                self.keys.revoke(key)
            self.keys.issue(self.ids["token_identifier"], value, label=label)
        return Response(204)

    def _show(self, _: Request) -> Response:
        identifier = self.ids["token_identifier"]
        if self.keys.get(identifier) is None:
            return self.error(404, "No Token matches the given query.")
        return json_response(200, {"identifier": identifier, "intent": "api", "managed": identifier, "expiring": False})

    def _view_key(self, _: Request) -> Response:
        """Reading a key back needs a right of its own and is logged; the sandbox's admin does not have it."""
        return self.error(403, "You do not have permission to perform this action.")


class Manual(AdminApi):
    """No API: a person mints and revokes in a console."""

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        super().__init__(keys, behaviour)
        self.scim_path = "/scim/v2"

    def new_key(self) -> tuple[str, str]:
        return "key-" + random_text(8).lower(), random_text(48)


def _cloudflare(result: Any) -> Response:
    """Cloudflare's envelope around a good answer."""
    return json_response(200, {"success": True, "errors": [], "messages": [], "result": result})
