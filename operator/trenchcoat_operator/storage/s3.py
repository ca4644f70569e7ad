"""Reading manifests and progress reports in the store; the operator never writes there."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from pydantic import BaseModel, ValidationError
from trenchcoat_api.artifacts import Artifact, Manifest, Progress
from trenchcoat_api.spec import Store

Model = TypeVar("Model", bound=BaseModel)

_TIMEOUT = urllib3.Timeout(connect=3, read=8)
_REFUSALS = {
    "AccessDenied",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidTokenId",
    "ExpiredToken",
    "AccountProblem",
}


class StoreError(Exception):
    """The store cannot be used; the reason is a condition's, the message names the field and the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return "Credentials(...)"


ReadObserver = Callable[[str, float], None]
"""Told of every read: manifest or progress, and the seconds that it took."""


def _unobserved(what: str, seconds: float) -> None:
    pass


class StoreReader:
    """One bucket, read with one access key."""

    def __init__(self, store: Store, credentials: Credentials, observe: ReadObserver = _unobserved) -> None:
        self._store = store
        self._observe = observe
        scheme, _, host = store.endpoint.rstrip("/").partition("://")
        self._client = Minio(
            host,
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            secure=scheme == "https",
            region=store.region,
            http_client=urllib3.PoolManager(
                timeout=_TIMEOUT, maxsize=4, retries=urllib3.Retry(total=1, backoff_factor=0.2)
            ),
        )

    def manifest(self, artifact: Artifact) -> Manifest | None:
        """The manifest of an artifact; None while it is not complete.

        Raises:
            StoreError: the store cannot be used, or holds something that is no manifest.
        """
        return self._read(artifact.manifest_path, Manifest)

    def progress(self, artifact: Artifact) -> Progress | None:
        """The latest progress report of an artifact; None before the first.

        Raises:
            StoreError: the store cannot be used.
        """
        try:
            return self._read(artifact.progress_path, Progress)
        except UnreadableError:
            return None  # a report of another version; the next one may be read

    def _read(self, path: str, model: type[Model]) -> Model | None:
        begun = time.monotonic()
        try:
            data = self._get(path)
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise self._explained(error) from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._explained(error) from error
        finally:
            self._observe(model.__name__.lower(), time.monotonic() - begun)
        try:
            return model.model_validate(json.loads(data))
        except (ValueError, ValidationError) as error:
            raise UnreadableError(
                "StoreObjectUnreadable",
                f"s3://{self._store.bucket}/{path} is not what this version of Trenchcoat writes: "
                f"delete it to have it made again ({error})",
            ) from error

    def _get(self, path: str) -> bytes:
        response = self._client.get_object(self._store.bucket, path)
        try:
            data: bytes = response.read()
            return data
        finally:
            response.close()
            response.release_conn()

    def _explained(self, error: Exception) -> StoreError:
        store = self._store
        if isinstance(error, S3Error):
            if error.code == "NoSuchBucket":
                return StoreError(
                    "BucketNotFound",
                    f"spec.store.bucket: {store.endpoint} has no bucket {store.bucket!r}: create it, or name "
                    "one that exists",
                )
            if error.code in _REFUSALS:
                return StoreError(
                    "StoreAccessDenied",
                    f"spec.store.credentialsSecretRef: {store.endpoint} refused the access key for bucket "
                    f"{store.bucket!r} ({error.code}): put a key that may list, read and write the bucket "
                    f"into Secret {store.credentials_secret_ref.name!r}",
                )
            return StoreError(
                "StoreUnreachable",
                f"spec.store.endpoint: {store.endpoint} answered {error.code}: {error.message}",
            )
        if isinstance(error, InvalidResponseError | ServerError):
            return StoreError(
                "StoreUnreachable",
                f"spec.store.endpoint: {store.endpoint} does not answer as an S3 store: set it to the URL of "
                f"the S3 API ({_short(error)})",
            )
        return StoreError(
            "StoreUnreachable",
            f"spec.store.endpoint: {store.endpoint} cannot be reached: check the URL, the name and the "
            f"network ({_short(error)})",
        )


class UnreadableError(StoreError):
    """An object that holds something else than it should."""


def _short(error: Exception) -> str:
    cause = error
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        cause = error.reason
    # Connection objects print their address in memory, which would make every message a new one.
    text = str(cause).rpartition(">: ")[2] or type(cause).__name__
    return text if len(text) <= 300 else text[:299] + "…"


class ManifestCache:
    """Manifests that were read: they never change, so each is read once.

    Only a saving: without it everything is read again. It is bounded, the least recently used go first.
    """

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._manifests: OrderedDict[tuple[StoreReader, str], Manifest] = OrderedDict()

    def get(self, reader: StoreReader, artifact: Artifact) -> Manifest | None:
        """A manifest that was read before, with the same access key."""
        place = (reader, artifact.prefix)
        with self._lock:
            found = self._manifests.get(place)
            if found is not None:
                self._manifests.move_to_end(place)
            return found

    def put(self, reader: StoreReader, artifact: Artifact, manifest: Manifest) -> None:
        """Keep a manifest."""
        with self._lock:
            self._manifests[(reader, artifact.prefix)] = manifest
            while len(self._manifests) > self._limit:
                self._manifests.popitem(last=False)


class Readers:
    """Readers that were opened, so that their connections are used again."""

    def __init__(self, observe: ReadObserver = _unobserved, limit: int = 200) -> None:
        self._observe = observe
        self._limit = limit
        self._lock = threading.Lock()
        self._readers: OrderedDict[tuple[str, str, str, Credentials], StoreReader] = OrderedDict()

    def open(self, store: Store, credentials: Credentials) -> StoreReader:
        """The reader of a bucket with an access key."""
        place = (store.endpoint, store.bucket, store.region, credentials)
        with self._lock:
            reader = self._readers.get(place)
            if reader is None:
                reader = self._readers[place] = StoreReader(store, credentials, self._observe)
            self._readers.move_to_end(place)
            while len(self._readers) > self._limit:
                self._readers.popitem(last=False)
            return reader
