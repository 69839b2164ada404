"""The configuration: one TOML file becomes one frozen `Config`, or a `ConfigError` with everything that is wrong.

`load` reads, checks each table by itself, checks what tables say about each other, and merges `[defaults]` into the
connections. It keeps no secret: `Config` holds references (I5). Reading is pure but for the file itself, so a reload
that fails changes nothing.

    config_values       durations, secret references, URLs …        config_lines      on which line a key stands
    config_connections  [defaults], [[connection]]                  config_problems   findings and their sentences
    config_targets      [target.NAME]                               config_checks     contradictions, loose names
    config_models       all other tables, and the whole file
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rotator.config_checks import PUSHED_BY_API, Tables, check
from rotator.config_connections import DAYS, TIMING_KEYS, ConnectionTable, Timing, WindowTable
from rotator.config_lines import Path as KeyPath
from rotator.config_models import ApiTable, File, MetricsTable, OktaTable, RotatorTable, SignalsTable, VaultTable
from rotator.config_problems import ConfigError, Finding, Problem, did_you_mean, findings_of, locate
from rotator.config_targets import Target, TargetTable
from rotator.config_values import Flag, Name, SecretRef, resolve_local
from rotator.core.model import By, Limits
from rotator.core.schedule import Freeze, Schedule, Window

__all__ = [
    "Config",
    "ConfigError",
    "ConnectionConfig",
    "Finding",
    "Problem",
    "Rules",
    "SecretRef",
    "load",
    "resolve_local",
]


@dataclass(frozen=True, slots=True)
class Rules:
    """What `[defaults]` and a connection say together; shared by all connections that come to the same."""

    limits: Limits
    schedule: Schedule
    allow_gap: bool


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """One connection, nothing left to inherit."""

    at: KeyPath  # where it stands in the file, for findings of later checks
    name: str
    idp: str
    app_id: str
    app: str
    base_url: str  # the connection's own, or the target's
    target: str
    header: str  # 'Bearer {key}'
    extra_characters: frozenset[str]  # that keys may hold beyond those of bearer tokens
    push: By
    rules: Rules

    @property
    def limits(self) -> Limits:
        return self.rules.limits

    @property
    def schedule(self) -> Schedule:
        return self.rules.schedule


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. Durations are seconds, times aware UTC, secrets references."""

    path: Path
    allow_world_readable_secrets: bool
    rotator: RotatorTable
    vault: VaultTable
    idps: Mapping[str, OktaTable]
    targets: Mapping[str, Target]
    connections: Mapping[str, ConnectionConfig]  # in the order of the file
    api: ApiTable
    signals: SignalsTable
    metrics: MetricsTable


Check = Callable[[Config], Iterable[Finding]]


def load(path: str | Path, checks: Iterable[Check] = ()) -> Config:
    """The configuration in the file. Raises ConfigError holding all problems.

    `checks` look at the finished configuration (whether a strategy is safe, say) and their findings are reported in
    the same way; they are asked only when all else is right.
    """
    path = Path(path)
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError([_syntax(path, text, str(e))]) from None
    found, findings = _tables(data, path.absolute().parent)
    findings += check(found)
    if findings:
        raise locate(findings, path, text)
    config = _merge(found, path, allow_world_readable=data.get("allow_world_readable_secrets", False))
    if late := [finding for later in checks for finding in later(config)]:
        raise locate(late, path, text)
    return config


# --- reading ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ConfigError([Problem(str(path), 0, "", f"can't be read: {e.strerror or type(e).__name__}")]) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError([Problem(str(path), line, "", "is not UTF-8 text")]) from None


def _syntax(path: Path, text: str, message: str) -> Problem:
    """tomllib's message without its own words for the place; those end with "(at line 3, column 5)"."""
    sentence, _, place = message.rpartition(" (at ")
    words = place.removesuffix(")").replace(",", "").split()
    if words[:1] == ["line"]:
        return Problem(str(path), int(words[1]), "", f"is no valid TOML at column {words[3]}: {sentence}")
    return Problem(str(path), len(text.splitlines()) or 1, "", f"is no valid TOML at its end: {sentence or message}")


def _tables(data: Mapping[str, Any], folder: Path) -> tuple[Tables, list[Finding]]:
    """Each table by itself: those that are right, and the findings about the others."""
    findings = [
        Finding((name,), "is unknown." + did_you_mean(name, File.model_fields))
        for name in data
        if name not in File.model_fields
    ]
    context = {"folder": folder, "plain": data.get("allow_plain_secrets") is True}

    def valid(kind: TypeAdapter[T], value: object, at: KeyPath) -> T | None:
        try:
            return kind.validate_python(value, context=context)
        except ValidationError as e:
            findings.extend(findings_of(e, value, at))
            return None

    def section(kind: TypeAdapter[T], name: str) -> T | None:
        if name not in data and File.model_fields[name].is_required():
            findings.append(Finding((name,), f"is required: write a table [{name}]"))
            return None
        return valid(kind, data.get(name, {}), (name,))

    def named(kind: TypeAdapter[T], name: str) -> tuple[dict[str, T], set[str]]:
        values = data.get(name, {})
        if not isinstance(values, dict):
            findings.append(Finding((name,), f"must be tables with a name: write [{name}.NAME]"))
            return {}, set()
        right = {}
        for key, value in values.items():
            valid(_NAME, key, (name, key))
            if (table := valid(kind, value, (name, key))) is not None:
                right[key] = table
        return right, set(values)

    valid(_FLAG, data.get("allow_plain_secrets", False), ("allow_plain_secrets",))
    valid(_FLAG, data.get("allow_world_readable_secrets", False), ("allow_world_readable_secrets",))
    idps, idp_names = named(_IDP, "idp")
    targets, target_names = named(_TARGET, "target")
    rows = data.get("connection", [])
    if not isinstance(rows, list):
        findings.append(Finding(("connection",), "must be a list of tables: write [[connection]]"))
        rows = []
    connections = ((n, valid(_CONNECTION, row, ("connection", n))) for n, row in enumerate(rows))
    found = Tables(
        rotator=section(_ROTATOR, "rotator"),
        vault=section(_VAULT, "vault"),
        api=section(_API, "api"),
        signals=section(_SIGNALS, "signals"),
        metrics=section(_METRICS, "metrics"),
        defaults=section(_DEFAULTS, "defaults"),
        idps=idps,
        targets=targets,
        connections=[(n, c) for n, c in connections if c is not None],
        idp_names=idp_names,
        target_names=target_names,
        connection_names=[_name_of(row) for row in rows],
    )
    return found, findings


