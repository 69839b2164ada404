"""The SCIM side of a sandbox target: our key check in front of a third-party SCIM server.

`scim2-server` keeps the users and groups and speaks the protocol; it is given no credentials at all, because its own
bearer check accepts everybody while its token set is empty.
"""

from __future__ import annotations

import re
from functools import cache

from scim2_models import ScimProvider
from scim2_server.applications.wsgi import WSGIApplication
from scim2_server.memory import InMemoryStorage
from scim2_server.requests import ScimRequest
from scim2_server.service import ScimService
from scim2_server.utils import (
    load_default_resource_types,
    load_default_schemas,
    load_default_service_provider_config,
)

from rotator.sandbox.target_http import Request, Response, json_response
from rotator.sandbox.target_keys import Behaviour, KeyRing

ERROR_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:Error"
SCIM_JSON = "application/scim+json"
DISCOVERY = ("/ServiceProviderConfig", "/ResourceTypes", "/Schemas")
LOGIN_PAGE = b"<!doctype html><html><title>Sign in</title><body><form>Sign in to continue</form></body></html>"


class ScimFront:
    """Answers the calls below the SCIM base path."""

    def __init__(self, keys: KeyRing, behaviour: Behaviour, base_path: str) -> None:
        self.base_path = base_path
        self._keys = keys
        self._behaviour = behaviour
        provider = _provider()
        service = ScimService(provider)
        self.storage = InMemoryStorage()
        self._app = WSGIApplication(self.storage, provider, service)

    def owns(self, path: str) -> bool:
        return path == self.base_path or path.startswith(self.base_path + "/")

    def answer(self, request: Request, base_url: str) -> tuple[Response, str, bool]:
        """The answer, the value of the key that was sent ("" when none), and whether the key itself was refused."""
        path = request.path.removeprefix(self.base_path) or "/"
        if self._behaviour.login_page:
            return Response(200, LOGIN_PAGE, {"Content-Type": "text/html; charset=utf-8"}), "", False
        value = self.sent_key(request.headers.get("authorization", ""))
        if path == "/ServiceProviderConfig" and self._behaviour.open_discovery:
            return self._forward(request, path, base_url), value, False
        key = self._keys.judge(value) if value else None
        if key is None or not request.headers.get("user-agent", "").startswith(key.only_for):
            return self._refuse("The key is missing, unknown, expired or revoked."), value, True
        if key.read_only and _writes(request.method, path):
            return scim_error(403, "The key is not allowed to change anything."), value, True
        if key.scopes and not _in_scope(request.method, path, key.scopes):
            return scim_error(403, "The key's scopes do not allow this."), value, True
        if self._behaviour.scim_paused and not path.startswith(DISCOVERY):
            # HCP Terraform: 403 on Users and Groups while paused, discovery goes on (docs: scim/users)
            return scim_error(403, "SCIM provisioning is paused."), value, False
        return self._forward(request, path, base_url), value, False

    def sent_key(self, authorization: str) -> str:
        """The bare key out of the header, or "" when the header has another form."""
        before, _, after = self._behaviour.header.partition("{key}")
        if authorization[: len(before)].lower() != before.lower() or not authorization.endswith(after):
            return ""
        return authorization[len(before) : len(authorization) - len(after)]

    def _refuse(self, detail: str) -> Response:
        response = scim_error(self._behaviour.refused_status, detail)
        if response.status != 401:
            return response
        # RFC 9110 §11.6.1: a 401 answer names the scheme it wants
        return Response(401, response.body, {**response.headers, "WWW-Authenticate": "Bearer"})

    def _forward(self, request: Request, path: str, base_url: str) -> Response:
        answer = self._app.serve(
            ScimRequest(
                method=request.method,
                base_url=base_url,
                path=path,
                query=request.query,
                headers={k: v for k, v in request.headers.items() if k != "authorization"},
                body=request.body,
            )
        )
        if answer.body is None:
            headers = {k: v for k, v in answer.headers.items() if k.lower() != "content-type"}
            return Response(answer.status.value, b"", headers)
        shaped = json_response(answer.status.value, answer.body)
        return Response(shaped.status, shaped.body, answer.headers)


def scim_error(status: int, detail: str) -> Response:
    """A SCIM error (RFC 7644 §3.12): `status` is a string in the body."""
    return json_response(status, {"schemas": [ERROR_SCHEMA], "status": str(status), "detail": detail}, SCIM_JSON)


def shape_of(path: str) -> str:
    """The path with resource ids left out, so that counters stay few."""
    return re.sub(r"^(/[^/]+)/[^/]+$", r"\1/{id}", path) if not path.endswith("/.search") else path


def _writes(method: str, path: str) -> bool:
    return method in {"PUT", "PATCH", "DELETE"} or (method == "POST" and not path.endswith("/.search"))


def _in_scope(method: str, path: str, scopes: tuple[str, ...]) -> bool:
    """Auth0's form: a verb and a kind of resource, such as `get:users`."""
    kind = path.split("/")[1].lower()
    return kind not in {"users", "groups"} or f"{method.lower()}:{kind}" in scopes


@cache
def _provider() -> ScimProvider:
    """RFC 7643's own schemas; a description without state, so that all targets share it."""
    return ScimProvider.from_discovery(
        load_default_schemas().values(),
        load_default_resource_types().values(),
        config=load_default_service_provider_config(),
    )
