"""Hidden states that enter a Cria and, where they are stored, those that leave it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from trenchcoat_api.crias import CriaRange

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
        self._collect = inputs.artifacts.collect
        self._entry = cria.index if cria.index > 0 else None
        self._exit = cria.index + 1 if with_targets and cria.index + 1 < len(inputs.crias) else None
        self._tokens = TokenData(inputs)
        model = inputs.manifest(inputs.artifacts.tokenize).facts.model
        if model is None:
            raise ValueError("the manifest of tokenize has no facts of the model")
        spec = inputs.spec
        self.sequences: int = self._tokens.sequences
        size = sequences_per_hidden_object(spec.data.sequence_length, model.hidden_size, spec.dtype)
        self._order = Order(self.sequences, size, spec.seed)
        # What is read ahead, and the object that is being used, of inputs and of targets.
        self._object_memory = RecycledMemory(spare=2 * (DEPTH + 1))
        # A batch in use, one that is copied to the device, and one in the making, likewise.
        self._batch_memory = RecycledMemory(spare=2 * 3)

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return -(-self.sequences // batch_size)

    def batches(self, *, epoch: int, batch_size: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches in an order that depends on seed and epoch alone; the last may be smaller.

        Raises:
            CorruptObjectError: an object is not what the manifest says.
        """
        pieces = self._order.pieces(epoch, skip=start_step * batch_size)
        rows = (row for group in prefetch(self._read, pieces) for row in zip(*group, strict=True))
        while batch := list(islice(rows, batch_size)):
            first, *rest = (self._stack(part) for part in zip(*batch, strict=True))
            inputs = self._embed(first.long()) if self._entry is None else first
            yield Batch(inputs, rest[0] if rest else None)

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

    def _read(self, piece: Piece) -> list[list[torch.Tensor]]:
        if self._entry is None:
            first = piece.group * self._order.group_size
            parts = [self._tokens.read(first, first + self._order.length(piece.group))]
        else:
            parts = [self._boundary(self._entry, piece.group)]
        if self._exit is not None:
            parts.append(self._boundary(self._exit, piece.group))
        # Views: the one copy is made when a batch is put together.
        return [[part[row] for row in piece.rows.tolist()] for part in parts]

    def _boundary(self, boundary: int, group: int) -> torch.Tensor:
        path = boundary_path(boundary, group)
        return self._inputs.read_tensors(self._collect, path, self._object_memory)[HIDDEN]
