"""What Kueue says of a Job that it does not let run, read from the Workload that it made for it."""

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


def _checks(status: Object) -> str:
    """The admission checks that are not passed yet."""
    pending = [
        f"admission check {check['name']} is {check.get('state')}: {check.get('message') or 'no message'}"
        for check in status.get("admissionChecks") or []
        if check.get("state") != "Ready"
    ]
    return "; ".join(pending)
