"""Artifacts: what a stage leaves in the store, where it stands, and when it is complete.

An artifact is a folder of objects below one content key. The key is the hash of the spec fields that the
stage depends on, the version of the stage's code and the keys of its inputs: equal keys mean equal results,
so nothing is computed twice, not even across Trenchcoats. The manifest is written last; an artifact is
complete when, and only when, its manifest is there.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from trenchcoat_api.base import Camel
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.keys import (
    adapt_fields,
    boundary_key,
    content_key,
    dump_fields,
    form_fields,
    stitch_fields,
    training_fields,
)
from trenchcoat_api.layer_kinds import chooses_layers
from trenchcoat_api.phases import adapts_teacher, reads_boundaries, rolls
from trenchcoat_api.recall import RecallFacts
from trenchcoat_api.results import Evaluation, Perplexity
from trenchcoat_api.selection import Selection, cut_first_tokens
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.stored import ObjectList, StoreChecksum

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
DELETION = "deleted.json"
CHECKPOINT = "checkpoint/"
ALL_OBJECTS = "*"
"""Path of the one object that stands for all in a folded manifest; no object of a store has it."""
LISTS = "manifest/"
LIST_OBJECTS = 1024
"""Objects in a list. Collection at 405B leaves 250,000; a Cria needs some of them, the operator none."""


class StoredObject(Camel):
    """One object of an artifact, with one of two checksums of its content."""

    path: str = Field(description="Key of the object, relative to the artifact's folder.")
    size: int = Field(description="Bytes.", ge=0)
    sha256: str | None = Field(default=None, description="Of the content in hex, taken as it was written.")
    by_store: StoreChecksum | None = Field(default=None, description="In place of sha256.")

    @property
    def checksum(self) -> str:
        """Whichever of the two it has, in hex."""
        return self.sha256 or (self.by_store.etag if self.by_store is not None else "")

    @model_validator(mode="after")
    def _has_one_checksum(self) -> Self:
        if (self.sha256 is None) == (self.by_store is None):
            raise ValueError("an object has either sha256 or byStore")
        if self.by_store is not None and sum(self.by_store.part_sizes) != self.size:
            raise ValueError("partSizes do not add up to size")
        return self


class ModelFacts(Camel):
    """What the tokenize stage read in the teacher's config.json."""

    layers: int = Field(description="Decoder layers.")
    hidden_size: int = Field(description="Width of the residual stream.")
    heads: int = Field(description="Query heads.")
    kv_heads: int = Field(description="Key/value heads.")
    head_dim: int = Field(description="Width of one head.")
    intermediate_size: int = Field(description="Width of the MLP.")
    vocab_size: int = Field(description="Rows of the embedding.")
    parameters: int = Field(description="Parameters in all.")


class DataFacts(Camel):
    """What the tokenize stage made of the text."""

    documents: int = Field(description="Training documents read.")
    sequences: int = Field(description="Training sequences.")
    tokens: int = Field(description="Training tokens: sequences times their length.")
    held_out_documents: int = Field(description="Held-out documents read.")
    held_out_sequences: int = Field(description="Held-out sequences.")


class Facts(Camel):
    """What later stages, the operator and people want to know of an artifact without opening it."""

    model: ModelFacts | None = Field(default=None, description="Of the teacher; tokenize alone.")
    data: DataFacts | None = Field(default=None, description="Of the text; tokenize alone.")
    losses: dict[str, str] = Field(default_factory=dict, description="Final losses by name.")
    curve: list[str] = Field(default_factory=list, description="At most 32 losses over the stage's steps.")
    layer_errors: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "By number of decoder layer: the norm of the difference of the student's and the teacher's "
            "attention outputs after attention transfer, divided by the norm of the teacher's; cria alone."
        ),
    )
    layer_losses: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Alike: attention transfer's loss at its first step, and that of the maps that it left.",
    )
    recall: RecallFacts | None = Field(default=None, description="Put into the text; stitch alone.")
    perplexities: list[Perplexity] = Field(default_factory=list, description="Results; evaluate alone.")
    evaluation: Evaluation | None = Field(default=None, description="Further results; evaluate alone.")
    selection: Selection | None = Field(default=None, description="The wide layers; select alone.")


