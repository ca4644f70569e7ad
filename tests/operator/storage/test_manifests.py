"""Manifests in a real store: small in memory, whole where they are written back."""

import json
from collections.abc import Iterator

import pytest
from trenchcoat_api.artifacts import (
    Artifact,
    Artifacts,
    Deletion,
    DeletionPhase,
    Manifest,
    StoredObject,
)
from trenchcoat_api.stored import ObjectList
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.bucket import Bucket
from trenchcoat_operator.storage.deletions import Deletions
from trenchcoat_operator.storage.reader import StoreReader
from trenchcoat_s3.connection import Credentials

from tests.minio_server import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    MinioServer,
    minio_or_skip,
)
from tests.operator import world
from tests.operator.simulation import trenchcoat


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with minio_or_skip(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
def reads() -> list[str]:
    return []


@pytest.fixture
def reader(server: MinioServer, reads: list[str]) -> StoreReader:
    spec = trenchcoat(store={"endpoint": server.endpoint, "bucket": BUCKET}).spec
    return StoreReader(
        Bucket(spec.store, Credentials(ACCESS_KEY, SECRET_KEY)), lambda what, _: reads.append(what)
    )


@pytest.fixture
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return Artifacts(trenchcoat(store={"prefix": request.node.name[:60]}).spec).tokenize


def write(server: MinioServer, artifact: Artifact) -> Manifest:
    objects = [StoredObject(path=f"part-{n}", size=1000 + n, sha256="0" * 64) for n in range(3)]
    lists = [ObjectList(path="manifest/0", sha256="0" * 64, first="part-3", count=2, size=5000)]
    manifest = world.manifest(artifact).model_copy(update={"objects": objects, "lists": lists})
    server.store().write(artifact.manifest_path, manifest.model_dump_json(by_alias=True).encode())
    return manifest


def stored(server: MinioServer, path: str) -> object:
    return json.loads(server.store().read(path))


def test_a_manifest_is_kept_without_its_objects(
    server: MinioServer, reader: StoreReader, artifact: Artifact
) -> None:
    whole = write(server, artifact)
    read = reader.manifest(artifact)
    assert read is not None
    assert len(read.objects) == 1
    assert read.size == whole.size == 8003
    assert read.digest == whole.digest
    assert read.model_copy(update={"objects": whole.objects, "lists": whole.lists}) == whole


def test_what_was_condemned_comes_back_whole(
    server: MinioServer, reader: StoreReader, artifact: Artifact
) -> None:
    whole = write(server, artifact)
    Deletions(reader).condemn(artifact, reader.manifest(artifact))
    assert reader.manifest(artifact) is None
    note = Deletion.model_validate(stored(server, artifact.deletion_path))
    assert (note.phase, note.manifest) == (DeletionPhase.CONDEMNED, whole)
    told = reader.deletion(artifact)
    assert told is not None and told.manifest is not None
    assert (len(told.manifest.objects), told.manifest.size) == (1, 8003)
    Deletions(reader).condemn(artifact, told.manifest)  # as after a look that is too old: nothing is lost
    assert Deletion.model_validate(stored(server, artifact.deletion_path)).manifest == whole
    Deletions(reader).restore(artifact)
    assert Manifest.model_validate(stored(server, artifact.manifest_path)) == whole
    assert reader.deletion(artifact) is None


def test_a_manifest_is_read_once_and_then_known_by_its_being_there(
    server: MinioServer, reader: StoreReader, reads: list[str], artifact: Artifact, monkeypatch
) -> None:
    now = [0.0]
    stores = Stores(None, lambda *_: None)  # type: ignore[arg-type]  (no Secret is read here)
    monkeypatch.setattr(stores.manifests, "_clock", lambda: now[0])
    assert stores.manifest(reader, artifact) is None
    write(server, artifact)
    for moment in (1.0, 2.0, 100.0, 300.0):
        now[0] = moment
        assert stores.manifest(reader, artifact) is not None
    assert reads.count("manifest") == 2
    server.store().delete(artifact.manifest_path)
    assert stores.manifest(reader, artifact) is not None  # it was seen just now
    now[0] = 400.0
    assert stores.manifest(reader, artifact) is None
