"""The quality gate before stitching: which Crias err by more than the spec allows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isnan

from trenchcoat_api.artifacts import Facts, Manifest
from trenchcoat_api.layer_kinds import SOFTMAX, chooses_softmax, layer_kind
from trenchcoat_api.spec import Attention, TrenchcoatSpec


@dataclass(frozen=True, slots=True)
class Excess:
    """A Cria that does not pass the gate."""

    cria: int
    error: float | None
    """Relative error of its worst layer; none where its manifest does not tell."""
    layer: str = ""
    """The worst layer."""

    def __str__(self) -> str:
        if self.error is None:
            return f"Cria {self.cria} was trained by a version that measured no error"
        return f"Cria {self.cria} errs by {self.error:.3g} in layer {self.layer}"


def worst_layer(facts: Facts) -> tuple[str, float] | None:
    """Number and error of the layer of a Cria that errs most; none where no layer was measured."""
    errors = {layer: float(error) for layer, error in facts.layer_errors.items()}
    return max(errors.items(), key=lambda item: inf if isnan(item[1]) else item[1], default=None)


def excesses(
    spec: TrenchcoatSpec, layers: Mapping[int, range], manifests: Iterable[Manifest]
) -> list[Excess]:
    """The Crias above spec.gates.maxCriaError, in order; none when the gate is not set.

    Args:
        spec: The spec.
        layers: Decoder layers of each Cria, by its index.
        manifests: Manifests of complete Crias.
    """
    if spec.gates.max_cria_error is None:
        return []
    bound = float(spec.gates.max_cria_error)
    found = []
    for manifest in manifests:
        if manifest.cria is None:
            continue
        worst = worst_layer(manifest.facts)
        if worst is None:
            if not _may_keep_softmax(spec.attention, layers[manifest.cria]):
                found.append(Excess(manifest.cria, None))
        elif not worst[1] <= bound:
            found.append(Excess(manifest.cria, worst[1], worst[0]))
    return sorted(found, key=lambda excess: excess.cria)


def _may_keep_softmax(attention: Attention, layers: range) -> bool:
    """Whether all these layers may be the teacher's own, so that there is no error to measure."""
    if chooses_softmax(attention):
        return True  # every version that chooses layers measures those that it did not choose
    return all(layer_kind(attention, layer, ()) == SOFTMAX for layer in layers)


def explain(spec: TrenchcoatSpec, found: list[Excess], override: str) -> str:
    """Say what does not pass and what to do; `override` is how to go on all the same, in words."""
    return (
        f"{'; '.join(str(excess) for excess in found)}: more than spec.gates.maxCriaError "
        f"{spec.gates.max_cria_error}: raise it, train longer (spec.transfer), or {override}"
    )
