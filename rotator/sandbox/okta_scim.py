"""Okta as a SCIM client: testing a credential at the target, and pushing users and groups there with the held key.

These are real calls, so what the target does with a key is what the sandbox's Okta finds. No answer's text is kept:
an error body could repeat the key.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

# Okta docs: reference/scim/scim-11, "User-Agent" and the call made after an admin saves the provisioning settings.
USER_AGENT = "Okta SCIM Client 1.0.0"
_SCIM = "application/scim+json"
_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Door:
    """How to get in at a target: its SCIM base and the whole Authorization header."""

    base: str
    authorization: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Remote:
    """How a call at the target ended: its HTTP status (0: none), what was done, and a reason without any key in it."""

    status: int
    operation: str
    reason: str
    object_id: str | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class ScimClient:
    """Safe to use from many threads. Connections are not kept, so a target that came back is simply reached again."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._http = httpx.Client(
            verify=trust,
            trust_env=False,
            timeout=_SECONDS,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"User-Agent": USER_AGENT, "Accept": _SCIM},
        )

    def test(self, door: Door) -> Remote:
        """The authenticated read that Okta makes to verify a credential."""
        return self._call(door, "verify", "GET", "/Users", params={"startIndex": "1", "count": "2"})[0]

    def push_user(self, door: Door, user: Mapping[str, Any]) -> Remote:
        """Looks the user up by userName, then creates ("push") or replaces it ("push_profile")."""
        name = str(user["userName"]).replace('"', "")
        wanted = {"filter": f'userName eq "{name}"', "startIndex": "1", "count": "100"}
        found, body = self._call(door, "push", "GET", "/Users", params=wanted)
        if not found.ok:
            return found
        resources = body.get("Resources") or []
        if not resources:
            return self._call(door, "push", "POST", "/Users", content=user)[0]
        path = f"/Users/{resources[0]['id']}"
        current, stored = self._call(door, "push_profile", "GET", path)
        if not current.ok:
            return current
        return self._call(door, "push_profile", "PUT", path, content={**stored, **user})[0]

    def push_group(self, door: Door, name: str) -> Remote:
        content = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": name}
        return self._call(door, "push_group", "POST", "/Groups", content=content)[0]

    def _call(
        self,
        door: Door,
        operation: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> tuple[Remote, dict[str, Any]]:
        headers = {"Authorization": door.authorization} | ({"Content-Type": _SCIM} if content is not None else {})
        try:
            response = self._http.request(
                method,
                door.base.rstrip("/") + path,
                params=dict(params) if params else None,
                json=dict(content) if content is not None else None,
                headers=headers,
            )
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as failure:
            # Also a key that can't stand in a header at all; the exception may hold it, so only its type is told.
            return Remote(0, operation, f"Invalid URL. {type(failure).__name__}."), {}
        try:
            parsed = response.json()
        except ValueError:
            parsed = {}
        body = parsed if isinstance(parsed, dict) else {}
        remote = Remote(response.status_code, operation, _reason(response.status_code), str(body.get("id", "")) or None)
        return remote, body


def _reason(status: int) -> str:
    if status in (401, 403):
        return "Invalid URL. Not authorized."
    if status == 429:
        return "Too Many Requests. Errors reported by remote server: rate limit exceeded"
    return f"Errors reported by remote server: HTTP {status}"
