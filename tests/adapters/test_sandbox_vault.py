"""The sandbox's OpenBao: a real server that answers, keeps its token to itself and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hvac
import pytest

from rotator.sandbox.vault import VaultSandbox

POLICY = """
path "rotator/data/prod/*" { capabilities = ["create", "read", "update"] }
path "rotator/metadata/prod/*" { capabilities = ["read", "list", "update"] }
"""


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultSandbox]:
    with VaultSandbox() as running:
        yield running


def wait_for(condition: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError(f"never came true: {what}")


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and is not yet collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def sign_in(vault: VaultSandbox, role_id: str, secret_id: str) -> hvac.Client:
    client = hvac.Client(url=vault.address)
    client.auth.approle.login(role_id=role_id, secret_id=secret_id)
    return client


def test_it_is_a_real_server_that_is_up_and_unsealed(vault: VaultSandbox) -> None:
    health = vault.client().sys.read_health_status(method="GET")
    assert (health["initialized"], health["sealed"], health["standby"]) == (True, False, False)
    assert is_alive(vault.pid)
    assert vault.address.startswith("http://127.0.0.1:")


def test_the_role_that_setup_makes_can_do_what_its_policy_says_and_no_more(vault: VaultSandbox) -> None:
    client = sign_in(vault, *vault.setup("rotator", "prod", POLICY))
    kv = client.secrets.kv.v2
    kv.create_or_update_secret("prod/state/a", secret={"n": "1"}, cas=0, mount_point="rotator")
    read = kv.read_secret_version("prod/state/a", mount_point="rotator", raise_on_deleted_version=True)
    assert read["data"]["data"] == {"n": "1"}
    with pytest.raises(hvac.exceptions.InvalidRequest):  # a lost check-and-set
        kv.create_or_update_secret("prod/state/a", secret={"n": "2"}, cas=0, mount_point="rotator")
    with pytest.raises(hvac.exceptions.Forbidden):
        kv.create_or_update_secret("other/state/a", secret={"n": "2"}, cas=0, mount_point="rotator")


def test_setup_can_be_called_again_and_keeps_what_is_stored(vault: VaultSandbox) -> None:
    first = sign_in(vault, *vault.setup("again", "prod", POLICY.replace("rotator/", "again/")))
    first.secrets.kv.v2.create_or_update_secret("prod/x", secret={"n": "1"}, mount_point="again")
    second = sign_in(vault, *vault.setup("again", "prod", POLICY.replace("rotator/", "again/")))
    read = second.secrets.kv.v2.read_secret_version("prod/x", mount_point="again", raise_on_deleted_version=True)
    assert read["data"]["data"] == {"n": "1"}


def test_the_root_token_is_not_seen_from_outside(vault: VaultSandbox, capfd: pytest.CaptureFixture[str]) -> None:
    with VaultSandbox() as other:
        assert other.root_token != vault.root_token
        assert other.root_token not in Path(f"/proc/{other.pid}/cmdline").read_text()
        with pytest.raises(hvac.exceptions.Forbidden):
            hvac.Client(url=vault.address, token=other.root_token).auth.token.lookup_self()
    assert capfd.readouterr() == ("", "")


def test_stop_ends_its_own_process_and_only_that(vault: VaultSandbox) -> None:
    other = VaultSandbox().start()
    pid = other.pid
    other.stop()
    assert not is_alive(pid)
    assert is_alive(vault.pid)
    other.stop()  # harmless
    with pytest.raises(RuntimeError, match="not running"):
        _ = other.pid


def test_ctrl_c_is_for_the_program_that_started_it(vault: VaultSandbox) -> None:
    assert os.getpgid(vault.pid) != os.getpgid(0)


def test_a_persistent_one_comes_back_after_a_crash_with_what_it_had_stored() -> None:
    with VaultSandbox(persistent=True) as vault:
        role = vault.setup("rotator", "prod", POLICY)
        kv = sign_in(vault, *role).secrets.kv.v2
        kv.create_or_update_secret("prod/state/a", secret={"n": "1"}, mount_point="rotator")
        address, crashed = vault.address, vault.pid
        vault.kill()
        assert not is_alive(crashed)
        vault.start()
        assert vault.address == address
        read = sign_in(vault, *role).secrets.kv.v2.read_secret_version(
            "prod/state/a", mount_point="rotator", raise_on_deleted_version=True
        )
        assert read["data"]["data"] == {"n": "1"}
        again, home = vault.pid, vault._home
    assert not is_alive(again)
    assert home is not None
    assert not Path(home.name).exists()


def test_it_cannot_be_started_twice(vault: VaultSandbox) -> None:
    pid = vault.pid
    with pytest.raises(RuntimeError, match="running already"):
        vault.start()
    assert vault.pid == pid


def test_it_outlives_the_thread_that_started_it() -> None:
    vault = VaultSandbox()
    starter = threading.Thread(target=vault.start)
    starter.start()
    starter.join()
    try:
        assert vault.client().sys.is_initialized()
        assert is_alive(vault.pid)
    finally:
        vault.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGTERM, id="terminated"),
        pytest.param(signal.SIGINT, id="interrupted"),
    ],
)
def test_it_ends_with_the_program_that_started_it(how: signal.Signals) -> None:
    program = textwrap.dedent("""
        import threading
        from rotator.sandbox.vault import VaultSandbox
        vault = VaultSandbox().start()
        print(vault.pid, flush=True)
        threading.Event().wait()
    """)
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    try:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(how)
        parent.wait(30)
        wait_for(lambda: not is_alive(pid), "OpenBao ended")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
