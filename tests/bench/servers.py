"""The servers of the rotation benchmark, in a process of their own, so that their work is not counted as the program's.

Started as `python -m tests.bench.servers`. Speaks JSON lines: says first where all is (`Site`), then answers commands:
{"do": "latency", "real": bool} · {"do": "recording"} (forget what passed) · {"do": "recorded"} (the calls that passed).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rotator.sandbox.lab import PREFIX, Lab
from rotator.sandbox.lab_process import environment
from tests.bench.wire import Relay, Request

PROGRAM, BARE = "with-rotator", "by-hand----"  # one connection each; names of one length, so that paths are equal
REAL = {"okta_post": 2.8, "okta_get": 1.1, "target": 0.2, "vault": 0.005}  # seconds; Okta's were recorded on a real org
SETTINGS = {"settle": "0s", "success_window": "0s", "overlap": "0s"}
System = Literal["okta", "target", "vault"]


@dataclass
class Side:
    """One connection's servers and what it needs to call them."""

    name: str
    app_id: str
    target: str  # URL
    service_account: str
    admin_token: str = field(repr=False)
    first_key: str = field(repr=False)
    first_id: str


@dataclass
class Site:
    """All that the benchmark's process must know."""

    direct: str  # configuration file: no relay
    recorded: str  # … with a relay before each server
    delayed: str  # … with a relay before Vault, which is slow when the latency is real
    vault: str
    slow_vault: str
    okta: str
    okta_token: str = field(repr=False)
    role_id: str
    secret_id: str = field(repr=False)
    program: Side
    bare: Side


class Servers:
    """The other end: starts this module as a process, and ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        site = self._answer()
        self.site = Site(**site | {"program": Side(**site["program"]), "bare": Side(**site["bare"])})

    def latency(self, *, real: bool) -> None:
        self._ask({"do": "latency", "real": real})

    def record(self, work: Callable[[], None]) -> list[tuple[System, Request]]:
        """The calls that passed the relays while `work` ran, in their order."""
        self._ask({"do": "recording"})
        work()
        calls = self._ask({"do": "recorded"})
        return [(c["system"], Request(c["method"], c["path"], c["headers"], c["body"].encode())) for c in calls]

    def held_key(self) -> str:
        """What Okta holds for the program's connection."""
        return str(self._ask({"do": "held"}))

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the benchmark's servers ended with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def servers(home: Path) -> Iterator[Servers]:
    """They end when their stdin ends, which is also when this process dies."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.servers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment(home),
    )
    try:
        yield Servers(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def main() -> None:
    with Lab(tick="15s", lease="600s", call_deadline="30s") as lab:
        sides = [_side(lab, name) for name in (PROGRAM, BARE)]
        direct = lab.write().read_text()
        lab.adopt(PROGRAM)
        target = sides[0].target
        with Relay(lab.okta.url) as okta, Relay(target) as near, Relay(lab.vault.address) as vault:
            relays: dict[System, Relay] = {"okta": okta, "target": near, "vault": vault}
            with Relay(lab.vault.address) as slow:
                configs = {
                    "direct": direct,
                    "delayed": direct.replace(lab.vault.address, slow.url),
                    "recorded": direct.replace(lab.vault.address, vault.url)
                    .replace(lab.okta.url, okta.url)
                    .replace(target, near.url),
                }
                for name, text in configs.items():
                    (lab.home / f"{name}.toml").write_text(text)
                files = {name: str(lab.home / f"{name}.toml") for name in configs}
                role = lab.vault.client().auth.approle.read_role_id(PREFIX)["data"]["role_id"]
                site = Site(
                    **files,
                    vault=lab.vault.address,
                    slow_vault=slow.url,
                    okta=lab.okta.url,
                    okta_token=lab.okta.api_token,
                    role_id=role,
                    secret_id=(lab.home / "vault-secret-id").read_text().strip(),
                    program=sides[0],
                    bare=sides[1],
                )
                _say(asdict(site))
                for line in sys.stdin:
                    _say(_obey(json.loads(line), lab, relays, slow, sides[0]))


def _obey(command: dict[str, Any], lab: Lab, relays: dict[System, Relay], slow: Relay, program: Side) -> Any:
    match command["do"]:
        case "latency":
            share = 1.0 if command["real"] else 0.0
            lab.okta.switches.write_seconds = REAL["okta_post"] * share
            lab.okta.switches.read_seconds = REAL["okta_get"] * share
            slow.delay = REAL["vault"] * share
            for target in lab.targets.values():
                target.behaviour.latency = REAL["target"] * share
        case "recording":
            for relay in relays.values():
                relay.requests.clear()
        case "recorded":
            calls = sorted(
                ((r.at, name, r) for name, relay in relays.items() for r in relay.requests), key=lambda call: call[0]
            )
            return [
                {"system": name, "method": r.method, "path": r.path, "headers": r.headers, "body": r.body.decode()}
                for _, name, r in calls
            ]
        case "held":
            return lab.okta.held_key(program.app_id)
    return None


def _side(lab: Lab, name: str) -> Side:
    bench = lab.connect(name, **SETTINGS)
    server = bench.target
    return Side(
        name=name,
        app_id=bench.app_id,
        target=server.url,
        service_account=str(server.service_account_id),
        admin_token=server.admin_token,
        first_key=bench.first_key,
        first_id=bench.first_id,
    )


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
