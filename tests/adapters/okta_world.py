"""A sandbox Okta, an HTTP client that checks every answer against Okta's OpenAPI document, and a small SCIM target."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from rotator.sandbox.okta import OktaSandbox
from tests.adapters.okta_openapi import check


@dataclass
class Target:
    """A SCIM server on loopback: `keys` may all, `read_only` may look; `outage` is the status it answers instead."""

    url: str = ""
    keys: set[str] = field(default_factory=lambda: {"old-key", "new-key"})
    read_only: set[str] = field(default_factory=set)
    outage: int | None = None
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, str, str]] = field(default_factory=list)  # method, path?query, user agent, key

    def answer(self, method: str, path: str, key: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.outage is not None:
            return self.outage, {}
        if key not in self.keys | self.read_only:
            return 401, {"detail": f"{key} is not a key"}  # a target that repeats the key it was given
        if method != "GET" and key in self.read_only:
            return 403, {}
        place = urlsplit(path)
        if place.path == "/Groups":
            return 201, {"id": "group-1"}
        if method == "POST":
            self.users[body["userName"]] = body | {"id": f"id-{body['userName']}"}
            return 201, self.users[body["userName"]]
        if method == "PUT":
            self.users[body["userName"]] = body
            return 200, body
        if place.path != "/Users":
            return 200, self.users[place.path.removeprefix("/Users/id-")]
        wanted = parse_qs(place.query).get("filter", [""])[0]
        found = [user for name, user in self.users.items() if not wanted or wanted == f'userName eq "{name}"']
        return 200, {"totalResults": len(found), "Resources": found}


@contextlib.contextmanager
def scim_target() -> Iterator[Target]:
    target = Target()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            target.calls.append((self.command, self.path, self.headers.get("User-Agent", ""), key))
            status, answer = target.answer(self.command, self.path, key, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = handle_any  # noqa: N815 - the names that http.server calls

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    target.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield target
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class World:
    okta: OktaSandbox
    target: Target
    http: httpx.Client

    def app(self, name: str = "zscalerbyz", *, key: str | None = "old-key", enabled: bool = True) -> str:
        """An app whose SCIM base is the target."""
        base = self.target.url
        return self.okta.add_app(name, label="An app", base_url=base, verify_url=base, key=key, enabled=enabled)

    def push(self, app: str, key: str, query: str = "?activate=TRUE", **body: Any) -> httpx.Response:
        content = {"baseUrl": self.target.url, "profile": {"authScheme": "TOKEN", "token": key}} | body
        return self.http.post(f"/api/v1/apps/{app}/connections/default{query}", json=content)

    def read(self, app: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/api/v1/apps/{app}/connections/default").json()
        return answer

    def move(self, app: str, where: str) -> httpx.Response:
        return self.http.post(f"/api/v1/apps/{app}/connections/default/lifecycle/{where}")

    def events(self, app: str) -> list[tuple[str, str]]:
        """(event type, result) of all events about an app, through the log's API."""
        answer = self.http.get("/api/v1/logs", params={"filter": f'target.id eq "{app}"'})
        return [(event["eventType"], event["outcome"]["result"]) for event in answer.json()]


@contextlib.contextmanager
def open_world() -> Iterator[World]:
    with scim_target() as target, OktaSandbox(seed=7) as okta:
        headers = {"Authorization": f"SSWS {okta.api_token}"}
        hooks: Any = {"response": [check]}
        with httpx.Client(base_url=okta.url, headers=headers, event_hooks=hooks, trust_env=False, timeout=10) as http:
            yield World(okta, target, http)
