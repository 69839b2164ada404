"""What the provider sends to Okta and how it reads good answers; requests are checked against Okta's OpenAPI."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from rotator import errors
from rotator.adapters.idp.okta import OktaHandOffProvider, OktaProvider, flattened, hand_off
from rotator.adapters.idp.okta_auth import ssws
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import ConnectionStatus
from tests.adapters.okta_stub import (
    APP,
    CONNECTION,
    ENABLED,
    KEY,
    START,
    Meters,
    StillClock,
    answer,
    limits,
    okta_error,
    org,
    provider,
)

SPEC = json.loads((Path(__file__).parent / "okta-openapi-subset.json").read_text())
FEATURES = [
    {
        "name": "USER_PROVISIONING",
        "status": "ENABLED",
        "description": "User provisioning settings from Okta to a downstream application",
        "capabilities": {
            "create": {"lifecycleCreate": {"status": "ENABLED"}},
            "update": {"password": {"status": "ENABLED", "seed": "RANDOM"}, "list": [1, None, True]},
        },
        "_links": {"self": {"href": "https://acme.okta.com/x"}},
    }
]


def violations(request: httpx.Request) -> list[str]:
    """Where a request leaves Okta's OpenAPI document: operation, parameters, media type, body."""
    for template, item in SPEC["paths"].items():
        if not re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), request.url.path):
            continue
        operation = item.get(request.method.lower())
        if operation is None:
            return [f"{request.method} is not offered on {template}"]
        wrong = _parameters(request, operation.get("parameters", []))
        body = operation.get("requestBody")
        if body is None:
            return wrong + (["a body where none is due"] if request.content else [])
        schema = body["content"].get(request.headers["content-type"])
        if schema is None:
            return [*wrong, "unknown media type"]
        checker = jsonschema.Draft4Validator({**schema["schema"], "components": SPEC["components"]})
        return wrong + [error.message for error in checker.iter_errors(json.loads(request.content))]
    return [f"no such path: {request.url.path}"]


def _parameters(request: httpx.Request, declared: list[dict[str, Any]]) -> list[str]:
    known = {parameter["name"]: parameter["schema"] for parameter in declared if parameter["in"] == "query"}
    wrong = []
    for name, value in request.url.params.items():
        schema = known.get(name)
        if schema is None:
            wrong.append(f"unknown parameter {name}")
        elif schema["type"] == "boolean" and value.lower() not in {"true", "false"}:
            wrong.append(f"{name} is no boolean")
        elif schema["type"] == "integer" and not value.isdigit():
            wrong.append(f"{name} is no number")
        elif "enum" in schema and value not in schema["enum"]:
            wrong.append(f"{name} is not in its list")
    return wrong


class Recording:
    """Answers everything well and keeps the requests."""

    def __init__(self, connection: Mapping[str, Any] = ENABLED) -> None:
        self.requests: list[httpx.Request] = []
        self._connection = dict(connection)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path.endswith("/features"):
            return answer(200, FEATURES)
        if request.url.path.endswith("/logs"):
            more = {"link": '<https://acme.okta.com/api/v1/logs?after=1_2&limit=1000>; rel="next"'}
            first = "after" not in request.url.params
            return answer(
                200,
                [{"eventType": "x", "uuid": "1", "published": "2026-03-01T12:00:01Z"}] if first else [],
                headers=more,
            )
        return answer(200, self._connection)


@pytest.mark.parametrize("app", ["zscalerbyz", "okta_org2org"])
def test_every_request_fits_oktas_openapi_document(app: str) -> None:
    okta = Recording()
    it = provider(okta, app=app)
    it.read()
    it.features()
    it.push(Secret(KEY))
    assert len(it.events(START)) == 1
    assert [request.method for request in okta.requests] == ["GET", "GET", "POST", "GET", "GET"]
    assert [violations(request) for request in okta.requests] == [[]] * 5


def test_the_check_against_the_document_can_fail() -> None:
    wrong = httpx.Request("POST", "https://acme.okta.com" + CONNECTION + "?activate=maybe&x=1", json={"profile": {}})
    assert len(violations(wrong)) == 3
    assert violations(httpx.Request("DELETE", "https://acme.okta.com" + CONNECTION))
    assert violations(httpx.Request("GET", "https://acme.okta.com/api/v1/tasks"))


def test_a_push_is_one_post_that_stores_and_switches_on() -> None:
    okta = Recording()
    answered = provider(okta).push(Secret(KEY))
    (request,) = okta.requests
    assert (request.method, request.url.path, request.url.query) == ("POST", CONNECTION, b"activate=TRUE")
    assert json.loads(request.content) == {
        "profile": {"authScheme": "TOKEN", "token": KEY},
        "baseUrl": "https://scim.example.com/1/2/scim",
    }
    assert request.headers["authorization"] == "SSWS 00token"
    assert (answered.status, answered.scheme, answered.base_url, answered.at) == (
        ConnectionStatus.ENABLED,
        "TOKEN",
        "https://scim.example.com/1/2/scim",
        START,
    )


