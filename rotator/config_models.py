"""The tables of the configuration file other than targets and connections, and the file as a whole.

Descriptions go into the JSON schema, so that editors show them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainValidator, StringConstraints, WithJsonSchema
from pydantic.fields import Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, NoDefault
from pydantic_core import core_schema

from rotator.config_connections import ConnectionTable, Table, Timing, lasting
from rotator.config_targets import TargetTable
from rotator.config_values import (
    Count,
    Duration,
    FilePath,
    Flag,
    LocalSecretField,
    Name,
    PositiveDuration,
    SecretField,
    Text,
    Url,
    is_loopback,
    wrong,
)

VaultPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", strict=True)]
SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class LedgerTable(Table):
    """The append-only history."""

    path: FilePath = Field(
        default=Path("/var/lib/rotator/ledger.jsonl"), description="File of JSON lines; it only grows."
    )


class RotatorTable(Table):
    """The program itself."""

    installation: Name = Field(
        default="rotator", description="Begins the label of every key that is minted; different for each installation."
    )
    instance: Name | None = Field(
        default=None, description="Name of this replica; made from the host's name when left out."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level logged."
    )
    tick: PositiveDuration = lasting("15s", "How often it is looked for connections that are due.")
    lease: PositiveDuration = lasting("60s", "After this long without a sign of life, another replica takes over.")
    call_deadline: PositiveDuration = lasting("30s", "Total time of one call to an outside system; less than `lease`.")
    workers: Count = Field(default=8, description="Rotations worked on at the same time.")
    ledger: LedgerTable = Field(default_factory=LedgerTable, description="Where the history is written.")


# --- Vault --------------------------------------------------------------------------------------------------------------


class TokenAuth(Table):
    """Sign in with a token that somebody else renews, or that is periodic."""

    method: Literal["token"] = Field(description="How to sign in to Vault.")
    token: LocalSecretField = Field(description="Reference to the token.")


class AppRoleAuth(Table):
    """Sign in with an AppRole."""

    method: Literal["approle"] = Field(description="How to sign in to Vault.")
    role_id: Text = Field(description="The role's id; not secret by itself.")
    secret_id: LocalSecretField = Field(description="Reference to the secret id.")
    mount: VaultPath = Field(default="approle", description="Where the auth method is mounted.")


class KubernetesAuth(Table):
    """Sign in with the pod's service account."""

    method: Literal["kubernetes"] = Field(description="How to sign in to Vault.")
    role: Text = Field(description="Role of the auth method.")
    jwt_file: FilePath = Field(
        default=SERVICE_ACCOUNT_TOKEN, description="File with the service account's token; read at each sign-in."
    )
    mount: VaultPath = Field(default="kubernetes", description="Where the auth method is mounted.")


class JwtAuth(Table):
    """Sign in with a JWT from another issuer."""

    method: Literal["jwt"] = Field(description="How to sign in to Vault.")
    role: Text = Field(description="Role of the auth method.")
    jwt_file: FilePath = Field(description="File with the JWT; read at each sign-in.")
    mount: VaultPath = Field(default="jwt", description="Where the auth method is mounted.")


VaultAuth = TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth


class VaultTable(Table):
    """Vault or OpenBao: where keys and state lie. Nothing is taken from VAULT_… variables."""

    address: Url = Field(description="Vault's address.")
    namespace: Text | None = Field(default=None, description="Namespace, where Vault has them.")
    mount: VaultPath = Field(default="secret", description="Mount of the KV version 2 engine.")
    prefix: VaultPath = Field(default="rotator", description="Path below the mount that belongs to the rotator.")
    ca_file: FilePath | None = Field(default=None, description="CA certificates to trust instead of the system's.")
    client_cert: FilePath | None = Field(default=None, description="Client certificate (PEM); needs `client_key`.")
    client_key: FilePath | None = Field(default=None, description="Private key of the client certificate (PEM).")
    auth: Annotated[VaultAuth, Field(discriminator="method")] = Field(description="How to sign in.")
    connect_timeout: PositiveDuration = lasting("3s", "Longest wait for a connection.")
    read_timeout: PositiveDuration = lasting("10s", "Longest wait for an answer.")
    pool: Count | None = Field(
        default=None, description="Connections kept open; `workers` and a few more when left out."
    )


# --- identity providers -------------------------------------------------------------------------------------------------


class SswsAuth(Table):
    """Sign in with an Okta API token. It has its creator's rights and dies after 30 days without use."""

    method: Literal["ssws"] = Field(description="How to sign in to Okta.")
    token: SecretField = Field(description="Reference to the API token.")


class PrivateKeyJwtAuth(Table):
    """Sign in as an Okta service app (OAuth 2.0 client credentials, private_key_jwt)."""

    method: Literal["private_key_jwt"] = Field(description="How to sign in to Okta.")
    client_id: Text = Field(description="The service app's client id.")
    key: SecretField = Field(
        description="Reference to the private key, PEM: RSA (2048 bits or more) or P-256, P-384, P-521."
    )
    kid: Text | None = Field(default=None, description="Key id; needed where the app has more than one key.")
    scopes: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        default=("okta.apps.manage", "okta.logs.read"),
        description="Scopes to ask for; each must be granted to the app.",
    )
    dpop: Literal["auto", "on", "off"] = Field(
        default="auto", description="Bind access tokens to a proof of possession; auto: when Okta asks for it."
    )


