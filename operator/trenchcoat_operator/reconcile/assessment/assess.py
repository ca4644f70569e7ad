"""Where each work stands: its tries so far, and whether it may go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from trenchcoat_api import texts
from trenchcoat_api.artifacts import Deletion, DeletionPhase, Manifest
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.children import names
from trenchcoat_operator.model.observed import Child, ChildKind, ChildPhase, Observed, Pod, Problem
from trenchcoat_operator.reconcile.assessment import failures
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, Outcome
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work

MANIFEST_GRACE = timedelta(seconds=10)
"""A Job that ended well has this long for its manifest to be seen."""
BACKOFF = timedelta(seconds=10)
BACKOFF_LIMIT = timedelta(minutes=5)
NO_POD_GRACE = timedelta(seconds=20)
NO_WORKLOAD_GRACE = timedelta(seconds=20)
UNSCHEDULABLE_GRACE = timedelta(seconds=20)
"""The scheduler may find a node for a pod within this time before anybody is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Where one work stands."""

    work: Work
    state: State
    message: str = ""
    waiting: WaitingReason | None = None
    tries: tuple[Child, ...] = ()
    """Its children, the earliest first."""
    attempt: int = 0
    """Number of the latest try."""
    manifest: Manifest | None = None
    last_outcome: Outcome | None = None
    """How the latest failed try ended."""
    startable: bool = False
    """A new try may be made now, GPUs permitting."""
    problem: Problem | None = None
    """What a person must mend before it goes on."""
    outcomes: tuple[tuple[Child, Outcome], ...] = ()
    """How its failed tries ended."""
    unrecorded: tuple[tuple[Child, Outcome], ...] = ()
    """Failures whose verdict does not stand on the child yet."""
    look_at: datetime | None = None
    """When time alone will change this."""
    deleted: Deletion | None = None
    """What was noted when the operator deleted it, where that is why it has no manifest."""

    @property
    def latest(self) -> Child | None:
        """The latest try."""
        return self.tries[-1] if self.tries else None


def tries_of(work: Work, children: tuple[Child, ...]) -> tuple[Child, ...]:
    """The children that were made for a work, the earliest first."""
    mine = (child for child in children if child.owned and child.key == work.key)
    return tuple(sorted(mine, key=lambda child: (child.attempt, child.name)))


def assess(
    work: Work, trenchcoat: Trenchcoat, observed: Observed, now: datetime, *, needed: bool = True
) -> Assessment:
    """Judge one work.

    Args:
        work: The work.
        trenchcoat: Its Trenchcoat.
        observed: What was seen.
        now: The moment.
        needed: Whether its artifact is still to be made; else it is there, or was deleted for good.
    """
    tries = tries_of(work, observed.children)
    manifest = observed.store.manifests.get(work.key)
    deleted = observed.store.deletions.get(work.key)
    gone = {child.name for child in tries if _was_deleted(child, deleted)}
    left = tuple(child for child in tries if child.name not in gone)
    outcomes = _outcomes(left, now, complete=manifest is not None)
    base = Assessment(
        work=work,
        state=State.BLOCKED,
        tries=tries,
        # A try whose Job was taken away is counted on from, so that no two tries have one name.
        attempt=max(tries[-1].attempt if tries else 0, _former_attempt(work, trenchcoat)),
        manifest=manifest,
        last_outcome=outcomes[-1][1] if outcomes else None,
        outcomes=tuple(outcomes),
        unrecorded=tuple(
            (child, outcome)
            for child, outcome in outcomes
            if not child.outcome and not failures.may_be_excused(child, outcome)
        ),
    )
    if manifest is not None:
        return _with(base, state=State.SUCCEEDED)
    if not needed and deleted is not None:
        message = f"deleted at {texts.timestamp(deleted.updated_at)}: no stage reads it any more"
        return _with(base, state=State.SUCCEEDED, message=message, deleted=deleted)
    missing = _missing(work, observed.store.manifests)
    # What was made, deleted and is needed again begins anew.
    anew = tuple(takewhile(lambda child: child.name not in gone, reversed(tries)))
    latest = anew[0] if anew else None
    if latest is not None and latest.terminating:
        return _leaving(base, latest, trenchcoat, f"{latest.kind} {latest.name} is being stopped")
    if latest is not None and latest.active:
        return _active(base, latest, trenchcoat, now, kueue=observed.kueue)
    if latest is not None and latest.phase is ChildPhase.SUCCEEDED and not _overdue(latest, now):
        ended = latest.finished_at or now
        return _with(
            base,
            state=State.RUNNING,
            message="ended well; its manifest is about to be read",
            look_at=ended + MANIFEST_GRACE,
        )
    if latest is not None and latest.phase is ChildPhase.FAILED and failures.lingers(latest):
        message = f"the pods of {latest.kind} {latest.name}, which failed, are being stopped"
        return _leaving(base, latest, trenchcoat, message)
    outcomes = [(child, outcome) for child, outcome in outcomes if child in anew]
    if latest is not None and (failed := _after_failures(base, latest, outcomes, trenchcoat, now)):
        return failed
    if missing:
        return _with(base, message=f"waits for {missing}")
    if trenchcoat.spec.suspend:
        return _with(base, state=State.SUSPENDED, message="spec.suspend is true")
    if work.distributed and not observed.training_operator:
        message = (
            "the cluster has no PyTorchJob: install the Kubeflow training-operator (v1, PyTorchJob enabled)"
        )
        return _with(
            base,
            state=State.WAITING,
            waiting=WaitingReason.TRAINING_OPERATOR,
            message=message,
            problem=Problem("TrainingOperatorMissing", message),
        )
    if deleted is not None and deleted.phase is not DeletionPhase.PURGED:
        message = "waits until its former objects are deleted, or given back"
        return _with(base, state=State.WAITING, waiting=WaitingReason.CLEANUP, message=message)
    name = names.child_name(trenchcoat.metadata.name, work.artifact, base.attempt + 1)
    if any(child.name == name for child in observed.children):
        return _with(
            base,
            state=State.WAITING,
            waiting=WaitingReason.CLEANUP,
            message=f"waits until {name}, left by an earlier Trenchcoat of this name, is deleted",
        )
    return _with(base, state=State.WAITING, startable=True)


def _with(base: Assessment, **changes: object) -> Assessment:
    values = {name: getattr(base, name) for name in Assessment.__dataclass_fields__}
    return Assessment(**{**values, **changes})


def _leaving(base: Assessment, child: Child, trenchcoat: Trenchcoat, message: str) -> Assessment:
    """A child whose pods may still run: the next try waits for their end."""
    suspended = trenchcoat.spec.suspend
    return _with(
        base,
        state=State.SUSPENDED if suspended else State.WAITING,
        waiting=None if suspended else WaitingReason.CLEANUP,
        message=message,
        look_at=failures.lost_from(child),
    )


def _former_attempt(work: Work, trenchcoat: Trenchcoat) -> int:
    """Number of the latest try by the status."""
    rows = [*trenchcoat.status.stages, *trenchcoat.status.crias]
    return max((row.attempt for row in rows if row.key == work.key), default=0)


def _overdue(child: Child, now: datetime) -> bool:
    return child.finished_at is not None and now - child.finished_at > MANIFEST_GRACE


def _was_deleted(child: Child, deleted: Deletion | None) -> bool:
    """Whether a try ended well before what it had made was deleted."""
    return (
        child.phase is ChildPhase.SUCCEEDED
        and child.finished_at is not None
        and deleted is not None
        and deleted.manifest is not None
        and child.finished_at <= deleted.updated_at
    )


def _outcomes(tries: tuple[Child, ...], now: datetime, *, complete: bool) -> list[tuple[Child, Outcome]]:
    result = []
    for child in tries:
        if child.phase is ChildPhase.FAILED:
            result.append((child, failures.classify(child, now)))
        elif child.phase is ChildPhase.SUCCEEDED and not complete and (child.outcome or _overdue(child, now)):
            message = f"{child.kind} {child.name} ended well but left no manifest in the store"
            result.append((child, Outcome(FailureClass.NO_MANIFEST, message)))
    return result


def _missing(work: Work, manifests: Mapping[str, Manifest]) -> str:
    """The stages that an input is still to come from, in words."""
    for wanted in (work.inputs, work.reads):  # what it only reads is missing when it was deleted
        stages = [item.stage.value for item in wanted if item.key not in manifests]
        if stages:
            break
    return " and ".join(dict.fromkeys(stages))


def _active(
    base: Assessment, child: Child, trenchcoat: Trenchcoat, now: datetime, *, kueue: bool
) -> Assessment:
    if child.stopped:
        return _with(
            base,
            state=State.WAITING,
            waiting=WaitingReason.CLEANUP,
            message=f"{child.kind} {child.name} is being stopped: {child.outcome_message}",
        )
    leaving = [pod for pod in child.pods if pod.gone_by is not None]
    taken_back = child.suspended or (child.queued is not None and child.queued.evicted)
    if taken_back and (leaving or not child.running):
        return _queued(base, child, trenchcoat, now, kueue=kueue)
    stuck = next((pod for pod in child.pods if pod.waits_for_node), None)
    if stuck is not None:
        return _unschedulable(base, child, stuck, now)
    if child.running and not leaving:
        return _with(base, state=State.RUNNING, look_at=deadline_of(base.work, trenchcoat, child))
    if leaving:
        pod = min(leaving, key=lambda pod: pod.name)
        message = f"the cluster ends pod {pod.name} on {pod.node}; it goes on elsewhere from its checkpoint"
        return _with(base, state=State.STARTING, message=message)
    problem = failures.pod_problem(child)
    if problem is not None:
        return _with(base, state=State.STARTING, message=problem.message, problem=problem)
    # A controller takes a moment to make pods, and to make something of their end.
    ended = [pod.finished_at for pod in child.pods if pod.finished_at is not None]
    since = max(ended, default=child.created_at) if len(ended) == len(child.pods) else None
    if since is not None and now - since > NO_POD_GRACE:
        return _with(
            base,
            state=State.STARTING,
            message=f"no pod was made for it: `kubectl describe {child.kind.lower()} {child.name}` says why",
        )
    look_at = None if since is None else since + NO_POD_GRACE
    if ended and since is not None:
        return _with(base, state=State.RUNNING, message="its pods have ended", look_at=look_at)
    return _with(base, state=State.STARTING, message="its pods start", look_at=look_at)


def _queued(
    base: Assessment, child: Child, trenchcoat: Trenchcoat, now: datetime, *, kueue: bool
) -> Assessment:
    """A child that is suspended: it waits for Kueue."""
    waits = _with(base, state=State.WAITING, waiting=WaitingReason.QUEUE)
    queue = trenchcoat.spec.scheduling.queue_name
    if not queue:
        return _with(waits, message=f"{child.kind} {child.name} is suspended, though not by this operator")
    if not kueue:
        message = "the cluster has no Kueue (v0.15 or newer): install it, or remove spec.scheduling.queueName"
        return _with(waits, message=message, problem=Problem("KueueMissing", message))
    if child.queued is not None and child.queued.mend:
        message = f"Kueue: {child.queued.message}; mend it, or name another in spec.scheduling.queueName"
        return _with(waits, message=message, problem=Problem("QueueInadmissible", message))
    if child.queued is not None:
        return _with(waits, message=f"Kueue: {child.queued.message}")
    if child.created_at is not None and now - child.created_at > NO_WORKLOAD_GRACE:
        return _with(
            waits,
            message=f"Kueue has made no Workload for {child.kind} {child.name}: does it run, and do its "
            f"integrations include {_INTEGRATIONS[child.kind]}?",
        )
    look_at = None if child.created_at is None else child.created_at + NO_WORKLOAD_GRACE
    return _with(waits, message=not_admitted(queue), look_at=look_at)


def not_admitted(queue: str) -> str:
    """What is said of a child that Kueue was asked for and has not spoken of."""
    return f"Kueue has not admitted it to LocalQueue {queue} yet"


_INTEGRATIONS = {ChildKind.JOB: "batch/job", ChildKind.PYTORCH_JOB: "kubeflow.org/pytorchjob"}


def _unschedulable(base: Assessment, child: Child, pod: Pod, now: datetime) -> Assessment:
    message = f"pod {pod.name} waits for a node: {pod.unschedulable}"
    since = pod.unschedulable_since or pod.created_at or child.created_at or now
    if child.room_by is not None and child.room_by > since:
        since = child.room_by
        message += f"; pods that end there should be gone by {texts.timestamp(since)}"
    if now - since < UNSCHEDULABLE_GRACE:
        return _with(base, state=State.STARTING, message=message, look_at=since + UNSCHEDULABLE_GRACE)
    field = f"spec.pods.{base.work.stage}"
    remedy = f"add nodes, free some, or change {field}.resources, nodeSelector, tolerations or affinity"
    problem = Problem("Unschedulable", f"{message}; {remedy}")
    return _with(base, state=State.STARTING, message=problem.message, problem=problem)


def deadline_of(work: Work, trenchcoat: Trenchcoat, child: Child) -> datetime | None:
    """When a child's attempt has run for as long as it may; None while it does not run or may run on."""
    seconds = graph.overrides(trenchcoat.spec, work.stage).deadline_seconds
    begun = [pod.started_at for pod in child.pods if pod.phase == "Running" and pod.started_at is not None]
    if seconds is None or not begun:
        return None
    return min(begun) + timedelta(seconds=seconds)


