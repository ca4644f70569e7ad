"""Making the context of a stage from a spec and the environment."""

from pathlib import Path

from trenchcoat_api.artifacts import Artifact, Artifacts
from trenchcoat_api.boundaries import by_stage, inputs_of, read_by, with_boundaries
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.phases import rolls
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.checkpoint import Checkpoint
from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.inputs import read_manifest
from trenchcoat_trainer.runtime.progress import ProgressReporter
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.writer import ArtifactWriter
from trenchcoat_trainer.store import Store, open_store


def open_context(
    spec: TrenchcoatSpec,
    stage: Stage,
    *,
    cria: int | None = None,
    folder: Path | None = None,
    stop: StopRequest | None = None,
    place: Place | None = None,
) -> StageContext:
    """Open the store and gather what a stage needs.

    Args:
        spec: What to linearize.
        stage: Which stage.
        cria: Index of the Cria; the cria stage, and collect where each Cria leaves the next one's inputs.
        folder: The folder that stands for the store, if any.
        stop: Where a wish to stop is noted.
        place: Which of the stage's processes this is; None for what the environment says.

    Raises:
        BadInputError: the spec does not fit the model, or there is no such Cria.
        MissingInputError: an input of the stage is not complete.
        StoreError: the store cannot be used.
    """
    store = open_store(spec, folder)
    artifacts = Artifacts(spec)
    crias = [] if stage is Stage.TOKENIZE else read_crias(spec, store)
    chosen = _choose(spec, crias, stage, cria)
    artifact = _artifact(artifacts, stage, crias, chosen)
    place = place or Place.from_environment()
    clock = Clock(store, artifact, ranks=place.world_size)
    return StageContext(
        spec=spec,
        store=store,
        artifacts=artifacts,
        artifact=artifact,
        cria=chosen,
        crias=crias,
        rank=place.rank,
        world_size=place.world_size,
        local_world_size=place.local_world_size,
        progress=ProgressReporter(store, artifact, clock, silent=place.rank > 0),
        stop=stop or StopRequest(),
        writer=ArtifactWriter(store, artifact, clock),
        checkpoint=Checkpoint(store, artifact),
        folder=folder,
    )


def check_inputs(context: StageContext) -> None:
    """Raise MissingInputError unless the manifest of every direct input is there."""
    made = by_stage(with_boundaries(context.spec, context.artifacts, context.crias))
    own = context.artifact
    wanted = inputs_of(own, made) if own.boundary is None else read_by(own, made)
    for artifact in wanted:
        context.manifest(artifact)


def read_crias(spec: TrenchcoatSpec, store: Store) -> list[CriaRange]:
    """All Crias of the model, whose number of layers the tokenize stage has read.

    Raises:
        MissingInputError: the tokenize stage is not complete.
        BadInputError: spec.layersPerCria does not fit the model.
    """
    model = read_manifest(store, Artifacts(spec).tokenize).facts.model
    if model is None:
        raise BadInputError("the manifest of tokenize has no facts of the model: run the tokenize stage anew")
    try:
        return cria_ranges(model.layers, spec.layers_per_cria)
    except ValueError as error:
        raise BadInputError(str(error)) from error


def _choose(
    spec: TrenchcoatSpec, crias: list[CriaRange], stage: Stage, index: int | None
) -> CriaRange | None:
    if stage is Stage.COLLECT and (index is None) == rolls(spec):
        raise BadInputError(
            f"spec.collect.strategy is {spec.collect.strategy}: "
            + ("name a Cria with --cria" if rolls(spec) else "collect takes no --cria, it is of all Crias")
        )
    if stage not in (Stage.CRIA, Stage.COLLECT) or (stage is Stage.COLLECT and index is None):
        return None
    if stage is Stage.COLLECT and index == len(crias) - 1:
        raise BadInputError(f"--cria is {index}, the last: no Cria reads what leaves it")
    if index is None or not 0 <= index < len(crias):
        raise BadInputError(
            f"--cria is {index}, but the model has Crias 0 to {len(crias) - 1}: name one of them"
        )
    return crias[index]


def _artifact(artifacts: Artifacts, stage: Stage, crias: list[CriaRange], cria: CriaRange | None) -> Artifact:
    match stage:
        case Stage.TOKENIZE:
            return artifacts.tokenize
        case Stage.COLLECT:
            return artifacts.collect if cria is None else artifacts.boundary(cria)
        case Stage.SHARD:
            return artifacts.shard
        case Stage.SELECT:
            return artifacts.select
        case Stage.CRIA:
            if cria is None:
                raise ValueError("the cria stage needs a Cria")
            return artifacts.cria(cria)
        case Stage.STITCH:
            return artifacts.stitch(crias)
        case Stage.ADAPT:
            return artifacts.adapt
        case Stage.EVALUATE:
            return artifacts.evaluate(crias)
        case Stage.EXPORT:
            return artifacts.export(crias)
