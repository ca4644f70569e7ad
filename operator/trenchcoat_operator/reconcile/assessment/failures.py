"""What a failed Job means: the class of its failure decides whether it is tried again."""

import re
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import Stage

from trenchcoat_operator.model.observed import Child, ChildKind, Pod
from trenchcoat_operator.reconcile.assessment.lost import is_lost, lingers

MESSAGE_LIMIT = 1000


class FailureClass(StrEnum):
    """Kinds of failures; the value is the reason in conditions and events."""

    BAD_INPUT = "InvalidInput"
    """The model, the text or the spec cannot work: never tried again."""
    DIVERGED = "Diverged"
    """The loss became NaN or passed its bound: never tried again."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The GPU or the container ran out of memory: never tried again."""
    EVICTED = "Evicted"
    """The pod used more than it asked for, or than it may: free of charge the first time alone."""
    PREEMPTED = "Preempted"
    """The cluster ended the pod, or its node went away: tried again free of charge."""
    NODE_REFUSED = "NodeRefused"
    """The kubelet did not take the pod: free of charge, but not for ever."""
    STORE_UNAVAILABLE = "StoreUnavailable"
    """The stage could not use the store: tried again, up to the limit."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """It ran longer than spec.pods.STAGE.deadlineSeconds: tried again, up to the limit."""
    NO_MANIFEST = "NoManifest"
    """Its pods ended well and left no artifact: tried again, up to the limit."""
    FAILED = "Failed"
    """Anything that is none of the other classes: tried again, up to the limit."""

    @property
    def permanent(self) -> bool:
        """Whether another try would end the same way."""
        return self in (FailureClass.BAD_INPUT, FailureClass.DIVERGED, FailureClass.OUT_OF_MEMORY)

    @property
    def free(self) -> bool:
        """Whether it leaves the number of tries as it is."""
        return self in (FailureClass.PREEMPTED, FailureClass.NODE_REFUSED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try failed."""

    failure: FailureClass
    message: str
    saved: float | None = None
    """Share of its stage that its latest checkpoint held; none where it saved none."""


_BY_EXIT_CODE = {
    ExitCode.BAD_INPUT: FailureClass.BAD_INPUT,
    ExitCode.DIVERGED: FailureClass.DIVERGED,
    ExitCode.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
    ExitCode.STORE_UNAVAILABLE: FailureClass.STORE_UNAVAILABLE,
    ExitCode.PREEMPTED: FailureClass.PREEMPTED,
    ExitCode.TERMINATED: FailureClass.PREEMPTED,
}
_KILLED = 128 + signal.SIGKILL
_UNKNOWN = 255
"""The exit code that containerd gives a container of which it knows no other."""
_CLOCKS_DIFFER = timedelta(seconds=5)
_STOPPED = (ExitCode.PREEMPTED, ExitCode.TERMINATED)
_NEVER = datetime.min.replace(tzinfo=UTC)

_PREEMPTED_REASONS = {"Evicted", "NodeLost", "Preempting", "Shutdown", "NodeShutdown", "Terminated"}
# What the kubelet says of an eviction that the pod itself gave rise to.
_OWN_DOING = re.compile(
    r"exceeds the (total )?limit|exceeded its local|"
    rf"Container ({'|'.join(kind.container for kind in ChildKind)}) was using"
)
_DISRUPTED = "has condition DisruptionTarget"

_OF_BROKEN_RANKS = {FailureClass.FAILED, FailureClass.STORE_UNAVAILABLE}

# Of several failed pods, the one whose end explains the others'.
_WEIGHT = list(FailureClass)


