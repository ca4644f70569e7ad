"""Feature maps and window factors before any training."""

import hashlib

import torch
from transformers import LlamaConfig
from trenchcoat_api.spec import Attention

from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import INITIAL_WINDOW_FACTOR

MAP_NAMES = ("w_q", "w_k", "window_factor")
"""What attention transfer trains in a layer."""


def student_config(teacher: LlamaConfig, attention: Attention) -> TrenchcoatLlamaConfig:
    """Return the configuration of the student that `attention` makes of `teacher`.

    Raises:
        ValueError: a layer that is to keep softmax attention does not exist.
    """
    missing = [layer for layer in attention.keep_softmax_layers if layer >= teacher.num_hidden_layers]
    if missing:
        raise ValueError(
            f"spec.attention.keepSoftmaxLayers names layer {missing[0]}, but the model has "
            f"{teacher.num_hidden_layers} layers, counted from 0"
        )
    of_the_teacher = ("model_type", "architectures", "auto_map")
    fields = {name: value for name, value in teacher.to_dict().items() if name not in of_the_teacher}
    config = TrenchcoatLlamaConfig(
        **fields,
        window=attention.window,
        feature_dim=attention.feature_dim,
        key_maps=attention.key_maps.value,
        keep_softmax_layers=list(attention.keep_softmax_layers),
    )
    config._attn_implementation = "sdpa"
    return config


def generator(*parts: object) -> torch.Generator:
    """Return a CPU generator whose stream is a pure function of `parts`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def derived_seed(*parts: object) -> int:
    """Hash `parts` to a 63-bit seed, so that streams for different purposes are independent."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def initial_maps(config: TrenchcoatLlamaConfig, layer: int, seed: int) -> dict[str, torch.Tensor]:
    """Return a layer's untrained maps, fp32; a pure function of the shapes, `seed` and `layer`.

    Returns:
        ``w_q`` [heads, head_dim, feature_dim] and ``w_k``, likewise or with one map for every key/value head,
        uniform within sqrt(6 / (head_dim * feature_dim)) as in LoLCATs' implementation, and ``window_factor``
        [heads]; nothing for a layer that keeps softmax.
    """
    if layer in config.keep_softmax_layers:
        return {}
    bound = (6 / (config.head_dim * config.feature_dim)) ** 0.5
    maps = {
        name: torch.empty(heads, config.head_dim, config.feature_dim).uniform_(
            -bound, bound, generator=generator(seed, "maps", layer, name)
        )
        for name, heads in zip(("w_q", "w_k"), config.map_heads, strict=True)
    }
    return {**maps, "window_factor": torch.full((config.num_attention_heads,), INITIAL_WINDOW_FACTOR)}
