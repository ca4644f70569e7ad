"""How far figures may be off because other samples might have been drawn."""

import torch

ADDED = 2.0
"""Samples that are all right, and as many that are all wrong, added to shares (Agresti and Coull, 1998)."""


def error_of_mean(sums: torch.Tensor, counts: torch.Tensor) -> float | None:
    """Return the standard error of a mean over tokens of which a sample has several; None of one sample.

    Tokens of a sample are not independent, samples are taken to be: the sandwich estimate for clusters.

    Args:
        sums: of the tokens' values by sample, [samples].
        counts: how many tokens each has, [samples].
    """
    samples = len(sums)
    if samples < 2:
        return None
    sums, counts = sums.double(), counts.double()
    residual = sums - counts * (sums.sum() / counts.sum())
    spread = residual.square().sum() * samples / (samples - 1)
    return (spread.sqrt() / counts.sum()).item()


def error_of_share(shares: torch.Tensor) -> float:
    """Return the standard error of the mean of shares from 0 to 1, [samples].

    Two samples that have all and two that have nothing are added, so that it is not 0 where all samples
    agree: none of 32 is told with an error of 0.04.
    """
    total = len(shares) + 2 * ADDED
    mean = (shares.sum().item() + ADDED) / total
    squares = shares.double().square().sum().item() + ADDED
    return max(squares / total - mean * mean, 0.0) ** 0.5 / total**0.5
