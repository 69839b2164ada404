"""Signing in to Okta, against a token endpoint that checks assertions and DPoP proofs as RFC 7523 and RFC 9449 say."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm

from rotator import errors
from rotator.adapters.idp.okta import OktaProvider
from rotator.adapters.idp.okta_auth import ServiceAppAuth
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.core.secret import Secret
from tests.adapters.okta_stub import APP, ENABLED, KEY, START, URL, Meters, StillClock, answer, limits, org

TOKEN_URL = f"{URL}/oauth2/v1/token"
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: Key) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class Okta:
    """A token endpoint with an API behind it; `requests` keeps the token requests' assertions and proofs."""

    def __init__(
        self,
        *,
        dpop: bool = False,
        key: Key = RSA,
        algorithm: str = "RS256",
        ahead: float = 0.0,
        nonces: bool = True,
        life: Any = 3600,
    ) -> None:
        self.dpop, self.key, self.algorithm, self.ahead, self.nonces, self.life = (
            dpop,
            key,
            algorithm,
            ahead,
            nonces,
            life,
        )
        self.clock = StillClock()
        self.nonce = "nonce-1"
        self.issued = 0
        self.token = ""
        self.assertions: list[dict[str, Any]] = []
        self.proofs: list[dict[str, Any]] = []
        self.api: list[httpx.Request] = []
        self.seen: set[str] = set()
        self.instead: list[httpx.Response] = []  # for the next token requests
        self.api_instead: list[httpx.Response] = []
        self.lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            response = self._token(request) if str(request.url) == TOKEN_URL else self._api(request)
            response.headers["date"] = format_datetime(self.clock.at + timedelta(seconds=self.ahead), usegmt=True)
            return response

    def _token(self, request: httpx.Request) -> httpx.Response:
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        assert form["grant_type"] == "client_credentials"
        assert form["scope"] == "okta.apps.manage okta.logs.read"
        assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        self.assertions.append(self._assertion(form["client_assertion"]))
        if self.instead:
            return self.instead.pop(0)
        now = self.clock.at.timestamp() + self.ahead
        claims = self.assertions[-1]
        if claims["jti"] in self.seen or not claims["iat"] - 60 <= now <= claims["exp"] <= now + 3600:
            return answer(
                401, {"error": "invalid_client", "error_description": "The client_assertion token is expired."}
            )
        self.seen.add(claims["jti"])
        if self.dpop:
            refusal = self._dpop_refusal(request)
            if refusal is not None:
                return refusal
        self.issued += 1
        self.token = f"access-{self.issued}"
        kind = "DPoP" if self.dpop else "Bearer"
        return answer(
            200, {"token_type": kind, "expires_in": self.life, "access_token": self.token, "scope": form["scope"]}
        )

    def _assertion(self, text: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(text)
        assert (header["alg"], header.get("kid")) == (self.algorithm, "kid-1")
        claims: dict[str, Any] = jwt.decode(
            text,
            self.key.public_key(),
            [self.algorithm],
            audience=TOKEN_URL,
            options={"verify_exp": False, "verify_iat": False},
        )
        assert claims["iss"] == claims["sub"] == "client-1"
        return claims

    def _dpop_refusal(self, request: httpx.Request) -> httpx.Response | None:
        if "dpop" not in request.headers:
            return answer(
                400, {"error": "invalid_dpop_proof", "error_description": "The DPoP proof JWT header is missing."}
            )
        claims = self._proof(request)
        self.proofs.append(claims)
        if self.nonces and claims.get("nonce") != self.nonce:
            body = {
                "error": "use_dpop_nonce",
                "error_description": "Authorization server requires nonce in DPoP proof.",
            }
            return answer(400, body, headers={"dpop-nonce": self.nonce})
        return None

    def _proof(self, request: httpx.Request) -> dict[str, Any]:
        header = jwt.get_unverified_header(request.headers["dpop"])
        assert header["typ"] == "dpop+jwt"
        assert set(header["jwk"]) == {"kty", "crv", "x", "y"}
        public = ECAlgorithm.from_jwk(json.dumps(header["jwk"]))
        claims: dict[str, Any] = jwt.decode(request.headers["dpop"], public, ["ES256"], options={"verify_iat": False})  # type: ignore[arg-type]  # a public key by its jwk
        assert claims["htm"] == request.method
        assert claims["htu"] == str(request.url).partition("?")[0]
        assert abs(claims["iat"] - self.clock.at.timestamp() - self.ahead) <= 300
        assert claims["jti"] not in self.seen
        self.seen.add(claims["jti"])
        return claims

    def _api(self, request: httpx.Request) -> httpx.Response:
        self.api.append(request)
        if self.api_instead:
            return self.api_instead.pop(0)
        kind = "DPoP" if self.dpop else "Bearer"
        if request.headers["authorization"] != f"{kind} {self.token}":
            return answer(401, {"errorCode": "E0000011"})
        if self.dpop:
            expected = base64.urlsafe_b64encode(hashlib.sha256(self.token.encode()).digest()).rstrip(b"=").decode()
            assert self._proof(request)["ath"] == expected
        return answer(200, ENABLED)


def provider(okta: Okta, dpop: Literal["auto", "on", "off"] = "auto", meter: Meters | None = None) -> OktaProvider:
    def make_auth(http: Any, budget: Any) -> ServiceAppAuth:
        return ServiceAppAuth(
            http,
            budget,
            client_id="client-1",
            key=Secret(pem(okta.key)),
            kid="kid-1",
            scopes=("okta.apps.manage", "okta.logs.read"),
            clock=okta.clock,
            dpop=dpop,
        )

    made: OktaOrg = org(okta, clock=okta.clock, meter=meter, make_auth=make_auth)
    return OktaProvider(made, app_id=APP, app="okta_org2org")


@pytest.mark.parametrize(
    ("bound", "dpop", "token_requests"),
    [
        pytest.param(False, "auto", 1, id="an app without DPoP costs one request"),
        pytest.param(False, "off", 1, id="DPoP switched off"),
        pytest.param(True, "auto", 3, id="an app with DPoP: asked for a proof, then for a nonce"),
        pytest.param(True, "on", 2, id="DPoP from the first: asked for a nonce"),
    ],
)
def test_signing_in(bound: bool, dpop: Literal["auto", "on", "off"], token_requests: int) -> None:
    okta = Okta(dpop=bound)
    it = provider(okta, dpop)
    it.read()
    it.push(Secret(KEY))
    assert len(okta.assertions) == token_requests
    assert len({claims["jti"] for claims in okta.assertions}) == token_requests
    assert len(okta.api) == 2


def test_the_next_token_takes_one_request_with_the_nonce_that_we_know() -> None:
    okta = Okta(dpop=True)
    it = provider(okta)
    it.read()
    okta.clock.pass_(3600)
    it.read()
    assert (len(okta.assertions), okta.issued) == (4, 2)


def test_a_nonce_that_changed_is_taken_over() -> None:
    okta = Okta(dpop=True)
    it = provider(okta)
    it.read()
    okta.nonce = "nonce-2"
    okta.clock.pass_(3600)
    it.read()
    assert (len(okta.assertions), okta.issued) == (5, 2)


@pytest.mark.parametrize(
    ("life", "seconds", "issued"),
    [
        pytest.param(3600, 3530, 1, id="reused until a minute before its end"),
        pytest.param(3600, 3550, 2, id="replaced in its last minute"),
        pytest.param(60, 20, 1, id="a token of a minute is used for half of it"),
        pytest.param("soon", 3530, 1, id="an unreadable life counts as an hour"),
    ],
)
def test_a_token_is_cached(life: Any, seconds: float, issued: int) -> None:
    okta = Okta(life=life)
    it = provider(okta)
    it.read()
    okta.clock.pass_(seconds)
    it.read()
    assert okta.issued == issued


def test_many_threads_share_one_token() -> None:
    okta = Okta()
    it = provider(okta)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: it.read(), range(16)))
    assert (okta.issued, len(okta.api)) == (1, 16)


