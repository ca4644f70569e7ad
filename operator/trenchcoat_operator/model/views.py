"""Reading objects of the API server into plain values; whatever is missing reads as not there."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.stages import Stage

from trenchcoat_operator.model import containers
from trenchcoat_operator.model.capacity import BoundPod, Node, Placement, Requirement, Taint, Toleration
from trenchcoat_operator.model.observed import Child, ChildKind, ChildPhase, Pod, Queued

Object = dict[str, Any]


def moment(text: str | None) -> datetime | None:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text) if text else None


def controller(body: Object) -> str:
    """Name of the object that controls this one."""
    for reference in body["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return str(reference["name"])
    return ""


def _owned(body: Object, uid: str) -> bool:
    return any(item.get("uid") == uid for item in body["metadata"].get("ownerReferences") or [])


def _conditions(body: Object, kind: str) -> Iterator[Object]:
    """Those of a type, whatever their status."""
    told = (body.get("status") or {}).get("conditions") or []
    return (item for item in told if item.get("type") == kind)


def _condition(body: Object, kind: str) -> Object | None:
    """The one of a type that is true."""
    return next((item for item in _conditions(body, kind) if item.get("status") == "True"), None)


def _policy(kind: ChildKind, body: Object) -> Object:
    """The part of a Job's or PyTorchJob's spec that says when it runs."""
    spec: Object = body.get("spec") or {}
    return spec if kind is ChildKind.JOB else spec.get("runPolicy") or {}


def suspended(kind: ChildKind, body: Object) -> bool:
    """Whether a Job or PyTorchJob is kept from having pods."""
    return bool(_policy(kind, body).get("suspend"))


def child(
    kind: ChildKind, body: Object, owner: str, pods: Iterable[Pod], queued: Queued | None = None
) -> Child | None:
    """A Job or PyTorchJob with the label of a Trenchcoat; None when it carries no stage.

    Args:
        kind: What it is.
        body: The object.
        owner: UID of the Trenchcoat.
        pods: Its pods.
        queued: What Kueue says of it.
    """
    metadata = body["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    stage = labels.get(constants.LABEL_STAGE, "")
    if stage not in set(Stage):
        return None
    succeeded = _condition(body, "Complete" if kind is ChildKind.JOB else "Succeeded")
    gang = _is_gang(kind, body)
    # Where one pod of a gang has failed, the Job controller ends the others before it calls the Job failed.
    failed = _condition(body, "Failed") or (_condition(body, "FailureTarget") if gang else None)
    end = succeeded or failed or {}
    failing = _condition(body, "FailureTarget") or failed or {}
    phase = ChildPhase.SUCCEEDED if succeeded else ChildPhase.FAILED if failed else ChildPhase.ACTIVE
    cria = labels.get(constants.LABEL_CRIA, "")
    attempt = annotations.get(constants.ANNOTATION_ATTEMPT, "")
    return Child(
        kind=kind,
        name=metadata["name"],
        stage=Stage(stage),
        cria=int(cria) if cria.isdecimal() else None,
        gang=gang,
        key=annotations.get(constants.ANNOTATION_KEY, ""),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        spec_name=annotations.get(constants.ANNOTATION_SPEC, ""),
        template=annotations.get(constants.ANNOTATION_TEMPLATE, ""),
        expects_nodes=annotations.get(constants.ANNOTATION_EXPECTS_NODES) == "true",
        owned=_owned(body, owner),
        phase=phase,
        terminating=bool(metadata.get("deletionTimestamp")),
        suspended=suspended(kind, body),
        expires=_policy(kind, body).get("ttlSecondsAfterFinished") is not None,
        kept=annotations.get(constants.ANNOTATION_KEPT) == "true",
        queue=str(labels.get(constants.LABEL_KUEUE_QUEUE) or ""),
        queued=queued,
        stopped=_policy(kind, body).get("activeDeadlineSeconds") is not None,
        created_at=moment(metadata.get("creationTimestamp")),
        finished_at=moment(end.get("lastTransitionTime")),
        failing_at=moment(failing.get("lastTransitionTime")),
        reason=str((failed or {}).get("reason") or ""),
        message=str((failed or {}).get("message") or ""),
        outcome=annotations.get(constants.ANNOTATION_OUTCOME, ""),
        outcome_message=annotations.get(constants.ANNOTATION_OUTCOME_MESSAGE, ""),
        saved=_share(annotations.get(constants.ANNOTATION_SAVED, "")),
        pods=tuple(sorted(pods, key=lambda pod: pod.name)),
    )


def _is_gang(kind: ChildKind, body: Object) -> bool:
    return kind is ChildKind.PYTORCH_JOB or (body.get("spec") or {}).get("completionMode") == "Indexed"


def _share(text: str) -> float | None:
    # People may write annotations, too.
    return float(text) if re.fullmatch(r"[01](\.[0-9]{1,9})?", text) else None


def pod(body: Object) -> Pod:
    """A pod of a child."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    seen = containers.read(body)
    started_at, finished_at = containers.begun_and_ended(status.get("containerStatuses") or [])
    phase = str(status.get("phase") or "Pending")
    if phase == "Pending" and seen.begun:
        phase = "Running"  # a sidecar that cannot start keeps it Pending, though its stage computes
    unschedulable, unschedulable_since, scheduled_at = "", None, None
    for condition in status.get("conditions") or []:
        if condition.get("type") != "PodScheduled":
            continue
        if condition.get("status") == "False":
            unschedulable = str(condition.get("message") or condition.get("reason") or "")
            unschedulable_since = moment(condition.get("lastTransitionTime"))
        else:
            scheduled_at = moment(condition.get("lastTransitionTime"))
    own = seen.waiting_name == containers.stage_container(body)
    return Pod(
        name=body["metadata"]["name"],
        phase=phase,
        node=str(spec.get("nodeName") or ""),
        started_at=started_at,
        scheduled_at=scheduled_at,
        finished_at=finished_at,
        created_at=moment(body["metadata"].get("creationTimestamp")),
        extended=extended_requests(spec),
        unschedulable=unschedulable,
        unschedulable_since=unschedulable_since,
        gates=tuple(str(gate.get("name")) for gate in spec.get("schedulingGates") or []),
        waiting_reason=str(seen.waiting.get("reason") or ""),
        waiting_message=_waiting_message(seen.waiting),
        waiting_container="" if own else seen.waiting_name,
        initializing=seen.initializing_name,
        initializing_since=moment(seen.initializing.get("startedAt")),
        exit_code=seen.end.get("exitCode"),
        exit_reason=str(seen.end.get("reason") or ""),
        exit_message=str(seen.end.get("message") or ""),
        exit_of=seen.end_of,
        ended_at=moment(seen.end.get("finishedAt")),
        beside=seen.beside,
        disrupted=_condition(body, "DisruptionTarget") is not None,
        reason=str(status.get("reason") or ""),
        message=str(status.get("message") or ""),
        told_at=_told_to_end(body["metadata"]),
        gone_by=moment(body["metadata"].get("deletionTimestamp")),
    )


