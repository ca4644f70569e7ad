"""The form of the student: the attention that takes the place of softmax, and its numbers."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from trenchcoat_api.base import Camel
from trenchcoat_api.presets import PRESET_MARK
from trenchcoat_api.rules import Rule, Unique
from trenchcoat_api.strings import Share


class DType(StrEnum):
    """Number format of weights and activations; losses, maps and their optimiser are always fp32."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class KeyMaps(StrEnum):
    """Which heads have a key feature map of their own."""

    PER_QUERY_HEAD = "perQueryHead"
    """Every query head, as published: each has its own linear state in decode."""
    PER_KEY_VALUE_HEAD = "perKeyValueHead"
    """Every key/value head: the query heads of a group share the map, and one linear state in decode."""


class Form(StrEnum):
    """What takes the place of softmax attention over all tokens."""

    LOLCATS = "lolcats"
    """Exact softmax over a terraced window, linear attention with learned feature maps before it."""
    WINDOW = "window"
    """Exact softmax over the first tokens and the last ones: nothing to train in attention transfer."""


LayerNumbers = Annotated[list[Annotated[int, Field(ge=0, le=10_000)]], Unique(), Field(max_length=1000)]
"""Decoder layers, counted from 0, none twice."""

FIRST_TOKENS = {Form.LOLCATS: 0, Form.WINDOW: 4}
"""Tokens at the start that every query sees, by form, where the spec does not say."""
WINDOWS = {Form.LOLCATS: 64, Form.WINDOW: 256}
"""Tokens of the window, likewise."""


class Wide(Camel):
    """Layers that see further back than the others."""

    rules = (
        Rule(
            cel="has(self.layers) != has(self.share)",
            holds=lambda wide: (wide.layers is None) != (wide.share is None),
            message=(
                "layers names the wide layers and share has them chosen, and there must be one of the two: "
                "set layers or share, and not both"
            ),
            field="layers",
        ),
    )

    layers: Annotated[LayerNumbers, Field(min_length=1)] | None = Field(
        default=None, description="The decoder layers, counted from 0."
    )
    share: Share | None = Field(
        default=None,
        description=(
            "In place of layers: how much of the model is wide. The stage select chooses the layers that "
            "carry recall, by one pass of the teacher: those that find again what stood far back. Layers "
            "chosen for the perplexity of plain text carry none, so there is no other choice. 0: no layer is "
            "wide."
        ),
    )
    window: int | None = Field(
        default=None,
        description=(
            "Last tokens that these layers see, their own included; form window alone. Not set: they keep "
            "softmax attention over all tokens, and the cache that grows with it."
        ),
        ge=1,
        le=1_048_576,
    )


class Attention(Camel):
    """The form of the student's attention."""

    form: Form = Field(
        default=Form.LOLCATS,
        description=(
            "What takes the place of softmax attention. window: softmax over the first tokens and the "
            "last ones, which has nothing to train in attention transfer. lolcats: softmax over a terraced "
            "window, linear attention with learned feature maps before it. By default what spec.preset says."
        ),
        json_schema_extra={PRESET_MARK: True},
    )
    window: int = Field(
        default=WINDOWS[Form.LOLCATS],
        description=(
            "window: last tokens that a query sees, its own included; 256 unless set. lolcats: terrace "
            "block, 64 unless set; a query sees its own block and the one before exactly."
        ),
        ge=1,
        le=4096,
        json_schema_extra={PRESET_MARK: True},
    )
    first_tokens: int = Field(
        default=FIRST_TOKENS[Form.LOLCATS],
        description=(
            "Tokens at the start of a sequence that every query sees; form window alone, there 4 unless set."
        ),
        ge=0,
        le=4096,
        json_schema_extra={PRESET_MARK: True},
    )
    wide: Wide | None = Field(
        default=None,
        description=(
            "Layers that see further back than the others; by default what spec.preset says, in form window "
            "where keepSoftmaxLayers names none, and else none. A layer in keepSoftmaxLayers keeps softmax "
            "attention all the same."
        ),
    )
    feature_dim: int = Field(
        default=64,
        description="Columns of each feature map's matrix, form lolcats; features are twice as many.",
        ge=1,
        le=1024,
    )
    key_maps: KeyMaps = Field(
        default=KeyMaps.PER_QUERY_HEAD,
        description=(
            "Form lolcats. perQueryHead: a key feature map for every query head, as published. "
            "perKeyValueHead: one for every key/value head, which makes the decode state smaller by the "
            "number of query heads in a group."
        ),
    )
    keep_softmax_layers: LayerNumbers = Field(
        default_factory=list,
        description="Decoder layers, counted from 0, that keep their softmax attention.",
    )

    @property
    def wide_window(self) -> int | None:
        """Last tokens that wide layers see; None where no layer is wide, or all tokens are seen."""
        return self.wide.window if self.wide is not None else None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_form(cls, fields: Any) -> Any:
        """What is behind sees a number alone; what the spec does not set goes by the form."""
        if not isinstance(fields, dict):
            return fields
        form = fields.get("form", Form.LOLCATS)
        if not isinstance(form, str) or form not in FIRST_TOKENS:
            return fields
        filled = dict(fields)
        for names, values in ((("window",), WINDOWS), (("first_tokens", "firstTokens"), FIRST_TOKENS)):
            if all(filled.get(name) is None for name in names):
                filled = {name: value for name, value in filled.items() if name not in names}
                filled[names[0]] = values[Form(form)]
        return filled