def classify(child: Child, now: datetime) -> Outcome:
    """Say how a failed child failed, from what was recorded, its pods and its own condition."""
    if child.outcome in set(FailureClass):
        return Outcome(FailureClass(child.outcome), child.outcome_message, child.saved)
    disrupted = child.reason == "PodFailurePolicy" and _DISRUPTED in child.message
    told = by_pods(child, now)
    # Of a gang the pod that was ended may be gone, and those be left that broke for it.
    gone = disrupted or _controller_saw_a_stop(child)
    if told is not None and not (gone and told.failure in _OF_BROKEN_RANKS):
        return told
    if disrupted:
        return Outcome(FailureClass.PREEMPTED, "the cluster ended its pod, which is gone")
    for code, failure in _BY_EXIT_CODE.items():
        # Job's own condition outlives the pods: "Container x for pod y failed with exit code 65 matching ..."
        if child.reason == "PodFailurePolicy" and f"exit code {code:d} " in child.message:
            return Outcome(failure, short(child.message))
    message = child.message or "it failed and its pods are gone"
    return Outcome(FailureClass.FAILED, short(message))


def by_pods(child: Child, now: datetime) -> Outcome | None:
    """How a child failed by its pods alone; None while they tell of no failure."""
    ends = [(pod, end) for pod in child.pods if (end := _pod_outcome(pod, child.stage, now)) is not None]
    if ends:
        return min(_explaining(child, ends), key=lambda end: (_WEIGHT.index(end.failure), end.message))
    if child.pods and all(pod.exit_code == 0 for pod in child.pods):
        return no_manifest(child)
    return None


def no_manifest(child: Child) -> Outcome:
    """What is recorded of a child whose stage ended well, for nothing."""
    message = f"{child.kind} {child.name} ended well but left no manifest in the store"
    return Outcome(FailureClass.NO_MANIFEST, message)


def _explaining(child: Child, ends: list[tuple[Pod, Outcome]]) -> list[Outcome]:
    """The ends without those of pods that were told to end because another had failed."""
    first = _failed_from(child, ends)
    if first is None or _controller_saw_a_stop(child):
        return [end for _, end in ends]

    def follows(pod: Pod, end: Outcome) -> bool:
        stopped = end.failure is FailureClass.PREEMPTED and _ended_on_request(pod)
        return stopped and not _asked_before(pod, first)

    return [end for pod, end in ends if not follows(pod, end)]


def _failed_from(child: Child, ends: list[tuple[Pod, Outcome]]) -> datetime | None:
    """The earliest that is known of a failure in a gang; None where no pod failed of its own accord."""
    failed = [pod for pod, end in ends if end.failure is not FailureClass.PREEMPTED]
    if not failed:
        return None
    known = [moment for moment in (child.failing_at, *(pod.ended_at for pod in failed)) if moment is not None]
    return min(known, default=_NEVER)


def _asked_before(pod: Pod, failed: datetime) -> bool:
    """Whether a pod was told to end before another failed, as far as whole seconds tell.

    Within one second nobody knows, and the failure counts: tries that do not may go on for ever.
    """
    asked = pod.ended_at
    if pod.told_at is not None and (asked is None or pod.told_at - _CLOCKS_DIFFER <= asked):
        asked = pod.told_at
    return asked is not None and asked < failed


def _controller_saw_a_stop(child: Child) -> bool:
    """Whether its controller ended the Job for a pod that ended on request: only then it tells the others."""
    return child.reason == "PodFailurePolicy" and any(
        f"exit code {code:d} " in child.message for code in _STOPPED
    )


def evicted_itself(pod: Pod) -> bool:
    """Whether the kubelet evicted a pod for what the pod itself used."""
    return pod.reason == "Evicted" and _OWN_DOING.search(pod.message) is not None


def _ended_by_cluster(pod: Pod) -> bool:
    return pod.disrupted or pod.reason in _PREEMPTED_REASONS


def _was_refused(pod: Pod) -> bool:
    """Whether its node did not take it: it failed, with a reason, before any container was made."""
    return pod.phase == "Failed" and bool(pod.reason) and pod.exit_code is None and pod.started_at is None


def _was_lost_from_sight(pod: Pod) -> bool:
    """Whether its container was gone when the kubelet, or the runtime, came back: the node was restarted."""
    return pod.exit_reason == "ContainerStatusUnknown" or (
        pod.exit_code == _UNKNOWN and pod.exit_reason == "Unknown"
    )


