"""One rotation by the engine against the same calls made bare.

The calls of a real rotation are recorded on the wire, and then made again with plain hvac and httpx: the same methods,
paths and bodies in the same order, one thread, kept-alive connections, with only what must be fresh filled in (keys,
ids, labels, versions). What is left between the two is what the rotator itself costs. Both wait for nothing: settle,
success window and overlap are zero. The heartbeat, signing in and the first connections come before the clock starts.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import hvac
import requests

from rotator import app as composition
from rotator import config
from rotator.app import App, Observers
from rotator.core.model import Outcome, Trigger
from rotator.core.reasons import Reason
from rotator.observe import logs
from rotator.observe.logs import LogObserver
from rotator.observe.metrics import Metrics
from rotator.runtime.clock import SystemClock
from rotator.sandbox.lab import MOUNT, PREFIX
from tests.bench.servers import BARE, PROGRAM, Servers, Side, Site, System
from tests.bench.wire import Request

WARM_UP = 1  # rounds that are not counted


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds, medians over the runs."""

    program: float
    bare: float
    ratio: float  # the median of each round's own ratio: a busy moment of the machine hits both sides of a round
    cpu: float  # of this process, in one rotation by the engine
    calls: int


def measure(servers: Servers, bare: Bare, *, runs: int, real: bool) -> Measured:
    """`runs` rounds of both, one after the other, each side first in every second round."""
    site = servers.site
    bare.connect(site.slow_vault if real else site.vault)
    program = Program(site.delayed if real else site.direct)
    servers.latency(real=False)
    for _ in range(WARM_UP):
        program.rotate()
        bare.rotate()
    servers.latency(real=real)
    rounds = []
    for number in range(runs):
        sides: list[Callable[[], tuple[float, float]]] = [program.rotate, bare.rotate]
        first, second = (0, 1) if number % 2 == 0 else (1, 0)
        times = {first: sides[first]()}
        times[second] = sides[second]()
        rounds.append((times[0], times[1]))
    servers.latency(real=False)
    program.close()
    return Measured(
        program=median(p[0] for p, _ in rounds),
        bare=median(b[0] for _, b in rounds),
        ratio=median(p[0] / b[0] for p, b in rounds),
        cpu=median(p[1] for p, _ in rounds),
        calls=len(bare.calls),
    )


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds and this process's CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


# --- with the rotator ---------------------------------------------------------------------------------------------------


class Program:
    """The rotator's own parts in this process, as the daemon has them, driven without its ticks."""

    def __init__(self, path: str) -> None:
        conf = config.load(Path(path), checks=(composition.check,))
        logs.configure(level="info", console=False, stream=Path("/dev/null").open("w"))  # noqa: SIM115  # kept open
        sys.excepthook = sys.__excepthook__  # the benchmark's own errors are for whoever runs it
        clock = SystemClock()
        metrics = Metrics(snapshot=tuple, now=clock.now, version="bench", per_connection_limit=0)
        metrics.configured(targets=conf.targets, idps=conf.idps)
        self.app: App = composition.build(
            conf, meter=metrics, observer=Observers(LogObserver(), metrics), clock=clock, command=True
        )
        self._connection = self.app.connection(PROGRAM)

    def close(self) -> None:
        """Say that this instance is gone, so that the next one may take its name."""
        self.app.membership.beat((), stopped=True)

    def rotate(self) -> tuple[float, float]:
        app = self.app
        # the first may find the heartbeat of an earlier run under its name, and then knows the version to write on
        assert any(app.membership.beat(()) for _ in range(3)), app.membership.problem
        loaded = app.state.load(PROGRAM)
        assert loaded is not None, "the connection was not adopted"
        record, version = loaded

        def work() -> None:
            app.engine.claim(
                self._connection, record, version=version, why=Reason.ASKED, trigger=Trigger.CLI, note="benchmark"
            )
            while (wait := app.engine.run(self._connection)) is not None:
                app.clock.wait((wait.until - app.clock.now()).total_seconds())

        seconds = timed(work)
        after = app.state.load(PROGRAM)
        assert after is not None
        last = after[0].last
        assert last is not None
        assert last.sequence == record.sequence + 1
        assert last.outcome is Outcome.ROTATED, f"the benchmark's rotation ended {last.outcome}: {last.detail}"
        return seconds


# --- bare ---------------------------------------------------------------------------------------------------------------


def record(servers: Servers) -> Bare:
    """The calls of one rotation, with names in «» where something must be fresh each time, ready to be made again."""
    site, program = servers.site, Program(servers.site.recorded)
    program.rotate()  # connections and sign-in
    old_key = servers.held_key()
    calls = servers.record(lambda: (program.rotate(), None)[1])
    new_key = servers.held_key()
    program.close()
    heartbeats = [r for system, r in calls if system == "vault" and "/instances/" in r.path]
    theirs = [r for system, r in calls if system == "target" and r.headers.get("user-agent", "").startswith("Okta")]
    kept = [(system, r) for system, r in calls if r not in [*heartbeats, *theirs]]
    first = next(i for i, (s, r) in enumerate(kept) if s == "vault" and r.method == "POST")  # the claim
    kept = kept[first:]
    while kept[-1][1].method == "GET":  # our own look at the end
        kept.pop()
    label = next(json.loads(r.body)["name"] for s, r in kept if s == "target" and r.method == "POST")
    known = {old_key: "«old_key»", new_key: "«new_key»", label: "«label»"}
    known |= {site.program.app_id: "«app»", PROGRAM: BARE, site.program.admin_token: "«admin»"}
    base = urlsplit(program.app.config.connections[PROGRAM].base_url)
    known |= {f"{base.scheme}://{base.netloc}": "«target»"}
    known |= {
        site.okta_token: "«okta»",
        f"/serviceaccounts/{site.program.service_account}/": "/serviceaccounts/«account»/",
    }
    return Bare(site, [(system, _template(r, known)) for system, r in kept])


