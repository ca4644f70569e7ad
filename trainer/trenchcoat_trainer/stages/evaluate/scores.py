"""How well a form of the model foretells the tokens of a set that count."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.stages.evaluate.errors import error_of_mean, error_of_share
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric
from trenchcoat_trainer.stages.evaluate.states import HiddenStates

LOGITS = 2**27
"""Logits computed at a time: 512 MiB in fp32."""
RANGES = 8
"""Equal ranges of positions that a sample's likelihood is kept by."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Score:
    """What one form of the model gave on one set, by sample (S) and range of positions (R).

    All is 0 of a sample that is not measured here, so that scores of ranks add up, and exactly.
    """

    nats: torch.Tensor
    """Negative log-likelihood of the tokens that count, fp64 [S, R]."""
    tokens: torch.Tensor
    """How many count, int32 [S, R]."""
    right: torch.Tensor
    """How many of a sample's are the most likely ones, int32 [S]."""

    def __add__(self, other: "Score") -> "Score":
        """Of the samples of both, which have none in common."""
        return Score(
            nats=self.nats + other.nats, tokens=self.tokens + other.tokens, right=self.right + other.right
        )

    def value(self, metric: Metric) -> float:
        """The one number that is told."""
        if metric is Metric.PERPLEXITY:
            return math.exp(self.nats.sum().item() / self.tokens.sum().item())
        return self._shares(metric).mean().item()

    def error(self, metric: Metric) -> float | None:
        """Its standard error, samples drawn anew; None of the perplexity of a single sample."""
        if metric is not Metric.PERPLEXITY:
            return error_of_share(self._shares(metric))
        error = error_of_mean(self.nats.sum(1), self.tokens.sum(1))
        return None if error is None else error * self.value(metric)

    def by_position(self) -> list[float]:
        """Perplexity by range of positions; all have tokens that count."""
        return (self.nats.sum(0) / self.tokens.sum(0)).exp().tolist()

    def _shares(self, metric: Metric) -> torch.Tensor:
        """What each sample has of the metric, from 0 to 1: fp64 [S]; as many tokens count in each."""
        counted_S = self.tokens.sum(1)
        if metric is Metric.EXACT:
            return (self.right == counted_S).double()
        return self.right.double() / counted_S


def score(
    states: HiddenStates,
    measured: EvaluationSet,
    head: dict[str, torch.Tensor],
    config: TrenchcoatLlamaConfig,
    size: int,
) -> Score:
    """Compare predictions with the tokens themselves, of the samples whose states are held.

    Args:
        states: the residual stream after the last layer.
        measured: the set that they belong to.
        head: ``model.norm.weight`` and ``lm_head.weight``, on the device to compute on.
        config: the model's configuration.
        size: sequences per batch.
    """
    weight = head["lm_head.weight"]
    rows = max(1, LOGITS // weight.shape[0])
    losses = [torch.empty(0, device=weight.device)]  # a rank may hold none
    hits = [torch.empty(0, dtype=torch.bool, device=weight.device)]
    # The states to be scored by their places, found once: for a mask the host would wait for a GPU each time,
    # and a CPU takes thrice as long.
    follows_ST = F.pad(measured.counts[:, 1:], (0, 1))
    counted = [np.count_nonzero(part.numpy()) for part in follows_ST.split(size)]
    places = follows_ST.flatten().nonzero().squeeze(1).split(counted)
    tokens = measured.tokens.flatten()
    for number, hidden_BTE in zip(states.numbers, states.batches(), strict=True):
        own_N = places[number] - number * size * measured.length
        hidden_NE = hidden_BTE.flatten(0, 1).index_select(0, own_N.to(hidden_BTE.device)).to(weight.device)
        targets_N = tokens[places[number] + 1].long().to(weight.device)
        normed_NE = rms_norm(hidden_NE, head["model.norm.weight"], config.rms_norm_eps)
        for part_NE, target_N in zip(normed_NE.split(rows), targets_N.split(rows), strict=True):
            logits_NV = (part_NE @ weight.T).float()
            losses.append(F.cross_entropy(logits_NV, target_N, reduction="none"))
            hits.append(logits_NV.argmax(-1) == target_N)
    # Fetched once, at the end: the host would wait for the GPU each time.
    loss_N, hit_N = torch.cat(losses).cpu().double(), torch.cat(hits).cpu().int()
    samples, length = measured.tokens.shape
    is_held_S = torch.isin(torch.arange(samples) // size, torch.tensor(states.numbers, dtype=torch.int64))
    sample_N, position_N = (measured.counts & is_held_S[:, None]).nonzero(as_tuple=True)
    place_N = sample_N * RANGES + position_N * RANGES // length
    counts = torch.bincount(place_N, minlength=samples * RANGES)
    return Score(
        # Of nothing it gives integers.
        nats=torch.bincount(place_N, loss_N, samples * RANGES).double().view(samples, RANGES),
        tokens=counts.int().view(samples, RANGES),
        right=torch.zeros(samples, dtype=torch.int32).index_add_(0, sample_N, hit_N),
    )


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalise the last dimension as Llama does: the mean square in fp32, the result in the dtype given."""
    x = hidden.float()
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)
