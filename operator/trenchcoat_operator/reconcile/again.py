"""When to look again: as late as nothing is missed, for events and the resync bring a look anyhow."""

from trenchcoat_api.status import State, TrenchcoatStatus, WaitingReason

from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling import usage

STORE_RETRY_SECONDS = 10.0
DELETE_RETRY_SECONDS = 300.0
"""A store that refused to delete is not asked again for so long."""


def look_again(situation: Situation, status: TrenchcoatStatus, *, hurry: bool) -> float | None:
    """Seconds until the next look; None when time alone changes nothing.

    Args:
        situation: What was worked out.
        status: The new status.
        hurry: Whether what was begun now goes on at once.
    """
    look = situation.look
    poll = look.settings.poll_seconds
    waits: list[float] = [0.0] if hurry else []
    if any(child.active or child.terminating for child in look.observed.children):
        waits.append(poll)
    # Those that wait for GPUs are woken: a look of each, again and again, would be most of all work.
    shared = any(hold.waiting is WaitingReason.SHARED for hold in situation.released.held.values())
    moments = [hold.look_at for hold in situation.released.held.values()]
    moments += [assessment.look_at for assessment in situation.assessments]
    waits += [max(0.5, (moment - look.now).total_seconds()) for moment in moments if moment is not None]
    if situation.released.start or shared:
        waits.append(poll)
    if not look.store_is_known:
        waits.append(STORE_RETRY_SECONDS)
    if look.observed.undeleted is not None:
        waits.append(DELETE_RETRY_SECONDS)
    if usage.is_open(status, look):
        waits.append(usage.LAG.total_seconds())
    for assessment in situation.assessments:
        if assessment.look_at is None and assessment.state in (State.STARTING, State.RUNNING):
            waits.append(poll)
    return min(waits, default=None)
