"""The teacher's weights and files as the shard stage left them."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import DType

from trenchcoat_trainer.checkpoints.shard_layout import EMBEDDINGS, HEAD, TEACHER, layer_path
from trenchcoat_trainer.checkpoints.teacher import llama_config
from trenchcoat_trainer.runtime.inputs import Inputs

if TYPE_CHECKING:
    from transformers import LlamaConfig

__all__ = [
    "EMBEDDINGS",
    "HEAD",
    "TEACHER",
    "TORCH_DTYPES",
    "layer_path",
    "load_config",
    "load_cria_weights",
    "load_embeddings",
    "load_object",
    "load_rest_weights",
    "read_weights",
    "teacher_files",
]

TORCH_DTYPES = {DType.BFLOAT16: torch.bfloat16, DType.FLOAT32: torch.float32}


def load_cria_weights(
    inputs: Inputs, cria: CriaRange, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """The weights of a Cria's decoder layers in spec.dtype, by Hugging Face's names (model.layers.N...).

    One layer at a time is held on the CPU.

    Raises:
        MissingInputError: the shard stage is not complete.
        CorruptObjectError: an object is not what the manifest says.
    """
    weights: dict[str, torch.Tensor] = {}
    for layer in cria.layers:
        weights |= load_object(inputs, layer_path(cria, layer), device)
    return weights


def load_rest_weights(inputs: Inputs, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """model.embed_tokens.weight, model.norm.weight and, unless tied, lm_head.weight, in spec.dtype.

    Raises:
        MissingInputError: the shard stage is not complete.
        CorruptObjectError: an object is not what the manifest says.
    """
    return load_object(inputs, EMBEDDINGS, device) | load_object(inputs, HEAD, device)


def load_embeddings(inputs: Inputs, device: str | torch.device = "cpu") -> torch.Tensor:
    """model.embed_tokens.weight alone, in spec.dtype: [vocabulary, hidden size]."""
    return load_object(inputs, EMBEDDINGS, device)["model.embed_tokens.weight"]


def load_config(inputs: Inputs) -> "LlamaConfig":
    """The teacher's configuration."""
    fields = json.loads(inputs.read_object(inputs.artifacts.shard, TEACHER + "config.json"))
    return llama_config(fields, f"{TEACHER}config.json")


def teacher_files(inputs: Inputs) -> list[str]:
    """Paths of the tokenizer and configuration files, relative to the shard artifact, below teacher/."""
    paths = inputs.object_paths(inputs.artifacts.shard)
    return [path for path in paths if path.startswith(TEACHER)]


def load_object(inputs: Inputs, path: str, device: str | torch.device) -> dict[str, torch.Tensor]:
    """The tensors of one object of the shard artifact, in spec.dtype.

    Raises:
        CorruptObjectError: size or checksum differ from the manifest.
    """
    dtype = TORCH_DTYPES[inputs.spec.dtype]
    return {name: tensor.to(device, dtype) for name, tensor in read_weights(inputs, path).items()}


def read_weights(
    inputs: Inputs, path: str, between: Callable[[], None] | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of one object of the shard artifact, on the CPU as they are stored.

    Args:
        inputs: what earlier stages left.
        path: the object, relative to the artifact.
        between: called after every piece that has come; what it raises ends the reading.

    Raises:
        CorruptObjectError: size or checksum differ from the manifest.
    """
    return inputs.read_tensors(inputs.artifacts.shard, path, between=between)
