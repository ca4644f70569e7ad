"""Rolling collection: which artifacts are made on the way, and which of a stage's artifacts each one needs.

Each Cria's Job leaves the next Cria's inputs, an artifact of the collect stage, long before its own. That
gets a Job of its own only where the Cria is complete and the boundary, deleted or never made, is needed.
"""

from collections.abc import Container, Iterable, Mapping, Sequence

from trenchcoat_api.artifacts import Artifact, Artifacts
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.phases import rolls
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import INPUTS, READS, Stage

_INPUTS = (Stage.SHARD, Stage.CRIA)
"""What a boundary's own Job waits for: with a Cria that is not complete, that one's Job makes it."""
_READS = (Stage.TOKENIZE, Stage.SHARD, Stage.COLLECT)

Made = Mapping[Stage, Sequence[Artifact]]
"""All artifacts of a run, by stage."""


def boundaries(spec: TrenchcoatSpec, artifacts: Artifacts, crias: Sequence[CriaRange]) -> list[Artifact]:
    """What enters each Cria but the first, in order; none where a stage collects them all."""
    return [artifacts.boundary(cria) for cria in crias[:-1]] if rolls(spec) else []


def with_boundaries(spec: TrenchcoatSpec, artifacts: Artifacts, crias: Sequence[CriaRange]) -> list[Artifact]:
    """`Artifacts.all` with each boundary between the Cria that makes it and the one that reads it."""
    after = {item.boundary: item for item in boundaries(spec, artifacts, crias)}
    result = []
    for artifact in artifacts.all(list(crias)):
        result.append(artifact)
        if artifact.cria is not None and artifact.cria.index + 1 in after:
            result.append(after[artifact.cria.index + 1])
    return result


def by_stage(artifacts: Iterable[Artifact]) -> dict[Stage, list[Artifact]]:
    """Artifacts by the stage that makes them, each in order."""
    made: dict[Stage, list[Artifact]] = {}
    for artifact in artifacts:
        made.setdefault(artifact.stage, []).append(artifact)
    return made


def inputs_of(artifact: Artifact, made: Made, stages: Sequence[Stage] | None = None) -> list[Artifact]:
    """The artifacts that must be complete before one is begun.

    Args:
        artifact: the one.
        made: all artifacts of the run.
        stages: those that its stage waits for; None for what `INPUTS` says.
    """
    if artifact.boundary is not None:
        return _of(artifact, _INPUTS, made)
    return _of(artifact, INPUTS[artifact.stage] if stages is None else stages, made)


def read_by(artifact: Artifact, made: Made) -> list[Artifact]:
    """The artifacts that must not be deleted before one is complete."""
    return _of(artifact, READS[artifact.stage] if artifact.boundary is None else _READS, made)


def maker(boundary: Artifact, made: Made) -> Artifact:
    """The Cria whose Job makes a boundary on the way."""
    return next(item for item in made[Stage.CRIA] if item.key in boundary.inputs)


def still_needed(made: Made, complete: Container[str]) -> list[Artifact]:
    """The hidden states that a Cria, or the making of a boundary, is still to read, the last first.

    Args:
        made: all artifacts of the run, which has Crias.
        complete: content keys of those that are.
    """
    crias = {item.cria.index: item.key for item in made.get(Stage.CRIA, ()) if item.cria is not None}
    needed: list[Artifact] = []
    remade = False
    for item in reversed(made.get(Stage.COLLECT, ())):
        if item.boundary is None:
            if any(key not in complete for key in crias.values()):
                needed.append(item)
            continue
        if remade or crias[item.boundary] not in complete:
            needed.append(item)
            remade = item.key not in complete
    return needed


def _of(reader: Artifact, stages: Iterable[Stage], made: Made) -> list[Artifact]:
    return [item for stage in stages for item in made.get(stage, ()) if _concerns(item, reader)]


def _concerns(item: Artifact, reader: Artifact) -> bool:
    """Whether what a stage reads of another includes this item: in the chain, the neighbour alone."""
    if item.boundary is not None and reader.cria is not None:
        return item.boundary == reader.cria.index
    if reader.boundary is None:
        return True
    if item.cria is not None:
        return item.cria.index == reader.boundary - 1
    return item.boundary is None or item.boundary == reader.boundary - 1
