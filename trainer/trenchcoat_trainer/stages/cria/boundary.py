"""Rolling collection: what leaves a Cria is stored for the next one, as attention transfer passes by.

Shape letters: B batch, T tokens, E hidden size.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch
from trenchcoat_trainer.data import Batch, CriaData
from trenchcoat_trainer.data.layout import HIDDEN, boundary_path
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.background import BackgroundWriter
from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.writer import ArtifactWriter
from trenchcoat_trainer.stages.cria.running import MicroBatches
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, loss_weights

logger = logging.getLogger(__name__)

ThroughStep = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Computes losses, gradients and the stream that leaves the Cria, as `transfer_through`."""
PHASE = "boundary"


@dataclass(slots=True)
class _Group:
    """The sequences of one object, as far as they were computed."""

    rows: torch.Tensor
    """[sequences, T, E], on the CPU, pinned where they come from a GPU."""
    missing: int
    copied: torch.cuda.Event | None = None
    """When a GPU has copied the last of them."""


class NextBoundary:
    """The boundary that a Cria leaves for the next: the same objects as collection writes.

    Sequences come in the order of the first epoch; that of the objects in the store is another. An object is
    written once all of its sequences have come. What an attempt had begun as it ended is computed at the end.
    """

    def __init__(self, context: StageContext, cria: CriaModel, data: CriaData, through: ThroughStep) -> None:
        """Nothing is computed yet.

        Args:
            context: the stage's context; its Cria is not the last.
            cria: the layers, with the attention that is being trained.
            data: what enters them.
            through: runs them on a micro-batch.
        """
        assert context.cria is not None  # noqa: S101
        self.artifact = context.artifacts.boundary(context.cria)
        self.is_complete = context.store.exists(self.artifact.manifest_path)
        self._context, self._cria, self._data, self._through = context, cria, data, through
        self._order = data.order
        self._clock = Clock(context.store, self.artifact)
        self._writer = ArtifactWriter(context.store, self.artifact, self._clock)
        if self.is_complete:
            self._writer.delete_checkpoints()  # an attempt that was killed as it finished has left some
        self._background = BackgroundWriter(self._writer)
        self._groups: dict[int, _Group] = {}
        self._copied: list[int] = []
        """Groups all of whose sequences have come and that are not being written yet."""
        self._expected: Iterator[tuple[int, int]] = iter(())
        self.device = next(cria.parameters()).device
        self._watch = FiniteWatch([cria.cria.last], self.device)

    def __enter__(self) -> Self:
        self._background.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.__exit__(kind, error, trace)

    def expect(self, position: int) -> None:
        """Make ready for the sequences of the first epoch from this position on."""
        pieces = self._order.pieces(0, skip=position)
        self._expected = ((piece.group, row) for piece in pieces for row in piece.rows.tolist())

    def passing(self, cria: CriaModel, hidden_BTE: torch.Tensor, **options: Any) -> torch.Tensor:
        """Make a transfer step and take what leaves the Cria; arguments and result as of `transfer_step`."""
        losses, output_BTE = self._through(cria, hidden_BTE, **options)
        self.take(output_BTE)
        return losses

    def take(self, output_BTE: torch.Tensor) -> None:
        """Take the streams that left the Cria for the next of the sequences that are expected."""
        self._watch.note(1, output_BTE)
        for state_TE, (group, row) in zip(output_BTE, self._expected, strict=False):
            if self._writer.recorded(self._path(group)) is None:
                self._put(group, row, state_TE)

    def save(self) -> None:
        """Make sure that the next attempt finds what has been written so far."""
        if not self.is_complete:
            self._submit(keep=0)
            self._background.settle()
            self._writer.save_journal()
            self._clock.save()

    def complete(self) -> None:
        """Compute what is missing, and write the manifest; the next Cria may then begin.

        Raises:
            BadInputError: a state is not finite.
            PreemptedError: a stop was requested; what is written stays.
        """
        if self.is_complete:
            return
        self._submit(keep=0)
        self._background.settle()
        self._fill()
        self.save()
        self._watch.check()
        self._writer.finish()
        self._groups.clear()
        self.is_complete = True
        logger.info("%s is complete in %s: the next Cria may begin", self.artifact.name, self.artifact.prefix)

    def _fill(self) -> None:
        """Run the teacher over the groups that are not stored."""
        missing = [
            group for group in range(self._order.groups) if self._writer.recorded(self._path(group)) is None
        ]
        if missing:
            logger.info("%s: computing %d objects by themselves", self.artifact.name, len(missing))
        spec = self._context.spec
        options = {"scale": 0.0, "weights": loss_weights(spec.transfer)}
        trained = [parameter for parameter in self._cria.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            inputs = self._data.groups(missing)
            for done, (group, inputs_BTE) in enumerate(zip(missing, inputs, strict=True)):
                if self._context.stop.requested:
                    self.save()
                    self._context.stop.check()
                self._groups.pop(group, None)
                row = 0
                for micro_BTE in inputs_BTE.split(spec.transfer.micro_batch_size):
                    _, output_BTE = self._through(self._cria, micro_BTE.to(self.device), **options)
                    self._watch.note(1, output_BTE)
                    for state_TE in output_BTE:
                        self._put(group, row, state_TE)
                        row += 1
                self._context.progress.update(
                    PHASE,
                    done + 1,
                    len(missing),
                    fraction=self._fraction(done + 1, len(missing)),
                    tokens=len(inputs_BTE) * spec.data.sequence_length,
                )
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def _fraction(self, done: int, missing: int) -> float:
        """Share of the whole stage: where training follows or came before, of which this is little, none."""
        return done / missing if self._context.artifact.key == self.artifact.key else 0.0

    def _put(self, group: int, row: int, state_TE: torch.Tensor) -> None:
        if group not in self._groups:
            length = self._order.length(group)
            pinned = state_TE.is_cuda
            rows = torch.empty((length, *state_TE.shape), dtype=state_TE.dtype, pin_memory=pinned)
            self._groups[group] = _Group(rows, length)
        held = self._groups[group]
        held.rows[row].copy_(state_TE, non_blocking=True)
        held.missing -= 1
        if not held.missing:
            if state_TE.is_cuda:
                held.copied = torch.cuda.Event()
                held.copied.record()
            self._copied.append(group)
            self._submit(keep=1)  # its copy may still wait for the GPU, that of the one before hardly

    def _submit(self, *, keep: int) -> None:
        while len(self._copied) > keep:
            group = self._copied.pop(0)
            held = self._groups.pop(group)
            if held.copied is not None:
                held.copied.synchronize()
            self._background.submit(self._path(group), {HIDDEN: held.rows})

    def _path(self, group: int) -> str:
        assert self.artifact.boundary is not None  # noqa: S101
        return boundary_path(self.artifact.boundary, group)


class RollingTransfer(TransferPhase):
    """Attention transfer whose first epoch leaves the next boundary."""

    def __init__(self, boundary: NextBoundary, *arguments: Any, **named: Any) -> None:
        """Set up the maps' training; arguments are those of `TransferPhase` after the boundary."""
        super().__init__(*arguments, **named)
        self._boundary = boundary
        self._plain = self._transfer_step, self._run
        self._steps_of_epoch = self._steps // max(self.epochs, 1)
        self._collects = False

    def begin(self, batch: Batch, *, epoch: int, step: int) -> None:
        """Begin one optimiser step; what leaves the Cria in the first epoch is kept."""
        if epoch > 0 or self._boundary.is_complete:
            self._transfer_step, self._run = self._plain
            super().begin(batch, epoch=epoch, step=step)
            return
        if not self._collects:
            self._boundary.expect(step * self.batch_size)
            self._collects = True
            # A CUDA graph would run without the host, which is to fetch what leaves the Cria.
            self._transfer_step, self._run = self._boundary.passing, MicroBatches(self._boundary.device)
        super().begin(batch, epoch=epoch, step=step)
        if step + 1 == self._steps_of_epoch:
            self._boundary.complete()

    def state(self) -> dict[str, Any]:
        """Return what `TransferPhase` does, once what was computed for the boundary is safe."""
        self._boundary.save()
        return super().state()
