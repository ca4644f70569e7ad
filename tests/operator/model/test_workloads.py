"""What is read of a Workload: the newest of what Kueue says, in its own words."""

from typing import Any

import pytest
from trenchcoat_operator.model import workloads
from trenchcoat_operator.model.observed import Queued

NO_QUOTA = "insufficient unused quota for nvidia.com/gpu in flavor gpu-nodes, 1 more needed"
PREEMPTED = "Preempted to accommodate a workload (UID: u, JobUID: j) due to prioritization in the queue"


def workload(
    *conditions: tuple[str, str, str, str], spec: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    keys = ("type", "status", "reason", "message")
    stated = [dict(zip(keys, condition, strict=True)) for condition in conditions]
    return {"metadata": {"name": "w"}, "spec": spec or {}, "status": {"conditions": stated, **status}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (workload(), Queued("waits for quota")),
        (workload(("QuotaReserved", "False", "Pending", NO_QUOTA)), Queued(NO_QUOTA)),
        (
            workload(("QuotaReserved", "False", "Inadmissible", "LocalQueue a doesn't exist")),
            Queued("LocalQueue a doesn't exist", mend=True),
        ),
        (
            workload(
                ("QuotaReserved", "True", "QuotaReserved", ""), ("Evicted", "True", "Preempted", PREEMPTED)
            ),
            Queued(PREEMPTED, evicted=True),
        ),
        (
            workload(
                ("QuotaReserved", "False", "Pending", PREEMPTED), ("Evicted", "True", "Preempted", PREEMPTED)
            ),
            Queued(PREEMPTED, evicted=True),
        ),
        (
            workload(
                ("QuotaReserved", "False", "Pending", NO_QUOTA), ("Evicted", "True", "Preempted", PREEMPTED)
            ),
            Queued(f"{PREEMPTED}; now: {NO_QUOTA}", evicted=True),
        ),
        (
            workload(("QuotaReserved", "True", "QuotaReserved", ""), ("Evicted", "False", "Preempted", "")),
            Queued("its quota is reserved"),
        ),
        (
            workload(
                ("QuotaReserved", "True", "QuotaReserved", ""),
                admissionChecks=[
                    {"name": "budget", "state": "Ready", "message": ""},
                    {"name": "nodes", "state": "Pending", "message": "two nodes are on their way"},
                ],
            ),
            Queued("admission check nodes is Pending: two nodes are on their way"),
        ),
        (
            workload(spec={"active": False}),
            Queued("its Workload w is deactivated: set spec.active of it to true", mend=True),
        ),
        (
            workload(("Evicted", "True", "Deactivated", "by a person"), spec={"active": False}),
            Queued("its Workload w is deactivated: set spec.active of it to true", evicted=True, mend=True),
        ),
    ],
)
def test_why_it_waits(body: dict[str, Any], expected: Queued) -> None:
    assert workloads.queued(body) == expected


def test_it_belongs_to_the_job_that_controls_it() -> None:
    owners = [{"kind": "Job", "uid": "u1", "controller": True}, {"kind": "Trenchcoat", "uid": "u2"}]
    assert workloads.job_uid({"metadata": {"name": "w", "ownerReferences": owners}}) == "u1"
    assert workloads.job_uid({"metadata": {"name": "w"}}) == ""


def pending(name: str, queue: str, made: int, priority: int = 0, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "creationTimestamp": f"2026-01-01T12:00:{made:02d}Z"}
    return {"metadata": metadata, "spec": {"queueName": queue, "priority": priority, **spec}}


def test_places_follow_priority_then_age_within_a_queue() -> None:
    taken = pending("taken", "a", 0)
    taken["status"] = {"conditions": [{"type": "QuotaReserved", "status": "True"}]}
    broken = pending("broken", "a", 0)
    refused = {"type": "QuotaReserved", "status": "False", "reason": "Inadmissible"}
    broken["status"] = {"conditions": [refused]}
    bodies = [
        taken,
        broken,
        pending("stopped", "a", 0, active=False),
        pending("late", "a", 9),
        pending("early", "a", 1),
        pending("urgent", "a", 20, priority=100),
        pending("other", "b", 30),
    ]
    assert workloads.places(bodies) == {
        "urgent": "1 of 3",
        "early": "2 of 3",
        "late": "3 of 3",
        "other": "1 of 1",
    }
