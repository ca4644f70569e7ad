"""vLLM's Llama with a student's attention in the layers that do not keep softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, get_temporal_copy_spec
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index
from vllm.model_executor.utils import set_weight_attrs

from trenchcoat_vllm.forms import layer_pages
from trenchcoat_vllm.layer import StudentAttention
from trenchcoat_vllm.pages import Pages


def load_own_heads(parameter: nn.Parameter, loaded: torch.Tensor) -> None:
    """Fill a student's parameter, whose first dimension is heads, with what belongs to this rank."""
    heads = parameter.shape[0]
    parameter.data.copy_(loaded.narrow(0, get_tensor_model_parallel_rank() * heads, heads))


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
            trained = {}
            for part, shape in pages.attention.shapes.items():
                trained[part] = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)
                set_weight_attrs(trained[part], {"weight_loader": load_own_heads})
                self.register_parameter(part, trained[part])
            self.attn = StudentAttention(pages, trained, vllm_config, name)


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


def _largest(vllm_config: VllmConfig) -> Pages | None:
    config, dtype = vllm_config.model_config.hf_config, vllm_config.model_config.dtype
    ranks = vllm_config.parallel_config.tensor_parallel_size
    layers = (layer_pages(config, layer, ranks) for layer in range(config.num_hidden_layers))
    return max(filter(None, layers), key=lambda pages: pages.attention.state_bytes(dtype), default=None)
