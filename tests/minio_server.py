"""A real MinIO server for tests, where its program is found."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
from trenchcoat_trainer.runtime.processes import free_port
from trenchcoat_trainer.store import S3Store

from tests.components import built, skip_without

ACCESS_KEY, SECRET_KEY, BUCKET, REGION = "tester", "a-long-secret", "trenchcoat", "us-east-1"


@dataclass(frozen=True)
class MinioServer:
    """Where the server listens."""

    endpoint: str

    def store(self, **changes: str) -> S3Store:
        options = {
            "endpoint": self.endpoint,
            "bucket": BUCKET,
            "region": REGION,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
        }
        return S3Store(**(options | changes))


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
def running_minio(program: str, folder: Path) -> Iterator[MinioServer]:
    """A server with its data in this folder, and an empty bucket."""
    port = free_port()
    environment = os.environ | {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                program,
                "server",
                f"--address=127.0.0.1:{port}",
                "--console-address=127.0.0.1:0",
                folder / "data",
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/minio/health/ready", server, folder / "log")
        minio = MinioServer(f"http://127.0.0.1:{port}")
        minio.store()._client.make_bucket(BUCKET)
        yield minio
    finally:
        server.terminate()
        server.wait(10)


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    http = urllib3.PoolManager(retries=False, timeout=1.0)
    for _ in range(300):
        if server.poll() is not None:
            pytest.fail(f"MinIO ended: {log.read_text()}")
        try:
            if http.request("GET", url).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(f"MinIO does not become ready: {log.read_text()}")
