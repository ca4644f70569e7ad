"""Running some of a Llama's decoder layers exactly as the whole model runs them."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from trenchcoat_trainer.checkpoints.rotary import RopeOnce

ATTENTION = "sdpa"
"""PyTorch's own attention: there on every device, and the same kernels for all stages."""


class TeacherLayers(nn.Module):
    """Consecutive decoder layers of a Llama, with its rotary embedding."""

    def __init__(self, config: LlamaConfig, layers: Iterable[int], dtype: torch.dtype) -> None:
        """Make the layers of these global indices without memory for weights, which `load` brings."""
        super().__init__()
        config._attn_implementation = ATTENTION
        self.indices = list(layers)
        with torch.device("meta"):
            self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in self.indices).to(dtype)
        self.rope = RopeOnce(config)

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
        rope = self.rope(hidden)
        for layer in self.layers:
            # No mask: where none is given the attention is causal, and to make one the host would wait.
            hidden = layer(hidden, position_embeddings=rope, use_cache=False)
            yield hidden