def _told_to_end(metadata: Object) -> datetime | None:
    """When a pod was deleted: the API server writes down the end of its grace period."""
    gone_by, grace = moment(metadata.get("deletionTimestamp")), metadata.get("deletionGracePeriodSeconds")
    return None if gone_by is None or grace is None else gone_by - timedelta(seconds=int(grace))


def _waiting_message(waiting: Object) -> str:
    """What is said of a container that does not run, and how it ended the last time."""
    said, last = str(waiting.get("message") or ""), waiting.get("last") or {}
    if not last:
        return said
    how = f"it ended with exit code {last.get('exitCode')}"
    if message := str(last.get("message") or "").strip():
        how += f": {message}"
    return f"{said}; {how}" if said else how


def _count(quantity: object) -> int:
    # Extended resources are whole numbers, which may still be written with a suffix.
    text = str(quantity)
    factor = {"k": 1000, "M": 1_000_000}.get(text[-1:], 1)
    digits = text[:-1] if factor != 1 else text
    return int(digits) * factor if digits.isdecimal() else 0


def _extended(resources: Object) -> dict[str, int]:
    return {name: _count(value) for name, value in resources.items() if "/" in name}


def node(body: Object) -> Node:
    """A node."""
    cordoned = (body.get("spec") or {}).get("unschedulable")
    ready: Object = next(_conditions(body, "Ready"), {})
    return Node(
        usable=not cordoned and ready.get("status") == "True",
        ready_since=moment(ready.get("lastTransitionTime")),
        name=body["metadata"]["name"],
        allocatable=_extended((body.get("status") or {}).get("allocatable") or {}),
        labels=body["metadata"].get("labels") or {},
        taints=tuple(
            Taint(str(item.get("key", "")), str(item.get("value") or ""), str(item.get("effect", "")))
            for item in (body.get("spec") or {}).get("taints") or []
        ),
    )


