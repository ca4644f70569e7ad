"""What bounds a collection beside the matrix rate: its layers' products by themselves, and its writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from timing import wait
from trenchcoat_trainer.data.layout import HIDDEN
from trenchcoat_trainer.layers.float8 import product
from trenchcoat_trainer.layers.llama import MLP_ROWS, LayerShape, LayerWeights
from trenchcoat_trainer.runtime.background import BackgroundWriter
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.graphs import Replayed

LAYERS = 8
"""Of a graph, so that its start does not count."""
SECONDS = 1.0
OBJECTS = 48


def products_rate(config: Any, rows: int, device: torch.device) -> float:
    """Return the FLOP/s of a layer's products with weights alone, bf16, as fused layers cut them.

    Args:
        config: the model's.
        rows: tokens of a batch.
        device: a GPU, on which they run as a CUDA graph, or a CPU.
    """
    shape = LayerShape.from_config(config)
    weights = LayerWeights.empty(shape, torch.bfloat16, device)
    for matrix in (weights.qkv, weights.out, weights.gate_up, weights.down):
        matrix.normal_(0, matrix.shape[1] ** -0.5)
    states, heads, gated = (
        torch.randn(rows, width, dtype=torch.bfloat16, device=device)
        for width in (shape.hidden, shape.heads * shape.head_dim, shape.mlp)
    )

    def compute() -> None:
        for _ in range(LAYERS):
            product(states, weights.qkv)
            product(heads, weights.out)
            for slab, inner in zip(states.split(MLP_ROWS), gated.split(MLP_ROWS), strict=True):
                product(slab, weights.gate_up)
                product(inner, weights.down)

    run = Replayed(compute, device.type == "cuda", name="products alone")
    for _ in range(Replayed.CALLS + 1):
        run()
    return 2 * LAYERS * rows * shape.products_per_token / _seconds_of(run, device)


def _seconds_of(run: Callable[[], None], device: torch.device) -> float:
    """Return how long a call takes, of as many as fill a second."""
    wait(device)
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        for _ in range(4):  # or the host's way to the device and back would count
            run()
        calls += 4
        wait(device)
    return (time.perf_counter() - began) / calls


def writing_rate(context: StageContext, like: torch.Tensor) -> float:
    """Return the bytes a second at which objects such as `like`, on the host, are written by themselves."""
    began = time.perf_counter()
    with BackgroundWriter(context.writer) as writer:
        for number in range(OBJECTS):
            writer.submit(f"alone/{number:05d}.safetensors", {HIDDEN: like})
    return OBJECTS * like.nbytes / (time.perf_counter() - began)
