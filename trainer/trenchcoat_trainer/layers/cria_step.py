"""The training steps of one Cria: attention transfer, and LoRA by its two objectives.

Every step takes the raw residual stream of a micro-batch, leaves gradients in the leaves that it trains
(`.grad`, accumulated), and returns losses as tensors on the device: nothing waits for the GPU.  Where layers
share no gradient each layer's backward runs before the next layer's forward, so that one layer's graph is
alive at a time.

The reference passes each layer the teacher's own output (LoLCATs, arXiv 2410.10254); so do `transfer_step`
and `layerwise_step`, in a single pass that serves teacher and student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trenchcoat_trainer.attention import distill_loss, hybrid_attention, transfer_loss
from trenchcoat_trainer.layers.fused import add_rms_norm, split_and_rotate
from trenchcoat_trainer.layers.llama import (
    LayerShape,
    LayerWeights,
    Rope,
    after_attention,
    attention_inputs,
    softmax_attention,
)


class FeatureMaps(NamedTuple):
    """What attention transfer trains in one layer, fp32 masters.

    Attributes:
        w_q: query feature maps, [heads, head_dim, feature_dim].
        w_k: key feature maps, [heads or kv_heads, head_dim, feature_dim].
        window_factor: weight of the window before the sigmoid, [heads].
    """

    w_q: torch.Tensor
    w_k: torch.Tensor
    window_factor: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of one projection: out += scale * (dropout(x) a^T) b^T.

    Attributes:
        a: [rank, in], fp32 master.
        b: [out, rank], fp32 master.
        scale: alpha / rank.
        dropout: probability with which an input is dropped in training.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    dropout: float = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the adapter adds for inputs `x` [..., in]."""
        if self.dropout > 0:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype) * self.scale)


Adapters = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""One layer's adapters by projection (q_proj, k_proj, v_proj, o_proj): what each adds for its inputs."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How attention transfer weighs its losses, and the window it uses.

    Attributes:
        window_size: tokens per block of the terraced window.
        mse: weight of the outputs' squared error.
        xent: weight of the maps' cross-entropy.
        backend: how attention is computed; None chooses by device.
    """

    window_size: int = 64
    mse: float = 1000.0
    xent: float = 1.0
    backend: str | None = None


class StepLosses(NamedTuple):
    """Losses of one micro-batch by layer, each [layers], on the device, without gradient."""

    loss: torch.Tensor
    mse: torch.Tensor
    xent: torch.Tensor


@torch.no_grad()
def transfer_step(
    layers: Sequence[LayerWeights],
    maps: Sequence[FeatureMaps | None],
    hidden: torch.Tensor,
    rope: Rope,
    shape: LayerShape,
    weights: LossWeights,
    *,
    gradient_scale: float = 1.0,
    drop_window: bool = False,
    train: bool = True,
) -> StepLosses:
    """Run one micro-batch of attention transfer, teacher forced, backward layer by layer.

    The last layer's o_proj and MLP are not run: nothing trains behind them.

    Args:
        layers: the Cria's frozen layers.
        maps: the feature maps of each layer, leaves that get gradients; None keeps a layer softmax.
        hidden: residual stream before the first layer, [B, T, hidden].
        rope: angles of the T positions.
        shape: sizes of a layer.
        weights: weights of the losses.
        gradient_scale: multiplies every layer's loss before backward (1 / micro-batches to average).
        drop_window: compare linear attention alone with the teacher: window dropout.
        train: False computes the losses alone.

    Returns:
        The losses of each layer; zeros for a layer kept softmax.
    """
    delta, losses = None, []
    last = max((i for i, m in enumerate(maps) if m is not None), default=-1)
    for i, (layer, layer_maps) in enumerate(zip(layers, maps, strict=True)):
        if i > last:
            losses.append(hidden.new_zeros(3, dtype=torch.float32))
            continue
        hidden, normed = add_rms_norm(hidden, delta, layer.input_norm, shape.eps)
        q, k, v = attention_inputs(layer, normed, rope, shape)
        del normed
        if layer_maps is None:
            y = softmax_attention(q, k, v)
            losses.append(hidden.new_zeros(3, dtype=torch.float32))
        else:
            with torch.set_grad_enabled(train):
                result = transfer_loss(
                    q, k, v, *layer_maps, window_size=weights.window_size, mse_weight=weights.mse,
                    xent_weight=weights.xent, drop_window=drop_window, backend=weights.backend,
                )  # fmt: skip
                if train:
                    (result.loss * gradient_scale).backward()
            losses.append(torch.stack([result.loss, result.mse, result.xent]).detach().float())
            y = result.output
            del result
        del q, k, v
        if i < last:
            hidden, delta = after_attention(layer, hidden, y, shape)
    return StepLosses(*torch.stack(losses, dim=1))


@torch.no_grad()
def layerwise_step(
    layers: Sequence[LayerWeights],
    maps: Sequence[FeatureMaps | None],
    adapters: Sequence[Adapters],
    hidden: torch.Tensor,
    rope: Rope,
    shape: LayerShape,
    weights: LossWeights,
    *,
    gradient_scale: float = 1.0,
) -> StepLosses:
    """Run one micro-batch of LoRA by Cria, objective `layerwise`: one pass for teacher and student.

    Each layer's hybrid attention with adapters is held against the same layer's softmax attention without,
    both on the teacher's hidden states.  Adapters on q_proj, k_proj and v_proj train (o_proj lies behind both
    losses); feature maps train too where they require gradients.  Arguments and result are those of
    `transfer_step`, with the adapters of each layer beside its maps.
    """
    delta, losses = None, []
    last = max((i for i, m in enumerate(maps) if m is not None), default=-1)
    for i, (layer, layer_maps, layer_adapters) in enumerate(zip(layers, maps, adapters, strict=True)):
        if i > last:
            losses.append(hidden.new_zeros(3, dtype=torch.float32))
            continue
        hidden, normed = add_rms_norm(hidden, delta, layer.input_norm, shape.eps)
        qkv = F.linear(normed, layer.qkv)
        q, k, v = split_and_rotate(qkv, rope.cos, rope.sin, shape.heads, shape.kv_heads)
        if layer_maps is None:
            y = softmax_attention(q, k, v)
            losses.append(hidden.new_zeros(3, dtype=torch.float32))
        else:
            with torch.enable_grad():
                adapted = _adapted(qkv, normed, layer_adapters, shape)
                student = split_and_rotate(adapted, rope.cos, rope.sin, shape.heads, shape.kv_heads)
                result = distill_loss(
                    *student, q, k, v, *layer_maps, window_size=weights.window_size,
                    mse_weight=weights.mse, xent_weight=weights.xent, backend=weights.backend,
                )  # fmt: skip
                if result.loss.requires_grad:
                    (result.loss * gradient_scale).backward()
            losses.append(torch.stack([result.loss, result.mse, result.xent]).detach().float())
            y = result.output
            del result, student, adapted
        del qkv, normed, q, k, v
        if i < last:
            hidden, delta = after_attention(layer, hidden, y, shape)
    return StepLosses(*torch.stack(losses, dim=1))


def _adapted(qkv: torch.Tensor, normed: torch.Tensor, adapters: Adapters, shape: LayerShape) -> torch.Tensor:
    """Return the fused projection with what the adapters of q_proj, k_proj and v_proj add."""
    inner, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = qkv.split([inner, kv, kv], dim=-1)
    names = ("q_proj", "k_proj", "v_proj")
    if not any(name in adapters for name in names):
        return qkv
    return torch.cat(
        [
            part + adapters[name](normed) if name in adapters else part
            for name, part in zip(names, parts, strict=True)
        ],
        dim=-1,
    )


def student_layer(
    layer: LayerWeights,
    maps: FeatureMaps | None,
    adapters: Adapters,
    hidden: torch.Tensor,
    delta: torch.Tensor | None,
    rope: Rope,
    shape: LayerShape,
    window_size: int,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one layer of the student as at inference; return residual stream and MLP output to be added.

    `hidden` and `delta` are what the layer before returned (None before the first).
    """
    hidden, normed = add_rms_norm(hidden, delta, layer.input_norm, shape.eps)
    qkv = _adapted(F.linear(normed, layer.qkv), normed, adapters, shape)
    q, k, v = split_and_rotate(qkv, rope.cos, rope.sin, shape.heads, shape.kv_heads)
    if maps is None:
        y = softmax_attention(q, k, v)
    else:
        y = hybrid_attention(q, k, v, *maps, window_size=window_size, backend=backend)
    if "o_proj" in adapters:
        rows = y.transpose(1, 2).flatten(2)
        hidden = hidden + adapters["o_proj"](rows)
    return after_attention(layer, hidden, y, shape)


