"""Running some of a Llama's decoder layers exactly as the whole model runs them."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

ATTENTION = "sdpa"
"""PyTorch's own attention: there on every device, and the same kernels for all stages."""


class TeacherLayers(nn.Module):
    """Consecutive decoder layers of a Llama, with its rotary embedding."""

    def __init__(self, config: LlamaConfig, layers: Iterable[int], dtype: torch.dtype) -> None:
        """Make the layers of these global indices without memory for weights, which `load` brings."""
        super().__init__()
        self._config = config
        config._attn_implementation = ATTENTION
        self.indices = list(layers)
        with torch.device("meta"):
            self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in self.indices).to(dtype)
        self.rotary = LlamaRotaryEmbedding(config)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take weights over by Hugging Face's names (model.layers.N...), without copying them.

        Raises:
            RuntimeError: a weight is missing, superfluous or of another shape.
        """
        for index in self.indices:
            start = f"model.layers.{index}."
            self.load_layer(index, {name: t for name, t in weights.items() if name.startswith(start)})

    def load_layer(self, index: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of the layer with this global index."""
        start = f"model.layers.{index}."
        own = {name.removeprefix(start): tensor for name, tensor in weights.items()}
        self.layers[self.indices.index(index)].load_state_dict(own, assign=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last layer: [batch, tokens, hidden size] in and out, positions from 0."""
        for state in self.states(hidden):
            hidden = state
        return hidden

    def states(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """The raw residual stream after each layer in turn."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        mask = create_causal_mask(
            config=self._config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        rotary = self.rotary(hidden, position_ids=positions)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
            )
            yield hidden
