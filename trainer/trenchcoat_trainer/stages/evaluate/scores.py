"""How well a form of the model foretells the tokens of a set that count."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric
from trenchcoat_trainer.stages.evaluate.states import HiddenStates

LOGITS = 2**27
"""Logits computed at a time: 512 MiB in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one form of the model gave on one set."""

    nats: float
    """Negative log-likelihood of the tokens that count, summed."""
    tokens: int
    """How many count."""
    right: int
    """How many of them are the most likely ones."""
    samples: int
    exact: int
    """Samples in which all of them are."""

    def value(self, metric: Metric) -> float:
        """The one number that is told."""
        match metric:
            case Metric.PERPLEXITY:
                return math.exp(self.nats / self.tokens)
            case Metric.RIGHT:
                return self.right / self.tokens
            case Metric.EXACT:
                return self.exact / self.samples


def score(
    states: HiddenStates,
    measured: EvaluationSet,
    head: dict[str, torch.Tensor],
    config: TrenchcoatLlamaConfig,
    size: int,
) -> Score:
    """Compare predictions with the tokens themselves.

    Args:
        states: the residual stream after the last layer.
        measured: the set that they belong to.
        head: ``model.norm.weight`` and ``lm_head.weight``, on the device to compute on.
        config: the model's configuration.
        size: sequences per batch.
    """
    weight = head["lm_head.weight"]
    rows = max(1, LOGITS // weight.shape[0])
    losses, hits = [], []
    for hidden_BTE, (tokens_BT, counts_BT) in zip(states.batches(size), measured.batches(size), strict=True):
        follows_BT = counts_BT[:, 1:]
        hidden_NE = hidden_BTE[:, :-1][follows_BT].to(weight.device)
        targets_N = tokens_BT[:, 1:][follows_BT].to(weight.device)
        normed_NE = rms_norm(hidden_NE, head["model.norm.weight"], config.rms_norm_eps)
        for part_NE, target_N in zip(normed_NE.split(rows), targets_N.split(rows), strict=True):
            logits_NV = (part_NE @ weight.T).float()
            losses.append(F.cross_entropy(logits_NV, target_N, reduction="sum"))
            hits.append(logits_NV.argmax(-1) == target_N)
    # Fetched once, at the end: the host would wait for the GPU each time.
    missed_ST = torch.zeros_like(measured.counts)
    missed_ST[:, 1:][measured.counts[:, 1:]] = ~torch.cat(hits).cpu()
    tokens = int(measured.counts.sum())
    return Score(
        nats=sum(torch.stack(losses).tolist()),
        tokens=tokens,
        right=tokens - int(missed_ST.sum()),
        samples=len(measured.tokens),
        exact=int((~missed_ST.any(1)).sum()),
    )


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalise the last dimension as Llama does: the mean square in fp32, the result in the dtype given."""
    x = hidden.float()
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)
