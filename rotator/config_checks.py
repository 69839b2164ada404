"""What no single value shows: contradictions between keys, names that refer to nothing, two owners of one thing.

Each check takes the tables that are right by themselves and yields findings; a table with errors of its own is absent,
but its name still counts as existing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from rotator.config_connections import ConnectionTable, Timing
from rotator.config_lines import Path
from rotator.config_models import ApiTable, MetricsTable, OktaTable, RotatorTable, SignalsTable, VaultTable
from rotator.config_problems import Finding, did_you_mean
from rotator.config_targets import GrafanaTable, HttpTable, ManualTable, Target

# Okta docs, "Application Connections": the provisioning connection takes a token for these two apps only.
PUSHED_BY_API = frozenset({"okta_org2org", "zscalerbyz"})


@dataclass(slots=True)
class Tables:
    """The tables of one file that are right by themselves, and the names that the file gives."""

    rotator: RotatorTable | None = None
    vault: VaultTable | None = None
    api: ApiTable | None = None
    signals: SignalsTable | None = None
    metrics: MetricsTable | None = None
    defaults: Timing | None = None
    idps: dict[str, OktaTable] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    connections: list[tuple[int, ConnectionTable]] = field(default_factory=list)
    idp_names: AbstractSet[str] = frozenset()
    target_names: AbstractSet[str] = frozenset()
    connection_names: Sequence[str] = ()  # by position; "" where there is none


def check(tables: Tables) -> Iterator[Finding]:
    """All findings over the whole file."""
    yield from _program(tables)
    if tables.defaults is not None:
        yield from _timing(("defaults",), tables.defaults)
    yield from _names(tables)
    yield from _once(tables)
    for number, connection in tables.connections:
        yield from _connection(("connection", number), connection, tables)


def _program(tables: Tables) -> Iterator[Finding]:
    if (r := tables.rotator) and r.call_deadline >= r.lease:
        yield Finding(
            ("rotator", "call_deadline"), "must be shorter than lease: a call may not outlive the right to make it"
        )
    if (v := tables.vault) and (v.client_cert is None) != (v.client_key is None):
        yield Finding(
            ("vault", "client_key" if v.client_key else "client_cert"), "client_cert and client_key go together"
        )
    if api := tables.api:
        if (api.tls_cert is None) != (api.tls_key is None):
            yield Finding(("api", "tls_key" if api.tls_key else "tls_cert"), "tls_cert and tls_key go together")
        if api.tls_client_ca is not None and api.tls_cert is None:
            yield Finding(("api", "tls_client_ca"), "needs tls_cert and tls_key")
        if api.enabled and not api.listen.loopback:
            if api.tokens is None:
                yield Finding(
                    ("api", "listen"), "is reachable from outside: tokens must be set, or listen on 127.0.0.1"
                )
            if tables.metrics and tables.metrics.open:
                yield Finding(
                    ("metrics", "open"),
                    "must be false while api.listen is reachable from outside: give the scraper a `read` token",
                )
            if api.tls_cert is None and not api.allow_public_without_tls:
                yield Finding(
                    ("api", "listen"),
                    "is reachable from outside without TLS: set tls_cert and tls_key, or allow_public_without_tls = true"
                    " where something in front of it does TLS",
                )
    if tables.signals and tables.signals.usr1 != ("*",):
        names = frozenset(tables.connection_names)
        for name in tables.signals.usr1:
            if name not in names:
                yield Finding(
                    ("signals", "usr1"), f'names no connection "{name}".{did_you_mean(name, tables.connection_names)}'
                )


# --- connections --------------------------------------------------------------------------------------------------------


def _names(tables: Tables) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for number, name in enumerate(tables.connection_names):
        if name and first.setdefault(name, number) != number:
            yield Finding(("connection", number, "name"), f"is taken by connection[{first[name]}]")


def _once(tables: Tables) -> Iterator[Finding]:
    """One owner for each slot at an identity provider and for each set of keys at a target that can't be shared."""
    slots: dict[tuple[str, str], int] = {}
    places: dict[tuple[object, ...], int] = {}
    for number, c in tables.connections:
        if (other := slots.setdefault((c.idp, c.app_id), number)) != number:
            yield Finding(
                ("connection", number, "app_id"),
                f"is rotated by connection[{other}] already; two would overwrite each other's key",
            )
        target = tables.targets.get(c.target)
        if target is None or (place := _place(c, target)) is None:
            continue
        if (other := places.setdefault(place, number)) != number:
            yield Finding(
                ("connection", number, "target"),
                f"keeps its keys where connection[{other}] has its own, and this target can't keep them apart (it allows few"
                " live keys, or has no labels): one would revoke the other's; give each its own tenant or service account",
            )