def _name_of(row: object) -> str:
    name = row.get("name", "") if isinstance(row, dict) else ""
    return name if isinstance(name, str) else ""


T = TypeVar("T")
_FLAG: TypeAdapter[bool] = TypeAdapter(Flag)
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_IDP: TypeAdapter[OktaTable] = TypeAdapter(OktaTable)
_TARGET: TypeAdapter[Target] = TypeAdapter(TargetTable)
_CONNECTION: TypeAdapter[ConnectionTable] = TypeAdapter(ConnectionTable)
_ROTATOR: TypeAdapter[RotatorTable] = TypeAdapter(RotatorTable)
_VAULT: TypeAdapter[VaultTable] = TypeAdapter(VaultTable)
_API: TypeAdapter[ApiTable] = TypeAdapter(ApiTable)
_SIGNALS: TypeAdapter[SignalsTable] = TypeAdapter(SignalsTable)
_METRICS: TypeAdapter[MetricsTable] = TypeAdapter(MetricsTable)
_DEFAULTS: TypeAdapter[Timing] = TypeAdapter(Timing)


# --- merging ------------------------------------------------------------------------------------------------------------


def _merge(found: Tables, path: Path, *, allow_world_readable: bool) -> Config:
    merge = _Merger(_present(found.defaults))
    connections: dict[str, ConnectionConfig] = {}
    for number, c in found.connections:
        target = found.targets[c.target]
        connections[c.name] = ConnectionConfig(
            at=("connection", number),
            name=c.name,
            idp=c.idp,
            app_id=c.app_id,
            app=c.app,
            base_url=c.base_url or target.scim_base or "",
            target=c.target,
            header=c.key.header or target.header,
            extra_characters=frozenset(c.key.allow),
            push=By(c.push) if c.push else (By.API if c.app in PUSHED_BY_API else By.PERSON),
            rules=merge.rules(c),
        )
    return Config(
        path=path,
        allow_world_readable_secrets=allow_world_readable,
        rotator=_present(found.rotator),
        vault=_present(found.vault),
        idps=MappingProxyType(found.idps),
        targets=MappingProxyType(found.targets),
        connections=MappingProxyType(connections),
        api=_present(found.api),
        signals=_present(found.signals),
        metrics=_present(found.metrics),
    )


def _present(table: T | None) -> T:
    if table is None:
        raise AssertionError("a table with findings was merged")
    return table


class _Merger:
    """Puts a connection's own timing over the defaults; equal results are made once (10,000 connections, a few rules)."""

    def __init__(self, defaults: Timing) -> None:
        self._defaults = {name: getattr(defaults, name) for name in TIMING_KEYS}
        self._made: dict[tuple[Any, ...], Rules] = {}

    def rules(self, c: ConnectionTable) -> Rules:
        own = tuple((name, getattr(c, name)) for name in TIMING_KEYS if name in c.model_fields_set)
        if own not in self._made:
            self._made[own] = self._make(dict(own))
        return self._made[own]

    def _make(self, own: dict[str, Any]) -> Rules:
        v = {**self._defaults, **own}
        if own.get("cron") is not None:
            v["rotate_every"] = None
        elif own.get("rotate_every") is not None:
            v["cron"] = None
        limits = Limits(
            settle=v["settle"],
            successes=v["successes"],
            success_window=v["success_window"],
            overlap=v["overlap"],
            watch_every=v["watch_every"],
            outage=v["outage"],
            restore=v["restore_deadline"],
            discard=v["discard_deadline"],
            retire=v["retire_deadline"],
            pushes=v["pushes"],
            mints=v["mints"],
            person=v["person_deadline"],
            remind_every=v["remind_every"],
            backoff=v["backoff"],
            backoff_cap=v["backoff_cap"],
            enable_disabled=v["enable_disabled"],
            write_probe=v["write_probe"],
        )
        schedule = Schedule(
            rotate_every=v["rotate_every"],
            cron=v["cron"],
            timezone=v["timezone"],
            expiry_margin=v["expiry_margin"],
            jitter=v["jitter"],
            window=_window(v["window"]),
            freezes=tuple(Freeze(freeze.begins, freeze.ends, freeze.reason) for freeze in v["freeze"]),
            bootstrap=v["bootstrap"],
            enabled=v["enabled"],
        )
        return Rules(limits, schedule, allow_gap=v["allow_gap"])


def _window(table: WindowTable | None) -> Window | None:
    if table is None:
        return None
    days = tuple(number for number, day in enumerate(DAYS, 1) if day in table.days)
    return Window(days, table.start, table.duration, table.timezone)
