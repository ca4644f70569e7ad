"""The forms of the model that are compared: the teacher, and the student after every stage and in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.checkpoints.shards import load_cria_weights
from trenchcoat_trainer.models.adapters import merge_adapters
from trenchcoat_trainer.models.artifacts import (
    Adapters,
    cria_adapters,
    trained_parameters,
    untrained_parameters,
    weight_dtype,
)
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.students import form_of


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the model."""

    name: str
    weights: str
    """"teacher", "criaLora" (its adapters merged in) or "stitched" (those of the stitch as well)."""
    softmax: bool = False
    is_trained: bool = True
    """Whether the attention's parameters are those that attention transfer left, or the initial ones."""
    keep_parts: str = "both"
    """"both", or the one part of the student's attention that stays."""


STAGES = (
    Variant("teacher", "teacher", softmax=True),
    Variant("untrained", "teacher", is_trained=False),
    Variant("transfer", "teacher"),
    Variant("criaLora", "criaLora"),
    Variant("stitched", "stitched"),
)
"""What the evaluation reports, in order."""


def parts_of(config: TrenchcoatLlamaConfig) -> tuple[Variant, ...]:
    """Return the stitched student with a part of its attention alone: does either do all the work?"""
    parts = form_of(config).parts.items()
    return tuple(Variant(name, "stitched", keep_parts=part) for name, part in parts)


def cria_of_each(
    context: StageContext,
    config: TrenchcoatLlamaConfig,
    cria: CriaRange,
    stitch: Adapters,
    device: torch.device,
) -> Iterator[tuple[Variant, CriaModel]]:
    """Yield one Cria in the form of each variant in turn; one set of weights is held.

    `stitch` holds the adapters that stitching left.
    """
    weights = load_cria_weights(context, cria, device)
    untrained, trained = untrained_parameters(context, config, cria), trained_parameters(context, cria)
    for name, variants in groupby((*STAGES, *parts_of(config)), key=lambda variant: variant.weights):
        if name == "criaLora":
            merge_adapters(weights, *cria_adapters(context, cria))
        if name == "stitched":
            merge_adapters(weights, *stitch)
        dtype = weight_dtype(context)
        model = CriaModel.build(config, cria, weights, untrained, dtype=dtype, device=device)
        for variant in variants:
            model.set_form_parameters(trained if variant.is_trained else untrained)
            model.use(softmax=variant.softmax, keep_parts=variant.keep_parts)
            yield variant, model