class Manifest(Camel):
    """Proof that an artifact is complete, with every object in it."""

    stage: Stage = Field(description="The stage that made it.")
    cria: int | None = Field(default=None, description="Index of the Cria; the cria stage alone.")
    key: str = Field(description="Content key.")
    inputs: list[str] = Field(default_factory=list, description="Content keys of the inputs.")
    objects: list[StoredObject] = Field(default_factory=list, description="Every object, in order of path.")
    lists: list[ObjectList] = Field(
        default_factory=list,
        description=f"In place of `objects` where there are more than {LIST_OBJECTS}: lists of them.",
    )
    facts: Facts = Field(
        default_factory=Facts, description="Numbers worth knowing without opening an object."
    )
    started_at: datetime = Field(description="When the first attempt began.")
    completed_at: datetime = Field(description="When the manifest was written.")
    seconds: float = Field(description="Time spent computing, over all attempts.", ge=0)

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(item.size for item in self.objects) + sum(item.size for item in self.lists)

    @property
    def digest(self) -> str:
        """SHA-256 of the content: equal exactly where all objects are equal, whenever they were made.

        It is that of what `sha256sum` prints of the objects in order of path, or of the lists where those
        stand outside the manifest. An object that the store copied is told by the store's checksum.
        """
        if self._is_folded:
            known = self.objects[0].sha256  # a note of the first release has none
            return f"sha256:{known}" if known else ""
        told = [(item.checksum, item.path) for item in self.objects]
        told += [(item.sha256, item.path) for item in self.lists]
        lines = "".join(f"{checksum}  {path}\n" for checksum, path in told)
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"

    def folded(self) -> Self:
        """The same with one object in place of all, which has their size and their digest.

        Those of 405B's activations take 250 MB, and whoever only tells of an artifact needs none of them.
        """
        if self._is_folded:
            return self
        digest = self.digest.removeprefix("sha256:")
        whole = StoredObject(path=ALL_OBJECTS, size=self.size, sha256=digest)
        return self.model_copy(update={"objects": [whole], "lists": []})

    @property
    def _is_folded(self) -> bool:
        return [item.path for item in self.objects] == [ALL_OBJECTS]

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.objects) + sum(item.count for item in self.lists)


class DeletionPhase(StrEnum):
    """How far the deletion of an artifact is."""

    CONDEMNED = "Condemned"
    """Its manifest goes, or is gone; its objects are all there, and it may be taken back."""
    PURGING = "Purging"
    """Its objects are being deleted; nobody may make it anew before that is over."""
    PURGED = "Purged"
    """Its objects are gone."""


class Deletion(Camel):
    """What stays of an artifact that the operator deleted; it counts only while there is no manifest."""

    phase: DeletionPhase = Field(description="How far it is.")
    manifest: Manifest | None = Field(default=None, description="Its manifest, if it was complete.")
    updated_at: datetime = Field(description="When this was written.")


class Progress(Camel):
    """How a running stage goes; overwritten in the artifact's folder every few seconds."""

    stage: Stage = Field(description="The stage.")
    cria: int | None = Field(default=None, description="Index of the Cria; the cria stage alone.")
    key: str = Field(description="Content key.")
    phase: str = Field(description="What it does now, such as transfer or lora.")
    step: int = Field(description="Steps done in this phase.", ge=0)
    steps: int = Field(description="Steps of this phase; 0 while unknown.", ge=0)
    fraction: float = Field(description="Share of the whole stage that is done.", ge=0, le=1)
    losses: dict[str, str] = Field(default_factory=dict, description="Latest losses by name.")
    curve: list[str] = Field(default_factory=list, description="At most 32 losses of this phase so far.")
    tokens_per_second: float | None = Field(default=None, description="Over the last steps.")
    eta_seconds: float | None = Field(default=None, description="Until it is done; none while unknown.")
    gpu_memory_bytes: int | None = Field(default=None, description="Peak so far; none without a GPU.")
    saved_fraction: float | None = Field(default=None, description="Share in a checkpoint.", ge=0, le=1)
    updated_at: datetime = Field(description="When this was written.")


