"""Signing in to a real OpenBao, staying signed in, and taking nothing from the environment."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hvac.exceptions
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rotator.adapters.vault import VaultClient, VaultSettings
from rotator.adapters.vault_auth import AppRoleAuth, Auth, JwtAuth, KubernetesAuth, TokenAuth
from rotator.adapters.vault_keys import VaultKeyStore
from rotator.adapters.vault_state import VaultStateStore
from rotator.core.model import Record
from rotator.core.secret import Secret
from rotator.errors import Denied, Misconfigured, NotFound, PortError, Transient
from rotator.ports import Slot, StoredKey
from tests.adapters.vault_faults import Reply, proxy
from tests.adapters.vault_helpers import Calls, client
from tests.fakes.clock import FakeClock
from tests.openbao import OpenBao, running_openbao


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class AppRole:
    """A role on the real server whose tokens live so long, and the rotator's auth for it."""

    def __init__(self, bao: OpenBao, **role: Any) -> None:
        self.bao = bao
        self.mount = bao.mount()
        self.path = f"approle-{self.mount}"
        root = bao.client()
        root.sys.enable_auth_method("approle", path=self.path)
        rules = f'path "{self.mount}/*" {{ capabilities = ["create", "read", "update", "list"] }}'
        root.sys.create_or_update_policy(
            self.mount, rules + 'path "auth/token/*" { capabilities = ["read", "update"] }'
        )
        root.auth.approle.create_or_update_approle(
            "rotator", token_policies=[self.mount], token_no_default_policy=True, mount_point=self.path, **role
        )
        self.role_id = root.auth.approle.read_role_id("rotator", mount_point=self.path)["data"]["role_id"]

    def secret_id(self) -> Secret:
        made = self.bao.client().auth.approle.generate_secret_id("rotator", mount_point=self.path)
        return Secret(made["data"]["secret_id"])

    def auth(self) -> AppRoleAuth:
        return AppRoleAuth(self.role_id, self.secret_id, mount=self.path)


def _client(bao: OpenBao, auth: Auth, calls: Calls, clock: FakeClock, **settings: Any) -> VaultClient:
    return VaultClient(VaultSettings(bao.address, auth, **settings), clock, calls)


def _revoke(bao: OpenBao, vault: VaultClient) -> None:
    """What expiry does to a token, without waiting for it."""
    bao.client().auth.token.revoke(vault._tokens.current().token.reveal())


