"""How far the stitch is: steps by what each is planned to take, for those on long sequences take longer."""

from dataclasses import dataclass
from typing import Self

from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Rates, by_products
from trenchcoat_api.planning.timing import Fleet, long_step_cost

from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.stages.stitch.batches import StitchData


@dataclass(frozen=True, slots=True)
class Course:
    """The optimiser steps of all epochs, those on long sequences last."""

    steps: int
    long_steps: int
    """How many of them read long sequences."""
    long_cost: float = 1.0
    """What one of these takes, in parts of one that does not."""

    @classmethod
    def of(cls, inputs: Inputs, data: StitchData, epochs: int, *, on_gpu: bool) -> Self:
        """Plan so many epochs over `data`; the spec's kind of GPU, or the default, stands for any device."""
        steps, facts = epochs * data.steps, inputs.manifest(inputs.artifacts.tokenize).facts
        if not data.long_steps or facts.model is None:
            return cls(steps, 0)
        rates, spec = Rates.load(), inputs.spec
        outline = Outline.of(spec, PlannedModel.of_facts(facts.model, spec), facts.data)
        _, kind = rates.kind(spec.plan.gpu if spec.plan.gpu in rates.kinds else None)
        fleet = Fleet(kind if on_gpu else by_products(kind), rates, crias=1)
        return cls(steps, data.long_steps, long_step_cost(outline, fleet, data.multiple))

    def share(self, done: int) -> float:
        """Of the whole, what the first `done` steps are, 0 to 1."""
        short = self.steps - self.long_steps
        cost = min(done, short) + self.long_cost * max(0, done - short)
        return cost / (short + self.long_cost * self.long_steps)
