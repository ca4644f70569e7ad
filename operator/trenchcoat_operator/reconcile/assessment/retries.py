"""What follows on failed tries: none more, one after a pause, or one at once."""

from dataclasses import replace
from datetime import timedelta

from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.model.observed import Child, Problem
from trenchcoat_operator.reconcile.assessment.counting import counted, in_a_row
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, Outcome
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look

BACKOFF = timedelta(seconds=10)
BACKOFF_LIMIT = timedelta(minutes=5)
MAX_REFUSALS = 8
"""With the back-off, a node has 10 minutes to take a pod: its GPUs may be told of late after a restart."""


def after_failures(base: Assessment, latest: Child, outcomes: list[Outcome], look: Look) -> Assessment | None:
    """Failed for good, or waiting for the next try; None when that may be made now.

    Args:
        base: What is known of the work so far.
        latest: Its latest try.
        outcomes: How the tries that count ended, the latest last.
        look: The look.
    """
    last = outcomes[-1]
    counts = counted(outcomes)
    limit = look.trenchcoat.spec.scheduling.max_attempts
    again = f"; mend it, then `kubectl delete {latest.kind.lower()} {latest.name}` to try again"
    if last.failure.permanent:
        return _failed(base, last.failure.value, last.message + again)
    if counts >= limit:
        message = f"failed {counts} of {limit} times, lastly: {last.message}{again}"
        return _failed(base, "AttemptsExhausted", message)
    refused = in_a_row(outcomes, FailureClass.NODE_REFUSED)
    if refused >= MAX_REFUSALS:
        message = f"refused {refused} times in a row, lastly: {last.message}; mend or cordon the node{again}"
        return _failed(base, FailureClass.NODE_REFUSED.value, message)
    if look.trenchcoat.spec.suspend:
        return None
    if last.failure.free:
        # The first comes back at once; a cluster that preempts again and again is not pressed.
        free = [item for item in FailureClass if item.free]
        doublings = in_a_row(outcomes, *free) - 2
        tell = f"try {latest.attempt + 1}"
    else:
        doublings = counts - 1
        tell = f"try {counts + 1} of {limit}"
    if doublings < 0:
        return None
    ended = latest.finished_at or latest.created_at or look.now
    retry_at = ended + min(BACKOFF * 2 ** min(doublings, 10), BACKOFF_LIMIT)
    if look.now >= retry_at:
        return None
    return replace(
        base,
        state=State.WAITING,
        waiting=WaitingReason.RETRY,
        message=f"{tell} at {retry_at:%H:%M:%S} UTC, for: {last.message}",
        look_at=retry_at,
    )


def _failed(base: Assessment, reason: str, message: str) -> Assessment:
    return replace(base, state=State.FAILED, message=message, problem=Problem(reason, message))
