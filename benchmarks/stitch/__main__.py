#!/usr/bin/env python3
"""How fast the stitch trains on one device, by the product's own step.

    python benchmarks/stitch --compare        # every way of running it, each in a fresh process
    python benchmarks/stitch --micro-batch 8 --checkpointing off

Makes a random Llama of the size asked for (88M parameters unless told otherwise), shards it by the shard
stage, builds what trains it as the stitch stage does and times its steps. Prints one JSON object a line:
tokens per second, peak memory, the losses (equal losses: the same computation), and what it ran on.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trenchcoat_api.artifacts import DataFacts, Facts
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES
from trenchcoat_trainer.checkpoints.teacher import model_facts
from trenchcoat_trainer.data.layout import TOKENS, sequences_per_token_object, token_path
from trenchcoat_trainer.models.artifacts import (
    ADAPTERS,
    FEATURE_MAPS,
    load_student_config,
    untrained_parameters,
)
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.devices import any_device
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.training import Cursor
from trenchcoat_trainer.stages import shard
from trenchcoat_trainer.stages.stitch import alone, zero
from trenchcoat_trainer.stages.stitch.batches import StitchData
from trenchcoat_trainer.stages.stitch.memory import choose
from trenchcoat_trainer.stages.stitch.subject import Subject


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_argument_group("the model")
    size.add_argument("--layers", type=int, default=12)
    size.add_argument("--hidden", type=int, default=768)
    size.add_argument("--intermediate", type=int, default=2048)
    size.add_argument("--heads", type=int, default=12)
    size.add_argument("--kv-heads", type=int, default=12)
    size.add_argument("--vocabulary", type=int, default=4096)
    size.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    step = parser.add_argument_group("the step")
    step.add_argument("--tokens", type=int, default=1024, help="per sequence")
    step.add_argument("--form", choices=["lolcats", "window"], default="lolcats")
    step.add_argument("--window", type=int, default=64)
    step.add_argument("--feature-dim", type=int, default=64)
    step.add_argument("--batch", type=int, default=8, help="sequences per optimiser step")
    step.add_argument("--micro-batch", type=int, default=1, help="sequences per forward pass")
    step.add_argument("--dropout", default="0.05", help="of the adapters")
    step.add_argument("--steps", type=int, default=20, help="timed")
    step.add_argument("--warm-up", type=int, default=5, help="steps before, not timed")
    how = parser.add_argument_group("how it runs; auto is what the stitch stage does by itself")
    switch = ["auto", "on", "off"]
    how.add_argument(
        "--checkpointing", choices=switch, default="auto", help="run layers twice, hold no graph"
    )
    how.add_argument("--hold-weights", choices=switch, default="auto", help="over a whole optimiser step")
    how.add_argument(
        "--engine", choices=["alone", "zero"], default="alone", help="that of one rank, or of several"
    )
    how.add_argument("--no-graphs", action="store_true", help="launch the kernels of alone one by one")
    how.add_argument("--zero", type=json.loads, default={}, help="JSON merged into zero_optimization")
    how.add_argument("--profile", type=Path, metavar="FILE", help="write where the time goes, by operator")
    how.add_argument("--compare", action="store_true", help="run many ways one after another")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder))), flush=True)


def compare(given: list[str]) -> None:
    """Run every way in a process of its own; arguments that were given hold for all."""
    common = [argument for argument in given if argument != "--compare"]
    every_module = json.dumps({"leaf_module": {"classes": []}})
    ways = [
        ["--micro-batch", micro_batch, "--checkpointing", checkpointing, "--engine", "zero", *hooks]
        for micro_batch in ("1", "4", "8")
        for checkpointing in ("on", "off")
        for hooks in (
            ["--hold-weights", "off", "--zero", every_module],
            ["--hold-weights", "off"],
            ["--hold-weights", "on"],
        )
    ]
    for way in [*ways, [], ["--no-graphs"]]:
        command = [sys.executable, __file__, *common, *way]
        done = subprocess.run(command, capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
        failed = json.dumps({"way": way, "failed": done.stderr.strip().splitlines()[-1:]})
        print(last[0] if last else failed, flush=True)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and time; what `main` prints."""
    spec = make_spec(arguments, folder)
    make_inputs(arguments, spec, folder)
    context = open_context(spec, Stage.STITCH, folder=folder, place=Place())
    device, subject = any_device(0), Subject.of(context)
    held = choose(spec, subject.config, device)
    if arguments.checkpointing != "auto":
        held = replace(held, graph=arguments.checkpointing == "off")
    if arguments.hold_weights != "auto":
        held = replace(held, weights=arguments.hold_weights == "on")
    if arguments.engine == "zero":
        opened = zero.open_engine(context, subject, held, device, {}, arguments.zero)
    else:
        graphs = held.graph and device.type == "cuda" and not arguments.no_graphs
        opened = alone.open_engine(context, subject, held, device, {}, graphs=graphs)
    began, rate = time.perf_counter(), float(spec.stitch.learning_rate)
    with opened as engine:
        set_up_seconds = time.perf_counter() - began
        losses, seconds, cursor = [], [], Cursor()
        with profiled(arguments.profile, device):
            for batch in StitchData(context, subject.config, epochs=1).batches(0):
                began = time.perf_counter()
                loss, _, _ = engine.step(batch, cursor, rate=rate, wishes=(False, False)).tolist()
                cursor.note(loss)
                seconds.append(time.perf_counter() - began)
                losses.append(loss)
    timed = seconds[arguments.warm_up :]
    tokens_per_step = arguments.batch * arguments.tokens
    return {
        "tokens_per_second": round(tokens_per_step / statistics.median(timed)),
        "step_ms": round(1e3 * statistics.median(timed), 2),
        "slowest_step_ms": round(1e3 * max(timed), 2),
        "first_step_s": round(seconds[0], 2),
        "set_up_s": round(set_up_seconds, 2),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "held": asdict(held),
        "losses": [losses[0], losses[-1]],
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "deepspeed": importlib.metadata.version("deepspeed"),
    }


