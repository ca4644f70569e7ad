"""How the student is trained: attention transfer, LoRA by Cria, the stitch."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trenchcoat_api.base import Camel
from trenchcoat_api.presets import LONG_MULTIPLE, SHIPPED, STITCH_BATCH, preset_field
from trenchcoat_api.rules import Rule, Unique
from trenchcoat_api.strings import Decimal, PositiveDecimal, Share, where_decimals

_MICRO_BATCH = Rule(
    cel="self.microBatchSize < 1 || self.batchSize % self.microBatchSize == 0",
    holds=lambda phase: phase.batch_size % phase.micro_batch_size == 0,
    message="microBatchSize does not divide batchSize: set it to a divisor, or change batchSize",
    field="microBatchSize",
)


class Plateau(Camel):
    """Learning-rate schedule by layer: cut when a layer's loss stops falling."""

    factor: Share = Field(default="0.1", description="The rate is multiplied by this at a cut.")
    patience: int = Field(
        default=10, description="Checks without improvement before a cut.", ge=0, le=100_000
    )
    every: int = Field(default=16, description="Optimiser steps between checks.", ge=1, le=100_000)
    min_learning_rate: PositiveDecimal = Field(default="1e-5", description="The rate never falls below this.")


class TeacherProducts(StrEnum):
    """What the matrix products of the frozen teacher are computed in."""

    DTYPE = "dtype"
    """spec.dtype, as everything else."""
    FLOAT8 = "float8"
    """FP8 (e4m3) with a scale for each token and each output, into bfloat16."""


class Transfer(Camel):
    """Attention transfer: feature maps and window factors learn to imitate softmax attention."""

    rules = (
        _MICRO_BATCH,
        Rule(
            cel=where_decimals(
                "double(self.plateau.minLearningRate) <= double(self.learningRate)",
                "self.plateau.minLearningRate",
                "self.learningRate",
            ),
            holds=lambda transfer: float(transfer.plateau.min_learning_rate) <= float(transfer.learning_rate),
            message="plateau.minLearningRate is above learningRate: lower it, or raise learningRate",
            field="plateau.minLearningRate",
        ),
        Rule(
            cel=where_decimals(
                "double(self.mseWeight) > 0.0 || double(self.xentWeight) > 0.0",
                "self.mseWeight",
                "self.xentWeight",
            ),
            holds=lambda transfer: float(transfer.mse_weight) > 0 or float(transfer.xent_weight) > 0,
            message=(
                "mseWeight and xentWeight are both 0, which leaves no loss: raise one, or set epochs to 0 to "
                "switch transfer off"
            ),
            field="mseWeight",
        ),
    )

    epochs: int = preset_field(
        SHIPPED.transfer_epochs, "Passes over the activations; 0 switches it off.", ge=0, le=1000
    )
    learning_rate: PositiveDecimal = Field(default="1e-2", description="Learning rate of AdamW.")
    plateau: Plateau = Field(default_factory=Plateau, description="Learning-rate schedule, by layer.")
    batch_size: int = Field(default=8, description="Sequences per optimiser step.", ge=1, le=65_536)
    micro_batch_size: int = Field(
        default=1,
        description=(
            "Sequences that start at the same position, and per forward pass on a CPU. A GPU computes as "
            "much of a batch at once as fills it and fits beside the Cria."
        ),
        ge=1,
        le=65_536,
    )
    clip: Decimal = Field(
        default="1.0", description="Largest gradient norm, by layer; 0 switches clipping off."
    )
    mse_weight: Decimal = Field(
        default="1000", description="Weight of the squared error of attention outputs."
    )
    xent_weight: Decimal = Field(default="1", description="Weight of the cross-entropy of attention maps.")
    window_dropout: Share = Field(
        default="0",
        description=(
            "Probability, below 1, that an optimiser step drops the window: linear attention alone must then "
            "imitate the teacher over all keys, so that it does not leave the work to the window."
        ),
    )
    teacher_products: TeacherProducts = Field(
        default=TeacherProducts.DTYPE,
        description=(
            "What the teacher's matrix products are computed in: dtype (spec.dtype), or float8, which is "
            "faster for large models and takes a GPU of compute capability 8.9 or more, and half as much "
            "memory again for the weights. Attention, norms, boundaries and later phases stay as they are."
        ),
    )


