"""Metrics as Prometheus reads them from the Service, on the real cluster."""

from demo.environment import Environment
from demo.install import RELEASE, RELEASE_NAMESPACE
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.objects import apply, delete, example, wait
from tests.waiting import until


def scrape(environment: Environment):
    path = f"/api/v1/namespaces/{RELEASE_NAMESPACE}/services/{RELEASE}-metrics:metrics/proxy/metrics"
    text = environment.command("kubectl", "get", "--raw", path)
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def of(samples, series: str, **labels: str) -> list[float]:
    return [
        sample.value
        for sample in samples
        if sample.name == series and labels.items() <= sample.labels.items()
    ]


def test_a_trenchcoat_has_series_as_long_as_it_lives(store: Environment):
    place = {"namespace": store.namespace, "name": "measured"}
    apply(store, example("measured", data__tokens=71_680))
    try:
        wait(
            store,
            "measured",
            lambda body: any(row["state"] == "Succeeded" for row in body.get("status", {}).get("stages", [])),
            timeout=180,
        )
        artifact = {"namespace": store.namespace, "stage": "tokenize", "source": "Computed"}
        requests = {"verb": "list", "resource": "jobs", "code": "200"}
        wanted = [
            ("trenchcoat_condition", {"condition": "Accepted", **place}, 1),
            ("trenchcoat_progress_ratio", place, 1e-6),
            ("trenchcoat_stored_bytes", place, 1),
            ("trenchcoat_artifacts_total", artifact, 1),
            ("trenchcoat_stage_duration_seconds_count", {"stage": "tokenize"}, 1),
            ("trenchcoat_api_requests_total", requests, 1),
            ("trenchcoat_reconcile_duration_seconds_count", {}, 1),
            ("process_resident_memory_bytes", {}, 1e7),
        ]
        # They follow the status, each in its time.
        for series, labels, least in wanted:
            until(
                lambda series=series, labels=labels, least=least: (
                    sum(of(scrape(store), series, **labels)) >= least
                ),
                120,
                f"{series} is at least {least}",
            )
    finally:
        delete(store, "measured")
    until(
        lambda: all(sample.labels.get("name") != "measured" for sample in scrape(store)),
        120,
        "its series go with it",
    )