def make_spec(arguments: argparse.Namespace, folder: Path) -> TrenchcoatSpec:
    """The spec of this run: everything that is not asked for as published."""
    sequences = arguments.batch * (arguments.steps + arguments.warm_up)
    attention = {"form": arguments.form, "window": arguments.window}
    if arguments.form == "lolcats":
        attention |= {"featureDim": arguments.feature_dim}
    return TrenchcoatSpec.model_validate(
        {
            "model": {"source": (folder / "teacher").as_uri()},
            "data": {
                "source": "file:///nothing/*.txt",  # token ids are written directly
                "tokens": sequences * arguments.tokens,
                "sequenceLength": arguments.tokens,
            },
            "store": {
                "endpoint": "http://127.0.0.1:9000",
                "bucket": "trenchcoat",
                "credentialsSecretRef": {"name": "none"},
            },
            "preset": "shipped",
            "layersPerCria": arguments.layers,
            "dtype": arguments.dtype,
            "attention": attention,
            "stitch": {
                "batchSize": arguments.batch,
                "microBatchSize": arguments.micro_batch,
                "lora": {"dropout": arguments.dropout},
            },
        }
    )


def make_inputs(arguments: argparse.Namespace, spec: TrenchcoatSpec, folder: Path) -> None:
    """The artifacts that the stitch starts from: random token ids, a random teacher, untrained maps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads,
        max_position_embeddings=arguments.tokens,
    )
    teacher = LlamaForCausalLM(config).to(TORCH_DTYPES[spec.dtype])
    teacher.save_pretrained(folder / "teacher")
    (folder / "teacher" / "tokenizer.json").write_text("{}")  # never opened

    write_tokens(arguments, open_context(spec, Stage.TOKENIZE, folder=folder), config)
    shard.run(open_context(spec, Stage.SHARD, folder=folder))
    for index in range(-(-arguments.layers // spec.layers_per_cria)):
        context = open_context(spec, Stage.CRIA, cria=index, folder=folder)
        student = load_student_config(context)
        context.writer.write_tensors(FEATURE_MAPS, untrained_parameters(context, student, context.cria))
        context.writer.write_tensors(ADAPTERS, {})
        context.writer.finish()


def write_tokens(arguments: argparse.Namespace, context: StageContext, config: LlamaConfig) -> None:
    """Complete the tokenize artifact."""
    sequences = arguments.batch * (arguments.steps + arguments.warm_up)
    size = sequences_per_token_object(arguments.tokens)
    for index in range(-(-sequences // size)):
        shape = (min(size, sequences - index * size), arguments.tokens)
        ids = torch.randint(0, config.vocab_size, shape, dtype=torch.int32)
        context.writer.write_tensors(token_path("train", index), {TOKENS: ids})
    data = DataFacts(
        documents=1,
        sequences=sequences,
        tokens=sequences * arguments.tokens,
        held_out_documents=0,
        held_out_sequences=0,
    )
    context.writer.finish(Facts(model=model_facts(config), data=data))


@contextmanager
def profiled(file: Path | None, device: torch.device) -> Iterator[None]:
    """Write the operators that take the most time to `file`, if there is one."""
    if file is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield
    averages = profile.key_averages()
    tables = [
        averages.table(sort_by=key, row_limit=40)
        for key in ("self_cpu_time_total", *(("self_cuda_time_total",) if device.type == "cuda" else ()))
    ]
    file.write_text("\n".join(tables))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
