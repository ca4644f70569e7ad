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
        # They follow the status.
        accepted = {"condition": "Accepted", **place}
        until(lambda: of(scrape(store), "trenchcoat_condition", **accepted) == [1.0], 120, "it is accepted")
        samples = scrape(store)
        assert of(samples, "trenchcoat_progress_ratio", **place)[0] > 0
        assert of(samples, "trenchcoat_stored_bytes", **place)[0] > 0
        counted = of(
            samples,
            "trenchcoat_artifacts_total",
            namespace=store.namespace,
            stage="tokenize",
            source="Computed",
        )
        assert counted[0] >= 1
        assert of(samples, "trenchcoat_stage_duration_seconds_count", stage="tokenize")[0] >= 1
        assert sum(of(samples, "trenchcoat_api_requests_total", verb="list", resource="jobs", code="200")) > 0
        assert of(samples, "trenchcoat_reconcile_duration_seconds_count")[0] > 0
        assert of(samples, "process_resident_memory_bytes")[0] > 1e7
    finally:
        delete(store, "measured")
    until(
        lambda: all(sample.labels.get("name") != "measured" for sample in scrape(store)),
        120,
        "its series go with it",
    )