def _ended_on_request(pod: Pod) -> bool:
    if _ended_by_cluster(pod):
        return False
    if pod.exit_of:  # whose code means nothing to us
        return pod.gone_by is not None
    return pod.exit_code in _STOPPED or _outstayed(pod)


def _outstayed(pod: Pod) -> bool:
    """Whether it was killed because its grace period was over."""
    return (
        pod.exit_code == _KILLED
        and pod.gone_by is not None
        and pod.ended_at is not None
        and pod.ended_at >= pod.gone_by - _CLOCKS_DIFFER
    )


def may_be_excused(child: Child, outcome: Outcome) -> bool:
    """Whether a pod that is still there may turn out to be lost, and to be what the others failed for.

    They lose their connection to it at once; that its node does not answer shows a minute later.
    """
    return not outcome.failure.permanent and not outcome.failure.free and lingers(child)


def _pod_outcome(pod: Pod, stage: Stage, now: datetime) -> Outcome | None:
    if is_lost(pod, now):
        return Outcome(FailureClass.PREEMPTED, f"node {pod.node} of pod {pod.name} does not answer")
    where = f" on {pod.node}" if pod.node else ""
    said = f": {words}" if (words := pod.message.strip(" .")) else ""
    if evicted_itself(pod):
        field = "memory" if "resource: memory" in pod.message else "ephemeralStorage"
        remedy = f"raise spec.pods.{stage}.resources.{field}, or the sizeLimit of the volume that it names"
        message = f"the kubelet evicted pod {pod.name}{where} for what it used itself{said}; {remedy}"
        return Outcome(FailureClass.EVICTED, short(message))
    if _ended_by_cluster(pod):
        why = f"{pod.reason}{said}" if pod.reason else "preemption, eviction or a lost node"
        return Outcome(FailureClass.PREEMPTED, short(f"the cluster ended pod {pod.name}{where}: {why}"))
    if _was_refused(pod):
        message = f"node {pod.node} refused pod {pod.name}: {pod.reason}{said}"
        return Outcome(FailureClass.NODE_REFUSED, short(message))
    if _was_lost_from_sight(pod):
        message = f"the container of pod {pod.name}{where} was gone when its node came back"
        return Outcome(FailureClass.PREEMPTED, message)
    if pod.exit_of:
        return _of_init_container(pod)
    if pod.exit_reason == "OOMKilled":
        return Outcome(
            FailureClass.OUT_OF_MEMORY,
            f"pod {pod.name} was killed for using more memory than its limit: raise resources.memory of this "
            "stage in spec.pods, or lower its micro batch size",
        )
    if pod.exit_code is None or pod.exit_code == 0:
        return None
    if _outstayed(pod):
        return Outcome(
            FailureClass.PREEMPTED,
            f"pod {pod.name} was told to end and did not within its grace period: what it did since its last "
            "checkpoint is done again",
        )
    said = _last_line(pod.exit_message)
    if not said and pod.exit_code == ExitCode.TERMINATED:
        said = f"pod {pod.name} was told to end while it started"
    failure = _BY_EXIT_CODE.get(_known(pod.exit_code), FailureClass.FAILED)
    return Outcome(failure, short(said or f"pod {pod.name} ended with exit code {pod.exit_code}"))


def _of_init_container(pod: Pod) -> Outcome:
    """How a pod failed whose stage never began; the exit codes of others mean nothing to us."""
    if pod.gone_by is not None:
        message = f"pod {pod.name} was told to end while its init container {pod.exit_of} ran"
        return Outcome(FailureClass.PREEMPTED, message)
    how = f"{pod.exit_reason or 'Error'}, exit code {pod.exit_code}"
    said = _last_line(pod.exit_message) or f"`kubectl logs {pod.name} -c {pod.exit_of}` says why"
    return Outcome(
        FailureClass.FAILED, short(f"init container {pod.exit_of} of pod {pod.name} failed ({how}): {said}")
    )


def _known(code: int) -> ExitCode:
    return ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def short(text: str) -> str:
    """A message that may be long, cut where it is too long to be told."""
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"
