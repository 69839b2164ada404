"""Whatever Okta, or something in its place, answers: nothing but rotator.errors leaves the adapter, and no key does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rotator import errors
from rotator.adapters.idp.okta import OktaProvider
from rotator.adapters.idp.okta_auth import ServiceAppAuth
from rotator.core.secret import Secret
from tests.adapters.okta_stub import ENABLED, KEY, START, URL, StillClock, okta_error, org
from tests.adapters.okta_stub import provider as ssws_provider
from tests.adapters.test_okta_auth import pem

words = st.sampled_from(
    f"status ENABLED UNKNOWN profile authScheme errorCode E0000001 errorSummary credential errorCauses uuid published "
    f"eventType outcome result reason name error access_token use_dpop_nonce invalid_dpop_proof expires_in token_type "
    f"2026-03-01T12:00:00Z {KEY}".split()
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)
near_misses = st.sampled_from([ENABLED, okta_error("E0000001", "Api validation failed: credential"), [ENABLED], [[]]])
bodies = (trees | near_misses).map(lambda tree: httpx.Response(200, json=_finite(tree)).content) | st.binary(
    max_size=40
)
header_values = st.sampled_from(
    ["0", "10", "-1", "1e9", "99999999999999", "", "x, y", "Thu, 32 Foo 2026", "html", "gzip"]
)
header_names = st.sampled_from(
    [
        "x-rate-limit-limit",
        "x-rate-limit-remaining",
        "x-rate-limit-reset",
        "date",
        "retry-after",
        "content-type",
        "content-encoding",
        "www-authenticate",
        "dpop-nonce",
        "location",
        "link",
    ]
)
links = st.sampled_from(
    ["<", "<x>; rel=next", f'<{URL}/api/v1/logs?after=1>; rel="next"', "<https://[>; rel=next", "<//e>; rel=next"]
)
headers = st.dictionaries(header_names, header_values | links, max_size=5)
statuses = st.sampled_from(
    [200, 200, 200, 201, 204, 301, 304, 400, 401, 403, 404, 409, 418, 423, 429, 500, 502, 503, 599]
)

CALLS: dict[str, Callable[[OktaProvider], object]] = {
    "read": lambda it: it.read(),
    "features": lambda it: it.features(),
    "push": lambda it: it.push(Secret(KEY)),
    "events": lambda it: it.events(START),
}


def _finite(tree: Any) -> Any:
    if isinstance(tree, float):
        return tree if tree == tree and abs(tree) != float("inf") else 0.5  # noqa: PLR0124  NaN is what differs from itself
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    return [_finite(item) for item in tree] if isinstance(tree, list) else tree


def _with_service_app(handler: Callable[[httpx.Request], httpx.Response]) -> OktaProvider:
    clock = StillClock()
    made = org(
        handler,
        clock=clock,
        make_auth=lambda http, budget: ServiceAppAuth(
            http, budget, client_id="c", key=PRIVATE, scopes=("okta.apps.manage",), clock=clock
        ),
    )
    return OktaProvider(made, app_id="0oa1", app="okta_org2org")


PRIVATE = Secret(pem(ec.generate_private_key(ec.SECP256R1())))  # RSA keys are checked for 100 ms at each load
PROVIDERS = {"an API token": ssws_provider, "a service app": _with_service_app}


@pytest.mark.parametrize("sign_in", PROVIDERS)
@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers=st.lists(st.tuples(statuses, bodies, headers), min_size=1, max_size=4))
def test_junk_becomes_a_typed_error_or_an_answer_and_shows_no_key(
    call: str, sign_in: str, answers: list[tuple[int, bytes, Mapping[str, str]]]
) -> None:
    sent = 0

    def okta(_request: httpx.Request) -> httpx.Response:
        nonlocal sent
        status, body, more = answers[sent % len(answers)]
        sent += 1
        assert sent < 40, "no end"
        encoded = [(name.encode(), value.encode("utf-8")) for name, value in more.items()]
        return httpx.Response(status, headers=encoded, stream=httpx.ByteStream(body))

    it = PROVIDERS[sign_in](okta)
    raised: errors.PortError | None = None
    try:
        CALLS[call](it)
    except errors.PortError as error:
        raised = error
    assert type(raised) is not errors.PortError
    assert KEY not in str(raised)
    assert call == "push" or not isinstance(raised, errors.Ambiguous | errors.Refused)
