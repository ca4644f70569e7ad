"""The student beside a teacher on the same text, sequence by sequence."""

import math
from dataclasses import dataclass

from trenchcoat_trainer.stages.evaluate.errors import error_of_mean, error_of_share
from trenchcoat_trainer.stages.evaluate.scores import RANGES, Score

TIE_NATS = 0.01
"""Log-likelihoods per token that are closer are a tie: 1% of perplexity."""
_CONTINUATION = slice(RANGES // 2, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How the student stands to one teacher.

    A continuation is the second half of a held-out sequence, given the first half: the form that gives the
    true one a likelihood higher by more than `TIE_NATS` a token wins.
    """

    ratio: float
    """The student's perplexity over the teacher's."""
    ratio_error: float | None
    """Standard error, by the sequences' differences; None of a single sequence."""
    continuations: int
    wins: float
    """Share of the continuations that the student wins."""
    ties: float
    error: float
    """Standard error of wins and ties together."""


def compare(student: Score, teacher: Score) -> Compared:
    """Compare two scores on the same set of text."""
    more_S = (student.nats - teacher.nats).sum(1)
    mean = (more_S.sum() / student.tokens.sum()).item()
    error = error_of_mean(more_S, student.tokens.sum(1))
    tokens_S = student.tokens[:, _CONTINUATION].sum(1)
    gain_S = (teacher.nats - student.nats)[:, _CONTINUATION].sum(1) / tokens_S
    return Compared(
        ratio=math.exp(mean),
        ratio_error=None if error is None else error * math.exp(mean),
        continuations=len(gain_S),
        wins=(gain_S > TIE_NATS).double().mean().item(),
        ties=(gain_S.abs() <= TIE_NATS).double().mean().item(),
        error=error_of_share((gain_S >= -TIE_NATS).double()),
    )