class ProjectionName(StrEnum):
    """An attention projection that an adapter may stand on."""

    Q_PROJ = "q_proj"
    K_PROJ = "k_proj"
    V_PROJ = "v_proj"
    O_PROJ = "o_proj"


class Lora(Camel):
    """Low-rank adapters."""

    rank: int = Field(default=8, description="Rank of the adapters.", ge=1, le=1024)
    alpha: int = Field(default=16, description="Adapters are scaled by alpha / rank.", ge=1, le=65_536)
    dropout: Share = Field(default="0.05", description="Dropout on the adapters' input.")
    target_modules: Annotated[list[ProjectionName], Unique()] = Field(
        default=[ProjectionName.Q_PROJ, ProjectionName.V_PROJ],
        description="Attention projections that get an adapter.",
        min_length=1,
        max_length=4,
    )


class StitchLora(Lora):
    """Low-rank adapters of the stitch; smaller ones, on all four projections."""

    rank: int = preset_field(SHIPPED.rank, "Rank of the adapters.", ge=1, le=1024)
    alpha: int = preset_field(2 * SHIPPED.rank, "Adapters are scaled by alpha / rank.", ge=1, le=65_536)
    target_modules: Annotated[list[ProjectionName], Unique()] = Field(
        default=list(ProjectionName),
        description="Attention projections that get an adapter.",
        min_length=1,
        max_length=4,
    )


class Objective(StrEnum):
    """What LoRA by Cria matches."""

    LAYERWISE = "layerwise"
    """Each layer's hybrid output and map with adapters against the teacher's without; teacher forced."""
    BLOCK = "block"
    """The Cria's own output, hybrid outputs passed on, against the stored next boundary."""


class CriaLora(Camel):
    """LoRA by Cria: adapters on one Cria's attention projections, hybrid attention in place."""

    rules = (_MICRO_BATCH,)

    epochs: int = preset_field(
        SHIPPED.cria_lora_epochs, "Passes over the activations; 0 switches it off.", ge=0, le=1000
    )
    objective: Objective = Field(
        default=Objective.LAYERWISE,
        description=(
            "layerwise: every layer's attention against the teacher's, teacher forced. "
            "block: the Cria's output, run as at inference, against the stored next boundary."
        ),
    )
    learning_rate: PositiveDecimal = Field(default="1e-4", description="Learning rate of AdamW.")
    batch_size: int = Field(default=8, description="Sequences per optimiser step.", ge=1, le=65_536)
    micro_batch_size: int = Field(
        default=1,
        description=(
            "Sequences that start at the same position, and per forward pass on a CPU. A GPU computes as "
            "much of a batch at once as fills it and fits beside the Cria."
        ),
        ge=1,
        le=65_536,
    )
    clip: Decimal = Field(default="1.0", description="Largest gradient norm; 0 switches clipping off.")
    lora: Lora = Field(default_factory=Lora, description="The adapters.")


class LrSchedule(StrEnum):
    """How the stitch's learning rate goes; all but constant rise over the first 3% of the steps."""

    CONSTANT = "constant"
    LINEAR = "linear"
    """Falls in a line, to nothing at the end."""
    COSINE = "cosine"
    """Falls by half a cosine, to nothing at the end."""
    WSD = "wsd"
    """Stays, and falls in a line over the last 30% of the steps, to nothing at the end."""


class LongSequences(Camel):
    """Longer sequences at the end of the stitch: neighbours of the text, joined again."""

    share: Share = preset_field(
        SHIPPED.long_share,
        "Share of the stitch's training tokens, below 1, that are read as long sequences: the last ones, in "
        "whole optimiser steps. 0 switches it off.",
    )
    multiple: int = preset_field(
        LONG_MULTIPLE,
        "A long sequence is so many times data.sequenceLength: as many neighbours in the text. It has to "
        "divide stitch.batchSize, for a step keeps its number of tokens. Where the teacher has fewer "
        "positions, it is the next smaller divisor that fits.",
        ge=2,
        le=64,
    )
    recall_share: Share | None = Field(
        default=None,
        description=(
            "What stitch.recallShare is for long sequences, which are few and have room for what lies far "
            "back. By default the same, or what spec.preset says where stitch.recallShare is left out too."
        ),
    )

    @property
    def are_on(self) -> bool:
        """Whether there are any."""
        return float(self.share) > 0


