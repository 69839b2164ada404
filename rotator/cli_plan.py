"""`rotator plan`: the exact calls of a rotation in order and, for each phase, what is true if the process dies there."""

from __future__ import annotations

from dataclasses import dataclass

from rotator.adapters.targets.grafana import grafana_description
from rotator.app_targets import description
from rotator.config import Config, ConnectionConfig
from rotator.config_targets import GrafanaTable, HttpTable
from rotator.core import machine
from rotator.core.model import By, Outcome, Phase, StrategyName
from rotator.core.strategy import STRATEGIES, Route, Verdict
from rotator.telling import DOING, ENDS, truth


@dataclass(frozen=True, slots=True)
class Step:
    phase: str
    doing: str
    calls: tuple[str, ...]
    if_it_dies: str
    on_failure: str


@dataclass(frozen=True, slots=True)
class Plan:
    connection: str
    strategy: str
    no_return: str
    notes: tuple[str, ...]
    steps: tuple[Step, ...]


def plan(config: Config, c: ConnectionConfig, route: Route) -> Plan:
    """What a clean rotation of this connection does. Calls nothing."""
    strategy = STRATEGIES[route.strategy]
    phases = machine.path(route.strategy, route.mint_by, route.push_by)
    calls = _Calls(config, c, route)
    notes = list(route.notes)
    if c.push is By.PERSON:
        notes.append("The identity provider's side is seen only in its log, by the key's last use, or by your word.")
    return Plan(
        connection=c.name,
        strategy=route.strategy.value,
        no_return=strategy.no_return.value,
        notes=tuple(notes),
        steps=tuple(
            Step(
                phase=phase.value,
                doing=DOING[phase],
                calls=calls.of(phase),
                if_it_dies=f"{truth(route.strategy, phase)}. Whoever comes next goes on from the state record",
                on_failure=_failure(route, phase),
            )
            for phase in phases
        ),
    )


def _failure(route: Route, phase: Phase) -> str:
    edges = STRATEGIES[route.strategy].edges
    api = {Phase.AWAIT_KEY: Phase.MINT, Phase.AWAIT_PUSH: Phase.PUSH}.get(phase, phase)
    found = []
    for verdict in (Verdict.REFUSED, Verdict.SPENT, Verdict.FOREIGN):
        to = edges.get((api, verdict))
        if phase is Phase.AWAIT_KEY:
            to = Outcome.CANCELLED
        if phase is Phase.AWAIT_PUSH and verdict is Verdict.SPENT:
            to = Outcome.STUCK
        if to is not None:
            word = {"refused": "the key is refused", "spent": "its time is used up", "foreign": "the world differs"}[
                verdict
            ]
            found.append(f"{word} -> {ENDS[to] if isinstance(to, Outcome) else to.value}")
    return "; ".join(dict.fromkeys(found)) or "it holds, visibly, until it heals or a person acts"


class _Calls:
    """The calls of each phase, as METHOD path at SYSTEM."""

    def __init__(self, config: Config, c: ConnectionConfig, route: Route) -> None:
        self._c, self._route = c, route
        table = config.targets[c.target]
        self._api = None
        if isinstance(table, GrafanaTable):
            self._api = grafana_description(str(table.service_account_id))
        elif isinstance(table, HttpTable):
            self._api = description(table)
        v = config.vault
        self._vault = {
            slot: f"{v.mount}/data/{v.prefix}/{slot}/{c.name}" for slot in ("keys", "staged", "handoff", "state")
        }
        self._okta = f"/api/v1/apps/{c.app_id}"
        self._live_keys = table.live_keys if not isinstance(table, GrafanaTable) else "many"

    def of(self, phase: Phase) -> tuple[str, ...]:
        save = f"vault: POST {self._vault['state']} (check-and-set: outcome and next intent)"
        return (*self._effect(phase), save)

    def _effect(self, phase: Phase) -> tuple[str, ...]:
        scim = f"target {self._c.target}: GET {self._c.base_url}"
        connection = f"okta {self._c.idp}: GET {self._okta}/connections/default"
        features = f"okta {self._c.idp}: GET {self._okta}/features"
        log = f"okta {self._c.idp}: GET /api/v1/logs (this app, since the push)"
        push = f"okta {self._c.idp}: POST {self._okta}/connections/default?activate=TRUE"
        staged = f"vault: POST {self._vault['staged']}"
        by_api = self._c.push is By.API
        ladder = (f"{scim}/Users?startIndex=1&count=2", f"{scim}/Users?filter=…", f"{scim}/Groups?startIndex=1&count=1")
        match phase:
            case Phase.PREFLIGHT:
                idp = (connection, features) if by_api else ()
                return (
                    f"vault: GET {self._vault['keys']}",
                    *idp,
                    f"{ladder[0]} with the current key",
                    *self._admin("list"),
                )
            case Phase.MAKE_ROOM:
                return (*self._admin("list"), *self._admin("revoke", "our own debts only, if the cap is reached"))
            case Phase.MINT:
                return (f"{staged} (a void version)", *self._admin("mint"))
            case Phase.AWAIT_KEY:
                return (f"vault: GET {self._vault['handoff']} until a person leaves a key there",)
            case Phase.STAGE:
                return (f"{staged} (the candidate)",)
            case Phase.PROVE:
                return (
                    f"{ladder[0]} with a corrupted key: must be refused",
                    *(f"{x} with the candidate" for x in ladder),
                )
            case Phase.PUSH:
                return (push,)
            case Phase.AWAIT_PUSH:
                return (f"a person types the key from {self._vault['staged']} into Okta", log)
            case Phase.CONFIRM:
                return (connection, features, log) if by_api else (log,)
            case Phase.PROMOTE:
                return (f"vault: POST {self._vault['keys']} (check-and-set)",)
            case Phase.OVERLAP:
                return (
                    log,
                    f"{ladder[0]} with the new key",
                    f"every {self._c.limits.watch_every:g} s for {self._c.limits.overlap:g} s",
                )
            case Phase.RETIRE:
                revoke = (
                    self._admin("revoke", "the old key")
                    if self._route.strategy in {StrategyName.OVERLAP, StrategyName.MAKE_ROOM}
                    else ()
                )
                again = (f"{push} again, if the holder changed since or the log can't be read",) if by_api else ()
                alive = tuple(f"{x} with the new key" for x in ladder)
                return (
                    *again,
                    *alive,
                    *revoke,
                    f"{ladder[0]} with the old key: must be refused",
                    f"{ladder[0]} with the new key",
                    f"vault: PUT destroy {self._vault['staged']}",
                )
            case Phase.RESTORE | Phase.AWAIT_RESTORE | Phase.DISCARD:
                return ()

    def _admin(self, what: str, note: str = "") -> tuple[str, ...]:
        if self._api is None:
            return ("a person revokes the old key at the target",) if what == "revoke" else ()
        listing = self._api.listing.call if self._api.listing is not None else None
        call = {"mint": self._api.mint.call, "list": listing, "revoke": self._api.revoke}[what]
        if call is None:
            return ()
        return (f"target {self._c.target}: {call.method} {call.path}" + (f" ({note})" if note else ""),)
