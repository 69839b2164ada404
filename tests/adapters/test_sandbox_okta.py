"""The sandbox Okta's connections: what is stored, what is tested at the target, what people and Okta do with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adapters.okta_world import World, open_world

CHECKED = ("application.lifecycle.update", "SUCCESS")
UNVERIFIED = ("application.configuration.update", "FAILURE")
PUSHED = "application.provision.user.push"
REFUSED = ("application.integration.authentication_failure", "FAILURE")


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


@pytest.mark.parametrize("name", ["zscalerbyz", "okta_org2org"])
@pytest.mark.parametrize("query", ["?activate=TRUE", "?activate=true", "?activate=True"])
def test_a_good_key_with_activate_is_tested_at_the_target_and_enabled(world: World, name: str, query: str) -> None:
    app = world.app(name)
    answer = world.push(app, "new-key", query)
    assert answer.status_code == 200
    assert answer.json() == world.read(app)
    assert world.read(app)["status"] == "ENABLED"
    assert world.okta.connection(app) == world.read(app)
    assert world.okta.held_key(app) == "new-key"
    assert world.target.calls == [("GET", "/Users?startIndex=1&count=2", "Okta SCIM Client 1.0.0", "new-key")]
    assert world.events(app) == [CHECKED]


@pytest.mark.parametrize(
    ("outage", "key"),
    [
        pytest.param(None, "wrong-key", id="the target does not know the key"),
        pytest.param(503, "new-key", id="the target is down and the key is good"),
        pytest.param(None, "schlüssel", id="the key can't stand in a header"),
        pytest.param(None, "two\nlines", id="the key has a line break"),
    ],
)
def test_a_key_that_fails_the_test_is_a_400_naming_the_credential(world: World, outage: int | None, key: str) -> None:
    app = world.app()
    world.target.outage = outage
    answer = world.push(app, key)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "E0000001")
    assert answer.json()["errorSummary"] == "Api validation failed: credential"
    assert answer.json()["errorCauses"][0]["errorSummary"].startswith("Verification failed: ")
    assert key not in answer.text
    assert UNVERIFIED in world.events(app)


@pytest.mark.parametrize(
    ("keeps_old", "keeps_enabled", "held", "status"),
    [
        (False, False, "wrong-key", "DISABLED"),
        (True, False, "old-key", "DISABLED"),
        (False, True, "wrong-key", "ENABLED"),
        (True, True, "old-key", "ENABLED"),
    ],
)
def test_what_a_refused_post_leaves_is_a_switch(
    world: World, *, keeps_old: bool, keeps_enabled: bool, held: str, status: str
) -> None:
    world.okta.switches.failed_post_keeps_old = keeps_old
    world.okta.switches.failed_post_keeps_enabled = keeps_enabled
    app = world.app()
    assert world.push(app, "wrong-key").status_code == 400
    assert (world.okta.held_key(app), world.read(app)["status"]) == (held, status)


@pytest.mark.parametrize(("keeps", "status"), [(False, "DISABLED"), (True, "ENABLED")])
def test_a_post_without_activate_disables_or_keeps_the_status(world: World, *, keeps: bool, status: str) -> None:
    world.okta.switches.plain_post_keeps_enabled = keeps
    app = world.app()
    assert world.push(app, "new-key", "").json()["status"] == status
    assert world.okta.held_key(app) == "new-key"
    assert world.target.calls == []


@pytest.mark.parametrize(("verifies", "answer"), [(False, 200), (True, 400)])
def test_a_post_without_activate_tests_the_key_only_with_the_switch(
    world: World, *, verifies: bool, answer: int
) -> None:
    world.okta.switches.plain_post_verifies = verifies
    assert world.push(world.app(), "wrong-key", "?activate=false").status_code == answer
    assert len(world.target.calls) == int(verifies)


@pytest.mark.parametrize(("joined", "causes"), [(False, 1), (True, 0)])
def test_the_cause_stands_apart_or_in_the_summary(world: World, *, joined: bool, causes: int) -> None:
    world.okta.switches.cause_in_summary = joined
    answer = world.push(world.app(), "wrong-key").json()
    assert len(answer["errorCauses"]) == causes
    assert ("Not authorized" in answer["errorSummary"]) is joined


def test_activate_and_deactivate_can_be_repeated(world: World) -> None:
    app = world.app(enabled=False)
    for where, status in [
        ("activate", "ENABLED"),
        ("activate", "ENABLED"),
        ("deactivate", "DISABLED"),
        ("deactivate", "DISABLED"),
    ]:
        assert world.move(app, where).status_code == 204
        assert world.read(app)["status"] == status
        link = "deactivate" if status == "ENABLED" else "activate"
        assert set(world.read(app)["_links"]) == {"self", link}


def test_activating_with_a_dead_key_is_refused_and_leaves_it_disabled(world: World) -> None:
    app = world.app(key="dead-key")
    assert world.move(app, "activate").status_code == 400
    assert world.read(app)["status"] == "DISABLED"
    assert world.move(app, "deactivate").status_code == 204


def test_an_app_never_set_up_has_no_profile_and_can_not_be_activated(world: World) -> None:
    app = world.app("okta_org2org", key=None, enabled=False)
    assert "profile" not in world.read(app)
    assert world.move(app, "activate").status_code == 400


def test_a_pushed_base_url_is_where_the_key_is_tested_from_then_on(world: World) -> None:
    app = world.app()
    assert world.push(app, "new-key", baseUrl="http://127.0.0.1:9").status_code == 400
    assert world.push(app, "new-key", baseUrl=world.target.url + "/").status_code == 200
    assert world.read(app)["baseUrl"] == world.target.url + "/"
    assert world.okta.provision(app, "ann") == 201


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"{", "E0000003", id="not JSON"),
        pytest.param(b"[]", "E0000003", id="not an object"),
        pytest.param(b"{}", "E0000003", id="no profile"),
        pytest.param(b'{"profile":{"authScheme":"OAUTH","token":"x"}}', "E0000001", id="an unknown scheme"),
        pytest.param(b'{"profile":{"authScheme":"TOKEN"},"baseUrl":"x"}', "E0000001", id="no token"),
        pytest.param(b'{"profile":{"authScheme":"TOKEN","token":"x"}}', "E0000001", id="Zscaler without base URL"),
        pytest.param(b'{"profile":{"authScheme":"OAUTH2","clientId":"x"}}', "E0000001", id="Zscaler by OAuth 2.0"),
    ],
)
def test_a_body_that_makes_no_sense_changes_nothing(world: World, body: bytes, code: str) -> None:
    app = world.app()
    path = f"/api/v1/apps/{app}/connections/default?activate=true"
    answer = world.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["errorCode"]) == (400, code)
    assert (world.okta.held_key(app), world.read(app)["status"]) == ("old-key", "ENABLED")


def test_a_body_of_another_media_type_is_refused(world: World) -> None:
    answer = world.http.post(f"/api/v1/apps/{world.app()}/connections/default", content=b"{}")
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "E0000021")


@pytest.mark.parametrize("name", ["bookmark", "scim2headerauth", "oidc_client"])
def test_an_app_that_the_api_does_not_cover_answers_unknown_and_takes_nothing(world: World, name: str) -> None:
    app = world.app(name)
    unknown = {"status": "UNKNOWN", "profile": {"authScheme": "UNKNOWN"}}
    assert world.read(app) == unknown
    assert world.push(app, "new-key").json() == unknown
    assert (world.move(app, "activate").status_code, world.move(app, "deactivate").status_code) == (204, 204)
    assert (world.okta.held_key(app), world.okta.enabled(app)) == ("old-key", True)
    assert world.target.calls == []


def test_a_token_for_an_app_that_is_not_covered_can_be_a_400_too(world: World) -> None:
    world.okta.switches.unsupported_post_refused = True
    app = world.app("bookmark")
    assert world.push(app, "new-key").status_code == 400
    assert world.push(app, "", profile={"authScheme": "UNKNOWN"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/apps/0oanone/connections/default", 404, "E0000007"),
        ("POST", "/api/v1/apps/0oanone/connections/default/lifecycle/activate", 404, "E0000007"),
        ("GET", "/api/v1/nothing", 404, "E0000008"),
        ("DELETE", "/api/v1/logs", 405, "E0000022"),
    ],
)
def test_what_is_not_there_is_a_404_or_405(world: World, method: str, path: str, status: int, code: str) -> None:
    answer = world.http.request(method, path)
    assert (answer.status_code, answer.json()["errorCode"]) == (status, code)


# --- the key in use ----------------------------------------------------------------------------------------------------


def test_a_push_creates_a_user_at_the_target_and_the_next_one_replaces_it(world: World) -> None:
    app = world.app()
    assert world.okta.provision(app, "ann") == 201
    assert world.okta.provision(app, {"userName": "ann", "title": "Dr"}) == 200
    assert world.target.users["ann"]["title"] == "Dr"
    assert {call[2] for call in world.target.calls} == {"Okta SCIM Client 1.0.0"}
    assert world.events(app) == [(PUSHED, "SUCCESS"), (f"{PUSHED}_profile", "SUCCESS")]


@pytest.mark.parametrize(
    ("outage", "status", "trouble", "reason"),
    [
        pytest.param(None, 401, "authentication_failure", "Not authorized", id="the key was revoked"),
        pytest.param(403, 403, "authentication_failure", "Not authorized", id="the key may not"),
        pytest.param(429, 429, "rate_limit_exceeded", "Too Many Requests", id="the target throttles"),
        pytest.param(503, 503, "general_failure", "HTTP 503", id="the target is down"),
    ],
)
def test_a_push_that_fails_is_in_the_log_with_its_cause(
    world: World, outage: int | None, status: int, trouble: str, reason: str
) -> None:
    app = world.app(key="dead-key" if outage is None else "old-key")
    world.target.outage = outage
    assert world.okta.provision(app, "ann") == status
    assert world.events(app) == [(f"application.integration.{trouble}", "FAILURE"), (PUSHED, "FAILURE")]
    assert all(reason in event["outcome"]["reason"] for event in world.okta.log.events)


def test_a_key_with_too_few_rights_passes_activation_and_fails_the_first_real_push(world: World) -> None:
    world.target.read_only.add("weak-key")
    app = world.app()
    assert world.push(app, "weak-key").json()["status"] == "ENABLED"
    assert world.okta.provision(app, "ann") == 403
    assert world.events(app) == [CHECKED, REFUSED, (PUSHED, "FAILURE")]


@pytest.mark.parametrize(("queues", "made"), [(False, False), (True, True)])
def test_a_disabled_connection_provisions_nothing_then_or_later(world: World, *, queues: bool, made: bool) -> None:
    world.okta.switches.disabled_queues = queues
    app = world.app(enabled=False)
    assert world.okta.provision(app, "ann") == 0
    assert (world.target.calls, world.events(app)) == ([], [])
    world.move(app, "activate")
    assert ("ann" in world.target.users) is made


def test_a_group_push_goes_into_error_with_a_bad_key_and_back(world: World) -> None:
    app = world.app(key="dead-key")
    mapping = world.okta.add_group_push(app, "Engineers")
    path = f"/api/v1/apps/{app}/group-push/mappings"
    assert world.okta.push_group(app, mapping) == 401
    failed = world.http.get(path, params={"status": "ERROR"}).json()
    assert [(one["id"], bool(one["lastPush"]), bool(one["errorSummary"])) for one in failed] == [(mapping, True, True)]
    world.push(app, "new-key")
    assert world.okta.push_group(app, mapping) == 201
    assert world.http.get(path, params={"status": "ERROR"}).json() == []
    assert world.http.get(f"{path}/{mapping}").json()["targetGroupId"] == "group-1"


@pytest.mark.parametrize(
    ("key", "passed", "events"), [("new-key", True, [CHECKED]), ("wrong-key", False, [UNVERIFIED, CHECKED])]
)
def test_a_person_types_a_key_for_an_app_that_the_api_does_not_cover(
    world: World, *, key: str, passed: bool, events: list[tuple[str, str]]
) -> None:
    app = world.app("scim2headerauth")
    assert world.okta.person_types_key(app, key) is passed
    assert (world.okta.held_key(app), world.okta.enabled(app)) == (key, passed)
    assert world.events(app) == events
    changed = world.okta.log.events[-1]
    assert changed["actor"]["alternateId"] == "admin@sandbox.example"
    assert changed["transaction"]["detail"] == {}


def test_an_own_post_is_told_from_a_persons_change_by_the_api_token(world: World) -> None:
    app = world.app()
    world.push(app, "new-key")
    assert world.okta.provisions_with(app) == "new-key"
    world.okta.admin_disables(app)
    assert world.okta.provisions_with(app) is None, "stored, and not used"
    assert world.read(app)["status"] == "DISABLED"
    mine, theirs = world.okta.log.events
    assert mine["transaction"]["detail"]["requestApiTokenId"].startswith("00T")
    assert theirs["transaction"]["detail"] == {}
    assert theirs["target"][-1]["changeDetails"]["to"]["status"] == "DISABLED"


# --- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features"),
    [("zscalerbyz", ["USER_PROVISIONING"]), ("okta_org2org", ["USER_PROVISIONING", "INBOUND_PROVISIONING"])],
)
def test_features_are_as_the_app_has_them_and_survive_a_rotation(world: World, name: str, features: list[str]) -> None:
    app = world.app(name)
    path = f"/api/v1/apps/{app}/features"
    before = world.http.get(path).json()
    assert [feature["name"] for feature in before] == features
    world.push(app, "new-key")
    assert world.http.get(path).json() == before


def test_an_admin_changes_a_feature_and_the_next_read_shows_it(world: World) -> None:
    app, other = world.app(), world.app()
    world.okta.admin_changes_features(app, "update.lifecycleDeactivate.status", "DISABLED")
    update = [world.http.get(f"/api/v1/apps/{one}/features/USER_PROVISIONING").json() for one in (app, other)]
    statuses = [one["capabilities"]["update"]["lifecycleDeactivate"]["status"] for one in update]
    assert statuses == ["DISABLED", "ENABLED"]


def test_a_feature_put_leaves_what_it_does_not_name(world: World) -> None:
    path = f"/api/v1/apps/{world.app()}/features/USER_PROVISIONING"
    answer = world.http.put(path, json={"create": {"lifecycleCreate": {"status": "DISABLED"}}}).json()
    assert answer["capabilities"]["create"]["lifecycleCreate"]["status"] == "DISABLED"
    assert answer["capabilities"]["update"]["profile"]["status"] == "ENABLED"
    assert world.http.put(path, json={}).json()["errorCode"] == "E0000003"
    assert world.http.put(path, json={"nonsense": {}}).json()["errorCode"] == "E0000001"


@pytest.mark.parametrize(
    ("name", "enabled", "cause"),
    [
        ("bookmark", True, "Provisioning is not supported."),
        ("zscalerbyz", False, "Provisioning is not enabled for the app instance."),
    ],
)
def test_features_are_a_400_without_provisioning(world: World, *, name: str, enabled: bool, cause: str) -> None:
    answer = world.http.get(f"/api/v1/apps/{world.app(name, enabled=enabled)}/features")
    assert answer.status_code == 400
    assert answer.json()["errorSummary"] == "Api validation failed: feature"
    assert answer.json()["errorCauses"] == [{"errorSummary": cause}]


# --- nothing tells a key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows", [False, True])
def test_no_answer_event_or_repr_tells_a_key_except_the_app_with_its_switch(world: World, *, shows: bool) -> None:
    world.okta.switches.app_shows_token = shows
    app = world.app("okta_org2org", key="canary-key-1")
    world.target.keys = {"canary-key-1"}
    answers = [
        world.push(app, "canary-key-2"),
        world.move(app, "activate"),
        world.push(app, "canary-key-1"),
        world.http.get(f"/api/v1/apps/{app}/connections/default"),
        world.http.get("/api/v1/logs"),
        world.http.get("/api/v1/api-tokens"),
    ]
    world.okta.provision(app, "ann")
    told = "".join(answer.text for answer in answers) + str(world.okta.log.events) + repr(vars(world.okta._state))
    assert "canary" not in told
    assert world.okta.api_token not in told + repr(vars(world.okta._tokens))
    assert ("canary" in world.http.get(f"/api/v1/apps/{app}").text) is shows
