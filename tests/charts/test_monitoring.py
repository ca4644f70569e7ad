"""Alerts and dashboard: off by default, and every metric in them is one that the operator has."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHART, TOP, of_kind, render, template

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())


def documented() -> set[str]:
    """Names of series in docs/metrics.md; a histogram has three."""
    names: set[str] = set()
    for line in (TOP / "docs" / "metrics.md").read_text().splitlines():
        found = re.match(r"\| `(trenchcoat_\w+)` \| (\w+) \|", line)
        if found:
            endings = ("_bucket", "_sum", "_count") if found[2] == "histogram" else ("",)
            names |= {found[1] + ending for ending in endings}
    return names


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [
        item["query"]["query"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query"
    ]
    return [alert["expr"] for alert in ALERTS] + panels + variables


def test_the_document_is_read() -> None:
    assert {"trenchcoat_queue_depth", "trenchcoat_reconcile_duration_seconds_bucket"} <= documented()


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_is_documented(expression: str) -> None:
    used = set(re.findall(r"\btrenchcoat_\w+", expression))
    assert used, expression
    assert used <= documented()


def test_every_label_is_documented() -> None:
    text = (TOP / "docs" / "metrics.md").read_text()
    for expression in expressions():
        for selector in re.findall(r"\{([^}]*)\}", expression.replace("OPERATOR", "")):
            for label in re.findall(r"(\w+)\s*[=!]", selector):
                assert f"`{label}`" in text, expression


def test_nothing_of_it_by_default() -> None:
    kinds = {document["kind"] for document in template()}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "NetworkPolicy", "ConfigMap"}


@pytest.mark.parametrize("name", ["serviceMonitor", "prometheusRule"])
def test_without_metrics_there_is_nothing_to_scrape(name: str) -> None:
    made = render("--set", f"{name}.enabled=true,metrics.enabled=false")
    assert made.returncode != 0
    assert f"{name}.enabled needs metrics.enabled" in made.stderr


def rule(*settings: str) -> list[dict[str, Any]]:
    (made,) = of_kind(template("prometheusRule.enabled=true", *settings), "PrometheusRule")
    rules: list[dict[str, Any]] = made["spec"]["groups"][0]["rules"]
    return rules


def test_alerts_are_those_of_the_file_on_the_releases_operator() -> None:
    rules = rule()
    assert [item["alert"] for item in rules] == [item["alert"] for item in ALERTS]
    assert (
        rules[0]["expr"] == 'absent(trenchcoat_build_info{namespace="ops",service="tc-trenchcoat-metrics"})'
    )
    assert {item["labels"]["severity"] for item in rules} == {"critical", "warning", "info"}
    services = of_kind(template(), "Service")
    assert [item["metadata"]["name"] for item in services] == ["tc-trenchcoat-metrics"]


def test_alerts_say_what_to_do_and_keep_prometheus_own_templates() -> None:
    for item in rule():
        assert set(item["annotations"]) == {"summary", "description"}
    (stalled,) = [item for item in rule() if item["alert"] == "TrenchcoatStalled"]
    assert "{{ $labels.namespace }}/{{ $labels.name }}" in stalled["annotations"]["summary"]


def test_alerts_can_be_left_out_and_labelled() -> None:
    rules = rule("prometheusRule.without={TrenchcoatStalled}", "prometheusRule.alertLabels.severity=page")
    assert "TrenchcoatStalled" not in {item["alert"] for item in rules}
    assert {item["labels"]["severity"] for item in rules} == {"page"}


def test_the_service_monitor_selects_the_service() -> None:
    documents = template("serviceMonitor.enabled=true")
    (monitor,) = of_kind(documents, "ServiceMonitor")
    (service,) = of_kind(documents, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["honorLabels"] is True


def test_the_dashboard_is_the_file() -> None:
    (config_map,) = of_kind(template("dashboard.enabled=true"), "ConfigMap")
    assert json.loads(config_map["data"]["trenchcoat.json"]) == DASHBOARD
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
