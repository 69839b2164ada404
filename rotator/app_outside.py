"""The outside systems as one configuration names them: clients are made when they are first needed, and shared.

A reload makes a new one of these. A connection that keeps its old configuration, because its rotation is open, keeps
the old one of these with it: also where its identity provider or target is gone from the new file.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from rotator.adapters.http import Timeouts
from rotator.adapters.idp.okta import OktaHandOffProvider, OktaProvider
from rotator.adapters.idp.okta_auth import ServiceAppAuth, ssws
from rotator.adapters.idp.okta_org import OktaOrg
from rotator.adapters.targets import KINDS
from rotator.adapters.vault import VaultClient
from rotator.app_targets import target_settings
from rotator.config import Config, ConnectionConfig, SecretRef, resolve_local
from rotator.config_models import SswsAuth
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import Clock, IdentityProvider, KeyStore, Meter, Target
from rotator.work import Ports

CACHED_TARGETS = 256  # clients kept open; more connections than that are not worked on at once


class Outside:
    """Makes a connection's ports. Thread-safe."""

    def __init__(self, config: Config, vault: VaultClient, keys: KeyStore, clock: Clock, meter: Meter) -> None:
        self._config = config
        self._vault = vault
        self._keys = keys
        self._clock = clock
        self._meter = meter
        self._orgs: dict[str, OktaOrg] = {}
        self._lock = threading.Lock()
        self._targets = lru_cache(CACHED_TARGETS)(self._make_target)

    def open(self, c: ConnectionConfig) -> Ports:
        """The outside world of one connection."""
        target = self._targets(c.target, c.base_url, c.header)
        return Ports(target=target, idp=self.idp(c), keys=self._keys, clock=self._clock)

    def idp(self, c: ConnectionConfig) -> IdentityProvider:
        org = self._org(c.idp)
        if c.push is By.API:
            return OktaProvider(org, app_id=c.app_id, app=c.app, base_url=c.base_url, header=c.header)
        return OktaHandOffProvider(org, app_id=c.app_id, app=c.app, header=c.header)

    def _resolve(self, ref: SecretRef) -> Secret:
        """The value of a secret reference; read anew at each call, so that a renewed credential is taken."""
        if ref.scheme == "vault":
            return self._vault.read_field(ref.where, ref.field)
        return resolve_local(ref, allow_world_readable=self._config.allow_world_readable_secrets)

    def _org(self, name: str) -> OktaOrg:
        """One client per org, so that its rate budget is one."""
        with self._lock:
            if name not in self._orgs:
                self._orgs[name] = self._make_org(name)
            return self._orgs[name]

    def _make_org(self, name: str) -> OktaOrg:
        table = self._config.idps[name]
        auth = table.auth

        def make_auth(http: object, budget: object) -> object:
            if isinstance(auth, SswsAuth):
                return ssws(self._resolve(auth.token))
            return ServiceAppAuth(
                http,  # type: ignore[arg-type]  # OktaOrg calls it with its own client
                budget,  # type: ignore[arg-type]
                client_id=auth.client_id,
                key=self._resolve(auth.key),
                scopes=auth.scopes,
                clock=self._clock,
                kid=auth.kid,
                dpop=auth.dpop,
            )

        return OktaOrg(
            name,
            table.url,
            make_auth=make_auth,  # type: ignore[arg-type]
            clock=self._clock,
            meter=self._meter,
            ca_file=text(table.ca_file),
            timeouts=Timeouts(total=self._config.rotator.call_deadline),
        )

    def _make_target(self, name: str, base_url: str, header: str) -> Target:
        table, deadline = self._config.targets[name], self._config.rotator.call_deadline
        settings = target_settings(
            name, table, base_url=base_url, header=header, resolve=self._resolve, deadline=deadline
        )
        return KINDS[table.kind].build(settings, self._clock, self._meter)


def text(path: Path | None) -> str | None:
    return None if path is None else str(path)