def _org_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.path:
        raise wrong("must be the org's own URL without a path, such as https://acme.okta.com")
    if (parts.hostname or "").partition(".")[0].endswith("-admin"):
        raise wrong("is the Admin Console's URL; the API is served at the org's own, without -admin")
    return value


class OktaTable(Table):
    """An Okta org."""

    kind: Literal["okta"] = Field(description="Which system this is.")
    url: Annotated[Url, AfterValidator(_org_url)] = Field(description="The org's URL, such as https://acme.okta.com")
    auth: Annotated[SswsAuth | PrivateKeyJwtAuth, Field(discriminator="method")] = Field(description="How to sign in.")
    ca_file: FilePath | None = Field(default=None, description="CA certificates to trust instead of the system's.")
    max_parallel: Count = Field(default=2, description="Rotations open at the same time at this identity provider.")
    min_spacing: Duration = lasting("0s", "Least time between two starts at this identity provider.")
    brake_after: Count = Field(default=3, description="Failures in a row after which no new rotation starts here.")
    brake_cooldown: PositiveDuration = lasting("30m", "How long the brake holds.")


# --- the service's other faces ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listen:
    """Address and port of the HTTP service; port 0 takes a free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)


def _listen(value: object) -> Listen:
    if isinstance(value, Listen):
        return value
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise wrong('must be an address and a port, such as "127.0.0.1:8850" or "[::1]:8850"')
    return Listen(host, int(port))


def _usr1(value: object) -> object:
    return ("*",) if value == "*" else value


class ApiTable(Table):
    """The HTTP service: control, health, metrics."""

    enabled: Flag = Field(default=True, description="false: no HTTP service at all.")
    listen: Annotated[
        Listen, PlainValidator(_listen), WithJsonSchema({"type": "string", "examples": ["127.0.0.1:8850"]})
    ] = Field(
        default_factory=lambda: Listen("127.0.0.1", 8850),
        description="Address and port.",
        json_schema_extra={"default": "127.0.0.1:8850"},
    )
    tokens: FilePath | None = Field(
        default=None,
        description='File of bearer tokens, one per line: "read TOKEN" or "operate TOKEN", or sha256:HEX in its place.',
    )
    tls_cert: FilePath | None = Field(default=None, description="Certificate chain (PEM); needs `tls_key`.")
    tls_key: FilePath | None = Field(default=None, description="Private key of the certificate (PEM).")
    tls_client_ca: FilePath | None = Field(
        default=None, description="CA certificates (PEM): only clients with a certificate of it get in."
    )
    allow_public_without_tls: Flag = Field(
        default=False, description="Serve beyond loopback without TLS, because something in front does it."
    )


class SignalsTable(Table):
    """What signals do."""

    usr1: Annotated[
        tuple[Text, ...],
        BeforeValidator(_usr1),
        WithJsonSchema({"anyOf": [{"const": "*"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = Field(
        default=("*",),
        description='Connections that SIGUSR1 asks to rotate now: names, or "*" for all.',
        json_schema_extra={"default": "*"},
    )


class MetricsTable(Table):
    """What is exported."""

    open: Flag = Field(default=False, description="Serve /metrics without a token.")
    per_connection: Literal["auto", "always", "never"] = Field(
        default="auto", description="Series for each connection; auto: up to 1,000 connections."
    )


class File(Table):
    """Configuration of the provisioning key rotator."""

    allow_plain_secrets: Flag = Field(
        default=False, description="Accept secrets written into this file. For laboratories."
    )
    allow_world_readable_secrets: Flag = Field(
        default=False,
        description="Accept secret files that everybody on the machine may read, such as Kubernetes mounts.",
    )
    rotator: RotatorTable = Field(default_factory=RotatorTable, description="The program itself.")
    vault: VaultTable = Field(description="Where keys and state lie.")
    idp: dict[Name, OktaTable] = Field(default={}, description="Identity providers, by a name of your choice.")
    target: dict[Name, TargetTable] = Field(
        default={}, description="Systems that issue keys, by a name of your choice."
    )
    defaults: Timing = Field(default_factory=Timing, description="What connections have unless they say otherwise.")
    connection: tuple[ConnectionTable, ...] = Field(default=(), description="The provisioning connections.")
    api: ApiTable = Field(default_factory=ApiTable, description="The HTTP service.")
    signals: SignalsTable = Field(default_factory=SignalsTable, description="What signals do.")
    metrics: MetricsTable = Field(default_factory=MetricsTable, description="What is exported.")


@functools.cache
def json_schema() -> Mapping[str, Any]:
    """The schema of the file, for editors; `rotator/config.schema.json` holds it."""
    return {"$schema": _TomlSchema.schema_dialect, **File.model_json_schema(schema_generator=_TomlSchema)}


class _TomlSchema(GenerateJsonSchema):
    """TOML has no null: a key is there or it isn't. Titles would repeat the key."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        value = super().get_default_value(schema)
        return NoDefault if value is None else value

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


def schema_text() -> str:
    """The schema as it stands in `rotator/config.schema.json`."""
    return json.dumps(json_schema(), indent=2) + "\n"
