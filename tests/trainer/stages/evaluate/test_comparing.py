"""The student beside a teacher: who wins a continuation, and what is too close to tell."""

import pytest
import torch
from trenchcoat_trainer.stages.evaluate.comparing import compare
from trenchcoat_trainer.stages.evaluate.scores import RANGES, Score

TOKENS = 10


def scored(first_halves: list[float], second_halves: list[float]) -> Score:
    """Of sequences whose tokens have these negative log-likelihoods, in either half."""
    halves = torch.tensor([first_halves, second_halves], dtype=torch.float64).T
    nats = halves.repeat_interleave(RANGES // 2, dim=1) * TOKENS
    return Score(
        nats=nats,
        tokens=torch.full(nats.shape, TOKENS, dtype=torch.int32),
        right=torch.zeros(len(nats), dtype=torch.int32),
    )


def test_the_second_half_decides_and_a_hundredth_of_a_nat_is_a_tie():
    teacher = scored([3.0] * 5, [2.0] * 5)
    student = scored([9.0, 1.0, 1.0, 3.0, 3.0], [1.9, 2.1, 2.009, 1.991, 2.011])
    found = compare(student, teacher)
    assert (found.continuations, found.wins, found.ties) == (5, 0.2, 0.4)
    assert 0.15 < found.error < 0.25


def test_the_ratio_is_that_of_the_perplexities_and_its_error_that_of_the_differences():
    teacher = scored([1.0, 3.0, 8.0], [1.0, 3.0, 8.0])
    student = scored([1.1, 3.1, 8.1], [1.1, 3.1, 8.1])
    found = compare(student, teacher)
    assert found.ratio == pytest.approx(2.718281828**0.1)
    assert found.ratio_error == pytest.approx(0.0, abs=1e-12), "though the sequences differ widely"
    assert (found.wins, found.ties) == (0.0, 0.0)


def test_a_single_sequence_has_no_error_of_its_ratio():
    assert compare(scored([1.0], [1.0]), scored([1.0], [1.0])).ratio_error is None
