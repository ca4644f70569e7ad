"""Deleting artifacts in a real S3 store, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trenchcoat_api.artifacts import Artifact, Artifacts, DeletionPhase
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.storage.bucket import Bucket
from trenchcoat_operator.storage.deletions import Deletions
from trenchcoat_operator.storage.errors import StoreError
from trenchcoat_operator.storage.reader import StoreReader
from trenchcoat_s3.connection import Credentials

from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, minio_or_skip
from tests.operator import world
from tests.operator.simulation import trenchcoat


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trenchcoat]:
    """A Trenchcoat with a store."""
    with minio_or_skip(tmp_path_factory.mktemp("minio")) as server:
        yield trenchcoat(store={"endpoint": server.endpoint, "bucket": BUCKET})


@pytest.fixture
def reader(owner: Trenchcoat) -> StoreReader:
    return StoreReader(Bucket(owner.spec.store, Credentials(ACCESS_KEY, SECRET_KEY)))


@pytest.fixture
def artifact(owner: Trenchcoat, reader: StoreReader) -> Artifact:
    """A complete artifact of some objects."""
    made = Artifacts(owner.spec).collect
    manifest = world.manifest(made).model_dump_json(by_alias=True).encode()
    objects = {f"boundary-01/{n:05d}": b"x" for n in range(7)} | {"checkpoint/state": b"y"}
    for path, data in (objects | {"manifest.json": manifest}).items():
        reader.bucket.put(made.prefix + path, data)
    return made


def names(reader: StoreReader, artifact: Artifact) -> set[str]:
    return {name.removeprefix(artifact.prefix) for name in reader.bucket.list(artifact.prefix)}


def test_condemned_purged_and_forgotten(reader: StoreReader, artifact: Artifact) -> None:
    manifest = reader.manifest(artifact)
    assert manifest is not None and reader.deletion(artifact) is None
    Deletions(reader).condemn(artifact, manifest)
    assert reader.manifest(artifact) is None
    condemned = reader.deletion(artifact)
    assert condemned is not None
    assert (condemned.phase, condemned.manifest) == (DeletionPhase.CONDEMNED, manifest)
    assert len(names(reader, artifact)) == 9
    assert Deletions(reader).purge(artifact, manifest, seconds=30)
    purged = reader.deletion(artifact)
    assert purged is not None and purged.phase is DeletionPhase.PURGED
    assert names(reader, artifact) == {"deleted.json"}
    assert reader.holds_any(artifact)
    Deletions(reader).forget(artifact)
    assert not reader.holds_any(artifact)


def test_a_condemned_one_is_given_back(reader: StoreReader, artifact: Artifact) -> None:
    manifest = reader.manifest(artifact)
    Deletions(reader).condemn(artifact, manifest)
    Deletions(reader).restore(artifact)
    assert reader.manifest(artifact) == manifest
    assert reader.deletion(artifact) is None


def test_no_more_is_deleted_at_once_than_there_is_time_for(
    reader: StoreReader, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trenchcoat_operator.storage.bucket.DELETED_TOGETHER", 3)
    manifest = reader.manifest(artifact)
    Deletions(reader).condemn(artifact, manifest)
    left = [len(names(reader, artifact))]
    while not Deletions(reader).purge(artifact, manifest, seconds=0):
        left.append(len(names(reader, artifact)))
        deletion = reader.deletion(artifact)
        assert deletion is not None and deletion.phase is DeletionPhase.PURGING
    assert left == [9, 6, 3]
    assert names(reader, artifact) == {"deleted.json"}


def test_neighbours_are_left_alone(owner: Trenchcoat, reader: StoreReader, artifact: Artifact) -> None:
    other = Artifacts(owner.spec).shard
    reader.bucket.put(other.prefix + "data", b"z")
    Deletions(reader).condemn(artifact, None)
    assert Deletions(reader).purge(artifact, None, seconds=30)
    assert reader.holds_any(other)


def test_a_key_that_may_not_delete_is_named(owner: Trenchcoat, artifact: Artifact) -> None:
    stranger = StoreReader(Bucket(owner.spec.store, Credentials("stranger", "wrong-password")))
    with pytest.raises(StoreError, match=r"spec\.store\.credentialsSecretRef") as caught:
        Deletions(stranger).condemn(artifact, None)
    assert "wrong-password" not in caught.value.message
