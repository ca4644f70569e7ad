"""The adapted teacher on a real cluster: after the stitch, shared by students, and no need of a run."""

from collections.abc import Iterator

import pytest
from demo.environment import Environment
from demo.watch import condition

from tests.cluster.objects import apply, delete, example, pods, row, succeeded, wait

MINUTES = 60.0
STUDENT = {
    "layersPerCria": 12,
    "data__tokens": 16 * 512,
    "data__heldOutTokens": 8 * 512,
    "attention": {"form": "window", "window": 16},
    "criaLora__epochs": 0,
    "stitch": {"nodes": 1, "gpusPerNode": 1, "learningRate": "2e-3", "batchSize": 4, "microBatchSize": 2},
    "evaluate": {"lengthMultiples": [2], "recallSamples": 0},
    "export__enabled": False,
}
"""One Cria that has nothing to train, and a short stitch on one node."""


@pytest.fixture(scope="module")
def run(store: Environment) -> Iterator[tuple[dict, list[set[str]]]]:
    together: list[set[str]] = []

    def watch(body) -> None:
        running = {
            pod["metadata"]["labels"]["trenchcoat.dev/stage"]
            for pod in pods(store, "adapted")
            if pod["status"]["phase"] == "Running"
        }
        if running not in together:
            together.append(running)

    apply(store, example("adapted", **STUDENT))
    yield wait(store, "adapted", succeeded, timeout=10 * MINUTES, watch=watch), together
    delete(store, "adapted")


def test_it_is_trained_after_the_stitch_and_measured(run):
    body, _ = run
    names = [item["name"] for item in body["status"]["stages"]]
    assert names == ["tokenize", "shard", "cria", "stitch", "adapt", "evaluate"]
    assert row(body, "adapt")["startedAt"] >= row(body, "stitch")["completedAt"]
    assert row(body, "adapt")["source"] == "Computed"
    assert condition(body, "TeacherAdapted")["status"] == "True"
    perplexities = {item["name"]: item for item in body["status"]["perplexities"]}
    assert float(perplexities["adaptedTeacher"]["perplexity"]) < float(perplexities["teacher"]["perplexity"])
    assert set(perplexities["adaptedTeacher"]["longer"]) == {"1024"}
    assert float(row(body, "adapt")["gpuSeconds"]) > 0


def test_nothing_is_collected_that_no_cria_reads(run):
    body, together = run
    assert not any("collect" in running for running in together)
    told = condition(body, "ActivationsReady")
    assert (told["status"], told["reason"]) == ("True", "NotNeeded")


# Python runs this before anything of ours; that 64 is bad input spares two further tries.
FAULT = {"sitecustomize.py": "import os, sys\nif 'adapt' in sys.orig_argv:\n    os._exit(64)\n"}
FAULTY = {
    "env": [{"name": "PYTHONPATH", "value": "/fault"}],
    "volumes": [{"name": "fault", "configMap": {"name": "fault"}}],
    "volumeMounts": [{"name": "fault", "mountPath": "/fault"}],
}


def test_students_share_it_and_a_run_goes_on_without_one_that_fails(store: Environment, run):
    body, _ = run
    apply(store, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fault"}, "data": FAULT})
    wider = STUDENT | {"attention": {"form": "window", "window": 32}}
    # Another learning rate: its adapted teacher is another, too.
    slower = STUDENT | {"stitch": STUDENT["stitch"] | {"learningRate": "1e-3"}, "pods__stitch": FAULTY}
    apply(store, example("wider", **wider))
    apply(store, example("failing", **slower))

    shared = wait(store, "wider", succeeded, timeout=6 * MINUTES)
    assert row(shared, "adapt")["source"] == "Reused"
    assert row(shared, "adapt")["key"] == row(body, "adapt")["key"]
    assert row(shared, "stitch")["key"] != row(body, "stitch")["key"]

    failed = wait(store, "failing", succeeded, timeout=6 * MINUTES)
    told = condition(failed, "TeacherAdapted")
    assert (told["status"], told["reason"]) == ("False", "GivenUp")
    assert row(failed, "adapt")["state"] == "Failed"
    assert "adaptedTeacher" not in {item["name"] for item in failed["status"]["perplexities"]}
    assert any("training it failed" in reason for reason in failed["status"]["evaluation"]["leftOut"])

    # Its cause is mended: the Job that failed is deleted, and what was left out is made.
    apply(
        store, example("failing", **{name: value for name, value in slower.items() if name != "pods__stitch"})
    )
    store.kubectl("delete", "pytorchjobs.kubeflow.org", "-l", ADAPT_OF_FAILING)
    mended = wait(store, "failing", is_measured, timeout=6 * MINUTES)
    assert row(mended, "evaluate")["key"] != row(failed, "evaluate")["key"]
    for name in ("wider", "failing"):
        delete(store, name)
    store.kubectl("delete", "configmap", "fault")


ADAPT_OF_FAILING = "trenchcoat.dev/name=failing,trenchcoat.dev/stage=adapt"


def is_measured(body) -> bool:
    names = {item["name"] for item in body["status"].get("perplexities", [])}
    return succeeded(body) and "adaptedTeacher" in names
