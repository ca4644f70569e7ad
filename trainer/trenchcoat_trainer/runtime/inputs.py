"""Reading what earlier stages left, each object checked against its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError
from trenchcoat_api.artifacts import Artifact, Artifacts, Manifest, StoredObject
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import CorruptObjectError, MissingInputError, NotFoundError
from trenchcoat_trainer.runtime.checksums import digest_of
from trenchcoat_trainer.runtime.objects import ObjectIndex
from trenchcoat_trainer.store import Store
from trenchcoat_trainer.tensors.recycling import RecycledMemory

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(kw_only=True)
class Inputs:
    """The artifacts that a spec asks for, as far as they are in the store."""

    spec: TrenchcoatSpec
    store: Store
    artifacts: Artifacts
    crias: list[CriaRange]
    """All Crias; empty before tokenize has read the model's number of layers."""
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    _objects: dict[str, ObjectIndex] = field(default_factory=dict)

    def manifest(self, artifact: Artifact) -> Manifest:
        """The manifest of an input.

        Raises:
            MissingInputError: the input is not complete.
            CorruptObjectError: its manifest cannot be read.
        """
        if artifact.key not in self._manifests:
            self._manifests[artifact.key] = read_manifest(self.store, artifact)
        return self._manifests[artifact.key]

    def stored_object(self, artifact: Artifact, path: str) -> StoredObject:
        """What the manifest of an input says of one of its objects; `path` is relative to its folder.

        Raises:
            MissingInputError: the input is not complete.
            NotFoundError: its manifest lists no such object.
        """
        return self._index(artifact).find(path)

    def object_paths(self, artifact: Artifact) -> Iterator[str]:
        """Paths of all objects of an input, relative to its folder, in order.

        Raises:
            MissingInputError: the input is not complete.
        """
        return self._index(artifact).paths()

    def read_object(self, artifact: Artifact, path: str) -> bytes:
        """The content of an input's object.

        Raises:
            CorruptObjectError: size or checksum differ from the manifest.
        """
        return bytes(self._read(artifact, path))

    def read_tensors(
        self,
        artifact: Artifact,
        path: str,
        memory: RecycledMemory | None = None,
        between: Callable[[], None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The tensors of an input's safetensors object, on the CPU.

        Args:
            artifact: the input.
            path: the object, relative to its folder.
            memory: what memory is taken from, if given.
            between: called after every piece that has come; what it raises ends the reading.

        Raises:
            CorruptObjectError: size or checksum differ from the manifest.
        """
        from trenchcoat_trainer.tensors.serialization import unpack

        return unpack(self._read(artifact, path, memory, between))[0]

    def _index(self, artifact: Artifact) -> ObjectIndex:
        if artifact.key not in self._objects:
            self._objects[artifact.key] = ObjectIndex(self.store, artifact, self.manifest(artifact))
        return self._objects[artifact.key]

    def _read(
        self,
        artifact: Artifact,
        path: str,
        memory: RecycledMemory | None = None,
        between: Callable[[], None] | None = None,
    ) -> bytearray | np.ndarray:
        stored = self.stored_object(artifact, path)
        data = bytearray(stored.size) if memory is None else memory.take(stored.size)
        target = memoryview(data)
        digest, size = digest_of(stored), 0
        for chunk in self.store.stream(artifact.prefix + path):
            if size + len(chunk) <= stored.size:
                digest.update(chunk)
                target[size : size + len(chunk)] = chunk
            size += len(chunk)
            if size > stored.size:
                break
            if between is not None:
                between()
        _check(stored, artifact, size, digest.matches())
        return data


def read_manifest(store: Store, artifact: Artifact) -> Manifest:
    """Read an artifact's manifest from the store.

    Raises:
        MissingInputError: there is none: the artifact is not complete.
        CorruptObjectError: it cannot be read.
    """
    try:
        data = store.read(artifact.manifest_path)
    except NotFoundError as error:
        raise MissingInputError(
            f"{artifact.name} is not complete: {artifact.manifest_path} is not in {store.name}; "
            f"run the {artifact.stage} stage first"
        ) from error
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptObjectError(
            f"{artifact.manifest_path} is no manifest: delete it, and the {artifact.stage} stage goes on"
        ) from error


def _check(stored: StoredObject, artifact: Artifact, size: int, matches: bool) -> None:
    if size == stored.size and matches:
        return
    fault = (
        f"has {size} bytes in place of {stored.size}" if size != stored.size else "does not have its checksum"
    )
    raise CorruptObjectError(
        f"object {artifact.prefix}{stored.path} {fault}: delete {artifact.manifest_path} and the object, "
        f"and the {artifact.stage} stage makes it anew"
    )
