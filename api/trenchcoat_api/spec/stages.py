"""The stages that train nothing, and the bounds of quality between stages."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field
from pydantic.alias_generators import to_camel

from trenchcoat_api.base import Camel
from trenchcoat_api.rules import Rule, Unique
from trenchcoat_api.spec.sources import SecretKeyRef
from trenchcoat_api.strings import FileSource, HubRepository, PositiveDecimal, Share, TaskName


class CollectStrategy(StrEnum):
    """Who computes the teacher's hidden states at Cria boundaries."""

    DISTRIBUTED = "Distributed"
    """A gang that holds all layers up to the last boundary: every boundary before any Cria."""
    ROLLING = "Rolling"
    """Each Cria's own Job, for the next: its attention transfer runs the teacher's layers anyway."""


class Collect(Camel):
    """Collection: the teacher runs once, its hidden states at Cria boundaries are stored."""

    strategy: CollectStrategy = Field(
        default=CollectStrategy.DISTRIBUTED,
        description=(
            "Distributed: a gang of spec.collect.nodes runs the whole teacher before any Cria trains. "
            "Rolling: each Cria's Job leaves the next Cria's inputs in its first pass of attention "
            "transfer, so that no GPU ever holds more than a Cria; a boundary is deleted once no Cria needs "
            "it, whatever spec.retention says, and the fields below say nothing. What comes out is the same."
        ),
    )
    nodes: int = Field(default=1, description="Pods of the gang.", ge=1, le=1000)
    gpus_per_node: int = Field(default=1, description="GPUs of each pod; 0 runs on CPUs.", ge=0, le=64)
    batch_size: int | None = Field(
        default=None,
        description=(
            "Sequences per forward pass, at most those of a stored object. By default a GPU computes as many "
            "at once as fill it, about 8192 tokens, and a CPU one."
        ),
        ge=1,
        le=65_536,
    )


class AdaptedTeacher(StrEnum):
    """When the teacher is trained with the same adapters on the same tokens, to compare the student with."""

    AUTO = "auto"
    """Where the stitch runs on one node."""
    ALWAYS = "always"
    NEVER = "never"


class OtherText(Camel):
    """Text of another kind than the training text: what a student that is adapted to one text has lost."""

    source: FileSource = Field(
        description=(
            "The text: s3://BUCKET/GLOB in the store of spec.store or file:///GLOB, of files as "
            "spec.data.source takes them. Documents are read in order of path."
        ),
    )
    text_field: str = Field(
        default="text",
        description="The field of a record, or column of a table, that holds the text.",
        min_length=1,
        max_length=100,
    )
    tokens: int = Field(
        default=200_000,
        description="Tokens to measure perplexity on, at most, in sequences of data.sequenceLength.",
        ge=1,
        le=1_000_000_000,
    )


class Tasks(Camel):
    """Tasks of lm-evaluation-harness, from files: teacher and student as whole models, by the same code.

    Nothing is downloaded, and no Python code of the files is run. The trainer's image needs the harness,
    which trainer/tasks.Dockerfile adds to it.
    """

    source: FileSource = Field(
        description=(
            "Folder of the tasks' YAML files and of the JSON, CSV, Parquet or text files that they name: "
            "s3://BUCKET/FOLDER in the store of spec.store or file:///FOLDER."
        ),
    )
    names: Annotated[list[TaskName], Unique()] = Field(
        description="Tasks or groups to run, as the YAML files name them.", min_length=1, max_length=32
    )
    few_shot: int | None = Field(
        default=None, description="Examples before each question; by default what the task says.", ge=0, le=64
    )
    limit: int | None = Field(
        default=None, description="Questions of each task, at most; all by default.", ge=1, le=1_000_000
    )


