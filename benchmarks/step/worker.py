"""One build of the product, told on standard input what to train and when: JSON, line by line.

Started by `sizes.py` for every build that is compared, so that their steps take turns on one GPU. It knows
of a build only what all of them have: the cria stage's `train`, whose model, data and loop stand in for those
that a store would give, and which hands over the phase that it would run.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.models.student import initial_parameters, student_config
from trenchcoat_trainer.stages import cria as stage

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


class HandedOverError(Exception):
    """Carries the phase that the stage would run."""

    def __init__(self, phase: Any) -> None:
        super().__init__()
        self.phase = phase


class Loop:
    """Stands in for the stage's: runs nothing."""

    def __init__(self, maps: dict[str, torch.Tensor] | None) -> None:
        self.data = SimpleNamespace(steps=lambda size: 1_000_000)
        self.maps, self.facts, self.losses = maps, {}, {}

    def run(self, phase: Any) -> None:
        raise HandedOverError(phase)


def weights(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Return random weights, scores and residual growth of the order of a trained model's."""
    with torch.device("meta"):
        layers = torch.nn.ModuleList(LlamaDecoderLayer(config, n) for n in range(config.num_hidden_layers))
    torch.manual_seed(0)
    found = {}
    for name, parameter in layers.named_parameters():
        new = torch.ones(parameter.shape, device=DEVICE, dtype=DTYPE)
        if new.ndim == 2:
            new.normal_(std=(1.0 if "self_attn.q" in name else 0.5) * new.shape[1] ** -0.5)
        found[f"model.layers.{name}"] = new
    return found


def batch_of(config: LlamaConfig, sequences: int, tokens: int) -> Batch:
    size = (sequences, tokens, config.hidden_size)
    return Batch(*(torch.randn(size, device=DEVICE, dtype=DTYPE) for _ in "it"))


def teacher(config: LlamaConfig, asked: dict[str, Any]) -> Callable[[], object]:
    """Return the teacher's plain forward pass: Hugging Face's layers and SDPA."""
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        layers = torch.nn.ModuleList(LlamaDecoderLayer(config, n) for n in range(config.num_hidden_layers))
    own = {name.removeprefix("model.layers."): tensor for name, tensor in weights(config).items()}
    layers.load_state_dict(own, assign=True)
    layers.eval().requires_grad_(False)
    rotary = LlamaRotaryEmbedding(config=config).to(DEVICE)
    inputs = batch_of(config, asked["batch"], asked["tokens"]).inputs

    @torch.no_grad()
    def forward() -> None:
        x = inputs
        positions = rotary(x, torch.arange(x.shape[1], device=DEVICE)[None])
        for layer in layers:
            x = layer(x, position_embeddings=positions)

    return forward


def phase(config: LlamaConfig, asked: dict[str, Any]) -> Callable[[], object]:
    """Return the optimiser's step of a phase, as the stage would run it."""
    spec = TrenchcoatSpec.model_validate(asked["spec"])
    cria = CriaRange(0, 0, config.num_hidden_layers - 1)
    student = student_config(config, spec.attention)
    maps = {
        f"layers.{n}.{name}": tensor
        for n in cria.layers
        for name, tensor in initial_parameters(student, n, spec.seed).items()
    }
    model = CriaModel.build(student, cria, weights(config), maps, dtype=DTYPE, device=DEVICE)
    trained = None if asked["phase"] == "transfer" else maps
    stage.load_student_config = lambda context: student
    stage.load_cria = lambda context, cria: model
    stage.open_data = lambda context: None
    stage.Loop = lambda *arguments, **named: Loop(trained)
    try:
        artifact = SimpleNamespace(stage=Stage.CRIA)
        stage.train(SimpleNamespace(spec=spec, cria=cria, crias=[cria], artifact=artifact))
    except HandedOverError as handed_over:
        handed = handed_over.phase
    batch, step = batch_of(config, asked["batch"], asked["tokens"]), iter(range(1_000_000))
    return lambda: handed.step(batch, epoch=0, step=next(step))


def timed(function: Callable[[], object], times: int) -> float:
    """Return the milliseconds of a call, of so many in a row."""
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        function()
    synchronize()
    return (time.perf_counter() - began) / times * 1e3


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    function: Callable[[], object] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "time":
            answer: Any = timed(function, asked["times"])
        else:
            function = None
            gc.collect()  # a phase that was handed over is part of a circle
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            config = LlamaConfig(**asked["config"])
            function = (teacher if asked["phase"] == "teacher" else phase)(config, asked)
            last = [function() for _ in range(asked["warm_up"])][-1]
            synchronize()
            peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None
            answer = {"loss": last, "peak_bytes": peak}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
