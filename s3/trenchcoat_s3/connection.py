"""Opening an S3 store with an access key."""

from dataclasses import dataclass

import urllib3
from minio import Minio


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return "Credentials(...)"


def connect(endpoint: str, region: str, credentials: Credentials, http: urllib3.PoolManager) -> Minio:
    """A client of the store at a URL; nothing is sent yet.

    Args:
        endpoint: URL of the S3 API, with http or https.
        region: Region of the buckets.
        credentials: The access key.
        http: Decides how long is waited, how often is tried again, and how many connections are kept.
    """
    scheme, _, host = endpoint.rstrip("/").partition("://")
    return Minio(
        host,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        secure=scheme == "https",
        region=region,
        http_client=http,
    )


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
