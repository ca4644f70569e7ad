"""Pods that do not end when they should, and what is known of their nodes by that."""

from datetime import datetime, timedelta

from trenchcoat_operator.model.observed import Child, Pod

LOST_POD_GRACE = timedelta(seconds=30)
"""A pod that should be gone for so long is on a node that does not answer."""


def is_lost(pod: Pod, now: datetime) -> bool:
    """Whether a pod that was told to end is on a node that does not answer."""
    due = _lost_from(pod)
    return due is not None and now > due


def _lost_from(pod: Pod) -> datetime | None:
    if pod.gone_by is None or pod.finished_at is not None:
        return None
    return pod.gone_by + LOST_POD_GRACE


def lost_from(child: Child) -> datetime | None:
    """When the first of a child's pods that were told to end will count as lost, if it is there then."""
    return min((due for pod in child.pods if (due := _lost_from(pod)) is not None), default=None)


def lingers(child: Child) -> bool:
    """Whether pods of a child that is over still run: they may write a checkpoint."""
    return any(pod.phase == "Running" for pod in child.pods)
