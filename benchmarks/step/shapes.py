"""The shapes and settings that are measured: Llama 3.1 405B, and the published student."""

from __future__ import annotations

import torch
from transformers import LlamaConfig
from trenchcoat_trainer.students.lolcats.form import LolcatsLayer

WINDOW, FEATURE_DIM, CRIAS = 64, 64, 14
PAPER_TOKENS, EPOCHS = 20_000_000, 2


def llama_405b(layers: int) -> LlamaConfig:
    """Return the shape of Llama 3.1 405B."""
    return LlamaConfig(
        hidden_size=16384, num_attention_heads=128, num_key_value_heads=8, intermediate_size=53248,
        num_hidden_layers=layers, max_position_embeddings=131072, rms_norm_eps=1e-5, vocab_size=128256,
        attn_implementation="sdpa",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip


def attention(heads: int, kv_heads: int, head_dim: int, backend: str | None = None) -> LolcatsLayer:
    """Return the attention that is measured."""
    return LolcatsLayer(heads, kv_heads, heads, head_dim, FEATURE_DIM, WINDOW, backend)


def random_maps(heads: int, head_dim: int) -> dict[str, torch.Tensor]:
    """Return untrained maps: leaves on the GPU, in fp32."""
    w_q, w_k = (torch.randn(heads, head_dim, FEATURE_DIM, device="cuda") * head_dim**-0.5 for _ in range(2))
    maps = {"w_q": w_q, "w_k": w_k, "window_factor": torch.full((heads,), -2.1972, device="cuda")}
    return {name: tensor.requires_grad_() for name, tensor in maps.items()}


def detached(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same maps, not to be trained."""
    return {name: tensor.detach() for name, tensor in maps.items()}