def test_nothing_is_asked_of_vault_before_the_first_call(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    role = AppRole(openbao, token_ttl="1h")
    vault = _client(openbao, role.auth(), calls, clock)
    assert (calls.seen, vault.token_expires_at, vault.skew) == ([], None, None)
    VaultStateStore(vault, role.mount, "rotator").load("graf")
    assert calls.seen == [("login", "ok"), ("load_state", "ok")]
    assert vault.token_expires_at == clock.now() + timedelta(hours=1)


def test_an_expired_token_is_replaced_and_the_write_goes_through(
    openbao: OpenBao, calls: Calls, clock: FakeClock
) -> None:
    role = AppRole(openbao, token_ttl="1h")
    vault = _client(openbao, role.auth(), calls, clock)
    store = VaultStateStore(vault, role.mount, "rotator")
    store.save(Record("graf"), 0)
    _revoke(openbao, vault)
    clock.advance(3600)
    mark = len(calls.seen)
    assert store.save(Record("graf", epoch=1), 1) == 2
    assert calls.since(mark) == [("save_state", "denied"), ("login", "ok"), ("save_state", "ok")]


def test_many_threads_with_an_expired_token_sign_in_once(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    role = AppRole(openbao, token_ttl="1h")
    vault = _client(openbao, role.auth(), calls, clock)
    store = VaultStateStore(vault, role.mount, "rotator")
    store.save(Record("graf"), 0)
    _revoke(openbao, vault)
    clock.advance(3600)
    start = threading.Barrier(8)
    loaded: list[object] = []

    def load() -> None:
        start.wait(30)
        loaded.append(store.load("graf"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert loaded == [(Record("graf"), 1)] * 8
    assert calls.seen.count(("login", "ok")) == 2


def test_a_missing_right_names_the_path_and_the_capability(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    mount = openbao.mount()
    token = openbao.token(
        f'path "{mount}/data/rotator/state/*" {{ capabilities = ["read"] }}\n'
        'path "sys/capabilities-self" { capabilities = ["update"] }'
    )
    store = VaultStateStore(client(openbao.address, token, meter=calls, clock=clock), mount, "rotator")
    with pytest.raises(Denied, match=f"needs create and update on {mount}/data/rotator/state/graf; our token has read"):
        store.save(Record("graf"), 0)


def test_a_missing_right_is_named_even_where_we_may_not_ask_for_ours(openbao: OpenBao, clock: FakeClock) -> None:
    mount = openbao.mount()
    store = VaultStateStore(
        client(openbao.address, openbao.token('path "none" { capabilities = ["read"] }'), clock=clock), mount, "rotator"
    )
    with pytest.raises(Denied, match=f"needs read on {mount}/data/rotator/state/graf"):
        store.load("graf")


def test_a_fresh_token_that_lacks_a_right_is_not_replaced_over_and_over(
    openbao: OpenBao, calls: Calls, clock: FakeClock
) -> None:
    role = AppRole(openbao, token_ttl="1h")
    store = VaultStateStore(_client(openbao, role.auth(), calls, clock), "sys", "rotator")
    for _ in range(5):
        with pytest.raises(PortError):
            store.load("graf")
    assert calls.seen.count(("login", "ok")) == 1


@pytest.mark.parametrize(
    ("auth", "says"),
    [
        pytest.param(lambda role: AppRoleAuth(role.role_id, lambda: Secret("wrong"), role.path), "400", id="secret id"),
        pytest.param(lambda role: AppRoleAuth("wrong", role.secret_id, role.path), "400", id="role id"),
        pytest.param(lambda role: AppRoleAuth(role.role_id, role.secret_id, "none"), "403 .*mount", id="mount"),
    ],
)
def test_a_refused_sign_in_is_denied(openbao: OpenBao, calls: Calls, clock: FakeClock, auth: Any, says: str) -> None:
    vault = _client(openbao, auth(AppRole(openbao)), calls, clock)
    with pytest.raises(Denied, match=says):
        vault.login()
    assert vault.token_expires_at is None


# --- renewing ---------------------------------------------------------------------------------------------------------


def test_a_token_is_renewed_at_two_thirds_of_its_lease_and_not_before(
    openbao: OpenBao, calls: Calls, clock: FakeClock
) -> None:
    role = AppRole(openbao, token_ttl="1h")
    vault = _client(openbao, role.auth(), calls, clock)
    vault.login()
    clock.advance(2399)
    vault.renew()
    assert calls.seen == [("login", "ok")]
    clock.advance(2)
    vault.renew()
    vault.renew()
    assert calls.seen == [("login", "ok"), ("renew", "ok")]
    assert vault.token_expires_at == clock.now() + timedelta(hours=1)


@pytest.mark.parametrize(
    ("role", "revoked", "renewals"),
    [
        pytest.param({"token_ttl": "1h", "token_max_ttl": "1h"}, False, [("renew", "ok")], id="the lease got shorter"),
        pytest.param({"token_ttl": "1h"}, True, [("renew", "denied")], id="renewing is refused"),
        pytest.param({"token_ttl": "1h", "token_type": "batch"}, False, [], id="the token can't be renewed"),
    ],
)
def test_where_renewing_does_not_help_it_signs_in_again(
    openbao: OpenBao, clock: FakeClock, role: dict[str, Any], revoked: bool, renewals: list[tuple[str, str]]
) -> None:
    calls = Calls()
    vault = _client(openbao, AppRole(openbao, **role).auth(), calls, clock)
    vault.login()
    before = vault._tokens.current().token
    if revoked:
        _revoke(openbao, vault)
    if not role.get("token_type"):
        _shorten(vault)
    clock.advance(3000)
    vault.renew()
    assert calls.since(1) == [*renewals, ("login", "ok")]
    assert not vault._tokens.current().token.same_as(before)
    assert vault.token_expires_at == clock.now() + timedelta(hours=1)


def _shorten(vault: VaultClient) -> None:
    """As if it had been granted two hours, while the server's limit is one: its clock can't be moved, ours can."""
    lease = vault._tokens._lease
    assert lease is not None
    vault._tokens._lease = replace(lease, granted=7200.0)


def test_a_renewal_that_fails_for_now_keeps_the_token_and_is_tried_again(openbao: OpenBao, clock: FakeClock) -> None:
    role = AppRole(openbao, token_ttl="1h")
    with proxy(openbao.address) as faulty:
        calls = Calls()
        vault = VaultClient(VaultSettings(faulty.address, role.auth()), clock, calls)
        vault.login()
        expires = vault.token_expires_at
        clock.advance(2500)
        faulty.script = [Reply(503, '{"errors":["Vault is sealed"]}')]
        with pytest.raises(Transient):
            vault.renew()
        assert vault.token_expires_at == expires
        vault.renew()
    assert calls.since(1) == [("renew", "transient"), ("renew", "ok")]


def test_a_given_token_is_looked_up_and_renewed(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    rules = 'path "auth/token/*" { capabilities = ["read", "update"] }'
    vault = client(openbao.address, openbao.token(rules, ttl="1h"), meter=calls, clock=clock)
    vault.login()
    assert vault.token_expires_at is not None
    assert timedelta(minutes=59) < vault.token_expires_at - clock.now() <= timedelta(hours=1)
    clock.advance(2500)
    vault.renew()
    assert calls.seen == [("lookup", "ok"), ("renew", "ok")]


def test_a_root_token_never_expires_and_is_never_renewed(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    vault = client(openbao.address, openbao.root_token, meter=calls, clock=clock)
    vault.login()
    clock.advance(10**7)
    vault.renew()
    assert vault.token_expires_at is None
    assert calls.seen == [("lookup", "ok")]


def test_a_token_that_was_replaced_at_its_source_is_taken_on_403(
    openbao: OpenBao, calls: Calls, clock: FakeClock
) -> None:
    mount = openbao.mount()
    tokens = [Secret("s.dead"), Secret(openbao.root_token)]
    vault = _client(openbao, TokenAuth(lambda: tokens.pop(0)), calls, clock)
    vault.login()
    clock.advance(10)
    assert VaultStateStore(vault, mount, "rotator").save(Record("graf"), 0) == 1


def test_the_same_dead_token_at_its_source_is_denied(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    vault = client(openbao.address, "s.dead", meter=calls, clock=clock)
    vault.login()
    clock.advance(10)
    with pytest.raises(Denied):
        VaultStateStore(vault, "kv", "rotator").load("graf")
    assert calls.seen.count(("load_state", "denied")) == 1


# --- other ways to sign in --------------------------------------------------------------------------------------------


def test_signing_in_with_a_jwt_from_a_file_read_anew_each_time(
    openbao: OpenBao, calls: Calls, clock: FakeClock, tmp_path: Path
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    root = openbao.client()
    path = f"jwt-{openbao.mount()}"
    root.sys.enable_auth_method("jwt", path=path)
    root.auth.jwt.configure(jwt_validation_pubkeys=[pem], path=path)
    root.auth.jwt.create_role(
        "rotator", role_type="jwt", user_claim="sub", allowed_redirect_uris=[], bound_audiences=["vault"], path=path
    )
    file = tmp_path / "jwt"
    auth = JwtAuth("rotator", str(file), mount=path)
    vault = _client(openbao, auth, calls, clock)
    with pytest.raises(Misconfigured, match="FileNotFoundError"):
        vault.login()
    file.write_text("  \n")
    with pytest.raises(Misconfigured, match="it is empty"):
        vault.login()

    def signed(audience: str) -> str:
        now = datetime.now(UTC)
        claims = {"sub": "rotator", "aud": audience, "iat": now, "exp": now + timedelta(minutes=5)}
        return jwt.encode(claims, key, algorithm="RS256")

    wrong = signed("nobody")
    file.write_text(wrong)
    with pytest.raises(Denied, match=r"400 .*aud") as caught:
        vault.login()
    assert wrong not in str(caught.value)
    file.write_text(signed("vault") + "\n")
    vault.login()
    assert vault.token_expires_at is not None


def test_signing_in_as_a_kubernetes_service_account(
    openbao: OpenBao, calls: Calls, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("service-account-jwt\n")
    granted = {"auth": {"client_token": openbao.root_token, "lease_duration": 3600, "renewable": True}}
    with proxy(openbao.address) as stub:
        stub.only, stub.script = "/v1/auth/k8s/login", [Reply(200, json.dumps(granted))]
        auth = KubernetesAuth("rotator", str(tmp_path / "token"), mount="k8s")
        vault = VaultClient(VaultSettings(stub.address, auth), clock, calls)
        assert VaultStateStore(vault, openbao.mount(), "rotator").names() == ()
        assert json.loads(stub.seen[0].body) == {"role": "rotator", "jwt": "service-account-jwt"}
        assert "X-Vault-Token" not in stub.seen[0].headers


def test_a_namespace_is_where_everything_happens(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    root = openbao.client()
    name = f"team-{openbao.mount()}"
    root.sys.create_namespace(name)
    inside = openbao.client()
    inside.adapter.namespace = name
    inside.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
    store = VaultStateStore(client(openbao.address, openbao.root_token, clock=clock, namespace=name), "kv", "rotator")
    assert store.save(Record("graf"), 0) == 1
    there = inside.secrets.kv.v2.read_secret_version(
        "rotator/state/graf", mount_point="kv", raise_on_deleted_version=True
    )
    assert there["data"]["data"]["record"]["connection"] == "graf"


# --- nothing from the environment; TLS --------------------------------------------------------------------------------


def test_vault_variables_and_proxies_of_the_environment_are_ignored(
    openbao: OpenBao, calls: Calls, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(openbao.address) as trap:
        for name in ("VAULT_ADDR", "BAO_ADDR", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, trap.address)
        monkeypatch.setenv("VAULT_TOKEN", openbao.root_token)
        monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        role = AppRole(openbao, token_ttl="1h")
        with proxy(openbao.address) as seen:
            vault = VaultClient(VaultSettings(seen.address, role.auth()), clock, calls)
            vault.login()
            assert "X-Vault-Token" not in seen.seen[0].headers, "VAULT_TOKEN was sent along with the sign-in"
            assert "X-Vault-Namespace" not in seen.seen[0].headers
        with pytest.raises(Denied):
            VaultStateStore(client(openbao.address, ""), role.mount, "rotator").load("graf")
        assert trap.seen == []


@pytest.fixture(scope="module")
def tls_bao() -> Iterator[OpenBao]:
    with running_openbao(tls=True) as bao:
        yield bao


def test_our_own_ca_is_trusted_whatever_the_environment_says(
    tls_bao: OpenBao, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "VAULT_CACERT"):
        monkeypatch.setenv(name, str(tmp_path / "empty.pem"))
    mount = tls_bao.mount()
    store = VaultStateStore(
        client(tls_bao.address, tls_bao.root_token, clock=clock, ca_file=tls_bao.ca_file), mount, "rotator"
    )
    assert store.save(Record("graf"), 0) == 1


def test_a_ca_named_by_the_environment_is_not_trusted(
    tls_bao: OpenBao, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tls_bao.ca_file is not None
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "VAULT_CACERT"):
        monkeypatch.setenv(name, tls_bao.ca_file)
    with pytest.raises(Misconfigured, match="TLS failed"):
        client(tls_bao.address, tls_bao.root_token, clock=clock).login()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({"ca_file": "no-such-file.pem"}, "ca_file", id="a CA file that is not there"),
        pytest.param(
            {"client_cert": ("no.pem", "no.key")}, "client certificate", id="a client certificate that is not"
        ),
    ],
)
def test_files_that_are_not_there_are_misconfigured(
    tls_bao: OpenBao, clock: FakeClock, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(Misconfigured, match=says):
        client(tls_bao.address, tls_bao.root_token, clock=clock, **settings).login()


def test_a_ca_file_that_holds_no_certificate_is_misconfigured(
    tls_bao: OpenBao, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("hello")
    with pytest.raises(Misconfigured):
        client(tls_bao.address, tls_bao.root_token, clock=clock, ca_file=str(tmp_path / "bad.pem")).login()


def test_https_where_vault_speaks_http_is_misconfigured_even_for_a_write(openbao: OpenBao, clock: FakeClock) -> None:
    vault = client(openbao.address.replace("http:", "https:"), "any", clock=clock)
    with pytest.raises(Misconfigured, match="TLS failed"):
        VaultStateStore(vault, "kv", "rotator").save(Record("graf"), 0)


# --- consistency, clock, references, counts ---------------------------------------------------------------------------


def _raft_index(number: int) -> str:
    return base64.b64encode(json.dumps({"cluster": "c", "value": str(number)}).encode()).decode()


def test_the_newest_index_is_sent_back_and_a_late_older_one_is_not_taken(clock: FakeClock) -> None:
    body = '{"data":{"data":{"x":"v"},"metadata":{"version":1}}}'
    with proxy() as stub:
        vault = client(stub.address, "any", clock=clock)
        stub.script = [
            Reply(200, '{"data":{}}'),
            *(Reply(200, body, headers=(("X-Vault-Index", _raft_index(n)),)) for n in (7, 9, 8)),
            Reply(200, body),
        ]
        for _ in range(4):
            vault.read_field("kv/a", "x")
        sent = [seen.headers.get("X-Vault-Index") for seen in stub.seen]
        assert sent == [None, None, _raft_index(7), _raft_index(9), _raft_index(9)]
        pinned = [seen.headers.get("X-Vault-Inconsistent") for seen in stub.seen]
        assert {seen.headers["Accept-Encoding"] for seen in stub.seen} == {"identity"}
        assert pinned == [None, None, *["forward-active-node"] * 3]


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        pytest.param("Sun, 01 Mar 2026 12:02:00 GMT", 120.5, id="Vault is two minutes ahead"),
        pytest.param("Sun, 01 Mar 2026 11:59:00 GMT", -59.5, id="Vault is a minute behind"),
        pytest.param("yesterday", None, id="a date that can't be read says nothing"),
    ],
)
def test_the_skew_against_vaults_date_is_remembered(clock: FakeClock, date: str, skew: float | None) -> None:
    with proxy() as stub:
        vault = client(stub.address, "any", clock=clock)
        stub.script = [Reply(200, '{"data":{}}', headers=(("Date", date),))]
        vault.login()
        assert vault.skew == skew
        assert VaultStateStore(vault, "kv", "rotator").skew() == skew


def test_a_secret_reference_is_read(openbao: OpenBao, clock: FakeClock) -> None:
    mount = openbao.mount()
    openbao.client().secrets.kv.v2.create_or_update_secret("team/okta", {"token": "t-1", "n": 1}, mount_point=mount)
    vault = client(openbao.address, openbao.root_token, clock=clock)
    assert vault.read_field(f"{mount}/team/okta", "token").reveal() == "t-1"
    for path, field in ((f"{mount}/team/okta", "other"), (f"{mount}/team/okta", "n"), (f"{mount}/none", "token")):
        with pytest.raises(NotFound):
            vault.read_field(path, field)
    with pytest.raises(Misconfigured, match="mount/path"):
        vault.read_field("just-a-mount", "token")


def test_each_port_call_is_one_request(openbao: OpenBao, calls: Calls, clock: FakeClock) -> None:
    vault = client(openbao.address, openbao.root_token, meter=calls, clock=clock)
    vault.login()
    mount = openbao.mount()
    state, keys = VaultStateStore(vault, mount, "rotator"), VaultKeyStore(vault, mount, "rotator")
    state.save(Record("graf"), 0)
    assert calls.since(1) == [("save_state", "ok"), ("require_cas", "ok")], "the guard is set once, with the first"
    mark = len(calls.seen)
    state.save(Record("graf", epoch=1), 1)
    state.load("graf")
    state.names()
    keys.write("graf", Slot.STAGED, StoredKey(Secret("k")), 0)
    keys.read("graf", Slot.STAGED)
    keys.newest("graf", Slot.STAGED)
    keys.destroy("graf", Slot.STAGED, (1,))
    assert [operation for operation, _ in calls.since(mark)] == [
        "save_state",
        "load_state",
        "list_states",
        "write_key",
        "read_key",
        "read_version",
        "destroy_key",
    ]


def test_a_plain_write_to_a_state_record_is_refused_by_vault(openbao: OpenBao, clock: FakeClock) -> None:
    mount = openbao.mount()
    VaultStateStore(client(openbao.address, openbao.root_token, clock=clock), mount, "rotator").save(Record("graf"), 0)
    with pytest.raises(hvac.exceptions.InvalidRequest, match="check-and-set parameter required"):
        openbao.client().secrets.kv.v2.create_or_update_secret("rotator/state/graf", {"x": 1}, mount_point=mount)
