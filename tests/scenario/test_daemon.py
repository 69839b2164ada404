"""The daemon as people run it: a process with signals, files and an HTTP service. Asked are the servers and its log."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

import httpx
import pytest

from rotator.sandbox.lab import Lab, end, wait_for
from rotator.sandbox.lab_process import launch, logged
from tests.bench.wire import Relay

OVERLAP = "3h"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One daemon that all tests but the last few leave running; each has a connection of its own."""
    with Lab(tick="300ms", lease="4s", call_deadline="2s") as lab:
        lab.connect("plain", settle="0s")
        lab.connect("signalled", target="plain", settle="0s")
        lab.connect("overlapping", target="plain", settle="0s", overlap=OVERLAP, watch_every="1s")
        lab.extra = '[signals]\nusr1 = ["signalled"]'
        lab.write()
        lab.adopt()
        lab.start()
        yield lab


class Late(Relay):
    """A relay that comes up at a port that was known before."""

    def __init__(self, upstream: str, port: int) -> None:
        super().__init__(upstream)
        self._port = port

    def __enter__(self) -> Self:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._listener.listen(128)
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self


def rotation(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.record(name).get("record", {}).get("rotation") or {}
    return found


def ended(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = wait_for(
        lambda: not rotation(lab, name) and lab.record(name)["record"].get("last"), f"the rotation of {name} to end"
    )
    return found


def metric(lab: Lab, name: str) -> float:
    """A series without labels, as Prometheus would scrape it."""
    text = lab.api("GET", "/metrics").text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{name} is not exported"
    return float(found[1])


def health(lab: Lab, path: str) -> tuple[int, dict[str, Any]]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        answer = client.get(lab.api_url + path)  # without a token
    return answer.status_code, answer.json()


def names(lab: Lab) -> set[str]:
    return {c["name"] for c in lab.api("GET", "/v1/connections").json()["connections"]}


def test_nothing_rotates_because_the_process_started(lab: Lab) -> None:
    ticks = metric(lab, "rotator_last_tick_timestamp_seconds")
    wait_for(lambda: metric(lab, "rotator_last_tick_timestamp_seconds") > ticks, "another tick")

    assert {n: lab.record(n)["record"].get("sequence", 0) for n in lab.benches} == dict.fromkeys(lab.benches, 0)


def test_health_and_readiness_are_told_without_a_token(lab: Lab) -> None:
    assert health(lab, "/healthz") == (200, {"ok": True, "reasons": []})
    wait_for(lambda: health(lab, "/readyz") == (200, {"ok": True, "reasons": []}), "the daemon to be ready")


def test_a_request_over_http_gets_an_id_and_a_second_one_the_same(lab: Lab) -> None:
    first = lab.api("POST", "/v1/connections/overlapping/rotate", {"reason": "a test"})
    second = lab.api("POST", "/v1/connections/overlapping/rotate", {"reason": "a test"})

    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["rotation_id"] == second.json()["rotation_id"] == rotation(lab, "overlapping")["id"]
    assert rotation(lab, "overlapping")["note"] == "a test"
    wait_for(lambda: rotation(lab, "overlapping").get("phase") == "overlap", "its overlap")


def test_sigusr1_rotates_what_the_configuration_names(lab: Lab) -> None:
    lab.processes[-1].send_signal(signal.SIGUSR1)

    last = ended(lab, "signalled")
    assert (last["outcome"], last["trigger"]) == ("rotated", "signal")
    assert lab.record("plain")["record"].get("sequence", 0) == 0


def test_a_bad_reload_keeps_the_old_configuration_and_says_where_it_is_wrong(lab: Lab) -> None:
    good, before = lab.config.read_text(), names(lab)
    assert metric(lab, "rotator_config_reload_success") == 1
    lab.config.write_text(good.replace('app = "zscalerbyz"', 'app = "zscalerbyz"\nrotate_evry = "1d"', 1))

    lab.processes[-1].send_signal(signal.SIGHUP)
    wait_for(lambda: metric(lab, "rotator_config_reload_success") == 0, "the reload to be refused")

    (line,) = lab.told("reload_refused")
    assert re.match(rf"{re.escape(str(lab.config))}:\d+ .*rotate_evry", line["problem"]), line
    assert names(lab) == before
    lab.config.write_text(good)


def test_a_good_reload_brings_a_new_connection_and_leaves_an_open_rotation_its_own(lab: Lab) -> None:
    """`overlapping` is taken out of the file, and its target's and org's clients are made anew, in its overlap."""
    held = rotation(lab, "overlapping")
    lab.connect("newcomer", settle="0s")
    removed = lab.benches.pop("overlapping")
    lab.write()

    lab.processes[-1].send_signal(signal.SIGHUP)
    wait_for(lambda: "newcomer" in names(lab), "the new connection")

    assert metric(lab, "rotator_config_reload_success") == 1
    assert names(lab) == {"plain", "signalled", "overlapping", "newcomer"}
    kept = [line for line in lab.told("reload_refused") if line.get("connection") == "overlapping"]
    assert len(kept) == 1
    assert rotation(lab, "overlapping")["id"] == held["id"]
    lab.benches["overlapping"] = removed
    lab.write()
    lab.processes[-1].send_signal(signal.SIGHUP)
    wait_for(lambda: len(lab.told("reloaded")) == 2, "the old file again")


def test_sigterm_lays_a_rotation_down_and_the_next_process_goes_on_with_it_at_once(lab: Lab) -> None:
    bench = lab.benches["overlapping"]
    before = rotation(lab, "overlapping")

    assert end(lab.processes[-1], signal.SIGTERM) == 0

    laid = lab.record("overlapping")["record"]
    assert laid.get("holder") is None
    assert laid["rotation"]["id"] == before["id"]
    assert laid["rotation"]["phase"] == "overlap"
    assert bench.target.accepts(bench.first_key)
    assert lab.told("stopped")[-1]["exit_code"] == 0
    beats = [lab.stored("instances", n) for n in _instances(lab)]
    assert all(b["stopped"] for b in beats), "the next one need not wait for a lease"
    assert any("overlapping" in b["open"] for b in beats)

    lab.start()
    code = lab.api("POST", "/v1/connections/overlapping/rollback", {}).status_code
    assert code == 202
    last = ended(lab, "overlapping")
    assert (last["id"], last["outcome"], last["reason"]) == (before["id"], "rolled_back", "rollback_asked")
    assert lab.okta.held_key(bench.app_id) == bench.first_key
    assert lab.told("taken_over") == [], "it was laid down, not torn away"


def _instances(lab: Lab) -> list[str]:
    listed: list[str] = lab.kv().list_secrets("rotator/instances", mount_point="secret")["data"]["keys"]
    return listed


def test_vault_that_is_not_up_at_the_start_is_waited_for_and_named(lab: Lab) -> None:
    """Nobody listens at first; then something does that passes on to Vault."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = lab.home / "later.toml"
    text = lab.config.read_text().replace(lab.vault.address, f"http://127.0.0.1:{port}")
    config.write_text(text.replace("[rotator]", '[rotator]\ninstance = "later"', 1))
    log = lab.home / "later.log"
    process = launch(("run", "--config", str(config)), log, lab.home)
    lab.processes.append(process)
    wait_for(lambda: logged(log, "waiting_for_vault"), "it to say that Vault is not there")
    url = wait_for(lambda: logged(log, "serving"), "its HTTP service")[0]["url"]
    with httpx.Client(trust_env=False, timeout=10) as client:
        ready, alive = client.get(f"{url}/readyz"), client.get(f"{url}/healthz")

    assert process.poll() is None
    assert "vault" in logged(log, "waiting_for_vault")[0]["text"]
    assert (alive.status_code, ready.status_code) == (200, 503), "waiting is no reason to be killed"
    assert "heartbeat" in ready.json()["reasons"][0]

    with Late(lab.vault.address, port):
        wait_for(lambda: logged(log, "ready"), "it to go on")
        assert end(process, signal.SIGTERM) == 0


def test_sigterm_while_it_waits_for_vault_ends_it(lab: Lab) -> None:
    config = lab.home / "never.toml"
    config.write_text(lab.config.read_text().replace(lab.vault.address, "http://127.0.0.1:1"))
    log = lab.home / "never.log"
    process = launch(("run", "--config", str(config)), log, lab.home)
    lab.processes.append(process)
    wait_for(lambda: logged(log, "waiting_for_vault"), "it to say that Vault is not there")

    assert end(process, signal.SIGTERM) == 0
    assert "Traceback" not in log.read_text()
