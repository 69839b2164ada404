"""Every shape in which Okta says no, and what it means for a push, a read and the log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from rotator import errors
from rotator.adapters.idp.okta import OktaProvider
from rotator.core.secret import Secret
from tests.adapters.okta_stub import ENABLED, KEY, START, Meters, answer, limits, okta_error, provider

UNKNOWN = {"status": "UNKNOWN", "profile": {"authScheme": "UNKNOWN"}}
SCOPE_HEADER = (
    'Bearer authorization_uri="http://acme.okta.com/oauth2/v1/authorize", realm="http://acme.okta.com", '
    'scope="okta.apps.manage", error="insufficient_scope", error_description="The access token provided does not '
    'contain the required scopes.", resource="/api/v1/apps"'
)
HTML = "<!doctype html><html><body>Bad gateway</body></html>"


def raising(failure: type[httpx.TransportError]) -> Callable[[httpx.Request], httpx.Response]:
    def handler(request: httpx.Request) -> httpx.Response:
        raise failure(f"something with {request.content!r}", request=request)

    return handler


def giving(status: int, body: Any = None, **more: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: answer(status, body, **more)


E = okta_error
PUSHES = [
    ("the target refuses the key", giving(400, E("E0000001", "Api validation failed: credential", ["Verification failed: Invalid URL. Not authorized."])), errors.Refused, "tested the key"),
    ("the refusal's cause stands in the summary", giving(400, E("E0000001", "Api validation failed: credential. Verification failed: Not authorized.")), errors.Refused, "E0000001"),
    ("the refusal's causes are an object", giving(400, E("E0000001", "Api validation failed: Credential", {"errorSummary": "x"})), errors.Refused, ""),
    ("another field is invalid", giving(400, E("E0000001", "Api validation failed: baseUrl")), errors.Misconfigured, "HTTP 400 E0000001, error id oaeSomeId1"),
    ("the body is malformed", giving(400, E("E0000003")), errors.Misconfigured, "E0000003"),
    ("a 400 without a body", giving(400), errors.Misconfigured, "HTTP 400"),
    ("media type", giving(400, E("E0000021")), errors.Misconfigured, "E0000021"),
    ("the app demands DPoP", giving(400, {"error": "invalid_request", "error_description": "The resource request requires a DPoP proof."}), errors.Denied, 'dpop = "on"'),
    ("our API token has expired", giving(401, E("E0000011")), errors.Denied, "expired, was revoked, or its owner"),
    ("our sign-in failed", giving(401, E("E0000004")), errors.Denied, "own API token is wrong"),
    ("a feature is not licensed", giving(401, E("E0000015")), errors.Denied, "licence"),
    ("no session", giving(403, E("E0000005")), errors.Denied, "service app"),
    ("a role is missing", giving(403, E("E0000006")), errors.Denied, "admin role"),
    ("the app's state forbids it", giving(403, E("E0000038")), errors.Denied, "state"),
    ("a scope is missing: empty body and a header", giving(403, headers={"www-authenticate": SCOPE_HEADER}), errors.Denied, "the scope okta.apps.manage"),
    ("a scope is missing and the header names none", giving(403, headers={"www-authenticate": 'Bearer error="insufficient_scope"'}), errors.Denied, "the scope okta.apps.manage"),
    ("a 403 with nothing at all", giving(403), errors.Denied, "okta.apps.manage"),
    ("a 403 from a proxy, in HTML", giving(403, text=HTML), errors.Denied, "HTTP 403"),
    ("the app is gone", giving(404, E("E0000007")), errors.NotFound, "app_id"),
    ("the path is unknown", giving(404, E("E0000008")), errors.NotFound, "URL"),
    ("the method is not supported", giving(405, E("E0000022")), errors.Unsupported, "E0000022"),
    ("an unsupported operation", giving(501, E("E0000060")), errors.Unsupported, "E0000060"),
    ("policies are being reconciled", giving(423, E("E0000239")), errors.Transient, "E0000239"),
    ("the rate limit", giving(429, E("E0000047"), headers=limits(10, 0, 30)), errors.RateLimited, "rate limit"),
    ("the concurrency limit", giving(429, E("E0000047"), headers=limits(0, 0, 30)), errors.RateLimited, "in flight"),
    ("a 429 without headers", giving(429), errors.RateLimited, "429"),
    ("an internal error after it was sent", giving(500, E("E0000009")), errors.Ambiguous, "E0000009"),
    ("a gateway's HTML 502", giving(502, text=HTML), errors.Ambiguous, "HTTP 502"),
    ("a gateway's time-out", giving(504, text=HTML), errors.Ambiguous, "HTTP 504"),
    ("read-only mode", giving(503, E("E0000010")), errors.Transient, "E0000010"),
    ("a redirect to another host", giving(302, headers={"location": "https://evil.example/login?token=abc"}), errors.Misconfigured, "evil.example"),
    ("200 and UNKNOWN", giving(200, UNKNOWN), errors.Unsupported, "200 UNKNOWN"),
    ("200 and an unknown scheme", giving(200, {"status": "DISABLED", "profile": {"authScheme": "UNKNOWN"}}), errors.Unsupported, "UNKNOWN"),
    ("200 and a sign-in page", giving(200, text=HTML), errors.Ambiguous, "web page"),
    ("200 and cut JSON", giving(200, text='{"status": "ENAB'), errors.Ambiguous, "no JSON"),
    ("200 and nothing", giving(200), errors.Ambiguous, "no provisioning connection"),
    ("200 and a list", giving(200, [ENABLED]), errors.Ambiguous, "no provisioning connection"),
    ("200 and a status of tomorrow", giving(200, {"status": "PENDING"}), errors.Ambiguous, "no provisioning connection"),
    ("no connection", raising(httpx.ConnectError), errors.Transient, "nothing was sent"),
    ("no connection in time", raising(httpx.ConnectTimeout), errors.Transient, "nothing was sent"),
    ("no free connection", raising(httpx.PoolTimeout), errors.Transient, "nothing was sent"),
    ("no answer in time", raising(httpx.ReadTimeout), errors.Ambiguous, "no whole answer in time"),
    ("sending takes too long", raising(httpx.WriteTimeout), errors.Ambiguous, "no whole answer in time"),
    ("a reset", raising(httpx.ReadError), errors.Ambiguous, "broke"),
    ("the server hangs up", raising(httpx.RemoteProtocolError), errors.Ambiguous, "broke"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("handler", "expected", "says"), [pytest.param(*case, id=sentence) for sentence, *case in PUSHES]
)
def test_what_a_push_that_fails_means(
    handler: Callable[[httpx.Request], httpx.Response], expected: type[errors.PortError], says: str
) -> None:
    meter = Meters()
    with pytest.raises(errors.PortError) as raised:
        provider(handler, meter=meter).push(Secret(KEY))
    assert type(raised.value) is expected
    assert says in str(raised.value)
    assert str(raised.value) == raised.value.args[0]
    assert KEY not in str(raised.value)
    assert "token=" not in str(raised.value)
    assert raised.value.__cause__ is None
    word = {"RateLimited": "rate_limited", "NotFound": "not_found"}.get(expected.__name__, expected.__name__.lower())
    assert meter.calls == [("okta:acme", "push", word)]


READS = [
    ("an internal error", giving(500, E("E0000009")), errors.Transient),
    ("no answer in time", raising(httpx.ReadTimeout), errors.Transient),
    ("a reset", raising(httpx.ReadError), errors.Transient),
    ("a sign-in page", giving(200, text=HTML), errors.Misconfigured),
    ("a body that is no such object", giving(200, {"hello": "world"}), errors.Misconfigured),
    ("400 about a credential, which a read never gave", giving(400, E("E0000001", "Api validation failed: credential")), errors.Misconfigured),
    ("UNKNOWN", giving(200, UNKNOWN), errors.Unsupported),
    ("403", giving(403), errors.Denied),
]  # fmt: skip


@pytest.mark.parametrize(("handler", "expected"), [pytest.param(*case, id=sentence) for sentence, *case in READS])
def test_what_a_read_that_fails_means(
    handler: Callable[[httpx.Request], httpx.Response], expected: type[errors.PortError]
) -> None:
    with pytest.raises(errors.PortError) as raised:
        provider(handler).read()
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    ("call", "scope"),
    [
        pytest.param(lambda it: it.read(), "okta.apps.read", id="read"),
        pytest.param(lambda it: it.features(), "okta.apps.read", id="features"),
        pytest.param(lambda it: it.push(Secret(KEY)), "okta.apps.manage", id="push"),
        pytest.param(lambda it: it.events(START), "okta.logs.read", id="events"),
    ],
)
def test_a_403_names_the_scope_that_the_call_needs(call: Callable[[OktaProvider], object], scope: str) -> None:
    with pytest.raises(errors.Denied, match=scope):
        call(provider(giving(403)))


def test_a_missing_scope_is_the_one_that_okta_names() -> None:
    challenge = {"www-authenticate": SCOPE_HEADER.replace("okta.apps.manage", "okta.apps.manage okta.other.read")}
    with pytest.raises(errors.Denied, match=r"Grant the service app the scope okta\.apps\.manage okta\.other\.read$"):
        provider(giving(403, headers=challenge)).read()


@pytest.mark.parametrize("code", ["E0000003", "E0000099", ""])
def test_only_the_validation_error_about_the_credential_refuses_the_key(code: str) -> None:
    with pytest.raises(errors.Misconfigured):
        provider(giving(400, E(code, "Api validation failed: credential"))).push(Secret(KEY))


def test_a_rate_limit_is_waited_out_by_the_servers_clock() -> None:
    with pytest.raises(errors.RateLimited) as raised:
        provider(giving(429, E("E0000047"), headers=limits(10, 0, 30))).read()
    assert raised.value.reset_at is not None
    assert timedelta(seconds=31) <= raised.value.reset_at - START <= timedelta(seconds=34.1)


def test_a_concurrency_limit_is_waited_out_for_seconds_only() -> None:
    with pytest.raises(errors.RateLimited) as raised:
        provider(giving(429, E("E0000047"), headers=limits(0, 0, 30))).read()
    assert raised.value.reset_at is not None
    assert timedelta(seconds=1) <= raised.value.reset_at - START <= timedelta(seconds=6)


def test_what_a_server_puts_into_codes_ids_and_scopes_is_not_shown() -> None:
    nasty = {
        "errorCode": f"E {KEY}",
        "errorId": f"id {KEY}",
        "errorSummary": KEY,
        "errorCauses": [{"errorSummary": KEY}],
    }
    challenge = {"www-authenticate": f'Bearer error="insufficient_scope", scope="{KEY} 1"'}
    for status in (400, 401, 403, 404, 500):
        with pytest.raises(errors.PortError) as raised:
            provider(giving(status, nasty, headers=challenge)).push(Secret(KEY))
        assert KEY not in str(raised.value)