class Evaluate(Camel):
    """Evaluation on held-out text: the teacher and the student after every stage, by one code."""

    enabled: bool = Field(default=True, description="Whether to evaluate.")
    nodes: int = Field(
        default=1,
        description="Pods; several are a gang, which shares the sequences out. No number changes.",
        ge=1,
        le=100,  # or names of pods could be longer than 63 characters
    )
    gpus_per_node: int = Field(default=1, description="GPUs of each pod; 0 runs on CPUs.", ge=0, le=64)
    batch_size: int = Field(
        default=4,
        description=(
            "Sequences of data.sequenceLength per forward pass; of longer ones as many fewer. In tasks, "
            "questions at a time."
        ),
        ge=1,
        le=65_536,
    )
    length_multiples: Annotated[list[Annotated[int, Field(ge=2, le=1024)]], Unique()] = Field(
        default=[2, 4],
        description=(
            "Perplexity is measured in sequences of data.sequenceLength, and in sequences that are longer by "
            "these factors, as far as the held-out text and the teacher's positions reach."
        ),
        max_length=8,
    )
    recall_samples: int = Field(
        default=32,
        description=(
            "Samples for each distance of the tests of recall: a passage to copy, pairs to associate, what "
            "followed a token, and a number to remember; 0 leaves all out."
        ),
        ge=0,
        le=65_536,
    )
    samples: int = Field(
        default=3,
        description=(
            "Beginnings of held-out text that the teacher and the student go on with, which the report shows "
            "side by side; 0: none. They take the whole model, and so are left out where that is large."
        ),
        ge=0,
        le=8,
    )
    other_text: OtherText | None = Field(
        default=None,
        description="A second held-out text, of a kind that training never saw; none by default.",
    )
    tasks: Tasks | None = Field(
        default=None, description="Tasks of lm-evaluation-harness to run as well; none by default."
    )
    adapted_teacher: AdaptedTeacher = Field(
        default=AdaptedTeacher.AUTO,
        description=(
            "Whether the teacher is trained as well, with the stitch's adapters and settings, as long as the "
            "student's adapters are: what those gain of the text's domain alone is then told apart. It costs "
            "as much as a stitch of criaLora.epochs + stitch.epochs. auto: where the stitch runs on one node."
        ),
    )


class ExportForm(StrEnum):
    """What an export holds of the weights."""

    MERGED = "merged"
    """Every weight, adapters merged in."""
    DELTA = "delta"
    """The teacher's own files, byte for byte, and a file of what takes their place."""
    ADAPTERS = "adapters"
    """What was trained, and nothing of the teacher."""


def _for_destination(name: str, unused: object, cel: str) -> Rule:
    """A field of the export that only a destination has a use for."""
    field = to_camel(name)
    return Rule(
        cel=f"{cel} || has(self.destination)",
        holds=lambda export: getattr(export, name) == unused or export.destination is not None,
        message=f"{field} is of no use without destination: remove it, or name one",
        field=field,
    )


class Export(Camel):
    """Export: a Hugging Face checkpoint that anyone can load."""

    rules = (
        _for_destination("private", True, "self.private"),
        _for_destination("token_secret_ref", None, "!has(self.tokenSecretRef)"),
    )

    enabled: bool = Field(default=True, description="Whether to export.")
    form: ExportForm = Field(
        default=ExportForm.MERGED,
        description=(
            "merged: every weight, adapters merged in. delta: the teacher's own files, byte for byte, and "
            "one of what takes their place; transformers loads it like the former. adapters: what was "
            "trained alone, a small file that the exported code puts onto the teacher."
        ),
    )
    max_shard_bytes: int = Field(
        default=5_000_000_000, description="Largest safetensors file.", ge=1_000_000, le=1_000_000_000_000
    )
    destination: HubRepository | None = Field(
        default=None,
        description=(
            "Repository of the Hugging Face hub that the export is also uploaded to, hf://OWNER/NAME; it is "
            "made where it is missing. Its other safetensors files are deleted by the same commit."
        ),
    )
    private: bool = Field(default=True, description="Whether a repository that has to be made is private.")
    token_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="Hugging Face token that may write to destination; by default that of spec.model.",
    )


class Gates(Camel):
    """Bounds of quality; they decide whether a run goes on, never what it computes."""

    max_cria_error: PositiveDecimal | None = Field(
        default=None,
        description=(
            "Stitching waits while a layer of any Cria errs by more: the norm of the difference of the "
            "student's and the teacher's attention outputs after attention transfer, divided by the norm of "
            "the teacher's, such as 0.3. Raise it, or set the annotation trenchcoat.dev/override-gate to "
            '"true", to go on all the same.'
        ),
    )
    max_loss_growth: PositiveDecimal = Field(
        default="100",
        description=(
            "A Cria counts as diverged, and stops, when a layer's loss is more than this times its first."
        ),
    )
    max_perplexity_ratio: PositiveDecimal | None = Field(
        default=None,
        description=(
            "The export waits for the evaluation, and is held while the student's perplexity at "
            "data.sequenceLength is more than this times the teacher's (the adapted teacher's where it was "
            "measured), such as 1.15. maxLengthRatio and minRecall hold it likewise; the annotation "
            'trenchcoat.dev/override-gate "true" lets it go on all the same.'
        ),
    )
    max_length_ratio: PositiveDecimal | None = Field(
        default=None,
        description=(
            "The export is held while the student's perplexity in the longest sequences that were measured "
            "is more than this times that at data.sequenceLength, such as 1.05."
        ),
    )
    min_recall: Share | None = Field(
        default=None,
        description=(
            "The export is held while the student copies less than this share of what the teacher copies, at "
            "the longest distance at which the teacher copies anything, such as 0.5."
        ),
    )
