"""Keys for a ServiceAccount's token: a real API server gives it, a real MinIO checks it and gives keys."""

import base64
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.errors import StoreError as OperatorStoreError
from trenchcoat_trainer.errors import StoreError
from trenchcoat_trainer.store import open_store

from tests.components import skip_without
from tests.control_plane import ControlPlane, control_plane
from tests.minio_server import MinioServer, find_minio, running_minio
from tests.operator import world
from tests.operator.simulation import trenchcoat

pytestmark = pytest.mark.slow

AUDIENCE, NAMESPACE = "minio.example", "ml"


@contextmanager
def issuer(keys: dict[str, Any]) -> Iterator[str]:
    """Says to whoever asks by which keys the API server's tokens are signed; answers its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here = f"http://{self.headers['Host']}"
            about = {"issuer": here, "jwks_uri": f"{here}/jwks", "token_endpoint": here}
            about |= {"authorization_endpoint": here, "response_types_supported": ["id_token"]}
            body = json.dumps(keys if self.path == "/jwks" else about).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Trust:
    """A MinIO that trusts an API server's tokens."""

    plane: ControlPlane
    server: MinioServer
    role: str

    def spec(self, **changes: Any) -> dict[str, Any]:
        """spec.store."""
        identity = {"serviceAccountName": "trainer", "audience": AUDIENCE, "roleArn": self.role}
        return {
            "endpoint": self.server.endpoint,
            "credentialsSecretRef": None,
            "webIdentity": {key: value for key, value in (identity | changes).items() if value is not None},
        }


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    program, folder = find_minio(), tmp_path_factory.mktemp("minio")
    if program is None:
        skip_without("minio")
    with control_plane(tmp_path_factory.mktemp("plane")) as plane:
        plane.namespace(NAMESPACE)
        plane.core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "trainer"}})
        openid = client.OpenidApi(plane.api)
        keys = openid.get_service_account_issuer_open_id_keyset(_preload_content=False)
        with issuer(json.loads(keys.data)) as address:
            settings = {
                "MINIO_IDENTITY_OPENID_CONFIG_URL": f"{address}/.well-known/openid-configuration",
                "MINIO_IDENTITY_OPENID_CLIENT_ID": AUDIENCE,
                "MINIO_IDENTITY_OPENID_ROLE_POLICY": "readwrite",
            }
            with running_minio(program, folder, settings=settings) as server:
                (role,) = set(re.findall(r"arn:minio:iam:::role/\S+", (folder / "log").read_text()))
                yield Trust(plane, server, role)


@pytest.fixture
def token_file(trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the kubelet writes it into a pod."""
    file = tmp_path / "token"
    file.write_text(Cluster(trust.plane.api).token(NAMESPACE, "trainer", AUDIENCE))
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    return file


def test_a_stage_opens_the_store_without_a_key(
    trust: Trust, token_file: Path, make_spec: Callable[..., Any]
) -> None:
    store = open_store(make_spec(store=trust.spec()))
    store.write("identity/x", b"x" * 100)
    assert store.read("identity/x") == b"x" * 100
    assert [entry.path for entry in store.in_bucket("trenchcoat").list("identity/")] == ["identity/x"]
    assert trust.server.store().read("identity/x") == b"x" * 100


def test_who_is_not_trusted_is_told_without_the_token(
    trust: Trust, token_file: Path, make_spec: Callable[..., Any]
) -> None:
    faults = {
        Cluster(trust.plane.api).token(NAMESPACE, "trainer", "somebody-else"): "refuses it .HTTP 4",
        "bm8.bm9uZQ.Z2l2ZW4": "refuses it .HTTP 4",
    }
    for token, message in faults.items():
        token_file.write_text(token)
        with pytest.raises(
            StoreError, match=rf"spec\.store\.webIdentity: .* 'trainer' .*{message}"
        ) as caught:
            open_store(make_spec(store=trust.spec()))
        for error in (caught.value, caught.value.__cause__):
            assert token.split(".")[1] not in f"{error!r}"
        assert caught.value.__cause__ is not None and caught.value.__cause__.__cause__ is None
    token_file.unlink()
    with pytest.raises(StoreError, match="the token of AWS_WEB_IDENTITY_TOKEN_FILE cannot be read"):
        open_store(make_spec(store=trust.spec()))
    with pytest.raises(StoreError, match=r"the STS at http://127\.0\.0\.1:9 cannot be reached"):
        token_file.write_text("a.b.c")
        open_store(make_spec(store=trust.spec(stsEndpoint="http://127.0.0.1:9")))


def test_the_operator_asks_for_a_token_of_the_same(trust: Trust) -> None:
    owner = trenchcoat(store=trust.spec())
    stores = Stores(Cluster(trust.plane.api), lambda *_: None)
    collect = Artifacts(owner.spec).collect
    manifest = world.manifest(collect).model_dump_json(by_alias=True).encode()
    reader = stores.open(owner)
    reader.bucket.put(collect.manifest_path, manifest)
    assert reader.is_complete(collect)
    assert stores.open(owner) is reader
    assert trust.server.store().read(collect.manifest_path) == manifest
    other = trenchcoat(store=trust.spec(serviceAccountName="nobody"))
    with pytest.raises(OperatorStoreError, match="namespace 'ml' has no ServiceAccount 'nobody'") as caught:
        stores.open(other).is_complete(collect)
    assert caught.value.reason == "IdentityRefused"


def test_the_pods_token_is_of_the_audience(trust: Trust, token_file: Path) -> None:
    payload = token_file.read_text().split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"] == [AUDIENCE]
    assert claims["sub"] == f"system:serviceaccount:{NAMESPACE}:trainer"