def _template(r: Request, known: dict[str, str]) -> Request:
    def named(text: str) -> str:
        for value, name in known.items():
            text = text.replace(value, name)
        return text

    path = re.sub(r"since=[^&]*", "since=«since»", named(r.path))
    path = re.sub(r"after=[^&]*", "after=«after»", path)
    if r.method == "DELETE":
        path = path.rpartition("/")[0] + "/«old_id»"
    headers = {k: named(v) for k, v in r.headers.items() if k in {"authorization", "content-type", "accept"}}
    if headers.get("authorization", "").startswith("Bearer ") and "«" not in headers["authorization"]:
        headers["authorization"] = "Bearer «corrupt»"  # the negative control
    return Request(r.method, path, headers, named(r.body.decode()).encode())


@dataclass
class Bare:
    """The recorded calls by plain hvac and httpx, on a connection of their own with servers of its own."""

    site: Site
    calls: list[tuple[System, Request]]
    _fresh: dict[str, str] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        side: Side = self.site.bare
        self._okta = httpx.Client(base_url=self.site.okta, trust_env=False, timeout=30)
        self._target = httpx.Client(base_url=side.target, trust_env=False, timeout=30)
        self._numbers = count(1)
        self._fresh = {
            "app": side.app_id,
            "admin": side.admin_token,
            "okta": self.site.okta_token,
            "account": side.service_account,
            "target": side.target,
            "old_key": side.first_key,
            "old_id": side.first_id,
        }
        # as the laboratory left it: a key in use, and nothing else
        self._versions = {f"{PREFIX}/{folder}/{BARE}": n for folder, n in (("keys", 1), ("staged", 0), ("state", 0))}

    def connect(self, vault: str) -> None:
        """Sign in to Vault at this address."""
        session = requests.Session()
        session.trust_env = False
        self._hvac = hvac.Client(url=vault, session=session, namespace="")
        self._hvac.auth.approle.login(self.site.role_id, self.site.secret_id)

    def rotate(self) -> tuple[float, float]:
        fresh = self._fresh
        fresh["label"] = f"{BARE}-{next(self._numbers)}-{time.time_ns()}"
        since = datetime.now(UTC) - timedelta(seconds=5)
        fresh["since"] = quote(since.isoformat(timespec="milliseconds").replace("+00:00", "Z"), safe="")
        seconds = timed(self._all)
        fresh["old_key"], fresh["old_id"] = fresh.pop("new_key"), fresh.pop("new_id")
        return seconds

    def _all(self) -> None:
        for system, call in self.calls:
            if system == "vault":
                self._to_vault(call)
            else:
                self._by_http(system, call)

    def _by_http(self, system: System, call: Request) -> None:
        client = self._okta if system == "okta" else self._target
        headers = {name: self._filled(value) for name, value in call.headers.items()}
        body = self._filled(call.body.decode()).encode() or None
        answer = client.request(call.method, self._filled(call.path), headers=headers, content=body)
        refused = "«corrupt»" in call.headers.get("authorization", "") or answer.status_code == 401
        assert answer.is_success or refused, f"{call.method} {call.path}: {answer.status_code} {answer.text[:200]}"
        if "next" in answer.links:
            self._fresh["after"] = parse_qs(urlsplit(answer.links["next"]["url"]).query)["after"][0]
        if answer.content:
            parsed = answer.json()
            if system == "target" and call.method == "POST":
                self._fresh |= {"new_key": parsed["key"], "new_id": str(parsed["id"])}
                self._fresh["corrupt"] = parsed["key"][:-1] + ("a" if parsed["key"][-1] != "a" else "b")

    def _to_vault(self, call: Request) -> None:
        kv, url = self._hvac.secrets.kv.v2, urlsplit(self._filled(call.path))
        _, _, _, kind, *rest = url.path.split("/")  # "", "v1", mount, kind, path …
        path = "/".join(rest)
        body = json.loads(self._filled(call.body.decode()) or "{}")
        match call.method, kind:
            case "GET", "data":
                version = self._versions[path] if "version" in parse_qs(url.query) else None
                kv.read_secret_version(path, version=version, mount_point=MOUNT, raise_on_deleted_version=True)
            case "POST", "data":
                written = kv.create_or_update_secret(path, body["data"], cas=self._versions[path], mount_point=MOUNT)
                self._versions[path] = written["data"]["version"]
            case "GET", "metadata":
                with suppress(hvac.exceptions.InvalidPath):  # nothing was written there yet
                    kv.read_secret_metadata(path, mount_point=MOUNT)
            case "GET", "config":
                with suppress(hvac.exceptions.Forbidden):  # a right that the least policy leaves out
                    kv.read_configuration(mount_point=MOUNT)
            case "POST" | "PUT", "destroy":
                versions = [self._versions[path] - back for back in range(len(body["versions"]))]
                kv.destroy_secret_versions(path, versions, mount_point=MOUNT)
            case other:
                raise AssertionError(f"a recorded call to Vault that is not known here: {other}")

    def _filled(self, text: str) -> str:
        return re.sub(r"«(\w+)»", lambda match: self._fresh[match[1]], text)
