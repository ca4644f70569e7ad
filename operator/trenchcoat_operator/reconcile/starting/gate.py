"""The quality gate: whether the trained Crias are good enough to be stitched."""

from trenchcoat_api import constants
from trenchcoat_api.gates import excesses, explain
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State

from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.assessment.standing import Assessment

REASON = "CriaErrorTooHigh"


def judge(trenchcoat: Trenchcoat, assessments: tuple[Assessment, ...]) -> Problem | None:
    """What holds the stitch; None when nothing does, when it was overridden or when it began already."""
    if trenchcoat.metadata.annotations.get(constants.ANNOTATION_OVERRIDE_GATE) == "true":
        return None
    stitch = [item for item in assessments if item.work.stage is Stage.STITCH]
    if not stitch or stitch[0].state not in (State.BLOCKED, State.WAITING, State.SUSPENDED):
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
    override = (
        f"`kubectl annotate trenchcoat {trenchcoat.metadata.name} {constants.ANNOTATION_OVERRIDE_GATE}=true` "
        "to stitch all the same"
    )
    return Problem(REASON, explain(trenchcoat.spec, found, override))
