"""The monitoring in deploy/: rules, their tests, the dashboard and Prometheus's configuration fit what the program exports.

A name that the program does not export makes an alert that never fires and a panel that stays empty, in silence.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from rotator.core.model import DebtKind, KeyRef, Outcome, Record
from rotator.core.view import ConnectionView, State
from rotator.observe import names
from rotator.observe.metrics import Metrics
from rotator.ports import EventType, RotationEvent
from rotator.runtime.api import build_api
from rotator.runtime.api_guard import Tokens
from rotator.runtime.api_server import serve
from tests.observe.test_metrics import rotation
from tests.runtime.test_api import Service

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"

RULES = [r for g in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for r in g["rules"]]
ALERTS = sorted({rule["alert"] for rule in RULES})
DASHBOARD = json.loads((GRAFANA / "rotator.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="prometheus and promtool are not installed (Debian: prometheus)",
)


def plain(expression: str) -> str:
    """A dashboard's query as Prometheus takes it, its variables filled in."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$connection", ".*")


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rotator's series in an expression, with the labels each is selected by."""
    for name, braces in re.findall(r"\b(rotator_\w+)(?:{([^}]*)})?", expression):
        yield name, dict(re.findall(r'(\w+)\s*(?:=~?|!~|!=)\s*"([^"]*)"', braces))


METRIC_OF = {series: metric for metric in names.METRICS for series in metric.series}
KNOWN_VALUES = {
    "state": set(State),
    "outcome": {*Outcome, "done", "failed"},
    "result": set(names.RESULTS),
    "kind": set(DebtKind),
    "side": {"target", "idp"},
    "connection": {".*"},
}


@pytest.mark.parametrize(
    "expression",
    [
        *(pytest.param(rule["expr"], id=f"rule {rule['alert']}-{n}") for n, rule in enumerate(RULES)),
        *(pytest.param(plain(query), id=f"panel {title}-{n}") for n, (title, query) in enumerate(QUERIES)),
    ],
)
def test_queries_name_only_what_is_exported(expression: str) -> None:
    found = list(selectors(expression))
    assert found or 'up{job="rotator"}' in expression
    for name, labels in found:
        assert name in names.SERIES, f"{name} is not exported"
        for label, value in labels.items():
            assert label in METRIC_OF[name].labels, f"{name} has no label {label}"
            assert set(value.split("|")) <= KNOWN_VALUES[label], f"{label} is never {value}"
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")}
    exported = {label for name, _ in found for label in METRIC_OF[name].labels} | {"instance", "le"}
    assert grouped <= exported, f"grouped by what no series in it has: {grouped - exported}"


def test_every_metric_is_shown_on_the_dashboard() -> None:
    shown = {METRIC_OF[name].name for _, query in QUERIES for name, _ in selectors(query)}
    assert {metric.name for metric in names.METRICS} - shown == set()


# --- alerts ------------------------------------------------------------------------------------------------------------


def test_every_failure_that_the_program_knows_has_an_alert() -> None:
    assert set(ALERTS) >= {
        "RotatorDown",
        "RotatorRotationStuck",
        "RotatorRotationFailing",
        "RotatorOverdue",
        "RotatorWaitingForPerson",
        "RotatorKeySlackLow",
        "RotatorDebt",
        "RotatorBrakeEngaged",
        "RotatorVaultTokenExpiring",
        "RotatorConfigReloadFailed",
        "RotatorConnectionUnhealthy",
        "RotatorProofStale",
        "RotatorApiErrors",
    }


@pytest.mark.parametrize("rule", [pytest.param(rule, id=f"{rule['alert']}-{n}") for n, rule in enumerate(RULES)])
def test_every_alert_says_what_and_how_bad_and_links_to_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"README.md#runbook-{rule['alert'].lower()}"


def test_the_readme_s_runbook_has_every_section_that_an_alert_links_to() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    # How GitHub makes anchors: lower case, punctuation dropped, spaces to hyphens
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {f"runbook-{alert.lower()}" for alert in ALERTS} - anchors == set()


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_firing_and_not_firing(alert: str) -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    asked = [c for t in tests for c in t.get("promql_expr_test", ()) if f'alertname="{alert}"' in c["expr"]]
    fired = " ".join(sample["labels"] for check in asked for sample in check["exp_samples"])
    assert [check for check in asked if not check["exp_samples"]], "never seen not firing"
    assert fired, "never seen firing"
    assert ('seen_in="sums"' in fired) == any("seen_in" in r["labels"] for r in RULES if r["alert"] == alert)


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    promtool("check", "rules", PROMETHEUS / "rules.yml")
    promtool("test", "rules", PROMETHEUS / "rules_test.yml")


@needs_promtool
def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    text = (PROMETHEUS / "prometheus.yml").read_text()
    assert "/run/secrets/prometheus-token" in text
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/prometheus-token", str(token)))
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    promtool("check", "config", tmp_path / "prometheus.yml")


def test_the_rules_ask_for_the_job_that_the_configuration_scrapes() -> None:
    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert [job["job_name"] for job in scrape["scrape_configs"]] == ["rotator"]
    assert scrape["rule_files"] == ["rules.yml"]


