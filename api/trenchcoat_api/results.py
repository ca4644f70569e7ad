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
    ASSOCIATION = "association"
    """Pairs of random tokens that come again in another order: the share of the second ones foretold."""
    INDUCTION = "induction"
    """Single tokens of the text that come again: the share of what followed them that is foretold."""


class Perplexity(Camel):
    """Perplexity of one form of the model on the held-out text."""

    name: str = Field(
        description=("teacher, adaptedTeacher, windowedTeacher, untrained, transfer, criaLora or stitched.")
    )
    perplexity: str = Field(
        description="exp of the mean negative log-likelihood of a token, in sequences of data.sequenceLength."
    )
    error: str | None = Field(default=None, description="Its standard error.")
    longer: dict[str, str] = Field(
        default_factory=dict, description="The same in longer sequences, by their length in tokens."
    )
    other: str | None = Field(default=None, description="Perplexity on spec.evaluate.otherText.")
    other_error: str | None = Field(default=None, description="Its standard error.")


class Recall(Camel):
    """How much of what stood some tokens before the forms of the model give back."""

    probe: str = Field(description="copy, association, induction or passkey.")
    distance: int = Field(description="Tokens between the telling and the asking.", ge=1)
    samples: int = Field(description="Samples measured.", ge=1)
    shares: dict[str, str] = Field(description="Share given back, from 0 to 1, by the form's name.")
    errors: dict[str, str] = Field(
        default_factory=dict,
        description="Standard errors of the shares, with two right and two wrong samples added.",
    )


class Comparison(Camel):
    """The student beside a teacher on the same held-out sequences of data.sequenceLength."""

    teacher: str = Field(description="teacher or adaptedTeacher.")
    ratio: str = Field(description="The student's perplexity over the teacher's.")
    ratio_error: str | None = Field(default=None, description="Its standard error.")
    continuations: int = Field(
        description="Second halves of sequences, given the first, that are compared.", ge=1
    )
    wins: str = Field(
        description="Share of them to which the student gives a likelihood higher by more than 1% a token."
    )
    ties: str = Field(description="Share of them that are closer.")
    error: str = Field(description="Standard error of wins and ties together.")


class PositionRange(Camel):
    """Perplexity of the tokens at some positions of the longest sequences that were measured."""

    first: int = Field(description="First position.", ge=0)
    last: int = Field(description="Last position.", ge=0)
    perplexities: dict[str, str] = Field(description="Perplexity there, by the form's name.")


class TaskResult(Camel):
    """What forms of the model reached in a task of lm-evaluation-harness."""

    task: str = Field(description="Name of the task.")
    metric: str = Field(description="Name of the metric, and of its filter where that is not none.")
    samples: int = Field(description="Samples measured.", ge=0)
    hub_dataset: str | None = Field(
        default=None,
        description="The benchmark's data set on the Hugging Face hub, where the task names one.",
    )
    hub_task: str | None = Field(default=None, description="The benchmark's task there.")
    values: dict[str, str] = Field(description="Value by the form's name.")
    errors: dict[str, str] = Field(
        default_factory=dict, description="Standard errors, where the task has them."
    )


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
    comparisons: list[Comparison] = Field(
        default_factory=list,
        description="The student beside each teacher.",
        max_length=2,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["teacher"]},
    )
    positions: list[PositionRange] = Field(
        default_factory=list, description="Perplexity by position, in order.", max_length=64
    )
    parts: dict[str, str] = Field(
        default_factory=dict,
        description="Perplexity of the student with a part of its attention taken away, by the part.",
    )
    tasks: list[TaskResult] = Field(
        default_factory=list,
        description="Results of spec.evaluate.tasks.",
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["task", "metric"]},
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
