"""What stands in a store of an artifact: its manifest, its progress, and the note of its deletion."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from trenchcoat_api.artifacts import Artifact, Deletion, Manifest, Progress

from trenchcoat_operator.storage.bucket import Bucket
from trenchcoat_operator.storage.errors import UnreadableError

Model = TypeVar("Model", bound=BaseModel)

_LARGE = threading.Lock()
"""Manifests that take much memory for a moment are read one after another."""
_LARGE_BYTES = 2_000_000
ReadObserver = Callable[[str, float], None]
"""Told of every read: manifest, progress or deletion, and the seconds that it took."""


def _unobserved(what: str, seconds: float) -> None:
    pass


class StoreReader:
    """Reads in one bucket, with one access key."""

    def __init__(self, bucket: Bucket, observe: ReadObserver = _unobserved) -> None:
        self.bucket = bucket
        self._observe = observe

    def manifest(self, artifact: Artifact) -> Manifest | None:
        """The manifest of an artifact; None while it is not complete.

        Raises:
            StoreError: the store cannot be used, or holds something that is no manifest.
        """
        manifest = self.read(artifact.manifest_path, Manifest)
        return manifest.folded() if manifest is not None else None

    def is_complete(self, artifact: Artifact) -> bool:
        """Whether an artifact's manifest is there.

        Raises:
            StoreError: the store cannot be used.
        """
        return self.bucket.has(artifact.manifest_path)

    def progress(self, artifact: Artifact) -> Progress | None:
        """The latest progress report of an artifact; None before the first.

        Raises:
            StoreError: the store cannot be used.
        """
        try:
            return self.read(artifact.progress_path, Progress)
        except UnreadableError:
            return None  # a report of another version; the next one may be read

    def deletion(self, artifact: Artifact) -> Deletion | None:
        """What was noted when an artifact was deleted; None if it never was.

        Raises:
            StoreError: the store cannot be used, or holds something else there.
        """
        deletion = self.read(artifact.deletion_path, Deletion)
        if deletion is None or deletion.manifest is None:
            return deletion
        return deletion.model_copy(update={"manifest": deletion.manifest.folded()})

    def holds_any(self, artifact: Artifact) -> bool:
        """Whether any object of an artifact is there.

        Raises:
            StoreError: the store cannot be used.
        """
        return next(self.bucket.list(artifact.prefix), None) is not None

    def read(self, path: str, model: type[Model]) -> Model | None:
        """An object as a model, whole; None if there is none.

        Raises:
            StoreError: the store cannot be used.
            UnreadableError: the object holds something else.
        """
        begun = time.monotonic()
        try:
            data = self.bucket.get(path)
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
                f"{self.bucket.uri(path)} is not what this version of Trenchcoat writes: "
                f"delete it to have it made again ({error})",
            ) from error