def student_forward(
    layers: Sequence[LayerWeights],
    maps: Sequence[FeatureMaps | None],
    adapters: Sequence[Adapters],
    hidden: torch.Tensor,
    rope: Rope,
    shape: LayerShape,
    *,
    window_size: int,
    backend: str | None = None,
    recompute: bool = False,
) -> torch.Tensor:
    """Run the Cria's student and return the residual stream after it, [B, T, hidden].

    Args:
        layers: the Cria's frozen layers.
        maps: feature maps of each layer; None keeps a layer softmax.
        adapters: adapters of each layer by projection; empty for none.
        hidden: residual stream before the first layer, [B, T, hidden].
        rope: angles of the T positions.
        shape: sizes of a layer.
        window_size: tokens per block of the terraced window.
        backend: how attention is computed; None chooses by device.
        recompute: keep only what passes between layers and compute the rest again in backward: less memory
            for a third pass over the matrix products.
    """
    delta = None
    for layer, layer_maps, layer_adapters in zip(layers, maps, adapters, strict=True):
        arguments = (layer, layer_maps, layer_adapters, hidden, delta, rope, shape, window_size, backend)
        if recompute and torch.is_grad_enabled():
            hidden, delta = checkpoint(student_layer, *arguments, use_reentrant=False)
        else:
            hidden, delta = student_layer(*arguments)
    return hidden if delta is None else hidden + delta


def boundary_error(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of two residual streams [B, T, hidden] over the target's squared length.

    The mean over tokens of |hidden - target|^2 / |target|^2: a few tokens of Llama's residual stream are
    hundreds of times longer than the others and would be all that a plain mean sees.
    """
    target = target.float()
    distance = (hidden.float() - target).square().sum(-1)
    return (distance / target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)).mean()


def block_step(
    layers: Sequence[LayerWeights],
    maps: Sequence[FeatureMaps | None],
    adapters: Sequence[Adapters],
    hidden: torch.Tensor,
    target: torch.Tensor,
    rope: Rope,
    shape: LayerShape,
    *,
    window_size: int,
    backend: str | None = None,
    gradient_scale: float = 1.0,
    recompute: bool = False,
) -> torch.Tensor:
    """Run one micro-batch of LoRA by Cria, objective `block`: the student's output against the next boundary.

    The student runs as it will at inference, and `target` is the stored boundary behind the Cria, so there is
    no teacher forward.  Arguments are those of `student_forward`; returns `boundary_error`, on the device.
    """
    with torch.enable_grad():
        output = student_forward(
            layers, maps, adapters, hidden, rope, shape,
            window_size=window_size, backend=backend, recompute=recompute,
        )  # fmt: skip
        loss = boundary_error(output, target)
        (loss * gradient_scale).backward()
    return loss.detach()
