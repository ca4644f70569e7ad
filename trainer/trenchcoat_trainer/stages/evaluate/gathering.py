"""Scores of all ranks put together, and those that an earlier attempt left."""

from dataclasses import fields
from typing import Any

import torch

from trenchcoat_trainer.runtime.checkpoint import Checkpoint
from trenchcoat_trainer.runtime.sharing import Sharing
from trenchcoat_trainer.stages.evaluate.crossing import Ledger, Place
from trenchcoat_trainer.stages.evaluate.scores import Score

SCORES = "scores"
_FIELDS = [field.name for field in fields(Score)]

Scores = dict[Place, Score]
Shares = dict[str, float]
"""Of attention outside the window, by layer."""


def gather(
    checkpoint: Checkpoint, sharing: Sharing, number: int, own: tuple[Scores, Shares], ledger: Ledger
) -> tuple[Scores, Shares]:
    """Wait for all ranks to have scored a pass, and return what they found; on the first rank alone.

    Args:
        checkpoint: where they leave it for the first rank.
        sharing: this rank's place among them.
        number: of the pass.
        own: what this rank found of the pass.
        ledger: tells how all are getting on.

    Returns:
        Scores and shares of all ranks; of this one alone where it is not the first.

    Raises:
        PreemptedError: a stop was requested.
    """
    name = f"{SCORES}-{number:02d}"
    if not sharing.is_first:
        save_scores(checkpoint, *own, name=f"{name}-{sharing.rank}")
    sharing.wait_for_all(name, ledger.tell)
    scores, shares = own
    for rank in range(1, sharing.world_size if sharing.is_first else 1):
        others, shares_of_others = load_scores(checkpoint, f"{name}-{rank}")
        scores = {place: score + others[place] for place, score in scores.items()}
        shares = shares | shares_of_others
    return scores, shares


def load_scores(checkpoint: Checkpoint, name: str = SCORES) -> tuple[Scores, Shares]:
    """What the passes that an earlier attempt finished have left, or what a rank has found of one."""
    saved = checkpoint.load(name)
    if saved is None:
        return {}, {}
    tensors, state = saved
    places: list[Any] = state["places"]
    scores = {
        (form, item): Score(**{field: tensors[f"{index}.{field}"] for field in _FIELDS})
        for index, (form, item) in enumerate(places)
    }
    return scores, state["shares"]


def save_scores(checkpoint: Checkpoint, scores: Scores, shares: Shares, name: str = SCORES) -> None:
    """Keep what `load_scores` returns."""
    tensors: dict[str, torch.Tensor] = {
        f"{index}.{field}": getattr(found, field)
        for index, found in enumerate(scores.values())
        for field in _FIELDS
    }
    checkpoint.save(tensors, {"places": list(scores), "shares": shares}, name)
