"""The training steps of one Cria: attention transfer, and LoRA by its two objectives.

Every step takes the raw residual stream of a micro-batch, leaves gradients in the leaves that it trains
(`.grad`, accumulated), and returns losses as tensors on the device: nothing waits for the GPU.  Where layers
share no gradient each layer's backward runs before the next layer's forward, so that one layer's graph is
alive at a time.

The reference passes each layer the teacher's own output (LoLCATs, arXiv 2410.10254); so do `transfer_step`
and `layerwise_step`, in a single pass that serves teacher and student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trenchcoat_trainer.layers.adapters import PROJECTIONS, Adapters, add_adapters
from trenchcoat_trainer.layers.fused import add_rms_norm, split_and_rotate
from trenchcoat_trainer.layers.llama import (
    LayerShape,
    LayerWeights,
    Rope,
    after_attention,
    attention_inputs,
    softmax_attention,
)
from trenchcoat_trainer.students import Heads, LossWeights, Student, TransferLoss


@dataclass(frozen=True)
class Layer:
    """One decoder layer of a Cria as the steps run it.

    Attributes:
        weights: frozen.
        student: its attention, with parameters that are leaves where they train; None keeps it softmax.
        adapters: by projection; empty for none.
    """

    weights: LayerWeights
    student: Student | None = None
    adapters: Adapters = field(default_factory=dict)


@dataclass(frozen=True)
class CriaLayers:
    """A Cria's decoder layers in a row, and their sizes."""

    shape: LayerShape
    layers: Sequence[Layer]

    @property
    def last(self) -> int:
        """Index of the last layer whose attention is the student's; -1 if all keep softmax."""
        return max((i for i, layer in enumerate(self.layers) if layer.student is not None), default=-1)


class StepLosses(NamedTuple):
    """Losses of one micro-batch by layer, each [layers], on the device, without gradient."""

    loss: torch.Tensor
    mse: torch.Tensor
    xent: torch.Tensor


@torch.no_grad()
def transfer_step(
    cria: CriaLayers,
    hidden: torch.Tensor,
    rope: Rope,
    weights: LossWeights,
    *,
    gradient_scale: float = 1.0,
    drop_window: bool = False,
) -> StepLosses:
    """Run one micro-batch of attention transfer, teacher forced, backward layer by layer.

    The last layer's o_proj and MLP are not run: nothing trains behind them. Where no parameter of a layer
    requires a gradient its losses are computed alone.

    Args:
        cria: the layers; adapters are left out.
        hidden: residual stream before the first layer, [B, T, hidden].
        rope: angles of the T positions.
        weights: weights of the losses.
        gradient_scale: multiplies every layer's loss before backward (1 / micro-batches to average).
        drop_window: window dropout: compare the student without its softmax window.

    Returns:
        The losses of each layer; zeros for a layer kept softmax.
    """

    compare = _transfer(cria, rope, weights, drop_window=drop_window)
    return _teacher_forced(cria, hidden, rope, compare, gradient_scale)[0]


@torch.no_grad()
def transfer_through(
    cria: CriaLayers,
    hidden: torch.Tensor,
    rope: Rope,
    weights: LossWeights,
    *,
    gradient_scale: float = 1.0,
    drop_window: bool = False,
) -> tuple[StepLosses, torch.Tensor]:
    """Do what `transfer_step` does, and run the teacher to the Cria's end.

    Returns:
        The losses, and the residual stream after the last layer, [B, T, hidden].
    """
    compare = _transfer(cria, rope, weights, drop_window=drop_window)
    return _teacher_forced(cria, hidden, rope, compare, gradient_scale, last=len(cria.layers) - 1)


def _transfer(
    cria: CriaLayers, rope: Rope, weights: LossWeights, *, drop_window: bool
) -> Callable[[Layer, torch.Tensor, Student], TransferLoss]:
    def compare(layer: Layer, normed: torch.Tensor, student: Student) -> TransferLoss:
        heads = Heads(*attention_inputs(layer.weights, normed, rope, cria.shape))
        with torch.enable_grad():
            return student.attention.transfer_loss(
                heads, student.parameters, weights, drop_window=drop_window
            )

    return compare


