"""The sandbox Okta's OAuth 2.0: the rotator's own sign-in with private_key_jwt and DPoP, Org2Org, and consent."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from rotator.sandbox.okta import OktaSandbox
from tests.adapters.okta_openapi import check
from tests.adapters.okta_world import World, open_world

SCOPES = ["okta.apps.manage", "okta.logs.read"]
TOKEN = "/oauth2/v1/token"


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as opened:
        opened.http.headers.pop("Authorization")
        yield opened


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Algorithm -> private key and public JWK."""
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ec_key = ec.generate_private_key(ec.SECP256R1())
    rsa_jwk = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key.public_key())
    ec_jwk = jwt.algorithms.ECAlgorithm.to_jwk(ec_key.public_key())
    return {
        "RS256": (rsa_key, json.loads(rsa_jwk) | {"kid": "rsa-1"}),
        "ES256": (ec_key, json.loads(ec_jwk) | {"kid": "ec-1"}),
    }


class Client:
    """A service app's side, done by hand."""

    def __init__(self, world: World, keys: dict[str, Any], algorithm: str = "RS256", *, dpop: bool = False) -> None:
        self.http, self.url, self.algorithm = world.http, world.okta.url, algorithm
        self.key, self.jwk = keys[algorithm]
        self.id = world.okta.add_service_app(self.jwk, SCOPES, dpop=dpop)

    def assertion(self, *, kid: str | None = None, key: Any = None, **claims: Any) -> str:
        now = int(time.time())
        own = {"iss": self.id, "sub": self.id, "aud": self.url + TOKEN, "iat": now, "exp": now + 300}
        header = {"kid": kid or self.jwk["kid"]}
        content = {"jti": uuid.uuid4().hex, **own, **claims}
        return jwt.encode(content, key or self.key, algorithm=self.algorithm, headers=header)

    def proof(self, method: str, path: str, *, key: Any = None, typ: str = "dpop+jwt", **claims: Any) -> str:
        content = {"htm": method, "htu": self.url + path, "iat": int(time.time()), "jti": uuid.uuid4().hex, **claims}
        header = {"typ": typ, "jwk": {name: value for name, value in self.jwk.items() if name != "kid"}}
        return jwt.encode(content, key or self.key, algorithm=self.algorithm, headers=header)

    def ask(self, *, proof: str | None = None, assertion: str | None = None, **form: str) -> httpx.Response:
        content = {
            "grant_type": "client_credentials",
            "scope": " ".join(SCOPES),
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": assertion or self.assertion(),
            **form,
        }
        return self.http.post(TOKEN, data=content, headers={"DPoP": proof} if proof else {})

    def bound_token(self) -> str:
        nonce = self.ask(proof=self.proof("POST", TOKEN)).headers["dpop-nonce"]
        token: str = self.ask(proof=self.proof("POST", TOKEN, nonce=nonce)).json()["access_token"]
        return token

    def get(self, path: str, token: str, proof: str | None = None, scheme: str = "DPoP") -> httpx.Response:
        headers = {"Authorization": f"{scheme} {token}"} | ({"DPoP": proof} if proof else {})
        return self.http.get(path, headers=headers)


