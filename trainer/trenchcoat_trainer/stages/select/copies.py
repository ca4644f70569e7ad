"""Copy sequences: random tokens that stand twice in ordinary text, and can be told the second time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from trenchcoat_api.selection import SEQUENCES, TOKENS

RUN, LEAD, DISTANCES = 48, 64, (200, 400, 800)
"""Random tokens, text before them, and from one copy to the other, in sequences of 1024 tokens."""
SHORTEST_RUN = 5
UNKNOWABLE = 3
"""Tokens of the second copy that cannot be known to be one."""


@dataclass(frozen=True, slots=True)
class CopyLayout:
    """Where the copies stand: a sequence is `lead` of text, the run, text, and at its end the run again.

    Attributes:
        run: random tokens.
        lead: tokens of text before the first run.
        distances: tokens from the first run's beginning to the second's; of each as many sequences.
    """

    run: int
    lead: int
    distances: tuple[int, ...]

    @classmethod
    def fit(cls, length: int, window: int, first_tokens: int) -> CopyLayout:
        """Scale the layout to sequences of at most `length` tokens.

        Distances within the window are left out, and the run stands after the first tokens, for there a cut
        layer sees it all the same. Where nothing else fits it is the largest distance, and where not even
        that is outside of the window there is none.
        """
        run = max(SHORTEST_RUN, RUN * length // TOKENS)
        lead = max(first_tokens, LEAD * length // TOKENS)
        largest = length - lead - run
        scaled = [distance * length // TOKENS for distance in DISTANCES]
        least = max(run, window + 1)
        fitting = [distance for distance in scaled if least <= distance <= largest]
        if not fitting and largest >= least:
            fitting = [largest]
        return cls(run, lead, tuple(fitting))

    def answers(self, tokens: int) -> slice:
        """Positions in a sequence of so many tokens at which the first run tells the next token."""
        return slice(tokens - self.run + UNKNOWABLE, tokens - 1)


def copy_sequences(
    text: torch.Tensor, layout: CopyLayout, vocabulary: int, source: torch.Generator
) -> list[torch.Tensor]:
    """Write random tokens into text.

    Args:
        text: ordinary sequences, [rows, tokens]; used again from the first where there are too few.
        layout: where the runs stand; it fits into `tokens`.
        vocabulary: ids go from 0 to this, exclusive.
        source: of the random tokens.

    Returns:
        For each distance token ids, int64 [sequences, lead + distance + run].
    """
    count = SEQUENCES // len(layout.distances)
    result = []
    for number, distance in enumerate(layout.distances):
        chosen = torch.arange(number * count, (number + 1) * count) % len(text)
        ids = text[chosen, : layout.lead + distance + layout.run].clone()
        runs = torch.randint(vocabulary, (count, layout.run), generator=source)
        ids[:, layout.lead : layout.lead + layout.run] = runs
        ids[:, -layout.run :] = runs
        result.append(ids)
    return result
