"""Which log events speak about the key, and that none is missed, followed elsewhere or shown with a key in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from rotator import errors
from rotator.adapters.idp.okta import OktaHandOffProvider
from rotator.adapters.idp.okta_log import EVENTS, PAGES, kind_of
from rotator.ports import EventKind
from tests.adapters.okta_stub import APP, START, answer, org

BAD, CHANGED, PROVED, OTHER = EventKind.KEY_BAD, EventKind.CHANGED, EventKind.PROVED, EventKind.OTHER
GROUP_FAILED = "application.provision.group_push.mapping.update.or.delete.failed.with.error"
UNAUTHORIZED = "Automatic provisioning of user x to app y failed: Unauthorized. Errors reported by remote server: no"


@pytest.mark.parametrize(
    ("event_type", "result", "reason", "kind"),
    [
        pytest.param("application.configuration.update", "FAILURE", "", BAD, id="Okta could not verify the credentials"),
        pytest.param("application.configuration.update", "SUCCESS", "", OTHER, id="it could"),
        pytest.param("application.integration.authentication_failure", "FAILURE", "", BAD, id="the target refused Okta"),
        pytest.param("application.integration.authentication_failure", "", "", BAD, id="the same without an outcome"),
        pytest.param("application.integration.rate_limit_exceeded", "FAILURE", "Unauthorized", OTHER, id="the target's rate limit"),
        pytest.param("application.integration.general_failure", "FAILURE", "", OTHER, id="another trouble at the target"),
        pytest.param("application.configuration.import_schema", "FAILURE", "Unauthorized", BAD, id="no schema, for the key"),
        pytest.param("application.configuration.import_schema", "FAILURE", "timed out", OTHER, id="no schema, for a time-out"),
        pytest.param("application.provision.user.push", "SUCCESS", "", PROVED, id="a user was created"),
        pytest.param("application.provision.user.push", "FAILURE", UNAUTHORIZED, BAD, id="a user was not created: unauthorized"),
        pytest.param("application.provision.user.push", "FAILURE", "HTTP 409: userName taken", OTHER, id="a user was not created: conflict"),
        pytest.param("application.provision.user.push", "DEFERRED", "Unauthorized", OTHER, id="a user will be created later"),
        pytest.param("application.provision.user.push_profile", "SUCCESS", "", PROVED, id="a profile was pushed"),
        pytest.param("application.provision.user.deactivate", "SUCCESS", "", PROVED, id="a user was deactivated"),
        pytest.param("application.provision.user.verify_exists", "FAILURE", "not authorized", BAD, id="looking a user up was refused"),
        pytest.param("app.user_management.push_new_user_success", "SUCCESS", "", PROVED, id="the older form of success"),
        pytest.param("application.provision.group_push.pushed", "SUCCESS", "", PROVED, id="a group was pushed"),
        pytest.param(GROUP_FAILED, "FAILURE", "Bad credentials", BAD, id="a group push gave up for the key"),
        pytest.param(GROUP_FAILED, "FAILURE", "HTTP 500", OTHER, id="a group push gave up for an outage"),
        pytest.param(GROUP_FAILED[:-11], "FAILURE", "Unauthorized", OTHER, id="a group push will be retried"),
        pytest.param("application.provision.integration.call_api", "SUCCESS", "", OTHER, id="the generic API call"),
        pytest.param("application.lifecycle.update", "SUCCESS", "", CHANGED, id="somebody changed the app"),
        pytest.param("application.lifecycle.update", "FAILURE", "", OTHER, id="somebody could not"),
        pytest.param("application.lifecycle.deactivate", "SUCCESS", "", CHANGED, id="somebody switched the app off"),
        pytest.param("group.user_membership.rule.invalidate", "SUCCESS", "", OTHER, id="a group rule broke: no key in it"),
        pytest.param("something.new", "FAILURE", "Unauthorized", OTHER, id="a type of tomorrow"),
    ],
)  # fmt: skip
def test_what_an_event_says_about_the_key(event_type: str, result: str, reason: str, kind: EventKind) -> None:
    assert kind_of(event_type, result, reason) is kind


def event(number: int, event_type: str = "application.lifecycle.update", **more: Any) -> dict[str, Any]:
    moment = START + timedelta(seconds=number)
    return {
        "uuid": f"event-{number}",
        "published": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "eventType": event_type,
        "outcome": {"result": "SUCCESS", "reason": None},
        **more,
    }


def next_link(query: str = "after=1", base: str = "https://acme.okta.com/api/v1/logs") -> dict[str, str]:
    return {"link": f'<{base}?limit=1000>; rel="self", <{base}?{query}>; rel="next"'}


def events(handler: Callable[[httpx.Request], httpx.Response], since: datetime = START) -> list[str]:
    return [found.id for found in OktaHandOffProvider(org(handler), app_id=APP).events(since)]


def test_a_polling_query_is_read_until_a_page_is_empty() -> None:
    seen: list[httpx.Request] = []
    pages = {"": [event(2), event(1)], "1": [event(3), event(3)], "2": []}

    def okta(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        after = request.url.params.get("after", "")
        return answer(200, pages[after], headers=next_link(f"after={len(seen)}&filter=a,b"))

    assert events(okta) == ["event-1", "event-2", "event-3"]
    first = seen[0].url.params
    assert first["since"] == "2026-03-01T12:00:00.000Z"
    assert first["sortOrder"] == "ASCENDING"
    assert first["filter"] == f'target.id eq "{APP}"'
    assert "until" not in first
    assert seen[1].url.params["filter"] == "a,b"
    assert len(seen) == 3


def test_events_published_before_the_moment_asked_for_are_left_out_though_stored_later() -> None:
    assert events(lambda _request: answer(200, [event(-1), event(0), event(1)])) == ["event-0", "event-1"]


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(next_link(base="https://evil.example/api/v1/logs"), id="another host"),
        pytest.param(next_link(base="http://acme.okta.com/api/v1/logs"), id="without TLS"),
        pytest.param(next_link(base="https://acme.okta.com:8443/api/v1/logs"), id="another port"),
        pytest.param(next_link(base="https://acme.okta.com/api/v1/users"), id="another path"),
        pytest.param(next_link(base="https://acme.okta.com@evil.example/api/v1/logs"), id="a user name that looks like the host"),
        pytest.param(next_link(base="https://[broken/api/v1/logs"), id="no URL"),
    ],
)  # fmt: skip
def test_a_next_page_elsewhere_is_not_followed(link: dict[str, str]) -> None:
    seen: list[str] = []

    def okta(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return answer(200, [event(1)], headers=link)

    with pytest.raises(errors.Misconfigured, match="another address"):
        events(okta)
    assert len(seen) == 1


def test_in_a_flood_of_pushes_the_event_that_matters_is_still_found() -> None:
    queries: list[str] = []

    def okta(request: httpx.Request) -> httpx.Response:
        wanted = request.url.params["filter"]
        queries.append(wanted)
        if "eventType" in wanted:
            bad = event(9999, "application.integration.authentication_failure", outcome={"result": "FAILURE"})
            return answer(200, [bad], headers={})
        number = len(queries)
        page = [event(number, "application.provision.user.push")]
        return answer(200, page, headers=next_link(f"after={number}&filter=target.id"))

    found = OktaHandOffProvider(org(okta), app_id=APP).events(START)
    assert [item.kind for item in found] == [PROVED] * PAGES + [BAD]
    assert len(queries) == PAGES + 1
    assert 'eventType eq "application.lifecycle.update"' in queries[-1]
    assert "provision.user.push" not in queries[-1]


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param("remote server: invalid token canary-7f3a9c51d2e84b06-key", id="the target repeats the key"),
        pytest.param("header was Authorization: Bearer secret", id="the target repeats the header"),
        pytest.param('{"token":"canary-7f3a9c51d2e84b06-key"}', id="the target repeats it in JSON"),
    ],
)
def test_a_key_that_the_target_repeats_is_masked(reason: str) -> None:
    item = event(1, "application.provision.user.push", outcome={"result": "FAILURE", "reason": reason})
    (found,) = OktaHandOffProvider(org(lambda _request: answer(200, [item])), app_id=APP).events(START)
    assert "canary" not in found.text
    assert "secret" not in found.text
    assert found.text.startswith("application.provision.user.push FAILURE")


def test_texts_are_cut() -> None:
    item = event(1, outcome={"result": "FAILURE", "reason": "word " * 500})
    (found,) = OktaHandOffProvider(org(lambda _request: answer(200, [item])), app_id=APP).events(START)
    assert len(found.text) == 200


def test_what_is_no_event_is_passed_over() -> None:
    junk: list[Any] = [
        None,
        7,
        {},
        {"uuid": 1, "published": [], "eventType": None},
        event(1) | {"published": "yesterday"},
    ]
    assert events(lambda _request: answer(200, [*junk, event(2), event(3) | {"outcome": "none"}])) == [
        "event-2",
        "event-3",
    ]


def test_an_answer_that_is_no_list_is_an_error() -> None:
    with pytest.raises(errors.Misconfigured):
        events(lambda _request: answer(200, {"errorCode": "x"}))


def test_every_rule_of_the_table_is_about_an_event_type() -> None:
    assert len(EVENTS) == 21
    assert all(name.startswith(("application.", "app.")) for name in EVENTS)
