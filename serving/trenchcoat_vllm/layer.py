"""One student layer in vLLM: a state of constant size, of its Mamba kind, and an operator that uses it."""

from __future__ import annotations

import torch
from torch import nn
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from trenchcoat_vllm.metadata import StudentStep
from trenchcoat_vllm.pages import Pages, Parameters


class StudentAttention(nn.Module, MambaBase):
    """The student's attention of one layer, in the place of vLLM's ``Attention``.

    Attributes:
        pages: how a state lies in a page, and what is computed with it.
        trained: the form's parameters, which the module around this one holds.
        kv_cache: the pool, bound by vLLM: what `pages.shapes()` says, each with a page in front.
    """

    def __init__(self, pages: Pages, trained: Parameters, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.pages = pages
        self.trained = trained
        self.prefix = prefix
        self.dtype = vllm_config.model_config.dtype
        self.kv_cache: tuple[torch.Tensor, ...] = ()
        vllm_config.compilation_config.static_forward_context[prefix] = self

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend; q is [tokens, H D], k and v [tokens, K D], after RoPE; the result is shaped like q."""
        output = torch.empty_like(q)
        torch.ops.vllm.trenchcoat_attention(q, k, v, output, self.prefix)
        return output

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> None:
        """Write the attention's output of every token of this step to `output`."""
        steps = get_forward_context().attn_metadata
        step = steps.get(self.prefix) if isinstance(steps, dict) else None
        if step is None:  # a step that only measures memory
            output.zero_()
            return
        self._attend(q, k, v, output, step)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, step: StudentStep
    ) -> None:
        head_dim = self.pages.attention.head_dim
        heads = tuple(x.unflatten(-1, (-1, head_dim)) for x in (q, k, v))
        ones = step.pages_N.shape[0]
        if ones:
            y = self.pages.one_each(self.kv_cache, tuple(x[:ones] for x in heads), self.trained, step)
            output[:ones] = y.flatten(1)
        for chunk in step.chunks:
            y = self.pages.several(self.kv_cache, tuple(x[chunk.tokens] for x in heads), self.trained, chunk)
            output[chunk.tokens] = y.flatten(1)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what one page holds."""
        return self.pages.shapes()

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of what one page holds."""
        return self.pages.dtypes(self.dtype)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """Return the name under which `metadata.StudentBackend` is registered."""
        return MambaAttentionBackendEnum["TRENCHCOAT"]


@eager_break_during_capture
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, layer_name: str
) -> None:
    """Call the layer of that name: the graph that vLLM compiles sees this and not what is within."""
    get_forward_context().no_compile_layers[layer_name].attend(q, k, v, output)


def _nothing(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, layer_name: str
) -> None:
    """Stand for `attention` where only shapes are traced."""


direct_register_custom_op("trenchcoat_attention", attention, mutates_args=["output"], fake_impl=_nothing)
