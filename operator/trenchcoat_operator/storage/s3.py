"""Manifests and progress reports in the store, and the deletion of artifacts."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from pydantic import BaseModel, ValidationError
from trenchcoat_api.artifacts import Artifact, Deletion, DeletionPhase, Manifest, Progress
from trenchcoat_api.spec import Store

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")

_DELETED_TOGETHER = 1000
"""S3 deletes no more objects in one request."""

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


_LARGE = threading.Lock()
"""Manifests that take much memory for a moment are read one after another."""
_LARGE_BYTES = 2_000_000
ReadObserver = Callable[[str, float], None]
"""Told of every read: manifest or progress, and the seconds that it took."""


def _unobserved(what: str, seconds: float) -> None:
    pass


class StoreReader:
    """One bucket, used with one access key; it writes nothing but what tells of deletions."""

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
        manifest = self._read(artifact.manifest_path, Manifest)
        return manifest.folded() if manifest is not None else None

    def is_complete(self, artifact: Artifact) -> bool:
        """Whether an artifact's manifest is there.

        Raises:
            StoreError: the store cannot be used.
        """
        try:
            self._client.stat_object(self._store.bucket, artifact.manifest_path)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return False
            raise self._explained(error) from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._explained(error) from error
        return True

    def progress(self, artifact: Artifact) -> Progress | None:
        """The latest progress report of an artifact; None before the first.

        Raises:
            StoreError: the store cannot be used.
        """
        try:
            return self._read(artifact.progress_path, Progress)
        except UnreadableError:
            return None  # a report of another version; the next one may be read

    def deletion(self, artifact: Artifact) -> Deletion | None:
        """What was noted when an artifact was deleted; None if it never was.

        Raises:
            StoreError: the store cannot be used, or holds something else there.
        """
        deletion = self._read(artifact.deletion_path, Deletion)
        if deletion is None or deletion.manifest is None:
            return deletion
        return deletion.model_copy(update={"manifest": deletion.manifest.folded()})

    def holds_any(self, artifact: Artifact) -> bool:
        """Whether any object of an artifact is there.

        Raises:
            StoreError: the store cannot be used.
        """
        return self._try(lambda: next(self._objects(artifact), None) is not None)

    def condemn(self, artifact: Artifact, manifest: Manifest | None) -> None:
        """Note that an artifact will be deleted, then take its manifest away.

        Raises:
            StoreError: the store cannot be used.
        """
        whole = self._read(artifact.manifest_path, Manifest)  # the one at hand names no objects
        if whole is None and manifest is not None:
            return  # somebody else was quicker, as the next look will see
        self._note(artifact, whole, DeletionPhase.CONDEMNED)
        self._try(lambda: self._client.remove_object(self._store.bucket, artifact.manifest_path))

    def restore(self, artifact: Artifact) -> None:
        """Give a condemned artifact its manifest back.

        Raises:
            StoreError: the store cannot be used.
        """
        note = self._read(artifact.deletion_path, Deletion)  # the one at hand names no objects
        if note is not None and note.manifest is not None:
            self._put(artifact.manifest_path, note.manifest)
        self.forget(artifact)

    def purge(self, artifact: Artifact, manifest: Manifest | None, seconds: float) -> bool:
        """Delete an artifact's objects, all but the note; returns whether that was all.

        Args:
            artifact: The artifact, condemned before.
            manifest: Its manifest, for the note.
            seconds: No more objects are begun with after so long.

        Raises:
            StoreError: the store cannot be used, or refused to delete an object.
        """
        self._note(artifact, manifest, DeletionPhase.PURGING)
        if not self._try(lambda: self._delete_objects(artifact, time.monotonic() + seconds)):
            return False
        self._note(artifact, manifest, DeletionPhase.PURGED)
        return True

    def forget(self, artifact: Artifact) -> None:
        """Remove the note of an artifact's deletion.

        Raises:
            StoreError: the store cannot be used.
        """
        self._try(lambda: self._client.remove_object(self._store.bucket, artifact.deletion_path))

    def _objects(self, artifact: Artifact) -> Iterator[str]:
        for item in self._client.list_objects(self._store.bucket, prefix=artifact.prefix, recursive=True):
            yield str(item.object_name)

    def _delete_objects(self, artifact: Artifact, deadline: float) -> bool:
        names = (name for name in self._objects(artifact) if name != artifact.deletion_path)
        while batch := [DeleteObject(name) for name in islice(names, _DELETED_TOGETHER)]:
            for fault in self._client.remove_objects(self._store.bucket, batch):
                raise StoreError(
                    "StoreAccessDenied",
                    f"spec.store.credentialsSecretRef: s3://{self._store.bucket}/{fault.name} cannot be "
                    f"deleted ({fault.code}): put a key that may delete objects into Secret "
                    f"{self._store.credentials_secret_ref.name!r}",
                )
            if time.monotonic() > deadline:
                return next(names, None) is None
        return True

    def _note(self, artifact: Artifact, manifest: Manifest | None, phase: DeletionPhase) -> None:
        self._put(
            artifact.deletion_path, Deletion(phase=phase, manifest=manifest, updated_at=datetime.now(UTC))
        )

    def _put(self, path: str, model: BaseModel) -> None:
        data = model.model_dump_json(by_alias=True).encode()
        self._try(lambda: self._client.put_object(self._store.bucket, path, io.BytesIO(data), len(data)))

    def _try(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._explained(error) from error

    def _read(self, path: str, model: type[Model]) -> Model | None:
        begun = time.monotonic()
        try:
            data = self._try(lambda: self._get(path))
        finally:
            self._observe(model.__name__.lower(), time.monotonic() - begun)
        if data is None:
            return None
        try:
            with _LARGE if len(data) > _LARGE_BYTES else nullcontext():
                return model.model_validate(json.loads(data))
        except (ValueError, ValidationError) as error:
            raise UnreadableError(
                "StoreObjectUnreadable",
                f"s3://{self._store.bucket}/{path} is not what this version of Trenchcoat writes: "
                f"delete it to have it made again ({error})",
            ) from error

    def _get(self, path: str) -> bytes | None:
        try:
            response = self._client.get_object(self._store.bucket, path)
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise
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
