"""What a look finds in a real store, where others have looked a moment before."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_operator.kubernetes.kinds import SECRETS, Kind
from trenchcoat_operator.observe.store import StoreLook
from trenchcoat_operator.storage.access import Stores

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


def test_what_is_known_to_be_there_is_read_though_another_look_missed_it(server: MinioServer) -> None:
    """The other look began before the artifact was complete, and noted its absence afterwards."""
    owner = trenchcoat("one", store={"endpoint": server.endpoint, "bucket": BUCKET, "prefix": "missed"})
    stores = Stores(OneSecret(), lambda *_: None)  # type: ignore[arg-type]
    tokenize = Artifacts(owner.spec).tokenize
    manifest = world.manifest(tokenize).model_dump_json(by_alias=True).encode()
    server.store().write(tokenize.manifest_path, manifest)
    stores.manifests.put_absent(stores.open(owner), tokenize)
    assert tokenize.key not in StoreLook(stores, owner, ()).read().manifests
    seen = StoreLook(stores, owner, (), there={tokenize.key}).read()
    assert seen.problem is None
    assert tokenize.key in seen.manifests
