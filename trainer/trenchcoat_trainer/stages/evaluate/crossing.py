"""Carrying hidden states through all Crias, every form of the model by itself, and going on after a stop."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from trenchcoat_trainer.checkpoints.pod_weights import Ahead
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.sharing import Sharing
from trenchcoat_trainer.stages.evaluate.course import Course
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet
from trenchcoat_trainer.stages.evaluate.states import HiddenStates
from trenchcoat_trainer.stages.evaluate.variants import Source, cria_of_each

logger = logging.getLogger(__name__)

Place = tuple[str, str]
"""Names of a variant and of a set."""


@dataclass(slots=True)
class Pass:
    """Sets that are measured together: one reading of the Crias' weights."""

    sets: Sequence[EvaluationSet]
    states: Mapping[Place, HiddenStates]
    has_shares: bool
    """Whether the shares are measured: in the first pass alone, on held-out text of the training length."""
    shares: dict[str, float] = field(default_factory=dict)
    """The share of attention outside the window by layer, of the stitched student on the first batch."""
    following: int | None = None
    """Bytes of memory that this rank's states of the next pass take for which its pod reads weights, from the
    first Cria on; None where there is none."""


class Ledger:
    """Batch-Crias done and to do, over all passes and ranks."""

    def __init__(
        self, context: StageContext, sharing: Sharing, sets: Sequence[EvaluationSet], course: Course
    ) -> None:
        """`course` has how far this rank is."""
        self._progress = context.progress
        self.sharing = sharing
        self.course = course
        self.total = course.passings(sets)
        self._share = 1.0 if context.spec.evaluate.tasks is None else 0.5
        """What they are of the stage."""
        self.done = self._tokens = 0

    def skip(self, sets: Sequence[EvaluationSet], numbers: Mapping[Place, Sequence[int]]) -> None:
        """Count a pass that all ranks know to be done, and of which this one would have had these batches."""
        for item in sets:
            for form in item.forms:
                self.course.skip(form, item, numbers[form, item.name])
        self.resume(self.course.passings(sets) if self.sharing.is_first else 0)

    def check(self) -> None:
        """Raise PreemptedError where a stop was requested; nothing is left unsaved then."""
        self.sharing.check()

    def resume(self, batches: int) -> None:
        """Count what an earlier attempt has done of this rank's share."""
        self.done = self.sharing.add("batches", batches)

    def count(self, tokens: int) -> None:
        """Count a batch of so many tokens that has passed a Cria, and tell."""
        self.done = self.sharing.add("batches", 1)
        self._tell(self.sharing.add("tokens", tokens))

    def tell(self) -> None:
        """Tell what other ranks have done since."""
        before, self.done = self.done, self.sharing.add("batches", 0)
        if self.done != before:
            self._tell(self.sharing.add("tokens", 0))

    def scored(self) -> None:
        """Tell that a pass is scored."""
        self._tell(self.sharing.add("tokens", 0))

    def left(self) -> float | None:
        """Seconds until the stage is done; what follows is taken to take as long as its share says."""
        left = self.course.left()
        return None if left is None else left + (1 / self._share - 1) * (self.course.spent + left)

    def _tell(self, tokens: int) -> None:
        before, self._tokens = self._tokens, tokens
        fraction = self._share * self.course.share
        self._progress.update("evaluate", self.done, self.total, fraction=fraction, tokens=tokens - before)


def cross(
    context: StageContext,
    config: TrenchcoatLlamaConfig,
    own: Pass,
    source: Source,
    ledger: Ledger,
) -> None:
    """Carry this rank's states of one pass through all Crias, from where the last attempt stopped.

    The ranks of a pod enter each Cria together, for they read its weights for one another: also one that has
    no states, because there are fewer batches than ranks. A pod without any reads none.

    Args:
        context: the stage's context.
        config: the student's configuration.
        own: its states and shares are filled.
        source: what the variants are made of.
        ledger: counts on.

    Raises:
        PreemptedError: a stop was requested.
    """
    passed = _restore(own)
    counts = [count for counted in passed.values() for count in counted.values()]
    ledger.resume(sum(counts))
    if any(counts):
        for item in own.sets:
            for form in (variant for variant, name in passed if name == item.name):
                ledger.course.resume(form, item, passed[form, item.name])
        logger.info("going on: %d of %d batches have passed their Crias", ledger.done, ledger.total)
    wanted = {form for (form, _), counted in passed.items() if counted}
    crias = context.crias[source.weights.earliest(min(counts, default=len(context.crias))) :]
    begins_anew = None if own.following is None else Ahead(context.crias[0], room=own.following)
    ahead = [*map(Ahead, crias[1:]), begins_anew]
    for cria, following in zip(crias, ahead, strict=False):
        for variant, model in cria_of_each(context, config, cria, source, wanted, following):
            for item in own.sets:
                place = (variant.name, item.name)
                if place not in own.states:
                    continue
                due = [index for index, count in passed[place].items() if count <= cria.index]
                for index, batch in zip(due, own.states[place].batches(due), strict=True):
                    ledger.check()
                    hidden = batch.to(source.device)
                    told: dict[str, float] = {}
                    is_first = item is own.sets[0] and index == 0
                    if own.has_shares and variant.name == "stitched" and is_first:
                        own.shares |= {str(n): share for n, share in shares_outside(model, hidden).items()}
                        told = own.shares  # saved with the batch that they are measured on
                    passed[place][index] += 1
                    state = {"passed": passed[place][index], "shares": dict(told)}
                    own.states[place].update(index, model(hidden), state)
                    ledger.course.ran(variant.name, item, index, cria)
                    ledger.count(batch[..., 0].numel())
            del model  # else its weights are held while those of the next Cria are read


def _restore(own: Pass) -> dict[Place, dict[int, int]]:
    """Begin all states, or go on with what was saved; return how many Crias each batch has passed."""
    passed: dict[Place, dict[int, int]] = {}
    for place, states in own.states.items():
        found = states.restore()
        passed[place] = {batch: state["passed"] if state else 0 for batch, state in found.items()}
        for state in found.values():
            own.shares |= state["shares"] if state else {}
    return passed


def shares_outside(cria: CriaModel, hidden_BTE: torch.Tensor) -> dict[int, float]:
    """Return for each student layer the share of attention outside its window, where forms have one."""
    shares = {}
    rope = cria.rope(hidden_BTE)
    for name, layer in cria.layers.items():
        attention = layer.self_attn
        if not attention.softmax:
            heads = attention.project(layer.input_layernorm(hidden_BTE), rope)
            share = attention.student.share_outside(heads, attention.student_parameters())
            if share is not None:
                shares[int(name)] = share
        hidden_BTE = layer(hidden_BTE, position_embeddings=rope)
    return shares
