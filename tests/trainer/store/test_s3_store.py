"""How the S3 store tells what is wrong; every message names the field at fault."""

import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from trenchcoat_s3.connection import Address, Credentials
from trenchcoat_trainer.errors import StoreError
from trenchcoat_trainer.store import S3Store, open_store, s3


def unreachable(endpoint: str) -> S3Store:
    return S3Store(Address(endpoint, "us-east-1"), "trenchcoat", Credentials("a", "b").provider())


@pytest.fixture
def web_server() -> Iterator[str]:
    """A server that is no S3 store."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>Welcome</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(405)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_missing_bucket_is_named(minio_server) -> None:
    store = minio_server.store(bucket="no-such-bucket")
    with pytest.raises(StoreError, match=r"spec\.store\.bucket 'no-such-bucket' does not exist"):
        store.check()
    with pytest.raises(StoreError, match=r"spec\.store\.bucket 'no-such-bucket' does not exist"):
        store.write("x", b"")
    with pytest.raises(StoreError, match=r"spec\.store\.bucket 'no-such-bucket' does not exist"):
        list(store.list("x"))


@pytest.mark.parametrize("wrong", [{"access_key": "stranger"}, {"secret_key": "not-the-secret"}])
def test_wrong_credentials_are_told(minio_server, wrong: dict[str, str]) -> None:
    store = minio_server.store(**wrong)
    with pytest.raises(StoreError, match=r"refused the credentials.*spec\.store\.credentialsSecretRef"):
        store.check()
    with pytest.raises(StoreError, match=r"refused the credentials"):
        store.read("x")


def test_a_port_where_nothing_listens_fails_soon() -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"spec\.store\.endpoint http://127\.0\.0\.1:9 cannot be reached"):
        unreachable("http://127.0.0.1:9").check()
    assert time.monotonic() - began < 60


def test_a_host_that_does_not_exist_is_told() -> None:
    with pytest.raises(StoreError, match=r"spec\.store\.endpoint https://minio\.invalid cannot be reached"):
        unreachable("https://minio.invalid").check()


def test_a_server_that_is_no_store_is_told(web_server: str) -> None:
    with pytest.raises(StoreError, match=r"spec\.store\.endpoint|the store at"):
        unreachable(web_server).check()


@pytest.fixture
def breaking_server() -> Iterator[str]:
    """A store of one object, 100 kB, that breaks off each answer after 40 kB."""
    data = bytes(range(250)) * 400

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            self.wfile.write(data[first : first + 40_000])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_connection_that_breaks_is_taken_up_where_it_was(
    breaking_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CHUNK_BYTES", 10_000)
    assert unreachable(breaking_server).read("object") == bytes(range(250)) * 400


def test_a_connection_that_breaks_too_often_is_told(
    breaking_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(s3, "RETRIES", 1)
    with pytest.raises(StoreError, match=r"cannot be reached \(.*IncompleteRead"):
        unreachable(breaking_server).read("object")


def test_missing_credentials_are_told(make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store(make_spec())
