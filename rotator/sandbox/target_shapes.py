"""Token admin APIs of sandbox targets: what all shapes share, and the collections that name their keys.

Each shape answers as its vendor documents it: paths, bodies, statuses and error forms. Values are given out once.
"""

from __future__ import annotations

import math
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from rotator.sandbox.target_http import Request, Response, json_response
from rotator.sandbox.target_keys import Behaviour, IssuedKey, KeyRing, expired

ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Route:
    operation: str  # "mint", "list", "show", "revoke", "replace"
    method: str
    path: str  # as the vendor writes it, ids filled in but for the key's own: {key_id}
    call: Callable[..., Response]

    @property
    def pattern(self) -> str:
        """A regular expression for the path, with the key's id as its only group."""
        return re.escape(self.path).replace(r"\{key_id\}", "([^/]+)")


class AdminApi:
    """What every shape has: the admin's sign-in, routes, and keys that a person mints or seeds."""

    scim_path: str
    one_key = False  # a new value takes the place of the old one
    labelled = True
    hand_scopes: tuple[str, ...] = ()  # what a key gets that a person mints; none: it may do everything
    defaults: ClassVar[Mapping[str, Any]] = {}  # behaviour that differs for this vendor

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        self.keys = keys
        self.behaviour = behaviour
        self.admin_token = "admin-" + random_text(32)
        self.ids: dict[str, str] = {}
        self.routes: tuple[Route, ...] = ()

    # -- what a shape says in its own way ------------------------------------------------------------------------

    def new_key(self) -> tuple[str, str]:
        """A fresh (id, value) in the vendor's form."""
        raise NotImplementedError

    def error(self, status: int, message: str) -> Response:
        return json_response(status, {"message": message})

    def denied(self) -> Response:
        return self.error(403, "You'll need additional permissions to perform this action.")

    def bad_admin(self) -> Response:
        return self.error(401, "Unauthorized")

    # -- what is the same everywhere -----------------------------------------------------------------------------

    def answer(self, request: Request) -> Response:
        """The answer to an admin call; 404 in the vendor's form for a path that it does not have."""
        for route in self.routes:
            match = re.fullmatch(route.pattern, request.path)
            if match is None or route.method != request.method:
                continue
            if request.headers.get("authorization", "") != f"Bearer {self.admin_token}":
                return self.bad_admin()
            if self.behaviour.admin_denied:
                return self.denied()
            if route.operation == "revoke" and self.behaviour.revoke_status is not None:
                return self.error(self.behaviour.revoke_status, "Could not revoke the key.")
            return route.call(request, *match.groups())
        return self.error(404, "Not found")

    def by_hand(self, label: str, *, seeded: bool) -> tuple[str, str]:
        """A person's mint in the vendor's console: the new (value, id)."""
        with self.keys.lock:
            key_id, value = self.new_key()
            if self.one_key:
                for key in self.keys.live():
                    self.keys.revoke(key)
            label = label if self.labelled else ""
            self.keys.issue(key_id, value, label=label, scopes=self.hand_scopes, seeded=seeded)
        return value, key_id


class Grafana(AdminApi):
    """Service-account tokens. Source: grafana/grafana pkg/services/serviceaccounts/api/token.go and the HTTP API docs."""

    cap: int | None = None

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        super().__init__(keys, behaviour)
        account = str(secrets.randbelow(90) + 10)
        self.ids = {"service_account_id": account}
        # Grafana docs, configure-scim-with-okta: self-hosted servers use the namespace "default"
        self.scim_path = "/apis/scim.grafana.app/v0alpha1/namespaces/default"
        tokens = f"/api/serviceaccounts/{account}/tokens"
        self.routes = (
            Route("mint", "POST", tokens, self._mint),
            Route("list", "GET", tokens, self._list),
            Route("revoke", "DELETE", tokens + "/{key_id}", self._revoke),
        )
        self._last_id = 0

    def new_key(self) -> tuple[str, str]:
        self._last_id += 1
        return str(self._last_id), f"glsa_{random_text(32)}_{secrets.token_hex(4)}"

    def bad_admin(self) -> Response:
        return self.error(401, "Invalid API key")

    def _mint(self, request: Request) -> Response:
        body = request.json()
        name = body.get("name") if isinstance(body, dict) else None
        seconds = body.get("secondsToLive", 0) if isinstance(body, dict) else 0
        if not isinstance(name, str) or not name or not isinstance(seconds, int):
            return self.error(400, "Bad request data")
        if seconds < 0:
            return self.error(400, "invalid SecondsToLive value")
        with self.keys.lock:
            if any(key.label == name for key in self.keys.listed()):
                return self.error(409, "service account token with given name already exists")
            if self.cap is not None and len(self.keys.live()) >= self.cap:
                return self.error(409, f"the service account has {self.cap} tokens already")
            key_id, value = self.new_key()
            expires = datetime.now(UTC) + timedelta(seconds=seconds) if seconds else None  # 0: never
            self.keys.issue(key_id, value, label=name, expires=expires)
        return json_response(200, {"id": int(key_id), "name": name, "key": value})

    def _list(self, _: Request) -> Response:
        return json_response(200, [_grafana_token(key) for key in self.keys.listed()])

    def _revoke(self, _: Request, key_id: str) -> Response:
        if not key_id.isdigit():
            return self.error(400, "Token ID is invalid")
        with self.keys.lock:
            key = self.keys.get(key_id)
            if key is None:
                return self.error(404, "Failed to delete API key")
            self.keys.revoke(key)
        return json_response(200, {"message": "API key deleted"})


