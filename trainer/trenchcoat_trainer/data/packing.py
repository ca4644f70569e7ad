"""Packing documents into sequences of equal length, and sequences into objects."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trenchcoat_trainer.data.layout import DOCUMENT_STARTS, TOKENS, sequences_per_token_object

SHUFFLE_TOKENS = 8 * 1024 * 1024
"""Neighbouring sequences come from one document; among this many tokens they are mixed before storing."""

WriteObject = Callable[[int, dict[str, torch.Tensor]], None]


class Packer:
    """Joins documents and cuts them into sequences, objects of which it hands on; what fills none is dropped.

    Everything follows from the documents alone, so that a packer restored from `state` writes the same
    objects as one that was never stopped.
    """

    def __init__(self, sequence_length: int, limit: int, write: WriteObject, *, shuffle: bool) -> None:
        """`limit`: sequences to make at most; `write` is given each object's index and tensors."""
        self._length = sequence_length
        self._limit = limit
        self._write = write
        self._object_size = sequences_per_token_object(sequence_length)
        self._buffer_size = _buffer_size(sequence_length) if shuffle else 1
        self._open = np.empty(0, np.int32)
        self._open_starts: list[int] = []
        self._buffer: list[tuple[np.ndarray, list[int]]] = []
        self._object: list[tuple[np.ndarray, list[int]]] = []
        self._handed_on = 0
        self.documents = 0
        self.cut = 0
        """Sequences cut so far; all of them are stored by `finish`."""

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached and further documents are not wanted."""
        return self.cut >= self._limit

    def add(self, tokens: Sequence[int] | np.ndarray, *, begins: bool = True) -> None:
        """Add one document, or with `begins` false more of the one that was added last."""
        if self.is_full:
            return
        if begins:
            self.documents += 1
            self._open_starts.append(len(self._open))
        self._open = np.concatenate([self._open, np.asarray(tokens, np.int32)])
        while len(self._open) >= self._length and not self.is_full:
            self._cut_sequence()

    def finish(self) -> int:
        """Hand on what is left and return the number of sequences."""
        order = _last_order(self._handed_on, len(self._buffer))
        rest, self._buffer = [self._buffer[index] for index in order], []
        for sequence in rest:
            self._hand_on(sequence)
        if self._object:
            self._write_object()
        return self._handed_on

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and a JSON document from which `restore` goes on."""
        tensors = {
            "open": torch.from_numpy(self._open),
            "buffer": _stack(self._buffer, self._length),
            "object": _stack(self._object, self._length),
        }
        state = {
            "open_starts": self._open_starts,
            "buffer_starts": [starts for _, starts in self._buffer],
            "object_starts": [starts for _, starts in self._object],
            "handed_on": self._handed_on,
            "documents": self.documents,
            "cut": self.cut,
        }
        return tensors, state

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._open = tensors["open"].numpy().copy()
        self._open_starts = list(state["open_starts"])
        self._buffer = list(zip(tensors["buffer"].numpy().copy(), state["buffer_starts"], strict=True))
        self._object = list(zip(tensors["object"].numpy().copy(), state["object_starts"], strict=True))
        self._handed_on = state["handed_on"]
        self.documents = state["documents"]
        self.cut = state["cut"]

    def _cut_sequence(self) -> None:
        length = self._length
        starts = [start for start in self._open_starts if start < length]
        sequence = (self._open[:length].copy(), starts)
        self._open_starts = [start - length for start in self._open_starts if start >= length]
        self._open = self._open[length:]
        self.cut += 1
        if len(self._buffer) < self._buffer_size:
            self._buffer.append(sequence)
            return
        index = _leaving(self._handed_on, self._buffer_size)
        leaving, self._buffer[index] = self._buffer[index], sequence
        self._hand_on(leaving)

    def _hand_on(self, sequence: tuple[np.ndarray, list[int]]) -> None:
        self._object.append(sequence)
        self._handed_on += 1
        if len(self._object) == self._object_size:
            self._write_object()

    def _write_object(self) -> None:
        starts = [(row, start) for row, (_, found) in enumerate(self._object) for start in found]
        tensors = {
            TOKENS: _stack(self._object, self._length),
            DOCUMENT_STARTS: torch.tensor(starts, dtype=torch.int32).view(-1, 2),
        }
        self._write((self._handed_on - 1) // self._object_size, tensors)
        self._object = []


def stored_places(sequences: int, sequence_length: int) -> np.ndarray:
    """Where each of so many shuffled sequences was stored, by its place in the text: int64 [sequences].

    What is mixed with what follows from the numbers alone, so it is worked out anew: sequences i and i + 1 of
    the text are those stored at places[i] and places[i + 1]. Takes about 20 us a sequence.
    """
    size = min(_buffer_size(sequence_length), sequences)
    order = np.empty(sequences, np.int64)
    buffer = np.arange(size)
    for handed_on, arriving in enumerate(range(size, sequences)):
        index = _leaving(handed_on, size)
        order[handed_on], buffer[index] = buffer[index], arriving
    order[sequences - size :] = buffer[_last_order(sequences - size, size)]
    places = np.empty_like(order)
    places[order] = np.arange(sequences)
    return places


def _buffer_size(sequence_length: int) -> int:
    return max(1, SHUFFLE_TOKENS // sequence_length)


def _leaving(handed_on: int, size: int) -> int:
    """Which sequence of a full buffer makes room for the next one."""
    return int(np.random.default_rng([0, handed_on]).integers(size))


def _last_order(handed_on: int, count: int) -> np.ndarray:
    """The order in which those that are left in the buffer are stored."""
    return np.random.default_rng([0, handed_on]).permutation(count)


def _stack(sequences: list[tuple[np.ndarray, list[int]]], length: int) -> torch.Tensor:
    if not sequences:
        return torch.empty((0, length), dtype=torch.int32)
    return torch.from_numpy(np.stack([tokens for tokens, _ in sequences]))
