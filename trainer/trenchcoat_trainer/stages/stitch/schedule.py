"""The learning rate over a stage's steps."""

import math
from collections.abc import Callable

from trenchcoat_api.spec import LrSchedule, Stitch

WARM_UP = 0.03
"""Share of the steps over which the rate rises from 0, unless it stays constant."""
DECAY = 0.3
"""Share of the steps, the last ones, over which wsd falls."""

_LEFT: dict[LrSchedule, Callable[[float], float]] = {
    LrSchedule.LINEAR: lambda passed: 1 - passed,
    LrSchedule.COSINE: lambda passed: 0.5 * (1 + math.cos(math.pi * passed)),
    LrSchedule.WSD: lambda passed: min(1.0, (1 - passed) * (1 - WARM_UP) / DECAY),
}
"""Of the highest rate, by the share of the steps behind the warm-up that have passed."""


def learning_rate(stitch: Stitch, done: int, steps: int) -> float:
    """Return the rate of the step after `done` of all `steps`.

    It reaches spec.stitch.learningRate after `WARM_UP`, and would be 0 in the step after the last; constant
    does neither.
    """
    highest = float(stitch.learning_rate)
    if stitch.lr_schedule is LrSchedule.CONSTANT:
        return highest
    rising = WARM_UP * steps
    if done + 1 < rising:
        return highest * (done + 1) / rising
    return highest * _LEFT[stitch.lr_schedule](max(0.0, done - rising) / (steps - rising))
