"""The whole status."""

from trenchcoat_api import waiting
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import TrenchcoatStatus

from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling import columns, table
from trenchcoat_operator.reconcile.telling.conditions import conditions
from trenchcoat_operator.reconcile.telling.estimate import estimated
from trenchcoat_operator.reconcile.telling.problem import first_problem
from trenchcoat_operator.works import superseded


def status(situation: Situation) -> TrenchcoatStatus:
    """What is told of a Trenchcoat; the GPU seconds as they stood, for they are counted afterwards."""
    look = situation.look
    trenchcoat, former, store = look.trenchcoat, look.former, look.observed.store
    stages, crias = table.rows(situation)
    problem = first_problem(situation)
    # While the store cannot be read, what it told before is told on.
    known = look.store_is_known
    manifests = [item.manifest for item in situation.assessments if item.manifest is not None]
    by_stage = {manifest.stage: manifest for manifest in manifests}
    evaluate, select = by_stage.get(Stage.EVALUATE), by_stage.get(Stage.SELECT)
    tokenize = store.told.get(Artifacts(trenchcoat.spec).tokenize.key)
    estimate = estimated(trenchcoat.spec, tokenize.facts) if tokenize else former.estimate
    kept = TrenchcoatStatus() if known else former
    crias_running = sum(child.stage is Stage.CRIA and child.running for child in look.observed.children)
    waits = "" if trenchcoat.spec.suspend else waiting.of_run(TrenchcoatStatus(stages=stages, crias=crias))
    return TrenchcoatStatus(
        observed_generation=trenchcoat.metadata.generation,
        default_preset=former.preset_by_default.value,
        stage=columns.stage(look, stages, crias, stalled=problem is not None),
        crias_done=columns.crias_done(crias),
        loss=columns.loss(stages),
        progress=columns.progress(look, stages, estimate),
        eta=columns.eta(situation),
        waiting=waits,
        max_crias_running=max(former.max_crias_running, crias_running),
        stored_bytes=sum(manifest.size for manifest in manifests) if known else former.stored_bytes,
        export_uri=next((row.uri for row in stages if row.name == Stage.EXPORT), ""),
        model=tokenize.facts.model if tokenize else (former.model if not known else None),
        data=tokenize.facts.data if tokenize else (former.data if not known else None),
        selection=select.facts.selection if select else (former.selection if not known else None),
        conditions=conditions(situation, stages, problem, waits),
        stages=stages,
        crias=crias,
        superseded=superseded.remembered(trenchcoat, look.graph, store),
        perplexities=evaluate.facts.perplexities if evaluate else ([] if known else former.perplexities),
        perplexity_ratio=columns.perplexity_ratio(evaluate.facts) if evaluate else kept.perplexity_ratio,
        kept_recall=columns.kept_recall(evaluate.facts) if evaluate else kept.kept_recall,
        evaluation=evaluate.facts.evaluation if evaluate else (None if known else former.evaluation),
        gpu_seconds=former.gpu_seconds,
        accounted_at=former.accounted_at,
        estimate=estimate,
    )
