"""Hidden states of a set of sequences, batch by batch: in memory or, where they are many, in the store.

Memory is the GPU's where it has room, and else the host's: of a small model, bringing a batch there and back
takes as long as a Cria of it. A node's disk would have to hold over a hundred gigabytes at 405B; the store,
which keeps what a stopped evaluation goes on from, takes them anyway. Of states in the store no more than a
few batches are in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from trenchcoat_api.evaluation_states import AHEAD, IN_MEMORY_BYTES

from trenchcoat_trainer.data.prefetch import prefetch
from trenchcoat_trainer.stages.evaluate.saved import SavedStates

State = dict[str, Any]
"""JSON that is saved with a batch."""


@dataclass(frozen=True, slots=True)
class Begin:
    """What states are before the first Cria."""

    numbers: Sequence[int]
    """The batches that are held, of those of the set: counted from 0, in order."""
    tokens: Callable[[int], torch.Tensor]
    """Token ids of a batch, [sequences, tokens], by its number."""
    bytes: int
    """Of all that are held."""


class HiddenStates(Protocol):
    """The residual stream of a rank's sequences, [sequences, tokens, hidden], updated Cria by Cria."""

    @property
    def numbers(self) -> Sequence[int]:
        """The batches that are held, in order."""

    def restore(self) -> dict[int, State | None]:
        """Return what an earlier attempt saved with each batch, by number; None where it begins anew."""

    def batches(self, which: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Yield the batches of these numbers, or all that are held, wherever they are."""

    def update(self, batch: int, hidden: torch.Tensor, state: State) -> None:
        """Let a batch be `hidden` from now on."""


def hold(saved: SavedStates, name: str, begin: Begin, embeddings: torch.Tensor) -> HiddenStates:
    """Return states that are not begun, where their size allows it in memory: where the embeddings are.

    Args:
        saved: what an earlier attempt has left, and where this one saves them.
        name: theirs there.
        begin: what they are at first.
        embeddings: [vocabulary, hidden].
    """
    return (Stored if begin.bytes > IN_MEMORY_BYTES else InMemory)(saved, name, begin, embeddings)


def memory_bytes(begun: Iterable[Begin]) -> int:
    """Bytes of all of these that `hold` has in memory."""
    return sum(begin.bytes for begin in begun if begin.bytes <= IN_MEMORY_BYTES)


class InMemory:
    """States in memory, saved from time to time: `HiddenStates`."""

    def __init__(self, saved: SavedStates, name: str, begin: Begin, embeddings: torch.Tensor) -> None:
        self._saved = saved
        self._name = name
        self._begin = begin
        self._embeddings = embeddings
        self._held: dict[int, torch.Tensor] = {}

    @property
    def numbers(self) -> Sequence[int]:
        """Those that it began with: `HiddenStates.numbers`."""
        return self._begin.numbers

    def restore(self) -> dict[int, State | None]:
        """Load what was saved, and embed the rest: `HiddenStates.restore`."""
        states: dict[int, State | None] = {}
        for batch in self.numbers:
            found = self._saved.load(self._name, batch)
            hidden = found[0] if found else _embed(self._begin, self._embeddings, batch)
            self._held[batch] = hidden.to(self._embeddings.device)
            states[batch] = found[1] if found else None
        return states

    def batches(self, which: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Yield them: `HiddenStates.batches`."""
        yield from (self._held[batch] for batch in (self.numbers if which is None else which))

    def update(self, batch: int, hidden: torch.Tensor, state: State) -> None:
        """Take it, and save it if its turn has come: `HiddenStates.update`."""
        self._held[batch].copy_(hidden)
        self._saved.offer(self._name, batch, self._held[batch], state)


class Stored:
    """States in the store alone, read ahead and written behind: `HiddenStates`."""

    def __init__(self, saved: SavedStates, name: str, begin: Begin, embeddings: torch.Tensor) -> None:
        self._saved = saved
        self._name = name
        self._begin = begin
        self._embeddings = embeddings

    @property
    def numbers(self) -> Sequence[int]:
        """Those that it began with: `HiddenStates.numbers`."""
        return self._begin.numbers

    def restore(self) -> dict[int, State | None]:
        """Read what was saved with them, and no states: `HiddenStates.restore`."""
        return {batch: self._saved.state(self._name, batch) for batch in self.numbers}

    def batches(self, which: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Yield them as they are read: `HiddenStates.batches`."""
        yield from prefetch(self._read, self.numbers if which is None else which, AHEAD)

    def update(self, batch: int, hidden: torch.Tensor, state: State) -> None:
        """Write it, waiting where too many are being written: `HiddenStates.update`."""
        self._saved.keep(self._name, batch, hidden.cpu(), state)

    def _read(self, batch: int) -> torch.Tensor:
        found = self._saved.load(self._name, batch)
        return found[0] if found else _embed(self._begin, self._embeddings, batch)


def _embed(begin: Begin, embeddings: torch.Tensor, batch: int) -> torch.Tensor:
    """[sequences, tokens, hidden] of a batch before the first Cria."""
    return F.embedding(begin.tokens(batch).to(embeddings.device), embeddings)
