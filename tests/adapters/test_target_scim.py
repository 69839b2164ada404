"""The SCIM proof: what is sent, and what each answer means."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator import errors
from rotator.adapters.targets.scim import LIST_RESPONSE, ScimProbe, ScimSettings, scim_probe
from rotator.core.secret import Secret
from rotator.ports import Answer, Probe
from rotator.sandbox.target import TargetSandbox
from rotator.sandbox.target_faults import Fault
from tests.fakes.wire import NOW, Reply, StillClock, Wire

KEY = "canary-value-that-nothing-may-tell"
PII = "alice.private@people.example"
CANARY = "rk-canary@invalid.example"


def listing(total: Any = 0, **more: Any) -> dict[str, Any]:
    return {"schemas": [LIST_RESPONSE], "totalResults": total, "startIndex": 1, "itemsPerPage": 0, **more}


def probe_of(wire: Wire, header: str = "Bearer {key}", meanings: Mapping[int, Answer] | None = None) -> ScimProbe:
    return ScimProbe(wire.client(), header, meanings or {}, CANARY)


@pytest.mark.parametrize(
    ("probe", "line"),
    [
        pytest.param(Probe.USERS, "GET /base/Users?startIndex=1&count=2", id="users, as Okta reads them"),
        pytest.param(Probe.GROUPS, "GET /base/Groups?startIndex=1&count=1", id="groups"),
    ],
)
def test_a_read_is_one_call_at_the_configured_base(probe: Probe, line: str) -> None:
    wire = Wire(Reply(json=listing(0)))
    assert probe_of(wire)(Secret(KEY), probe).answer is Answer.ACCEPTED
    assert wire.lines() == [line]
    assert wire.requests[0].headers["accept"] == "application/scim+json"
    assert wire.requests[0].headers["user-agent"] == "rotator-probe"
    assert wire.metered == [("target:t", f"probe_{probe.value}", "ok")]


def test_the_filter_names_another_unknown_user_each_time_and_is_percent_encoded() -> None:
    wire = Wire(Reply(json=listing(0)))
    for _ in range(2):
        assert probe_of(wire)(Secret(KEY), Probe.FILTER).answer is Answer.ACCEPTED
    first, second = wire.lines()
    assert first.startswith("GET /base/Users?filter=userName%20eq%20%22rk-probe-")
    assert first.endswith("%40invalid.example%22")
    assert first != second


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        pytest.param("Bearer {key}", f"Bearer {KEY}", id="bearer"),
        pytest.param("{key}", KEY, id="the bare key"),
        pytest.param("Token token={key}", f"Token token={KEY}", id="PagerDuty's form"),
        pytest.param('Token token="{key}"', f'Token token="{KEY}"', id="quoted"),
    ],
)
def test_the_key_stands_in_the_header_and_nowhere_else(header: str, sent: str) -> None:
    wire = Wire(Reply(json=listing(0)))
    probe_of(wire, header)(Secret(KEY), Probe.USERS)
    request = wire.requests[0]
    assert request.headers["authorization"] == sent
    assert KEY not in str(request.url)
    assert KEY.encode() not in request.content


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("Bearer", id="no place for the key"),
        pytest.param("{key} {key}", id="two places"),
        pytest.param("Bearer {token}", id="another word"),
        pytest.param("Bearer\n{key}", id="a line end"),
        pytest.param("Bearer\u00a0{key}", id="a no-break space"),
    ],
)
def test_a_header_form_that_cannot_work_is_refused_at_once(header: str) -> None:
    with pytest.raises(errors.Misconfigured, match="header form"):
        probe_of(Wire(Reply()), header)


STATUSES = [
    pytest.param(401, {}, Answer.REFUSED, id="401: the key"),
    pytest.param(403, {}, Answer.REFUSED, id="403: the key, unless told otherwise (authentik)"),
    pytest.param(403, {403: Answer.STATE}, Answer.STATE, id="403 that means paused (HCP Terraform)"),
    pytest.param(401, {403: Answer.STATE}, Answer.REFUSED, id="401 keeps its meaning beside another 403"),
    pytest.param(400, {400: Answer.REFUSED}, Answer.REFUSED, id="400 for a bad key, where the configuration says so"),
    pytest.param(404, {404: Answer.REFUSED}, Answer.REFUSED, id="404 for a bad key, where authorisation is hidden"),
]


@pytest.mark.parametrize("probe", list(Probe))
@pytest.mark.parametrize(("status", "meanings", "answer"), STATUSES)
def test_a_status_means_what_the_target_means_by_it(
    probe: Probe, status: int, meanings: dict[int, Answer], answer: Answer
) -> None:
    wire = Wire(Reply(status, json={"detail": PII}))
    result = probe_of(wire, meanings=meanings)(Secret(KEY), probe)
    assert (result.answer, result.status, result.detail) == (answer, status, f"HTTP {status}")


@pytest.mark.parametrize("status", [404, 501])
def test_a_target_without_groups_may_say_so(status: int) -> None:
    assert probe_of(Wire(Reply(status)))(Secret(KEY), Probe.GROUPS).answer is Answer.ACCEPTED


LOGIN = "<!doctype html><html><body>Sign in, Alice</body></html>"
NOT_ABOUT_THE_KEY = [
    pytest.param(Reply(404, json={"detail": PII}), errors.Misconfigured, id="404: wrong base URL"),
    pytest.param(Reply(405), errors.Misconfigured, id="405: wrong base URL"),
    pytest.param(Reply(501), errors.Misconfigured, id="501: no SCIM here"),
    pytest.param(Reply(400, json={"detail": PII}), errors.Misconfigured, id="400: not understood"),
    pytest.param(Reply(200, text=LOGIN), errors.Misconfigured, id="200 with a sign-in page"),
    pytest.param(Reply(200, text=""), errors.Misconfigured, id="200 with nothing"),
    pytest.param(Reply(204), errors.Misconfigured, id="204"),
    pytest.param(Reply(200, json={"users": [PII]}), errors.Misconfigured, id="200 of another API"),
    pytest.param(Reply(200, json=[listing()]), errors.Misconfigured, id="a list where an object is due"),
    pytest.param(Reply(200, json=listing("0")), errors.Misconfigured, id="totalResults as text"),
    pytest.param(Reply(200, json=listing(True)), errors.Misconfigured, id="totalResults as a boolean"),
    pytest.param(Reply(200, json=listing(None)), errors.Misconfigured, id="no totalResults"),
    pytest.param(Reply(200, json=listing(-1)), errors.Misconfigured, id="totalResults below zero"),
    pytest.param(
        Reply(200, json={"schemas": LIST_RESPONSE, "totalResults": 0}), errors.Misconfigured, id="schemas as text"
    ),
    pytest.param(
        Reply(302, headers={"Location": "https://login.example"}), errors.Misconfigured, id="302 to a sign-in"
    ),
    pytest.param(
        Reply(200, json={"schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"], "totalResults": 0}),
        errors.Misconfigured,
        id="another SCIM message",
    ),
    pytest.param(Reply(206, json=listing(0)), errors.Misconfigured, id="a part of a list"),
    pytest.param(Reply(412, json=listing(0)), errors.Misconfigured, id="412: a proxy's condition"),
    pytest.param(Reply(500, text=PII), errors.Transient, id="500"),
    pytest.param(Reply(502, text=LOGIN), errors.Transient, id="502 of a proxy"),
    pytest.param(Reply(503, headers={"Retry-After": "7"}), errors.Transient, id="503"),
    pytest.param(Reply(429, headers={"Retry-After": "30"}), errors.RateLimited, id="429"),
    pytest.param(Reply(lost=True), errors.Transient, id="the connection breaks"),
]


@pytest.mark.parametrize("probe", [Probe.USERS, Probe.FILTER, Probe.WRITE])
@pytest.mark.parametrize(("reply", "kind"), NOT_ABOUT_THE_KEY)
def test_what_says_nothing_about_the_key_is_an_error_without_bodies(
    probe: Probe, reply: Reply, kind: type[errors.PortError]
) -> None:
    wire = Wire(reply)
    with pytest.raises(kind) as told:
        probe_of(wire)(Secret(KEY), probe)
    assert type(told.value) is kind
    for secret in (KEY, PII, "Alice", "rk-probe", CANARY):
        assert secret not in str(told.value)
    assert len(wire.requests) == 1


def test_the_waits_that_a_target_asks_for_are_handed_on() -> None:
    with pytest.raises(errors.RateLimited) as limited:
        probe_of(Wire(Reply(429, headers={"Retry-After": "30"})))(Secret(KEY), Probe.USERS)
    assert limited.value.reset_at == NOW + timedelta(seconds=30)
    with pytest.raises(errors.Transient) as down:
        probe_of(Wire(Reply(503, headers={"Retry-After": "7"})))(Secret(KEY), Probe.USERS)
    assert down.value.retry_after == 7


def test_a_filter_that_finds_the_unfindable_is_no_filter() -> None:
    with pytest.raises(errors.Misconfigured, match="filter is ignored"):
        probe_of(Wire(Reply(json=listing(3, Resources=[{"userName": PII}]))))(Secret(KEY), Probe.FILTER)


CREATED = Reply(201, json={"id": "u-1", "userName": CANARY})
TAKEN = Reply(409, json={"scimType": "uniqueness"})
FOUND = Reply(200, json=listing(1, Resources=[{"id": "u-7", "userName": CANARY.upper()}]))


def test_the_write_proof_creates_renames_and_deactivates_and_deletes_nothing() -> None:
    wire = Wire(CREATED, Reply(200, json={}), Reply(204))
    assert probe_of(wire)(Secret(KEY), Probe.WRITE).answer is Answer.ACCEPTED
    assert wire.lines() == ["POST /base/Users", "PATCH /base/Users/u-1", "PATCH /base/Users/u-1"]
    assert wire.body(0)["active"] is False
    assert wire.body(0)["userName"] == CANARY
    assert set(wire.body(1)["Operations"][0]["value"]) == {"displayName"}
    assert wire.body(2)["Operations"] == [{"op": "replace", "value": {"active": False}}]
    assert wire.requests[0].headers["content-type"] == "application/scim+json"


def test_a_canary_left_over_is_looked_up_without_case_and_used() -> None:
    wire = Wire(TAKEN, FOUND, Reply(204))
    assert probe_of(wire)(Secret(KEY), Probe.WRITE).answer is Answer.ACCEPTED
    assert wire.lines() == [
        "POST /base/Users",
        "GET /base/Users?filter=userName%20eq%20%22rk-canary%40invalid.example%22",
        "PATCH /base/Users/u-7",
        "PATCH /base/Users/u-7",
    ]


def test_a_target_without_patch_is_written_by_put_with_the_whole_user() -> None:
    wire = Wire(CREATED, Reply(501), Reply(200, json={}), Reply(405), Reply(200, json={}))
    assert probe_of(wire)(Secret(KEY), Probe.WRITE).answer is Answer.ACCEPTED
    assert [line.split()[0] for line in wire.lines()] == ["POST", "PATCH", "PUT", "PATCH", "PUT"]
    assert (wire.body()["id"], wire.body()["userName"], wire.body()["active"]) == ("u-1", CANARY, False)


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param((Reply(403),), id="may not create"),
        pytest.param((CREATED, Reply(403)), id="may not change"),
        pytest.param((CREATED, Reply(204), Reply(403)), id="may not deactivate"),
        pytest.param((CREATED, Reply(501), Reply(403)), id="may not change by PUT"),
        pytest.param((TAKEN, Reply(403)), id="may not search"),
    ],
)
def test_a_key_that_may_not_write_is_refused_at_whichever_step(replies: tuple[Reply, ...]) -> None:
    assert probe_of(Wire(*replies))(Secret(KEY), Probe.WRITE).answer is Answer.REFUSED


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param((Reply(201, json={}),), id="created, but no id"),
        pytest.param((Reply(201, json={"id": ".."}),), id="an id that leads elsewhere"),
        pytest.param((Reply(201, json={"id": 7}),), id="an id that is no text"),
        pytest.param((Reply(200, json={"id": "u-1"}),), id="200 where 201 is due"),
        pytest.param((TAKEN, Reply(json=listing(0))), id="taken, yet not found"),
        pytest.param(
            (TAKEN, Reply(json=listing(1, Resources=[{"id": "u-9", "userName": PII}]))),
            id="taken, and the search finds somebody else: never changed",
        ),
        pytest.param((TAKEN, Reply(json=listing(1, Resources="x"))), id="taken, and junk is found"),
    ],
)
def test_a_canary_that_cannot_be_named_is_not_written_to(replies: tuple[Reply, ...]) -> None:
    wire = Wire(*replies)
    with pytest.raises(errors.Misconfigured) as told:
        probe_of(wire)(Secret(KEY), Probe.WRITE)
    assert PII not in str(told.value)
    assert {line.split()[0] for line in wire.lines()} <= {"POST", "GET"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schemas", "totalResults", "Resources", "id", "userName"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
junk = st.builds(
    Reply,
    status=st.sampled_from([200, 201, 204, 206, 299, 302, 304, 400, 401, 403, 404, 405, 409, 418, 429, 500, 501, 503]),
    json=json_values,
    text=st.none() | st.text(max_size=30),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Date", "Location"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
        max_size=3,
    ),
)


@given(replies=st.lists(junk, min_size=1, max_size=5), probe=st.sampled_from(Probe))
def test_junk_gives_an_answer_or_one_of_our_errors(replies: list[Reply], probe: Probe) -> None:
    told: object
    try:
        told = probe_of(Wire(*replies))(Secret(KEY), probe)
    except errors.PortError as error:
        told = error
    assert KEY not in repr(told)


def test_over_a_real_connection_a_reset_and_a_sign_in_page_say_nothing_about_the_key() -> None:
    with TargetSandbox("grafana") as sandbox:
        probe = scim_probe("t", ScimSettings(sandbox.scim_url), StillClock(), Wire(Reply()))
        key = Secret(sandbox.seed_key("old")[0])
        sandbox.fail("scim", Fault(reset=True))
        with pytest.raises(errors.Transient):
            probe(key, Probe.USERS)
        sandbox.behaviour.login_page = True
        with pytest.raises(errors.Misconfigured, match="web page"):
            probe(key, Probe.USERS)
        sandbox.behaviour.login_page = False
        assert probe(key, Probe.USERS).answer is Answer.ACCEPTED
