"""What each decoder layer of the student attends with, from the spec and the layers that were chosen.

The one place that reads spec.attention for this: student configurations, estimates and gates go by it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

from trenchcoat_api.spec.attention import Attention, Form


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What one layer attends with."""

    form: Form | None
    """The student's form; none where the layer keeps softmax attention over all tokens."""
    window: int = 0
    """Its window, as the form reads it; 0 where there is none."""


SOFTMAX = LayerKind(None)
"""A layer that is the teacher's own."""


def layer_kind(attention: Attention, layer: int, selected: Collection[int]) -> LayerKind:
    """What the decoder layer `layer` attends with, where `selected` are the wide layers that were chosen."""
    if layer in attention.keep_softmax_layers:
        return SOFTMAX
    wide = attention.wide
    if wide is not None and layer in (selected if wide.layers is None else wide.layers):
        return SOFTMAX if wide.window is None else LayerKind(attention.form, wide.window)
    return LayerKind(attention.form, attention.window)


def layer_kinds(
    attention: Attention, layers: int, selected: Collection[int] | None = None
) -> tuple[LayerKind, ...]:
    """What each layer attends with, in order.

    Args:
        attention: spec.attention.
        layers: decoder layers of the model.
        selected: the wide layers that the run chose; read where attention.wide.share asks for it.

    Raises:
        ValueError: a layer is named that the model does not have, or layers are to be chosen and were not.
    """
    if chooses_layers(attention) and selected is None:
        raise ValueError(
            "spec.attention.wide.share has the wide layers chosen, and none were: choose them first, or set "
            "spec.attention.wide.layers"
        )
    check_named_layers(attention, layers)
    return tuple(layer_kind(attention, layer, selected or ()) for layer in range(layers))


def check_named_layers(attention: Attention, layers: int) -> None:
    """Raise ValueError where spec.attention names a layer that a model of so many layers does not have."""
    wide = attention.wide.layers if attention.wide is not None else None
    for field, named in (("keepSoftmaxLayers", attention.keep_softmax_layers), ("wide.layers", wide or [])):
        absent = sorted(layer for layer in named if layer >= layers)
        if absent:
            raise ValueError(
                f"spec.attention.{field} has {', '.join(map(str, absent))}, but the model has the decoder "
                f"layers 0 to {layers - 1}: name those alone"
            )


def likely_kinds(attention: Attention, layers: int) -> tuple[LayerKind, ...]:
    """The same for estimates, before any layer is chosen or refused: a share is met by the first layers."""
    free = [layer for layer in range(layers) if layer not in attention.keep_softmax_layers]
    return tuple(
        layer_kind(attention, layer, free[: wide_count(attention, layers)]) for layer in range(layers)
    )


def wide_count(attention: Attention, layers: int) -> int:
    """How many of a model's layers are to be wide: a share is rounded down, but never to nothing."""
    wide = attention.wide
    if wide is None:
        return 0
    if wide.share is None:
        return len(wide.layers or ())
    return max(1, int(Decimal(wide.share) * layers)) if chooses_layers(attention) else 0


def chooses_layers(attention: Attention) -> bool:
    """Whether the run chooses the wide layers."""
    share = attention.wide.share if attention.wide is not None else None
    return share is not None and Decimal(share) > 0


def chooses_softmax(attention: Attention) -> bool:
    """Whether the run chooses layers that keep softmax attention, so that the spec alone does not tell."""
    return chooses_layers(attention) and attention.wide is not None and attention.wide.window is None
