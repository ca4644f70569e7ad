"""The main job on a real cluster: collect, shard, Crias as GPUs come free, stitch, evaluate, export."""

import re
from pathlib import Path

import pytest
from demo.environment import Environment
from demo.results import collect_results, load_and_generate

from tests.cluster.objects import apply, example, gpus_of, pods, succeeded, wait

GPUS = 2
MINUTES = 60.0


class Witness:
    """Looks at the pods while a Trenchcoat runs."""

    def __init__(self, environment: Environment, name: str) -> None:
        self.environment, self.name = environment, name
        self.most_crias = 0
        self.most_gpus = 0
        self.together: set[frozenset[str]] = set()
        self.killed_operator = False

    def __call__(self, body) -> None:
        running = [pod for pod in pods(self.environment, self.name) if pod["status"]["phase"] == "Running"]
        stages = [pod["metadata"]["labels"]["trenchcoat.dev/stage"] for pod in running]
        self.most_crias = max(self.most_crias, stages.count("cria"))
        self.most_gpus = max(self.most_gpus, sum(gpus_of(pod) for pod in running))
        self.together.add(frozenset(stages))
        if stages.count("cria") and not self.killed_operator:
            self.killed_operator = True
            self.environment.command(
                "kubectl",
                "-n",
                "trenchcoat-system",
                "delete",
                "pod",
                "-l",
                "app.kubernetes.io/name=trenchcoat",
                "--grace-period=0",
                "--force",
            )


@pytest.fixture(scope="module")
def run(store: Environment):
    """A whole run, its operator killed once in the middle."""
    apply(store, example("tiny"))
    witness = Witness(store, "tiny")
    body = wait(store, "tiny", succeeded, timeout=25 * MINUTES, watch=witness)
    return body, witness


def test_every_stage_succeeded_in_its_first_attempt_despite_the_operators_death(run):
    body, witness = run
    assert witness.killed_operator
    rows = {row["name"]: row for row in body["status"]["stages"]}
    assert list(rows) == ["tokenize", "collect", "shard", "cria", "stitch", "evaluate", "export"]
    assert {row["state"] for row in rows.values()} == {"Succeeded"}
    assert {row["state"] for row in body["status"]["crias"]} == {"Succeeded"}
    assert {row["attempt"] for row in body["status"]["crias"]} == {1}


def test_crias_use_every_gpu_and_never_more(run):
    body, witness = run
    assert len(body["status"]["crias"]) == 6
    assert body["status"]["maxCriasRunning"] == GPUS
    assert witness.most_crias == GPUS
    assert witness.most_gpus == GPUS


def test_training_closes_the_gap_stage_by_stage(store: Environment, run):
    summary, _ = collect_results(store, "tiny")
    assert summary.untrained_ppl > summary.transfer_ppl > summary.cria_lora_ppl > summary.stitched_ppl, (
        summary
    )
    assert summary.gap_closed(summary.stitched_ppl) >= 0.90, summary


def test_the_exported_checkpoint_generates(store: Environment, run, tmp_path: Path):
    _, uri = collect_results(store, "tiny")
    line = load_and_generate(store, uri, tmp_path / "model")
    assert line.startswith("def __init__(self") and len(line) > 30


def test_kubectl_get_shows_how_it_went(store: Environment, run):
    table = store.kubectl("get", "tc")
    assert re.search(r"NAME\s+STAGE\s+CRIAS\s+LOSS\s+PROGRESS\s+ETA\s+SUCCEEDED\s+AGE", table)
    assert re.search(r"tiny\s+\S+\s+6/6\s+.*100%.*True", table)
    store.kubectl("wait", "--for=condition=Succeeded", "trenchcoat/tiny", "--timeout=5s")


def test_transfer_switched_off_is_clearly_worse(store: Environment, run):
    apply(store, example("no-transfer", transfer__epochs=0))
    body = wait(store, "no-transfer", succeeded, timeout=20 * MINUTES)
    sources = {row["name"]: row.get("source") for row in body["status"]["stages"]}
    assert [sources[name] for name in ("tokenize", "collect", "shard")] == ["Reused"] * 3
    trained, _ = collect_results(store, "tiny")
    untrained, _ = collect_results(store, "no-transfer")
    assert untrained.transfer_ppl == pytest.approx(untrained.untrained_ppl)
    assert untrained.stitched_ppl > 1.05 * trained.stitched_ppl
