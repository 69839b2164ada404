"""The sandbox target's wire shapes: each answers as its vendor documents, and its keys really work at a SCIM server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from rotator.sandbox.target import Shape, TargetSandbox
from rotator.sandbox.target_keys import fingerprint

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
JSON_API = {"Content-Type": "application/vnd.api+json"}
SHAPES: tuple[Shape, ...] = ("grafana", "hcp", "auth0", "capped", "roll", "set_key", "manual")


@pytest.fixture(scope="module")  # making a client costs more than all that a test does with it
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


class Admin:
    """Calls to a target's admin API with its admin token."""

    def __init__(self, target: TargetSandbox, http: httpx.Client) -> None:
        self.target = target
        self.http = http

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.target.admin_token}", **options.pop("headers", {})}
        return self.http.request(method, self.target.url + path, headers=headers, **options)

    def mint(self, body: Any, **options: Any) -> httpx.Response:
        return self.call("POST", self.target.path("mint"), json=body, **options)

    def list(self, query: str = "") -> httpx.Response:
        return self.call("GET", self.target.path("list") + query)

    def revoke(self, key_id: object) -> httpx.Response:
        return self.call("DELETE", self.target.path("revoke").format(key_id=key_id))

    def scim(self, key: str, method: str = "GET", path: str = "/Users?startIndex=1&count=2", **options: Any) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return self.http.request(method, self.target.scim_url + path, headers=headers, **options).status_code


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")


def hcp_body(**attributes: Any) -> dict[str, Any]:
    return {"data": {"type": "authentication-tokens", "attributes": attributes}}


# --- every shape ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_minted_key_does_the_whole_life_of_a_user_at_the_scim_server(shape: Shape, http: httpx.Client) -> None:
    with TargetSandbox(shape) as target:
        key = {"Authorization": f"Bearer {target.person_mints('console')}"}
        body = {"schemas": [USER], "userName": "ada@example.com", "active": True}
        created = http.post(f"{target.scim_url}/Users", json=body, headers=key)
        assert created.status_code == 201
        user = f"{target.scim_url}/Users/{created.json()['id']}"
        assert created.json()["meta"]["location"] == user
        assert http.post(f"{target.scim_url}/Users", json=body, headers=key).json()["scimType"] == "uniqueness"
        found = http.get(
            f"{target.scim_url}/Users", params={"filter": 'userName eq "ADA@example.com"'}, headers=key
        ).json()
        assert found["totalResults"] == 1
        assert http.put(user, json={**body, "displayName": "Ada"}, headers=key).json()["displayName"] == "Ada"
        change = {"schemas": [PATCH], "Operations": [{"op": "replace", "value": {"active": False}}]}
        assert http.patch(user, json=change, headers=key).status_code in {200, 204}
        assert http.get(user, headers=key).json()["active"] is False
        assert http.get(f"{target.scim_url}/Groups?startIndex=1&count=1", headers=key).json()["totalResults"] == 0
        assert http.delete(user, headers=key).status_code == 204
        assert http.get(user, headers=key).status_code == 404


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fresh_target_without_any_key_accepts_nobody(shape: Shape, http: httpx.Client) -> None:
    with TargetSandbox(shape) as target:
        for headers in (
            {},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer x"},
            {"Authorization": "non-token"},
        ):
            answer = http.get(f"{target.scim_url}/Users", headers=headers)
            assert answer.status_code == (403 if shape == "set_key" else 401)
            assert answer.headers["content-type"] == "application/scim+json"
            assert answer.json()["schemas"] == [ERROR]
            assert answer.json()["status"] == str(answer.status_code)
        assert target.refused == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_admin_token_opens_the_admin_api(shape: Shape, http: httpx.Client) -> None:
    with TargetSandbox(shape) as target:
        key = target.person_mints()
        expected = {"set_key": 403, "manual": 404}.get(shape, 401)
        for route in target.api.routes or ():
            for token in ("", "Bearer wrong", f"Bearer {key}"):
                answer = http.request(route.method, target.url + route.path, headers={"Authorization": token})
                assert answer.status_code == expected, route
        assert http.get(f"{target.url}/api/anything").status_code == 404
        assert Admin(target, http).scim(target.admin_token) in {401, 403}, "the admin token is no provisioning key"


