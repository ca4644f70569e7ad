"""A Llama decoder layer as plain functions: frozen weights in, hidden states out.

The query, key and value projections lie in one matrix, and so do gate and up, which makes fewer and larger
matrix products of them.  Shapes come from a Hugging Face LlamaConfig; RoPE scaling of every kind that depends
on the config alone (llama3 among them) is taken from transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from trenchcoat_trainer.layers.float8 import (
    Float8Rows,
    Matrix,
    add_rms_norm_rows,
    product,
    quantise_rows,
    swiglu_rows,
)
from trenchcoat_trainer.layers.fused import add_rms_norm, split_and_rotate, swiglu

MLP_ROWS = 4096
"""Rows of one pass through the MLP where no gradient is kept: enough for the matrix units to be busy."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Sizes of one decoder layer."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    eps: float

    @classmethod
    def from_config(cls, config: Any) -> LayerShape:
        """Read the sizes from a Hugging Face LlamaConfig.

        Raises:
            ValueError: the config asks for biases or another activation, which these functions do not have,
                or for heads of a width that the kernels do not take.
        """
        if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
            raise ValueError("Llama layers with biases are not supported")
        if config.hidden_act not in ("silu", "swish"):
            raise ValueError(f"hidden_act must be silu, not {config.hidden_act}")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head_dim & (head_dim - 1):
            raise ValueError(f"head_dim must be a power of 2, not {head_dim}")
        return cls(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            mlp=config.intermediate_size,
            eps=config.rms_norm_eps,
        )

    @property
    def products_per_token(self) -> int:
        """Multiply-adds of the layer's matrix products, per token."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return self.hidden * (qkv + self.heads * self.head_dim + 3 * self.mlp)

    @property
    def skipped_products_per_token(self) -> int:
        """Multiply-adds of o_proj and the MLP, which the last layer of a Cria skips in attention transfer."""
        return self.hidden * (self.heads * self.head_dim + 3 * self.mlp)


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of the rotary embedding, fp32, scaled as the config says.

    They are [T, D / 2], or [B, T, D / 2] where sequences stand on positions of their own.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def from_config(cls, config: Any, tokens: int, device: torch.device | str) -> Rope:
        """Compute the angles of positions 0 to `tokens` - 1."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rotary = LlamaRotaryEmbedding(config=config)
        angles = torch.arange(tokens, dtype=torch.float32)[:, None] * rotary.inv_freq.float()[None, :]
        scaling = rotary.attention_scaling
        return cls((angles.cos() * scaling).to(device), (angles.sin() * scaling).to(device))

    def part(self, start: int, tokens: int) -> Rope:
        """Return the angles of `tokens` positions from `start` on, as views."""
        rows = slice(start, start + tokens)
        return Rope(self.cos[rows], self.sin[rows])

    def parts(self, starts: torch.Tensor, tokens: int) -> Rope:
        """Return the angles of `tokens` positions from each of `starts`, int64 [B], on: [B, T, D / 2]."""
        positions = starts[:, None] + torch.arange(tokens, device=starts.device)
        return Rope(self.cos[positions], self.sin[positions])

    def first(self, tokens: int) -> Rope:
        """Return the angles of the first `tokens` positions."""
        return self.part(0, tokens)


@dataclass(frozen=True)
class LayerWeights:
    """The frozen weights of one decoder layer, projections as [out, in], all of them in FP8 or none.

    Attributes:
        qkv: q_proj, k_proj and v_proj, one above the other.
        out: o_proj.
        gate_up: gate_proj and up_proj, one above the other.
        down: down_proj.
        input_norm: input_layernorm, [hidden].
        post_norm: post_attention_layernorm, [hidden].
    """

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    input_norm: torch.Tensor
    post_norm: torch.Tensor

    @classmethod
    def empty(cls, shape: LayerShape, dtype: torch.dtype, device: torch.device | str) -> LayerWeights:
        """Allocate a layer; `parts` then names what to copy where."""

        def new(*size: int) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        inner = shape.heads * shape.head_dim
        return cls(
            qkv=new(inner + 2 * shape.kv_heads * shape.head_dim, shape.hidden),
            out=new(shape.hidden, inner),
            gate_up=new(2 * shape.mlp, shape.hidden),
            down=new(shape.hidden, shape.mlp),
            input_norm=new(shape.hidden),
            post_norm=new(shape.hidden),
        )

    @property
    def is_float8(self) -> bool:
        """Whether products are computed in FP8."""
        return isinstance(self.qkv, Float8Rows)

    def in_float8(self) -> LayerWeights:
        """Return these weights with the projections quantised, the norms shared.

        Products take bf16 activations then, and sizes that are multiples of `float8.MULTIPLE`.
        """
        matrices = {name: getattr(self, name) for name in ("qkv", "out", "gate_up", "down")}
        return replace(self, **{name: quantise_rows(matrix) for name, matrix in matrices.items()})

    def norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, Matrix]:
        """Do what `add_rms_norm` does, by `weight` of this layer; the norm as its products want it."""
        return (add_rms_norm_rows if self.is_float8 else add_rms_norm)(hidden, delta, weight, eps)

    def parts(self, shape: LayerShape) -> dict[str, torch.Tensor]:
        """Return views of the weights, none of them in FP8, named as a Hugging Face checkpoint does."""
        inner, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        q, k, v = self.qkv.split([inner, kv, kv])
        gate, up = self.gate_up.split(shape.mlp)
        return {
            "self_attn.q_proj.weight": q,
            "self_attn.k_proj.weight": k,
            "self_attn.v_proj.weight": v,
            "self_attn.o_proj.weight": self.out,
            "mlp.gate_proj.weight": gate,
            "mlp.up_proj.weight": up,
            "mlp.down_proj.weight": self.down,
            "input_layernorm.weight": self.input_norm,
            "post_attention_layernorm.weight": self.post_norm,
        }

    def attach(self, module: torch.nn.Module, shape: LayerShape) -> None:
        """Make a Hugging Face decoder layer read these weights, as frozen views, in place of its own."""
        for name, part in self.parts(shape).items():
            owner, _, attribute = name.rpartition(".")
            parameter = torch.nn.Parameter(part, requires_grad=False)
            setattr(module.get_submodule(owner), attribute, parameter)

    @classmethod
    def from_tensors(
        cls,
        shape: LayerShape,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> LayerWeights:
        """Copy a layer's checkpoint tensors, named as in `parts`, tensor by tensor to `device`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a tensor has the wrong shape.
        """
        weights = cls.empty(shape, dtype, device)
        for name, part in weights.parts(shape).items():
            tensor = tensors[name]
            if tensor.shape != part.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(part.shape)}")
            part.copy_(tensor)
        return weights


