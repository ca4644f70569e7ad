"""What a look finds in a real store, where others have looked a moment before."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trenchcoat_api.artifacts import Artifact, Artifacts, Progress
from trenchcoat_api.stages import Stage
from trenchcoat_operator.kubernetes.kinds import SECRETS, Kind
from trenchcoat_operator.model.observed import ChildPhase, Pod
from trenchcoat_operator.observe.store import StoreLook
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.works import graph

from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer, minio_or_skip
from tests.operator import world
from tests.operator.simulation import trenchcoat


class OneSecret:
    """A cluster of which nothing but the store's Secret is asked for."""

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        assert kind == SECRETS
        data = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with minio_or_skip(tmp_path_factory.mktemp("minio")) as server:
        yield server


def write(server: MinioServer, artifact: Artifact) -> None:
    manifest = world.manifest(artifact).model_dump_json(by_alias=True).encode()
    server.store().write(artifact.manifest_path, manifest)


def test_what_is_known_to_be_there_is_read_though_another_look_missed_it(server: MinioServer) -> None:
    """The other look began before the artifact was complete, and noted its absence afterwards."""
    owner = trenchcoat("one", store={"endpoint": server.endpoint, "bucket": BUCKET, "prefix": "missed"})
    stores = Stores(OneSecret(), lambda *_: None)  # type: ignore[arg-type]
    tokenize = Artifacts(owner.spec).tokenize
    write(server, tokenize)
    stores.manifests.put_absent(stores.open(owner), tokenize)
    assert tokenize.key not in StoreLook(stores, owner, ()).read().manifests
    seen = StoreLook(stores, owner, (), there={tokenize.key}).read()
    assert seen.problem is None
    assert tokenize.key in seen.manifests


@pytest.mark.parametrize("seen_at_work", [True, False])
def test_what_a_job_leaves_on_the_way_is_there_once_the_job_has_ended(
    server: MinioServer, seen_at_work: bool
) -> None:
    """It was missing as long as the Cria before it had not come so far, and its own Job is never made."""
    where = {"endpoint": server.endpoint, "bucket": BUCKET, "prefix": f"on-the-way-{seen_at_work}"}
    owner = trenchcoat("one", store=where, layersPerCria=4, collect={"strategy": "Rolling"})
    stores = Stores(OneSecret(), lambda *_: None)  # type: ignore[arg-type]
    artifacts = world.artifacts_of(owner.spec)
    for name in ("tokenize", "shard"):
        write(server, artifacts[name])
    works = graph.build(owner.spec, StoreLook(stores, owner, ()).read().told).works
    cria = next(work for work in works if work.key == artifacts["cria-00"].key)
    child = world.child_of(owner, cria)
    boundary = artifacts["collect-01"]

    assert boundary.key not in StoreLook(stores, owner, (child,)).read().manifests
    write(server, boundary)
    if seen_at_work:
        assert boundary.key in StoreLook(stores, owner, (child,)).read().manifests
    write(server, artifacts["cria-00"])
    ended = replace(child, phase=ChildPhase.SUCCEEDED, finished_at=datetime.now(UTC))
    assert boundary.key in StoreLook(stores, owner, (ended,)).read().manifests


def test_what_another_look_missed_is_known_once_it_was_read(server: MinioServer) -> None:
    owner = trenchcoat("one", store={"endpoint": server.endpoint, "bucket": BUCKET, "prefix": "read"})
    stores = Stores(OneSecret(), lambda *_: None)  # type: ignore[arg-type]
    tokenize = Artifacts(owner.spec).tokenize
    write(server, tokenize)
    assert tokenize.key in StoreLook(stores, owner, ()).read().manifests
    stores.manifests.put_absent(stores.open(owner), tokenize)
    assert tokenize.key in StoreLook(stores, owner, ()).read().manifests


def test_what_a_pod_left_is_there_as_soon_as_its_container_has_ended(server: MinioServer) -> None:
    """A kubelet tells of the pod's end seconds later, and the Job's controller after it."""
    owner = trenchcoat("one", store={"endpoint": server.endpoint, "bucket": BUCKET, "prefix": "ended"})
    stores = Stores(OneSecret(), lambda *_: None)  # type: ignore[arg-type]
    tokenize = Artifacts(owner.spec).tokenize
    (work,) = (work for work in graph.build(owner.spec, {}).works if work.key == tokenize.key)
    now = datetime.now(UTC)
    runs = Pod(name="p", phase="Running", node="n1", started_at=now - timedelta(seconds=9))
    child = world.child_of(owner, work, pods=(runs,), phase=ChildPhase.ACTIVE)
    told = Progress(
        stage=Stage.TOKENIZE, key=work.key, phase="tokenize", step=0, steps=1, fraction=0.7, updated_at=now
    )
    server.store().write(tokenize.progress_path, told.model_dump_json(by_alias=True).encode())
    write(server, tokenize)

    seen = StoreLook(stores, owner, (child,)).read()
    assert seen.progress[tokenize.key].fraction == 0.7 and not seen.manifests
    ended = replace(child, pods=(replace(runs, exit_code=0, ended_at=now),))
    seen = StoreLook(stores, owner, (ended,)).read()
    assert tokenize.key in seen.manifests and not seen.progress
