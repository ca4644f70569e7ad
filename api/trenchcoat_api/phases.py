"""Which stages a spec asks for, and which phases have something to train: from the spec alone."""

from trenchcoat_api.layer_kinds import chooses_layers
from trenchcoat_api.spec import AdaptedTeacher, CollectStrategy, Form, TrenchcoatSpec
from trenchcoat_api.stages import Stage


def stages(spec: TrenchcoatSpec) -> tuple[Stage, ...]:
    """The stages that the spec asks for, in order."""
    asked = {
        Stage.COLLECT: reads_boundaries(spec),
        Stage.SELECT: chooses_layers(spec.attention),
        Stage.ADAPT: adapts_teacher(spec),
        Stage.EVALUATE: spec.evaluate.enabled,
        Stage.EXPORT: spec.export.enabled,
    }
    return tuple(stage for stage in Stage if asked.get(stage, True))


def job_stages(spec: TrenchcoatSpec) -> tuple[Stage, ...]:
    """Those of `stages` with Jobs of their own: not collection where Crias collect for one another."""
    return tuple(stage for stage in stages(spec) if stage is not Stage.COLLECT or not rolls(spec))


def transfer_epochs(spec: TrenchcoatSpec) -> int:
    """Passes of attention transfer; none where the form has nothing to train in it."""
    return 0 if spec.attention.form is Form.WINDOW else spec.transfer.epochs


def reads_boundaries(spec: TrenchcoatSpec) -> bool:
    """Whether Crias read the teacher's hidden states at their boundaries, so that they must be collected.

    They do where a phase trains on them, and where spec.gates.maxCriaError wants errors that are measured on
    them.
    """
    return bool(transfer_epochs(spec) or spec.cria_lora.epochs or spec.gates.max_cria_error is not None)


def rolls(spec: TrenchcoatSpec) -> bool:
    """Whether each Cria's Job leaves the next Cria's inputs, in place of a stage that collects them all."""
    return spec.collect.strategy is CollectStrategy.ROLLING and reads_boundaries(spec)


def adapter_epochs(spec: TrenchcoatSpec) -> int:
    """Passes over the text in which the student's adapters are trained, by Cria and end to end."""
    return spec.cria_lora.epochs + spec.stitch.epochs


def adapts_teacher(spec: TrenchcoatSpec) -> bool:
    """Whether the run trains the adapted teacher."""
    return not why_not_adapted(spec)


def may_go_without(spec: TrenchcoatSpec) -> bool:
    """Whether the run goes on without the adapted teacher if training it ends in failure."""
    return adapts_teacher(spec) and spec.evaluate.adapted_teacher is AdaptedTeacher.AUTO


def without_adapted_teacher(spec: TrenchcoatSpec) -> TrenchcoatSpec:
    """The same spec as if it asked for no adapted teacher: evaluated where that could not be trained."""
    evaluate = spec.evaluate.model_copy(update={"adapted_teacher": AdaptedTeacher.NEVER})
    return spec.model_copy(update={"evaluate": evaluate})


def why_not_adapted(spec: TrenchcoatSpec) -> str:
    """Why the run does not train the adapted teacher; empty where it does.

    It costs as much as a stitch of `adapter_epochs`. By itself (`auto`) it comes with a stitch on one node
    alone: a stitch that needs more is of a model that is dear to train, and where there is none, the GPUs
    that the spec names need not hold the whole model.
    """
    wanted = spec.evaluate.adapted_teacher
    if not spec.evaluate.enabled:
        return "spec.evaluate.enabled is false"
    if wanted is AdaptedTeacher.NEVER:
        return "spec.evaluate.adaptedTeacher is never"
    if not adapter_epochs(spec):
        return "spec.criaLora.epochs and spec.stitch.epochs are 0, so that the student has no adapters"
    if wanted is AdaptedTeacher.AUTO and not spec.stitch.epochs:
        return (
            "spec.evaluate.adaptedTeacher is auto, and spec.stitch.epochs is 0: nothing else in the run is "
            "trained as a whole; always has it trained"
        )
    if wanted is AdaptedTeacher.AUTO and spec.stitch.nodes > 1:
        return (
            f"spec.evaluate.adaptedTeacher is auto, and spec.stitch.nodes is {spec.stitch.nodes}: it would "
            "cost as much again; always has it trained"
        )
    return ""
