"""A scripted far end for adapters: answers in order, and every request remembered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from rotator.adapters.http import HttpClient
from rotator.adapters.targets.description import Description
from rotator.adapters.targets.http import AdminAuth, AdminHeader, HttpTarget
from rotator.adapters.targets.scim import ScimProbe
from rotator.core.secret import Secret

ADMIN = "canary-credential-of-the-rotator"
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    json: Any = None
    text: str | None = None  # instead of json
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False  # taken by the far end, but the connection breaks before the answer


class StillClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        raise AssertionError("not for this test")

    def wait(self, seconds: float) -> bool:
        raise AssertionError("not for this test")


class Wire:
    """Give `replies` in order, the last one again and again; also a meter."""

    def __init__(self, *replies: Reply) -> None:
        self._replies: Sequence[Reply] = replies
        self.requests: list[httpx.Request] = []
        self.metered: list[tuple[str, str, str]] = []

    def client(self, base_url: str = "https://target.example/base") -> HttpClient:
        transport = httpx.MockTransport(self._answer)
        return HttpClient(base_url, system="target:t", clock=StillClock(), meter=self, transport=transport)

    def body(self, number: int = -1) -> Any:
        return json.loads(self.requests[number].content)

    def lines(self) -> list[str]:
        """Method and raw path with query of every request."""
        return [f"{r.method} {r.url.raw_path.decode()}" for r in self.requests]

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        self.metered.append((system, operation, result))

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        raise AssertionError("not for this test")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        reply = self._replies[min(len(self.requests), len(self._replies) - 1)]
        self.requests.append(request)
        if reply.lost:
            raise httpx.ReadError("the connection broke", request=request)
        if reply.text is not None:
            return httpx.Response(reply.status, text=reply.text, headers=reply.headers)
        if reply.json is None:
            return httpx.Response(reply.status, headers=reply.headers)
        return httpx.Response(reply.status, json=reply.json, headers=reply.headers)


def target_over(wire: Wire, description: Description) -> HttpTarget:
    """A described target whose far end is the wire."""
    client = wire.client()
    admin = AdminAuth((AdminHeader("Authorization", Secret(ADMIN), "Bearer "),))
    probe = ScimProbe(client, "Bearer {key}", {}, "rk-canary@invalid.example")
    return HttpTarget(client, admin, description, probe, StillClock())
