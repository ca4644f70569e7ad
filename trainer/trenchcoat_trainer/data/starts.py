"""Where on the axis of positions training's sequences start."""

import random
from dataclasses import dataclass, replace
from typing import Any

from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.seeds import derived_seed

LENGTHS = 8
"""Unless the spec says otherwise, random starts keep sequences within so many times their own length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Start positions of micro-batches; by default all start at 0."""

    seed: int = 0
    share: float = 0.0
    """Probability that a micro-batch starts at random."""
    below: int = 0
    """Random starts are uniform from 0 to this, exclusive; 0 leaves no choice."""

    @classmethod
    def of(cls, spec: TrenchcoatSpec, config: Any) -> "Starts":
        """Work out what spec.data.startPositions asks for.

        Args:
            spec: the spec.
            config: Hugging Face LlamaConfig of the teacher or the student.

        Raises:
            BadInputError: sequences would reach positions that the teacher does not have.
        """
        settings, length = spec.data.start_positions, spec.data.sequence_length
        longest = positions(config)
        if not settings.are_random:
            return cls(seed=spec.seed)
        if settings.below is not None and settings.below + length - 1 > longest:
            raise BadInputError(
                f"spec.data.startPositions.below is {settings.below}, so that sequences of {length} tokens "
                f"would end past the teacher's {longest} positions: lower it to at most "
                f"{longest - length + 1}, or leave it out"
            )
        below = settings.below or max(0, min(longest, LENGTHS * length) - length)
        return cls(seed=spec.seed, share=float(settings.share), below=below)

    def of_longer(self, tokens: int) -> "Starts":
        """Return those of sequences that are so many tokens longer, and end no further back."""
        return replace(self, below=max(0, self.below - tokens))

    def start(self, phase: str, epoch: int, step: int, micro_batch: int) -> int:
        """Return a micro-batch's first position: the same in every Cria, on every rank, in every attempt."""
        if not self.share or not self.below:
            return 0
        parts = ("start position", phase, epoch, step, micro_batch)
        source = random.Random(derived_seed(self.seed, *parts))  # noqa: S311
        return source.randrange(self.below) if source.random() < self.share else 0


def positions(config: Any) -> int:
    """How many positions the teacher has at which RoPE's angles are those of collection."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # has other angles for sequences that reach further
        return int(rope.get("original_max_position_embeddings", config.max_position_embeddings))
    return int(config.max_position_embeddings)
