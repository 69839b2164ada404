"""A whole laboratory on loopback: OpenBao, an Okta, targets, and the rotator's own program as a process beside them.

The demo, the benchmark and the scenario tests share it. It writes a configuration as a person would, starts
`rotator run` from it and asks the servers, never the program, what is true. It imports nothing of the rotator.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from rotator.sandbox.okta import OktaSandbox
from rotator.sandbox.target import TargetSandbox
from rotator.sandbox.traffic import Held
from rotator.sandbox.vault import VaultSandbox

MOUNT, PREFIX = "secret", "rotator"
POLICY = f"""
path "{MOUNT}/data/{PREFIX}/*" {{ capabilities = ["create", "update", "read"] }}
path "{MOUNT}/metadata/{PREFIX}/*" {{ capabilities = ["create", "update", "read", "list"] }}
path "{MOUNT}/destroy/{PREFIX}/*" {{ capabilities = ["update"] }}
path "sys/capabilities-self" {{ capabilities = ["update"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
path "auth/token/renew-self" {{ capabilities = ["update"] }}
"""
PERSON_POLICY = f"""
path "{MOUNT}/data/{PREFIX}/handoff/*" {{ capabilities = ["create", "update"] }}
path "{MOUNT}/metadata/{PREFIX}/handoff/*" {{ capabilities = ["read"] }}
path "{MOUNT}/data/{PREFIX}/staged/*" {{ capabilities = ["read"] }}
path "{MOUNT}/data/{PREFIX}/keys/*" {{ capabilities = ["read"] }}
"""
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


class LabError(Exception):
    """A process of the laboratory did not do what was waited for."""


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


class Lab:
    """`with Lab() as lab:` starts Okta and OpenBao; connections are added, then `write` and `start`."""

    def __init__(self, *, tick: str = "300ms", lease: str = "3s", call_deadline: str = "1s") -> None:
        self.vault = VaultSandbox()
        self.okta = OktaSandbox()
        self.targets: dict[str, TargetSandbox] = {}
        self.benches: dict[str, Bench] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._program = {"tick": tick, "lease": lease, "call_deadline": call_deadline}
        self._home = tempfile.TemporaryDirectory(prefix="rotator-lab-")
        self.home = Path(self._home.name)
        self.extra = ""  # appended to the configuration
        self.policy = POLICY
        self.idp_settings: dict[str, Any] = {"max_parallel": 8, "brake_after": 100}
        self.api_url = ""
        self.operate_token = "operate-" + os.urandom(12).hex()
        self._stderr: list[Path] = []

    # --- servers ---

    def __enter__(self) -> Self:
        self.okta.start()
        self.vault.start()
        self._role_id, secret_id = self.vault.setup(MOUNT, PREFIX, self.policy)
        self._secret("vault-secret-id", secret_id)
        self._secret("okta-token", self.okta.api_token)
        self._secret("api-tokens", f"operate {self.operate_token}")
        person = self.vault.client()
        person.sys.create_or_update_policy("person", PERSON_POLICY)
        self.person_token_file = self._secret(
            "person-token", person.auth.token.create(policies=["person"])["auth"]["client_token"]
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            end(process)
        for target in self.targets.values():
            target.stop()
        self.okta.stop()
        self.vault.stop()
        self._home.cleanup()

    def target(self, name: str, shape: Any = "grafana") -> TargetSandbox:
        """A running target of this shape, named in the configuration."""
        if name not in self.targets:
            self.targets[name] = TargetSandbox(shape).start()
            self._secret(f"{name}-admin", self.targets[name].admin_token)
        return self.targets[name]

    def connect(
        self, name: str, *, shape: Any = "grafana", app: str = "zscalerbyz", target: str = "", **settings: Any
    ) -> Bench:
        """A connection whose key is in use already: at the target, in Okta, and (unless `bootstrap`) in Vault."""
        server = self.target(target or name, shape)
        key, key_id = server.seed_key()
        app_id = self.okta.add_app(
            app, label=name, base_url=server.scim_url, verify_url=server.scim_url, key=key, enabled=True
        )
        if app not in {"zscalerbyz", "okta_org2org"}:
            self.okta.person_types_key(app_id, key)
        bench = Bench(name, server, app_id, app, key, key_id, QUICK | settings | {"target": target or name})
        self.benches[name] = bench
        if not settings.get("bootstrap"):
            self.kv().create_or_update_secret(
                f"{PREFIX}/keys/{name}", {"key": key, "key_id": key_id}, cas=0, mount_point=MOUNT
            )
        return bench

    def kv(self) -> Any:
        """Vault's KV v2 as root: what really lies there."""
        return self.vault.client().secrets.kv.v2

    def stored(self, slot: str, name: str) -> dict[str, Any]:
        """The newest version's data; empty when there is none."""
        import hvac.exceptions

        try:
            read = self.kv().read_secret_version(
                f"{PREFIX}/{slot}/{name}", mount_point=MOUNT, raise_on_deleted_version=True
            )
        except hvac.exceptions.InvalidPath:
            return {}
        data: dict[str, Any] = read["data"]["data"]
        return data

    def record(self, name: str) -> dict[str, Any]:
        """The state record as it lies in Vault."""
        return self.stored("state", name)

    def held(self, name: str) -> Held:
        """The key that Okta holds now and where it uses it; for traffic."""
        bench = self.benches[name]
        return Held(bench.target.scim_url, self.okta.held_key(bench.app_id) or "")

    # --- the program ---

    @property
    def config(self) -> Path:
        return self.home / "config.toml"

    def write(self) -> Path:
        """The configuration of everything added so far."""
        parts = [
            "[rotator]",
            *(f'{k} = "{v}"' for k, v in self._program.items()),
            f'ledger = {{ path = "{self.home}/ledger.jsonl" }}',
            'log_format = "json"',
            "[vault]",
            f'address = "{self.vault.address}"',
            f'mount = "{MOUNT}"',
            f'prefix = "{PREFIX}"',
            f'auth = {{ method = "approle", role_id = "{self._role_id}", secret_id = "file:{self.home}/vault-secret-id" }}',
            "[idp.okta]",
            'kind = "okta"',
            f'url = "{self.okta.url}"',
            f'auth = {{ method = "ssws", token = "file:{self.home}/okta-token" }}',
            *(f"{k} = {_toml(v)}" for k, v in self.idp_settings.items()),
            *(part for name, server in self.targets.items() for part in self._target_toml(name, server)),
            *(part for bench in self.benches.values() for part in self._connection_toml(bench)),
            "[api]",
            'listen = "127.0.0.1:0"',
            f'tokens = "{self.home}/api-tokens"',
            self.extra,
        ]
        self.config.write_text("\n".join(parts) + "\n")
        return self.config

    def _connection_toml(self, bench: Bench) -> list[str]:
        return [
            "[[connection]]",
            f'name = "{bench.name}"',
            'idp = "okta"',
            f'app_id = "{bench.app_id}"',
            f'app = "{bench.app}"',
            f'base_url = "{bench.target.scim_url}"',
            *(f"{k} = {_toml(v)}" for k, v in bench.settings.items()),
        ]

    def _target_toml(self, name: str, server: TargetSandbox) -> list[str]:
        head = [f"[target.{name}]"]
        tail = ["brake_after = 100"]
        admin = f"file:{self.home}/{name}-admin"
        auth = f'auth = [{{ value = "{admin}" }}]'
        match server.shape:
            case "grafana":
                return [
                    *head,
                    'kind = "grafana"',
                    f'url = "{server.url}"',
                    f"service_account_id = {server.service_account_id}",
                    f'token = "{admin}"',
                    *tail,
                ]
            case "capped":
                path = server.path("mint")
                return [
                    *head,
                    'kind = "http"',
                    f'url = "{server.url}"',
                    auth,
                    'live_keys = "two"',
                    *tail,
                    f'mint = {{ path = "{path}", body = {{ name = "{{label}}" }}, key = "/key", key_id = "/id" }}',
                    f'list = {{ path = "{path}", key_id = "/id", label = "/name" }}',
                    f'revoke = {{ path = "{path}/{{key_id}}" }}',
                ]
            case "roll":
                return [
                    *head,
                    'kind = "http"',
                    f'url = "{server.url}"',
                    auth,
                    'live_keys = "one"',
                    *tail,
                    f'mint = {{ method = "PUT", path = "{server.path("mint")}", body = {{}}, key = "/result" }}',
                ]
            case "set_key":
                return [
                    *head,
                    'kind = "http"',
                    f'url = "{server.url}"',
                    auth,
                    'live_keys = "one"',
                    *tail,
                    'meanings = { 403 = "refused" }',
                    f'mint = {{ path = "{server.path("mint")}", body = {{ key = "{{value}}" }} }}',
                ]
            case _:
                return [*head, 'kind = "manual"', *tail]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`rotator run` as a process; returns once it serves."""
        err = self.home / f"rotator-{len(self._stderr)}.log"
        self._stderr.append(err)
        with err.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "rotator.cli", "run", "--config", str(self.config), *arguments],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env=self.environment(),
            )
        self.processes.append(process)
        wait_for(
            lambda: process.poll() is not None or self._line(err, "ready") is not None, "the rotator to be ready", 60
        )
        if process.poll() is not None:
            raise LabError(f"the rotator ended with {process.returncode}: {err.read_text()[-2000:]}")
        serving = self._line(err, "serving")
        self.api_url = serving["url"] if serving else ""
        return process

    @staticmethod
    def _line(err: Path, event: str) -> dict[str, Any] | None:
        for line in err.read_text().splitlines():
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                if found.get("event") == event:
                    return found
        return None

    def environment(self) -> dict[str, str]:
        """The children's: no proxy, no Vault variables of the person who runs us."""
        keep = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith("VAULT_")}
        root = str(Path(__file__).resolve().parents[2])
        return keep | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}

    def cli(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> tuple[int, Any, str]:
        """A command of the program: exit code, its JSON, its stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "rotator.cli", *arguments, "--config", str(self.config), "--json"],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment(),
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr

    def adopt(self, *names: str) -> None:
        """Take over the keys in use, as a person does on the first day."""
        for name in names or tuple(self.benches):
            bench = self.benches[name]
            listed = bench.target.shape in {"grafana", "capped"}
            code, _, error = self.cli("adopt", name, *(("--key-id", bench.first_id) if listed else ()))
            if code != 0:
                raise LabError(f"adopt {name}: exit {code}: {error}")

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.operate_token}"}
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.request(method, self.api_url + path, headers=headers, json=body)

    def logs(self) -> str:
        """Everything that all started programs wrote."""
        return "".join(path.read_text() for path in self._stderr)

    def _secret(self, name: str, value: str) -> Path:
        path = self.home / name
        path.touch(mode=0o600)
        path.write_text(value + "\n")
        return path


def _toml(value: Any) -> str:
    return json.dumps(value)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """End a process that we started, by its own id; its exit code."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """What `condition` gives once it is true; LabError after so many seconds."""
    pause, until = 0.02, time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise LabError(f"waited {seconds:g} s for {what}")
        time.sleep(pause)
