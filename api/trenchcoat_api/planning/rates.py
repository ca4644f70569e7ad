"""Rates by kind of GPU, read from YAML: what was measured, and what a user measured in its place."""

from collections.abc import Mapping
from importlib.resources import files
from math import exp, log
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from trenchcoat_api.base import Camel
from trenchcoat_api.spec import DType
from trenchcoat_api.stages import Stage

Positive = Annotated[float, Field(gt=0, lt=1e18, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, lt=1e18, allow_inf_nan=False)]
HEADS, HEAD_DIM = 128, 128
"""Of the layer whose attention was measured."""


class RatesError(ValueError):
    """Rates that cannot be used: says which file and field."""


class PassRate(Camel):
    """How fast one kind of pass runs."""

    tflops: Positive = Field(description="TFLOP/s of matrix products.")
    attention_ms: dict[int, NotNegative] = Field(
        description="Milliseconds of attention in a layer with 128 heads of 128, by tokens.", min_length=1
    )
    host_ms: NotNegative = Field(description="Milliseconds that the host needs for a layer, at least.")

    def attention_seconds(self, tokens: int) -> float:
        """Attention of one sequence in the layer that was measured.

        Time per pair of tokens is drawn straight between the lengths that were measured, both by their
        logarithms, and kept beyond them.
        """
        points = sorted((length, ms / length**2) for length, ms in self.attention_ms.items())
        lower = max((point for point in points if point[0] <= tokens), default=points[0])
        upper = min((point for point in points if point[0] >= tokens), default=points[-1])
        if lower[0] == upper[0] or 0.0 in (lower[1], upper[1]):
            each = lower[1]
        else:
            share = (log(tokens) - log(lower[0])) / (log(upper[0]) - log(lower[0]))
            each = exp(log(lower[1]) + share * (log(upper[1]) - log(lower[1])))
        return each * tokens**2 / 1e3


class Passes(Camel):
    """The kinds of passes."""

    forward: PassRate
    transfer: PassRate
    transfer_through: PassRate | None = Field(
        default=None, description="Transfer that leaves the next boundary on the way; like transfer if null."
    )
    layerwise: PassRate
    block: PassRate
    evaluate: PassRate | None = Field(
        default=None, description="A layer of any form of the model, with scores; like forward if null."
    )
    end_to_end: PassRate
    end_to_end_alone: PassRate

    @property
    def through(self) -> PassRate:
        """Of the epoch of attention transfer that runs a Cria to its end, for the next one."""
        return self.transfer_through or self.transfer

    @property
    def evaluation(self) -> PassRate:
        """Of a layer in the evaluation."""
        return self.evaluate or self.forward


class Kind(Camel):
    """A kind of GPU."""

    title: str
    products: list[str] = Field(default_factory=list, description="Values of a node's label .product.")
    memory_bytes: int = Field(gt=0, description="Memory of one.")
    dtype: DType = DType.BFLOAT16
    start_seconds: NotNegative = Field(description="From a pod's start to the first step, without reading.")
    stage_start_seconds: dict[Stage, NotNegative] = Field(
        default_factory=dict, description="The same by stage, where that is known: all that is not steps."
    )
    passes: Passes

    def start(self, stage: Stage) -> float:
        """Seconds of a Job that neither steps nor reading take."""
        return self.stage_start_seconds.get(stage, self.start_seconds)


def by_products(kind: Kind) -> Kind:
    """As a CPU is taken to be: steps go by their matrix products, for nothing else was measured there.

    On two cores a step of the demo's model on sequences of four times the length takes 1.2 times as long
    where this tells 1, and 1.65 times where it tells 2.
    """
    alone = {"host_ms": 0.0, "attention_ms": {1: 0.0}}
    passes = {name: rate.model_copy(update=alone) for name, rate in kind.passes if isinstance(rate, PassRate)}
    return kind.model_copy(update={"passes": kind.passes.model_copy(update=passes)})


class StoreRate(Camel):
    """The store's."""

    bytes_per_second: Positive


class GatherRate(Camel):
    """Of ZeRO-3 between ranks."""

    bytes_per_second: Positive | None


class TextRate(Camel):
    """Of the tokenizer."""

    tokens_per_second: Positive


class Rates(Camel):
    """All rates."""

    default: str
    store: StoreRate
    text: TextRate
    gather: GatherRate
    kinds: dict[str, Kind]

    @model_validator(mode="after")
    def _has_default(self) -> Self:
        if self.default not in self.kinds:
            raise ValueError(f"default is {self.default}, which kinds lacks")
        return self

    @classmethod
    def load(cls, file: Path | None = None) -> Self:
        """Read a file, or the one that comes with the package.

        Raises:
            RatesError: it cannot be read or used.
        """
        packaged = files("trenchcoat_api.planning").joinpath("rates.yaml")
        try:
            return cls.model_validate(yaml.safe_load((file or packaged).read_bytes()))
        except OSError as error:
            raise RatesError(f"rates {file} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"]))
            raise RatesError(f"rates {file}: {path}: {first['msg']}: correct it") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RatesError(f"rates {file} are not YAML: {error}") from error

    def kind(self, name: str | None) -> tuple[str, Kind]:
        """A kind by its name, or the default.

        Raises:
            RatesError: there is none of this name.
        """
        wanted = name or self.default
        if wanted not in self.kinds:
            known = ", ".join(sorted(self.kinds))
            raise RatesError(f"no rates of a GPU {wanted!r}: name one of {known}, or give rates of it")
        return wanted, self.kinds[wanted]

    def by_product(self, labels: Mapping[str, str], resource: str) -> str | None:
        """The kind that a node's label tells, if there are rates of it."""
        product = labels.get(f"{resource}.product", "").removesuffix("-SHARED")
        return next((name for name, kind in self.kinds.items() if product in kind.products), None)


MIB = 1024**2


def labelled_memory(labels: Mapping[str, str], resource: str) -> int | None:
    """Bytes of one GPU by the label that GPU feature discovery gives a node; None where there is none."""
    text = labels.get(f"{resource}.memory", "")
    return int(text) * MIB if text.isascii() and text.isdecimal() and len(text) < 12 else None
