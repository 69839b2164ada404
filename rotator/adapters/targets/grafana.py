"""Grafana (Enterprise, Cloud): the SCIM key is a token of a service account.

Sources: Grafana docs, "Service account HTTP API" and "Configure SCIM with Okta"; grafana/grafana
pkg/services/serviceaccounts (errors.go, api/token.go).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from rotator.adapters.targets.description import Call, Description, Listing, Mint, Taken
from rotator.adapters.targets.http import AdminHeader, HttpTarget, HttpTargetSettings, http_target
from rotator.adapters.targets.scim import ScimSettings
from rotator.core.secret import Secret
from rotator.ports import Clock, Meter


@dataclass(frozen=True, slots=True)
class GrafanaSettings:
    name: str
    url: str  # "https://acme.grafana.net"
    service_account_id: str
    token: Secret | Callable[[], Secret]  # of another service account, with serviceaccounts:read and :write on that id
    scim: ScimSettings | None = None  # None: the documented address below, "Bearer {key}"
    namespace: str = "default"  # Cloud: "stacks-<stack id>" (docs, "Configure SCIM with Okta")
    seconds_to_live: int | None = None  # None: keys never expire, which a server with an expiry limit refuses
    min_settle: float = 0.0  # seconds
    ca_file: str | None = None


def grafana_target(settings: GrafanaSettings, clock: Clock, meter: Meter) -> HttpTarget:
    """Misconfigured when a URL or CA file can't be used."""
    scim = settings.scim or ScimSettings(
        url=f"{settings.url.rstrip('/')}/apis/scim.grafana.app/v0alpha1/namespaces/{quote(settings.namespace, safe='')}",
        ca_file=settings.ca_file,
    )
    return http_target(
        HttpTargetSettings(
            name=settings.name,
            url=settings.url,
            admin=(AdminHeader("Authorization", settings.token, "Bearer "),),
            description=grafana_description(
                settings.service_account_id, settings.seconds_to_live, min_settle=settings.min_settle
            ),
            scim=scim,
            ca_file=settings.ca_file,
        ),
        clock,
        meter,
    )


def grafana_description(
    service_account_id: str, seconds_to_live: int | None = None, *, min_settle: float = 0.0
) -> Description:
    """The token calls of one service account."""
    tokens = f"/api/serviceaccounts/{quote(service_account_id, safe='')}/tokens"
    body: dict[str, str] = {"name": "{label}"}
    if seconds_to_live is not None:
        body["secondsToLive"] = "{ttl_seconds}"
    return Description(
        mint=Mint(
            Call("POST", tokens, body=body, ok=frozenset({200})),
            key="/key",
            key_id="/id",
            # Names are unique in the organisation: 409 in older versions, 400 with this id in newer ones (errors.go)
            taken=(Taken(400, "/messageId", "serviceaccounts.ErrTokenAlreadyExists"),),
        ),
        listing=Listing(
            Call("GET", tokens, ok=frozenset({200})),
            items="",
            key_id="/id",
            label="/name",
            created_at="/created",
            expires_at="/expiration",
            # lastUsedAt stands in the answers but not in the docs, and 10.1 stopped moving it (issue 78375): not used
            dead=(("/hasExpired", True), ("/isRevoked", True)),
        ),
        revoke=Call("DELETE", f"{tokens}/{{key_id}}", ok=frozenset({200})),
        ttl_seconds=seconds_to_live,
        min_settle=min_settle,
    )
