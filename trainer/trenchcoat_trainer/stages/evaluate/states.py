"""Hidden states of a set of sequences, batch by batch: in memory or, where they are many, in the store.

A node's disk would have to hold over a hundred gigabytes at 405B; the store, which keeps what a stopped
evaluation goes on from, takes them anyway. Of states in the store no more than a few batches are in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from trenchcoat_api.evaluation_states import AHEAD, IN_MEMORY_BYTES

from trenchcoat_trainer.data.prefetch import prefetch
from trenchcoat_trainer.stages.evaluate.saved import SavedStates

State = dict[str, Any]
"""JSON that is saved with a batch."""


@dataclass(frozen=True, slots=True)
class Begin:
    """What states are before the first Cria."""

    batches: int
    embed: Callable[[int], torch.Tensor]
    """The embeddings of a batch, [sequences, tokens, hidden] on the CPU, by its number."""
    bytes: int
    """Of all batches."""


class HiddenStates(Protocol):
    """The residual stream of every sequence, [sequences, tokens, hidden], updated Cria by Cria."""

    def restore(self) -> list[State | None]:
        """Return what an earlier attempt saved with each batch; None where it begins anew."""

    def batches(self, which: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Yield the batches of these numbers, or all, on the CPU."""

    def update(self, batch: int, hidden: torch.Tensor, state: State) -> None:
        """Let a batch be `hidden` from now on."""


def hold(saved: SavedStates, name: str, begin: Begin) -> HiddenStates:
    """Return states that are not begun, where their size allows it in memory."""
    return (Stored if begin.bytes > IN_MEMORY_BYTES else InMemory)(saved, name, begin)


class InMemory:
    """States in memory, saved from time to time: `HiddenStates`."""

    def __init__(self, saved: SavedStates, name: str, begin: Begin) -> None:
        self._saved = saved
        self._name = name
        self._begin = begin
        self._held: list[torch.Tensor] = []

    def restore(self) -> list[State | None]:
        """Load what was saved, and embed the rest: `HiddenStates.restore`."""
        states: list[State | None] = []
        for batch in range(self._begin.batches):
            found = self._saved.load(self._name, batch)
            self._held.append(found[0] if found else self._begin.embed(batch))
            states.append(found[1] if found else None)
        return states

    def batches(self, which: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Yield them: `HiddenStates.batches`."""
        yield from (self._held[batch] for batch in _numbers(which, self._begin))

    def update(self, batch: int, hidden: torch.Tensor, state: State) -> None:
        """Take it, and save it if its turn has come: `HiddenStates.update`."""
        self._held[batch].copy_(hidden)
        self._saved.offer(self._name, batch, self._held[batch], state)


class Stored:
    """States in the store alone, read ahead and written behind: `HiddenStates`."""

    def __init__(self, saved: SavedStates, name: str, begin: Begin) -> None:
        self._saved = saved
        self._name = name
        self._begin = begin

    def restore(self) -> list[State | None]:
        """Read what was saved with them, and no states: `HiddenStates.restore`."""
        return [self._saved.state(self._name, batch) for batch in range(self._begin.batches)]

    def batches(self, which: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Yield them as they are read: `HiddenStates.batches`."""
        yield from prefetch(self._read, _numbers(which, self._begin), AHEAD)

    def update(self, batch: int, hidden: torch.Tensor, state: State) -> None:
        """Write it, waiting where too many are being written: `HiddenStates.update`."""
        self._saved.keep(self._name, batch, hidden.cpu(), state)

    def _read(self, batch: int) -> torch.Tensor:
        found = self._saved.load(self._name, batch)
        return found[0] if found else self._begin.embed(batch)


def _numbers(which: Sequence[int] | None, begin: Begin) -> Iterable[int]:
    return range(begin.batches) if which is None else which