def extended_requests(spec: Object) -> dict[str, int]:
    """Extended resources that a pod's spec requests, added up as the scheduler does.

    Native sidecars go on beside the containers and beside the init containers after them.
    """
    native: dict[str, int] = {}
    most: dict[str, int] = {}
    for container in spec.get("initContainers") or []:
        own = _requested(container)
        if container.get("restartPolicy") == "Always":
            native = _sum(native, own)
            own = native
        else:
            own = _sum(native, own)
        most = {name: max(most.get(name, 0), own.get(name, 0)) for name in {**most, **own}}
    together = native
    for container in spec.get("containers") or []:
        together = _sum(together, _requested(container))
    return {name: max(together.get(name, 0), most.get(name, 0)) for name in {**together, **most}}


def _requested(container: Object) -> dict[str, int]:
    return _extended((container.get("resources") or {}).get("requests") or {})


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def tolerations(spec: Object) -> tuple[Toleration, ...]:
    """Tolerations of a pod's spec."""
    return tuple(
        Toleration(
            key=str(item.get("key") or ""),
            operator=str(item.get("operator") or "Equal"),
            value=str(item.get("value") or ""),
            effect=str(item.get("effect") or ""),
        )
        for item in spec.get("tolerations") or []
    )


def placement(spec: Object) -> Placement:
    """Where the pods of a spec may run."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = None
    if required is not None:
        terms = tuple(
            (
                *_requirements(term.get("matchExpressions"), field=False),
                *_requirements(term.get("matchFields"), field=True),
            )
            for term in required.get("nodeSelectorTerms") or []
        )
    return Placement(spec.get("nodeSelector") or {}, tolerations(spec), terms)


def _requirements(expressions: list[Object] | None, *, field: bool) -> Iterator[Requirement]:
    for item in expressions or []:
        values = tuple(str(value) for value in item.get("values") or [])
        yield Requirement(str(item.get("key") or ""), str(item.get("operator") or ""), values, field)


def bound_pod(body: Object) -> BoundPod | None:
    """What a pod holds of its node's extended resources; None when it holds nothing."""
    spec = body.get("spec") or {}
    if not spec.get("nodeName") or (body.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    requests = extended_requests(spec)
    if not any(requests.values()):
        return None
    metadata = body["metadata"]
    ours = (metadata.get("labels") or {}).get(constants.LABEL_MANAGED_BY) == constants.MANAGED_BY
    gone_by = moment(metadata.get("deletionTimestamp"))
    grace = timedelta(seconds=int(metadata.get("deletionGracePeriodSeconds") or 0))
    return BoundPod(spec["nodeName"], requests, ours, gone_by and gone_by - grace, gone_by)


def finished_pods(kind: ChildKind, body: Object) -> int:
    """Pods of a child that are over, by the child's own count."""
    status = body.get("status") or {}
    counts = [status] if kind is ChildKind.JOB else list((status.get("replicaStatuses") or {}).values())
    return sum(int(item.get("succeeded") or 0) + int(item.get("failed") or 0) for item in counts)


def templates(kind: ChildKind, body: Object) -> list[tuple[int, Object]]:
    """How many pods a child makes from each of its templates, and the pod's spec."""
    spec = body.get("spec") or {}
    if kind is ChildKind.JOB:
        return [(int(spec.get("parallelism") or 1), (spec.get("template") or {}).get("spec") or {})]
    return [
        (int(replica.get("replicas") or 1), (replica.get("template") or {}).get("spec") or {})
        for replica in (spec.get("pytorchReplicaSpecs") or {}).values()
    ]
