"""What is measured of a student, and the synthetic recall that training may carry: the product's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import DEVICE, Student
from tokenizers import Tokenizer
from trenchcoat_trainer.stages.evaluate.recall import RecallText, copy_sets, passkey_sets
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric
from trenchcoat_trainer.stages.stitch.recall import Recall

LONGEST = 4096
"""Tokens of a test."""
SPECIAL = 17
"""Ids below it are no text to SmolLM2."""
ROWS = 65_536
"""Tokens of one forward pass, at most."""


class Text:
    """The text as prepare.py left it."""

    def __init__(self, folder: Path) -> None:
        tokens = np.load(folder / "tokens.npz")
        self.train, self.held = (torch.from_numpy(tokens[x].astype(np.int64)) for x in ("train", "held"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vocabulary = self.tokenizer.get_vocab_size()

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`, without marks."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def recall(self, tokens_per_item: tuple[int, int]) -> Recall:
        """Return what puts facts and spans into training text."""
        return Recall(0, self.ids, range(SPECIAL, self.vocabulary), tokens_per_item)

    def tests(self, samples: int) -> Iterator[EvaluationSet]:
        """Yield the product's tests of recall over the held-out text."""
        made = RecallText(
            stream=self.held.numpy().astype(np.int32),
            special=frozenset(range(SPECIAL)),
            longest=LONGEST,
            samples=samples,
            seed=0,
            forms=("student",),
        )
        yield from copy_sets(made)
        yield from passkey_sets(made, self.ids)


@torch.no_grad()
def perplexity(student: Student, held: torch.Tensor, length: int, tokens: int = 131_072) -> float:
    """Return the perplexity of the first `tokens` held-out tokens in sequences of `length`."""
    angles, losses = student.teacher.angles(length), []
    for ids in held[: tokens // length * length].view(-1, length).split(max(1, 32_768 // length)):
        ids = ids.to(DEVICE)
        hidden = student.hidden(ids, angles)[:, :-1].flatten(0, 1)
        for part, labels in zip(hidden.split(16_384), ids[:, 1:].flatten().split(16_384), strict=True):
            losses.append(F.cross_entropy(student.logits(part), labels, reduction="none"))
    return torch.cat(losses).mean().exp().item()


@torch.no_grad()
def recall(student: Student, text: Text, samples: int = 64) -> dict[str, dict[int, float]]:
    """Return how much is recalled by the product's tests, by probe and distance: `evaluate.recall`."""
    shares: dict[str, dict[int, float]] = {}
    for test in text.tests(samples):
        ids, counts = test.tokens.long(), test.counts
        angles, told = student.teacher.angles(ids.shape[1]), []
        for part, counted in zip(
            *(x.split(max(1, ROWS // ids.shape[1])) for x in (ids, counts)), strict=True
        ):
            hidden = student.hidden(part.to(DEVICE), angles)[:, :-1][counted[:, 1:].to(DEVICE)]
            right = student.logits(hidden).argmax(-1).cpu() == part[:, 1:][counted[:, 1:]]
            rows = right.split(counted[:, 1:].sum(1).tolist())
            told += [row.all() if test.metric is Metric.EXACT else row.float().mean() for row in rows]
        shares.setdefault(str(test.probe), {})[test.distance] = round(sum(map(float, told)) / len(told), 3)
    return shares
