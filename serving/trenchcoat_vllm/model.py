"""vLLM's Llama with a student's attention in the layers that do not keep softmax."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from trenchcoat_trainer.students import form_of
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, get_temporal_copy_spec
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

from trenchcoat_vllm.layer import StudentAttention
from trenchcoat_vllm.window import FORMS


def layer_pages(config: Any, layer: int, ranks: int) -> Any:
    """Return how a layer's states lie in pages; None where it keeps softmax attention.

    Args:
        config: the checkpoint's configuration.
        layer: counted from 0.
        ranks: how many the heads are divided among.

    Raises:
        ValueError: the heads cannot be divided so.
    """
    if layer in config.keep_softmax_layers:
        return None
    if config.num_key_value_heads % ranks:
        raise ValueError(
            f"{config.num_key_value_heads} key/value heads cannot be divided among {ranks} ranks: lower "
            "--tensor-parallel-size"
        )
    whole = form_of(config).code.layer_attention(config, layer)
    own = replace(whole, heads=whole.heads // ranks, kv_heads=whole.kv_heads // ranks)
    return FORMS[config.student_form](own)


class TrenchcoatAttention(LlamaAttention):
    """Llama's projections and RoPE around the student's attention."""

    def __init__(self, config: Any, *args: Any, prefix: str = "", **settings: Any):
        super().__init__(config, *args, prefix=prefix, **settings)
        vllm_config = get_current_vllm_config()
        ranks = vllm_config.parallel_config.tensor_parallel_size
        pages = layer_pages(config, extract_layer_index(prefix), ranks)
        if pages is not None:
            name = f"{prefix}.attn"
            # Llama's own would be given pages for every token.
            del vllm_config.compilation_config.static_forward_context[name]
            self.attn = StudentAttention(pages, vllm_config, name)


class TrenchcoatDecoderLayer(LlamaDecoderLayer):
    """Llama's decoder layer with that attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None):
        super().__init__(vllm_config, prefix, config, attn_layer_type=TrenchcoatAttention)


class TrenchcoatLlamaForCausalLM(LlamaForCausalLM, HasInnerState, IsHybrid):
    """A linearized Llama, as vLLM runs it."""

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        layer_type: type[nn.Module] = TrenchcoatDecoderLayer,
    ):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the largest state of a layer: pages of all layers are as large as its."""
        largest = _largest(vllm_config)
        return () if largest is None else largest.shapes()

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the largest state of a layer."""
        largest = _largest(vllm_config)
        return () if largest is None else largest.dtypes(vllm_config.model_config.dtype)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, ...]:
        """Say how a state is copied for prefix caching: whole."""
        return (get_temporal_copy_spec, get_temporal_copy_spec)


def _largest(vllm_config: VllmConfig) -> Any:
    config, dtype = vllm_config.model_config.hf_config, vllm_config.model_config.dtype
    ranks = vllm_config.parallel_config.tensor_parallel_size
    layers = (layer_pages(config, layer, ranks) for layer in range(config.num_hidden_layers))
    return max(filter(None, layers), key=lambda pages: pages.attention.state_bytes(dtype), default=None)