class Capped(Grafana):
    """Grafana's wire with room for two keys only: the capped collection with a label field."""

    cap = 2


class Hcp(AdminApi):
    """HCP Terraform's SCIM tokens. Source: developer.hashicorp.com cloud-docs/api-docs/scim/tokens."""

    defaults: ClassVar[Mapping[str, Any]] = {"last_used_throttle": 60.0}

    def __init__(self, keys: KeyRing, behaviour: Behaviour) -> None:
        super().__init__(keys, behaviour)
        config = "scimconf-" + random_text(16)
        self.ids = {"scim_config_id": config}
        self.scim_path = f"/scim/v2/{config}"
        tokens = f"/api/v2/scim-configurations/{config}/authentication-tokens"
        one = "/api/v2/authentication-tokens/{key_id}"
        self.routes = (
            Route("mint", "POST", tokens, self._mint),
            Route("list", "GET", tokens, self._list),
            Route("show", "GET", one, self._show),
            Route("revoke", "DELETE", one, self._revoke),
        )

    def new_key(self) -> tuple[str, str]:
        return "at-" + random_text(16), f"{random_text(14)}.atlasv1.{random_text(67)}"

    def error(self, status: int, message: str) -> Response:
        body = {"errors": [{"status": str(status), "title": message}]}
        return json_response(status, body, "application/vnd.api+json")

    def denied(self) -> Response:
        return self.error(404, "not found")  # the same answer as for a configuration that does not exist

    def bad_admin(self) -> Response:
        return self.error(401, "unauthorized")

    def _mint(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("application/vnd.api+json"):
            return self.error(415, "unsupported media type")
        body = request.json()
        data = body.get("data") if isinstance(body, dict) else None
        attributes = data.get("attributes", {}) if isinstance(data, dict) else None
        if (
            not isinstance(attributes, dict)
            or not isinstance(data, dict)
            or data.get("type") != "authentication-tokens"
        ):
            return self.error(400, "bad request")
        now = datetime.now(UTC)
        expires = now + timedelta(days=365)
        if attributes.get("expired-at") is not None:
            try:
                expires = datetime.fromisoformat(attributes["expired-at"])
            except (TypeError, ValueError):
                return self.error(400, "expired-at is not a date")
            if expires.tzinfo is None or not now + timedelta(days=30) <= expires <= now + timedelta(days=366):
                return self.error(400, "expired-at must lie between 30 days and 1 year from now")
        key_id, value = self.new_key()
        key = self.keys.issue(key_id, value, label=str(attributes.get("description") or ""), expires=expires)
        return json_response(201, {"data": _hcp_token(key, value)}, "application/vnd.api+json")

    def _list(self, request: Request) -> Response:
        number, size = request.query.get("page[number]", "1"), request.query.get("page[size]", "20")
        if not (number.isdigit() and size.isdigit() and int(number) > 0 and 0 < int(size) <= 100):
            return self.error(400, "bad page")
        page, per_page = int(number), int(size)
        keys = self.keys.listed()
        pages = max(1, math.ceil(len(keys) / per_page))
        start = (page - 1) * per_page
        pagination = {
            "current-page": page,
            "page-size": per_page,
            "prev-page": page - 1 if page > 1 else None,
            "next-page": page + 1 if page < pages else None,
            "total-pages": pages,
            "total-count": len(keys),
        }
        data = [_hcp_token(key, None) for key in keys[start : start + per_page]]
        return json_response(200, {"data": data, "meta": {"pagination": pagination}}, "application/vnd.api+json")

    def _show(self, _: Request, key_id: str) -> Response:
        key = self.keys.get(key_id)
        if key is None:
            return self.error(404, "not found")
        return json_response(200, {"data": _hcp_token(key, None)}, "application/vnd.api+json")

    def _revoke(self, _: Request, key_id: str) -> Response:
        with self.keys.lock:
            key = self.keys.get(key_id)
            if key is None:
                return self.error(404, "not found")
            self.keys.revoke(key)
        return Response(204)


def random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHANUMERIC) for _ in range(length))


def moment(at: datetime | None) -> str | None:
    """A time as JSON APIs write it, with milliseconds and Z."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _grafana_token(key: IssuedKey) -> dict[str, Any]:
    left = 0.0 if key.expires is None else (key.expires - datetime.now(UTC)).total_seconds()
    return {
        "id": int(key.id),
        "name": key.label,
        "role": "Admin",
        "created": moment(key.created),
        "expiration": moment(key.expires),
        # token.go tells the seconds only within the last seven days
        "secondsUntilExpiration": left if 0 < left < timedelta(days=7).total_seconds() else 0,
        "hasExpired": expired(key),
    }


def _hcp_token(key: IssuedKey, value: str | None) -> dict[str, Any]:
    return {
        "id": key.id,
        "type": "authentication-tokens",
        "attributes": {
            "created-at": moment(key.created),
            "last-used-at": moment(key.last_used),
            "description": key.label,
            "token": value,
            "expired-at": moment(key.expires),
            "is-ttl-rejected": False,
        },
        "relationships": {"created-by": {"data": {"id": "user-" + key.id[3:], "type": "users"}}},
    }
