"""Jobs of Kubernetes' own: one of a single pod, and an Indexed Job whose pods work together."""

from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.children import rendezvous
from trenchcoat_operator.children.attempts import Attempt
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import Object


class SingleJob:
    """A Job of one pod."""

    kind = ChildKind.JOB

    def manifest(self, attempt: Attempt) -> Object:
        """The Job."""
        return _job(attempt, attempt.template)

    def services(self, trenchcoat: Trenchcoat) -> tuple[Object, ...]:
        """None: a pod alone meets nobody."""
        return ()


class IndexedJob:
    """A gang as an Indexed Job: its pods have stable names, which a headless Service makes known.

    One that fails or is preempted ends the Job, and with it the others, for a try is one Job.
    """

    kind = ChildKind.JOB

    def manifest(self, attempt: Attempt) -> Object:
        """The Job, for the API server to be made complete: it gives each pod its index."""
        body = _job(attempt, rendezvous.joined(attempt))
        pods = attempt.work.pods
        body["spec"] |= {"completionMode": "Indexed", "completions": pods, "parallelism": pods}
        return body

    def services(self, trenchcoat: Trenchcoat) -> tuple[Object, ...]:
        """The headless Service under which the pods find one another."""
        return (rendezvous.service(trenchcoat),)


def _job(attempt: Attempt, template: Object) -> Object:
    final = (ExitCode.BAD_INPUT, ExitCode.DIVERGED, ExitCode.OUT_OF_MEMORY)
    stopped = (ExitCode.PREEMPTED, ExitCode.TERMINATED)
    disrupted: Object = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    # Another pod of the same Job would come after the Job controller's back-off, 10 s to 10 minutes: the
    # operator makes another Job at once. Kueue, though, preempts by suspending a Job: its pod then ends
    # without being a target of disruption, and that is no end of the Job.
    rules: list[Object] = [{"action": "FailJob", **disrupted}]
    if attempt.queued:
        rules.append({"action": "Ignore", "onExitCodes": _exits(*stopped)})
        rules.append({"action": "FailJob", "onExitCodes": _exits(*final)})
    else:
        rules.append({"action": "FailJob", "onExitCodes": _exits(*final, *stopped)})
    spec: Object = {
        "backoffLimit": 0,  # tries are the operator's: one Job for each
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": template,
    }
    if attempt.queued:
        spec["suspend"] = True  # Kueue admits it
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": attempt.metadata, "spec": spec}


def _exits(*codes: ExitCode) -> Object:
    return {"containerName": ChildKind.JOB.container, "operator": "In", "values": sorted(map(int, codes))}
