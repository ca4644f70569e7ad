"""Presets: the student's form and settings that decide how long a run takes, together under one name.

A spec that leaves such a field out gets the preset's value while it is read (`TrenchcoatSpec` calls
`with_preset`), so everything behind sees the resolved value alone: the operator, the stages, `trenchcoat
plan`, and content keys. The API server gives these fields no default, or the preset could not tell what the
user has set. For the same reason it gives spec.preset none: `default_preset` goes by the form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field
from pydantic.alias_generators import to_camel

PRESET_MARK = "x-trenchcoat-preset"
"""Marks, in pydantic's JSON schema, a field whose default the definition must not carry."""


STITCH_BATCH = 8
"""Of stitch.batchSize, where a spec says nothing."""
LONG_MULTIPLE = 4
"""Of stitch.longSequences.multiple, where no preset's fits stitch.batchSize."""


class Preset(StrEnum):
    """Which student, and how much to train."""

    STANDARD = "standard"
    PAPER = "paper"
    SHIPPED = "shipped"
    QUICK = "quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetValues:
    """What a preset sets."""

    form: str
    """Of the student's attention."""
    wide_share: str = "0"
    """Of attention.wide; 0 sets none."""
    tokens: int
    transfer_epochs: int
    cria_lora_epochs: int
    stitch_epochs: int
    learning_rate: str = "1e-4"
    """Of the stitch."""
    lr_schedule: str = "constant"
    """Of the stitch."""
    rank: int = 4
    """Of the stitch's adapters; alpha is twice as much."""
    recall_share: str = "0"
    """Of the stitch."""
    long_share: str = "0"
    """Of stitch.longSequences."""
    long_multiple: int = LONG_MULTIPLE
    """Of stitch.longSequences."""
    long_recall_share: str | None = None
    """Of stitch.longSequences; None as in other sequences."""
    start_share: str = "0"
    """Of data.startPositions."""

    def describe(self) -> str:
        """The values, for people; what is off is left out."""
        parts = [
            f"form {self.form}",
            f"{self.wide_share} of the layers wide" if self.wide_share != "0" else "",
            f"{self.tokens // 1_000_000}M tokens",
            f"{self.transfer_epochs} + {self.cria_lora_epochs} + {self.stitch_epochs} epochs",
            f"stitch.learningRate {self.learning_rate} ({self.lr_schedule})",
            f"stitch.lora.rank {self.rank}, stitch.lora.alpha {2 * self.rank}",
            f"stitch.recallShare {self.recall_share}" if self.recall_share != "0" else "",
            f"stitch.longSequences.share {self.long_share}" if self.long_share != "0" else "",
            f"stitch.longSequences.multiple {self.long_multiple}" if self.long_share != "0" else "",
            f"stitch.longSequences.recallShare {self.long_recall_share}" if self.long_recall_share else "",
            f"data.startPositions.share {self.start_share}" if self.start_share != "0" else "",
        ]
        return ", ".join(part for part in parts if part)


SHIPPED = PresetValues(
    form="lolcats", tokens=20_000_000, transfer_epochs=2, cria_lora_epochs=2, stitch_epochs=1
)
STANDARD = PresetValues(
    form="window",
    wide_share="0.25",
    tokens=8_000_000,
    transfer_epochs=1,
    cria_lora_epochs=0,
    stitch_epochs=1,
    learning_rate="1e-3",
    lr_schedule="wsd",
    rank=8,
    recall_share="0.1",
    long_share="0.5",
    long_multiple=8,
    long_recall_share="0.5",
)

PRESETS = {
    # The best student so far, by benchmarks/quality/LEADERBOARD.md.
    Preset.STANDARD: STANDARD,
    # LoLCATs (arXiv 2410.10254): 20M tokens, once for attention transfer and once for LoRA.
    Preset.PAPER: PresetValues(
        form="lolcats", tokens=20_000_000, transfer_epochs=1, cria_lora_epochs=1, stitch_epochs=1
    ),
    # What its reference implementation's settings say.
    Preset.SHIPPED: SHIPPED,
    # Enough to see how well a model linearizes the published way.
    Preset.QUICK: PresetValues(
        form="lolcats", tokens=8_000_000, transfer_epochs=1, cria_lora_epochs=1, stitch_epochs=1
    ),
}


@dataclass(frozen=True, slots=True)
class _Setting:
    """A field that presets fill in, by Python's names, and where."""

    path: tuple[str, ...]
    value: Callable[[PresetValues], Any]
    fits: Callable[[dict[str, Any]], bool] = lambda spec: True
    """Whether the value goes with the rest of a spec; else the field keeps its own default."""


def _names_no_layers(spec: dict[str, Any]) -> bool:
    attention = _part(spec, "attention")
    return _get(attention, "form") == "window" and not _get(attention, "keep_softmax_layers")


