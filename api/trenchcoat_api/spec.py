"""The spec of a Trenchcoat, field for field as users write it in YAML.

The descriptions become the custom resource's own documentation (`kubectl explain trenchcoat.spec`).
There are no floats: the Kubernetes API convention is a decimal in a string.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from trenchcoat_api.base import Camel
from trenchcoat_api.pods import PodOverrides
from trenchcoat_api.presets import PRESETS, SHIPPED, Preset, preset_field, with_preset
from trenchcoat_api.rules import Rule, Unique
from trenchcoat_api.strings import (
    Bucket,
    DataSource,
    Decimal,
    Endpoint,
    ExtendedResource,
    Label,
    ModelSource,
    Name,
    PositiveDecimal,
    Prefix,
    Region,
    SecretKey,
    Share,
    where_decimals,
)

_MICRO_BATCH = Rule(
    cel="self.microBatchSize < 1 || self.batchSize % self.microBatchSize == 0",
    holds=lambda phase: phase.batch_size % phase.micro_batch_size == 0,
    message="microBatchSize does not divide batchSize: set it to a divisor, or change batchSize",
    field="microBatchSize",
)


class SecretRef(Camel):
    """A Secret in the Trenchcoat's own namespace."""

    name: Name = Field(description="Name of the Secret.")


class SecretKeyRef(SecretRef):
    """One key of a Secret in the Trenchcoat's own namespace."""

    key: SecretKey = Field(description="Key within the Secret.")


class Model(Camel):
    """The teacher."""

    rules = (
        Rule(
            cel="!has(self.tokenSecretRef) || self.source.startsWith('hf://')",
            holds=lambda model: model.token_secret_ref is None or model.source.startswith("hf://"),
            message="tokenSecretRef is for hf:// sources alone: remove it, or name such a source",
            field="tokenSecretRef",
        ),
        Rule(
            cel="self.revision == 'main' || self.source.startsWith('hf://')",
            holds=lambda model: model.revision == "main" or model.source.startswith("hf://"),
            message="revision is for hf:// sources alone: remove it, or name such a source",
            field="revision",
        ),
    )

    source: ModelSource = Field(
        description=(
            "The teacher's checkpoint in Hugging Face's layout (config.json, *.safetensors, tokenizer): "
            "hf://OWNER/NAME, s3://BUCKET/PREFIX in the store of spec.store, or file:///FOLDER."
        ),
    )
    revision: str = Field(
        default="main", description="Branch, tag or commit of an hf:// source.", min_length=1, max_length=200
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Hugging Face token for a gated hf:// source."
    )


def _hub_only(name: str, unused: str | None, cel: str) -> Rule:
    """A field of the data that only a source on the hub has a use for."""
    field = to_camel(name)
    return Rule(
        cel=f"{cel} || self.source.startsWith('hf://')",
        holds=lambda data: getattr(data, name) == unused or data.source.startswith("hf://"),
        message=f"{field} is for hf:// sources alone: remove it, or name such a source",
        field=field,
    )


class Data(Camel):
    """The text that activations are collected on and adapters are trained on."""

    rules = (
        _hub_only("config", None, "!has(self.config)"),
        _hub_only("split", "train", "self.split == 'train'"),
        _hub_only("revision", "main", "self.revision == 'main'"),
        _hub_only("token_secret_ref", None, "!has(self.tokenSecretRef)"),
    )

    source: DataSource = Field(
        description=(
            "The text: s3://BUCKET/GLOB in the store of spec.store or file:///GLOB, files ending in "
            ".parquet, or in .jsonl (.ndjson, .json) or .txt, plain or compressed with .gz or .zst; or "
            "hf://datasets/OWNER/NAME, a data set of the Hugging Face hub."
        ),
    )
    config: str | None = Field(
        default=None,
        description="Configuration of an hf:// data set, where it has several.",
        min_length=1,
        max_length=200,
    )
    split: str = Field(
        default="train", description="Split of an hf:// data set.", min_length=1, max_length=200
    )
    revision: str = Field(
        default="main",
        description="Branch, tag or commit of an hf:// data set.",
        min_length=1,
        max_length=200,
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="Hugging Face token for a gated hf:// data set; by default that of spec.model.",
    )
    text_field: str = Field(
        default="text",
        description="The field of a record, or column of a table, that holds the text.",
        min_length=1,
        max_length=100,
    )
    tokens: int = preset_field(
        SHIPPED.tokens,
        "Training tokens to use, at most; the text may hold fewer.",
        ge=1,
        le=1_000_000_000_000,
    )
    sequence_length: int = Field(default=1024, description="Tokens per sequence.", ge=16, le=131_072)
    held_out_tokens: int = Field(
        default=500_000,
        description="Tokens of held-out documents, at most, that perplexity is measured on.",
        ge=1,
        le=1_000_000_000,
    )
    held_out_percent: int = Field(
        default=2, description="Share of documents held out, chosen by the hash of their text.", ge=1, le=50
    )


