"""The forms of the model that are compared: the teacher, and the student after every stage and in parts."""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.checkpoints.pod_weights import Ahead, PodWeights
from trenchcoat_trainer.models.adapters import adapted_weights, merge_adapters
from trenchcoat_trainer.models.artifacts import (
    Adapters,
    Tensors,
    cria_adapters,
    trained_parameters,
    untrained_parameters,
    weight_dtype,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.students import form_of, layer_attention


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the model."""

    name: str
    weights: str
    """"teacher", "adaptedTeacher" (its own adapters merged in), "criaLora" (the Cria's) or "stitched" (those
    and the stitch's)."""
    softmax: bool = False
    is_trained: bool = True
    """Whether the attention's parameters are those that attention transfer left, or the initial ones."""
    keep_parts: str = "both"
    """"both", or the one part of the student's attention that stays."""
    is_windowed: bool = False
    """Whether layers that do not keep softmax attention see a window and the first token alone."""
    is_narrowed: bool = False
    """Whether its wide layers, and those that keep softmax attention, are cut to what the others see."""


@dataclass(frozen=True, slots=True)
class Source:
    """What Crias in the form of variants are made of, besides their own artifacts."""

    weights: PodWeights
    """Those of the teacher."""
    variants: tuple[Variant, ...]
    adapters: Mapping[str, Adapters]
    """Those over the whole model that stitching and adapting the teacher left, by `Variant.weights`."""
    window: int
    """Tokens that a windowed variant sees, besides the first."""
    embeddings: torch.Tensor
    """[vocabulary, hidden size], on the CPU."""
    device: torch.device


TEACHER = Variant("teacher", "teacher", softmax=True)
TRANSFER = Variant("transfer", "teacher")
"""The student after attention transfer."""
STAGES = (
    TEACHER,
    Variant("untrained", "teacher", is_trained=False),
    TRANSFER,
    Variant("criaLora", "criaLora"),
    Variant("stitched", "stitched"),
)
"""What the evaluation reports, in order."""

ADAPTED = Variant("adaptedTeacher", "adaptedTeacher", softmax=True)
"""What the student is held to: the teacher with the same adapters, trained on the same tokens."""
WINDOWED = Variant("windowedTeacher", "teacher", softmax=True, is_windowed=True)
"""The student's rival: the teacher's own weights, untrained, cut to a window of the same bytes of state."""


def stages_of(config: TrenchcoatLlamaConfig) -> tuple[Variant, ...]:
    """Return what the evaluation reports; attention transfer only where it had something to train."""
    layers = (n for n in range(config.num_hidden_layers) if n not in config.keep_softmax_layers)
    if any(layer_attention(config, layer).shapes for layer in layers):
        return STAGES
    return tuple(variant for variant in STAGES if variant is not TRANSFER)


def parts_of(config: TrenchcoatLlamaConfig) -> tuple[Variant, ...]:
    """Return the stitched student with a part of its attention alone: does either do all the work?"""
    form = form_of(config)
    parts = [Variant(name, "stitched", keep_parts=part) for name, part in form.parts(config).items()]
    narrowed = [Variant("withoutWideLayers", "stitched", is_narrowed=True)] if form.narrowed(config) else []
    return (*parts, *narrowed)


WEIGHTS = ("teacher", "adaptedTeacher", "criaLora", "stitched")
"""In the order in which adapters are merged: the student's one set after the other."""


def cria_of_each(
    context: StageContext,
    config: TrenchcoatLlamaConfig,
    cria: CriaRange,
    source: Source,
    wanted: Collection[str],
    ahead: Ahead | None = None,
) -> Iterator[tuple[Variant, CriaModel]]:
    """Yield one Cria in the form of each variant that is wanted, by name; one set of weights is held.

    All ranks of a pod come here for the same Crias in order, also one that wants nothing. The weights of the
    one `ahead` are read meanwhile.
    """
    weights = source.weights.cria(cria, ahead)
    if not wanted:
        return
    untrained, trained = untrained_parameters(context, config, cria), trained_parameters(context, cria)
    dtype = weight_dtype(context)
    # Made once: its weights are these tensors themselves, which adapters are merged into.
    model = CriaModel.build(config, cria, weights, untrained, dtype=dtype, device=source.device)
    for name in WEIGHTS:
        variants = [item for item in source.variants if item.weights == name and item.name in wanted]
        if not variants and name == "adaptedTeacher":
            continue  # its adapters are in no other's weights
        over_all = source.adapters.get(name)
        kept: Tensors = {}
        if name == "adaptedTeacher" and over_all:  # the student's stand on the weights without them
            kept = {key: weights[key].to("cpu", copy=True) for key in adapted_weights(weights, over_all[0])}
        if name == "criaLora":
            merge_adapters(weights, *cria_adapters(context, cria))
        if over_all:
            merge_adapters(weights, *over_all)
        if not variants:
            continue
        for variant in variants:
            model.set_form_parameters(trained if variant.is_trained else untrained)
            if variant.is_narrowed:
                yield (
                    variant,
                    CriaModel.build(_narrowed(config), cria, weights, {}, dtype=dtype, device=source.device),
                )
                continue
            window = source.window if variant.is_windowed else None
            model.use(softmax=variant.softmax, keep_parts=variant.keep_parts, softmax_window=window)
            yield variant, model
        for key, tensor in kept.items():
            weights[key].copy_(tensor)


def _narrowed(config: TrenchcoatLlamaConfig) -> TrenchcoatLlamaConfig:
    """The configuration with all layers as narrow as the narrowest."""
    narrowed = copy.deepcopy(config)
    narrowed.update(form_of(config).narrowed(config))
    return narrowed
