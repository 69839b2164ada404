"""The meter's words: every adapter reports those that its OPERATIONS list, each of them, and no other.

The counters of the listed words start at 0, so a word missing there hides its first failure from `increase()`. The
calls below go through every method of the ports, and through what only trouble brings about.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from rotator import cli_run, config, errors
from rotator.adapters import vault
from rotator.adapters.http import Auth, HttpClient
from rotator.adapters.idp import okta
from rotator.adapters.idp.okta import OktaHandOffProvider, OktaProvider
from rotator.adapters.idp.okta_auth import ServiceAppAuth
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.adapters.ratelimit import RateBudget
from rotator.adapters.targets import KINDS
from rotator.adapters.targets.description import Call
from rotator.adapters.targets.grafana import GrafanaSettings, grafana_description
from rotator.adapters.targets.http import AdminHeader, HttpTargetSettings
from rotator.adapters.targets.manual import ManualSettings
from rotator.adapters.targets.scim import ScimSettings
from rotator.adapters.vault import VaultClient, VaultSettings
from rotator.adapters.vault_auth import AppRoleAuth, TokenAuth
from rotator.adapters.vault_keys import VaultKeyStore
from rotator.adapters.vault_state import VaultStateStore
from rotator.core.model import Record
from rotator.core.secret import Secret
from rotator.ports import Heartbeat, Probe, Slot, StoredKey
from rotator.sandbox.okta import OktaSandbox
from rotator.sandbox.target import TargetSandbox
from tests.adapters.vault_helpers import SteadyClock
from tests.fakes.clock import FakeClock
from tests.openbao import OpenBao


@dataclass
class Words:
    """implements ports.Meter: the words by system."""

    seen: set[tuple[str, str]] = field(default_factory=set)

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        self.seen.add((system, operation))

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        pass


@pytest.fixture
def meter() -> Words:
    return Words()


def words(system: str, operations: tuple[str, ...]) -> set[tuple[str, str]]:
    assert len(operations) == len(set(operations))
    return {(system, operation) for operation in operations}


def test_vault(openbao: OpenBao, meter: Words) -> None:
    mount, clock = openbao.mount(), FakeClock()
    policy = f'path "{mount}/*" {{ capabilities = ["create", "read", "update", "list"] }}'
    own = "".join(
        f'path "auth/token/{call}-self" {{ capabilities = ["read", "update"] }}' for call in ("lookup", "renew")
    )
    token = openbao.token(policy + own, ttl="1h", renewable=True)
    client = VaultClient(VaultSettings(openbao.address, TokenAuth(lambda: Secret(token))), clock, meter)
    keys, states = VaultKeyStore(client, mount, "rotator"), VaultStateStore(client, mount, "rotator")

    keys.check("graf")
    version = keys.write("graf", Slot.STAGED, StoredKey(Secret("a-key")), cas=0)
    assert keys.read("graf", Slot.STAGED) is not None
    assert keys.newest("graf", Slot.STAGED) == version
    with pytest.raises(errors.Conflict):  # read back, whether it was ours
        keys.write("graf", Slot.STAGED, StoredKey(Secret("another")), cas=0)
    assert client.read_field(f"{mount}/rotator/staged/graf", "key").same_as(Secret("a-key"))
    keys.destroy("graf", Slot.STAGED, (version,))
    states.save(Record("graf"), 0)
    assert states.load("graf") is not None
    assert states.names() == ("graf",)
    states.beat(Heartbeat("host", 1, 60.0))
    assert [beat.instance for beat in states.beats()] == ["host"]
    with pytest.raises(errors.Denied):
        client.read_field("elsewhere/secret", "key")
    clock.advance(3000)  # two thirds of the token's life are gone
    client.renew()
    signing_in = AppRoleAuth("no-role", lambda: Secret("no-secret-id"), "no-mount")
    with pytest.raises(errors.PortError):
        VaultClient(VaultSettings(openbao.address, signing_in), clock, meter).login()
    assert meter.seen == words("vault", vault.OPERATIONS)


def test_okta(meter: Words) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": "kid-1", "alg": "ES256"}
    with OktaSandbox() as sandbox, TargetSandbox("grafana") as target:
        value, _ = target.seed_key()
        client_id = sandbox.add_service_app(jwk, ["okta.apps.manage", "okta.logs.read"], dpop=True)

        def make_auth(http: HttpClient, budget: RateBudget) -> Auth:
            return ServiceAppAuth(
                http,
                budget,
                client_id=client_id,
                key=Secret(pem),
                kid="kid-1",
                scopes=("okta.apps.manage", "okta.logs.read"),
                clock=SteadyClock(),
            )

        org = OktaOrg("acme", sandbox.url, make_auth=make_auth, clock=SteadyClock(), meter=meter)
        url = target.scim_url
        app = sandbox.add_app("zscalerbyz", label="App", base_url=url, verify_url=url, key=value, enabled=True)
        provider = OktaProvider(org, app_id=app, app="zscalerbyz", base_url=url)
        before = SteadyClock().now()
        provider.read()
        provider.features()
        provider.push(Secret(value))
        provider.events(before)
        OktaHandOffProvider(org, app_id=app).events(before)
    assert meter.seen == words("okta:acme", okta.OPERATIONS)


def grafana(sandbox: TargetSandbox) -> Any:
    return GrafanaSettings("t", sandbox.url, str(sandbox.service_account_id), Secret(sandbox.admin_token))


def described(sandbox: TargetSandbox) -> Any:
    """A target that has keys disabled before they are revoked."""
    description = grafana_description(str(sandbox.service_account_id))
    off = Call("POST", "/api/disable/{key_id}")
    admin = (AdminHeader("Authorization", Secret(sandbox.admin_token), "Bearer "),)
    scim = ScimSettings(sandbox.scim_url)
    return HttpTargetSettings("t", sandbox.url, admin, replace(description, disable=off), scim)


def manual(sandbox: TargetSandbox) -> Any:
    return ManualSettings("t", ScimSettings(sandbox.scim_url))


# What a kind has no call for, although another of its family has
NEVER = {"http": set(), "grafana": {"disable"}, "manual": set()}


@pytest.mark.parametrize(("kind", "settings"), [("http", described), ("grafana", grafana), ("manual", manual)])
def test_targets(kind: str, settings: Callable[[TargetSandbox], Any], meter: Words) -> None:
    with TargetSandbox("manual" if kind == "manual" else "grafana") as sandbox:
        value, _ = sandbox.seed_key()
        target = KINDS[kind].build(settings(sandbox), SteadyClock(), meter)
        for probe in Probe:
            target.probe(Secret(value), probe)
        with contextlib.suppress(errors.Unsupported):
            minted = target.mint("rk-1")
            target.list_keys()
            assert minted.key_id is not None
            target.revoke(minted.key_id)
    never = {("target:t", word) for word in NEVER[kind]}
    assert meter.seen == words("target:t", KINDS[kind].operations) - never


def test_every_kind_of_target_is_tried_above() -> None:
    assert set(NEVER) == set(KINDS)


CONFIG = """
[vault]
address = "https://vault.example.com:8200"
auth = { method = "token", token = "env:VAULT" }

[idp.acme]
kind = "okta"
url = "https://acme.okta.com"
auth = { method = "ssws", token = "env:OKTA" }
"""
TARGET = """
[target.t{number}]
kind = "manual"
"""


@pytest.mark.parametrize(
    ("targets", "seeded"),
    [
        pytest.param(cli_run.SEEDED_TARGETS, cli_run.SEEDED_TARGETS, id="as many targets as are seeded"),
        pytest.param(cli_run.SEEDED_TARGETS + 1, 0, id="more targets than a scrape should carry at 0"),
    ],
)
def test_the_daemon_seeds_every_system_that_is_configured(tmp_path: Path, targets: int, seeded: int) -> None:
    file = tmp_path / "rotator.toml"
    file.write_text(CONFIG + "".join(TARGET.format(number=number) for number in range(targets)))
    found = cli_run._operations(config.load(file))
    assert (found.pop("vault"), found.pop("okta:acme")) == (vault.OPERATIONS, okta.OPERATIONS)
    expected = {f"target:t{number}": KINDS["manual"].operations for number in range(seeded)}
    assert found == expected
