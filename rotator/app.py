"""The composition root: from a configuration to running parts. The only module that knows both adapters and runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import assert_never

from rotator.adapters import vault_auth
from rotator.adapters.vault import VaultClient, VaultSettings
from rotator.adapters.vault_keys import VaultKeyStore
from rotator.adapters.vault_state import VaultStateStore
from rotator.app_outside import Outside, text
from rotator.app_targets import capabilities, description
from rotator.config import Config, ConnectionConfig, Finding, SecretRef, resolve_local
from rotator.config_models import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth
from rotator.config_targets import HttpTable
from rotator.core.model import Binding, By, LedgerEntry
from rotator.core.schedule import frozen_until
from rotator.core.secret import Secret
from rotator.core.strategy import Route, Unsafe, derive
from rotator.engine import Connection, Engine
from rotator.errors import Conflict
from rotator.observe.ledger import LedgerFile
from rotator.ports import Heartbeat, Meter, Observer, RotationEvent, StateStore
from rotator.runtime.clock import SystemClock
from rotator.runtime.cron import next_cron
from rotator.runtime.dispatch import Dispatcher, Managed, Side
from rotator.runtime.membership import Membership


class Observers:
    """Passes each event on to all; implements ports.Observer."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on(self, event: RotationEvent) -> None:
        for observer in self._observers:
            observer.on(event)


@dataclass
class App:
    """All parts of one process, made and not yet started."""

    config: Config
    clock: SystemClock
    meter: Meter
    vault: VaultClient
    keys: VaultKeyStore
    state: VaultStateStore
    membership: Membership
    engine: Engine
    dispatcher: Dispatcher
    instance: str
    outside: Outside = field(init=False)

    def __post_init__(self) -> None:
        self._go_out()

    def _go_out(self) -> None:
        self.outside = Outside(self.config, self.vault, self.keys, self.clock, self.meter)

    def reconfigure(self, config: Config) -> None:
        """Take new identity providers, targets and connections; what is fixed at the start stays."""
        was = self.config
        self.config = dataclasses.replace(
            config, rotator=was.rotator, vault=was.vault, api=was.api, metrics=was.metrics
        )
        self._go_out()

    # --- connections ---

    def managed(self) -> dict[str, Managed]:
        """Every configured connection for the dispatcher."""
        return {name: self._managed(c) for name, c in self.config.connections.items()}

    def connection(self, name: str) -> Connection:
        """Raises KeyError for an unknown name."""
        return self._managed(self.config.connections[name]).connection

    def _managed(self, c: ConnectionConfig) -> Managed:
        idp, target = self.config.idps[c.idp], self.config.targets[c.target]
        route = route_of(self.config, c)
        binding = Binding(
            idp=c.idp,
            app_id=c.app_id,
            base_url=c.base_url,
            target=c.target,
            strategy=route.strategy,
            mint_by=route.mint_by,
            push_by=route.push_by,
        )
        freezes, outside = c.schedule.freezes, self.outside
        connection = Connection(
            name=c.name,
            binding=binding,
            limits=c.limits,
            open=lambda: outside.open(c),
            frozen_until=lambda now: frozen_until(freezes, now),
            allowed_characters=c.extra_characters,
            config=self._digest(c),
        )
        cron = next_cron(c.schedule.cron, c.schedule.timezone) if c.schedule.cron else None
        return Managed(
            connection=connection,
            schedule=c.schedule,
            idp=Side(c.idp, idp.brake_after, idp.brake_cooldown, idp.max_parallel, idp.min_spacing),
            target=Side(c.target, target.brake_after, target.brake_cooldown),
            worst_case=worst_case(c, route, min_settle=target.min_settle, call=self.config.rotator.call_deadline),
            next_cron=cron,
        )

    def _digest(self, c: ConnectionConfig) -> str:
        """Of what a person wrote for this connection, its IdP and its target; not of where in the file it stands."""
        parts = repr((dataclasses.replace(c, at=()), self.config.idps[c.idp], self.config.targets[c.target]))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def build(
    config: Config,
    *,
    meter: Meter,
    observer: Observer,
    clock: SystemClock | None = None,
    write_ledger: Callable[[tuple[LedgerEntry, ...]], bool] | None = None,
    command: bool = False,
) -> App:
    """Make all parts; Vault is signed in to at the first call.

    A daemon keeps its name over restarts, so that it goes on with what it held at once. A `command` runs beside it and
    takes a name that nobody uses, which is looked up in Vault.
    """
    clock, r = clock or SystemClock(), config.rotator
    vault = VaultClient(vault_settings(config), clock, meter)
    keys = VaultKeyStore(vault, config.vault.mount, config.vault.prefix)
    state = VaultStateStore(vault, config.vault.mount, config.vault.prefix)
    instance = r.instance or socket.gethostname().partition(".")[0].lower() or "host"
    if command:
        instance = take_name(state, f"{instance}-command", r.lease)
    membership = Membership(state, clock, instance=instance, lease=r.lease)
    engine = Engine(
        instance=instance,
        installation=r.installation,
        state=state,
        clock=clock,
        fence=membership,
        observer=observer,
        write_ledger=write_ledger or LedgerFile(r.ledger.path).write,
        call_deadline=r.call_deadline,
        lease=r.lease,
    )
    dispatcher = Dispatcher(
        engine=engine, state=state, membership=membership, clock=clock, observer=observer, workers=r.workers
    )
    return App(config, clock, meter, vault, keys, state, membership, engine, dispatcher, instance)


