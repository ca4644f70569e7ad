"""Metrics: what a pass counts, what is shown, what goes with a Trenchcoat, and that the doc tells it all."""

import re
import urllib.request
from pathlib import Path

import pytest
from trenchcoat_api.status import (
    AttemptStatus,
    CriaStatus,
    Source,
    StageStatus,
    State,
    TrenchcoatStatus,
    WaitingReason,
)
from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.metrics import endpoint, samples
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.reconcile.decide import reconcile

from tests.operator import world
from tests.operator.reconcile.test_golden import CASES, DATA
from tests.operator.test_health import HOSTS

DOC = Path(__file__).parents[3] / "docs" / "metrics.md"


def with_status(trenchcoat, status):
    return trenchcoat.model_copy(update={"status": status})


@pytest.fixture
def trenchcoat():
    return world.load(DATA / "new").trenchcoat


def counted(found, metric):
    return {sample.labels: sample.value for sample in found if sample.metric == metric}


def changes(trenchcoat, former, status, waited=0.0):
    return samples.changes(with_status(trenchcoat, former), status, waited)


def test_waiting_counts_each_row_by_the_reason_that_it_had(trenchcoat):
    waits = {"state": State.WAITING, "waiting_reason": WaitingReason.GPU}
    former = TrenchcoatStatus(
        stages=[
            StageStatus(name="shard", state=State.WAITING, waiting_reason=WaitingReason.RETRY),
            StageStatus(name="cria", **waits),  # sums up the two below
        ],
        crias=[CriaStatus(index=index, layers="0-1", **waits) for index in range(2)],
    )
    waited: dict[str, float] = {}
    for sample in changes(trenchcoat, former, TrenchcoatStatus(), 3.0):
        waited[sample.labels[1]] = waited.get(sample.labels[1], 0) + sample.value
    assert waited == {"Gpu": 6.0, "Retry": 3.0}


def done(**more):
    values = {"state": State.SUCCEEDED, "key": "k", "source": Source.COMPUTED, "seconds": "120.5"}
    return StageStatus(name="collect", **{**values, **more})


def test_an_artifact_counts_once_when_it_becomes_complete(trenchcoat):
    namespace = trenchcoat.metadata.namespace
    status = TrenchcoatStatus(stages=[done()])
    found = changes(trenchcoat, TrenchcoatStatus(), status)
    assert counted(found, "trenchcoat_artifacts_total") == {(namespace, "collect", "Computed"): 1}
    assert counted(found, "trenchcoat_stage_duration_seconds") == {("collect",): 120.5}
    assert changes(trenchcoat, status, status) == []
    assert changes(trenchcoat, status, TrenchcoatStatus(stages=[done(key="other")])) != []


def test_what_was_reused_took_no_time(trenchcoat):
    status = TrenchcoatStatus(stages=[done(source=Source.REUSED)])
    (sample,) = changes(trenchcoat, TrenchcoatStatus(), status)
    assert sample.labels == (trenchcoat.metadata.namespace, "collect", "Reused")


def tried(*attempts: tuple[int, str, str], key: str = "k") -> TrenchcoatStatus:
    made = [
        AttemptStatus(number=number, outcome=outcome, gpu_seconds=gpu) for number, outcome, gpu in attempts
    ]
    return TrenchcoatStatus(
        crias=[CriaStatus(index=0, layers="0-1", state=State.RUNNING, key=key, attempts=made)]
    )


@pytest.mark.parametrize(
    ("former", "status", "failed", "spent"),
    [
        (TrenchcoatStatus(), tried((1, "", "30")), {}, {}),  # it goes on
        (tried((1, "", "30")), tried((1, "Diverged", "40")), {"Diverged": 1}, {"Diverged": 40}),
        # Found out later, of one that is over.
        (tried((1, "Diverged", "40")), tried((1, "Diverged", "45")), {}, {"Diverged": 5}),
        (tried((1, "Diverged", "45")), tried((1, "Diverged", "45")), {}, {}),
        (
            tried((1, "Preempted", "9"), (2, "", "5")),
            tried((1, "Preempted", "9"), (2, "Succeeded", "60")),
            {},
            {"Succeeded": 60},
        ),
        (tried((1, "", "30")), tried((1, "", "1"), key="other"), {}, {"Stopped": 30}),
    ],
)
def test_an_attempt_counts_with_its_gpu_seconds_once_it_is_over(trenchcoat, former, status, failed, spent):
    found = changes(trenchcoat, former, status)
    place = (trenchcoat.metadata.namespace, "cria")
    assert counted(found, "trenchcoat_failed_attempts_total") == {
        (*place, key): n for key, n in failed.items()
    }
    assert counted(found, "trenchcoat_gpu_seconds_total") == {(*place, key): n for key, n in spent.items()}


def test_an_attempt_that_failed_on_the_cluster_is_counted():
    seen = world.load(DATA / "cria-out-of-memory")
    plan = reconcile(seen.trenchcoat, seen.observed, world.SETTINGS, seen.now)
    found = samples.changes(seen.trenchcoat, plan.status, 0.0)
    place = (seen.trenchcoat.metadata.namespace, "cria", "OutOfMemory")
    assert counted(found, "trenchcoat_failed_attempts_total") == {place: 1}
    again = reconcile(with_status(seen.trenchcoat, plan.status), seen.observed, world.SETTINGS, seen.now)
    found = samples.changes(with_status(seen.trenchcoat, plan.status), again.status, 0.0)
    assert counted(found, "trenchcoat_failed_attempts_total") == {}


