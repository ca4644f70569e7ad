"""GPU seconds used: from the start of a pod's containers to their end, times the GPUs that it holds.

They are added up in the status, for pods and Jobs go. The status says until when they are counted; what ran
after that is added at a later look, so that nothing is counted twice, whenever the operator dies. The last
few seconds of a pod that is deleted may be missed.
"""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from trenchcoat_api import texts
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, StageStatus, TrenchcoatStatus

from trenchcoat_operator.model.observed import Pod
from trenchcoat_operator.reconcile.look import Look

LAG = timedelta(seconds=2)
"""Kubelets report the start and the end of a container somewhat later."""
EVERY = timedelta(seconds=10)
"""While nothing else changes, the status is written no more often than this for GPU seconds alone."""
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)

Row = TypeVar("Row", StageStatus, CriaStatus)
Key = tuple[str, int]
"""Content key and number of the attempt."""


def account(status: TrenchcoatStatus, look: Look, *, last_look: bool = False) -> TrenchcoatStatus:
    """Add the GPU seconds since the last count to a status; one that did not change may wait for more.

    On a last look it does not wait: something is being stopped, and its pods may not be there again.
    """
    former = look.former
    since = datetime.fromisoformat(former.accounted_at) if former.accounted_at else _NEVER
    until = (look.now - LAG).replace(microsecond=0)
    spent: defaultdict[Key, float] = defaultdict(float)
    for child in look.children:
        for pod in child.pods:
            spent[child.key, child.attempt] += _spent(look, pod, since, until)
    total = sum(spent.values())
    if not total or (status == former and until - since < EVERY and not last_look):
        return status
    crias = [_with_spent(row, spent) for row in status.crias]
    of_crias = sum(float(row.gpu_seconds or 0) for row in crias)
    stages = [
        row.model_copy(update={"gpu_seconds": _added("", of_crias)})
        if row.name == Stage.CRIA
        else _with_spent(row, spent)
        for row in status.stages
    ]
    return status.model_copy(
        update={
            "gpu_seconds": _added(former.gpu_seconds, total),
            "accounted_at": texts.timestamp(until),
            "stages": stages,
            "crias": crias,
        }
    )


def is_open(status: TrenchcoatStatus, look: Look) -> bool:
    """Whether pods that ended are still to be counted."""
    since = datetime.fromisoformat(status.accounted_at) if status.accounted_at else _NEVER
    return any(
        pod.finished_at is not None and _spent(look, pod, since, pod.finished_at) > 0
        for child in look.children
        for pod in child.pods
    )


def _spent(look: Look, pod: Pod, since: datetime, until: datetime) -> float:
    gpus = pod.extended.get(look.trenchcoat.spec.scheduling.gpu_resource, 0)
    if not gpus or pod.started_at is None:
        return 0.0
    if pod.finished_at is None and pod.phase != "Running":
        return 0.0
    end = until if pod.finished_at is None else min(until, pod.finished_at)
    return gpus * max(0.0, (end - max(since, pod.started_at)).total_seconds())


def _added(former: str, seconds: float) -> str:
    return f"{float(former or 0) + seconds:.0f}" if seconds else former


def _with_spent(row: Row, spent: dict[Key, float]) -> Row:
    mine = {attempt: seconds for (key, attempt), seconds in spent.items() if key == row.key and seconds}
    if not mine:
        return row
    attempts = [
        item.model_copy(update={"gpu_seconds": _added(item.gpu_seconds, mine.get(item.number, 0.0))})
        for item in row.attempts
    ]
    return row.model_copy(
        update={"gpu_seconds": _added(row.gpu_seconds, sum(mine.values())), "attempts": attempts}
    )
