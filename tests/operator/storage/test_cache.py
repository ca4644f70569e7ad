"""What is kept of stores between looks, and for how long."""

import pytest
from trenchcoat_api.artifacts import Artifact, Artifacts
from trenchcoat_operator.storage.bucket import Bucket
from trenchcoat_operator.storage.cache import ABSENT_SECONDS, ManifestCache
from trenchcoat_operator.storage.reader import StoreReader
from trenchcoat_s3.connection import Credentials

from tests.operator import world
from tests.operator.simulation import trenchcoat

OWNER = trenchcoat()


@pytest.fixture
def reader() -> StoreReader:
    """A reader that is never asked to read."""
    return StoreReader(Bucket(OWNER.spec.store, Credentials("key", "secret")))


@pytest.fixture
def artifact() -> Artifact:
    return Artifacts(OWNER.spec).collect


def test_what_is_deleted_by_hand_is_missed_after_a_minute(reader: StoreReader, artifact: Artifact) -> None:
    now = [0.0]
    cache = ManifestCache(clock=lambda: now[0])
    manifest = world.manifest(artifact)
    cache.put(reader, artifact, manifest)
    now[0] = 59.0
    assert cache.get(reader, artifact) == (manifest, True)
    now[0] = 61.0
    assert cache.get(reader, artifact) == (manifest, False)
    cache.put(reader, artifact, manifest)
    cache.drop(artifact)
    assert cache.get(reader, artifact) == (None, False)


def test_what_was_not_there_is_asked_for_after_a_moment(reader: StoreReader, artifact: Artifact) -> None:
    now = [0.0]
    cache = ManifestCache(clock=lambda: now[0], limit=2)
    assert not cache.is_absent(reader, artifact)
    cache.put_absent(reader, artifact)
    now[0] = ABSENT_SECONDS
    assert cache.is_absent(reader, artifact)
    now[0] += ABSENT_SECONDS + 0.1
    assert not cache.is_absent(reader, artifact)
