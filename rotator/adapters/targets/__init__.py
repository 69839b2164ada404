"""The targets: one line per kind. A new one is a file, a line here and a parameter in the contract suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rotator.adapters.targets import http, scim
from rotator.adapters.targets.grafana import GrafanaSettings, grafana_target
from rotator.adapters.targets.http import HttpTargetSettings, http_target
from rotator.adapters.targets.manual import ManualSettings, manual_target
from rotator.ports import Clock, Meter, Target


@dataclass(frozen=True, slots=True)
class Kind:
    """How a target of one kind is made: from which settings, by which function; the meter's words of its calls."""

    settings: type
    build: Callable[[Any, Clock, Meter], Target]  # Any: the `settings` type of the same line
    operations: tuple[str, ...]


KINDS: Mapping[str, Kind] = {
    "http": Kind(HttpTargetSettings, http_target, http.OPERATIONS + scim.OPERATIONS),
    "grafana": Kind(GrafanaSettings, grafana_target, http.OPERATIONS + scim.OPERATIONS),
    "manual": Kind(ManualSettings, manual_target, scim.OPERATIONS),
}
