"""Hidden states of a set of sequences, in memory or, where they are many, in a temporary file."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from trenchcoat_api.evaluation_states import IN_MEMORY_BYTES


class HiddenStates:
    """The residual stream of every sequence, [sequences, tokens, hidden], updated Cria by Cria."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        size = shape[0] * shape[1] * shape[2]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if size * dtype.itemsize <= IN_MEMORY_BYTES:
            self._states = torch.empty(shape, dtype=dtype)
        else:
            # The file is mapped, so the kernel decides what of it stays in memory.
            self._folder = tempfile.TemporaryDirectory(prefix="trenchcoat-")
            file = str(Path(self._folder.name) / "states")
            self._states = torch.from_file(file, shared=True, size=size, dtype=dtype).view(shape)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yield views of `size` sequences, the last may have fewer; writing to one updates the states."""
        yield from self._states.split(size)

    def close(self) -> None:
        """Delete the file, if there is one."""
        if self._folder is not None:
            self._folder.cleanup()