@pytest.mark.parametrize("shape", SHAPES)
def test_state_and_wire_agree_on_which_keys_live(shape: Shape, http: httpx.Client) -> None:
    with TargetSandbox(shape) as target:
        admin = Admin(target, http)
        key, key_id = target.seed_key("by hand")
        label = "" if shape == "auth0" else "by hand"
        assert target.live_keys() == [(key_id, label)]
        assert target.accepts(key)
        assert admin.scim(key) == 200
        target.person_revokes(key)
        assert target.live_keys() == []
        assert not target.accepts(key)
        assert admin.scim(key) in {401, 403}
        assert target.refused_with(key) == 1
        assert target.calls_with(key) == 2


def test_two_targets_share_neither_credentials_nor_users(http: httpx.Client) -> None:
    with TargetSandbox() as one, TargetSandbox() as other:
        key, _ = one.seed_key()
        assert one.admin_token != other.admin_token
        assert Admin(other, http).scim(key) == 401
        assert Admin(one, http).scim(key, "POST", "/Users", json={"schemas": [USER], "userName": "x"}) == 201
        assert other.scim.storage.resources == []


# --- many keys --------------------------------------------------------------------------------------------------------


def test_grafana_gives_a_value_once_and_lists_what_it_is_about(http: httpx.Client) -> None:
    with TargetSandbox("grafana") as target:
        admin = Admin(target, http)
        assert target.path("mint") == f"/api/serviceaccounts/{target.service_account_id}/tokens"
        minted = admin.mint({"name": "first", "secondsToLive": 3600})
        assert minted.status_code == 200
        assert minted.json().keys() == {"id", "name", "key"}
        key = minted.json()["key"]
        assert key.startswith("glsa_")
        forever = admin.mint({"name": "second"}).json()
        listed = admin.list().json()
        assert key not in admin.list().text
        assert [t["name"] for t in listed] == ["first", "second"]
        assert listed[0]["id"] == minted.json()["id"]
        assert 3500 < listed[0]["secondsUntilExpiration"] <= 3600
        assert listed[1]["expiration"] is None
        assert admin.revoke(forever["id"]).json() == {"message": "API key deleted"}
        assert not target.accepts(forever["key"])
        assert target.accepts(key)


@pytest.mark.parametrize(
    ("call", "status"),
    [
        pytest.param(lambda a: a.mint({"name": "taken"}), 409, id="a name that is taken"),
        pytest.param(lambda a: a.mint({}), 400, id="a mint without a name"),
        pytest.param(lambda a: a.mint({"name": "n", "secondsToLive": -1}), 400, id="a negative lifetime"),
        pytest.param(lambda a: a.mint([1]), 400, id="a body that is no object"),
        pytest.param(lambda a: a.revoke(99), 404, id="an unknown id"),
        pytest.param(lambda a: a.revoke("abc"), 400, id="an id that is no number"),
        pytest.param(lambda a: a.call("GET", "/api/serviceaccounts/1/tokens"), 404, id="another service account"),
    ],
)
def test_grafana_refuses(call: Any, status: int, http: httpx.Client) -> None:
    with TargetSandbox("grafana") as target:
        key, _ = target.seed_key("taken")
        answer = call(Admin(target, http))
        assert answer.status_code == status
        assert answer.json()["message"]
        assert target.live_keys() == [("1", "taken")]
        assert target.accepts(key)


def test_a_second_delete_answers_404_and_the_name_is_free_again(http: httpx.Client) -> None:
    with TargetSandbox("grafana") as target:
        admin = Admin(target, http)
        key_id = admin.mint({"name": "n"}).json()["id"]
        assert [admin.revoke(key_id).status_code, admin.revoke(key_id).status_code] == [200, 404]
        assert admin.mint({"name": "n"}).status_code == 200


def test_hcp_speaks_json_api_and_shows_the_value_only_in_the_mint(http: httpx.Client) -> None:
    with TargetSandbox("hcp") as target:
        admin = Admin(target, http)
        minted = admin.mint(hcp_body(**{"description": "ours", "expired-at": in_days(90)}), headers=JSON_API)
        assert minted.status_code == 201
        assert minted.headers["content-type"] == "application/vnd.api+json"
        data = minted.json()["data"]
        assert ".atlasv1." in data["attributes"]["token"]
        shown = admin.call("GET", f"/api/v2/authentication-tokens/{data['id']}").json()["data"]
        assert shown["attributes"]["token"] is None
        assert shown["attributes"]["description"] == "ours"
        assert admin.scim(data["attributes"]["token"]) == 200
        assert admin.list().json()["data"][0]["attributes"]["last-used-at"] is not None
        assert admin.revoke(data["id"]).status_code == 204
        assert admin.revoke(data["id"]).status_code == 404
        assert admin.scim(data["attributes"]["token"]) == 401


