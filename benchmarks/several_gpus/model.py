"""Models of the sizes that are measured: random weights that each rank makes by itself, random text."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trenchcoat_api.artifacts import Artifact, DataFacts, Facts
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shard_layout import TEACHER
from trenchcoat_trainer.checkpoints.teacher import Teacher, model_facts
from trenchcoat_trainer.data.layout import TOKENS, sequences_per_token_object, token_path
from trenchcoat_trainer.models.artifacts import (
    ADAPTERS,
    FEATURE_MAPS,
    load_student_config,
    untrained_parameters,
)
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.opening import open_context

SHAPES: dict[str, dict[str, int]] = {
    "405b": {
        "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152,
    },
    "narrow": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 10240,
    },
    "toy": {
        "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 512,
    },
}  # fmt: skip
"""Llama 3.1 405B and 8B, 3.2 1B, SmolLM2-135M; one whose embedding is to a layer as 405B's; one to try it."""


def shape(size: str, layers: int, tokens: int) -> LlamaConfig:
    """Return the configuration of so many layers of a size."""
    return LlamaConfig(**SHAPES[size], num_hidden_layers=layers, max_position_embeddings=4 * tokens)


def layer_products(config: LlamaConfig) -> int:
    """Return the numbers in a decoder layer's matrices."""
    head = config.hidden_size // config.num_attention_heads
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * head
    return config.hidden_size * (heads + 3 * config.intermediate_size)


def make_spec(
    folder: Path,
    *,
    layers_per_cria: int,
    sequences: int,
    tokens: int,
    stitch: dict[str, Any] | None = None,
    **more: Any,
) -> TrenchcoatSpec:
    """Return a spec with the published settings but for those that are given."""
    document = {
        "model": {"source": (folder / "teacher").as_uri()},
        "data": {
            "source": "file:///nothing/*.txt",  # token ids are written directly
            "tokens": sequences * tokens,
            "sequenceLength": tokens,
        },
        "store": {
            "endpoint": "http://127.0.0.1:9000",
            "bucket": "trenchcoat",
            "credentialsSecretRef": {"name": "none"},
        },
        "preset": "shipped",
        "layersPerCria": layers_per_cria,
        "stitch": stitch or {},
    }
    return TrenchcoatSpec.model_validate(document | more)


def write_text(folder: Path, spec: TrenchcoatSpec, config: LlamaConfig) -> None:
    """Complete the tokenize artifact, with random tokens, and put the teacher's configuration there."""
    teacher = folder / "teacher"
    teacher.mkdir(exist_ok=True)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(teacher)
    (teacher / "tokenizer.json").write_text("{}")  # never opened
    context = open_context(spec, Stage.TOKENIZE, folder=folder, place=Place())
    tokens = spec.data.sequence_length
    sequences, size = spec.data.tokens // tokens, sequences_per_token_object(tokens)
    draw = torch.Generator().manual_seed(0)
    for index in range(-(-sequences // size)):
        rows = min(size, sequences - index * size)
        ids = torch.randint(0, config.vocab_size, (rows, tokens), dtype=torch.int32, generator=draw)
        context.writer.write_tensors(token_path("train", index), {TOKENS: ids})
    data = DataFacts(
        documents=1,
        sequences=sequences,
        tokens=sequences * tokens,
        held_out_documents=1,  # which no stage that is measured reads
        held_out_sequences=16,
    )
    context.writer.finish(Facts(model=model_facts(config), data=data))


def write_teacher(folder: Path, config: LlamaConfig, dtype: torch.dtype) -> None:
    """Write a whole teacher of random weights, for stages that are run as programs."""
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "teacher")


def write_crias(folder: Path, spec: TrenchcoatSpec) -> None:
    """Complete the shard and Cria artifacts but for the teacher's weights, which `RandomShards` makes."""
    context = open_context(spec, Stage.SHARD, folder=folder, place=Place())
    context.writer.write(f"{TEACHER}config.json", (folder / "teacher" / "config.json").read_bytes())
    context.writer.finish()
    for cria in context.crias:
        context = open_context(spec, Stage.CRIA, cria=cria.index, folder=folder, place=Place())
        trained = untrained_parameters(context, load_student_config(context), cria)
        context.writer.write_tensors(FEATURE_MAPS, trained)
        context.writer.write_tensors(ADAPTERS, {})
        context.writer.finish()


def weight_shapes(config: LlamaConfig) -> dict[str, torch.Size]:
    """Return the shape of every weight by its name in a checkpoint."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in LlamaForCausalLM(config).state_dict().items()}


def random_weight(name: str, size: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the weight of this name, the same on all ranks: norms are 1, products keep their size."""
    if len(size) == 1:
        return torch.ones(size, dtype=dtype, device=device)
    draw = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    deviation = 0.02 if "embed_tokens" in name else size[1] ** -0.5
    return torch.empty(size, dtype=dtype, device=device).normal_(0, deviation, generator=draw)


@dataclass(frozen=True)
class RandomTeacher(Teacher):
    """A checkpoint of a configuration alone: each tensor is made when it is read."""

    device: torch.device = field(default=torch.device("cpu"))

    @cached_property
    def tensor_files(self) -> dict[str, str]:
        """Every name, without a file."""
        return dict.fromkeys(self._shapes, "")

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return weight_shapes(self.config)

    def read_tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Make a tensor."""
        return random_weight(name, self._shapes[name], dtype, self.device)


@dataclass(kw_only=True)
class RandomShards(StageContext):
    """A stage's context whose shards hold random weights, made when they are read."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, context: StageContext, device: torch.device, dtype: torch.dtype) -> RandomShards:
        """Return the same context with random shards."""
        return cls(**vars(context), device=device, dtype=dtype)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        fields = json.loads(self.read_object(self.artifacts.shard, f"{TEACHER}config.json"))
        return weight_shapes(LlamaConfig.from_dict(fields))

    def read_tensors(self, artifact: Artifact, path: str, memory: Any = None) -> dict[str, torch.Tensor]:
        """Make the tensors of an object of the shards; read those of any other artifact."""
        if artifact.key != self.artifacts.shard.key:
            return super().read_tensors(artifact, path, memory)
        name = Path(path).stem
        if name == "embeddings":
            wanted = ["model.embed_tokens.weight"]
        elif name == "head":
            wanted = [key for key in self._shapes if key in ("model.norm.weight", "lm_head.weight")]
        else:
            start = f"model.layers.{int(name.removeprefix('layer-'))}."
            wanted = [key for key in self._shapes if key.startswith(start)]
        return {key: random_weight(key, self._shapes[key], self.dtype, self.device) for key in wanted}
