"""The main job on a real cluster: collect, shard, Crias as GPUs come free, stitch, evaluate, export."""

import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest
from demo.environment import DemoError, Environment
from demo.results import collect_results, download, load_and_generate, summarize
from local_cluster import lifecycle

from tests.cluster.conftest import NAME
from tests.cluster.held import UNTIL_GO, Gate, prepared
from tests.cluster.objects import (
    SMALL_EVALUATION,
    Body,
    apply,
    delete,
    example,
    gpus_of,
    jobs_of,
    log_of,
    pods,
    ranks_that_completed,
    row,
    succeeded,
    wait,
)
from tests.cluster.security import forms, holders, process_facts, stored_texts, texts

GPUS = 2
TOKEN = f"hf_{secrets.token_hex(17)}"
OPERATOR = ("-n", "trenchcoat-system", "-l", "app.kubernetes.io/name=trenchcoat")
MINUTES = 60.0


STAGES = ("tokenize", "collect", "shard", "cria", "stitch", "evaluate", "export")
WITH_REPORT = {"env": [{"name": "TRENCHCOAT_REPORT", "value": "always"}]}
"""As by default; pods of other tests are spared it."""


class Witness:
    """Looks at the pods while a Trenchcoat runs."""

    def __init__(self, environment: Environment, name: str) -> None:
        self.environment, self.name = environment, name
        self.most_crias = 0
        self.most_gpus = 0
        self.together: set[frozenset[str]] = set()
        self.killed_operator = False
        self.facts: dict[str, dict[str, str]] = {}
        self.operators_log = ""

    def __call__(self, body) -> None:
        running = [pod for pod in pods(self.environment, self.name) if pod["status"]["phase"] == "Running"]
        stages = [pod["metadata"]["labels"]["trenchcoat.dev/stage"] for pod in running]
        self.most_crias = max(self.most_crias, stages.count("cria"))
        self.most_gpus = max(self.most_gpus, sum(gpus_of(pod) for pod in running))
        self.together.add(frozenset(stages))
        if stages.count("cria") and not self.killed_operator:
            self.killed_operator = True
            self.operators_log = self.environment.command("kubectl", "logs", *OPERATOR, "--tail=-1")
            at_once = ("--grace-period=0", "--force")
            self.environment.command("kubectl", "delete", "pod", *OPERATOR, *at_once)
        for pod, stage in zip(running, stages, strict=True):
            if not self.facts.get(stage):
                self.facts[stage] = self._look_inside(pod["metadata"]["name"])

    def _look_inside(self, pod: str) -> dict[str, str]:
        try:
            return process_facts(self.environment, self.environment.namespace, pod)
        except DemoError:
            return {}  # it ended meanwhile


def gated():
    """A Trenchcoat that asks for its model, with a token, where there is no hub."""
    somewhere = {"env": [{"name": "HF_ENDPOINT", "value": "http://minio.minio.svc:9000"}]}
    model = {"source": "hf://somebody/gated", "tokenSecretRef": {"name": "hf", "key": "token"}}
    return example("gated", model=model, pods__tokenize=somewhere)


@pytest.fixture(scope="module")
def run(store: Environment):
    """A whole run, its operator killed once in the middle; beside it one whose token gets it nowhere."""
    token = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf"}, "stringData": {"token": TOKEN}}
    apply(store, token)
    apply(store, gated())
    apply(store, example("tiny", pods=dict.fromkeys(STAGES, WITH_REPORT)))
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


# As docs/running.md has it.
DIGEST = (
    "find * -type f ! -name manifest.json ! -name progress.json ! -name paces.json"
    " | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
)


@pytest.mark.parametrize("stage", ["tokenize", "collect", "stitch", "export"])
def test_the_digest_in_the_status_is_that_of_what_is_downloaded(
    store: Environment, run, tmp_path: Path, stage: str
) -> None:
    body, _ = run
    told = row(body, stage)
    download(store, told["uri"], tmp_path / "artifact")
    said = subprocess.run(
        ["bash", "-c", DIGEST], cwd=tmp_path / "artifact", capture_output=True, text=True, check=True
    )
    assert told["digest"] == f"sha256:{said.stdout.split()[0]}"


def test_kubectl_get_shows_how_it_went(store: Environment, run):
    table = store.kubectl("get", "tc")
    assert re.search(r"NAME\s+STAGE\s+CRIAS\s+LOSS\s+PROGRESS\s+ETA\s+SUCCEEDED\s+AGE", table)
    assert re.search(r"tiny\s+\S+\s+6/6\s+.*100%.*True", table)
    store.kubectl("wait", "--for=condition=Succeeded", "trenchcoat/tiny", "--timeout=60s")


def test_stages_run_with_no_rights_at_all(store: Environment, run):
    _, witness = run
    seen = {stage: facts for stage, facts in witness.facts.items() if facts}
    assert {"collect", "cria", "stitch"} <= set(seen), "a stage was never looked into"
    for stage, facts in seen.items():
        assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {"65532"}, stage
        assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == 0, stage
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2"), stage
        assert (facts["Root"], facts["Token"]) == ("read-only", "none"), stage


