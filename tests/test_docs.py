"""README, the example and the tree say what the program is: every table, command, key, code and link in them exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rotator import config
from rotator.app import check
from rotator.cli_session import Exit
from rotator.config_models import json_schema
from rotator.core import model, strategy
from rotator.core.machine import FEATURES, LAST_USED, LOG
from rotator.core.reasons import Reason
from rotator.core.view import State
from rotator.observe import names
from tests import docs

ROOT = Path(__file__).parent.parent
TEXT = docs.README.read_text()
# Without fenced blocks: what a reader takes for prose
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]


# --- pieces made from the program -------------------------------------------------------------------------------------


def test_the_pieces_of_the_readme_are_the_programs() -> None:
    assert docs.renewed(TEXT) == TEXT, "README.md is behind the program: python -m tests.docs --write"


def test_every_piece_stands_in_the_readme_once() -> None:
    assert sorted(docs.pieces(TEXT)) == sorted(docs.PIECES)


@pytest.mark.parametrize("command", docs.COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"Usage: rotator {command} " in TEXT
    assert re.search(rf"`(\$ )?rotator {command}\b|^rotator {command}\b|/rotator {command}\b", TEXT, re.MULTILINE)


def test_commands_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`rotator ([a-z-]+)", TEXT)) | set(re.findall(r"^rotator ([a-z-]+)", TEXT, re.MULTILINE))
    assert named >= {"adopt", "status"}
    assert named - set(docs.COMMANDS) == set()


def test_exit_codes_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (\d) \| ([a-z ]+) \| .+ \|$", TEXT, re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [
        (code.value, code.name.lower().replace("_", " ")) for code in Exit
    ]


def test_phases_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (`[a-z_]+`(?: or `[a-z_]+`)?) \| .+ \| .+ \|$", TEXT, re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"`([a-z_]+)`", row)} >= {phase.value for phase in model.Phase}


def test_a_word_with_an_underscore_is_one_of_the_programs() -> None:
    """Keys, reasons, phases, states … that the prose names, so that a renamed one is found."""
    named = {
        word for span in re.findall(r"`([^`\n]+)`", PROSE) for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", span)
    }
    assert len(named) > 40
    assert named - _vocabulary() == set()


def _vocabulary() -> set[str]:
    enums = (Reason, State, model.Phase, model.Outcome, model.DebtKind, model.StrategyName, strategy.LiveKeys)
    words = {member.value for enum in enums for member in enum} | set(names.RESULTS) | {LOG, FEATURES, LAST_USED}
    words |= set(names.SERIES) | {
        name for metric in names.METRICS for name in (metric.name, metric.full_name, *metric.labels)
    }
    words |= {key for node in _objects(json_schema()) for key in node.get("properties", {})}
    # What the log calls them: searched for in the source, so that these exist too
    source = "".join(path.read_text() for path in (ROOT / "rotator").rglob("*.py"))
    logged = {"thread_died", "job_failed", "waiting_for_vault", "reload_refused"}
    assert all(f'"{word}"' in source for word in logged)
    theirs = {"okta_org2org", "token_max_ttl", "max_versions"}  # words of Okta and Vault
    return words | logged | theirs


def _objects(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
        for below in node.values():
            yield from _objects(below)
    elif isinstance(node, list):
        for below in node:
            yield from _objects(below)


# --- links and anchors ------------------------------------------------------------------------------------------------


def _anchors() -> set[str]:
    """The anchors of the README's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("url", sorted({rule["annotations"]["runbook_url"] for rule in RULES}))
def test_every_alert_has_its_section_in_the_runbook(url: str) -> None:
    page, _, anchor = url.partition("#")
    assert page == "README.md"
    assert anchor in _anchors()


def test_every_section_of_the_runbook_has_its_alert() -> None:
    wanted = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in RULES}
    assert {anchor for anchor in _anchors() if anchor.startswith("runbook-")} == wanted


def test_files_that_the_readme_names_exist() -> None:
    named = set(
        re.findall(r"`((?:deploy|rotator|tests)/[\w./-]+|config\.example\.toml|Dockerfile|LICENSE|\.ci/run)`", TEXT)
    )
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


# --- configuration ----------------------------------------------------------------------------------------------------


def test_the_example_is_taken_by_the_program() -> None:
    assert config.load(ROOT / "config.example.toml", checks=(check,)).connections


def test_the_quick_starts_configuration_is_taken_by_the_program(tmp_path: Path) -> None:
    found = re.search(r"<!-- config: quick start -->\n```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert found
    (tmp_path / "config.toml").write_text(found[1])
    assert list(config.load(tmp_path / "config.toml", checks=(check,)).connections) == ["grafana-prod"]


@pytest.mark.parametrize(("table", "key"), sorted(set(re.findall(r"`\[(\w+)\] (\w+)`", PROSE))), ids=str)
def test_a_key_stands_in_the_table_that_the_readme_says(table: str, key: str) -> None:
    schema = json_schema()
    below = schema["properties"][table]
    below = schema["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else below
    assert key in below["properties"]


# --- the tree ---------------------------------------------------------------------------------------------------------

TOP = {
    "pyproject.toml",
    "README.md",
    "rotator",
    "deploy",
    "tests",
    "Dockerfile",
    "config.example.toml",
    "LICENSE",
}
# Split, so that this file passes its own test. A registry is the installer's configuration, never the project's.
HOSTS = (
    "py" + "pi.org",
    "python" + "hosted.org",
    "registry." + "npmjs",
    "docker" + ".io",
    "gh" + "cr.io",
    "qu" + "ay.io",
)
MACHINE = re.compile(r"(?<![\w.<>:$}/-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "fa" + "rm")) + r")/")
LOCKS = re.compile(r"(^|/)(uv|poetry|pdm|Pipfile|package-lock|yarn|conda-lock|pylock[^/]*)\.(lock|json|toml|ya?ml)$")


def _tracked() -> list[str]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed, or this is no checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_top_level_holds_only_what_belongs_there() -> None:
    top = {name.partition("/")[0] for name in _tracked()}
    assert {name for name in top if not name.startswith(".")} == TOP


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    tracked = _tracked()
    found = []
    for name in tracked:
        text = (ROOT / name).read_bytes().decode(errors="replace")
        found += [f"{name}: {host}" for host in HOSTS if host in text]
        found += [f"{name}: {match[0]}" for match in MACHINE.finditer(text)]
    assert len(tracked) > 100
    assert found == []


def test_nothing_is_locked_to_addresses() -> None:
    tracked = _tracked()
    assert [name for name in tracked if LOCKS.search(name)] == []
    pinned = [name for name in tracked if re.search(r"requirements[^/]*\.txt$", name)]
    assert pinned
    assert [
        name for name in pinned if "://" in (ROOT / name).read_text() or "--index" in (ROOT / name).read_text()
    ] == []


def test_what_the_wheel_must_carry_is_where_the_build_looks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["license-files"] == ["LICENSE"]
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["rotator"]
    assert {"LICENSE", "README.md", "rotator/config.schema.json"} <= set(_tracked())
