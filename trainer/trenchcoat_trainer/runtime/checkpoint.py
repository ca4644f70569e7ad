"""What a stage saves in order to go on after it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trenchcoat_api.artifacts import Artifact

from trenchcoat_trainer.errors import CorruptObjectError
from trenchcoat_trainer.store import Store

if TYPE_CHECKING:
    import torch

Tensors = TypeVar("Tensors")

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

        return self._read(name, lambda path: unpack(self._store.read(path)))

    def state(self, name: str = "state") -> dict[str, Any] | None:
        """The JSON document of the latest checkpoint, whose tensors are not read, or none.

        Raises:
            CorruptObjectError: it cannot be read.
        """
        from trenchcoat_trainer.tensors.headers import parse_header, read_beginning

        found = self._read(name, lambda path: parse_header(read_beginning(self._store, path)))
        return found[1] if found else None

    def names(self) -> list[str]:
        """Names of all checkpoints that are there."""
        paths = [entry.path for entry in self._store.list(self._prefix) if entry.path.endswith(_SUFFIX)]
        return [path.removeprefix(self._prefix).removesuffix(_SUFFIX) for path in paths]

    def _read(
        self, name: str, read: Callable[[str], tuple[Tensors, dict[str, str]]]
    ) -> tuple[Tensors, dict[str, Any]] | None:
        """What `read` makes of an object's tensors, and the JSON document beside them."""
        path = self._path(name)
        if not self._store.exists(path):
            return None
        try:
            tensors, metadata = read(path)
            return tensors, json.loads(metadata[_STATE])
        except (ValueError, KeyError) as error:
            raise CorruptObjectError(
                f"checkpoint {path} in {self._store.name} cannot be read ({error}): delete it to start afresh"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._prefix}{name}{_SUFFIX}"
