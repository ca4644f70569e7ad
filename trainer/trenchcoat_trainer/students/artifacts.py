"""What the student is made of, read from the artifacts Cria by Cria."""

import torch
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import DType, Lora

from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES, layer_path, load_config, load_object
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.adapters import merge_adapters
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.maps import initial_maps, student_config
from trenchcoat_trainer.runtime.context import StageContext

FEATURE_MAPS = "feature_maps.safetensors"
"""Object of a cria artifact: ``layers.N.w_q``, ``layers.N.w_k``, ``layers.N.window_factor``, fp32.

``w_k`` has one map for every query head or every key/value head, as spec.attention.keyMaps says.
"""
ADAPTERS = "adapters.safetensors"
"""Object of a cria or stitch artifact: adapters by peft's names."""

Tensors = dict[str, torch.Tensor]
Adapters = tuple[Tensors, Lora]


def load_student_config(context: StageContext) -> TrenchcoatLlamaConfig:
    """Return the configuration of the student, its dtype that of the spec.

    Raises:
        BadInputError: a layer that is to keep softmax attention does not exist.
    """
    try:
        config = student_config(load_config(context), context.spec.attention)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    config.dtype = weight_dtype(context)
    return config


def weight_dtype(context: StageContext) -> torch.dtype:
    """Return the number format of weights and activations."""
    return TORCH_DTYPES[DType(context.spec.dtype)]


def untrained_maps(context: StageContext, config: TrenchcoatLlamaConfig, cria: CriaRange) -> Tensors:
    """Return the feature maps of a Cria as they are before training."""
    return {
        f"layers.{layer}.{name}": tensor
        for layer in cria.layers
        for name, tensor in initial_maps(config, layer, context.spec.seed).items()
    }


def trained_maps(context: StageContext, cria: CriaRange) -> Tensors:
    """Return the feature maps that attention transfer left."""
    return context.read_tensors(context.artifacts.cria(cria), FEATURE_MAPS)


def cria_adapters(context: StageContext, cria: CriaRange) -> Adapters:
    """Return the adapters that LoRA by Cria left, with their settings."""
    return context.read_tensors(context.artifacts.cria(cria), ADAPTERS), context.spec.cria_lora.lora


def stitch_adapters(context: StageContext) -> Adapters:
    """Return the adapters over the whole student that stitching left, with their settings."""
    tensors = context.read_tensors(context.artifacts.stitch(context.crias), ADAPTERS)
    return tensors, context.spec.stitch.lora


def layer_weights(context: StageContext, cria: CriaRange, layer: int, *adapters: Adapters) -> Tensors:
    """Return one layer's weights with adapters merged in, one set after the other, on the CPU."""
    weights = load_object(context, layer_path(cria, layer), "cpu")
    for tensors, lora in adapters:
        merge_adapters(weights, tensors, lora)
    return weights
