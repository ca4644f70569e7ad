"""The form of the student: its hybrid attention and its numbers."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trenchcoat_api.base import Camel
from trenchcoat_api.rules import Unique


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


class Attention(Camel):
    """The form of the student's hybrid attention."""

    window: int = Field(
        default=64,
        description="Terrace block: a query sees its own block and the one before exactly.",
        ge=1,
        le=4096,
    )
    feature_dim: int = Field(
        default=64,
        description="Columns of each feature map's matrix; features are twice as many.",
        ge=1,
        le=1024,
    )
    key_maps: KeyMaps = Field(
        default=KeyMaps.PER_QUERY_HEAD,
        description=(
            "perQueryHead: a key feature map for every query head, as published. perKeyValueHead: one for "
            "every key/value head, which makes the decode state smaller by the number of query heads in a "
            "group."
        ),
    )
    keep_softmax_layers: Annotated[list[Annotated[int, Field(ge=0, le=10_000)]], Unique()] = Field(
        default_factory=list,
        description="Decoder layers, counted from 0, that keep their softmax attention.",
        max_length=1000,
    )
