"""Seconds until what is at work, and what waits for its place, is done."""

import heapq
from collections.abc import Iterable, Sequence
from statistics import fmean

from trenchcoat_api.artifacts import Progress
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State

from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.situation import Situation

_AT_WORK = (State.RUNNING, State.STARTING)
_OVER = (State.SUCCEEDED, State.FAILED)
_ENOUGH = 0.05
"""The share of a Cria from which on its own pace tells how long a whole one takes."""


def of_stages(situation: Situation) -> float | None:
    """Seconds until the stages that run are done, the Crias left aside; None while unknown."""
    reports = situation.look.observed.store.progress
    left = [
        report.eta_seconds
        for item in situation.assessments
        if item.work.artifact.cria is None and item.state is State.RUNNING
        if (report := reports.get(item.work.key)) is not None and report.eta_seconds is not None
    ]
    return max(left, default=None)


def of_crias(situation: Situation) -> float | None:
    """Seconds until all Crias are done, those that wait included; None while unknown or nothing runs."""
    reports = situation.look.observed.store.progress
    crias = [item for item in situation.assessments if item.work.stage is Stage.CRIA]
    at_work = [item for item in crias if item.state in _AT_WORK]
    if not at_work:
        return None
    whole = _whole(crias, [reports.get(item.work.key) for item in at_work if item.state is State.RUNNING])
    if whole is None:
        return None
    running = [_left(item, reports.get(item.work.key), whole) for item in at_work]
    waiting = [
        whole * (1 - _saved(reports.get(item.work.key)))
        for item in crias
        if item.state not in (*_AT_WORK, *_OVER)
    ]
    return until_done(running, waiting)


def until_done(running: Sequence[float], waiting: Iterable[float]) -> float:
    """Seconds until all are done, if each that waits begins, in order, as soon as one before it is done.

    Args:
        running: Seconds that those at work have left; at least one.
        waiting: Seconds that each of the others takes.
    """
    ends = list(running)
    heapq.heapify(ends)
    last = max(ends)
    for seconds in waiting:
        end = heapq.heappop(ends) + seconds
        heapq.heappush(ends, end)
        last = max(last, end)
    return last


def _whole(crias: Sequence[Assessment], running: Sequence[Progress | None]) -> float | None:
    """Seconds of a whole Cria: as those that this run has made took, or else as those that run will."""
    made = [item.manifest.seconds for item in crias if item.manifest is not None and item.tries]
    told = [report for report in running if report is not None and report.eta_seconds is not None]
    likely = [report for report in told if report.fraction >= _ENOUGH] or told
    paced = [(report.eta_seconds or 0.0) / (1 - report.fraction) for report in likely if report.fraction < 1]
    return fmean(made or paced) if made or paced else None


def _left(item: Assessment, report: Progress | None, whole: float) -> float:
    if item.state is State.RUNNING and report is not None and report.eta_seconds is not None:
        return report.eta_seconds
    return whole * (1 - _saved(report))


def _saved(report: Progress | None) -> float:
    """What a Cria that begins again need not do again."""
    return (report.saved_fraction or 0.0) if report is not None else 0.0
