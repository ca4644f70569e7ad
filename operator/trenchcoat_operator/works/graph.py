"""What a Trenchcoat asks for: the artifacts still to be made, and what each waits for."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from trenchcoat_api import boundaries
from trenchcoat_api.artifacts import Artifact, Artifacts, Manifest
from trenchcoat_api.boundaries import with_boundaries
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.phases import may_go_without
from trenchcoat_api.phases import without_adapted_teacher as without
from trenchcoat_api.pods import PodOverrides
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stage_size import is_gang, stage_size
from trenchcoat_api.stages import INPUTS, WITHOUT_ADAPTED_TEACHER, Stage

INTERMEDIATE = (Stage.COLLECT, Stage.SHARD)
"""Stages whose artifacts nobody needs once those of the stages after them are there."""


@dataclass(frozen=True, slots=True)
class Work:
    """One artifact to be made by one Job or PyTorchJob."""

    artifact: Artifact
    inputs: tuple[Artifact, ...]
    """The artifacts that must be complete before it may start."""
    reads: tuple[Artifact, ...] = ()
    """The artifacts that must not be deleted before it is complete."""
    pods: int = 1
    gpus: int = 0
    """GPUs of each pod."""
    distributed: bool = False
    """Whether it may have several pods, which then work together."""
    arguments: tuple[str, ...] = ()
    """Of the stage's program, besides those that all have."""
    maker: Artifact | None = None
    """The Cria whose Job makes it on the way; one of its own is made only where that is complete already."""

    @property
    def stage(self) -> Stage:
        """The stage that makes the artifact."""
        return self.artifact.stage

    @property
    def key(self) -> str:
        """The artifact's content key."""
        return self.artifact.key

    @property
    def gated(self) -> bool:
        """Whether it is held back until GPUs are free for all of its pods."""
        return self.gpus > 0


@dataclass(frozen=True, slots=True)
class Graph:
    """All works that are known so far, inputs before what needs them."""

    works: tuple[Work, ...]
    crias: tuple[CriaRange, ...] = ()
    """Empty until the model was read."""
    fault: str = ""
    """Why the spec cannot work with this model."""
    given_up: frozenset[str] = frozenset()
    """Content keys of what could not be made and the run goes on without: the adapted teacher's."""


def waits_for(stage: Stage) -> tuple[Stage, ...]:
    """The stages that must be complete before one starts, as far as the spec asks for them."""
    if stage is Stage.ADAPT:  # which takes no GPU before the student is done
        return (*INPUTS[stage], Stage.STITCH)
    return INPUTS[stage]


def pods_of(stage: Stage) -> str:
    """The field of spec.pods that has a stage's settings; the adapted teacher's are those of the stitch."""
    return Stage.STITCH.value if stage is Stage.ADAPT else stage.value


def overrides(spec: TrenchcoatSpec, stage: Stage) -> PodOverrides:
    """Pod settings of one stage."""
    settings: PodOverrides = getattr(spec.pods, pods_of(stage))
    return settings


def build(
    spec: TrenchcoatSpec, manifests: Mapping[str, Manifest], *, without_adapted_teacher: bool = False
) -> Graph:
    """Work out what is wanted from the spec and, for Crias and after, from what tokenize found out.

    Args:
        spec: The spec.
        manifests: Manifests of complete artifacts, by content key.
        without_adapted_teacher: Whether to evaluate without the adapted teacher, which could not be trained.
    """
    text = spec.model_dump_json()
    first = _built(text, None)
    tokenize = manifests.get(first.works[0].key)
    if tokenize is None or tokenize.facts.model is None:
        return first
    return _built(text, tokenize.facts.model.layers, without_adapted_teacher)


def possible(spec: TrenchcoatSpec, manifests: Mapping[str, Manifest]) -> tuple[Work, ...]:
    """All works that may come to be wanted: those of `build`, and those that take a place of theirs."""
    works = build(spec, manifests).works
    if not may_go_without(spec):
        return works
    known = {work.key for work in works}
    others = build(spec, manifests, without_adapted_teacher=True).works
    return (*works, *(work for work in others if work.key not in known))


@lru_cache(maxsize=1024)
def _built(text: str, layers: int | None, without_adapted_teacher: bool = False) -> Graph:
    """The graph of a spec; kept, for every look asks for all keys, which are hashes of much of the spec."""
    spec = TrenchcoatSpec.model_validate_json(text)
    artifacts = Artifacts(spec)
    if layers is None:
        return Graph(_works(spec, artifacts.before_crias))
    try:
        crias = cria_ranges(layers, spec.layers_per_cria)
    except ValueError as error:
        return Graph(_works(spec, [artifacts.tokenize]), fault=str(error))
    works = _works(spec, with_boundaries(spec, artifacts, crias))
    if not without_adapted_teacher:
        return Graph(works, tuple(crias))
    bare = without(spec)
    others = {work.stage: work for work in _works(bare, with_boundaries(bare, Artifacts(bare), crias))}
    evaluation = replace(others[Stage.EVALUATE], arguments=(WITHOUT_ADAPTED_TEACHER,))
    works = tuple(evaluation if work.stage is Stage.EVALUATE else work for work in works)
    return Graph(works, tuple(crias), given_up=frozenset({artifacts.adapt.key}))


def _works(spec: TrenchcoatSpec, artifacts: list[Artifact]) -> tuple[Work, ...]:
    made = boundaries.by_stage(artifacts)
    works = []
    for artifact in artifacts:
        inputs = tuple(boundaries.inputs_of(artifact, made, waits_for(artifact.stage)))
        reads = tuple(boundaries.read_by(artifact, made))
        pods, gpus = stage_size(spec, artifact.stage)
        together = is_gang(spec, artifact.stage) and artifact.boundary is None
        work = Work(artifact, inputs, reads, pods, gpus, together)
        if artifact.boundary is not None:
            work = replace(work, maker=boundaries.maker(artifact, made))
        works.append(work)
    return tuple(works)


def needed(built: Graph, manifests: Container[str], deleted: Container[str]) -> set[str]:
    """Content keys of the artifacts that are still to be made.

    An artifact that was deleted on purpose is made anew only if a stage that is still to come reads it.
    Hidden states are made only then: Crias that were trained on the same by the other strategy are complete.
    """
    found: set[str] = set()
    wanted_by_others: set[str] = set()
    for work in reversed(built.works):  # what reads an artifact comes after it
        if work.key in built.given_up:
            continue
        on_demand = work.key in deleted or (work.stage is Stage.COLLECT and bool(built.crias))
        if work.key in manifests or (on_demand and work.key not in wanted_by_others):
            continue
        found.add(work.key)
        wanted_by_others.update(item.key for item in (*work.inputs, *work.reads))
    return found
