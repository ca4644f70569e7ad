"""A pod of trainer/tracking.Dockerfile tells MLflow's server and writes TensorBoard's files into MinIO.

Apart from `make test`: `make test-tracking` installs what reads them.
"""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.environment import BUCKET, REPO, Environment
from demo.inputs import client

from tests.cluster.conftest import NAME as CLUSTER
from tests.cluster.objects import apply, delete, example, pods, wait
from tests.tracker_servers import mlflow_server, read_events

for module in ("tensorboardX", "mlflow"):
    pytest.importorskip(module, reason=f"{module} is not installed: make test-tracking")
from mlflow.tracking import MlflowClient

sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import images, lifecycle

NAME = "tracked"
STAGES = ("tokenize", "collect", "shard", "cria", "stitch")
SMALL = {
    "data__tokens": 16384,
    "data__heldOutTokens": 4096,
    "layersPerCria": 6,
    "criaLora__epochs": 0,
    "evaluate__enabled": False,
    "export__enabled": False,
    "seed": 19,
    "collect__nodes": 1,
    "stitch__nodes": 1,
}


@pytest.fixture(scope="module")
def image(environment: Environment) -> Iterator[str]:
    """The trainer with the clients, as its Dockerfile makes it; on the nodes, too."""
    base = images.tag("trainer")
    full_name = f"{images.PREFIX}/trainer-tracking:{base.rpartition(':')[2]}"
    words: list[str | Path] = ["--ignorefile", REPO / ".dockerignore", "--build-arg", f"BASE={base}"]
    words += ["--file", REPO / "trainer" / "tracking.Dockerfile", "--tag", full_name]
    if images.CERTIFICATES.exists():
        words += ["--volume", f"{images.CERTIFICATES}:{images.CERTIFICATES}:ro"]
    for key in images.BUILD_ENVIRONMENT:
        if key in os.environ:
            words += ["--build-arg", f"{key}={os.environ[key]}"]
    images.buildah("build", *words, REPO)
    try:
        for node in lifecycle.running(CLUSTER).nodes:
            images.load_full_names([full_name], node)
        yield full_name
    finally:
        images.buildah("rmi", full_name)


def address_for(environment: Environment) -> str:
    """Address of this machine by which pods reach it."""
    service = environment.get("service", "kubernetes", "-n", "default")["spec"]["clusterIP"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((service, 9))  # sends nothing
        return str(way.getsockname()[0])


def crias_done(body: dict) -> bool:
    states = [row["state"] for row in body.get("status", {}).get("crias", [])]
    return bool(states) and set(states) == {"Succeeded"}


def test_losses_of_pods_reach_mlflow_and_tensorboard(store: Environment, image: str, tmp_path: Path):
    with mlflow_server(tmp_path, address_for(store)) as url:
        tracking = {"tensorBoard": True, "mlflow": {"uri": url, "experiment": "students"}}
        settings = {stage: {"image": image} for stage in STAGES}
        apply(store, example(NAME, tracking=tracking, pods=settings, **SMALL))
        try:
            body = wait(store, NAME, crias_done, timeout=400)
            (pod,) = pods(store, NAME, "trenchcoat.dev/stage=cria", "trenchcoat.dev/cria=1")
            assert pod["spec"]["containers"][0]["image"] == image
        finally:
            delete(store, NAME)
        mlflow = MlflowClient(tracking_uri=url)
        experiment = mlflow.get_experiment_by_name("students")
        runs = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    told = runs[f"{NAME} cria-01"]
    assert told.info.status == "FINISHED" and told.data.tags["trenchcoat.stage"] == "cria"
    final = {name: value for name, value in told.data.metrics.items() if name.startswith("final/")}
    (row,) = (row for row in body["status"]["crias"] if row["index"] == 1)
    assert pytest.approx(float(row["loss"]), rel=1e-3) in final.values(), (row, final)

    with store.store_address() as address:
        bucket = client(store, address)
        found = bucket.list_objects(
            bucket_name=BUCKET, prefix=f"trenchcoat/tensorboard/{NAME}/", recursive=True
        )
        names = [str(item.object_name) for item in found if "/cria-01/" in str(item.object_name)]
        assert names
        for name in names:
            bucket.fget_object(
                bucket_name=BUCKET, object_name=name, file_path=str(tmp_path / "events" / Path(name).name)
            )
    events = read_events(tmp_path / "events")
    for loss, value in final.items():
        assert events[loss] == [[0, pytest.approx(value, rel=1e-5)]]
