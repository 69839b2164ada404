"""The laboratory's configuration file, written as a person would write it: TOML text from what was set up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rotator.sandbox.target import TargetSandbox

QUICK = {
    "rotate_every": "30d",
    "overlap": "0s",
    "watch_every": "300ms",
    "settle": "3s",
    "success_window": "0s",
    "outage": "60s",
    "restore_deadline": "60s",
    "discard_deadline": "30s",
    "retire_deadline": "30s",
    "person_deadline": "120s",
    "remind_every": "30s",
    "backoff": "300ms",
    "backoff_cap": "2s",
}


@dataclass
class Bench:
    """One connection with its servers' handles."""

    name: str
    target: TargetSandbox
    app_id: str
    app: str
    first_key: str
    first_id: str
    settings: dict[str, Any] = field(default_factory=dict)


def connection_toml(bench: Bench) -> list[str]:
    return [
        "[[connection]]",
        f'name = "{bench.name}"',
        'idp = "okta"',
        f'app_id = "{bench.app_id}"',
        f'app = "{bench.app}"',
        f'base_url = "{bench.target.scim_url}"',
        *settings(bench.settings),
    ]


def target_toml(name: str, server: TargetSandbox, admin_token: Path) -> list[str]:
    """How this target's admin API is called. `admin_token` is the file with the admin's token."""
    admin = f"file:{admin_token}"
    http = [f'kind = "http"\nurl = "{server.url}"', f'auth = [{{ value = "{admin}" }}]']
    match server.shape:
        case "grafana":
            lines = [
                'kind = "grafana"',
                f'url = "{server.url}"',
                f"service_account_id = {server.service_account_id}",
                f'token = "{admin}"',
            ]
        case "capped":
            path = server.path("mint")
            lines = [
                *http,
                'live_keys = "two"',
                f'mint = {{ path = "{path}", body = {{ name = "{{label}}" }}, key = "/key", key_id = "/id" }}',
                f'list = {{ path = "{path}", key_id = "/id", label = "/name" }}',
                f'revoke = {{ path = "{path}/{{key_id}}" }}',
            ]
        case "roll":
            mint = f'mint = {{ method = "PUT", path = "{server.path("replace")}", body = {{}}, key = "/result" }}'
            lines = [*http, 'live_keys = "one"', mint]
        case "set_key":
            lines = [
                *http,
                'live_keys = "one"',
                'meanings = { 403 = "refused" }',
                f'mint = {{ path = "{server.path("replace")}", body = {{ key = "{{value}}" }} }}',
            ]
        case _:
            lines = ['kind = "manual"']
    return [f"[target.{name}]", "brake_after = 100", *lines]


def settings(values: Mapping[str, Any]) -> list[str]:
    """Lines of `key = value`; JSON's strings, numbers, booleans and lists are TOML's too."""
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]
