"""How fast Crias train that collect for one another: two real Jobs at the full width of Llama 3.1 405B.

`python benchmarks/rolling` runs the cria stage for Crias 0 and 1 of three, of random weights made on the GPU,
with `spec.collect.strategy: Rolling`: each reads what enters it from a store in a folder, trains its maps for
two epochs and writes what enters the next. It writes `results/GPU.json` and `.md`: tokens/s of the epoch that
collects and of the one that does not, beside attention transfer of a batch that lies on the GPU already.
"""

import argparse
import gc
import json
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from table import table
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from trenchcoat_api.artifacts import DataFacts, Facts
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import EMBEDDINGS, TEACHER
from trenchcoat_trainer.checkpoints.teacher import model_facts
from trenchcoat_trainer.data import Batch, Starts
from trenchcoat_trainer.data.layout import TOKENS, sequences_per_token_object, token_path
from trenchcoat_trainer.models.artifacts import load_student_config, untrained_parameters, weight_dtype
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import cria as cria_stage
from trenchcoat_trainer.stages.cria.boundary import NextBoundary, RollingTransfer
from trenchcoat_trainer.stages.cria.fused import fuse_for_gpu
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, transfer_step, transfer_through

RESULTS = Path(__file__).parent / "results"
EPOCHS, BATCH = 2, 8
CRIAS = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Clock:
    """When each optimiser step ended, by epoch: a step ends with a wait for the device."""

    ended: dict[int, list[float]] = field(default_factory=dict)
    completed: float = 0.0
    """Seconds that the first epoch took to complete the boundary, once all steps were made."""

    def note(self, spec: TrenchcoatSpec) -> None:
        """Note that the next step has ended."""
        steps = -(-(spec.data.tokens // spec.data.sequence_length) // BATCH)
        done = sum(map(len, self.ended.values()))
        self.ended.setdefault(done // steps, []).append(time.perf_counter())

    def seconds(self, epoch: int, skip: int) -> float:
        """From the end of step `skip` of an epoch to the end of its last."""
        ended = self.ended[epoch]
        return ended[-1] - ended[skip - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9, help="of each Cria")
    parser.add_argument("--sequences", type=int, default=160, help="of 1024 tokens, in every epoch")
    parser.add_argument("--toy", action="store_true", help="small enough for a CPU, to try the script")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rolling-", dir=arguments.folder))
    try:
        measured = measure(arguments, folder)
    finally:
        shutil.rmtree(folder)
    name = "toy" if arguments.toy else measured["hardware"].lower().replace("nvidia ", "").split()[0]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n")
    (arguments.output / f"{name}.md").write_text(table(measured))
    sys.stdout.write(table(measured))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = llama(arguments.layers * (CRIAS + 1), toy=arguments.toy)
    length = 256 if arguments.toy else 1024
    spec = make_spec(arguments.layers, arguments.sequences, length)
    write_inputs(spec, config, folder, arguments.sequences)
    skip = 2  # the first steps compile kernels
    crias = []
    for index in range(CRIAS):
        clock = Clock()
        run_cria(spec, folder, index, clock)
        rates = {
            "collecting": (arguments.sequences - skip * BATCH) * length / clock.seconds(0, skip),
            "not_collecting": (arguments.sequences - skip * BATCH) * length / clock.seconds(1, skip),
        }
        first, second = clock.seconds(0, skip), clock.seconds(1, skip)
        both = 2 * (arguments.sequences - skip * BATCH) * length / (first + second)
        crias.append({**rates, "both_epochs": both, "completing_seconds": clock.completed})
        log(crias[-1])
    resident = resident_rates(spec, folder, length, config)
    whole = 2.0 * layer_parameters(config) * arguments.layers
    return {
        "command": f"python benchmarks/rolling --layers {arguments.layers} --sequences {arguments.sequences}",
        "hardware": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or "cpu",
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers")},
        },
        "layers": arguments.layers,
        "hidden_size": config.hidden_size,
        "sequences": arguments.sequences,
        "sequence_length": length,
        "boundary_bytes": arguments.sequences * length * config.hidden_size * 2,
        "resident": resident,
        "crias": crias,
        "ratio_collecting": min(item["collecting"] for item in crias) / resident["transfer"],
        "ratio_both_epochs": min(item["both_epochs"] for item in crias) / resident["transfer"],
        "idle_share": 1 - min(item["collecting"] for item in crias) / resident["through"],
        "tflops_collecting": min(item["collecting"] for item in crias) * whole / 1e12,
        "gpu_memory_bytes": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0,
    }


def run_cria(spec: TrenchcoatSpec, folder: Path, index: int, clock: Clock) -> None:
    """Run the stage, noting when each step ends."""
    end_step, complete = RollingTransfer.end, NextBoundary.complete

    def end(phase: RollingTransfer) -> float | None:
        loss = end_step(phase)
        clock.note(spec)
        return loss

    def completed(boundary: NextBoundary) -> None:
        began = time.perf_counter()
        complete(boundary)
        clock.completed += time.perf_counter() - began

    context = open_context(spec, Stage.CRIA, cria=index, folder=folder, place=Place())
    with (
        patch.object(RollingTransfer, "end", end),
        patch.object(NextBoundary, "complete", completed),
        patch.object(cria_stage, "load_cria", random_cria),
    ):
        cria_stage.run(context)
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def resident_rates(spec: TrenchcoatSpec, folder: Path, length: int, config: LlamaConfig) -> dict[str, float]:
    """Tokens/s of optimiser steps on a batch that lies on the device: plain ones, and to the Cria's end."""
    context = open_context(spec, Stage.CRIA, cria=1, folder=folder, place=Place())
    model = random_cria(context, context.cria)
    fused = fuse_for_gpu(model, length)
    inputs = torch.randn(BATCH, length, config.hidden_size, device=DEVICE, dtype=torch.bfloat16)
    through = fused.transfer_through if fused else transfer_through
    plain = fused.transfer_step if fused else transfer_step
    starts = Starts.of(spec, model.config)
    # As everywhere: steps that do not collect are CUDA graphs.
    runner = fused.runner(starts, length, whole=False) if fused else None
    kinds = {
        "transfer": (plain, runner),
        "through": (lambda *given, **named: through(*given, **named)[0], None),
    }
    rates = {}
    for name, (step, runs) in kinds.items():
        phase = TransferPhase(model, spec, 1000, step, starts, runs)
        for number in range(8):
            if number == 2:
                began = time.perf_counter()
            phase.step(Batch(inputs, None), epoch=0, step=number)
        rates[name] = 6 * BATCH * length / (time.perf_counter() - began)
    return rates


def random_cria(context: StageContext, cria: CriaRange) -> CriaModel:
    """Random weights where a Job reads a shard: how that is read is no part of what is measured."""
    student = load_student_config(context)
    with torch.device("meta"):
        shapes = {f"model.{name}": p.shape for name, p in CriaModel(student, cria).named_parameters()}
    weights = {}
    generator = torch.Generator(DEVICE).manual_seed(cria.index)
    maps = untrained_parameters(context, student, cria)
    own = {f"model.{name.rsplit('.', 1)[0]}.self_attn.{name.rsplit('.', 1)[1]}" for name in maps}
    for name, shape in shapes.items():
        if name in own:
            continue
        weight = torch.empty(shape, dtype=weight_dtype(context), device=DEVICE)
        if weight.ndim == 1:
            weights[name] = weight.fill_(1.0)
        else:  # scores and residual growth of the order of a trained model's
            std = (1.0 if "self_attn.q" in name else 0.5) * shape[1] ** -0.5
            weights[name] = weight.normal_(std=std, generator=generator)
    return CriaModel.build(student, cria, weights, maps, dtype=weight_dtype(context), device=DEVICE)


def layer_parameters(config: LlamaConfig) -> int:
    """Parameters of a decoder layer."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LlamaDecoderLayer(config, 0).parameters())


def llama(layers: int, *, toy: bool) -> LlamaConfig:
    """The shape of Llama 3.1 405B with another number of layers and a small vocabulary, or a toy's."""
    width = {"hidden_size": 16384, "num_attention_heads": 128, "num_key_value_heads": 8}
    width |= {"intermediate_size": 53248}
    if toy:
        width = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
        width |= {"intermediate_size": 512}
    return LlamaConfig(
        num_hidden_layers=layers, vocab_size=1024, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        **width,
    )  # fmt: skip


def make_spec(layers: int, sequences: int, length: int) -> TrenchcoatSpec:
    return TrenchcoatSpec.model_validate(
        {
            "model": {"source": "file:///random"},
            "data": {"source": "file:///random.txt", "tokens": sequences * length, "sequenceLength": length},
            "store": {
                "endpoint": "http://127.0.0.1:9000",
                "bucket": "trenchcoat",
                "credentialsSecretRef": {"name": "minio"},
            },
            "preset": "shipped",
            "layersPerCria": layers,
            "collect": {"strategy": "Rolling"},
            "transfer": {"epochs": EPOCHS, "batchSize": BATCH},
            "criaLora": {"epochs": 0},
        }
    )


def write_inputs(spec: TrenchcoatSpec, config: LlamaConfig, folder: Path, sequences: int) -> None:
    """Complete tokenize with random token ids, and shard with the configuration and the embeddings alone."""
    length, generator = spec.data.sequence_length, torch.Generator().manual_seed(0)
    context = open_context(spec, Stage.TOKENIZE, folder=folder, place=Place())
    size = sequences_per_token_object(length)
    for index in range(-(-sequences // size)):
        shape = (min(size, sequences - index * size), length)
        ids = torch.randint(0, config.vocab_size, shape, dtype=torch.int32, generator=generator)
        context.writer.write_tensors(token_path("train", index), {TOKENS: ids})
    data = DataFacts(
        documents=1,
        sequences=sequences,
        tokens=sequences * length,
        held_out_documents=1,
        held_out_sequences=1,
    )
    context.writer.finish(Facts(model=model_facts(config), data=data))
    context = open_context(spec, Stage.SHARD, folder=folder, place=Place())
    fields = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    context.writer.write(TEACHER + "config.json", json.dumps(fields).encode())
    embeddings = torch.randn(config.vocab_size, config.hidden_size, generator=generator).bfloat16()
    context.writer.write_tensors(EMBEDDINGS, {"model.embed_tokens.weight": embeddings})
    context.writer.finish()


def log(value: object) -> None:
    sys.stderr.write(f"{value}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
