"""From a target's table in the configuration to its adapter's settings and its capabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from rotator.adapters.targets import description as d
from rotator.adapters.targets import grafana
from rotator.adapters.targets.grafana import GrafanaSettings
from rotator.adapters.targets.http import AdminHeader, HttpTargetSettings
from rotator.adapters.targets.manual import ManualSettings
from rotator.adapters.targets.scim import ScimSettings, default_meanings
from rotator.config import SecretRef
from rotator.config_targets import (
    ByCursor,
    ByLink,
    ByPage,
    Call,
    GrafanaTable,
    HttpTable,
    ListCall,
    ManualTable,
    Target,
)
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.core.strategy import LiveKeys, TargetCapabilities
from rotator.ports import Answer

Resolve = Callable[[SecretRef], Secret]
Settings = HttpTargetSettings | GrafanaSettings | ManualSettings


def capabilities(table: Target) -> TargetCapabilities:
    """What the configured target can do; known without calling it."""
    match table:
        case GrafanaTable():
            return grafana.grafana_description(str(table.service_account_id), min_settle=table.min_settle).capabilities
        case HttpTable():
            return description(table).capabilities
        case ManualTable():
            return TargetCapabilities(
                live_keys=LiveKeys(table.live_keys), mint=By.PERSON, revoke=False, lists=False, labels=False
            )
        case never:
            assert_never(never)


def target_settings(
    name: str, table: Target, *, base_url: str, header: str, resolve: Resolve, deadline: float
) -> Settings:
    """`base_url` and `header` are the connection's; `deadline` bounds each call, in seconds."""
    ca_file = None if table.ca_file is None else str(table.ca_file)
    scim = ScimSettings(
        url=base_url.rstrip("/"),
        header=header,
        meanings={**default_meanings(), **{int(s): Answer(a) for s, a in table.meanings.items()}},
        canary=table.canary,
        ca_file=ca_file,
        deadline=deadline,
    )
    match table:
        case GrafanaTable():
            return GrafanaSettings(
                name=name,
                url=table.url,
                service_account_id=str(table.service_account_id),
                token=lambda: resolve(table.token),
                scim=scim,
                namespace=table.namespace,
                seconds_to_live=None if table.ttl is None else int(table.ttl),
                min_settle=table.min_settle,
                ca_file=ca_file,
            )
        case HttpTable():
            return HttpTargetSettings(
                name=name,
                url=table.url,
                admin=tuple(AdminHeader(a.header, _later(resolve, a.value), a.prefix) for a in table.auth),
                description=description(table),
                scim=scim,
                ca_file=ca_file,
            )
        case ManualTable():
            return ManualSettings(
                name=name, scim=scim, live_keys=LiveKeys(table.live_keys), min_settle=table.min_settle
            )
        case never:
            assert_never(never)


def description(t: HttpTable) -> d.Description:
    """The admin API of a described target."""
    return d.Description(
        mint=d.Mint(
            call=_call(t.mint),
            key=t.mint.key,
            key_id=t.mint.key_id,
            expires_at=t.mint.expires_at,
            taken=tuple(d.Taken(x.status, x.pointer, x.equals) for x in t.mint.taken),
        ),
        listing=_listing(t.list) if t.list is not None else None,
        revoke=_call(t.revoke) if t.revoke is not None else None,
        disable=_call(t.disable) if t.disable is not None else None,
        live_keys=LiveKeys(t.live_keys),
        ttl_seconds=None if t.ttl is None else int(t.ttl),
        last_used_throttle=t.last_used_throttle,
        min_settle=t.min_settle,
    )


def _listing(t: ListCall) -> d.Listing:
    pages: d.Pages | d.Cursor | d.LinkHeader | None
    match t.pages:
        case ByPage():
            pages = d.Pages(t.pages.parameter, t.pages.total, t.pages.size_parameter, t.pages.size)
        case ByCursor():
            pages = d.Cursor(t.pages.parameter, t.pages.next)
        case ByLink():
            pages = d.LinkHeader()
        case None:
            pages = None
        case never:
            assert_never(never)
    return d.Listing(
        call=_call(t),
        items=t.items,
        key_id=t.key_id,
        label=t.label,
        created_at=t.created_at,
        last_used_at=t.last_used_at,
        expires_at=t.expires_at,
        dead=tuple((x.pointer, x.equals) for x in t.dead),
        pages=pages,
    )


def _call(t: Call) -> d.Call:
    return d.Call(method=t.method, path=t.path, body=t.body, headers=t.headers, ok=frozenset(t.ok))


def _later(resolve: Resolve, ref: SecretRef) -> Callable[[], Secret]:
    return lambda: resolve(ref)