_LONG_MULTIPLE = f"(has(self.longSequences.multiple) ? self.longSequences.multiple : {LONG_MULTIPLE})"
"""In CEL."""


class Stitch(Camel):
    """Stitching: end-to-end LoRA over the whole model with the language-modelling loss."""

    rules = (
        _MICRO_BATCH,
        Rule(
            cel="!has(self.longSequences.share) || "
            + where_decimals(
                f"double(self.longSequences.share) == 0.0 || {_LONG_MULTIPLE} < 1 || "
                f"self.batchSize % {_LONG_MULTIPLE} == 0",
                "self.longSequences.share",
            ),
            holds=lambda stitch: (
                not stitch.long_sequences.are_on or stitch.batch_size % stitch.long_sequences.multiple == 0
            ),
            message=(
                "longSequences.multiple does not divide batchSize, so that a step of long sequences would "
                "have fewer tokens: set it to a divisor, or change batchSize"
            ),
            field="longSequences.multiple",
        ),
    )

    nodes: int = Field(default=1, description="Pods of the gang.", ge=1, le=1000)
    gpus_per_node: int = Field(default=1, description="GPUs of each pod; 0 runs on CPUs.", ge=0, le=64)
    epochs: int = preset_field(
        SHIPPED.stitch_epochs, "Passes over the text; 0 switches it off.", ge=0, le=1000
    )
    learning_rate: PositiveDecimal = preset_field(SHIPPED.learning_rate, "Learning rate of AdamW.")
    lr_schedule: LrSchedule = preset_field(
        SHIPPED.lr_schedule,
        "How the learning rate goes: constant; or, behind a warm-up of 3% of the steps, linear or cosine "
        "down to 0, or wsd (warm-up, stable, decay), which falls over the last 30%.",
    )
    batch_size: int = Field(
        default=STITCH_BATCH, description="Sequences per optimiser step, over all ranks.", ge=1, le=65_536
    )
    micro_batch_size: int = Field(
        default=1, description="Sequences per rank and forward pass.", ge=1, le=65_536
    )
    clip: Decimal = Field(default="1.0", description="Largest gradient norm; 0 switches clipping off.")
    lora: StitchLora = Field(default_factory=StitchLora, description="The adapters.")
    recall_share: Share = preset_field(
        SHIPPED.recall_share,
        "Share of the sequences, below 1, that carry synthetic recall: in place of some of their text, facts "
        "that are told and asked again, and random tokens that are shown twice, up to 0.9 of the sequence "
        "apart. 0 switches it off.",
    )
    long_sequences: LongSequences = Field(
        default_factory=LongSequences,
        description=(
            "Longer sequences for the last part of the training tokens, so that the student learns to use "
            "what lies further back. microBatchSize shrinks with them, to 1 at least."
        ),
    )

    @property
    def long_recall_share(self) -> str:
        """What `recall_share` is for long sequences."""
        own = self.long_sequences.recall_share
        return self.recall_share if own is None else own

    @property
    def has_recall(self) -> bool:
        """Whether any sequence carries synthetic recall."""
        return float(self.recall_share) > 0 or (
            self.long_sequences.are_on and float(self.long_recall_share) > 0
        )

    def long_multiple(self, sequence_length: int, positions: int) -> int:
        """Stored sequences in a long one, by a teacher of so many positions; 1 where none is long.

        It is longSequences.multiple, or where that reaches too far the next smaller divisor of batchSize.
        """
        if not self.long_sequences.are_on:
            return 1
        fits = range(min(self.long_sequences.multiple, positions // sequence_length), 1, -1)
        return next((multiple for multiple in fits if self.batch_size % multiple == 0), 1)

    @property
    def long_micro_batch_size(self) -> int:
        """Long sequences of a forward pass: no more tokens than otherwise, if one of them allows that."""
        return max(1, self.micro_batch_size // self.long_sequences.multiple)

    @property
    def largest_micro_batch(self) -> int:
        """The most that one forward pass takes, in sequences of data.sequenceLength."""
        if not self.long_sequences.are_on:
            return self.micro_batch_size
        return max(self.micro_batch_size, self.long_micro_batch_size * self.long_sequences.multiple)
