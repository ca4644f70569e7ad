"""One rank of the stitch's engines over random shards: started by `__main__.py`, once a rank."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsdp
import torch
import torch.distributed as dist
from model import RandomShards, layer_products
from timing import matrix_rate, of_all_ranks, peak_memory_gb, tell, wait
from tracing import traced
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.models.artifacts import weight_dtype
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.devices import any_device
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.ranks import joined
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.stages.stitch import alone, zero
from trenchcoat_trainer.stages.stitch.batches import StepBatch, StitchData
from trenchcoat_trainer.stages.stitch.memory import Held, choose
from trenchcoat_trainer.stages.stitch.subject import Subject

WARM_UP, TRACED = 3, 2
"""Steps before the clock starts, and steps under the profiler at the end."""


def main() -> None:
    """Run every engine that is asked for and add what it reached to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--held", choices=["auto", "nothing"], required=True)
    parser.add_argument("--engines", nargs="+", choices=["fsdp2", "zero3", "alone"], required=True)
    parser.add_argument("--zero", nargs="+", type=json.loads, default=[], help="more settings of ZeRO-3")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = Trenchcoat.from_yaml(arguments.spec).spec
    context = open_context(spec, Stage.STITCH, folder=arguments.store)
    device = any_device(context.rank)
    context = RandomShards.of(context, device, weight_dtype(context))
    with joined(context.rank, context.world_size, device, context.stop):
        rates = of_all_ranks(matrix_rate(device), device)
        runs = [(engine, {}) for engine in arguments.engines]
        for engine, changes in [*runs, *(("zero3", changes) for changes in arguments.zero)]:
            held = find_held(arguments.held, context, device)
            result = measure(engine, context, held, changes, device)
            if context.rank == 0:
                told = {"part": "stitch", "size": arguments.size, "ranks": context.world_size}
                told |= {"matrix_tflops_of_all": sum(rates) / 1e12}
                tell(arguments.out, told | result)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def measure(
    name: str, context: StageContext, held: Held, changes: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Train with one engine and time its steps; `changes` are to the settings of ZeRO."""
    subject, spec = Subject.of(context), context.spec
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    losses: list[float] = []
    seconds: list[float] = []
    with opened(name, context, subject, held, changes, device) as engine:
        wait(device)
        set_up = time.perf_counter() - began
        batches = list(StitchData(context, subject.config, epochs=1).batches(0))
        cursor, rate = Cursor(), float(spec.stitch.learning_rate)

        def take(batches: list[StepBatch]) -> None:
            for batch in batches:
                began = time.perf_counter()
                losses.append(engine.step(batch, cursor, rate=rate).item())
                cursor.note(losses[-1])
                seconds.append(time.perf_counter() - began)

        take(batches[:-TRACED])
        with traced(device, TRACED) if context.rank == 0 else nullcontext({}) as result:
            take(batches[-TRACED:])
            wait(device)
        if dist.is_initialized():
            dist.barrier()
        peaks = of_all_ranks(peak_memory_gb(device) or 0.0, device)
    step = statistics.median(seconds[WARM_UP:-TRACED])
    # Adapters cost next to nothing: a frozen weight is multiplied forward, and once more for the gradient.
    config = subject.config
    weights = layer_products(config) * config.num_hidden_layers + config.vocab_size * config.hidden_size
    recomputed = 0 if held.graph else layer_products(config) * config.num_hidden_layers
    return {
        "engine": name,
        "changes": changes,
        "held": asdict(held),
        "layers": subject.config.num_hidden_layers,
        "tokens_per_second": batches[0].tokens / step,
        "tflops": 4 * weights * batches[0].tokens / step / 1e12,
        "tflops_with_recomputing": (4 * weights + 2 * recomputed) * batches[0].tokens / step / 1e12,
        "step_ms": 1e3 * step,
        "steps": len(seconds) - WARM_UP - TRACED,
        "set_up_s": set_up,
        "peak_memory_gb": peaks,
        "losses": losses,
        **result,
    }


def find_held(wanted: str, context: StageContext, device: torch.device) -> Held:
    """Return what is held: nothing, as of a large model on small GPUs, or what the stage would hold."""
    if wanted == "nothing":
        return Held(graph=False, weights=False)
    config = Subject.of(context).config
    if context.world_size == 1:
        return choose(context.spec, config, device)
    return zero.agreed(context.spec, config, device)


def opened(
    name: str,
    context: StageContext,
    subject: Subject,
    held: Held,
    changes: dict[str, Any],
    device: torch.device,
) -> AbstractContextManager[Any]:
    """Return what builds an engine."""
    if name == "fsdp2":
        return fsdp.open_engine(context, subject, held, device)
    if name == "zero3":
        return zero.open_engine(context, subject, held, device, {}, changes)
    return alone.open_engine(context, subject, held, device, {})


if __name__ == "__main__":
    main()
