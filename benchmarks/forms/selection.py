"""Which layers carry recall: scores of one forward pass, against cutting layers one at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from model import DEVICE, WHOLE, Sight, Student, Teacher
from tasks import Text

NARROW = Sight(64)
SPAN = 48
ANSWER = slice(-SPAN + 3, -1)


def sequences(text: Text, vocabulary: int) -> list[torch.Tensor]:
    """Return copy sequences at three distances, 8 of each, around training text."""
    source, sets = np.random.default_rng(5), []
    for distance in (200, 400, 800):
        rows = []
        for _ in range(8):
            span = source.integers(100, vocabulary, SPAN).tolist()
            at = int(source.integers(0, len(text.train) - distance - 300))
            fill = text.train[at : at + distance + 100].tolist()
            rows.append(fill[:64] + span + fill[64 : 64 + distance - SPAN] + span)
        sets.append(torch.tensor(rows).to(DEVICE))
    return sets


@torch.no_grad()
def one_pass(teacher: Teacher, sets: list[torch.Tensor], answer: slice = ANSWER) -> np.ndarray:
    """Return for each layer how far its cut moves the residual stream where the answers stand."""
    student = Student(teacher, [NARROW] * teacher.layers, rank=0)
    scores = np.zeros(teacher.layers)
    for ids in sets:
        angles, x = teacher.angles(ids.shape[1]), teacher.weights["embed_tokens.weight"][ids]
        for layer in range(teacher.layers):
            h, out = student.normed(layer, x), teacher.weights[f"layers.{layer}.self_attn.o_proj.weight"]
            whole = F.linear(student.attend(layer, h, angles, whole=True), out)
            moved = (whole - F.linear(student.attend(layer, h, angles), out)).float()[:, answer]
            length = (x + whole).float()[:, answer].norm(dim=-1)
            scores[layer] += (moved.norm(dim=-1) / length).mean().item()
            x = student.after(layer, x, whole)
    return scores


@torch.no_grad()
def recall_loss(student: Student, sets: list[torch.Tensor]) -> tuple[float, float]:
    """Return the loss on the answers, nats a token, and their top-1 accuracy."""
    loss = right = 0.0
    for ids in sets:
        logits = student.logits(student.hidden(ids, student.teacher.angles(ids.shape[1]))[:, ANSWER])
        labels = ids[:, -SPAN + 4 :]
        loss += F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item() / len(sets)
        right += (logits.argmax(-1) == labels).float().mean().item() / len(sets)
    return loss, right


def one_cut(teacher: Teacher, sets: list[torch.Tensor]) -> np.ndarray:
    """Return for each layer the recall loss of the model with that layer cut."""
    student, losses = Student(teacher, [WHOLE] * teacher.layers, rank=0), []
    for layer in range(teacher.layers):
        student.sights = [NARROW if other == layer else WHOLE for other in range(teacher.layers)]
        losses.append(recall_loss(student, sets)[0])
    return np.array(losses)


def best(scores: np.ndarray, count: int) -> list[int]:
    """Return the `count` layers with the highest scores."""
    return sorted(int(layer) for layer in np.argsort(-scores)[:count])