def test_no_credential_is_anywhere_but_in_its_secret(store: Environment, run):
    _, witness = run
    refused = store.get("trenchcoat", "gated")["status"]["stages"][0]
    assert "hf://somebody/gated" in refused["lastFailure"], "it never showed its token to anybody"
    found = [*texts(store), *stored_texts(store, "trenchcoat/")]
    found.append(("the killed operator's log", witness.operators_log))
    # What is no secret is found where it should be, or else the search would prove nothing.
    kinds = {what.split()[0] for what in holders(found, "s3://trenchcoat/teachers/tiny")}
    assert {"Trenchcoat", "ConfigMap"} <= kinds
    assert any(what.startswith("store: ") for what in holders(found, '"stage": "tokenize"'))
    logs = holders(found, "cria-00: complete")
    assert any(what.startswith("log of team-a/tiny-cria-00") for what in logs)
    assert "the killed operator's log" in holders(found, "tiny-cria-00")
    access_key, secret_key = store.store_credentials()
    for name, value in (("accessKey", access_key), ("secretKey", secret_key), ("token", TOKEN)):
        assert holders(found, value) == [], name
    # The Secrets themselves hold them, in a form that the search knows.
    held = store.kubectl("get", "secrets", "-o", "json")
    assert all(any(form in held for form in forms(value)) for value in (access_key, secret_key, TOKEN))


def test_transfer_switched_off_is_clearly_worse(store: Environment, run):
    perplexity_alone = {"lengthMultiples": [], "recallSamples": 0}
    changes = {"transfer__epochs": 0, "evaluate": perplexity_alone, "export__enabled": False}
    apply(store, example("no-transfer", **changes))
    body = wait(store, "no-transfer", succeeded, timeout=20 * MINUTES)
    sources = {row["name"]: row.get("source") for row in body["status"]["stages"]}
    assert [sources[name] for name in ("tokenize", "collect", "shard")] == ["Reused"] * 3
    trained, _ = collect_results(store, "tiny")
    untrained = summarize(store, body["status"])
    assert untrained.transfer_ppl == pytest.approx(untrained.untrained_ppl)
    assert untrained.stitched_ppl > 1.05 * trained.stitched_ppl


@pytest.fixture
def two_gpus_each(store: Environment):
    """Nodes that claim twice as many GPUs as they did."""
    cluster = lifecycle.running(NAME)
    lifecycle.claim_gpus(cluster, [2] * cluster.node_count)
    yield
    lifecycle.claim_gpus(cluster, [1] * cluster.node_count)


TELL_RANK = f"""
import os
if "LOCAL_RANK" in os.environ:  # a pod's launcher has a RANK, too: that of the pod
    # At one stroke: print writes each of its words by itself here, and another rank's come between.
    os.write(1, f"rank {{os.environ['RANK']}} is here\\n".encode())
    # The training operator deletes what still runs of a job whose first pod has ended, and its log with it.
{indent(UNTIL_GO, 4 * " ")}"""
IS_HERE = re.compile(r"rank (\d+) is here\n")


@pytest.fixture
def told(store: Environment) -> Iterator[Body]:
    """Pods whose ranks say who they are, and go on once a test lets them."""
    with prepared(store, "told", TELL_RANK) as settings:
        yield settings


FEW = {
    "data__tokens": 20480,
    "data__heldOutTokens": 4096,
    "layersPerCria": 6,
    "evaluate__enabled": False,
    "export__enabled": False,
}
"""As much text as a step of every rank needs, for how ranks meet does not depend on it. It is their own:
test_indexed.py looks at how its collect came about.
"""


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("collect", {"collect__gpusPerNode": 2}),
        (
            "stitch",
            {
                "transfer__epochs": 0,
                "criaLora__epochs": 0,
                "stitch__batchSize": 8,
                "stitch__gpusPerNode": 2,
                "scheduling__distributed": "IndexedJob",
                **SMALL_EVALUATION,
                "evaluate__gpusPerNode": 2,
            },
        ),
    ],
)
def test_a_pod_of_several_gpus_runs_a_process_for_each(
    store: Environment, run, two_gpus_each, told: Body, stage: str, changes: dict[str, object]
) -> None:
    """Two pods of two: four ranks that meet through the training operator's variables, or through ours.

    The evaluation behind the stitch is one pod of two ranks.
    """
    name = f"wide-{stage}"
    selector = f"trenchcoat.dev/stage={stage}"
    gate = Gate(store, name, selector)

    def met(body: Body) -> bool:
        logs = [log_of(store, pod) for pod in pods(store, name, selector)]
        return sorted(sorted(IS_HERE.findall(log)) for log in logs) == [["0", "1"], ["2", "3"]]

    def made(body: Body) -> bool:
        gate(body)
        return row(body, stage).get("state") == "Succeeded"

    apply(store, example(name, **(FEW | changes), pods={stage: told}))
    try:
        wait(store, name, met, timeout=600)
        done = row(wait(store, name, made, timeout=600), stage)
        assert (done["source"], done["attempt"]) == ("Computed", 1)
        if changes.get("evaluate__enabled"):
            wait(store, name, succeeded, timeout=600)
            (evaluation,) = jobs_of(store, name, "evaluate")
            assert evaluation["spec"]["completionMode"] == "NonIndexed"
            assert ranks_that_completed(store, evaluation) == 2
    finally:
        delete(store, name)
