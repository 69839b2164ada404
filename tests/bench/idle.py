"""What a running rotator costs while nothing is due: many connections, scraped as Prometheus scrapes.

Every connection has a key and a state record in Vault, as after its adoption, and a schedule that is years away. They
are spread over several identity providers and many targets. Only the process `rotator run` is measured, from /proc.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rotator.sandbox.lab import MOUNT, PREFIX, QUICK, Lab, end, wait_for
from rotator.sandbox.lab_process import launch, logged

WRITERS = 16
ORGS, CONNECTIONS_PER_TARGET = 4, 20
SCRAPE_EVERY = 15.0
READY_WITHIN = 600.0
MODEL = "model"  # the connection that is really adopted; the others' records are made from its own


@dataclass(frozen=True, slots=True)
class Idle:
    """Of the process alone; MB are 10^6 bytes."""

    rss_mb: float  # at the end
    peak_mb: float
    cpu_percent: float  # of one core, over the time that it was watched
    ready_seconds: float  # from its start to its "ready" line
    ready_cpu_seconds: float  # of which it computed
    scrape_ms: float  # mean
    scrapes: int


def measure(connections: int, seconds: float) -> Idle:
    """`seconds` of idleness of `connections` connections."""
    with Lab(tick="15s", lease="60s", call_deadline="30s") as lab:
        lab.connect(MODEL)
        lab.write()
        lab.adopt(MODEL)
        names = [f"idle-{number:05d}" for number in range(connections)]
        _fill(lab, names)
        config = _config(lab, names)
        log = lab.home / "idle.log"
        began = time.monotonic()
        process = launch(["run", "--config", str(config)], log, lab.home)
        try:
            wait_for(
                lambda: process.poll() is not None or logged(log, "ready"), "the rotator to be ready", READY_WITHIN
            )
            ready = time.monotonic() - began
            assert process.poll() is None, log.read_text()[-2000:]
            began_cpu, api = _cpu(process.pid), logged(log, "serving")[0]["url"]
            text, _ = _scrape(api, lab.operate_token)
            assert f'rotator_connections{{state="ok"}} {connections}.0' in text, "the connections were not loaded"
            return _watch(process.pid, lambda: _scrape(api, lab.operate_token)[1], seconds, (ready, began_cpu))
        finally:
            end(process)


def _watch(pid: int, scrape: Callable[[], float], seconds: float, ready: tuple[float, float]) -> Idle:
    """Scrape for so long. `ready`: wall and CPU seconds that the start took."""
    times, began, used = [], time.monotonic(), _cpu(pid)
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(SCRAPE_EVERY, left))  # this is the measurement: nothing is waited for
        times.append(scrape())
    percent = 100 * (_cpu(pid) - used) / (time.monotonic() - began)
    return Idle(
        rss_mb=round(_memory(pid, "VmRSS"), 1),
        peak_mb=round(_memory(pid, "VmHWM"), 1),
        cpu_percent=round(percent, 2),
        ready_seconds=round(ready[0], 1),
        ready_cpu_seconds=round(ready[1], 1),
        scrape_ms=round(1000 * sum(times) / len(times), 1),
        scrapes=len(times),
    )


def _scrape(api: str, token: str) -> tuple[str, float]:
    """The exposition, and the seconds that it took."""
    began = time.perf_counter()
    answer = httpx.get(f"{api}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
    answer.raise_for_status()
    return answer.text, time.perf_counter() - began


def _fill(lab: Lab, names: list[str]) -> None:
    """A key and a state record for each, by many threads."""
    key, state = lab.stored("keys", MODEL), lab.stored("state", MODEL)
    address, token = lab.vault.address, lab.vault.root_token

    def write(mine: list[str]) -> None:
        with httpx.Client(base_url=f"{address}/v1/{MOUNT}/data/{PREFIX}", trust_env=False, timeout=60) as vault:
            vault.headers["X-Vault-Token"] = token
            for name in mine:
                record: dict[str, Any] = copy.deepcopy(state)
                record["record"]["connection"] = name
                for entry in record["record"].get("ledger_pending", ()):
                    entry["connection"] = name
                for folder, data in (("keys", key), ("state", record)):
                    vault.post(f"/{folder}/{name}", json={"data": data}).raise_for_status()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, [names[start::WRITERS] for start in range(WRITERS)]))


def _config(lab: Lab, names: list[str]) -> Path:
    """The laboratory's file with these connections instead of the model's."""
    head = lab.write().read_text()
    before, _, rest = head.partition("[[connection]]")
    after = rest[rest.index("[api]") :]
    okta, target = _tables(before, "idp.okta"), _tables(before, f"target.{MODEL}")
    settings = "\n".join(f'{name} = "{value}"' for name, value in (QUICK | {"rotate_every": "3650d"}).items())
    parts = [before]
    parts += [okta.replace("[idp.okta]", f"[idp.okta-{number}]") for number in range(ORGS)]
    targets = range((len(names) - 1) // CONNECTIONS_PER_TARGET + 1)
    parts += [target.replace(f"[target.{MODEL}]", f"[target.t-{number}]") for number in targets]
    parts += ["[defaults]", settings]
    scim = lab.targets[MODEL].scim_url
    for number, name in enumerate(names):
        parts.append(
            f'[[connection]]\nname = "{name}"\nidp = "okta-{number % ORGS}"\napp = "zscalerbyz"\n'
            f'app_id = "0oa{number:017d}"\nbase_url = "{scim}"\ntarget = "t-{number // CONNECTIONS_PER_TARGET}"'
        )
    path = lab.home / "idle.toml"
    path.write_text("\n".join([*parts, after]))
    return path


def _tables(text: str, name: str) -> str:
    """One table of the TOML text, with its heading."""
    start = text.index(f"[{name}]")
    end_ = text.find("\n[", start + 1)
    return text[start : end_ if end_ >= 0 else len(text)]


def _cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int, field: str) -> float:
    """MB (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6