class Store(Camel):
    """The S3 store that holds activations, shards, checkpoints and results."""

    rules = tuple(
        Rule(
            cel=f"self.{field} == oldSelf.{field}",
            holds=None,
            message=f"{field} cannot change, for the artifacts would be lost: make a new Trenchcoat",
            field=field,
        )
        for field in ("endpoint", "bucket", "prefix")
    )

    endpoint: Endpoint = Field(description="URL of the S3 endpoint, such as https://minio.example:9000.")
    bucket: Bucket = Field(description="An existing bucket.")
    prefix: Prefix = Field(
        default="trenchcoat", description="Everything Trenchcoat writes stands below this prefix."
    )
    region: Region = Field(default="us-east-1", description="Region of the bucket.")
    credentials_secret_ref: SecretRef = Field(
        description="Secret with the keys accessKey and secretKey, in the Trenchcoat's namespace."
    )


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


class Plateau(Camel):
    """Learning-rate schedule by layer: cut when a layer's loss stops falling."""

    factor: Share = Field(default="0.1", description="The rate is multiplied by this at a cut.")
    patience: int = Field(
        default=10, description="Checks without improvement before a cut.", ge=0, le=100_000
    )
    every: int = Field(default=16, description="Optimiser steps between checks.", ge=1, le=100_000)
    min_learning_rate: PositiveDecimal = Field(default="1e-5", description="The rate never falls below this.")


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
    micro_batch_size: int = Field(default=1, description="Sequences per forward pass.", ge=1, le=65_536)
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

    rank: int = Field(default=4, description="Rank of the adapters.", ge=1, le=1024)
    alpha: int = Field(default=8, description="Adapters are scaled by alpha / rank.", ge=1, le=65_536)
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
    micro_batch_size: int = Field(default=1, description="Sequences per forward pass.", ge=1, le=65_536)
    clip: Decimal = Field(default="1.0", description="Largest gradient norm; 0 switches clipping off.")
    lora: Lora = Field(default_factory=Lora, description="The adapters.")


class Collect(Camel):
    """Collection: the teacher runs once, its hidden states at Cria boundaries are stored."""

    nodes: int = Field(default=1, description="Pods of the PyTorchJob.", ge=1, le=1000)
    gpus_per_node: int = Field(default=1, description="GPUs of each pod; 0 runs on CPUs.", ge=0, le=64)
    batch_size: int = Field(default=1, description="Sequences per forward pass.", ge=1, le=65_536)


class Stitch(Camel):
    """Stitching: end-to-end LoRA over the whole model with the language-modelling loss."""

    rules = (_MICRO_BATCH,)

    nodes: int = Field(default=1, description="Pods of the PyTorchJob.", ge=1, le=1000)
    gpus_per_node: int = Field(default=1, description="GPUs of each pod; 0 runs on CPUs.", ge=0, le=64)
    epochs: int = preset_field(
        SHIPPED.stitch_epochs, "Passes over the text; 0 switches it off.", ge=0, le=1000
    )
    learning_rate: PositiveDecimal = Field(default="1e-4", description="Learning rate of AdamW.")
    batch_size: int = Field(
        default=8, description="Sequences per optimiser step, over all ranks.", ge=1, le=65_536
    )
    micro_batch_size: int = Field(
        default=1, description="Sequences per rank and forward pass.", ge=1, le=65_536
    )
    clip: Decimal = Field(default="1.0", description="Largest gradient norm; 0 switches clipping off.")
    lora: StitchLora = Field(default_factory=StitchLora, description="The adapters.")