@dataclass(frozen=True, slots=True)
class Artifact:
    """The place of one artifact; complete or not."""

    stage: Stage
    key: str
    prefix: str
    """Folder of the artifact within the bucket, ending in a slash."""
    inputs: tuple[str, ...] = ()
    cria: CriaRange | None = None
    boundary: int | None = None
    """The Cria whose inputs it is, where every Cria's Job leaves the next one's; collect alone."""

    @property
    def manifest_path(self) -> str:
        """Object key of the manifest within the bucket."""
        return self.prefix + MANIFEST

    @property
    def progress_path(self) -> str:
        """Object key of the progress report within the bucket."""
        return self.prefix + PROGRESS

    @property
    def deletion_path(self) -> str:
        """Object key of the note that the artifact was deleted, within the bucket."""
        return self.prefix + DELETION

    @property
    def checkpoint_prefix(self) -> str:
        """Where the stage keeps what it needs to resume, within the bucket."""
        return self.prefix + CHECKPOINT

    @property
    def name(self) -> str:
        """Name for people: the stage, with the index of the Cria that it is of, or for, if any."""
        index = self.boundary if self.cria is None else self.cria.index
        return self.stage.value if index is None else f"{self.stage.value}-{index:02d}"


# What decides how a stage runs but not what it computes stays out of the keys.
_HOW_IT_EVALUATES = {"enabled", "nodes", "gpus_per_node", "batch_size", "adapted_teacher"}
_SECRETS = {"token_secret_ref"}


