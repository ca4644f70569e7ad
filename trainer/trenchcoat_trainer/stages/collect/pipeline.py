"""Passing hidden states from one rank to the next."""

import torch
import torch.distributed as dist

from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.ranks import as_bytes, tell_stop, told_stop

_STOP, _GO_ON = 0, 1


def split_layers(layers: int, ranks: int) -> list[range]:
    """Contiguous ranges of layers 0, ..., layers - 1, one for each rank, as equal as can be."""
    bounds = [layers * rank // ranks for rank in range(ranks + 1)]
    return [range(bounds[rank], bounds[rank + 1]) for rank in range(ranks)]


class Pipeline:
    """This rank's place in the chain; rank 0 decides before each batch whether to go on."""

    def __init__(self, context: StageContext, device: torch.device) -> None:
        self._context = context
        self._device = device
        self._rank = context.rank
        self._last = context.world_size - 1
        self._sent: tuple[dist.Work, torch.Tensor] | None = None
        self.stopped = False
        """Whether a stop was requested on any rank; then no batch follows."""

    def agree(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, on every rank."""
        if self._last == 0:
            return numbers
        count = torch.tensor([len(numbers)], device=self._device)
        dist.broadcast(count, 0)
        values = torch.zeros(int(count), dtype=torch.int64, device=self._device)
        if self._rank == 0:
            values.copy_(torch.tensor(numbers, dtype=torch.int64))
        dist.broadcast(values, 0)
        return [int(value) for value in values]

    def go_on(self) -> bool:
        """Whether another batch follows; learnt from the rank before, and told the rank after."""
        tell_stop(self._context.stop)
        if self._last == 0:  # and does not wait for the device
            self.stopped = told_stop(self._context.stop)
            return not self.stopped
        signal = torch.empty(1, dtype=torch.int64, device=self._device)
        if self._rank == 0:
            signal.fill_(_STOP if told_stop(self._context.stop) else _GO_ON)
        else:
            dist.recv(signal, self._rank - 1)
        if self._rank < self._last:
            dist.send(signal, self._rank + 1)
        self.stopped = int(signal) == _STOP
        return not self.stopped

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Hidden states from the rank before."""
        hidden = torch.empty(shape, dtype=dtype, device=self._device)
        dist.recv(as_bytes(hidden), self._rank - 1)
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        """Hand hidden states to the rank after, if there is one, while this one goes on computing."""
        if self._rank == self._last:
            return
        self._finish_sending()
        hidden = hidden.contiguous()
        work = dist.isend(as_bytes(hidden), self._rank + 1)
        if work is not None:
            self._sent = (work, hidden)

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self._finish_sending()
        if self._last > 0:
            dist.barrier()

    def _finish_sending(self) -> None:
        if self._sent is not None:
            self._sent[0].wait()
            self._sent = None