def test_alertmanager_routes_to_receivers_that_exist_and_silences_alerts_that_do() -> None:
    config = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    assert config["route"]["receiver"] in {receiver["name"] for receiver in config["receivers"]}
    named = {
        word
        for rule in config["inhibit_rules"]
        for m in rule["source_matchers"]
        for word in re.findall(r"Rotator\w+", m)
    }
    assert named <= set(ALERTS)


# --- Grafana -----------------------------------------------------------------------------------------------------------


def test_the_dashboard_s_panels_are_distinct_and_do_not_overlap() -> None:
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies over {taken.get(cell)}"
            taken[cell] = panel["title"]


def test_the_dashboard_asks_the_data_source_that_the_user_chose() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "connection"}
    for panel in PANELS:
        for asker in (panel, *panel["targets"]):
            assert asker["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    unfilled = {v for _, query in QUERIES for v in re.findall(r"\$\w+", query)} - {"$__rate_interval", "$__range"}
    assert unfilled == {"$connection"}


def test_provisioning_names_the_folder_and_the_data_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/rotator.yaml").read_text())["providers"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")


# --- a real Prometheus that scrapes the real API ------------------------------------------------------------------------


@dataclass
class Live(Service):
    exposition: Metrics | None = None

    def metrics(self) -> bytes:
        assert self.exposition
        return self.exposition.render()


def eventful() -> Metrics:
    """Metrics of a program in which everything has happened once."""
    now = datetime.now(UTC)
    soon = now + timedelta(days=30)
    key = KeyRef("1a2b3c4d5e6f", minted_at=now, expires_at=soon)
    record = Record("graf-1", current=key, last_rotated_at=now, proved_target_at=now, proved_idp_at=now)
    views = (
        ConnectionView("graf-1", "graf", "acme", record, soon, None, 60.0, soon, 1, 3600.0),
        ConnectionView("graf-2", "graf", "acme", Record("graf-2", current=key, rotation=rotation()), soon, None, 60.0),
    )
    made = Metrics(snapshot=lambda: views, now=lambda: datetime.now(UTC), version="1.2.3")
    made.configured(targets=["graf"], idps=["acme"], operations={"vault": ["read"]})
    for type_ in (EventType.PHASE_DONE, EventType.PHASE_FAILED):
        made.on(RotationEvent(type_, now, "graf-1", target="graf", phase="push", seconds=1.0))
    made.call("vault", "read", "ok", 0.01)
    made.rate_limit("acme", "apps", 90)
    made.vault_token_expiry(soon)
    made.tick(now)
    return made


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus of its own with our rules that has scraped our API with a token."""
    folder = tmp_path_factory.mktemp("prometheus")
    tokens = folder / "tokens"
    tokens.write_text("read prometheus-0123456789\n")
    tokens.chmod(0o600)
    api = serve(
        build_api(Live(exposition=eventful()), Tokens(tokens), now=lambda: datetime.now(UTC), version="1"),
        "127.0.0.1",
        0,
    )
    (folder / "token").write_text("prometheus-0123456789")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    del config["alerting"]  # nobody listens here
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(folder / "token")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{api.port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(PROMETHEUS / "rules.yml", folder)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        with httpx.Client(trust_env=False, timeout=30) as client:
            address = wait_for(lambda: re.search(r"Listening on\" address=(\S+)", log.read_text()), process)
            client.base_url = httpx.URL(f"http://{address[1]}")
            # Two scrapes, so that rates have something to compare
            wait_for(lambda: answers(client, "count_over_time(up[1h]) > 2") and answers(client, "up == 1"), process)
            yield client
    finally:
        process.terminate()
        process.wait()
        api.stop()


def wait_for(look: Any, process: subprocess.Popen[bytes]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert process.poll() is None, "prometheus ended"
        assert time.monotonic() < deadline, "prometheus did not scrape within a minute"
        time.sleep(0.05)  # between two looks at the condition
    return found


def answers(client: httpx.Client, query: str) -> list[Any]:
    try:
        answer = client.get("/api/v1/query", params={"query": query}).json()
    except httpx.TransportError:
        return []  # not listening yet
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


@needs_promtool
def test_a_live_prometheus_holds_every_series_and_nothing_else(prometheus: httpx.Client) -> None:
    found = {result["metric"]["__name__"] for result in answers(prometheus, '{__name__=~"rotator_.+"}')}
    assert found == names.SERIES


@needs_promtool
@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_panel_has_something_to_show_on_a_live_prometheus(
    prometheus: httpx.Client, title: str, query: str
) -> None:
    text = plain(query)
    if "increase(" in text or "rate(" in text or " == 1" in text:
        text = re.sub(r" (> 0|== 1)$", "", text)  # what a quiet minute filters out
    assert answers(prometheus, text), title


@needs_promtool
def test_the_rules_load_and_nothing_of_a_healthy_program_fires(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert [
        rule["name"] for rule in rules if rule["state"] != "inactive" and rule["name"] != "RotatorKeySlackLow"
    ] == []