def take_name(state: StateStore, stem: str, lease: float) -> str:
    """`stem`-1, -2 …: the first that no living instance uses, taken by a check-and-set write, so that two commands that
    start together don't get the same. Names are taken again, so that they don't pile up."""
    there = {b.instance: b for b in state.beats()}
    for name in (f"{stem}-{n}" for n in count(1)):
        old = there.get(name)
        if old is not None and not old.stopped:
            continue
        version, beat = (old.version, old.beat) if old is not None else (0, 0)
        with suppress(Conflict):
            state.beat(Heartbeat(name, beat + 1, lease, version=version))
            return name
    raise AssertionError("there is always another number")


def vault_settings(config: Config) -> VaultSettings:
    """The client's settings; local secrets are read at each sign-in."""
    v = config.vault

    def local(ref: SecretRef) -> Secret:
        return resolve_local(ref, allow_world_readable=config.allow_world_readable_secrets)

    auth: vault_auth.Auth
    match v.auth:
        case TokenAuth(token=token):
            auth = vault_auth.TokenAuth(lambda: local(token))
        case AppRoleAuth(role_id=role_id, secret_id=secret_id, mount=mount):
            auth = vault_auth.AppRoleAuth(role_id, lambda: local(secret_id), mount)
        case KubernetesAuth(role=role, jwt_file=jwt_file, mount=mount):
            auth = vault_auth.KubernetesAuth(role, str(jwt_file), mount)
        case JwtAuth(role=role, jwt_file=jwt_file, mount=mount):
            auth = vault_auth.JwtAuth(role, str(jwt_file), mount)
        case never:
            assert_never(never)
    return VaultSettings(
        address=v.address,
        auth=auth,
        namespace=v.namespace,
        ca_file=text(v.ca_file),
        client_cert=(str(v.client_cert), str(v.client_key)) if v.client_cert and v.client_key else None,
        connect_timeout=v.connect_timeout,
        read_timeout=v.read_timeout,
        deadline=min(25.0, config.rotator.call_deadline),
        pool_size=v.pool or config.rotator.workers + 4,
    )


def route_of(config: Config, c: ConnectionConfig) -> Route:
    """The strategy that this pair allows. Raises Unsafe."""
    return derive(capabilities(config.targets[c.target]), c.push, allow_gap=c.rules.allow_gap)


def check(config: Config) -> Iterator[Finding]:
    """What only the whole program can see: calls that can't work, unsafe strategies, cron. Handed to `config.load`."""
    for name, table in config.targets.items():
        if isinstance(table, HttpTable):
            for problem in description(table).problems():
                yield Finding(("target", name), problem)
    for c in config.connections.values():
        try:
            route_of(config, c)
        except Unsafe as unsafe:
            yield Finding(c.at, f"{unsafe.reason} {unsafe.way_out}")
        if c.schedule.cron:
            try:
                next_cron(c.schedule.cron, c.schedule.timezone)
            except ValueError as error:
                yield Finding((*c.at, "cron"), str(error))


def worst_case(c: ConnectionConfig, route: Route, *, min_settle: float, call: float) -> float:
    """Seconds from a start until the IdP holds the new key, when a side is down as long as allowed."""
    limits = c.limits
    settle = max(limits.settle, min_settle)
    seconds = limits.outage + settle + limits.success_window + 10 * call
    return seconds + limits.person * ((route.mint_by is By.PERSON) + (route.push_by is By.PERSON))
