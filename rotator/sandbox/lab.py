"""A whole laboratory on loopback: OpenBao, an Okta, targets, and the rotator's own program as a process beside them.

The demo, the benchmark and the scenario tests share it. It writes a configuration as a person would, starts
`rotator run` from it and asks the servers, never the program, what is true. It imports nothing of the rotator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import hvac
import hvac.exceptions

from rotator.sandbox.lab_config import QUICK as QUICK
from rotator.sandbox.lab_config import Bench, connection_toml, settings, target_toml
from rotator.sandbox.lab_process import LabError as LabError
from rotator.sandbox.lab_process import end as end
from rotator.sandbox.lab_process import environment, launch, logged
from rotator.sandbox.lab_process import wait_for as wait_for
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
API_COVERED = {"zscalerbyz", "okta_org2org"}  # apps whose connection Okta's API sets


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
        self.secrets: dict[str, str] = {}  # every credential that lies in a file, by the file's name
        self.answers: list[str] = []  # what commands printed and the HTTP service answered
        self._logs: list[Path] = []

    # --- servers ---

    def __enter__(self) -> Self:
        self.okta.start()
        self.vault.start()
        self._role_id, secret_id = self.vault.setup(MOUNT, PREFIX, self.policy)
        self._secret("vault-secret-id", secret_id)
        self._secret("okta-token", self.okta.api_token)
        self._secret("api-tokens", f"operate {self.operate_token}")
        root = self.vault.client()
        root.sys.create_or_update_policy("person", PERSON_POLICY)
        token = root.auth.token.create(policies=["person"])["auth"]["client_token"]
        self.person_token_file = self._secret("person-token", token)
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
        url = server.scim_url
        app_id = self.okta.add_app(app, label=name, base_url=url, verify_url=url, key=key, enabled=True)
        if app not in API_COVERED:
            self.okta.person_types_key(app_id, key)
        bench = Bench(name, server, app_id, app, key, key_id, QUICK | settings | {"target": target or name})
        self.benches[name] = bench
        if not settings.get("bootstrap"):
            data = {"key": key, "key_id": key_id}
            self.kv().create_or_update_secret(f"{PREFIX}/keys/{name}", data, cas=0, mount_point=MOUNT)
        return bench

    # --- what is true ---

    def kv(self, token: str | None = None) -> Any:
        """Vault's KV v2 as root (what really lies there), or with a token of one's own."""
        client = self.vault.client()
        client.token = token or self.vault.root_token
        return client.secrets.kv.v2

    def stored(self, slot: str, name: str, token: str | None = None) -> dict[str, Any]:
        """The newest version's data; empty when there is none."""
        try:
            read = self.kv(token).read_secret_version(
                f"{PREFIX}/{slot}/{name}", mount_point=MOUNT, raise_on_deleted_version=True
            )
        except hvac.exceptions.InvalidPath:
            return {}
        data: dict[str, Any] = read["data"]["data"]
        return data

    def record(self, name: str) -> dict[str, Any]:
        """The state record as it lies in Vault: {"record": …}, or empty."""
        return self.stored("state", name)

    def held(self, name: str) -> Held | None:
        """The key that Okta provisions with now and where it uses it, for traffic; None while it provisions nothing."""
        bench = self.benches[name]
        key = self.okta.provisions_with(bench.app_id)
        return None if key is None else Held(bench.target.scim_url, key)

    # --- the program ---

    @property
    def config(self) -> Path:
        return self.home / "config.toml"

    @property
    def ledger(self) -> Path:
        return self.home / "ledger.jsonl"

    def write(self) -> Path:
        """The configuration of everything added so far."""
        auth = f'method = "approle", role_id = "{self._role_id}", secret_id = "file:{self.home}/vault-secret-id"'
        parts = [
            "[rotator]",
            *settings(self._program),
            f'ledger = {{ path = "{self.ledger}" }}',
            'log_format = "json"',
            "[vault]",
            f'address = "{self.vault.address}"',
            *settings({"mount": MOUNT, "prefix": PREFIX}),
            f"auth = {{ {auth} }}",
            "[idp.okta]",
            'kind = "okta"',
            f'url = "{self.okta.url}"',
            f'auth = {{ method = "ssws", token = "file:{self.home}/okta-token" }}',
            *settings(self.idp_settings),
            *(line for name, t in self.targets.items() for line in target_toml(name, t, self.home / f"{name}-admin")),
            *(line for bench in self.benches.values() for line in connection_toml(bench)),
            "[api]",
            'listen = "127.0.0.1:0"',
            f'tokens = "{self.home}/api-tokens"',
            self.extra,
        ]
        self.config.write_text("\n".join(parts) + "\n")
        return self.config

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`rotator run` as a process; returns once it serves. It ends with this process, however that ends."""
        log = self.home / f"rotator-{len(self._logs)}.log"
        self._logs.append(log)
        process = launch(("run", "--config", str(self.config), *arguments), log, self.home)
        self.processes.append(process)
        wait_for(lambda: process.poll() is not None or logged(log, "ready"), "the rotator to be ready")
        if process.poll() is not None:
            raise LabError(f"the rotator ended with {process.returncode}: {log.read_text()[-2000:]}")
        self.api_url = next((line["url"] for line in logged(log, "serving")), "")
        return process

    def cli(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> tuple[int, Any, str]:
        """A command of the program: exit code, its JSON, its stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "rotator.cli", *arguments, "--config", str(self.config), "--json"],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment(self.home),
        )
        self.answers += [done.stdout, done.stderr]
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr

    def adopt(self, *names: str) -> None:
        """Take over the keys in use, as a person does on the first day."""
        first, *others = names or tuple(self.benches)
        self._adopt(first)  # alone: it leaves the bytecode for all that come after
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._adopt, others))

    def _adopt(self, name: str) -> None:
        bench = self.benches[name]
        listed = bench.target.shape in {"grafana", "capped"}
        code, _, error = self.cli("adopt", name, *(("--key-id", bench.first_id) if listed else ()))
        if code != 0:
            raise LabError(f"adopt {name}: exit {code}: {error}")

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.operate_token}"}
        with httpx.Client(trust_env=False, timeout=30) as client:
            answer = client.request(method, self.api_url + path, headers=headers, json=body)
        self.answers.append(answer.text)
        return answer

    def logs(self) -> str:
        """Everything that all started daemons wrote."""
        return "".join(path.read_text() for path in self._logs)

    def told(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event, of all started daemons."""
        return [line for path in self._logs for line in logged(path, event)]

    def _secret(self, name: str, value: str) -> Path:
        path = self.home / name
        path.touch(mode=0o600)
        path.write_text(value + "\n")
        self.secrets[name] = value
        return path