def deadline_exceeded(work: Work, trenchcoat: Trenchcoat) -> Outcome:
    """What is recorded of a child that was stopped at its deadline."""
    field = f"spec.pods.{work.stage}.deadlineSeconds"
    seconds = graph.overrides(trenchcoat.spec, work.stage).deadline_seconds
    return Outcome(
        FailureClass.DEADLINE_EXCEEDED,
        f"it ran longer than {field} {seconds}: raise it, or find out from the pod's log what it waited for",
    )


def _after_failures(
    base: Assessment,
    latest: Child,
    outcomes: list[tuple[Child, Outcome]],
    trenchcoat: Trenchcoat,
    now: datetime,
) -> Assessment | None:
    """Failed for good, or waiting for the next try; None when that may be made now."""
    last = outcomes[-1][1]
    counted = sum(not outcome.failure.free for _, outcome in outcomes)
    limit = trenchcoat.spec.scheduling.max_attempts
    again = f"; mend it, then `kubectl delete {latest.kind.lower()} {latest.name}` to try again"
    if last.failure.permanent:
        message = last.message + again
        return _with(base, state=State.FAILED, message=message, problem=Problem(last.failure.value, message))
    if counted >= limit:
        message = f"failed {counted} of {limit} times, lastly: {last.message}{again}"
        return _with(base, state=State.FAILED, message=message, problem=Problem("AttemptsExhausted", message))
    if trenchcoat.spec.suspend:
        return None
    if last.failure.free:
        # The first comes back at once; a cluster that preempts again and again is not pressed.
        in_a_row = sum(1 for _ in takewhile(lambda item: item[1].failure.free, reversed(outcomes)))
        doublings = in_a_row - 2
        tell = f"try {latest.attempt + 1}"
    else:
        doublings = counted - 1
        tell = f"try {counted + 1} of {limit}"
    if doublings < 0:
        return None
    ended = latest.finished_at or latest.created_at or now
    retry_at = ended + min(BACKOFF * 2 ** min(doublings, 10), BACKOFF_LIMIT)
    if now >= retry_at:
        return None
    return _with(
        base,
        state=State.WAITING,
        waiting=WaitingReason.RETRY,
        message=f"{tell} at {retry_at:%H:%M:%S} UTC, for: {last.message}",
        look_at=retry_at,
    )
