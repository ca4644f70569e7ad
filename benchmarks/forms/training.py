"""Training: whole steps as one CUDA graph, so that a small model does not wait for the host."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from model import DEVICE, Student
from tasks import Text


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase trains, and how.

    Attributes:
        loss: a method of the student.
        trains: whether a parameter of that name trains.
        steps: optimiser steps.
        rows: sequences a step.
        length: tokens of a sequence.
        rate: highest learning rate of AdamW.
        decay: share of `rate` at the beginning (after 5% of warm-up) and at the end, by cosine between.
        recall: share of the sequences that carry synthetic recall.
        tokens_per_item: how densely, `Recall`'s.
        first: the sequence to begin with.
        random_start: let half of the steps begin at a position below 7168.
    """

    loss: str
    trains: Callable[[str], bool]
    steps: int
    rows: int = 8
    length: int = 1024
    rate: float = 1e-3
    decay: tuple[float, float] = (1.0, 0.1)
    recall: float = 0.0
    tokens_per_item: tuple[int, int] = (384, 384)
    first: int = 0
    random_start: bool = False


def is_adapter(name: str) -> bool:
    """Say whether a parameter is an adapter's."""
    return name.endswith(("_a", "_b")) and not name.endswith("gate_b")


def run(student: Student, text: Text, phase: Phase, log: str) -> None:
    """Train `student` in place, and say how it went."""
    parameters = [p for name, p in student.params.items() if phase.trains(name)]
    for name, parameter in student.params.items():
        parameter.requires_grad_(phase.trains(name))
    rate = torch.zeros((), device=DEVICE)
    graphed = DEVICE == "cuda"
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, capturable=graphed, foreach=graphed
    )
    ids = torch.zeros(phase.rows, phase.length, dtype=torch.long, device=DEVICE)
    student.labels = torch.zeros_like(ids)
    start, told = torch.zeros((), device=DEVICE), torch.zeros((), device=DEVICE)

    def step() -> None:
        loss = getattr(student, phase.loss)(ids, student.teacher.angles(phase.length, start))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        told.copy_(loss.detach())

    sequences = text.train[: len(text.train) // phase.length * phase.length].view(-1, phase.length)
    source = np.random.default_rng(student.seed + 7)
    recall = text.recall(phase.tokens_per_item)

    def feed(index: int) -> None:
        rows = [(phase.first + index * phase.rows + row) % len(sequences) for row in range(phase.rows)]
        host = sequences[rows].clone()
        labels = host.clone()
        if phase.recall:
            labels, _ = recall.put_into(host, student.seed, phase.first + index, share=phase.recall)
        ids.copy_(host)
        student.labels.copy_(labels)
        if phase.random_start:
            start.fill_(float(source.integers(0, 7168)) if source.random() < 0.5 else 0.0)
        high, low = phase.decay
        cosine = 0.5 * (1 + math.cos(math.pi * index / phase.steps))
        rate.fill_(phase.rate * min(1.0, (index + 1) / (0.05 * phase.steps)) * (low + (high - low) * cosine))

    begun, losses, done = time.monotonic(), [], 0
    replay = step
    if graphed:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for done in range(3):
                feed(done)
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph, done = torch.cuda.CUDAGraph(), 3
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay
    for index in range(done, phase.steps):
        feed(index)
        replay()
        if index % max(1, phase.steps // 8) == 0 or index == phase.steps - 1:
            losses.append(round(told.item(), 3))
    student.labels = None
    print(f"{log}: {phase.steps} steps in {time.monotonic() - begun:.1f} s, losses {losses}", flush=True)
