"""What trains a subject's adapters, on one rank or on several.

Shape letters: B batch, T tokens, V vocabulary.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.models.artifacts import Tensors
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.stitch.batches import PHASE, StepBatch
from trenchcoat_trainer.stages.stitch.recall import IGNORED

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by the names that checkpoints carry before a parameter's."""


class Engine(Protocol):
    """A model whose adapters are trained, fp32 masters beside the working copies; every method is collective.

    Whatever the number of ranks, a step takes the same sequences, and a checkpoint of one number goes on
    with another.
    """

    def step(
        self, batch: StepBatch, cursor: Cursor, *, rate: float, wishes: tuple[bool, ...] = ()
    ) -> torch.Tensor:
        """Make one optimiser step.

        Args:
            batch: what it takes.
            cursor: where training stands, of which dropout is drawn.
            rate: the learning rate.
            wishes: what this rank asks of all.

        Returns:
            The loss, a mean over predicted tokens in nats, and after it for each of `wishes` the number of
            ranks that had it; fp32, on the device, the same on all ranks.
        """

    def adapters(self) -> Tensors:
        """Return the adapters by their names in files, fp32, on the CPU."""

    def moments(self) -> Tensors:
        """Return AdamW's moments, ``MOMENT.NAME``, on the CPU; call after the first step."""

    def set_moments(self, values: Tensors, steps: int) -> None:
        """Set what `moments` returns, and that AdamW has made `steps` steps."""

    def wait(self) -> None:
        """Wait for all ranks to come here."""


def next_token_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of every token but the first, in nats, fp32.

    Labels are the tokens; those that are `IGNORED` do not count.
    """
    logits, labels = logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def seed_dropout(spec: TrenchcoatSpec, cursor: Cursor, index: int) -> None:
    """Let dropout of the micro-batch `index` of the cursor's step follow from the spec's seed alone."""
    torch.manual_seed(derived_seed(spec.seed, PHASE, cursor.epoch, cursor.step, index))
