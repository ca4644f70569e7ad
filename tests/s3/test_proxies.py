"""Which proxy requests to a store go through."""

import pytest
from trenchcoat_s3.proxies import Proxy, UnusableProxyError, proxied, proxy_of

PROXY = "http://proxy.example:3128"
STORE = "https://minio.storage.svc:9000"


@pytest.mark.parametrize(
    ("endpoint", "environment", "variable"),
    [
        (STORE, {"HTTPS_PROXY": PROXY}, "HTTPS_PROXY"),
        (STORE, {"https_proxy": PROXY, "HTTPS_PROXY": "http://other"}, "https_proxy"),
        (STORE, {"https_proxy": "", "HTTPS_PROXY": PROXY}, None),
        (STORE, {"HTTP_PROXY": PROXY}, None),
        ("http://minio:9000", {"HTTP_PROXY": PROXY}, "HTTP_PROXY"),
        (STORE, {"ALL_PROXY": PROXY}, "ALL_PROXY"),
        (STORE, {}, None),
    ],
)
def test_the_variable_by_the_scheme(endpoint: str, environment: dict[str, str], variable: str | None) -> None:
    proxy = proxy_of(endpoint, environment)
    assert (proxy.variable if proxy else None) == variable


@pytest.mark.parametrize(
    ("host", "excepted", "straight"),
    [
        ("minio.storage.svc", "localhost,.svc", True),
        ("minio.storage.svc", "storage.svc", True),
        ("minio.storage.svc", "minio.storage.svc:9000", True),
        ("minio.storage.svc", "minio.storage.svc:9001", False),
        ("minio.storage.svc", "vc", False),
        ("minio.storage.svc", "*", True),
        ("minio.storage.svc", "10.0.0.0/8", False),
        ("10.1.2.3", "localhost, 10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:9000", True),
        ("10.1.2.3", "10.1.2.3:1", False),
        ("10.1.2.3", "10.1.2.4", False),
        ("10.1.2.3", "2.3", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "[fd00::1]:9000", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]", "10.0.0.0/8,::1", False),
    ],
)
def test_what_is_excepted(host: str, excepted: str, straight: bool) -> None:
    environment = {"HTTPS_PROXY": PROXY, "NO_PROXY": excepted}
    assert (proxy_of(f"https://{host}:9000", environment) is None) is straight


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "http:///", "http://proxy:port", "ftp://proxy"])
def test_what_is_no_proxy_is_told_without_its_value(value: str) -> None:
    with pytest.raises(UnusableProxyError, match="variable HTTPS_PROXY names no proxy") as caught:
        proxy_of(STORE, {"HTTPS_PROXY": value})
    assert value not in str(caught.value)


def test_a_password_is_apart_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = proxy_of(STORE, {"HTTPS_PROXY": "http://me:p%40ss@proxy.example:3128/"})
    assert proxy == Proxy("HTTPS_PROXY", PROXY, "me:p@ss")
    assert "p@ss" not in f"{proxy} {proxy!r}"
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ss@proxy.example:3128/")
    monkeypatch.delenv("https_proxy", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxied(STORE) == f"the proxy {PROXY} (HTTPS_PROXY)"


def test_a_name_alone_is_enough() -> None:
    assert proxy_of(STORE, {"HTTPS_PROXY": "proxy.example:3128"}) == Proxy("HTTPS_PROXY", PROXY)
