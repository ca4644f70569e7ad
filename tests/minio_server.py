"""A real MinIO server for tests, where its program is found."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3
from minio import MinioAdmin
from minio.credentials import StaticProvider
from trenchcoat_s3.connection import Address, Credentials
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.store import S3Store

from tests.components import built, skip_without
from tests.waiting import until

ACCESS_KEY, SECRET_KEY, BUCKET, REGION = "tester", "a-long-secret", "trenchcoat", "us-east-1"
TAKEN, LISTENS = "port is already in use", "API: http"
"""What MinIO prints."""
TRIES = 5


@dataclass(frozen=True)
class MinioServer:
    """Where the server listens."""

    endpoint: str
    ca_bundle: str | None = None

    def allow(self, user: str, prefix: str, *actions: str) -> dict[str, str]:
        """Make a user who may list a prefix and do this below it; returns its access_key and secret_key."""
        keys = StaticProvider(ACCESS_KEY, SECRET_KEY)
        admin = MinioAdmin(endpoint=urlsplit(self.endpoint).netloc, credentials=keys, secure=False)
        bucket = f"arn:aws:s3:::{BUCKET}"
        below = {"StringLike": {"s3:prefix": [f"{prefix}/*"]}}
        listing = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket], "Condition": below}
        objects = [f"s3:{action}" for action in actions]
        using = {"Effect": "Allow", "Action": objects, "Resource": [f"{bucket}/{prefix}/*"]}
        admin.policy_add(user, policy={"Version": "2012-10-17", "Statement": [listing, using]})
        admin.user_add(user, f"{user}-secret-key")
        admin.policy_set(user, user=user)
        return {"access_key": user, "secret_key": f"{user}-secret-key"}

    def store(self, **changes: str) -> S3Store:
        """Its bucket; `changes` may name another bucket, region, access_key, secret_key or endpoint."""
        keys = (changes.get("access_key", ACCESS_KEY), changes.get("secret_key", SECRET_KEY))
        endpoint, region = changes.get("endpoint", self.endpoint), changes.get("region", REGION)
        address = Address(endpoint, region, changes.get("ca_bundle", self.ca_bundle) or None)
        return S3Store(address, changes.get("bucket", BUCKET), Credentials(*keys).provider())


def find_minio() -> str | None:
    """MinIO's program: named by the environment, in the cache of built components, or on the path."""
    return os.environ.get("TRENCHCOAT_MINIO") or built("minio") or shutil.which("minio")


@contextmanager
def minio_or_skip(folder: Path) -> Iterator[MinioServer]:
    """A server for a test, which is skipped where there is no program."""
    program = find_minio()
    if program is None:
        skip_without("minio")
    with running_minio(program, folder) as server:
        yield server


@contextmanager
def running_minio(
    program: str, folder: Path, host: str = "127.0.0.1", settings: Mapping[str, str] | None = None
) -> Iterator[MinioServer]:
    """A server with its data in this folder, and an empty bucket.

    It speaks TLS where `folder` has certs/public.crt and certs/private.key. `settings` are MinIO's variables.
    """
    keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    environment = os.environ | keys | (settings or {})
    certificate = folder / "certs" / "public.crt"
    ca_bundle = certificate.read_text() if certificate.exists() else None
    with ExitStack() as running:
        for _ in range(TRIES):
            # It cannot choose one for itself.
            address = f"{host}:{free_port()}"
            server = running.enter_context(_process(program, folder, address, environment))
            endpoint = f"{'https' if ca_bundle else 'http'}://{address}"
            if _is_ready(f"{endpoint}/minio/health/ready", server, folder / "log"):
                break
        else:
            pytest.fail(f"MinIO finds every port taken: {(folder / 'log').read_text()}")
        minio = MinioServer(endpoint, ca_bundle)
        minio.store()._client.make_bucket(BUCKET)
        yield minio


@contextmanager
def _process(
    program: str, folder: Path, address: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    command = [program, "server", f"--address={address}", "--console-address=127.0.0.1:0"]
    command += [f"--certs-dir={folder / 'certs'}", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _is_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether it serves; False if another program has taken its port since that was found free."""
    http = urllib3.PoolManager(retries=False, timeout=5.0, cert_reqs="CERT_NONE")

    def became() -> str:
        ended, said = server.poll() is not None, log.read_text()
        if ended and TAKEN in said:
            return TAKEN
        assert not ended, f"MinIO ended: {said}"
        try:
            # Before this one has said that it listens, another test's server may be who answers.
            return LISTENS if LISTENS in said and http.request("GET", url).status == 200 else ""
        except urllib3.exceptions.HTTPError:
            return ""

    found: str = until(became, 180, f"MinIO is ready; see {log}")
    return found == LISTENS