def test_org2org_is_pushed_without_a_base_url_when_none_is_configured() -> None:
    okta = Recording()
    OktaProvider(org(okta), app_id=APP, app="okta_org2org").push(Secret(KEY))
    assert json.loads(okta.requests[0].content) == {"profile": {"authScheme": "TOKEN", "token": KEY}}


@pytest.mark.parametrize(
    ("app", "says"),
    [
        pytest.param("zscalerbyz", "needs base_url", id="Zscaler without its base URL"),
        pytest.param("acme_scim_1", "takes no token for app 'acme_scim_1'", id="an app that the API doesn't cover"),
    ],
)
def test_what_can_never_be_pushed_is_refused_before_anything_is_sent(app: str, says: str) -> None:
    with pytest.raises(errors.Misconfigured, match=says):
        OktaProvider(org(Recording()), app_id=APP, app=app)


@pytest.mark.parametrize(
    ("body", "status", "scheme"),
    [
        pytest.param({"authScheme": "TOKEN", "status": "DISABLED"}, ConnectionStatus.DISABLED, "TOKEN", id="a new app was recorded without a profile"),
        pytest.param({"status": "ENABLED", "profile": {"authScheme": "OAUTH2"}}, ConnectionStatus.ENABLED, "OAUTH2", id="OAuth 2.0"),
        pytest.param({"status": "ENABLED", "profile": None, "authScheme": 7}, ConnectionStatus.ENABLED, None, id="no scheme that can be read"),
    ],
)  # fmt: skip
def test_connections_are_read_leniently(body: dict[str, Any], status: ConnectionStatus, scheme: str | None) -> None:
    found = provider(Recording(body)).read()
    assert (found.status, found.scheme) == (status, scheme)


def test_features_are_flat_sorted_and_without_links() -> None:
    flat = dict(provider(Recording()).features())
    assert flat == {
        "USER_PROVISIONING.capabilities.create.lifecycleCreate.status": "ENABLED",
        "USER_PROVISIONING.capabilities.update.list.0": "1",
        "USER_PROVISIONING.capabilities.update.list.1": "null",
        "USER_PROVISIONING.capabilities.update.list.2": "true",
        "USER_PROVISIONING.capabilities.update.password.seed": "RANDOM",
        "USER_PROVISIONING.capabilities.update.password.status": "ENABLED",
        "USER_PROVISIONING.name": "USER_PROVISIONING",
        "USER_PROVISIONING.status": "ENABLED",
    }
    assert list(flat) == sorted(flat)


def test_features_in_another_order_are_the_same() -> None:
    two = [{"name": "A", "status": "X"}, {"name": "B", "status": "Y"}]
    assert flattened(two) == flattened(two[::-1])


@pytest.mark.parametrize(
    ("cause", "marker"),
    [
        pytest.param("Provisioning is not supported.", "not supported", id="an app without provisioning"),
        pytest.param("Provisioning is not enabled for the app instance.", "not enabled", id="a connection that is off"),
        pytest.param(
            {"errorSummary": "Provisioning is not supported."}, "not supported", id="causes that come as an object"
        ),
    ],
)
def test_an_app_without_features_has_a_marker(cause: str | dict[str, str], marker: str) -> None:
    causes = [cause] if isinstance(cause, str) else cause
    body = okta_error("E0000001", "Api validation failed: feature", causes)
    assert dict(provider(lambda _request: answer(400, body)).features()) == {"": marker}


def test_another_400_about_features_is_an_error() -> None:
    with pytest.raises(errors.Misconfigured):
        provider(lambda _request: answer(400, okta_error("E0000001", "Api validation failed: id"))).features()


def test_a_rotation_that_has_pushed_may_use_what_others_must_leave() -> None:
    """Limit 10, 3 left: kept for rotations under way."""
    it = provider(lambda _request: answer(200, ENABLED, headers=limits(10, 4)))
    it.read()  # learns of 4 left
    it.push(Secret(KEY))  # 3 left
    it.read()
    fresh = provider(lambda _request: answer(200, ENABLED, headers=limits(10, 3)))
    fresh.read()
    with pytest.raises(errors.RateLimited, match="kept for rotations under way"):
        fresh.read()
    with pytest.raises(errors.RateLimited):
        fresh.push(Secret(KEY))
    with pytest.raises(errors.RateLimited):  # a push that was held back does not make the next one urgent
        fresh.push(Secret(KEY))