def test_only_running_crias_have_series_of_their_own(trenchcoat):
    status = TrenchcoatStatus(
        progress="50%",
        crias=[
            CriaStatus(index=0, layers="0-1", state=State.SUCCEEDED, source=Source.REUSED, loss="0.1"),
            CriaStatus(index=1, layers="2-3", state=State.RUNNING, progress="25%", loss="NaN"),
            CriaStatus(index=2, layers="4-5", state=State.WAITING),
        ],
    )
    found = samples.gauges(trenchcoat, status)
    place = (trenchcoat.metadata.namespace, trenchcoat.metadata.name)
    assert counted(found, "trenchcoat_cria_progress_ratio") == {(*place, "1"): 0.25}
    assert list(counted(found, "trenchcoat_cria_loss")) == [(*place, "1")]
    assert counted(found, "trenchcoat_progress_ratio") == {place: 0.5}
    assert counted(found, "trenchcoat_reuse_ratio") == {place: 1.0}
    assert counted(found, "trenchcoat_crias") == {
        (*place, "Succeeded"): 1,
        (*place, "Running"): 1,
        (*place, "Waiting"): 1,
    }


def filled() -> Metrics:
    """Every metric with a value: all golden cases passed through, twice, two seconds apart."""
    time = iter(range(0, 10_000, 2))
    metrics = Metrics(clock=lambda: float(next(time)))
    metrics.watch_queue(lambda: 3)
    for name in CASES:
        seen = world.load(DATA / name)
        for _ in range(2):
            plan = reconcile(seen.trenchcoat, seen.observed, world.SETTINGS, seen.now)
            metrics.acted(plan.actions)
            metrics.reported(seen.trenchcoat, plan.status)
            seen.trenchcoat = with_status(seen.trenchcoat, plan.status)
    # All cases speak of one Trenchcoat; the last one shown has no running Cria.
    crias = [CriaStatus(index=0, layers="0-1", state=State.RUNNING, progress="10%", loss="1.5")]
    last = plan.status.model_copy(update={"crias": crias})
    metrics.reported(seen.trenchcoat, last)
    spent = with_status(seen.trenchcoat, tried((1, "", "3")))
    metrics.reported(spent, last)
    metrics.passed(0.1, ApiError(503, "Unavailable", "later"))
    metrics.requested("list", "pods", 200, 0.01)
    metrics.read("manifest", 0.01)
    return metrics


def documented() -> dict[str, tuple[str, set[str]]]:
    rows = re.findall(r"^\| `(trenchcoat_\w+)` \| (\w+) \| (.*?) \|", DOC.read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_doc_and_the_registry_agree():
    found = {}
    for family in filled().registry.collect():
        if not family.name.startswith("trenchcoat_"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.samples, f"{name} was never set here: labels unknown"
        found[name] = (family.type, labels)
    assert found == documented()


def test_names_follow_prometheus_conventions():
    for name, (kind, _) in documented().items():
        assert name.endswith("_total") == (kind == "counter")
        if kind == "histogram":
            assert name.endswith("_seconds")


def series(metrics: Metrics) -> list[str]:
    return [
        str(sample)
        for family in metrics.registry.collect()
        for sample in family.samples
        if "namespace" in sample.labels
    ]


def test_all_series_go_with_the_trenchcoat():
    metrics = filled()
    trenchcoat = world.load(DATA / "new").trenchcoat
    assert len(series(metrics)) > 20
    metrics.forget(Key(trenchcoat.metadata.namespace, trenchcoat.metadata.name))
    assert series(metrics) == []
    assert metrics.registry.get_sample_value("trenchcoat_trenchcoats") == 0


def test_another_trenchcoat_keeps_its_namespace():
    metrics = filled()
    trenchcoat = world.load(DATA / "new").trenchcoat
    other = trenchcoat.model_copy(
        update={"metadata": trenchcoat.metadata.model_copy(update={"name": "other"})}
    )
    metrics.reported(other, TrenchcoatStatus(progress="1%"))
    metrics.retain([Key(other.metadata.namespace, "other")])
    left = series(metrics)
    assert not any(f"'name': '{trenchcoat.metadata.name}'" in line for line in left)
    assert any("'other'" in line for line in left)
    assert any("trenchcoat_failed_attempts_total" in line for line in left)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ApiError(0, "Unreachable", ""), "unreachable"),
        (ApiError(409, "Conflict", ""), "refused"),
        (ApiError(500, "InternalError", ""), "server"),
        (ValueError("bug"), "internal"),
    ],
)
def test_errors_by_cause(error, cause):
    metrics = Metrics()
    metrics.passed(1.0, error)
    assert metrics.registry.get_sample_value("trenchcoat_reconcile_errors_total", {"cause": cause}) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_prometheus_can_read_them_over_either_family_of_addresses(host):
    server, thread = endpoint.serve(0, filled().registry)
    try:
        with urllib.request.urlopen(f"http://{host}:{server.server_port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert re.search(
        r'^trenchcoat_cria_loss\{cria="0",name="\w+",namespace="\w+"\} 1\.5$', text, re.MULTILINE
    )
    assert "process_resident_memory_bytes" in text