def _place(c: ConnectionTable, target: Target) -> tuple[object, ...] | None:
    """Where the connection's keys live at a target that two connections can't share; None where they can."""
    match target:
        case HttpTable():
            return None if target.live_keys == "many" and target.labels else (c.target,)
        case ManualTable():
            return None if target.live_keys == "many" else (c.target, c.base_url or target.scim_base)
        case GrafanaTable():
            return None  # many live keys, each with its name


def _connection(at: Path, c: ConnectionTable, tables: Tables) -> Iterator[Finding]:
    for key, name, known in (("idp", c.idp, tables.idp_names), ("target", c.target, tables.target_names)):
        if name not in known:
            yield Finding((*at, key), f"there is no [{key}.…] of this name.{did_you_mean(name, known)}")
    target = tables.targets.get(c.target)
    if c.push == "api" and c.app not in PUSHED_BY_API:
        yield Finding(
            (*at, "push"),
            "Okta has no public call that sets the key of this app, only for "
            + " and ".join(sorted(PUSHED_BY_API))
            + "; "
            'leave push out, or set push = "person": a person types the key in and the rotator proves it',
        )
    if c.base_url is None and target is not None and target.scim_base is None:
        yield Finding(
            (*at, "base_url"), "is required: neither this connection nor its target says where SCIM is served"
        )
    yield from _timing(at, c)
    if tables.defaults is not None:
        yield from _effective(at, c, tables.defaults, target)


def _timing(at: Path, t: Timing) -> Iterator[Finding]:
    """Contradictions inside one table."""
    if t.rotate_every is not None and t.cron is not None:
        yield Finding((*at, "cron"), "rotate_every and cron exclude each other; keep one")
    for number, freeze in enumerate(t.freeze):
        if freeze.ends <= freeze.begins:
            yield Finding((*at, "freeze", number, "until"), "ends the freeze before it begins")


def _effective(at: Path, c: ConnectionTable, defaults: Timing, target: Target | None) -> Iterator[Finding]:
    """Contradictions that show only between what a connection says and what it inherits."""

    def value(name: str) -> Any:
        return getattr(c if name in c.model_fields_set else defaults, name)

    def place(*names: str) -> Path:
        """Where to point: the connection's own key, or the connection when all are inherited."""
        return next(((*at, name) for name in names if name in c.model_fields_set), at)

    every = None if c.cron is not None else value("rotate_every")
    if every is None and value("cron") is None and value("enabled"):
        yield Finding(
            at,
            "has no schedule: set rotate_every or cron (here or in [defaults]), or enabled = false to rotate only when asked",
        )
    if "timezone" in c.model_fields_set and (every is not None or value("cron") is None):
        yield Finding((*at, "timezone"), "timezone belongs to cron, and this connection has none; a window has its own")
    if every is not None and value("overlap") >= every:
        yield Finding(
            place("overlap", "rotate_every"),
            "overlap must be shorter than rotate_every: the next rotation would be due before",
        )
    if value("backoff") > value("backoff_cap"):
        yield Finding(place("backoff", "backoff_cap"), "backoff must not be above backoff_cap")
    ttl = None if target is None or isinstance(target, ManualTable) else target.ttl
    if ttl is not None and ttl <= value("expiry_margin") + value("overlap"):
        yield Finding(
            place("expiry_margin", "overlap"),
            f'the ttl of target "{c.target}" must be longer than expiry_margin and overlap together: a fresh key would be'
            " due again at once",
        )