def test_a_401_is_tried_once_more_with_a_fresh_token() -> None:
    okta, meter = Okta(), Meters()
    it = provider(okta, meter=meter)
    it.read()
    okta.token = "revoked by Okta"
    it.push(Secret(KEY))
    assert (okta.issued, len(okta.api)) == (2, 3)
    assert [call[1:] for call in meter.calls] == [
        ("token", "ok"),
        ("read", "ok"),
        ("push", "denied"),
        ("token", "ok"),
        ("push", "ok"),
    ]


def test_a_401_that_stays_is_denied_after_two_tries() -> None:
    okta = Okta()
    okta.api_instead = [answer(401, {"errorCode": "E0000011"}) for _ in range(5)]
    with pytest.raises(errors.Denied):
        provider(okta).push(Secret(KEY))
    assert len(okta.api) == 2


def test_an_api_that_wants_a_nonce_gets_it() -> None:
    okta = Okta(dpop=True)
    challenge = {"www-authenticate": 'DPoP error="use_dpop_nonce"', "dpop-nonce": "api-nonce"}
    okta.api_instead = [answer(401, headers=challenge)]
    provider(okta).read()
    assert jwt.decode(okta.api[-1].headers["dpop"], options={"verify_signature": False})["nonce"] == "api-nonce"


@pytest.mark.parametrize("ahead", [pytest.param(600.0, id="we are slow"), pytest.param(-7200.0, id="we are fast")])
@pytest.mark.parametrize("bound", [False, True])
def test_a_clock_that_is_off_is_corrected_by_the_servers(ahead: float, bound: bool) -> None:
    okta = Okta(ahead=ahead, dpop=bound)
    it = provider(okta, "on" if bound else "auto")
    it.read()
    it.read()
    assert abs(okta.assertions[-1]["iat"] - (START.timestamp() + ahead)) <= 1
    assert okta.issued == 1


