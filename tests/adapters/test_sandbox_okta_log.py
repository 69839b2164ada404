"""The sandbox Okta's System Log: its filter, its paging, its delay; and the life of API tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest

from tests.adapters.okta_world import World, open_world

UPDATE = "application.lifecycle.update"


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


def read(world: World, **query: str) -> list[str]:
    """The reasons of the events found, in order."""
    return [event["outcome"]["reason"] for event in world.http.get("/api/v1/logs", params=query).json()]


def write(world: World, *reasons: str) -> None:
    for reason in reasons:
        world.okta.log.write(UPDATE, "SUCCESS", reason=reason)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('eventType eq "application.lifecycle.update"', "ac"),
        ('eventType sw "application."', "abc"),
        ('eventType sw "application.integration" and outcome.result eq "FAILURE"', "b"),
        ('eventType co "lifecycle" or eventType ew "failure"', "abc"),
        ('not (eventType co "lifecycle")', "b"),
        ('outcome.result ne "SUCCESS"', "b"),
        ('target.id eq "one"', "ab"),
        ('target.id eq "one" AND (outcome.reason eq "a" OR outcome.reason eq "c")', "a"),
        ('target.id pr and outcome.reason gt "a"', "bc"),
        ('outcome.reason le "b"', "ab"),
        ('target.id eq "on"', ""),
    ],
)
def test_the_filter_finds(world: World, text: str, found: str) -> None:
    for reason, kind, result, target in [
        ("a", UPDATE, "SUCCESS", "one"),
        ("b", "application.integration.authentication_failure", "FAILURE", "one"),
        ("c", UPDATE, "SUCCESS", "two"),
    ]:
        targets = [{"id": "00u", "type": "User"}, {"id": target, "type": "AppInstance"}]
        world.okta.log.write(kind, result, reason=reason, targets=targets)
    assert "".join(read(world, filter=text)) == found


@pytest.mark.parametrize(
    "query",
    [
        {"filter": 'target[type eq "User"].id eq "x"'},
        {"filter": 'published gt "2026-01-01T00:00:00Z"'},
        {"filter": 'eventType is "x"'},
        {"filter": 'eventType eq "x" and'},
        {"filter": '(eventType eq "x"'},
        {"filter": 'eventType eq "x" eventType eq "y"'},
        {"limit": "1001"},
        {"limit": "many"},
        {"since": "yesterday"},
        {"after": "here"},
        {"q": "x" * 41},
    ],
    ids=lambda query: next(iter(query.items())).__repr__()[:40],
)
def test_a_bad_query_is_a_400(world: World, query: dict[str, str]) -> None:
    assert world.http.get("/api/v1/logs", params=query).status_code == 400


def test_a_polling_query_pages_on_and_never_ends(world: World) -> None:
    write(world, "a", "b", "c")
    first = world.http.get("/api/v1/logs", params={"limit": "2"})
    second = world.http.get(first.links["next"]["url"])
    third = world.http.get(second.links["next"]["url"])
    pages = [[event["outcome"]["reason"] for event in page.json()] for page in (first, second, third)]
    assert pages == [["a", "b"], ["c"], []]
    write(world, "d")
    assert [e["outcome"]["reason"] for e in world.http.get(third.links["next"]["url"]).json()] == ["d"]
    assert first.links["self"]["url"].startswith(world.okta.url)


@pytest.mark.parametrize(("order", "found"), [("ASCENDING", ["a", "b", "c"]), ("DESCENDING", ["c", "b", "a"])])
def test_a_bounded_query_ends(world: World, order: str, found: list[str]) -> None:
    write(world, "a", "b", "c")
    query = {"until": "2999-01-01T00:00:00Z", "since": "2020-01-01T00:00:00Z", "sortOrder": order, "limit": "2"}
    first = world.http.get("/api/v1/logs", params=query)
    second = world.http.get(first.links["next"]["url"])
    assert [event["outcome"]["reason"] for event in first.json() + second.json()] == found
    assert "next" not in second.links


def test_since_leaves_out_what_was_before(world: World) -> None:
    write(world, "a")
    later = world.okta._state.now().isoformat().replace("+00:00", "Z")
    write(world, "b")
    assert read(world, since=later) == ["b"]
    assert read(world, since="2020-01-01T00:00:00Z", until=later) == ["a"]


def test_keywords_must_all_be_there(world: World) -> None:
    write(world, "red car", "red house")
    assert read(world, q="red HOUSE") == ["red house"]


def test_a_late_event_is_found_by_polling_on_though_it_was_published_before(world: World) -> None:
    world.okta.switches.log_delay_seconds = 0.6
    write(world, "late")
    world.okta.switches.log_delay_seconds = 0
    write(world, "early")
    polled = world.http.get("/api/v1/logs")
    assert [event["outcome"]["reason"] for event in polled.json()] == ["early"]
    found: list[httpx.Response] = [polled]
    deadline = time.monotonic() + 20
    while not found[-1].json() or len(found) == 1:
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
        found.append(world.http.get(found[-1].links["next"]["url"]))
    assert [event["outcome"]["reason"] for event in found[-1].json()] == ["late"]
    assert found[-1].json()[0]["published"] <= polled.json()[0]["published"]


# --- API tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["SSWS {}", "SSWS{}"], ids=["with the space", "without, as Okta's SDK sends it"])
def test_an_api_token_signs_in(world: World, form: str) -> None:
    answer = world.http.get("/api/v1/logs", headers={"Authorization": form.format(world.okta.api_token)})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ({"Authorization": "SSWS 00wrong"}, 401, "E0000011"),
        ({"Authorization": "Bearer 00wrong"}, 401, "E0000011"),
        ({"Authorization": "Basic 00wrong"}, 401, "E0000011"),
        ({"Authorization": ""}, 403, "E0000005"),
    ],
)
def test_who_does_not_sign_in_is_turned_away(world: World, header: dict[str, str], status: int, code: str) -> None:
    answer = world.http.get("/api/v1/logs", headers=header)
    assert (answer.status_code, answer.json()["errorCode"]) == (status, code)


def test_every_use_of_a_token_moves_its_expiry_and_thirty_idle_days_end_it(world: World) -> None:
    (before,) = world.http.get("/api/v1/api-tokens").json()
    world.okta.switches.clock_ahead_seconds = 29 * 86400
    (after,) = world.http.get("/api/v1/api-tokens").json()
    moved = datetime.fromisoformat(after["expiresAt"]) - datetime.fromisoformat(before["expiresAt"])
    assert moved.days in (28, 29)
    world.okta.switches.clock_ahead_seconds = 60 * 86400
    assert world.http.get("/api/v1/api-tokens").status_code == 401


def test_tokens_are_renamed_and_revoked_but_never_made_by_api(world: World) -> None:
    other = {"Authorization": f"SSWS {world.okta.add_api_token('hub')}"}
    token = world.http.get("/api/v1/api-tokens").json()[1]
    path = f"/api/v1/api-tokens/{token['id']}"
    assert world.http.put(path, json={"name": "renamed"}).json()["name"] == "renamed"
    assert world.http.put(path, json={}).status_code == 400
    assert world.http.post("/api/v1/api-tokens", json={"name": "x"}).status_code == 405
    assert world.http.get("/api/v1/logs", headers=other).status_code == 200
    assert world.http.delete(path).status_code == 204
    assert world.http.get("/api/v1/logs", headers=other).status_code == 401
    assert world.http.get(path).json()["errorSummary"] == f"Not found: Resource not found: {token['id']} (Token)"
    assert [event["eventType"] for event in world.okta.log.events] == [
        "system.api_token.update",
        "system.api_token.revoke",
    ]


def test_a_token_can_revoke_itself(world: World) -> None:
    assert world.http.delete("/api/v1/api-tokens/current").status_code == 204
    assert world.http.get("/api/v1/logs").status_code == 401
