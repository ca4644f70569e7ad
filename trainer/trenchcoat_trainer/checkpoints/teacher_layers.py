"""Running some of a Llama's decoder layers exactly as the whole model runs them."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from trenchcoat_trainer.checkpoints.finite import require_finite
from trenchcoat_trainer.checkpoints.rotary import RopeOnce
from trenchcoat_trainer.checkpoints.teacher import Teacher

ATTENTION = "sdpa"
"""PyTorch's own attention: there on every device, and the same kernels for all stages."""
CPU = torch.device("cpu")


class TeacherLayers(nn.Module):
    """Consecutive decoder layers of a Llama, with its rotary embedding; Hugging Face's modules compute."""

    def __init__(
        self, config: LlamaConfig, layers: Iterable[int], dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        """Make the layers of these global indices; memory on `device` comes with their weights."""
        super().__init__()
        config._attn_implementation = ATTENTION
        self.indices = list(layers)
        self.dtype, self.device = dtype, device
        with torch.device("meta"):
            self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in self.indices).to(dtype)
        self.rope = RopeOnce(config)
        self.eval()

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take weights over by Hugging Face's names (model.layers.N...).

        Raises:
            RuntimeError: a weight is missing, superfluous or of another shape.
        """
        for index in self.indices:
            start = f"model.layers.{index}."
            self.load_layer(index, [item for item in weights.items() if item[0].startswith(start)])

    def load_layer(self, index: int, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over the weights of the layer with this global index; without copying those on the device.

        Raises:
            RuntimeError: a weight is missing, superfluous or of another shape.
        """
        start = f"model.layers.{index}."
        own = {name.removeprefix(start): tensor.to(self.device) for name, tensor in weights}
        self.layers[self.indices.index(index)].load_state_dict(own, assign=True)

    def read_layer(self, teacher: Teacher, index: int) -> None:
        """Read the weights of the layer with this global index, one after the other.

        Raises:
            BadInputError: one is missing, cut short or not finite.
        """
        names = teacher.layer_names(index)
        self.load_layer(index, ((name, teacher.read_tensor(name, self.dtype)) for name in names))
        own = self.layers[self.indices.index(index)].named_parameters()
        require_finite({f"model.layers.{index}.{name}": weight for name, weight in own}, teacher.source)

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
