"""What a stage saves in order to go on after it was stopped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trenchcoat_api.artifacts import Artifact

from trenchcoat_trainer.errors import CorruptObjectError
from trenchcoat_trainer.store import Store

if TYPE_CHECKING:
    import torch

_STATE = "state"
_SUFFIX = ".safetensors"


class Checkpoint:
    """Tensors and a JSON document in one safetensors object, replaced as a whole; never pickle."""

    def __init__(self, store: Store, artifact: Artifact) -> None:
        self._store = store
        self._prefix = artifact.checkpoint_prefix

    def save(self, tensors: dict[str, torch.Tensor], state: dict[str, Any], name: str = "state") -> None:
        """Replace the checkpoint; `state` must be JSON. Ranks that keep one each give it a `name`."""
        from trenchcoat_trainer.tensors.serialization import pack

        self._store.write(self._path(name), pack(tensors, {_STATE: json.dumps(state)}))

    def load(self, name: str = "state") -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The latest checkpoint, on the CPU, or none.

        Raises:
            CorruptObjectError: it cannot be read.
        """
        from trenchcoat_trainer.tensors.serialization import unpack

        path = self._path(name)
        if not self._store.exists(path):
            return None
        try:
            tensors, metadata = unpack(self._store.read(path))
            return tensors, json.loads(metadata[_STATE])
        except (ValueError, KeyError) as error:
            raise self._unreadable(path, error) from error

    def state(self, name: str = "state") -> dict[str, Any] | None:
        """The JSON document of the latest checkpoint, whose tensors are not read, or none.

        Raises:
            CorruptObjectError: it cannot be read.
        """
        from trenchcoat_trainer.tensors.headers import header_end, parse_header

        path = self._path(name)
        if not self._store.exists(path):
            return None
        try:
            end = header_end(self._store.read(path, 0, 8))
            _, metadata = parse_header(self._store.read(path, 0, end))
            state: dict[str, Any] = json.loads(metadata[_STATE])
            return state
        except (ValueError, KeyError) as error:
            raise self._unreadable(path, error) from error

    def names(self) -> list[str]:
        """Names of all checkpoints that are there."""
        paths = [entry.path for entry in self._store.list(self._prefix) if entry.path.endswith(_SUFFIX)]
        return [path.removeprefix(self._prefix).removesuffix(_SUFFIX) for path in paths]

    def _unreadable(self, path: str, error: Exception) -> CorruptObjectError:
        return CorruptObjectError(
            f"checkpoint {path} in {self._store.name} cannot be read ({error}): delete it to start afresh"
        )

    def _path(self, name: str) -> str:
        return f"{self._prefix}{name}{_SUFFIX}"
