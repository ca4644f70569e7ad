"""Cutting a model's decoder layers into Crias."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CriaRange:
    """The consecutive decoder layers [first, last] of one Cria, both counted from 0 and included."""

    index: int
    first: int
    last: int

    @property
    def layers(self) -> range:
        """The layer indices, in order."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def cria_ranges(num_layers: int, layers_per_cria: int) -> list[CriaRange]:
    """Cut `num_layers` decoder layers into Crias of `layers_per_cria`; the last may be shorter.

    Raises:
        ValueError: `layers_per_cria` is not between 1 and `num_layers`.
    """
    if not 1 <= layers_per_cria <= num_layers:
        raise ValueError(
            f"spec.layersPerCria is {layers_per_cria}, but the model has {num_layers} decoder layers: "
            f"set it between 1 and {num_layers}"
        )
    return [
        CriaRange(index, first, min(first + layers_per_cria, num_layers) - 1)
        for index, first in enumerate(range(0, num_layers, layers_per_cria))
    ]
