"""The rotary embedding of a Llama, computed once for batches of one length."""

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines as Hugging Face's layers take them, each [1, T, D]."""


class RopeOnce:
    """Hugging Face's rotary embedding, which makes cosines and sines anew for every batch; the last are kept.

    Source: transformers' LlamaRotaryEmbedding, whose numbers these are, bit for bit.
    """

    def __init__(self, config: LlamaConfig) -> None:
        with torch.device("cpu"):  # though a model may be made without memory
            self._rotary = LlamaRotaryEmbedding(config)
        self._made: tuple[object, Rope] | None = None

    def __call__(self, hidden: torch.Tensor, start: int = 0) -> Rope:
        """Return what belongs to hidden states [B, T, hidden size], in their dtype and on their device.

        Args:
            hidden: of which shape, dtype and device alone count.
            start: position of the first token of each sequence.
        """
        tokens, device = hidden.shape[1], hidden.device
        key = (start, tokens, hidden.dtype, device)
        if self._made is None or self._made[0] != key:
            # Not as tensors of inference, which no graph may keep: training may come to use them.
            with torch.inference_mode(False):
                positions = torch.arange(start, start + tokens, device=device).unsqueeze(0)
                self._made = (key, self._rotary.to(device)(hidden, position_ids=positions))
        return self._made[1]