@torch.no_grad()
def layerwise_step(
    cria: CriaLayers, hidden: torch.Tensor, rope: Rope, weights: LossWeights, *, gradient_scale: float = 1.0
) -> StepLosses:
    """Run one micro-batch of LoRA by Cria, objective `layerwise`: one pass for teacher and student.

    Each layer's student attention with adapters is held against the same layer's softmax attention without,
    both on the teacher's hidden states.  Adapters on q_proj, k_proj and v_proj train (o_proj lies behind both
    losses); the attention's parameters train too where they require gradients.  Arguments and result are
    those of `transfer_step`.
    """
    shape = cria.shape

    def compare(layer: Layer, normed: torch.Tensor, student: Student) -> TransferLoss:
        qkv = F.linear(normed, layer.weights.qkv)
        teacher = Heads(*split_and_rotate(qkv, rope.cos, rope.sin, shape.heads, shape.kv_heads))
        own = tuple(name in layer.adapters for name in PROJECTIONS)
        with torch.enable_grad():
            adapted = add_adapters(qkv, normed, layer.adapters, shape)
            parts = split_and_rotate(adapted, rope.cos, rope.sin, shape.heads, shape.kv_heads, own)
            # What no adapter changes is the teacher's, and nobody asks for its gradient.
            heads = Heads(
                *(theirs if part is None else part for part, theirs in zip(parts, teacher, strict=True))
            )
            return student.attention.distill_loss(heads, teacher, student.parameters, weights)

    return _teacher_forced(cria, hidden, rope, compare, gradient_scale)[0]


def _teacher_forced(
    cria: CriaLayers,
    hidden: torch.Tensor,
    rope: Rope,
    compare: Callable[[Layer, torch.Tensor, Student], TransferLoss],
    gradient_scale: float,
    last: int | None = None,
) -> tuple[StepLosses, torch.Tensor]:
    """Compare layer by layer on the teacher's own stream, each layer's backward before the next's forward.

    `compare` returns a layer's losses, from its normed input and its student. `last` is the layer that is run
    to its end; None stops within the last that has a student. Returns the stream as far as it was run, too.
    """
    delta, losses, through = None, [], last is not None
    last = cria.last if last is None else last
    for i, layer in enumerate(cria.layers):
        if i > last:
            losses.append(hidden.new_zeros(3, dtype=torch.float32))
            continue
        hidden, normed = layer.weights.norm(hidden, delta, layer.weights.input_norm, cria.shape.eps)
        if layer.student is None:
            y = softmax_attention(*attention_inputs(layer.weights, normed, rope, cria.shape))
            losses.append(hidden.new_zeros(3, dtype=torch.float32))
        else:
            result = compare(layer, normed, layer.student)
            if result.loss.requires_grad:
                with torch.enable_grad():
                    (result.loss * gradient_scale).backward()
            losses.append(torch.stack([result.loss, result.mse, result.xent]).detach().float())
            y = result.output
            del result
        del normed
        if i < last or through:
            hidden, delta = after_attention(layer.weights, hidden, y, cria.shape)
    if through and delta is not None:
        hidden = hidden + delta
    return StepLosses(*torch.stack(losses, dim=1)), hidden


def student_layer(
    layer: Layer, hidden: torch.Tensor, delta: torch.Tensor | None, rope: Rope, shape: LayerShape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one layer of the student as at inference; return residual stream and MLP output to be added.

    `hidden` and `delta` are what the layer before returned (None before the first).
    """
    weights, adapters = layer.weights, layer.adapters
    hidden, normed = add_rms_norm(hidden, delta, weights.input_norm, shape.eps)
    qkv = add_adapters(F.linear(normed, weights.qkv), normed, adapters, shape)
    heads = Heads(*split_and_rotate(qkv, rope.cos, rope.sin, shape.heads, shape.kv_heads))
    if layer.student is None:
        y = softmax_attention(*heads)
    else:
        y = layer.student.attention.attend(heads, layer.student.parameters)
    if "o_proj" in adapters:
        rows = y.transpose(1, 2).flatten(2)
        hidden = hidden + adapters["o_proj"](rows)
    return after_attention(weights, hidden, y, shape)


def student_forward(
    cria: CriaLayers, hidden: torch.Tensor, rope: Rope, *, recompute: bool = False
) -> torch.Tensor:
    """Run the Cria's student and return the residual stream after it, [B, T, hidden].

    Args:
        cria: the layers.
        hidden: residual stream before the first layer, [B, T, hidden].
        rope: angles of the T positions.
        recompute: keep only what passes between layers and compute the rest again in backward: less memory
            for a third pass over the matrix products.
    """
    delta = None
    for layer in cria.layers:
        arguments = (layer, hidden, delta, rope, cria.shape)
        if recompute and torch.is_grad_enabled():
            # Dropout has seeds of its own: no state of a generator to put back.
            hidden, delta = checkpoint(
                student_layer, *arguments, use_reentrant=False, preserve_rng_state=False
            )
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
    cria: CriaLayers,
    hidden: torch.Tensor,
    target: torch.Tensor,
    rope: Rope,
    *,
    gradient_scale: float = 1.0,
    recompute: bool = False,
) -> torch.Tensor:
    """Run one micro-batch of LoRA by Cria, objective `block`: the student's output against the next boundary.

    The student runs as it will at inference, and `target` is the stored boundary behind the Cria, so there is
    no teacher forward.  Arguments are those of `student_forward`; returns `boundary_error`, on the device.
    """
    with torch.enable_grad():
        loss = boundary_error(student_forward(cria, hidden, rope, recompute=recompute), target)
        (loss * gradient_scale).backward()
    return loss.detach()