DESCRIPTION = "canary-7f3a9c51d2e84b06-key"
REFUSALS: list[tuple[str, Callable[[], httpx.Response], type[errors.PortError], str]] = [
    ("an unknown client or key", lambda: answer(401, {"error": "invalid_client", "error_description": DESCRIPTION}), errors.Denied, "client_id, kid and the private key"),
    ("a scope that was not granted", lambda: answer(400, {"error": "invalid_scope", "error_description": DESCRIPTION}), errors.Denied, "Okta API Scopes"),
    ("no such grant", lambda: answer(400, {"error": "unauthorized_client"}), errors.Denied, "client_credentials"),
    ("no role", lambda: answer(403, {"error": "access_denied"}), errors.Denied, "admin role"),
    ("another kind of app", lambda: answer(400, {"error": "invalid_request"}), errors.Denied, "service app"),
    ("an error of tomorrow", lambda: answer(400, {"error": DESCRIPTION}), errors.Denied, "sign-in was refused"),
    ("a proxy's 403", lambda: answer(403, text="<html>no</html>"), errors.Denied, "HTTP 403"),
    ("the rate limit", lambda: answer(429, headers=limits(150, 0)), errors.RateLimited, "token"),
    ("an outage", lambda: answer(500), errors.Transient, "HTTP 500"),
    ("read-only mode", lambda: answer(503), errors.Transient, "HTTP 503"),
    ("a wrong URL", lambda: answer(404), errors.NotFound, "HTTP 404"),
    ("a sign-in page", lambda: answer(200, text="<html>hello</html>"), errors.Misconfigured, "web page"),
    ("no token in the answer", lambda: answer(200, {"token_type": "Bearer"}), errors.Misconfigured, "without an access token"),
    ("a token that is no header value", lambda: answer(200, {"access_token": "a\nb"}), errors.Misconfigured, "without an access token"),
    ("a nonce again and again", lambda: answer(400, {"error": "use_dpop_nonce"}, headers={"dpop-nonce": "same"}), errors.Denied, "again and again"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("refusal", "expected", "says"), [pytest.param(*case, id=sentence) for sentence, *case in REFUSALS]
)
def test_a_sign_in_that_fails_says_what_to_do(
    refusal: Callable[[], httpx.Response], expected: type[errors.PortError], says: str
) -> None:
    okta = Okta()
    okta.instead = [refusal() for _ in range(9)]
    with pytest.raises(errors.PortError) as raised:
        provider(okta).push(Secret(KEY))
    assert type(raised.value) is expected
    assert says in str(raised.value)
    assert DESCRIPTION not in str(raised.value)
    assert okta.api == []
    assert len(okta.assertions) <= 4


def test_dpop_switched_off_at_an_app_that_demands_it_is_explained() -> None:
    okta = Okta(dpop=True)
    with pytest.raises(errors.Denied, match='dpop must not be "off"'):
        provider(okta, "off").read()
    assert len(okta.assertions) == 1


@pytest.mark.parametrize(
    ("curve", "algorithm"),
    [
        pytest.param(ec.SECP256R1(), "ES256", id="P-256"),
        pytest.param(ec.SECP384R1(), "ES384", id="P-384"),
        pytest.param(ec.SECP521R1(), "ES512", id="P-521"),
    ],
)
def test_elliptic_keys_sign_with_their_own_algorithm(curve: ec.EllipticCurve, algorithm: str) -> None:
    okta = Okta(key=ec.generate_private_key(curve), algorithm=algorithm)
    provider(okta).read()
    assert okta.issued == 1


SHORT = pem(rsa.generate_private_key(public_exponent=65537, key_size=1024))  # noqa: S505  it is refused for that
ENCRYPTED = RSA.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
).decode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("no key canary", id="no PEM"),
        pytest.param(pem(RSA)[:400], id="a cut PEM"),
        pytest.param(ENCRYPTED, id="an encrypted key"),
        pytest.param(SHORT, id="a short RSA key"),
        pytest.param(pem(ec.generate_private_key(ec.SECP256K1())), id="a curve that Okta doesn't take"),
        pytest.param("ключ", id="not even ASCII"),
    ],
)
def test_a_private_key_that_cant_be_used_is_named_without_showing_it(text: str) -> None:
    okta = Okta()

    def make_auth(http: Any, budget: Any) -> ServiceAppAuth:
        return ServiceAppAuth(http, budget, client_id="c", key=Secret(text), scopes=("s",), clock=okta.clock)

    with pytest.raises(errors.Misconfigured) as raised:
        org(okta, make_auth=make_auth)
    assert "private key can't be used" in str(raised.value)
    assert text[:20] not in str(raised.value)
    assert raised.value.__cause__ is None
