"""Seconds until what is at work, and what waits for its place, is done."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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
_FREED = timedelta(seconds=60)
"""So long after a Cria is complete its place counts as that of the next one, whose Job is being made."""


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
    reports, now = situation.look.observed.store.progress, situation.look.now
    crias = [
        _Cria(item, reports.get(item.work.key), now, situation.starts(item))
        for item in situation.assessments
        if item.work.stage is Stage.CRIA
    ]
    at_work = [cria for cria in crias if cria.at_work]
    if not at_work:
        return None
    each = _seconds_per_layer(crias)
    if each is None:
        return None
    freed = [cria for cria in crias if cria.is_fresh]
    # Without the place that has just come free, all that wait would seem to share the others.
    most = max(situation.look.former.max_crias_running, len(at_work))
    places = [cria.left(each) for cria in at_work] + [0.0] * min(len(freed), most - len(at_work))
    return until_done(places, [cria.whole(each) for cria in crias if cria.waits])


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


@dataclass(frozen=True, slots=True)
class _Cria:
    """A Cria, and what it last told of itself."""

    item: Assessment
    report: Progress | None
    now: datetime
    starts: bool
    """Whether its Job is made now."""

    @property
    def layers(self) -> int:
        assert self.item.work.artifact.cria is not None, "a Cria's work knows its range"  # noqa: S101
        return len(self.item.work.artifact.cria.layers)

    @property
    def at_work(self) -> bool:
        return self.starts or self.item.state in _AT_WORK

    @property
    def waits(self) -> bool:
        return not self.at_work and self.item.state not in _OVER

    @property
    def is_fresh(self) -> bool:
        """Whether this run has just completed it."""
        manifest = self.item.manifest
        return bool(manifest is not None and self.item.tries and self.now - manifest.completed_at < _FREED)

    @property
    def began(self) -> datetime | None:
        """When its latest try began to run. Pulling an image, which nodes do once, comes before."""
        pods = self.item.latest.pods if self.item.latest is not None else ()
        return min((pod.started_at for pod in pods if pod.started_at is not None), default=None)

    @property
    def elapsed(self) -> float:
        """Seconds since then."""
        if self.starts or self.began is None:
            return 0.0
        return max(0.0, (self.now - self.began).total_seconds())

    @property
    def fraction(self) -> float:
        """How much of it its report tells to be done, 0 to 1."""
        return self.report.fraction if self.report else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds that it tells it has left, while it runs; None where it told none."""
        return self.report.eta_seconds if self.report and self.item.state is State.RUNNING else None

    def took(self) -> float | None:
        """Seconds of the Job of one that this run has made; None of others."""
        manifest, latest = self.item.manifest, self.item.latest
        if manifest is None or latest is None:
            return None
        if len(self.item.tries) > 1 or self.began is None:
            return manifest.seconds
        ended = latest.finished_at or manifest.completed_at
        return max(manifest.seconds, (ended - self.began).total_seconds())

    def will_take(self) -> float | None:
        """Seconds of the Job of one that runs; None where it told nothing to go by."""
        if self.eta is None or self.fraction >= 1:
            return None
        paced = self.eta / (1 - self.fraction)
        return max(paced, self.elapsed + self.eta) if self.item.attempt == 1 else paced

    def whole(self, each: float) -> float:
        """Seconds of its next Job, at `each` for a layer: what a checkpoint holds is not done again."""
        saved = self.report.saved_fraction if self.report else None
        return each * self.layers * (1 - (saved or 0.0))

    def left(self, each: float) -> float:
        """Seconds that its Job has left, at `each` for a layer."""
        return self.eta if self.eta is not None else max(0.0, self.whole(each) - self.elapsed)


def _seconds_per_layer(crias: Sequence[_Cria]) -> float | None:
    """As those that this run has made took, or else as those that run will; None while unknown."""
    made = [seconds / cria.layers for cria in crias if (seconds := cria.took()) is not None]
    if made:
        return fmean(made)
    told = [
        (cria.fraction, seconds / cria.layers) for cria in crias if (seconds := cria.will_take()) is not None
    ]
    likely = [each for fraction, each in told if fraction >= _ENOUGH] or [each for _, each in told]
    return fmean(likely) if likely else None
