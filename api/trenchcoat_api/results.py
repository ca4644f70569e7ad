"""What the evaluate stage measures: kept in its manifest, told in the status, shown at the end of a run.

Numbers are strings, for the Kubernetes API has no floats. Lengths and distances are counted in tokens.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from trenchcoat_api.base import Camel


class ModelForm(StrEnum):
    """The forms of the model that are compared, in the order of their telling."""

    TEACHER = "teacher"
    ADAPTED_TEACHER = "adaptedTeacher"
    """The teacher with the stitch's adapters, trained on the same tokens: what the student is held to."""
    WINDOWED_TEACHER = "windowedTeacher"
    """The teacher cut to a sliding window and the first token, untrained, at the student's bytes of state."""
    UNTRAINED = "untrained"
    TRANSFER = "transfer"
    CRIA_LORA = "criaLora"
    STITCHED = "stitched"


class Probe(StrEnum):
    """What is asked back of text that lies some tokens before."""

    COPY = "copy"
    """Random tokens that are shown twice: the share of the second showing that the model foretells."""
    PASSKEY = "passkey"
    """A number of five digits that is told in a sentence: the share of samples that give all of it."""


class Perplexity(Camel):
    """Perplexity of one form of the model on the held-out text."""

    name: str = Field(
        description=("teacher, adaptedTeacher, windowedTeacher, untrained, transfer, criaLora or stitched.")
    )
    perplexity: str = Field(
        description="exp of the mean negative log-likelihood of a token, in sequences of data.sequenceLength."
    )
    longer: dict[str, str] = Field(
        default_factory=dict, description="The same in longer sequences, by their length in tokens."
    )


class Recall(Camel):
    """How much of what stood some tokens before the forms of the model give back."""

    probe: str = Field(description="copy or passkey.")
    distance: int = Field(description="Tokens between the telling and the asking.", ge=1)
    samples: int = Field(description="Samples measured.", ge=1)
    shares: dict[str, str] = Field(description="Share given back, from 0 to 1, by the form's name.")


class DecodeFacts(Camel):
    """Bytes that decoding one sequence holds, over all layers."""

    crossover: int = Field(
        description="Tokens from which on the student holds less than the teacher's cache; 0: never."
    )
    student: dict[str, int] = Field(
        default_factory=dict, description="The student's bytes, at most, by the sequence's length."
    )
    teacher: dict[str, int] = Field(
        default_factory=dict, description="Bytes of the teacher's key/value cache, by the sequence's length."
    )
    equal_window: int = Field(
        description="Tokens of the sliding window that holds the same bytes in the student's layers."
    )


class Evaluation(Camel):
    """What the evaluate stage measured besides perplexity, and what it could not measure."""

    sequence_length: int = Field(description="data.sequenceLength, at which `perplexity` is measured.")
    recall: list[Recall] = Field(
        default_factory=list,
        description="Recall by distance, by the same code for every form.",
        max_length=64,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["probe", "distance"],
        },
    )
    decode: DecodeFacts | None = Field(default=None, description="Bytes that decoding holds.")
    left_out: list[str] = Field(
        default_factory=list, description="What was not measured, and why.", max_length=64
    )


class Measured(NamedTuple):
    """All that one evaluation measured."""

    perplexities: Sequence[Perplexity]
    evaluation: Evaluation | None
    """None from an evaluation by an earlier version."""
