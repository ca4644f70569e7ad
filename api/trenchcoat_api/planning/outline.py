"""A run in numbers: what all formulas of a plan read."""

from dataclasses import dataclass
from typing import Self

from trenchcoat_api.artifacts import DataFacts, ModelFacts
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.decode_state import ITEM_BYTES
from trenchcoat_api.layer_kinds import LayerKind, check_named_layers, likely_kinds
from trenchcoat_api.phases import reads_boundaries
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.sizes import layer_parameters
from trenchcoat_api.spec import TrenchcoatSpec


@dataclass(frozen=True, slots=True)
class Outline:
    """Spec, model and text together."""

    spec: TrenchcoatSpec
    model: PlannedModel
    crias: tuple[CriaRange, ...]
    kinds: tuple[LayerKind, ...]
    """What each layer attends with."""
    sequences: int
    """Training sequences; the most that the spec allows until the text was read."""
    held_out: int
    """Held-out sequences, likewise."""
    documents: int = 0
    """Documents of both; 0 until the text was read."""

    @classmethod
    def of(cls, spec: TrenchcoatSpec, model: PlannedModel, data: DataFacts | None = None) -> Self:
        """Put a run together.

        Raises:
            ValueError: spec.layersPerCria does not fit the model, or a layer is named that it does not have.
        """
        check_named_layers(spec.attention, model.facts.layers)
        length = spec.data.sequence_length
        return cls(
            spec,
            model,
            tuple(cria_ranges(model.facts.layers, spec.layers_per_cria)),
            likely_kinds(spec.attention, model.facts.layers),
            data.sequences if data else max(1, spec.data.tokens // length),
            data.held_out_sequences if data else max(1, spec.data.held_out_tokens // length),
            data.documents + data.held_out_documents if data else 0,
        )

    @property
    def facts(self) -> ModelFacts:
        """The model's shape."""
        return self.model.facts

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.spec.data.sequence_length

    @property
    def tokens(self) -> int:
        """Training tokens in full sequences."""
        return self.sequences * self.length

    @property
    def item(self) -> int:
        """Bytes of a weight or an activation in spec.dtype."""
        return ITEM_BYTES[self.spec.dtype]

    @property
    def longest_cria(self) -> int:
        """Layers of the largest Cria."""
        return max(len(cria.layers) for cria in self.crias)

    @property
    def layer_bytes(self) -> int:
        """Weights of a layer in spec.dtype."""
        return layer_parameters(self.facts) * self.item

    @property
    def boundaries(self) -> int:
        """Inner Cria boundaries whose hidden states are stored."""
        return len(self.crias) - 1 if reads_boundaries(self.spec) else 0

    @property
    def boundary_bytes(self) -> int:
        """Hidden states at one boundary."""
        return self.tokens * self.facts.hidden_size * self.item

    def kinds_of(self, cria: CriaRange) -> tuple[LayerKind, ...]:
        """What the layers of a Cria attend with."""
        return self.kinds[cria.first : cria.last + 1]
