"""What the operator says of a store that it cannot use. (Reading a real one is tested in tests/cluster.)"""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.storage.bucket import Bucket
from trenchcoat_operator.storage.errors import StoreError
from trenchcoat_operator.storage.reader import StoreReader
from trenchcoat_s3.connection import Credentials
from trenchcoat_trainer.runtime.ports import free_port

from tests.operator.simulation import trenchcoat

KEY = Credentials("accessed-by", "kept-secret")


def fault(owner: Trenchcoat) -> StoreError:
    with pytest.raises(StoreError) as caught:
        StoreReader(Bucket(owner.spec.store, KEY)).manifest(Artifacts(owner.spec).tokenize)
    assert KEY.secret_key not in caught.value.message
    return caught.value


def at(endpoint: str) -> Trenchcoat:
    return trenchcoat(store={"endpoint": endpoint})


@pytest.fixture
def web_page() -> Iterator[int]:
    """A server that is no S3 store."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>no such page</html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_nobody_listens() -> None:
    error = fault(at(f"http://127.0.0.1:{free_port()}"))  # which the kernel gives to nobody
    assert error.reason == "StoreUnreachable"
    assert error.message.startswith("spec.store.endpoint: ")
    assert "0x" not in error.message, "addresses in memory would make every message a new one"


def test_a_name_with_a_typo() -> None:
    error = fault(at("http://minio.invalid:9000"))
    assert error.reason == "StoreUnreachable"
    assert "minio.invalid" in error.message


def test_a_web_server_that_is_no_store(web_page: int) -> None:
    error = fault(at(f"http://127.0.0.1:{web_page}"))
    assert error.reason == "StoreUnreachable"
    assert "S3" in error.message
