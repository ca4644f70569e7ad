"""A pod of trainer/tracking.Dockerfile tells MLflow and trackio, and writes TensorBoard's files into MinIO.

Apart from `make test`: `make test-tracking` installs what reads them.
"""

import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.environment import BUCKET, REPO, Environment
from demo.inputs import client

from tests.cluster.conftest import NAME as CLUSTER
from tests.cluster.objects import apply, delete, example, pods, wait
from tests.tracker_servers import mlflow_server, read_events, trackio_server

for module in ("tensorboardX", "mlflow", "trackio"):
    pytest.importorskip(module, reason=f"{module} is not installed: make test-tracking")
from mlflow.tracking import MlflowClient
from trackio.remote_client import RemoteClient

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


def test_losses_of_pods_reach_all_trackers(store: Environment, image: str, tmp_path: Path):
    token, host = secrets.token_urlsafe(), address_for(store)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "trackio", "namespace": store.namespace},
        "stringData": {"token": token},
    }
    store.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
    with mlflow_server(tmp_path, host) as url, trackio_server(tmp_path, token, host) as trackio_url:
        tracking = {
            "tensorBoard": True,
            "mlflow": {"uri": url, "experiment": "students"},
            "trackio": {
                "uri": trackio_url,
                "project": "students",
                "tokenSecretRef": {"name": "trackio", "key": "token"},
            },
        }
        settings = {stage: {"image": image} for stage in STAGES}
        apply(store, example(NAME, tracking=tracking, pods=settings, **SMALL))
        try:
            body = wait(store, NAME, crias_done, timeout=400)
            (pod,) = pods(store, NAME, "trenchcoat.dev/stage=cria", "trenchcoat.dev/cria=1")
            assert pod["spec"]["containers"][0]["image"] == image
        finally:
            delete(store, NAME)
            store.kubectl("delete", "secret", "trackio", "-n", store.namespace)
        trackio = RemoteClient(trackio_url)
        known = trackio.predict(api_name="/get_runs_for_project", project="students")
        (of_cria,) = (run["id"] for run in known if run["name"] == f"{NAME} cria-01")
        rows = trackio.predict(api_name="/get_logs", project="students", run_id=of_cria)
        mlflow = MlflowClient(tracking_uri=url)
        experiment = mlflow.get_experiment_by_name("students")
        runs = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    told = runs[f"{NAME} cria-01"]
    assert told.info.status == "FINISHED" and told.data.tags["trenchcoat.stage"] == "cria"
    final = {name: value for name, value in told.data.metrics.items() if name.startswith("final/")}
    (row,) = (row for row in body["status"]["crias"] if row["index"] == 1)
    assert pytest.approx(float(row["loss"]), rel=1e-3) in final.values(), (row, final)
    (last,) = (values for values in rows if any(name.startswith("final/") for name in values))
    assert {name: last[name] for name in final} == pytest.approx(final)

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
