"""The declarative family: what is sent for a description, and what each answer of an admin API means."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator import errors
from rotator.adapters.targets.description import (
    Call,
    Cursor,
    Description,
    LinkHeader,
    Listing,
    Mint,
    Pages,
    Taken,
    at,
    moment,
    render,
)
from rotator.adapters.targets.http import MAX_PAGES, AdminAuth, AdminHeader, HttpTargetSettings, http_target
from rotator.adapters.targets.scim import ScimSettings
from rotator.core.secret import Secret
from rotator.ports import KeyInfo, LiveKeys
from rotator.sandbox.target import TargetSandbox
from rotator.sandbox.target_faults import Fault
from tests.fakes.wire import ADMIN, NOW, Reply, StillClock, Wire, target_over

KEY = "canary-value-that-nothing-may-tell"

MINT = Mint(
    Call("POST", "/keys", body={"name": "{label}", "ttl": "{ttl_seconds}"}),
    key="/key",
    key_id="/id",
    expires_at="/until",
    taken=(Taken(400, "/code", "EXISTS"), Taken(422)),
)
LISTING = Listing(
    Call("GET", "/keys"),
    items="/items",
    key_id="/id",
    label="/name",
    created_at="/made",
    last_used_at="/used",
    expires_at="/until",
    dead=(("/state", "revoked"), ("/off", True)),
)
WHOLE = Description(mint=MINT, listing=LISTING, revoke=Call("DELETE", "/keys/{key_id}"), ttl_seconds=3600)
SUPPLIED = Description(mint=Mint(Call("POST", "/set_key/", body={"key": "{value}"}), key=None), live_keys=LiveKeys.ONE)


def paged(pages: Any, path: str = "/keys") -> Description:
    return Description(
        mint=Mint(Call("POST", "/keys"), key="/key"),
        listing=Listing(Call("GET", path), items="/items", key_id="/id", pages=pages),
    )


# --- mint ---------------------------------------------------------------------------------------------------------------


def test_a_mint_sends_the_description_and_reads_the_answer() -> None:
    wire = Wire(Reply(201, json={"key": KEY, "id": 7, "until": "2027-01-01T00:00:00Z"}))
    minted = target_over(wire, WHOLE).mint("rk-1")
    assert (minted.key.reveal(), minted.key_id, minted.expires_at) == (KEY, "7", datetime(2027, 1, 1, tzinfo=UTC))
    assert wire.lines() == ["POST /base/keys"]
    assert wire.body() == {"name": "rk-1", "ttl": 3600}
    assert wire.requests[0].headers["authorization"] == f"Bearer {ADMIN}"
    assert wire.metered == [("target:t", "mint", "ok")]


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({}, id="not told"),
        pytest.param({"until": None}, id="told as null"),
        pytest.param({"until": "soon"}, id="told as something odd: the key is worth more than its date"),
        pytest.param({"until": ["x"]}, id="told as a list"),
    ],
)
def test_an_expiry_that_is_not_told_is_the_one_asked_for(told: dict[str, Any]) -> None:
    minted = target_over(Wire(Reply(201, json={"key": KEY, "id": "k", **told})), WHOLE).mint("rk-1")
    assert minted.expires_at == NOW + timedelta(hours=1)


def test_an_answer_with_a_key_but_no_id_keeps_the_key() -> None:
    minted = target_over(Wire(Reply(201, json={"key": KEY, "id": {"odd": 1}})), WHOLE).mint("rk-1")
    assert (minted.key.reveal(), minted.key_id) == (KEY, None)


def test_a_supplied_value_is_sent_and_is_the_key() -> None:
    wire = Wire(Reply(204))
    assert target_over(wire, SUPPLIED).mint("rk-1", Secret(KEY)).key.reveal() == KEY
    assert wire.body() == {"key": KEY}


@pytest.mark.parametrize(("description", "value"), [(SUPPLIED, None), (WHOLE, Secret(KEY))], ids=["missing", "unasked"])
def test_a_value_is_given_exactly_where_the_body_sends_one(description: Description, value: Secret | None) -> None:
    wire = Wire(Reply(201, json={"key": KEY}))
    with pytest.raises(errors.Unsupported):
        target_over(wire, description).mint("rk-1", value)
    assert wire.requests == []


MINT_ERRORS = [
    pytest.param(Reply(lost=True), errors.Ambiguous, id="the answer is lost"),
    pytest.param(Reply(500, text=KEY), errors.Ambiguous, id="500: it may have been issued"),
    pytest.param(Reply(502, text="<html>"), errors.Ambiguous, id="502: it may have been issued"),
    pytest.param(Reply(503, headers={"Retry-After": "9"}), errors.Transient, id="503: turned away"),
    pytest.param(Reply(429, headers={"Retry-After": "9"}), errors.RateLimited, id="429"),
    pytest.param(Reply(401), errors.Denied, id="401: our credential, not the key"),
    pytest.param(Reply(403), errors.Denied, id="403: our rights, not the key"),
    pytest.param(Reply(404), errors.NotFound, id="404: unknown, or hidden from us"),
    pytest.param(Reply(409, json={"message": KEY}), errors.Conflict, id="409: name or cap"),
    pytest.param(Reply(400, json={"code": "EXISTS"}), errors.Conflict, id="400 with the code for a taken name"),
    pytest.param(Reply(422, json={}), errors.Conflict, id="a status that always means so here"),
    pytest.param(Reply(400, json={"code": KEY}), errors.Misconfigured, id="400: the request is wrong"),
    pytest.param(Reply(400, text=KEY), errors.Misconfigured, id="400 without JSON"),
    pytest.param(Reply(302, headers={"Location": f"https://x.example/{KEY}"}), errors.PortError, id="a redirect"),
    pytest.param(Reply(201, json={"other": KEY}), errors.Ambiguous, id="201, no key at the pointer"),
    pytest.param(Reply(201, json={"key": ""}), errors.Ambiguous, id="201, an empty key"),
    pytest.param(Reply(201, json={"key": [KEY]}), errors.Ambiguous, id="201, a key that is no text"),
    pytest.param(Reply(201, json=[KEY]), errors.Ambiguous, id="201, another shape"),
    pytest.param(Reply(201, text=KEY), errors.Ambiguous, id="201, no JSON"),
    pytest.param(Reply(201), errors.Ambiguous, id="201, no body"),
    pytest.param(Reply(206, json={"key": KEY}), errors.Ambiguous, id="a success that was not described"),
]


@pytest.mark.parametrize(("reply", "kind"), MINT_ERRORS)
def test_a_mint_that_fails_says_whether_a_key_may_be_out_there(reply: Reply, kind: type[errors.PortError]) -> None:
    with pytest.raises(kind) as told:
        target_over(Wire(reply), WHOLE).mint("rk-1")
    assert kind is errors.PortError or type(told.value) is kind
    assert KEY not in f"{told.value!s} {told.value!r}"
    assert ADMIN not in str(told.value)


def test_an_unreadable_mint_tells_where_the_key_was_looked_for() -> None:
    with pytest.raises(errors.Ambiguous, match=r"none at '/key' in the answer\. Compare the JSON pointers"):
        target_over(Wire(Reply(201, json={"token": KEY})), WHOLE).mint("rk-1")


# --- list ---------------------------------------------------------------------------------------------------------------


def test_a_list_is_read_by_its_pointers_and_dead_keys_are_left_out() -> None:
    items = [
        {"id": 1, "name": "rk-1", "made": "2026-01-02T03:04:05Z", "used": None, "until": 0},
        {"id": "b", "name": None, "used": 1_700_000_000},
        {"id": 3, "state": "revoked"},
        {"id": 4, "off": True},
        {"id": 5, "off": 1, "name": 7},
        {"id": 6, "until": "2026-11-22T11:59:59Z"},
    ]
    assert target_over(Wire(Reply(json={"items": items})), WHOLE).list_keys() == (
        KeyInfo("1", "rk-1", created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        KeyInfo("b", None, last_used_at=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        KeyInfo("5", None),
    )


LIST_ERRORS = [
    pytest.param(Reply(json={"keys": []}), errors.Misconfigured, id="nothing at the pointer: not the same as no keys"),
    pytest.param(Reply(json={"items": {}}), errors.Misconfigured, id="no list at the pointer"),
    pytest.param(Reply(json={"items": [{"name": "x"}]}), errors.Misconfigured, id="a key without id"),
    pytest.param(Reply(json={"items": [{"id": True}]}), errors.Misconfigured, id="an id that is a boolean"),
    pytest.param(Reply(json={"items": ["x"]}), errors.Misconfigured, id="a key that is no object"),
    pytest.param(Reply(json={"items": [{"id": 1, "made": "x"}]}), errors.Misconfigured, id="a date that is none"),
    pytest.param(Reply(200), errors.Misconfigured, id="no body"),
    pytest.param(Reply(200, text="<html>"), errors.Misconfigured, id="a web page"),
    pytest.param(Reply(206, json={"items": []}), errors.Misconfigured, id="a success that was not described"),
    pytest.param(Reply(302), errors.Misconfigured, id="a redirect"),
    pytest.param(Reply(401), errors.Denied, id="401: our credential"),
    pytest.param(Reply(404), errors.NotFound, id="404"),
    pytest.param(Reply(429), errors.RateLimited, id="429"),
    pytest.param(Reply(500), errors.Transient, id="500: nothing was changed"),
    pytest.param(Reply(lost=True), errors.Transient, id="the answer is lost: nothing was changed"),
]


@pytest.mark.parametrize(("reply", "kind"), LIST_ERRORS)
def test_a_list_is_read_whole_or_not_at_all(reply: Reply, kind: type[errors.PortError]) -> None:
    with pytest.raises(kind) as told:
        target_over(Wire(reply), WHOLE).list_keys()
    assert type(told.value) is kind


def page(ids: list[int], **more: Any) -> Reply:
    return Reply(json={"items": [{"id": i} for i in ids], **more})


def link(url: str) -> Reply:
    return Reply(
        json={"items": [{"id": 1}]}, headers={"Link": f'<https://x.example/first>; rel="first", <{url}>; rel="next"'}
    )


PAGED = [
    pytest.param(
        Pages("page", "/pages", "per_page", 2),
        (page([1, 2], pages=2), page([2, 3], pages=2)),
        ["GET /base/keys?kind=scim&per_page=2&page=1", "GET /base/keys?kind=scim&per_page=2&page=2"],
        id="numbered; a key that slipped to the next page counts once",
    ),
    pytest.param(
        Pages("page", "/pages"),
        (page([1, 2, 3], pages=0),),
        ["GET /base/keys?kind=scim&page=1"],
        id="numbered, no second page",
    ),
    pytest.param(
        Cursor("after", "/next"),
        (page([1], next="a b"), page([2], next=3), page([3], next="")),
        ["GET /base/keys?kind=scim", "GET /base/keys?kind=scim&after=a%20b", "GET /base/keys?kind=scim&after=3"],
        id="by cursor",
    ),
    pytest.param(
        LinkHeader(),
        (link("https://target.example/base/keys?kind=scim&p=2"), link("/base/keys?p=3&p=+"), page([2, 3])),
        ["GET /base/keys?kind=scim", "GET /base/keys?kind=scim&p=2", "GET /base/keys?p=3&p=+"],
        id="by link, absolute and relative",
    ),
    pytest.param(
        LinkHeader(),
        (link("https://target.example:443/base/keys?p=2"), page([2, 3])),
        ["GET /base/keys?kind=scim", "GET /base/keys?p=2"],
        id="by link, the port written out",
    ),
]


@pytest.mark.parametrize(("pages", "replies", "lines"), PAGED)
def test_every_page_is_read(pages: Any, replies: tuple[Reply, ...], lines: list[str]) -> None:
    wire = Wire(*replies)
    infos = target_over(wire, paged(pages, "/keys?kind=scim")).list_keys()
    assert [info.key_id for info in infos] == ["1", "2", "3"]
    assert wire.lines() == lines


BAD_PAGES = [
    pytest.param(Pages("page", "/pages"), (page([1]),), 1, id="no number of pages"),
    pytest.param(Pages("page", "/pages"), (page([1], pages="2"),), 1, id="a number of pages that is text"),
    pytest.param(Pages("page", "/pages"), (page([1], pages=MAX_PAGES + 1),), 1, id="more pages than can be"),
    pytest.param(Cursor("after", "/next"), (page([1], next="a"),), 2, id="the same cursor again"),
    pytest.param(Cursor("after", "/next"), (page([1], next=["a"]),), 1, id="a cursor that is a list"),
    pytest.param(LinkHeader(), (link("https://evil.example/base/keys?p=2"),), 1, id="a link to another host"),
    pytest.param(LinkHeader(), (link("http://target.example/base/keys?p=2"),), 1, id="a link without TLS"),
    pytest.param(LinkHeader(), (link("https://target.example:8443/base/keys?p=2"),), 1, id="a link to another port"),
    pytest.param(LinkHeader(), (link("https://target.example/base/users?p=2"),), 1, id="a link to another path"),
    pytest.param(LinkHeader(), (link("//evil.example/base/keys?p=2"),), 1, id="a link that hides its host"),
    pytest.param(LinkHeader(), (link("https://target.example:x/base/keys"),), 1, id="a link that is no URL"),
    pytest.param(LinkHeader(), (link("/base/keys?p=2"),), 2, id="the same link again"),
]


@pytest.mark.parametrize(("pages", "replies", "calls"), BAD_PAGES)
def test_pages_that_lead_astray_end_the_list_with_an_error(pages: Any, replies: tuple[Reply, ...], calls: int) -> None:
    wire = Wire(*replies)
    with pytest.raises(errors.Misconfigured):
        target_over(wire, paged(pages)).list_keys()
    assert len(wire.requests) == calls
    assert {request.url.host for request in wire.requests} == {"target.example"}


# --- revoke -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204, 404, 410])
def test_a_revoked_or_missing_key_is_success(status: int) -> None:
    wire = Wire(Reply(status))
    target_over(wire, WHOLE).revoke("a/b 1")
    assert wire.lines() == ["DELETE /base/keys/a%2Fb%201"]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        pytest.param(Reply(401), errors.Denied, id="401: our credential"),
        pytest.param(Reply(403), errors.Denied, id="403: our rights"),
        pytest.param(Reply(409), errors.Conflict, id="409"),
        pytest.param(Reply(400), errors.Misconfigured, id="400"),
        pytest.param(Reply(500), errors.Ambiguous, id="500"),
        pytest.param(Reply(lost=True), errors.Ambiguous, id="the answer is lost"),
        pytest.param(Reply(503), errors.Transient, id="503"),
        pytest.param(Reply(206), errors.Ambiguous, id="a success that was not described"),
    ],
)
def test_a_revoke_that_fails_is_never_taken_for_done(reply: Reply, kind: type[errors.PortError]) -> None:
    with pytest.raises(kind) as told:
        target_over(Wire(reply), WHOLE).revoke("k1")
    assert type(told.value) is kind


@pytest.mark.parametrize("key_id", ["", ".", ".."])
def test_an_id_that_would_address_more_than_a_key_is_never_sent(key_id: str) -> None:
    wire = Wire(Reply(204))
    with pytest.raises(errors.Misconfigured):
        target_over(wire, WHOLE).revoke(key_id)
    assert wire.requests == []


@pytest.mark.parametrize("key_id", ["../users", "%2e%2e", "k?force=1", "k#x", "a\\b", "é", "..;", "/"])
def test_an_odd_id_stays_one_path_segment(key_id: str) -> None:
    wire = Wire(Reply(204))
    target_over(wire, WHOLE).revoke(key_id)
    assert re.fullmatch(r"DELETE /base/keys/[^/?#]+", wire.lines()[0])


def test_a_key_is_disabled_before_it_is_deleted_where_the_target_wants_that() -> None:
    description = Description(
        mint=Mint(Call("POST", "/keys"), key="/key"),
        disable=Call("POST", "/keys/{key_id}/deactivate"),
        revoke=Call("DELETE", "/keys/{key_id}"),
    )
    wire = Wire(Reply(404), Reply(204))
    target_over(wire, description).revoke("k1")
    assert wire.lines() == ["POST /base/keys/k1/deactivate", "DELETE /base/keys/k1"]
    wire = Wire(Reply(403))
    with pytest.raises(errors.Denied):
        target_over(wire, description).revoke("k1")
    assert len(wire.requests) == 1


# --- our credential -----------------------------------------------------------------------------------------------------


def test_the_admin_credential_may_be_several_headers_and_is_asked_for_at_each_call() -> None:
    secrets = iter([Secret("one"), Secret("two")])
    admin = AdminAuth(
        (AdminHeader("DD-API-KEY", Secret("fixed")), AdminHeader("DD-APPLICATION-KEY", lambda: next(secrets)))
    )
    sent = [admin.headers("GET", "https://x.example") for _ in range(2)]
    assert sent == [
        {"DD-API-KEY": "fixed", "DD-APPLICATION-KEY": "one"},
        {"DD-API-KEY": "fixed", "DD-APPLICATION-KEY": "two"},
    ]


# --- descriptions -------------------------------------------------------------------------------------------------------

UNSOUND = [
    pytest.param(
        Description(Mint(Call("POST", "keys"), key="/key")), "mint: the path must begin with / and have no #", id="path"
    ),
    pytest.param(
        Description(Mint(Call("POST", "/keys", body={"a": ["{lable}"]}), key="/key")),
        "mint: {lable} means nothing here",
        id="a misspelt placeholder, deep in the body",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/keys", body="{key_id}"), key="/key")),
        "mint: {key_id} means nothing here",
        id="a key's id before there is one",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/keys/{value}"), key=None)),
        "mint: {value} may not stand in a path",
        id="a key in a URL",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k"), key="/key"), revoke=Call("DELETE", "/k")),
        "revoke: without {key_id} it would hit every key",
        id="a revoke of everything",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k"), key="/key"), disable=Call("PUT", "/k/{key_id}")),
        "disable: there is no revoke that it could come before",
        id="disable alone",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k", body="{expires_at}"), key="/key")),
        "mint: {expires_at} and {ttl_seconds} need ttl_seconds",
        id="an expiry without a lifetime",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k"), key=None)),
        "mint: either the answer holds the key, at a pointer, or the body sends {value}",
        id="no key anywhere",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k", body="{value}"), key="/key")),
        "mint: either the answer holds the key, at a pointer, or the body sends {value}",
        id="two keys",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k"), key="/key"), Listing(Call("GET", "/k"), "", "/id", label="/name")),
        "list: there is a label to read, but the mint sends no {label}",
        id="labels that we never wrote",
    ),
    pytest.param(
        Description(Mint(Call("POST", "/k"), key="key")), "'key' is no JSON pointer", id="a pointer without a slash"
    ),
    pytest.param(
        Description(
            Mint(Call("POST", "/k"), key="/key"), Listing(Call("GET", "/k"), "", "/id", pages=Cursor("c", "next"))
        ),
        "'next' is no JSON pointer",
        id="a cursor's pointer without a slash",
    ),
]


@pytest.mark.parametrize(("description", "problem"), UNSOUND)
def test_a_description_that_cannot_work_is_refused_with_the_reason(description: Description, problem: str) -> None:
    assert problem in description.problems()
    with pytest.raises(errors.Misconfigured, match=re.escape(problem)):
        target_over(Wire(Reply()), description)


def test_sound_descriptions_have_no_problems() -> None:
    assert WHOLE.problems() == SUPPLIED.problems() == ()


@pytest.mark.parametrize(
    ("mint", "label", "labels"),
    [
        pytest.param("{label}", "/name", True, id="sent and listed"),
        pytest.param("{label}", None, False, id="sent, but not listed"),
        pytest.param(None, None, False, id="neither"),
    ],
)
def test_labels_count_only_where_the_list_shows_them(mint: str | None, label: str | None, labels: bool) -> None:
    listing = Listing(Call("GET", "/k"), "", "/id", label=label)
    description = Description(Mint(Call("POST", "/k", body={"name": mint}), key="/key"), listing)
    assert description.problems() == ()
    assert description.capabilities.labels is labels


@pytest.mark.parametrize(
    ("template", "result"),
    [
        pytest.param("{label}", 'a "{value}" \\', id="a label is never read as JSON nor as a template again"),
        pytest.param("x {label} y", 'x a "{value}" \\ y', id="inside a sentence"),
        pytest.param("{ttl_seconds}", 60, id="a number stays a number"),
        pytest.param("{ttl_seconds}s", "60s", id="a number inside text"),
        pytest.param(
            {"{label}": [1, None, True, {"k": "{ttl_seconds}"}]},
            {"{label}": [1, None, True, {"k": 60}]},
            id="only values, at any depth",
        ),
        pytest.param("{other} {", "{other} {", id="other braces stay"),
    ],
)
def test_bodies_are_filled_in_leaf_by_leaf(template: Any, result: Any) -> None:
    assert render(template, {"label": 'a "{value}" \\', "value": "SECRET", "ttl_seconds": 60}) == result


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        pytest.param("", {"a/b": [10, {"~": 1}], "": 2, "n": None}, id="the whole"),
        pytest.param("/a~1b/0", 10, id="~1 is a slash"),
        pytest.param("/a~1b/1/~0", 1, id="~0 is a tilde"),
        pytest.param("/", 2, id="the empty name"),
        pytest.param("/n", None, id="null"),
        pytest.param("/a~1b/2", None, id="past the end"),
        pytest.param("/a~1b/-1", None, id="no counting from the end"),
        pytest.param("/a~1b/x", None, id="a name in a list"),
        pytest.param("/n/x", None, id="below null"),
        pytest.param("//x", None, id="below a number"),
    ],
)
def test_pointers_follow_rfc_6901(pointer: str, found: Any) -> None:
    assert at({"a/b": [10, {"~": 1}], "": 2, "n": None}, pointer) == found


@pytest.mark.parametrize(
    ("value", "when"),
    [
        pytest.param(None, None, id="null"),
        pytest.param("", None, id="empty"),
        pytest.param(0, None, id="0: never"),
        pytest.param("0001-01-01T00:00:00Z", None, id="Go's zero time"),
        pytest.param(
            "2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC), id="nanoseconds"
        ),
        pytest.param("2026-01-02T05:04:05+02:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), id="another zone"),
        pytest.param("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), id="no zone is UTC"),
        pytest.param(1767323045, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), id="seconds"),
        pytest.param(1767323045000, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), id="milliseconds"),
    ],
)
def test_times_are_read_as_apis_write_them(value: Any, when: datetime | None) -> None:
    assert moment(value) == when


@pytest.mark.parametrize("value", [True, [], {}, "tomorrow", 10**400, 1e300, "9999-12-31T23:59:59-14:00"])
def test_what_is_no_time_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        moment(value)


# --- junk, and real connections -----------------------------------------------------------------------------------------

NAMES = ["items", "id", "name", "key", "until", "made", "used", "code", "pages", "next", "state"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(KEY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
finite = json_values.filter(lambda value: "nan" not in repr(value).lower() and "inf" not in repr(value).lower())
junk = st.builds(
    Reply,
    status=st.sampled_from([200, 201, 202, 204, 206, 302, 304, 400, 401, 403, 404, 409, 410, 422, 429, 500, 503]),
    json=finite,
    text=st.none() | ascii_text,
    headers=st.dictionaries(st.sampled_from(["Link", "Retry-After", "Date", "Location"]), ascii_text, max_size=3),
    lost=st.booleans(),
)
DESCRIPTIONS = [WHOLE, paged(Pages("page", "/pages")), paged(Cursor("after", "/next")), paged(LinkHeader())]


@given(
    replies=st.lists(junk, min_size=1, max_size=4),
    description=st.sampled_from(DESCRIPTIONS),
    action=st.sampled_from(["mint", "list", "revoke"]),
    key_id=st.text(max_size=20),
)
def test_junk_gives_a_result_or_one_of_our_errors(
    replies: list[Reply], description: Description, action: str, key_id: str
) -> None:
    target = target_over(Wire(*replies), description)
    told: object = None
    try:
        match action:
            case "mint":
                told = target.mint("rk-1")
            case "list":
                target.list_keys()
            case _:
                target.revoke(key_id)
    except errors.PortError as error:
        told = error
    assert KEY not in repr(told)
    assert ADMIN not in repr(told)


def test_over_a_real_connection_a_lost_mint_is_ambiguous_and_the_label_finds_its_key() -> None:
    with TargetSandbox("capped") as sandbox:
        description = Description(
            mint=Mint(Call("POST", sandbox.path("mint"), body={"name": "{label}"}), key="/key", key_id="/id"),
            listing=Listing(Call("GET", sandbox.path("list")), items="", key_id="/id", label="/name"),
            revoke=Call("DELETE", sandbox.path("revoke")),
        )
        meter = Wire(Reply())
        target = http_target(
            HttpTargetSettings(
                "t",
                sandbox.url,
                (AdminHeader("Authorization", Secret(sandbox.admin_token), "Bearer "),),
                description,
                ScimSettings(sandbox.scim_url),
            ),
            StillClock(),
            meter,
        )
        sandbox.fail("mint", Fault(after=True, reset=True))
        with pytest.raises(errors.Ambiguous):
            target.mint("rk-lost")
        (info,) = target.list_keys()
        assert info.label == "rk-lost"
        target.revoke(info.key_id)
        assert sandbox.live_keys() == []
        assert meter.metered == [
            ("target:t", "mint", "ambiguous"),
            ("target:t", "list", "ok"),
            ("target:t", "revoke", "ok"),
        ]
