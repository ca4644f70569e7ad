"""All rows of the status, in order."""

from trenchcoat_api.phases import stages as stages_of
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, StageStatus

from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling import left
from trenchcoat_operator.reconcile.telling.rows import blocked_row, cria_row, stage_row
from trenchcoat_operator.reconcile.telling.summary_row import boundaries_row, crias_row


def rows(situation: Situation) -> tuple[list[StageStatus], list[CriaStatus]]:
    """The rows of stages, and those of Crias; as they stood while it is not known what the store holds."""
    look = situation.look
    if not look.store_is_known and look.former.stages:
        return list(look.former.stages), list(look.former.crias)
    crias = _cria_rows(situation)
    former = {row.name: row for row in look.former.stages}
    by_stage = {item.work.stage: item for item in situation.assessments if item.work.artifact.cria is None}
    boundaries = [item for item in situation.assessments if item.work.maker is not None]
    stages = []
    asked = stages_of(look.trenchcoat.spec)
    for stage in asked:
        if stage is Stage.CRIA and crias:
            stages.append(crias_row(crias, left.of_crias(situation)))
        elif stage is Stage.COLLECT and boundaries:
            stages.append(boundaries_row(boundaries, situation, crias))
        elif stage in by_stage:
            stages.append(stage_row(stage, situation, by_stage[stage], former.get(stage.value)))
        else:
            stages.append(blocked_row(stage, asked, look.graph.fault))
    return stages, crias


def _cria_rows(situation: Situation) -> list[CriaStatus]:
    former = {row.index: row for row in situation.look.former.crias}
    return [
        cria_row(situation, assessment, former.get(assessment.work.artifact.cria.index))
        for assessment in situation.assessments
        if assessment.work.artifact.cria is not None
    ]
