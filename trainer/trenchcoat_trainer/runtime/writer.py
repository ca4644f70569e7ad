"""Writing an artifact: objects first, their checksums in a journal, the manifest last."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trenchcoat_api.artifacts import (
    LIST_OBJECTS,
    LISTS,
    Artifact,
    Facts,
    Manifest,
    StoredObject,
)
from trenchcoat_api.paces import paces_path
from trenchcoat_api.stored import ObjectList, StoreChecksum

from trenchcoat_trainer.errors import NotFoundError, StoreError
from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.objects import pack_list
from trenchcoat_trainer.store import Readable, S3Store, Store
from trenchcoat_trainer.store.parts import Piece, plan_parts

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

JOURNAL = "journal-"
# What was written since the journal was last saved is computed again after a crash.
JOURNAL_SECONDS = 5.0
JOURNAL_SECONDS_VERSIONED = 60.0
# A journal is rewritten whenever it is saved; a new one begins here, so that this stays cheap.
JOURNAL_OBJECTS = 1000


class ArtifactWriter:
    """Writes an artifact's objects and remembers size and checksum of each, across attempts and ranks.

    A stage that is started again asks `recorded` which objects it need not compute. May be used from several
    threads.
    """

    def __init__(self, store: Store, artifact: Artifact, clock: Clock) -> None:
        self._store = store
        self._artifact = artifact
        self._clock = clock
        self._lock = threading.Lock()
        self._journal: list[StoredObject] = []
        self._journal_name = uuid.uuid4().hex
        self._dirty = False
        self._saved_at = time.monotonic()
        self._recorded: dict[str, StoredObject] = {}
        self.refresh()

    def recorded(self, path: str) -> StoredObject | None:
        """The object of this path if it was written and is still there with its size; else none."""
        return self._recorded.get(path)

    def written(self) -> list[StoredObject]:
        """All objects that were written and are still there, in order of path."""
        with self._lock:
            return [self._recorded[path] for path in sorted(self._recorded)]

    def write(self, path: str, data: bytes) -> StoredObject:
        """Write an object of the artifact; `path` is relative to the artifact's folder."""
        self._store.write(self._artifact.prefix + path, data)
        return self._record(StoredObject(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))

    def write_tensors(self, path: str, tensors: dict[str, torch.Tensor]) -> StoredObject:
        """Write tensors as one safetensors object; they must stay as they are meanwhile."""
        from trenchcoat_trainer.tensors.serialization import pieces

        parts = pieces(tensors)
        return self.write_stream(path, parts, sum(map(len, parts)))

    def write_stream(self, path: str, chunks: Iterable[bytes | memoryview], size: int) -> StoredObject:
        """Write an object of `size` bytes from pieces, holding a few of them in memory at a time."""
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes | memoryview]:
            for chunk in chunks:
                digest.update(chunk)
                yield chunk

        self._store.write_stream(self._artifact.prefix + path, hashed(), size)
        return self._record(StoredObject(path=path, size=size, sha256=digest.hexdigest()))

    def can_copy(self, source: Readable) -> bool:
        """Whether objects of `source` are in the S3 store that this writes to."""
        return isinstance(self._store, S3Store) and self._store.is_beside(source)

    def copy_spans(self, path: str, pieces: list[Piece], source: Readable) -> StoredObject | None:
        """Write an object from bytes and spans of objects of `source`, which the store copies by itself.

        Returns:
            None, and nothing written, where the store cannot, or there is nothing large enough to copy.
        """
        store = self._store
        if not isinstance(store, S3Store) or not isinstance(source, S3Store) or not self.can_copy(source):
            return None
        parts = plan_parts(pieces)
        if not any(part.is_copied for part in parts):
            return None
        scratch = f"{self._artifact.checkpoint_prefix}parts-{uuid.uuid4().hex}-"
        composed = store.compose(self._artifact.prefix + path, parts, source, scratch)
        if composed is None:
            return None
        checksum = StoreChecksum(etag=composed.etag, part_sizes=composed.part_sizes)
        return self._record(StoredObject(path=path, size=sum(composed.part_sizes), by_store=checksum))

    def save_journal(self) -> None:
        """Make what was written so far known to the next attempt and to the other ranks."""
        with self._lock:
            self._save_journal()

    def refresh(self) -> None:
        """Read the journals of all attempts and ranks."""
        prefix = self._artifact.prefix
        journals = f"{self._artifact.checkpoint_prefix}{JOURNAL}"
        found: dict[str, StoredObject] = {}
        for entry in self._store.list(journals):
            try:
                journal = json.loads(self._store.read(entry.path))
            except NotFoundError:
                continue  # another rank found the artifact complete and deletes what it needs no longer
            for item in journal:
                stored = StoredObject.model_validate(item)
                found[stored.path] = stored
        if found:
            sizes = {entry.path.removeprefix(prefix): entry.size for entry in self._store.list(prefix)}
            found = {path: stored for path, stored in found.items() if sizes.get(path) == stored.size}
        with self._lock:
            self._recorded = found | {stored.path: stored for stored in self._journal}

    def finish(self, facts: Facts | None = None) -> Manifest:
        """Write the manifest of all recorded objects; the artifact is then complete. One rank alone."""
        self.save_journal()
        self.refresh()
        artifact = self._artifact
        objects = [self._recorded[path] for path in sorted(self._recorded)]
        lists = self._write_lists(objects) if len(objects) > LIST_OBJECTS else []
        manifest = Manifest(
            stage=artifact.stage,
            cria=artifact.cria.index if artifact.cria else None,
            key=artifact.key,
            inputs=list(artifact.inputs),
            objects=[] if lists else objects,
            lists=lists,
            facts=facts or Facts(),
            started_at=self._clock.started_at,
            completed_at=datetime.now(UTC),
            seconds=self._clock.seconds,
        )
        paces = self._clock.paces.told(self._clock.ranks).model_dump_json(by_alias=True, indent=1)
        self._store.write(paces_path(artifact), paces.encode())
        without = None if lists else {"lists"}
        document = manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1, exclude=without)
        self._store.write(artifact.manifest_path, document.encode())
        self.delete_checkpoints()
        return manifest

    def delete_checkpoints(self) -> None:
        """Delete what a complete artifact needs no longer: checkpoints and journals.

        Where the store refuses they stay: the artifact is complete all the same.
        """
        for entry in list(self._store.list(self._artifact.checkpoint_prefix)):
            try:
                self._store.delete(entry.path)
            except StoreError as error:
                logger.warning("what was saved on the way stays, though nobody needs it: %s", error)
                return

    def _write_lists(self, objects: list[StoredObject]) -> list[ObjectList]:
        lists = []
        for number, start in enumerate(range(0, len(objects), LIST_OBJECTS)):
            part = objects[start : start + LIST_OBJECTS]
            data = pack_list(part)
            path = f"{LISTS}{number:05d}.jsonl"
            self._store.write(self._artifact.prefix + path, data)
            lists.append(
                ObjectList(
                    path=path,
                    sha256=hashlib.sha256(data).hexdigest(),
                    first=part[0].path,
                    count=len(part),
                    size=sum(item.size for item in part),
                )
            )
        return lists

    def _record(self, stored: StoredObject) -> StoredObject:
        with self._lock:
            self._recorded[stored.path] = stored
            self._journal.append(stored)
            self._dirty = True
            full = len(self._journal) >= JOURNAL_OBJECTS
            pause = JOURNAL_SECONDS_VERSIONED if self._store.keeps_versions else JOURNAL_SECONDS
            if full or time.monotonic() - self._saved_at > pause:
                self._save_journal()
            if full:
                self._journal = []
                self._journal_name = uuid.uuid4().hex
        return stored

    def _save_journal(self) -> None:
        if self._dirty:
            items = [stored.model_dump(by_alias=True, exclude_none=True) for stored in self._journal]
            path = f"{self._artifact.checkpoint_prefix}{JOURNAL}{self._journal_name}.json"
            self._store.write(path, json.dumps(items).encode())
        self._dirty = False
        self._saved_at = time.monotonic()