def ath(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_service_app_gets_a_bearer_token_for_one_hour(world: World, keys: Any, algorithm: str) -> None:
    client = Client(world, keys, algorithm)
    answer = client.ask().json()
    assert (answer["token_type"], answer["expires_in"], answer["scope"].split()) == ("Bearer", 3600, SCOPES)
    assert client.get("/api/v1/logs", answer["access_token"], scheme="Bearer").status_code == 200
    world.okta.switches.clock_ahead_seconds = 3601
    late = client.get("/api/v1/logs", answer["access_token"], scheme="Bearer")
    assert late.status_code == 401
    assert 'error="invalid_token"' in late.headers["www-authenticate"]


def test_scopes_are_enforced_with_an_empty_403(world: World, keys: Any) -> None:
    client = Client(world, keys)
    token = client.ask(scope="okta.apps.manage").json()["access_token"]
    app = world.app()
    path = f"/api/v1/apps/{app}/connections/default"
    assert client.get(path, token, scheme="Bearer").status_code == 200  # manage covers reading
    refused = client.get("/api/v1/logs", token, scheme="Bearer")
    assert (refused.status_code, refused.content) == (403, b"")
    assert 'scope="okta.logs.read"' in refused.headers["www-authenticate"]
    mappings = client.get(f"/api/v1/apps/{app}/group-push/mappings", token, scheme="Bearer")
    assert mappings.status_code == 403  # needs a groups scope too


@pytest.mark.parametrize(
    ("claims", "form", "error", "words"),
    [
        pytest.param({"kid": "other"}, {}, "invalid_client", "kid", id="unknown kid"),
        pytest.param({"key": "stranger"}, {}, "invalid_client", "signature", id="signed by another key"),
        pytest.param({"iss": "nobody"}, {}, "invalid_client", "issuer", id="unknown client"),
        pytest.param({"sub": "nobody"}, {}, "invalid_client", "subject", id="another subject"),
        pytest.param({"aud": "https://else"}, {}, "invalid_client", "audience", id="for another server"),
        pytest.param({"exp": 1}, {}, "invalid_client", "expired", id="expired"),
        pytest.param({"exp": 1 << 33}, {}, "invalid_client", "too far", id="valid for more than an hour"),
        pytest.param({"iat": 1 << 33}, {}, "invalid_client", "future", id="issued in the future"),
        pytest.param({}, {"client_assertion": "x"}, "invalid_client", "not a JWT", id="no JWT"),
        pytest.param({}, {"client_assertion_type": "secret"}, "invalid_client", "private_key_jwt", id="a secret"),
        pytest.param({}, {"scope": "okta.users.manage"}, "invalid_scope", "scopes", id="scope not granted"),
        pytest.param({}, {"scope": ""}, "invalid_scope", "scopes", id="no scope"),
        pytest.param({}, {"grant_type": "password"}, "unsupported_grant_type", "grant", id="another grant"),
    ],
)
def test_a_wrong_token_request_is_named(
    world: World, keys: Any, *, claims: dict[str, Any], form: dict[str, str], error: str, words: str
) -> None:
    client = Client(world, keys)
    if claims.get("key"):
        claims = {"key": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
    answer = client.ask(assertion=client.assertion(**claims), **form)
    status = 401 if error == "invalid_client" else 400
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert words in answer.json()["error_description"]


def test_an_assertion_is_good_once(world: World, keys: Any) -> None:
    client = Client(world, keys)
    assertion = client.assertion()
    assert client.ask(assertion=assertion).status_code == 200
    assert "used" in client.ask(assertion=assertion).json()["error_description"]


@pytest.mark.parametrize(("ahead", "status"), [(0, 200), (400, 401), (-400, 401)])
def test_clock_skew_shows_at_the_token_endpoint(world: World, keys: Any, ahead: float, status: int) -> None:
    world.okta.switches.clock_ahead_seconds = ahead
    assert Client(world, keys).ask().status_code == status


def test_an_admin_can_replace_a_clients_keys(world: World, keys: Any) -> None:
    client = Client(world, keys)
    world.okta.oauth.replace_keys(client.id, [keys["ES256"][1]])
    assert client.ask().status_code == 401
    kinds = [(event["eventType"], event["outcome"]["result"]) for event in world.okta.log.events]
    assert kinds == [("app.oauth2.invalid_client_credentials", "FAILURE")]


# --- DPoP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_dpop_round_goes_as_recorded(world: World, keys: Any, algorithm: str) -> None:
    client = Client(world, keys, algorithm, dpop=True)
    bare = client.ask()
    assert (bare.status_code, bare.json()["error"]) == (400, "invalid_dpop_proof")
    asked = client.ask(proof=client.proof("POST", TOKEN))
    assert (asked.status_code, asked.json()["error"]) == (400, "use_dpop_nonce")
    given = client.ask(proof=client.proof("POST", TOKEN, nonce=asked.headers["dpop-nonce"]))
    assert (given.status_code, given.json()["token_type"]) == (200, "DPoP")
    token = given.json()["access_token"]
    answer = client.get("/api/v1/logs?limit=1", token, client.proof("GET", "/api/v1/logs", ath=ath(token)))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        pytest.param({}, 401, "access token", id="ath missing"),
        pytest.param({"ath": "x"}, 401, "access token", id="ath of another token"),
        pytest.param({"htm": "POST"}, 401, "another request", id="another method"),
        pytest.param({"htu": "https://else/"}, 401, "another request", id="another URL"),
        pytest.param({"iat": 1}, 401, "too old", id="too old"),
        pytest.param({"iat": 1 << 33}, 401, "future", id="from the future"),
        pytest.param({"jti": None}, 401, "JWT ID", id="no jti"),
        pytest.param({"typ": "JWT"}, 401, "header", id="another type"),
    ],
)
def test_a_bad_proof_at_the_api_is_turned_away(
    world: World, keys: Any, change: dict[str, Any], status: int, word: str
) -> None:
    client = Client(world, keys, dpop=True)
    token = client.bound_token()
    good = {"ath": ath(token)} if change else {}
    answer = client.get("/api/v1/logs", token, client.proof("GET", "/api/v1/logs", **{**good, **change}))
    assert answer.status_code == status
    assert word in answer.headers["www-authenticate"]


def test_a_bound_token_needs_its_own_key_a_proof_and_the_dpop_scheme(world: World, keys: Any) -> None:
    client, other = Client(world, keys, dpop=True), Client(world, keys, "ES256", dpop=True)
    token = client.bound_token()
    proof = {"ath": ath(token)}
    assert client.get("/api/v1/logs", token).json()["error"] == "invalid_request"
    as_bearer = client.get("/api/v1/logs", token, client.proof("GET", "/api/v1/logs", **proof), scheme="Bearer")
    assert as_bearer.status_code == 400
    stolen = client.get("/api/v1/logs", token, other.proof("GET", "/api/v1/logs", **proof))
    assert "another key" in stolen.headers["www-authenticate"]
    once = client.proof("GET", "/api/v1/logs", **proof)
    assert [client.get("/api/v1/logs", token, once).status_code for _ in range(2)] == [200, 401]


