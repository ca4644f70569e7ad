"""What a failed Job means: the class of its failure decides whether it is tried again."""

from dataclasses import dataclass
from enum import StrEnum

from trenchcoat_api.exitcodes import ExitCode

from trenchcoat_operator.model.observed import Child, Pod, Problem

MESSAGE_LIMIT = 1000


class FailureClass(StrEnum):
    """Kinds of failures; the value is the reason in conditions and events."""

    BAD_INPUT = "InvalidInput"
    DIVERGED = "Diverged"
    OUT_OF_MEMORY = "OutOfMemory"
    PREEMPTED = "Preempted"
    STORE_UNAVAILABLE = "StoreUnavailable"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NO_MANIFEST = "NoManifest"
    FAILED = "Failed"

    @property
    def permanent(self) -> bool:
        """Whether another try would end the same way."""
        return self in (FailureClass.BAD_INPUT, FailureClass.DIVERGED, FailureClass.OUT_OF_MEMORY)

    @property
    def free(self) -> bool:
        """Whether it leaves the number of tries as it is."""
        return self is FailureClass.PREEMPTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try failed."""

    failure: FailureClass
    message: str


_BY_EXIT_CODE = {
    ExitCode.BAD_INPUT: FailureClass.BAD_INPUT,
    ExitCode.DIVERGED: FailureClass.DIVERGED,
    ExitCode.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
    ExitCode.STORE_UNAVAILABLE: FailureClass.STORE_UNAVAILABLE,
    ExitCode.PREEMPTED: FailureClass.PREEMPTED,
}

_PREEMPTED_REASONS = {"Evicted", "NodeLost", "Preempting", "Shutdown", "NodeShutdown", "Terminated"}

# Of several failed pods, the one whose end explains the others'.
_WEIGHT = list(FailureClass)


def classify(child: Child) -> Outcome:
    """Say how a failed child failed, from what was recorded, its pods and its own condition."""
    if child.outcome in set(FailureClass):
        return Outcome(FailureClass(child.outcome), child.outcome_message)
    ends = [end for pod in child.pods if (end := _pod_outcome(pod)) is not None]
    if ends:
        return min(ends, key=lambda end: (_WEIGHT.index(end.failure), end.message))
    for code, failure in _BY_EXIT_CODE.items():
        # Job's own condition outlives the pods: "Container x for pod y failed with exit code 65 matching ..."
        if child.reason == "PodFailurePolicy" and f"exit code {code:d} " in child.message:
            return Outcome(failure, _short(child.message))
    message = child.message or "it failed and its pods are gone"
    return Outcome(FailureClass.FAILED, _short(message))


def _pod_outcome(pod: Pod) -> Outcome | None:
    if pod.disrupted or pod.reason in _PREEMPTED_REASONS:
        where = f" on {pod.node}" if pod.node else ""
        return Outcome(
            FailureClass.PREEMPTED,
            f"the cluster ended pod {pod.name}{where}: {pod.reason or 'preemption, eviction or a lost node'}",
        )
    if pod.exit_reason == "OOMKilled":
        return Outcome(
            FailureClass.OUT_OF_MEMORY,
            f"pod {pod.name} was killed for using more memory than its limit: raise resources.memory of this "
            "stage in spec.pods, or lower its micro batch size",
        )
    if pod.exit_code is None or pod.exit_code == 0:
        return None
    said = _last_line(pod.exit_message)
    failure = _BY_EXIT_CODE.get(_known(pod.exit_code), FailureClass.FAILED)
    return Outcome(failure, _short(said or f"pod {pod.name} ended with exit code {pod.exit_code}"))


def _known(code: int) -> ExitCode:
    return ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _short(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
}
_CONTAINER_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


def pod_problem(child: Child) -> Problem | None:
    """What keeps a child's pods from starting and will keep them until somebody mends it."""
    for pod in sorted(child.pods, key=lambda pod: pod.name):
        if pod.waiting_reason in _IMAGE_REASONS:
            return Problem(
                "ImagePullFailed",
                _short(
                    f"pod {pod.name}: {pod.waiting_reason}: {pod.waiting_message or 'no image'}"
                    f"; set spec.pods.{child.stage}.image, or the operator's trainerImage, to an image that "
                    "the node can pull"
                ),
            )
        if pod.waiting_reason in _CONTAINER_REASONS:
            return Problem(
                "ContainerConfigError",
                _short(f"pod {pod.name}: {pod.waiting_reason}: {pod.waiting_message}"),
            )
    return None
