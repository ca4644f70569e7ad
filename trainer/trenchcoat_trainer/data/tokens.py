"""Token ids of the training or the held-out text."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from trenchcoat_trainer.data.layout import TOKENS, sequences_per_token_object, token_path
from trenchcoat_trainer.data.order import Order, Piece
from trenchcoat_trainer.data.prefetch import prefetch
from trenchcoat_trainer.runtime.inputs import Inputs

CACHED_OBJECTS = 32


class TokenData:
    """The packed sequences that the tokenize stage made of one split of the text."""

    def __init__(self, inputs: Inputs, split: str = "train") -> None:
        """`split` is train or held_out.

        Raises:
            MissingInputError: the tokenize stage is not complete.
        """
        self._inputs = inputs
        self._split = split
        self._artifact = inputs.artifacts.tokenize
        facts = inputs.manifest(self._artifact).facts.data
        if facts is None or split not in ("train", "held_out"):
            raise ValueError(f"the manifest of {self._artifact.name} has no facts of the split {split!r}")
        self.sequences: int = facts.sequences if split == "train" else facts.held_out_sequences
        self.sequence_length = inputs.spec.data.sequence_length
        self._group_size = sequences_per_token_object(self.sequence_length)
        self._order = Order(self.sequences, self._group_size, inputs.spec.seed)
        self._cache: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def steps(self, batch_size: int, world_size: int = 1) -> int:
        """Batches that each rank gets from an epoch."""
        if world_size == 1:
            return -(-self.sequences // batch_size)
        return self.sequences // (batch_size * world_size)

    def batches(
        self,
        *,
        epoch: int,
        batch_size: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> Iterator[torch.Tensor]:
        """Batches of token ids, int64 [batch, tokens], in an order that depends on seed and epoch alone.

        Step s of rank r is batch s * world_size + r of the epoch. With one rank the last batch may be
        smaller; with more, sequences that do not make a batch for every rank are left out, so that all ranks
        take `steps(batch_size, world_size)` steps.
        """
        skip = start_step * batch_size * world_size
        rows = self._rows(self._order.pieces(epoch, skip=skip, shuffle=shuffle))
        left = self.steps(batch_size, world_size) - start_step
        for _ in range(left):
            for turn in range(world_size):
                batch = [row for _, row in zip(range(batch_size), rows, strict=False)]
                if turn == rank:
                    yield torch.stack(batch).long()

    def shuffled(self, epoch: int, *, skip: int, without: np.ndarray) -> Iterator[torch.Tensor]:
        """Sequences one by one, int32 [tokens], in the order of `batches`, without some.

        Args:
            epoch: number of the epoch.
            skip: sequences of those that are left to begin after.
            without: whether a sequence is left out, bool [sequences].
        """
        return self._rows(self._order.pieces(epoch, skip=skip, without=without))

    def at(self, places: np.ndarray) -> torch.Tensor:
        """Sequences from anywhere in the store, in the order of `places`: int32 [places, tokens].

        Raises:
            CorruptObjectError: an object is not what the manifest says.
        """
        found = (divmod(place, self._group_size) for place in places.tolist())
        return torch.stack([self._object(index)[row] for index, row in found])

    def read(self, first: int, last: int) -> torch.Tensor:
        """Sequences first, ..., last - 1 as stored: int32 [last - first, tokens].

        Raises:
            CorruptObjectError: an object is not what the manifest says.
        """
        parts = []
        for index in range(first // self._group_size, -(-last // self._group_size)):
            start = index * self._group_size
            parts.append(self._object(index)[max(first - start, 0) : last - start])
        return torch.cat(parts)

    def _rows(self, pieces: Iterable[Piece]) -> Iterator[torch.Tensor]:
        return (row for group in prefetch(self._read_piece, pieces) for row in group)

    def _read_piece(self, piece: Piece) -> torch.Tensor:
        return self._read_object(piece.group)[torch.from_numpy(piece.rows)]

    def _object(self, index: int) -> torch.Tensor:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        tokens = self._read_object(index)
        with self._lock:
            self._cache[index] = tokens
            while len(self._cache) > CACHED_OBJECTS:
                self._cache.popitem(last=False)
        return tokens

    def _read_object(self, index: int) -> torch.Tensor:
        return self._inputs.read_tensors(self._artifact, token_path(self._split, index))[TOKENS]
