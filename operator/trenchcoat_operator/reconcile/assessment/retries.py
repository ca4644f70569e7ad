"""What follows on failed tries: none more, one after a pause, or one at once."""

from dataclasses import replace
from datetime import timedelta
from itertools import takewhile

from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.model.observed import Child, Problem
from trenchcoat_operator.reconcile.assessment.failures import Outcome
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look

BACKOFF = timedelta(seconds=10)
BACKOFF_LIMIT = timedelta(minutes=5)


def after_failures(base: Assessment, latest: Child, outcomes: list[Outcome], look: Look) -> Assessment | None:
    """Failed for good, or waiting for the next try; None when that may be made now.

    Args:
        base: What is known of the work so far.
        latest: Its latest try.
        outcomes: How the tries that count ended, the latest last.
        look: The look.
    """
    last = outcomes[-1]
    counted = sum(not outcome.failure.free for outcome in outcomes)
    limit = look.trenchcoat.spec.scheduling.max_attempts
    again = f"; mend it, then `kubectl delete {latest.kind.lower()} {latest.name}` to try again"
    if last.failure.permanent:
        return _failed(base, last.failure.value, last.message + again)
    if counted >= limit:
        message = f"failed {counted} of {limit} times, lastly: {last.message}{again}"
        return _failed(base, "AttemptsExhausted", message)
    if look.trenchcoat.spec.suspend:
        return None
    if last.failure.free:
        # The first comes back at once; a cluster that preempts again and again is not pressed.
        in_a_row = sum(1 for _ in takewhile(lambda outcome: outcome.failure.free, reversed(outcomes)))
        doublings = in_a_row - 2
        tell = f"try {latest.attempt + 1}"
    else:
        doublings = counted - 1
        tell = f"try {counted + 1} of {limit}"
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
