"""What stands in Events, read: the last word of those who say something of an object."""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

Object = dict[str, Any]

_AUTOSCALERS = {"TriggeredScaleUp", "NotTriggerScaleUp", "Nominated"}
"""The reasons that Cluster Autoscaler gives, and Karpenter's for a pod that it makes a node for."""


_REFUSALS = {"FailedCreate", "FailedCreatePod"}
"""The reasons of the Job controller and of the training-operator."""


def by_autoscalers(events: Iterable[Object]) -> str:
    """The last that an autoscaler said of a pod, with its reason; empty if none did."""
    said = [event for event in events if event.get("reason") in _AUTOSCALERS or _is_karpenter(event)]
    return _last(said)


def refusal(events: Iterable[Object], uid: str, since: datetime) -> str:
    """What kept the controller of a Job from making a pod when it last tried; empty if nothing did.

    Args:
        events: Of the Job.
        uid: Its UID: an earlier one may have had its name.
        since: What was said before is of pods that may have come and gone.
    """
    said = [
        event
        for event in events
        if event.get("reason") in _REFUSALS
        and event["involvedObject"].get("uid") == uid
        and _time(event) >= since.strftime("%Y-%m-%dT%H:%M:%S")
    ]
    _, _, message = _last(said).partition(": ")
    # The name that the pod would have had is another one each time.
    return re.sub(r'^Error creating: (?:pods?|Pod) "[^"]*" is ', "", message)


def _is_karpenter(event: Object) -> bool:
    return event.get("reason") == "FailedScheduling" and "karpenter" in _speaker(event)


def _speaker(event: Object) -> str:
    source = (event.get("source") or {}).get("component")
    return str(event.get("reportingComponent") or event.get("reportingController") or source or "")


def _last(events: list[Object]) -> str:
    if not events:
        return ""
    event = max(events, key=_time)
    return f"{event.get('reason')}: {str(event.get('message') or '').strip()}"


def _time(event: Object) -> str:
    """When it was last told; times of the API server sort as text, down to the second."""
    series = (event.get("series") or {}).get("lastObservedTime")
    created = event["metadata"].get("creationTimestamp")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or created or "")[:19]
