"""Making the teacher and the text, and putting them into the store."""

import subprocess
import sys
from pathlib import Path

from minio import Minio
from minio.deleteobjects import DeleteObject

from demo.environment import BUCKET, DemoError, Environment

TEACHER = Path(__file__).resolve().parents[2] / "examples" / "tiny_teacher.py"
PREFIX = "trenchcoat/"


def make_teacher(store: Path) -> None:
    """Train the teacher of examples/tiny.yaml, or take it from the cache, into a folder store."""
    result = subprocess.run([sys.executable, str(TEACHER), "--store", str(store)], check=False)
    if result.returncode:
        raise DemoError("examples/tiny_teacher.py failed; see above")


def client(environment: Environment, address: str) -> Minio:
    """An S3 client for the store, at an address of this machine."""
    access_key, secret_key = environment.store_credentials()
    return Minio(address, access_key=access_key, secret_key=secret_key, secure=False)


def upload(environment: Environment, store: Path, *, fresh_prefix: bool) -> None:
    """Put teacher and text into the bucket; with `fresh_prefix`, remove what an earlier run left there."""
    with environment.store_address() as address:
        store_client = client(environment, address)
        if fresh_prefix:
            old = store_client.list_objects(bucket_name=BUCKET, prefix=PREFIX, recursive=True)
            names = [DeleteObject(item.object_name) for item in old if item.object_name]
            for error in store_client.remove_objects(bucket_name=BUCKET, delete_object_list=names):
                raise DemoError(f"an object of an earlier run cannot be removed: {error}")
        for folder in ("teachers", "corpora"):
            for file in sorted((store / BUCKET / folder).rglob("*")):
                if file.is_file():
                    name = file.relative_to(store / BUCKET).as_posix()
                    store_client.fput_object(bucket_name=BUCKET, object_name=name, file_path=str(file))
