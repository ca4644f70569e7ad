"""What the forms of the model are measured on: sequences of tokens, and which of them count."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch
from trenchcoat_api.results import Probe


class Metric(StrEnum):
    """What is told of a set."""

    PERPLEXITY = "perplexity"
    """exp of the mean negative log-likelihood of the tokens that count."""
    RIGHT = "right"
    """Share of the tokens that count which are the most likely ones, teacher forced."""
    EXACT = "exact"
    """Share of the sequences in which all tokens that count are: what greedy decoding gives exactly."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EvaluationSet:
    """Sequences that forms of the model are measured on."""

    name: str
    """Part of the names of what is saved of it, such as copy-256."""
    tokens: torch.Tensor
    """int32 [N, T]."""
    counts: torch.Tensor
    """bool [N, T]: the tokens whose prediction, from those before them, counts; none of the first."""
    metric: Metric
    forms: tuple[str, ...]
    """Names of the variants that are measured on it."""
    probe: Probe | None = None
    """None for plain held-out text."""
    distance: int = 0
    """Of the probe, in tokens."""
    is_other: bool = False
    """Whether it is text of another kind than the training text."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.tokens.shape[1]

    def batch_size(self, tokens: int) -> int:
        """Sequences in a batch of about so many tokens, at least 1."""
        return max(1, tokens // self.length)

    def batch_count(self, tokens: int) -> int:
        """How many such batches it has."""
        return -(-len(self.tokens) // self.batch_size(tokens))


def text_set(held_out: torch.Tensor, multiple: int, forms: Iterable[str]) -> EvaluationSet:
    """Return held-out sequences [N, T] joined `multiple` by `multiple`, for they are one stream cut up.

    What does not fill the last one is left out; every token but a sequence's first counts.
    """
    length = held_out.shape[1] * multiple
    whole = held_out.shape[0] // multiple * multiple
    tokens = held_out[:whole].reshape(-1, length)
    counts = torch.ones(tokens.shape, dtype=torch.bool)
    counts[:, 0] = False
    return EvaluationSet(
        name=f"text-{length}", tokens=tokens, counts=counts, metric=Metric.PERPLEXITY, forms=tuple(forms)
    )


def passes(sets: Iterable[EvaluationSet]) -> list[list[EvaluationSet]]:
    """Group sets, in order, so that no group holds more states than the largest set alone.

    The Crias' weights are read once for each group.
    """
    sets = list(sets)
    most = max((_states(item) for item in sets), default=0)
    groups: list[list[EvaluationSet]] = []
    for item in sets:
        if groups and sum(map(_states, groups[-1])) + _states(item) <= most:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _states(item: EvaluationSet) -> int:
    """Hidden states of all forms, in tokens."""
    return item.tokens.numel() * len(item.forms)