def test_hcp_lists_in_pages(http: httpx.Client) -> None:
    with TargetSandbox("hcp") as target:
        admin = Admin(target, http)
        labels = [f"key {n}" for n in range(5)]
        for label in labels:
            target.seed_key(label)
        seen, page = [], 1
        while page:
            answer = admin.list(f"?page[number]={page}&page[size]=2").json()
            seen += [token["attributes"]["description"] for token in answer["data"]]
            page = answer["meta"]["pagination"]["next-page"]
        assert seen == labels
        assert answer["meta"]["pagination"] == {
            "current-page": 3,
            "page-size": 2,
            "prev-page": 2,
            "next-page": None,
            "total-pages": 3,
            "total-count": 5,
        }
        assert admin.list("?page[size]=0").status_code == 400


@pytest.mark.parametrize(
    ("expired_at", "status"),
    [
        pytest.param(in_days(29), 400, id="sooner than 30 days"),
        pytest.param(in_days(31), 201, id="just after 30 days"),
        pytest.param(in_days(364), 201, id="within a year"),
        pytest.param(in_days(400), 400, id="later than a year"),
        pytest.param("soon", 400, id="no date"),
        pytest.param(None, 201, id="nothing said: a year"),
    ],
)
def test_hcp_takes_an_expiry_between_30_days_and_a_year(
    expired_at: str | None, status: int, http: httpx.Client
) -> None:
    with TargetSandbox("hcp") as target:
        answer = Admin(target, http).mint(hcp_body(**{"expired-at": expired_at}), headers=JSON_API)
        assert answer.status_code == status


def test_hcp_says_not_found_where_it_means_not_allowed(http: httpx.Client) -> None:
    with TargetSandbox("hcp") as target:
        target.behaviour.admin_denied = True
        assert Admin(target, http).list().status_code == 404
        assert Admin(target, http).mint(hcp_body(), headers=JSON_API).status_code == 404
        assert target.live_keys() == []


def test_hcp_wants_its_own_media_type(http: httpx.Client) -> None:
    with TargetSandbox("hcp") as target:
        assert Admin(target, http).mint(hcp_body()).status_code == 415


# --- two keys ---------------------------------------------------------------------------------------------------------


def test_auth0_takes_two_keys_and_answers_the_third_with_a_conflict(http: httpx.Client) -> None:
    with TargetSandbox("auth0") as target:
        admin = Admin(target, http)
        first = admin.mint({"scopes": ["get:users"], "token_lifetime": 901})
        assert first.status_code == 201
        assert first.json()["token"].startswith(first.json()["token_id"])
        second = admin.mint({}).json()
        third = admin.mint({})
        assert (third.status_code, third.json()["error"]) == (409, "Conflict")
        assert admin.revoke(first.json()["token_id"]).status_code == 204
        assert admin.mint({}).status_code == 201
        assert admin.scim(second["token"]) == 200
        listed = {token["token_id"]: token for token in admin.list().json()}
        assert all("token" not in token for token in listed.values())
        assert listed[second["token_id"]]["last_used_at"] is not None


def test_auth0_frees_room_when_a_key_expires(http: httpx.Client) -> None:
    with TargetSandbox("auth0") as target:
        admin = Admin(target, http)
        old, _ = target.seed_key()
        assert "put:users" in admin.list().json()[0]["scopes"]
        minted = admin.mint({}).json()
        assert admin.mint({}).status_code == 409
        target.expire(minted["token_id"])
        assert not target.accepts(minted["token"])
        assert admin.mint({}).status_code == 201
        assert target.accepts(old)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"scopes": []}, id="no scope"),
        pytest.param({"scopes": ["all"]}, id="an unknown scope"),
        pytest.param({"token_lifetime": 900}, id="a lifetime that is too short"),
    ],
)
def test_auth0_refuses_a_mint_with(body: dict[str, Any], http: httpx.Client) -> None:
    with TargetSandbox("auth0") as target:
        assert Admin(target, http).mint(body).status_code == 400


