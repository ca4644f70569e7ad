"""Opening an S3 store: with an access key, through a proxy, behind a certificate of one's own."""

import ssl
from dataclasses import dataclass, field
from typing import Any

import urllib3
from minio import Minio
from minio.credentials.providers import Provider, StaticProvider

from trenchcoat_s3.proxies import proxy_of


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; a temporary one has a session token."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "Credentials(...)"

    def provider(self) -> Provider:
        """The client's own form of it."""
        return StaticProvider(self.access_key, self.secret_key, self.session_token)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store is waited for, and how many connections to it are kept."""

    connect_seconds: float
    read_seconds: float
    retries: urllib3.Retry
    connections: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is."""

    endpoint: str
    """URL of the S3 API, with http or https."""
    region: str
    """Region of the buckets."""
    ca_bundle: str | None = field(default=None, repr=False)
    """Certificates in PEM, trusted beside those that the system trusts."""


def connect(address: Address, credentials: Provider, patience: Patience) -> Minio:
    """A client of a store; nothing is sent yet.

    Raises:
        UnusableProxyError: a variable names a proxy that is none.
        ssl.SSLError: the certificates are none.
    """
    scheme, _, host = address.endpoint.rstrip("/").partition("://")
    return Minio(
        host,
        credentials=credentials,
        secure=scheme == "https",
        region=address.region,
        http_client=pool(address.endpoint, patience, address.ca_bundle),
    )


def pool(url: str, patience: Patience, ca_bundle: str | None = None) -> urllib3.PoolManager:
    """Connections to a URL, through the proxy that the environment names for it.

    Raises:
        UnusableProxyError: a variable names a proxy that is none.
        ssl.SSLError: the certificates are none.
    """
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=patience.connect_seconds, read=patience.read_seconds),
        "retries": patience.retries,
        "maxsize": patience.connections,
        "ssl_context": trusting(ca_bundle),
    }
    proxy = proxy_of(url)
    if proxy is None:
        return urllib3.PoolManager(**options)
    headers = urllib3.make_headers(proxy_basic_auth=proxy.login) if proxy.login else None
    return urllib3.ProxyManager(
        proxy.url, proxy_headers=headers, proxy_ssl_context=trusting(ca_bundle), **options
    )


def trusting(ca_bundle: str | None) -> ssl.SSLContext:
    """What the system trusts (SSL_CERT_FILE and SSL_CERT_DIR say otherwise), and these certificates.

    Raises:
        ssl.SSLError: they are none.
    """
    context = ssl.create_default_context()
    if ca_bundle:
        context.load_verify_locations(cadata=ca_bundle)
    return context


def again(times: int, backoff_seconds: float) -> urllib3.Retry:
    """How often, and after which pauses, a request is sent again that was not answered, or with 500 to 504.

    POST too, which urllib3 repeats only when told to: what begins or completes an upload, or deletes, may be
    said twice. The last answer is kept, for it has a code that says more than that there were too many. The
    pauses are these alone: MinIO asks for two minutes (Retry-After) while it starts.
    """
    return urllib3.Retry(
        total=times,
        backoff_factor=backoff_seconds,
        status_forcelist=[500, 502, 503, 504],
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
