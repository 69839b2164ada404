"""The sandbox Okta's limits and faults: what a caller sees when Okta, or the way to it, has a bad day."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import httpx
import pytest

from rotator.sandbox.okta_limits import FaultKind, bucket_of
from tests.adapters.okta_world import World, open_world

LIMIT_HEADERS = ("x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-reset")
POST_CONNECTION = ("POST", "/connections/default$")


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


def limits(answer: httpx.Response) -> list[int]:
    return [int(answer.headers[name]) for name in LIMIT_HEADERS]


@pytest.mark.parametrize(
    ("path", "bucket"),
    [
        ("/api/v1/apps", "apps"),
        ("/api/v1/apps/0oa1", "app"),
        ("/api/v1/apps/0oa1/connections/default", "apps"),
        ("/api/v1/apps/0oa1/features/USER_PROVISIONING", "apps"),
        ("/api/v1/apps/0oa1/group-push/mappings", "apps"),
        ("/api/v1/logs", "logs"),
        ("/api/v1/groups/rules", "groups"),
        ("/api/v1/api-tokens", "api"),
        ("/oauth2/v1/token", "token"),
    ],
)
def test_each_path_counts_in_its_bucket(path: str, bucket: str) -> None:
    assert bucket_of(path) == bucket


def test_a_window_counts_down_answers_429_and_opens_anew(world: World) -> None:
    app = world.app()
    world.okta.switches.rate_limits["apps"] = 3
    world.okta.switches.rate_window_seconds = 1.5
    path = f"/api/v1/apps/{app}/connections/default"
    answers = [world.http.get(path) for _ in range(4)]
    assert [limits(answer)[:2] for answer in answers] == [[3, 2], [3, 1], [3, 0], [3, 0]]
    assert len({limits(answer)[2] for answer in answers}) == 1  # fixed, from the first call
    refused = answers[3]
    assert (refused.status_code, refused.json()["errorCode"]) == (429, "E0000047")
    assert "retry-after" not in refused.headers
    assert world.http.get("/api/v1/logs").status_code == 200  # another bucket
    deadline = time.monotonic() + 20
    while world.http.get(path).status_code == 429:
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)
    assert world.okta.calls_in("apps") >= 5
    assert world.okta.calls_in("logs") == 1


def test_a_refused_call_changes_nothing(world: World) -> None:
    world.okta.switches.rate_limits["apps"] = 0
    app = world.app()
    assert world.push(app, "new-key").status_code == 429
    assert (world.okta.held_key(app), world.target.calls) == ("old-key", [])


def test_too_many_calls_in_flight_are_a_429_with_both_numbers_zero(world: World) -> None:
    app = world.app()
    world.okta.switches.concurrency_limit = 1
    world.okta.switches.read_seconds = 0.5
    path = f"/api/v1/apps/{app}/connections/default"
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: world.http.get(path), range(2)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert limits(refused)[:2] == [0, 0]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FaultKind.RATE_LIMIT, 429, "E0000047"),
        (FaultKind.CONCURRENCY, 429, "E0000047"),
        (FaultKind.READ_ONLY, 503, "E0000010"),
        (FaultKind.DENIED, 403, "E0000006"),
        (FaultKind.INVALID_TOKEN, 401, "E0000011"),
        (FaultKind.EMPTY_403, 403, None),
        (FaultKind.HTML_502, 502, None),
    ],
)
def test_a_fault_before_the_work_answers_its_shape_once_and_changes_nothing(
    world: World, kind: FaultKind, status: int, code: str | None
) -> None:
    app = world.app()
    world.okta.faults.add(kind, *POST_CONNECTION)
    assert world.read(app)["status"] == "ENABLED"  # another method does not meet it
    answer = world.push(app, "new-key")
    assert answer.status_code == status
    assert code is None or answer.json()["errorCode"] == code
    assert (world.okta.held_key(app), world.target.calls) == ("old-key", [])
    assert world.push(app, "new-key").status_code == 200
    assert world.okta.faults.fired == [kind]


def test_the_headers_of_a_429_tell_it_from_a_concurrency_429(world: World) -> None:
    app = world.app()
    path = f"/api/v1/apps/{app}/connections/default"
    world.okta.faults.add(FaultKind.RATE_LIMIT)
    world.okta.faults.add(FaultKind.CONCURRENCY)
    assert limits(world.http.get(path))[:2] == [6000, 0]
    assert limits(world.http.get(path))[:2] == [0, 0]


def test_an_empty_403_says_the_missing_scope_in_its_header_only(world: World) -> None:
    world.okta.faults.add(FaultKind.EMPTY_403)
    answer = world.http.get("/api/v1/logs")
    assert answer.content == b""
    assert 'scope="okta.logs.read", error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_a_500_after_storing_hides_that_the_key_was_taken(world: World) -> None:
    app = world.app()
    world.okta.faults.add(FaultKind.ERROR_AFTER_STORING, *POST_CONNECTION)
    answer = world.push(app, "new-key")
    assert (answer.status_code, answer.json()["errorCode"]) == (500, "E0000009")
    assert (world.okta.held_key(app), world.read(app)["status"]) == ("new-key", "ENABLED")


@pytest.mark.parametrize(
    ("kind", "hold", "error", "held"),
    [
        pytest.param(
            FaultKind.TIMEOUT_AFTER_STORING, 60.0, httpx.ReadTimeout, "new-key", id="held until the client gives up"
        ),
        pytest.param(
            FaultKind.TIMEOUT_AFTER_STORING,
            0.0,
            httpx.RemoteProtocolError,
            "new-key",
            id="stored, then dropped at once",
        ),
        pytest.param(
            FaultKind.DROPPED_BEFORE_STORING, 0.0, httpx.RemoteProtocolError, "old-key", id="dropped, not stored"
        ),
    ],
)
def test_a_lost_answer_leaves_the_caller_without_a_word(
    world: World, kind: FaultKind, hold: float, error: type[Exception], held: str
) -> None:
    app = world.app()
    world.okta.faults.add(kind, *POST_CONNECTION, hold_seconds=hold)
    world.http.timeout = httpx.Timeout(1.0 if hold else 10.0)
    with pytest.raises(error):
        world.push(app, "new-key")
    assert world.okta.held_key(app) == held
    assert world.okta.calls[-1][1:] == ("POST", f"/api/v1/apps/{app}/connections/default", 0)
    assert world.read(app)["status"] == "ENABLED"


def test_faults_fire_as_often_as_asked_and_can_be_taken_back(world: World) -> None:
    app = world.app()
    world.okta.faults.add(FaultKind.READ_ONLY, "GET", "/connections/", times=2)
    statuses = [world.http.get(f"/api/v1/apps/{app}/connections/default").status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    world.okta.faults.add(FaultKind.READ_ONLY)
    world.okta.faults.clear()
    assert world.read(app)["status"] == "ENABLED"


def test_every_call_is_recorded_in_order(world: World) -> None:
    app = world.app()
    world.read(app)
    world.push(app, "wrong-key")
    path = f"/api/v1/apps/{app}/connections/default"
    assert [call[1:] for call in world.okta.calls] == [("GET", path, 200), ("POST", path, 400)]
    assert world.okta.calls[0].at <= world.okta.calls[1].at


@pytest.mark.parametrize("slow", ["read_seconds", "write_seconds"])
def test_an_org_can_be_as_slow_as_the_recorded_one(world: World, slow: str) -> None:
    app = world.app()
    setattr(world.okta.switches, slow, 0.4)
    began = time.monotonic()
    world.read(app)
    read = time.monotonic()
    world.move(app, "deactivate")
    took = {"read_seconds": read - began, "write_seconds": time.monotonic() - read}
    assert took[slow] >= 0.4


def test_the_orgs_clock_may_be_ahead(world: World) -> None:
    world.okta.switches.clock_ahead_seconds = 3600
    answer = world.http.get("/api/v1/logs")
    assert parsedate_to_datetime(answer.headers["date"]).timestamp() > time.time() + 3500
    assert limits(answer)[2] > time.time() + 3500


def test_an_org_that_was_down_comes_back_at_the_same_place_with_its_memory(world: World) -> None:
    app = world.app()
    world.push(app, "new-key")
    where = world.okta.url
    world.okta.stop()
    with pytest.raises(httpx.ConnectError):
        world.read(app)
    world.okta.start()
    assert (world.okta.url, world.read(app)["status"], world.okta.held_key(app)) == (where, "ENABLED", "new-key")