def test_auth0_scopes_bind_a_key_to_verbs(http: httpx.Client) -> None:
    with TargetSandbox("auth0") as target:
        admin = Admin(target, http)
        key = admin.mint({"scopes": ["get:users", "post:users"]}).json()["token"]
        assert admin.scim(key) == 200
        assert admin.scim(key, "POST", "/Users", json={"schemas": [USER], "userName": "x"}) == 201
        assert admin.scim(key, "DELETE", "/Users/1") == 403
        assert admin.scim(key, "GET", "/Groups") == 403


def test_the_capped_shape_has_labels_and_room_for_two(http: httpx.Client) -> None:
    with TargetSandbox("capped") as target:
        admin = Admin(target, http)
        statuses = [admin.mint({"name": name}).status_code for name in "abc"]
        assert statuses == [200, 200, 409]
        assert [label for _, label in target.live_keys()] == ["a", "b"]


# --- one key ----------------------------------------------------------------------------------------------------------


def test_roll_mints_the_next_value_and_the_old_one_is_dead_at_once(http: httpx.Client) -> None:
    with TargetSandbox("roll") as target:
        admin = Admin(target, http)
        old, key_id = target.seed_key("scim")
        assert key_id == target.ids["token_id"]
        answer = admin.call("PUT", target.path("replace"), json={})
        assert answer.json()["success"] is True
        new = answer.json()["result"]
        assert (admin.scim(old), admin.scim(new)) == (401, 200)
        assert target.live_keys() == [(key_id, "scim")]
        shown = admin.call("GET", target.path("show"))
        assert shown.json()["result"]["status"] == "active"
        assert new not in shown.text


def test_set_key_takes_our_value_and_can_be_set_back(http: httpx.Client) -> None:
    with TargetSandbox("set_key") as target:
        admin = Admin(target, http)
        old, identifier = target.seed_key()
        path = f"/api/v3/core/tokens/{identifier}/set_key/"
        assert path == target.path("replace")
        assert admin.call("POST", path, json={"key": "n" * 40}).status_code == 204
        assert (target.accepts("n" * 40), target.accepts(old)) == (True, False)
        assert admin.call("POST", path, json={"key": old}).status_code == 204
        assert (admin.scim("n" * 40), admin.scim(old)) == (403, 200)
        assert len(target.live_keys()) == 1


def test_set_key_refuses_an_empty_value_and_never_shows_one(http: httpx.Client) -> None:
    with TargetSandbox("set_key") as target:
        admin = Admin(target, http)
        old, _ = target.seed_key()
        assert admin.call("POST", target.path("replace"), json={}).status_code == 400
        assert admin.call("POST", "/api/v3/core/tokens/other/set_key/", json={"key": "x"}).status_code == 404
        assert admin.call("GET", target.path("view_key")).status_code == 403
        assert old not in admin.call("GET", target.path("show")).text
        assert target.accepts(old)


def test_manual_has_no_api_and_a_person_who_mints_and_revokes(http: httpx.Client) -> None:
    with TargetSandbox("manual") as target:
        admin = Admin(target, http)
        first, second = target.person_mints("one"), target.person_mints("two")
        assert admin.call("GET", "/api/tokens").status_code == 404
        assert [label for _, label in target.live_keys()] == ["one", "two"]
        target.person_revokes(first)
        assert (admin.scim(first), admin.scim(second)) == (401, 200)


# --- counting ---------------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_who_made_them_and_never_by_a_value(http: httpx.Client) -> None:
    with TargetSandbox("grafana") as target:
        admin = Admin(target, http)
        minted = admin.mint({"name": "n"}).json()
        admin.list()
        admin.scim(minted["key"], "GET", "/Users/1")
        admin.scim(minted["key"], "GET", "/Users/2")
        admin.scim("wrong")
        assert (target.admin_calls, target.scim_calls, target.refused) == (2, 3, 1)
        counted = {(c.who, c.path, c.status): n for c, n in target.calls.items() if c.side == "scim"}
        assert counted == {
            (fingerprint(minted["key"]), "/Users/{id}", 404): 2,
            (fingerprint("wrong"), "/Users", 401): 1,
        }
        http.get(f"{target.scim_url}/Users", headers={"User-Agent": "rotator/1.0"})
        assert target.count(agent="rotator") == target.count(agent="rotator", who="nobody", status=401) == 1
        assert target.count(agent="rotator", side="admin") == 0
        assert target.count(agent="python-httpx") == 5
        assert minted["key"] not in repr(target.calls)
        assert target.admin_token not in repr(target.calls)
        target.reset_counts()
        assert (target.admin_calls, target.scim_calls, target.refused) == (0, 0, 0)
