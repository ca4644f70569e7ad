"""Ways to a store: proxies, own certificates, IPv6, temporary keys; MinIO is real, the proxy a process."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from huggingface_hub.utils import close_session
from minio.credentials import AssumeRoleProvider
from trenchcoat_s3.connection import Address, Credentials
from trenchcoat_trainer.errors import StoreError
from trenchcoat_trainer.store import S3Store
from trenchcoat_trainer.store.hub import HubRepository

from tests.certificates import self_signed
from tests.components import skip_without
from tests.forwarding_proxy import forwarding
from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer, find_minio, running_minio
from tests.trainer.store.test_hub import COMMIT, serving


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A MinIO with a certificate that nobody trusts."""
    program, folder = find_minio(), tmp_path_factory.mktemp("minio")
    if program is None:
        skip_without("minio")
    self_signed(folder / "certs")
    with running_minio(program, folder) as server:
        yield server


def use(store: S3Store, megabytes: int = 20) -> None:
    """What stages do: a multipart upload, reading by ranges, listing, deleting."""
    data = bytes(range(256)) * 4096 * megabytes
    store.write_stream(
        "ways/large", [data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)], len(data)
    )
    assert store.read("ways/large", 17 << 20, 512) == data[17 << 20 :][:512]
    assert store.size("ways/large") == len(data)
    assert [entry.path for entry in store.list("ways/")] == ["ways/large"]
    store.delete("ways/large")
    assert not store.exists("ways/large")


@pytest.mark.parametrize("login", ["", "me:p@ss"])
def test_through_a_proxy(minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch, login: str) -> None:
    with forwarding(login=login) as proxy:
        before = login.replace("@", "%40") + "@" if login else ""
        monkeypatch.setenv("HTTP_PROXY", f"http://{before}{proxy.address}")
        use(minio_server.store())
    assert any(line.startswith(f"PUT {minio_server.endpoint}/{BUCKET}/ways/large") for line in proxy.asked)


def test_through_a_tunnel(secure: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with forwarding(login="me:p@ss") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@{proxy.address}")
        use(secure.store())
    assert set(proxy.asked) == {f"CONNECT {secure.endpoint.removeprefix('https://')}"}


def test_what_is_excepted_goes_straight_there(
    minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forwarding(refuse=True) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.0/8")
        minio_server.store().check()
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "HTTP_PROXY",
            r"perhaps the proxy http://{proxy} \(HTTP_PROXY\), is no S3 store .HTTP 403, .*Ask your network",
        ),
        (
            "HTTPS_PROXY",
            r"cannot be reached through the proxy http://{proxy} \(HTTPS_PROXY\) .*403.*NO_PROXY",
        ),
    ],
)
def test_a_proxy_that_refuses_is_named(
    minio_server: MinioServer,
    secure: MinioServer,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    message: str,
) -> None:
    server = secure if variable == "HTTPS_PROXY" else minio_server
    with forwarding(refuse=True) as proxy:
        monkeypatch.setenv(variable, f"http://me:secret-word@{proxy.address}")
        for ask in (lambda store: store.check("x/"), lambda store: store.write("x", b"x")):
            with pytest.raises(StoreError, match=message.replace("{proxy}", proxy.address)) as caught:
                ask(server.store())
            assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY"])
def test_a_proxy_that_wants_a_password_is_told(
    minio_server: MinioServer, secure: MinioServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with forwarding(login="me:word") as proxy:
        monkeypatch.setenv(variable, f"http://{proxy.address}")
        with pytest.raises(StoreError, match=r"cannot be reached through the proxy .* 407"):
            (secure if variable == "HTTPS_PROXY" else minio_server).store().check()


def test_what_is_no_proxy_is_told(minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(StoreError, match="variable HTTP_PROXY names no proxy that can be used"):
        minio_server.store()


def test_the_hub_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    close_session()  # the library's client knows the proxies of when it was made
    with serving(tmp_path) as hub, forwarding() as proxy:
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        assert HubRepository("me/llama", "main", endpoint).read("config.json") == b"{}"
    close_session()
    assert any(f"{endpoint}/api/models/me/llama" in line for line in proxy.asked)
    assert any(f"/resolve/{COMMIT}/config.json" in line for line in proxy.asked)


def test_a_certificate_of_ones_own(secure: MinioServer, tmp_path: Path) -> None:
    use(secure.store())
    for bundle in ("", self_signed(tmp_path)):
        with pytest.raises(
            StoreError, match=r"certificate of the store .* is not trusted .*spec\.store\.caBundle"
        ):
            secure.store(ca_bundle=bundle).check()


def test_what_is_no_certificate_is_told(secure: MinioServer) -> None:
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(StoreError, match=r"spec\.store\.caBundle"):
        secure.store(ca_bundle=broken)


def test_ipv6(tmp_path: Path) -> None:
    program = find_minio()
    if program is None:
        skip_without("minio")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running_minio(program, tmp_path, host="[::1]") as server:
        assert server.endpoint.startswith("http://[::1]:")
        use(server.store())


def test_a_temporary_key(minio_server: MinioServer) -> None:
    """MinIO's own STS gives one; without its token it is nobody's."""
    provider = AssumeRoleProvider(
        sts_endpoint=minio_server.endpoint,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        http_client=urllib3.PoolManager(),
    )
    key = provider.retrieve()
    address = Address(minio_server.endpoint, "us-east-1")
    with_token = Credentials(key.access_key, key.secret_key, key.session_token)
    use(S3Store(address, BUCKET, with_token.provider()))
    with pytest.raises(StoreError, match="of a temporary key, sessionToken"):
        S3Store(address, BUCKET, Credentials(key.access_key, key.secret_key).provider()).check()
