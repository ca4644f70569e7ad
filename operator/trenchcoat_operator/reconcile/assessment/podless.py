"""Jobs that get no pod, because a quota, a limit or an admission plugin refuses it: told, and taken back.

A Job that waits so holds GPUs, by the count of all, that others could use; and its controller tries again
more seldom each time. So it is taken away, and made anew after a pause, for each stage one at a time.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State, WaitingReason
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.model.observed import Child, Problem
from trenchcoat_operator.reconcile.assessment.failures import short
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.works.graph import Work

REASON = "PodsRefused"
GRACE = timedelta(seconds=20)
"""A Job may be without pods for so long: a quota that is used up may have room a moment later."""
PERIOD = timedelta(seconds=60)
"""From the first refusal on a Job is made so often, to find out whether its pods are let in now."""
WINDOW = timedelta(seconds=15)
"""At the begin of each period; shorter than the grace, so that none is made twice in one."""
_QUOTA = "exceeded quota"


def of_child(base: Assessment, child: Child, look: Look) -> Assessment | None:
    """Where a work stands whose Job gets no pod, or a gang not all; None where none is refused."""
    if child.suspended or child.terminating or _is_changed(look):
        return None
    # A try that never had its pods is none: the next has its number.
    untried = replace(base, attempt=max(0, base.attempt - 1))
    if _is_refused(child, base.work):
        said = f"no pod is made for {child.kind} {child.name}: {child.refusal}"
        return _told(untried, short(f"{said}; {_remedy(base, child.refusal)}"), look)
    row = _refused_row(base.work, look)
    young = child.created_at is not None and look.now - child.created_at < GRACE
    if row is None or child.pods or not young:
        return None
    return _told(untried, row.message, look)  # it is as it was, until its controller has spoken


def again(base: Assessment, look: Look) -> Assessment | None:
    """Where a work stands whose Job was taken back; it may be made anew now and then. None where none was."""
    row = _refused_row(base.work, look)
    if row is None or _is_changed(look):
        return None
    told = _told(replace(base, attempt=row.attempt), row.message, look)
    first = min(datetime.fromisoformat(other.waiting_since) for other in refused_rows(base.work.stage, look))
    since = look.now - first
    if since >= PERIOD and since % PERIOD < WINDOW:
        return replace(told, startable=True)
    return replace(told, look_at=first + PERIOD * (since // PERIOD + 1))


def is_taken_back(child: Child, work: Work, look: Look) -> bool:
    """Whether a Job has gone without pods for long enough."""
    return _is_refused(child, work) and child.created_at is not None and look.now - child.created_at > GRACE


def refused_rows(stage: Stage, look: Look) -> list[Row]:
    """The rows of a stage by which its pods were refused, or may be, as the last look left them."""
    status = look.former
    rows: list[Row] = [*status.crias]
    if stage is not Stage.CRIA:
        rows = [row for row in status.stages if row.name == stage]
    return [row for row in rows if row.waiting_reason is WaitingReason.REFUSED and row.waiting_since]


def _is_changed(look: Look) -> bool:
    """Whether the spec is another since: what was refused may be let in now."""
    return look.former.observed_generation != look.trenchcoat.metadata.generation


def _refused_row(work: Work, look: Look) -> Row | None:
    return next((row for row in refused_rows(work.stage, look) if row.key == work.key), None)


def _is_refused(child: Child, work: Work) -> bool:
    wanted = child.active and not child.suspended and not child.stopped and not child.terminating
    return wanted and bool(child.refusal) and len(child.pods) < work.pods


def _told(base: Assessment, message: str, look: Look) -> Assessment:
    # A quota that its own pods use up has room again when they end: nobody has to do anything.
    waits = _QUOTA in message and any(child.active and child.running for child in look.children)
    problem = None if waits else Problem(REASON, message)
    return replace(base, state=State.WAITING, waiting=WaitingReason.REFUSED, message=message, problem=problem)


def _remedy(base: Assessment, refusal: str) -> str:
    field = f"spec.pods.{base.work.stage}.resources"
    if _QUOTA in refusal:
        return f"raise the quota of the namespace, or lower {field} or spec.scheduling.maxParallelCrias"
    return f"change {field} (cpuLimit and memory set limits), or what refuses it in the namespace"