class Evaluate(Camel):
    """Evaluation on held-out text: the teacher and the student after every stage, by one code."""

    enabled: bool = Field(default=True, description="Whether to evaluate.")
    batch_size: int = Field(default=4, description="Sequences per forward pass.", ge=1, le=65_536)


class Export(Camel):
    """Export: a Hugging Face checkpoint that anyone can load."""

    enabled: bool = Field(default=True, description="Whether to export.")
    max_shard_bytes: int = Field(
        default=5_000_000_000, description="Largest safetensors file.", ge=1_000_000, le=1_000_000_000_000
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


class Scheduling(Camel):
    """How the Jobs share the cluster with other tenants."""

    rules = (
        Rule(
            cel="!has(self.workloadPriorityClassName) || has(self.queueName)",
            holds=lambda scheduling: not scheduling.workload_priority_class_name or scheduling.queue_name,
            message="workloadPriorityClassName is Kueue's: set queueName, or use priorityClassName",
            field="workloadPriorityClassName",
        ),
    )

    max_parallel_crias: int = Field(
        default=1000, description="Cria Jobs at one time, at most.", ge=1, le=1000
    )
    gpu_resource: ExtendedResource = Field(
        default="nvidia.com/gpu", description="Name of the extended resource that counts GPUs."
    )
    queue_name: Label | None = Field(
        default=None,
        description="Kueue LocalQueue in the Trenchcoat's namespace; Kueue then decides when Jobs start.",
    )
    workload_priority_class_name: Label | None = Field(
        default=None,
        description=(
            "Kueue WorkloadPriorityClass: the order in the queue, and who gives way; pods' priority is not "
            "changed by it."
        ),
    )
    priority_class_name: Name | None = Field(
        default=None,
        description="PriorityClass of all pods; Kueue's too, unless workloadPriorityClassName is set.",
    )
    max_attempts: int = Field(
        default=3,
        description="Tries of a stage before it counts as failed; preemptions are free.",
        ge=1,
        le=100,
    )


class Retention(StrEnum):
    """What becomes of artifacts that this Trenchcoat made or used; those that others use are always kept."""

    KEEP = "Keep"
    """All stay in the store."""
    DELETE_INTERMEDIATE = "DeleteIntermediate"
    """Activations go once all Crias are trained, shards once all stages are complete."""
    DELETE = "Delete"
    """All go when the Trenchcoat is deleted."""


class StagePods(Camel):
    """Pod settings by stage."""

    tokenize: PodOverrides = Field(default_factory=PodOverrides, description="The tokenization Job.")
    collect: PodOverrides = Field(default_factory=PodOverrides, description="The collection PyTorchJob.")
    shard: PodOverrides = Field(default_factory=PodOverrides, description="The sharding Job.")
    cria: PodOverrides = Field(default_factory=PodOverrides, description="Each Cria Job.")
    stitch: PodOverrides = Field(default_factory=PodOverrides, description="The stitching PyTorchJob.")
    evaluate: PodOverrides = Field(default_factory=PodOverrides, description="The evaluation Job.")
    export: PodOverrides = Field(default_factory=PodOverrides, description="The export Job.")


_SEQUENCE = Data.model_fields["sequence_length"].default
_WINDOW = Attention.model_fields["window"].default


class TrenchcoatSpec(Camel):
    """What to linearize, with what, and where the results go; defaults are the published settings."""

    rules = (
        Rule(
            cel="!has(self.data.tokens) || self.data.tokens >= self.data.sequenceLength",
            holds=lambda spec: spec.data.tokens >= spec.data.sequence_length,
            message=(
                f"data.tokens is less than data.sequenceLength ({_SEQUENCE} unless set), so that no sequence "
                "would be full: raise data.tokens, or lower data.sequenceLength"
            ),
            field="data.tokens",
        ),
        Rule(
            cel="!self.evaluate.enabled || self.data.heldOutTokens >= self.data.sequenceLength",
            holds=lambda spec: (
                not spec.evaluate.enabled or spec.data.held_out_tokens >= spec.data.sequence_length
            ),
            message=(
                f"data.heldOutTokens is less than data.sequenceLength ({_SEQUENCE} unless set), so that "
                "there would be nothing to evaluate on: raise it, or set evaluate.enabled to false"
            ),
            field="data.heldOutTokens",
        ),
        Rule(
            cel="self.data.sequenceLength > self.attention.window",
            holds=lambda spec: spec.data.sequence_length > spec.attention.window,
            message=(
                f"attention.window ({_WINDOW} unless set) covers the whole data.sequenceLength ({_SEQUENCE} "
                "unless set), so that linear attention would see nothing: lower attention.window, or raise "
                "data.sequenceLength"
            ),
            field="attention.window",
        ),
        Rule(
            cel="self.criaLora.objective != 'layerwise' || !('o_proj' in self.criaLora.lora.targetModules)",
            holds=lambda spec: (
                spec.cria_lora.objective is not Objective.LAYERWISE
                or ProjectionName.O_PROJ not in spec.cria_lora.lora.target_modules
            ),
            message=(
                "criaLora.lora.targetModules has o_proj, which the objective layerwise cannot train (it "
                "compares attention before o_proj): remove it, or set criaLora.objective to block"
            ),
            field="criaLora.lora.targetModules",
        ),
    )

    model: Model = Field(description="The teacher.")
    data: Data = Field(description="The text.")
    preset: Preset = Field(
        default=Preset.SHIPPED,
        description=(
            "Values of data.tokens, transfer.epochs, criaLora.epochs and stitch.epochs where they are not "
            + "set. "
            + " ".join(f"{name.value}: {values.describe()}." for name, values in PRESETS.items())
        ),
    )
    store: Store = Field(description="The S3 store that holds all artifacts.")
    layers_per_cria: int = Field(
        default=9, description="Consecutive decoder layers per Cria.", ge=1, le=10_000
    )
    dtype: DType = Field(default=DType.BFLOAT16, description="Number format of weights and activations.")
    seed: int = Field(
        default=0, description="Seed of initial values and of the order of data.", ge=0, le=2**31 - 1
    )
    attention: Attention = Field(default_factory=Attention, description="The student's hybrid attention.")
    collect: Collect = Field(default_factory=Collect, description="Multi-node collection of activations.")
    transfer: Transfer = Field(default_factory=Transfer, description="Attention transfer, by Cria.")
    cria_lora: CriaLora = Field(default_factory=CriaLora, description="LoRA by Cria.")
    stitch: Stitch = Field(default_factory=Stitch, description="End-to-end LoRA on several nodes.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="Perplexity on held-out text.")
    export: Export = Field(default_factory=Export, description="The Hugging Face checkpoint.")
    gates: Gates = Field(default_factory=Gates, description="Bounds of quality that a run must keep to.")
    scheduling: Scheduling = Field(default_factory=Scheduling, description="How the Jobs share the cluster.")
    pods: StagePods = Field(default_factory=StagePods, description="Pod settings by stage.")
    retention: Retention = Field(
        default=Retention.KEEP,
        description=(
            "Keep leaves all artifacts in the store. DeleteIntermediate deletes activations once all Crias "
            "are trained, and shards once all stages are complete. Delete deletes all artifacts when the "
            "Trenchcoat is deleted. Both hold for artifacts of former specs, too. What another Trenchcoat "
            "uses is kept."
        ),
    )
    suspend: bool = Field(default=False, description="Stops all Jobs after a checkpoint; false resumes.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, fields: Any) -> Any:
        return with_preset(fields) if isinstance(fields, dict) else fields
