"""The sandbox target's switches: each makes it misbehave as some real target does, and as nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from rotator.sandbox.target import TargetSandbox
from rotator.sandbox.target_faults import Fault
from rotator.sandbox.target_keys import NEVER

USER = "urn:ietf:params:scim:schemas:core:2.0:User"


@pytest.fixture
def target() -> Iterator[TargetSandbox]:
    with TargetSandbox("grafana") as running:
        yield running


@pytest.fixture(scope="module")  # making a client costs more than all that a test does with it
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


def admin(
    target: TargetSandbox, http: httpx.Client, operation: str, key_id: str = "", **options: Any
) -> httpx.Response:
    route = next(route for route in target.api.routes if route.operation == operation)
    headers = {"Authorization": f"Bearer {target.admin_token}"}
    return http.request(route.method, target.url + route.path.format(key_id=key_id), headers=headers, **options)


def mint(target: TargetSandbox, http: httpx.Client, name: str = "new") -> tuple[str, str]:
    answer = admin(target, http, "mint", json={"name": name}).json()
    return answer["key"], str(answer["id"])


def probe(target: TargetSandbox, http: httpx.Client, key: str, path: str = "/Users?count=1") -> httpx.Response:
    return http.get(target.scim_url + path, headers={"Authorization": f"Bearer {key}"})


def create_user(target: TargetSandbox, http: httpx.Client, key: str) -> int:
    body = {"schemas": [USER], "userName": "x"}
    headers = {"Authorization": f"Bearer {key}"}
    return http.post(f"{target.scim_url}/Users", json=body, headers=headers).status_code


def wait_for(condition: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(400):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"never came true: {what}")


# --- a fresh key ------------------------------------------------------------------------------------------------------


def test_a_fresh_key_is_refused_while_it_settles_and_an_old_one_is_not(
    target: TargetSandbox, http: httpx.Client
) -> None:
    old, _ = target.seed_key("old")
    target.behaviour.settle_seconds = 1.5
    new, _ = mint(target, http)
    assert probe(target, http, new).status_code == 401
    assert not target.accepts(new)
    assert target.accepts(old)
    wait_for(lambda: target.accepts(new), "the new key settled")
    assert probe(target, http, new).status_code == 200


def test_nodes_that_disagree_answer_200_401_200(target: TargetSandbox, http: httpx.Client) -> None:
    target.behaviour.first_answers = (True, False, True, False)
    new, _ = mint(target, http)
    other, _ = mint(target, http, "other")
    assert [probe(target, http, new).status_code for _ in range(6)] == [200, 401, 200, 401, 200, 200]
    assert probe(target, http, other).status_code == 200, "each key counts for itself"
    assert probe(target, http, other).status_code == 401


def test_a_key_that_is_minted_dead_is_listed_and_never_works(target: TargetSandbox, http: httpx.Client) -> None:
    target.behaviour.mint_dead = True
    new, key_id = mint(target, http)
    target.behaviour.mint_dead = False
    assert probe(target, http, new).status_code == 401
    assert target.live_keys() == [(key_id, "new")]
    assert not target.accepts(new)


def test_a_read_only_key_passes_every_read_and_fails_in_real_use(target: TargetSandbox, http: httpx.Client) -> None:
    target.behaviour.mint_read_only = True
    new, _ = mint(target, http)
    assert probe(target, http, new, "/Users?startIndex=1&count=2").status_code == 200
    assert probe(target, http, new, "/Groups?count=1").status_code == 200
    assert create_user(target, http, new) == 403
    assert target.scim.storage.resources == []
    assert target.refused_with(new) == 1
    assert target.accepts(new), "a read is what is judged"


def test_a_key_with_an_allow_list_is_refused_to_everybody_else(target: TargetSandbox, http: httpx.Client) -> None:
    old, _ = target.seed_key()
    target.behaviour.mint_only_for = "rotator"
    new, _ = mint(target, http)
    url = target.scim_url + "/Users?count=1"

    def asked_by(agent: str, key: str) -> int:
        return http.get(url, headers={"Authorization": f"Bearer {key}", "User-Agent": agent}).status_code

    assert asked_by("rotator-probe/1", new) == 200
    assert asked_by("Okta SCIM Client 1.0.0", new) == 401
    assert asked_by("Okta SCIM Client 1.0.0", old) == 200, "only minted keys have the list"
    assert target.refused_with(new) == 1


def test_an_expired_key_is_refused_and_still_listed(target: TargetSandbox, http: httpx.Client) -> None:
    new, key_id = mint(target, http)
    target.expire(key_id)
    assert probe(target, http, new).status_code == 401
    assert target.live_keys() == []
    assert admin(target, http, "list").json()[0]["hasExpired"] is True


# --- judging a key and SCIM -------------------------------------------------------------------------------------------


def test_a_bad_key_can_be_answered_with_403(target: TargetSandbox, http: httpx.Client) -> None:
    target.behaviour.refused_status = 403
    answer = probe(target, http, "wrong")
    assert answer.status_code == 403
    assert answer.json()["status"] == "403"


@pytest.mark.parametrize(
    ("form", "sent", "status"),
    [
        pytest.param("Bearer {key}", "Bearer {key}", 200, id="bearer"),
        pytest.param("Bearer {key}", "bearer {key}", 200, id="a scheme's name has no case (RFC 9110)"),
        pytest.param("Bearer {key}", "{key}", 401, id="bare where bearer is wanted"),
        pytest.param("Bearer {key}", "Bearer Bearer {key}", 401, id="a doubled bearer"),
        pytest.param("{key}", "{key}", 200, id="bare"),
        pytest.param("{key}", "Bearer {key}", 401, id="bearer where bare is wanted"),
        pytest.param("Token token={key}", "Token token={key}", 200, id="PagerDuty's form"),
        pytest.param("Token token={key}", "Bearer {key}", 401, id="bearer where PagerDuty's form is wanted"),
    ],
)
def test_a_key_is_taken_only_in_the_targets_own_header_form(
    form: str, sent: str, status: int, target: TargetSandbox, http: httpx.Client
) -> None:
    target.behaviour.header = form
    key, _ = target.seed_key()
    answer = http.get(f"{target.scim_url}/Users", headers={"Authorization": sent.format(key=key)})
    assert answer.status_code == status


def test_the_wrong_case_is_another_key(target: TargetSandbox, http: httpx.Client) -> None:
    key, _ = target.seed_key()
    assert probe(target, http, key.swapcase()).status_code == 401


def test_paused_scim_refuses_users_but_not_discovery_nor_counts_the_key_as_refused(
    target: TargetSandbox, http: httpx.Client
) -> None:
    key, _ = target.seed_key()
    target.behaviour.scim_paused = True
    paths = ("/Users", "/Groups", "/ServiceProviderConfig", "/Schemas", "/ResourceTypes")
    assert [probe(target, http, key, path).status_code for path in paths] == [403, 403, 200, 200, 200]
    assert probe(target, http, "wrong").status_code == 401
    assert (target.refused_with(key), target.refused_with("wrong")) == (0, 1)


def test_a_login_page_answers_200_with_html_whatever_the_key(target: TargetSandbox, http: httpx.Client) -> None:
    target.behaviour.login_page = True
    answer = probe(target, http, "wrong")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


def test_discovery_can_be_open_while_users_are_not(target: TargetSandbox, http: httpx.Client) -> None:
    assert probe(target, http, "wrong", "/ServiceProviderConfig").status_code == 401
    target.behaviour.open_discovery = True
    assert probe(target, http, "wrong", "/ServiceProviderConfig").status_code == 200
    assert probe(target, http, "wrong", "/Schemas").status_code == 401
    assert probe(target, http, "wrong", "/Users").status_code == 401


@pytest.mark.parametrize(
    ("throttle", "moves"),
    [pytest.param(0.0, True, id="told at once"), pytest.param(60.0, False, id="told once a minute")],
)
def test_last_use_moves_no_faster_than_its_throttle(throttle: float, moves: bool, http: httpx.Client) -> None:
    with TargetSandbox("auth0") as target:
        key, _ = target.seed_key()
        target.behaviour.last_used_throttle = throttle
        assert admin(target, http, "list").json()[0]["last_used_at"] is None
        probe(target, http, key)
        first = admin(target, http, "list").json()[0]["last_used_at"]
        assert first is not None
        wait_for(lambda: _used_again(target, http, key) != first or not moves, "last use moved")
        assert (_used_again(target, http, key) != first) is moves


def _used_again(target: TargetSandbox, http: httpx.Client, key: str) -> str:
    probe(target, http, key)
    return str(admin(target, http, "list").json()[0]["last_used_at"])


def test_a_refused_call_is_no_use(http: httpx.Client) -> None:
    with TargetSandbox("auth0") as target:
        target.behaviour.first_answers = (False,)
        key = admin(target, http, "mint").json()["token"]
        assert probe(target, http, key).status_code == 401
        assert admin(target, http, "list").json()[0]["last_used_at"] is None


# --- the admin API ----------------------------------------------------------------------------------------------------


def test_a_delayed_revoke_leaves_the_list_at_once_and_dies_later(target: TargetSandbox, http: httpx.Client) -> None:
    key, key_id = target.seed_key("old")
    target.behaviour.revoke_delay = 1.5
    assert admin(target, http, "revoke", key_id).status_code == 200
    assert target.live_keys() == []
    assert probe(target, http, key).status_code == 200
    wait_for(lambda: not target.accepts(key), "the revoked key died")
    assert probe(target, http, key).status_code == 401


def test_a_revoke_can_lie_for_good(target: TargetSandbox, http: httpx.Client) -> None:
    key, key_id = target.seed_key("old")
    target.behaviour.revoke_delay = NEVER
    assert admin(target, http, "revoke", key_id).status_code == 200
    assert target.live_keys() == []
    assert target.accepts(key)


def test_a_failing_revoke_changes_nothing(target: TargetSandbox, http: httpx.Client) -> None:
    key, key_id = target.seed_key("old")
    target.behaviour.revoke_status = 500
    assert admin(target, http, "revoke", key_id).status_code == 500
    assert target.live_keys() == [(key_id, "old")]
    assert target.accepts(key)
    target.behaviour.revoke_status = None
    assert admin(target, http, "revoke", key_id).status_code == 200


def test_an_admin_token_without_the_right_is_told_so_and_changes_nothing(
    target: TargetSandbox, http: httpx.Client
) -> None:
    target.behaviour.admin_denied = True
    assert admin(target, http, "mint", json={"name": "n"}).status_code == 403
    assert admin(target, http, "list").status_code == 403
    assert target.live_keys() == []


def test_a_list_can_leave_a_key_out_while_it_lives(target: TargetSandbox, http: httpx.Client) -> None:
    key, key_id = mint(target, http)
    target.behaviour.list_omits = {key_id}
    assert admin(target, http, "list").json() == []
    assert target.live_keys() == [(key_id, "new")]
    assert target.accepts(key)


def test_a_target_can_store_a_label_in_its_own_way(target: TargetSandbox, http: httpx.Client) -> None:
    target.behaviour.rename = lambda label: label[:8].lower()
    mint(target, http, "ROTATOR/connection/0001/1")
    assert [token["name"] for token in admin(target, http, "list").json()] == ["rotator/"]


# --- outages, limits, faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outage", "error"),
    [
        pytest.param("reset", httpx.ReadError, id="each connection is reset"),
        pytest.param("refused", httpx.ConnectError, id="nothing listens"),
        pytest.param("hang", httpx.ReadTimeout, id="no answer ever"),
    ],
)
def test_an_outage_without_answers_ends_where_it_was(
    outage: Any, error: type[Exception], target: TargetSandbox, http: httpx.Client
) -> None:
    key, _ = target.seed_key()
    url = target.url
    assert probe(target, http, key).status_code == 200
    patience = 0.5 if outage == "hang" else 30
    with target.down(outage), httpx.Client(trust_env=False, timeout=patience) as fresh, pytest.raises(error):
        fresh.get(f"{target.scim_url}/Users", headers={"Authorization": f"Bearer {key}"})
    assert target.url == url
    assert target.accepts(key)
    with httpx.Client(trust_env=False) as anew:
        assert probe(target, anew, key).status_code == 200


def test_a_503_outage_covers_both_sides(target: TargetSandbox, http: httpx.Client) -> None:
    key, _ = target.seed_key()
    with target.down("503"):
        assert probe(target, http, key).status_code == 503
        assert admin(target, http, "list").status_code == 503
    assert probe(target, http, key).status_code == 200
    assert target.refused == 0


def test_stop_frees_a_call_that_hangs(http: httpx.Client) -> None:
    target = TargetSandbox().start()
    target.go_down("hang")
    failed = threading.Event()

    def call() -> None:
        try:
            http.get(f"{target.scim_url}/Users", timeout=60)
        except httpx.TransportError:
            failed.set()

    caller = threading.Thread(target=call)
    caller.start()
    wait_for(lambda: bool(target._server._server and target._server._server._open), "the call arrived")
    target.stop()
    caller.join(30)
    assert failed.is_set()


def test_stop_ends_the_connections_that_clients_keep_open() -> None:
    target = TargetSandbox().start()
    host, port = target.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as kept:
        kept.sendall(b"GET /scim HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(65536).startswith(b"HTTP/1.1 404")
        target.stop()
        assert kept.recv(1) == b""


def test_a_limit_answers_429_with_retry_after_in_whole_seconds(target: TargetSandbox, http: httpx.Client) -> None:
    key, _ = target.seed_key()
    target.behaviour.retry_after = 7
    for answer in (probe(target, http, key), admin(target, http, "list")):
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    target.behaviour.retry_after = None
    assert probe(target, http, key).status_code == 200


def test_latency_is_added_to_every_call(target: TargetSandbox, http: httpx.Client) -> None:
    key, _ = target.seed_key()
    target.behaviour.latency = 0.2
    assert probe(target, http, key).elapsed.total_seconds() >= 0.2
    assert admin(target, http, "list").elapsed.total_seconds() >= 0.2


def test_a_mint_whose_answer_is_lost_leaves_a_key_under_its_label(target: TargetSandbox, http: httpx.Client) -> None:
    fault = target.fail("mint", Fault(after=True, reset=True))
    with pytest.raises(httpx.TransportError):
        mint(target, http, "orphan")
    assert fault.struck == 1
    assert [label for _, label in target.live_keys()] == ["orphan"]
    assert len(target.faults) == 0
    mint(target, http, "second")
    assert [label for _, label in target.live_keys()] == ["orphan", "second"]


def test_a_mint_that_never_arrived_leaves_nothing(target: TargetSandbox, http: httpx.Client) -> None:
    target.fail("mint", Fault(reset=True))
    with pytest.raises(httpx.TransportError):
        mint(target, http)
    assert target.live_keys() == []


def test_a_fault_can_let_calls_through_first_and_strike_several_times(
    target: TargetSandbox, http: httpx.Client
) -> None:
    key, _ = target.seed_key()
    target.fail("scim", Fault(skip=1, times=2, status=429, headers={"Retry-After": "1"}))
    assert [probe(target, http, key).status_code for _ in range(5)] == [200, 429, 429, 200, 200]
    assert admin(target, http, "list").status_code == 200


def test_a_fault_strikes_only_the_calls_that_it_is_meant_for(target: TargetSandbox, http: httpx.Client) -> None:
    key, key_id = target.seed_key("k")
    fault = target.fail("revoke", Fault(status=500))
    assert probe(target, http, key).status_code == 200
    assert admin(target, http, "list").status_code == 200
    assert admin(target, http, "mint", json={"name": "n"}).status_code == 200
    assert fault.struck == 0
    assert admin(target, http, "revoke", key_id).status_code == 500


def test_a_fault_that_is_planted_for_good_ends_when_it_is_cleared(target: TargetSandbox, http: httpx.Client) -> None:
    key, key_id = target.seed_key("k")
    target.fail("revoke", Fault(times=None, status=502, body=b"<html>bad gateway</html>"))
    assert [admin(target, http, "revoke", key_id).status_code for _ in range(3)] == [502, 502, 502]
    assert target.accepts(key)
    target.faults.clear()
    assert admin(target, http, "revoke", key_id).status_code == 200


def test_an_answer_can_come_late_but_whole(target: TargetSandbox, http: httpx.Client) -> None:
    target.fail("list", Fault(delay=0.2))
    answer = admin(target, http, "list")
    assert (answer.status_code, answer.json()) == (200, [])
    assert answer.elapsed.total_seconds() >= 0.2


def test_an_answer_can_hang_after_the_work_was_done(target: TargetSandbox, http: httpx.Client) -> None:
    target.fail("mint", Fault(after=True, hang=True))
    with pytest.raises(httpx.ReadTimeout):
        admin(target, http, "mint", json={"name": "orphan"}, timeout=0.5)
    assert [label for _, label in target.live_keys()] == ["orphan"]
