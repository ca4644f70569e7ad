"""What a student form is: the attention that takes the place of a layer's softmax, and how it is trained.

A form is a folder of this package: its parameters, its attention for training and for decoding, its losses,
and one file that an exported checkpoint carries. Everything else in the trainer speaks to it through the
three protocols below, from the exported file outwards:

- `LayerAttention`, one layer's attention, is all that an exported model needs: plain torch.
- `StudentLayer` adds what training and evaluation need.
- `StudentForm` makes layers for a model's configuration.

Shape letters: B batch, H query heads, K key/value heads (K divides H), T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from trenchcoat_api import spec
from trenchcoat_api.layer_kinds import LayerKind


class Heads(NamedTuple):
    """What attention reads of one layer; forms take any tuple of these three.

    RoPE may have begun at any position: a form counts tokens from the first that it is given of a sequence.

    Attributes:
        q: queries after RoPE, [B, H, T, D].
        k: keys after RoPE, [B, K, T, D]: grouped queries need no repeating.
        v: values, shaped like `k`.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


Parameters = Mapping[str, torch.Tensor]
"""The trainable tensors of one layer by name, as `LayerAttention.shapes` says: fp32 masters."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How attention transfer weighs its losses.

    Attributes:
        mse: weight of the squared error of attention outputs.
        xent: weight of the cross-entropy of attention maps; forms without such maps take no notice.
    """

    mse: float = 1000.0
    xent: float = 1.0


PUBLISHED = LossWeights()
"""LoLCATs' weights."""


class TransferLoss(NamedTuple):
    """What training needs from one layer.

    Attributes:
        loss: the weighted sum of the losses that the form has, a scalar.
        mse: mean squared difference of the student's and the teacher's attention outputs, over all elements.
        xent: cross-entropy -sum_k a_teacher log a_student in nats, mean over rows (batch, head, token); 0
            from a form that has no map to compare, its weights not being positive for every key.
        output: the teacher's softmax attention output before o_proj, [B, H, T, D]; carries no gradient.
    """

    loss: torch.Tensor
    mse: torch.Tensor
    xent: torch.Tensor
    output: torch.Tensor


class DecodeState(Protocol):
    """What decoding remembers of one layer; constant in size however many tokens have passed."""

    tokens: int
    """How many tokens have been seen."""

    @property
    def batch_size(self) -> int:
        """How many sequences are remembered: 0 before the first token."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Keep the sequences named by `rows`, in that order; a row may be named more than once."""


class LayerAttention(Protocol):
    """One layer's attention, stateless: its settings are its own, its parameters are passed in."""

    takes_padding: bool
    """Whether `attend` and `decode` also take `visible`, bool [B, T]: a sequence's own tokens.

    The others, padding at either end, are then neither keys nor counted, and their output means nothing.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the trainable parameters by name: ``self_attn.NAME`` of a checkpoint; may be empty."""

    def initialize(
        self, name: str, tensor: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Fill `tensor`, the parameter called `name`, with its value before training; return it."""

    def attend(self, heads: Heads, parameters: Parameters, keep_parts: str = "both") -> torch.Tensor:
        """Return the attention's output before o_proj, [B, H, T, D], in the dtype of q.

        Every input gets its gradient, in memory linear in the number of tokens.

        Args:
            heads: what to attend with.
            parameters: the layer's own.
            keep_parts: "both", or one of the form's `parts` to measure what it does by itself.

        Raises:
            ValueError: shapes do not belong together, or `keep_parts` is unknown.
        """

    def new_state(self) -> DecodeState:
        """Return what decoding remembers before the first token."""

    def decode(self, state: Any, heads: Heads, parameters: Parameters) -> torch.Tensor:
        """Attend from the next token(s) and update `state`: the same as the full forward's last rows.

        `heads` holds the new tokens alone: 1 when generating, any number for a prompt.
        """

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return the most bytes that decoding remembers of one sequence whose keys have `dtype`."""


class StudentLayer(LayerAttention, Protocol):
    """One layer's attention, and what training and evaluation need of it."""

    def transfer_loss(
        self,
        heads: Heads,
        parameters: Parameters,
        weights: LossWeights = PUBLISHED,
        *,
        drop_window: bool = False,
    ) -> TransferLoss:
        """Compare the student's attention with softmax attention, both on the frozen teacher's q, k, v.

        Gradients flow to `parameters` alone; where there are none the loss has no gradient.

        Args:
            heads: the teacher's.
            parameters: the layer's own.
            weights: weights of the losses.
            drop_window: compare the student without its softmax window, over every key up to the query's
                own. Asked only of forms that have window dropout.

        Raises:
            ValueError: shapes do not belong together.
        """

    def distill_loss(
        self, student: Heads, teacher: Heads, parameters: Parameters, weights: LossWeights = PUBLISHED
    ) -> TransferLoss:
        """Compare the student's attention on its own q, k, v with the teacher's softmax attention.

        This is `transfer_loss` for a student whose projections carry adapters (LoRA by Cria, objective
        ``layerwise``): gradients flow to `student` and to `parameters`, never to `teacher`. A tensor that is
        the same object on both sides may be read once.
        """

    def share_outside(self, heads: Heads, parameters: Parameters) -> float | None:
        """Return the share of attention that lies outside the softmax window, from 0 to 1.

        The mean over heads and the positions that have something outside, 0 if there are none; None from a
        form that has nothing outside, or whose weights are not all positive, so that they have no shares.
        """


class Card(NamedTuple):
    """What an exported checkpoint's model card says of the form.

    Attributes:
        tags: for a search of the hub.
        attention: what took the place of softmax attention, in a sentence's second half.
        source: where the form was published.
        padding: what holds for prompts of different lengths in one batch, in a sentence or two.
        rows: names and values of its settings.
    """

    tags: tuple[str, ...]
    attention: str
    source: str
    padding: str
    rows: tuple[tuple[str, str], ...]


class StudentForm(Protocol):
    """A kind of attention that a teacher's softmax attention can be replaced by."""

    name: str
    """What the configuration of a student calls it, ``student_form``."""
    code: ModuleType
    """The file that an exported checkpoint carries as ``student_attention.py``.

    It imports torch and `companions` alone, and its ``layer_attention(config, index)`` returns a
    `LayerAttention`.
    """
    companions: tuple[str, ...]
    """Files beside it that the checkpoint carries under their own names; often none.

    They import torch and each other alone; those of kernels Triton too, and nothing imports them elsewhere.
    """
    has_window_dropout: bool
    """Whether its softmax window can be dropped in attention transfer."""

    def config_fields(self, attention: spec.Attention, kinds: Sequence[LayerKind]) -> dict[str, Any]:
        """Return what the configuration of a student keeps of spec.attention, all layers together.

        ``layer_attention`` of `code` reads these fields and Llama's own. `kinds` says what each layer of the
        model attends with, its window among it.
        """

    def parts(self, config: Any) -> Mapping[str, str]:
        """Return the parts, by the name under which the evaluation reports the student with it alone."""

    def narrowed(self, config: Any) -> dict[str, Any]:
        """Return the fields that make every layer of `config` as narrow as its narrowest; none if all are.

        None, too, from a form whose layers would need parameters for that which they do not have.
        """

    def layer(self, config: Any, index: int) -> StudentLayer:
        """Return the attention of the decoder layer `index`; layers may differ in their settings.

        Raises:
            ValueError: a setting of `config` is unknown.
        """

    def card(self, config: Any) -> Card:
        """Describe the student that `config` configures."""


class Student(NamedTuple):
    """One layer's attention with its parameters."""

    attention: StudentLayer
    parameters: Parameters