def attention_inputs(
    weights: LayerWeights, normed: Matrix, rope: Rope, shape: LayerShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k (after RoPE) and v, [B, heads or kv_heads, T, D], of normed states [B, T, hidden]."""
    qkv = product(normed, weights.qkv)
    return split_and_rotate(qkv, rope.cos, rope.sin, shape.heads, shape.kv_heads)


def module_heads(
    attention: Any, normed: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `attention_inputs` does of a Hugging Face LlamaAttention, rounded as it rounds.

    Args:
        attention: the module; its projections may have biases.
        normed: normed states, [B, T, hidden].
        rope: cosines and sines as Hugging Face's rotary embedding returns them.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, v = (
        projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *rope)
    return q, k, v


def merge_heads(y: torch.Tensor) -> torch.Tensor:
    """Turn attention outputs [B, H, T, D] into the rows that o_proj reads, [B, T, H * D]."""
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def after_attention(
    weights: LayerWeights, hidden: torch.Tensor, y: torch.Tensor, shape: LayerShape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream after attention and the MLP's output, both [B, T, hidden].

    Their sum is the layer's output; they stay apart so that the next layer's norm can add them in passing.
    """
    attended = product(merge_heads(y), weights.out)
    hidden, normed = weights.norm(hidden, attended, weights.post_norm, shape.eps)
    return hidden, _mlp(weights, normed)


def _mlp(weights: LayerWeights, normed: Matrix) -> torch.Tensor:
    """Return down(silu(gate) * up); without a graph to keep, a slab of rows at a time.

    The MLP is wide: for 405B its intermediates are 13 times as large as the residual stream.
    """
    gated = swiglu_rows if weights.is_float8 else swiglu
    if torch.is_grad_enabled() or normed.shape[:-1].numel() <= MLP_ROWS:
        return product(gated(product(normed, weights.gate_up)), weights.down)
    rows, norm = normed.flatten(0, -2), weights.post_norm
    out = torch.empty(rows.shape, dtype=norm.dtype, device=norm.device)
    for slab, out_slab in zip(rows.split(MLP_ROWS), out.split(MLP_ROWS), strict=True):
        product(gated(product(slab, weights.gate_up)), weights.down, out=out_slab)
    return out.view(normed.shape)


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal softmax attention, [B, H, T, D], with grouped queries."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return softmax attention over the keys of a mask, bool [A, T], with grouped queries: [B, H, A, D].

    Every weight is materialised, in the dtype given: for few queries, A, of q [B, H, A, D].
    """
    q_BKGAD = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))
    scores = q_BKGAD @ k.unsqueeze(2).transpose(-1, -2)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ v.unsqueeze(2)).flatten(1, 2)


def teacher_forward(
    layers: Iterable[LayerWeights], hidden: torch.Tensor, rope: Rope, shape: LayerShape
) -> torch.Tensor:
    """Run decoder layers on the residual stream [B, T, hidden] and return the residual stream after them."""
    for state in teacher_states(layers, hidden, rope, shape):
        hidden = state
    return hidden


def teacher_states(
    layers: Iterable[LayerWeights], hidden: torch.Tensor, rope: Rope, shape: LayerShape
) -> Iterator[torch.Tensor]:
    """Run decoder layers on the residual stream [B, T, hidden] and yield the residual stream after each.

    A layer's output is added up in passing by the next layer's norm, so that it comes once that has begun.
    """
    delta = None
    for weights in layers:
        hidden, normed = weights.norm(hidden, delta, weights.input_norm, shape.eps)
        if delta is not None:
            yield hidden
        y = softmax_attention(*attention_inputs(weights, normed, rope, shape))
        del normed
        hidden, delta = after_attention(weights, hidden, y, shape)
    if delta is not None:
        yield hidden + delta
