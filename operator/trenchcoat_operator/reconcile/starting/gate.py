"""The quality gates: whether Crias are good enough to be stitched, and the student to be exported."""

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Manifest
from trenchcoat_api.export_gate import explain_shortfalls, holds_export, shortfalls
from trenchcoat_api.gates import excesses, explain
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State

from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.assessment.standing import Assessment

REASON = "CriaErrorTooHigh"
EXPORT_REASON = "QualityTooLow"
UNMEASURED = "waits for the evaluation, whose results spec.gates bounds"
_NOT_BEGUN = (State.BLOCKED, State.WAITING, State.SUSPENDED)


def judge(trenchcoat: Trenchcoat, assessments: tuple[Assessment, ...]) -> Problem | None:
    """What holds the stitch; None when nothing does, when it was overridden or when it began already."""
    if _is_overridden(trenchcoat):
        return None
    stitch = [item for item in assessments if item.work.stage is Stage.STITCH]
    if not stitch or stitch[0].state not in _NOT_BEGUN:
        return None
    layers = {
        cria.index: cria.layers for item in assessments if (cria := item.work.artifact.cria) is not None
    }
    trained = [
        item.manifest
        for item in assessments
        if item.work.artifact.cria is not None and item.manifest is not None
    ]
    found = excesses(trenchcoat.spec, layers, trained)
    if not found:
        return None
    return Problem(REASON, explain(trenchcoat.spec, found, _override(trenchcoat, "stitch")))


def judge_export(trenchcoat: Trenchcoat, assessments: tuple[Assessment, ...]) -> Problem | None:
    """What holds the export; None when nothing does, when it was overridden or when it began already."""
    export = [item for item in assessments if item.work.stage is Stage.EXPORT]
    evaluation = _evaluation(assessments)
    if _is_overridden(trenchcoat) or not holds_export(trenchcoat.spec) or evaluation is None:
        return None
    if not export or export[0].state not in _NOT_BEGUN:
        return None
    found = shortfalls(trenchcoat.spec, evaluation.facts)
    if not found:
        return None
    return Problem(EXPORT_REASON, explain_shortfalls(found, _override(trenchcoat, "export")))


def awaits_evaluation(trenchcoat: Trenchcoat, assessments: tuple[Assessment, ...]) -> bool:
    """Whether the export must wait until the evaluation is complete."""
    if _is_overridden(trenchcoat) or not holds_export(trenchcoat.spec):
        return False
    return _evaluation(assessments) is None


def _evaluation(assessments: tuple[Assessment, ...]) -> Manifest | None:
    found = (item.manifest for item in assessments if item.work.stage is Stage.EVALUATE)
    return next(found, None)


def _is_overridden(trenchcoat: Trenchcoat) -> bool:
    return trenchcoat.metadata.annotations.get(constants.ANNOTATION_OVERRIDE_GATE) == "true"


def _override(trenchcoat: Trenchcoat, verb: str) -> str:
    annotation = f"{constants.ANNOTATION_OVERRIDE_GATE}=true"
    return f"`kubectl annotate trenchcoat {trenchcoat.metadata.name} {annotation}` to {verb} all the same"
