"""How many calls a clean `overlap` rotation makes, counted by the servers that got them.

Okta and the target keep their own lists; Vault's calls are counted on the wire by a relay. Left out, because they
belong to the process and not to a rotation: the instance's heartbeat (`instances/`), signing in, and looking at and
renewing its token. The tick is short, so that what the daemon itself reads during a rotation is counted too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rotator.sandbox.lab import Lab, wait_for
from rotator.sandbox.okta_limits import FaultKind
from tests.bench.wire import Relay

AT_MOST_OKTA_APPS = 5
AT_MOST_OKTA_APPS_WITHOUT_LOG = 6  # with no log to look at, the key is pushed again before the old one is revoked
AT_MOST_VAULT = 20
AT_MOST_TARGET = 14

DAILY_PATHS = ("/instances", "/v1/auth/")


@dataclass
class World:
    lab: Lab
    vault: Relay


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(tick="100ms", lease="6s", call_deadline="2s") as lab, Relay(lab.vault.address) as relay:
        yield World(lab, relay)


def rotate(world: World) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """One rotation by the daemon; the calls to Okta's apps bucket, to Vault and to the target."""
    lab = world.lab
    bench = lab.connect("graf", settle="0s", success_window="0s", overlap="0s")
    lab.write()
    lab.adopt()
    text = lab.config.read_text()
    lab.config.write_text(text.replace(lab.vault.address, world.vault.url))
    lab.start()
    _quiet(world)
    okta_before, target_before, vault_before = len(lab.okta.calls), Counter(bench.target.calls), world.vault.requests[:]
    assert lab.api("POST", "/v1/connections/graf/rotate", {"reason": "counted"}).status_code == 202
    wait_for(lambda: lab.record("graf").get("record", {}).get("last"), "the rotation's end")
    _quiet(world)
    assert lab.record("graf")["record"]["last"]["outcome"] == "rotated"

    okta = Counter(
        f"{c.method} {c.path.partition(bench.app_id)[2]}"
        for c in lab.okta.calls[okta_before:]
        if c.path.startswith("/api/v1/apps/")
    )
    vault = Counter(
        f"{r.method} {r.path.partition('?')[0]}"
        for r in world.vault.requests[len(vault_before) :]
        if not any(part in r.path for part in DAILY_PATHS)
    )
    made = Counter(bench.target.calls) - target_before
    target: Counter[str] = Counter()
    for call, count in made.items():
        if call.agent.startswith("rotator"):
            target[f"{call.method} {call.path} {call.status}"] += count
    return okta, vault, target


def _quiet(world: World) -> None:
    """Wait until nothing but heartbeats has passed for two of them: nothing of the rotation is on its way."""

    def heartbeats() -> int:
        return sum("/instances/" in r.path and r.method == "POST" for r in world.vault.requests)

    def others() -> int:
        return sum(not any(part in r.path for part in DAILY_PATHS) for r in world.vault.requests)

    since, counted = heartbeats(), others()

    def quiet() -> bool:
        nonlocal since, counted
        if others() != counted:
            since, counted = heartbeats(), others()
        return heartbeats() >= since + 2

    wait_for(quiet, "nothing but heartbeats")


def told(name: str, calls: Counter[str], bar: int) -> str:
    lines = "".join(f"\n  {count} x {what}" for what, count in sorted(calls.items()))
    return f"{name}: {calls.total()} calls, at most {bar}{lines}"


@pytest.mark.parametrize(
    ("log_readable", "okta_bar"),
    [
        pytest.param(True, AT_MOST_OKTA_APPS, id="the System Log can be read"),
        pytest.param(False, AT_MOST_OKTA_APPS_WITHOUT_LOG, id="the System Log can't be read: Okta answers 403"),
    ],
)
def test_a_clean_rotation_makes_few_calls(world: World, *, log_readable: bool, okta_bar: int) -> None:
    if not log_readable:
        world.lab.okta.faults.add(FaultKind.DENIED, path="^/api/v1/logs$", times=1000)
    okta, vault, target = rotate(world)
    rows = [("Okta's apps bucket", okta, okta_bar), ("Vault", vault, AT_MOST_VAULT), ("target", target, AT_MOST_TARGET)]
    for row in rows:
        print(told(*row))
    assert all(calls for _, calls, _ in rows), "a counter that counts nothing proves nothing"
    over = [told(*row) for row in rows if row[1].total() > row[2]]
    assert not over, "\n".join(over)