class Artifacts:
    """The artifacts of one spec, by stage. Those of Crias need the model's number of layers."""

    def __init__(self, spec: TrenchcoatSpec) -> None:
        self._spec = spec
        self._crias: dict[CriaRange, Artifact] = {}
        self._root = spec.store.prefix + "/artifacts"

    def _make(
        self, stage: Stage, fields: dict[str, Any], inputs: tuple[str, ...], cria: CriaRange | None = None
    ) -> Artifact:
        key = content_key(stage, fields, inputs)
        return Artifact(stage, key, f"{self._root}/{stage}/{key}/", inputs, cria)

    @cached_property
    def tokenize(self) -> Artifact:
        """Training and held-out sequences of token ids; facts of the model and the text."""
        spec = self._spec
        data = dump_fields(spec.data, exclude={*_SECRETS, "start_positions"})
        fields = {"model": dump_fields(spec.model, exclude=_SECRETS), "data": data}
        return self._make(Stage.TOKENIZE, fields, ())

    @cached_property
    def collect(self) -> Artifact:
        """Hidden states at every inner Cria boundary."""
        spec = self._spec
        fields = {"layersPerCria": spec.layers_per_cria, "dtype": spec.dtype}
        return self._make(Stage.COLLECT, fields, (self.tokenize.key,))

    @cached_property
    def shard(self) -> Artifact:
        """The checkpoint's tensors, one shard per Cria, and one for the embeddings, final norm and head."""
        spec = self._spec
        fields = {
            "model": dump_fields(spec.model, exclude=_SECRETS),
            "layersPerCria": spec.layers_per_cria,
        }
        return self._make(Stage.SHARD, fields, ())

    @cached_property
    def select(self) -> Artifact:
        """The wide layers, where spec.attention.wide.share has them chosen."""
        spec = self._spec
        wide = spec.attention.wide
        fields = {
            "seed": spec.seed,
            "dtype": spec.dtype,
            "window": spec.attention.window,
            "firstTokens": cut_first_tokens(spec.attention),
            "share": wide.share if wide is not None else None,
            "keepSoftmaxLayers": sorted(spec.attention.keep_softmax_layers),
        }
        return self._make(Stage.SELECT, fields, (self.tokenize.key,))

    @property
    def before_crias(self) -> list[Artifact]:
        """Those that the spec asks for and that need no number of layers, in an order as `all` has."""
        made = self._read_by_crias
        return [self.tokenize, *(item for item in made if item is not self.collect or not rolls(self._spec))]

    @property
    def _read_by_crias(self) -> list[Artifact]:
        boundaries = [self.collect] if reads_boundaries(self._spec) else []
        selection = [self.select] if chooses_layers(self._spec.attention) else []
        return [*boundaries, self.shard, *selection]

    def cria(self, cria: CriaRange) -> Artifact:
        """Feature maps, window factors and adapters of one Cria; either strategy of collection gives them."""
        if cria not in self._crias:
            fields = {"index": cria.index, **self._cria_fields}
            inputs = tuple(artifact.key for artifact in self._read_by_crias)
            self._crias[cria] = self._make(Stage.CRIA, fields, inputs, cria)
        return self._crias[cria]

    @cached_property
    def _cria_fields(self) -> dict[str, Any]:
        """What all Crias of a spec depend on alike."""
        spec = self._spec
        return {
            **training_fields(spec),
            **form_fields(spec.attention, spec.transfer),
            "criaLora": dump_fields(spec.cria_lora),
        }

    def stitch(self, crias: list[CriaRange]) -> Artifact:
        """End-to-end adapters over the whole student."""
        spec = self._spec
        fields = {"seed": spec.seed, "stitch": stitch_fields(spec.stitch)}
        inputs = (self.tokenize.key, self.shard.key, *(self.cria(cria).key for cria in crias))
        return self._make(Stage.STITCH, fields, inputs)

    @cached_property
    def adapt(self) -> Artifact:
        """The adapted teacher's adapters: nothing of the student is in its key, so many share it.

        The stitch's program makes it, of the shards, which are the model's bytes however they are cut.
        """
        return self._make(Stage.ADAPT, adapt_fields(self._spec), (self.tokenize.key,))

    def evaluate(self, crias: list[CriaRange]) -> Artifact:
        """Perplexities and recall of the teacher and of the student after every stage."""
        fields = dump_fields(self._spec.evaluate, exclude=_HOW_IT_EVALUATES)
        adapted = (self.adapt.key,) if adapts_teacher(self._spec) else ()
        return self._make(Stage.EVALUATE, fields, (self.stitch(crias).key, *adapted))

    def export(self, crias: list[CriaRange]) -> Artifact:
        """The Hugging Face checkpoint."""
        fields = dump_fields(self._spec.export, exclude={"enabled", *_SECRETS})
        return self._make(Stage.EXPORT, fields, (self.stitch(crias).key,))

    def at(self, stage: Stage, key: str) -> Artifact:
        """The place of an artifact of any spec, by its content key; its inputs are not known."""
        return Artifact(stage, key, f"{self._root}/{stage}/{key}/")

    def boundary(self, maker: CriaRange) -> Artifact:
        """What leaves a Cria and enters the next, where collection is rolling: made on the way.

        None but the Cria's own Job makes it, so it has a key of the Cria's.
        """
        key = boundary_key(maker.index + 1, self.cria(maker).key)
        place = self.at(Stage.COLLECT, key)
        return replace(place, inputs=(self.cria(maker).key,), boundary=maker.index + 1)

    def all(self, crias: list[CriaRange]) -> list[Artifact]:
        """Every artifact that the spec asks for, in an order that respects their inputs.

        Those that are made on the way and go when they are read are not among them: `boundaries.py`.
        """
        wanted = [
            *self.before_crias,
            *(self.cria(cria) for cria in crias),
            self.stitch(crias),
        ]
        if adapts_teacher(self._spec):
            wanted.append(self.adapt)
        if self._spec.evaluate.enabled:
            wanted.append(self.evaluate(crias))
        if self._spec.export.enabled:
            wanted.append(self.export(crias))
        return wanted
