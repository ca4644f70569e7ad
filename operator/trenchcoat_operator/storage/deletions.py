"""Deleting artifacts, step by step: notes of it are written, and manifests that are given back."""

import time
from datetime import UTC, datetime
from itertools import islice

from pydantic import BaseModel
from trenchcoat_api.artifacts import Artifact, Deletion, DeletionPhase, Manifest

from trenchcoat_operator.storage import bucket
from trenchcoat_operator.storage.reader import StoreReader


class Deletions:
    """The steps, in one bucket. Each raises StoreError where the store cannot be used."""

    def __init__(self, reader: StoreReader) -> None:
        self._reader = reader
        self._bucket = reader.bucket

    def condemn(self, artifact: Artifact, manifest: Manifest | None) -> None:
        """Note that an artifact will be deleted, then take its manifest away."""
        whole = self._reader.read(artifact.manifest_path, Manifest)  # the one at hand names no objects
        if whole is None and manifest is not None:
            return  # somebody else was quicker, as the next look will see
        self._note(artifact, whole, DeletionPhase.CONDEMNED)
        self._bucket.remove(artifact.manifest_path)

    def restore(self, artifact: Artifact) -> None:
        """Give a condemned artifact its manifest back."""
        note = self._reader.read(artifact.deletion_path, Deletion)  # the one at hand names no objects
        if note is not None and note.manifest is not None:
            self._put(artifact.manifest_path, note.manifest)
        self.forget(artifact)

    def purge(self, artifact: Artifact, manifest: Manifest | None, seconds: float) -> bool:
        """Delete an artifact's objects, all but the note; returns whether that was all.

        Args:
            artifact: The artifact, condemned before.
            manifest: Its manifest, for the note.
            seconds: No more objects are begun with after so long.
        """
        self._note(artifact, manifest, DeletionPhase.PURGING)
        if not self._delete_objects(artifact, time.monotonic() + seconds):
            return False
        self._note(artifact, manifest, DeletionPhase.PURGED)
        return True

    def forget(self, artifact: Artifact) -> None:
        """Remove the note of an artifact's deletion."""
        self._bucket.remove(artifact.deletion_path)

    def _delete_objects(self, artifact: Artifact, deadline: float) -> bool:
        paths = (path for path in self._bucket.list(artifact.prefix) if path != artifact.deletion_path)
        while batch := list(islice(paths, bucket.DELETED_TOGETHER)):
            self._bucket.remove_all(batch)
            if time.monotonic() > deadline:
                return next(paths, None) is None
        return True

    def _note(self, artifact: Artifact, manifest: Manifest | None, phase: DeletionPhase) -> None:
        note = Deletion(phase=phase, manifest=manifest, updated_at=datetime.now(UTC))
        self._put(artifact.deletion_path, note)

    def _put(self, path: str, model: BaseModel) -> None:
        self._bucket.put(path, model.model_dump_json(by_alias=True).encode())