def _takes(spec: dict[str, Any], multiple: Any) -> bool:
    """Whether a step of the stitch is whole long sequences of so many stored ones."""
    batch = _get(_part(spec, "stitch"), "batch_size")
    sizes = (STITCH_BATCH if batch is None else batch, LONG_MULTIPLE if multiple is None else multiple)
    return all(isinstance(size, int) and size > 0 for size in sizes) and sizes[0] % sizes[1] == 0


def _takes_long_sequences(spec: dict[str, Any]) -> bool:
    return _takes(spec, _get(_part(_part(spec, "stitch"), "long_sequences"), "multiple"))


def _leaves_recall_out(spec: dict[str, Any]) -> bool:
    return _get(_part(spec, "stitch"), "recall_share") is None


_SETTINGS = (
    _Setting(("attention", "form"), lambda preset: preset.form),
    _Setting(
        ("attention", "wide"),
        lambda preset: {"share": preset.wide_share} if preset.wide_share != "0" else None,
        _names_no_layers,
    ),
    _Setting(("data", "tokens"), lambda preset: preset.tokens),
    _Setting(("data", "start_positions", "share"), lambda preset: preset.start_share),
    _Setting(("transfer", "epochs"), lambda preset: preset.transfer_epochs),
    _Setting(("cria_lora", "epochs"), lambda preset: preset.cria_lora_epochs),
    _Setting(("stitch", "epochs"), lambda preset: preset.stitch_epochs),
    _Setting(("stitch", "learning_rate"), lambda preset: preset.learning_rate),
    _Setting(("stitch", "lr_schedule"), lambda preset: preset.lr_schedule),
    _Setting(("stitch", "lora", "rank"), lambda preset: preset.rank),
    _Setting(("stitch", "lora", "alpha"), lambda preset: 2 * preset.rank),
    _Setting(
        ("stitch", "long_sequences", "recall_share"),
        lambda preset: preset.long_recall_share,
        _leaves_recall_out,
    ),
    _Setting(("stitch", "recall_share"), lambda preset: preset.recall_share),
    _Setting(
        ("stitch", "long_sequences", "multiple"),
        lambda preset: preset.long_multiple,
        lambda spec: _takes(spec, STANDARD.long_multiple),
    ),
    _Setting(("stitch", "long_sequences", "share"), lambda preset: preset.long_share, _takes_long_sequences),
)
"""In order: the form is known before what goes by it."""


def preset_field(
    shipped: int | str, description: str, *, ge: int | None = None, le: int | None = None
) -> Any:
    """A field that a preset fills in; `shipped` stands where a part of a spec is made by itself."""
    text = f"{description} By default what spec.preset says."
    return Field(default=shipped, description=text, ge=ge, le=le, json_schema_extra={PRESET_MARK: True})


def default_preset(spec: dict[str, Any]) -> Preset:
    """The preset of a spec that names none: shipped for form lolcats, standard for all others."""
    return Preset.SHIPPED if _get(_part(spec, "attention"), "form") == "lolcats" else Preset.STANDARD


def kept_preset(recorded: Any, observed: Any) -> Preset:
    """The default of an object that an operator may have seen before, by its status.

    Args:
        recorded: status.defaultPreset.
        observed: status.observedGeneration; alone, it is of a release that had but the published form.
    """
    if isinstance(recorded, str) and recorded in PRESETS:
        return Preset(recorded)
    return Preset.SHIPPED if observed else Preset.STANDARD


def names_form(spec: dict[str, Any]) -> bool:
    """Whether a spec says which form the student has."""
    return _get(_part(spec, "attention"), "form") is not None


def with_preset(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as a user wrote it, filled in from its preset where it leaves a field out; `spec` is kept.

    Args:
        spec: fields by YAML's or Python's names. An unknown preset and parts that are no objects are left to
            validation.
    """
    name = spec.get("preset", default_preset(spec))
    if not isinstance(name, str) or name not in PRESETS:
        return spec
    filled = {**spec, "preset": name}
    for setting in _SETTINGS:
        value = setting.value(PRESETS[Preset(name)])
        if value is not None and setting.fits(filled):
            filled = _filled(filled, setting.path, value)
    return filled


def _get(part: dict[str, Any], field: str) -> Any:
    value = part.get(field)
    return part.get(to_camel(field)) if value is None else value


def _part(spec: dict[str, Any], field: str) -> dict[str, Any]:
    """A part of a spec as fields, by either's names; none where it is no object."""
    value = _get(spec, field)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    return value if isinstance(value, dict) else {}


def _filled(part: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a part of a spec in which `path`, by Python's names, leads to `value` unless it is set."""
    field, *below = path
    key = field if field in part else to_camel(field)
    if not below:
        return part if part.get(key) is not None else {**part, key: value}
    given = part.get(key, {})
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_unset=True)
    return {**part, key: _filled(given, tuple(below), value)} if isinstance(given, dict) else part
