"""Presets: settings that decide how long a run takes, together under one name.

A spec that leaves such a field out gets the preset's value while it is read (`TrenchcoatSpec` calls
`with_preset`), so everything behind sees the resolved value alone: the operator, the stages, `trenchcoat
plan`, and content keys. The API server gives these fields no default, or the preset could not tell what the
user has set.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field
from pydantic.alias_generators import to_camel

PRESET_MARK = "x-trenchcoat-preset"
"""Marks, in pydantic's JSON schema, a field whose default the definition must not carry."""


class Preset(StrEnum):
    """How much to train."""

    PAPER = "paper"
    SHIPPED = "shipped"
    QUICK = "quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetValues:
    """What a preset sets."""

    tokens: int
    transfer_epochs: int
    cria_lora_epochs: int
    stitch_epochs: int
    start_share: str
    """Of data.startPositions."""

    def describe(self) -> str:
        """The values, for people."""
        return (
            f"{self.tokens // 1_000_000}M tokens, {self.transfer_epochs} + {self.cria_lora_epochs} + "
            f"{self.stitch_epochs} epochs, share of random starts {self.start_share}"
        )


SHIPPED = PresetValues(
    tokens=20_000_000, transfer_epochs=2, cria_lora_epochs=2, stitch_epochs=1, start_share="0"
)

PRESETS = {
    # LoLCATs (arXiv 2410.10254): 20M tokens, once for attention transfer and once for LoRA.
    Preset.PAPER: PresetValues(
        tokens=20_000_000, transfer_epochs=1, cria_lora_epochs=1, stitch_epochs=1, start_share="0"
    ),
    # What its reference implementation's settings say.
    Preset.SHIPPED: SHIPPED,
    # Enough to see how well a model linearizes.
    Preset.QUICK: PresetValues(
        tokens=8_000_000, transfer_epochs=1, cria_lora_epochs=1, stitch_epochs=1, start_share="0"
    ),
}

_FIELDS = {
    ("data", "tokens"): "tokens",
    ("data", "start_positions", "share"): "start_share",
    ("transfer", "epochs"): "transfer_epochs",
    ("cria_lora", "epochs"): "cria_lora_epochs",
    ("stitch", "epochs"): "stitch_epochs",
}
"""Where in a spec a preset's value belongs, by Python's names."""


def preset_field(
    shipped: int | str, description: str, *, ge: int | None = None, le: int | None = None
) -> Any:
    """A field that a preset fills in; `shipped` stands where a part of a spec is made by itself."""
    text = f"{description} By default what spec.preset says."
    return Field(default=shipped, description=text, ge=ge, le=le, json_schema_extra={PRESET_MARK: True})


def with_preset(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as a user wrote it, filled in from its preset where it leaves a field out; `spec` is kept.

    Args:
        spec: fields by YAML's or Python's names. An unknown preset and parts that are no objects are left to
            validation.
    """
    name = spec.get("preset", Preset.SHIPPED)
    if not isinstance(name, str) or name not in PRESETS:
        return spec
    filled = spec
    for path, attribute in _FIELDS.items():
        filled = _filled(filled, path, getattr(PRESETS[Preset(name)], attribute))
    return filled


def _filled(part: dict[str, Any], path: tuple[str, ...], value: int | str) -> dict[str, Any]:
    """A copy of a part of a spec in which `path`, by Python's names, leads to `value` unless it is set."""
    field, *below = path
    key = field if field in part else to_camel(field)
    if not below:
        return part if part.get(key) is not None else {**part, key: value}
    given = part.get(key, {})
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_unset=True)
    return {**part, key: _filled(given, tuple(below), value)} if isinstance(given, dict) else part
