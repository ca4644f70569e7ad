"""The forms of the model that are compared: the teacher, and the student after every stage and in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.checkpoints.shards import load_cria_weights
from trenchcoat_trainer.models.adapters import merge_adapters
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.students.artifacts import (
    Adapters,
    cria_adapters,
    trained_maps,
    untrained_maps,
    weight_dtype,
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the model."""

    name: str
    weights: str
    """"teacher", "criaLora" (its adapters merged in) or "stitched" (those of the stitch as well)."""
    softmax: bool = False
    is_trained: bool = True
    """Whether feature maps are those that attention transfer left, or the initial ones."""
    keep_parts: str = "both"
    """"window" or "linear" to leave out the other part of hybrid attention."""


STAGES = (
    Variant("teacher", "teacher", softmax=True),
    Variant("untrained", "teacher", is_trained=False),
    Variant("transfer", "teacher"),
    Variant("criaLora", "criaLora"),
    Variant("stitched", "stitched"),
)
"""What the evaluation reports, in order."""

PARTS = (
    Variant("withoutLinear", "stitched", keep_parts="window"),
    Variant("withoutWindow", "stitched", keep_parts="linear"),
)
"""The stitched student with a part of its attention left out: does either do all the work?"""


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
    untrained, trained = untrained_maps(context, config, cria), trained_maps(context, cria)
    for name, variants in groupby((*STAGES, *PARTS), key=lambda variant: variant.weights):
        if name == "criaLora":
            merge_adapters(weights, *cria_adapters(context, cria))
        if name == "stitched":
            merge_adapters(weights, *stitch)
        dtype = weight_dtype(context)
        model = CriaModel.build(config, cria, weights, untrained, dtype=dtype, device=device)
        for variant in variants:
            model.set_maps(trained if variant.is_trained else untrained)
            model.use(softmax=variant.softmax, keep_parts=variant.keep_parts)
            yield variant, model
