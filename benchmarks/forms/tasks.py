"""What is measured of a student, and the synthetic recall that training may carry, in other words."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import DEVICE, Student
from tokenizers import Tokenizer

SPAN = 64
"""Random tokens of the copy task."""
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

    def with_recall(
        self, row: torch.Tensor, source: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write facts and questions, or spans shown twice, over ordinary text [T]; return ids and labels."""
        ids, labels, length = row.clone(), row.clone(), len(row)
        taken = np.zeros(length, bool)
        for _ in range(max(2, length // 384)):
            distance = int(np.exp(source.uniform(math.log(40), math.log(length * 0.9))))
            if fact := source.random() < 0.5:
                name = "".join(chr(97 + c) for c in source.integers(0, 26, source.integers(4, 8)))
                value = "".join(map(str, source.integers(0, 10, source.integers(4, 8))))
                told = self.ids(f"\nNote: the {name} number is {value}.\n")
                asked = self.ids(f"\nQuestion: which is the {name} number? Answer: {value}.\n")
            else:
                told = asked = source.integers(100, self.vocabulary, source.integers(16, 64)).tolist()
            if distance < len(told) + 4 or distance + len(asked) + 2 >= length:
                continue
            at = int(source.integers(0, length - distance - len(asked)))
            first, second = slice(at, at + len(told)), slice(at + distance, at + distance + len(asked))
            if taken[first].any() or taken[second].any():
                continue
            taken[first] = taken[second] = True
            for place, tokens in ((first, told), (second, asked)):
                ids[place] = labels[place] = torch.tensor(tokens)
            if not fact:  # what nobody can know
                labels[first] = -100
                labels[second.start : second.start + 3] = -100
        return ids, labels


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
def copy(student: Student, text: Text, distance: int, samples: int = 32) -> float:
    """Return the top-1 accuracy on random tokens that stood `distance` tokens before, from the fifth on."""
    source, rows = np.random.default_rng(distance + 1), []
    for _ in range(samples):
        span = source.integers(100, student.teacher.weights["embed_tokens.weight"].shape[0], SPAN).tolist()
        at = int(source.integers(0, len(text.held) - distance - 200))
        fill = text.held[at : at + distance + 64].tolist()
        rows.append(fill[:64] + span + fill[64 : 64 + distance - SPAN] + span)
    ids, right = torch.tensor(rows), []
    angles = student.teacher.angles(ids.shape[1])
    for part in ids.split(max(1, ROWS // ids.shape[1])):
        told = student.logits(student.hidden(part.to(DEVICE), angles)[:, -SPAN - 1 : -1]).argmax(-1).cpu()
        right.append((told == part[:, -SPAN:])[:, 4:].float().mean())
    return torch.stack(right).mean().item()


@torch.no_grad()
def passkey(student: Student, text: Text, distance: int, samples: int = 32) -> float:
    """Return how often five digits told `distance` tokens before are said right, all of them.

    They are told 64 to 255 tokens from the start, so that visible first tokens do not help.
    """
    source, rows, lengths = np.random.default_rng(distance), [], []
    question = text.ids("\nWhat is the pass key? The pass key is ")
    for _ in range(samples):
        key = "".join(map(str, source.integers(0, 10, 5)))
        needle = text.ids(f" The pass key is {key}. Remember it. {key} is the pass key.\n")
        before = 64 + int(source.integers(0, 192))
        at = int(source.integers(0, len(text.held) - before - distance - 10))
        fill = text.held[at : at + before + distance].tolist()
        answer = text.ids(key)
        rows.append(fill[:before] + needle + fill[before:][: distance - len(question)] + question + answer)
        lengths.append(len(answer))
    longest, right = max(map(len, rows)), 0
    angles, step = student.teacher.angles(longest), max(1, ROWS // longest)
    for start in range(0, samples, step):
        part = rows[start : start + step]
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        hidden = student.hidden(ids.to(DEVICE), angles)
        for index, row in enumerate(part):
            answer = slice(len(row) - lengths[start + index], len(row))
            told = student.logits(hidden[index, answer.start - 1 : answer.stop - 1]).argmax(-1).cpu()
            right += bool((told == ids[index, answer]).all())
    return right / samples
