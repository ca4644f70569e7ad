"""Upgrading the chart while a Trenchcoat runs: it succeeds, and nothing of it is done twice."""

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from demo.environment import Environment
from demo.install import RELEASE_NAMESPACE, install_operator
from demo.watch import condition
from trenchcoat_api import constants

from tests.cluster import previous
from tests.cluster.conftest import NAME as CLUSTER
from tests.cluster.conftest import REPO
from tests.cluster.held import UNTIL_GO, Gate, prepared
from tests.cluster.objects import Body, apply, delete, events, example, pods, row, succeeded, wait

NAME = "upgraded"
CRD = "trenchcoats.trenchcoat.dev"
TODAY = yaml.safe_load((REPO / "charts" / "trenchcoat" / "Chart.yaml").read_text())["version"]


class Witness:
    """Remembers every Job, PyTorchJob and pod of the Trenchcoat that was ever there, by uid."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}

    def __call__(self, body: dict[str, Any]) -> None:
        selector = f"{constants.LABEL_NAME}={NAME}"
        found = self.environment.get("jobs.batch,pytorchjobs.kubeflow.org", "-l", selector)["items"]
        self.jobs |= {job["metadata"]["uid"]: job for job in found}
        self.pods |= {pod["metadata"]["uid"]: pod for pod in pods(self.environment, NAME)}


def definition(environment: Environment) -> dict[str, Any]:
    return environment.get("crd", CRD)


def cria_is_half_done(body: dict[str, Any]) -> bool:
    states = [row["state"] for row in body.get("status", {}).get("crias", [])]
    return "Running" in states or "Succeeded" in states


def made_at(job: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(job["metadata"]["creationTimestamp"])


@pytest.fixture(scope="module")
def upgraded(store: Environment):
    """A run that the previous release began and this one finished."""
    before = previous.with_images(store, CLUSTER)
    previous.install(before)
    with prepared(store, "until-upgraded", UNTIL_GO) as settings:
        yield from run_through(store, settings)


def run_through(store: Environment, held_back: Body):
    body = example(
        NAME,
        store__prefix="upgrade",
        data__tokens=16384,
        data__heldOutTokens=4096,
        layersPerCria=6,
        pods={"cria": held_back},  # until the upgrade is over
        collect={"nodes": 1, "gpusPerNode": 1, "batchSize": 8},
        stitch__nodes=1,
        evaluate={"enabled": False},
        export={"enabled": False},
    )
    del body["spec"]["preset"]  # the previous release knows none: its only form is the published one
    witness = Witness(store)
    apply(store, body)
    try:
        wait(store, NAME, cria_is_half_done, timeout=600, watch=witness)
        old = definition(store)
        at_upgrade = dict(witness.jobs)
        install_operator(store)
        since = datetime.now(UTC)
        let_go = Gate(store, NAME, "trenchcoat.dev/stage=cria")

        def watch(body: Body) -> None:
            witness(body)
            let_go(body)

        done = wait(store, NAME, succeeded, timeout=900, watch=watch)
        yield done, old, at_upgrade, since, witness
    finally:
        delete(store, NAME)


def test_it_was_upgraded_in_the_middle(upgraded):
    done, _, at_upgrade, _, witness = upgraded
    stages = {job["metadata"]["labels"][constants.LABEL_STAGE] for job in at_upgrade.values()}
    assert "cria" in stages and "stitch" not in stages
    assert at_upgrade.keys() < witness.jobs.keys()
    assert condition(done, "Stalled")["status"] == "False"


def test_nothing_was_done_twice(upgraded):
    done, _, _, _, witness = upgraded
    made = Counter(job["metadata"]["annotations"][constants.ANNOTATION_KEY] for job in witness.jobs.values())
    assert set(made.values()) == {1}, made
    ran = Counter(
        (
            pod["metadata"]["labels"][constants.LABEL_STAGE],
            pod["metadata"]["labels"].get(constants.LABEL_CRIA),
        )
        for pod in witness.pods.values()
    )
    wanted = [("tokenize", None), ("collect", None), ("shard", None), ("cria", "0"), ("cria", "1")]
    assert ran == Counter([*wanted, ("stitch", None)])
    assert "Stopped" not in {event["reason"] for event in events(witness.environment, NAME)}
    rows = done["status"]["stages"]
    assert {row["name"]: row["state"] for row in rows} == {
        stage: "Succeeded" for stage in ("tokenize", "collect", "shard", "cria", "stitch")
    }


def test_both_releases_had_a_part_in_it(store: Environment, upgraded):
    _, _, at_upgrade, since, witness = upgraded
    images = {
        uid: next(
            container["image"]
            for pod in witness.pods.values()
            if pod["metadata"]["ownerReferences"][0]["uid"] == uid
            for container in pod["spec"]["containers"]
        )
        for uid in witness.jobs
    }
    assert all("previous-trainer" in images[uid] for uid in at_upgrade)
    # In between, the previous operator may have made one more.
    later = {uid: job for uid, job in witness.jobs.items() if made_at(job) > since}
    assert {job["metadata"]["labels"][constants.LABEL_STAGE] for job in later.values()} >= {"stitch"}
    assert all(images[uid] == store.trainer_image for uid in later)
    operators = store.get("pods", "-n", RELEASE_NAMESPACE, "-l", "app.kubernetes.io/component=operator")
    images_now = [pod["spec"]["containers"][0]["image"] for pod in operators["items"]]
    assert images_now == [store.operator_image]


def test_the_definition_was_upgraded_in_place(store: Environment, upgraded):
    _, old, *_ = upgraded
    new = definition(store)
    assert new["metadata"]["uid"] == old["metadata"]["uid"]
    assert new["metadata"]["labels"]["helm.sh/chart"] == f"trenchcoat-{TODAY}"
    assert new["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    generated = yaml.safe_load((REPO / "crds" / "trenchcoat.dev_trenchcoats.yaml").read_text())
    schemas = [item["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for item in (new, generated, old)]
    assert schemas[0] == schemas[1] != schemas[2]


@pytest.fixture
def newer_definition(store: Environment, upgraded):
    """The definition of a release that has one field more, as it is while the next upgrade goes on."""
    field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/brandNew"

    def change(operation: dict[str, Any]) -> None:
        words = ("patch", "crd", CRD, "--type=json", "-p", json.dumps([operation | {"path": field}]))
        store.kubectl(*words)

    change({"op": "add", "value": {"type": "integer", "default": 3}})
    yield
    change({"op": "remove"})


def test_an_operator_is_not_put_off_by_the_definition_of_the_next(store: Environment, newer_definition):
    apply(store, example("ahead", data__tokens=16384))
    try:
        body = wait(
            store,
            "ahead",
            lambda body: row(body, "tokenize").get("state") in ("Running", "Succeeded"),
            timeout=120,
        )
        assert body["spec"]["brandNew"] == 3
    finally:
        delete(store, "ahead")
