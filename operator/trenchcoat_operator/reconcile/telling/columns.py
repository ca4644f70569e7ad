"""The few words and numbers that `kubectl get trenchcoats` shows of a whole run."""

from trenchcoat_api import headline, texts
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, EstimateStatus, StageStatus, State

from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling import left, rows

# Rough shares of a run's time until there is a plan; only the PROGRESS column rests on them.
_WEIGHTS = {
    Stage.TOKENIZE: 2,
    Stage.COLLECT: 20,
    Stage.SHARD: 3,
    Stage.SELECT: 1,
    Stage.CRIA: 50,
    Stage.STITCH: 20,
    Stage.ADAPT: 20,
    Stage.EVALUATE: 3,
    Stage.EXPORT: 2,
}
_AT_WORK = (State.RUNNING, State.STARTING)


def stage(look: Look, stages: list[StageStatus], crias: list[CriaStatus], *, stalled: bool) -> str:
    """What it does now."""
    if rows.all_over(stages, look.graph):
        return "Complete"
    if look.trenchcoat.spec.suspend:
        return "Suspended"
    crias_at_work = any(cria.state in _AT_WORK for cria in crias)
    at_work = [
        row.name for row in stages if row.state in _AT_WORK or (row.name == Stage.CRIA and crias_at_work)
    ]
    if at_work:
        return ",".join(at_work)
    if any(row.state is State.FAILED and not rows.is_over(row, look.graph) for row in stages):
        return "Failed"
    if stalled:
        return "Stalled"
    return next((row.name for row in stages if not rows.is_over(row, look.graph)), "")


def perplexity_ratio(facts: Facts) -> str:
    """Such as 1.02; empty where it was not measured."""
    found = headline.perplexity_ratio(facts.perplexities)
    return f"{found.value:.3g}" if found is not None else ""


def kept_recall(facts: Facts) -> str:
    """Such as 98%; empty where it was not measured."""
    found = headline.kept_recall(facts)
    return f"{found.value:.0%}" if found is not None else ""


def crias_done(crias: list[CriaStatus]) -> str:
    """Such as 9/14."""
    if not crias:
        return ""
    return f"{sum(cria.state is State.SUCCEEDED for cria in crias)}/{len(crias)}"


def loss(stages: list[StageStatus]) -> str:
    """Latest loss of the running stage, or else of the last one that had any."""
    running = [row.loss for row in stages if row.state in _AT_WORK and row.loss]
    return (running or [row.loss for row in stages if row.loss] or [""])[-1]


def progress(look: Look, stages: list[StageStatus], estimate: EstimateStatus | None) -> str:
    """Share of the whole run that is done, by the seconds that its stages are planned to take."""
    planned = {row.name: float(row.seconds or 0) for row in estimate.stages} if estimate is not None else {}
    rough = {stage.value: float(weight) for stage, weight in _WEIGHTS.items()}
    weights = planned if all(planned.get(row.name) for row in stages) else rough
    total = sum(weights[row.name] for row in stages)
    shares = [1.0 if rows.is_over(row, look.graph) else rows.fraction(row) for row in stages]
    done = sum(weights[row.name] * share for row, share in zip(stages, shares, strict=True))
    return texts.percent(done / total) if total else ""


def eta(situation: Situation) -> str:
    """Time until the running stage is done; empty while unknown."""
    known = [
        seconds for seconds in (left.of_stages(situation), left.of_crias(situation)) if seconds is not None
    ]
    return texts.duration(max(known)) if known else ""
