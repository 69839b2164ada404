"""What the Okta adapter's unit tests share: a clock that stands, a meter that remembers, answers made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx

from rotator.adapters.http import Auth, HttpClient
from rotator.adapters.idp.okta import OktaProvider
from rotator.adapters.idp.okta_auth import ssws
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.adapters.ratelimit import RateBudget
from rotator.core.secret import Secret

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
URL = "https://acme.okta.com"
APP = "0oa1appinstance00001"
KEY = "canary-7f3a9c51d2e84b06-key"
CONNECTION = "/api/v1/apps/0oa1appinstance00001/connections/default"
ENABLED = {
    "authScheme": "TOKEN",
    "status": "ENABLED",
    "baseUrl": "https://scim.example.com/1/2/scim",
    "profile": {"authScheme": "TOKEN"},
    "_links": {"self": {"href": "x"}},
}

Handler = Callable[[httpx.Request], httpx.Response]


class StillClock:
    """Stands still until told; monotonic moves along."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return (self.at - START).total_seconds()

    def wait(self, seconds: float) -> bool:
        raise AssertionError("an adapter never waits")

    def pass_(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Meters:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.limits: list[tuple[str, str, float]] = []

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append((system, operation, result))

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        self.limits.append((idp, bucket, remaining))


def answer(
    status: int = 200, body: Any = None, *, headers: Mapping[str, str] | None = None, text: str | None = None
) -> httpx.Response:
    """JSON unless `text` is given; dated as the clock stands at the start."""
    dated = {"date": format_datetime(START, usegmt=True), **(headers or {})}
    if text is not None:
        return httpx.Response(status, text=text, headers=dated)
    if body is None:
        return httpx.Response(status, headers=dated)
    return httpx.Response(status, json=body, headers=dated)


def okta_error(code: str, summary: str = "summary", causes: Any = ()) -> dict[str, Any]:
    texts = [{"errorSummary": text} for text in causes] if isinstance(causes, list | tuple) else causes
    return {
        "errorCode": code,
        "errorSummary": summary,
        "errorLink": code,
        "errorId": "oaeSomeId1",
        "errorCauses": texts,
    }


def limits(limit: int, remaining: int, reset_in: int = 60) -> dict[str, str]:
    return {
        "x-rate-limit-limit": str(limit),
        "x-rate-limit-remaining": str(remaining),
        "x-rate-limit-reset": str(int(START.timestamp()) + reset_in),
    }


def org(
    handler: Handler,
    *,
    clock: StillClock | None = None,
    meter: Meters | None = None,
    make_auth: Callable[[HttpClient, RateBudget], Auth] | None = None,
) -> OktaOrg:
    return OktaOrg(
        "acme",
        URL,
        make_auth=make_auth or (lambda _http, _budget: ssws(Secret("00token"))),
        clock=clock or StillClock(),
        meter=meter or Meters(),
        transport=httpx.MockTransport(handler),
    )


def provider(handler: Handler, *, app: str = "zscalerbyz", **more: Any) -> OktaProvider:
    return OktaProvider(org(handler, **more), app_id=APP, app=app, base_url="https://scim.example.com/1/2/scim")
