"""Containers that do not start, and what a person must mend so that they do."""

from trenchcoat_operator.model.observed import Child, Problem
from trenchcoat_operator.reconcile.assessment.failures import short

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
                short(
                    f"pod {pod.name}: {pod.waiting_reason}: {pod.waiting_message or 'no image'}"
                    f"; set spec.pods.{child.stage}.image, or the operator's trainerImage, to an image that "
                    "the node can pull"
                ),
            )
        if pod.waiting_reason in _CONTAINER_REASONS:
            return Problem(
                "ContainerConfigError",
                short(f"pod {pod.name}: {pod.waiting_reason}: {pod.waiting_message}"),
            )
    return None
