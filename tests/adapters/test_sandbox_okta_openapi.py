"""The sandbox Okta against Okta's own words: its OpenAPI document, and its Python SDK as a reader.

All other tests of the sandbox check each answer against the document as well (`okta_world.open_world`); here it is
made sure that every operation is covered and that the check can fail.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rotator.sandbox.okta import OktaSandbox
from rotator.sandbox.server import Tls
from tests.adapters.okta_openapi import check, operation_of, operations, problems
from tests.adapters.okta_sdk_client import Sdk
from tests.adapters.okta_world import World, open_world, scim_target

ZSCALER = {
    "authScheme": "TOKEN",
    "status": "ENABLED",
    "baseUrl": "https://scim.example",
    "profile": {"authScheme": "TOKEN"},
    "_links": {"self": {"href": "https://org.example"}},
}
CONNECTION = "/api/v1/apps/0oa1/connections/default"


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


def test_every_operation_of_the_document_is_answered_as_it_says(world: World) -> None:
    app, slack = world.app(), world.app("slack", key=None, enabled=False)
    mapping = world.okta.add_group_push(app, "Engineers")
    connection, features = f"/api/v1/apps/{app}/connections/default", f"/api/v1/apps/{app}/features"
    world.http.post(f"/api/v1/apps/{slack}/connections/default", json={"profile": {"authScheme": "OAUTH2"}})
    world.okta.add_api_token("spare")
    own, spare = (f"/api/v1/api-tokens/{token['id']}" for token in world.http.get("/api/v1/api-tokens").json())
    token = {"baseUrl": world.target.url, "profile": {"authScheme": "TOKEN", "token": "new-key"}}
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/api/v1/apps", None),
        ("GET", f"/api/v1/apps/{app}", None),
        ("GET", connection, None),
        ("POST", f"{connection}?activate=TRUE", token),
        ("GET", f"{connection}/jwks", None),
        ("POST", f"{connection}/lifecycle/activate", None),
        ("POST", world.okta.person_consents(slack), None),
        ("GET", features, None),
        ("GET", f"{features}/USER_PROVISIONING", None),
        ("PUT", f"{features}/USER_PROVISIONING", {"update": {"profile": {"status": "DISABLED"}}}),
        ("POST", f"{connection}/lifecycle/deactivate", None),
        ("GET", f"/api/v1/apps/{app}/group-push/mappings", None),
        ("GET", f"/api/v1/apps/{app}/group-push/mappings/{mapping}", None),
        ("GET", "/api/v1/logs", None),
        ("GET", "/api/v1/api-tokens", None),
        ("GET", spare, None),
        ("PUT", own, {"name": "renamed"}),
        ("DELETE", spare, None),
        ("DELETE", "/api/v1/api-tokens/current", None),
    ]
    answered = set()
    for method, path, body in calls:
        answer = world.http.request(method, path, json=body)  # the client checks it against the document
        assert answer.is_success, (method, path, answer.text)
        answered.add(operation_of(method, answer.request.url.path))
    world.http.post("/oauth2/v1/token", data={"grant_type": "x"})  # its successes are in the OAuth tests
    assert answered | {("POST", "/oauth2/v1/token")} == set(operations())


@pytest.mark.parametrize(
    ("change", "path", "status"),
    [
        pytest.param({"status": "ON"}, CONNECTION, 200, id="a status that does not exist"),
        pytest.param({"status": ...}, CONNECTION, 200, id="no status"),
        pytest.param({"profile": {"authScheme": "PASSWORD"}}, CONNECTION, 200, id="an unknown scheme"),
        pytest.param({"basUrl": "x"}, CONNECTION, 200, id="a misspelt property"),
        pytest.param({"_links": {"self": {}}}, CONNECTION, 200, id="a link to nowhere"),
        pytest.param({}, CONNECTION, 418, id="a status code nobody declared"),
        pytest.param({}, f"{CONNECTION}/lifecycle/deactivate", 204, id="a body with a 204"),
        pytest.param({"errorCode": "E1"}, CONNECTION, 404, id="half an error"),
        pytest.param({}, "/api/v1/logs", 200, id="an object where a list belongs"),
    ],
)
def test_the_check_can_fail(change: dict[str, Any], path: str, status: int) -> None:
    body = {name: value for name, value in {**ZSCALER, **change}.items() if value is not ...}
    method = "POST" if "lifecycle" in path else "GET"
    assert problems("GET", CONNECTION, httpx.Response(200, json=ZSCALER)) == []
    assert problems(method, path, httpx.Response(status, json=body)) != []


# --- Okta's own SDK ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sdk(world: World, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    monkeypatch.setenv("OKTA_TESTING_TESTINGDISABLEHTTPSCHECK", "true")
    return Sdk(world.okta.url, world.okta.api_token)


def test_oktas_sdk_reads_replaces_disables_and_enables_a_connection(world: World, sdk: Sdk) -> None:
    app = world.app("okta_org2org")

    async def round_trip() -> list[str]:
        seen = [await sdk.status(app)]
        seen.append(await sdk.push(app, "new-key", activate=True))
        await sdk.deactivate(app)
        seen.append(await sdk.status(app))
        await sdk.activate(app)
        seen.append(await sdk.status(app))
        return seen

    assert asyncio.run(round_trip()) == ["ENABLED", "ENABLED", "DISABLED", "ENABLED"]
    assert world.okta.held_key(app) == "new-key"
    assert {call.status for call in world.okta.calls} == {200, 204}


@pytest.mark.parametrize(
    ("app", "key", "words"),
    [
        pytest.param("known", "wrong-key", "Api validation failed: credential", id="a refused key"),
        pytest.param("0oaunknown", "new-key", "Not found", id="an unknown app"),
    ],
)
def test_oktas_sdk_understands_the_errors(world: World, sdk: Sdk, app: str, key: str, words: str) -> None:
    app_id = world.app("okta_org2org") if app == "known" else app
    with pytest.raises(RuntimeError, match=words):
        asyncio.run(sdk.push(app_id, key, activate=True))


def test_oktas_sdk_reads_an_app_that_is_not_covered_as_unknown(world: World, sdk: Sdk) -> None:
    assert asyncio.run(sdk.status(world.app("bookmark"))) == "UNKNOWN"


def test_oktas_sdk_reads_the_log_and_the_features(world: World, sdk: Sdk) -> None:
    app = world.app("okta_org2org")
    world.okta.provision(app, "ann")
    assert asyncio.run(sdk.event_types(f'target.id eq "{app}"')) == ["application.provision.user.push"]
    assert asyncio.run(sdk.feature_names(app)) == ["USER_PROVISIONING", "INBOUND_PROVISIONING"]


# --- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """A CA's certificate for 127.0.0.1; the CA signs itself and the server's."""
    now = dt.datetime.now(dt.UTC)

    def certificate(name: str, key: Any, issuer: str, issuer_key: Any, *, is_ca: bool) -> Path:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        path = tmp_path / f"{name}.pem"
        path.write_bytes(builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = certificate("ca", ca_key, "ca", ca_key, is_ca=True)
    keyfile = tmp_path / "key.pem"
    keyfile.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Tls(certificate("server", key, "ca", ca_key, is_ca=False), keyfile, ca)


def test_an_org_with_tls_answers_those_who_trust_its_ca(tls: Tls) -> None:
    with scim_target() as target, OktaSandbox(ssl=tls) as okta:
        app = okta.add_app(
            "zscalerbyz", label="Z", base_url=target.url, verify_url=target.url, key="old-key", enabled=False
        )
        headers = {"Authorization": f"SSWS {okta.api_token}"}
        path = f"{okta.url}/api/v1/apps/{app}/connections/default"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(path, headers=headers, trust_env=False)
        with httpx.Client(
            verify=ssl.create_default_context(cafile=tls.cafile), headers=headers, trust_env=False
        ) as http:
            assert http.post(f"{path}/lifecycle/activate").status_code == 204
            answer = http.get(path)
        check(answer)
        assert answer.json()["_links"]["self"]["href"].startswith("https://127.0.0.1:")


def test_a_server_must_be_started_before_it_has_a_place_and_only_once() -> None:
    okta = OktaSandbox()
    with pytest.raises(RuntimeError, match="never started"):
        _ = okta.url
    with okta, pytest.raises(RuntimeError, match="running already"):
        okta.start()
    okta.stop()
    assert okta.url.startswith("http://127.0.0.1:")
