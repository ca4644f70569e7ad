"""Since when a row waits, and what it waited for before."""

from datetime import datetime
from typing import Any

from trenchcoat_api import texts
from trenchcoat_api.status import MAX_WAITS, WaitStatus
from trenchcoat_api.status import Work as Row

_MESSAGE_LIMIT = 256


def told(values: dict[str, Any], former: Row | None, now: datetime) -> dict[str, Any]:
    """The fields of a row that tell of its waits.

    Args:
        values: What is known of the row: `waiting_reason` and `message` are.
        former: The row as the last look left it, if it spoke of the same artifact.
        now: When this look was.
    """
    reason, moment = values["waiting_reason"], texts.timestamp(now)
    known = list(former.waits) if former is not None else []
    same = former is not None and former.waiting_reason is reason
    if known and not known[-1].until and not (same and reason is not None):
        known[-1] = known[-1].model_copy(update={"until": moment})
    if reason is None:
        return {"waits": known}
    since = (former.waiting_since if former is not None and same else "") or moment
    message = str(values["message"])[:_MESSAGE_LIMIT]
    if known and not known[-1].until:
        known[-1] = known[-1].model_copy(update={"message": message})
    else:
        known.append(WaitStatus(reason=reason, since=since, message=message))
    return {"waiting_since": since, "waits": known[-MAX_WAITS:]}
