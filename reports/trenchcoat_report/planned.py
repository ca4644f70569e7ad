"""What a run was foretold to need, beside what it came to."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, Plan, StagePlan, make_plan
from trenchcoat_api.planning.rates import RatesError
from trenchcoat_api.planning.tables import hours
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import Source, Work
from trenchcoat_api.texts import duration, size

from trenchcoat_report.run import Run
from trenchcoat_report.tables import Sheet


class Planned(NamedTuple):
    """The comparison, and what to know of it."""

    sheet: Sheet
    remarks: list[str]


def planned(run: Run) -> Planned | None:
    """One row a stage, and all of them; none while the model is not known, or without rates for its GPUs."""
    status = run.trenchcoat.status
    if status.model is None:
        return None
    outline = Outline.of(run.spec, PlannedModel.of_facts(status.model, run.spec), status.data)
    try:
        plan = make_plan(outline, Given())
    except RatesError as error:
        return Planned(Sheet("Plan and actual", ("",), []), [f"There is no plan: {error}."])
    measures = ["time", "GPU-hours", "stored", *(["cost"] if plan.price is not None else [])]
    header = ["", *(f"{name}, {which}" for name in measures for which in ("plan", "actual"))]
    rows = list(_rows(run, plan))
    remarks = [
        f"The plan is reckoned for {plan.gpu}, {plan.parallel_crias} Crias at a time. The Crias' time is "
        "from the first one's start to the last one's end.",
        *(f"{note[:1].upper()}{note[1:]}." for note in plan.notes),
    ]
    if not status.gpu_seconds:
        remarks.append("GPU-hours are accounted for on a cluster alone.")
    if any(row.source is Source.REUSED for _, _, row in run.works()):
        remarks.append("What was reused is in the plan, and took no time of this run.")
    return Planned(Sheet("Plan and actual", header, rows), remarks)


def _rows(run: Run, plan: Plan) -> Iterator[list[str]]:
    by_stage: dict[Stage, list[Work]] = {}
    for _, stage, row in run.works():
        by_stage.setdefault(stage, []).append(row)
    for item in plan.stages:
        yield _row(item, by_stage.get(item.name, []), plan)
    told = run.trenchcoat.status
    held = float(told.gpu_seconds) / 3600 if told.gpu_seconds else None
    whole = ["all", duration(plan.seconds), "-", hours(plan.gpu_hours), "-" if held is None else hours(held)]
    whole += [size(plan.store.written_bytes), size(told.stored_bytes) if told.stored_bytes else "-"]
    if run.is_complete:
        ends = [row.completed_at for rows in by_stage.values() for row in rows if row.completed_at]
        whole[2] = _between([run.began.isoformat()], ends)
    yield [*whole, *_costs(plan.cost, held, plan.price)]


def _row(item: StagePlan, rows: list[Work], plan: Plan) -> list[str]:
    own = [row for row in rows if row.source is not Source.REUSED]
    starts, ends = ([getattr(row, name) for row in own] for name in ("started_at", "completed_at"))
    took = _between(starts, ends) if own and all(starts) and all(ends) else "-"
    seconds = [float(row.gpu_seconds) for row in rows if row.gpu_seconds]
    held = sum(seconds) / 3600 if seconds else None
    stored = sum(row.bytes for row in rows)
    told = [item.name.value, duration(item.seconds), took, hours(item.gpu_hours) if item.gpus else "-"]
    told += ["-" if held is None else hours(held), size(item.writes_bytes), size(stored) if stored else "-"]
    return [*told, *_costs(item.cost, held, plan.price)]


def _costs(planned_cost: float | None, held: float | None, price: float | None) -> list[str]:
    if price is None or planned_cost is None:
        return []
    return [f"{planned_cost:,.2f}", "-" if held is None else f"{held * price:,.2f}"]


def _between(starts: list[str], ends: list[str]) -> str:
    first = min(datetime.fromisoformat(moment) for moment in starts)
    last = max(datetime.fromisoformat(moment) for moment in ends)
    return duration((last - first).total_seconds())
