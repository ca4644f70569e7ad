"""Hidden states that enter a Cria and, where they are stored, those that leave it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.phases import rolls

from trenchcoat_trainer.data.layout import HIDDEN, boundary_path, sequences_per_hidden_object
from trenchcoat_trainer.data.order import Order, Piece
from trenchcoat_trainer.data.prefetch import DEPTH, prefetch
from trenchcoat_trainer.data.tokens import TokenData
from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.tensors.recycling import RecycledMemory
from trenchcoat_trainer.tensors.serialization import byte_view


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of hidden states, the raw residual stream, on the CPU in spec.dtype unless embedded."""

    inputs: torch.Tensor
    """[batch, tokens, hidden size]: what enters the Cria's first layer."""
    targets: torch.Tensor | None
    """The same at the next boundary, what leaves the Cria's last layer; none where it is not stored."""


class CriaData:
    """The inputs of one Cria, and its teacher's outputs if asked for."""

    def __init__(
        self,
        inputs: Inputs,
        cria: CriaRange,
        embed: Callable[[torch.Tensor], torch.Tensor],
        with_targets: bool,
    ) -> None:
        """Open the data of a Cria.

        Args:
            inputs: What earlier stages left.
            cria: Which Cria.
            embed: Turns token ids, int64 [batch, tokens], to embeddings: the inputs of Cria 0, which are not
                stored. Called in the consumer's thread.
            with_targets: Whether to read the next boundary too; the last Cria has none.

        Raises:
            MissingInputError: tokenize, or collect where its boundaries are needed, is not complete.
        """
        self._inputs = inputs
        self._embed = embed
        self._entry = cria.index if cria.index > 0 else None
        self._exit = cria.index + 1 if with_targets and cria.index + 1 < len(inputs.crias) else None
        self._tokens = TokenData(inputs)
        model = inputs.manifest(inputs.artifacts.tokenize).facts.model
        if model is None:
            raise ValueError("the manifest of tokenize has no facts of the model")
        spec = inputs.spec
        self.sequences: int = self._tokens.sequences
        size = sequences_per_hidden_object(spec.data.sequence_length, model.hidden_size, spec.dtype)
        self.order = Order(self.sequences, size, spec.seed)
        """The order of reading, by the groups that are an object of a boundary each."""
        # What is read ahead, and the object that is being used, of inputs and of targets.
        self._object_memory = RecycledMemory(spare=2 * (DEPTH + 1))
        # A batch in use, one that is copied to the device, and one in the making, likewise.
        self._batch_memory = RecycledMemory(spare=2 * 3)

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return -(-self.sequences // batch_size)

    def batches(
        self, *, epoch: int, batch_size: int, start_step: int = 0, with_targets: bool = True
    ) -> Iterator[Batch]:
        """Batches in an order that depends on seed and epoch alone; the last may be smaller.

        Without targets the next boundary is not read.

        Raises:
            CorruptObjectError: an object is not what the manifest says.
        """
        pieces = self.order.pieces(epoch, skip=start_step * batch_size)
        read = partial(self._read, with_targets=with_targets)
        rows = (row for group in prefetch(read, pieces) for row in zip(*group, strict=True))
        while batch := list(islice(rows, batch_size)):
            first, *rest = (self._stack(part) for part in zip(*batch, strict=True))
            inputs = self._embed(first.long()) if self._entry is None else first
            yield Batch(inputs, rest[0] if rest else None)

    def groups(self, indices: Iterable[int]) -> Iterator[torch.Tensor]:
        """Inputs of all sequences of each of these groups, as stored: [sequences, tokens, hidden size].

        Raises:
            CorruptObjectError: an object is not what the manifest says.
        """
        pieces = (Piece(index, np.arange(self.order.length(index))) for index in indices)
        for group in prefetch(partial(self._read, with_targets=False), pieces):
            (rows,) = group
            inputs = self._stack(tuple(rows))
            yield self._embed(inputs.long()) if self._entry is None else inputs

    def _stack(self, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        shape, dtype = (len(rows), *rows[0].shape), rows[0].dtype
        if torch.cuda.is_available():  # pinned, so that it is copied to a GPU while that computes
            batch = torch.empty(shape, dtype=dtype, pin_memory=True)
        else:
            memory = self._batch_memory.take(len(rows) * rows[0].nbytes)
            batch = torch.frombuffer(memory, dtype=dtype).view(shape)
        for place, row in zip(batch, rows, strict=True):
            # Not by torch, which would set all cores to copying and have them wait for one another.
            byte_view(place)[:] = byte_view(row)
        return batch

    def _read(self, piece: Piece, *, with_targets: bool) -> list[list[torch.Tensor]]:
        if self._entry is None:
            first = piece.group * self.order.group_size
            parts = [self._tokens.read(first, first + self.order.length(piece.group))]
        else:
            parts = [self._boundary(self._entry, piece.group)]
        if self._exit is not None and with_targets:
            parts.append(self._boundary(self._exit, piece.group))
        # Views: the one copy is made when a batch is put together.
        return [[part[row] for row in piece.rows.tolist()] for part in parts]

    def _boundary(self, boundary: int, group: int) -> torch.Tensor:
        path = boundary_path(boundary, group)
        artifact = boundary_artifact(self._inputs, boundary)
        return self._inputs.read_tensors(artifact, path, self._object_memory)[HIDDEN]


def boundary_artifact(inputs: Inputs, boundary: int) -> Artifact:
    """The artifact that has what enters Cria `boundary`, by the spec's strategy of collection."""
    if rolls(inputs.spec):
        return inputs.artifacts.boundary(inputs.crias[boundary - 1])
    return inputs.artifacts.collect
