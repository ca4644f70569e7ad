"""What the run needs, as the status tells it."""

from trenchcoat_api.artifacts import Facts
from trenchcoat_api.planning.plan import Plan, StagePlan
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import EstimateStatus, StageEstimate

from trenchcoat_operator.works.planned import planned


def estimated(spec: TrenchcoatSpec, facts: Facts) -> EstimateStatus | None:
    """The plan in short; None where there is none, which the conditions tell of."""
    if facts.model is None:
        return None
    plan = planned(spec, facts).plan
    return _short(plan) if plan is not None else None


def _short(plan: Plan) -> EstimateStatus:
    rows = {row.name: row for row in plan.stages}
    adapt = rows.get(Stage.ADAPT)
    return EstimateStatus(
        tokens=plan.tokens,
        activation_bytes=plan.store.activation_bytes,
        weight_bytes=plan.weight_bytes,
        cria_weight_bytes=plan.cria_weight_bytes,
        collect_gpu_hours=_number(rows[Stage.COLLECT].gpu_hours if Stage.COLLECT in rows else 0.0),
        cria_gpu_hours=_number(rows[Stage.CRIA].gpu_hours),
        adapt_gpu_hours=_number(adapt.gpu_hours) if adapt is not None else "",
        gpu=plan.gpu,
        parallel_crias=plan.parallel_crias,
        seconds=_number(plan.seconds),
        gpu_hours=_number(plan.gpu_hours),
        cost="" if plan.cost is None else f"{plan.cost:.2f}",
        peak_stored_bytes=plan.store.peak_bytes,
        written_bytes=plan.store.written_bytes,
        stages=[_stage(row) for row in plan.stages],
    )


def _stage(row: StagePlan) -> StageEstimate:
    return StageEstimate(
        name=row.name.value,
        gpu_memory_bytes=row.gpu_memory_bytes,
        host_memory_bytes=row.host_memory_bytes,
        reads_bytes=row.reads_bytes,
        writes_bytes=row.writes_bytes,
        seconds=_number(row.seconds),
        gpu_hours=_number(row.gpu_hours),
        cost="" if row.cost is None else f"{row.cost:.2f}",
    )


def _number(value: float) -> str:
    return f"{value:.3g}"
