"""The teacher's weights and files as the shard stage left them."""

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import DType

from trenchcoat_trainer.stages.context import StageContext, check_object
from trenchcoat_trainer.tensors import unpack

if TYPE_CHECKING:
    from transformers import LlamaConfig

EMBEDDINGS = "rest/embeddings.safetensors"
HEAD = "rest/head.safetensors"
TEACHER = "teacher/"
TORCH_DTYPES = {DType.BFLOAT16: torch.bfloat16, DType.FLOAT32: torch.float32}


def layer_path(cria: CriaRange, layer: int) -> str:
    """Object of one decoder layer's weights, relative to the shard artifact."""
    return f"cria-{cria.index:02d}/layer-{layer:03d}.safetensors"


def load_cria_weights(
    context: StageContext, cria: CriaRange, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """The weights of a Cria's decoder layers in spec.dtype, by Hugging Face's names (model.layers.N...).

    One layer at a time is held on the CPU.

    Raises:
        MissingInputError: the shard stage is not complete.
        CorruptObjectError: an object is not what the manifest says.
    """
    weights: dict[str, torch.Tensor] = {}
    for layer in cria.layers:
        weights |= load_object(context, layer_path(cria, layer), device)
    return weights


def load_rest_weights(context: StageContext, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """model.embed_tokens.weight, model.norm.weight and, unless tied, lm_head.weight, in spec.dtype.

    Raises:
        MissingInputError: the shard stage is not complete.
        CorruptObjectError: an object is not what the manifest says.
    """
    return load_object(context, EMBEDDINGS, device) | load_object(context, HEAD, device)


def load_embeddings(context: StageContext, device: str | torch.device = "cpu") -> torch.Tensor:
    """model.embed_tokens.weight alone, in spec.dtype: [vocabulary, hidden size]."""
    return load_object(context, EMBEDDINGS, device)["model.embed_tokens.weight"]


def load_config(context: StageContext) -> "LlamaConfig":
    """The teacher's configuration."""
    from transformers import LlamaConfig

    fields = json.loads(context.read_object(context.artifacts.shard, TEACHER + "config.json"))
    config = LlamaConfig.from_dict(fields)
    if not isinstance(config, LlamaConfig):
        raise TypeError(f"{TEACHER}config.json describes no Llama")
    return config


def teacher_files(context: StageContext) -> list[str]:
    """Paths of the tokenizer and configuration files, relative to the shard artifact, below teacher/."""
    objects = context.manifest(context.artifacts.shard).objects
    return [item.path for item in objects if item.path.startswith(TEACHER)]


def load_object(context: StageContext, path: str, device: str | torch.device) -> dict[str, torch.Tensor]:
    """The tensors of one object of the shard artifact, in spec.dtype, read in pieces and checked.

    Raises:
        CorruptObjectError: size or checksum differ from the manifest.
    """
    artifact = context.artifacts.shard
    stored = context.stored_object(artifact, path)
    data = bytearray(stored.size)
    digest, size = hashlib.sha256(), 0
    for chunk in context.store.stream(artifact.prefix + path):
        digest.update(chunk)
        data[size : size + len(chunk)] = chunk
        size += len(chunk)
        if size > stored.size:
            break
    check_object(stored, artifact, size, digest.hexdigest())
    dtype = TORCH_DTYPES[context.spec.dtype]
    return {name: tensor.to(device, dtype) for name, tensor in unpack(data)[0].items()}