def test_a_proof_is_good_once_and_a_nonce_lasts_three_rotations(world: World, keys: Any) -> None:
    client = Client(world, keys, dpop=True)
    first = client.proof("POST", TOKEN)
    nonce = client.ask(proof=first).headers["dpop-nonce"]
    assert client.ask(proof=first).json()["error"] == "invalid_dpop_proof"
    world.okta.oauth.rotate_nonce()
    assert client.ask(proof=client.proof("POST", TOKEN, nonce=nonce)).status_code == 200
    world.okta.oauth.expire_nonces()
    assert client.ask(proof=client.proof("POST", TOKEN, nonce=nonce)).json()["error"] == "use_dpop_nonce"


def test_a_proof_may_not_carry_a_private_key(world: World, keys: Any) -> None:
    client = Client(world, keys, dpop=True)
    client.jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(client.key))
    assert "private" in client.ask(proof=client.proof("POST", TOKEN), assertion=client.assertion(kid="rsa-1")).text


# --- Org2Org and consent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dpop", [False, True])
@pytest.mark.parametrize(("bare", "public"), [(False, False), (True, True)])
def test_a_spoke_signs_in_at_its_hub_and_is_refused_without_its_key(
    world: World, *, dpop: bool, bare: bool, public: bool
) -> None:
    okta = world.okta
    okta.switches.jwks_bare, okta.switches.jwks_public = bare, public
    owner = {"Authorization": f"SSWS {okta.api_token}"}
    with OktaSandbox() as hub:
        app = okta.add_app("okta_org2org", label="Hub", base_url=hub.url, verify_url=None, key="old-key", enabled=True)
        path = f"/api/v1/apps/{app}/connections/default"
        assert world.http.get(f"{path}/jwks").status_code == (200 if public else 403)
        key_set = world.http.get(f"{path}/jwks", headers=owner).json()
        jwk = (key_set if bare else key_set["jwks"])["keys"][0]
        client = hub.add_service_app(jwk | {"alg": "RS256"}, ["okta.users.manage", "okta.groups.manage"], dpop=dpop)
        profile = {"authScheme": "OAUTH2", "clientId": client, "signing": {"rotationMode": "AUTO"}}
        given = world.http.post(f"{path}?activate=TRUE", json={"profile": profile}, headers=owner).json()
        assert (given["status"], given["profile"]["signing"], okta.held_key(app)) == (
            "ENABLED",
            {"rotationMode": "AUTO"},
            None,
        )
        assert [event["eventType"] for event in hub.log.events] == ["app.oauth2.token.grant.access_token"]
        hub.oauth.replace_keys(client, [])
        assert world.http.post(f"{path}/lifecycle/activate", headers=owner).status_code == 400
    assert world.http.post(f"{path}/lifecycle/activate", headers=owner).status_code == 400  # the hub is down


@pytest.mark.parametrize("name", ["google", "slack", "zoomus", "office365"])
def test_a_three_legged_app_waits_for_a_persons_consent(world: World, name: str) -> None:
    world.http.headers["Authorization"] = f"SSWS {world.okta.api_token}"
    app = world.app(name, key=None, enabled=False)
    path = f"/api/v1/apps/{app}/connections/default"
    settings = {"settings": {"adminUsername": "a", "adminPassword": "p"}} if name == "office365" else {}
    assert world.push(app, "token").status_code == 400  # no token for these
    asked = world.http.post(path, json={"profile": {"authScheme": "OAUTH2", **settings}}).json()
    assert (asked["status"], "state=" in asked["_links"]["authorize"]["href"]) == ("DISABLED", True)
    assert world.move(app, "activate").status_code == 400
    callback = world.okta.person_consents(app)
    assert world.http.post(callback.replace("code=", "code=x")).status_code == 400
    assert world.http.post(callback).status_code == 204
    assert world.http.post(callback).status_code == 400  # good once
    assert world.move(app, "activate").status_code == 204
    assert (world.read(app)["status"], "authorize" in world.read(app)["_links"]) == ("ENABLED", False)
    with pytest.raises(ValueError, match="no consent was asked for"):
        world.okta.person_consents(app)


def test_office_365_needs_its_admins_name_and_password(world: World) -> None:
    owner = {"Authorization": f"SSWS {world.okta.api_token}"}
    path = f"/api/v1/apps/{world.app('office365', key=None)}/connections/default"
    assert world.http.post(path, json={"profile": {"authScheme": "OAUTH2"}}, headers=owner).status_code == 400


def test_an_app_without_oauth_has_no_key_set(world: World) -> None:
    owner = {"Authorization": f"SSWS {world.okta.api_token}"}
    path = f"/api/v1/apps/{world.app()}/connections/default/jwks"
    answer = world.http.get(path, headers=owner)
    check(answer)
    assert answer.json() == {"jwks": None}
