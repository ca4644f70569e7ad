"""What Kueue says of a Job that it does not let run, read from the Workload that it made for it."""

from collections.abc import Iterable
from typing import Any

from trenchcoat_operator.model.observed import Queued

Object = dict[str, Any]

_CANNOT_BE_TAKEN = "Inadmissible"
"""Kueue's reason when a queue is missing, stopped or not ready; it waits for a person, not for quota."""


def job_uid(body: Object) -> str:
    """UID of the Job that a Workload was made for."""
    for reference in body["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return str(reference["uid"])
    return ""


def queued(body: Object) -> Queued:
    """Why the Job of a Workload does not run, in Kueue's own words."""
    name = body["metadata"]["name"]
    status = body.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    reserved = conditions.get("QuotaReserved") or {}
    eviction = conditions.get("Evicted") or {}
    evicted = eviction.get("status") == "True"
    if (body.get("spec") or {}).get("active") is False:
        message = f"its Workload {name} is deactivated: set spec.active of it to true"
        return Queued(message, evicted=evicted, mend=True)
    said = str(reserved.get("message") or "") if reserved.get("status") == "False" else ""
    if evicted:
        why = str(eviction.get("message") or eviction.get("reason") or "")
        said = why if said in ("", why) else f"{why}; now: {said}"
    elif reserved.get("status") == "True":
        said = _checks(status) or "its quota is reserved"
    inadmissible = reserved.get("reason") == _CANNOT_BE_TAKEN
    return Queued(said or "waits for quota", evicted=evicted, mend=inadmissible)


def places(bodies: Iterable[Object]) -> dict[str, str]:
    """The place of each Workload that waits, by its UID, in its LocalQueue, such as 2 of 7.

    Kueue takes the highest priority first and, of equals, the earliest; those that cannot be taken until
    somebody mends something stand in no queue. One whose pods took too long to be ready is put behind later
    ones, which is not seen here.

    Args:
        bodies: All Workloads of a namespace.
    """
    queues: dict[str, list[tuple[int, str, str]]] = {}
    for body in bodies:
        spec = body.get("spec") or {}
        if not _stands_in_line(body):
            continue
        metadata = body["metadata"]
        turn = -int(spec.get("priority") or 0), str(metadata.get("creationTimestamp") or ""), metadata["uid"]
        queues.setdefault(str(spec.get("queueName") or ""), []).append(turn)
    return {
        uid: f"{place} of {len(turns)}"
        for turns in queues.values()
        for place, (_, _, uid) in enumerate(sorted(turns), 1)
    }


def _stands_in_line(body: Object) -> bool:
    conditions = {item["type"]: item for item in (body.get("status") or {}).get("conditions") or []}
    over = any((conditions.get(kind) or {}).get("status") == "True" for kind in ("QuotaReserved", "Finished"))
    refused = (conditions.get("QuotaReserved") or {}).get("reason") == _CANNOT_BE_TAKEN
    return not over and not refused and (body.get("spec") or {}).get("active") is not False


def _checks(status: Object) -> str:
    """The admission checks that are not passed yet."""
    pending = [
        f"admission check {check['name']} is {check.get('state')}: {check.get('message') or 'no message'}"
        for check in status.get("admissionChecks") or []
        if check.get("state") != "Ready"
    ]
    return "; ".join(pending)