def test_calls_that_got_no_answer_are_not_counted_for_ever() -> None:
    """Six of nine may go, three are kept; calls still in flight would come off too."""
    sent = 0

    def okta(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        sent += 1
        if sent in {2, 3, 4}:
            raise httpx.ConnectError("no", request=request)
        first_window, next_window = limits(10, 9, 5), limits(10, 9, 65)
        return answer(200, ENABLED, headers={1: first_window, 5: next_window}.get(sent))

    it = provider(okta)
    it.read()
    for _ in range(3):
        with pytest.raises(errors.Transient):
            it.read()
    it.read()
    for _ in range(6):
        it.read()
    with pytest.raises(errors.RateLimited):
        it.read()


@pytest.mark.parametrize("failure", [errors.Refused, errors.Ambiguous])
def test_after_a_refused_or_unclear_push_the_way_back_is_urgent(failure: type[errors.PortError]) -> None:
    bad = answer(400, okta_error("E0000001", "Api validation failed: credential"), headers=limits(10, 3))
    if failure is errors.Ambiguous:
        bad = answer(500, headers=limits(10, 3))
    answers = [bad, answer(200, ENABLED, headers=limits(10, 2)), answer(200, ENABLED, headers=limits(10, 1))]
    it = provider(lambda _request: answers.pop(0))
    with pytest.raises(failure):
        it.push(Secret(KEY))
    it.push(Secret("old"))
    assert it.read().status is ConnectionStatus.ENABLED


def test_urgency_ends_an_hour_after_the_push() -> None:
    clock = StillClock()
    left = [limits(10, 9), limits(10, 3, 3600 + 60)]
    it = provider(lambda _request: answer(200, ENABLED, headers=left.pop(0)), clock=clock)
    it.push(Secret(KEY))
    clock.pass_(3600)
    it.read()
    with pytest.raises(errors.RateLimited):
        it.read()


@pytest.mark.parametrize(
    ("url", "app", "expected"),
    [
        pytest.param("https://acme.okta.com", "acme_scim_1", "https://acme-admin.okta.com/admin/app/acme_scim_1/instance/0oa1/#tab-user-management/api-credentials", id="an Okta domain"),
        pytest.param("https://acme.oktapreview.com", "x", "https://acme-admin.oktapreview.com/admin/app/x/instance/0oa1/#tab-user-management/api-credentials", id="a preview org"),
        pytest.param("https://acme-admin.okta.com", "x", "https://acme-admin.okta.com/admin/app/x/instance/0oa1/#tab-user-management/api-credentials", id="the admin address itself"),
        pytest.param("https://login.acme.example", "x", "https://login.acme.example/admin/app/x/instance/0oa1/#tab-user-management/api-credentials", id="a custom domain"),
        pytest.param("https://acme.okta.com", "", "https://acme-admin.okta.com/admin/apps/active", id="no app name"),
        pytest.param("http://127.0.0.1:8080", "a/../b", "http://127.0.0.1:8080/admin/app/a%2F..%2Fb/instance/0oa1/#tab-user-management/api-credentials", id="a name with a path in it"),
    ],
)  # fmt: skip
def test_the_link_for_a_person(url: str, app: str, expected: str) -> None:
    assert hand_off(url, app=app, app_id="0oa1", field="API Token", header="Bearer {key}").where == expected


@pytest.mark.parametrize(
    ("header", "form"),
    [
        pytest.param("{key}", "the key alone, without blanks or line breaks", id="a bare key"),
        pytest.param("Bearer {key}", 'the key alone where the field is headed "Bearer", otherwise with "Bearer " before it', id="a prefixed key"),
    ],
)  # fmt: skip
def test_a_person_is_told_how_to_write_the_key(header: str, form: str) -> None:
    told = hand_off("https://acme.okta.com", app="x", app_id="0oa1", field="Secret Token", header=header)
    assert (told.field, told.form) == ("Secret Token", form)
    assert any("Secret Token" in step for step in told.steps)


def test_a_hand_off_sends_nothing_but_log_queries() -> None:
    okta = Recording()
    it = OktaHandOffProvider(org(okta), app_id=APP)
    assert it.capabilities.push is By.PERSON
    for call in (it.read, it.features, lambda: it.push(Secret(KEY))):
        with pytest.raises(errors.Unsupported):
            call()
    assert okta.requests == []
    it.events(START - timedelta(minutes=1))
    assert {request.url.path for request in okta.requests} == {"/api/v1/logs"}


def test_the_orgs_url_has_no_path() -> None:
    with pytest.raises(errors.Misconfigured, match="no /oauth2/default"):
        OktaOrg(
            "acme",
            "https://acme.okta.com/oauth2/default",
            make_auth=lambda _http, _budget: ssws(Secret("x")),
            clock=StillClock(),
            meter=Meters(),
        )
