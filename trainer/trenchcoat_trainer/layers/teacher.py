"""The teacher's decoder layers on a GPU: fused weights, and kernels that do what stands between products.

Hugging Face's modules launch some forty kernels a layer, which the host does not do as fast as a GPU computes
a small model's. These are the functions by which Crias are trained; what leaves a layer is rounded where
Hugging Face rounds it, RoPE excepted.
"""

import logging
from collections.abc import Iterable, Iterator

import torch
from transformers import LlamaConfig

from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.layers.llama import LayerShape, LayerWeights, Rope, teacher_states

logger = logging.getLogger(__name__)


class FusedTeacherLayers(TeacherLayers):
    """Consecutive decoder layers of a Llama over fused weights, of which its modules' are views."""

    def __init__(
        self, config: LlamaConfig, layers: Iterable[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make the layers of these global indices; memory on `device` comes with their weights.

        Raises:
            ValueError: the model has biases, another activation than Llama's, or heads of an odd width.
        """
        super().__init__(config, layers, dtype, device)
        self._shape = LayerShape.from_config(config)
        self._fused: dict[int, LayerWeights] = {}
        self._ropes: dict[int, Rope] = {}
        """By tokens; none goes while there are layers, as a CUDA graph may read it."""

    def load_layer(self, index: int, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy the weights of the layer with this global index to the device, each as it comes.

        Raises:
            RuntimeError: a weight is missing, superfluous or of another shape.
        """
        fused = LayerWeights.empty(self._shape, self.dtype, self.device)
        start = f"model.layers.{index}."
        missing = {start + name: part for name, part in fused.parts(self._shape).items()}
        for name, tensor in weights:
            part = missing.pop(name, None)
            if part is None or part.shape != tensor.shape:
                raise RuntimeError(f"{name} of shape {tuple(tensor.shape)} does not belong to layer {index}")
            part.copy_(tensor)
        if missing:
            raise RuntimeError(f"layer {index} lacks {', '.join(missing)}")
        self._fused[index] = fused
        fused.attach(self.layers[self.indices.index(index)], self._shape)

    def states(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """The raw residual stream after each layer in turn."""
        weights = [self._fused[index] for index in self.indices]
        return teacher_states(weights, hidden, self._rope_of(hidden), self._shape)

    def _rope_of(self, hidden: torch.Tensor) -> Rope:
        tokens, half = hidden.shape[1], self._shape.head_dim // 2
        if tokens not in self._ropes:
            in_fp32 = self.rope(hidden[:1, :, :1].float())  # as the kernel rotates
            self._ropes[tokens] = Rope(*(x[0, :, :half].contiguous() for x in in_fp32))
        return self._ropes[tokens]


def open_layers(
    config: LlamaConfig, layers: Iterable[int], dtype: torch.dtype, device: torch.device
) -> TeacherLayers:
    """Return a teacher's layers as `device` runs them best: fused on a GPU, if they can be."""
    layers = list(layers)
    if device.type == "cuda":
        try:
            return FusedTeacherLayers(config, layers, dtype, device)
        except ValueError as error:
            logger.warning(
                "the fused layers cannot run this teacher (%s): running it module by module", error
            )
    return TeacherLayers(config, layers, dtype, device)
