"""Running the phases of one Cria from the last checkpoint on, with progress and further checkpoints."""

import logging
import time
from collections import deque
from typing import Any

import torch
from trenchcoat_api.spec import Objective

from trenchcoat_trainer.data import CriaData
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.training import CHECKPOINT_SECONDS, CHECKPOINT_SHARE, Cursor
from trenchcoat_trainer.stages.cria.copying import copied_ahead
from trenchcoat_trainer.stages.cria.phase import Phase

logger = logging.getLogger(__name__)

_MAPS = "maps."
LORA_COST = {Objective.LAYERWISE: 1.08, Objective.BLOCK: 2.1}
"""What a sequence takes in LoRA by Cria, in parts of one in attention transfer (benchmarks/step, H100)."""


class Loop:
    """Runs one phase after another, and keeps in every checkpoint what those before it have left."""

    def __init__(
        self, context: StageContext, data: CriaData, device: torch.device, *, transfer_epochs: int
    ) -> None:
        """Read the last checkpoint, if there is one; `transfer_epochs` is how long transfer will train."""
        spec = context.spec
        self.data = data
        self._context = context
        self._device = device
        self._steps = {
            "transfer": transfer_epochs * data.steps(spec.transfer.batch_size),
            "lora": spec.cria_lora.epochs * data.steps(spec.cria_lora.batch_size),
        }
        self._costs = {
            "transfer": transfer_epochs * data.steps(1),
            "lora": spec.cria_lora.epochs * data.steps(1) * LORA_COST[spec.cria_lora.objective],
        }
        self._saved_at = time.monotonic()
        self._interval = CHECKPOINT_SECONDS
        self._tensors, self._state = context.checkpoint.load() or ({}, {})
        self.facts: dict[str, Any] = self._state.get("facts", {})
        """What was found so far, as JSON."""
        self.losses: dict[str, float] = self.facts.setdefault("losses", {})
        """Losses of phases that are done, by name."""
        self.maps: dict[str, torch.Tensor] | None = None
        """The maps that attention transfer left; none before it is done."""
        if self._state.get("phase") == "lora":
            kept = ((name, tensor) for name, tensor in self._tensors.items() if name.startswith(_MAPS))
            self.maps = {name.removeprefix(_MAPS): tensor for name, tensor in kept}

    def run(self, phase: Phase) -> Cursor:
        """Run `phase` to its end, from the checkpoint on if that is its own; returns where it ended.

        Raises:
            PreemptedError: a stop was requested; a checkpoint is written.
            DivergedError: a loss is not a number, or grew beyond its bound.
        """
        context, data = self._context, self.data
        cursor = self._restore(phase)
        while cursor.epoch < phase.epochs:
            batches = data.batches(
                epoch=cursor.epoch,
                batch_size=phase.batch_size,
                start_step=cursor.step,
                with_targets=phase.name == "lora",
            )
            sizes: deque[int] = deque()
            for batch in copied_ahead(batches, self._device):
                phase.begin(batch, epoch=cursor.epoch, step=cursor.step + len(sizes))
                sizes.append(len(batch.inputs))
                # A GPU computes on the last batch while the host takes note of the one before and reads on.
                left = 0 if phase.decides or self._device.type != "cuda" else 1
                self._end(phase, cursor, sizes, left)
                if context.stop.requested or self._is_due():
                    self._end(phase, cursor, sizes, 0)
                    self._save(phase, cursor)
                    context.stop.check()
            self._end(phase, cursor, sizes, 0)
            cursor.epoch, cursor.step = cursor.epoch + 1, 0
        return cursor

    def _end(self, phase: Phase, cursor: Cursor, sizes: deque[int], left: int) -> None:
        """End the steps begun, all but the last `left`; `sizes` are the sequences of each, in order."""
        while len(sizes) > left:
            cursor.note(phase.end())
            self._report(phase, cursor, sizes.popleft())

    def _restore(self, phase: Phase) -> Cursor:
        if self._state.get("phase") != phase.name:
            return Cursor()
        cursor = Cursor(**self._state["cursor"])
        logger.info("going on from step %d of %s", cursor.done, phase.name)
        phase.restore(self._tensors, self._state["state"])
        self._context.progress.go_on(phase.name, self._state["curve"])
        self._tensors, self._state = {}, {}
        return cursor

    def _report(self, phase: Phase, cursor: Cursor, sequences: int) -> None:
        before = 0 if phase.name == "transfer" else self._costs["transfer"]
        done = self._costs[phase.name] * cursor.done / self._steps[phase.name]
        own = {} if cursor.final is None else {phase.name: cursor.final}
        self._context.progress.update(
            phase.name,
            cursor.done,
            self._steps[phase.name],
            fraction=(before + done) / sum(self._costs.values()),
            losses={**own, **self.losses},
            tokens=sequences * self._context.spec.data.sequence_length,
        )

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._interval

    def _save(self, phase: Phase, cursor: Cursor) -> None:
        began = time.monotonic()
        state = {
            "phase": phase.name,
            "cursor": vars(cursor),
            "state": phase.state(),
            "facts": self.facts,
            "curve": self._context.progress.curve.state(),
        }
        maps = {_MAPS + name: tensor for name, tensor in (self.maps or {}).items()}
        self._context.checkpoint.save({**maps, **phase.tensors()}, state)
        self._context.progress.saved()
        self._saved_at = time.monotonic()
        self._interval = max(CHECKPOINT_SECONDS, (self._saved_at - began) / CHECKPOINT_SHARE)
